"""CPU per frame: the whole pipeline against doing less, and against doing it otherwise. All in turn, over one set of
frames, because machines are noisy.

- "bare": read the file and decode it at 1/8, in a loop. No pipeline around it can be cheaper.
- "old": the rule Stillwatch replaces: decode the frame and its two predecessors in grey at full size, compare each
  with each (mean difference below 0.5), count the pixels at or below 10 (more than 95 %).
- "ffmpeg": one FFmpeg that decodes the same files and runs freezedetect and blackdetect, over all of them.

Each runs in a process of its own; the start of the process is not counted.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from pipeline import baselines, detectors
from pipeline.model import UnavailableError
from pipeline.speed.load import SOURCE_FPS
from pipeline.speed.stage import Running, run_module

PIPELINE, BARE, OLD, FFMPEG = "pipeline", "bare", "old", "ffmpeg"
PACED_FPS = 20.0
_WARM = 10
_DETECT = "freezedetect=n=0.001:d=2,blackdetect=d=2:pic_th=0.98:pix_th=0.10"
_THREADS = ("-threads", "1", "-filter_threads", "1")  # more are quicker by the clock and dearer by the frame

Once = Callable[[], float]
"""Run one side once; milliseconds of CPU per frame."""


def saturated(service: Running, pictures: Sequence[Path], rounds: int, frames: int) -> dict[str, Any]:
    """All four, as fast as each goes."""
    directory = str(pictures[0].parent)
    sides: dict[str, Once] = {
        PIPELINE: lambda: pipeline_ms(service, pictures, frames),
        BARE: lambda: loop_ms(BARE, directory, frames, 0.0),
        OLD: lambda: loop_ms(OLD, directory, max(1, frames // 4), 0.0),
        FFMPEG: lambda: ffmpeg_ms(directory, frames, len(pictures)),
    }
    return in_turn(sides, rounds)


def paced(service: Running, pictures: Sequence[Path], rounds: int, frames: int) -> dict[str, Any]:
    """The pipeline and the bare loop, both at 20 frames/s: caches and the clock are colder then."""
    directory = str(pictures[0].parent)
    sides: dict[str, Once] = {
        PIPELINE: lambda: paced_ms(service, pictures, frames),
        BARE: lambda: loop_ms(BARE, directory, frames, PACED_FPS),
    }
    return in_turn(sides, rounds)


def in_turn(sides: Mapping[str, Once], rounds: int) -> dict[str, Any]:
    """Every side once per round, the order turned round each time. Medians in ms, and how the first stands to each
    other, round by round: median, least, most."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(sides[name]())
    first, *others = sides
    ratios = {other: [a / b for a, b in zip(found[first], found[other], strict=True)] for other in others}
    return {
        "cpu_ms_per_frame": {name: round(statistics.median(values), 3) for name, values in found.items()},
        "ratio": {
            other: [round(pick(values), 3) for pick in (statistics.median, min, max)]
            for other, values in ratios.items()
        },
        "rounds": rounds,
    }


def pipeline_ms(service: Running, pictures: Sequence[Path], frames: int) -> float:
    """The service, saturated."""
    before = service.cpu_ns()
    service.judge(pictures, frames)
    return (service.cpu_ns() - before) / frames / 1e6


def paced_ms(service: Running, pictures: Sequence[Path], frames: int) -> float:
    """The service, at 20 frames/s."""
    before, begun, goal = service.cpu_ns(), time.monotonic(), service.judged() + frames
    for number in range(frames):
        time.sleep(max(0.0, begun + number / PACED_FPS - time.monotonic()))
        service.publish(pictures)
    service.keep_busy(pictures, lambda: service.judged() >= goal, service.next_number)
    return (service.cpu_ns() - before) / frames / 1e6


def loop_ms(rule: str, directory: str, frames: int, fps: float) -> float:
    """A loop over the files, in a process of its own; `fps` 0 is as fast as it goes."""
    cpu_s, _ = _loop_s(rule, directory, frames, fps)
    return cpu_s / frames * 1e3


def bare_fps(pictures: Sequence[Path], loops: int, frames: int) -> float:
    """Frames/s of so many bare loops at once: how far more cores help on this machine, whatever runs on them."""
    work = partial(_loop_s, BARE, str(pictures[0].parent), frames, 0.0)
    with ThreadPoolExecutor(loops) as pool:
        took = [running.result()[1] for running in [pool.submit(work) for _ in range(loops)]]
    return sum(frames / wall_s for wall_s in took)


def _loop_s(rule: str, directory: str, frames: int, fps: float) -> tuple[float, float]:
    """Seconds of CPU and of the clock that a loop in a process of its own took."""
    cpu_s, wall_s = run_module(__name__, [rule, directory, str(frames), str(fps)]).split()
    return float(cpu_s), float(wall_s)


def ffmpeg_ms(directory: str, frames: int, pictures: int) -> float:
    """FFmpeg and its filters: what all frames take, without what a start takes."""
    start_s = _ffmpeg_s(directory, 1, pictures)
    return (_ffmpeg_s(directory, frames + 1, pictures) - start_s) / frames * 1e3


def _ffmpeg_s(directory: str, frames: int, pictures: int) -> float:
    """CPU seconds of one FFmpeg."""
    source = ["-framerate", str(SOURCE_FPS), "-loop", "1" if frames > pictures else "0", "-i", f"{directory}/%03d.jpg"]
    command = ["ffmpeg", "-nostdin", "-v", "error", *_THREADS, *source, "-frames:v", str(frames), "-vf", _DETECT]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*command, "-f", "null", "-"], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise UnavailableError(f"ffmpeg did not judge the frames: {done.stderr.decode(errors='replace').strip()}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# -- the loops, in their own process ----------------------------------------------------------------------------------


def bare(paths: Sequence[str], number: int) -> None:
    """Read and decode one frame at 1/8."""
    with open(paths[number % len(paths)], "rb") as file:
        detectors.decode(file.read())


def old(paths: Sequence[str], number: int) -> tuple[bool, bool]:
    """The old rule on one frame: whether it is frozen, and whether it is black."""
    grey = []
    for at in (number, number - 1, number - 2):
        with open(paths[at % len(paths)], "rb") as file:
            grey.append(baselines.decode(file.read()))
    pairs = ((grey[0], grey[1]), (grey[1], grey[2]), (grey[0], grey[2]))
    differences = [cv2.absdiff(one, other).mean() for one, other in pairs]
    frozen = all(difference < baselines.OLD_DIFF_MAX for difference in differences)
    return frozen, baselines.dark_pct(grey[0]) > baselines.OLD_BLACK_PCT


def main(rule: str, directory: str, count: str, rate: str) -> tuple[float, float]:
    """Seconds of CPU and of the clock that one of the loops takes."""
    detectors.prepare()
    one = {BARE: bare, OLD: old}[rule]
    frames, fps = int(count), float(rate)
    paths = sorted(entry.path for entry in os.scandir(directory) if entry.name.endswith(".jpg"))
    for number in range(_WARM):
        one(paths, number)
    begun, used_s = time.monotonic(), time.process_time()
    for number in range(frames):
        if fps:
            time.sleep(max(0.0, begun + number / fps - time.monotonic()))
        one(paths, number)
    return time.process_time() - used_s, time.monotonic() - begun


if __name__ == "__main__":
    sys.stdout.write("{} {}\n".format(*main(*sys.argv[1:])))
