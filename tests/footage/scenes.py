"""Scenes that move: clips, films darkened or grained, pans, zooms, fades, programmes one after the other.

A scene is a recipe; `open` turns it into a painter, which gives the clean frame at any position: what the source would
show if nothing went wrong and the capture were perfect.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from tests.footage.clips import FPS, Frame, Library, Size
from tests.footage.draw import fit, letterbox

Painter = Callable[[int], Frame]
"""Position of a frame to the clean frame; the caller may draw on it."""

Motion = Literal["film", "drawn", "screen"]
"""How to tell whether it stands: a film is live unless no pixel of it changes, a drawn scene is live by design, and of
a screen (a menu, a desktop) the pixels alone tell."""


@dataclass(frozen=True)
class Scene:
    """Where the pictures come from (all clips in it), how they move, and how to paint them."""

    clips: tuple[str, ...]
    motion: Motion
    open: Callable[[Library, Size], Painter]
    until: tuple[tuple[int, Motion], ...] = ()  # of a programme: each part's end and motion

    def motion_at(self, at: int) -> Motion:
        """How it moves at a position."""
        return next((motion for end, motion in self.until if at < end), self.motion)

    def painted(self, alter: Callable[[Frame, int], Frame], motion: Motion | None = None) -> Scene:
        """With every frame altered by a function of frame and position."""

        def open_(library: Library, size: Size) -> Painter:
            painter = self.open(library, size)
            return lambda at: alter(painter(at), at)

        until = () if motion else self.until
        return replace(self, open=open_, motion=motion or self.motion, until=until)


def clip(name: str, start_s: float = 0.0, step: int = 1) -> Scene:
    """A clip from start_s on, every `step`th frame. At its end it runs backwards, so that no cut is made that is not
    meant; a clip stored at its full rate (step > 1) shows other frames on each pass."""

    def open_(library: Library, size: Size) -> Painter:
        length = library.length(name)
        order = list(range(0, length, step))
        for turn in range(1, step):
            onward = range(turn, length, step)
            order += reversed(onward) if turn % 2 else onward
        order += [at for at in reversed(order) if at not in (order[0], order[-1])]
        begin = round(start_s * FPS)
        return lambda at: fit(library.frame(name, order[(begin + at) % len(order)]), size)

    return Scene((name,), "film", open_)


def recording(name: str) -> Scene:
    """A screen recording, which says by its pixels when it stands."""
    return replace(clip(name), motion="screen")


def photo(name: str) -> Scene:
    """A photograph as a still picture."""

    def open_(library: Library, size: Size) -> Painter:
        picture = fit(library.photo(name), size)
        return lambda _: picture.copy()

    return Scene((f"photo {name}",), "screen", open_)


def playlist(*parts: tuple[Scene, float]) -> Scene:
    """Scenes one after the other by cuts, each for so many seconds (the last to the end)."""
    ends = list(itertools.accumulate(round(seconds * FPS) for _, seconds in parts))
    until = tuple((end, part.motion) for end, (part, _) in zip(ends, parts, strict=True))

    def open_(library: Library, size: Size) -> Painter:
        painters = [part.open(library, size) for part, _ in parts]

        def paint(at: int) -> Frame:
            index = min(sum(at >= end for end in ends), len(parts) - 1)
            return painters[index](at - (ends[index - 1] if index else 0))

        return paint

    clips = tuple(dict.fromkeys(name for part, _ in parts for name in part.clips))
    return Scene(clips, parts[-1][0].motion, open_, until)


def crossfades(parts: Sequence[Scene], stay_s: float, fade_s: float) -> Scene:
    """Slides that stay and melt into the next one."""
    stay, turn = round(stay_s * FPS), round((stay_s + fade_s) * FPS)

    def open_(library: Library, size: Size) -> Painter:
        painters = [part.open(library, size) for part in parts]

        def paint(at: int) -> Frame:
            here, there = painters[at // turn % len(parts)], painters[(at // turn + 1) % len(parts)]
            share = max(0, at % turn - stay + 1) / (turn - stay + 1)
            if not share:
                return here(at)
            return cv2.addWeighted(here(at), 1 - share, there(at), share, 0)  # type: ignore[return-value]

        return paint

    return Scene(tuple(name for part in parts for name in part.clips), "screen", open_)


def pan(still: Scene, dx: float, dy: float = 0.0, zoom: float = 0.0) -> Scene:
    """A slow camera over a still picture: px per frame to the right and down, and growth per frame."""

    def open_(library: Library, size: Size) -> Painter:
        width, height = size
        wide = still.open(library, (width * 3 // 2, height * 3 // 2))(0)
        margin = width / 4, height / 4

        def paint(at: int) -> Frame:
            scale = 1 + zoom * at
            left = margin[0] + _sway(dx * at, margin[0]) + width / 2 * (1 - 1 / scale)
            top = margin[1] + _sway(dy * at, margin[1]) + height / 2 * (1 - 1 / scale)
            matrix = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]], np.float32)
            return cv2.warpAffine(wide, matrix, size, flags=cv2.INTER_CUBIC)  # type: ignore[return-value]

        return paint

    return Scene(still.clips, "drawn", open_)


def _bytes(levels: npt.NDArray[np.float32]) -> Frame:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _sway(distance: float, margin: float) -> float:
    """To the edge and back again."""
    phase = distance % (4 * margin)
    return phase if phase <= margin else 2 * margin - phase if phase <= 3 * margin else phase - 4 * margin


def dark(scene: Scene, gain: float, bars: bool = True) -> Scene:
    """A dark film: every level times gain, with letterbox bars."""

    def alter(frame: Frame, _: int) -> Frame:
        dimmed = cv2.convertScaleAbs(frame, alpha=gain)
        return letterbox(dimmed) if bars else dimmed  # type: ignore[arg-type, return-value]

    return scene.painted(alter)


def night(scene: Scene, top: int) -> Scene:
    """A scene after dark: compressed into levels 0 to `top`, blueish, contrast kept in the highlights."""
    ramp = (np.linspace(0, 1, 256) ** 1.6 * top).astype(np.float32)
    table = np.rint(np.stack([ramp * 1.1, ramp * 0.95, ramp * 0.8], -1)).clip(0, 255).astype(np.uint8)[None]
    return scene.painted(lambda frame, _: cv2.LUT(frame, table))  # type: ignore[arg-type, return-value]


def grained(scene: Scene, sigma: float, seed: int) -> Scene:
    """Film grain: part of the picture, fresh in every frame, a little blurred."""
    random = np.random.default_rng(seed)
    field = cv2.GaussianBlur(random.standard_normal((1200, 1600), np.float32), (0, 0), 0.8)
    field *= sigma / field.std()

    def alter(frame: Frame, at: int) -> Frame:
        top, left = at * 37 % 400, at * 61 % 300
        grain = field[top : top + frame.shape[0], left : left + frame.shape[1], None]
        return _bytes(frame + grain)

    return scene.painted(alter, "drawn" if scene.motion != "film" else "film")


def slow_fade(scene: Scene, low: float, high: float, period_s: float) -> Scene:
    """Brightness that goes slowly up and down: live by design, whatever the scene."""

    def alter(frame: Frame, at: int) -> Frame:
        phase = at / FPS / period_s % 1
        gain = low + (high - low) * (1 - abs(2 * phase - 1))
        return cv2.convertScaleAbs(frame, alpha=gain)  # type: ignore[return-value]

    return scene.painted(alter, "drawn")


def low_rate(scene: Scene, every: int) -> Scene:
    """A source that shows a new picture only every so many frames: a stream of 1 or 2 pictures per second."""

    def open_(library: Library, size: Size) -> Painter:
        painter = scene.open(library, size)
        return lambda at: painter(at // every * every)

    return Scene(scene.clips, "screen", open_)


def inset(back: Scene, front: Scene, area: tuple[float, float, float, float]) -> Scene:
    """A small live picture in a still one: a menu with the programme still running."""

    def open_(library: Library, size: Size) -> Painter:
        x0, y0, x1, y1 = (round(share * side) for share, side in zip(area, size * 2, strict=True))
        behind, before = back.open(library, size), front.open(library, (x1 - x0, y1 - y0))

        def paint(at: int) -> Frame:
            frame = behind(at)
            frame[y0:y1, x0:x1] = before(at)
            return frame

        return paint

    return Scene((*back.clips, *front.clips), front.motion, open_)
