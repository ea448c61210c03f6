"""Judges the frames of one source in their order: the meeting of pixels and sequence.

Owns what must be remembered from frame to frame. All of it goes into the lane's commit record (`state`), so that a
killed worker's successor judges the next frame exactly as the dead one would have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from enum import Enum, auto
from functools import partial

import msgspec

from pipeline import detectors, macroblocks
from pipeline.black import Black, BlackMemory
from pipeline.freeze import Freeze
from pipeline.history import History, HistoryEntry
from pipeline.incidents import Sighting, Tracker, TrackerState, Transition
from pipeline.masks import Masks
from pipeline.model import FrameId, InvalidFrame, Judgement, Sound, Verdict, Zap
from pipeline.nosignal import NoSignal
from pipeline.settings import Source
from pipeline.signature import Signature
from pipeline.standing import NOT_COMPARED, FreezeMemory, Standing
from pipeline.zap import ZapMemory, Zaps

MAX_COUNT = 2**53
"""Where a counter of numbers stops: names may jump by 10^18, a commit record holds 64 bits, JSON readers 53."""

LATE_IN_A_ROW = 3
"""So many late frames in a row are a numbering restart after all: the clock was set back in between."""

_UNKNOWN = Verdict(None, {})
NOT_HEARD = Sound()
_FRAME_CAME = Verdict(False, {})
_SILENT = Verdict(True, {})
_NS = 1_000_000_000


class Order(Enum):
    """Where a frame stands in its source's sequence."""

    NEXT = auto()
    RESTART = auto()  # the numbers began anew: the pictures that were remembered are another recording's
    LATE = auto()  # older than the one before it: judged by itself, remembered by nobody


STALLED, AUDIO_LOSS = "capture_stalled", "audio_loss"
MACROBLOCKS = "macroblocks"
_OF_PICTURES = ("no_signal", "black", "freeze")


class JudgeState(msgspec.Struct, array_like=True):
    """What the commit record keeps of a judge."""

    number: int = -1  # of the newest frame seen
    identity: FrameId = FrameId(0, 0, 0, 0)  # its file
    late_in_a_row: int = 0
    numbering_restarts: int = 0
    gaps: int = 0  # numbers that never came
    black_frames: int = 0
    freeze_frames: int = 0
    unknown_frames: int = 0  # published but not judged: skipped, invalid or vanished
    history: tuple[HistoryEntry, ...] = ()
    freeze: FreezeMemory = msgspec.field(default_factory=FreezeMemory)
    tracker: TrackerState = msgspec.field(default_factory=TrackerState)
    no_signal_frames: int = 0
    silent_frames: int = 0
    untold: list[Transition] = []  # that could not be handed over: a killed worker's successor does it
    black: BlackMemory = msgspec.field(default_factory=BlackMemory)
    zap: ZapMemory = msgspec.field(default_factory=ZapMemory)
    zaps: int = 0  # channel changes
    looked_ns: int | None = None  # frame time of the last look for macroblocks
    anew: bool = False  # the numbers began anew, and the pictures of the recording before are still there


def conditions_of(source: Source, *, heard: bool) -> tuple[str, ...]:
    """The conditions of a source that its frames speak of and that may become incidents; `heard`: it has sound."""
    of_blocks = (MACROBLOCKS,) if source.macroblocks.incident else ()
    return (*_OF_PICTURES, *of_blocks, *((AUDIO_LOSS,) if heard else ()))


