"""Tells the picture that stands for "no signal" from a programme: the known cards, and the one that was learned.

Known without learning: colour bars (SMPTE and EBU), plain blue and plain grey, each also with a little text or with
something that moves. What else a grabber shows is learned (`signature`).

The picture in grey decides for nearly all frames; the few that may be a card are looked at in colour. Touches no file,
clock or process. Colours are blue, green, red; "levels" are 0-255, "pct" is 0-100; the grid is that of `signature`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.model import NoSignalThresholds, Verdict
from pipeline.signature import (
    COLUMNS,
    ROWS,
    Learned,
    Picture,
    Signature,
    grid_of,
    has_little_on_it,
    inside,
    is_too_small,
)

# Plain cards. Capture noise of sigma 4, coded at JPEG quality 40, leaves 2.5 levels in grey and 5 in blue.
_NEAR_GREY, _NEAR_COLOUR = 4, 10  # levels around the card's own
_FAR_FROM_PLAIN = 15.0  # pct of a few points below what is asked of all: nothing else is looked at
_LEAST_LUMA, _MOST_LUMA = 7, 200  # of all the cards below
_LEAST_BLUE = 70
_BLUE_RATIO = 2.0  # to the larger of the others: a card of 0047AB has 2.4, a desktop of 3A6EA5 1.5, a clear sky 1.2
_LEAST_GREY, _MOST_GREY = 48, 200  # below is a raised black (40 has been seen), above an empty page
_GREY_TINT = 12  # between the largest and the smallest channel
_DRIFT = 2.0  # levels between parts of the picture: the evenest sky that a test drew has 2.3, a card 0.5

# Colour bars
_STRIP = slice(3, 23)  # rows of the grid that all layouts give to bars: they end at 58 % (HD), 67 % or the bottom
_SAMPLED = slice(3, 22, 3)  # seven of these
_EVEN_LEVELS = 12  # a bar is even from top to bottom
_EVEN_COLUMNS = 50  # of COLUMNS: what moves over the bars disturbs the others
_GLANCE, _GLANCE_COLUMNS = (7, 18), 30  # between two rows of the strip alone: a film has not that many
_GLANCE_AT, _GLANCE_FALL = (16, 64), 20  # and from the first two bars to the last two, in one of these rows
_LEAST_FALL = 40  # levels of grey from the first to the last: 54 in bars at half brightness
_STEP_LEVELS = 5  # of grey, from one bar to the next: 6 in bars at half brightness
_BAR_LEVELS, _BAR_PCT = 28, 60.0  # so much of a bar is so near its colour
_LIT_LEVEL = 60  # the brightest channel of any bar but the black one
_LIT, _UNLIT = 0.6, 0.45  # of the brightest channel
_HIDDEN = 2  # bars that may be hidden by text or by what moves
_BARS = ((1, 1, 1), (0, 1, 1), (1, 1, 0), (0, 1, 0), (1, 0, 1), (0, 0, 1), (1, 0, 0), (0, 0, 0))
"""Which of blue, green, red is lit: white, yellow, cyan, green, magenta, red, blue, black."""


class Layout(NamedTuple):
    """Where bars stand: so many of one width, from `left` to 1 - `left` of the picture's width."""

    bars: int
    left: float

    def column(self, at: float) -> int:
        """The column of the grid at `at` bars from the first one's left edge."""
        return round((self.left + at * (1 - 2 * self.left) / self.bars) * COLUMNS)


LAYOUTS = (Layout(7, 0), Layout(8, 0), Layout(7, 1 / 8), Layout(8, 1 / 8))
"""SMPTE; EBU; SMPTE HD, between grey wings, as SMPTE in 4:3 between black ones; EBU in 4:3."""

_CENTRES = {layout: [layout.column(bar + 0.5) for bar in range(layout.bars)] for layout in LAYOUTS}


class NoSignal:
    """Recognises the no-signal picture of one source."""

    def __init__(
        self, thresholds: NoSignalThresholds, signature: Signature | None = None, *, cards: bool = True
    ) -> None:
        """`cards`: whether to look for the known ones."""
        self._thresholds, self._cards = thresholds, cards
        self._learned = Learned(signature) if signature else None

    def judge(self, picture: Picture, colour: Callable[[], Picture]) -> Verdict:
        """Whether the picture stands for "no signal". `colour` makes the same in colour, and is called for few frames.

        Unknown if the picture is too small, or there is nothing to look for. Readings: no_signal_plain_pct (of one grey
        level; of a few points, where these are far from a card's); where that was looked at, no_signal_bars (found) and
        no_signal_learned_pct (of the stable points).
        """
        thresholds, learned = self._thresholds, self._learned
        if is_too_small(picture) or not (self._cards or learned):
            return Verdict(None, {})
        grid = grid_of(picture)
        plain_pct, luma = _plain(grid, thresholds.plain_pct_min - _FAR_FROM_PLAIN)
        readings = {"no_signal_plain_pct": round(plain_pct, 1)}
        plain = self._cards and plain_pct >= thresholds.plain_pct_min and _LEAST_LUMA <= luma <= _MOST_LUMA
        layouts = _possible_layouts(grid) if self._cards and not plain else []
        as_learned = learned is not None and learned.may_be(grid, thresholds)
        if not (plain or layouts or as_learned):
            return Verdict(False, readings)
        colours, found = grid_of(colour()), False
        if plain:
            found = _is_plain_card(grid, colours, thresholds)
        elif layouts:
            number, found = _count_bars(colours, layouts)
            readings["no_signal_bars"] = float(number)
        if as_learned and learned is not None:
            learned_pct, as_learned = learned.compare(colours, thresholds)
            readings["no_signal_learned_pct"] = round(learned_pct, 1)
        return Verdict(found or as_learned, readings)


