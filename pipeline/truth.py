"""Labelled footage: what is known, frame by frame, about recorded frames that detectors are measured on.

Owns the format of a labelled directory. Anybody's footage works that is laid out like this:

    DIR/<case>/capture_000000001.jpg ...   frames; they are taken in the order of their numbers
    DIR/<case>/truth.json                  one Truth as JSON

of which truth.json must have `fps` and one entry per frame, in order, in `freeze` and in `black` (and may in
`macroblocks`):

    {"fps": 5, "freeze": [false, null, true], "black": [false, false, false]}

`null` is for what nobody could tell from the pictures up to that frame; it is left out of every score. What the two
lists mean by true is written in tests/footage/truths.py, which labels the set that tests/footage/make.py builds. All
other fields are optional. Positions (in spans and faults) count frames from 0 and include both ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pipeline.model import InputError, describe

FILE = "truth.json"
PREFIX = "capture_"

CONDITIONS = ("freeze", "black")
"""What the truth must speak of, each by a field of its name."""

SCORED = (*CONDITIONS, "macroblocks")
"""What the truth can speak of."""

Known = tuple[bool | None, ...]
Split = Literal["tuning", "validation"]
Span = tuple[int, int]


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something went wrong with the source: where, and what. Whether it must become an incident its length tells."""

    condition: Literal["freeze", "black"]
    kind: str  # how it was made: "bytes", "noise", "zap"
    first: int
    last: int


class Truth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that is known about one case."""

    fps: Annotated[float, Meta(gt=0, le=1000)]
    freeze: Known  # the picture stands
    black: Known
    clip: str = ""  # where the pictures come from: no clip is in two splits
    split: Split = "tuning"
    kind: Literal["plain", "hard"] = "plain"
    theme: str = ""  # what the case is about; scores are added up per theme
    still: tuple[Span, ...] = ()  # the picture stands by right (menu, slide, card): true in `freeze`, yet no incident
    pause: tuple[Span, ...] = ()  # alike to the three before, between two ticks of a live screen: false in `freeze`
    faults: tuple[Fault, ...] = ()
    macroblocks: Known = ()  # blocks where there should be a picture; none: nobody has looked, and they do not count

    @property
    def frames(self) -> int:
        """How many there must be."""
        return len(self.freeze)

    @property
    def hours(self) -> float:
        """Length of the footage."""
        return self.frames / self.fps / 3600

    def known(self, condition: str) -> Known:
        """One condition's truth, frame by frame."""
        known: Known = getattr(self, condition)
        return known or (None,) * self.frames

    def lenient(self) -> Truth:
        """With null in `freeze` wherever the picture stands by right or between two ticks: what a still screen should
        be called is a matter of taste, what a fault is called is not."""
        freeze = list(self.freeze)
        for first, last in (*self.still, *self.pause):
            freeze[first : last + 1] = [None] * (last + 1 - first)
        return msgspec.structs.replace(self, freeze=tuple(freeze))


def write(case: Path, truth: Truth) -> None:
    """Write truth.json into a case's directory, at once or not at all."""
    temporary = case / f"{FILE}.tmp"
    temporary.write_bytes(msgspec.json.encode(truth) + b"\n")
    temporary.rename(case / FILE)


def read(case: Path) -> Truth:
    """A case's truth. InputError names the file, the mistake and the mend."""
    path = case / FILE
    try:
        truth = msgspec.json.decode(path.read_bytes(), type=Truth)
    except OSError as error:
        raise InputError(f"{path}: {describe(error)}; a labelled case has its truth there") from error
    except msgspec.DecodeError as error:
        raise InputError(f"{path}: {error}; see pipeline/truth.py for the format") from error
    if len(truth.black) != truth.frames:
        raise InputError(f"{path}: {truth.frames} entries in freeze, {len(truth.black)} in black; one each per frame")
    if truth.macroblocks and len(truth.macroblocks) != truth.frames:
        raise InputError(f"{path}: {truth.frames} entries in freeze, {len(truth.macroblocks)} in macroblocks")
    spans = [*truth.still, *truth.pause, *((fault.first, fault.last) for fault in truth.faults)]
    if wrong := [span for span in spans if not 0 <= span[0] <= span[1] < truth.frames]:
        raise InputError(f"{path}: {list(wrong[0])} is not within frames 0 to {truth.frames - 1}")
    return truth


def cases(directory: Path, split: Split | None = None) -> dict[str, Truth]:
    """The cases of a labelled directory by name, of one split or all. InputError where there are none."""
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; build one with python -m tests.footage.make")
    found = {path.parent.name: read(path.parent) for path in sorted(directory.glob(f"[!.]*/{FILE}"))}
    chosen = {name: truth for name, truth in found.items() if split in (None, truth.split)}
    if not chosen:
        of = f" of split {split}" if split else ""
        raise InputError(f"{directory}: no case{of} in it (a case is a directory with {FILE} and frames)")
    return chosen
