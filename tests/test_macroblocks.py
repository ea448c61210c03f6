"""Macroblocks: pictures that fell apart on a codec's grid, by drawing and by real encoders; and when one looks."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline import detectors, macroblocks
from pipeline.judge import Judge, Order
from pipeline.masks import Masks
from pipeline.model import PICTURE_BYTES, PICTURE_CELLS, BlockThresholds, FrameId, Judgement, Rule
from pipeline.settings import Source
from pipeline.sidecar import verdict_fields
from pipeline.tiles import Picture
from tests.cards import write
from tests.support import make_frame, plain_frame

WIDTH, HEIGHT = 1280, 720
SECOND = 10**9
EVERY = BlockThresholds(every_s=0.001)


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
    found = macroblocks.find(detectors.decode_full(jpeg(picture, coded)))
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


@pytest.mark.parametrize("shape", [(100, 1280), (720, 64), (1, 1), (2160, 3840)])
def test_what_is_too_small_or_too_large_is_unknown(shape: tuple[int, int]) -> None:
    assert macroblocks.find(np.zeros(shape, np.uint8)) is None


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
    found = macroblocks.find(picture)
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

WHOLE, BLOCKY = jpeg(film()), jpeg(broken(film(), share=0.2))


def judge_of(thresholds: BlockThresholds = EVERY, state: bytes = b"", **more: object) -> Judge:
    source = replace(Source(name="a", dir="/frames/a"), macroblocks=thresholds, **more)
    return Judge(source, [memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)], state)


def show(judge: Judge, number: int, data: bytes, time_s: float) -> Judgement:
    order = judge.observe(number, FrameId(1, number, number, 1))
    return judge.judge(data, f"capture_{number:09d}", order, round(time_s * SECOND))


def test_a_judgement_tells_quality_and_verdict() -> None:
    judge = judge_of()
    whole, blocky = show(judge, 1, WHOLE, 0), show(judge, 2, BLOCKY, 1)
    assert whole.macroblocks.value is False
    assert blocky.macroblocks.value is True
    fields = verdict_fields(blocky)
    assert fields["macroblocks"] is True
    assert fields["quality_score"] == blocky.quality_score
    assert fields["readings"]["macroblocks_pct"] > macroblocks.HALF_PCT


def test_the_limit_is_a_setting() -> None:
    found = show(judge_of(), 1, BLOCKY, 0).quality_score
    assert found
    assert show(judge_of(BlockThresholds(quality_min=found - 1)), 1, BLOCKY, 0).macroblocks.value is False
    assert show(judge_of(BlockThresholds(quality_min=found + 1)), 1, BLOCKY, 0).macroblocks.value is True


def test_one_looks_every_so_many_seconds_and_never_in_between() -> None:
    judge = judge_of(BlockThresholds(every_s=2.0))
    looked = [show(judge, at, WHOLE, at / 5).macroblocks.value is not None for at in range(31)]
    assert [at / 5 for at, look in enumerate(looked) if look] == [0, 2, 4, 6]


def test_zero_seconds_is_never() -> None:
    judge = judge_of(BlockThresholds(every_s=0))
    judgements = [show(judge, at, BLOCKY, at) for at in range(5)]
    assert {one.macroblocks.value for one in judgements} == {None}
    assert {one.quality_score for one in judgements} == {None}


def test_a_successor_looks_when_it_would_have_been_time() -> None:
    first = judge_of(BlockThresholds(every_s=10.0))
    show(first, 1, WHOLE, 0)
    second = judge_of(BlockThresholds(every_s=10.0), first.encoded_state())
    assert show(second, 2, WHOLE, 5).quality_score is None
    assert show(second, 3, WHOLE, 10).quality_score is not None


def test_a_black_picture_and_a_late_one_are_not_looked_at() -> None:
    judge = judge_of()
    assert show(judge, 1, plain_frame(3, WIDTH, HEIGHT), 0).quality_score is None
    assert show(judge, 5, WHOLE, 1).quality_score is not None
    assert judge.observe(3, FrameId(1, 3, 3, 1)) is Order.LATE
    assert judge.judge(WHOLE, "capture_000000003", Order.LATE, 2 * SECOND).quality_score is None


def test_a_small_frame_is_unknown() -> None:
    assert show(judge_of(), 1, make_frame(1, 160, 90), 0).macroblocks.value is None


@pytest.mark.parametrize("incident", [False, True])
def test_an_incident_only_where_one_is_asked_for(incident: bool) -> None:
    rules = {"macroblocks": Rule(2.0, 2.0)}
    judge = judge_of(BlockThresholds(every_s=0.1, incident=incident), rules=rules)
    assert ("macroblocks" in {track.condition for track in judge.tracker.state.tracks}) is incident
