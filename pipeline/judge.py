"""Judges the frames of one source in their order: the meeting of pixels (`detectors`) and sequence.

Owns what must be remembered from frame to frame. All of it goes into the lane's commit record (`state`), so that a
killed worker's successor judges the next frame exactly as the dead one would have.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import Enum, auto

import msgspec

from pipeline import detectors
from pipeline.incidents import Sighting, Tracker, TrackerState, Transition
from pipeline.model import FrameId, InvalidFrame, Judgement, Verdict
from pipeline.settings import Source

MAX_COUNT = 2**53
"""Where a counter of numbers stops: names may jump by 10^18, a commit record holds 64 bits, JSON readers 53."""

LATE_IN_A_ROW = 3
"""So many late frames in a row are a numbering restart after all: the clock was set back in between."""

_UNKNOWN = Verdict(None, {})


class Order(Enum):
    """Where a frame stands in its source's sequence."""

    NEXT = auto()
    RESTART = auto()  # the numbers began anew: what was remembered is another recording's
    LATE = auto()  # older than the one before it: judged by itself, remembered by nobody


CONDITIONS = ("black", "freeze")
"""What this judge gives a verdict on."""


class JudgeState(msgspec.Struct, array_like=True):
    """What the commit record keeps of a judge."""

    number: int = -1  # of the newest frame seen
    mtime_ns: int = 0  # its file time
    late_in_a_row: int = 0
    numbering_restarts: int = 0
    gaps: int = 0  # numbers that never came
    black_frames: int = 0
    freeze_frames: int = 0
    unknown_frames: int = 0  # published but not judged: skipped, invalid or vanished
    history: tuple[detectors.HistoryEntry, ...] = ()
    tracker: TrackerState = msgspec.field(default_factory=TrackerState)


class Judge:
    """One source's judge. It must see every frame in order: `observe`, then `judge` for those that are looked at."""

    def __init__(self, source: Source, cells: Sequence[memoryview], state: bytes = b"", *, host: str = "") -> None:
        self._source = source
        self.state = msgspec.msgpack.decode(state, type=JudgeState) if state else JudgeState()
        self._history = detectors.History(cells, self.state.history)
        rules = {condition: source.rule_of(condition) for condition in CONDITIONS}
        self.tracker = Tracker(host, source.name, rules, self.state.tracker)
        self._encode = msgspec.msgpack.Encoder().encode

    def observe(self, number: int, identity: FrameId) -> Order:
        """Place a frame in the sequence: count gaps, notice a numbering restart (lower number, newer file)."""
        state = self.state
        if number > state.number:
            if state.number >= 0:
                state.gaps = min(state.gaps + number - state.number - 1, MAX_COUNT)
            order = Order.NEXT
        elif identity.mtime_ns > state.mtime_ns or state.late_in_a_row + 1 >= LATE_IN_A_ROW:
            state.numbering_restarts += 1
            self._history.clear()
            order = Order.RESTART
        else:
            state.late_in_a_row += 1
            return Order.LATE
        state.late_in_a_row = 0
        state.number, state.mtime_ns = number, identity.mtime_ns
        return order

    def judge(self, data: bytes, stem: str, order: Order) -> Judgement:
        """All verdicts on the frame `data`, called `stem`. Raises InvalidFrame when it cannot be decoded."""
        begun = time.perf_counter()
        try:
            picture = detectors.decode(data)
        except detectors.BadPicture as error:
            raise InvalidFrame(str(error)) from error
        decode_s = time.perf_counter() - begun
        black = detectors.judge_black(picture, self._source.black)
        black = detectors.confirm_black(black, data, self._source.black)
        freeze, diffs, names = self._judge_sequence(picture, stem, order)
        self.state.black_frames += black.value is True
        self.state.freeze_frames += freeze.value is True
        return Judgement(black, freeze, diffs, names, decode_s)

    def _judge_sequence(
        self, picture: detectors.Picture, stem: str, order: Order
    ) -> tuple[Verdict, list[float], list[str]]:
        if order is Order.LATE:
            return _UNKNOWN, [], []
        if not self._history.matches(picture):
            self._history.clear()
        names = self._history.names()
        freeze, diffs = detectors.judge_freeze(picture, self._history, self._source.freeze)
        self._history.push(picture, stem)
        return freeze, diffs, names

    def track(self, frame: Sighting, judgement: Judgement | None) -> list[Transition]:
        """Show the frame's verdicts to the tracker (None: it could not be judged); what they change."""
        verdicts = {condition: getattr(judgement, condition, _UNKNOWN) for condition in CONDITIONS}
        return self.tracker.feed(frame, verdicts)

    def pass_over(self) -> None:
        """A frame was published and not judged; nothing is known of it."""
        self.state.unknown_frames += 1

    def encoded_state(self) -> bytes:
        """What the commit record must keep."""
        self.state.tracker = self.tracker.state
        self.state.history = self._history.entries
        return self._encode(self.state)


def frame_time_ns(identity: FrameId, now_ns: int, wall_ns: int) -> int:
    """The monotonic instant of a frame: now less the age of its file. A file from the future is from now."""
    return now_ns - max(0, wall_ns - identity.mtime_ns)
