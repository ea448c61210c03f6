"""An hour of four sources at 25 frames/s, compressed, into a memory disk of 64 MB:

    .venv/bin/python -m tests.benchmarks.hour [--frames 360000] [--speed 8]       as root

Four cameras on loopback (JPEGs of 640x360, 20 KB, 100 pictures over and over) show `speed` times as many frames as in
life; four FFmpegs of the service's own capture child copy every one (profile url, --live --copy --fps 0). Runtime
directory and frames lie on a tmpfs of 64 MB, the state directory and nothing else on a disk. Nothing waits for a clock
but keep_s (60 s), which is divided by `speed` too: the disk is full after 13 s of life.

Asked for: never full, no FFmpeg that meets ENOSPC, 0 bytes to disks. Nothing is asserted here; the suite runs a short
one and asserts (tests/test_hour.py).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from pipeline.diskwrites import written_bytes
from tests.benchmarks.tools import memory_dir, say
from tests.captures import CaptureRig
from tests.machine import tmpfs
from tests.streams import endless_camera, packets, record
from tests.support import wait_until

SOURCES, FPS = 4, 25.0
SIZE_MB = 64
LOOK_S = 0.01  # between two looks at how full it is


@dataclass
class Hour:
    """What came of it."""

    frames: int = 0  # published by FFmpeg
    took_s: float = 0.0
    looks: int = 0
    fullest_pct: float = 0.0  # of the memory disk's bytes
    fullest_inodes_pct: float = 0.0
    evicted: int = 0
    removed: int = 0
    ffmpeg_restarts: int = 0
    ffmpeg_stalls: int = 0
    no_space: int = 0  # lines of the log that speak of it
    disk_bytes: int = 0  # by all processes, from the first frames to the last
    incidents: int = 0
    judged: int = 0
    passed_over: int = 0  # skipped or vanished: this machine judges no faster
    invalid: int = 0
    refused: int = 0  # sidecars and evidence


def run(base: Path, logs: Path, frames: int, speed: float) -> Hour:
    """Push so many frames through. `base` is on a disk, `logs` in memory."""
    pictures = packets(record(logs / "camera.mkv", "testsrc2=size=640x360:rate=25", seconds=4), logs / "pictures")
    with tmpfs(base / "run", f"size={SIZE_MB}m"), endless_camera(pictures, FPS * speed) as url:
        capture = {"profile": "url", "input": url, "live": True, "copy": True, "fps": 0}
        sources = {f"s{number}": {"keep_s": 60 / speed, "capture": capture} for number in range(SOURCES)}
        rig = CaptureRig(base, "--workers=2", sources=sources)
        rig.log_path = logs / "service.log"
        with rig as service:
            hour = _watch(service, frames)
            for name, account in service.books().items():
                hour.judged += account["judged"]
                hour.invalid += account["invalid"]
                hour.passed_over += account["skipped"] + account["vanished"]
                hour.refused += service.row(name).sidecar_failures + service.row(name).hold_failures
            hour.no_space = len(service.lines("No space left"))
            hour.incidents = len(service.incidents())
    return hour


def _watch(service: CaptureRig, frames: int) -> Hour:
    """From the first frames to the last."""
    assert service.process
    rows = [service.row(name) for name in service.dirs]
    wait_until(lambda: min(row.last_number for row in rows) > 0, 30, "the first frames")
    hour, begun = Hour(), time.monotonic()
    written = written_bytes([service.process.pid]) or 0
    while hour.frames < frames:
        found = os.statvfs(service.base / "run")
        hour.looks += 1
        hour.fullest_pct = max(hour.fullest_pct, 100 * (1 - found.f_bavail / found.f_blocks))
        hour.fullest_inodes_pct = max(hour.fullest_inodes_pct, 100 * (1 - found.f_favail / found.f_files))
        hour.frames = sum(row.frames_removed + row.kept_frames for row in rows)
        assert service.process.poll() is None, service.log
        time.sleep(LOOK_S)
    hour.took_s = time.monotonic() - begun
    hour.disk_bytes = (written_bytes([service.process.pid]) or 0) - written
    hour.evicted, hour.removed = sum(row.frames_evicted for row in rows), sum(row.frames_removed for row in rows)
    hour.ffmpeg_restarts = sum(row.ffmpeg_restarts for row in rows)
    hour.ffmpeg_stalls = sum(row.ffmpeg_stalls for row in rows)
    return hour


def main() -> None:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=360_000, help="of all sources (default 360000: an hour)")
    parser.add_argument("--speed", type=float, default=8.0, help="times as fast as in life (default 8)")
    arguments = parser.parse_args()
    with memory_dir() as logs, tempfile.TemporaryDirectory(prefix="stillwatch-hour-", dir="/var/tmp") as base:
        say(f"load before: {psutil.getloadavg()[0]:.2f}")
        found = asdict(run(Path(base), logs, arguments.frames, arguments.speed))
    say(json.dumps({name: round(value, 1) for name, value in found.items()}))


if __name__ == "__main__":
    main()
