"""A recording: a directory of frames judged in their order, by the rules of the service, on a clock made of numbers.

Nothing is written beside the frames. What is found may go through the whole evidence path (hold, spool, log, store).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import msgspec

from pipeline import detectors, learned, rejudge, sidecar, timeline
from pipeline.board import SourceRow
from pipeline.child import event, log
from pipeline.evidence import Evidence, incident_fields
from pipeline.frames import SIDECAR_SUFFIX, SUFFIX, FrameNames, read_frame
from pipeline.hold import HOLD_DIR, Hold
from pipeline.incidents import Incident, Sighting, Tracker, Transition
from pipeline.judge import AUDIO_LOSS, Judge, conditions_of
from pipeline.listing import Directory, Frame, Listing
from pipeline.model import PICTURE_BYTES, PICTURE_CELLS, FrameId, InputError, InvalidFrame, Judgement, Verdict, describe
from pipeline.settings import Settings, Source
from pipeline.sidecar import Sidecar
from pipeline.signature import Signature
from pipeline.spool import SPOOL_DIR
from pipeline.timeline import Timeline
from pipeline.uploader import EvidenceDesk

NOTED = {"black": "blackscreen", "freeze": "freeze", "no_signal": "no_signal", "macroblocks": "macroblocks"}
"""Conditions that the summary tells of, and the sidecar's fields of their verdicts."""


class EvidencePath:
    """Hold, keeper and sender in this process: a recorded hour goes through the whole evidence path at speed."""

    def __init__(self, settings: Settings) -> None:
        self.hold = Hold(os.path.join(settings.runtime_dir, HOLD_DIR), settings.hold_max_bytes, link=False)
        self.hold.prepare()
        self._desk = EvidenceDesk(settings, os.environ)
        self._spool = os.path.join(settings.state_dir, SPOOL_DIR)

    def drain(self) -> None:
        """Move what is held on to spool and log, and to the store as far as that needs no waiting."""
        self._desk.drain(patience_s=0)

    def finish(self, recordings: Iterable[Recording]) -> bool:
        """Wait until all is stored; what cannot be stays in the spool, and that is said. Whether all that was found is
        written down at least: where the disk is full, it may not be."""
        stored = self._desk.drain()
        handed = all([recording.hand_over() for recording in recordings])  # all of them, now that there is room again
        if self.hold.waiting():
            stored = self._desk.drain()
        kept = handed and not self.hold.waiting()
        if not kept:
            mend = "make room and replay again"
            log.error(event("incidents not kept", state_dir=os.path.dirname(self._spool), hint=mend))
        elif not stored:
            log.warning(event("evidence waits to be stored: mend it and replay again", spool=self._spool))
        self._desk.close()
        return kept


def name_of(path: str) -> str:
    """What the source of a recorded directory is called: as the directory."""
    return os.fsencode(os.path.basename(os.path.abspath(path))).decode("utf-8", "backslashreplace") or "root"


class Span:
    """A run of frames for which a condition held without a break."""

    def __init__(self, condition: str, first: int) -> None:
        self.condition, self.first, self.last, self.frames = condition, first, first, 0

    def row(self, fps: float) -> list[object]:
        return [
            self.condition,
            self.first,
            self.last,
            self.frames,
            f"{(self.last - self.first + 1) / fps:.1f}",
        ]


