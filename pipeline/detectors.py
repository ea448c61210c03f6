"""Judges pictures: from JPEG bytes and thresholds to verdicts and the readings that decided them.

Owns every rule that looks at pixels, the decoding in front of it, and the last three pictures of a source.
Touches no file, clock or process; the only module of the pipeline that loads OpenCV and numpy.

A *picture* is a frame at 1/8 size in grey: a uint8 array (height, width), each pixel the mean of 8 x 8 pixels
of the frame. The mean divides white capture noise by eight, so that the rules can ask for a change of any
single pixel where a rule at full size has to forgive a share of them, and loses clocks and mouse pointers
with it.

Readings are plain floats, rounded. They come from integer sums and one division, so that every machine writes
the same digits. "Levels" are grey levels, 0-255; "pct" is 0-100.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.model import BlackThresholds, FreezeThresholds, UnavailableError, Verdict

Picture = npt.NDArray[np.uint8]

REDUCTION = 8
"""Pixels of a frame per pixel of a picture, each way; sizes round up, as the decoder does."""

PICTURE_BYTES = 320 * 1024
"""Room for one stored picture. A frame of w x h becomes ceil(w/8) * ceil(h/8) <= (w+7) * (h+7) / 64 bytes;
with JPEG's longest side of 65,535 that stays below this for every shape of up to 20 million pixels (4K has
8.3, 5K 14.7)."""

PREDECESSORS = 3
"""Pictures that a freeze candidate must be like: the existing sidecars speak of the last three."""

CELLS = PREDECESSORS + 1
"""One cell more than pictures kept: the next picture never lands on one that the last commit refers to."""

TILE_ROWS, TILE_COLUMNS = 9, 16
"""Grid of tiles laid over a picture: square ones of 80 px at 720p."""

_OLDEST_OPENCV = (4, 11)
"""imdecode of 4.6 and 4.10 accepts truncated frames and fills in memory of earlier ones: opencv #26488."""

_GREY = cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_IGNORE_ORIENTATION
_QUARTER = cv2.IMREAD_REDUCED_COLOR_4 | cv2.IMREAD_IGNORE_ORIENTATION
_COLOUR = cv2.IMREAD_REDUCED_COLOR_8 | cv2.IMREAD_IGNORE_ORIENTATION


class BadPicture(ValueError):
    """The bytes are not a picture that can be judged; the text is one line and says why."""


class HistoryEntry(msgspec.Struct, frozen=True, array_like=True):
    """Where one stored picture lies, what it was called, and the CRC-32 of its pixels."""

    cell: int
    height: int
    width: int
    name: str
    crc: int


class _Change(NamedTuple):
    """Two pictures: the sum of absolute differences, the largest, and how many points changed."""

    total: int
    largest: int
    points: int


def prepare() -> None:
    """Make OpenCV fit for a pinned worker, once per process. UnavailableError if it is too old to trust."""
    if (cv2.getVersionMajor(), cv2.getVersionMinor()) < _OLDEST_OPENCV:
        raise UnavailableError(
            f"OpenCV {cv2.__version__} accepts truncated frames: pip install 'opencv-python-headless>=4.11'"
        )
    cv2.setNumThreads(1)


def decode(data: bytes) -> Picture:
    """The picture of an encoded frame, (ceil(h/8), ceil(w/8)), as stored: EXIF orientation is not applied.

    Raises BadPicture for what OpenCV cannot decode (every truncated JPEG) and for what would not fit a cell.
    Damage within the data goes unnoticed, and other formats pass: the caller checks the markers.
    """
    picture = _imdecode(data, _GREY)
    if picture.size > PICTURE_BYTES:
        raise BadPicture(f"too large: {picture.shape[1]}x{picture.shape[0]} at 1/{REDUCTION} size")
    return picture


def thumbnail(data: bytes) -> bytes:
    """A small JPEG of a frame, a quarter as wide and high. Raises BadPicture."""
    done, encoded = cv2.imencode(".jpg", _imdecode(data, _QUARTER), [cv2.IMWRITE_JPEG_QUALITY, 80])
    if not done:
        raise BadPicture("no thumbnail could be made")
    return bytes(encoded)


