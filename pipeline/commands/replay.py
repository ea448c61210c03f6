"""`replay`: judge recorded directories in order, by the rules of the service, and write nothing into them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Any

import msgspec

from pipeline import config, console, detectors, sidecar
from pipeline.board import SourceRow
from pipeline.commands.run import make_state_dir
from pipeline.evidence import Evidence, keys_of
from pipeline.frames import SUFFIX, FrameNames, read_frame
from pipeline.hold import HOLD_DIR, Hold
from pipeline.incidentlog import describe_incident
from pipeline.incidents import Incident, Sighting
from pipeline.judge import Judge
from pipeline.listing import Directory, Frame, Listing
from pipeline.model import Exit, InputError, InvalidFrame, Judgement, describe
from pipeline.settings import Settings, Source
from pipeline.sidecar import Sidecar
from pipeline.uploader import EvidenceDesk

MIN_FPS, MAX_FPS = 0.001, 1000.0

EPILOG = """\
examples:
  ./stillwatch replay recordings/stb1                      a table of what was found
  ./stillwatch replay --json recordings/stb1 | jq .freeze  one line per frame (the sidecar's fields), then the incidents
  ./stillwatch replay --state-dir out recordings/*         also log and store the incidents with their evidence

Exit codes: 0 judged, 66 a directory is missing or holds no frames.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `replay`."""
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="a directory of <prefix><digits>.jpg files")
    parser.add_argument("--fps", type=_rate, default=5.0, help="frames per second of the recording (default 5)")
    parser.add_argument("--json", action="store_true", help="one line of JSON per frame on standard output")
    parser.add_argument("--state-dir", metavar="DIR", help="send incidents through hold, spool, log and store there")
    parser.add_argument("--config", metavar="FILE", help="take the host's name and the bounds from this file")
    parser.add_argument(
        "--prefix", type=_utf8, default="capture_", help="what frame names begin with (default capture_)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Judge every directory; the summary (or the lines) go to standard output."""
    detectors.prepare()
    places = {"state_dir": arguments.state_dir, "runtime_dir": arguments.state_dir} if arguments.state_dir else {}
    settings = config.load(arguments.config, os.environ, {"source": [], **places})
    path = EvidencePath(settings) if arguments.state_dir else None
    recordings = [Recording(d, arguments.prefix, arguments.fps, settings, path) for d in arguments.dirs]
    with console.progress() as bar:
        task = bar.add_task("judging", total=sum(len(r.frames) for r in recordings))
        for recording in recordings:
            for content in recording.judge():
                bar.advance(task)
                if arguments.json:
                    sys.stdout.write(sidecar.encode(content).decode())
    if path:
        path.finish()
    if arguments.json:
        for recording in recordings:
            for incident in recording.incidents.values():
                sys.stdout.write(msgspec.json.encode(describe_incident(incident)).decode() + "\n")
    else:
        print_summary(recordings)
    return Exit.OK


def print_summary(recordings: list[Recording]) -> None:
    """What the directories hold, where each condition held, and the incidents."""
    console.print_table(
        "frames",
        ["source", "frames", "judged", "invalid", "gone", "black", "freeze"],
        [
            [r.source.name, len(r.frames), r.judged, r.invalid, r.gone, r.count("black"), r.count("freeze")]
            for r in recordings
        ],
    )
    rows = [[r.source.name, *span.row(r.fps)] for r in recordings for span in r.spans]
    if rows:
        console.print_table("conditions", ["source", "condition", "first", "last", "frames", "seconds"], rows)
    incidents = [incident for recording in recordings for incident in recording.incidents.values()]
    if incidents:
        columns = ["source", "condition", "state", "from frame", "seconds", "frames", "id"]
        console.print_table("incidents", columns, [_incident_row(incident) for incident in incidents])


def _incident_row(incident: Incident) -> list[object]:
    fields = describe_incident(incident)
    seconds = f"{incident.duration_s:.1f}"
    return [
        incident.source,
        incident.condition,
        fields["state"],
        incident.onset.number,
        seconds,
        fields["coverage"],
        incident.id,
    ]


class EvidencePath:
    """Hold, keeper and sender in this process: a recorded hour goes through the whole evidence path at speed."""

    def __init__(self, settings: Settings) -> None:
        make_state_dir(settings.state_dir)
        self.hold = Hold(os.path.join(settings.runtime_dir, HOLD_DIR), settings.hold_max_bytes)
        self.hold.prepare()
        self._desk = EvidenceDesk(settings, os.environ)

    def drain(self) -> None:
        """Move what is held on to spool, log and store."""
        self._desk.drain()

    def finish(self) -> None:
        """Wait until all is stored; what cannot be stays in the spool."""
        self._desk.drain()
        self._desk.close()


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

    def __init__(
        self, path: str, prefix: str, fps: float, settings: Settings, evidence_path: EvidencePath | None = None
    ) -> None:
        name = os.fsencode(os.path.basename(os.path.abspath(path))).decode("utf-8", "backslashreplace") or "root"
        self.source = Source(name=name, dir=path, prefix=prefix)
        self.fps = fps
        self._names = FrameNames(prefix)
        try:
            self.frames: list[Frame] = Listing(Directory(path, self._names)).frames
        except OSError as error:
            raise InputError(
                f"{path}: {describe(error)}; name a directory of {prefix}<digits>{SUFFIX} files"
            ) from error
        if not self.frames:
            raise InputError(f"{path}: no {prefix}<digits>{SUFFIX} in it; name another directory or --prefix")
        self.judged = self.invalid = self.gone = 0
        self.incidents: dict[str, Incident] = {}  # by id, as of the last transition
        self._host = settings.host_name()
        self._path = evidence_path
        self._evidence = Evidence(evidence_path.hold, self.source, SourceRow(), lambda: None) if evidence_path else None
        self.spans: list[Span] = []
        self._open: dict[str, Span] = {}
        self._start: tuple[int, int] | None = None

    def count(self, condition: str) -> int:
        """Frames for which a condition held."""
        return sum(span.frames for span in self.spans if span.condition == condition)

    def judge(self) -> Iterator[Sidecar]:
        """The sidecar of every frame, in order. Frames that go meanwhile are counted and left out."""
        cells = [memoryview(bytearray(detectors.PICTURE_BYTES)) for _ in range(detectors.CELLS)]
        judge = Judge(self.source, cells, host=self._host)
        for number, width in self.frames:
            stem = self._names.stem(number, width)
            try:
                yield self._judge_frame(judge, number, stem)
            except FileNotFoundError:
                self.gone += 1
            except OSError as error:
                raise InputError(f"{self.source.dir}/{stem}{SUFFIX}: {describe(error)}; make it readable") from error

    def _judge_frame(self, judge: Judge, number: int, stem: str) -> Sidecar:
        data, judgement = b"", None
        try:
            data, identity = read_frame(f"{self.source.dir}/{stem}{SUFFIX}")
            order = judge.observe(number, identity)
            judgement = judge.judge(data, stem, order)
            fields = sidecar.verdict_fields(judgement)
            self.judged += 1
        except InvalidFrame as error:
            identity = error.identity or identity
            fields = {"error": str(error)}
            self.invalid += 1
        time_ns = self._time_ns(number, identity.mtime_ns)
        fields |= self._follow(judge, Sighting(time_ns, time_ns, number, stem, identity), judgement, data)
        self._note(number, fields)
        return sidecar.build(self.source.name, stem, number, identity, time_ns=time_ns, **fields)

    def _follow(self, judge: Judge, frame: Sighting, judgement: Judgement | None, data: bytes) -> dict[str, Any]:
        """Show the frame to the tracker; what the sidecar says of incidents."""
        transitions = judge.track(frame, judgement)
        for transition in transitions:
            if transition.kind in ("opened", "closed"):
                self.incidents[transition.incident.id] = transition.incident
        if transitions and self._evidence and self._path:
            self._evidence.act(transitions, frame.name, data)
            self._path.drain()
        opened = [transition.incident for transition in transitions if transition.kind == "opened"]
        return {
            "conditions": judge.tracker.phases(),
            "incident_ids": judge.tracker.open_ids(),
            "r2_images": keys_of(opened[0]) if opened else None,
        }

    def _time_ns(self, number: int, mtime_ns: int) -> int:
        """Frame time by number: the first frame's file time, and then 1/fps per number."""
        if self._start is None:
            self._start = number, mtime_ns
        first, begun_ns = self._start
        return begun_ns + int((number - first) * 1e9 / self.fps)

    def _note(self, number: int, fields: dict[str, Any]) -> None:
        """Extend or end the spans. Unknown neither extends nor ends one."""
        for condition, key in (("black", "blackscreen"), ("freeze", "freeze")):
            verdict = fields.get(key)
            if verdict:
                if condition not in self._open:
                    self._open[condition] = Span(condition, number)
                    self.spans.append(self._open[condition])
                self._open[condition].last = number
                self._open[condition].frames += 1
            elif verdict is False:
                self._open.pop(condition, None)


def _rate(text: str) -> float:
    value = float(text)
    if not MIN_FPS <= value <= MAX_FPS:
        raise argparse.ArgumentTypeError(f"must be from {MIN_FPS} to {MAX_FPS}")
    return value


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("must be valid UTF-8") from error
    return text
