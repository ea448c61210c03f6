"""Tells whether all that moves is a clock, ticker or spinner over a picture that has stopped.

Where only a few tiles of a film move, no one of them stops a film's way. But a film is never quiet: somewhere it moves
in nearly every picture. When for a while nothing has moved but what lies where things moved before, and the rest had
been busy until then, the rest has stopped. Integers only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.tiles import Ints

# Chosen on the tuning half of the labelled footage (tests/footage).
_TICK_MS = 1200  # what has moved since is the overlay: clocks tick every second
_QUIET_MS = 3400  # for so long nothing else has
_OVERLAY_PCT = 22  # of all tiles at most; a ticker over the whole width moves 22
_BUSY_PCT, _BUSY_SLOTS = 85, 8  # of the slots before, of so many at least, in which the rest moved
_REGULAR_SLOTS = 6  # an overlay's tile moves once in so many, before and since
_FILM_TILES = 5  # of the rest, on average, move in such a slot: a film's 7 and more, a mouse pointer's and a log's 4


def rest_has_stopped(
    moves_of_tiles: Callable[[], Ints], ages_ms: npt.NDArray[np.int64], slots: int, stopped_before: bool
) -> bool:
    """Whether all but an overlay has stopped, and has not moved since.

    Of `moves_of_tiles` each has a bit per slot of time in which the tile moved, newest lowest, `slots` of them kept.
    `stopped_before`: it was so with the picture before.
    """
    overlay = ages_ms < _TICK_MS
    rest = ~overlay
    if 100 * int(np.count_nonzero(overlay)) > _OVERLAY_PCT * overlay.size or int(ages_ms[rest].min()) < _QUIET_MS:
        return False
    if stopped_before:
        return True
    moves = moves_of_tiles()
    return _was_busy(moves[rest], moves[overlay], slots)


def _was_busy(rest: Ints, overlay: Ints, slots: int) -> bool:
    """Whether the rest moved nearly all the time until it stopped, and the overlay did then, too."""
    somewhere = int(np.bitwise_or.reduce(rest))
    since = (somewhere & -somewhere).bit_length() - 1  # slots since the rest moved last
    if since < 0 or slots - since < _BUSY_SLOTS:
        return False
    in_motion = somewhere.bit_count()
    busy = 100 * in_motion >= _BUSY_PCT * (slots - since)
    large = int(np.bitwise_count(rest).sum()) >= _FILM_TILES * in_motion
    return busy and large and _is_regular(overlay >> since, slots - since) and _is_regular(overlay, since)


def _is_regular(moves: Ints, slots: int) -> bool:
    """Whether every tile moved again and again in the newest slots."""
    often = sum((moves >> at & 1 for at in range(slots)), np.zeros_like(moves))
    return bool((often * _REGULAR_SLOTS >= slots - _REGULAR_SLOTS).all() and (often > 0).all())
