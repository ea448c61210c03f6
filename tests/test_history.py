"""The last three pictures of a source, in cells that outlive their worker."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.history import History, HistoryEntry
from pipeline.model import PICTURE_BYTES, PICTURE_CELLS
from pipeline.tiles import Picture
from tests.pictures import picture

BASE = picture(base=100)


def new_history(entries: tuple[HistoryEntry, ...] = ()) -> History:
    return History([memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)], entries)


def after(*predecessors: Picture) -> History:
    """A history fed with these, oldest first."""
    history = new_history()
    for number, predecessor in enumerate(predecessors):
        history.push(predecessor, f"capture_{number:09d}.jpg")
    return history


def test_a_history_keeps_the_last_three_newest_first() -> None:
    history = after(*[picture(base=level) for level in range(5)])
    assert history.names() == ["capture_000000004.jpg", "capture_000000003.jpg", "capture_000000002.jpg"]
    assert [int(stored[0, 0]) for stored in history.pictures()] == [4, 3, 2]
    assert [entry.name for entry in history.entries] == history.names()[::-1]


def test_pictures_are_read_only_views_into_the_cells() -> None:
    cells = [memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)]
    history = History(cells)
    history.push(BASE, "a")
    (stored,) = history.pictures()
    assert np.shares_memory(stored, np.frombuffer(cells[history.entries[0].cell], np.uint8))
    assert not stored.flags.writeable


def test_a_cleared_history_takes_another_size() -> None:
    history = after(BASE, BASE)
    with pytest.raises(ValueError, match="does not follow"):
        history.push(np.zeros((45, 80), np.uint8), "a")
    history.clear()
    assert (history.entries, history.pictures(), history.names()) == ((), [], [])
    history.push(np.zeros((45, 80), np.uint8), "a")


def test_the_picture_before_it_was_cleared_is_known_until_the_next() -> None:
    history = after(BASE, BASE)
    newest, known = history.pictures()[0], [history.before]
    for _ in range(2):
        history.clear()
        known.append(history.before)
    history.push(BASE, "a")
    assert [picture is newest for picture in known] == [False, True, True] and history.before is None


def test_a_picture_larger_than_a_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="does not follow"):
        new_history().push(np.zeros((1, PICTURE_BYTES + 1), np.uint8), "a")


def test_four_cells_are_needed() -> None:
    with pytest.raises(ValueError, match="4 cells"):
        History([memoryview(bytearray(PICTURE_BYTES))] * 3)


def fill(cells: list[memoryview], count: int = 3) -> tuple[HistoryEntry, ...]:
    history = History(cells)
    for number in range(count):
        history.push(picture(base=number), str(number))
    return history.entries


@pytest.mark.parametrize(
    ("index", "change", "names"),
    [
        pytest.param(0, {}, ["2", "1", "0"], id="intact"),
        pytest.param(0, {"crc": 1}, ["2", "1"], id="oldest has a wrong CRC"),
        pytest.param(1, {"crc": 1}, ["2"], id="middle has a wrong CRC"),
        pytest.param(2, {"crc": 1}, [], id="newest has a wrong CRC"),
        pytest.param(1, {"cell": 4}, ["2"], id="no such cell"),
        pytest.param(1, {"cell": -1}, ["2"], id="negative cell"),
        pytest.param(1, {"height": 89}, ["2"], id="other height"),
        pytest.param(1, {"height": 160, "width": 90}, ["2"], id="same pixels, other shape"),
        pytest.param(1, {"height": 0, "crc": 0}, ["2"], id="no pixels"),
        pytest.param(2, {"height": -90, "width": -160}, [], id="negative size"),
        pytest.param(2, {"height": 10**6}, [], id="larger than its cell"),
    ],
)
def test_a_restored_history_believes_only_what_fits(index: int, change: dict[str, int], names: list[str]) -> None:
    cells = [memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)]
    entries = list(fill(cells))
    fields = {name: getattr(entries[index], name) for name in HistoryEntry.__struct_fields__}
    entries[index] = HistoryEntry(**{**fields, **change})
    assert History(cells, tuple(entries)).names() == names


def test_a_damaged_cell_takes_all_older_pictures_with_it() -> None:
    cells = [memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)]
    entries = fill(cells)
    cells[entries[1].cell][14399] ^= 1
    assert History(cells, entries).names() == ["2"]


def test_an_entry_reaching_past_its_cell_is_dropped_even_if_its_crc_fits() -> None:
    cells = [memoryview(bytearray(64)) for _ in range(PICTURE_CELLS)]
    assert new_history((HistoryEntry(0, 1, 64, "fits", zlib.crc32(bytes(64))),)).names() == ["fits"]
    assert History(cells, (HistoryEntry(0, 1, 65, "a", zlib.crc32(bytes(64))),)).names() == []


def test_push_avoids_the_cells_of_entries_in_any_order() -> None:
    cells = [memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)]
    history = History(cells, fill(cells)[::-1])
    history.push(BASE, "next")
    assert [entry.cell for entry in history.entries] == [1, 0, 3]


def test_only_the_last_three_entries_are_restored() -> None:
    cells = [memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)]
    entries = fill(cells)
    assert len(History(cells, (*entries, entries[0])).entries) == 3


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["push", "restore", "clear and push"]), max_size=12), st.data())
def test_push_leaves_the_cells_of_the_last_commit_alone(steps: list[str], data: st.DataObject) -> None:
    cells = [memoryview(bytearray(64)) for _ in range(PICTURE_CELLS)]
    history = History(cells)
    for number, step in enumerate([*steps, "push"]):
        if step == "restore":
            history = History(cells, history.entries[data.draw(st.integers(0, 3)) :])
            continue
        committed = history.entries
        if step == "clear and push":
            history.clear()
        history.push(np.full((4, 5), number, np.uint8), str(number))
        assert History(cells, committed).entries == committed
        assert History(cells, history.entries).entries == history.entries
