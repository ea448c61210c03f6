"""From a case's recipe to its frames and their truth."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from pipeline import truth as labels
from pipeline.truth import Fault, Split, Truth
from tests.footage import truths
from tests.footage.capture import Camera, Capture, write_frames
from tests.footage.clips import FPS, Frame, Library, Size
from tests.footage.draw import plain
from tests.footage.overlays import Overlay
from tests.footage.scenes import Scene


@dataclass(frozen=True)
class Freeze:
    """The programme stands from first_s to before last_s and then goes on where it would be by then. `repeat`: the
    very same files; otherwise the capture and the overlays go on."""

    first_s: float
    last_s: float = math.inf
    repeat: bool = False
    kind: str = "noise"


@dataclass(frozen=True)
class Black:
    """No picture from first_s to before last_s. The fades lie before and after. `known` None: not to be judged."""

    first_s: float
    last_s: float = math.inf
    level: int = 0
    fade_out_s: float = 0.0
    fade_in_s: float = 0.0
    kind: str = "black"
    known: bool | None = True


@dataclass(frozen=True)
class Case:
    """One recipe."""

    name: str
    theme: str
    kind: Literal["plain", "hard"]
    split: Split
    scene: Scene
    seconds: float
    size: Size = (640, 360)
    freezes: tuple[Freeze, ...] = ()
    blacks: tuple[Black, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    capture: Capture = field(default_factory=Capture)

    @property
    def frames(self) -> int:
        return round(self.seconds * FPS)


def build(case: Case, library: Library, directory: Path) -> None:
    """Make the case's directory, at once or not at all."""
    assert case.capture.encoder == "turbo" or not any(event.repeat for event in case.freezes), "FFmpeg repeats no file"
    with whole(directory / case.name) as temporary:
        observer, camera = truths.Observer(), Camera(case.capture, case.size, case.name)
        write_frames(_captured(case, library, observer, camera), camera, case.size, temporary)
        labels.write(temporary, _label(case, observer))


@contextlib.contextmanager
def whole(place: Path) -> Iterator[Path]:
    """A directory to fill, which is at its place only once the block has ended well."""
    temporary = place.with_name(f".{place.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    yield temporary
    shutil.rmtree(place, ignore_errors=True)
    temporary.rename(place)


def _captured(case: Case, library: Library, observer: truths.Observer, camera: Camera) -> Iterator[tuple[Frame, bool]]:
    paint = case.scene.open(library, case.size)
    frozen: Frame | None = None
    for at in range(case.frames):
        freeze = next((event for event in case.freezes if _within(at, event)), None)
        frozen_for = at - _frame(freeze.first_s) if freeze else -1
        if frozen_for <= 0 or frozen is None:
            frozen = paint(at)
        clean, black = _dimmed(case, frozen.copy(), at)
        for overlay in case.overlays:
            if overlay.shown(at):
                overlay.draw(clean, at)
        motion = case.scene.motion_at(at - max(frozen_for, 0))
        observer.see(clean, motion, black, frozen_for)
        yield camera.capture(clean, at), bool(freeze and freeze.repeat and frozen_for > 0)


def _dimmed(case: Case, clean: Frame, at: int) -> tuple[Frame, bool | None]:
    """With the black or the fade that is due, and whether that is black."""
    for event in case.blacks:
        if _within(at, event):
            return plain(case.size, (event.level,) * 3), event.known
        gain = _gain(event, at)
        if gain < 1:
            faded = cv2.addWeighted(clean, gain, np.full_like(clean, event.level), 1 - gain, 0)
            return faded, truths.fading_is_black(faded)  # type: ignore[arg-type, return-value]
    return clean, False


def _gain(event: Black, at: int) -> float:
    """1 is the full picture."""
    before, after = _frame(event.first_s) - at, at - _frame(event.last_s) + 1
    if 0 < before <= event.fade_out_s * FPS:
        return before / (event.fade_out_s * FPS + 1)
    if 0 < after <= event.fade_in_s * FPS:
        return after / (event.fade_in_s * FPS + 1)
    return 1.0


def _label(case: Case, observer: truths.Observer) -> Truth:
    freeze = truths.freeze_truth(observer.facts)
    last = case.frames - 1
    faults = [_fault(event, "freeze", last) for event in case.freezes]
    faults += [_fault(event, "black", last) for event in case.blacks if event.known]
    return Truth(
        fps=FPS,
        freeze=tuple(freeze.known),
        black=truths.black_truth(observer.facts),
        clip=" + ".join(case.scene.clips),
        split=case.split,
        kind=case.kind,
        theme=case.theme,
        still=truths.spans(freeze.still),
        pause=truths.spans(freeze.pause),
        faults=tuple(sorted(faults, key=lambda fault: fault.first)),
        macroblocks=(False,) * case.frames,  # nobody has broken it; see `broken`
    )


def _fault(event: Freeze | Black, condition: Literal["freeze", "black"], last: int) -> Fault:
    return Fault(condition, event.kind, _frame(event.first_s), min(_frame(event.last_s) - 1, last))


def _within(at: int, event: Freeze | Black) -> bool:
    return _frame(event.first_s) <= at < _frame(event.last_s)


def _frame(seconds: float) -> int:
    """Position of the frame at this time; far beyond the end for infinity."""
    return round(min(seconds, 1e6) * FPS)