def judge_black(picture: Picture, thresholds: BlackThresholds) -> Verdict:
    """Whether the picture is black: at any black level, under noise, and with a logo, clock or subtitle lit.

    Readings: black_pct (in the band), black_level (most frequent there), and black_lit_tiles_pct once the
    first is met. Grey cannot tell a plain dark blue from a raised black: pass the verdict on to
    confirm_black.
    """
    low, level, count = _fullest_dark_band(picture, thresholds)
    black_pct = 100 * count / picture.size
    readings = {"black_pct": round(black_pct, 2), "black_level": float(level)}
    if black_pct < thresholds.black_pct_min:
        return Verdict(False, readings)
    lit_pct = _lit_tiles_pct(picture, low, low + thresholds.band_levels - 1)
    readings["black_lit_tiles_pct"] = round(lit_pct, 2)
    return Verdict(lit_pct <= thresholds.lit_tiles_pct_max, readings)


def confirm_black(verdict: Verdict, data: bytes, thresholds: BlackThresholds) -> Verdict:
    """The verdict of judge_black on the frame `data`, turned to False if that is not dark but plain blue.

    Only a black above tint_above_level is looked at, so the second decoding is rare. Adds the reading
    black_tint.
    """
    if not verdict.value or verdict.readings["black_level"] <= thresholds.tint_above_level:
        return verdict
    tint = _mean_tint(_imdecode(data, _COLOUR))
    return Verdict(tint <= thresholds.tint_max, {**verdict.readings, "black_tint": round(tint, 1)})


class History:
    """The last three pictures of one source, in shared memory so that a killed worker's successor has them.

    Must be fed in order, one push per commit: the cell that push writes is none of those that the entries of
    the last commit refer to, so a crash in mid-copy damages nothing. Drop the History before unmapping the
    cells.
    """

    def __init__(self, cells: Sequence[memoryview], entries: tuple[HistoryEntry, ...] = ()) -> None:
        """Take four writable cells of PICTURE_BYTES and what the last commit says about them.

        An entry that does not fit its cell or its newer neighbours, or has a wrong CRC-32, is dropped with
        all older.
        """
        if len(cells) != CELLS:
            raise ValueError(f"{CELLS} cells are needed, not {len(cells)}")
        self._cells = [np.frombuffer(cell, np.uint8) for cell in cells]
        self._entries: tuple[HistoryEntry, ...] = ()  # newest last
        self._pictures: list[Picture] = []  # newest first
        self._newest = -1  # cell written last
        self._restore(entries)

    @property
    def entries(self) -> tuple[HistoryEntry, ...]:
        """What a commit record needs to restore this history: newest last, at most three."""
        return self._entries

    def pictures(self) -> list[Picture]:
        """The stored pictures, newest first: read-only views into the cells, valid until the next push."""
        return list(self._pictures)

    def names(self) -> list[str]:
        """The frames' names, newest first."""
        return [entry.name for entry in reversed(self._entries)]

    def matches(self, picture: Picture) -> bool:
        """Whether the picture can follow: it has the size of the stored ones, or there are none."""
        return not self._pictures or picture.shape == self._pictures[0].shape

    def push(self, picture: Picture, name: str) -> None:
        """Copy the picture into the free cell, forget the oldest of three. ValueError if it does not fit."""
        if not self.matches(picture) or picture.size > PICTURE_BYTES:
            raise ValueError(f"a picture of {picture.shape} does not follow in this history")
        height, width = picture.shape
        cell = self._free_cell()
        stored = self._cells[cell][: height * width].reshape(height, width)
        stored[:] = picture
        stored.setflags(write=False)
        entry = HistoryEntry(cell, height, width, name, zlib.crc32(stored.data))
        self._newest = cell
        self._entries = (*self._entries, entry)[-PREDECESSORS:]
        self._pictures = [stored, *self._pictures][:PREDECESSORS]

    def clear(self) -> None:
        """Forget all: the source's numbering or frame size has changed."""
        self._entries = ()
        self._pictures = []

    def _free_cell(self) -> int:
        """The next cell in turn, so that even after clear it is none of the last commit's."""
        used = {entry.cell for entry in self._entries}
        turn = (cell % CELLS for cell in range(self._newest + 1, self._newest + 1 + CELLS))
        return next(cell for cell in turn if cell not in used)

    def _restore(self, entries: tuple[HistoryEntry, ...]) -> None:
        for entry in reversed(entries[-PREDECESSORS:]):
            picture = self._stored(entry)
            if picture is None or not self.matches(picture):
                break
            self._entries = (entry, *self._entries)
            self._pictures.append(picture)
        if self._entries:
            self._newest = self._entries[-1].cell

    def _stored(self, entry: HistoryEntry) -> Picture | None:
        """The picture an entry tells of, or None if that is not what the cell holds."""
        if entry.cell not in range(CELLS) or entry.height < 1 or entry.width < 1:
            return None
        size = entry.height * entry.width
        pixels = self._cells[entry.cell][:size]
        if pixels.size < size or zlib.crc32(pixels.data) != entry.crc:
            return None
        stored = pixels.reshape(entry.height, entry.width)
        stored.setflags(write=False)
        return stored


