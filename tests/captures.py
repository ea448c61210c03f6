"""What tests of captured sources share: an FFmpeg that does as it is told, and a service that captures."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from pipeline.board import Board, SourceRow
from pipeline.capture import Capture as CaptureRole
from pipeline.frames import read_frame
from pipeline.model import InvalidFrame
from pipeline.settings import Settings, Source
from tests.live import source_row
from tests.machine import FaultRig
from tests.support import wait_until

S = 10**9
SCENE: dict[str, Any] = {"profile": "lavfi", "input": "scene:live", "size": "320x180", "fps": 10}

_STUB = """\
#!/bin/bash
# FFmpeg, but for what the file `mode` says. Every start adds a line to `starts`.
cd "${{0%/*}}"
[[ $1 != -h ]] || exec {ffmpeg} "$@"
mode=$(<mode)
echo "$mode" >>starts
case $mode in
    exit) echo '/dev/video0: Input/output error' >&2; exit 1 ;;
    hang) echo '[v4l2] VIDIOC_DQBUF: waiting' >&2; exec sleep 1000 ;;
    deaf) trap '' TERM; echo 'deaf' >&2; while :; do sleep 0.1; done ;;
    small) exec {ffmpeg} "${{@//320x180/160x90}}" ;;
    *) exec {ffmpeg} "$@" ;;
esac
"""


class StubFFmpeg:
    """A real FFmpeg, or one that exits, hangs, ignores SIGTERM, or has another picture size: from its next start on."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.path = folder / "ffmpeg"
        self.path.write_text(_STUB.format(ffmpeg=shutil.which("ffmpeg")))
        self.path.chmod(0o755)
        self._mode, self._starts = folder / "mode", folder / "starts"
        self.set("good")

    def set(self, mode: str) -> None:
        """What it is from the next start on."""
        self._mode.write_text(mode)

    def wait_tried(self, mode: str, times: int = 2) -> None:
        """Wait until it was started so often in this mode."""
        wait_until(lambda: self.starts.count(mode) >= times, 30, f"{times} starts of {mode}")

    @property
    def starts(self) -> list[str]:
        """The modes in which it was started."""
        return self._starts.read_text().split() if self._starts.exists() else []


class CaptureBench:
    """The capture child's role in this process, on the real clock."""

    def __init__(self, base: Path, *sources: Source) -> None:
        (base / "run").mkdir(exist_ok=True)
        self.runtime_dir = str(base / "run")
        settings = Settings(source=sources, runtime_dir=self.runtime_dir, state_dir=str(base))
        names = [source.name for source in sources]
        self.board = Board.create(self.runtime_dir, [], names)
        self.board.memory.ready_ns = 1
        self._poll = select.poll()
        self.role = CaptureRole(settings, self.board, {name: lane for lane, name in enumerate(names)}, self._poll)

    def __enter__(self) -> CaptureBench:
        return self

    def __exit__(self, *_: object) -> None:
        self.role.close()
        os.close(self.board.fd)

    def row(self, lane: int = 0) -> SourceRow:
        row: SourceRow = self.board.memory.sources[lane]
        return row

    def turn_until(self, condition: Callable[[], Any], timeout_s: float = 30.0, what: str = "") -> Any:
        """Turn as the child does, until something is so."""

        def turned() -> Any:
            self.role.step(time.monotonic_ns())
            if value := condition():
                return value
            self._poll.poll(min(0.02, self.role.timeout_s(time.monotonic_ns())) * 1000)
            return None

        return wait_until(turned, timeout_s, what)

    def ffmpeg(self, lane: int = 0) -> psutil.Process:
        """The FFmpeg of a source, once it is FFmpeg (and not capture.sh any more)."""
        return psutil.Process(self.turn_until(lambda: pid_of_ffmpeg(self.row(lane)), what="an FFmpeg"))


