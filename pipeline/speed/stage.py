"""Where speed is measured: real pictures, a real service over fresh directories, and what its processes cost.

Frames are made once by FFmpeg and published by link and rename, so that the publisher costs next to nothing. All of it
lies in one directory in memory, which goes when its owner does, however it ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from pipeline.board import Board
from pipeline.model import ONE_THREAD, InputError, StillwatchError, UnavailableError
from pipeline.settings import usable_cpus

SIZE = "1280x720"
PICTURES = 60
AHEAD = 32
"""Frames that wait in every lane while a service is to be busy: it never runs dry, and no lane is full."""

START_S, STALL_S, STOP_S = 60.0, 30.0, 20.0
ROOT = Path(__file__).resolve().parent.parent.parent


def environment() -> dict[str, str]:
    """Of our own processes: whoever measures has set up nothing for them. Without threads of NumPy, as the workers run:
    they spin for 65 ms after their start, which 100 frames of a loop would pay for."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STILLWATCH_")}
    return {**kept, **ONE_THREAD, "PYTHONPATH": str(ROOT)}


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory in memory while the block lasts."""
    with tempfile.TemporaryDirectory(prefix="stillwatch-bench-", dir="/dev/shm") as name:
        yield Path(name)


def make_pictures(directory: Path) -> list[Path]:
    """Different 720p JPEGs as a grabber delivers them: a moving test picture under noise, 4:2:2. UnavailableError
    without FFmpeg."""
    directory.mkdir()
    if not (ffmpeg := shutil.which("ffmpeg")):
        raise UnavailableError("ffmpeg is not installed; apt-get install ffmpeg")
    graph = f"testsrc2=size={SIZE}:rate=5,noise=alls=6:allf=t"
    command = [ffmpeg, "-v", "error", "-f", "lavfi", "-i", graph, "-frames:v", str(PICTURES), "-q:v", "5"]
    command += ["-pix_fmt", "yuvj422p", str(directory / "%03d.jpg")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise UnavailableError(f"ffmpeg made no pictures: {done.stderr.decode(errors='replace').strip()}")
    return sorted(directory.glob("*.jpg"))


def publish(picture: Path, directory: Path, number: int) -> None:
    """Link and rename, as FFmpeg's atomic writing ends."""
    temporary = directory / "next.tmp"
    os.link(picture, temporary)
    os.rename(temporary, directory / f"capture_{number:09d}.jpg")


def cpu_ns(pid: int) -> int:
    """CPU time of a process and its threads so far (the ticks of /proc/PID/stat would be 10 ms)."""
    tasks = f"/proc/{pid}/task"
    return sum(int(Path(tasks, task, "schedstat").read_text().split()[0]) for task in os.listdir(tasks))


def pss_mb(pid: int) -> float:
    """Memory of a process, with its share of what it shares with others."""
    return int(Path(f"/proc/{pid}/smaps_rollup").read_text().split("Pss:")[1].split()[0]) / 1024


def uss_mb(pid: int) -> float:
    """Memory that a process has for itself: what one more of its kind takes."""
    return float(psutil.Process(pid).memory_full_info().uss / 2**20)


def run_module(module: str, words: Sequence[str]) -> str:
    """What a Python process of its own prints. It does not outlive this call; StillwatchError if it fails."""
    command = [sys.executable, "-P", "-m", module, *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, env=environment()
    ) as process:
        try:
            printed, complaints = process.communicate()
        except BaseException:  # Ctrl-C: it has heard it too, and is given the time to end its own processes
            end(process)
            raise
    if process.returncode:
        raise StillwatchError(f"{module} failed: {(complaints.strip().splitlines() or ['no reason given'])[-1]}")
    return printed


def end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Stop a process as one is asked to, or by force."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
    finally:
        process.wait()  # also where Ctrl-C comes while it stops


