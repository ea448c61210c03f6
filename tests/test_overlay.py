"""Whether all that moves is a clock, ticker or spinner: drawn as the bits of tiles in time, newest slot right."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.overlay import rest_has_stopped

SLOT_MS, SLOTS = 200, 30
STILL = "." * SLOTS
TICKER = "#" * SLOTS
CLOCK = "....#" * 6
STOPPED = "#" * 10 + "." * 20


def judged(*tiles: str, before: bool = False, grid: int = 144) -> bool:
    """Each tile by what it did; the others of the grid have never moved."""
    drawn = [*tiles, *[STILL] * (grid - len(tiles))]
    moves = np.array([int(tile.replace("#", "1").replace(".", "0"), 2) for tile in drawn], np.int32)
    ages = [SLOT_MS * tile[::-1].index("#") if "#" in tile else 60_000 for tile in drawn]
    return rest_has_stopped(lambda: moves, np.array(ages, np.int64), SLOTS, before)


@pytest.mark.parametrize(
    ("tiles", "stopped"),
    [
        pytest.param([CLOCK, *[STOPPED] * 5], True, id="a clock over a film that has stopped"),
        pytest.param([*[TICKER] * 16, *[STOPPED] * 5], True, id="a ticker over one"),
        pytest.param([*[TICKER] * 40, *[STOPPED] * 50], False, id="what moves is too large for an overlay"),
        pytest.param([CLOCK, *[STOPPED] * 4], False, id="too little had moved"),
        pytest.param([CLOCK, *["##...##...####......" + "." * 10] * 5], False, id="it had moved now and then only"),
        pytest.param([CLOCK, *["#" * 14 + "." * 16] * 5], False, id="it has not stood for long enough"),
        pytest.param(["." * 20 + TICKER[:10], *[STOPPED] * 5], False, id="the mover came when the rest had stopped"),
        pytest.param([CLOCK, *["#" * 10 + "." * 15 + "#...."] * 5], False, id="the rest has moved again"),
        pytest.param([CLOCK], False, id="nothing else ever moved"),
        pytest.param([STILL], False, id="nothing moved at all"),
    ],
)
def test_what_has_stopped_behind_an_overlay(tiles: list[str], stopped: bool) -> None:
    assert judged(*tiles) is stopped


def test_it_is_remembered_when_the_slots_no_longer_tell() -> None:
    assert judged(CLOCK, before=True) is True
    assert judged(CLOCK, "." * 29 + "#", before=True) is True, "an overlay may grow by a tile"
    assert judged(CLOCK, "." * 20 + "#" + "." * 9, before=True) is False, "and what moved in between was none"
