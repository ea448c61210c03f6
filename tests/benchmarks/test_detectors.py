"""What all detectors together cost per frame, after decoding: ./stillwatch test tests/benchmarks --benchmark-enable."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pipeline import detectors
from pipeline.black import Black
from pipeline.freeze import Freeze
from pipeline.history import History
from pipeline.model import PICTURE_BYTES, PICTURE_CELLS
from pipeline.nosignal import NoSignal
from pipeline.settings import Source
from pipeline.tiles import Picture
from tests.pictures import Scene, grey, jpeg, noisy, rounded, texture

PICTURES = 24
SOURCE = Source(name="bench", dir=".")
SCENES: dict[str, Scene] = {
    "film": lambda n: rounded(texture(200, 9.0 * n)),
    "frozen": lambda _: rounded(texture(200)),
    "black": lambda _: grey(0),
}


class Detectors:
    """Everything that is judged from one decoded picture, as the judge of a source calls it."""

    def __init__(self) -> None:
        self._black, self._freeze = Black(SOURCE.black), Freeze(SOURCE.freeze)
        self._no_signal = NoSignal(SOURCE.no_signal)
        self._history = History([memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)])
        self._now_ns = 0

    def judge(self, picture: Picture, data: bytes) -> None:
        colour = partial(detectors.decode_colour, data)
        self._now_ns += 200_000_000
        self._black.judge(picture, colour)
        self._no_signal.judge(picture, colour)
        self._freeze.judge(picture, self._history, self._now_ns)
        self._history.push(picture, "x")
        assert self._freeze.memory.tiles, "packing what is remembered is part of the price"


@pytest.mark.benchmark(group="all detectors, 1280x720")
@pytest.mark.parametrize("name", SCENES)
def test_all_detectors(benchmark: BenchmarkFixture, name: str) -> None:
    frames = [jpeg(noisy(SCENES[name](number), 1.0, number)) for number in range(PICTURES)]
    shown = itertools.cycle([(detectors.decode(data), data) for data in frames])
    judge = Detectors()
    benchmark(lambda: judge.judge(*next(shown)))
