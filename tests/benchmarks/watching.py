"""CPU per rename of whoever watches a directory: our watcher, and loops that do nothing but take the name.

    .venv/bin/python -m tests.benchmarks.watching [--rounds N]

- "raw": poll, read, walk over the bytes. No Python can be cheaper.
- "inotify_simple": the same through the library that our watcher is built on.
- "inotify": the library of the monitor that Stillwatch replaces (PyPI inotify: its generator, epoll, a log record).
- "watchdog": an observer with a handler, asked for renames only.
- "our watcher": the process of a running service: names parsed, slots put into the ring, workers woken, and its beats.

All are asked for renames into the directory only, and get the same: as fast as they come, and a hundred a second. They
take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import psutil
from inotify.adapters import Inotify as OldInotify
from inotify.constants import IN_MOVED_TO
from inotify_simple import INotify, flags
from watchdog.events import FileMovedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers.inotify import InotifyObserver

from pipeline.speed.stage import Running, cpu_ns, environment, publish, running
from tests.benchmarks.tools import memory_dir, say
from tests.support import wait_until

BURST, PACED, PACE_FPS = 800, 300, 100.0
"""Renames of one measurement; a burst fits into a lane (1024 slots) with room to spare."""

OURS = "our watcher"
_HEADER = struct.Struct("iIII")
Names = Generator[str | None, None, None]
Way = Callable[[str], Names]
"""Yields the names of what is renamed into a directory, for ever; first None, when it watches."""


def raw(directory: str) -> Names:
    """poll(2), read(2), and the names in what was read."""
    with INotify(nonblocking=True) as watch:
        watch.add_watch(directory, flags.MOVED_TO)
        poll, fd = select.poll(), watch.fileno()
        poll.register(fd, select.POLLIN)
        yield None
        while True:
            poll.poll()
            data, at = os.read(fd, 65536), 0
            while at < len(data):
                length = _HEADER.unpack_from(data, at)[3]
                yield data[at + _HEADER.size : at + _HEADER.size + length].rstrip(b"\0").decode()
                at += _HEADER.size + length


def simple(directory: str) -> Names:
    """inotify_simple, as it comes."""
    with INotify() as watch:
        watch.add_watch(directory, flags.MOVED_TO)
        yield None
        while True:
            for event in watch.read():
                yield event.name


def old_library(directory: str) -> Names:
    """inotify's generator."""
    watch = OldInotify()
    watch.add_watch(directory, IN_MOVED_TO)
    yield None
    for event in watch.event_gen(yield_nones=False):
        yield event[3]


def watchdog(directory: str) -> Names:
    """watchdog's observer: its threads hand every event to a handler."""
    moved: list[str] = []
    came = threading.Event()

    class Handler(FileSystemEventHandler):
        def on_moved(self, event: FileSystemEvent) -> None:
            moved.append(os.fsdecode(event.dest_path))
            came.set()

    observer = InotifyObserver()
    observer.daemon = True
    observer.schedule(Handler(), directory, event_filter=[FileMovedEvent])
    observer.start()
    try:
        yield None
        while True:
            came.wait()
            came.clear()
            while moved:
                yield os.path.basename(moved.pop(0))
    finally:
        observer.stop()
        observer.join()


WAYS: dict[str, Way] = {"raw": raw, "inotify_simple": simple, "inotify": old_library, "watchdog": watchdog}


def watch(way: str, directory: str, count: int) -> None:
    """Until so many frames have been seen, in a process of its own: says ready, then nanoseconds per frame."""
    names = WAYS[way](directory)
    next(names)
    say("ready")
    used_ns, seen = time.process_time_ns(), 0
    for name in names:
        seen += name is not None and name.endswith(".jpg")
        if seen == count:
            break
    say(str((time.process_time_ns() - used_ns) / count))
    os._exit(0)  # whatever threads there are


def library_us(way: str, base: Path, count: int, fps: float) -> float:
    """Microseconds of CPU per rename of a loop."""
    directory = base / f"{way}-{time.monotonic_ns()}"
    directory.mkdir()
    command = [sys.executable, "-P", "-m", "tests.benchmarks.watching", "--watch", way, str(directory), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as watcher:
        assert watcher.stdout
        try:
            assert watcher.stdout.readline() == "ready\n", f"{way} did not start"
            rename(base / "seed", directory, 0, count, fps)
            watcher.wait(30)
            return float(watcher.stdout.read()) / 1e3
        finally:
            watcher.kill()


def ours_us(service: Running, base: Path, count: int, fps: float) -> float:
    """The same of the watcher of a running service."""
    row, pid = service.board.sources[0][1], service.pids("watcher")[0]
    goal = int(row.published) + count
    used_ns = cpu_ns(pid)
    rename(base / "seed", service.dirs[0], int(row.published), count, fps)
    wait_until(lambda: row.published >= goal, 30, "all renames")
    used_ns = cpu_ns(pid) - used_ns
    wait_until(lambda: row.invalid >= goal, 30, "an empty lane")  # the seed is no picture: its worker says so
    return used_ns / count / 1e3


def rename(seed: Path, directory: Path, first: int, count: int, fps: float) -> None:
    """Publish, as fast as it goes (0) or so many a second."""
    begun = time.monotonic()
    for number in range(count):
        if fps:
            time.sleep(max(0.0, begun + number / fps - time.monotonic()))
        publish(seed, directory, first + number)


def compare(rounds: int) -> dict[str, object]:
    """All in turn; medians in microseconds of CPU per rename."""
    with memory_dir() as base, running(base, 1) as service:
        (base / "seed").touch()
        paces = {"burst": (BURST, 0.0), f"at {PACE_FPS:.0f}/s": (PACED, PACE_FPS)}
        found: dict[str, dict[str, list[float]]] = {pace: {} for pace in paces}
        for _ in range(rounds):
            for pace, (count, fps) in paces.items():
                sides = {way: partial(library_us, way, base) for way in WAYS} | {OURS: partial(ours_us, service, base)}
                for name, measure in sides.items():
                    found[pace].setdefault(name, []).append(measure(count, fps))
    return {
        f"{pace}, us of CPU per rename": {name: round(statistics.median(values), 1) for name, values in sides.items()}
        for pace, sides in found.items()
    }


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="in which all take their turn (default 5)")
    parser.add_argument("--watch", nargs=3, metavar=("WAY", "DIR", "COUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.watch:
        watch(arguments.watch[0], arguments.watch[1], int(arguments.watch[2]))
        return
    say(f"load before: {psutil.getloadavg()[0]:.2f}")
    for what, found in compare(arguments.rounds).items():
        say(f"{what}: {json.dumps(found)}")
    say(f"load after: {psutil.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
