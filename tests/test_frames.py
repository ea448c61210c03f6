"""Frame files: which names are frames, and what reading makes of everything that can stand under such a name."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import detectors
from pipeline.frames import MAX_FRAME_BYTES, MAX_FRAME_PIXELS, FrameNames, check_jpeg, identity_of, read_frame
from pipeline.model import InvalidFrame
from pipeline.sidecar import timestamp
from tests.machine import needs
from tests.support import make_frame

FRAME = make_frame(1)
NAMES = FrameNames("capture_")
SOI, EOI = b"\xff\xd8", b"\xff\xd9"


def segments(data: bytes) -> list[tuple[int, bytes]]:
    """A JPEG's header as (marker, whole segment); the last one is start-of-scan with all that follows."""
    found, at = [], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        found.append((data[at + 1], data[at:end]))
        at = end
    return [*found, (0xDA, data[at:])]


def without_tables(data: bytes) -> bytes:
    """The JPEG without its Huffman tables, as USB grabbers send MJPEG: the standard tables are meant."""
    return SOI + b"".join(body for marker, body in segments(data) if marker != 0xC4)


def with_header(data: bytes, *, width: int = 320, height: int = 180, coding: int = 0xC0) -> bytes:
    """The JPEG with another size or coding in its frame header."""
    head = data.index(b"\xff\xc0")
    size = height.to_bytes(2) + width.to_bytes(2)
    return data[:head] + bytes([0xFF, coding]) + data[head + 2 : head + 5] + size + data[head + 9 :]


def pillow(mode: str = "RGB", size: tuple[int, int] = (320, 180), **options: object) -> bytes:
    """A JPEG by another encoder than OpenCV's."""
    noise = np.random.default_rng(3).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(out, "JPEG", quality=60, **options)
    return out.getvalue()


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("capture_000000001.jpg", (1, 9)),
        ("capture_1.jpg", (1, 1)),
        ("capture_000.jpg", (0, 3)),
        ("capture_1000000000.jpg", (10**9, 10)),
        ("capture_" + 18 * "9" + ".jpg", (10**18 - 1, 18)),
    ],
)
def test_a_frames_name_is_prefix_digits_and_jpg(name: str, frame: tuple[int, int]) -> None:
    assert NAMES.parse(name) == frame
    assert NAMES.stem(*frame) + ".jpg" == name


@pytest.mark.parametrize(
    "name",
    [
        "capture_000000001.jpg.tmp",
        "capture_000000001_thumbnail.jpg",
        "capture_-2147483648.jpg",
        "capture_+1.jpg",
        "capture_1_000.jpg",
        "capture_ 1.jpg",
        "capture_1 .jpg",
        "capture_１２.jpg",  # digits, but not ASCII ones
        "capture_².jpg",
        "capture_.jpg",
        "capture_1.JPG",
        "capture_1.jpeg",
        "capture_1.json",
        "capture_1\n.jpg",
        "capture_1.jpg\n",
        "capture_%s.jpg",
        "capture_\udcff1.jpg",  # what os.fsdecode makes of a byte that is not UTF-8
        "-rf.jpg",
        "1.jpg",
        ".jpg",
        "",
        "#66264",
        251 * "x" + ".jpg",
    ],
)
def test_any_other_name_is_none_and_no_refusal(name: str) -> None:
    assert NAMES.parse(name) is None
    assert not NAMES.is_refused(name)


@pytest.mark.parametrize("digits", [19, 20, 243])
def test_more_than_18_digits_are_refused(digits: int) -> None:
    name = f"capture_{digits * '1'}.jpg"
    assert NAMES.parse(name) is None
    assert NAMES.is_refused(name)


def test_a_prefix_so_long_that_the_sidecar_would_not_fit_is_refused() -> None:
    """255 bytes are a name's limit: `.json` is one byte longer than `.jpg`."""
    names = FrameNames(241 * "p")
    fits, too_long = f"{241 * 'p'}{9 * '1'}.jpg", f"{241 * 'p'}{10 * '1'}.jpg"
    assert len(too_long) == 255
    assert names.parse(fits) == (111111111, 9)
    assert names.parse(too_long) is None
    assert names.is_refused(too_long)


def test_a_prefix_counts_in_bytes() -> None:
    names = FrameNames(120 * "é")
    assert names.parse(120 * "é" + 10 * "1" + ".jpg") == (1111111111, 10)
    assert names.is_refused(120 * "é" + 11 * "1" + ".jpg")


@pytest.mark.parametrize("prefix", ["", "-", "%s", "a\nb", "a.jpg", "1", "\udcff", "capture_000"])
@pytest.mark.parametrize(("number", "width"), [(0, 1), (7, 9), (10**18 - 1, 18)])
def test_stem_is_the_inverse_of_parse_for_hostile_prefixes(prefix: str, number: int, width: int) -> None:
    names = FrameNames(prefix)
    assert names.parse(names.stem(number, width) + ".jpg") == (number, width)


