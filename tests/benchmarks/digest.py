"""Prints a digest of all readings over drawn scenes: it must be the same on every machine.

    .venv/bin/python -m tests.benchmarks.digest [FRAMES]

FRAMES is a file of encoded frames: written where it is not there, read where it is, so that two machines judge the very
same bytes (an encoder may differ).
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np

from pipeline import console, detectors, sidecar
from pipeline.judge import Judge
from pipeline.model import PICTURE_BYTES, PICTURE_CELLS, BlockThresholds, FrameId
from pipeline.settings import Source
from tests.pictures import grey, jpeg, letterboxed, noisy, rounded, text, texture

SECOND = 10**9


def frames() -> Iterator[bytes]:
    """Film, a freeze under noise, one behind a clock, black with a banner, a dark film, film in blocks, a menu."""
    for number in range(150):
        at = min(number, 20) if number < 40 else number
        shown = rounded(texture(200, 9.0 * at))
        if 60 <= number < 90:
            shown = text(
                rounded(texture(200, 9.0 * 70 if number > 70 else 9.0 * number)), (f"{number // 5}", 80, 80, 2.0)
            )
        elif 90 <= number < 100:
            shown = text(grey(16), ("12 Channel Twelve", 110, 640, 1.6))
        elif 100 <= number < 120:
            shown = letterboxed(rounded(texture(40, 2.0 * number)))
        elif 120 <= number < 130:
            shown[::16, ::48] = 0
            shown[64:192] = np.kron(shown[64:192:16, ::16], np.ones((16, 16), np.uint8))
        elif number >= 130:
            shown = text(grey(60), *[(f"Menu item {item}", 80, 120 + 90 * item, 1.0) for item in range(6)])
        yield jpeg(noisy(shown, 1.5, number), 70 + number % 25)


def digest(encoded: list[bytes]) -> str:
    """Of every field of every sidecar that a picture decides."""
    cells = [memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)]
    source = Source(name="digest", dir=".", macroblocks=BlockThresholds(every_s=0.2))
    judge, total = Judge(source, cells), hashlib.sha256()
    for number, data in enumerate(encoded):
        time_ns = number * SECOND // 5
        order = judge.observe(number, FrameId(1, number, time_ns, len(data)))
        judgement = judge.judge(data, f"capture_{number:09d}", order, time_ns)
        total.update(msgspec.json.encode(sidecar.verdict_fields(judgement)))
    return total.hexdigest()


def main(arguments: list[str]) -> int:
    """Print digest, frames and machine."""
    detectors.prepare()
    path = Path(arguments[0]) if arguments else None
    if path and path.exists():
        encoded = msgspec.msgpack.decode(path.read_bytes(), type=list[bytes])
    else:
        encoded = list(frames())
        if path:
            path.write_bytes(msgspec.msgpack.encode(encoded))
    versions = f"OpenCV {cv2.__version__}, NumPy {np.__version__}"
    console.say(f"{digest(encoded)}  {len(encoded)} frames  {platform.machine()}, {versions}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