def _plain(grid: Picture, glance_pct: float) -> tuple[float, int]:
    """Pct of the points near the middle one's level, and that level. Where a few points have less than `glance_pct`,
    they are all that is looked at."""
    sample = grid[2::5, 2::5]
    levels = sample.flatten()
    levels.sort()
    level = int(levels[levels.size // 2])
    glanced_pct = _near_pct(sample, level)
    return (glanced_pct if glanced_pct < glance_pct else _near_pct(grid, level)), level


def _near_pct(grid: Picture, level: int) -> float:
    low, high = max(0, level - _NEAR_GREY), min(255, level + _NEAR_GREY)
    near = grid - np.uint8(low) <= high - low  # what is below low has wrapped round; half the cost of inRange
    return 100 * int(np.count_nonzero(near)) / grid.size


def _is_plain_card(grid: Picture, colours: Picture, thresholds: NoSignalThresholds) -> bool:
    """Blue or grey, the same everywhere, with little on it."""
    middle = _middle(colours)
    blue, green, red = middle.tolist()
    is_blue = blue >= _LEAST_BLUE and blue >= _BLUE_RATIO * max(green, red)
    is_grey = np.ptp(middle) <= _GREY_TINT and middle.min() >= _LEAST_GREY and middle.max() <= _MOST_GREY
    if not (is_blue or is_grey):
        return False
    near = inside(colours, middle - _NEAR_COLOUR, middle + _NEAR_COLOUR)
    if _drift(grid, near) > _DRIFT:
        return False
    near[[0, -1]] = 255  # a grabber's overscan leaves black edges
    near[:, [0, 1, -2, -1]] = 255
    return 100 * cv2.countNonZero(near) >= thresholds.plain_pct_min * near.size and has_little_on_it(near, thresholds)


def _middle(colours: Picture) -> npt.NDArray[np.float64]:
    """The middle level of each channel; a quarter of np.median's cost."""
    levels = np.sort(colours.reshape(-1, 3), axis=0)
    return np.asarray(levels[len(levels) // 2], np.float64)


def _drift(grid: Picture, near: Picture) -> float:
    """Levels between the means of twelve parts of the picture, each without what is not near."""
    shape = (3, ROWS // 3, 4, COLUMNS // 4)
    counted = near.reshape(shape) > 0
    sums = (grid.reshape(shape) * counted).sum(axis=(1, 3))
    counts = counted.sum(axis=(1, 3))
    means = sums[counts > 0] / counts[counts > 0]
    return float(np.ptp(means)) if means.size else 0.0


def _possible_layouts(grid: Picture) -> list[Layout]:
    """The layouts of bars that the grey allows: even from top to bottom, darker from left to right."""
    upper, lower = (grid[row] for row in _GLANCE)
    left, right = _GLANCE_AT
    if max(int(row[left]) - int(row[right]) for row in (upper, lower)) < _GLANCE_FALL:
        return []
    alike = np.maximum(upper, lower) - np.minimum(upper, lower) <= _EVEN_LEVELS
    if np.count_nonzero(alike) < _GLANCE_COLUMNS:
        return []
    strip = np.sort(grid[_SAMPLED], axis=0)
    if np.count_nonzero(strip[-2] - strip[1] <= _EVEN_LEVELS) < _EVEN_COLUMNS:
        return []
    line = strip[len(strip) // 2].tolist()
    if max(line) - min(line) < _LEAST_FALL:
        return []
    return [layout for layout in LAYOUTS if _falls(line, layout)]


def _falls(line: list[int], layout: Layout) -> bool:
    """Whether the levels fall from bar to bar, if some are left out."""
    ends: list[int] = []  # of falling rows of 1, 2, ... bars, how dark the last one is: the least that was found
    for column in _CENTRES[layout]:
        darkness = 255 - line[column]
        at = bisect_right(ends, darkness - _STEP_LEVELS)  # it can follow on rows so long
        if at == len(ends):
            ends.append(darkness)
        else:
            ends[at] = min(ends[at], darkness)
    return len(ends) >= layout.bars - _HIDDEN


def _count_bars(colours: Picture, layouts: list[Layout]) -> tuple[int, bool]:
    """How many bars have their colour in the layout that fits best, and whether these are enough."""
    found = [(sum(_is_bar(colours, layout, bar) for bar in range(layout.bars)), layout.bars) for layout in layouts]
    number, wanted = max(found, key=lambda fit: fit[0] - fit[1])
    return number, number >= wanted - _HIDDEN


def _is_bar(colours: Picture, layout: Layout, bar: int) -> bool:
    """Whether a bar is of one colour, and of its own; its edges are left out."""
    patch = colours[_STRIP, layout.column(bar + 0.2) : layout.column(bar + 0.8)]
    middle = _middle(patch)
    near = inside(patch, middle - _BAR_LEVELS, middle + _BAR_LEVELS)
    brightest = float(middle.max())
    if 100 * cv2.countNonZero(near) < _BAR_PCT * near.size or (brightest >= _LIT_LEVEL) != any(_BARS[bar]):
        return False
    return all(
        level >= _LIT * brightest if lit else level <= max(_UNLIT * brightest, _LIT_LEVEL * _UNLIT)
        for level, lit in zip(middle.tolist(), _BARS[bar], strict=True)
    )
