"""What stands over a picture: logo, clock, ticker, spinner, banner, subtitles. Each is a function that draws on a frame
at a position, and an Overlay says from when to when."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from tests.footage.clips import FPS, Frame
from tests.footage.draw import WHITE, Colour, box, disc, write

Draw = Callable[[Frame, int], None]


@dataclass(frozen=True)
class Overlay:
    """Drawn from first_s to before last_s, over a frozen picture as over a live one."""

    draw: Draw
    first_s: float = 0.0
    last_s: float = math.inf

    def shown(self, at: int) -> bool:
        return self.first_s * FPS <= at < self.last_s * FPS


def logo(x: float = 0.88, y: float = 0.05, text: str = "TV9") -> Draw:
    """A station's logo in a corner."""

    def draw(frame: Frame, _: int) -> None:
        disc(frame, x - 0.015, y + 0.03, 0.02 * frame.shape[0], (60, 120, 230))
        write(frame, text, x, y, 0.06)

    return draw


def clock(x: float = 0.82, y: float = 0.04, height: float = 0.06, seconds: bool = True, start: int = 73800) -> Draw:
    """A digital clock; without seconds it changes once a minute."""

    def draw(frame: Frame, at: int) -> None:
        now = start + at // FPS
        text = f"{now // 3600 % 24:02d}:{now // 60 % 60:02d}" + (f":{now % 60:02d}" if seconds else "")
        write(frame, text, x, y, height)

    return draw


def ticker(y: float = 0.9, px_per_frame: float = 18.0, colour: Colour = (60, 20, 20)) -> Draw:
    """A line of news running along the bottom."""
    text = (
        "+++ News of the hour: nothing has happened +++ The weather stays as it is +++ Sport: one all after extra time "
    )

    def draw(frame: Frame, at: int) -> None:
        box(frame, (0, y, 1, y + 0.08), colour)
        width = frame.shape[1]
        write(frame, text + text, -(px_per_frame * at % (width * 1.2)) / width, y + 0.01, 0.06)

    return draw


def spinner(x: float = 0.5, y: float = 0.5, radius: float = 0.05) -> Draw:
    """A waiting circle: an arc that turns by 36 degrees per frame."""

    def draw(frame: Frame, at: int) -> None:
        height, width = frame.shape[:2]
        centre, size = (round(x * width), round(y * height)), round(radius * height)
        cv2.ellipse(frame, centre, (size, size), 36 * at % 360, 0, 100, WHITE, max(2, size // 5), cv2.LINE_AA)

    return draw


def banner(title: str = "12  Channel Twelve", seed: int = 0) -> Draw:
    """The programme banner of a channel change, over the bottom fifth."""
    now = 18 + seed % 5

    def draw(frame: Frame, _: int) -> None:
        box(frame, (0.06, 0.78, 0.94, 0.96), (70, 40, 25), 0.9)
        write(frame, title, 0.09, 0.80, 0.07)
        write(frame, f"{now}:15 - {now + 1}:00  The evening programme", 0.09, 0.88, 0.05, (180, 180, 180))
        box(frame, (0.70, 0.91, 0.90, 0.92), (90, 90, 90))
        box(frame, (0.70, 0.91, 0.79, 0.92), (60, 160, 250))

    return draw


def volume(bars: int = 9) -> Draw:
    """A volume bar that grows, as when somebody holds the key."""

    def draw(frame: Frame, at: int) -> None:
        for bar in range(12):
            colour: Colour = (60, 200, 60) if bar <= (at // 2 + bars) % 12 else (60, 60, 60)
            box(frame, (0.2 + 0.05 * bar, 0.86, 0.24 + 0.05 * bar, 0.91), colour)

    return draw


def subtitles(every_s: float = 3.0, lines: int = 2) -> Draw:
    """Two lines of text that change."""
    texts = (
        ("I have told you before,", "nobody must know of it."),
        ("Then why did you come here", "in the middle of the night?"),
        ("Because the telephone is dead.", ""),
        ("Listen! Somebody is at the door.", "Put out the light."),
    )

    def draw(frame: Frame, at: int) -> None:
        for line, text in enumerate(texts[int(at / FPS / every_s) % len(texts)][:lines]):
            write(frame, text, 0.5 - 0.0125 * len(text), 0.80 + 0.08 * line, 0.07)

    return draw


def cursor(x: float = 0.31, y: float = 0.42) -> Draw:
    """A text cursor that blinks every 0.53 s."""

    def draw(frame: Frame, at: int) -> None:
        if int(at / FPS / 0.53) % 2:
            box(frame, (x, y, x + 0.003, y + 0.045), WHITE)

    return draw


def pointer(moves: Callable[[int], tuple[float, float]]) -> Draw:
    """A mouse pointer where the function says."""

    def draw(frame: Frame, at: int) -> None:
        height, width = frame.shape[:2]
        x, y = moves(at)
        left, top, side = round(x * width), round(y * height), max(8, round(0.03 * height))
        corners = np.array([(left, top), (left, top + side), (left + side * 2 // 3, top + side * 2 // 3)])
        cv2.fillPoly(frame, [corners], (250, 250, 250), cv2.LINE_AA)
        cv2.polylines(frame, [corners], True, (10, 10, 10), 1, cv2.LINE_AA)

    return draw


def wandering(at: int) -> tuple[float, float]:
    """A pointer that never rests."""
    return 0.5 + 0.3 * math.sin(at / 17), 0.5 + 0.3 * math.cos(at / 23)


def resting(at: int) -> tuple[float, float]:
    """A pointer that is moved for 2 s every 9 s."""
    moved = at // (9 * FPS) * 2 * FPS + min(at % (9 * FPS), 2 * FPS)
    return wandering(moved * 3)