@given(st.text(st.characters(codec=None), max_size=40))
@example("capture_" + 30 * "9" + ".jpg")
def test_no_name_raises(name: str) -> None:
    parsed = NAMES.parse(name)
    assert parsed is None or NAMES.stem(*parsed) + ".jpg" == name


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_frame_comes_with_its_identity(tmp_path: Path) -> None:
    path = tmp_path / "f.jpg"
    path.write_bytes(FRAME)
    status = path.stat()
    data, identity = read_frame(str(path))
    assert data == FRAME
    assert identity == (identity_of(status))
    assert (identity.inode, identity.size) == (status.st_ino, len(FRAME))


def png() -> bytes:
    return cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"hello\n", "not a JPEG"),
        (b"<!DOCTYPE html><html></html>", "not a JPEG"),
        (png(), "not a JPEG"),
        (bytes(4096), "not a JPEG"),
        (SOI, "not a JPEG"),
        (SOI + EOI, "truncated"),
        (SOI + b"\xff\xda" + bytes(20) + EOI, "damaged"),
        (SOI + 2000 * b"\xff" + EOI, "too many segments"),
        (SOI + b"\xff\xe0\x00\x04ab" + b"garbage here" + EOI, "damaged"),
    ],
)
def test_what_is_no_jpeg_is_invalid_with_its_identity(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "f.jpg"
    path.write_bytes(content)
    with pytest.raises(InvalidFrame, match=reason) as caught:
        read_frame(str(path))
    assert caught.value.identity == identity_of(path.stat())


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)  # a socket's path may have 108 bytes: relative to the current directory


