"""The picture that a grabber or a television shows without a signal, learned from frames of it.

A *grid* is a picture (a frame at 1/8 size, see `detectors`) brought to one size for all: each *point* the mean of its
part, so that capture noise is gone and the frame's size does not matter. Of several frames each point keeps its colour
and how far that varied. Points that vary (a moving logo, a clock) are left out; HyperHDR learns a grabber's board in
the same way. A plain card has nothing else to be known by than its colour and what moves on it: that keeps its size.

Touches no file, clock or process. Colours are blue, green, red; "levels" are 0-255, "pct" is 0-100.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.model import NoSignalThresholds

Picture = npt.NDArray[np.uint8]
"""(height, width) in grey, (height, width, 3) in colour."""

COLUMNS, ROWS = 80, 45
"""The grid: 16 x 16 px to a point at 720p. Letters 40 px high change the points that they cover by 30 levels."""

LEAST_WIDTH, LEAST_HEIGHT = 32, 18
"""A picture that is smaller (a frame below 256 x 144) shows too little to tell."""

LEAST_FRAMES = 3
STABLE_LEVELS = 14
"""A point whose colour stays within so many levels in nine of ten frames stands still. Noise of sigma 4, coded at JPEG
quality 50, leaves 5."""

LEAST_STABLE_PCT = 50.0
_MATCH_LEVELS = 14  # a point is as learned: HyperHDR allows a sum of 9, without JPEG; brightness drifts as it warms up
_FEATURE_LEVELS = 30  # from the commonest colour: by such points a picture is recognised
_LEAST_FEATURES = 12
_FEATURES_PCT = 80.0  # pct of them that must be as learned
_DARK_LEVELS = 40  # nothing above it: black to the eye
_TILE_ROWS, _TILE_COLUMNS = 9, 16
_TEXT_ROWS, _TEXT_COLUMNS = (
    4,
    12,
)  # tiles that the text of a card may touch: a list has more lines, a title bar is wider
_LEAST_SPRITE = 6  # points of something that moves on a plain card
_SPRITE_SLACK, _SPRITE_PCT = 1, 20.0  # points of its width and height, pct of its points
_SPRITE_LEVELS = 20.0


class Unfit(ValueError):
    """Nothing can be recognised by these frames; the text says why."""


class Sprite(msgspec.Struct, frozen=True):
    """What moves on a plain card: the least and the most points, and those of its width and height; its colour."""

    points: tuple[float, float]
    width: tuple[float, float]
    height: tuple[float, float]
    colour: tuple[float, float, float]

    def is_(self, points: int, width: int, height: int, colour: npt.NDArray[np.float64]) -> bool:
        """Whether this is it, wherever it has moved to."""
        sized = _within(width, self.width, _SPRITE_SLACK) and _within(height, self.height, _SPRITE_SLACK)
        filled = _within(points, self.points, _SPRITE_PCT / 100 * self.points[1])
        return sized and filled and float(np.abs(colour - self.colour).max()) <= _SPRITE_LEVELS


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """A learned picture."""

    schema: int = 1
    frames: int  # from so many it was learned
    stable_pct: float
    colours: bytes  # COLUMNS * ROWS * 3, by rows: the median
    spread: bytes  # COLUMNS * ROWS: levels between which nine of ten frames lay, in the widest channel
    sprite: Sprite | None = None

    def __post_init__(self) -> None:
        if self.schema != 1 or (len(self.colours), len(self.spread)) != (3 * COLUMNS * ROWS, COLUMNS * ROWS):
            raise ValueError("not a signature of this version")


def grid_of(picture: Picture) -> Picture:
    """The picture as (ROWS, COLUMNS) or (ROWS, COLUMNS, 3)."""
    return cv2.resize(picture, (COLUMNS, ROWS), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def is_too_small(picture: Picture) -> bool:
    """Whether it shows too little to tell."""
    return bool(picture.shape[1] < LEAST_WIDTH or picture.shape[0] < LEAST_HEIGHT)


Bound = float | npt.NDArray[Any]
"""One for all points and channels, or one per channel, or one per point."""


def inside(grid: Picture, low: Bound, high: Bound) -> Picture:
    """(ROWS, COLUMNS): 255 where every channel lies from low to high, else 0."""
    return cv2.inRange(grid, low, high)  # type: ignore[return-value]  # the stubs say "any number"


def has_little_on_it(near: Picture, thresholds: NoSignalThresholds) -> bool:
    """Some text, as a card has; neither as much as a menu nor a bar from side to side. `near` is 0 where it is."""
    shape = (_TILE_ROWS, ROWS // _TILE_ROWS, _TILE_COLUMNS, COLUMNS // _TILE_COLUMNS)
    tiles = np.asarray(near.reshape(shape).min(axis=(1, 3)) == 0)
    per_row = tiles.sum(axis=1)
    few: bool = 100 * int(per_row.sum()) <= thresholds.lit_tiles_pct_max * tiles.size
    return few and int(np.count_nonzero(per_row)) <= _TEXT_ROWS and int(per_row.max()) <= _TEXT_COLUMNS


def learn(pictures: Sequence[Picture]) -> Signature:
    """The signature of these pictures, which are in colour and of one size. Raises Unfit."""
    if len(pictures) < LEAST_FRAMES:
        raise Unfit(f"{len(pictures)} frames are too few; at least {LEAST_FRAMES} are needed, better 50")
    if len({picture.shape for picture in pictures}) > 1:
        raise Unfit("the frames differ in size; take those after the change only: --frames N")
    if is_too_small(pictures[0]):
        raise Unfit("the frames are too small; capture at 256x144 or more")
    grids = np.stack([grid_of(picture) for picture in pictures])
    low, colours, high = np.percentile(grids, (5, 50, 95), axis=0)
    spread = np.rint((high - low).max(axis=2)).astype(np.uint8)
    stable_pct = 100 * int(np.count_nonzero(spread <= STABLE_LEVELS)) / spread.size
    if stable_pct < LEAST_STABLE_PCT:
        raise Unfit(
            f"only {stable_pct:.0f} % of the picture stands still, {LEAST_STABLE_PCT:.0f} % are needed;"
            " wait until nothing but the no-signal picture is shown, or take fewer frames: --frames N"
        )
    signature = Signature(
        frames=len(pictures),
        stable_pct=round(stable_pct, 1),
        colours=np.rint(colours).astype(np.uint8).tobytes(),
        spread=spread.tobytes(),
    )
    learned = Learned(signature)
    if not learned.is_plain:
        return signature
    sprite = learned.sprite_in(grids)
    if max(learned.commonest) < _DARK_LEVELS and sprite is None:
        raise Unfit("it is plain black, which `black` tells already; nothing is to be learned")
    return msgspec.structs.replace(signature, sprite=sprite)


class Learned:
    """A signature, ready to compare with."""

    def __init__(self, signature: Signature) -> None:
        colours = np.frombuffer(signature.colours, np.uint8).reshape(ROWS, COLUMNS, 3)
        spread = np.frombuffer(signature.spread, np.uint8).reshape(ROWS, COLUMNS).astype(np.int16)
        stable = spread <= STABLE_LEVELS
        if not stable.any():
            raise ValueError("a signature without a stable point")
        median = np.rint(np.median(colours[stable], axis=0)).astype(np.int16)
        features = stable & (np.abs(colours - median).max(axis=2) > _FEATURE_LEVELS)
        self.points, self.features = int(np.count_nonzero(stable)), int(np.count_nonzero(features))
        self.commonest: tuple[int, int, int] = tuple(median.tolist())
        self.is_plain = self.features < _LEAST_FEATURES
        self.sprite = signature.sprite
        tolerance = np.where(stable, _MATCH_LEVELS + spread // 2, 255)
        grey = cv2.cvtColor(colours, cv2.COLOR_BGR2GRAY)
        self._grey = _bounds(grey, tolerance)
        self._colours = _bounds(colours, tolerance[..., None])
        self._plain = _bounds(median, _FEATURE_LEVELS)
        level = float(np.median(grey[stable]))
        self._plain_grey = level - _MATCH_LEVELS, level + _MATCH_LEVELS
        self._stable, self._features = _mask(stable), _mask(features)

    def may_be(self, grid: Picture, thresholds: NoSignalThresholds) -> bool:
        """Whether the picture in grey may be the learned one."""
        near = inside(grid, *self._grey)
        if self._pct(near) < thresholds.learned_pct_min:
            return False
        if self.sprite is None:
            return self.is_plain or self._has_features(near)
        return cv2.countNonZero(inside(grid, *self._plain_grey)) < grid.size

    def compare(self, colours: Picture, thresholds: NoSignalThresholds) -> tuple[float, bool]:
        """Pct of the stable points that are as learned, and whether it is the learned picture."""
        near = inside(colours, *self._colours)
        pct = self._pct(near)
        if pct < thresholds.learned_pct_min:
            return pct, False
        if not self.is_plain:
            return pct, self._has_features(near)
        if self.sprite is None:
            return pct, has_little_on_it(near, thresholds)
        found = self._moving(colours)
        return pct, found is not None and self.sprite.is_(*found)

    def sprite_in(self, grids: Picture) -> Sprite | None:
        """What moves on this plain card in (frames, ROWS, COLUMNS, 3); None if nothing does, or not in nearly all."""
        found = [moving for moving in map(self._moving, grids) if moving is not None]
        if len(found) < 0.9 * len(grids):
            return None
        points, widths, heights, colours = zip(*found, strict=True)
        sprite = Sprite(_range(points), _range(widths), _range(heights), tuple(np.median(colours, axis=0).tolist()))
        large = sprite.width[1] > COLUMNS / 2 or sprite.height[1] > ROWS / 2
        return None if large else sprite  # large: several things, or no plain card

    def _moving(self, colours: Picture) -> tuple[int, int, int, npt.NDArray[np.float64]] | None:
        """Points, width, height and colour of what is not of the card's own colour."""
        rows, columns = np.nonzero(inside(colours, *self._plain) == 0)
        if rows.size < _LEAST_SPRITE:
            return None
        return rows.size, int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1, colours[rows, columns].mean(axis=0)

    def _pct(self, near: Picture) -> float:
        return 100 * cv2.countNonZero(cv2.bitwise_and(near, self._stable)) / self.points

    def _has_features(self, near: Picture) -> bool:
        return 100 * cv2.countNonZero(cv2.bitwise_and(near, self._features)) >= _FEATURES_PCT * self.features


def _range(values: Sequence[float]) -> tuple[float, float]:
    least, most = np.percentile(values, (5, 95)).tolist()
    return least, most


def _within(value: float, span: tuple[float, float], slack: float) -> bool:
    return span[0] - slack <= value <= span[1] + slack


def _bounds(levels: npt.ArrayLike, tolerance: npt.ArrayLike) -> tuple[Picture, Picture]:
    middle, slack = np.asarray(levels, np.int16), np.asarray(tolerance, np.int16)
    return (middle - slack).clip(0, 255).astype(np.uint8), (middle + slack).clip(0, 255).astype(np.uint8)


def _mask(where: npt.NDArray[np.bool_]) -> Picture:
    return where.astype(np.uint8) * np.uint8(255)