class Running:
    """A service over the directories of its sources."""

    def __init__(
        self, base: Path, workers: int, sources: int = 1, *, fill: Callable[[Path], None] | None = None
    ) -> None:
        """`fill` puts into each directory what is to be there before the start."""
        self.base = Path(tempfile.mkdtemp(prefix="run-", dir=base))
        self.dirs = [self.base / f"s{n}" for n in range(sources)]
        for directory in self.dirs:
            directory.mkdir()
            if fill:
                fill(directory)
        self.next_number = 0
        self.popen = subprocess.Popen(self._command(workers), stdin=subprocess.DEVNULL, env=environment())
        try:
            self.board = self._wait_ready()
        except BaseException:
            end(self.popen)
            raise

    def _command(self, workers: int) -> list[str]:
        words = [f"--source={directory.name}={directory}" for directory in self.dirs]
        words += [f"--runtime-dir={self.base / 'run'}", f"--state-dir={self.base / 'state'}"]
        words += ["--log-level=ERROR", f"--workers={workers}"]
        if workers >= len(usable_cpus()):
            words.append(f"--cpus={','.join(map(str, usable_cpus()))}")
        return [sys.executable, "-P", "-m", "pipeline", "run", *words]

    def _wait_ready(self) -> Board:
        give_up = time.monotonic() + START_S
        while time.monotonic() < give_up and self.popen.poll() is None:
            with suppress(InputError):
                board = Board.open(str(self.base / "run"))
                if board.memory.ready_ns:
                    return board
                os.close(board.fd)
            time.sleep(0.01)
        raise StillwatchError("the service did not start; try `./stillwatch run` to see why")

    @property
    def ready_s(self) -> float:
        """From the supervisor's first instant to READY."""
        return float(self.board.memory.ready_ns - self.board.memory.started_ns) / 1e9

    def pids(self, role: str = "") -> list[int]:
        """Its processes: all, or the children whose name begins with `role`."""
        children = [int(row.pid) for row in self.board.children if row.name.decode().startswith(role) and row.pid]
        return children if role else [self.popen.pid, *children]

    def cpu_ns(self) -> int:
        """CPU of all its processes so far."""
        return sum(map(cpu_ns, self.pids()))

    def judged(self) -> int:
        """Frames judged, of all sources."""
        return sum(int(row.judged) for _, row in self.board.sources)

    def publish(self, pictures: Sequence[Path]) -> None:
        """The next frame into every source."""
        for directory in self.dirs:
            publish(pictures[self.next_number % len(pictures)], directory, self.next_number)
        self.next_number += 1

    def keep_busy(self, pictures: Sequence[Path], done: Callable[[], bool], last: int | None = None) -> None:
        """Publish so that no source ever runs dry, frames with numbers below `last` only, until `done` says so."""
        moved, before = time.monotonic(), self.judged()
        while not done():
            judged = self.judged()
            if judged != before:
                moved, before = time.monotonic(), judged
            elif time.monotonic() > moved + STALL_S:
                raise StillwatchError("the service judged nothing for 30 s; try `./stillwatch run` to see why")
            if self.next_number - judged // len(self.dirs) >= AHEAD or self.next_number == last:
                time.sleep(0.001)
            else:
                self.publish(pictures)

    def judge(self, pictures: Sequence[Path], count: int) -> None:
        """Publish `count` frames into each source as fast as they are judged, and wait for the last."""
        last, goal = self.next_number + count, (self.next_number + count) * len(self.dirs)
        self.keep_busy(pictures, lambda: self.judged() >= goal, last)

    def close(self) -> None:
        """Stop it, and remove what it left."""
        os.close(self.board.fd)
        end(self.popen)
        shutil.rmtree(self.base)


@contextmanager
def running(
    base: Path, workers: int, sources: int = 1, *, fill: Callable[[Path], None] | None = None
) -> Iterator[Running]:
    """A service while the block lasts."""
    service = Running(base, workers, sources, fill=fill)
    try:
        yield service
    finally:
        service.close()
