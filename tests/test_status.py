"""`status` as a process, over real services: what it tells, that it disturbs nobody, and what it does without one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import mutes, snapshot
from pipeline.board import Board
from pipeline.commands.status import host_line
from pipeline.console import duration
from pipeline.incidents import Phase, unpack_phases
from pipeline.sidecar import timestamp
from pipeline.snapshot import HostView
from tests import readme
from tests.machine import STRANGER, UNPRIVILEGED, needs, open_place
from tests.support import Rig, plain_frame, wait_until

pytestmark = pytest.mark.any_python


def ask(service: Rig, *flags: str, wrapper: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run `status` on a service's directories."""
    places = [f"--runtime-dir={service.base / 'run'}", f"--state-dir={service.base / 'state'}"]
    command = [*wrapper, sys.executable, "-P", "-m", "pipeline", "status", *places, *flags]
    return subprocess.run(command, env=service.environment, capture_output=True, text=True, timeout=30)


def test_it_tells_of_every_process_and_source(rig: Callable[..., Rig]) -> None:
    with rig("--workers=2", sources=("a", "b")) as service:
        for number in range(20):
            service.publish(number)
        service.wait_sidecars(20)
        done = ask(service)
        assert done.returncode == 0 and not done.stderr
        for word in ("supervisor", "watcher", "uploader", "worker/0", "worker/1", " a ", " b ", "evidence: 0 waiting"):
            assert word in done.stdout
        told = json.loads(ask(service, "--json").stdout)
        first = told["sources"][0]
        assert (first["name"], first["published"], first["judged"], first["backlog"]) == ("a", 20, 20, 0)
        assert {process["name"] for process in told["processes"]} >= {"supervisor", "worker/1"}
        pids = {process.pid for process in service.tree()}
        assert {process["pid"] for process in told["processes"]} == pids
        assert not service.lines("child died")


