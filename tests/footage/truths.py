"""What is true of a frame: the definitions, and their computation.

`black` is true where the source shows no picture but a plain dark field: at any black level (0, 16, raised), under
noise, and with a small logo, clock, subtitles, volume bar or channel banner on it. It is false for every picture that
has content, however dark (night, letterboxed film), for rolling and full-page credits, and for a plain field of colour
(blue card). It is null while a fade leaves so little (99 of 100 pixels at or below FADE_LEVEL) that people would
disagree, and for a black card that says there is no signal: only a learned signature can tell that from subtitles.

`freeze` is true where *the picture stands*: it is the same scene picture as in the three frames before at least.
In particular

- A frozen source is true from the fourth frame of the standing picture on; the first three are null: the picture
  stands, but nobody can know. It stays true under fresh capture noise, and behind a clock, ticker or spinner that runs
  on while the programme below it stands (a partial freeze). The first frame that moves again is false.
- A still screen (menu, guide, slide, card) *stands by right*. It is true as well - the frame alone says no more than
  that the picture stands - but it is listed in `still` and is no fault: no incident may come of it. As a clock may tick
  on it at any time, it is true only once nothing has changed for TICK_S; from the fourth alike frame until then, null.
- A screen on which something changes at least every TICK_S (a clock with seconds, a blinking cursor, a pointer that
  moves, a log that scrolls, a stream of one picture per second) is live: false throughout. Those of its frames that
  are alike to the three before, between two ticks, are listed in `pause`.
- A frozen screen (with its clock) is true once it has stood for TICK_S, null from the first frame until then.
- Film is false, however slowly it moves: pans, zooms, fades, a dark scene, a bird in the sky. It is null where the
  clean film has itself not changed by more than STILL_LEVELS anywhere for three frames (held animation, repeated
  frames of a decoder).
- Where the picture is black, or may be, `freeze` is null: a black picture cannot be seen to stand.

The *faults* of a case are what went wrong, with first and last frame: those that last long enough must become
incidents; still screens and pauses must not.
"""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass, field

import cv2

from pipeline.truth import Known, Span
from tests.footage.clips import FPS, Frame
from tests.footage.scenes import Motion

TICK_S = 2.0
"""Seconds: what changes at least this often is live. Clocks tick every second, cursors blink every half."""

STILL_LEVELS = 2
"""Levels by which a pixel of a film may differ and the film still be called held."""

FADE_LEVEL = 40
"""Level at or below which 99 of 100 pixels of a fading picture must be for it to be neither black nor not."""

FADE_PCT = 1.0

PREDECESSORS = 3
_TICK = round(TICK_S * FPS)


@dataclass(frozen=True)
class Facts:
    """What is known of one frame because of how it was made."""

    motion: Motion
    black: bool | None
    frozen_for: int = -1  # position within the frozen stretch, its first frame being 0; -1 where nothing is frozen
    digest: int = 0  # of the clean frame with all that is on it
    held: bool = False  # a film's clean frame is as its three predecessors
    fresh: bool = False  # the first frame of another scene: what is still, is still only from here on


class Observer:
    """Sees the clean frames of a case in order and notes the facts."""

    def __init__(self) -> None:
        self.facts: list[Facts] = []
        self._before: deque[Frame] = deque(maxlen=PREDECESSORS)

    def see(self, clean: Frame, motion: Motion, black: bool | None, frozen_for: int) -> None:
        """The next frame, before it is captured."""
        held = motion == "film" and len(self._before) == PREDECESSORS
        held = held and all(_largest_diff(clean, before) <= STILL_LEVELS for before in self._before)
        self._before.append(clean)
        self.facts.append(Facts(motion, black, frozen_for, zlib.crc32(clean.data), held))


@dataclass
class FreezeTruth:
    """The `freeze` truth of a case, and which of it is by right."""

    known: list[bool | None] = field(default_factory=list)
    still: list[bool] = field(default_factory=list)
    pause: list[bool] = field(default_factory=list)


def freeze_truth(facts: list[Facts]) -> FreezeTruth:
    """By the definitions above."""
    truth = FreezeTruth()
    stood, lasts = _standing(facts)
    for at, fact in enumerate(facts):
        known: bool | None = False
        still = pause = False
        if fact.black is not False:
            known = None
        elif fact.frozen_for >= 0:
            known = True if fact.frozen_for >= (_TICK if fact.motion == "screen" else PREDECESSORS) else None
        elif fact.motion == "film":
            known = None if fact.held else False
        elif fact.motion == "screen" and stood[at] >= PREDECESSORS:
            if lasts[at] <= _TICK:
                pause = True
            else:
                still = stood[at] >= _TICK
                known = True if still else None
        truth.known.append(known)
        truth.still.append(still)
        truth.pause.append(pause)
    return truth


def black_truth(facts: list[Facts]) -> Known:
    """As it was made."""
    return tuple(fact.black for fact in facts)


def fading_is_black(frame: Frame) -> bool | None:
    """Whether a picture in the course of a fade is black: None where people would disagree."""
    grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    lit = cv2.countNonZero(cv2.threshold(grey, FADE_LEVEL, 255, cv2.THRESH_BINARY)[1])
    return None if 100 * lit <= FADE_PCT * grey.size else False


def spans(marks: list[bool]) -> tuple[Span, ...]:
    """The runs of true, both ends included."""
    found: list[Span] = []
    for at, mark in enumerate(marks):
        if mark and found and found[-1][1] == at - 1:
            found[-1] = found[-1][0], at
        elif mark:
            found.append((at, at))
    return tuple(found)


def _standing(facts: list[Facts]) -> tuple[list[int], list[int]]:
    """Per frame: for how many frames it has been the same, and how many it is the same altogether."""
    stood: list[int] = []
    for at, fact in enumerate(facts):
        same = at > 0 and facts[at - 1].digest == fact.digest
        stood.append(stood[-1] + 1 if same else 0)
    lasts = [0] * len(facts)
    for at in reversed(range(len(facts))):
        goes_on = at + 1 < len(facts) and stood[at + 1] > 0
        lasts[at] = lasts[at + 1] if goes_on else stood[at] + 1
    return stood, lasts


def _largest_diff(frame: Frame, other: Frame) -> float:
    if frame.shape != other.shape:
        return 255.0
    return float(cv2.minMaxLoc(cv2.absdiff(frame, other).reshape(frame.shape[0], -1))[1])
