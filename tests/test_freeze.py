"""What stands, and in which way. Each scene is a function from the number of a frame to the frame; it is drawn, made
noisy, encoded, decoded, and judged in order at 5 frames a second."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from pipeline.detectors import decode
from pipeline.freeze import Freeze
from pipeline.history import History
from pipeline.model import PICTURE_BYTES, PICTURE_CELLS, FreezeThresholds
from pipeline.standing import FreezeMemory, Standing
from pipeline.tiles import Picture
from tests.pictures import Scene, grey, jpeg, letterboxed, noisy, picture, rounded, text, texture
from tests.support import costly, make_frame

pytestmark = pytest.mark.any_python

MS = 1_000_000
LIMITS = FreezeThresholds()


class Watcher:
    """Judges one source's pictures in order."""

    def __init__(self, *, static_ok: bool = False, limits: FreezeThresholds = LIMITS) -> None:
        self.freeze = Freeze(limits, static_ok=static_ok)
        self.history = History([memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)])
        self.now_ns = 10**15

    def see(self, shown: Picture, after_ms: float = 200) -> Standing:
        self.now_ns += round(after_ms * MS)
        if not self.history.matches(shown):
            self.history.clear()
        standing = self.freeze.judge(shown, self.history, self.now_ns)
        self.history.push(shown, "x")
        return standing

    def see_all(self, shown: Iterable[Picture], every_ms: float = 200) -> list[Standing]:
        return [self.see(one, every_ms) for one in shown]

    def begin_anew(self) -> None:
        """The numbers began anew: another recording of the same source."""
        self.history.clear()

    def replace(self) -> None:
        """Another worker takes over: only what the commit record keeps is left."""
        record = msgspec.msgpack.encode(self.freeze.memory)
        self.freeze = Freeze(LIMITS, msgspec.msgpack.decode(record, type=FreezeMemory))


@cache
def captured(scene: Scene, number: int, sigma: float = 0, quality: int = 90, capture: int = 0) -> Picture:
    """The picture of a scene's frame. Each `capture` of it has other noise."""
    shown = decode(jpeg(noisy(scene(number), sigma, capture or number), quality))
    shown.setflags(write=False)
    return shown


def stands(found: Sequence[Standing]) -> list[bool | None]:
    return [one.verdict.value for one in found]


def kinds(found: Sequence[Standing]) -> set[str | None]:
    return {one.kind for one in found}


def film(number: int) -> npt.NDArray[np.uint8]:
    """Everything moves, by 9 px a frame."""
    return rounded(texture(200, 9.0 * number % 250))


def menu(_: int = 0) -> npt.NDArray[np.uint8]:
    return text(grey(40), *[(f"Menu item {item}", 80, 120 + 90 * item, 1.0) for item in range(6)])


def with_clock(scene: Scene, frozen_at: int | None = None) -> Scene:
    """The scene with a clock that ticks every fifth frame, also while the scene below it is frozen."""

    def show(number: int) -> npt.NDArray[np.uint8]:
        below = scene(number if frozen_at is None else min(number, frozen_at)).copy()
        below[20:70, 1000:1260] = 20
        return text(below, (f"12:{34 + number // 300}:{number // 5 % 60:02d}", 1010, 60, 1.2))

    return show


def ticker(number: int, frozen_at: int) -> npt.NDArray[np.uint8]:
    below = film(min(number, frozen_at)).copy()
    below[650:] = 20
    return text(below, ("BREAKING NEWS all the time and +++ again", 700 - 12 * number % 700, 700, 1.0))


