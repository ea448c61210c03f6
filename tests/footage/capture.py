"""The capture: what a grabber and its cable make of a clean frame, and the JPEG it is written as.

All randomness comes from the case's name, so that the set is the same wherever it is built with the same versions of
OpenCV and FFmpeg.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from tests.footage.clips import FPS, Frame, Size

_MARGIN = 64  # the noise field is larger than the frame: every frame takes another cut-out, mirrored or not


@dataclass(frozen=True)
class Capture:
    """How a case is captured; the defaults are a clean digital path."""

    sigma: float = 0.0  # levels: luma noise, fresh in every frame
    blur: float = 0.0  # px: how far neighbouring noise is alike, as on an analogue line
    chroma: float = 0.0  # levels: colour noise
    flicker: float = 0.0  # levels: how much the brightness of the whole frame wavers
    hum: float = 0.0  # levels: a bar of brightness that wanders up the frame
    jitter: float = 0.0  # px: how much the lines shift sideways, all together
    pedestal: int = 0  # level of black; white stays
    quality: tuple[int, int] = (85, 85)  # JPEG quality, lowest and highest; it wavers in between
    sampling: Literal["420", "422"] = "420"
    encoder: Literal["turbo", "ffmpeg"] = "turbo"  # libjpeg-turbo as cameras have it, or FFmpeg's own


class Camera:
    """Captures the frames of one case."""

    def __init__(self, capture: Capture, size: Size, seed: str) -> None:
        self._capture = capture
        self._dice = random.Random(seed)
        self._field = _field(capture, size, self._dice.getrandbits(32))
        self._table = np.rint(np.linspace(capture.pedestal, 255, 256)).astype(np.uint8)

    def capture(self, clean: Frame, at: int) -> Frame:
        """The frame as it arrives."""
        settings = self._capture
        frame: cv2.typing.MatLike = cv2.LUT(clean, self._table) if settings.pedestal else clean
        if settings.jitter:
            shift = np.array([[1, 0, self._dice.gauss(0, settings.jitter)], [0, 1, 0]], np.float32)
            frame = cv2.warpAffine(frame, shift, (frame.shape[1], frame.shape[0]), borderMode=cv2.BORDER_REPLICATE)
        if settings.hum or settings.flicker:
            frame = self._wavering(frame, at)
        if self._field is not None:
            frame = cv2.add(frame, self._noise(frame.shape[0], frame.shape[1]), dtype=cv2.CV_8U)
        return frame  # type: ignore[return-value]  # bytes in, bytes out

    def encode(self, frame: Frame) -> bytes:
        """The JPEG of a captured frame."""
        low, high = self._capture.quality
        sampling = {"420": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, "422": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422}
        options = [cv2.IMWRITE_JPEG_QUALITY, self._dice.randint(low, high)]
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling[self._capture.sampling]]
        done, data = cv2.imencode(".jpg", frame, options)
        assert done
        return data.tobytes()

    def _noise(self, height: int, width: int) -> npt.NDArray[np.int16]:
        assert self._field is not None
        top, left = self._dice.randrange(_MARGIN), self._dice.randrange(_MARGIN)
        noise = self._field[top : top + height, left : left + width]
        return noise[:: self._dice.choice((1, -1)), :: self._dice.choice((1, -1))]

    def _wavering(self, frame: cv2.typing.MatLike, at: int) -> Frame:
        settings, height = self._capture, frame.shape[0]
        rows = np.arange(height, dtype=np.float32) / height
        wave = settings.hum * np.sin(6.2832 * (1.5 * rows + 0.11 * at)) + self._dice.gauss(0, settings.flicker)
        wavering: Frame = np.clip(np.rint(frame + wave[:, None, None]), 0, 255).astype(np.uint8)
        return wavering


def write_frames(frames: Iterable[tuple[Frame, bool]], camera: Camera, size: Size, directory: Path) -> None:
    """Write capture_%09d.jpg from 1 on. A frame that comes with True is the very file of the one before."""
    settings = camera._capture
    if settings.encoder == "ffmpeg":
        _write_through_ffmpeg((frame for frame, _ in frames), settings, size, directory)
        return
    data = b""
    for number, (frame, repeated) in enumerate(frames, 1):
        data = data if repeated else camera.encode(frame)
        (directory / f"capture_{number:09d}.jpg").write_bytes(data)


def _write_through_ffmpeg(frames: Iterator[Frame], settings: Capture, size: Size, directory: Path) -> None:
    """As the service's own capture writes what is not MJPEG: -q:v from 2 (best) to 8."""
    scale = str(round(2 + (95 - settings.quality[1]) / 6))
    source = ["-f", "rawvideo", "-pix_fmt", "bgr24", "-s", f"{size[0]}x{size[1]}", "-r", str(FPS), "-i", "-"]
    target = ["-pix_fmt", f"yuvj{settings.sampling}p", "-q:v", scale, "-f", "image2", "capture_%09d.jpg"]
    command = ["ffmpeg", "-v", "error", "-threads", "1", *source, "-threads", "1", *target]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=directory)
    assert process.stdin
    with process.stdin as pipe:
        for frame in frames:
            pipe.write(np.ascontiguousarray(frame).data)
    assert process.wait() == 0, f"{' '.join(command)} failed"


def _field(capture: Capture, size: Size, seed: int) -> npt.NDArray[np.int16] | None:
    """A field of noise, the same grey in all three channels, and colour on top."""
    if not capture.sigma and not capture.chroma:
        return None
    shape = size[1] + _MARGIN, size[0] + _MARGIN
    dice = np.random.default_rng(seed)
    field = np.zeros((*shape, 3), np.float32)
    if capture.sigma:
        field += _scaled(dice.standard_normal(shape, np.float32), capture.sigma, capture.blur)[..., None]
    if capture.chroma:
        for channel in range(3):
            field[..., channel] += _scaled(dice.standard_normal(shape, np.float32), capture.chroma, 2.0)
    return np.rint(field).astype(np.int16)


def _scaled(noise: npt.NDArray[np.float32], sigma: float, blur: float) -> npt.NDArray[np.float32]:
    """Noise of this sigma, alike over `blur` px along the lines."""
    if blur:
        noise = cv2.GaussianBlur(noise, (0, 0), sigmaX=blur, sigmaY=0.5)  # type: ignore[assignment]
    return noise * np.float32(sigma / noise.std())
