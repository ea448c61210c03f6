"""The shared-memory work queue: one lane of slots per source, two commit records per lane, no locks.

One region (a memfd, made by the supervisor and inherited by descriptor; it has no name, so nothing is ever left
behind) holds `MAX_SOURCES` lanes. Each word has one writer; who that is stands in brackets:

    region   header page   grants                         changed whenever a lane is granted or revoked  [supervisor]
             lane 0 .. lane 63

    lane     line 0        head, pending, refused         next index to put; frames waiting outside      [watcher]
             line 1        grant, suspect, deaths, buried who serves the lane; the poison rule           [supervisor]
             line 2        tail, released                 mirror of the record's tail; last grant let go [worker]
             slots         1024 x 64 bytes                slot i lives in cell i mod 1024                [watcher]
             records       2 x 16 KiB                     record t lives in cell t mod 2                 [worker]
             pictures      4 x 320 KiB                    the detectors' history, named by the record    [worker]

             tail                      head
               |  ready   ready   ready  |
    ... done  [ i ]     [i+1]    [i+2]     free ...        backlog = head - tail

Protocol
  put       The watcher writes slot `head` (index, frame number, CRC32), then head+1, then rings the doorbell. A lane
            that is full refuses: the value says so, the refusal is counted, the watcher tries again.
  reserve   The worker compares tail with head and reads slot `tail`. The slot must carry the index that is due and a
            matching CRC. On a weakly ordered core head may be seen before the slot: then this read fails and is
            repeated, never believed.
  complete  Sidecar first, then the record of tail+1 into the cell that the last record does not use: that one write
            acknowledges the frame, its outcome and the detector state together. A worker killed at any point leaves
            at least one valid record; its successor reads the newer and goes on with the frame that was in hand.
  grant     A lane is served by the worker its grant names. To move it the supervisor revokes (new epoch, no worker),
            waits until `released` shows that epoch or the old worker has been reaped, and grants again.
  blame     Deaths on a frame are counted by the supervisor; at POISON_DEATHS the frame is buried: its worker then
            completes it as invalid without reading it.
The doorbell (an eventfd per worker) is a hint only: whoever wakes, for whatever reason, believes the ring.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import zlib
from collections.abc import Iterator

import msgspec

from pipeline.model import MAX_SOURCES, PICTURE_BYTES, PICTURE_CELLS, Outcome

CAPACITY = 1024
"""Slots of a lane: at 25 frames/s, 40 s of a stalled worker before the watcher must hold frames back."""

POISON_DEATHS = 3
"""Deaths on one frame after which it is buried. Two wrongly buried healthy frames under outside kills (measured)."""

RECORD_BYTES = 24 * 1024

_PAGE = 4096
_SLOT_BYTES = 64
_SLOT = struct.Struct("=QQQIBBxx")  # index, number, put_ns, ticks, width, kind
_CRC = struct.Struct("=I")
_RECORD = struct.Struct("=IIQQQQQQ")  # crc of all that follows, length of the state, tail, the five outcomes
_CRC_BYTES = 4

_SLOTS_AT = _PAGE
_RECORDS_AT = _SLOTS_AT + CAPACITY * _SLOT_BYTES
_PICTURES_AT = _RECORDS_AT + 2 * RECORD_BYTES
_LANE_BYTES = _PICTURES_AT + PICTURE_CELLS * PICTURE_BYTES
REGION_BYTES = _PAGE + MAX_SOURCES * _LANE_BYTES
MAX_STATE_BYTES = RECORD_BYTES - _RECORD.size

_GRANTS = 0  # word of the header page
_HEAD, _PENDING, _REFUSED = 0, 1, 2  # words of a lane's lines: 8 words to a cache line
_GRANT, _SUSPECT, _DEATHS, _BURIED = 8, 9, 10, 11
_TAIL, _RELEASED = 16, 17

_TORN_READS = 1000  # about a millisecond: an early read settles within nanoseconds
_WORKER_BITS = 8
_EPOCH_AT = 2 * _WORKER_BITS  # a grant: epoch, the worker before this grant, the worker; workers count from 1
_WORKER_MASK = (1 << _WORKER_BITS) - 1


class TornSlot(Exception):
    """A slot whose index or CRC stayed wrong: its memory was damaged. Never believed, always counted."""


class Slot(msgspec.Struct, frozen=True):
    """One frame on its way (`tick` False), or the news that a source is overdue (`tick` True)."""

    index: int  # position in the lane since the start of the program
    number: int  # the frame's sequence
    width: int  # how many digits its name has: number and width give back the exact name
    put_ns: int  # monotonic instant of the put
    ticks: int  # ticks among the slots up to and including this one
    tick: bool


class Books(msgspec.Struct, frozen=True):
    """A lane's account at one moment: every published frame is in exactly one of the other five columns."""

    published: int
    judged: int
    invalid: int
    skipped: int
    vanished: int
    in_flight: int
    ticks: int
    tail: int

    @property
    def balanced(self) -> bool:
        """Whether the outcomes account for every slot that was completed, and for every frame published."""
        done = self.judged + self.invalid + self.skipped + self.vanished
        adds_up = done + self.ticks == self.tail and done + self.in_flight == self.published
        return adds_up and self.in_flight >= 0


