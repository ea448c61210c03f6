"""The known no-signal cards, under noise and in JPEG; and what looks like one and is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline import detectors
from pipeline.detectors import Picture
from pipeline.model import NoSignalThresholds, Verdict
from pipeline.nosignal import NoSignal
from tests import cards
from tests.cards import Frame, Scene, captured, ffmpeg_frame, ffmpeg_jpegs, gradient, plain, resized, write
from tests.support import costly, make_frame

pytestmark = pytest.mark.any_python

KNOWS_CARDS = NoSignal(NoSignalThresholds())
CAPTURES = [(0, 95), (0, 40), (1, 80), (2, 60), (4, 90), (4, 40)]
"""Sigma of the noise, quality of the JPEG."""


def judged(data: bytes, judge: NoSignal = KNOWS_CARDS) -> Verdict:
    return judge.judge(detectors.decode(data), lambda: detectors.decode_colour(data))


def never() -> Picture:
    raise AssertionError("looked at in colour")


# -- cards ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "scene"), cards.cards().items(), ids=cards.cards())
def test_a_card_is_known_under_noise_and_compression(name: str, scene: Scene) -> None:
    for sigma, quality in CAPTURES:
        for number in (3, 14):
            verdict = judged(captured(scene(number), sigma, quality, number))
            assert verdict.value is True, f"{name}, frame {number}, sigma {sigma}, quality {quality}: {verdict}"


FFMPEG_CARDS = {
    "smptebars": "smptebars=s=1280x720:r=5",
    "smptehdbars": "smptehdbars=s=1920x1080:r=5",
    "pal75bars": "pal75bars=s=720x576:r=5",
    "pal100bars": "pal100bars=s=640x360:r=5",
    "blue": "color=0x0000BE:s=1280x720:r=5",
    "grey": "color=0x808080:s=854x480:r=5",
}
MOVING_TEXT = "drawtext=text='NO SIGNAL':fontcolor=white:fontsize=h/12:x=mod(40*n\\,w-text_w):y=mod(30*n\\,h-text_h)"


@pytest.mark.parametrize("quality", [8, *costly(2, 20)])
@pytest.mark.parametrize("graph", FFMPEG_CARDS.values(), ids=FFMPEG_CARDS)
def test_what_ffmpeg_draws_and_encodes_is_known(graph: str, quality: int) -> None:
    for more in ("", f",{MOVING_TEXT}", f",{MOVING_TEXT},noise=alls=8:allf=t"):
        verdicts = [judged(data) for data in ffmpeg_jpegs(graph + more, 8, quality)]
        assert [verdict.value for verdict in verdicts] == [True] * 8, (more, verdicts)


@pytest.mark.parametrize("size", [(320, 180), (352, 288), (640, 360), (720, 576), (1920, 1080), (3840, 2160)])
@pytest.mark.parametrize("name", ["smptebars", "pal75bars", "#0000BE with moving text", "#808080"])
def test_the_size_of_the_frame_does_not_matter(name: str, size: tuple[int, int]) -> None:
    frame = resized(cards.cards()[name](0), *size)
    assert judged(captured(frame)).value is True


@settings(max_examples=60)
@given(
    blue=st.integers(90, 255),
    others=st.tuples(st.floats(0, 0.42), st.floats(0, 0.42)),
    at=st.tuples(st.integers(10, 700), st.integers(60, 650)),
    capture=st.tuples(st.sampled_from([0.0, 1.0, 2.5, 4.0]), st.integers(40, 95)),
)
def test_any_blue_card_is_known(
    blue: int, others: tuple[float, float], at: tuple[int, int], capture: tuple[float, int]
) -> None:
    green, red = (round(share * blue) for share in others)
    frame = write(plain(f"{red:02X}{green:02X}{blue:02X}"), "No Signal", *at)
    assert judged(captured(frame, *capture)).value is True


def test_readings_say_what_was_found() -> None:
    bars = judged(captured(ffmpeg_frame("pal75bars"))).readings
    assert bars["no_signal_bars"] == 8 and bars["no_signal_plain_pct"] < 20
    blue = judged(captured(plain("0000BE"))).readings
    assert blue == {"no_signal_plain_pct": 100.0}
    assert judged(make_frame(1)).readings.keys() == {"no_signal_plain_pct"}


# -- what is none -----------------------------------------------------------------------------------------------------

DEEP_SKY = (170.0, 80.0, 30.0)


def menu(lines: int, colour: str = "0000AA") -> Frame:
    """A menu on a plain ground: a list, and at the bottom what the keys do."""
    frame = write(plain(colour), "Settings", 60, 90, 2.2)
    for line in range(lines):
        frame = write(frame, f"{line + 1}  A channel or a setting of it", 120, 190 + 70 * line, 1.4)
    return write(frame, "OK select     EXIT back     red: sort", 120, 690, 1.2)


def inset(frame: Frame, share: float) -> Frame:
    """A picture with another one in it, as a television stands in a room."""
    room, width, height = ffmpeg_frame("mandelbrot").copy(), round(share * 1280), round(share * 720)
    room[60 : 60 + height, 40 : 40 + width] = resized(frame, width, height)
    return room


def snow(_: int) -> Frame:
    noise = np.random.default_rng(1).normal(120, 60, (720, 1280, 1)).clip(0, 255).astype(np.uint8)
    return np.repeat(noise, 3, axis=2)


def pitch(_: int) -> Frame:
    frame = gradient((40, 140, 60), (50, 155, 70))
    for left in range(0, 1280, 160):
        frame[:, left : left + 80] += 8
    return frame


NO_CARDS: dict[str, Scene] = {
    "deep blue sky": lambda _: gradient(DEEP_SKY, (176, 86, 36)),
    "pale sky": lambda _: gradient((235, 206, 135), (250, 230, 180)),
    "even pale sky": lambda _: plain("87CEEB"),
    "even light blue": lambda _: plain("00BFFF"),
    "bare desktop": lambda _: plain("3A6EA5"),
    "empty page": lambda _: plain("FFFFFF"),
    "green screen": lambda _: plain("008700"),
    "black": lambda _: plain("000000"),
    "limited-range black": lambda _: plain("101010"),
    "raised black": lambda _: plain("282828"),
    "blue menu": lambda _: menu(6),
    "short blue menu": lambda _: menu(3),
    "grey menu": lambda _: menu(6, "606060"),
    "blue with a title bar": lambda _: cards.box(plain("0000AA"), 0, 0, 1280, 60, (200, 200, 200)),
    "grey desktop with a panel": lambda _: cards.box(plain("808080"), 0, 0, 1280, 28, (220, 220, 220)),
    "grey desktop with a window": lambda _: cards.box(plain("808080"), 200, 150, 500, 350, (220, 220, 220)),
    "snow": snow,
    "football pitch": pitch,
    "bars on a television": lambda _: inset(ffmpeg_frame("smptebars"), 0.6),
    "bars mirrored": lambda _: ffmpeg_frame("pal75bars")[:, ::-1],
    "bars upright": lambda _: resized(ffmpeg_frame("pal75bars").transpose(1, 0, 2)),
    "grey steps": lambda _: np.repeat(cv2.cvtColor(ffmpeg_frame("pal75bars"), cv2.COLOR_BGR2GRAY)[..., None], 3, 2),
    "colour chart": lambda _: resized(ffmpeg_jpeg("colorchart")),
}


def ffmpeg_jpeg(graph: str) -> Frame:
    return cv2.imdecode(np.frombuffer(ffmpeg_jpegs(graph, 1, 2)[0], np.uint8), cv2.IMREAD_COLOR)  # type: ignore[return-value]


@pytest.mark.parametrize(("name", "scene"), NO_CARDS.items(), ids=NO_CARDS)
def test_what_looks_like_a_card_is_none(name: str, scene: Scene) -> None:
    for sigma, quality in CAPTURES:
        verdict = judged(captured(scene(0), sigma, quality))
        assert verdict.value is False, f"{name}, sigma {sigma}, quality {quality}: {verdict}"


@pytest.mark.parametrize(
    "source",
    ["testsrc", "testsrc2", "rgbtestsrc", "yuvtestsrc", "mandelbrot", "life", "cellauto", "gradients", "colorspectrum"],
)
def test_ffmpegs_moving_test_pictures_are_programmes(source: str) -> None:
    assert [judged(data).value for data in ffmpeg_jpegs(f"{source}=s=640x360:r=5", 30)] == [False] * 30


@settings(max_examples=40)
@given(
    step=st.floats(6, 120),
    level=st.integers(80, 130),
    shape=st.sampled_from(["down", "across"]),
    sigma=st.sampled_from([0.0, 2.0]),
    quality=st.integers(40, 95),
)
def test_a_ground_that_changes_is_no_card(step: float, level: int, shape: str, sigma: float, quality: int) -> None:
    blue = np.array([level + 40.0, level / 4, level / 8])
    assume(level + 40 + step <= 255)
    frame = gradient(tuple(blue), tuple(blue + step))
    if shape == "across":
        frame = resized(frame.transpose(1, 0, 2))
    assert judged(captured(frame, sigma, quality)).value is False


def test_a_fade_to_grey_is_a_card_only_when_nothing_is_left_of_the_picture() -> None:
    film = ffmpeg_frame("mandelbrot").astype(np.float32)
    shares = np.linspace(0, 1, 51)
    found = [judged(captured((film * (1 - share) + 128 * share).astype(np.uint8), 1.0)).value for share in shares]
    assert found == [False] * 49 + [False, True] or found == [False] * 49 + [True, True]


CLIPS = Path(os.environ.get("FOOTAGE", ""), ".clips")


@pytest.mark.skipif(not os.environ.get("FOOTAGE"), reason="python -m tests.footage.make DIR; then FOOTAGE=DIR")
@pytest.mark.parametrize("clip", ["bikes", "bigbuckbunny", "carphone", "cup", "vtest", "tree", "box", "photos"])
def test_nothing_in_a_real_clip_is_a_card(clip: str) -> None:
    files = sorted(path for path in (CLIPS / clip).iterdir() if path.suffix == ".jpg")
    assert len(files) >= 5
    assert {path.name: judged(path.read_bytes()).value for path in files if judged(path.read_bytes()).value} == {}


# -- cost and limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: make_frame(3), lambda: captured(plain("000000")), lambda: captured(menu(8))])
def test_a_programme_is_judged_without_its_colours(make: Callable[[], bytes]) -> None:
    assert KNOWS_CARDS.judge(detectors.decode(make()), never).value is False


def test_a_picture_that_is_too_small_tells_nothing() -> None:
    assert judged(captured(resized(plain("0000BE"), 240, 136))) == Verdict(None, {})


def test_where_cards_are_not_looked_for_nothing_is_known_and_nothing_done() -> None:
    judge = NoSignal(NoSignalThresholds(), cards=False)
    assert judge.judge(detectors.decode(captured(plain("0000BE"))), never) == Verdict(None, {})


def test_a_grey_jpeg_has_no_colours_and_can_be_a_grey_card() -> None:
    levels = np.full((720, 1280), 128, np.uint8)
    assert judged(cv2.imencode(".jpg", levels)[1].tobytes()).value is True
