"""The grid of 16 x 9 tiles over a picture, and sums over its tiles. Integers only: the same on every machine."""

from __future__ import annotations

import functools
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
TILE_ROWS, TILE_COLUMNS = 9, 16
"""Grid of tiles laid over a picture: square ones of 80 px at 720p. A picture with fewer pixels has fewer tiles."""

UNIT = 64
"""Means over tiles are told in 1/64 of a level."""

Ints = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


class Compared(NamedTuple):
    """A picture beside another one. Lives until the grid compares the next."""

    difference: Picture  # absolute, per pixel
    total: int  # levels, of all pixels
    means: Ints  # per tile, of the picture, in 1/UNIT levels
    tiles: Ints  # per tile, of the difference


class Grid:
    """The tiles of pictures of one size."""

    def __init__(self, height: int, width: int) -> None:
        self.shape = min(TILE_ROWS, height), min(TILE_COLUMNS, width)
        self.size = self.shape[0] * self.shape[1]
        rows = np.arange(self.shape[0] + 1) * height // self.shape[0]
        columns = np.arange(self.shape[1] + 1) * width // self.shape[1]
        self._corners = rows[:, None] * (width + 1) + columns
        areas: Ints = np.outer(np.diff(rows), np.diff(columns)).astype(np.int32)
        # Of the usual sizes all tiles have one, and to divide by one number is much cheaper:
        self.areas: Ints | int = int(areas[0, 0]) if areas.min() == areas.max() else areas
        # Two pictures on one sheet are summed up in one call:
        sheet = np.empty((2 * height, width), np.uint8)
        self._sheet, self._upper, self._lower = sheet, sheet[:height], sheet[height:]
        self._both_corners = np.stack([self._corners, self._corners + height * (width + 1)])

    def sums(self, picture: Picture) -> Ints:
        """Per tile, the sum of its pixels."""
        corners = cv2.integral(picture).take(self._corners)
        lines = corners[1:] - corners[:-1]
        sums: Ints = lines[:, 1:] - lines[:, :-1]
        return sums

    def means(self, picture: Picture) -> Ints:
        """Per tile, the mean of its pixels in 1/UNIT levels."""
        means: Ints = self.sums(picture) * UNIT // self.areas
        return means

    def compare(self, picture: Picture, other: Picture) -> Compared:
        """The picture beside another one of its size."""
        self._upper[:] = picture
        cv2.absdiff(picture, other, self._lower)
        corners = cv2.integral(self._sheet).take(self._both_corners)
        lines = corners[:, 1:] - corners[:, :-1]
        sums = lines[:, :, 1:] - lines[:, :, :-1]
        means, tiles = sums * UNIT // self.areas
        return Compared(self._lower, int(corners[1, -1, -1] - corners[1, 0, -1]), means, tiles)


grid_of = functools.lru_cache(maxsize=64)(Grid)
"""The grid of a size, made once. What it compares is overwritten by the next."""
