"""Learned no-signal pictures: what can be learned, that it is found again, and that nothing else is taken for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
import numpy as np
import pytest

from pipeline import detectors
from pipeline.model import NoSignalThresholds
from pipeline.nosignal import NoSignal
from pipeline.signature import COLUMNS, ROWS, Learned, Signature, Unfit, learn
from tests.cards import Frame, Scene, box, captured, ffmpeg_frame, gradient, plain, resized, wandering, write
from tests.support import costly, make_frame

pytestmark = pytest.mark.any_python

BLACK = plain("000000")
RAINBOW = ffmpeg_frame("colorspectrum")


def logo(number: int) -> Frame:
    """A box with two letters that wanders over a gradient."""
    x, y = wandering(number)
    return write(box(gradient((120, 40, 20), (40, 10, 90)), x, y, 240, 90, (240, 240, 240)), "HD", x + 20, y + 70, 2.2)


def clock(number: int) -> Frame:
    """Words that stand still, and a clock."""
    return write(write(plain("106070"), "NO INPUT  check the cable", 260, 380), f"00:{number % 60:02d}", 1080, 60, 1.4)


FIT: dict[str, Scene] = {
    "words on black": lambda _: write(BLACK, "No signal", 480, 380),
    "words that move on black": lambda n: write(BLACK, "No signal", *wandering(n)),
    "words that move on purple": lambda n: write(plain("602080"), "No signal", *wandering(n)),
    "purple": lambda _: plain("602080"),
    "a logo that moves on a gradient": logo,
    "words and a clock": clock,
    "a rainbow": lambda _: RAINBOW,
}


def shots(scene: Scene, numbers: range, sigma: float = 1.0, quality: int = 85) -> list[bytes]:
    return [captured(scene(number), sigma, quality, number) for number in numbers]


def learned_from(frames: list[bytes]) -> Signature:
    return learn([detectors.decode_colour(data) for data in frames])


def recogniser(signature: Signature, learned_pct_min: float = 90.0) -> NoSignal:
    return NoSignal(NoSignalThresholds(learned_pct_min=learned_pct_min), signature, cards=False)


def found(judge: NoSignal, frames: list[bytes]) -> list[bool | None]:
    return [judge.judge(detectors.decode(data), partial(detectors.decode_colour, data)).value for data in frames]


@pytest.fixture(scope="module")
def others() -> list[bytes]:
    """Programmes, blacks and cards, none of which anybody has learned."""
    scenes: dict[str, Frame] = {
        "black": BLACK,
        "raised black": plain("101010"),
        "a subtitle": write(BLACK, "He said that there was no signal", 180, 640, 1.6),
        "a short subtitle": write(BLACK, "Why?", 580, 640, 1.6),
        "a logo on black": box(BLACK, 1100, 40, 90, 70, (200, 200, 200)),
        "blue": plain("0000BE"),
        "grey": plain("808080"),
        "a purple menu": menu("602080"),
        "a teal menu": menu("106070"),
        "bars": ffmpeg_frame("smptebars"),
        "a test picture": ffmpeg_frame("testsrc2"),
    }
    pictures = [captured(frame, sigma, 80) for frame in scenes.values() for sigma in (0.0, 2.0)]
    return pictures + [make_frame(seed, 1280, 720) for seed in range(30)]


def menu(colour: str) -> Frame:
    frame = plain(colour)
    for line in range(7):
        frame = write(frame, f"{line + 1}  A channel or a setting", 120, 120 + 80 * line, 1.5)
    return frame


# -- what is fit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [(2.0, 75), *costly((0.0, 90), (4.0, 50))], ids=str)
@pytest.mark.parametrize(("name", "scene"), FIT.items(), ids=FIT)
def test_what_was_learned_is_found_again_and_nothing_else(
    name: str, scene: Scene, taken: tuple[float, int], others: list[bytes]
) -> None:
    judge = recogniser(learned_from(shots(scene, range(20), *taken)))
    for sigma, quality in ((0.0, 95), (1.0, 80), (2.0, 60), (4.0, 40)):
        again = found(judge, shots(scene, range(100, 106), sigma, quality))
        assert again == [True] * 6, f"{name} at sigma {sigma}, quality {quality}"
    assert found(judge, others) == [False] * len(others)


@pytest.mark.parametrize("size", [(640, 360), (1920, 1080)])
def test_a_capture_of_another_size_shows_the_same(size: tuple[int, int]) -> None:
    judge = recogniser(learned_from(shots(clock, range(10))))
    assert found(judge, [captured(resized(clock(number), *size)) for number in range(5)]) == [True] * 5


@pytest.mark.parametrize("shift", [-9, 9])
def test_a_grabber_that_has_warmed_up_is_a_little_brighter(shift: int) -> None:
    judge = recogniser(learned_from(shots(clock, range(10))))
    brighter = (clock(3).astype(np.int16) + shift).clip(0, 255).astype(np.uint8)
    assert found(judge, [captured(brighter)]) == [True]


def test_the_same_words_elsewhere_on_black_are_another_picture_unless_they_moved_when_learned() -> None:
    elsewhere = [captured(write(BLACK, "No signal", 100, 600))]
    still = recogniser(learned_from(shots(FIT["words on black"], range(10))))
    moving = recogniser(learned_from(shots(FIT["words that move on black"], range(20))))
    assert (found(still, elsewhere), found(moving, elsewhere)) == ([False], [True])


def test_a_frame_of_something_else_among_them_does_no_harm() -> None:
    frames = [*shots(clock, range(39)), make_frame(1, 1280, 720)]
    judge = recogniser(learned_from(frames))
    assert found(judge, frames) == [True] * 39 + [False]


def test_a_learned_card_is_known_besides_the_others() -> None:
    judge = NoSignal(NoSignalThresholds(), learned_from(shots(clock, range(10))))
    assert found(judge, [captured(clock(1)), captured(plain("0000BE")), captured(BLACK)]) == [True, True, False]


def test_how_much_must_be_as_learned_can_be_set() -> None:
    signature = learned_from(shots(FIT["a rainbow"], range(5)))
    half = [captured(box(RAINBOW, 0, 0, 640, 720, (128, 128, 128)))]
    assert found(recogniser(signature), half) == [False]
    assert found(recogniser(signature, learned_pct_min=40.0), half) == [False], "too few of its features"
    assert found(recogniser(signature, learned_pct_min=99.9), shots(FIT["a rainbow"], range(3))) == [True] * 3


def test_readings_say_how_much_is_as_learned() -> None:
    data = captured(clock(1))
    judge = recogniser(learned_from(shots(clock, range(10))))
    readings = judge.judge(detectors.decode(data), lambda: detectors.decode_colour(data)).readings
    assert readings["no_signal_learned_pct"] > 98


def test_a_black_programme_is_told_from_black_with_words_by_its_grey_alone() -> None:
    def never() -> detectors.Picture:
        raise AssertionError("looked at in colour")

    for name in ("words on black", "words that move on black"):
        judge = recogniser(learned_from(shots(FIT[name], range(20))))
        assert judge.judge(detectors.decode(captured(BLACK, 2.0)), never).value is False


# -- what is not ------------------------------------------------------------------------------------------------------

UNFIT: dict[str, tuple[Callable[[], list[bytes]], str]] = {
    "too few": (lambda: shots(clock, range(2)), "too few"),
    "black": (lambda: shots(lambda _: BLACK, range(10), 2.0), "plain black"),
    "a programme": (lambda: [make_frame(seed, 1280, 720) for seed in range(10)], "stands still"),
    "a rainbow that runs": (lambda: shots(lambda n: np.roll(RAINBOW, 40 * n, 1), range(10)), "stands still"),
    "half a programme": (lambda: [*shots(clock, range(10)), *(make_frame(n, 1280, 720) for n in range(10))], "still"),
    "two sizes": (lambda: [captured(clock(0)), captured(clock(1)), make_frame(0)], "differ in size"),
    "small": (lambda: [captured(resized(clock(n), 240, 136)) for n in range(5)], "too small"),
}


@pytest.mark.parametrize(("frames", "reason"), UNFIT.values(), ids=UNFIT)
def test_what_cannot_be_recognised_is_refused_with_the_reason(frames: Callable[[], list[bytes]], reason: str) -> None:
    with pytest.raises(Unfit, match=reason):
        learned_from(frames())


# -- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIT)
def test_a_signature_survives_its_file_and_is_small(name: str) -> None:
    signature = learned_from(shots(FIT[name], range(20)))
    data = msgspec.json.encode(signature)
    assert len(data) < 24_000
    assert msgspec.json.decode(data, type=Signature) == signature


@pytest.mark.parametrize(
    "change", [{"schema": 2}, {"colours": b"short"}, {"spread": b""}, {"spread": bytes(COLUMNS * ROWS + 1)}], ids=str
)
def test_a_signature_of_another_make_is_refused(change: dict[str, object]) -> None:
    signature = learned_from(shots(clock, range(5)))
    raw = msgspec.json.decode(msgspec.json.encode(signature)) | msgspec.to_builtins(change)
    with pytest.raises(msgspec.ValidationError, match="not a signature of this version"):
        msgspec.convert(raw, Signature)


def test_a_signature_in_which_nothing_stands_still_is_refused() -> None:
    signature = learned_from(shots(clock, range(5)))
    with pytest.raises(ValueError, match="without a stable point"):
        Learned(msgspec.structs.replace(signature, spread=b"\xff" * COLUMNS * ROWS))
