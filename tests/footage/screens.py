"""Scenes that are drawn: menus, slates, cards, credits, night scenes, snow. Each takes a seed, which makes another
clip: another layout, other colours, other words."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import cv2
import numpy as np

from tests.footage.clips import FPS, Frame, Library, Size
from tests.footage.draw import Colour, box, disc, gradient, letterbox, lettering, plain, write
from tests.footage.overlays import Draw
from tests.footage.scenes import Motion, Painter, Scene

_Picture = Callable[[Size], Frame]

_WORDS = ("Live TV", "Guide", "Recordings", "Films", "Series", "Sport", "Kids", "Music", "Apps", "Settings", "Search")


def menu(seed: int, *draws: Draw) -> Scene:
    """A set-top box's menu, still but for what is drawn on it (clock, spinner, cursor, pointer)."""
    dice = random.Random(f"menu {seed}")
    hue: Colour = (dice.randint(30, 90), dice.randint(15, 60), dice.randint(10, 50))
    words, columns = dice.sample(_WORDS, 8), dice.choice((1, 2, 4))

    def picture(size: Size) -> Frame:
        frame = gradient(size, hue, (hue[0] // 3, hue[1] // 3, hue[2] // 3))
        write(frame, "Home", 0.06, 0.06, 0.09)
        rows = 8 // columns
        for at, word in enumerate(words):
            x, y = 0.06 + 0.9 / columns * (at % columns), 0.22 + 0.74 / rows * (at // columns)
            lit = at == seed % 8
            shade: Colour = (200, 140, 60) if lit else (hue[0] + 30, hue[1] + 30, hue[2] + 30)
            box(frame, (x, y, x + 0.84 / columns, y + 0.6 / rows), shade)
            write(frame, word, x + 0.02, y + 0.05 / rows, min(0.07, 0.4 / rows))
        return frame

    return _still(f"menu {seed}", picture, draws)


def guide(seed: int, *draws: Draw) -> Scene:
    """A programme guide: small text in a grid over a dark ground; the highlight moves now and then."""
    dice = random.Random(f"guide {seed}")
    cells = [(row, dice.uniform(0.12, 0.3), dice.choice(_WORDS)) for row in range(9) for _ in range(5)]

    def picture(size: Size) -> Frame:
        frame, left, last = plain(size, (32, 26, 22)), 0.12, 0
        for row, width, word in cells:
            left = 0.12 if row != last else left
            last = row
            box(frame, (left, 0.1 * row + 0.08, left + width - 0.004, 0.1 * row + 0.165), (64, 48, 40))
            write(frame, f"{word} {row}", left + 0.01, 0.1 * row + 0.1, 0.045)
            write(frame, f"{row + 1:02d}", 0.03, 0.1 * row + 0.1, 0.05)
            left += width
        return frame

    def highlight(frame: Frame, at: int) -> None:
        step = at // (7 * FPS)
        row, left = (seed + step) % 9, 0.12 + 0.2 * (step % 4)
        box(frame, (left, 0.1 * row + 0.08, left + 0.2, 0.1 * row + 0.165), (200, 160, 60), 0.5)

    return _still(f"guide {seed}", picture, (highlight, *draws))


def slate(seed: int, *draws: Draw) -> Scene:
    """A station's ident: a logo on a gradient."""
    dice = random.Random(f"slate {seed}")
    top: Colour = (dice.randint(60, 200), dice.randint(40, 140), dice.randint(20, 120))

    def picture(size: Size) -> Frame:
        frame = gradient(size, top, (20, 20, 20))
        disc(frame, 0.5, 0.45, size[1] * 0.2, (220, 220, 220))
        disc(frame, 0.5, 0.45, size[1] * 0.17, top)
        write(frame, f"Channel {seed}", 0.38, 0.72, 0.09)
        return frame

    return _still(f"slate {seed}", picture, draws)


def card(seed: int, colour: Colour, text: str = "", *draws: Draw) -> Scene:
    """What a grabber shows without a signal: one colour, and perhaps a text."""

    def picture(size: Size) -> Frame:
        frame = plain(size, colour)
        if text:
            write(frame, text, 0.36, 0.44, 0.1)
        return frame

    return _still(f"card {seed}", picture, draws)


def bars(seed: int) -> Scene:
    """Colour bars, brighter or darker."""
    level = (191, 140, 96)[seed % 3]

    def picture(size: Size) -> Frame:
        frame = plain(size, (0, 0, 0))
        for bar in range(7):
            code = 7 - bar
            colour: Colour = (level * (code & 1), level * (code >> 2 & 1), level * (code >> 1 & 1))
            box(frame, (bar / 7, 0, (bar + 1) / 7, 0.8), colour)
        return frame

    return _still(f"bars {seed}", picture, ())


def floating_text(seed: int, colour: Colour, text: str) -> Scene:
    """A card whose text drifts about to spare the screen."""

    def float_(frame: Frame, at: int) -> None:
        x, y = 0.35 + 0.3 * math.sin(at / 31 + seed), 0.45 + 0.4 * math.sin(at / 23)
        write(frame, text, x, y, 0.08)

    return _moving(f"floating {seed}", lambda size: plain(size, colour), (float_,))


def credits_roll(seed: int, px_per_frame: float = 6.0) -> Scene:
    """Rolling end credits over black: not black."""
    dice = random.Random(f"credits {seed}")
    names = [f"{dice.choice(_WORDS)} {dice.choice(_WORDS)}   {dice.choice(_WORDS)}son" for _ in range(60)]

    def roll(frame: Frame, at: int) -> None:
        height = frame.shape[0]
        shift = px_per_frame * height / 360 * at / height
        for line, name in enumerate(names):
            y = 0.1 * line - shift % 6.0
            write(frame, name, 0.28 + 0.02 * (line % 3), y, 0.055)
            write(frame, name, 0.28 + 0.02 * (line % 3), y + 6.0, 0.055)

    return _moving(f"credits {seed}", lambda size: plain(size, (0, 0, 0)), (roll,))


def credit_cards(seed: int) -> Scene:
    """Single cards of credits over black, four seconds each: neither black nor a fault."""
    dice = random.Random(f"cards {seed}")
    lines = [[dice.choice(_WORDS) + " " + dice.choice(_WORDS) for _ in range(7)] for _ in range(6)]

    def show(frame: Frame, at: int) -> None:
        for row, text in enumerate(lines[at // (4 * FPS) % len(lines)]):
            write(frame, text, 0.3, 0.1 + 0.115 * row, 0.07)

    return _still(f"credit cards {seed}", lambda size: plain(size, (0, 0, 0)), (show,))


def night_street(seed: int, lights: int = 60) -> Scene:
    """A dark street: many small lights, of which a few twinkle and one car drives."""
    dice = random.Random(f"night {seed}")
    spots = [(dice.random(), dice.uniform(0.15, 0.95), dice.uniform(0.8, 3.0), dice.random()) for _ in range(lights)]

    def live(frame: Frame, at: int) -> None:
        scale = frame.shape[0] / 360
        for index, (x, y, radius, phase) in enumerate(spots):
            twinkle = 0.75 + 0.25 * math.sin(at * 0.9 + 6.28 * phase) if index % 7 == 0 else 1.0
            disc(frame, x, y, radius * scale, (round(120 * twinkle), round(190 * twinkle), round(230 * twinkle)))
        x = (0.013 * at + 0.2 * seed) % 1.2 - 0.1
        disc(frame, x, 0.8, 2.5 * scale, (230, 235, 235))
        disc(frame, x + 0.012, 0.8, 2.5 * scale, (230, 235, 235))

    return _moving(f"night {seed}", lambda size: letterbox(gradient(size, (14, 8, 6), (4, 3, 3)), 2.2), (live,))


def ember(seed: int) -> Scene:
    """A nearly dark room: soft dim shapes between levels 0 and 30 that drift slowly."""
    random_ = np.random.default_rng(seed)
    field = cv2.resize(random_.random((24, 40), np.float32), (1600, 960), interpolation=cv2.INTER_CUBIC)

    def live(frame: Frame, at: int) -> None:
        height, width = frame.shape[:2]
        matrix = np.array([[1, 0, -0.6 * at % 300], [0, 1, -0.25 * at % 200]], np.float32)
        part = cv2.warpAffine(field, matrix, (width, height), flags=cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR)
        frame[:] = np.rint(np.clip(part, 0, 1)[..., None] * np.array([26, 28, 32], np.float32)).astype(np.uint8)

    return _moving(f"ember {seed}", lambda size: plain(size, (0, 0, 0)), (live,))


def speck(seed: int) -> Scene:
    """A fixed camera on a quiet place, where only a bird of 8 px in 360 flies now and then, and it blends in."""
    dice = random.Random(f"speck {seed}")
    tint: Colour = (dice.randint(150, 210), dice.randint(140, 190), dice.randint(120, 170))

    def picture(size: Size) -> Frame:
        frame = gradient(size, tint, (90, 110, 100))
        for at in range(24):
            box(frame, (at / 24, 0.7 - 0.02 * (at * 7 % 5), (at + 0.8) / 24, 1), (40 + 3 * at, 60 + 2 * at, 50))
        return frame

    def bird(frame: Frame, at: int) -> None:
        x, y = (0.011 * at) % 1.0, 0.3 + 0.1 * math.sin(at / 9)
        disc(frame, x, y, 4 * frame.shape[0] / 360, (110, 105, 95))

    return _drawn(f"speck {seed}", picture, (bird,), "film")


def snow(seed: int) -> Scene:
    """The noise of an untuned tuner."""
    random_ = np.random.default_rng(seed)
    field = random_.normal(110, 55, (1000, 1700)).clip(0, 255).astype(np.uint8)

    def live(frame: Frame, at: int) -> None:
        top, left = at * 53 % 250, at * 97 % 400
        frame[:] = field[top : top + frame.shape[0], left : left + frame.shape[1], None]

    return _moving(f"snow {seed}", lambda size: plain(size, (0, 0, 0)), (live,))


def glow(seed: int) -> Scene:
    """A slate whose logo breathes: a small soft change in the middle of a still picture."""

    def breathe(frame: Frame, at: int) -> None:
        height, width = frame.shape[:2]
        mask = lettering(f"CHANNEL {seed}", height // 6)
        level = round(140 + 40 * math.sin(at / 8))
        frame_part = frame[height // 2 :, width // 4 :][: mask.shape[0], : mask.shape[1]]
        opacity = mask[: frame_part.shape[0], : frame_part.shape[1], None]
        frame_part[:] = np.rint(frame_part * (1 - opacity) + level * opacity)

    return _drawn(f"glow {seed}", lambda size: gradient(size, (90, 40, 20), (30, 10, 5)), (breathe,), "film")


def _still(name: str, picture: _Picture, draws: tuple[Draw, ...]) -> Scene:
    return _drawn(name, picture, draws, "screen")


def _moving(name: str, picture: _Picture, draws: tuple[Draw, ...]) -> Scene:
    return _drawn(name, picture, draws, "drawn")


def _drawn(name: str, picture: _Picture, draws: tuple[Draw, ...], motion: Motion) -> Scene:
    def open_(_: Library, size: Size) -> Painter:
        ground = picture(size)

        def paint(at: int) -> Frame:
            frame = ground.copy()
            for draw in draws:
                draw(frame, at)
            return frame

        return paint

    return Scene((name,), motion, open_)
