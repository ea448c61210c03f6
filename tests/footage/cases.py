"""The cases of the set: every recipe once per split, on that split's own clips, photographs, seeds and recordings."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.truth import Split
from tests.footage.capture import Capture
from tests.footage.clips import Size
from tests.footage.compose import Case
from tests.footage.scenes import Scene, clip, recording

SIZES: tuple[Size, ...] = (
    (640, 360),
    (640, 480),
    (854, 480),
    (640, 360),
    (720, 576),
    (1024, 576),
    (640, 360),
    (1280, 720),
)


@dataclass(frozen=True)
class Stock:
    """What one split may use. Nothing is in both."""

    split: Split
    clips: tuple[Scene, ...]  # real ones, the one with most motion first
    steady: Scene  # a real one with little motion, from a fixed camera
    films: tuple[Scene, ...]  # FFmpeg's: a zoom, a test picture, a game of life
    clouds: Scene
    photos: tuple[str, ...]
    seed: int  # of drawn scenes
    busy: tuple[Scene, ...]  # recordings on which something moves all the time
    desktops: tuple[Scene, ...]  # others

    def seeds(self) -> itertools.count[int]:
        """Fresh seeds, the same in every run."""
        return itertools.count(self.seed)

    def clip(self, at: int) -> Scene:
        """The clips in turn."""
        return self.clips[at % len(self.clips)]

    def photo(self, at: int) -> str:
        """The photographs in turn."""
        return self.photos[at % len(self.photos)]


TUNING = Stock(
    split="tuning",
    clips=(clip("bigbuckbunny", step=5), clip("carphone", step=6), clip("cup", step=5), clip("vtest")),
    steady=clip("vtest", 30),
    films=(clip("mandelbrot-a"), clip("testsrc-a"), clip("life-a")),
    clouds=clip("clouds-a"),
    photos=("fruits.jpg", "graf1.png", "messi5.jpg", "home.jpg", "leuvenA.jpg", "smarties.png"),
    seed=100,
    busy=(recording("desktop-top"), recording("desktop-log")),
    desktops=(recording("desktop-clock"), recording("desktop-typing"), recording("desktop-slides-a")),
)
VALIDATION = Stock(
    split="validation",
    clips=(clip("bikes", step=5), clip("box"), clip("tree")),
    steady=clip("tree", 4),
    films=(clip("mandelbrot-b"), clip("testsrc-b"), clip("life-b")),
    clouds=clip("clouds-b"),
    photos=("starry_night.jpg", "building.jpg", "aloeL.jpg", "rubberwhale1.png", "baboon.jpg", "board.jpg"),
    seed=200,
    busy=(recording("desktop-fast-log"), recording("desktop-top-slow")),
    desktops=tuple(recording(f"desktop-{name}") for name in ("eyes", "digital", "still", "slides-b")),
)
STOCKS = (TUNING, VALIDATION)


def make(
    stock: Stock,
    theme: str,
    what: str,
    scene: Scene,
    seconds: float,
    *,
    kind: Literal["plain", "hard"] = "hard",
    **more: Any,
) -> Case:
    """A case whose size and encoding are drawn by its name, where they are not given."""
    name = f"{stock.split[0]}-{theme}-{what}".replace(" ", "-")
    dice = random.Random(name)
    more.setdefault("size", dice.choice(SIZES))
    more.setdefault("capture", encoding(name))
    return Case(name, theme, kind, stock.split, scene, seconds, **more)


def encoding(name: str, **noise: Any) -> Capture:
    """A capture with this noise, and an encoding drawn by the name: quality 60 to 95, 4:2:0 or 4:2:2, grabber or
    FFmpeg."""
    dice = random.Random(f"encoding {name}")
    quality = dice.choice((60, 70, 80, 85, 90, 95))
    noise.setdefault("quality", (quality, quality))
    return Capture(sampling=dice.choice(("420", "422")), encoder=dice.choice(("turbo", "turbo", "ffmpeg")), **noise)
