"""The self-report: what its lines look like, and that they tell the truth."""

from __future__ import annotations

import ctypes
import io
import logging
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pipeline.board import Board
from pipeline.child import _OneLine, log
from pipeline.model import Outcome, SourceState, State
from pipeline.report import Report
from pipeline.ring import Record, Ring
from tests import readme
from tests.support import ROOT, Rig, wait_until

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
PROCESS = rf"{STAMP} INFO %s report pid=%d cpu_pct=\d+\.\d\d rss_mb=\d+\.\d wakeups=\d+"
CHILD = PROCESS + r" state=RUNNING core=%s restarts=\d+ turns=\d+ heartbeat_age_s=\d+\.\d"
BOOKS = "published=%d judged=%d invalid=%d skipped=%d vanished=%d in_flight=%d balanced=%s"
NS = 1_000_000_000
NUMBERS = "The numbers it prints"


class Desk:
    """A report over a ring and a board of its own, and what it wrote."""

    def __init__(self, folder: Path, stream: io.StringIO) -> None:
        self.ring = Ring.create()
        self.board = Board.create(str(folder), ["watcher", "worker/0"], ["stb1", "tv"])
        self.report = Report(self.ring, self.board)
        self.stream = stream

    def write(self, now_ns: int | None = None) -> list[str]:
        """Write a report; its lines."""
        self.stream.truncate(0)
        self.stream.seek(0)
        self.report.write(time.monotonic_ns() if now_ns is None else now_ns)
        return self.stream.getvalue().splitlines()

    def line(self, who: str) -> str:
        """The line of a report about somebody."""
        (found,) = [line for line in self.write() if f" {who} report " in line]
        return found


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A report whose lines are formatted as in the service."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_OneLine("supervisor"))
    monkeypatch.setattr(log, "handlers", [handler])
    monkeypatch.setattr(log, "level", logging.INFO)
    monkeypatch.setattr(log, "_cache", {})
    made = Desk(tmp_path, stream)
    yield made
    made.ring.close()
    os.close(made.board.fd)


def values(line: str) -> dict[str, str]:
    """A line's `key=value` pairs."""
    return dict(re.findall(r"(\w+)=(\S+)", line))


# -- processes --------------------------------------------------------------------------------------------------------


def test_the_supervisor_reports_itself(desk: Desk) -> None:
    assert re.fullmatch(PROCESS % ("supervisor", os.getpid()), desk.line("supervisor"))


def test_a_child_is_reported_in_its_own_name(desk: Desk) -> None:
    row = desk.board.children[1]
    row.pid, row.state, row.cpu, row.restarts, row.turns = os.getpid(), State.RUNNING, 3, 2, 41
    row.started_ns = row.heartbeat_ns = time.monotonic_ns() - NS
    line = desk.line("worker/0")
    assert re.fullmatch(CHILD % ("worker/0", os.getpid(), "3"), line)
    assert (values(line)["restarts"], values(line)["turns"]) == ("2", "41")


def test_a_child_without_core_and_heartbeat_says_so(desk: Desk) -> None:
    row = desk.board.children[0]
    row.pid, row.state = os.getpid(), State.STARTING
    found = values(desk.line("watcher"))
    assert (found["core"], found["heartbeat_age_s"], found["state"]) == ("any", "never", "STARTING")