SPECIAL: dict[str, Callable[[Path], None]] = {
    "directory": lambda path: path.mkdir(),
    "symlink loop": lambda path: path.symlink_to(path.name),
    "fifo": os.mkfifo,
    "socket": make_socket,
    "symlink to a directory": lambda path: path.symlink_to("."),
    "symlink to a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_invalid_and_never_blocks(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    SPECIAL[kind](tmp_path / "f.jpg")
    with pytest.raises(InvalidFrame, match="not a regular file") as caught:
        read_frame(str(tmp_path / "f.jpg"))
    assert caught.value.identity is not None


@needs()
def test_a_device_is_invalid(tmp_path: Path) -> None:
    os.mknod(tmp_path / "f.jpg", 0o20600, os.makedev(1, 5))
    with pytest.raises(InvalidFrame, match="not a regular file"):
        read_frame(str(tmp_path / "f.jpg"))


@pytest.mark.parametrize("target", [None, "gone"])
def test_what_is_not_there_has_gone(target: str | None, tmp_path: Path) -> None:
    path = tmp_path / "f.jpg"
    if target:
        path.symlink_to(target)
    with pytest.raises(FileNotFoundError):
        read_frame(str(path))


def test_a_file_cut_at_every_percent_is_invalid(tmp_path: Path) -> None:
    path = tmp_path / "f.jpg"
    for percent in range(100):
        path.write_bytes(FRAME[: len(FRAME) * percent // 100])
        with pytest.raises(InvalidFrame):
            read_frame(str(path))


def test_a_file_without_its_last_byte_is_invalid() -> None:
    with pytest.raises(InvalidFrame, match="no end-of-image marker"):
        check_jpeg(FRAME[:-1])


def test_a_cut_that_leaves_the_thumbnails_end_marker_is_caught_by_the_decoder() -> None:
    """A picture inside the header ends with the same two bytes as the frame itself."""
    whole = SOI + b"\xff\xfe\x00\x06" + SOI + EOI + FRAME[2:]
    assert check_jpeg(whole) == (320, 180)
    cut = whole[: whole.index(b"\xff\xda") + 40]
    check_jpeg(cut)
    with pytest.raises(detectors.BadPicture):
        detectors.decode(cut)


@pytest.mark.parametrize("side", [32767, 65500])
def test_a_bomb_is_rejected_before_decoding(side: int, tmp_path: Path) -> None:
    path = tmp_path / "f.jpg"
    path.write_bytes(with_header(FRAME, width=side, height=side))
    before, begun = psutil.Process().memory_info().rss, time.monotonic()
    for _ in range(10):
        with pytest.raises(InvalidFrame, match=f"too many pixels: {side}x{side}"):
            read_frame(str(path))
    assert time.monotonic() - begun < 1
    assert psutil.Process().memory_info().rss - before < 20 << 20


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "f.jpg"
    with path.open("wb") as file:
        file.truncate(MAX_FRAME_BYTES + 1)
    before = psutil.Process().memory_info().rss
    with pytest.raises(InvalidFrame, match="too large"):
        read_frame(str(path))
    assert psutil.Process().memory_info().rss - before < 20 << 20


@pytest.mark.parametrize("size", [(0, 180), (320, 0)])
def test_a_size_of_nothing_is_invalid(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidFrame, match="bad size"):
        check_jpeg(with_header(FRAME, width=size[0], height=size[1]))


@pytest.mark.parametrize("coding", [0xC3, 0xC5, 0xC9, 0xCA, 0xCF], ids=lambda coding: f"SOF{coding - 0xC0}")
def test_lossless_and_arithmetic_codings_are_errors(coding: int) -> None:
    with pytest.raises(InvalidFrame, match=f"unsupported JPEG coding: SOF{coding - 0xC0}"):
        check_jpeg(with_header(FRAME, coding=coding))


def test_mjpeg_without_tables_and_with_padding_is_valid() -> None:
    plain = without_tables(FRAME)
    assert len(plain) < len(FRAME) - 400, "the tables were there and have gone"
    padded = plain + bytes(700)
    assert check_jpeg(padded) == (320, 180)
    assert np.array_equal(detectors.decode(padded), detectors.decode(FRAME))


VALID: dict[str, bytes] = {
    "grey": pillow("L"),
    "CMYK": pillow("CMYK"),
    "progressive": pillow(progressive=True),
    "optimized": pillow(optimize=True),
    "4:4:4": pillow(subsampling=0),
    "restart markers": pillow(restart_marker_blocks=2),
    "comment": pillow(comment=b"\xff\xd8\xff\xd9 hello"),
    "two frames in one file": FRAME + make_frame(2),
    "fill bytes before a marker": SOI + 20 * b"\xff" + FRAME[2:],
    **{f"orientation {n}": pillow(exif=orientation(n)) for n in range(1, 9)},
}


@pytest.mark.parametrize("kind", VALID)
def test_every_usual_coding_is_valid_at_its_stored_size(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "f.jpg"
    path.write_bytes(VALID[kind])
    data, _ = read_frame(str(path))
    assert check_jpeg(data) == (320, 180)
    assert detectors.decode(data).shape == (23, 40)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (8, 8), (1923, 1081), (3, 2000), (321, 179)])
def test_odd_sizes_are_valid(size: tuple[int, int]) -> None:
    data = pillow(size=size)
    assert check_jpeg(data) == size
    assert detectors.decode(data).shape == (-(-size[1] // 8), -(-size[0] // 8))


def test_a_file_time_beyond_64_bits_is_still_an_identity(tmp_path: Path) -> None:
    """A broken clock or copy can date a file past the year 9999; it must not stop the worker that reads it."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        pytest.skip("needs /dev/shm: ext4 holds no such time")
    path = memory / f"{tmp_path.parent.name}-{tmp_path.name}.jpg"
    path.write_bytes(FRAME)
    try:
        for second in (10**12, -(10**12)):
            os.utime(path, (second, second))
            assert abs(path.stat().st_mtime_ns) > 2**63, "the file system keeps the time"
            identity = read_frame(str(path))[1]
            assert -(2**63) <= identity.mtime_ns < 2**63
            assert (timestamp(identity.mtime_ns) or "")[:4] == ("2262" if second > 0 else "1677")
    finally:
        path.unlink()


# -- fuzz -------------------------------------------------------------------------------------------------------------

MARKERS = st.sampled_from([*range(0xC0, 0xE2), 0xFE, 0xFF, 0x00, 0x01])
SEGMENT = st.tuples(MARKERS, st.integers(0, 0xFFFF), st.binary(max_size=20))


def outcome(data: bytes) -> tuple[int, int] | None:
    """The size, or None if the frame was refused in the one way that a worker expects."""
    try:
        return check_jpeg(data)
    except InvalidFrame as error:
        assert "\n" not in str(error)
        return None


@settings(max_examples=300)
@given(st.lists(SEGMENT, max_size=30), st.booleans())
def test_no_sequence_of_markers_does_more_than_be_invalid(parts: list[tuple[int, int, bytes]], ends: bool) -> None:
    body = b"".join(bytes([0xFF, marker]) + length.to_bytes(2) + data for marker, length, data in parts)
    size = outcome(SOI + body + (EOI if ends else b""))
    assert size is None or 0 < size[0] * size[1] <= MAX_FRAME_PIXELS


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(2, 700), st.integers(0, 255)), min_size=1, max_size=8))
def test_no_damage_in_the_header_does_more_than_be_invalid(changes: list[tuple[int, int]]) -> None:
    data = bytearray(FRAME)
    for at, value in changes:
        data[at] = value
    size = outcome(bytes(data))
    assert size is None or 0 < size[0] * size[1] <= MAX_FRAME_PIXELS


@pytest.mark.parametrize(
    "filling", [b"\xff", b"\xff\x01", b"\xff\xd0", b"\xff\xe0\x00\x00", b"\xff\xd8", b"\xff\xe0\x00\x02"]
)
def test_no_filling_of_a_large_file_is_slow(filling: bytes) -> None:
    data = SOI + filling * ((8 << 20) // len(filling)) + EOI
    begun = time.monotonic()
    assert outcome(data) is None
    assert time.monotonic() - begun < 1