class Judge:
    """One source's judge. It must see every frame in order: `observe`, then `judge` for those that are looked at."""

    def __init__(
        self,
        source: Source,
        cells: Sequence[memoryview],
        state: bytes = b"",
        *,
        host: str = "",
        signature: Signature | None = None,
    ) -> None:
        """`signature`: the source's learned no-signal picture."""
        self._source = source
        self._no_signal = NoSignal(source.no_signal, signature, cards=source.knows_cards)
        self.state = msgspec.msgpack.decode(state, type=JudgeState) if state else JudgeState()
        self._history = History(cells, self.state.history)
        self._masks = Masks(source.masks)
        self._black = Black(source.black, self.state.black)
        self._freeze = Freeze(source.freeze, self.state.freeze, static_ok=source.static_ok)
        self._judged = conditions_of(source, heard=bool(source.audio_path))
        rules = {condition: source.rule_of(condition) for condition in (STALLED, *self._judged)}
        self.tracker = Tracker(host, source.name, rules, self.state.tracker)
        self._encode = msgspec.msgpack.Encoder().encode

    def observe(self, number: int, identity: FrameId) -> Order:
        """Place a frame in the sequence: count gaps, notice a numbering restart (lower number, newer file)."""
        state = self.state
        if number > state.number:
            if state.number >= 0:
                state.gaps = min(state.gaps + number - state.number - 1, MAX_COUNT)
            order = Order.NEXT
        elif identity.mtime_ns > state.identity.mtime_ns or state.late_in_a_row + 1 >= LATE_IN_A_ROW:
            state.numbering_restarts += 1
            state.anew = True
            order = Order.RESTART
        else:
            state.late_in_a_row += 1
            return Order.LATE
        state.late_in_a_row = 0
        state.number, state.identity = number, identity
        return order

    def judge(self, data: bytes, stem: str, order: Order, time_ns: int, sound: Sound = NOT_HEARD) -> Judgement:
        """All verdicts on the frame `data`, called `stem`, of the frame time `time_ns`; `sound` was heard at it. Raises
        InvalidFrame if it cannot be decoded."""
        begun = time.perf_counter()
        try:
            picture = detectors.decode(data)
            decode_s = time.perf_counter() - begun
            colour = partial(detectors.decode_colour, data)
            black = self._black.judge(self._masks.unlit(picture), colour)
            no_signal = self._no_signal.judge(picture, colour)
        except detectors.BadPicture as error:
            raise InvalidFrame(str(error)) from error
        masked = self._masks.unchanging(picture)
        standing, names = self._judge_sequence(masked, stem, order, time_ns)
        zap = None if order is Order.LATE else self._judge_zap(masked, black, time_ns)
        plain = bool(black.value or no_signal.value)
        blocks = None if plain else self._look_for_blocks(picture, data, standing.tile_map, time_ns)
        self.state.black_frames += black.value is True
        self.state.freeze_frames += standing.verdict.value is True
        self.state.no_signal_frames += no_signal.value is True
        self.state.silent_frames += sound.loss.value is True
        return Judgement(
            black=black,
            freeze=standing.verdict,
            freeze_fault=standing.fault,
            freeze_kind=standing.kind,
            freeze_diffs=standing.diffs,
            tile_map=standing.tile_map,
            predecessors=names,
            decode_s=decode_s,
            no_signal=no_signal,
            sound=sound,
            zap=zap,
            macroblocks=self._blocks_verdict(blocks),
            quality_score=blocks.quality if blocks else None,
        )

    def _look_for_blocks(
        self, picture: detectors.Picture, data: bytes, tile_map: str | None, time_ns: int
    ) -> macroblocks.Blocks | None:
        """What is found in the frame, where a look is due, which costs too much for every one, and can be had."""
        every_s, last_ns = self._source.macroblocks.every_s, self.state.looked_ns
        due = every_s > 0 and (last_ns is None or abs(time_ns - last_ns) >= every_s * _NS)
        if not due or tile_map is None or not macroblocks.may_look(picture):
            return None
        self.state.looked_ns = time_ns
        try:
            return macroblocks.find(lambda: self._masks.unchanging(detectors.decode_full(data)), tile_map)
        except detectors.BadPicture:  # no memory for it, say: the frame is judged all the same
            return None

    def _blocks_verdict(self, blocks: macroblocks.Blocks | None) -> Verdict:
        if blocks is None:
            return _UNKNOWN
        return Verdict(blocks.quality < self._source.macroblocks.quality_min, {"macroblocks_pct": blocks.pct})

    def _judge_zap(self, picture: detectors.Picture, black: Verdict, time_ns: int) -> Zap | None:
        zap = Zaps(self.state.zap).judge(picture, black, time_ns, self.state.identity.mtime_ns)
        self.state.zaps += zap is not None
        return zap

    def _judge_sequence(
        self, picture: detectors.Picture, stem: str, order: Order, time_ns: int
    ) -> tuple[Standing, list[str]]:
        if order is Order.LATE:
            return NOT_COMPARED, []
        if self.state.anew or not self._history.matches(picture):
            self._history.clear()
            self.state.anew = False
        names = self._history.names()
        standing = self._freeze.judge(picture, self._history, time_ns)
        self._history.push(picture, stem)
        return standing, names

    def track(self, frame: Sighting, judgement: Judgement | None) -> list[Transition]:
        """Show the frame's verdicts to the tracker (None: it could not be judged); what they change."""
        if judgement is None:
            return self.tracker.feed(frame, dict.fromkeys((STALLED, *self._judged), _UNKNOWN))
        verdicts = {condition: judgement.verdict(condition) for condition in self._judged}
        verdicts[STALLED] = _FRAME_CAME
        return self.tracker.feed(frame, verdicts)

    def track_silence(self, until_ns: int, wall_ns: int) -> list[Transition]:
        """Tell the tracker that no frame has come since the newest one, for the source's stall_s and more; what that
        changes. `until_ns` is the monotonic time of the tick that says so, `wall_ns` the same for people.

        A silence is seen at both its ends: it has no frames, but lasts. Its onset has the newest frame's identity, so
        that the same silence, seen again, is the same incident; where no frame ever came, the tick's time."""
        state = self.state
        length_ns = math.ceil(self._source.stall_s * _NS)
        identity = state.identity if state.number >= 0 else FrameId(0, 0, until_ns, 0)
        begun = Sighting(until_ns - length_ns, wall_ns - length_ns, max(0, state.number), "", identity)
        transitions = self.tracker.feed(begun, {STALLED: _SILENT})
        end = msgspec.structs.replace(begun, time_ns=until_ns, wall_ns=wall_ns)
        return transitions + self.tracker.feed(end, {STALLED: _SILENT})

    def pass_over(self) -> None:
        """A frame was published and not judged; nothing is known of it."""
        self.state.unknown_frames += 1

    def encoded_state(self) -> bytes:
        """What the commit record must keep."""
        self.state.tracker = self.tracker.state
        self.state.history = self._history.entries
        self.state.freeze = self._freeze.memory
        return self._encode(self.state)


def frame_time_ns(identity: FrameId, now_ns: int, wall_ns: int) -> int:
    """The monotonic instant of a frame: now less the age of its file. A file from the future is from now."""
    return now_ns - max(0, wall_ns - identity.mtime_ns)
