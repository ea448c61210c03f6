"""`import-env`: the old monitor's variables become a configuration that our own reader takes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import config, legacy
from pipeline.settings import Capture, Settings, Source
from tests.support import ROOT

OLD = """\
# the rig in the hall
HOST_VIDEO_SOURCE=:1
HOST_VIDEO_AUDIO=null
HOST_VIDEO_CAPTURE_PATH='/var/www/html/stream/capture3'
HOST_VIDEO_FPS=2

export DEVICE1_NAME="Living Room (Küche)"   # the box
DEVICE1_VIDEO=/dev/video0
DEVICE1_VIDEO_AUDIO=hw:2,0
DEVICE1_VIDEO_FPS=10
xDEVICE2_NAME=Phone
xDEVICE2_VIDEO=rtsp://user:hushhush@cam/x
#DEVICE3_NAME=TV
# export DEVICE3_VIDEO=/dev/video4
DEVICE4_VIDEO=null
DEVICE4_VIDEO_CAPTURE_PATH=/srv/frames/four
DEVICE10_VIDEO=http://cam/stream.m3u8
"""


def load(tmp_path: Path, toml: str) -> Settings:
    """As `run` would."""
    (tmp_path / "new.toml").write_text(toml)
    return config.load(str(tmp_path / "new.toml"), {"STILLWATCH_RUNTIME_DIR": "/run/x"}, {})


def sources(tmp_path: Path, text: str) -> dict[str, Source]:
    """The sources of an env file, by name."""
    return {source.name: source for source in load(tmp_path, legacy.convert(text)[0]).source}


def call(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [sys.executable, "-P", "-m", "pipeline", "import-env", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)


def test_a_whole_file_becomes_a_configuration_that_is_read(tmp_path: Path) -> None:
    found = sources(tmp_path, OLD)
    assert list(found) == ["host", "Living-Room-Kuche", "device4", "device10"]
    assert found["host"].capture == Capture(profile="x11grab", input=":1", fps=2.0)
    assert found["host"].dir == "/run/x/frames/host", "in memory, not in the old place"
    grabbed = Capture(profile="v4l2-copy", input="/dev/video0", fps=10.0, audio=True, audio_input="alsa:hw:2,0")
    assert found["Living-Room-Kuche"].capture == grabbed
    assert (found["device4"].capture, found["device4"].dir) == (None, "/srv/frames/four/captures")
    assert found["device10"].capture == Capture(profile="url", input="http://cam/stream.m3u8", live=True)


def test_the_comments_are_a_configuration_too(tmp_path: Path) -> None:
    """A disabled source is one whose lines only want their `#` taken away; so is the old directory."""
    toml, warnings, _ = legacy.convert(OLD)
    assert not warnings
    head, *blocks = toml.split("\n\n")
    freed = [line.removeprefix("#") for block in blocks for line in block.splitlines() if not line.startswith("# ")]
    found = {source.name: source for source in load(tmp_path, "\n".join([head, *freed])).source}
    phone, tv = found["Phone"].capture, found["TV"].capture
    assert phone and (phone.profile, phone.input) == ("rtsp", "rtsp://user:hushhush@cam/x")
    assert tv and (tv.profile, tv.input) == ("v4l2-copy", "/dev/video4")
    assert found["host"].dir == "/var/www/html/stream/capture3/captures"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DEVICE1_VIDEO=rtsps://cam/x", Capture(profile="rtsp", input="rtsps://cam/x")),
        ("DEVICE1_VIDEO=pi:1.0+100,50", Capture(profile="x11grab", input="pi:1.0+100,50")),
        ("DEVICE1_VIDEO=/srv/film.mp4", Capture(profile="file", input="/srv/film.mp4")),
        ("DEVICE1_VIDEO=' /dev/video2 '", Capture(profile="v4l2-copy", input="/dev/video2")),
        ("DEVICE1_VIDEO=:1\nDEVICE1_VIDEO=:2", Capture(profile="x11grab", input=":2")),
        ("DEVICE1_VIDEO=:1\nDEVICE1_VIDEO_FPS=4\nDEVICE1_VIDEO_FPS=null", Capture(profile="x11grab", input=":1")),
        ("DEVICE1_VIDEO=:1\nxDEVICE1_VIDEO=:2", Capture(profile="x11grab", input=":1")),
        ("DEVICE1_VIDEO=:1\n#DEVICE1_VIDEO_FPS=4", Capture(profile="x11grab", input=":1")),
        ("DEVICE1_VIDEO=:1\nDEVICE1_VIDEO_FPS=null", Capture(profile="x11grab", input=":1")),
        (
            "DEVICE1_VIDEO=:1\nDEVICE1_VIDEO_AUDIO=pulse",
            Capture(profile="x11grab", input=":1", audio=True, audio_input="pulse:default"),
        ),
        ('DEVICE1_VIDEO="rtsp://u:p\\"#\\\\@cam/é"', Capture(profile="rtsp", input='rtsp://u:p"#\\@cam/é')),
        ("DEVICE1_VIDEO=${HOME}", Capture(profile="file", input="/etc/${HOME}")),
    ],
)
def test_what_a_variable_says(tmp_path: Path, text: str, expected: Capture) -> None:
    (source,) = sources(tmp_path, text).values()
    assert source.capture
    if expected.input.startswith("/etc/"):  # relative to the configuration
        assert source.capture.input == str(tmp_path / "${HOME}")
    else:
        assert source.capture == expected


@pytest.mark.parametrize("path", ["/srv/a", "/srv/a/", "/srv/a/captures", "/srv/a/captures/"])
def test_frames_are_where_the_old_monitor_looked_for_them(tmp_path: Path, path: str) -> None:
    """It published and watched `captures/` below the capture path, and nothing in the path itself."""
    (source,) = sources(tmp_path, f"HOST_VIDEO_CAPTURE_PATH={path}").values()
    assert source.dir == "/srv/a/captures"


@pytest.mark.parametrize(("audio", "warned"), [("pulse", True), ("pulse:hall", True), ("hw:1", False)])
def test_sound_that_an_installed_service_cannot_hear_is_said(audio: str, warned: bool) -> None:
    (line,) = [line for line in legacy.convert(f"HOST_VIDEO_SOURCE=:1\nHOST_VIDEO_AUDIO={audio}")[0].splitlines()
               if line.startswith("audio_input")]  # fmt: skip
    assert ("PulseAudio is closed to it" in line) is warned


def test_one_that_is_disabled_collides_with_nothing() -> None:
    text = "DEVICE1_VIDEO=:1\nxDEVICE1_VIDEO=:2\n#DEVICE01_VIDEO=:3\n#DEVICE1_VIDEO_CAPTURE_PATH=${HOME}/x\n"
    assert legacy.convert(text)[1] == []


def test_a_rare_frame_is_no_stall(tmp_path: Path) -> None:
    (source,) = sources(tmp_path, "DEVICE1_VIDEO=:1\nDEVICE1_VIDEO_FPS=0.3").values()
    assert source.stall_s == 7.0


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["TV", "TV", "TV"], ["TV", "TV-2", "TV-3"]),
        (["../etc", "日本", "", "-"], ["etc", "source", "device3", "source-2"]),
        (["n" * 70, "n" * 80], ["n" * 63, "n" * 58 + "-2"]),
    ],
)
def test_names_are_made_names_of_sources(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    text = "".join(f"DEVICE{n}_NAME='{name}'\nDEVICE{n}_VIDEO=:{n}\n" for n, name in enumerate(names, 1))
    assert list(sources(tmp_path, text)) == expected


@pytest.mark.parametrize(
    ("line", "warning"),
    [
        ("SUPABASE_KEY=hushhush", "line 2: SUPABASE_KEY has no meaning here"),
        ("DEVICE1_VIDEO_STREAM_PATH=/hushhush", "line 2: DEVICE1_VIDEO_STREAM_PATH has no meaning here"),
        ("HOST1_VIDEO_FPS=5", "line 2: HOST1_VIDEO_FPS has no meaning here"),
        ("CLOUDFLARE_R2_SECRET_ACCESS_KEY=hushhush", "CLOUDFLARE_R2_SECRET_ACCESS_KEY belongs in no configuration"),
        ("'hushhush", "line 2 is not understood"),
        ("DEVICE1_VIDEO_FPS=hushhush", "DEVICE1: its frames per second are no number"),
        ("DEVICE1_VIDEO_FPS=0", "DEVICE1: its frames per second are no number"),
        ('DEVICE1_VIDEO_AUDIO="hush\\nhush"', "line 2: DEVICE1_VIDEO_AUDIO has a control character"),
        ("DEVICE2_VIDEO=hushhush", "DEVICE2: its video is no device"),
        ("DEVICE1_VIDEO_CAPTURE_PATH=${HOME}/hush", "line 2: DEVICE1_VIDEO_CAPTURE_PATH refers to a variable"),
        ("DEVICE1_VIDEO_CAPTURE_PATH=$HOME/hush", "line 2: DEVICE1_VIDEO_CAPTURE_PATH refers to a variable"),
        ("DEVICE1_VIDEO=:2", "line 2: DEVICE1_VIDEO says again what DEVICE1_VIDEO in line 1 does"),
        ("DEVICE01_VIDEO=:2", "line 2: DEVICE01_VIDEO says again what DEVICE1_VIDEO in line 1 does"),
        ("DEVICE01_NAME=device1", "line 2: DEVICE01_NAME is taken for the device of DEVICE1_VIDEO in line 1"),
    ],
)
def test_what_is_not_understood_is_told_without_its_value(tmp_path: Path, line: str, warning: str) -> None:
    toml, warnings, _ = legacy.convert(f"DEVICE1_VIDEO=:1\n{line}\n")
    assert len(warnings) == 1 and warning in warnings[0] and "hush" not in warnings[0]
    assert "device1" in {source.name for source in load(tmp_path, toml).source}


WORDS = st.text(st.sampled_from("ax:/#'\"\\ =\n\t[]${}é0.1\x00\x7f\u2028"), max_size=12)
KEYS = st.sampled_from(
    [f"{rig}_{part}" for rig in ("DEVICE1", "DEVICE2") for part in ("NAME", "VIDEO", "VIDEO_AUDIO", "VIDEO_FPS")]
    + ["HOST_VIDEO_SOURCE", "HOST_VIDEO_CAPTURE_PATH", "DEVICE01_VIDEO", "OTHER"]
)
LINES = st.tuples(st.sampled_from(["", "", "", "x", "#", "# export "]), KEYS, st.just("="), WORDS).map("".join)


@given(st.lists(LINES | WORDS, max_size=12).map("\n".join))
def test_whatever_stands_in_it_the_result_is_read(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    toml, _, count = legacy.convert(text)
    assert len(load(tmp_path_factory.getbasetemp(), toml).source) <= count


# -- the command ------------------------------------------------------------------------------------------------------


def test_it_is_printed_and_the_rest_told_beside_it(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(OLD + "SUPABASE_KEY=hushhush\n")
    done = call(tmp_path / ".env")
    assert (done.returncode, done.stdout) == (0, legacy.convert(OLD)[0])
    assert done.stderr == f"stillwatch: {tmp_path}/.env: line 18: SUPABASE_KEY has no meaning here; left out\n"


def test_a_file_is_written_once_and_not_for_everybody(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(OLD)
    new = tmp_path / "new.toml"
    assert call(tmp_path / ".env", "-o", new).returncode == 0
    assert new.read_text() == legacy.convert(OLD)[0] and not stat.S_IMODE(new.stat().st_mode) & stat.S_IRWXO
    new.write_text("mine")
    done = call(tmp_path / ".env", "-o", new)
    assert done.returncode == 66 and "--force" in done.stderr and new.read_text() == "mine"
    assert call(tmp_path / ".env", "-o", new, "--force").returncode == 0
    assert new.read_text() == legacy.convert(OLD)[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), (b"\xff\xfe", "not UTF-8"), (b"A=1\n", "no HOST_VIDEO_SOURCE"), (b"", "no HOST_VIDEO")],
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / ".env").write_bytes(content)
    done = call(tmp_path / ".env", "-o", tmp_path / "new.toml")
    assert done.returncode == 66 and words in done.stderr.splitlines()[-1] and not done.stdout
    assert not (tmp_path / "new.toml").exists()
