"""What the measurements share: what processes cost, latency as a third party sees it, and how results are told."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import simplejpeg
from inotify_simple import INotify, flags

from tests.support import ROOT, Rig

Measurement = Callable[[float], dict[str, object]]


def say(text: str) -> None:
    """One line of the report."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(doc: str | None, measurements: Mapping[str, Measurement], seconds: float = 60.0) -> None:
    """Run the named measurements and print each as JSON. `seconds` is the default of their length."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=measurements, metavar="WHAT", help=", ".join(measurements))
    parser.add_argument(
        "--seconds", type=float, default=seconds, help=f"length, where there is one (default {seconds:.0f})"
    )
    arguments = parser.parse_args()
    python = sys.version.split()[0]
    say(f"{os.cpu_count()} cores, Python {python}, simplejpeg {simplejpeg.__version__}, {ROOT.name}")
    say(f"load before: {psutil.getloadavg()[0]:.2f}")
    for what in arguments.what:
        say(f"{what}: {json.dumps(measurements[what](arguments.seconds))}")


# -- processes ------------------------------------------------------------------------------------------------------


def cpu_ns(pid: int) -> int:
    """CPU time of a process and its threads so far, in nanoseconds (ticks would be 10 ms)."""
    tasks = f"/proc/{pid}/task"
    return sum(int(Path(tasks, task, "schedstat").read_text().split()[0]) for task in os.listdir(tasks))


def voluntary_switches(pid: int) -> int:
    """Times a process and its threads went to sleep by themselves."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        status = Path(f"/proc/{pid}/task/{task}/status").read_text()
        total += int(status.split("voluntary_ctxt_switches:")[1].split()[0])
    return total


def pss_mb(pid: int) -> float:
    """Proportional memory of a process in MB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.split("Pss:")[1].split()[0]) / 1024


def tree_cpu_ns(service: Rig) -> int:
    """The same for a whole service."""
    return sum(cpu_ns(process.pid) for process in service.tree())


# -- latency -----------------------------------------------------------------------------------------------------------


def percentile(values: list[float], pct: float) -> float:
    """The value below which `pct` percent of `values` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * pct / 100))]


def spread(took_ms: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum."""
    return {
        "median_ms": round(statistics.median(took_ms), 2),
        "p99_ms": round(percentile(took_ms, 99), 2),
        "max_ms": round(max(took_ms), 2),
    }


class Latencies:
    """Rename to sidecar of every frame in some directories, seen by a third party through inotify."""

    def __init__(self, directories: Iterable[Path]) -> None:
        self._observer = INotify(nonblocking=True)
        for directory in directories:
            self._observer.add_watch(str(directory), flags.MOVED_TO | flags.CREATE)
        self._renamed: dict[tuple[int, str], int] = {}
        self._took_ms: list[float] = []

    @property
    def waiting(self) -> int:
        """Frames that have no sidecar yet."""
        return len(self._renamed)

    def watch(self, timeout_s: float) -> None:
        """Wait for something to happen, and note it."""
        events = self._observer.read(timeout=max(1, round(timeout_s * 1000)))
        now_ns = time.monotonic_ns()
        for wd, mask, _, name in events:
            key = (wd, name.rpartition(".")[0])
            if mask & flags.MOVED_TO and name.endswith(".jpg"):
                self._renamed[key] = now_ns
            elif mask & flags.CREATE and name.endswith(".json"):
                self._took_ms.append((now_ns - self._renamed.pop(key)) / 1e6)

    def take(self) -> list[float]:
        """What was noted since the last time, in milliseconds."""
        took_ms, self._took_ms = self._took_ms, []
        return took_ms

    def close(self) -> None:
        """Watch no more."""
        self._observer.close()


# -- places and frames ----------------------------------------------------------------------------------------------


def publish_linked(source: Path, directory: Path, number: int) -> None:
    """Publish a ready file by link and rename: the publisher itself costs next to nothing."""
    temporary = directory / "next.tmp"
    os.link(source, temporary)
    os.rename(temporary, directory / f"capture_{number:09d}.jpg")


@contextmanager
def memory_dir() -> Iterator[Path]:
    """A scratch directory in memory."""
    path = Path(tempfile.mkdtemp(prefix="stillwatch-measure-", dir="/dev/shm"))
    try:
        yield path
    finally:
        shutil.rmtree(path)
