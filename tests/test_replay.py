"""`replay`: the service's own fields for recorded frames, and not one byte written beside them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.model import Exit
from tests.machine import STRANGER, UNPRIVILEGED, FaultRig, filled, needs, open_place, tmpfs
from tests.support import ROOT, costly, frame_name, make_frame, plain_frame, publish, wait_until
from tests.uploads import all_files, check_spool

pytestmark = pytest.mark.any_python


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
    assert ["stb1", "20", "20", "0", "0", "5", "4", "0", "0"] in rows
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
    assert ["stb1", "20", "19", "0", "1", "5", "4", "0", "0"] in rows


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


# -- incidents --------------------------------------------------------------------------------------------------------

SCENES = "llllllll" + "b" * 15 + "llllllll" + "f" * 40
"""Live, black for 15 s, live, frozen to the end: one frame a second."""

PICTURES = {"b": plain_frame(0), "f": make_frame(99)}


def record(directory: Path, scenes: str) -> Path:
    """A recording with one frame for every letter: live, black or frozen."""
    directory.mkdir()
    for number, scene in enumerate(scenes, 1):
        path = publish(directory, number, PICTURES.get(scene) or make_frame(number % 50))
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))
    return directory


@pytest.fixture
def eventful(tmp_path: Path) -> Path:
    return record(tmp_path / "stb1", SCENES)


def told(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """The incidents among the lines of `--json`."""
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.split("\n")[:-1])
    return [line for line in lines if "filename" not in line]


def logged(state_dir: Path) -> list[dict[str, Any]]:
    """What `incidents --json` says of a state directory, the first onset first."""
    command = [sys.executable, "-P", "-m", "pipeline", "incidents", "--json", f"--state-dir={state_dir}"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return sorted(map(json.loads, done.stdout.splitlines()), key=lambda found: str(found["opened_at"]))


def test_incidents_follow_the_frames_in_json(eventful: Path) -> None:
    done = replay("--json", "--fps=1", eventful)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    frames, incidents = lines[: len(SCENES)], lines[len(SCENES) :]
    assert [frame["sequence"] for frame in frames] == list(range(1, len(SCENES) + 1))
    assert [(i["condition"], i["state"], i["reason"]) for i in incidents] == [
        ("black", "closed", "recovered"),
        ("freeze", "open", ""),
    ]
    black, freeze = incidents
    assert (black["source"], black["duration_s"], black["coverage"]) == (
        "stb1",
        15.0,
        "18 of 18 frames, longest gap 1.0 s",
    )
    assert (black["opened_at"], black["closed_at"]) == (frames[8]["timestamp"], frames[23]["timestamp"])
    assert freeze["closed_at"] is None and freeze["duration_s"] >= 30
    (confirming,) = [frame for frame in frames if frame["r2_images"] and frame["incident_ids"] == [black["id"]]]
    assert confirming["sequence"] == 9 + 10
    home = f"alerts/black/{os.uname().nodename}/stb1/{black['id']}"
    assert confirming["r2_images"]["original_r2_paths"] == [f"{home}/frame_{n}.jpg" for n in range(3)]
    assert frames[-1]["incident_ids"] == [freeze["id"]] and frames[-1]["conditions"]["freeze"] == "open"


def test_incidents_are_a_table_for_people(eventful: Path) -> None:
    black, freeze = told(replay("--json", "--fps=1", eventful))
    done = replay("--fps=1", eventful)
    rows = [line.replace("│", " ").split() for line in done.stdout.splitlines()]
    assert next(row for row in rows if row[-1:] == [black["id"]])[:5] == ["stb1", "black", "closed", "9", "15.0"]
    assert next(row for row in rows if row[-1:] == [freeze["id"]])[:4] == ["stb1", "freeze", "open", "35"]


def test_a_state_directory_gets_log_and_evidence_and_the_recording_nothing(eventful: Path, tmp_path: Path) -> None:
    before, state = tree(eventful), tmp_path / "out"
    black, freeze = told(replay("--json", "--fps=1", f"--state-dir={state}", eventful))
    assert tree(eventful) == before
    assert [(found["id"], found["state"]) for found in logged(state)] == [
        (black["id"], "closed"),
        (freeze["id"], "open"),
    ]
    files = all_files(state / "store")
    home = f"alerts/black/{os.uname().nodename}/stb1/{black['id']}"
    expected = {f"frame_{n}.jpg": number for n, number in enumerate((8, 9, 19, 24))}
    assert {name: files[f"{home}/{name}"] for name in expected} == {
        name: (eventful / frame_name(number)).read_bytes() for name, number in expected.items()
    }
    assert len(files) == 9 + 7
    assert list((state / "spool").iterdir()) == [], "all is stored"
    assert all(folder.name == ".runs" for folder in (state / "hold").iterdir())


def test_the_same_recording_twice_adds_neither_row_nor_object(eventful: Path, tmp_path: Path) -> None:
    state = tmp_path / "out"
    first = told(replay("--json", "--fps=1", f"--state-dir={state}", eventful))
    before, objects = logged(state), tree(state / "store")
    again = replay("--json", "--fps=1", f"--state-dir={state}", eventful)
    assert told(again) == first
    after = logged(state)
    for found in (before[1], after[1]):
        assert found.pop("duration_s") > 0 and found["state"] == "open", "it grows older"
    assert after == before
    assert tree(state / "store") == objects
    assert again.stderr == "", "nothing of it is news"


CROWDED = "llbbb" * 60 + "ll"
"""At five seconds per frame, sixty blacks that open and close."""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, *costly(signal.SIGKILL, signal.SIGTERM)])
def test_an_interrupted_replay_leaves_a_state_that_the_next_one_completes(tmp_path: Path, number: int) -> None:
    directory, state = record(tmp_path / "stb1", CROWDED), tmp_path / "out"
    expected = [found["id"] for found in told(replay("--json", "--fps=0.2", directory))]
    assert len(expected) == 60
    command = [sys.executable, "-P", "-m", "pipeline", "replay", "--fps=0.2", f"--state-dir={state}", str(directory)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr
        wait_until(lambda: len(list(state.glob("store/alerts/*/*/*/*/incident.json"))) >= 5, 20, "some are stored")
        process.send_signal(number)
        complaints = process.stderr.read().decode()
        assert process.wait(10) == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in complaints
    with contextlib.closing(sqlite3.connect(state / "incidents.sqlite")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    begun = [found["id"] for found in logged(state)]
    assert 5 <= len(begun) < 60 and set(begun) <= set(expected)
    check_spool(state / "spool")
    assert told(replay("--json", "--fps=0.2", f"--state-dir={state}", directory)) != []
    found = logged(state)
    assert [one["id"] for one in found] == expected
    assert {stage for one in found for stage in one["evidence"].values()} == {"stored"}
    files = all_files(state / "store")
    assert len(files) == 60 * 9 and all(files.values())
    assert list((state / "spool").iterdir()) == []


def test_the_state_directory_of_a_running_service_is_refused(eventful: Path, tmp_path: Path) -> None:
    with FaultRig(tmp_path) as service:
        done = replay("--fps=1", f"--state-dir={service.base / 'state'}", eventful)
        assert (done.returncode, done.stdout) == (Exit.TEMPORARY, "")
        assert done.stderr.count("\n") == 1 and "another instance uses" in done.stderr
        service.publish(1)
        service.wait_sidecars(1)
    assert not (tmp_path / "state" / "hold").exists()


def test_a_directory_with_the_longest_name_has_its_evidence(tmp_path: Path) -> None:
    directory = record(tmp_path / ("n" * 255), SCENES)
    found = told(replay("--json", "--fps=1", f"--state-dir={tmp_path / 'out'}", directory))
    assert len(found) == 2 and [one["id"] for one in logged(tmp_path / "out")] == [one["id"] for one in found]
    assert len(all_files(tmp_path / "out" / "store")) == 9 + 7


def test_hostile_names_stay_in_their_line(tmp_path: Path) -> None:
    directory = record(tmp_path / "a\n\x1b[31m\u2028b", SCENES)
    for flags in ([], [f"--state-dir={tmp_path / 'out'}"]):
        done = replay("--fps=1", *flags, directory)
        assert done.returncode == 0
        assert all(letter.isprintable() for letter in (done.stdout + done.stderr).replace("\n", ""))
        found = told(replay("--json", "--fps=1", *flags, directory))
        assert {one["source"] for one in found} == {directory.name}
    assert {one["source"] for one in logged(tmp_path / "out")} == {directory.name}


@pytest.mark.slow
@needs("mount")
def test_incidents_that_a_full_disk_does_not_take_are_said(tmp_path: Path) -> None:
    """Neither the log nor the hold has room: nothing says that they wait, for they do not."""
    directory = tmp_path / "stb1"
    directory.mkdir()
    for number in range(1, 121):
        publish(directory, number, plain_frame(0) if 20 <= number < 80 else make_frame(number))
    with tmpfs(tmp_path / "small", "size=2m") as small:
        assert replay(f"--state-dir={small / 'state'}", str(directory), "--fps=50").returncode == 0  # makes its files
        with filled(small):
            done = replay(f"--state-dir={small / 'state'}", str(directory))
        assert done.returncode == Exit.OS_ERROR and "incidents not kept" in done.stderr
        assert "make room and replay again" in done.stderr and "waits to be stored" not in done.stderr
        assert replay(f"--state-dir={small / 'state'}", str(directory)).returncode == 0
        (found,) = logged(small / "state")
    assert found["condition"] == "black" and found["state"] == "closed"
