"""Instructions per frame, counted by valgrind's callgrind: the same on a busy machine and an idle one.

    .venv/bin/python -m tests.benchmarks.instructions [WHAT...]        needs valgrind; four minutes

WHAT is of: bare (read the file and decode it at 1/8), judged (read, decode, all detectors, tracker), published (that,
and the sidecar into a directory in memory). Each is counted for two numbers of frames; the difference is the frames'
own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline import console, detectors, sidecar
from pipeline.evidence import incident_fields
from pipeline.frames import read_frame
from pipeline.incidents import Sighting
from pipeline.judge import Judge
from pipeline.model import ONE_THREAD, PICTURE_BYTES, PICTURE_CELLS, FrameId
from pipeline.settings import Source
from pipeline.sidecar import SidecarWriter
from pipeline.speed import rivals, stage
from tests.support import ROOT

COUNTS = 50, 150
FPS = 5
_NS = 1_000_000_000
_COLLECTED = re.compile(r"Collected : (\d+)")

Once = Callable[[int], None]


class Worked:
    """What a worker does with a frame, but for the ring."""

    def __init__(self, pictures: list[str], out: str = "") -> None:
        self._pictures, self._out = pictures, out
        cells = [memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)]
        self._judge = Judge(Source(name="bench", dir="."), cells)
        self._writer = SidecarWriter(out)

    def judge(self, number: int) -> None:
        """One frame, as the worker judges it."""
        stem, time_ns = f"capture_{number:09d}", number * _NS // FPS
        data, found = read_frame(self._pictures[number % len(self._pictures)])
        identity = FrameId(found.dev, number, time_ns, found.size)
        order = self._judge.observe(number, identity)
        judgement = self._judge.judge(data, stem, order, time_ns)
        transitions = self._judge.track(Sighting(time_ns, time_ns, number, stem, identity), judgement)
        self._judge.encoded_state()
        if self._out:
            fields = sidecar.verdict_fields(judgement) | incident_fields(self._judge.tracker, transitions)
            content = sidecar.build("bench", stem, number, identity, **fields)
            self._writer.publish(stem, sidecar.encode(content), identity)


def _loops(directory: str) -> dict[str, Callable[[], Once]]:
    pictures = sorted(str(path) for path in Path(directory).glob("*.jpg"))
    return {
        "bare": lambda: lambda number: rivals.bare(pictures, number),
        "judged": lambda: Worked(pictures).judge,
        "published": lambda: Worked(pictures, tempfile.mkdtemp(dir=directory)).judge,
    }


def count(what: str, directory: str, frames: int) -> int:
    """Instructions of a whole process that does so many frames."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-m", __spec__.name]
    environment = {**os.environ, **ONE_THREAD, "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [*command, "--loop", what, directory, str(frames)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    found = _COLLECTED.search(done.stderr)
    assert done.returncode == 0 and found, done.stderr
    return int(found[1])


def main(arguments: list[str]) -> None:
    """Count, and print a table."""
    if arguments[:1] == ["--loop"]:
        _, what, directory, frames = arguments
        detectors.prepare()
        once = _loops(directory)[what]()
        for number in range(int(frames)):
            once(number)
        return
    with stage.scratch() as base:
        pictures = stage.make_pictures(base / "pictures")
        wanted = arguments or list(_loops(""))
        per_frame = {}
        with console.progress() as bar:
            for what in bar.track(wanted, description="counting"):
                few, many = (count(what, str(base / "pictures"), frames) for frames in COUNTS)
                per_frame[what] = (many - few) / (COUNTS[1] - COUNTS[0])
        size = sum(picture.stat().st_size for picture in pictures) / len(pictures)
    first = next(iter(per_frame.values()))
    rows = [[what, f"{found / 1e6:.2f} M", f"{found / first:.3f}"] for what, found in per_frame.items()]
    console.print_table(f"instructions per frame, {size / 1000:.0f} KB", ["what", "instructions", "ratio"], rows)


if __name__ == "__main__":
    main(sys.argv[1:])
