"""What a source's directory holds, and which of it the watcher has missed. Names only, wherever names are enough.

Used when events may have been lost (start, overflow, new directory, successor of a killed watcher), never while they
flow.
"""

from __future__ import annotations

import os

from pipeline.frames import SIDECAR_SUFFIX, SUFFIX, FrameNames

Frame = tuple[int, int]
"""Number and digit count: together the exact name."""

_WIDTH_BITS = 5
_WIDTHS = (1 << _WIDTH_BITS) - 1


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

    def new_since(self, since_ns: int) -> list[Frame]:
        """The frames whose file time is `since_ns` or later and that have no sidecar of their own, oldest first.

        Times decide, not numbers: names repeat after a numbering restart, and a frame that overwrote an older one
        still has that one's sidecar beside it. One `stat` per frame, and one more for those that are new enough.
        """
        found = []
        for frame in map(_unpack, self._frames):
            mtime_ns = self.directory.mtime_ns(frame)
            if mtime_ns is not None and mtime_ns >= since_ns:
                judged_ns = self.directory.mtime_ns(frame, SIDECAR_SUFFIX) if _pack(frame) in self._judged else None
                if judged_ns is None or judged_ns < mtime_ns:
                    found.append((mtime_ns, frame))
        return [frame for _, frame in sorted(found)]


def _pack(frame: Frame) -> int:
    return frame[0] << _WIDTH_BITS | frame[1]


def _unpack(packed: int) -> Frame:
    return packed >> _WIDTH_BITS, packed & _WIDTHS
