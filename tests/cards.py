"""No-signal pictures to show to the judge, drawn or made by FFmpeg, and what a capture makes of them."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]
"""(height, width, 3): blue, green, red."""

Scene = Callable[[int], Frame]  # the frame with this number

WIDTH, HEIGHT = 1280, 720
BARS = ("smptebars", "smptehdbars", "pal75bars", "pal100bars")
BLUES = ("0000FF", "0000BE", "0000AA", "000080", "00005A", "1010EB", "101090", "0047AB", "1E3A8A", "003399")
GREYS = ("808080", "7F7F7F", "404040", "3C3C3C", "C0C0C0")
WHITE = (235, 235, 235)

_NOISE = np.random.default_rng(5).standard_normal((HEIGHT + 64, WIDTH + 64, 3)).astype(np.float32)


def plain(colour: str) -> Frame:
    """One colour, as RRGGBB."""
    red, green, blue = bytes.fromhex(colour)
    return np.full((HEIGHT, WIDTH, 3), (blue, green, red), np.uint8)


def write(frame: Frame, words: str, x: int, y: int, size: float = 2.0) -> Frame:
    """The frame with some words on it; `size` 2 is 44 px high."""
    frame = frame.copy()
    cv2.putText(frame, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, WHITE, round(2 * size), cv2.LINE_AA)
    return frame


def box(frame: Frame, x: int, y: int, width: int, height: int, colour: tuple[int, int, int]) -> Frame:
    """The frame with a filled box on it."""
    frame = frame.copy()
    frame[y : y + height, x : x + width] = colour
    return frame


@functools.cache
def ffmpeg_frame(source: str) -> Frame:
    """The first frame of one of FFmpeg's sources."""
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", f"{source}=size={WIDTH}x{HEIGHT}", "-frames:v", "1"]
    done = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "bgr24", "-"], capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(HEIGHT, WIDTH, 3)


def ffmpeg_jpegs(graph: str, frames: int = 10, quality: int = 5) -> list[bytes]:
    """What FFmpeg's own MJPEG encoder makes of a graph of its sources."""
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", graph, "-frames:v", str(frames), "-q:v", str(quality)]
    command += ["-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-f", "image2pipe", "-"]
    found = subprocess.run(command, capture_output=True, check=True).stdout.split(b"\xff\xd8\xff")[1:]
    assert len(found) == frames
    return [b"\xff\xd8\xff" + rest for rest in found]


def wandering(number: int) -> tuple[int, int]:
    """Where something that moves about is in this frame."""
    return 53 * number % 900, 60 + 31 * number % 500


def cards() -> dict[str, Scene]:
    """Every card that is to be known without learning."""
    found: dict[str, Scene] = {}
    for name in BARS:
        found[name] = partial(_bars, name)
        found[f"{name} with text"] = partial(_bars_with_text, name)
        found[f"{name} with a moving box"] = partial(_bars_with_a_box, name)
    for name in ("smptebars", "pal75bars"):
        found[f"{name} in 4:3"] = partial(_pillarboxed_bars, name)
    for colour in (*BLUES, *GREYS):
        found[f"#{colour}"] = partial(_plain, colour)
        found[f"#{colour} with two texts"] = partial(_plain_with_texts, colour)
        found[f"#{colour} with moving text"] = partial(_plain_with_moving_text, colour)
    found["#0000BE with black edges"] = lambda _: edged(plain("0000BE"))
    return found


def _bars(name: str, _: int) -> Frame:
    return ffmpeg_frame(name)


def _bars_with_text(name: str, _: int) -> Frame:
    return write(box(ffmpeg_frame(name), 400, 300, 480, 100, (0, 0, 0)), "NO SIGNAL", 430, 375, 2.5)


def _bars_with_a_box(name: str, number: int) -> Frame:
    return box(ffmpeg_frame(name), *wandering(number), 260, 180, (200, 40, 220))


def _pillarboxed_bars(name: str, _: int) -> Frame:
    return pillarboxed(ffmpeg_frame(name))


def _plain(colour: str, _: int) -> Frame:
    return plain(colour)


def _plain_with_texts(colour: str, _: int) -> Frame:
    return write(write(plain(colour), "No signal detected", 330, 380), "HDMI 1", 60, 80, 1.5)


def _plain_with_moving_text(colour: str, number: int) -> Frame:
    return write(plain(colour), "No signal", *wandering(number))


def pillarboxed(frame: Frame) -> Frame:
    """The frame in 4:3, between black."""
    wide = np.zeros_like(frame)
    wide[:, WIDTH // 8 : WIDTH - WIDTH // 8] = resized(frame, WIDTH - 2 * (WIDTH // 8))
    return wide


def edged(frame: Frame) -> Frame:
    """The frame with black edges, as overscan leaves them."""
    frame = frame.copy()
    frame[:12] = frame[-12:] = 0
    frame[:, :20] = frame[:, -16:] = 0
    return frame


def resized(frame: Frame, width: int = WIDTH, height: int = HEIGHT) -> Frame:
    """The frame in another size."""
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def gradient(top: tuple[float, float, float], bottom: tuple[float, float, float]) -> Frame:
    """From one colour to the other, from top to bottom."""
    share = np.linspace(0, 1, HEIGHT)[:, None]
    column = np.array(top) * (1 - share) + np.array(bottom) * share
    return np.rint(np.repeat(column[:, None], WIDTH, axis=1)).astype(np.uint8)


def captured(frame: Frame, sigma: float = 0.0, quality: int = 85, number: int = 0) -> bytes:
    """The frame under noise in every channel, as a JPEG; each number takes another cut-out of one noise field."""
    if sigma:
        top, left = number * 7 % 64, number * 13 % 64
        noise = sigma * _NOISE[top : top + HEIGHT, left : left + WIDTH]
        frame = np.clip(np.rint(frame + noise), 0, 255).astype(np.uint8)
    done, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return data.tobytes()