class CaptureRig(FaultRig):
    """A service that captures its sources itself, into its runtime directory unless they say where."""

    def __init__(self, base: Path, *flags: str, sources: dict[str, dict[str, Any]], **environment: str) -> None:
        """`sources`: the keys of each; its capture is a test scene unless it has a table of that name."""
        super().__init__(base, *flags, sources=(), **environment)
        self.dirs = {name: Path(keys.get("dir", base / "run" / "frames" / name)) for name, keys in sources.items()}
        self.published = {name: [] for name in sources}
        self.config = base / "stillwatch.toml"
        self.configure(sources)
        self._before: set[str] = set()

    def configure(self, sources: dict[str, dict[str, Any]], extra: str = "") -> None:
        """Write the file of settings."""
        assert self.config
        text = [extra]
        for name, keys in sources.items():
            tables = {"capture": SCENE, **{key: value for key, value in keys.items() if isinstance(value, dict)}}
            plain = {key: value for key, value in keys.items() if not isinstance(value, dict)}
            text += ["[[source]]", f"name = {json.dumps(name)}", *_toml(plain)]
            for table, values in tables.items():
                text += [f"[source.{table}]", *_toml(values)] if values else []
        self.config.write_text("\n".join(text) + "\n")

    def row(self, source: str) -> SourceRow:
        """A source's row of the board."""
        return source_row(self, list(self.dirs).index(source))

    def ffmpeg(self, source: str, but: int = 0) -> psutil.Process:
        """The FFmpeg of a source, once it is FFmpeg and another than process `but`."""
        row = self.row(source)

        def pid() -> int:
            found = pid_of_ffmpeg(row)
            return found if found != but else 0

        return psutil.Process(wait_until(pid, 20, f"an FFmpeg for {source}"))

    def wait_frames(self, source: str, count: int = 1) -> int:
        """Wait until so many more frames of a source are judged; the highest number."""
        row = self.row(source)
        enough = row.judged + count
        wait_until(lambda: row.judged >= enough, 60, f"{count} frames of {source}")
        return int(row.last_number)

    def settle(self) -> None:
        """Wait until all sources' frames flow and no incident is open. A slow start is a stall too: it is forgotten."""
        goals = [(row, row.judged + 12) for row in map(self.row, self.dirs)]
        wait_until(lambda: all(row.judged >= goal for row, goal in goals), 60, "frames of all sources")
        wait_until(lambda: all(incident["state"] == "closed" for incident in self.incidents()), 20, "all is well")
        self._before = {incident["id"] for incident in self.incidents()}

    def incidents(self) -> list[dict[str, Any]]:
        """What the `incidents` command tells, oldest first; but for what was there when all was well."""
        command = [sys.executable, "-P", "-m", "pipeline", "incidents", "--json", f"--state-dir={self.base / 'state'}"]
        done = subprocess.run(command, env=self.environment, cwd=self.base, capture_output=True, timeout=30)
        found = [json.loads(line) for line in done.stdout.splitlines()]
        new = [incident for incident in found if incident["id"] not in self._before]
        return sorted(new, key=lambda incident: str(incident["opened_at"]))


def _toml(values: dict[str, Any]) -> list[str]:
    """Scalars are written as in JSON."""
    return [f"{key} = {json.dumps(value)}" for key, value in values.items()]


def pid_of_ffmpeg(row: SourceRow) -> int:
    """0 while there is none; what stands there first is capture.sh, which becomes it."""
    pid = int(row.ffmpeg_pid)
    try:
        words = psutil.Process(pid).cmdline() if pid else []
    except psutil.Error:
        return 0
    is_ffmpeg = any("start_number" in word for word in words)  # also as an option of one of several outputs
    return pid if is_ffmpeg or words[:1] == ["sleep"] else 0


def invalid_frames(directory: Path) -> list[str]:
    """The frames that are no whole JPEG."""
    found = []
    for path in directory.glob("capture_*.jpg"):
        try:
            read_frame(str(path))
        except InvalidFrame as error:
            found.append(f"{path.name}: {error}")
        except FileNotFoundError:
            continue  # retention was quicker
    return found


def leftovers(directory: Path) -> list[str]:
    """What killed FFmpegs left half written."""
    return sorted(path.name for path in directory.glob("*.tmp"))
