"""Parts of a source's picture that are not looked at: a clock, a ticker, a camera's date. In relative coordinates, so
that they hold at any size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.tiles import Picture

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom, from 0 to 1; the pixels that it touches are masked."""


class Masks:
    """The masks of one source."""

    def __init__(self, rectangles: Sequence[Rectangle]) -> None:
        self._rectangles = tuple(rectangles)

    def unchanging(self, picture: Picture) -> Picture:
        """The picture with the same level in all masks for ever: nothing moves there."""
        return self._painted(picture, 0) if self._rectangles else picture

    def unlit(self, picture: Picture) -> Picture:
        """The picture with the middle level of what is not masked in all masks: they are neither lit nor dark."""
        if not self._rectangles:
            return picture
        seen = np.ones(picture.shape, np.bool_)
        for area in self._areas(picture):
            seen[area] = False
        levels = np.sort(picture[seen], axis=None)
        return self._painted(picture, int(levels[levels.size // 2]) if levels.size else 0)

    def _painted(self, picture: Picture, level: int) -> Picture:
        painted = picture.copy()
        for area in self._areas(picture):
            painted[area] = level
        return painted

    def _areas(self, picture: Picture) -> list[tuple[slice, slice]]:
        height, width = picture.shape
        return [
            (slice(int(top * height), -int(-bottom * height // 1)), slice(int(left * width), -int(-right * width // 1)))
            for left, top, right, bottom in self._rectangles
        ]
