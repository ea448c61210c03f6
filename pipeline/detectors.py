"""Decodes frames into the pictures that detectors look at. Touches no file, clock or process.

A *picture* is a frame at 1/8 size in grey: a uint8 array (height, width), each pixel the mean of 8 x 8 pixels
of the frame. The mean divides white capture noise by eight, so that the rules can ask for a change of any
single pixel where a rule at full size has to forgive a share of them, and loses clocks and mouse pointers
with it.

The rules stand in `black` and `freeze`. Their readings are plain floats, rounded; they come from integer sums and one
division, so that every machine writes the same digits. "Levels" are grey levels, 0-255; "pct" is 0-100.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.model import PICTURE_BYTES, UnavailableError

Picture = npt.NDArray[np.uint8]

REDUCTION = 8
"""Pixels of a frame per pixel of a picture, each way; sizes round up, as the decoder does."""

_OLDEST_OPENCV = (4, 11)
"""imdecode of 4.6 and 4.10 accepts truncated frames and fills in memory of earlier ones: opencv #26488."""

_GREY = cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_IGNORE_ORIENTATION
_FULL = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
_QUARTER = cv2.IMREAD_REDUCED_COLOR_4 | cv2.IMREAD_IGNORE_ORIENTATION
_COLOUR = cv2.IMREAD_REDUCED_COLOR_8 | cv2.IMREAD_IGNORE_ORIENTATION


class BadPicture(ValueError):
    """The bytes are not a picture that can be judged; the text is one line and says why."""


def prepare() -> None:
    """Make OpenCV fit for a pinned worker, once per process. UnavailableError if it is too old to trust."""
    if (cv2.getVersionMajor(), cv2.getVersionMinor()) < _OLDEST_OPENCV:
        raise UnavailableError(
            f"OpenCV {cv2.__version__} accepts truncated frames: pip install 'opencv-python-headless>=4.11'"
        )
    cv2.setNumThreads(1)


def decode(data: bytes) -> Picture:
    """The picture of an encoded frame, (ceil(h/8), ceil(w/8)), as stored: EXIF orientation is not applied.

    Raises BadPicture for what OpenCV cannot decode (every truncated JPEG) and for what would not fit a cell.
    Damage within the data goes unnoticed, and other formats pass: the caller checks the markers.
    """
    picture = _imdecode(data, _GREY)
    if picture.size > PICTURE_BYTES:
        raise BadPicture(f"too large: {picture.shape[1]}x{picture.shape[0]} at 1/{REDUCTION} size")
    return picture


def decode_colour(data: bytes) -> Picture:
    """The same in colour: (height, width, 3), blue, green, red. Raises BadPicture."""
    return _imdecode(data, _COLOUR)


def decode_full(data: bytes) -> Picture:
    """The frame itself in grey, (height, width). Raises BadPicture."""
    return _imdecode(data, _FULL)


def thumbnail(data: bytes) -> bytes:
    """A small JPEG of a frame, a quarter as wide and high. Raises BadPicture."""
    done, encoded = cv2.imencode(".jpg", _imdecode(data, _QUARTER), [cv2.IMWRITE_JPEG_QUALITY, 80])
    if not done:
        raise BadPicture("no thumbnail could be made")
    return bytes(encoded)


def _imdecode(data: bytes, flags: int) -> Picture:
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # empty data; more than 2^30 pixels
        raise BadPicture(f"OpenCV refused it: {error.err}") from error
    if picture is None:
        raise BadPicture("not a whole picture: OpenCV cannot decode it")
    return picture  # type: ignore[return-value]  # the stubs say "any number"; imdecode makes bytes
