"""Judging pictures: one row per fact. Scenes are drawn at 1280x720, made noisy, encoded as JPEG and
decoded."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import detectors
from pipeline.detectors import (
    CELLS,
    PICTURE_BYTES,
    BadPicture,
    History,
    HistoryEntry,
    Picture,
    confirm_black,
    decode,
    judge_black,
    judge_freeze,
    prepare,
)
from pipeline.model import BlackThresholds, FreezeThresholds, UnavailableError, Verdict

Scene = Callable[[int], npt.NDArray[np.uint8]]  # the frame at full size with this number

WIDTH, HEIGHT = 1280, 720
BLACK, FREEZE = BlackThresholds(), FreezeThresholds()
NOISE = np.random.default_rng(1).standard_normal((HEIGHT + 64, WIDTH + 64), np.float32)


def noisy(frame: npt.NDArray[np.uint8], sigma: float, number: int = 0) -> npt.NDArray[np.uint8]:
    """The frame under grey noise; each number takes another cut-out of one noise field."""
    top, left = number * 7 % 64, number * 13 % 64
    noise = sigma * NOISE[top : top + HEIGHT, left : left + WIDTH]
    return np.clip(np.rint(frame + (noise if frame.ndim == 2 else noise[..., None])), 0, 255).astype(np.uint8)


def jpeg(frame: npt.NDArray[np.uint8], quality: int = 90) -> bytes:
    return cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def grey(level: int) -> npt.NDArray[np.uint8]:
    return np.full((HEIGHT, WIDTH), level, np.uint8)


def colour(blue: int, green: int, red: int) -> npt.NDArray[np.uint8]:
    return np.full((HEIGHT, WIDTH, 3), (blue, green, red), np.uint8)


def text(frame: npt.NDArray[np.uint8], *lines: tuple[str, int, int, float]) -> npt.NDArray[np.uint8]:
    frame = frame.copy()
    for words, x, y, size in lines:
        cv2.putText(frame, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, (230,), 3)
    return frame


def rounded(levels: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.rint(levels).astype(np.uint8)


def letterboxed(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    frame = frame.copy()
    bar = round((HEIGHT - WIDTH / 2.39) / 2)
    frame[:bar] = frame[-bar:] = 0
    return frame


def ramp(top: int) -> npt.NDArray[np.uint8]:
    return np.rint(np.tile(np.linspace(0, top, WIDTH), (HEIGHT, 1))).astype(np.uint8)


def texture(top: float, shift: float = 0.0) -> npt.NDArray[np.float32]:
    """Structure of 16 px and more, 0 to `top` levels, moved left by `shift` px."""
    seeds = np.random.default_rng(2).random((50, 90), np.float32)
    large = cv2.resize(seeds, None, fx=16, fy=16, interpolation=cv2.INTER_CUBIC)
    moved = cv2.warpAffine(large, np.array([[1, 0, -shift], [0, 1, 0]], np.float32), (WIDTH, HEIGHT))
    return np.clip(moved, 0, 1) * top


def lights(count: int) -> npt.NDArray[np.uint8]:
    frame, random = grey(0), np.random.default_rng(3)
    for x, y in random.integers((0, HEIGHT // 3), (WIDTH, HEIGHT), (count, 2)).tolist():
        cv2.circle(frame, (x, y), 5, (220,), -1)
    return frame


LOGO = ("TV9", 1150, 70, 1.5)
CLOCK = ("20:15:33", 60, 70, 1.2)
SUBTITLES = (
    ("This is a long line of subtitles", 130, 610, 1.8),
    ("and here the second long line", 170, 680, 1.8),
)
CREDITS = [("An actor's name as a character", 300, 60 + 55 * line, 1.0) for line in range(12)]


# --- prepare and decode ---


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


# --- black ---


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
    ],
)
def test_what_is_black(frame: npt.NDArray[np.uint8], sigma: float, quality: int, black: bool) -> None:
    data = jpeg(noisy(frame, sigma), quality)
    assert confirm_black(judge_black(decode(data), BLACK), data, BLACK).value is black


def picture(*areas: tuple[slice, slice, int], base: int = 16) -> Picture:
    """A 160x90 picture of level `base` with rectangles (rows, columns, level) in it; a tile is 10x10."""
    pixels = np.full((90, 160), base, np.uint8)
    for rows, columns, level in areas:
        pixels[rows, columns] = level
    return pixels


@pytest.mark.parametrize(
    ("areas", "base", "black", "readings"),
    [
        ((), 27, True, {"black_pct": 100.0, "black_level": 27.0, "black_lit_tiles_pct": 0.0}),
        ((), 28, False, {"black_pct": 0.0, "black_level": 0.0}),
        ([(slice(45), slice(160), 10)], 16, True, {"black_pct": 100.0, "black_lit_tiles_pct": 0.0}),
        ([(slice(45), slice(160), 10)], 17, False, {"black_pct": 50.0, "black_level": 10.0}),
        ([(slice(36), slice(32), 99)], 16, True, {"black_pct": 92.0, "black_lit_tiles_pct": 11.11}),
        ([(slice(36), slice(32), 99), (slice(89, 90), slice(1), 99)], 16, False, {"black_pct": 91.99}),
        (
            [(slice(0, 20, 10), slice(0, 155, 10), 99)],
            16,
            False,
            {"black_pct": 99.78, "black_lit_tiles_pct": 22.22},
        ),
        (
            [(slice(0, 20, 10), slice(5, 155, 10), 99)],
            16,
            True,
            {"black_pct": 99.79, "black_lit_tiles_pct": 20.83},
        ),
        ([(slice(45), slice(160), 200)], 2, False, {"black_pct": 50.0, "black_level": 2.0}),
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
        pytest.param(True, 18.0, colour(32, 0, 0), True, id="tint at the limit"),
        pytest.param(True, 18.0, colour(40, 0, 0), False, id="tint above the limit"),
        pytest.param(True, 17.0, colour(190, 0, 0), True, id="dark enough: not looked at"),
        pytest.param(False, 22.0, colour(0, 0, 0), False, id="never raised to black"),
    ],
)
def test_a_raised_black_is_confirmed_in_colour(
    black: bool, level: float, frame: npt.NDArray[np.uint8], expected: bool
) -> None:
    verdict = confirm_black(Verdict(black, {"black_level": level}), jpeg(frame, 100), BLACK)
    assert verdict.value is expected
    assert ("black_tint" in verdict.readings) is (black and level > BLACK.tint_above_level)


# --- freeze ---


def new_history(entries: tuple[HistoryEntry, ...] = ()) -> History:
    return History([memoryview(bytearray(PICTURE_BYTES)) for _ in range(CELLS)], entries)


def after(*predecessors: Picture) -> History:
    """A history fed with these, oldest first."""
    history = new_history()
    for number, predecessor in enumerate(predecessors):
        history.push(predecessor, f"capture_{number:09d}.jpg")
    return history


def judge_scene(scene: Scene, sigma: float, quality: int) -> Verdict:
    *before, now = [decode(jpeg(noisy(scene(number), sigma, number), quality)) for number in range(4)]
    return judge_freeze(now, after(*before), FREEZE)[0]


def menu() -> npt.NDArray[np.uint8]:
    return text(grey(40), *[(f"Menu item {item}", 80, 120 + 90 * item, 1.0) for item in range(6)])


def still(_: int) -> npt.NDArray[np.uint8]:
    return rounded(texture(200))


def ticking_clock(number: int) -> npt.NDArray[np.uint8]:
    return text(menu(), (f"12:34:{5 + number // 3:02d}", 1050, 50, 0.6))


def spinner(number: int) -> npt.NDArray[np.uint8]:
    frame = menu()
    cv2.ellipse(frame, (640, 360), (32, 32), 36 * number, 0, 90, (200,), 6)
    return frame


def mouse(number: int) -> npt.NDArray[np.uint8]:
    frame, (x, y) = menu(), (700 + 2 * number, 300 + number)
    cv2.fillPoly(frame, [np.array([(x, y), (x, y + 24), (x + 16, y + 16)])], (255,))
    return frame


def ticker(number: int) -> npt.NDArray[np.uint8]:
    frame = still(0)
    frame[660:] = 20
    return text(frame, ("BREAKING NEWS all the time", 700 - 12 * number, 700, 1.0))


def slow_pan(number: int) -> npt.NDArray[np.uint8]:
    return rounded(texture(200, 0.25 * number))


def dark_pan(number: int) -> npt.NDArray[np.uint8]:
    return letterboxed(rounded(texture(40, number)))


def slow_fade(number: int) -> npt.NDArray[np.uint8]:
    return rounded(texture(200) + 0.5 * number)


def stepped_fade(number: int) -> npt.NDArray[np.uint8]:
    return still(0) + np.uint8(number // 2)


@pytest.mark.parametrize("quality", [95, 50])
@pytest.mark.parametrize("sigma", [0, 1, 3])
@pytest.mark.parametrize(
    ("scene", "alike"),
    [
        pytest.param(still, True, id="still picture"),
        pytest.param(lambda _: menu(), True, id="still menu"),
        pytest.param(lambda _: grey(16), True, id="black"),
        pytest.param(lambda _: letterboxed(rounded(texture(40))), True, id="still dark film"),
        pytest.param(ticking_clock, False, id="clock that ticks"),
        pytest.param(spinner, False, id="spinner of 72 px"),
        pytest.param(mouse, False, id="mouse pointer"),
        pytest.param(ticker, False, id="still picture with a ticker"),
        pytest.param(slow_pan, False, id="pan of 0.25 px"),
        pytest.param(dark_pan, False, id="pan of 1 px in a dark film"),
        pytest.param(slow_fade, False, id="fade of 0.5 levels"),
        pytest.param(stepped_fade, False, id="fade of 1 level every second frame"),
    ],
)
def test_what_is_a_freeze_candidate(scene: Scene, sigma: float, quality: int, alike: bool) -> None:
    assert judge_scene(scene, sigma, quality).value is alike


BASE = picture(base=100)


@pytest.mark.parametrize(
    ("changed", "where", "alike", "readings"),
    [
        pytest.param(0, (slice(1), slice(1), 106), True, {"freeze_max_diff": 6.0, "freeze_changed_pct": 0.0}, id="6"),
        pytest.param(0, (slice(1), slice(1), 107), False, {"freeze_max_diff": 7.0, "freeze_changed_pct": 0.01}, id="7"),
        pytest.param(2, (slice(1), slice(1), 93), False, {"freeze_max_diff": 7.0}, id="darker, newest only"),
        pytest.param(0, (slice(9), slice(128), 101), True, {"freeze_drift": 0.08}, id="1152 / 14400"),
        pytest.param(0, (slice(9), slice(129), 101), False, {"freeze_drift": 0.081}, id="1161 / 14400"),
        pytest.param(2, (slice(9), slice(129), 101), True, {"freeze_drift": -0.081}, id="noise on the newest"),
    ],
)
def test_freeze_on_both_sides_of_each_threshold(
    changed: int, where: tuple[slice, slice, int], alike: bool, readings: dict[str, float]
) -> None:
    predecessors = [BASE, BASE, BASE]
    predecessors[changed] = picture(where, base=100)
    verdict, _ = judge_freeze(BASE, after(*predecessors), FREEZE)
    assert verdict.value is alike
    assert readings.items() <= verdict.readings.items()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_freeze_is_unknown_with_fewer_than_three_predecessors(count: int) -> None:
    verdict, diffs = judge_freeze(BASE, after(*[BASE] * count), FREEZE)
    assert (verdict, diffs) == (Verdict(None, {}), [0.0] * count)


def test_freeze_is_unknown_after_a_change_of_size() -> None:
    history = after(BASE, BASE, BASE)
    other = np.zeros((45, 80), np.uint8)
    assert judge_freeze(other, history, FREEZE) == (Verdict(None, {}), [])
    assert not history.matches(other)


def test_freeze_diffs_are_mean_levels_newest_first() -> None:
    oldest, newest = picture((slice(9), slice(160), 130), base=100), picture(base=98)
    _, diffs = judge_freeze(BASE, after(oldest, BASE, newest), FREEZE)
    assert diffs == [2.0, 0.0, 3.0]


def test_readings_are_plain_short_floats() -> None:
    now, *before = [decode(jpeg(noisy(grey(16), 3, number))) for number in range(4)]
    verdict, diffs = judge_freeze(now, after(*before), FREEZE)
    numbers = [*judge_black(now, BLACK).readings.values(), *verdict.readings.values(), *diffs]
    assert len(numbers) == 9
    assert all(type(number) is float and len(repr(number)) <= 6 for number in numbers)


# --- history ---


def test_a_history_keeps_the_last_three_newest_first() -> None:
    history = after(*[picture(base=level) for level in range(5)])
    assert history.names() == ["capture_000000004.jpg", "capture_000000003.jpg", "capture_000000002.jpg"]
    assert [int(stored[0, 0]) for stored in history.pictures()] == [4, 3, 2]
    assert [entry.name for entry in history.entries] == history.names()[::-1]


def test_pictures_are_read_only_views_into_the_cells() -> None:
    cells = [memoryview(bytearray(PICTURE_BYTES)) for _ in range(CELLS)]
    history = History(cells)
    history.push(BASE, "a")
    (stored,) = history.pictures()
    assert np.shares_memory(stored, np.frombuffer(cells[history.entries[0].cell], np.uint8))
    assert not stored.flags.writeable


def test_a_cleared_history_takes_another_size() -> None:
    history = after(BASE, BASE)
    with pytest.raises(ValueError, match="does not follow"):
        history.push(np.zeros((45, 80), np.uint8), "a")
    history.clear()
    assert (history.entries, history.pictures(), history.names()) == ((), [], [])
    history.push(np.zeros((45, 80), np.uint8), "a")


def test_a_picture_larger_than_a_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="does not follow"):
        new_history().push(np.zeros((1, PICTURE_BYTES + 1), np.uint8), "a")


def test_four_cells_are_needed() -> None:
    with pytest.raises(ValueError, match="4 cells"):
        History([memoryview(bytearray(PICTURE_BYTES))] * 3)


def fill(cells: list[memoryview], count: int = 3) -> tuple[HistoryEntry, ...]:
    history = History(cells)
    for number in range(count):
        history.push(picture(base=number), str(number))
    return history.entries


@pytest.mark.parametrize(
    ("index", "change", "names"),
    [
        pytest.param(0, {}, ["2", "1", "0"], id="intact"),
        pytest.param(0, {"crc": 1}, ["2", "1"], id="oldest has a wrong CRC"),
        pytest.param(1, {"crc": 1}, ["2"], id="middle has a wrong CRC"),
        pytest.param(2, {"crc": 1}, [], id="newest has a wrong CRC"),
        pytest.param(1, {"cell": 4}, ["2"], id="no such cell"),
        pytest.param(1, {"cell": -1}, ["2"], id="negative cell"),
        pytest.param(1, {"height": 89}, ["2"], id="other height"),
        pytest.param(1, {"height": 160, "width": 90}, ["2"], id="same pixels, other shape"),
        pytest.param(1, {"height": 0, "crc": 0}, ["2"], id="no pixels"),
        pytest.param(2, {"height": -90, "width": -160}, [], id="negative size"),
        pytest.param(2, {"height": 10**6}, [], id="larger than its cell"),
    ],
)
def test_a_restored_history_believes_only_what_fits(index: int, change: dict[str, int], names: list[str]) -> None:
    cells = [memoryview(bytearray(PICTURE_BYTES)) for _ in range(CELLS)]
    entries = list(fill(cells))
    fields = {name: getattr(entries[index], name) for name in HistoryEntry.__struct_fields__}
    entries[index] = HistoryEntry(**{**fields, **change})
    assert History(cells, tuple(entries)).names() == names


def test_a_damaged_cell_takes_all_older_pictures_with_it() -> None:
    cells = [memoryview(bytearray(PICTURE_BYTES)) for _ in range(CELLS)]
    entries = fill(cells)
    cells[entries[1].cell][14399] ^= 1
    assert History(cells, entries).names() == ["2"]


def test_an_entry_reaching_past_its_cell_is_dropped_even_if_its_crc_fits() -> None:
    cells = [memoryview(bytearray(64)) for _ in range(CELLS)]
    assert new_history((HistoryEntry(0, 1, 64, "fits", zlib.crc32(bytes(64))),)).names() == ["fits"]
    assert History(cells, (HistoryEntry(0, 1, 65, "a", zlib.crc32(bytes(64))),)).names() == []


def test_push_avoids_the_cells_of_entries_in_any_order() -> None:
    cells = [memoryview(bytearray(PICTURE_BYTES)) for _ in range(CELLS)]
    history = History(cells, fill(cells)[::-1])
    history.push(BASE, "next")
    assert [entry.cell for entry in history.entries] == [1, 0, 3]


def test_only_the_last_three_entries_are_restored() -> None:
    cells = [memoryview(bytearray(PICTURE_BYTES)) for _ in range(CELLS)]
    entries = fill(cells)
    assert len(History(cells, (*entries, entries[0])).entries) == 3


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["push", "restore", "clear and push"]), max_size=12), st.data())
def test_push_leaves_the_cells_of_the_last_commit_alone(steps: list[str], data: st.DataObject) -> None:
    cells = [memoryview(bytearray(64)) for _ in range(CELLS)]
    history = History(cells)
    for number, step in enumerate([*steps, "push"]):
        if step == "restore":
            history = History(cells, history.entries[data.draw(st.integers(0, 3)) :])
            continue
        committed = history.entries
        if step == "clear and push":
            history.clear()
        history.push(np.full((4, 5), number, np.uint8), str(number))
        assert History(cells, committed).entries == committed
        assert History(cells, history.entries).entries == history.entries
