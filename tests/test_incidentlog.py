"""The incident log: recorded once, readable by anybody, whatever was killed or damaged."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.incidentlog import (
    FILE_NAME,
    IncidentLog,
    connect_for_reading,
    describe_incident,
    is_damaged,
    merge_refs,
    read_open,
    set_aside,
)
from pipeline.incidents import Transition
from pipeline.model import InputError
from tests.support import ROOT, wait_until
from tests.uploads import closed, incident


@pytest.fixture
def book(tmp_path: Path) -> Iterator[IncidentLog]:
    made = IncidentLog(str(tmp_path))
    yield made
    made.close()


def opened(number: int = 1, source: str = "stb1") -> Transition:
    return Transition("opened", incident(number, source))


def ended(number: int = 1) -> Transition:
    return Transition("closed", closed(incident(number)))


def test_a_transition_is_news_once(book: IncidentLog) -> None:
    assert not book.knows(opened())
    assert book.record(opened()) == (1, True)
    assert book.record(opened()) == (1, False)
    assert book.record(ended()) == (2, True)
    assert book.knows(opened()) and book.evidence(1) == "held" and book.evidence(9) == ""


def test_what_is_closed_stays_closed(book: IncidentLog) -> None:
    book.record(ended())
    book.record(opened())
    assert book.open_incidents() == []


def test_open_incidents_are_read_back_whole(book: IncidentLog, tmp_path: Path) -> None:
    book.record(opened(1))
    book.record(opened(2))
    book.record(ended(2))
    assert book.open_incidents() == [incident(1)] == read_open(str(tmp_path))


HELD = {
    "an opening that is not in the log": ([], [opened(1)], [1]),
    "an opening that is in the log too": ([opened(1)], [opened(1)], [1]),
    "an opening held twice": ([], [opened(1), opened(1)], [1]),
    "an end that is not in the log": ([opened(1)], [ended(1)], []),
    "an opening and its end": ([], [opened(1), ended(1)], []),
    "an opening of what has ended": ([opened(1), ended(1)], [opened(1)], []),
    "an end, and the next": ([opened(1)], [ended(1), opened(2)], [2]),
    "one in the place of another": ([opened(1)], [opened(2)], [2]),
    "one of another source": ([opened(1)], [opened(2, "stb2")], [1, 2]),
}


@pytest.mark.parametrize(("log", "held", "expected"), HELD.values(), ids=HELD)
def test_what_is_held_counts_as_if_it_were_recorded(
    tmp_path: Path, log: list[Transition], held: list[Transition], expected: list[int]
) -> None:
    if log:
        with closing(IncidentLog(str(tmp_path))) as book:
            for transition in log:
                book.record(transition)
    assert [found.id for found in read_open(str(tmp_path), held)] == [incident(number).id for number in expected]


def test_references_grow_and_go(book: IncidentLog) -> None:
    for transition, path in ((opened(), "frame_0"), (ended(), "frame_3"), (ended(), "frame_3")):
        number, _ = book.record(transition)
        book.settle(number, "stored", incident().id, {"original_r2_paths": [path], "timestamp": path})
    (refs,) = book._db.execute("SELECT refs FROM incidents").fetchone()
    assert refs == '{"original_r2_paths":["frame_0","frame_3"],"timestamp":"frame_3"}'
    book.drop_stored([(incident().id, "age")])
    assert [book.evidence(n) for n in (1, 2)] == ["dropped:age"] * 2
    assert book._db.execute("SELECT refs FROM incidents").fetchone() == ("{}",)
    assert book.counters() == {"store_dropped_age": 1}


def test_what_is_not_stored_is_counted_once(book: IncidentLog) -> None:
    book.record(opened())
    for _ in range(2):
        book.settle(1, "damaged", "", {})
    assert book.counters() == {"evidence_damaged": 1} and book.numbers("damaged") == [1]


def test_kept_files_are_remembered(book: IncidentLog) -> None:
    for transition, names in ((opened(), ["frame_0.jpg"]), (ended(), ["frame_3.jpg"])):
        number, _ = book.record(transition)
        book.set_kept(number, names)
    assert book.kept_files(incident().id) == ["frame_0.jpg", "frame_3.jpg"]
    book.drop([(1, "bytes")])
    assert book.kept_files(incident().id) == ["frame_3.jpg"], "what was given up is named no more"


def test_numbers_go_on_behind_the_spool(book: IncidentLog) -> None:
    book.start_after(41)
    assert book.record(opened())[0] == 42
    book.start_after(7)
    assert book.record(ended())[0] == 43


@pytest.mark.parametrize(
    ("old", "new", "merged"),
    [
        ({}, {"a": [1]}, {"a": [1]}),
        ({"a": [1, 2]}, {"a": [2, 3]}, {"a": [1, 2, 3]}),
        ({"a": 1, "b": 2}, {"a": [3]}, {"a": [3], "b": 2}),
        ({"a": [1]}, {"a": "x"}, {"a": "x"}),
    ],
)
def test_merging(old: dict[str, object], new: dict[str, object], merged: dict[str, object]) -> None:
    assert merge_refs(old, new) == merged


def test_an_incident_for_people() -> None:
    about = describe_incident(closed(incident()))
    assert (about["state"], about["closed_at"], about["coverage"]) == (
        "closed",
        "2026-11-22T08:38:21.000000+00:00",
        "148 of 150 frames, longest gap 0.6 s",
    )
    assert describe_incident(incident())["closed_at"] is None


# -- readers ----------------------------------------------------------------------------------------------------------


def test_readers_see_the_log_while_it_is_written_and_after(book: IncidentLog, tmp_path: Path) -> None:
    book.record(opened(1))
    with closing(connect_for_reading(str(tmp_path))) as db:
        assert db.execute("SELECT COUNT(*) FROM incidents").fetchone()[0] == 1
        book.record(opened(2, "stb2"))
        assert db.execute("SELECT COUNT(*) FROM incidents").fetchone()[0] == 2
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            db.execute("DELETE FROM incidents")
    book.close()
    assert not Path(tmp_path, FILE_NAME + "-wal").exists()
    with closing(connect_for_reading(str(tmp_path))) as db:
        assert db.execute("SELECT COUNT(*) FROM incidents").fetchone()[0] == 2
    assert sorted(os.listdir(tmp_path)) == [FILE_NAME]


def test_no_log_is_said_so(tmp_path: Path) -> None:
    assert read_open(str(tmp_path)) == []
    with pytest.raises(InputError, match="no incident log"):
        connect_for_reading(str(tmp_path))


def test_a_strange_path_is_a_path(tmp_path: Path) -> None:
    place = tmp_path / "a b?mode=rw#%41"
    place.mkdir()
    with closing(IncidentLog(str(place))) as book:
        book.record(opened())
    assert len(read_open(str(place))) == 1


# -- bad days ---------------------------------------------------------------------------------------------------------


def test_a_writer_killed_at_any_time_loses_no_commit(tmp_path: Path) -> None:
    program = (
        "import sys; from pipeline.incidentlog import IncidentLog; from pipeline.incidents import Transition;"
        "from tests.uploads import incident; book = IncidentLog(sys.argv[1])\n"
        "for n in range(int(sys.argv[2]), 10**9):\n"
        "    book.record(Transition('opened', incident(n))); print(n, flush=True)"
    )
    last, kills = 0, 0
    for _ in range(5):
        said = tmp_path / "said"
        with said.open("wb") as output:
            command = [sys.executable, "-P", "-c", program, str(tmp_path), str(last + 1)]
            writer = subprocess.Popen(command, stdout=output, env={**os.environ, "PYTHONPATH": str(ROOT)})
        wait_until(lambda: said.read_bytes().count(b"\n") > 50, 20)  # noqa: B023
        writer.kill()
        kills += writer.wait(10) == -signal.SIGKILL
        acknowledged = [int(line) for line in said.read_text().rpartition("\n")[0].split()]
        with closing(IncidentLog(str(tmp_path))) as book:
            assert book._db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            (count,) = book._db.execute("SELECT MAX(number) FROM transitions").fetchone()
            assert acknowledged[-1] <= count <= acknowledged[-1] + 1
            last = count
    assert kills == 5


@pytest.mark.parametrize("size", [100, 5000, 20_000])
def test_random_bytes_are_no_log(tmp_path: Path, size: int) -> None:
    path = Path(tmp_path, FILE_NAME)
    path.write_bytes(os.urandom(size))
    with pytest.raises(sqlite3.DatabaseError) as caught:
        IncidentLog(str(tmp_path))
    assert is_damaged(caught.value)
    with pytest.raises(sqlite3.DatabaseError):
        read_open(str(tmp_path))
    assert set_aside(str(tmp_path)) == f"{path}.damaged"
    with closing(IncidentLog(str(tmp_path))) as book:
        assert book.record(opened()) == (1, True)


def test_a_row_that_cannot_be_read_does_not_hide_the_others(book: IncidentLog, tmp_path: Path) -> None:
    book.record(opened(1))
    book.record(opened(2, "stb2"))
    book._db.execute("UPDATE incidents SET body = ? WHERE id = ?", (os.urandom(50), incident(1).id))
    assert [found.id for found in read_open(str(tmp_path))] == [incident(2).id]


def test_an_error_within_a_transaction_leaves_none_open(book: IncidentLog) -> None:
    book.record(opened())
    with pytest.raises(sqlite3.Error), book._transaction():
        book._db.execute("INSERT INTO nowhere VALUES (1)")
    assert not book._db.in_transaction
    book.record(ended())
