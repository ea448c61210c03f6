"""`replay`: the service's own fields for recorded frames, and not one byte written beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.model import Exit
from tests.machine import STRANGER, UNPRIVILEGED, FaultRig, needs, open_place
from tests.support import ROOT, frame_name, make_frame, plain_frame, publish


def replay(
    *arguments: str | bytes | Path, wrapper: tuple[str, ...] = (), encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*wrapper, sys.executable, "-P", "-m", "pipeline", "replay", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding=encoding,
        timeout=30,
    )


def replayed(*arguments: str | bytes | Path, wrapper: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The frames' lines of `replay --json`, which must succeed without a complaint."""
    done = replay("--json", *arguments, wrapper=wrapper)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [line for line in lines if "filename" in line]


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit 66 and one line on standard error that holds all the words."""
    assert done.returncode == Exit.NO_INPUT, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Ten live frames, five black ones, five frozen ones."""
    directory = tmp_path / "stb1"
    directory.mkdir()
    for number in range(1, 21):
        data = make_frame(number) if number <= 10 else plain_frame(0) if number <= 15 else make_frame(99)
        os.utime(publish(directory, number, data), (1_700_000_000 + number, 1_700_000_000 + number))
    return directory


def tree(directory: Path) -> dict[str, tuple[int, ...]]:
    """Everything in and below a directory, with its times."""
    paths = [directory, *directory.rglob("*")]
    found = {str(path): path.lstat() for path in paths}
    return {name: (s.st_mode, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in found.items()}


def test_every_frame_is_one_line_with_its_verdicts(recording: Path) -> None:
    found = replayed(recording)
    assert [content["sequence"] for content in found] == list(range(1, 21))
    assert [content["sequence"] for content in found if content["blackscreen"]] == [11, 12, 13, 14, 15]
    assert [content["sequence"] for content in found if content["freeze"]] == [14, 15, 19, 20]
    assert {content["source"] for content in found} == {"stb1"}


def test_the_fields_and_verdicts_are_those_of_the_service(tmp_path: Path) -> None:
    with FaultRig(tmp_path) as service:
        for number in range(1, 7):
            service.publish(number, plain_frame(0) if number > 3 else None)
        service.publish(7, b"bad")
        published = service.wait_sidecars(7)
        service.stop()
    again = replayed(service.dir)
    for content in again:
        original = published[content["sequence"]]
        assert list(content) == list(original)
        for changing in ("performance_ms", "timestamp"):
            content.pop(changing), original.pop(changing)
        assert content == original


def test_nothing_is_written_into_the_directory(recording: Path) -> None:
    before = tree(recording)
    assert replay(recording).returncode == 0
    assert len(replayed(recording)) == 20
    assert tree(recording) == before


@needs("setpriv")
def test_a_directory_that_may_not_be_written_is_read_all_the_same() -> None:
    with open_place() as base:
        for number in (1, 2, 3):
            publish(base, number, make_frame(number))
        base.chmod(0o555)
        os.chown(base, STRANGER, STRANGER)
        refused = subprocess.run([*UNPRIVILEGED, "touch", base / "x"], capture_output=True)
        assert refused.returncode != 0
        assert len(replayed(base, wrapper=UNPRIVILEGED)) == 3


def test_two_runs_give_the_same_lines(recording: Path) -> None:
    first, second = replay("--json", recording), replay("--json", recording)
    assert first.stdout.count("\n") >= 20
    assert first.stdout == second.stdout


def test_several_directories_are_replayed_one_after_the_other(recording: Path, tmp_path: Path) -> None:
    other = tmp_path / "stb2"
    other.mkdir()
    publish(other, 5, make_frame(1))
    found = replayed(other, recording)
    assert [content["source"] for content in found] == ["stb2", *20 * ["stb1"]]


def test_time_follows_the_numbers(recording: Path) -> None:
    (recording / frame_name(2)).unlink()
    times = [content["timestamp"] for content in replayed("--fps", "2", recording)]
    assert times[:3] == [f"2023-11-14T22:13:{second}+00:00" for second in ("21.000000", "22.000000", "22.500000")]


def test_the_table_says_what_was_found(recording: Path) -> None:
    done = replay(recording)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.replace("│", " ").split() for line in done.stdout.splitlines()]
    assert ["stb1", "20", "20", "0", "0", "5", "4"] in rows
    assert ["stb1", "black", "11", "15", "5", "1.0"] in rows
    assert ["stb1", "freeze", "19", "20", "2", "0.4"] in rows


