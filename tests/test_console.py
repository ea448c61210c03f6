"""What a person sees on a terminal: nothing is cut off on a narrow one, and commands can be copied."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios

from tests.support import ROOT

TABLE = (
    "from pipeline.console import print_table\n"
    "print_table('sources', ['source', 'state', 'last frame'], [['living-room', 'watching', '0.1 s ago']])\n"
)
ITEM = "from pipeline.console import item\nitem('warn clock ', 'word ' * 20, 'yellow')\n"
COMMAND = "from pipeline.console import item\nitem('mend: ', 'word ' * 20 + '\\x1b', 'dim', whole=True)\n"


def shown(program: str, columns: int) -> list[str]:
    """The lines that a program prints on a terminal of so many columns, without colours."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    told = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment = {**told, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=slave, env=environment)
    os.close(slave)
    text = b""
    try:
        while data := os.read(master, 4096):
            text += data
    except OSError:  # EIO: the other side has gone
        pass
    os.close(master)
    assert process.wait(10) == 0
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text.decode()).split("\r\n")]


def test_a_table_loses_its_lines_before_its_words() -> None:
    wide, narrow = shown(TABLE, 60), shown(TABLE, 32)
    assert any("│ living-room │ watching │  0.1 s ago │" in line for line in wide)
    assert "living-room watching  0.1 s ago" in narrow


def test_what_is_too_long_goes_on_below_itself() -> None:
    lines = [line for line in shown(ITEM, 40) if line]
    assert len(lines) > 2 and lines[0].startswith("warn clock word")
    assert all(len(line) <= 40 and line.startswith(" " * 11 + "word") for line in lines[1:])


def test_a_command_stays_whole_and_acts_on_nothing() -> None:
    assert shown(COMMAND, 40)[0] == "mend: " + "word " * 20 + "\\x1b"
