"""Compares a picture with the three before it, tile by tile: what has moved, and how far it is from standing still.

A tile has *moved* if a pixel of it changed, or if it became brighter or darker than the others of its row: the second
sees what is faint but coherent, and neither a hum bar nor a flicker. Both limits are multiples of what the median tile
shows in the same pictures, so that capture noise raises them and a clean source lowers them: where all tiles waver
alike, none has moved. Integers only: the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from pipeline.model import FreezeThresholds
from pipeline.tiles import UNIT, Compared, Flags, Grid, Ints, Picture

_POINT_BASE = 2 * UNIT  # a point's limit in noise is 2 levels
_POINT_PER_MEDIAN = 6  # and so many mean differences of the median tile: beyond four sigmas of white noise
_POINT_MORE = 4  # levels above point_levels at most: analogue noise of sigma 2.5 reached 7 levels, line jitter 8
_TILE_PER_MEDIAN = 6  # the limit of a tile's mean grows by so many shifts of the median tile
_TILE_MOST = 3 * UNIT // 2  # 1.5 levels: coarse analogue noise and jitter reached 1.1
_TILE_PER_NOISE, _NOISE_MOST = 77, UNIT  # and by 77/256 of its own mean difference: dark tiles have less noise
_ALL_MOVE = UNIT // 4  # where the median tile has shifted by 0.25 levels, all of it moves: noise reached 0.18
_PLAIN = 24 * UNIT  # between the darkest and the brightest tile: a picture that is plainer rounds its noise away
_QUIET_SHARE = 10  # the quietest tenth of the tiles tells of noise, as long as something stands

_NONE: Ints = np.empty(0, np.int32)  # was not looked at


class Step(NamedTuple):
    """One picture against those before it, newest first. Differences of tiles in 1/UNIT levels."""

    difference: Picture  # absolute, to the newest; lives until the next step
    total: int  # levels, of all its pixels
    largest: int  # levels, of any
    means: Ints  # of the picture's tiles
    tiles: Ints  # mean absolute difference to the newest
    mean: int  # of these
    quiet: int  # which the quietest tenth of them does not exceed
    shifts: Ints  # per predecessor, how far each tile went from the others of its row
    middle_shift: int  # of the median tile, to the predecessor where that is most
    point_limit: int  # levels by which a pixel may differ and be the same
    tile_limit: Ints  # of the shift
    moved: Flags  # since the newest
    moving: int  # tiles that have moved


class Span(NamedTuple):
    """One picture against all three before it."""

    totals: list[int]  # levels, newest first
    largest: int
    unlike: Flags  # against any
    differing: int  # tiles that are unlike


def step(
    picture: Picture,
    newest: Picture,
    means: Ints,
    grid: Grid,
    limits: FreezeThresholds,
    *,
    enough: int,
    exact: bool = False,
) -> Step:
    """Look at a picture beside the newest before it. `means` are those of all predecessors' tiles, (n, rows, columns).
    Where more than `enough` tiles have moved by their pixels, nothing else is looked at. `exact`: every difference is
    motion, however small, but on a plain picture."""
    seen = grid.compare(picture, newest)
    ordered = seen.tiles.flatten()
    ordered.sort()
    point_limit = _point_limit(int(ordered[grid.size // 2]), limits)
    largest = int(cv2.minMaxLoc(seen.difference)[1])
    moved = _changed(seen.difference, point_limit, grid) if largest > point_limit else np.zeros(grid.shape, np.bool_)
    moving = int(np.count_nonzero(moved))
    shifts, middle_shift, tile_limit = _NONE, 0, _NONE
    if moving <= enough:
        shifts, middle_shift, tile_limit = _shifts(seen, means, grid, limits)
        moved |= shifts[0] > tile_limit
        if exact and largest and int(seen.means.max()) - int(seen.means.min()) >= _PLAIN:
            moved |= _changed(seen.difference, 0, grid)
        moving = int(np.count_nonzero(moved))
    return Step(
        seen.difference,
        seen.total,
        largest,
        seen.means,
        seen.tiles,
        int(ordered.sum()) // grid.size,
        int(ordered[grid.size // _QUIET_SHARE]),
        shifts,
        middle_shift,
        point_limit,
        tile_limit,
        moved,
        moving,
    )


def _shifts(seen: Compared, means: Ints, grid: Grid, limits: FreezeThresholds) -> tuple[Ints, int, Ints]:
    """How far each tile went from the others of its row, per predecessor; the most that the median tile did; and how
    far each tile may have gone from the newest."""
    shifts = _shift(seen.means, means)
    by_size = shifts.reshape(len(means), -1).copy()
    by_size.sort(axis=1)
    middles = by_size[:, grid.size // 2].tolist()
    tile_limit = seen.tiles - shifts[0]  # the noise: what moves as one has none
    np.maximum(tile_limit, 0, out=tile_limit)
    np.minimum(tile_limit, _NOISE_MOST, out=tile_limit)
    tile_limit *= _TILE_PER_NOISE
    tile_limit >>= 8
    tile_limit += _tile_limit(middles[0], limits)
    return shifts, max(middles), tile_limit


def span(picture: Picture, now: Step, older: Sequence[Picture], grid: Grid) -> Span:
    """Look at a picture beside those that are older than the newest, too."""
    differences = [cv2.absdiff(picture, other) for other in older]
    totals = [now.total, *(int(cv2.sumElems(difference)[0]) for difference in differences)]
    levels = [int(cv2.minMaxLoc(difference)[1]) for difference in differences]
    unlike = now.moved
    if now.middle_shift > _ALL_MOVE:
        unlike = np.ones_like(unlike)
    elif older:
        unlike = unlike | (now.shifts[1:].max(axis=0) > now.tile_limit)
        for difference, level in zip(differences, levels, strict=True):
            if level > now.point_limit:
                unlike |= _changed(difference, now.point_limit, grid)
    return Span(totals, max(now.largest, *levels, 0), unlike, int(np.count_nonzero(unlike)))


def totals(picture: Picture, now: Step, older: Sequence[Picture]) -> list[int]:
    """Sum of the absolute differences, in levels, newest first."""
    return [now.total, *(int(cv2.norm(picture, other, cv2.NORM_L1)) for other in older)]


def redistributed(means: Ints, before: Ints) -> int:
    """How far the levels of the tiles were redistributed: sorted, against sorted. Motion moves them about, a cut brings
    others."""
    return int(np.abs(np.sort(means, axis=None) - np.sort(before, axis=None)).sum()) // means.size


def distance(means: Ints, others: Ints) -> Ints:
    """How far each tile went from the others of its row between two pictures."""
    return _shift(means, others)


def _point_limit(median: int, limits: FreezeThresholds) -> int:
    wanted = (_POINT_BASE + _POINT_PER_MEDIAN * median) // UNIT
    return min(max(limits.point_levels, wanted), limits.point_levels + _POINT_MORE)


def _tile_limit(median: int, limits: FreezeThresholds) -> int:
    base = round(limits.tile_levels * UNIT)
    return max(base, min(base + _TILE_PER_MEDIAN * median, _TILE_MOST))


def _shift(means: Ints, others: Ints) -> Ints:
    """What is common to a row of tiles is a hum bar, a flicker or a plain fade: no motion that a tile can tell."""
    change = means - others
    ordered = change.copy()
    ordered.sort(axis=-1)
    change -= ordered[..., ordered.shape[-1] // 2, None]
    shift: Ints = np.abs(change, out=change)
    return shift


def _changed(difference: cv2.typing.MatLike, point: int, grid: Grid) -> Flags:
    """Tiles with a pixel that differs by more."""
    _, points = cv2.threshold(difference, point, 1, cv2.THRESH_BINARY)
    return grid.sums(points) > 0  # type: ignore[arg-type]  # the stubs say "any number"; threshold keeps bytes
