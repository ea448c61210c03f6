"""Macroblocks: pictures that fell apart on a codec's grid, by drawing and by real encoders; and when one looks."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline import detectors, macroblocks
from pipeline.incidents import Sighting
from pipeline.judge import Judge, Order
from pipeline.masks import Masks
from pipeline.model import PICTURE_BYTES, PICTURE_CELLS, BlockThresholds, FrameId, Judgement, Rule
from pipeline.settings import Source
from pipeline.sidecar import verdict_fields
from pipeline.tiles import Picture
from tests.cards import captured, plain, write
from tests.support import plain_frame

WIDTH, HEIGHT = 1280, 720
SECOND = 10**9
EVERY = BlockThresholds(every_s=0.001)
ALL_LIVE = " ".join(["0" * 16] * 9)


def film(seed: int = 1, width: int = WIDTH, height: int = HEIGHT) -> Picture:
    """A smooth picture without edges."""
    coarse = np.random.default_rng(seed).integers(30, 220, (9, 16), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)  # type: ignore[return-value]


def broken(picture: Picture, side: float = 16, share: float = 0.1, seed: int = 2) -> Picture:
    """With this share of its blocks replaced by their mean, lighter or darker."""
    dice, result = np.random.default_rng(seed), picture.copy()
    for top in np.arange(0, picture.shape[0] - side + 1, side):
        for left in np.arange(0, picture.shape[1] - side + 1, side):
            if dice.random() < share:
                y, x = round(top), round(left)
                block = result[y : round(top + side), x : round(left + side)]
                block[:] = np.clip(block.mean() + dice.choice((-40, 40)), 0, 255)
    return result


def jpeg(picture: Picture, quality: int = 80) -> bytes:
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return data.tobytes()


def quality(picture: Picture, coded: int = 80) -> float:
    found = macroblocks.find(lambda: detectors.decode_full(jpeg(picture, coded)), ALL_LIVE)
    assert found
    return found.quality


# -- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coded", [50, 80, 95])
def test_a_whole_picture_has_full_quality(coded: int) -> None:
    assert quality(film(), coded) > 95


@pytest.mark.parametrize("share", [0.05, 0.2, 0.6])
def test_blocks_on_the_grid_cost_quality(share: float) -> None:
    assert quality(broken(film(), share=share)) < 50


def test_more_blocks_cost_more() -> None:
    found = [quality(broken(film(), share=share)) for share in (0.0, 0.005, 0.02, 0.1, 0.3)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (720, 576), (720, 480)])
def test_a_stream_of_another_size_is_known_by_its_own_grid(width: int, height: int) -> None:
    sent = broken(film(width=width, height=height), share=0.15)
    shown = cv2.resize(sent, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    assert quality(shown) < 50  # type: ignore[arg-type]


def test_noise_is_no_block_and_hides_none_that_is_plain() -> None:
    noise = np.random.default_rng(3).normal(0, 2.5, (HEIGHT, WIDTH))
    noisy: Callable[[Picture], Picture] = lambda picture: np.clip(picture + noise, 0, 255).astype(np.uint8)  # noqa: E731
    assert quality(noisy(film())) > 95
    assert quality(noisy(broken(film(), share=0.2))) < 50


def test_a_desktop_of_windows_and_text_is_whole() -> None:
    screen = np.full((HEIGHT, WIDTH, 3), 235, np.uint8)
    for at in range(12):
        left, top = 70 + 190 * (at % 6), 60 + 320 * (at // 6)
        cv2.rectangle(screen, (left, top), (left + 160, top + 260), (90, 60, 40), -1)
        cv2.rectangle(screen, (left + 8, top + 8), (left + 152, top + 30), (250, 250, 250), -1)
        write(screen, "Window", left + 12, top + 120, 1.0)
    assert quality(cv2.cvtColor(screen, cv2.COLOR_BGR2GRAY)) > 50  # type: ignore[arg-type]


SIZES = [(1920, 1088, True), (1920, 1096, False), (1088, 1920, True), (128, 128, True), (120, 720, False)]


@pytest.mark.parametrize(("width", "height", "expected"), SIZES)
def test_what_is_too_small_or_too_large_is_not_looked_at(width: int, height: int, expected: bool) -> None:
    small = detectors.decode(jpeg(np.zeros((height, width), np.uint8)))
    assert macroblocks.may_look(small) is expected


LEFT = " ".join(["0" * 8 + "z" * 8] * 9)
RIGHT = " ".join(["z" * 8 + "2" * 8] * 9)
TOP = " ".join(["1" * 16] * 4 + ["3" * 16] * 5)


@pytest.mark.parametrize(("tile_map", "blocky"), [(LEFT, True), (RIGHT, False), (TOP, True), (ALL_LIVE, True)])
def test_only_what_has_changed_lately_is_looked_at(tile_map: str, blocky: bool) -> None:
    picture = film()
    picture[: HEIGHT // 3, : WIDTH // 2] = broken(picture, share=0.4)[: HEIGHT // 3, : WIDTH // 2]
    found = macroblocks.find(lambda: picture, tile_map)
    assert found
    assert (found.quality < 50) is blocky


def test_a_screen_on_which_little_moves_is_unknown() -> None:
    few = " ".join(["0" * 16] * 2 + ["z" * 16] * 7)
    assert macroblocks.find(lambda: broken(film(), share=0.5), few) is None


@given(
    st.integers(128, 700), st.integers(128, 700), st.integers(0, 2**32 - 1), st.sampled_from(["noise", "flat", "steps"])
)
def test_any_picture_gets_a_quality_of_0_to_100(width: int, height: int, seed: int, kind: str) -> None:
    dice = np.random.default_rng(seed)
    picture = dice.integers(0, 256, (height, width), dtype=np.uint8)
    if kind == "flat":
        picture[:] = seed % 256
    elif kind == "steps":
        picture = np.kron(picture[::16, ::16], np.ones((16, 16), np.uint8))[:height, :width]
    found = macroblocks.find(lambda: picture, ALL_LIVE)
    assert found is not None
    assert 0 <= found.quality <= 100
    assert found.pct >= 0
    if kind == "flat":
        assert found.quality == 100


def test_masks_hide_blocks() -> None:
    picture = film()
    picture[:, : WIDTH // 2] = broken(picture)[:, : WIDTH // 2]
    assert quality(picture) < 50
    assert quality(Masks([(0, 0, 0.5, 1)]).unchanging(picture)) > 90


@pytest.mark.parametrize(("coder", "good", "bad"), [("mpeg2video", 3, 31), ("mpeg4", 3, 31)])
def test_a_starved_stream_of_a_real_encoder(coder: str, good: int, bad: int) -> None:
    assert quality(_through(coder, good)) > 80
    assert quality(_through(coder, bad)) < 50


def _through(coder: str, scale: int) -> Picture:
    """The last of some frames of a moving picture after this encoder at this quantiser."""
    wide = film(seed=4, width=WIDTH + 128, height=HEIGHT)
    texture = cv2.resize(np.random.default_rng(5).integers(0, 60, (90, 176), dtype=np.uint8), (WIDTH + 128, HEIGHT))
    wide = cv2.add(wide // 2, texture)  # type: ignore[assignment]
    frames = b"".join(np.ascontiguousarray(wide[:, 8 * at : 8 * at + WIDTH]).tobytes() for at in range(12))
    raw = ["-f", "rawvideo", "-pix_fmt", "gray"]
    source = [*raw, "-s", f"{WIDTH}x{HEIGHT}", "-r", "25", "-i", "-", "-pix_fmt", "yuv420p"]
    encode = ["ffmpeg", "-v", "error", *source, "-c:v", coder, "-q:v", f"{scale}", "-g", "12", "-f", "matroska", "-"]
    stream = subprocess.run(encode, input=frames, capture_output=True, check=True).stdout
    decode = ["ffmpeg", "-v", "error", "-i", "-", *raw, "-"]
    decoded = subprocess.run(decode, input=stream, capture_output=True, check=True).stdout
    return np.frombuffer(decoded, np.uint8)[-WIDTH * HEIGHT :].reshape(HEIGHT, WIDTH)


# -- the judge --------------------------------------------------------------------------------------------------------

WHOLE = [jpeg(film(seed)) for seed in range(10, 15)]
BLOCKY = [jpeg(broken(film(seed), share=0.2)) for seed in range(20, 25)]


def judge_of(thresholds: BlockThresholds = EVERY, **more: object) -> Judge:
    source = replace(Source(name="a", dir="/frames/a"), macroblocks=thresholds, **more)
    return Judge(source, [memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)])


class Shown:
    """Frames shown to a judge, one after the other, a fifth of a second apart."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.number = judge, 0

    def show(self, data: bytes) -> Judgement:
        self.number += 1
        order = self.judge.observe(self.number, FrameId(1, self.number, self.number, 1))
        return self.judge.judge(data, f"capture_{self.number:09d}", order, self.number * SECOND // 5)

    def play(self, frames: list[bytes], seconds: float) -> list[Judgement]:
        """Frames in turn for so long: film."""
        return [self.show(frames[at % len(frames)]) for at in range(round(seconds * 5))]


def film_judge(thresholds: BlockThresholds = EVERY, **more: object) -> Shown:
    """A judge that has seen a second of film."""
    shown = Shown(judge_of(thresholds, **more))
    shown.play(WHOLE, 1)
    return shown


def test_a_judgement_tells_quality_and_verdict() -> None:
    shown = film_judge()
    assert shown.show(WHOLE[0]).macroblocks.value is False
    blocky = shown.show(BLOCKY[0])
    assert blocky.macroblocks.value is True
    fields = verdict_fields(blocky)
    assert fields["macroblocks"] is True
    assert fields["quality_score"] == blocky.quality_score
    assert fields["readings"]["macroblocks_pct"] > macroblocks.HALF_PCT


def test_nobody_looks_before_it_is_known_what_moves() -> None:
    scores = [one.quality_score for one in Shown(judge_of()).play(WHOLE, 1)]
    assert scores[0] is None
    assert scores[-1] is not None


def test_what_stands_is_not_called_whole() -> None:
    shown = film_judge()
    scores = [one.quality_score for one in shown.play(BLOCKY[:1], 6)]
    assert scores[0] is not None and scores[0] < 50
    assert set(scores[-10:]) == {None}


def test_the_limit_is_a_setting() -> None:
    found = film_judge().show(BLOCKY[0]).quality_score
    assert found
    assert film_judge(replace(EVERY, quality_min=found - 1)).show(BLOCKY[0]).macroblocks.value is False
    assert film_judge(replace(EVERY, quality_min=found + 1)).show(BLOCKY[0]).macroblocks.value is True


def test_one_looks_every_so_many_seconds_and_never_in_between() -> None:
    looked = [one.quality_score is not None for one in Shown(judge_of(BlockThresholds(every_s=2.0))).play(WHOLE, 8)]
    at = [number for number, look in enumerate(looked) if look]
    assert len(at) == 4
    assert {later - earlier for earlier, later in itertools.pairwise(at)} == {10}


def test_times_that_jump_to_and_fro_cost_no_more_looks() -> None:
    judge = film_judge(BlockThresholds(every_s=2.0)).judge
    looks = 0
    for number in range(10, 30):
        order = judge.observe(number, FrameId(1, number, number, 1))
        time_ns = (3 + number % 2) * SECOND
        looks += judge.judge(WHOLE[number % 5], f"capture_{number:09d}", order, time_ns).quality_score is not None
    assert looks <= 1


def test_zero_seconds_is_never() -> None:
    judgements = film_judge(BlockThresholds(every_s=0)).play(BLOCKY, 2)
    assert {one.macroblocks.value for one in judgements} == {None}
    assert {one.quality_score for one in judgements} == {None}


def test_a_successor_looks_when_it_would_have_been_time() -> None:
    source = replace(Source(name="a", dir="/frames/a"), macroblocks=BlockThresholds(every_s=4.0))
    cells = [memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)]
    shown = Shown(Judge(source, cells))
    first = [one.quality_score is not None for one in shown.play(WHOLE, 2)]
    assert first.count(True) == 1
    shown.judge = Judge(source, cells, shown.judge.encoded_state())
    later = [one.quality_score is not None for one in shown.play(WHOLE, 4)]
    assert later.index(True) == 20 - (10 - first.index(True))


