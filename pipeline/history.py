"""The last three pictures of one source, in shared memory: a killed worker's successor finds them there."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.model import PICTURE_BYTES, PICTURE_CELLS

Picture = npt.NDArray[np.uint8]

PREDECESSORS = PICTURE_CELLS - 1
"""Pictures that a freeze candidate must be like, three: the existing sidecars speak of the last three. The next picture
goes to the cell that is over, never to one that the last commit refers to."""


class HistoryEntry(msgspec.Struct, frozen=True, array_like=True):
    """Where one stored picture lies, what it was called, and the CRC-32 of its pixels."""

    cell: int
    height: int
    width: int
    name: str
    crc: int


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
        if len(cells) != PICTURE_CELLS:
            raise ValueError(f"{PICTURE_CELLS} cells are needed, not {len(cells)}")
        self._cells = [np.frombuffer(cell, np.uint8) for cell in cells]
        self._entries: tuple[HistoryEntry, ...] = ()  # newest last
        self._pictures: list[Picture] = []  # newest first
        self._newest = -1  # cell written last
        self.before: Picture | None = None
        """The newest picture that was there before the last `clear`, until the next `push`."""
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
        self.before = None
        self._entries = (*self._entries, entry)[-PREDECESSORS:]
        self._pictures = [stored, *self._pictures][:PREDECESSORS]

    def clear(self) -> None:
        """Forget all: the source's numbering or frame size has changed."""
        self.before = self._pictures[0] if self._pictures else self.before
        self._entries = ()
        self._pictures = []

    def _free_cell(self) -> int:
        """The next cell in turn, so that even after clear it is none of the last commit's."""
        used = [entry.cell for entry in self._entries]
        cell = (self._newest + 1) % PICTURE_CELLS
        while cell in used:
            cell = (cell + 1) % PICTURE_CELLS
        return cell

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
        if entry.cell not in range(PICTURE_CELLS) or entry.height < 1 or entry.width < 1:
            return None
        size = entry.height * entry.width
        pixels = self._cells[entry.cell][:size]
        if pixels.size < size or zlib.crc32(pixels.data) != entry.crc:
            return None
        stored = pixels.reshape(entry.height, entry.width)
        stored.setflags(write=False)
        return stored