def test_a_child_that_is_not_there_has_no_line(desk: Desk) -> None:
    assert not any("watcher" in line or "worker" in line for line in desk.write())


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_a_child_that_has_just_died_does_not_break_the_report(desk: Desk, reaped: bool) -> None:
    with subprocess.Popen(["true"]) as dead:
        os.waitid(os.P_PID, dead.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
        desk.board.children[0].pid = dead.pid
        lines = desk.write()
    assert any(" source/stb1 report " in line for line in lines)
    assert len([line for line in lines if " watcher report " in line]) == (not reaped)


def test_cpu_is_what_was_used_since_the_last_report(desk: Desk) -> None:
    # Given a first report
    now_ns = time.monotonic_ns()
    desk.write(now_ns)
    # When this process has used CPU for a while
    spent_s = time.process_time()
    while time.process_time() - spent_s < 0.3:
        pass
    # Then the next, ten seconds later, says what share that was
    (line,) = [line for line in desk.write(now_ns + 10 * NS) if " supervisor report " in line]
    assert 2 < float(values(line)["cpu_pct"]) < 10


# -- sources and books ------------------------------------------------------------------------------------------------


def commit(desk: Desk, *outcomes: Outcome | None) -> None:
    """Put and commit slots of the first source."""
    lane = desk.ring.lanes[0]
    lane.adopt()
    for number, outcome in enumerate(outcomes):
        lane.put(number, 9, 0, tick=outcome is None)
        lane.complete(outcome, b"")


def test_a_source_says_its_books(desk: Desk) -> None:
    commit(desk, Outcome.JUDGED, Outcome.INVALID, Outcome.SKIPPED, Outcome.VANISHED, Outcome.JUDGED, None)
    desk.ring.lanes[0].put(9, 9, 0)
    desk.ring.lanes[0].set_pending(2)
    line = desk.line("source/stb1")
    assert line.endswith(BOOKS % (8, 2, 1, 1, 1, 3, "yes"))


def test_a_source_says_state_age_and_lag(desk: Desk) -> None:
    row = desk.board.memory.sources[0]
    row.state, row.last_put_ns = SourceState.WATCHING, time.monotonic_ns() - 3 * NS
    row.lag_ns, row.max_lag_ns, row.black_frames, row.freeze_frames, row.unknown_frames = 1_500_000, 22_000_000, 1, 2, 3
    found = values(desk.line("source/stb1"))
    assert found["state"] == "watching"
    assert float(found["frame_age_s"]) >= 3
    assert (found["lag_ms"], found["max_lag_ms"]) == ("1.5", "22.0")
    assert (found["black"], found["freeze"], found["unknown"]) == ("1", "2", "3")


def test_troubles_are_named_only_when_there_are_some(desk: Desk) -> None:
    assert "torn_slots" not in desk.line("source/stb1")
    desk.board.memory.sources[0].torn_slots = 2
    desk.board.memory.sources[0].sidecar_failures = 1
    assert desk.line("source/stb1").endswith(" sidecar_failures=1 torn_slots=2")


def test_the_whole_says_the_sum_of_all_books(desk: Desk) -> None:
    commit(desk, Outcome.JUDGED, Outcome.JUDGED)
    desk.ring.lanes[1].put(1, 9, 0)
    assert desk.write()[-1].endswith(" INFO supervisor books " + BOOKS % (3, 2, 0, 0, 0, 1, "yes"))


def test_books_that_do_not_balance_are_an_error(desk: Desk) -> None:
    desk.ring.lanes[0].record = Record(tail=4, judged=2)  # two slots that nobody accounted for
    commit_on_top = desk.ring.lanes[0]
    for number in range(5):
        commit_on_top.put(number, 9, 0)
    commit_on_top.complete(Outcome.JUDGED, b"")
    lines = desk.write()
    assert " ERROR source/stb1 report " in lines[-3] and lines[-3].endswith("balanced=NO")
    assert " INFO source/tv report " in lines[-2]
    assert " ERROR supervisor books " in lines[-1] and lines[-1].endswith("balanced=NO")


def test_the_books_at_stop_name_every_source(desk: Desk) -> None:
    commit(desk, Outcome.JUDGED)
    desk.report.write_source_books("books at stop")
    first, second = desk.stream.getvalue().splitlines()
    assert first.endswith(" INFO supervisor books at stop source=stb1 " + BOOKS % (1, 1, 0, 0, 0, 0, "yes"))
    assert second.endswith(" INFO supervisor books at stop source=tv " + BOOKS % (0, 0, 0, 0, 0, 0, "yes"))


# -- the real service -------------------------------------------------------------------------------------------------


def test_the_service_reports_every_process_and_source(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1", "--report-every=0.2") as service:
        service.publish(1)
        service.wait_sidecars(1)
        wait_until(lambda: service.lines(" source/a report ") and "judged=1" in service.log, 30, "a report with it")
        for name, pid in zip(
            ("watcher", "worker/0", "uploader", "capture"), (process.pid for process in service.tree()[1:]), strict=True
        ):
            line = wait_until(partial(service.lines, f" {name} report "), 10, name)[-1]
            assert re.fullmatch(CHILD % (name, pid, r"(\d+|any)"), line)
        assert service.process
        assert re.fullmatch(PROCESS % ("supervisor", service.process.pid), service.lines(" supervisor report ")[-1])


# -- the README -------------------------------------------------------------------------------------------------------


def test_every_number_stands_in_the_readme_with_its_kind_and_unit_and_what_to_do(desk: Desk) -> None:
    # Given a report in which nothing is left out for being zero
    row, child = desk.board.memory.sources[0], desk.board.children[0]
    for field, kind, *_ in row._fields_:
        if kind is ctypes.c_uint64 and field != "state":
            setattr(row, field, 1)
    child.pid, child.state, child.log_dropped = os.getpid(), State.RUNNING, 1
    commit(desk, *[Outcome.JUDGED] * 3)
    while desk.ring.lanes[0].put(9, 9, 0):
        pass
    # Then each of its keys has a row
    printed = {key for line in desk.write() for key in values(line)}
    assert {"lane_refused", "torn_slots", "log_dropped", "sd_bytes_per_s", "balanced"} <= printed
    assert printed - readme.names(NUMBERS) == set()
    for cells in readme.rows(NUMBERS):
        assert all(cells), cells


def test_the_readme_names_no_number_that_is_not_printed() -> None:
    """Its rows are of the self-report, of `status --json` or of the metrics file: the code has each name."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "pipeline").rglob("*.py"))
    unknown = {name for name in readme.names(NUMBERS) if not re.search(rf"\b{name.removesuffix('_total')}\b", code)}
    assert unknown == {"stillwatch_build_info"}
