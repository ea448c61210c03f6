"""Tells a picture that has fallen apart into blocks: a damaged or starved video stream. Pure, from pixels to a reading.

MPEG-2, H.264 and their kin code a picture in *macroblocks* of 16 x 16 pixels from its upper left corner on. Where data
is missing or scarce, straight steps stand on the edges of macroblocks and nowhere else. A block is *cornered* if a
vertical and a horizontal edge of it are steps: a window's frame has four such blocks, a line of text none.

    pct = cornered blocks on the grid of the codec  -  cornered blocks on the same grid, moved aside  -  chance

The second is what the picture itself has of corners, or the JPEG of the capture: text, windows and buildings cancel
out. The last is the root of both together. What has stood for seconds is left out, such as a menu whose boxes happen to
lie on the grid: a codec mends what stands. A stream was scaled on its way to the frame: the grids of the usual sizes
are all tried, the worst counts. A grid that does not begin in the frame's corner (a stream with bars beside it) is not
found.

It needs the frame at full size, where a decode and a look cost three to five times as much as a frame does otherwise:
hence one frame every few seconds. Counts are integers, so that every machine writes the same digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.detectors import REDUCTION
from pipeline.tiles import Flags, Picture

Ints = npt.NDArray[np.intp]
Counts = npt.NDArray[np.int32]

SENT = ((1920, 1080), (1280, 720), (720, 576), (720, 480))
"""Width and height of the streams whose grids are looked for, besides the frame's own size."""

MOST_PIXELS = 1920 * 1088
"""Larger frames are not looked at: what is needed for it would be a fifth of a worker's memory."""

LEAST_LIVE_PCT = 25
"""Pct of the blocks that must have changed lately: less is a screen, on which something small moves."""

HALF_PCT = 1.2
"""Pct of cornered blocks at which a picture has half its quality. Clean films reached 0.2, desktops 1.1 (tuning)."""

_SIDE = 16
_LEAST_SIDE = 10.0  # px: on a finer grid an edge cannot be told from its neighbours
_STEP_LEVELS = 6  # summed over three pixels, mean along the edge
_AGAINST = 2  # a step is so many times what lies to either side of it
_ASIDE = ((0.27, 0.73), (0.73, 0.27))  # of a block: off the grid of 8 x 8 blocks, too
_LIMITS = np.array([-5, -2, 1, 4])  # around an edge: a step is three columns wide, as scaling has smeared it
_EVERY = 2  # of two lines one is enough
_MARGIN = 6  # px that an edge needs on either side
_LIVE = "012"  # whole seconds since a tile changed, as the tile map has them


class Blocks(NamedTuple):
    """What was found in one picture."""

    pct: float  # of its live blocks that are cornered, above what is usual in it; never below 0
    quality: float  # 100: none; 50: HALF_PCT of them


def may_look(small: Picture) -> bool:
    """Whether a frame is neither too large to be looked at nor too small to have a grid, by its picture at 1/8."""
    return small.size * REDUCTION**2 <= MOST_PIXELS and min(small.shape) * REDUCTION >= 8 * _SIDE


def find(full: Callable[[], Picture], tile_map: str) -> Blocks | None:
    """Look at a frame where its tile map says that it has lately changed. None where that is too little of it; else
    `full` makes the frame in grey at full size, (height, width)."""
    live = _live_tiles(tile_map)
    if 100 * np.count_nonzero(live) < LEAST_LIVE_PCT * live.size:
        return None
    picture = full()
    height, width = picture.shape
    across = _Steps(picture[::_EVERY])
    down = _Steps(cv2.transpose(picture[:, ::_EVERY]))  # type: ignore[arg-type]
    worst = 0.0
    for sides in _grids(width, height):
        worst = max(worst, _excess_pct(across, down, sides, live, worst))
    pct = round(worst, 3)
    return Blocks(pct, round(100 / (1 + pct / HALF_PCT), 1))


class _Steps:
    """The steps between neighbours along the lines of a picture, ready to be summed over any of its lines."""

    def __init__(self, lines: Picture) -> None:
        self._sums: Counts = cv2.integral(cv2.absdiff(lines[:, 1:], lines[:, :-1]))  # type: ignore[assignment]
        self.length = lines.shape[1]

    def edges(self, at: Ints, ends: Ints) -> npt.NDArray[np.bool_]:
        """Whether a step stands at each boundary `at` between each two of `ends`: (ends - 1, at)."""
        ends = (ends + _EVERY - 1) // _EVERY
        corners = self._sums.take(_LIMITS[:, None, None] + at + ends[:, None] * self._sums.shape[1])
        sums = corners[:, 1:] - corners[:, :-1]
        before, here, after = sums[1:] - sums[:-1]
        least: Counts = (_STEP_LEVELS * (ends[1:] - ends[:-1])[:, None]).astype(np.int32)
        standing: Flags = (here >= least) & (here >= _AGAINST * np.maximum(before, after))
        return standing


def _grids(width: int, height: int) -> set[tuple[float, float]]:
    """Width and height of a macroblock in the frame, for each stream that it may come from."""
    sides = {(_SIDE * width / sent[0], _SIDE * height / sent[1]) for sent in (*SENT, (width, height))}
    return {side for side in sides if min(side) >= _LEAST_SIDE}


def _live_tiles(tile_map: str) -> Flags:
    """Per tile whether it has changed in the last seconds."""
    return np.array([[symbol in _LIVE for symbol in row] for row in tile_map.split(" ")])


def _excess_pct(across: _Steps, down: _Steps, sides: tuple[float, float], live: Flags, worst: float) -> float:
    """The pct of one grid, or something that is not above `worst`: then it need not be looked beside the grid, where
    blocks only take from it."""
    on_grid, blocks = _cornered(across, down, sides, (0.0, 0.0), live)
    beside = 0
    for aside in _ASIDE:
        if (pct := _pct(on_grid, beside, blocks)) <= worst:
            return pct
        beside = max(beside, _cornered(across, down, sides, aside, live)[0])
    return _pct(on_grid, beside, blocks)


def _pct(on_grid: int, beside: int, blocks: int) -> float:
    return 100 * (on_grid - beside - math.isqrt(on_grid + beside)) / max(1, blocks)


def _cornered(
    across: _Steps, down: _Steps, sides: tuple[float, float], aside: tuple[float, float], live: Flags
) -> tuple[int, int]:
    """How many blocks of a grid are live and cornered, and how many are live."""
    columns, rows = (
        _boundaries(steps.length, side, shift) for steps, side, shift in zip((across, down), sides, aside, strict=True)
    )
    vertical, horizontal = across.edges(columns, rows), down.edges(rows, columns).T
    cornered = (vertical[:, 1:] | vertical[:, :-1]) & (horizontal[1:] | horizontal[:-1])
    moving = live[_tiles(rows, down.length, live.shape[0])][:, _tiles(columns, across.length, live.shape[1])]
    return int(np.count_nonzero(cornered & moving)), int(np.count_nonzero(moving))


def _tiles(ends: Ints, length: int, tiles: int) -> Ints:
    """In which tile along an axis the middle of each block lies."""
    return (ends[1:] + ends[:-1]) * tiles // (2 * length)


def _boundaries(length: int, side: float, shift: float) -> Ints:
    """Where blocks of this side meet along an axis, moved aside by a share of the side."""
    places: Ints = np.rint((np.arange(1, int(length / side) + 1) + shift) * side).astype(np.intp)
    return places[(places >= _MARGIN) & (places < length - _MARGIN)]
