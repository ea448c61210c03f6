"""Both clocks at one instant, whoever has the core in between."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from types import SimpleNamespace

import pytest

from pipeline import clock

S = 10**9
WALL_NS = 1_700_000_000 * S


def hold_up(monkeypatch: pytest.MonkeyPatch, delays_ns: Iterable[int]) -> None:
    """Clocks that are read one after the other, each reading so long after the one before."""
    passed, delays = 0, itertools.chain(delays_ns, itertools.repeat(100))

    def read(begin_ns: int) -> int:
        nonlocal passed
        passed += next(delays)
        return begin_ns + passed

    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic_ns=lambda: read(0), time_ns=lambda: read(WALL_NS)))


@pytest.mark.parametrize("at", range(9))
def test_who_is_held_up_between_two_readings_reads_again(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    delays_ns = [100] * 9
    delays_ns[at] = 3 * S
    hold_up(monkeypatch, delays_ns)
    now_ns, wall_ns = clock.now_ns()
    assert abs(wall_ns - WALL_NS - now_ns) <= clock.CLOSE_NS


def test_where_every_reading_is_held_up_the_closest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    hold_up(monkeypatch, [100, S, S, 100, S // 5, S // 10, 100, S, S, *[S] * 100])
    now_ns, wall_ns = clock.now_ns()
    assert abs(wall_ns - WALL_NS - now_ns) <= S // 10
