"""`incidents` as a process over a log that the real keeper wrote: for people, for programs, and on bad days."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import urllib.request
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.incidentlog import FILE_NAME, IncidentLog
from pipeline.incidents import Transition
from pipeline.model import Exit
from pipeline.r2 import R2Store
from pipeline.store import R2Settings
from tests.incident_listing import PLAIN, aged, command, ids, lines, listed, table, written
from tests.uploads import (
    OPENED,
    FakeStore,
    closed,
    incident,
    r2_environment,
)

pytestmark = pytest.mark.any_python

pytest_plugins = ("tests.s3_fixtures",)


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """For reading. Open: stb1 since 3 h, tv since 1 h. Closed: stb1 two days ago, stb2 ten minutes ago."""
    open_ones = aged(1, 3 * 3600), aged(2, 3600, "tv", "freeze")
    closed_ones = closed(aged(3, 2 * 86400)), closed(aged(4, 600, "stb2"))
    return written(tmp_path_factory.mktemp("log"), closed_ones[0], *open_ones, closed_ones[1], store=FakeStore())


@pytest.fixture
def own_log(state_dir: str, tmp_path: Path) -> str:
    """A copy of it, to be damaged."""
    return shutil.copytree(state_dir, str(tmp_path / "state"))


# -- what it says -----------------------------------------------------------------------------------------------------


def test_the_table_has_open_ones_first_and_then_the_newest(state_dir: str) -> None:
    done = listed(state_dir)
    assert (done.returncode, done.stderr) == (0, "")
    found = table(done.stdout)
    assert [int(row[-1], 16) for row in found] == [2, 1, 4, 3]
    assert [row[:2] for row in found] == [["tv", "freeze"], ["stb1", "black"], ["stb2", "black"], ["stb1", "black"]]
    assert ["OPEN" in row[3] for row in found] == [True, True, False, False]
    assert re.fullmatch(r"36\d\d\.\d s, OPEN", found[0][3]) and found[2][3] == "30.0 s"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", found[0][2])
    assert found[0][4] == "148 of 150 frames, longest gap 0.6 s"
    assert [row[5] for row in found] == ["opened:stored"] * 2 + ["opened:stored closed:stored"] * 2


def test_json_is_one_line_per_incident_in_the_same_order(state_dir: str) -> None:
    found = lines(state_dir)
    assert ids(found) == [2, 1, 4, 3]
    newest, oldest = found[0], found[-1]
    assert (newest["state"], newest["closed_at"], newest["evidence"]) == ("open", None, {"opened": "stored"})
    assert 3600 <= newest["duration_s"] < 3700
    assert (oldest["state"], oldest["duration_s"], oldest["reason"]) == ("closed", 30.0, "recovered")
    assert oldest["evidence"] == {"opened": "stored", "closed": "stored"}
    begun, ended = (datetime.fromisoformat(oldest[key]) for key in ("opened_at", "closed_at"))
    assert ended - begun == timedelta(seconds=30) and begun.tzinfo == UTC
    home = f"alerts/black/rig1/stb1/{oldest['id']}"
    assert oldest["original_r2_paths"] == [f"{home}/frame_{n}.jpg" for n in range(4)]
    assert oldest["thumbnail_urls"] == [f"fake://{home}/thumb_{n}.jpg" for n in range(4)]
    assert {"host", "source", "condition", "coverage", "readings", "explained_by"} < set(oldest)
    assert "urls" not in oldest, "links are made only when they are asked for"


@pytest.mark.parametrize(
    ("since", "expected"),
    [("90m", [2, 1, 4]), ("24h", [2, 1, 4]), ("7d", [2, 1, 4, 3]), ("5s", [2, 1]), ("0s", [2, 1])],
)
def test_since_leaves_out_what_had_ended_before_and_keeps_what_is_open(
    state_dir: str, since: str, expected: list[int]
) -> None:
    assert ids(lines(state_dir, "--since", since)) == expected


@pytest.mark.parametrize("zone", [-12, -5, 0, 2, 14])
def test_since_takes_an_instant_in_any_zone(state_dir: str, zone: int) -> None:
    """stb2's incident ended 570 s ago."""
    for age_s, expected in ((500, [2, 1]), (700, [2, 1, 4])):
        instant = (datetime.now(UTC) - timedelta(seconds=age_s) + timedelta(hours=zone)).replace(tzinfo=None)
        offset = f"{'-' if zone < 0 else '+'}{abs(zone):02}:00"
        assert ids(lines(state_dir, f"--since={instant.isoformat(timespec='seconds')}{offset}")) == expected
        if not zone:
            assert ids(lines(state_dir, f"--since={instant.isoformat(timespec='minutes')}")) in ([2, 1], [2, 1, 4])


def test_source_is_that_one_alone(state_dir: str) -> None:
    assert ids(lines(state_dir, "--source", "stb1")) == [1, 3]
    assert ids(lines(state_dir, "--source", "stb1", "--since", "1h")) == [1]
    assert lines(state_dir, "--source", "stb") == []
    done = listed(state_dir, "--source", "x' OR 1=1 --")
    assert (done.returncode, done.stdout, done.stderr) == (0, "no incidents\n", "")


def test_an_empty_log_has_no_incidents(tmp_path: Path) -> None:
    empty = written(tmp_path)
    assert Path(empty, FILE_NAME).stat().st_size > 0
    done = listed(empty)
    assert (done.returncode, done.stdout, done.stderr) == (0, "no incidents\n", "")
    assert lines(empty) == []


