"""The demo: what a stranger types first. It must find its faults, and leave nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import ROOT, wait_until

DEMO = [sys.executable, "-P", "-m", "pipeline", "demo"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def test_the_demo_finds_its_faults_and_keeps_what_it_was_asked_to(tmp_path: Path) -> None:
    done = subprocess.run([*DEMO, f"--keep={tmp_path}"], env=ENVIRONMENT, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "demo passed" in done.stdout
    assert len(list(tmp_path.glob("*/capture_*.json"))) == 270
    assert [line.split()[:3] for line in done.stdout.splitlines() if line.startswith(("opened", "closed"))] == [
        ["opened", "black", "dark"],
        ["opened", "freeze", "frozen"],
        ["closed", "black", "dark"],
        ["closed", "freeze", "frozen"],
    ]
    assert len(list(tmp_path.glob("state/store/alerts/*/*/*/*/*"))) == 2 * 9
    again = subprocess.run([*DEMO, f"--keep={tmp_path}"], env=ENVIRONMENT, capture_output=True, text=True, timeout=55)
    assert again.returncode == 66
    assert again.stderr.count("\n") == 1 and "not empty" in again.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_no_ffmpeg_and_no_frames_behind(tmp_path: Path, number: int) -> None:
    demo = subprocess.Popen(
        DEMO, env={**ENVIRONMENT, "TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    tree = psutil.Process(demo.pid)

    def publishers() -> list[psutil.Process]:
        return [p for p in tree.children(recursive=True) if p.name() == "ffmpeg"]

    scratch = wait_until(lambda: [p.cmdline()[-1] for p in publishers()], 20, "FFmpeg publishes")
    everybody = tree.children(recursive=True)
    demo.send_signal(number)
    _, errors = demo.communicate(timeout=10)
    assert demo.returncode == 130, errors
    assert b"Traceback" not in errors
    wait_until(lambda: not any(p.is_running() for p in everybody), 5, "nothing is left")
    assert not Path(scratch[0]).parent.parent.exists()
    assert not list(tmp_path.iterdir()), "evidence of a demo that was not finished"
