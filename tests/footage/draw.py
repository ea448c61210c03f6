"""Drawing: letters, shapes and gradients on frames. Everything is anti-aliased and sized relative to the frame."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from tests.footage.clips import Frame, Size

Colour = tuple[int, int, int]
"""Blue, green, red."""

WHITE: Colour = (235, 235, 235)


@functools.lru_cache(maxsize=512)
def lettering(text: str, height: int) -> npt.NDArray[np.float32]:
    """Opacity 0-1 of a line of text, `height` px from ascender to descender."""
    font = ImageFont.load_default(max(6, round(height * 0.8)))
    width = max(1, round(font.getlength(text)) + 2)
    image = Image.new("L", (width, height), 0)
    ImageDraw.Draw(image).text((1, 0), text, fill=255, font=font)
    return np.asarray(image, np.float32) / np.float32(255)


def write(frame: Frame, text: str, x: float, y: float, height: float = 0.05, colour: Colour = WHITE) -> None:
    """Write a line; x, y (left, top) and height are shares of the frame's width and height."""
    mask = lettering(text, max(8, round(height * frame.shape[0])))
    blend(frame, mask, round(x * frame.shape[1]), round(y * frame.shape[0]), colour)


def blend(frame: Frame, mask: npt.NDArray[np.float32], left: int, top: int, colour: Colour) -> None:
    """Lay a colour over the frame where the mask is; what hangs over the edge is cut off."""
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + mask.shape[1], width), min(top + mask.shape[0], height)
    if x0 >= x1 or y0 >= y1:
        return
    part = frame[y0:y1, x0:x1]
    opacity = mask[y0 - top : y1 - top, x0 - left : x1 - left, None]
    part[:] = np.rint(part * (1 - opacity) + np.array(colour, np.float32) * opacity)


def box(frame: Frame, area: tuple[float, float, float, float], colour: Colour, opacity: float = 1.0) -> None:
    """Fill a rectangle (left, top, right, bottom as shares)."""
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = (round(share * side) for share, side in zip(area, (width, height) * 2, strict=True))
    part = frame[max(y0, 0) : y1, max(x0, 0) : x1]
    part[:] = np.rint(part * (1 - opacity) + np.array(colour, np.float32) * opacity)


def disc(frame: Frame, x: float, y: float, radius_px: float, colour: Colour, thickness: int = -1) -> None:
    """A disc or ring around x, y (shares), exact to 1/16 px."""
    centre = round(x * frame.shape[1] * 16), round(y * frame.shape[0] * 16)
    cv2.circle(frame, centre, max(1, round(radius_px * 16)), colour, thickness, cv2.LINE_AA, shift=4)


def plain(size: Size, colour: Colour) -> Frame:
    """A frame of one colour."""
    return np.full((size[1], size[0], 3), colour, np.uint8)


def gradient(size: Size, top: Colour, bottom: Colour) -> Frame:
    """From one colour down to another, dithered as graphics are."""
    steps = np.linspace(np.array(top, np.float32), np.array(bottom, np.float32), size[1])[:, None, :]
    dither = np.random.default_rng(5).random((size[1], size[0], 1), np.float32)
    return np.floor(np.broadcast_to(steps, (size[1], size[0], 3)) + dither).clip(0, 255).astype(np.uint8)


def fit(frame: Frame, size: Size) -> Frame:
    """Scaled and cropped to fill the size."""
    height, width = frame.shape[:2]
    scale = max(size[0] / width, size[1] / height)
    grown = max(size[0], round(width * scale)), max(size[1], round(height * scale))
    kind = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    scaled = frame if grown == (width, height) else cv2.resize(frame, grown, interpolation=kind)
    left, top = (grown[0] - size[0]) // 2, (grown[1] - size[1]) // 2
    return np.ascontiguousarray(scaled[top : top + size[1], left : left + size[0]], np.uint8)


def letterbox(frame: Frame, ratio: float = 2.39) -> Frame:
    """Black bars above and below, as a film has them."""
    height, width = frame.shape[:2]
    bar = max(0, round((height - width / ratio) / 2))
    frame[:bar] = frame[height - bar :] = 0
    return frame