class Record(msgspec.Struct, frozen=True):
    """What one commit holds: how far the lane is done, what became of its slots, and the judge's state."""

    tail: int = 0
    judged: int = 0
    invalid: int = 0
    skipped: int = 0
    vanished: int = 0
    ticks: int = 0
    state: bytes = b""

    def after(self, outcome: Outcome | None, state: bytes) -> Record:
        """The record that follows when one more slot ended as `outcome` (None: it was a tick)."""
        return Record(
            self.tail + 1,
            self.judged + (outcome is Outcome.JUDGED),
            self.invalid + (outcome is Outcome.INVALID),
            self.skipped + (outcome is Outcome.SKIPPED),
            self.vanished + (outcome is Outcome.VANISHED),
            self.ticks + (outcome is None),
            state,
        )


class Doorbell:
    """Wake-up of one worker: an eventfd inherited by the watcher (rings) and the worker (waits)."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def create(cls) -> Doorbell:
        """A new doorbell; the descriptor is not inherited unless it is passed on."""
        return cls(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def fileno(self) -> int:
        return self.fd

    def ring(self) -> None:
        os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):  # somebody else's wake-up: the ring is the truth
            os.eventfd_read(self.fd)


class Ring:
    """All lanes, mapped from one descriptor. Cheap to create: pages that nobody touches cost nothing."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, REGION_BYTES)
        self.words = memoryview(self._map).cast("Q")
        self.memory = memoryview(self._map)
        self.lanes = [Lane(self, lane) for lane in range(MAX_SOURCES)]

    @classmethod
    def create(cls) -> Ring:
        """A new, empty ring in anonymous memory (sparse: a lane in use takes about 150 KiB)."""
        fd = os.memfd_create("stillwatch-ring", os.MFD_CLOEXEC)
        os.ftruncate(fd, REGION_BYTES)
        return cls(fd)

    @property
    def grants(self) -> int:
        """Changes whenever any grant does: a worker looks at the lanes again only then."""
        return self.words[_GRANTS]

    def grant(self, lane: int, worker: int) -> None:
        """Let `worker` serve `lane`, which must be free. Supervisor only; then ring that worker's doorbell."""
        self._set_grant(lane, worker + 1)

    def revoke(self, lane: int) -> None:
        """Ask the worker that serves `lane` to let it go after the frame in hand; then ring its doorbell."""
        self._set_grant(lane, 0)

    def _set_grant(self, lane: int, holder: int) -> None:
        words, at = self.words, self.lanes[lane].word + _GRANT
        epoch, before = words[at] >> _EPOCH_AT, words[at] & _WORKER_MASK
        words[at] = (epoch + 1) << _EPOCH_AT | before << _WORKER_BITS | holder
        words[_GRANTS] += 1

    def reset(self, lane: int) -> None:
        """Make a lane that nobody uses as good as new; what it held is forgotten. Supervisor only. Its grants count on,
        so that no worker takes an old one for a new one."""
        at = self.lanes[lane].base
        grant, released = (self.words[self.lanes[lane].word + word] for word in (_GRANT, _RELEASED))
        self.memory[at : at + _PICTURES_AT] = bytes(_PICTURES_AT)
        self.words[self.lanes[lane].word + _GRANT] = grant
        self.words[self.lanes[lane].word + _RELEASED] = released

    def close(self) -> None:
        """Unmap. Views handed out by `Lane.picture_cells` must be gone by then."""
        self.words.release()
        self.memory.release()
        self._map.close()
        os.close(self.fd)


