"""Judges whether a picture is black: at the source's own black level, under noise, with a logo, clock or banner lit.

A black picture is a plain dark field. What may be lit on it stands at its edge: logo and clock at the top, subtitles,
volume bar and channel banner at the bottom. The *core* between them must be plain: nearly all of it in one narrow band
of levels, and its tiles alike in their means. Noise spreads the pixels of a tile and leaves its mean; a dark film, a
night scene and credits do not.

What a source's black is, is learned from its pictures with content: their darkest levels. So a raised black is known
where all the source's pictures are raised, and dark grey stays dark grey elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.model import BlackThresholds, Verdict
from pipeline.tiles import UNIT, Picture, grid_of

Histogram = npt.NDArray[np.float32]

# Chosen on the tuning half of the labelled footage (tests/footage).
_TOP_PCT, _BOTTOM_PCT = 18, 68
"""The core's rows: from 18 to 68 pct of the height. A channel banner is up to a quarter of it, subtitles a fifth."""

_EVEN = 5 * UNIT // 2  # levels that a tile's mean may be from the core's middle one: fine and coarse noise reached 1
_TOP_LIT_PCT = 35  # of the rows above the core: logo and clock, large
_BOTTOM_LIT_PCT = 25  # of those below: two lines of subtitles; what is more must be a plain box
_BOX_LEVELS, _BOX_PCT = 14, 45  # of what is lit at the bottom: a banner's ground; a town at night has all levels

_CONTENT_LEVELS = 24  # between the darkest and the brightest 2 pct of a picture with content
_DARKEST_PCT = 2
_FINE = 256  # parts of a level in which the floor is kept
_LEARN_EVERY = 5  # pictures
_RISE = _LEARN_EVERY  # one of them per picture: a level in 50 s at 5 frames/s
_LEARNED_LEVELS = 9  # above the darkest that black may reach: noise, and what the coding makes of it
_LEARNED_TOP = 48  # where learning ends: what is brighter is grey


class BlackMemory(msgspec.Struct, array_like=True):
    """What a source's judge of black must remember."""

    floor: int = -1  # darkest levels of its pictures with content, in 1/_FINE levels; -1: none seen yet
    until_learning: int = 0  # pictures


class Black:
    """One source's judge of black pictures."""

    def __init__(self, limits: BlackThresholds, memory: BlackMemory | None = None) -> None:
        self._limits = limits
        self.memory = memory or BlackMemory()

    def judge(self, picture: Picture, colour: Callable[[], Picture]) -> Verdict:
        """Whether the picture is black. `colour` makes it in colour: a plain blue looks dark in grey.

        Readings: black_pct (of the picture at or below black_top_level), black_top_level (the highest level that
        counts); where its core is dark black_level (the most frequent of the fullest narrow band), black_core_pct (of
        the core in the band), black_lit_tiles_pct (of the core's tiles, those of another mean) and black_lit_pct (of
        the rest of the picture); where it seems black black_tint."""
        verdict = _judge(picture, self._top_level(), self._limits)
        self._learn(picture)
        return confirm_black(verdict, colour, self._limits)

    def _top_level(self) -> int:
        """The highest level that is black for this source."""
        floor = self.memory.floor // _FINE
        if floor < 0:
            return self._limits.top_level
        return max(self._limits.top_level, min(floor + _LEARNED_LEVELS, _LEARNED_TOP))

    def _learn(self, picture: Picture) -> None:
        """The darkest levels of a picture with content: at once where they are darker, else slowly."""
        state = self.memory
        state.until_learning -= 1
        if state.until_learning > 0:
            return
        state.until_learning = _LEARN_EVERY
        below = _histogram(picture).cumsum()  # whole numbers, exact up to 2^24 pixels
        few = picture.size * _DARKEST_PCT // 100
        darkest, brightest = int(np.argmax(below > few)), int(np.argmax(below >= picture.size - few))
        if brightest - darkest < _CONTENT_LEVELS:
            return
        level = darkest * _FINE
        state.floor = level if state.floor < 0 else min(level, state.floor + _RISE)


def judge_black(picture: Picture, limits: BlackThresholds) -> Verdict:
    """Whether a picture is plain and dark, where nothing is known of its source. Grey cannot tell a dark blue: see
    confirm_black."""
    return _judge(picture, limits.top_level, limits)


def _histogram(picture: Picture, mask: cv2.typing.MatLike | None = None) -> Histogram:
    return cv2.calcHist([picture], [0], mask, [256], [0, 256]).ravel()  # type: ignore[return-value]  # it is float32


