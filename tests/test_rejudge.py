"""Sidecars under other thresholds: as if the frames had been judged with them, where readings decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from pipeline import sidecar
from pipeline.accuracy import sighting
from pipeline.judge import Judge
from pipeline.model import PICTURE_BYTES, PICTURE_CELLS, AudioThresholds, BlackThresholds, BlockThresholds
from pipeline.rejudge import rejudged
from pipeline.settings import Source
from pipeline.sidecar import FREEZE_FAULT, Sidecar
from tests.pictures import grey, jpeg, lights, noisy, text

SOURCE = Source(name="a", dir="/frames/a")
TILES = " ".join(["0" * 16] * 9)
BLACKS = {
    "plain": grey(16),
    "noisy": noisy(grey(20), 4.0),
    "lights": lights(12),
    "banner": text(grey(16), ("12 Channel Twelve", 110, 640, 1.6)),
    "grey": grey(120),
}


def judged(frame: np.ndarray[Any, np.dtype[np.uint8]], source: Source = SOURCE) -> Sidecar:
    judge = Judge(source, [memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)])
    seen = sighting(0, 5)
    order = judge.observe(0, seen.identity)
    fields = sidecar.verdict_fields(judge.judge(jpeg(frame), "capture_0", order, 0))
    return sidecar.build("a", "capture_0", 0, seen.identity, **fields)


@pytest.mark.parametrize("name", BLACKS)
@pytest.mark.parametrize(
    "limits",
    [
        BlackThresholds(black_pct_min=99.99),
        BlackThresholds(black_pct_min=98.0),
        BlackThresholds(lit_tiles_pct_max=0.0),
        BlackThresholds(tint_max=0.0),
    ],
    ids=str,
)
def test_a_stricter_black_is_what_the_frame_would_have_been(name: str, limits: BlackThresholds) -> None:
    source = replace(SOURCE, black=limits)
    keys = ["black.black_pct_min", "black.lit_tiles_pct_max", "black.tint_max"]
    again = rejudged(judged(BLACKS[name]), source, keys)
    assert again.blackscreen == judged(BLACKS[name], source).blackscreen


def test_a_looser_black_asks_that_little_is_lit_around_it() -> None:
    source = replace(SOURCE, black=BlackThresholds(lit_tiles_pct_max=50))
    readings = {"black_core_pct": 99.0, "black_lit_tiles_pct": 20.0, "black_lit_pct": 5.0, "black_level": 0.0}
    refused = replace(judged(BLACKS["grey"]), readings=readings)
    assert refused.blackscreen is False
    assert rejudged(refused, source, ["black.lit_tiles_pct_max"]).blackscreen is True
    lit = replace(refused, readings={**readings, "black_lit_pct": 30.0})
    assert rejudged(lit, source, ["black.lit_tiles_pct_max"]).blackscreen is False


def test_readings_that_are_not_there_change_no_verdict_to_the_better() -> None:
    source = replace(SOURCE, black=BlackThresholds(lit_tiles_pct_max=100), audio=AudioThresholds(loss_db=-20.0))
    bare = replace(judged(BLACKS["grey"]), audio=True, readings={"black_core_pct": 99.0})
    assert rejudged(bare, source, ["black.lit_tiles_pct_max", "audio.loss_db"]) == bare
    navy = {"black_core_pct": 99.0, "black_lit_tiles_pct": 20.0, "black_lit_pct": 0.0, "black_level": 10.0}
    assert rejudged(replace(bare, readings=navy), source, ["black.lit_tiles_pct_max"]).blackscreen is False


def test_only_what_is_tried_is_judged_anew() -> None:
    content = replace(judged(BLACKS["plain"]), blackscreen=False, quality_score=10.0, macroblocks=False)
    assert rejudged(content, SOURCE, []) == content
    assert rejudged(content, SOURCE, ["rules.black.raise_s"]) == content
    assert rejudged(content, SOURCE, ["macroblocks.quality_min"]) == replace(content, macroblocks=True)


def test_what_was_unknown_stays_unknown() -> None:
    keys = ["static_ok", "black.tint_max", "macroblocks.quality_min", "audio.loss_db"]
    unknown = sidecar.build("a", "capture_0", 0, sighting(0, 5).identity)
    assert rejudged(unknown, SOURCE, keys) == unknown


@pytest.mark.parametrize(("score", "expected"), [(49.9, True), (50.0, False), (None, None)])
def test_quality(score: float | None, expected: bool | None) -> None:
    content = replace(judged(BLACKS["grey"]), quality_score=score, macroblocks=None)
    source = replace(SOURCE, macroblocks=BlockThresholds(quality_min=50))
    assert rejudged(content, source, ["macroblocks.quality_min"]).macroblocks is expected


@pytest.mark.parametrize(("loss_db", "audio"), [(-30.0, False), (-45.0, True), (-60.0, True)])
def test_sound_is_lost_when_every_channel_is_silent(loss_db: float, audio: bool) -> None:
    readings = {"audio_mean_db": -43.0, "audio_channel_1_db": -40.0, "audio_channel_2_db": -50.0}
    content = replace(judged(BLACKS["grey"]), audio=True, readings=readings)
    source = replace(SOURCE, audio=AudioThresholds(loss_db=loss_db))
    assert rejudged(content, source, ["audio.loss_db"]).audio is audio


@pytest.mark.parametrize(
    ("static_ok", "kind", "fault", "tiles", "expected"),
    [
        (True, "whole", 1.0, 10.0, 0.0),
        (True, "whole", 1.0, 36.0, 1.0),
        (True, "still", 0.0, 100.0, 0.0),
        (False, "partial", 0.0, 10.0, 1.0),
        (False, "still", 0.0, 100.0, 0.0),
        (False, None, 1.0, 100.0, 1.0),  # it had only just begun
    ],
)
def test_static_ok(static_ok: bool, kind: str | None, fault: float, tiles: float, expected: float) -> None:
    readings = {FREEZE_FAULT: fault, "freeze_stopped_tiles": tiles}
    content = replace(judged(BLACKS["grey"]), freeze_kind=kind, readings=readings, tile_map=TILES)
    source = replace(SOURCE, static_ok=static_ok)
    assert rejudged(content, source, ["static_ok"]).readings[FREEZE_FAULT] == expected
