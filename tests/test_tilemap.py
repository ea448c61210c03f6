"""What is remembered of each tile, drawn as what it did slot by slot: `#` it moved, `.` it did not."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.tilemap import KEPT_SLOTS, SETTLE_SLOTS, TileMap

SHAPE = (1, 4)
SLOT_MS = 200
ALL = np.ones(SHAPE, np.bool_)


def after(*tiles: str, speeds: int = 640, shape: tuple[int, int] = SHAPE) -> TileMap:
    """A map whose first tiles did this; the others never moved."""
    told = TileMap(shape)
    told.clear(0)
    for slot in range(len(tiles[0])):
        told.next_slot()
        moved = np.zeros(shape, np.bool_)
        moved.flat[: len(tiles)] = [tile[slot] == "#" for tile in tiles]
        told.note(moved, np.full(shape, speeds, np.int32), (slot + 1) * SLOT_MS)
    return told


def settled(*tiles: str) -> TileMap:
    told = after(*tiles)
    told.settle(ALL, len(tiles[0]))
    return told


@pytest.mark.parametrize(
    ("did", "rate"),
    [
        pytest.param("###", 0, id="too short to tell"),
        pytest.param("####", 100, id="always"),
        pytest.param("#.#.#.#.", 57, id="four of the seven until its last motion"),
        pytest.param("####" + "." * 20, 100, id="what it was when it stopped"),
        pytest.param("...." + "#" * 15, 100, id="only the last fifteen count"),
        pytest.param("#" + "." * 14 + "#" * 15, 100, id="and none before them"),
        pytest.param("." * 20, 0, id="never"),
    ],
)
def test_a_rate_is_told_as_of_the_last_motion(did: str, rate: int) -> None:
    assert settled(did).rate[0].tolist() == [rate, 0, 0, 0]


@pytest.mark.parametrize(
    ("did", "ticking"),
    [
        pytest.param("....#" * 6, True, id="a clock"),
        pytest.param("....#" * 6 + "." * 20, True, id="one that has stopped"),
        pytest.param("....#" * 3, False, id="for too short a time"),
        pytest.param("#" * 10 + "." * 15 + "#" * 5, False, id="twice, not three times"),
    ],
)
def test_what_moves_again_and_again_ticks(did: str, ticking: bool) -> None:
    assert settled(did).ticking[0].tolist() == [ticking, False, False, False]


def test_a_tile_that_slows_down_comes_to_rest() -> None:
    told = after("########")
    for speed in (300, 150, 50):
        told.next_slot()
        told.note(ALL, np.full(SHAPE, speed, np.int32), 3000)
    told.settle(ALL, 11)
    assert not told.abrupt[0, 0]
    assert settled("########").abrupt[0, 0]


def test_the_usual_speed_follows_by_a_quarter() -> None:
    told = after("##", speeds=400)
    told.note(ALL, np.full(SHAPE, 800, np.int32), 600)
    only = np.array([[True, False, False, False]])
    assert told.usual_speed(only) == 500


def test_only_what_is_asked_for_is_settled_and_only_once() -> None:
    told = after("#####", "#####")
    told.settle(np.array([[True, False, False, False]]), 5)
    assert told.rate[0].tolist() == [100, 0, 0, 0]
    told.rate[0, 0] = 7
    told.settle(ALL, 5)
    assert told.rate[0].tolist() == [7, 100, 0, 0]


def test_what_is_settled_in_time_is_exact() -> None:
    """The slots that are kept reach KEPT_SLOTS beyond the longest wait."""
    did = "....#" * 6 + "." * SETTLE_SLOTS
    assert len("....#" * 6) == KEPT_SLOTS
    assert settled(did).ticking[0, 0] and settled(did).rate[0, 0] == 20


def test_a_new_scene_knows_of_no_motion() -> None:
    told = settled("#" * 30)
    told.clear(6000)
    assert not told.moves.any() and not told.rate.any() and not told.ticking.any()
    assert told.text(7000) == "1111"


def test_the_text_tells_whole_seconds_row_by_row() -> None:
    told = TileMap((2, 3))
    told.clear(0)
    told.changed_ms[:] = [[0, 30_001, 34_999], [25_000, 26_000, 35_000]]
    assert told.text(35_000) == "z40 a90"


def test_a_successor_has_all_of_it() -> None:
    told = after("#.##.#", "######", "..#...")
    other = TileMap(SHAPE, told.packed)
    for one in (told, other):
        one.settle(ALL, 6)
    assert other.packed == told.packed and other.rate[0].tolist() == told.rate[0].tolist() == [66, 100, 0, 0]


def test_recent_moves_are_the_kept_slots() -> None:
    told = after("#" * 40)
    assert told.recent_moves()[0].tolist() == [(1 << KEPT_SLOTS) - 1, 0, 0, 0]
