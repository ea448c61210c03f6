"""What `incidents` prints: safe for a terminal and for programs, to a reader that leaves, to one that may only read."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.incidentlog import FILE_NAME
from pipeline.model import Exit
from tests.incident_listing import PLAIN, command, ids, lines, listed, table, written
from tests.machine import STRANGER, UNPRIVILEGED, needs, open_place
from tests.support import wait_until
from tests.uploads import UploaderProcess, closed, incident, make_hold, make_settings, publish

pytestmark = pytest.mark.any_python

HOSTILE = "a\nb\x1b[31m\r\x07[red]%s\u2028\u202e{}ü"
"""A source's name as a replayed directory may have it."""


# -- hostile names ----------------------------------------------------------------------------------------------------


def test_hostile_names_break_neither_the_table_nor_the_json(tmp_path: Path) -> None:
    place = written(tmp_path, closed(incident(1, HOSTILE, host=HOSTILE)), incident(2, "plain"))
    found = lines(place)
    assert (found[1]["source"], found[1]["host"]) == (HOSTILE, HOSTILE)
    assert lines(place, "--source", HOSTILE) == [found[1]]
    done = listed(place)
    assert done.returncode == 0
    assert [row[-1] for row in table(done.stdout)] == [incident(2, "plain").id, incident(1).id]
    assert len(done.stdout.splitlines()) == 3 + 1 + 2 + 1, done.stdout
    assert all(letter.isprintable() for letter in done.stdout.replace("\n", ""))
    assert "[red]%s" in done.stdout and "{}ü" in done.stdout
    done = listed(place, "--url")
    assert all(letter.isprintable() for letter in done.stdout.replace("\n", ""))


def test_a_long_name_leaves_the_ids_whole_for_whoever_pipes_the_table(tmp_path: Path) -> None:
    place = written(tmp_path, closed(incident(0xABCDEF0123456789, "x" * 63, "capture_stalled")))
    (row,) = table(listed(place).stdout)
    assert row[-1] == "abcdef0123456789" and row[0] == "x" * 63


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_locale_without_utf8_changes_no_byte(tmp_path: Path, encoding: str) -> None:
    place, locale = written(tmp_path, incident(1, HOSTILE)), {"PYTHONIOENCODING": encoding}
    assert lines(place, environment=locale)[0]["source"] == HOSTILE
    assert listed(place, environment=locale).returncode == 0


# -- output that nobody reads -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[0, 1, 100])
def log_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """A log, and how many incidents are in it."""
    count: int = request.param
    base = tmp_path_factory.mktemp("log")
    return written(base, *(incident(n, f"s{n}") for n in range(count))), count


FORMS = pytest.mark.parametrize("form", [["--json"], ["--url"], []], ids=["json", "url", "table"])


@FORMS
def test_a_closed_pipe_is_no_fault(log_of: tuple[str, int], form: list[str]) -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    try:
        done = subprocess.run(command(log_of[0], *form), env=PLAIN, stdout=write_fd, stderr=subprocess.PIPE, timeout=30)
    finally:
        os.close(write_fd)
    assert (done.returncode, done.stderr) == (0, b"")


@FORMS
def test_head_gets_its_line_and_no_traceback(log_of: tuple[str, int], form: list[str]) -> None:
    place, count = log_of
    with subprocess.Popen(command(place, *form), env=PLAIN, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() or (form == ["--json"] and not count)
        process.stdout.close()
        complaints = process.stderr.read()
        assert process.wait(20) == 0
    assert complaints == b""


@FORMS
def test_a_full_disk_behind_the_output_is_said_in_one_line(log_of: tuple[str, int], form: list[str]) -> None:
    place, count = log_of
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command(place, *form), env=PLAIN, stdout=full, stderr=subprocess.PIPE, timeout=30)
    if form == ["--json"] and not count:  # nothing to say
        assert (done.returncode, done.stderr) == (0, b"")
    else:
        assert done.returncode == Exit.OS_ERROR
        assert done.stderr == b"stillwatch: No space left on device; the system refused\n"


# -- beside a service, and without permission -------------------------------------------------------------------------


def test_it_lists_while_a_service_writes(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, source=())
    hold = make_hold(settings)
    with UploaderProcess(tmp_path, settings) as uploader:
        seen: list[int] = []
        for number in range(60):
            publish(hold, incident(number, f"s{number}"))
            uploader.keeper_bell.ring()
            if number == 0:
                wait_until(lambda: not hold.waiting(), 10, uploader.log)
            if number % 10 == 0:
                seen.append(len(lines(settings.state_dir)))
        wait_until(lambda: not hold.waiting(), 20, uploader.log)
        assert Path(settings.state_dir, FILE_NAME + "-wal").exists(), "it is being written"
        assert seen == sorted(seen) and 1 <= seen[0] < 60
        assert sorted(ids(lines(settings.state_dir))) == list(range(60))
        uploader.stop()
    assert "not kept" not in uploader.log
    assert len(lines(settings.state_dir)) == 60


@pytest.fixture
def open_base() -> Iterator[Path]:
    """A place that anybody may read."""
    with open_place() as base:
        yield base


def refuses_writing(state_dir: str) -> bool:
    """Whether the unprivileged reader may really not write there."""
    tried = [[*UNPRIVILEGED, "touch", f"{state_dir}/{name}"] for name in ("new", FILE_NAME)]
    return all(subprocess.run(command, capture_output=True).returncode for command in tried)


def give_away(state_dir: str) -> None:
    """All of it belongs to somebody else, and anybody may read it."""
    for path in [Path(state_dir), *Path(state_dir).iterdir()]:
        os.chown(path, STRANGER, STRANGER)
        path.chmod(0o755 if path.is_dir() else 0o644)


@needs("setpriv")
@pytest.mark.parametrize("service", ["running", "stopped", "killed"])
def test_a_reader_without_write_permission_sees_all(open_base: Path, service: str) -> None:
    settings = make_settings(open_base, source=())
    hold = make_hold(settings)
    for number in range(5):
        publish(hold, incident(number, f"s{number}"))
    with UploaderProcess(open_base, settings) as uploader:
        wait_until(lambda: not hold.waiting(), 10, uploader.log)
        if service == "stopped":
            uploader.stop()
        elif service == "killed":
            uploader.kill()
        give_away(settings.state_dir)
        assert refuses_writing(settings.state_dir)
        assert Path(settings.state_dir, FILE_NAME + "-wal").exists() is (service != "stopped")
        before = sorted(os.listdir(settings.state_dir))
        assert sorted(ids(lines(settings.state_dir, wrapper=UNPRIVILEGED))) == list(range(5))
        assert listed(settings.state_dir, wrapper=UNPRIVILEGED).returncode == 0
        assert sorted(os.listdir(settings.state_dir)) == before
        if service == "running":
            publish(hold, incident(5, "s5"))
            uploader.keeper_bell.ring()
            wait_until(lambda: len(lines(settings.state_dir, wrapper=UNPRIVILEGED)) == 6, 30)
            uploader.stop()


@needs("setpriv")
def test_a_log_that_may_not_be_read_is_said_in_one_line(open_base: Path) -> None:
    place = written(open_base, incident())
    give_away(place)
    Path(place, FILE_NAME).chmod(0o600)
    done = listed(place, wrapper=UNPRIVILEGED)
    assert (done.returncode, done.stdout) == (Exit.NO_INPUT, "")
    assert done.stderr.count("\n") == 1 and "ask as a user of its group" in done.stderr
