"""Intake: one source's frames on their way into its lane, each once and in order.

Three ways lead here: an event of the watcher, a number found by polling, and a listing where events may have been
lost. A listing is settled only after the events that came meanwhile have been read, so that what both have seen is
taken once, in the order of the events. What a full lane refuses waits here, and whatever comes later waits behind it.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable

from pipeline.board import Board
from pipeline.child import event, log
from pipeline.frames import FrameNames
from pipeline.listing import Directory, Frame, Listing
from pipeline.ring import Lane, TornSlot
from pipeline.settings import Source

MAX_RANGES = 100_000
NOTHING_YET: Frame = (-1, 0)
CLOCK_MARGIN_NS = 10_000_000_000  # how long after a step of the clock it is noticed, and twice more
CLOCK_OF_FILES = 5  # CLOCK_REALTIME_COARSE: the kernel's tick, from which files take their times


class Pending:
    """Frames that a full lane refused, oldest first, as ranges of numbers: a burst of 20,000 is one range."""

    def __init__(self) -> None:
        self._ranges: deque[list[int]] = deque()  # digits, first number, last number
        self.count = 0

    def append(self, frame: Frame) -> bool:
        """Add the newest frame; False when even the ranges have become too many."""
        number, width = frame
        newest = self._ranges[-1] if self._ranges else None
        if newest and newest[0] == width and newest[2] == number - 1:
            newest[2] = number
        elif len(self._ranges) < MAX_RANGES:
            self._ranges.append([width, number, number])
        else:
            return False
        self.count += 1
        return True

    def first(self) -> Frame:
        return self._ranges[0][1], self._ranges[0][0]

    def drop_first(self) -> None:
        self.count -= 1
        oldest = self._ranges[0]
        oldest[1] += 1
        if oldest[1] > oldest[2]:
            self._ranges.popleft()

    def without(self, frames: Iterable[Frame]) -> list[Frame]:
        """Those of `frames` that do not wait here."""
        ranges = sorted(self._ranges)

        def waits(frame: Frame) -> bool:
            at = bisect_right(ranges, [frame[1], frame[0], 2**64]) - 1
            return at >= 0 and ranges[at][0] == frame[1] and ranges[at][1] <= frame[0] <= ranges[at][2]

        return [frame for frame in frames if not (ranges and waits(frame))]


class Intake:
    """One source's frames: from whoever has seen them into the lane. Made anew by every watcher over the same lane."""

    def __init__(self, source: Source, lane: Lane, board: Board) -> None:
        self.source = source
        self.lane = lane
        self.row = board.memory.sources[lane.index]
        self._board = board
        self.names = FrameNames(source.prefix)
        self.directory = Directory(source.dir, self.names)
        self.pending = Pending()
        lane.set_pending(0)  # what waited in a predecessor is found again by the listing
        self.last = self._last_put() or NOTHING_YET  # the newest frame accepted
        self.put_since_ring = True  # a predecessor may have died before it rang
        self._found: list[Frame] | None = None  # by a listing that is not settled yet
        self._came: dict[Frame, None] = {}  # by events since that listing, in order
        self._newest: Frame | None = None  # by name, of the first listing
        self._left = 0  # frames that the first listing did not choose
        self._full = False
        if not self.row.since_ns:
            self.row.since_ns = time.clock_gettime_ns(CLOCK_OF_FILES)

    @property
    def unsettled(self) -> bool:
        """Whether a listing waits for the events that came meanwhile."""
        return self._found is not None

    # -- frames -------------------------------------------------------------------------------------------------

    def on_rename(self, frame: Frame, now_ns: int) -> None:
        """An event told of a frame."""
        self.row.events += 1
        if self._found is None:
            self.accept(frame, now_ns)
        else:
            self._came[frame] = None

    def accept(self, frame: Frame, now_ns: int) -> None:
        """Put a frame into the lane, or let it wait outside."""
        self.last = frame
        if not self.pending.count and self.lane.put(*frame, now_ns):
            self._was_put(now_ns)
        else:
            self._wait(frame)

    def put_pending(self, now_ns: int) -> None:
        """Move waiting frames into the lane, as many as it takes."""
        pending, lane = self.pending, self.lane
        while pending.count and lane.has_room:
            lane.put(*pending.first(), now_ns)
            pending.drop_first()
            lane.set_pending(pending.count)
            self._was_put(now_ns)
        if self._full and not pending.count:
            self._full = False
            log.info(event("lane caught up", source=self.source.name))

    def put_tick(self, now_ns: int) -> bool:
        """Tell the source's worker that nothing has come; False when the lane is full, which says the contrary."""
        number, width = max(self.last, (0, 0))
        if not self.lane.put(number, width, now_ns, tick=True):
            return False
        self.put_since_ring = True
        return True

    def follow_clock(self) -> None:
        """If the clock was set back behind our start, frames that come now look older than that: count them all."""
        now_ns = time.clock_gettime_ns(CLOCK_OF_FILES)
        if now_ns < self.row.since_ns:
            self.row.since_ns = now_ns - CLOCK_MARGIN_NS

    def _wait(self, frame: Frame) -> None:
        if not self._full:
            self._full = True
            log.warning(event("lane full, frames wait", source=self.source.name, backlog=self.lane.backlog))
        if not self.pending.append(frame):
            self.row.left_behind += 1
        self.lane.set_pending(self.pending.count)
        self.row.published = self.lane.put_count + self.pending.count

    def _was_put(self, now_ns: int) -> None:
        self.row.last_put_ns = now_ns
        self.row.published = self.lane.put_count + self.pending.count
        self.put_since_ring = True

    def _last_put(self) -> Frame | None:
        slot = self.lane.last_put()
        return (slot.number, slot.width) if slot else None

    # -- listings -----------------------------------------------------------------------------------------------

    def list_first(self, at_most: int, *, appeared: bool) -> None:
        """The first listing of a source: the newest `at_most` frames without a sidecar, by name alone. If its directory
        has only now `appeared`, also all that came since the start."""
        if not appeared:
            self.row.since_ns = time.clock_gettime_ns(CLOCK_OF_FILES)
        listing = self._list()
        waiting = listing.unjudged()
        chosen = waiting[-at_most:] if at_most else []
        if appeared:
            newer = self._new(listing)
            chosen = [*(frame for frame in chosen if frame not in set(newer)), *newer]
        self._left, self._newest, self._found = len(waiting) - len(chosen), listing.newest(), chosen

    def list_missed(self) -> int:
        """A later listing: what came since the first one and still waits. Returns how many were found."""
        queued = self._frames_in_lane()
        found = [frame for frame in self._new(self._list()) if frame not in queued]
        self._found = self.pending.without(found)
        return len(self._found)

    def settle(self, now_ns: int) -> None:
        """Accept what the last listing has found, and then the events that came meanwhile."""
        found, came = dict.fromkeys(self._found or []), self._came
        self._found, self._came = None, {}
        for frame in found:
            if frame not in came:
                self.accept(frame, now_ns)
        for frame in came:
            self.accept(frame, now_ns)
        self.row.left_behind += max(0, self._left - sum(frame not in found for frame in came))
        if self._newest and not came:
            self.last = self._newest  # polling goes on after the newest name, judged or not
        self._left, self._newest = 0, None

    def _new(self, listing: Listing) -> list[Frame]:
        return listing.new_since(self.row.since_ns, trust_times=not self._board.clock_was_set())

    def _list(self) -> Listing:
        self.row.scans += 1
        return Listing(self.directory)

    def _frames_in_lane(self) -> set[Frame]:
        """What was put and not yet committed. A damaged slot is no frame's."""
        try:
            return {(slot.number, slot.width) for slot in self.lane.ready() if not slot.tick}
        except TornSlot:
            return set()