class Lane:
    """One source's part of the ring. The watcher uses `put`, the worker `adopt`, `reserve` and `complete`."""

    def __init__(self, ring: Ring, index: int) -> None:
        self.index = index
        self.base = _PAGE + index * _LANE_BYTES
        self.word = self.base // 8
        self._words = ring.words
        self._memory = ring.memory
        self.record = Record()  # of the worker that adopted this lane
        self._ticks: int | None = None  # of the watcher: ticks among the slots put so far

    # -- anybody ------------------------------------------------------------------------------------------------

    @property
    def head(self) -> int:
        return self._words[self.word + _HEAD]

    @property
    def backlog(self) -> int:
        """Ready slots now. Either side may be a moment old."""
        return self.head - self._words[self.word + _TAIL]

    @property
    def refused(self) -> int:
        """Puts that found the lane full (each is tried again by the watcher)."""
        return self._words[self.word + _REFUSED]

    @property
    def holder(self) -> int | None:
        """The worker that may serve this lane now, or None."""
        worker = self._words[self.word + _GRANT] & _WORKER_MASK
        return worker - 1 if worker else None

    @property
    def leaver(self) -> int | None:
        """The worker that must still let this lane go, or None."""
        grant = self._words[self.word + _GRANT]
        worker = grant >> _WORKER_BITS & _WORKER_MASK
        return worker - 1 if worker and not grant & _WORKER_MASK and not self.released else None

    def last_record(self) -> Record:
        """The newer of the two valid commit records; an empty one before the first commit."""
        found = [r for r in (self._read_record(0), self._read_record(1)) if r is not None]
        return max(found, key=lambda r: r.tail, default=Record())

    def books(self) -> Books:
        """The account of this lane. Frames the watcher holds back outside a full lane count as in flight."""
        record = self.last_record()
        head, pending = self.head, self._words[self.word + _PENDING]
        ticks = self._ticks_before(head)
        waiting = head - record.tail - (ticks - record.ticks)
        outcomes = (record.judged, record.invalid, record.skipped, record.vanished)
        return Books(head - ticks + pending, *outcomes, waiting + pending, record.ticks, record.tail)

    def slot(self, index: int) -> Slot:
        """Slot `index` as it stands. Raises TornSlot when it is not (or no longer, or not yet) that slot."""
        at = self.base + _SLOTS_AT + (index % CAPACITY) * _SLOT_BYTES
        body = bytes(self._memory[at : at + _SLOT.size])
        (crc,) = _CRC.unpack_from(self._memory, at + _SLOT.size)
        found, number, put_ns, ticks, width, kind = _SLOT.unpack(body)
        if found != index or crc != zlib.crc32(body):
            raise TornSlot(f"slot {index} of lane {self.index}")
        return Slot(index, number, width, put_ns, ticks, bool(kind))

    def was_tick(self, index: int) -> bool:
        """Whether a torn slot was a tick: the one behind it knows how many ticks there were. False where none is."""
        try:
            later = self.slot(index + 1)
        except TornSlot:
            return False
        return later.ticks - later.tick > self._ticks_before(index)

    def _ticks_before(self, head: int) -> int:
        """Ticks among the slots before `head`: every slot carries the count, so no crash can lose it. A torn slot is
        taken for a frame's, and the one before it tells."""
        for index in range(head - 1, max(-1, head - CAPACITY - 1), -1):
            with contextlib.suppress(TornSlot):
                return self.slot(index).ticks
        return self.last_record().ticks

    # -- the watcher ---------------------------------------------------------------------------------------------

    def put(self, number: int, width: int, now_ns: int, *, tick: bool = False) -> bool:
        """Add one slot; False when the lane is full (counted). The caller rings the doorbell."""
        words, word = self._words, self.word
        head = words[word + _HEAD]
        if head - words[word + _TAIL] >= CAPACITY:
            words[word + _REFUSED] += 1
            return False
        if self._ticks is None:
            self._ticks = self._ticks_before(head)
        self._ticks += tick
        body = _SLOT.pack(head, number, now_ns, self._ticks, width, tick)
        at = self.base + _SLOTS_AT + (head % CAPACITY) * _SLOT_BYTES
        self._memory[at : at + _SLOT.size + _CRC_BYTES] = body + _CRC.pack(zlib.crc32(body))
        words[word + _HEAD] = head + 1
        return True

    @property
    def put_count(self) -> int:
        """Frames put so far. For the watcher, and its successor."""
        if self._ticks is None:
            self._ticks = self._ticks_before(self.head)
        return self.head - self._ticks

    @property
    def has_room(self) -> bool:
        return self.head - self._words[self.word + _TAIL] < CAPACITY

    def last_put(self) -> Slot | None:
        """The frame put last, for a successor of the watcher: slots outlive their commit until the lane wraps."""
        for index in range(self.head - 1, max(-1, self.head - CAPACITY - 1), -1):
            try:
                slot = self.slot(index)
            except TornSlot:
                continue
            if not slot.tick:
                return slot
        return None

    @property
    def ticks_since_frame(self) -> int:
        """Ticks among the newest slots: how often a silence that still lasts has been told."""
        frame = self.last_put()
        return self._ticks_before(self.head) - (frame.ticks if frame else 0)

    def set_pending(self, count: int) -> None:
        """Publish how many frames wait outside the lane."""
        self._words[self.word + _PENDING] = count

    def ready(self) -> Iterator[Slot]:
        """The slots put and not yet committed, oldest first: what a successor of the watcher must not put again."""
        for index in range(self.last_record().tail, self.head):
            yield self.slot(index)

    # -- the worker ----------------------------------------------------------------------------------------------

    def adopt(self) -> Record:
        """Begin to serve this lane where the last commit left it."""
        self.record = self.last_record()
        self._words[self.word + _TAIL] = self.record.tail
        return self.record

    def release(self) -> None:
        """Let the lane go: nothing of it may be touched after this."""
        self._words[self.word + _RELEASED] = self._words[self.word + _GRANT] >> _EPOCH_AT

    def reserve(self) -> Slot | None:
        """The slot that is due, or None when the lane is empty. Raises TornSlot when it stays unreadable."""
        index = self.record.tail
        if index >= self._words[self.word + _HEAD]:
            return None
        for _ in range(_TORN_READS):
            try:
                return self.slot(index)
            except TornSlot:
                os.sched_yield()
        return self.slot(index)

    def is_buried(self, index: int) -> bool:
        return self._words[self.word + _BURIED] == index + 1

    def complete(self, outcome: Outcome | None, state: bytes) -> None:
        """Commit the slot in hand: its outcome and the judge's state, in one record. None is a tick's outcome."""
        if len(state) > MAX_STATE_BYTES:
            raise ValueError(f"the state of lane {self.index} takes {len(state)} bytes, {MAX_STATE_BYTES} fit")
        record = self.record = self.record.after(outcome, state)
        counts = (record.tail, record.judged, record.invalid, record.skipped, record.vanished, record.ticks)
        body = _RECORD.pack(0, len(state), *counts) + state
        at = self.base + _RECORDS_AT + (record.tail & 1) * RECORD_BYTES
        self._memory[at : at + len(body)] = _CRC.pack(zlib.crc32(body[_CRC_BYTES:])) + body[_CRC_BYTES:]
        self._words[self.word + _TAIL] = record.tail

    def picture_cells(self) -> list[memoryview]:
        """The cells for the detectors' history: PICTURE_CELLS writable views of PICTURE_BYTES each."""
        at = self.base + _PICTURES_AT
        return [self._memory[at + n * PICTURE_BYTES :][:PICTURE_BYTES] for n in range(PICTURE_CELLS)]

    def _read_record(self, cell: int) -> Record | None:
        at = self.base + _RECORDS_AT + cell * RECORD_BYTES
        crc, length, tail, judged, invalid, skipped, vanished, ticks = _RECORD.unpack_from(self._memory, at)
        if tail == 0 or length > MAX_STATE_BYTES:
            return None
        body = bytes(self._memory[at + _CRC_BYTES : at + _RECORD.size + length])
        if zlib.crc32(body) != crc:
            return None
        return Record(tail, judged, invalid, skipped, vanished, ticks, body[_RECORD.size - _CRC_BYTES :])

    # -- the supervisor ------------------------------------------------------------------------------------------

    @property
    def released(self) -> bool:
        """Whether the worker that served this lane before the last revoke has let it go."""
        return self._words[self.word + _RELEASED] == self._words[self.word + _GRANT] >> _EPOCH_AT

    def blame(self, index: int) -> int:
        """Count one more death on slot `index`; bury it at POISON_DEATHS. Returns the deaths so far."""
        words, word = self._words, self.word
        if words[word + _SUSPECT] != index + 1:
            words[word + _SUSPECT], words[word + _DEATHS] = index + 1, 0
        words[word + _DEATHS] += 1
        if words[word + _DEATHS] >= POISON_DEATHS:
            words[word + _BURIED] = index + 1
        return words[word + _DEATHS]
