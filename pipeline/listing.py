"""What a source's directory holds, and which of it the watcher has missed. Names only, wherever names are enough.

Used when events may have been lost (start, overflow, new directory, successor of a killed watcher), never while they
flow.
"""

from __future__ import annotations

import os

from pipeline.frames import SIDECAR_SUFFIX, SUFFIX, FrameNames, identity_of
from pipeline.sidecar import read_identity

Frame = tuple[int, int]
"""Number and digit count: together the exact name."""

_WIDTH_BITS = 5
_WIDTHS = (1 << _WIDTH_BITS) - 1


class Directory:
    """A source's directory: names to paths, and questions about the few frames that need them."""

    def __init__(self, path: str, names: FrameNames) -> None:
        self.path_of_directory = path
        self.names = names

    def path(self, frame: Frame, suffix: str = SUFFIX) -> str:
        """Where a frame is, or what stands beside it."""
        return f"{self.path_of_directory}/{self.names.stem(*frame)}{suffix}"

    def came_ns(self, frame: Frame, suffix: str = SUFFIX) -> int | None:
        """When a file got its name (its change time: nobody can set that but the clock), None when it is not there."""
        try:
            return os.stat(self.path(frame, suffix)).st_ctime_ns
        except OSError:
            return None

    def next_frames(self, last: Frame, window: int) -> list[Frame]:
        """Of the next `window` numbers after `last`, those that wait to be judged. O(window), whatever is there."""
        number, width = last
        following = [(n, max(width, len(str(n)))) for n in range(number + 1, number + 1 + window)]
        return [frame for frame in following if self.waits(frame)]

    def waits(self, frame: Frame, *, trust_times: bool = True) -> bool:
        """Whether a frame is there and has no sidecar of its own.

        A sidecar that came after the frame is the frame's own. Where it seems older it may be that of an overwritten
        frame, or the frame has been linked since, or the clock was set: then its content tells.
        """
        came, judged = self.came_ns(frame), self.came_ns(frame, SIDECAR_SUFFIX)
        if came is None or judged is None or (trust_times and judged >= came):
            return came is not None and judged is None
        try:
            return read_identity(self.path(frame, SIDECAR_SUFFIX)) != identity_of(os.stat(self.path(frame)))
        except OSError:
            return False  # gone meanwhile


class Listing:
    """One names-only listing: the frames, ascending, and which names have a sidecar. No file is touched.

    Frames are kept packed in one integer each: a directory of 220,000 files costs 15 MB while it is looked at.
    """

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self._frames: list[int] = []
        self._judged: set[int] = set()
        parse, cut = directory.names.parse, -len(SIDECAR_SUFFIX)
        with os.scandir(directory.path_of_directory) as entries:
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

    def new_since(self, since_ns: int, *, trust_times: bool = True) -> list[Frame]:
        """The frames that got their names at `since_ns` or later and wait to be judged, oldest first.

        Times decide, not numbers: names repeat after a numbering restart. One `stat` per frame, and one more for those
        that are new enough and have a sidecar.
        """
        found = []
        for packed in self._frames:
            frame = _unpack(packed)
            came_ns = self.directory.came_ns(frame)
            if came_ns is None or came_ns < since_ns:
                continue
            if packed not in self._judged or self.directory.waits(frame, trust_times=trust_times):
                found.append((came_ns, frame))
        return [frame for _, frame in sorted(found)]


def _pack(frame: Frame) -> int:
    return frame[0] << _WIDTH_BITS | frame[1]


def _unpack(packed: int) -> Frame:
    return packed >> _WIDTH_BITS, packed & _WIDTHS
