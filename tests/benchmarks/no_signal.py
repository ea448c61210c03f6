"""How well the known no-signal cards are found under noise and compression, and what looking for them costs:

    .venv/bin/python -m tests.benchmarks.no_signal

Costs are paired: with and without in turn, frame by frame, in one run; medians of the differences.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from pipeline import console, detectors
from pipeline.black import judge_black
from pipeline.model import BlackThresholds, NoSignalThresholds
from pipeline.nosignal import NoSignal
from pipeline.signature import learn
from tests import cards
from tests.cards import captured, ffmpeg_frame, plain, resized, wandering, write
from tests.support import make_frame

SIGMAS, QUALITIES, FRAMES = (0, 1, 2, 4), (95, 80, 60, 40), 4
ROUNDS = 600
_BLACK = BlackThresholds()


def main() -> int:
    """Print both tables."""
    detectors.prepare()
    _accuracy(NoSignal(NoSignalThresholds()))
    _cost()
    return 0


def _accuracy(judge: NoSignal) -> None:
    """Cards of one kind are counted together."""
    found: dict[str, dict[tuple[int, int], int]] = {}
    for name, scene in cards.cards().items():
        kind = found.setdefault(name if name[0] != "#" else _kind(name), {})
        for sigma, quality in itertools.product(SIGMAS, QUALITIES):
            for number in range(FRAMES):
                data = captured(scene(number), sigma, quality, number)
                verdict = judge.judge(detectors.decode(data), partial(detectors.decode_colour, data))
                kind.setdefault((sigma, quality), 0)
                kind[sigma, quality] += verdict.value is True
    counts = {name: sum(_group(other) == name for other in cards.cards()) * FRAMES for name in found}
    columns = [f"s{sigma} q{quality}" for sigma, quality in itertools.product(SIGMAS, QUALITIES)]
    rows = [[name, counts[name], *(hits for hits in found[name].values())] for name in found]
    console.print_table("cards found, by sigma of the noise and JPEG quality", ["card", "of", *columns], rows)


def _kind(name: str) -> str:
    colour, _, what = name.partition(" ")
    return f"{'blue' if colour[1:] in cards.BLUES else 'grey'} {what}".strip()


def _group(name: str) -> str:
    return name if name[0] != "#" else _kind(name)


def _cost() -> None:
    signature = learn([
        detectors.decode_colour(captured(write(plain("106070"), "NO INPUT", *wandering(n)), 1.0)) for n in range(20)
    ])  # fmt: skip
    cards_only, both = NoSignal(NoSignalThresholds()), NoSignal(NoSignalThresholds(), signature)
    scenes = {
        "film 1280x720": [captured(resized(_picture(n)), 2.0) for n in range(20)],
        "film 1920x1080": [_large(n) for n in range(20)],
        "black 1280x720": [captured(plain("000000"), 2.0, number=n) for n in range(20)],
        "bars 1280x720": [captured(ffmpeg_frame("smptebars"), 2.0, number=n) for n in range(20)],
        "blue 1280x720": [captured(plain("0000BE"), 2.0, number=n) for n in range(20)],
    }
    rows = []
    for name, frames in scenes.items():
        base, *more = _paired(frames, [None, cards_only, both])
        size = sum(map(len, frames)) // len(frames) // 1024
        rows.append(
            [name, f"{size} KB", f"{base:.0f}", *(f"{extra:+.0f} ({100 * extra / base:.1f} %)" for extra in more)]
        )
    columns = ["frames", "JPEG", "decode, black", "+ cards", "+ cards and a learned one"]
    console.print_table("CPU per frame in microseconds", columns, rows)


def _picture(number: int) -> cards.Frame:
    data = np.frombuffer(make_frame(number, 1280, 720), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)  # type: ignore[return-value]  # a whole JPEG


def _large(number: int) -> bytes:
    done, data = cv2.imencode(".jpg", resized(_picture(number), 1920, 1080))
    assert done
    return data.tobytes()


def _paired(frames: list[bytes], judges: list[NoSignal | None]) -> list[float]:
    """Median of the first one's microseconds, and of what the others add to it in the same round."""
    rounds: list[list[float]] = []
    for turn in range(ROUNDS):
        took = [0.0] * len(judges)
        for step in range(len(judges)):  # in another order each time: the first one finds cold caches
            at = (turn + step) % len(judges)
            took[at] = _timed(partial(_judge, frames[turn % len(frames)], judges[at]))
        rounds.append(took)
    return [
        statistics.median(took[0] for took in rounds),
        *(statistics.median(took[at] - took[0] for took in rounds) for at in range(1, len(judges))),
    ]


def _judge(data: bytes, judge: NoSignal | None) -> None:
    picture = detectors.decode(data)
    judge_black(picture, _BLACK)
    if judge is not None:
        judge.judge(picture, partial(detectors.decode_colour, data))


def _timed(work: Callable[[], None]) -> float:
    begun = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - begun) / 1e3


if __name__ == "__main__":
    sys.exit(main())
