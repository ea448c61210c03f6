"""What a source's directory holds, and which of it the watcher has missed. Names only, wherever names are enough.

Used when events may have been lost (start, overflow, new directory, successor of a killed watcher), never while they
flow. Frames that a full lane refused wait here as well.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import deque
from itertools import takewhile

from pipeline.frames import SIDECAR_SUFFIX, SUFFIX, FrameNames

Frame = tuple[int, int]
"""Number and digit count: together the exact name."""

MAX_RANGES = 100_000
_WIDTH_BITS = 5
_WIDTHS = (1 << _WIDTH_BITS) - 1


class Pending:
    """Frames that a full lane refused, oldest first, as ranges of numbers: a burst of 20,000 is one range."""

    def __init__(self) -> None:
        self._ranges: deque[list[int]] = deque()  # first number, last number, digits
        self.count = 0

    def append(self, frame: Frame) -> bool:
        """Add the newest frame; False when even the ranges have become too many."""
        number, width = frame
        if self._ranges and self._ranges[-1][1:] == [number - 1, width]:
            self._ranges[-1][1] = number
        elif len(self._ranges) < MAX_RANGES:
            self._ranges.append([number, number, width])
        else:
            return False
        self.count += 1
        return True

    def first(self) -> Frame:
        return self._ranges[0][0], self._ranges[0][2]

    def drop_first(self) -> None:
        self.count -= 1
        oldest = self._ranges[0]
        oldest[0] += 1
        if oldest[0] > oldest[1]:
            self._ranges.popleft()

    def __contains__(self, frame: Frame) -> bool:
        return any(first <= frame[0] <= last and width == frame[1] for first, last, width in self._ranges)


class Directory:
    """A source's directory: names to paths, and modification times for the few frames that need them."""

    def __init__(self, path: str, names: FrameNames) -> None:
        self.path = path
        self.names = names

    def mtime_ns(self, frame: Frame, suffix: str = SUFFIX) -> int | None:
        """Modification time of a frame (or of what stands beside it), None when it is not there."""
        try:
            return os.stat(f"{self.path}/{self.names.stem(*frame)}{suffix}").st_mtime_ns
        except OSError:
            return None

    def next_frames(self, last: Frame, window: int) -> list[Frame]:
        """Of the next `window` numbers after `last`, those that wait to be judged. O(window), whatever is there."""
        number, width = last
        following = [(n, max(width, len(str(n)))) for n in range(number + 1, number + 1 + window)]
        return [frame for frame in following if self.mtime_ns(frame) is not None and not self.has_sidecar(frame)]

    def has_sidecar(self, frame: Frame) -> bool:
        """Whether a frame that is there has a sidecar, and not that of an older frame which it overwrote."""
        judged = self.mtime_ns(frame, SIDECAR_SUFFIX)
        return judged is not None and (self.mtime_ns(frame) or 0) <= judged


class Listing:
    """One names-only listing: the frames, ascending, and which names have a sidecar. No file is touched.

    Frames are kept packed in one integer each: a directory of 220,000 files costs 15 MB while it is looked at.
    """

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self._frames: list[int] = []
        self._judged: set[int] = set()
        parse, cut = directory.names.parse, -len(SIDECAR_SUFFIX)
        with os.scandir(directory.path) as entries:
            for entry in entries:
                name = entry.name
                if name.endswith(SIDECAR_SUFFIX):
                    if frame := parse(name[:cut] + SUFFIX):
                        self._judged.add(_pack(frame))
                elif frame := parse(name):
                    self._frames.append(_pack(frame))
        self._frames.sort()

    @property
    def frames(self) -> list[Frame]:
        """All frames, ascending by number."""
        return [_unpack(packed) for packed in self._frames]

    def newest(self) -> Frame | None:
        return _unpack(self._frames[-1]) if self._frames else None

    def unjudged(self) -> list[Frame]:
        """The frames without a sidecar, ascending."""
        return [_unpack(packed) for packed in self._frames if packed not in self._judged]

    def is_judged(self, frame: Frame) -> bool:
        """Whether a sidecar of this name is there."""
        return _pack(frame) in self._judged

    def missed_after(self, last: Frame) -> list[Frame]:
        """The frames that came after `last` without being seen, in the order in which they came.

        Names repeat after a numbering restart, so the few candidates are asked for their time: nothing older than
        `last` is new. A frame that overwrote an older one still has that one's sidecar; such frames follow `last`
        without a break, or, after an unseen restart, begin at the lowest number. Such a restart may have overwritten
        `last` itself; then the time of its sidecar stands for the frame that was accepted. Where `last` has gone,
        this may be another directory under the old name: all that has no sidecar is new.
        """
        since = self.directory.mtime_ns(last, SIDECAR_SUFFIX if self._is_stale(last) else SUFFIX)
        if since is None and last[1]:
            return self.unjudged()
        newer = [_unpack(packed) for packed in self._frames[bisect_right(self._frames, _pack((last[0], _WIDTHS))) :]]
        found = set(takewhile(self._is_stale, newer))
        found.update(f for f in newer if not self.is_judged(f) and self._came_after(f, since, equal=True))
        restarted: list[Frame] = []
        if since is not None:
            restarted += takewhile(lambda frame: self._came_after(frame, since), map(_unpack, self._frames))
        return [*sorted(found.difference(restarted)), *restarted]

    def _came_after(self, frame: Frame, since: int | None, *, equal: bool = False) -> bool:
        mtime = self.directory.mtime_ns(frame)
        return since is None or (mtime is not None and (mtime > since or (equal and mtime == since)))

    def _is_stale(self, frame: Frame) -> bool:
        """Whether a frame overwrote the one that its sidecar speaks of."""
        return self.is_judged(frame) and not self.directory.has_sidecar(frame)


def _pack(frame: Frame) -> int:
    return frame[0] << _WIDTH_BITS | frame[1]


def _unpack(packed: int) -> Frame:
    return packed >> _WIDTH_BITS, packed & _WIDTHS
