"""CPU of capture and analysis against the command and the rule that Stillwatch replaces, in turn, in real time:

    .venv/bin/python -m tests.benchmarks.capture_cpu [--seconds 30] [--pairs 3]

The stream: FFmpeg's testsrc2 under noise (sigma 6), 1280x720 at 10 frames/s, 4:2:2 as USB grabbers deliver it, JPEG
quality 5 (79 KB a frame), with a stereo tone, in Matroska. Both sides read it in real time and publish 5 frames/s into
memory.

- old: the command decodes, and encodes the frame and a thumbnail anew, with HLS also 640x360 H.264 and AAC. The rule
  decodes every published frame and its two predecessors in grey at full size, and compares them. Without the listing of
  the directory each second that was part of it.
- new: the whole service with its capture child and its FFmpeg, which copies the JPEGs.

What is compared is the CPU (user and system) of all processes of a side per published frame, from its 15th frame on:
neither side's start is in it. Nothing here is asserted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from inotify_simple import INotify, flags

from tests.benchmarks.tools import cpu_ns, memory_dir, say
from tests.captures import CaptureRig
from tests.live import ROOT_ENVIRONMENT
from tests.support import wait_until

Parts = dict[str, float]
WARM_UP = 15  # frames
LIMITS = {"without HLS": 1 / 6, "with HLS": 0.6}
_OLD_PICTURES = "[full]null[a];[small]scale=320:180:flags=neighbor[b]"
_OLD_HLS = ["-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-b:v", "350k", "-pix_fmt", "yuv420p"]
_OLD_HLS += ["-g", "5", "-c:a", "aac", "-b:a", "32k", "-f", "hls", "-hls_time", "1", "-hls_flags", "delete_segments"]


def make_stream(path: Path, seconds: float) -> None:
    """The MJPEG stream of the module's docstring."""
    picture, sound = "testsrc2=size=1280x720:rate=10,noise=alls=6:allf=t", "sine=sample_rate=48000,aformat=cl=stereo"
    inputs = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound, "-t", str(seconds)]
    codecs = ["-c:v", "mjpeg", "-q:v", "5", "-pix_fmt", "yuvj422p", "-c:a", "pcm_s16le"]
    subprocess.run(["ffmpeg", "-v", "error", *inputs, *codecs, str(path)], check=True)


# -- the old side -----------------------------------------------------------------------------------------------------


def old_command(stream: Path, target: Path, hls: bool) -> list[str]:
    """What capture was before: decode, 5 frames/s, full size and 320x180 as JPEG, and 640x360 as HLS with sound."""
    head = ["ffmpeg", "-nostdin", "-v", "error", "-re", "-stream_loop", "-1", "-i", str(stream), "-filter_complex"]
    jpegs: list[str] = []
    for pad, name in (("[a]", "capture_%09d.jpg"), ("[b]", "capture_%09d_thumbnail.jpg")):
        jpegs += ["-map", pad, "-c:v", "mjpeg", "-q:v", "8", "-f", "image2", str(target / name)]
    if not hls:
        return [*head, f"[0:v]fps=5,split=2[full][small];{_OLD_PICTURES}", *jpegs]
    graph = f"[0:v]fps=5,split=3[full][small][live];{_OLD_PICTURES};[live]scale=640:360:flags=fast_bilinear[c]"
    return [*head, graph, "-map", "[c]", "-map", "0:a", *_OLD_HLS, str(target / "old.m3u8"), *jpegs]


def apply_old_rule(directory: str) -> None:
    """The rule, on every frame that is complete, until the end of this process. One line per frame."""
    before: deque[str] = deque(maxlen=3)
    with INotify() as events:
        events.add_watch(directory, flags.CLOSE_WRITE)
        say("ready")
        while True:
            for _, _, _, name in events.read():
                if name.endswith(".jpg") and "_thumbnail" not in name:
                    before.append(f"{directory}/{name}")
                    say(f"{name} {old_rule(list(before))}")


def old_rule(paths: list[str]) -> tuple[float, float]:
    """How dark the last frame is, and how far from those before it."""
    *others, newest = [cv2.imread(path, cv2.IMREAD_GRAYSCALE) for path in paths]
    assert newest is not None
    dark_pct = 100 * float(np.count_nonzero(newest <= 10)) / newest.size
    return dark_pct, max((float(cv2.absdiff(newest, other).mean()) for other in others if other is not None), default=0)


