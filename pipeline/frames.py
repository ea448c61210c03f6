"""Frame files: their names, and reading one safely.

A frame's name is `<prefix><digits>.jpg`; the digits are its sequence. Number and digit count give the exact name back,
so the ring carries two integers instead of a path. Reading never blocks (a FIFO named .jpg), never follows a header
into gigabytes, and tells four things apart: a frame, an invalid frame, a frame that has gone, and a system that
refused (which says nothing about the frame).
"""

from __future__ import annotations

import errno
import os
import stat

from pipeline.model import FrameId, InvalidFrame

SUFFIX = ".jpg"
SIDECAR_SUFFIX = ".json"
MAX_DIGITS = 18
"""FFmpeg counts in a C int; 18 digits keep every number within 64 bits."""

MAX_FRAME_BYTES = 32 * 1024 * 1024
MAX_FRAME_PIXELS = 4096 * 4096
"""Checked before decoding: a 449 KB file may claim 32767x32767 and cost 2 GB and 6.6 s (measured)."""

_NAME_MAX = 255
_TAIL_BYTES = 8192  # the end-of-image marker stands here, before whatever padding a USB grabber adds
_SOI = b"\xff\xd8\xff"
_EOI = b"\xff\xd9"
_FRAME_HEADERS = {0xC0, 0xC1, 0xC2}  # baseline, extended sequential, progressive
_OTHER_CODINGS = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_STANDALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_MAX_SEGMENTS = 1000


class FrameNames:
    """The frame names of one source."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._digits_at = len(prefix)
        longest = _NAME_MAX - len(os.fsencode(prefix)) - len(SIDECAR_SUFFIX)
        self._max_digits = min(MAX_DIGITS, longest)

    def parse(self, name: str) -> tuple[int, int] | None:
        """(sequence, digits) of a frame's name; None for any other name, `.tmp` and `_thumbnail` included."""
        digits = name[self._digits_at : -len(SUFFIX)]
        if not (name.endswith(SUFFIX) and name.startswith(self.prefix) and digits.isascii() and digits.isdigit()):
            return None
        return (int(digits), len(digits)) if len(digits) <= self._max_digits else None

    def is_refused(self, name: str) -> bool:
        """Whether `name` is a frame's but too long: over 18 digits, or its sidecar's name would not fit."""
        digits = name[self._digits_at : -len(SUFFIX)]
        shaped = name.endswith(SUFFIX) and name.startswith(self.prefix) and digits.isascii() and digits.isdigit()
        return shaped and len(digits) > self._max_digits

    def stem(self, number: int, width: int) -> str:
        """A frame's name without its suffix."""
        return f"{self.prefix}{number:0{width}d}"


def identity_of(status: os.stat_result) -> FrameId:
    """The identity of the file behind a stat result; a file time that 64 bits do not hold (years 1677-2262) is cut."""
    mtime_ns = min(max(status.st_mtime_ns, -(2**63)), 2**63 - 1)
    return FrameId(status.st_dev, status.st_ino, mtime_ns, status.st_size)


def read_frame(path: str) -> tuple[bytes, FrameId]:
    """All bytes of a frame, checked to be one whole JPEG of a sane size, and its identity.

    Raises FileNotFoundError when it has gone, InvalidFrame (with the identity) when it cannot be judged, and any other
    OSError when the system refused (permission, descriptors, I/O).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise InvalidFrame("not a regular file", identity_of(os.lstat(path))) from error
        raise
    try:
        data, identity = _read_open(fd)
    finally:
        os.close(fd)
    try:
        check_jpeg(data)
    except InvalidFrame as error:
        raise InvalidFrame(str(error), identity) from None
    return data, identity


def _read_open(fd: int) -> tuple[bytes, FrameId]:
    status = os.fstat(fd)
    identity = identity_of(status)
    if not stat.S_ISREG(status.st_mode):
        raise InvalidFrame("not a regular file", identity)
    if status.st_size == 0:
        raise InvalidFrame("empty file", identity)
    if status.st_size > MAX_FRAME_BYTES:
        raise InvalidFrame(f"too large: {status.st_size} bytes, at most {MAX_FRAME_BYTES}", identity)
    data = os.read(fd, status.st_size)
    while len(data) < status.st_size:
        more = os.read(fd, status.st_size - len(data))
        if not more:
            raise InvalidFrame("truncated: shorter than its size", identity)
        data += more
    return data, identity


def check_jpeg(data: bytes) -> tuple[int, int]:
    """(width, height) from the header of a complete JPEG, without decoding it. Raises InvalidFrame."""
    if not data.startswith(_SOI):
        raise InvalidFrame("not a JPEG: no start-of-image marker")
    width, height = _frame_size(data)
    if not width or not height:
        raise InvalidFrame(f"bad size in the frame header: {width}x{height}")
    if width * height > MAX_FRAME_PIXELS:
        raise InvalidFrame(f"too many pixels: {width}x{height}, at most {MAX_FRAME_PIXELS}")
    if data.rfind(_EOI, -_TAIL_BYTES) < 0:
        raise InvalidFrame("truncated: no end-of-image marker")
    return width, height


def _frame_size(data: bytes) -> tuple[int, int]:
    """Walk the marker segments up to the frame header (SOF)."""
    at, end = 2, len(data) - 9
    for _ in range(_MAX_SEGMENTS):
        if at > end:
            raise InvalidFrame("truncated: no frame header")
        if data[at] != 0xFF:
            raise InvalidFrame("damaged: no marker where a segment must begin")
        marker = data[at + 1]
        if marker in _FRAME_HEADERS:
            return int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _STANDALONE:
            at += 2
        elif marker in _OTHER_CODINGS:
            raise InvalidFrame(f"unsupported JPEG coding: SOF{marker - 0xC0}")
        elif marker in {_START_OF_SCAN, _END_OF_IMAGE}:
            raise InvalidFrame("damaged: no frame header before the picture data")
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
    raise InvalidFrame("damaged: too many segments")