def judge_freeze(picture: Picture, history: History, thresholds: FreezeThresholds) -> tuple[Verdict, list[float]]:
    """Whether the picture is like the three before it: a freeze candidate, which a still menu is as well.

    Unknown with fewer than three predecessors, or when they have another size (the caller then clears the
    history). Readings: freeze_changed_pct and freeze_max_diff (worst of the three), freeze_drift (oldest
    minus newest). The list is freeze_diffs: mean absolute difference in levels against each predecessor,
    newest first.
    """
    predecessors = history.pictures() if history.matches(picture) else []
    changes = [_compare(picture, predecessor, thresholds.point_levels) for predecessor in predecessors]
    diffs = [round(change.total / picture.size, 2) for change in changes]
    if len(changes) < PREDECESSORS:
        return Verdict(None, {}), diffs
    changed_pct = 100 * max(change.points for change in changes) / picture.size
    drift = (changes[-1].total - changes[0].total) / picture.size
    readings = {
        "freeze_changed_pct": round(changed_pct, 2),
        "freeze_max_diff": float(max(change.largest for change in changes)),
        "freeze_drift": round(drift, 3),
    }
    alike = changed_pct <= thresholds.changed_pct_max and drift <= thresholds.drift_max
    return Verdict(alike, readings), diffs


def _imdecode(data: bytes, flags: int) -> Picture:
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # empty data; more than 2^30 pixels
        raise BadPicture(f"OpenCV refused it: {error.err}") from error
    if picture is None:
        raise BadPicture("not a whole picture: OpenCV cannot decode it")
    return picture  # type: ignore[return-value]  # the stubs say "any number"; imdecode makes bytes


def _fullest_dark_band(picture: Picture, thresholds: BlackThresholds) -> tuple[int, int, int]:
    """The dark band that holds most pixels: its lowest and its most frequent level, and its pixels."""
    levels = thresholds.top_level + 1
    histogram = cv2.calcHist([picture], [0], None, [levels], [0, levels]).ravel()
    below = np.zeros(levels + 1, np.float32)  # whole numbers, exact up to 2^24 pixels
    histogram.cumsum(out=below[1:])
    held = below[thresholds.band_levels :] - below[: -thresholds.band_levels]
    low = int(held.argmax())
    level = low + int(histogram[low : low + thresholds.band_levels].argmax())
    return low, level, int(held[low])


def _lit_tiles_pct(picture: Picture, low: int, high: int) -> float:
    """Pct of the tiles with at least one pixel outside low..high (both included)."""
    height, width = picture.shape
    dark = cv2.inRange(picture, low, high)
    rows = np.arange(TILE_ROWS) * height // TILE_ROWS
    columns = np.arange(TILE_COLUMNS) * width // TILE_COLUMNS
    darkest = np.minimum.reduceat(np.minimum.reduceat(dark, rows, axis=0), columns, axis=1)
    return 100 * (darkest.size - cv2.countNonZero(darkest)) / darkest.size


def _mean_tint(colour: Picture) -> float:
    """Mean over the picture (h, w, 3) of the levels between its largest and its smallest channel."""
    blue, green, red = cv2.split(colour)
    largest = cv2.max(cv2.max(blue, green), red)
    smallest = cv2.min(cv2.min(blue, green), red)
    return float(cv2.sumElems(cv2.subtract(largest, smallest))[0]) / blue.size


def _compare(picture: Picture, predecessor: Picture, point_levels: int) -> _Change:
    difference = cv2.absdiff(picture, predecessor)
    _, changed = cv2.threshold(difference, point_levels, 255, cv2.THRESH_BINARY)
    largest = cv2.minMaxLoc(difference)[1]
    return _Change(int(cv2.sumElems(difference)[0]), int(largest), cv2.countNonZero(changed))
