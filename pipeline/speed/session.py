"""One session of measuring: which questions are asked, for how long, in which order, and on what machine."""

from __future__ import annotations

import os
import platform
import random
import statistics
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from pipeline.settings import usable_cpus
from pipeline.speed import crowds, load, queues, rivals, stage

PARTS = {
    "throughput": "frames/s and CPU per frame by number of workers, memory; what to set",
    "latency": "rename to sidecar at 20, 100 and 500 frames/s",
    "cpu": "CPU per frame against the bare decode loop, the old rule and FFmpeg's filters",
    "queues": "the ring against multiprocessing.Queue: messages/s, and what a SIGKILL does",
    "startup": "READY by number of files; catching up after lost events",
}


class Plan(NamedTuple):
    """How long everything takes."""

    seconds: float  # of load, per number of workers and per rate
    loads: int  # into which the load by workers is divided: each number has its turn in each
    rounds: int  # of comparisons
    frames: int  # of one side of a comparison, as fast as it goes
    paced_frames: int
    trials: int  # kills of each kind and side
    sizes: Sequence[int]  # files of the start

    @property
    def steps(self) -> dict[str, int]:
        """Of the progress bar, by part; those by workers come once per worker."""
        return {
            "throughput": self.loads,
            "latency": len(load.RATES),
            "cpu": 2,
            "queues": 1,
            "startup": len(self.sizes) + 1,
        }


FULL = Plan(12.0, 3, 5, 300, 100, 12, crowds.SIZES)
QUICK = Plan(2.0, 1, 2, 80, 25, 3, crowds.SIZES[:3])


class Session:
    """Measures the parts that are asked for; `advance` is called after each step."""

    def __init__(self, plan: Plan, workers: int, advance: Callable[[], None] = lambda: None) -> None:
        self._plan, self._workers, self._advance = plan, workers, advance

    def steps(self, parts: Collection[str]) -> int:
        """How often `advance` will be called."""
        each = self._plan.steps
        return 1 + sum(each[part] * (self._workers if part == "throughput" else 1) for part in parts)

    def measure(self, parts: Collection[str]) -> dict[str, Any]:
        """Everything that was found, ready for JSON. Raises StillwatchError where a service does not do its work."""
        found: dict[str, Any] = {"machine": machine()}
        with stage.scratch() as base:
            pictures = stage.make_pictures(base / "pictures")
            sizes = [path.stat().st_size for path in pictures]
            found["picture"] = {"size": stage.SIZE, "mean_bytes": sum(sizes) // len(sizes), "least": min(sizes)}
            found["picture"]["most"] = max(sizes)
            self._advance()
            for part in PARTS:
                if part in parts:
                    found |= getattr(self, f"_{part}")(base, pictures)
        found["machine"]["load_after"] = round(os.getloadavg()[0], 2)
        return found

    def _throughput(self, base: Path, pictures: Sequence[Path]) -> dict[str, Any]:
        seconds, runs = self._plan.seconds / self._plan.loads, list[list[dict[str, Any]]]()
        for _ in range(self._plan.loads):
            runs.append([])
            for workers in range(1, self._workers + 1):
                runs[-1].append(load.throughput(base, pictures, workers, seconds))
                self._advance()
        rows = [_middle(of_these) for of_these in zip(*runs, strict=True)]
        loops = [rivals.bare_fps(pictures, row["workers"], self._plan.frames) for row in rows]
        for row, of_these in zip(rows, zip(*runs, strict=True), strict=True):
            firsts = [run[0]["frames_per_s"] * row["workers"] for run in runs]
            shares = [one["frames_per_s"] / first for one, first in zip(of_these, firsts, strict=True)]
            row["of_linear"] = round(statistics.median(shares), 3)
            row["bare_of_linear"] = round(loops[row["workers"] - 1] / loops[0] / row["workers"], 3)
        return {"throughput": rows, "advice": load.advise(rows)}

    def _latency(self, base: Path, pictures: Sequence[Path]) -> dict[str, Any]:
        found = []
        for rate in load.RATES:
            found.append(load.latency(base, pictures, rate, self._plan.seconds))
            self._advance()
        return {"latency": found}

    def _cpu(self, base: Path, pictures: Sequence[Path]) -> dict[str, Any]:
        with stage.running(base, 1) as service:
            service.judge(pictures, 20)
            saturated = rivals.saturated(service, pictures, self._plan.rounds, self._plan.frames)
            self._advance()
            paced = rivals.paced(service, pictures, self._plan.rounds, self._plan.paced_frames)
            self._advance()
        return {"cpu": {"saturated": saturated, "paced": paced}}

    def _queues(self, _base: Path, _pictures: Sequence[Path]) -> dict[str, Any]:
        found = queues.compare(self._plan.trials, self._plan.rounds, random.randrange(2**32))
        self._advance()
        return {"queues": found}

    def _startup(self, base: Path, pictures: Sequence[Path]) -> dict[str, Any]:
        found = []
        for files in self._plan.sizes:
            found.append(crowds.startup(base, files))
            self._advance()
        overflow = crowds.overflow(base, pictures[0])
        self._advance()
        return {"startup": found, "overflow": overflow}


def _middle(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run whose frames/s are the median: its figures belong together."""
    return dict(sorted(runs, key=lambda run: float(run["frames_per_s"]))[len(runs) // 2])


def machine() -> dict[str, Any]:
    """What this was measured on, and what else it does."""
    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("model name", "Model"))
    ]
    return {
        "cores": len(usable_cpus()),
        "cpu": names[-1].partition(":")[2].strip() if names else platform.machine(),
        "memory_mb": psutil.virtual_memory().total // 2**20,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }
