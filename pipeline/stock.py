"""Which numbered files there are, since when and how large: ranges of numbers, oldest first. Pure: time comes in.

A source's frames come with rising numbers, so that an hour at 25 frames/s is 60 ranges instead of 90,000 entries.
Numbers that begin anew open a new run: a file of an earlier run whose name has come again is no longer there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain, islice

Frame = tuple[int, int]
"""Number and digit count: together the exact name."""

MOST_RUNS = 64
"""Recordings of one source whose files are there together; each makes looking for a name dearer."""


def as_they_came(frames: Iterable[Frame], written_ns: Callable[[Frame], int]) -> list[Frame]:
    """Files that were all found at once, in the order in which they came. `written_ns` is the time of a file.

    That is the order of their numbers, but where these have begun anew: a file with a higher number than one that was
    written later is of an earlier run. Where times fall within a run, or make more than MOST_RUNS, they are those of a
    copy, say, and the numbers tell. What nobody can tell from a restart is a clock that was put back in between, and a
    single old file that was written anew.
    """
    runs: list[list[Frame]] = []
    by_number, newest_ns, later_ns, falls = sorted(frames), 0, 0, False
    for frame in reversed(by_number):
        ns = written_ns(frame)
        if not runs or ns > newest_ns:
            newest_ns = later_ns = ns
            runs.append([])
        elif ns:  # else it has gone
            falls |= later_ns != 0 and ns > later_ns
            later_ns = ns
        runs[-1].append(frame)
    return by_number if falls or len(runs) > MOST_RUNS else list(chain.from_iterable(run[::-1] for run in runs))


class _Range:
    """Consecutive numbers of one width that came within one grain of time."""

    __slots__ = ("bytes", "came_ns", "first", "last", "opened_ns", "run", "width")

    def __init__(self, frame: Frame, run: int, now_ns: int, size: int) -> None:
        self.first = self.last = frame[0]
        self.width, self.run = frame[1], run
        self.opened_ns = self.came_ns = now_ns  # of its first and its last
        self.bytes = size

    @property
    def count(self) -> int:
        return self.last - self.first + 1

    def has(self, frame: Frame) -> bool:
        return self.width == frame[1] and self.first <= frame[0] <= self.last


class Stock:
    """The files of one directory, in the order in which they came."""

    def __init__(self, grain_ns: int) -> None:
        """Files that came within `grain_ns` count as having come with the last of them."""
        self.grain_ns = grain_ns
        self._ranges: deque[_Range] = deque()
        self._run = 0
        self.newest: Frame | None = None  # even when nothing is left
        self.count = 0
        self.bytes = 0

    def add(self, frame: Frame, now_ns: int, size: int = 0) -> None:
        """A file has come. The same name as before, again and again, is one file."""
        if frame == self.newest and self.count:
            return
        if self.newest is not None and frame[0] <= self.newest[0]:
            self._run += 1
        self.newest = frame
        self.count += 1
        self.bytes += size
        last = self._ranges[-1] if self._ranges else None
        if (
            last is not None
            and (last.run, last.width, last.last + 1) == (self._run, frame[1], frame[0])
            and now_ns - last.opened_ns < self.grain_ns
        ):
            last.last, last.came_ns = frame[0], now_ns
            last.bytes += size
        else:
            self._ranges.append(_Range(frame, self._run, now_ns, size))

    def weigh(self, size: int) -> None:
        """The newest file has got something more beside it."""
        if self._ranges:
            self._ranges[-1].bytes += size
            self.bytes += size

    def has(self, frame: Frame) -> bool:
        """Whether a file of this name is known."""
        return any(known.has(frame) for known in reversed(self._ranges))  # those asked for are new, as a rule

    def unknown_of(self, frames: set[Frame]) -> set[Frame]:
        """Those of these names that are not known. Looks at each file once, however many ranges there are: numbers that
        stand for times leave gaps everywhere."""
        left = set(frames)
        for known in self._ranges:
            left.difference_update((number, known.width) for number in range(known.first, known.last + 1))
        return left

    @property
    def oldest(self) -> Frame | None:
        """The file that came first."""
        return (self._ranges[0].first, self._ranges[0].width) if self._ranges else None

    @property
    def oldest_ns(self) -> int:
        """When it came, or the last one that came with it; there must be one."""
        return self._ranges[0].came_ns

    def drop_oldest(self) -> tuple[Frame, int, bool]:
        """Forget the file that came first: its name, its share of the bytes, and whether it is still that file (False:
        the name has come again since). There must be one."""
        head = self._ranges[0]
        frame, size = (head.first, head.width), head.bytes // head.count
        superseded = head.run != self._run and any(later.has(frame) for later in islice(self._ranges, 1, None))
        head.first += 1
        head.bytes -= size
        self.count -= 1
        self.bytes -= size
        if head.first > head.last:
            self._ranges.popleft()
        return frame, size, not superseded