def halved(number: int) -> npt.NDArray[np.uint8]:
    """The film shows each picture twice, until it stops at the 24th; the ticker is new in each."""
    below = film(min(number, 24) // 2).copy()
    below[650:] = 20
    return text(below, ("BREAKING NEWS all the time and +++ again", 700 - 12 * number % 700, 700, 1.0))


def spinner(number: int) -> npt.NDArray[np.uint8]:
    frame = menu()
    cv2.ellipse(frame, (640, 360), (32, 32), 36 * number, 0, 90, (200,), 6)
    return frame


def mouse(number: int) -> npt.NDArray[np.uint8]:
    frame, (x, y) = menu(), (300 + 4 * number, 300 + number)
    cv2.fillPoly(frame, [np.array([(x, y), (x, y + 24), (x + 16, y + 16)])], (255,))
    return frame


def slow_pan(number: int) -> npt.NDArray[np.uint8]:
    return rounded(texture(200, 0.25 * number))


def dark_pan(number: int) -> npt.NDArray[np.uint8]:
    return letterboxed(rounded(texture(40, number)))


def slow_fade(number: int) -> npt.NDArray[np.uint8]:
    return rounded(texture(200) * (1 - 0.004 * number))


# -- what a freeze is --------------------------------------------------------------------------------------------------


def test_a_film_that_shows_each_picture_twice_freezes_behind_a_ticker_as_well() -> None:
    watcher = Watcher()
    live = watcher.see_all(captured(halved, n, 1) for n in range(24))
    assert True not in stands(live)
    frozen = watcher.see_all(captured(halved, n, 1) for n in range(24, 40))
    assert stands(frozen)[4:] == [True] * 12 and kinds(frozen[4:]) == {"partial"}


@pytest.mark.parametrize("quality", [95, 60])
@pytest.mark.parametrize("sigma", [0, 1, 3])
def test_a_film_that_stops_is_frozen_from_the_fourth_like_picture_on(sigma: float, quality: int) -> None:
    watcher = Watcher()
    live = watcher.see_all(captured(film, n, sigma, quality) for n in range(12))
    assert stands(live) == [None] * 3 + [False] * 9
    frozen = watcher.see_all(captured(film, 12, sigma, quality, capture) for capture in range(12, 32))
    assert stands(frozen) == [False] * 3 + [True] * 17
    assert kinds(frozen) == {None, "whole"} and all(one.fault.value for one in frozen[3:])
    assert stands(watcher.see_all(captured(film, n, sigma, quality) for n in range(13, 16))) == [False] * 3


@pytest.mark.parametrize("sigma", [0, 2])
@pytest.mark.parametrize(
    "over",
    [
        pytest.param(with_clock(film, frozen_at=20), id="clock"),
        pytest.param(lambda n: ticker(n, frozen_at=20), id="ticker"),
    ],
)
def test_a_film_that_stops_behind_something_that_goes_on_is_a_partial_freeze(over: Scene, sigma: float) -> None:
    watcher = Watcher()
    live = watcher.see_all(captured(over, n, sigma) for n in range(21))
    assert True not in stands(live)
    frozen = watcher.see_all(captured(over, n, sigma) for n in range(21, 60))
    assert stands(frozen) == [False] * 2 + [True] * 37
    assert "partial" in kinds(frozen[2:]) and "still" not in kinds(frozen)
    assert all(one.fault.value for one in frozen[2:])
    moving = [one.verdict.readings["freeze_changed_pct"] for one in frozen[2:]]
    assert 0 < max(moving) < 33 and frozen[-1].verdict.readings["freeze_stopped_tiles"] > 100


@pytest.mark.parametrize("sigma", [0, 1.5])
@pytest.mark.parametrize(
    "scene",
    [
        pytest.param(with_clock(menu), id="menu with a clock that ticks"),
        pytest.param(spinner, id="spinner of 72 px"),
        pytest.param(mouse, id="mouse pointer"),
        pytest.param(lambda n: rounded(texture(90, 99.0 * (n // 5))), id="one picture a second"),
        pytest.param(lambda n: film(n % 2), id="two pictures in turn"),
        pytest.param(slow_pan, id="pan of 0.25 px"),
        pytest.param(dark_pan, id="pan of 1 px in a dark film"),
        pytest.param(slow_fade, id="fade of 0.4 %"),
    ],
)
@pytest.mark.parametrize("first", [12, *costly(0)])
def test_what_moves_a_little_does_not_stand(scene: Scene, first: int, sigma: float) -> None:
    """From the beginning, and reached by a cut from a film."""
    watcher = Watcher()
    watcher.see_all(captured(film, n + 100, sigma) for n in range(first))
    found = stands(watcher.see_all(captured(scene, n, sigma) for n in range(first, first + 50)))
    assert True not in found[8:], "the first pause is seen to be one only when it ends"


def test_a_screen_reached_by_a_cut_stands_by_right() -> None:
    watcher = Watcher()
    watcher.see_all(captured(film, n) for n in range(12))
    found = watcher.see_all(captured(menu, 0, 1.5, capture=n) for n in range(40))
    assert stands(found) == [False] * 3 + [True] * 37
    assert kinds(found[3:]) == {"still"} and not any(one.fault.value for one in found)
    assert stands(watcher.see_all(captured(film, n) for n in range(12, 15))) == [False] * 3


def test_what_stands_from_the_first_picture_on_may_have_stopped() -> None:
    """Nobody can know; an alarm too many is better than a source that is never reported. static_ok says otherwise."""
    found = Watcher().see_all(captured(menu, 0) for _ in range(20))
    assert stands(found) == [None] * 5 + [True] * 15, "for a second a clock may be about to tick"
    assert (found[-1].kind, found[-1].fault.value) == ("whole", True)
    found = Watcher(static_ok=True).see_all(captured(menu, 0) for _ in range(20))
    assert (found[-1].verdict.value, found[-1].fault.value) == (True, False)


def test_with_static_ok_only_a_large_moving_picture_can_freeze() -> None:
    watcher = Watcher(static_ok=True)
    watcher.see_all(captured(film, n) for n in range(12))
    assert watcher.see_all([captured(film, 12)] * 10)[-1].fault.value is True
    desktop = Watcher(static_ok=True)
    desktop.see_all(captured(with_clock(menu), n) for n in range(50))
    stopped = desktop.see_all([captured(with_clock(menu), 50)] * 20)[-1]
    assert (stopped.verdict.value, stopped.fault.value) == (True, False)


def test_a_clock_that_stops_is_a_fault() -> None:
    watcher = Watcher()
    watcher.see_all(captured(film, n) for n in range(12))
    assert True not in stands(watcher.see_all(captured(with_clock(menu), n) for n in range(50)))[8:]
    stopped = watcher.see_all([captured(with_clock(menu), 50)] * 20)
    assert stands(stopped) == [False] * 10 + [True] * 10
    assert (stopped[-1].kind, stopped[-1].fault.value) == ("whole", True)


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every_ms", [20, 40, 100, 200, 500, 1000])
def test_a_film_that_stops_is_frozen_at_any_rate(every_ms: float) -> None:
    watcher = Watcher()
    watcher.see_all((captured(film, n) for n in range(60)), every_ms)
    assert stands(watcher.see_all([captured(film, 60)] * 12, every_ms)) == [False] * 3 + [True] * 9


@pytest.mark.parametrize("every_ms", [20, 40, 100, 200])
def test_patience_is_in_seconds_not_in_frames(every_ms: float) -> None:
    """A clock that ticks every second, for 20 s."""
    watcher, frames = Watcher(), round(20_000 / every_ms)
    clock = with_clock(menu)
    shown = [captured(clock, int(n * every_ms / 1000) * 5) for n in range(frames)]
    assert True not in stands(watcher.see_all(shown, every_ms))[round(1000 / every_ms) + 4 :]
    left = round(3000 / every_ms)
    found = stands(watcher.see_all([shown[-1]] * left, every_ms))
    assert found[-1] is True and found.index(True) * every_ms >= 1000


def test_frames_copied_in_at_once_count_as_five_a_second() -> None:
    watcher = Watcher()
    watcher.see_all((captured(film, n) for n in range(12)), 0.2)
    assert stands(watcher.see_all([captured(film, 12)] * 6, 0.2)) == [False] * 3 + [True] * 3


def test_time_that_runs_backwards_stands_still() -> None:
    watcher = Watcher()
    watcher.see_all(captured(film, n) for n in range(12))
    watcher.now_ns -= 3600 * 10**9
    assert stands(watcher.see_all([captured(film, 12)] * 6)) == [False] * 3 + [True] * 3


def test_a_gap_in_a_film_is_no_freeze() -> None:
    watcher = Watcher()
    watcher.see_all(captured(film, n) for n in range(12))
    assert watcher.see(captured(film, 13), 60_000).verdict.value is False
    assert stands(watcher.see_all(captured(film, n) for n in range(14, 20))) == [False] * 6


# -- a new recording ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [0, 1, 2, 3, 10])
def test_a_film_that_stops_shortly_after_its_numbers_began_anew_is_frozen(frames: int) -> None:
    watcher = Watcher()
    watcher.see_all(captured(film, n) for n in range(12))
    watcher.begin_anew()
    watcher.see_all((captured(film, n) for n in range(12, 12 + frames)), 200)
    found = watcher.see_all([captured(film, 12 + frames)] * 12)
    assert None not in stands(found[3:]) and kinds(found[3:]) == {"whole"} and found[-1].fault.value is True


@pytest.mark.parametrize("missing", [1, 3, 5, 9, 14])
@pytest.mark.parametrize("first", [12, 31, 50])
def test_so_is_one_of_which_some_pictures_are_missing_in_between(first: int, missing: int) -> None:
    """It differs more than from picture to picture, and what moves next is no cut for that."""
    watcher = Watcher()
    watcher.see_all(captured(film, n, 1.0) for n in range(first))
    watcher.begin_anew()
    watcher.see_all(captured(film, n, 1.0) for n in range(first + missing, first + missing + 2))
    found = watcher.see_all(captured(film, first + missing + 2, 1.0, capture=n) for n in range(900, 915))
    assert {one.kind for one in found[9:]} == {"whole"} and found[-1].fault.value is True


def test_a_cut_in_every_picture_is_motion_in_a_new_recording_too() -> None:
    watcher = Watcher()
    shown = [decode(make_frame(n)) for n in range(14)]
    watcher.see_all(shown[:11])
    watcher.begin_anew()
    watcher.see_all(shown[11:13])
    assert kinds(watcher.see_all([shown[13]] * 12)[3:]) == {"whole"}


def test_what_stands_in_a_new_recording_as_it_stood_before_stands_as_it_did() -> None:
    screen, frozen = Watcher(), Watcher()
    for watcher in (screen, frozen):
        watcher.see_all(captured(film, n) for n in range(12))
    screen.see_all(captured(menu, 0, 1.5, capture=n) for n in range(40))
    frozen.see_all(captured(film, 12, 1.5, capture=n) for n in range(40))
    for watcher in (screen, frozen):
        watcher.begin_anew()
    assert kinds(screen.see_all(captured(menu, 0, 1.5, capture=n) for n in range(40, 60))) == {None, "still"}
    assert kinds(frozen.see_all(captured(film, 12, 1.5, capture=n) for n in range(40, 60))) == {None, "whole"}


@pytest.mark.parametrize("static_ok", [False, True])
@pytest.mark.parametrize("scene", [with_clock(menu), spinner, mouse, slow_pan])
def test_another_scene_that_moves_in_a_new_recording_does_not_stand(scene: Scene, static_ok: bool) -> None:
    watcher = Watcher(static_ok=static_ok)
    watcher.see_all(captured(film, n) for n in range(30))
    watcher.begin_anew()
    found = watcher.see_all(captured(scene, n, 1.0) for n in range(60))
    assert True not in stands(found)[8:]


def test_with_static_ok_a_screen_in_a_new_recording_is_no_fault() -> None:
    watcher = Watcher(static_ok=True)
    watcher.see_all(captured(film, n) for n in range(30))
    watcher.begin_anew()
    found = watcher.see_all(captured(menu, 0, 1.0, capture=n) for n in range(30))
    assert found[-1].verdict.value is True and not any(one.fault.value for one in found)


@pytest.mark.parametrize("before", [menu, spinner, with_clock(menu)])
def test_what_stands_in_a_new_recording_where_something_else_was_may_have_stopped(before: Scene) -> None:
    watcher = Watcher()
    watcher.see_all(captured(film, n) for n in range(12))
    watcher.see_all(captured(before, n, 1.5) for n in range(12))
    watcher.begin_anew()
    found = watcher.see_all(captured(film, 30, 1.5, capture=n) for n in range(20))
    assert (found[-1].kind, found[-1].fault.value) == ("whole", True)


@pytest.mark.parametrize("paused_ms", [200, 5_000, 3_600_000])
@pytest.mark.parametrize("scene", [film, with_clock(film), spinner, slow_pan])
def test_a_scene_that_goes_on_in_a_new_recording_does_not_stand(scene: Scene, paused_ms: int) -> None:
    watcher = Watcher()
    watcher.see_all(captured(scene, n) for n in range(30))
    watcher.begin_anew()
    watcher.now_ns += paused_ms * MS
    assert True not in stands(watcher.see_all(captured(scene, n) for n in range(31, 60)))


def test_a_pause_that_ended_as_the_numbers_began_anew_is_over() -> None:
    watcher = Watcher()
    watcher.see_all(captured(film, n) for n in range(12))
    watcher.see_all(captured(with_clock(menu), n) for n in range(50))
    watcher.see_all([captured(with_clock(menu), 50)] * 9)
    watcher.begin_anew()
    assert True not in stands(watcher.see_all([captured(with_clock(menu), 55)] * 9))


def dark(scene: Scene, share: float) -> Scene:
    return lambda number: rounded(scene(number).astype(np.float32) * share)


@pytest.mark.parametrize("static_ok", [False, True])
def test_another_dark_scene_in_a_new_recording_does_not_stand(static_ok: bool) -> None:
    """It differs by less than a cut does."""
    watcher = Watcher(static_ok=static_ok)
    film_in_the_dark, wheel_in_the_dark = dark(film, 0.12), dark(spinner, 0.3)
    watcher.see_all(captured(film_in_the_dark, n, 1.0) for n in range(30))
    watcher.begin_anew()
    found = watcher.see_all(captured(wheel_in_the_dark, n, 1.0) for n in range(30))
    assert not any(one.fault.value for one in found[8:])


@pytest.mark.parametrize("moving", [0, 1, 2, 3, 4])
def test_what_moves_for_a_moment_in_a_new_recording_is_frozen_as_soon_again(moving: int) -> None:
    watcher = Watcher()
    watcher.see_all(captured(film, n) for n in range(12))
    watcher.see_all(captured(film, 12, 1.0, capture=n) for n in range(20))
    watcher.begin_anew()
    watcher.see_all(captured(film, n) for n in range(13, 13 + moving))
    found = watcher.see_all(captured(film, 13 + moving, 1.0, capture=n) for n in range(12))
    assert stands(found)[3:] == [True] * 9 and kinds(found[3:]) == {"whole"}


@pytest.mark.parametrize("phase", range(5))
def test_a_clock_is_known_to_tick_after_a_pause_between_recordings(phase: int) -> None:
    clock = with_clock(menu)
    watcher = Watcher()
    watcher.see_all(captured(film, n) for n in range(12))
    watcher.see_all(captured(clock, n // 5 * 5) for n in range(50 + phase))
    watcher.begin_anew()
    watcher.now_ns += 30_000 * MS
    found = watcher.see_all(captured(clock, n // 5 * 5) for n in range(50 + phase, 80))
    assert not any(one.fault.value for one in found)


def test_it_stands_since_it_was_last_seen_to_move() -> None:
    watcher = Watcher()
    watcher.see_all(captured(film, n) for n in range(12))
    watcher.begin_anew()
    watcher.now_ns += 3_600_000 * MS
    found = watcher.see_all([captured(film, 12)] * 5)
    assert [one.verdict.readings["freeze_still_s"] for one in found[3:]] == [0.6, 0.8]


def test_where_the_picture_before_is_lost_too_nothing_is_known() -> None:
    watcher = Watcher()
    watcher.see_all(captured(film, n) for n in range(12))
    watcher.see_all(captured(menu, 0, 1.5, capture=n) for n in range(20))
    watcher.history = History([memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)])
    found = watcher.see_all(captured(menu, 0, 1.5, capture=n) for n in range(20, 40))
    assert stands(found) == [None] * 5 + [True] * 15 and found[-1].kind == "whole"


# -- bounds ------------------------------------------------------------------------------------------------------------

BASE = picture(base=100)


@pytest.mark.parametrize(
    ("where", "alike", "readings"),
    [
        pytest.param((slice(1), slice(1), 106), True, {"freeze_max_diff": 6.0, "freeze_changed_pct": 0.0}, id="6"),
        pytest.param((slice(1), slice(1), 107), False, {"freeze_max_diff": 7.0, "freeze_changed_pct": 0.69}, id="7"),
        pytest.param((slice(1), slice(1), 93), False, {"freeze_max_diff": 7.0}, id="darker"),
        pytest.param((slice(5), slice(7), 101), True, {"freeze_changed_pct": 0.0}, id="0.34 of a tile's mean"),
        pytest.param((slice(6), slice(7), 101), False, {"freeze_changed_pct": 0.69}, id="0.42 of a tile's mean"),
        pytest.param((slice(10), slice(160), 103), True, {"freeze_changed_pct": 0.0}, id="a row of tiles: a hum bar"),
        pytest.param((slice(90), slice(160), 105), True, {"freeze_changed_pct": 0.0}, id="all of it: a flicker"),
    ],
)
@pytest.mark.parametrize("age", [1, 2, 3])
def test_on_both_sides_of_each_limit(
    where: tuple[slice, slice, int], age: int, alike: bool, readings: dict[str, float]
) -> None:
    watcher = Watcher(limits=msgspec.structs.replace(LIMITS, drift_levels=100.0, patience_s=0.0))
    watcher.see_all([BASE] * 8)
    shown = [BASE] * 3
    shown[-age] = picture(where, base=100)
    watcher.see_all(shown)
    found = watcher.see(BASE)
    assert found.verdict.value is alike
    assert readings.items() <= found.verdict.readings.items()


def test_unknown_with_fewer_than_three_predecessors() -> None:
    watcher = Watcher()
    found = watcher.see_all([BASE] * 3)
    assert [one.diffs for one in found] == [[], [0.0], [0.0, 0.0]]
    assert stands(found) == [None] * 3


def test_unknown_after_a_change_of_size() -> None:
    watcher = Watcher()
    watcher.see_all([BASE] * 10)
    other = np.full((45, 80), 100, np.uint8)
    assert stands(watcher.see_all([other] * 3)) == [None] * 3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (8, 13), (9, 16), (10, 17), (640, 512)])
def test_any_size_can_be_judged(height: int, width: int) -> None:
    watcher, random = Watcher(), np.random.default_rng(height)
    live = watcher.see_all(random.integers(0, 255, (height, width), np.uint8) for _ in range(8))
    assert True not in stands(live)
    assert stands(watcher.see_all([np.full((height, width), 9, np.uint8)] * 12))[-1] is True


def test_diffs_are_mean_levels_newest_first() -> None:
    watcher = Watcher()
    watcher.see_all([picture((slice(9), slice(160), 130), base=100), BASE, picture(base=98)])
    assert watcher.see(BASE).diffs == [2.0, 0.0, 3.0]


def test_readings_are_plain_short_floats() -> None:
    watcher = Watcher()
    found = watcher.see_all(captured(lambda _: grey(90), n, 3) for n in range(8))[-1]
    numbers = [*found.verdict.readings.values(), *found.diffs]
    assert len(numbers) == 9
    assert all(type(number) is float and len(repr(number)) <= 6 for number in numbers)


def test_the_tile_map_tells_seconds_since_each_tile_changed() -> None:
    watcher = Watcher()
    watcher.see_all([BASE] * 206)
    found = watcher.see_all([picture((slice(10), slice(150, 160), 200), base=100)] * 17)[-1]
    assert found.tile_map == " ".join(["z" * 15 + "3", *["z" * 16] * 8])


# -- a successor -------------------------------------------------------------------------------------------------------


def test_a_successor_judges_exactly_as_its_predecessor_would_have() -> None:
    scene = with_clock(film, frozen_at=20)
    shown = [captured(scene, n, 2) for n in range(40)]
    shown += [captured(with_clock(menu), n) for n in range(40)] + [captured(slow_pan, n, 1) for n in range(20)]
    alone, relieved = Watcher(), Watcher()
    for n, one in enumerate(shown):
        relieved.replace()
        if n % 13 == 12:
            alone.begin_anew()
            relieved.begin_anew()
        assert relieved.see(one) == alone.see(one)
    assert relieved.freeze.memory == alone.freeze.memory


def test_the_memory_is_small() -> None:
    watcher = Watcher()
    watcher.see_all(captured(film, n) for n in range(20))
    assert len(msgspec.msgpack.encode(watcher.freeze.memory)) < 5000