def _judge(picture: Picture, top_level: int, limits: BlackThresholds) -> Verdict:
    """Nearly all pictures have too much in their core that is bright, and are not looked at twice."""
    _, bright = cv2.threshold(picture, top_level, 1, cv2.THRESH_BINARY)
    black_pct = round(100 * (picture.size - cv2.countNonZero(bright)) / picture.size, 2)
    readings = {"black_pct": black_pct, "black_top_level": float(top_level)}
    core = _core(bright)  # type: ignore[arg-type]  # the stubs say "any number"; threshold keeps bytes
    if 100 * (core.size - cv2.countNonZero(core)) < limits.black_pct_min * core.size:
        return Verdict(False, readings)
    return _judge_dark(picture, top_level, limits, readings)


def _judge_dark(picture: Picture, top_level: int, limits: BlackThresholds, readings: dict[str, float]) -> Verdict:
    low, level, _ = _fullest_band(_histogram(_core(picture)), top_level, limits.band_levels)
    dark: Picture = cv2.inRange(picture, low, low + limits.band_levels - 1)  # type: ignore[assignment]  # it keeps bytes
    core, above, below = _core(dark), *_around(dark)
    core_pct = 100 * cv2.countNonZero(core) / core.size
    lit_tiles_pct = _lit_tiles_pct(_core(picture))
    around = above.size + below.size
    lit = around - _dark_pixels(above) - _dark_pixels(below)
    readings["black_level"] = float(level)
    readings["black_core_pct"] = round(core_pct, 2)
    readings["black_lit_tiles_pct"] = round(lit_tiles_pct, 2)
    readings["black_lit_pct"] = round(100 * lit / max(1, around), 2)
    plain = core_pct >= limits.black_pct_min and lit_tiles_pct <= limits.lit_tiles_pct_max
    framed = plain and _may_be_lit(above, _TOP_LIT_PCT) and _is_overlay(_around(picture)[1], below)
    return Verdict(framed, readings)


def _core(picture: Picture) -> Picture:
    height = len(picture)
    return picture[height * _TOP_PCT // 100 : max(1, height * _BOTTOM_PCT // 100)]


def _around(picture: Picture) -> tuple[Picture, Picture]:
    """The rows above the core, and those below it."""
    height = len(picture)
    return picture[: height * _TOP_PCT // 100], picture[max(1, height * _BOTTOM_PCT // 100) :]


def confirm_black(verdict: Verdict, colour: Callable[[], Picture], limits: BlackThresholds) -> Verdict:
    """The verdict of judge_black, turned to False if the picture is not dark but plain blue. Only a black above
    tint_above_level is looked at: black as FFmpeg writes it is 0, and costs no second decoding."""
    if not verdict.value or verdict.readings["black_level"] <= limits.tint_above_level:
        return verdict
    tint = _mean_tint(colour())
    return Verdict(tint <= limits.tint_max, {**verdict.readings, "black_tint": round(tint, 1)})


def _fullest_band(histogram: Histogram, top_level: int, width: int) -> tuple[int, int, int]:
    """The dark band that holds most pixels: its lowest and its most frequent level, and its pixels."""
    below = np.zeros(top_level + 2, np.float32)
    histogram[: top_level + 1].cumsum(out=below[1:])
    held = below[width:] - below[:-width]
    low = int(held.argmax())
    level = low + int(histogram[low : low + width].argmax())
    return low, level, int(held[low])


def _lit_tiles_pct(core: Picture) -> float:
    """Pct of the core's tiles whose mean is away from the middle one."""
    grid = grid_of(*core.shape)
    means = grid.means(core)
    middle = np.sort(means, axis=None)[grid.size // 2]
    return 100 * int(np.count_nonzero(np.abs(means - middle) > _EVEN)) / grid.size


def _dark_pixels(dark: Picture) -> int:
    return cv2.countNonZero(dark) if dark.size else 0


def _may_be_lit(dark: Picture, lit_pct: int) -> bool:
    return 100 * (dark.size - _dark_pixels(dark)) <= lit_pct * dark.size


def _is_overlay(rows: Picture, dark: Picture) -> bool:
    """Whether what is lit at the bottom is little, or stands on a box of one colour."""
    if _may_be_lit(dark, _BOTTOM_LIT_PCT):
        return True
    lit = _histogram(rows, cv2.bitwise_not(dark))
    _, _, boxed = _fullest_band(lit, 255, _BOX_LEVELS)
    return 100 * boxed >= _BOX_PCT * int(lit.sum())


def _mean_tint(colour: Picture) -> float:
    """Mean over the picture (h, w, 3) of the levels between its largest and its smallest channel."""
    blue, green, red = cv2.split(colour)
    largest = cv2.max(cv2.max(blue, green), red)
    smallest = cv2.min(cv2.min(blue, green), red)
    return float(cv2.sumElems(cv2.subtract(largest, smallest))[0]) / blue.size
