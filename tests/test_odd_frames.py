"""Frames that are not what a grabber usually delivers: the same film, freeze and black are found in each of them."""

from __future__ import annotations

import io
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.judge import Judge
from pipeline.model import PICTURE_BYTES, PICTURE_CELLS, FrameId, Judgement
from pipeline.settings import Source
from tests.pictures import grey, rounded, text, texture

pytestmark = pytest.mark.any_python

SECOND = 10**9
Frame = npt.NDArray[np.uint8]
Encode = Callable[[Frame], bytes]


class Source5:
    """One source at 5 frames a second, judged as the service does."""

    def __init__(self) -> None:
        self._judge = Judge(
            Source(name="odd", dir="."), [memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)]
        )

    def show(self, number: int, data: bytes) -> Judgement:
        time_ns = number * SECOND // 5
        order = self._judge.observe(number, FrameId(1, number, time_ns, len(data)))
        return self._judge.judge(data, f"capture_{number:09d}", order, time_ns)

    def show_all(self, first: int, frames: list[bytes]) -> list[Judgement]:
        return [self.show(number, data) for number, data in enumerate(frames, first)]


def film(number: int) -> Frame:
    return text(rounded(texture(200, 9.0 * number)), ("on and on", 400, 400, 3.0))


def pillow(mode: str = "RGB", size: tuple[int, int] | None = None, turned: int = 1, **how: object) -> Encode:
    def encode(frame: Frame) -> bytes:
        image, file, exif = Image.fromarray(frame).convert(mode), io.BytesIO(), Image.Exif()
        exif[0x0112] = turned
        (image.resize(size) if size else image).save(file, "JPEG", quality=85, exif=exif, **how)
        return file.getvalue()

    return encode


ENCODINGS = {
    "grey": pillow("L"),
    "CMYK": pillow("CMYK"),
    "progressive": pillow(progressive=True),
    "turned by EXIF": pillow(turned=6),
    "4:2:2": pillow(subsampling="4:2:2"),
    "4:4:4": pillow(subsampling="4:4:4"),
    "odd size": pillow(size=(1279, 717)),
    "narrow": pillow(size=(33, 717)),
    "small": pillow(size=(101, 57)),
}


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_film_freeze_and_black_are_told_in_any_jpeg(encode: Encode) -> None:
    source = Source5()
    live = source.show_all(0, [encode(film(number)) for number in range(10)])
    frozen = source.show_all(10, [encode(film(10))] * 8)
    black = source.show_all(18, [encode(grey(0))] * 3)
    assert [one.freeze.value for one in live] == [None] * 3 + [False] * 7
    assert [one.freeze.value for one in frozen] == [False] * 3 + [True] * 5
    assert {one.black.value for one in (*live, *frozen)} == {False} and {one.black.value for one in black} == {True}


def test_a_freeze_begins_anew_at_another_resolution() -> None:
    source, small = Source5(), pillow(size=(640, 480))
    source.show_all(0, [pillow()(film(number)) for number in range(10)])
    large = source.show_all(10, [pillow()(film(10))] * 6)
    found = source.show_all(16, [small(film(10))] * 12)
    assert large[-1].freeze.value is True
    assert [one.freeze.value for one in found[:3]] == [None] * 3, "nothing of this size to compare it with"
    assert found[-1].freeze.value is True


def test_a_freeze_is_found_through_missing_frames() -> None:
    source = Source5()
    source.show_all(0, [pillow()(film(number)) for number in range(10)])
    found = [source.show(number, pillow()(film(10))) for number in (10, 13, 14, 20, 21, 40)]
    assert [one.freeze.value for one in found] == [False] * 3 + [True] * 3


def test_a_late_frame_ends_no_freeze() -> None:
    source = Source5()
    source.show_all(0, [pillow()(film(number)) for number in range(10)])
    source.show_all(10, [pillow()(film(10))] * 6)
    assert source.show(5, pillow()(film(5))).freeze.value is None
    assert source.show(16, pillow()(film(10))).freeze.value is True


def test_two_pictures_in_turn_are_no_freeze() -> None:
    source, pictures = Source5(), [pillow()(film(0)), pillow()(film(30))]
    found = source.show_all(0, [pictures[number % 2] for number in range(30)])
    assert {one.freeze.value for one in found[3:]} == {False}


def test_a_hole_in_the_middle_of_a_frame_ends_a_freeze_for_no_longer_than_it_is_seen() -> None:
    source, whole = Source5(), pillow()(film(10))
    damaged = whole[: len(whole) // 2] + b"\0" * 400 + whole[len(whole) // 2 + 400 :]
    assert cv2.imdecode(np.frombuffer(damaged, np.uint8), cv2.IMREAD_GRAYSCALE) is not None
    source.show_all(0, [pillow()(film(number)) for number in range(10)])
    source.show_all(10, [whole] * 6)
    source.show(16, damaged)
    assert [one.freeze.value for one in source.show_all(17, [whole] * 8)][-1] is True