def test_rates_are_measured_over_its_second(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1") as service:
        asked = subprocess.Popen(
            [sys.executable, "-P", "-m", "pipeline", "status", f"--runtime-dir={service.base / 'run'}", "--json"],
            env=service.environment,
            stdout=subprocess.PIPE,
        )
        number = 0
        while asked.poll() is None:
            service.publish(number := number + 1)
            service.wait_sidecars(number)
        source = json.loads(asked.communicate()[0])["sources"][0]
        assert source["judged_fps"] > 1 and source["published_fps"] > 1


def test_a_condition_is_seen_before_it_is_an_incident(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1") as service:
        for number in range(6):
            service.publish(number, plain_frame(0))
        service.wait_sidecars(6)
        told = json.loads(ask(service, "--json").stdout)["sources"][0]
        assert told["conditions"]["black"] == "pending" and told["open_incidents"] == 0


def test_a_source_whose_directory_is_missing_is_no_success(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1") as service:
        shutil.rmtree(service.dir)
        wait_until(lambda: "directory missing" in service.log, 30)
        done = ask(service)
        assert done.returncode == 1 and "missing" in done.stdout


def test_after_the_end_it_tells_how_it_was(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1") as service:
        service.publish(1)
        service.wait_sidecars(1)
        service.stop()
        done = ask(service)
        assert done.returncode == 1 and done.stdout.startswith("the service does not run, since ")
        first, second = (json.loads(ask(service, "--json").stdout) for _ in range(2))
        assert first["running"] is False
        assert second["uptime_s"] == first["uptime_s"] > 0, "it stands still"
        assert second["ended_age_s"] > first["ended_age_s"] >= 0


def test_when_it_ended_is_not_known_from_an_earlier_boot(tmp_path: Path) -> None:
    board = Board.create(str(tmp_path), ["watcher"], ["a"])
    os.close(board.fd)
    board.memory.supervisor_pid = 2**22 + 1  # nobody's
    for heartbeat_ns in (0, time.monotonic_ns() + 10**15):
        board.memory.children[0].heartbeat_ns = heartbeat_ns
        seen = snapshot.take(board, str(tmp_path))
        assert (seen.running, seen.uptime_s, seen.ended_age_s) == (False, None, None)


def test_another_process_of_its_number_is_not_taken_for_it(tmp_path: Path) -> None:
    board = Board.create(str(tmp_path), ["watcher"], ["a"])
    os.close(board.fd)
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", "stillwatch.toml"]
    before_ns = time.monotonic_ns()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline()  # in the middle of an exec no command line is told
        board.memory.supervisor_pid = other.pid
        board.memory.started_ns = time.monotonic_ns()
        assert snapshot.take(board, str(tmp_path)).running
        board.memory.started_ns = before_ns - 10**9
        assert not snapshot.take(board, str(tmp_path)).running
        other.communicate()


def test_a_muted_source_is_told(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1", sources=("a", "b")) as service:
        hour_ns, now_ns = 3600 * 10**9, time.time_ns()
        mutes.write(str(service.base / "state"), "a", now_ns + hour_ns, now_ns)
        told = {s["name"]: s["muted_until"] for s in json.loads(ask(service, "--json").stdout)["sources"]}
        assert told == {"a": timestamp(now_ns + hour_ns), "b": None}
        assert ask(service).stdout.count("muted until") == 1


def test_without_a_service_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = ask(Rig(tmp_path))
    assert done.returncode == 66 and done.stdout == ""
    assert done.stderr.startswith(f"stillwatch: {tmp_path / 'run' / 'board'}: ") and done.stderr.count("\n") == 1


def test_a_board_that_is_none_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "board").write_bytes(b"nonsense")
    done = ask(Rig(tmp_path))
    assert done.returncode == 66 and done.stderr.count("\n") == 1


@needs()
def test_the_group_may_look_and_nobody_else(tmp_path: Path) -> None:
    """As a user without any right but to read what the group may read."""
    with open_place() as base, Rig(base, "--workers=1") as service:
        for path in (base / "run", base / "run" / "board", base / "state", base / "state" / "spool"):
            os.chown(path, STRANGER, STRANGER)
        service.publish(1)
        service.wait_sidecars(1)
        asked = ask(service, wrapper=("setpriv", f"--regid={STRANGER}", "--clear-groups", *UNPRIVILEGED[1:]))
        assert asked.returncode == 0, asked.stderr
        assert ask(service, wrapper=UNPRIVILEGED).returncode == 66


def test_looking_writes_nothing(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1") as service:
        board = service.base / "run" / "board"
        before = (os.stat(board).st_mtime_ns, sorted(os.listdir(service.base / "run")))
        ask(service)
        assert (os.stat(board).st_mtime_ns, sorted(os.listdir(service.base / "run"))) == before


def test_its_reader_may_go(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1") as service:
        command = f"{sys.executable} -P -m pipeline status --runtime-dir={service.base / 'run'} --watch | head -1"
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], env=service.environment, capture_output=True, timeout=30
        )
        assert done.returncode == 0 and done.stderr == b""


def keys_of(told: object) -> set[str]:
    """All keys of a JSON object, but for those that are names of something."""
    if isinstance(told, list):
        return {key for item in told for key in keys_of(item)}
    if not isinstance(told, dict):
        return set()
    named = {"conditions", "troubles", "given_up"}
    return {*told, *(key for name, item in told.items() if name not in named for key in keys_of(item))}


def test_all_that_it_tells_stands_in_the_readme(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1") as service:
        told = keys_of(json.loads(ask(service, "--json").stdout))
    assert {"published_fps", "sd_bytes", "retry_in_s"} <= told
    assert told - readme.names("The numbers it prints") == set()


def columns_of(text: str) -> list[list[str]]:
    """The heads of its tables."""
    return [[cell.strip() for cell in line.strip("┃").split("┃")] for line in text.splitlines() if line[:1] == "┃"]


def test_the_readme_shows_the_tables_as_they_are_printed(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1") as service:
        printed = columns_of(ask(service).stdout)
    assert len(printed) == 2 and printed == columns_of(readme.section("Is it working?"))


def test_the_host_is_told_of(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1", "--report-every=0.2") as service:
        wait_until(lambda: service.lines(" host report "), 30, "a report")
        assert " kB/s to disk" in ask(service).stdout
        told = json.loads(ask(service, "--json").stdout)["host"]
    assert told["memory_available_bytes"] > 2**20 and told["load"] >= 0
    assert told["sd_bytes"] >= 0 and told["sd_bytes_per_s"] is not None


@pytest.mark.parametrize(
    ("host", "text"),
    [
        (HostView(None, None, None, 0.4, 2**30, 0, None), "load 0.40; 1024 MB of memory available; ? kB/s to disk"),
        (
            HostView(51.12, 0, False, 0.4, 2**30, 0, 0),
            "51.1 °C; load 0.40; 1024 MB of memory available; not throttled; 0.0 kB/s to disk",
        ),
        (
            HostView(84.5, 0x50005, True, 4.1, 2**30, 10**6, 1500),
            "84.5 °C; load 4.10; 1024 MB of memory available; now under-voltage, throttled; "
            "since boot under-voltage, throttled; the supply is too weak; 1.5 kB/s to disk",
        ),
    ],
)
def test_a_host_in_one_line(host: HostView, text: str) -> None:
    assert host_line(host) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (5.9, "5 s"), (725, "12 min 5 s"), (15120, "4 h 12 min"), (86400, "1 d")]
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_phases_are_packed_and_unpacked() -> None:
    assert unpack_phases(0) == {}
    assert unpack_phases(0x2010) == {"no_signal": Phase.PENDING, "freeze": Phase.OPEN}