def test_a_truncated_frame_in_the_middle_is_an_error_line_among_the_others(recording: Path) -> None:
    path = recording / frame_name(5)
    path.write_bytes(path.read_bytes()[:-300])
    found = replayed(recording)
    assert [content["sequence"] for content in found if "error" in content] == [5]
    assert "truncated" in found[4]["error"]
    assert len(found) == 20


def test_a_frame_that_has_gone_is_counted(recording: Path) -> None:
    (recording / frame_name(5)).unlink()
    (recording / frame_name(5)).symlink_to("gone")
    assert len(replayed(recording)) == 19
    rows = [line.replace("│", " ").split() for line in replay(recording).stdout.splitlines()]
    assert ["stb1", "20", "19", "0", "1", "5", "4"] in rows


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "no frames"])
def test_a_directory_without_frames_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    directory = tmp_path / "recorded"
    if kind == "file":
        directory.touch()
    elif kind != "missing":
        directory.mkdir()
    if kind == "no frames":
        (directory / "other_1.jpg").touch()
    assert_refused(replay(directory), str(directory), "name a")


def test_a_bad_directory_among_good_ones_is_refused_before_any_line(recording: Path, tmp_path: Path) -> None:
    done = replay("--json", recording, tmp_path / "gone")
    assert_refused(done, str(tmp_path / "gone"))
    assert done.stdout == ""


@needs("setpriv")
def test_a_frame_that_may_not_be_read_is_named_in_one_line() -> None:
    with open_place() as base:
        path = publish(base, 1, make_frame(1))
        path.chmod(0o600)
        os.chown(path, STRANGER, STRANGER)
        assert_refused(replay(base, wrapper=UNPRIVILEGED), str(path), "Permission denied", "make it readable")


def test_a_reader_that_leaves_early_gets_its_line_and_no_traceback(tmp_path: Path) -> None:
    for number in range(1, 2001):
        os.link(publish(tmp_path, 0, b"bad"), tmp_path / frame_name(number))
    command = [sys.executable, "-P", "-m", "pipeline", "replay", "--json", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        assert json.loads(process.stdout.readline())["sequence"] == 0
        process.stdout.close()
        complaints = process.stderr.read()
        assert process.wait(20) == 0
    assert complaints == b""


@pytest.mark.parametrize("fps", ["0", "-1", "nan", "inf", "x", "1e-300"])
def test_a_rate_that_is_none_is_a_usage_error(fps: str, recording: Path) -> None:
    done = replay("--fps", fps, recording)
    assert done.returncode == Exit.USAGE
    assert "--fps" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_number_so_far_off_that_no_calendar_reaches_it_has_no_time(tmp_path: Path) -> None:
    publish(tmp_path, 1, make_frame(1))
    publish(tmp_path, 10**18 - 1, make_frame(2))
    assert replayed(tmp_path)[1]["timestamp"] is None


def test_a_prefix_that_no_sidecar_can_hold_is_a_usage_error(recording: Path) -> None:
    done = replay(b"--prefix=\xff", recording)
    assert done.returncode == Exit.USAGE
    assert "--prefix" in done.stderr and "Traceback" not in done.stderr


def test_a_directory_whose_name_is_not_utf8_is_replayed(tmp_path: Path) -> None:
    directory = os.path.join(os.fsencode(tmp_path), b"stb\xff")
    os.mkdir(directory)
    publish(Path(os.fsdecode(directory)), 1, make_frame(1))
    assert replayed(directory)[0]["source"] == "stb\\xff"
    assert replay(directory).returncode == 0
