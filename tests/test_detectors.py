"""Decoding: what becomes a picture and what is refused."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import detectors
from pipeline.detectors import BadPicture, decode, prepare
from pipeline.model import PICTURE_BYTES, UnavailableError
from tests.pictures import grey, jpeg, noisy, rounded, texture


def test_prepare_leaves_one_thread() -> None:
    cv2.setNumThreads(2)
    prepare()
    assert cv2.getNumThreads() == 1


@pytest.mark.parametrize(("major", "minor", "fit"), [(4, 6, False), (4, 10, False), (4, 11, True), (5, 0, True)])
def test_prepare_refuses_an_opencv_that_accepts_truncated_frames(
    major: int, minor: int, fit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "getVersionMajor", lambda: major)
    monkeypatch.setattr(cv2, "getVersionMinor", lambda: minor)
    if fit:
        return prepare()
    with pytest.raises(UnavailableError, match=r"^OpenCV .* pip install [^\n]*4\.11'$"):
        prepare()


def pillow(size: tuple[int, int], mode: str = "RGB", orientation: int = 1, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.new(mode, size, 128 if mode == "L" else (90,) * len(mode)).save(out, "JPEG", exif=exif, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        pytest.param(pillow((1280, 720)), (90, 160), id="720p"),
        pytest.param(pillow((1923, 1081)), (136, 241), id="odd size rounds up"),
        pytest.param(pillow((1, 1)), (1, 1), id="one pixel"),
        pytest.param(pillow((9, 7)), (1, 2), id="smaller than a block"),
        pytest.param(pillow((1280, 720), "L"), (90, 160), id="grey"),
        pytest.param(pillow((1280, 720), "CMYK"), (90, 160), id="CMYK"),
        pytest.param(pillow((1275, 717), progressive=True), (90, 160), id="progressive"),
        pytest.param(pillow((1275, 717), subsampling="4:2:2"), (90, 160), id="4:2:2"),
        pytest.param(pillow((1275, 717), subsampling="4:4:4"), (90, 160), id="4:4:4"),
        *[pytest.param(pillow((640, 360), orientation=o), (45, 80), id=f"EXIF orientation {o}") for o in range(2, 9)],
    ],
)
def test_decode_gives_an_eighth_rounded_up_and_as_stored(data: bytes, shape: tuple[int, int]) -> None:
    picture = decode(data)
    assert picture.shape == shape
    assert picture.dtype == np.uint8 and picture.flags.c_contiguous


def test_a_pixel_is_the_mean_of_its_block() -> None:
    frame = rounded(texture(255))
    means = frame.reshape(90, 8, 160, 8).mean(axis=(1, 3))
    assert np.abs(decode(jpeg(frame, 95)) - means).max() <= 1.5


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\0" * 4096, id="zeros"),
        pytest.param(b"HTTP/1.1 404 Not Found\r\n", id="text"),
        pytest.param(b"\xff\xd8", id="SOI alone"),
        pytest.param(b"\xff\xd8\xff\xd9", id="SOI and EOI"),
        pytest.param(jpeg(grey(0))[:-2], id="EOI missing"),
        pytest.param(pillow((5760, 3888), "L"), id="larger than a cell"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(BadPicture, match=r"^[^\n]+$"):
        decode(data)


@pytest.mark.parametrize("sigma", [0, 4])
def test_a_truncated_jpeg_is_refused_wherever_it_was_cut(sigma: float) -> None:
    data = jpeg(noisy(rounded(texture(200)), sigma))
    decode(data)
    for percent in range(100):
        with pytest.raises(BadPicture):
            decode(data[: len(data) * percent // 100])


def test_damage_in_the_middle_never_crashes() -> None:
    data, random = jpeg(noisy(grey(99), 4)), np.random.default_rng(4)
    for _ in range(30):
        damaged, at = bytearray(data), int(random.integers(700, len(data) - 100))
        damaged[at : at + 64] = random.bytes(64)
        try:
            assert decode(bytes(damaged)).shape == (90, 160)
        except BadPicture:
            continue


def test_another_format_is_what_opencv_says() -> None:
    assert decode(cv2.imencode(".png", grey(50))[1].tobytes()).shape == (90, 160)


@given(st.integers(1, 65535), st.integers(1, 65535))
def test_every_shape_of_twenty_million_pixels_fits_a_cell(width: int, height: int) -> None:
    height = min(height, 20_000_000 // width)
    assert -(-width // detectors.REDUCTION) * -(-height // detectors.REDUCTION) <= PICTURE_BYTES
