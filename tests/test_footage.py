"""The labelled set: its definitions of truth on hand-made facts, and tiny cases built and judged from end to end."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline import truth as labels
from pipeline.truth import Fault, Known, Truth
from tests.footage import broken, make, truths
from tests.footage.broken import BrokenCase
from tests.footage.capture import Camera, Capture
from tests.footage.cases import STOCKS
from tests.footage.clips import Library
from tests.footage.compose import Black, Case, Freeze, build
from tests.footage.draw import plain
from tests.footage.overlays import Overlay, clock
from tests.footage.scenes import Motion, clip, playlist
from tests.footage.screens import menu
from tests.footage.truths import Facts, freeze_truth
from tests.support import ROOT

pytestmark = pytest.mark.any_python

T, F, N = True, False, None


def facts(
    motion: Motion, digests: str, *, black: str = "", frozen_from: int | None = None, held: str = ""
) -> list[Facts]:
    """One per letter; `black` and `held` mark positions with an x."""
    return [
        Facts(
            motion,
            black=black[at : at + 1] == "x",
            frozen_for=-1 if frozen_from is None or at < frozen_from else at - frozen_from,
            digest=ord(letter),
            held=held[at : at + 1] == "x",
        )
        for at, letter in enumerate(digests)
    ]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(facts("film", "abcdef"), (F, F, F, F, F, F), id="film is live"),
        pytest.param(facts("film", "abcdef", held="   xx "), (F, F, F, N, N, F), id="held film is undecided"),
        pytest.param(
            facts("film", "abbbbb", frozen_from=1), (F, N, N, N, T, T), id="frozen film from its fourth frame"
        ),
        pytest.param(facts("film", "abcdef", frozen_from=1), (F, N, N, N, T, T), id="frozen behind a clock"),
        pytest.param(facts("film", "aabbbb", black=" xx"), (F, N, N, F, F, F), id="black cannot be seen to stand"),
        pytest.param(facts("drawn", "aaaaaa"), (F, F, F, F, F, F), id="live by design"),
        pytest.param(facts("screen", "a" * 10 + "b"), (F,) * 11, id="a screen that changes every 2 s is live"),
        pytest.param(facts("screen", "a" * 12), (F, F, F, *(N,) * 7, T, T), id="a still screen stands after 2 s"),
        pytest.param(facts("screen", "ab" + "b" * 12, frozen_from=1), (F, *(N,) * 10, T, T, T), id="frozen screen"),
    ],
)
def test_freeze_truth(seen: list[Facts], expected: Known) -> None:
    assert tuple(freeze_truth(seen).known) == expected


def test_what_stands_by_right_and_what_pauses_is_listed() -> None:
    found = freeze_truth(facts("screen", "aaaaabbbbb" + "c" * 14))
    assert truths.spans(found.pause) == ((3, 4), (8, 9))
    assert truths.spans(found.still) == ((20, 23),)


def test_a_fading_picture_is_neither_black_nor_not_near_its_end() -> None:
    assert truths.fading_is_black(plain((64, 36), (30, 30, 30))) is None
    assert truths.fading_is_black(plain((64, 36), (60, 60, 60))) is False
    speck = plain((64, 36), (10, 10, 10))
    speck[:4, :4] = 200
    assert truths.fading_is_black(speck) is None


def test_no_clip_is_in_two_splits() -> None:
    splits: dict[str, set[str]] = {}
    for case in make.all_cases().values():
        for name in case.scene.clips:
            splits.setdefault(name, set()).add(case.split)
    assert {name for name, found in splits.items() if len(found) > 1} == set()
    assert {stock.split for stock in STOCKS} == {"tuning", "validation"}


def test_every_fault_lies_in_its_case_and_both_splits_have_every_theme() -> None:
    themes: dict[str, set[str]] = {"tuning": set(), "validation": set()}
    for case in make.all_cases().values():
        themes[case.split].add(case.theme)
        if isinstance(case, BrokenCase):
            continue
        events: list[Freeze | Black] = [*case.freezes, *case.blacks]
        for event in events:
            assert 0 < event.first_s < min(event.last_s, case.seconds), case.name
    assert themes["tuning"] == themes["validation"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """One clip of ten seconds by FFmpeg."""
    directory = tmp_path_factory.mktemp("library")
    (directory / "moving").mkdir()
    source = ["-f", "lavfi", "-t", "10", "-i", "testsrc2=s=320x180:r=5", "-pix_fmt", "yuvj444p", "-q:v", "2"]
    subprocess.run(["ffmpeg", "-v", "error", *source, str(directory / "moving" / "%06d.jpg")], check=True)
    return Library(directory)


MOVING = clip("moving")
TINY = Case(
    "tiny",
    "test",
    "hard",
    "tuning",
    playlist((MOVING, 8), (menu(1), 4)),
    12.0,
    (320, 180),
    freezes=(Freeze(1, 3, repeat=True, kind="bytes"),),
    blacks=(Black(4, 5, kind="zap"),),
    capture=Capture(sigma=1.0),
)


def built(case: Case, library: Library, directory: Path) -> tuple[Truth, list[bytes]]:
    build(case, library, directory)
    files = sorted((directory / case.name).glob("capture_*.jpg"))
    return labels.read(directory / case.name), [path.read_bytes() for path in files]


def test_a_case_has_its_faults_where_its_truth_says(library: Library, tmp_path: Path) -> None:
    truth, frames = built(TINY, library, tmp_path)
    assert truth.frames == len(frames) == 60
    assert truth.faults == (Fault("freeze", "bytes", 5, 14), Fault("black", "zap", 20, 24))
    assert truth.freeze[:20] == (*(F,) * 5, *(N,) * 3, *(T,) * 7, *(F,) * 5)
    assert [at for at, black in enumerate(truth.black) if black] == [20, 21, 22, 23, 24]
    assert truth.still == ((50, 59),) and truth.freeze[50:] == (T,) * 10 and truth.freeze[43:50] == (N,) * 7
    assert len(set(frames[5:15])) == 1 and len(set(frames[:5])) == 5
    greys = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) for data in frames]
    assert all(grey is not None and grey.shape == (180, 320) for grey in greys)
    assert [at for at, grey in enumerate(greys) if grey is not None and float(grey.mean()) < 3] == [20, 21, 22, 23, 24]


def test_building_again_makes_the_same_files(library: Library, tmp_path: Path) -> None:
    assert built(TINY, library, tmp_path) == built(TINY, library, tmp_path)


def test_a_freeze_under_noise_behind_a_clock_repeats_no_file(library: Library, tmp_path: Path) -> None:
    case = dataclasses.replace(TINY, freezes=(Freeze(1, 3),), overlays=(Overlay(clock()),))
    truth, frames = built(case, library, tmp_path)
    assert truth.freeze[8:15] == (T,) * 7
    assert len(set(frames)) == 60


@pytest.mark.parametrize("sampling", ["420", "422"])
@pytest.mark.parametrize("encoder", ["turbo", "ffmpeg"])
def test_frames_are_encoded_as_asked(library: Library, tmp_path: Path, encoder: str, sampling: str) -> None:
    capture = Capture(encoder=encoder, sampling=sampling, quality=(70, 70))  # type: ignore[arg-type]
    _, frames = built(dataclasses.replace(TINY, capture=capture, seconds=5, freezes=()), library, tmp_path)
    assert len(frames) == 25
    for data in frames:
        at = data.index(b"\xff\xc0")  # baseline header; FFmpeg writes 4:2:2 as 2x2 and 1x2
        luma, chroma = data[at + 11], data[at + 14]
        assert (luma >> 4) // (chroma >> 4) == 2
        assert (luma & 15) // (chroma & 15) == {"420": 2, "422": 1}[sampling]


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_noise_is_as_strong_as_said_and_fresh_in_every_frame(sigma: float) -> None:
    size, grey = (320, 180), plain((320, 180), (100, 100, 100))
    camera = Camera(Capture(sigma=sigma), size, "seed")
    first, second = (camera.capture(grey, at).astype(np.float32) for at in range(2))
    assert first.std() == pytest.approx(sigma, rel=0.15)
    assert (first - second).std() == pytest.approx(sigma * 2**0.5, rel=0.15)


def test_raised_black_raises_the_whole_picture() -> None:
    camera = Camera(Capture(pedestal=30), (16, 16), "seed")
    assert camera.capture(plain((16, 16), (0, 0, 0)), 0).max() == 30
    assert camera.capture(plain((16, 16), (255, 255, 255)), 0).min() == 255


def test_the_report_judges_in_several_processes(library: Library, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build(dataclasses.replace(TINY, name=name), library, tmp_path)
    command = [sys.executable, "-P", "-m", "tests.footage.report", str(tmp_path)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [case["name"] for case in found["cases"]] == ["one", "two"]
    assert found["totals"]["all"]["black"]["stillwatch"]["hits"] == 10
    assert found["best"]["black"].startswith("ffmpeg ")
    table = subprocess.run([*command, "--rules", "stillwatch"], env=environment, capture_output=True, text=True)
    assert table.returncode == 0 and "all hard, 2" in table.stdout, table.stderr
    empty = subprocess.run([*command, "--split", "validation"], env=environment, capture_output=True, text=True)
    assert (empty.returncode, empty.stdout) == (66, "") and "no case of split validation" in empty.stderr


@pytest.mark.parametrize(("codec", "hits"), [("mpeg2", 3.0), ("h264", 3.0), ("mpeg2", 0.0)])
def test_a_broken_stream_is_broken_where_it_was_damaged(
    codec: broken.Codec, hits: float, library: Library, tmp_path: Path
) -> None:
    stream = broken.Stream(codec, (320, 192), 4, slices=4)
    more = {"hits": hits, "first_s": 1.0, "last_s": 2.0}
    case = BrokenCase("tiny", "test", "tuning", MOVING, 3.0, stream, (320, 192), **more)  # type: ignore[arg-type]
    broken.build(case, library, tmp_path)
    truth = labels.read(tmp_path / "tiny")
    assert truth.frames == len(list((tmp_path / "tiny").glob("*.jpg"))) == 15
    assert set(truth.freeze) == set(truth.black) == {None}
    assert True not in truth.macroblocks[:5]
    assert (True in truth.macroblocks[5:]) is (hits > 0)


def test_damage_leaves_every_start_code_alone() -> None:
    slices = b"".join(b"\x00\x00\x01" + bytes([code]) + bytes(range(4, 84)) for code in (0xB3, 0x00, 1, 2, 3))
    stream = broken.Stream("mpeg2", (320, 192), 4)
    case = BrokenCase("tiny", "test", "tuning", MOVING, 1.0, stream, (320, 192), hits=25.0, last_s=9.0)
    damaged = broken.damage(slices, case)
    assert damaged != slices
    assert len(damaged) == len(slices)
    assert [found.start() for found in re.finditer(b"\x00\x00\x01", damaged)] == [0, 84, 168, 252, 336]
    assert damaged[:168] == slices[:168], "headers are whole"
