"""Settings: every mistake is one line that says where it stands, and every way to say a setting has its rank."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pipeline.config import load
from pipeline.model import RULES, Exit, Rule
from pipeline.settings import Capture, Settings
from tests.machine import STRANGER, UNPRIVILEGED, needs, open_place
from tests.support import ROOT

SOURCE = '[[source]]\nname = "a"\ndir = "{here}"\n'
CAPTURE = '[[source]]\nname = "a"\n[source.capture]\nprofile = '


def start(
    here: Path, *arguments: str | bytes, wrapper: tuple[str, ...] = (), environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`run` with the given arguments, in `here`; it must end by itself."""
    return subprocess.run(
        [*wrapper, sys.executable, "-P", "-m", "pipeline", "run", f"--runtime-dir={here}/run", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        cwd=here,
        capture_output=True,
        encoding="utf-8",
        timeout=20,
    )


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit 78 and one line on standard error that holds all the words; a sentence, no traceback."""
    assert done.returncode == Exit.CONFIG, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("stillwatch: ") and done.stderr.endswith("\n")
    missing = [word for word in words if word not in done.stderr]
    assert not missing, f"{missing} not in {done.stderr}"


IN_FILE = {
    "unknown key": ("worker = 2", ["worker", "did you mean 'workers'"]),
    "unknown key of a source": (SOURCE + 'prefx = "x"', ["source[0].prefx", "did you mean 'prefix'"]),
    "unknown threshold": (SOURCE + "[source.black]\ntop_levl = 3", ["source[0].black.top_levl", "'top_level'"]),
    "unknown key with a dot": ('"a.b" = 1', ["a.b", "unknown key"]),
    "unknown key with a newline": ('"a\\nb" = 1', ["a\\nb", "unknown key"]),
    "unknown key with an escape sequence": ('"\\u001b[2J" = 1', ["\\x1b[2J", "unknown key"]),
    "text for a number": ('startup_frames = "ten"', ["startup_frames", "int", "str"]),
    "number for a text": ("log_level = 3", ["log_level", "str", "int"]),
    "number for a switch": ("strict = 1", ["strict", "bool", "int"]),
    "number below its range": ("startup_frames = -1", ["startup_frames", ">= 0"]),
    "number beyond 64 bits": ("workers = 99999999999999999999999", ["workers", "64"]),
    "no duration": ("report_every_s = 0", ["report_every_s", ">= 0.1"]),
    "infinite duration": ("hang_s = inf", ["hang_s", "<="]),
    "duration that is no number": ("overload_lag_s = nan", ["overload_lag_s"]),
    "one table for a list of them": ('[source]\nname = "a"', ["source", "array", "write [[source]]"]),
    "unknown condition": (
        SOURCE + "[source.rules.frezee]\nraise_s = 1\nclear_s = 1",
        ["source[0].rules.frezee", "'freeze'"],
    ),
    "condition like no other": (
        SOURCE + "[source.rules.x]\nraise_s = 1\nclear_s = 1",
        ["source[0].rules.x", "no_signal"],
    ),
    "rule whose length is another setting": (
        SOURCE + "[source.rules.capture_stalled]\nraise_s = 7",
        ["source[0].rules.capture_stalled.raise_s", "stall_s"],
    ),
    "unknown key of a rule": (
        SOURCE + "[source.rules.black]\nraise_s = 1\nclear_s = 1\n[source.rules.freeze]\nrais_s = 1",
        ["source[0].rules.freeze.rais_s", "did you mean 'raise_s'"],
    ),
    "rule below its range": (
        SOURCE + "[source.rules.freeze]\nraise_s = -1\nclear_s = 1",
        ["source[0].rules.freeze.raise_s", ">= 0"],
    ),
    "rule that is no table": (SOURCE + "[source.rules]\nfreeze = 3", ["source[0].rules.freeze", "object"]),
    "source without a name": ('[[source]]\ndir = "x"', ["source[0].name", "missing"]),
    "source without a dir": ('[[source]]\nname = "x"', ["source[0].dir", "missing"]),
    "second source is wrong": (SOURCE + '[[source]]\nname = "b"\ndir = 7', ["source[1].dir", "str"]),
    "empty dir": ('[[source]]\nname = "a"\ndir = ""', ["source[0].dir", "missing"]),
    "dir is a file": ('[[source]]\nname = "a"\ndir = "settings.toml"', ["source[0].dir", "not a directory"]),
    "dir with a NUL": ('[[source]]\nname = "a"\ndir = "x\\u0000y"', ["source[0].dir", "NUL"]),
    "duplicate name": (SOURCE + '[[source]]\nname = "a"\ndir = "b"', ["source[1].name", "twice"]),
    "name with a slash": ('[[source]]\nname = "../x"\ndir = "b"', ["source[0].name", "../x"]),
    "name with a newline": ('[[source]]\nname = "x\\ny"\ndir = "b"', ["source[0].name", "x\\ny"]),
    "name with spaces": ('[[source]]\nname = "x y"\ndir = "b"', ["source[0].name"]),
    "name too long": ('[[source]]\nname = "' + 64 * "x" + '"\ndir = "b"', ["source[0].name", "1-63"]),
    "empty name": ('[[source]]\nname = ""\ndir = "b"', ["source[0].name"]),
    "prefix with a slash": (SOURCE + 'prefix = "x/y"', ["source[0].prefix", "x/y"]),
    "prefix with a NUL": (SOURCE + 'prefix = "x\\u0000y"', ["source[0].prefix", "NUL"]),
    "prefix too long": (SOURCE + f'prefix = "{231 * "x"}"', ["source[0].prefix", "230"]),
    "threshold out of range": (SOURCE + "[source.black]\nblack_pct_min = 101.0", ["source[0].black.black_pct_min"]),
    "thresholds that exclude each other": (
        SOURCE + "[source.black]\nband_levels = 99",
        ["source[0].black.band_levels"],
    ),
    "retention": (SOURCE + 'retention = "never"', ["source[0].retention", "never"]),
    "keep_s": (SOURCE + "keep_s = 0", ["source[0].keep_s", "> 0"]),
    "keep_frames": (SOURCE + "keep_frames = -1", ["source[0].keep_frames", ">= 0"]),
    "max_bytes": (SOURCE + "max_bytes = -1", ["source[0].max_bytes", ">= 0"]),
    "sidecar_keep_s": (SOURCE + "sidecar_keep_s = inf", ["source[0].sidecar_keep_s"]),
    "capture without a profile": (
        '[[source]]\nname = "a"\n[source.capture]\ninput = "x"',
        ["source[0].capture.profile", "missing"],
    ),
    "capture profile": (CAPTURE + '"usb"\ninput = "x"', ["source[0].capture.profile", "usb"]),
    "unknown key of a capture": (CAPTURE + '"file"\ninputs = "x"', ["source[0].capture.inputs", "'input'"]),
    "capture without an input": (CAPTURE + '"rtsp"', ["source[0].capture.input", "missing"]),
    "input with a newline": (CAPTURE + '"rtsp"\ninput = "a\\nb"', ["source[0].capture.input", "control"]),
    "capture size": (CAPTURE + '"x11grab"\ninput = ":1"\nsize = "720p"', ["source[0].capture.size", "regex"]),
    "size of a recording": (CAPTURE + '"file"\ninput = "x"\nsize = "1x1"', ["source[0].capture.size", "v4l2-copy"]),
    "size of a graph": (CAPTURE + '"lavfi"\ninput = "x"\nsize = "1x1"', ["source[0].capture.size", "graph"]),
    "capture quality": (CAPTURE + '"file"\ninput = "x"\nquality = 1', ["source[0].capture.quality", ">= 2"]),
    "quality of copies": (CAPTURE + '"v4l2-copy"\ninput = "x"\nquality = 3', ["source[0].capture.quality", "copied"]),
    "no frames": (CAPTURE + '"x11grab"\ninput = ":1"\nfps = 0', ["source[0].capture.fps", "how often"]),
    "too few frames": (CAPTURE + '"file"\ninput = "x"\nfps = 0.1', ["source[0].capture.fps", "stall_s to 20"]),
    "infinite frames": (CAPTURE + '"file"\ninput = "x"\nfps = inf', ["source[0].capture.fps"]),
    "live recording": (CAPTURE + '"file"\ninput = "x"\nlive = true', ["source[0].capture.live", "url"]),
    "sound from nowhere": (CAPTURE + '"v4l2-copy"\ninput = "x"\naudio = true', ["source[0].capture.audio", "alsa"]),
    "sound for nothing": (
        CAPTURE + '"file"\ninput = "x"\naudio_input = "alsa:x"',
        ["source[0].capture.audio_input", "hls"],
    ),
    "sound from elsewhere": (
        CAPTURE + '"file"\ninput = "x"\naudio = true\naudio_input = "oss:x"',
        ["source[0].capture.audio_input", "alsa:DEVICE"],
    ),
    "workers 0": ("workers = 0", ["workers", ">= 1"]),
    "workers 65": ("workers = 65", ["workers", "64"]),
    "workers two": ('workers = "two"', ["workers", "'two'", "auto"]),
    "workers and a half": ("workers = 1.5", ["workers", "float"]),
    "workers as a switch": ("workers = true", ["workers", "number from 1 to 64", '"auto"']),
    "cpus backwards": ('cpus = "3-1"', ["cpus", "3-1"]),
    "cpus in words": ('cpus = "one"', ["cpus", "one"]),
    "log level": ('log_level = "LOUD"', ["log_level", "LOUD"]),
    "bad TOML": ("workers = = 2", ["not valid TOML", "line 1"]),
    "TOML without an end": ("a = " + 5000 * "[", ["not valid TOML"]),
    "same key twice": ("workers = 1\nworkers = 2", ["not valid TOML"]),
    "missing dir and strict": ('strict = true\n[[source]]\nname = "a"\ndir = "gone"', ["source[0].dir", "gone"]),
}


@pytest.mark.any_python
@pytest.mark.parametrize("mistake", IN_FILE)
def test_a_mistake_in_the_file_is_one_line_with_key_and_file(mistake: str, tmp_path: Path) -> None:
    content, words = IN_FILE[mistake]
    file = tmp_path / "settings.toml"
    file.write_text(content.replace("{here}", str(tmp_path)), encoding="utf-8")
    assert_refused(start(tmp_path, f"--config={file}"), str(file), *words)


def test_a_place_for_metrics_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = start(tmp_path, "--source=a=.", f"--metrics-file={tmp_path}/no/x.prom")
    assert_refused(done, f"metrics_file: {tmp_path}/no/x.prom", "No such file or directory")


ON_COMMAND_LINE: dict[str, tuple[list[str | bytes], list[str]]] = {
    "no source": ([], ["source", "--source NAME=DIR"]),
    "source without =": (["--source", "abc"], ["--source", "'abc'", "NAME=DIR"]),
    "source without a dir": (["--source", "a="], ["--source", "NAME=DIR"]),
    "too many sources": ([f"--source=s{n}=d{n}" for n in range(65)], ["command line", "source", "65", "64"]),
    "duplicate name": (["--source=a=x", "--source=a=y"], ["command line", "source[1].name", "twice"]),
    "name like a flag": (["--source=-rf=x"], ["command line", "source[0].name", "'-rf'"]),
    "name with a quote": (["--source=a'b\"=x"], ["command line", "source[0].name"]),
    "name that is not UTF-8": ([b"--source=a\xff=x"], ["command line", "source[0].name"]),
    "dir that is not UTF-8": ([b"--source=a=x\xff"], ["command line", "source[0].dir", "UTF-8"]),
    "runtime dir that is not UTF-8": (["--source=a=x", b"--runtime-dir=x\xff"], ["command line", "runtime_dir"]),
    "runtime dir is a file": (["--source=a=x", f"--runtime-dir={__file__}"], ["runtime_dir", "--runtime-dir"]),
    "workers 0": (["--workers=0"], ["command line", "workers", ">= 1"]),
    "workers 65": (["--workers", "65"], ["command line", "workers", "64"]),
    "workers -1": (["--workers", "-1"], ["command line", "workers", ">= 1"]),
    "workers two": (["--workers", "two"], ["command line", "workers", "'two'"]),
    "workers in a strange digit": (["--workers", "²"], ["command line", "workers", "'²'"]),
    "workers with two signs": (["--workers=+-3"], ["command line", "workers", "'+-3'"]),
    "cpus": (["--cpus=1;3"], ["command line", "cpus", "1;3"]),
    "startup frames": (["--startup-frames=-1"], ["command line", "startup_frames", ">= 0"]),
    "infinite report period": (["--report-every=inf"], ["command line", "report_every_s"]),
    "config file that is not there": (["--config=gone.toml"], ["gone.toml", "No such file"]),
    "config file with a newline": (["--config=a\nb"], ["a\\nb", "No such file"]),
    "config file is a directory": (["--config=."], [".: Is a directory"]),
}


@pytest.mark.parametrize("mistake", ON_COMMAND_LINE)
def test_a_mistake_on_the_command_line_is_one_line_that_names_it(mistake: str, tmp_path: Path) -> None:
    arguments, words = ON_COMMAND_LINE[mistake]
    assert_refused(start(tmp_path, *arguments), *words)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("STILLWATCH_WORKERS", "two", ["workers", "'two'"]),
        ("STILLWATCH_STRICT", "maybe", ["strict", "bool"]),
        ("STILLWATCH_REPORT_EVERY_S", "nan", ["report_every_s"]),
        ("STILLWATCH_CPUS", "x", ["cpus", "'x'"]),
        ("STILLWATCH_LOG_LEVEL", "7", ["log_level", "'7'"]),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(
    name: str, value: str, words: list[str], tmp_path: Path
) -> None:
    assert_refused(start(tmp_path, "--source=a=.", environment={name: value}), f"environment variable {name}", *words)


def test_a_file_that_is_not_utf8_is_one_line_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b'log_level = "\xff\xfe"\n')
    assert_refused(start(tmp_path, "--config=bad.toml"), "bad.toml", "not valid TOML", "utf-8")


@needs("setpriv")
def test_a_file_that_may_not_be_read_is_one_line_with_its_name() -> None:
    with open_place() as here:
        file = here / "secret.toml"
        file.write_text("workers = 1")
        file.chmod(0o600)
        os.chown(file, STRANGER, STRANGER)
        assert_refused(start(here, "--config=secret.toml", wrapper=UNPRIVILEGED), "secret.toml", "Permission denied")


def test_command_line_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("workers = 2\nreport_every_s = 2\nstartup_frames = 2\n")
    environment = {"STILLWATCH_WORKERS": "3", "STILLWATCH_REPORT_EVERY_S": "3"}
    found = load(str(file), environment, {"workers": 4})
    given = (found.workers, found.report_every_s, found.startup_frames, found.log_level)
    assert given == (4, 3.0, 2, "INFO")


def test_sources_of_the_command_line_replace_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(SOURCE.format(here=tmp_path))
    found = load(str(file), {}, {"source": [{"name": "b", "dir": "/x"}]})
    assert [source.name for source in found.source] == ["b"]


def test_an_empty_variable_says_nothing() -> None:
    assert load(None, {"STILLWATCH_WORKERS": ""}, {}).workers == "auto"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("workers", "2", 2),
        ("workers", "auto", "auto"),
        ("cpus", "3", "3"),
        ("state_dir", "/7", "/7"),
        ("runtime_dir", "7", "7"),
        ("report_every_s", "0.5", 0.5),
        ("startup_frames", "0", 0),
        ("strict", "True", True),
        ("poll", "false", False),
    ],
)
def test_the_environment_says_every_setting_in_its_own_type(name: str, text: str, value: object) -> None:
    assert getattr(load(None, {f"STILLWATCH_{name.upper()}": text}, {}), name) == value


def test_a_relative_dir_in_a_file_is_meant_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "settings.toml").write_text('[[source]]\nname = "a"\ndir = "../frames"\n')
    monkeypatch.chdir("/")
    relative = os.path.relpath(tmp_path / "etc" / "settings.toml", "/")
    assert load(relative, {}, {}).source[0].dir == str(tmp_path / "frames")


def test_a_relative_dir_on_the_command_line_is_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = load("../settings.toml", {}, {"source": [{"name": "a", "dir": "frames"}]})
    assert found.source[0].dir == str(tmp_path / "elsewhere" / "frames")


def test_an_absolute_dir_in_a_file_stays(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('[[source]]\nname = "a"\ndir = "/srv/frames"\n')
    assert load(str(tmp_path / "settings.toml"), {}, {}).source[0].dir == "/srv/frames"


def test_a_captured_source_gets_a_directory_in_the_runtime_directory(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(CAPTURE + '"file"\ninput = "films/one.mkv"\n')
    (source,) = load(str(tmp_path / "settings.toml"), {}, {"runtime_dir": "/run/here"}).source
    assert source.dir == "/run/here/frames/a" and source.capture and source.deletes_frames
    assert source.capture.input == str(tmp_path / "films/one.mkv")


def test_a_captured_source_may_name_its_directory(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(
        SOURCE.format(here="/srv/a") + '[source.capture]\nprofile = "x11grab"\ninput = ":1"'
    )
    assert load(str(tmp_path / "settings.toml"), {}, {"strict": True}).source[0].dir == "/srv/a"


def test_a_password_is_in_no_message_about_its_capture(tmp_path: Path) -> None:
    for rest in ("size = 1", 'fps = "x"', "live = true", "copys = true", "quality = 99"):
        (tmp_path / "settings.toml").write_text(CAPTURE + f'"rtsp"\ninput = "rtsp://me:hush@cam/1"\n{rest}\n')
        done = start(tmp_path, "--config=settings.toml")
        assert_refused(done, "source[0].capture.")
        assert "hush" not in done.stderr


def test_capture_settings_are_said_in_the_words_of_capture_sh() -> None:
    capture = Capture(profile="lavfi", input="scene:live", fps=12.5, size="320x180", hls=True)
    told = capture.environment()
    assert told["CAPTURE_PROFILE"] == "lavfi" and told["CAPTURE_INPUT"] == "scene:live"
    assert (told["CAPTURE_FPS"], told["CAPTURE_SIZE"], told["CAPTURE_HLS"], told["CAPTURE_AUDIO"]) == (
        "12.5",
        "320x180",
        "1",
        "0",
    )
    assert "CAPTURE_INPUT_FPS" not in told and "CAPTURE_START_S" not in told
    assert Capture(profile="lavfi", fps=0.0).environment()["CAPTURE_FPS"] == "0"


def test_all_defaults_are_valid_settings() -> None:
    tree = msgspec.to_builtins(Settings())
    assert msgspec.convert(tree, Settings) == Settings()


def test_what_a_rule_leaves_out_is_as_usual(tmp_path: Path) -> None:
    (tmp_path / "rig.toml").write_text(
        SOURCE + "[source.rules.black]\nraise_s = 4\n[source.rules.capture_stalled]\nclear_s = 1.0"
    )
    (source,) = load(str(tmp_path / "rig.toml"), {}, {}).source
    assert source.rule_of("black") == Rule(4.0, RULES["black"].clear_s)
    assert source.rule_of("capture_stalled") == Rule(source.stall_s, 1.0, RULES["capture_stalled"].clear_frames)
