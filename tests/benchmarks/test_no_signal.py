"""What no-signal and sound add to a frame: ./stillwatch test tests/benchmarks --benchmark-enable."""

from __future__ import annotations

import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pipeline import detectors
from pipeline.audio import LOSS_DB
from pipeline.listening import Listener
from pipeline.model import NoSignalThresholds
from pipeline.nosignal import NoSignal
from pipeline.signature import learn
from tests.cards import captured, ffmpeg_frame, plain
from tests.support import make_frame
from tests.test_listening import LOUD, close_chunk

FRAMES = {
    "film": make_frame(3, 1280, 720),
    "black": captured(plain("000000"), 2.0),
    "bars": captured(ffmpeg_frame("smptebars"), 2.0),
    "blue": captured(plain("0000BE"), 2.0),
}


@pytest.mark.benchmark(group="a frame's decoding, to compare with")
@pytest.mark.parametrize("name", FRAMES)
def test_decoding(benchmark: BenchmarkFixture, name: str) -> None:
    benchmark(detectors.decode, FRAMES[name])


@pytest.mark.benchmark(group="no signal")
@pytest.mark.parametrize("learned", [False, True], ids=["cards", "cards and a learned one"])
@pytest.mark.parametrize("name", FRAMES)
def test_no_signal(benchmark: BenchmarkFixture, name: str, learned: bool) -> None:
    signature = learn([detectors.decode_colour(captured(plain("602080"), 1.0, number=n)) for n in range(3)])
    judge = NoSignal(NoSignalThresholds(), signature if learned else None)
    picture = detectors.decode(FRAMES[name])
    verdict = benchmark(judge.judge, picture, partial(detectors.decode_colour, FRAMES[name]))
    assert verdict.value is (name in ("bars", "blue"))


@pytest.mark.benchmark(group="sound")
@pytest.mark.parametrize("way", ["inotify", "probing"])
def test_hearing_at_a_frame(benchmark: BenchmarkFixture, tmp_path: Path, way: str) -> None:
    close_chunk(tmp_path, 1, LOUD)
    with closing(Listener(str(tmp_path), LOSS_DB, poll=way == "probing")) as listener:
        benchmark(lambda: listener.hear(time.time_ns()))