class Recording:
    """One recorded directory and what was found in it."""

    suffix = SUFFIX

    def __init__(
        self,
        source: Source,
        fps: float,
        settings: Settings,
        evidence_path: EvidencePath | None = None,
        signature: Signature | None = None,
        *,
        draws: bool = False,
    ) -> None:
        """`signature`: the learned no-signal picture, else the one in the evidence path's state directory. `draws`:
        remember what a drawing needs. Raises InputError."""
        self.source, self.fps, self.draws = source, fps, draws
        self._names = FrameNames(source.prefix)
        wanted = f"{source.prefix}<digits>{self.suffix}"
        try:
            self.frames = self._list()
        except OSError as error:
            raise InputError(f"{source.dir}: {describe(error)}; name a directory of {wanted} files") from error
        if not self.frames:
            raise InputError(f"{source.dir}: no {wanted} in it; name another directory or --prefix")
        self.judged = self.invalid = self.gone = 0
        self.incidents: dict[str, Incident] = {}  # by id, as of the last transition
        self._host = settings.host_name()
        self._signature = signature
        if evidence_path and not signature:
            self._signature = learned.find_or_warn(settings.state_dir, source.name)
        self._path = evidence_path
        self._evidence = Evidence(evidence_path.hold, self.source, SourceRow(), lambda: None) if evidence_path else None
        self.timeline = Timeline(source.name, fps)
        self.spans: list[Span] = []
        self._open: dict[str, Span] = {}
        self._start: tuple[int, int] | None = None

    def _list(self) -> list[Frame]:
        return Listing(Directory(self.source.dir, self._names)).frames

    def count(self, condition: str) -> int:
        """Frames for which a condition held."""
        return sum(span.frames for span in self.spans if span.condition == condition)

    def judge(self) -> Iterator[Sidecar]:
        """The sidecar of every frame, in order. Frames that go meanwhile are counted and left out."""
        cells = [memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)]
        judge = Judge(self.source, cells, host=self._host, signature=self._signature)
        for number, width in self.frames:
            stem = self._names.stem(number, width)
            try:
                content = self._judge_frame(judge, number, stem)
            except FileNotFoundError:
                self.gone += 1
            else:
                yield content

    def _read(self, stem: str) -> tuple[bytes, FrameId]:
        path = f"{self.source.dir}/{stem}{SUFFIX}"
        try:
            return read_frame(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise InputError(f"{path}: {describe(error)}; make it readable") from error

    def _judge_frame(self, judge: Judge, number: int, stem: str) -> Sidecar:
        data, judgement = b"", None
        try:
            data, identity = self._read(stem)
            order = judge.observe(number, identity)
            judgement = judge.judge(data, stem, order, self._time_ns(number, identity.mtime_ns))
            fields = sidecar.verdict_fields(judgement)
            self.judged += 1
        except InvalidFrame as error:
            identity = error.identity or identity
            fields = {"error": str(error)}
            self.invalid += 1
        time_ns = self._time_ns(number, identity.mtime_ns)
        fields |= self._follow(judge, Sighting(time_ns, time_ns, number, stem, identity), judgement, data)
        self._note(number, fields)
        content = sidecar.build(self.source.name, stem, number, identity, time_ns=time_ns, **fields)
        if self.draws:
            self.timeline.add(stem, content)
        return content

    def hand_over(self) -> bool:
        """Try again to hold what could not be held; whether nothing waits any more."""
        if self._evidence and self._evidence.waits:
            self._evidence.act([])
        return not (self._evidence and self._evidence.waits)

    def thumbnails(self) -> dict[str, bytes]:
        """Small JPEGs of the frames that a drawing shows, by stem; those that can be made."""
        wanted = {stem for incident in self.incidents.values() for _, stem in timeline.evidence_of(incident)}
        found = {}
        for stem in (*wanted, *self.timeline.film()):
            with suppress(InvalidFrame, OSError, detectors.BadPicture):
                found[stem] = detectors.thumbnail(read_frame(f"{self.source.dir}/{stem}{SUFFIX}")[0])
        return found

    def _follow(self, judge: Judge, frame: Sighting, judgement: Judgement | None, data: bytes) -> dict[str, Any]:
        """Show the frame to the tracker; what the sidecar says of incidents."""
        transitions = judge.track(frame, judgement)
        self._remember(transitions)
        if self._evidence and self._path and (transitions or self._evidence.waits):
            self._evidence.act(transitions, frame.name, data)
            self._path.drain()
        return incident_fields(judge.tracker, transitions)

    def _remember(self, transitions: Iterable[Transition]) -> None:
        for transition in transitions:
            if transition.kind in ("opened", "closed"):
                self.incidents[transition.incident.id] = transition.incident

    def _time_ns(self, number: int, mtime_ns: int) -> int:
        """Frame time by number: the first frame's file time, and then 1/fps per number."""
        if self._start is None:
            self._start = number, mtime_ns
        first, begun_ns = self._start
        return begun_ns + int((number - first) * 1e9 / self.fps)

    def _note(self, number: int, fields: dict[str, Any]) -> None:
        """Extend or end the spans. Unknown neither extends nor ends one."""
        for condition, key in NOTED.items():
            verdict = fields.get(key)
            if verdict:
                if condition not in self._open:
                    self._open[condition] = Span(condition, number)
                    self.spans.append(self._open[condition])
                self._open[condition].last = number
                self._open[condition].frames += 1
            elif verdict is False:
                self._open.pop(condition, None)


class SidecarRecording(Recording):
    """A directory of which only the sidecars are left: their verdicts stand but for what is tried, and the rules of
    incidents are applied anew."""

    suffix = SIDECAR_SUFFIX
    tried: frozenset[str] = frozenset()  # settings by which they are judged anew, of rejudge.DECIDED

    def _list(self) -> list[Frame]:
        stems = (name.removesuffix(self.suffix) for name in os.listdir(self.source.dir) if name.endswith(self.suffix))
        return sorted(found for stem in stems if (found := self._names.parse(stem + SUFFIX)) is not None)

    def judge(self) -> Iterator[Sidecar]:
        """See Recording: the sidecars as they would be with the rules of now."""
        conditions = conditions_of(self.source, heard=True)
        rules = {condition: self.source.rule_of(condition) for condition in conditions}
        tracker = Tracker(self._host, self.source.name, rules)
        for number, width in self.frames:
            stem = self._names.stem(number, width)
            content = sidecar.read(f"{self.source.dir}/{stem}{self.suffix}")
            known = content is not None and content.analyzed and not content.error
            self.judged, self.invalid = self.judged + known, self.invalid + (not known)
            if content is None:
                continue
            content = rejudge.rejudged(content, self.source, self.tried)
            identity = content.frame_id or FrameId(0, number, 0, 0)
            time_ns = self._time_ns(number, identity.mtime_ns)
            verdicts = _recorded_verdicts(content) if known else dict.fromkeys(conditions, Verdict(None, {}))
            transitions = tracker.feed(Sighting(time_ns, time_ns, number, stem, identity), verdicts)
            self._remember(transitions)
            content = msgspec.structs.replace(content, **incident_fields(tracker, transitions))
            self._note(number, msgspec.structs.asdict(content))
            if self.draws:
                self.timeline.add(stem, content)
            yield content


def _recorded_verdicts(content: Sidecar) -> dict[str, Verdict]:
    """What a sidecar says of each condition, as incidents ask for it."""
    fault = content.readings.get(sidecar.FREEZE_FAULT)
    values = {
        "no_signal": content.no_signal,
        "black": content.blackscreen,
        "freeze": content.freeze if fault is None or content.freeze is None else bool(fault),
        "macroblocks": content.macroblocks,
        AUDIO_LOSS: None if content.audio is None else not content.audio,
    }
    return {condition: Verdict(value, content.readings) for condition, value in values.items()}


def open_any(source: Source, *arguments: Any, **options: Any) -> Recording:
    """A recording by its frames or, where there are none, by its sidecars. Raises InputError."""
    try:
        return Recording(source, *arguments, **options)
    except InputError:
        with suppress(InputError):
            return SidecarRecording(source, *arguments, **options)
        raise