def test_what_is_black_or_a_card_or_late_is_not_looked_at() -> None:
    shown = film_judge()
    assert shown.show(plain_frame(3, WIDTH, HEIGHT)).quality_score is None
    card = shown.show(captured(plain("0000ff")))
    assert (card.no_signal.value, card.quality_score) == (True, None)
    assert shown.play(WHOLE, 1)[-1].quality_score is not None
    assert shown.judge.observe(3, FrameId(1, 3, 3, 1)) is Order.LATE
    late = shown.judge.judge(WHOLE[0], "capture_000000003", Order.LATE, 100 * SECOND)
    assert late.quality_score is None


def test_another_size_in_mid_stream_begins_anew() -> None:
    shown = film_judge()
    other = [jpeg(film(seed, 720, 576)) for seed in range(5)]
    scores = [one.quality_score for one in shown.play(other, 2)]
    assert scores[0] is None
    assert scores[-1] is not None and scores[-1] > 80


def test_a_frame_that_is_too_large_is_not_decoded_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(_: bytes) -> Picture:
        raise AssertionError("decoded at full size")

    shown = film_judge()
    monkeypatch.setattr(detectors, "decode_full", decoded)
    large = [jpeg(film(seed, 2560, 1440)) for seed in range(5)]
    assert {one.quality_score for one in shown.play(large, 2)} == {None}


def test_a_frame_that_cannot_be_had_at_full_size_is_judged_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: bytes) -> Picture:
        raise detectors.BadPicture("OpenCV refused it: insufficient memory")

    shown = film_judge()
    monkeypatch.setattr(detectors, "decode_full", refused)
    judgement = shown.show(WHOLE[0])
    assert (judgement.black.value, judgement.quality_score) == (False, None)


@pytest.mark.parametrize("incident", [False, True])
def test_an_incident_only_where_one_is_asked_for(incident: bool) -> None:
    shown = film_judge(BlockThresholds(every_s=1.0, incident=incident), rules={"macroblocks": Rule(3.0, 3.0)})
    told = []
    for at in range(40):
        judgement = shown.show(BLOCKY[at % 5])
        time_ns = shown.number * SECOND // 5
        frame = Sighting(time_ns, time_ns, shown.number, f"{shown.number}", FrameId(1, shown.number, time_ns, 1))
        told += shown.judge.track(frame, judgement)
    opened = [one.incident.condition for one in told if one.kind == "opened"]
    assert opened == (["macroblocks"] if incident else [])
