"""What tests share: frames to publish, waiting for a condition, and a real service to do things to.

`Rig` runs `python -m pipeline run` as a child, publishes frames by atomic rename as FFmpeg does, and knows how to ask
the three questions that every fault test ends with: do the books balance, has every published frame exactly one
sidecar, and is no process left behind.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import psutil
import pytest

from pipeline.config import ENVIRONMENT_PREFIX

ROOT = Path(__file__).resolve().parent.parent
READY_S = 60.0
STOP_S = 20.0  # after which systemd would kill it


def wait_until(condition: Callable[[], Any], timeout_s: float = 30.0, what: str = "") -> Any:
    """The first true value of `condition`, asked again and again until the deadline; AssertionError after it.

    An answer that takes long is asked for more seldom, so that what is waited for has the machine."""
    deadline = time.monotonic() + timeout_s
    while True:
        asked = time.monotonic()
        if value := condition():
            return value
        answered = time.monotonic()
        if answered > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        time.sleep(min(0.5, max(0.01, 3 * (answered - asked))))


def costly(*values: Any) -> list[Any]:
    """The values of a parameter with which a test is costly."""
    return [pytest.param(value, marks=pytest.mark.costly) for value in values]


@functools.cache
def make_frame(seed: int = 0, width: int = 320, height: int = 180) -> bytes:
    """A JPEG of a blurred random pattern: another picture for every seed."""
    noise = np.random.default_rng(seed).integers(0, 255, (height // 20, width // 20, 3), dtype=np.uint8)
    picture = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])
    assert done
    return data.tobytes()


@functools.cache
def plain_frame(level: int, width: int = 320, height: int = 180) -> bytes:
    """A JPEG of one grey level."""
    done, data = cv2.imencode(".jpg", np.full((height, width), level, np.uint8))
    assert done
    return data.tobytes()


def frame_name(number: int, prefix: str = "capture_") -> str:
    """A frame's name as FFmpeg's `%09d` writes it."""
    return f"{prefix}{number:09d}.jpg"


def publish(directory: Path, number: int, data: bytes, prefix: str = "capture_") -> Path:
    """Publish one frame as FFmpeg does: write NAME.tmp, rename it to NAME."""
    path = directory / frame_name(number, prefix)
    temporary = Path(f"{path}.tmp")
    temporary.write_bytes(data)
    temporary.rename(path)
    return path


def sidecars(directory: Path) -> dict[int, dict[str, Any]]:
    """All sidecars in a directory by sequence; one that goes while they are read is none. Raises when one is not valid
    JSON or two speak of one sequence."""
    found: dict[int, dict[str, Any]] = {}
    for path in directory.glob("*.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        assert content["filename"] == path.with_suffix(".jpg").name, f"{path} speaks of {content['filename']}"
        assert content["sequence"] not in found
        found[content["sequence"]] = content
    return found


class Rig:
    """A running service over directories of its own. Use as a context manager: leaving it checks that all is gone."""

    def __init__(self, tmp_path: Path, *flags: str, sources: tuple[str, ...] = ("a",), **environment: str) -> None:
        self.base = tmp_path
        self.dirs = {name: tmp_path / "frames" / name for name in sources}
        for directory in self.dirs.values():
            directory.mkdir(parents=True, exist_ok=True)
        self.flags = flags
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
        self.environment = {**inherited, "PYTHONPATH": str(ROOT), **environment}
        self.log_path = tmp_path / "service.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.published: dict[str, list[int]] = {name: [] for name in sources}

    def __enter__(self) -> Self:
        self.start()
        self.wait_ready()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        left = self.tree()
        try:
            if self.process and self.process.poll() is None:
                self.stop()
            if kind is None:
                wait_until(lambda: not any(p.is_running() for p in left), 20, f"processes left behind: {left}")
        finally:
            for process in left:
                if process.is_running():
                    process.kill()

    # -- the service ------------------------------------------------------------------------------------------------

    @property
    def command(self) -> list[str]:
        """The command line of the service."""
        sources = [f"--source={name}={directory}" for name, directory in self.dirs.items()]
        places = [f"--runtime-dir={self.base / 'run'}", f"--state-dir={self.base / 'state'}"]
        return [sys.executable, "-P", "-m", "pipeline", "run", *sources, *places, *self.flags]

    def start(self) -> None:
        """Start the service; its log is appended to `log_path`."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stderr=log, stdout=log, env=self.environment, cwd=self.base
            )

    def wait_ready(self, times: int = 1) -> None:
        """Wait until the log has said `ready` this often."""
        wait_until(lambda: self.log.count(" ready sources=") >= times or self._ended(), READY_S, "ready")
        assert not self._ended(), self.log

    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def stop(self, number: int = signal.SIGTERM, within_s: float = STOP_S) -> int:
        """Stop the service and return its exit code; it must end in time."""
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(within_s)

    @property
    def log(self) -> str:
        """All that was logged."""
        return self.log_path.read_text(encoding="utf-8") if self.log_path.exists() else ""

    def lines(self, text: str) -> list[str]:
        """The log's lines that contain `text`."""
        return [line for line in self.log.splitlines() if text in line]

    def tree(self) -> list[psutil.Process]:
        """The service's processes, the supervisor first."""
        if self.process is None or self.process.poll() is not None:
            return []
        supervisor = psutil.Process(self.process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def children(self, role: str) -> list[psutil.Process]:
        """The living children of a role, by their titles: `watcher`, `worker`."""
        return [p for p in self.tree()[1:] if _title(p).startswith(f"stillwatch: {role}")]

    def child(self, role: str) -> psutil.Process:
        """The one child of a role, once it is there."""
        process: psutil.Process = wait_until(lambda: self.children(role), READY_S, f"a {role}")[0]
        return process

    # -- frames -----------------------------------------------------------------------------------------------------

    @property
    def dir(self) -> Path:
        """The directory of the first source."""
        return next(iter(self.dirs.values()))

    def publish(self, number: int, data: bytes | None = None, source: str | None = None) -> Path:
        """Publish a frame into a source (the first if none is named)."""
        name = source or next(iter(self.dirs))
        self.published[name].append(number)
        return publish(self.dirs[name], number, make_frame(number % 50) if data is None else data)

    def wait_sidecars(
        self, count: int, source: str | None = None, timeout_s: float = 30.0
    ) -> dict[int, dict[str, Any]]:
        """Wait until a source has at least `count` sidecars; all of them by sequence."""
        directory = self.dirs[source] if source else self.dir
        wait_until(lambda: _count(directory, ".json") >= count, timeout_s, f"{count} sidecars")
        return sidecars(directory)

    # -- the books --------------------------------------------------------------------------------------------------

    def books(self) -> dict[str, dict[str, int]]:
        """Stop the service if it runs; the books it gave at the stop, by source. Fails unless they balance."""
        if self.process and self.process.poll() is None:
            assert self.stop() == 0
        found = {}
        for line in self.lines("books at stop"):
            values = dict(re.findall(r"(\w+)=(\S+)", line))
            assert values.pop("balanced") == "yes", line
            name = values.pop("source")
            found[name] = {key: int(value) for key, value in values.items()}
        assert found, f"no books in the log:\n{self.log}"
        for account in found.values():
            done = sum(account[key] for key in ("judged", "invalid", "skipped", "vanished", "in_flight"))
            assert account["published"] == done
        return found


def _count(directory: Path, suffix: str) -> int:
    return sum(entry.name.endswith(suffix) for entry in os.scandir(directory))


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def open_descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def children_of_tests() -> Iterator[psutil.Process]:
    """Processes below the test runner: none may be left when a test ends."""
    yield from psutil.Process().children(recursive=True)
