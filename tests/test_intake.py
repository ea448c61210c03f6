"""What waits outside a full lane. The rest of the intake is tested where the watcher uses it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import intake
from pipeline.intake import Pending
from pipeline.listing import Frame

FRAMES = st.tuples(st.integers(0, 5), st.sampled_from([1, 9]))


@given(st.lists(st.one_of(FRAMES, st.none()), max_size=60))
def test_pending_behaves_like_a_list(operations: list[Frame | None]) -> None:
    """A frame is appended, None takes the first: order, count and membership are those of a plain list."""
    pending, model = Pending(), list[Frame]()
    for frame in operations:
        if frame:
            assert pending.append(frame)
            model.append(frame)
        elif model:
            assert pending.first() == model.pop(0)
            pending.drop_first()
        assert pending.count == len(model)
        every = [(n, w) for n in range(7) for w in (1, 9)]
        assert pending.without(every) == [other for other in every if other not in model]


def test_a_burst_is_one_range() -> None:
    pending = Pending()
    for number in range(20_000):
        pending.append((number, 9))
    assert pending.count == 20_000
    assert len(pending._ranges) == 1


def test_when_the_ranges_become_too_many_the_frame_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MAX_RANGES", 2)
    pending = Pending()
    assert [pending.append((number, 9)) for number in (1, 3, 5, 4)] == [True, True, False, True]
    assert pending.count == 3


def test_digits_are_part_of_a_name() -> None:
    pending = Pending()
    pending.append((999_999_999, 9))
    pending.append((1_000_000_000, 10))
    assert pending.first() == (999_999_999, 9)
    pending.drop_first()
    assert pending.first() == (1_000_000_000, 10)
