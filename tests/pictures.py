"""Pictures for tests of detectors: scenes drawn at 1280x720, made noisy, encoded as JPEG."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.tiles import Picture

Scene = Callable[[int], npt.NDArray[np.uint8]]  # the frame at full size with this number

WIDTH, HEIGHT = 1280, 720
NOISE = np.random.default_rng(1).standard_normal((HEIGHT + 64, WIDTH + 64), np.float32)


def noisy(frame: npt.NDArray[np.uint8], sigma: float, number: int = 0) -> npt.NDArray[np.uint8]:
    """The frame under grey noise; each number takes another cut-out of one noise field."""
    top, left = number * 7 % 64, number * 13 % 64
    noise = sigma * NOISE[top : top + HEIGHT, left : left + WIDTH]
    return np.clip(np.rint(frame + (noise if frame.ndim == 2 else noise[..., None])), 0, 255).astype(np.uint8)


def jpeg(frame: npt.NDArray[np.uint8], quality: int = 90) -> bytes:
    return cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def grey(level: int) -> npt.NDArray[np.uint8]:
    return np.full((HEIGHT, WIDTH), level, np.uint8)


def colour(blue: int, green: int, red: int) -> npt.NDArray[np.uint8]:
    return np.full((HEIGHT, WIDTH, 3), (blue, green, red), np.uint8)


def text(frame: npt.NDArray[np.uint8], *lines: tuple[str, int, int, float]) -> npt.NDArray[np.uint8]:
    frame = frame.copy()
    for words, x, y, size in lines:
        cv2.putText(frame, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, (230,), 3)
    return frame


def rounded(levels: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.rint(levels).astype(np.uint8)


def letterboxed(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    frame = frame.copy()
    bar = round((HEIGHT - WIDTH / 2.39) / 2)
    frame[:bar] = frame[-bar:] = 0
    return frame


def ramp(top: int) -> npt.NDArray[np.uint8]:
    return np.rint(np.tile(np.linspace(0, top, WIDTH), (HEIGHT, 1))).astype(np.uint8)


def texture(top: float, shift: float = 0.0) -> npt.NDArray[np.float32]:
    """Structure of 16 px and more, 0 to `top` levels, moved left by `shift` px."""
    seeds = np.random.default_rng(2).random((50, 90), np.float32)
    large = cv2.resize(seeds, None, fx=16, fy=16, interpolation=cv2.INTER_CUBIC)
    moved = cv2.warpAffine(large, np.array([[1, 0, -shift], [0, 1, 0]], np.float32), (WIDTH, HEIGHT))
    return np.clip(moved, 0, 1) * top


def lights(count: int) -> npt.NDArray[np.uint8]:
    frame, random = grey(0), np.random.default_rng(3)
    for x, y in random.integers((0, HEIGHT // 3), (WIDTH, HEIGHT), (count, 2)).tolist():
        cv2.circle(frame, (x, y), 5, (220,), -1)
    return frame


LOGO = ("TV9", 1150, 70, 1.5)
CLOCK = ("20:15:33", 60, 70, 1.2)
SUBTITLES = (
    ("This is a long line of subtitles", 130, 610, 1.8),
    ("and here the second long line", 170, 680, 1.8),
)
CREDITS = [("An actor's name as a character", 300, 60 + 55 * line, 1.0) for line in range(12)]


def picture(*areas: tuple[slice, slice, int], base: int = 16) -> Picture:
    """A 160x90 picture of level `base` with rectangles (rows, columns, level) in it; a tile is 10x10."""
    pixels = np.full((90, 160), base, np.uint8)
    for rows, columns, level in areas:
        pixels[rows, columns] = level
    return pixels
