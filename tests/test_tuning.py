"""Trying settings on a recording: which settings, what is refused, and what becomes of the incidents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline import tuning
from pipeline.model import RULES, ConfigError, Exit, Rule
from pipeline.settings import Settings, Source
from tests.support import ROOT, make_frame

pytestmark = pytest.mark.any_python

SOURCE = Source(name="a b", dir="/r", prefix="p", rules={"black": Rule(4.0, 1.0)})


def test_a_setting_is_changed_and_all_others_stay() -> None:
    words = ["rules.freeze.raise_s=5", "rules.black.clear_s = 3", "black.lit_tiles_pct_max=5.5", "stall_s=9"]
    made = tuning.changed(SOURCE, words)
    assert (made.name, made.dir, made.prefix) == ("a b", "/r", "p")
    assert made.rules == {"black": Rule(4.0, 3.0), "freeze": Rule(5.0, RULES["freeze"].clear_s)}
    assert made.black.lit_tiles_pct_max == 5.5 and made.stall_s == 9.0
    assert made.freeze == SOURCE.freeze and made.black.black_pct_min == SOURCE.black.black_pct_min


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("freeze.levels=4", "freeze.levels: unknown key"),
        ("blakc.black_pct_min=4", "blakc: unknown key; did you mean 'black'?"),
        ("black.black_pct_min=101", "black.black_pct_min: Expected `float` <= 100.0"),
        ("black.black_pct_min=dark", "black.black_pct_min: Expected `float`, got `str`"),
        ("stall_s.x=1", "stall_s"),
        ("rules.snow.raise_s=1", "rules"),
        ("rules.black=1", "rules"),
        ("dir=/etc", "says where frames are"),
        ("freeze", "write it like"),
        ("=3", "write it like"),
        ("a..b=3", "write it like"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tuning.changed(SOURCE, [word])
    assert said in str(caught.value) and str(caught.value).startswith("--set ")
    assert "\n" not in str(caught.value) and "recording" not in str(caught.value)


def test_a_directory_is_judged_as_the_source_of_its_name() -> None:
    known = Settings(source=(Source(name="stb1", dir="/live", audio_dir="sound", stall_s=9.0),))
    assert tuning.of_directory(known, "stb1", "/r/stb1", "c_") == Source(
        name="stb1", dir="/r/stb1", prefix="c_", stall_s=9.0
    )
    assert tuning.of_directory(known, "tv", "/r/tv", "c_") == Source(name="tv", dir="/r/tv", prefix="c_")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Black from 20 to 79 and from 150 to 179, at 5 frames/s: 12 s and 6 s."""
    place = tmp_path_factory.mktemp("recording") / "stb1"
    place.mkdir()
    black = bytes(cv2.imencode(".jpg", np.zeros((240, 320), np.uint8))[1])
    for number in range(220):
        dark = 20 <= number < 80 or 150 <= number < 180
        (place / f"capture_{number}.jpg").write_bytes(black if dark else make_frame(number))
    return place


def replay(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "pipeline", "replay", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "140"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def changes(*arguments: str) -> list[tuple[str, str, float]]:
    done = replay("--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [(line["condition"], line["change"], line["duration_s"]) for line in lines if "change" in line]


def test_which_incidents_appear_disappear_and_change(recording: Path) -> None:
    words = [str(recording), "--set=rules.freeze.raise_s=100"]
    assert changes(*words) == [("black", "stays", 12.0)]
    assert changes(*words, "--set=rules.black.raise_s=5") == [("black", "stays", 12.0), ("black", "appears", 6.0)]
    assert changes(*words, "--set=rules.black.raise_s=13") == [("black", "disappears", 12.0)]


def test_a_frame_is_told_once_and_as_it_is_with_the_change(recording: Path) -> None:
    done = replay("--json", "--set=black.black_pct_min=100", "--set=black.top_level=0", str(recording))
    assert done.returncode == Exit.CONFIG and "black.band_levels" in done.stderr
    done = replay("--json", "--set=black.lit_tiles_pct_max=0", str(recording))
    frames = [json.loads(line) for line in done.stdout.splitlines() if '"sequence"' in line]
    assert [frame["sequence"] for frame in frames] == list(range(220))


def test_the_table_and_what_is_exclusive(recording: Path, tmp_path: Path) -> None:
    done = replay("--set=rules.black.raise_s=13", str(recording))
    assert done.returncode == 0 and "disappears" in done.stdout
    done = replay("--set=rules.black.raise_s=13", "--state-dir", str(tmp_path), str(recording))
    assert done.returncode == Exit.CONFIG and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def sidecars(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `replay --json` said of the recording, a file for each frame."""
    place = tmp_path_factory.mktemp("sidecars") / "stb1"
    place.mkdir()
    for line in replay("--json", str(recording)).stdout.splitlines():
        if (told := json.loads(line)).get("filename"):
            (place / told["filename"]).with_suffix(".json").write_text(line)
    return place


def incidents(*arguments: str) -> list[tuple[object, ...]]:
    done = replay("--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    told = [json.loads(line) for line in done.stdout.splitlines() if '"sequence"' not in line]
    return [(line["id"], line["condition"], line["duration_s"], line.get("change")) for line in told]


TRIED = ("rules.black.raise_s=5", "rules.freeze.raise_s=4", "black.lit_tiles_pct_max=1", "static_ok=true")


@pytest.mark.parametrize("more", [[], *([f"--set={one}"] for one in TRIED)], ids=str)
def test_sidecars_alone_tell_the_same_incidents(recording: Path, sidecars: Path, more: list[str]) -> None:
    assert incidents(str(sidecars), *more) == incidents(str(recording), *more) != []


def test_sidecars_alone_can_be_drawn_and_damaged_ones_are_unknown(sidecars: Path, tmp_path: Path) -> None:
    (place := tmp_path / "stb1").mkdir()
    for path in sidecars.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    (place / "capture_30.json").write_bytes(b"{")
    (place / "capture_31.json").write_text('{"source": "stb1", "filename": "x", "sequence": 31, "error": "cut"}')
    done = replay("--plot", str(tmp_path / "it.html"), str(place))
    assert done.returncode == 0
    frames = next(line for line in done.stdout.splitlines() if line.startswith("│ stb1"))
    assert [cell.strip() for cell in frames.split("│")[2:5]] == ["220", "218", "2"]
    assert "black" in (tmp_path / "it.html").read_text()


def test_what_needs_pictures_is_refused_without_them(sidecars: Path, tmp_path: Path) -> None:
    done = replay("--set=black.top_level=50", str(sidecars))
    assert done.returncode == Exit.NO_INPUT and "needs the frames" in done.stderr
    done = replay("--state-dir", str(tmp_path / "state"), str(sidecars))
    assert done.returncode == Exit.NO_INPUT and "no capture_<digits>.jpg in it" in done.stderr
