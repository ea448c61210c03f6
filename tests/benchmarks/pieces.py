"""Where a frame's time goes: by process of a running service, and by part of what a worker does.

    .venv/bin/python -m tests.benchmarks.pieces         half a minute

Processes: CPU per frame, as fast as it goes and at 20 frames/s. Parts: microseconds by the clock, each call timed where
it is made; a part includes those that it calls. The tenth percentile is the usual frame on an idle machine, the mean
has the few that cost more: looks for macroblocks, a decode in colour.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import console, detectors, motion, sidecar
from pipeline.black import Black
from pipeline.freeze import Freeze
from pipeline.history import History
from pipeline.judge import Judge
from pipeline.nosignal import NoSignal
from pipeline.sidecar import SidecarWriter
from pipeline.speed import rivals, stage
from tests.benchmarks import instructions
from tests.benchmarks.instructions import Worked

FRAMES = 900
PARTS: Sequence[tuple[Any, str, str]] = (
    (instructions, "read_frame", "read the file, check it"),
    (Judge, "judge", "judge"),
    (detectors, "decode", "  decode at 1/8"),
    (Black, "judge", "  black"),
    (NoSignal, "judge", "  no signal"),
    (Freeze, "judge", "  freeze"),
    (motion, "step", "    against the newest picture"),
    (Freeze, "_follow", "    remember what moved"),
    (Freeze, "_stand", "    decide"),
    (History, "push", "  keep the picture"),
    (Judge, "_look_for_blocks", "  look for macroblocks"),
    (Judge, "track", "incidents"),
    (Judge, "encoded_state", "commit record"),
    (sidecar, "build", "sidecar: build"),
    (sidecar, "encode", "sidecar: encode"),
    (SidecarWriter, "publish", "sidecar: publish"),
)
"""Whose function it is, its name, and what it is called here."""


def time_calls(taken: dict[str, list[int]]) -> None:
    """Have every call of a part note how long it took, in ns."""

    def timed(function: Callable[..., Any], times: list[int]) -> Callable[..., Any]:
        @wraps(function)
        def call(*values: Any, **named: Any) -> Any:
            begun = time.perf_counter_ns()
            try:
                return function(*values, **named)
            finally:
                times.append(time.perf_counter_ns() - begun)

        return call

    for owner, name, what in PARTS:
        setattr(owner, name, timed(getattr(owner, name), taken[what]))


def by_part(pictures: Sequence[Path], out: Path) -> None:
    """Print the parts of a worker's work."""
    taken: dict[str, list[int]] = defaultdict(list)
    time_calls(taken)
    detectors.prepare()
    worked, whole = Worked([str(path) for path in pictures], str(out)), taken["whole frame"]
    for number in range(FRAMES):
        begun = time.perf_counter_ns()
        worked.judge(number)
        whole.append(time.perf_counter_ns() - begun)
    rows = [
        [what, f"{np.percentile(times, 10) / 1e3:.1f}", f"{sum(times) / FRAMES / 1e3:.1f}"]
        for what in ["whole frame", *(what for _, _, what in PARTS)]
        if (times := taken[what])
    ]
    console.print_table("What a worker does with a frame", ["part", "us, p10", "us per frame, mean"], rows)


def by_process(base: Path, pictures: Sequence[Path]) -> None:
    """Print the CPU of each process of a service."""
    directory, rows = str(pictures[0].parent), []
    with stage.running(base, 1) as service:
        pids = {row.name.decode(): int(row.pid) for row in service.board.children if row.pid}
        pids = {"worker/0": pids.pop("worker/0"), "supervisor": service.popen.pid, **pids}
        service.judge(pictures, 60)
        for pace, frames, fps in (("as fast as it goes", FRAMES, 0.0), ("20 frames/s", 200, rivals.PACED_FPS)):
            before = {name: stage.cpu_ns(pid) for name, pid in pids.items()}
            (rivals.paced_ms if fps else rivals.pipeline_ms)(service, pictures, frames)
            used = [(stage.cpu_ns(pid) - before[name]) / frames / 1e6 for name, pid in pids.items()]
            rows.append(
                [pace, f"{rivals.loop_ms(rivals.BARE, directory, frames, fps):.3f}", *(f"{ms:.3f}" for ms in used)]
            )
    console.print_table("CPU ms per frame", ["pace", "bare loop", *pids], rows)


def main() -> None:
    """Measure both."""
    with stage.scratch() as base:
        pictures = stage.make_pictures(base / "pictures")
        by_process(base, pictures)
        (base / "out").mkdir()
        by_part(pictures, base / "out")


if __name__ == "__main__":
    main()