def old_ms(stream: Path, base: Path, seconds: float, hls: bool) -> Parts:
    """Milliseconds of CPU per published frame, by part."""
    rule = [sys.executable, "-P", "-m", "tests.benchmarks.capture_cpu", "--old-rule", str(base)]
    judged = base / "judged"
    with judged.open("wb") as lines, running(rule, stdout=lines, env=ROOT_ENVIRONMENT) as judge:
        wait_until(judged.read_bytes, 20, "the rule watches")
        with running(old_command(stream, base, hls)) as capture:
            parts = {"command": partial(cpu_ns, capture.pid), "rule": partial(cpu_ns, judge.pid)}
            return ms_per_frame(lambda: judged.read_bytes().count(b".jpg"), parts, seconds)


@contextmanager
def running(command: list[str], **more: Any) -> Iterator[psutil.Popen]:
    """A process for the time being."""
    process = psutil.Popen(command, stdin=subprocess.DEVNULL, **more)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# -- the new side -----------------------------------------------------------------------------------------------------


def new_ms(stream: Path, base: Path, seconds: float, hls: bool) -> Parts:
    """The same for the service."""
    capture = {"profile": "file", "input": str(stream), "copy": True, "hls": hls}
    with CaptureRig(base, "--workers=1", sources={"a": {"capture": capture}}) as service:
        row = service.row("a")
        ffmpeg = service.ffmpeg("a").pid
        ours = [process.pid for process in service.tree() if process.pid != ffmpeg]
        parts: dict[str, Callable[[], int]] = {"FFmpeg": partial(cpu_ns, ffmpeg)}
        parts["Stillwatch"] = lambda: sum(map(cpu_ns, ours))
        took = ms_per_frame(lambda: int(row.judged), parts, seconds)
        account = service.books()["a"]
        assert account["judged"] == account["published"], "a frame was not judged: nothing to compare"
    return took


# -- both -------------------------------------------------------------------------------------------------------------


def ms_per_frame(frames: Callable[[], int], parts: Mapping[str, Callable[[], int]], seconds: float) -> Parts:
    """CPU per frame over so many seconds after the warm-up. Raises SystemExit where 5 frames/s did not come."""
    wait_until(lambda: frames() >= WARM_UP, 30, "the first frames")
    begun, first, before = time.monotonic(), frames(), [used_ns() for used_ns in parts.values()]
    time.sleep(seconds)
    took_s, count, after = time.monotonic() - begun, frames() - first, [used_ns() for used_ns in parts.values()]
    if not 4.5 < count / took_s < 5.5:
        raise SystemExit(f"{count} frames in {took_s:.1f} s instead of 5 a second: nothing to compare")
    return {name: (end - start) / count / 1e6 for name, start, end in zip(parts, before, after, strict=True)}


def compare(stream: Path, base: Path, seconds: float, pairs: int, hls: bool) -> dict[str, object]:
    """Both sides in turn; medians, and the ratio pair by pair."""
    found: list[tuple[Parts, Parts]] = []
    for number in range(pairs):
        old, new = base / f"old{hls}{number}", base / f"new{hls}{number}"
        old.mkdir()
        new.mkdir()
        found.append((old_ms(stream, old, seconds, hls), new_ms(stream, new, seconds, hls)))
        shutil.rmtree(old)
        shutil.rmtree(new)
    ratios = [sum(new.values()) / sum(old.values()) for old, new in found]
    columns = [(name, [side[name] for side in sides]) for sides in zip(*found, strict=True) for name in sides[0]]
    medians = {name: statistics.median(column) for name, column in columns}
    return {
        "cpu_ms_per_frame": {name: round(median, 2) for name, median in medians.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min_max": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def main() -> None:
    """Compare without and with HLS, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="that each side is measured for (default 30)")
    parser.add_argument("--pairs", type=int, default=3, help="of old and new (default 3)")
    parser.add_argument("--old-rule", metavar="DIR", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.old_rule:
        apply_old_rule(arguments.old_rule)
    with memory_dir() as base:
        stream = base / "stream.mkv"
        make_stream(stream, arguments.seconds + 20)
        frames = (arguments.seconds + 20) * 10
        say(f"load before: {psutil.getloadavg()[0]:.2f}; {stream.stat().st_size / frames / 1000:.0f} KB a frame")
        for hls, (what, limit) in enumerate(LIMITS.items()):
            found = compare(stream, base, arguments.seconds, arguments.pairs, bool(hls))
            say(f"{what}: {json.dumps(found)}, asked for: {limit:.3f}, load {psutil.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