def test_the_state_directory_is_where_run_would_put_it(state_dir: str) -> None:
    words = [*command("")[:-1], "--json"]
    done = subprocess.run(
        words, env={**PLAIN, "STATE_DIRECTORY": state_dir}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0 and done.stdout.count("\n") == 4


# -- links ------------------------------------------------------------------------------------------------------------


def test_urls_of_the_local_store_are_its_files(tmp_path: Path) -> None:
    place = written(tmp_path, aged(1, 60))
    (found,) = lines(place, "--url")
    assert len(found["urls"]) == len(OPENED)
    for url in found["urls"]:
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert answer.read() == OPENED[url.rpartition("/")[2]]
    said = [line for line in listed(place, "--url").stdout.splitlines() if line.startswith(found["id"])]
    assert said == [f"{found['id']}  {url}" for url in found["urls"]]


def test_urls_of_r2_open_the_pictures_to_a_person(
    tmp_path: Path, seaweedfs: R2Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = R2Store(seaweedfs)
    place = written(tmp_path, aged(61, 60), store=store)
    store.close()
    done = listed(place, "--json", "--url", environment=r2_environment(seaweedfs))
    assert (done.returncode, done.stderr) == (0, "")
    assert seaweedfs.secret_access_key not in done.stdout
    urls = json.loads(done.stdout)["urls"]
    assert len(urls) == len(OPENED) and all("X-Amz-Expires=86400" in url for url in urls)
    monkeypatch.setenv("SSL_CERT_FILE", str(seaweedfs.ca_bundle))
    for url in urls:
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert answer.read() == OPENED[url.partition("?")[0].rpartition("/")[2]]


def test_links_into_r2_are_not_invented_where_its_settings_are_not(tmp_path: Path) -> None:
    place = written(tmp_path, aged(1, 60), store=FakeStore())
    done = listed(place, "--url")
    assert done.returncode == Exit.NO_INPUT and "CLOUDFLARE_R2_" in done.stderr and "file:" not in done.stdout
    assert len(done.stderr.splitlines()) == 1


def test_a_clock_that_nobody_had_set_is_said(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    book = IncidentLog(str(state_dir))
    book.record(Transition("opened", incident(1)), synchronised=False)
    book.close()
    (found,) = lines(str(state_dir))
    assert found["clock_synchronised"] is False
    assert "(clock not set)" in listed(str(state_dir), environment={"COLUMNS": "200"}).stdout


def test_a_store_is_asked_for_only_when_links_are(state_dir: str) -> None:
    """Whoever reads the log need not be configured like the service."""
    half = {"CLOUDFLARE_R2_BUCKET": "rig"}
    assert len(lines(state_dir, environment=half)) == 4
    done = listed(state_dir, "--url", environment=half)
    assert done.returncode == Exit.CONFIG and "CLOUDFLARE_R2_ENDPOINT" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# -- nothing to read, and wrong arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_no_log_yet_is_said_in_one_line(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "state"
    if kind == "file":
        place.touch()
    elif kind == "empty":
        place.mkdir()
    done = listed(place)
    assert (done.returncode, done.stdout) == (Exit.NO_INPUT, "")
    assert done.stderr.count("\n") == 1 and str(place) in done.stderr and "--state-dir" in done.stderr
    assert place.is_file() if kind == "file" else not (place / FILE_NAME).exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--since", "yesterday"],
        ["--since", ""],
        ["--since", "3"],
        ["--since", "-3h"],
        ["--since", "999999d"],
        ["--since", "0001-01-01T00:00+14:00"],
        ["--since", "9999-12-31T23:59-14:00"],
        ["--since"],
        ["--sauce", "x"],
        ["extra"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_a_usage_error(state_dir: str, arguments: list[str]) -> None:
    done = listed(state_dir, *arguments)
    assert (done.returncode, done.stdout) == (Exit.USAGE, "")
    assert "Traceback" not in done.stderr and "stillwatch incidents: error: " in done.stderr


# -- damage -----------------------------------------------------------------------------------------------------------


def random_bytes(path: Path) -> None:
    path.write_bytes(os.urandom(20_000))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 7)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def pages_overwritten(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:4096] + os.urandom(len(data) - 4096))


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [random_bytes, cut, emptied, pages_overwritten, a_directory])
def test_a_damaged_log_is_said_in_one_line(own_log: str, damage: Callable[[Path], None]) -> None:
    damage(Path(own_log, FILE_NAME))
    before = sorted(os.listdir(own_log))
    done = listed(own_log, "--json")
    assert (done.returncode, done.stdout) == (Exit.NO_INPUT, "")
    assert done.stderr.count("\n") == 1 and "incident log not readable" in done.stderr and own_log in done.stderr
    assert sorted(os.listdir(own_log)) == before, "a reader mends nothing"


REFERENCES = {"original_urls", "original_r2_paths", "thumbnail_urls", "thumbnail_r2_paths", "timestamp"}


@pytest.mark.parametrize("column", ["body", "refs"])
@pytest.mark.parametrize("content", [b"\xff\xfe random", b"{", b"[]", b""])
def test_a_damaged_row_does_not_hide_the_others(own_log: str, column: str, content: bytes) -> None:
    whole = lines(own_log)[1]
    with closing(sqlite3.connect(Path(own_log, FILE_NAME), isolation_level=None)) as db:
        db.execute(f"UPDATE incidents SET {column} = ? WHERE id = ?", (content, f"{1:016x}"))
    done = listed(own_log, "--json")
    assert done.returncode == 0
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert ids(found) == [2, 1, 4, 3] and done.stderr == ""
    assert all(set(one) >= set(whole) - REFERENCES for one in found)
    assert (found[1]["source"], found[1]["condition"], found[1]["state"]) == ("stb1", "black", "open")
    assert found[1]["duration_s"] >= 3 * 3600
    assert found[1]["coverage"] == ("damaged" if column == "body" else whole["coverage"])
    assert len(table(listed(own_log).stdout)) == 4
