"""`replay`: judge recorded directories in order, by the rules of the service, and write nothing into them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Any

from pipeline import console, detectors, sidecar
from pipeline.frames import SUFFIX, FrameNames, read_frame
from pipeline.judge import Judge
from pipeline.listing import Directory, Frame, Listing
from pipeline.model import Exit, InputError, InvalidFrame, describe
from pipeline.settings import Source
from pipeline.sidecar import Sidecar

MIN_FPS, MAX_FPS = 0.001, 1000.0

EPILOG = """\
examples:
  ./stillwatch replay recordings/stb1                      a table of what was found
  ./stillwatch replay --json recordings/stb1 | jq .freeze  one line per frame: the sidecar's fields

Exit codes: 0 judged, 66 a directory is missing or holds no frames.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `replay`."""
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="a directory of <prefix><digits>.jpg files")
    parser.add_argument("--fps", type=_rate, default=5.0, help="frames per second of the recording (default 5)")
    parser.add_argument("--json", action="store_true", help="one line of JSON per frame on standard output")
    parser.add_argument(
        "--prefix", type=_utf8, default="capture_", help="what frame names begin with (default capture_)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Judge every directory; the summary (or the lines) go to standard output."""
    detectors.prepare()
    recordings = [Recording(path, arguments.prefix, arguments.fps) for path in arguments.dirs]
    with console.progress() as bar:
        task = bar.add_task("judging", total=sum(len(r.frames) for r in recordings))
        for recording in recordings:
            for content in recording.judge():
                bar.advance(task)
                if arguments.json:
                    sys.stdout.write(sidecar.encode(content).decode())
    if not arguments.json:
        print_summary(recordings)
    return Exit.OK


def print_summary(recordings: list[Recording]) -> None:
    """What the directories hold, and where each condition held."""
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

    def __init__(self, path: str, prefix: str, fps: float) -> None:
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
        self.spans: list[Span] = []
        self._open: dict[str, Span] = {}
        self._start: tuple[int, int] | None = None

    def count(self, condition: str) -> int:
        """Frames for which a condition held."""
        return sum(span.frames for span in self.spans if span.condition == condition)

    def judge(self) -> Iterator[Sidecar]:
        """The sidecar of every frame, in order. Frames that go meanwhile are counted and left out."""
        cells = [memoryview(bytearray(detectors.PICTURE_BYTES)) for _ in range(detectors.CELLS)]
        judge = Judge(self.source, cells)
        for number, width in self.frames:
            stem = self._names.stem(number, width)
            try:
                yield self._judge_frame(judge, number, stem)
            except FileNotFoundError:
                self.gone += 1
            except OSError as error:
                raise InputError(f"{self.source.dir}/{stem}{SUFFIX}: {describe(error)}; make it readable") from error

    def _judge_frame(self, judge: Judge, number: int, stem: str) -> Sidecar:
        try:
            data, identity = read_frame(f"{self.source.dir}/{stem}{SUFFIX}")
            order = judge.observe(number, identity)
            fields = sidecar.verdict_fields(judge.judge(data, stem, order))
            self.judged += 1
        except InvalidFrame as error:
            if error.identity is None:
                raise
            identity, fields = error.identity, {"error": str(error)}
            self.invalid += 1
        self._note(number, fields)
        return sidecar.build(
            self.source.name,
            stem,
            number,
            identity,
            time_ns=self._time_ns(number, identity.mtime_ns),
            **fields,
        )

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
