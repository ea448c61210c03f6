"""What is black: one row per fact."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.black import Black, BlackMemory, confirm_black, judge_black
from pipeline.detectors import decode, decode_colour
from pipeline.model import BlackThresholds, Verdict
from tests.pictures import (
    CLOCK,
    CREDITS,
    LOGO,
    SUBTITLES,
    colour,
    grey,
    jpeg,
    letterboxed,
    lights,
    noisy,
    picture,
    ramp,
    rounded,
    text,
    texture,
)

pytestmark = pytest.mark.any_python

BLACK = BlackThresholds()


def banner(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    frame = frame.copy()
    frame[560:690, 70:1210] = 48
    return text(frame, ("12  Channel Twelve", 110, 610, 1.6), ("20:15  The evening programme", 110, 660, 1.0))


def skyline() -> npt.NDArray[np.uint8]:
    frame = grey(0)
    frame[500:] = rounded(texture(220))[500:]
    return frame


@pytest.mark.parametrize("quality", [95, 50])
@pytest.mark.parametrize("sigma", [0, 3, 6])
@pytest.mark.parametrize(
    ("frame", "black"),
    [
        pytest.param(grey(0), True, id="full-range black"),
        pytest.param(grey(12), True, id="raised black 12"),
        pytest.param(grey(16), True, id="limited-range black"),
        pytest.param(grey(24), True, id="raised black 24"),
        pytest.param(text(grey(0), LOGO), True, id="logo"),
        pytest.param(text(grey(16), CLOCK), True, id="clock"),
        pytest.param(text(grey(24), *SUBTITLES), True, id="subtitles"),
        pytest.param(text(grey(0), LOGO, CLOCK, *SUBTITLES), True, id="logo, clock and subtitles"),
        pytest.param(letterboxed(ramp(24)), False, id="letterboxed gradient 0-24"),
        pytest.param(letterboxed(rounded(texture(24))), False, id="letterboxed film 0-24"),
        pytest.param(letterboxed(rounded(texture(40))), False, id="letterboxed film 0-40"),
        pytest.param(rounded(texture(30) + 8), False, id="dim scene"),
        pytest.param(lights(100), False, id="night with lights"),
        pytest.param(text(grey(0), *CREDITS), False, id="credits"),
        pytest.param(grey(32), False, id="dark grey"),
        pytest.param(grey(128), False, id="grey card"),
        pytest.param(colour(255, 0, 0), False, id="blue card 0000FF"),
        pytest.param(colour(190, 0, 0), False, id="blue card 0000BE"),
        pytest.param(colour(90, 0, 0), False, id="navy card"),
        pytest.param(banner(grey(0)), True, id="channel banner"),
        pytest.param(text(banner(grey(16)), LOGO, CLOCK), True, id="channel banner, logo and clock"),
        pytest.param(skyline(), False, id="town at night under a black sky"),
    ],
)
def test_what_is_black(frame: npt.NDArray[np.uint8], sigma: float, quality: int, black: bool) -> None:
    data = jpeg(noisy(frame, sigma), quality)
    assert confirm_black(judge_black(decode(data), BLACK), partial(decode_colour, data), BLACK).value is black


@pytest.mark.parametrize(
    ("areas", "base", "black", "readings"),
    [
        ((), 31, True, {"black_pct": 100.0, "black_level": 31.0, "black_lit_tiles_pct": 0.0, "black_lit_pct": 0.0}),
        ((), 32, False, {"black_pct": 0.0, "black_top_level": 31.0}),
        ([(slice(45), slice(160), 14)], 16, True, {"black_pct": 100.0, "black_lit_tiles_pct": 0.0}),
        ([(slice(45), slice(160), 10)], 16, False, {"black_pct": 100.0, "black_core_pct": 100.0}),
        ([(slice(45), slice(160), 9)], 16, False, {"black_level": 9.0}),
        ([(slice(30, 39), slice(10, 20), 99)], 16, True, {"black_core_pct": 98.75}),
        ([(slice(30, 41), slice(10, 20), 99)], 16, False, {"black_pct": 99.24}),
        ([(slice(21, 26), slice(10, 90), 21)], 16, True, {"black_core_pct": 100.0, "black_lit_tiles_pct": 5.56}),
        ([(slice(21, 26), slice(10, 100), 21)], 16, False, {"black_core_pct": 100.0, "black_lit_tiles_pct": 6.25}),
        ([(slice(5), slice(160), 99)], 16, True, {"black_core_pct": 100.0}),
        ([(slice(6), slice(160), 99)], 16, False, {"black_core_pct": 100.0}),
        ([(slice(80, 87), slice(160), 99)], 16, True, {"black_core_pct": 100.0}),
        ([(slice(61, 90), slice(10, 150), 99)], 16, True, {"black_core_pct": 100.0, "black_lit_pct": 56.39}),
        ([(slice(45), slice(160), 200)], 2, False, {"black_pct": 50.0}),
    ],
)
def test_black_on_both_sides_of_each_threshold(
    areas: list[tuple[slice, slice, int]], base: int, black: bool, readings: dict[str, float]
) -> None:
    verdict = judge_black(picture(*areas, base=base), BLACK)
    assert verdict.value is black
    assert readings.items() <= verdict.readings.items()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 300), (8, 15), (45, 80), (17, 33)])
def test_black_at_any_size(height: int, width: int) -> None:
    assert judge_black(np.zeros((height, width), np.uint8), BLACK).value is True
    assert judge_black(np.full((height, width), 60, np.uint8), BLACK).value is False


@pytest.mark.parametrize(
    ("black", "level", "frame", "expected"),
    [
        pytest.param(True, 18.0, colour(0, 0, 0), True, id="no tint"),
        pytest.param(True, 18.0, colour(28, 0, 0), True, id="tint at the limit"),
        pytest.param(True, 18.0, colour(36, 0, 0), False, id="tint above the limit"),
        pytest.param(True, 4.0, colour(190, 0, 0), True, id="dark enough: not looked at"),
        pytest.param(False, 22.0, colour(0, 0, 0), False, id="never raised to black"),
    ],
)
def test_a_raised_black_is_confirmed_in_colour(
    black: bool, level: float, frame: npt.NDArray[np.uint8], expected: bool
) -> None:
    verdict = confirm_black(Verdict(black, {"black_level": level}), partial(decode_colour, jpeg(frame, 100)), BLACK)
    assert verdict.value is expected
    assert ("black_tint" in verdict.readings) is (black and level > BLACK.tint_above_level)


# -- what is learned of a source ---------------------------------------------------------------------------------------


def film(pedestal: int, number: int = 0) -> npt.NDArray[np.uint8]:
    return rounded(texture(200 - pedestal, 9.0 * number) + pedestal)


def judged(memory: BlackMemory, *frames: npt.NDArray[np.uint8]) -> list[bool | None]:
    black = Black(BLACK, memory)
    data = [jpeg(frame) for frame in frames]
    return [black.judge(decode(one), partial(decode_colour, one)).value for one in data]


@pytest.mark.parametrize(
    ("pedestal", "level", "black"),
    [
        pytest.param(0, 24, True, id="raised black 24 needs no learning"),
        pytest.param(0, 40, False, id="dark grey where black is 0"),
        pytest.param(40, 40, True, id="raised black 40"),
        pytest.param(16, 46, False, id="dark grey where black is 16"),
        pytest.param(90, 44, True, id="darker than anything seen"),
        pytest.param(90, 60, False, id="grey card, though darker than anything seen"),
    ],
)
def test_a_raised_black_is_learned(pedestal: int, level: int, black: bool) -> None:
    memory = BlackMemory()
    assert judged(memory, *(film(pedestal, number) for number in range(5))) == [False] * 5
    assert judged(memory, grey(level)) == [black]


def test_a_plain_picture_teaches_nothing_and_an_unknown_source_is_judged_as_it_comes() -> None:
    memory = BlackMemory()
    assert judged(memory, grey(40), grey(24), grey(0)) == [False, True, True]
    assert memory.floor == -1


def test_what_was_learned_is_unlearned_slowly() -> None:
    memory = BlackMemory()
    judged(memory, film(0))
    before = memory.floor
    judged(memory, *(film(60, number) for number in range(10)))
    assert before < memory.floor < before + 256
