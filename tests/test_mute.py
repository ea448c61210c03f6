"""Maintenance: what is muted is recorded and not reported, and what outlasts it is reported then."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import mutes
from tests.support import Rig, wait_until
from tests.uploads import (
    Desk,
    FakeHook,
    FakeStore,
    closed,
    evidence,
    incident,
    make_hold,
    make_settings,
    publish,
    rows,
)

HOUR_NS = 3600 * 10**9


def ask(service: Rig, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a service's directories."""
    places = [f"--runtime-dir={service.base / 'run'}", f"--state-dir={service.base / 'state'}"]
    command = [sys.executable, "-P", "-m", "pipeline", *words, *places]
    return subprocess.run(command, env=service.environment, capture_output=True, text=True, timeout=30)


def muted_desk(tmp_path: Path, hook: FakeHook) -> Desk:
    """A desk whose source stb1 is muted for an hour."""
    settings = make_settings(tmp_path)
    Path(settings.state_dir).mkdir()
    mutes.write(settings.state_dir, "stb1", time.time_ns() + HOUR_NS, time.time_ns())
    return Desk(settings, FakeStore(), hook)


def test_a_muted_incident_is_recorded_kept_and_told_to_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    desk = muted_desk(tmp_path, hook := FakeHook())
    hold = make_hold(desk.settings)
    publish(hold, incident(1))
    publish(hold, incident(2, "stb2"))
    publish(hold, closed(incident(1)), "closed")
    desk.settle()
    desk.settle()
    assert [key for key, _ in hook.posts] == [f"{incident(2).id}.opened"]
    assert set(evidence(desk.settings).values()) == {"stored"}
    assert rows(desk.settings, "SELECT id, muted FROM incidents ORDER BY id") == [
        (incident(1).id, 1),
        (incident(2).id, 0),
    ]
    desk.close()


def test_what_outlasts_the_mute_is_reported_once_and_its_end_too(tmp_path: Path) -> None:
    desk = muted_desk(tmp_path, hook := FakeHook())
    hold = make_hold(desk.settings)
    publish(hold, incident(1))
    desk.settle()
    assert not hook.posts
    mutes.write(desk.settings.state_dir, "stb1", 0, time.time_ns())
    for _ in range(3):
        desk.settle()
    assert [key for key, _ in hook.posts] == [f"{incident(1).id}.opened"]
    assert hook.posts[0][1]["muted"] is False and len(hook.posts[0][1]["evidence"]) == 6
    publish(hold, closed(incident(1)), "closed")
    desk.settle()
    assert [key for key, _ in hook.posts][1:] == [f"{incident(1).id}.closed"]
    assert set(evidence(desk.settings).values()) == {"stored"} and not desk.spool.jobs()
    desk.close()


def test_a_log_of_an_older_version_gets_its_column(tmp_path: Path) -> None:
    desk = Desk(make_settings(tmp_path), FakeStore())
    publish(make_hold(desk.settings), incident(1))
    desk.settle()
    book = desk.keeper._book
    assert book
    book._db.execute("ALTER TABLE incidents DROP COLUMN muted")
    desk.close()
    again = Desk(desk.settings, FakeStore())
    publish(make_hold(again.settings), closed(incident(1)), "closed")
    again.settle()
    assert rows(again.settings, "SELECT muted, closed_at IS NOT NULL FROM incidents") == [(0, 1)]
    again.close()


def test_mutes_end_are_forgotten_and_do_not_race(tmp_path: Path) -> None:
    state, now = str(tmp_path), time.time_ns()
    mutes.write(state, "old", now + 10, now)
    threads = [threading.Thread(target=mutes.write, args=(state, f"s{n}", now + HOUR_NS, now + 20)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(mutes.read(state)) == {f"s{n}" for n in range(20)}
    assert mutes.is_muted(state, "s1", now) and not mutes.is_muted(state, "s1", now + HOUR_NS)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": "b"}', bytes(range(256))])
def test_a_damaged_file_mutes_nobody(tmp_path: Path, content: bytes) -> None:
    (tmp_path / mutes.FILE_NAME).write_bytes(content)
    assert mutes.read(str(tmp_path)) == {}
    mutes.write(str(tmp_path), "a", time.time_ns() + HOUR_NS, time.time_ns())
    assert set(mutes.read(str(tmp_path))) == {"a"}


def test_what_may_not_be_read_mutes_nobody_and_stops_no_record(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    Path(settings.state_dir, mutes.FILE_NAME).mkdir(parents=True)  # unreadable to everybody, root included
    desk = Desk(settings, FakeStore(), hook := FakeHook())
    publish(make_hold(settings), incident(1))
    desk.settle()
    assert [key for key, _ in hook.posts] == [f"{incident(1).id}.opened"]
    desk.close()


@pytest.mark.slow
def test_the_commands(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1", STILLWATCH_REPORT_EVERY_S="1000") as service:
        assert ask(service, "mute").stdout == "nobody is muted\n"
        assert ask(service, "mute", "a", "30m").stdout.startswith("a: muted until ")
        assert "a" in ask(service, "mute").stdout
        wait_until(lambda: service.lines("incident opened"), 30, "it is silent")
        assert "INFO" in service.lines("incident opened")[0] and "muted=yes" in service.lines("incident opened")[0]
        listed = ask(service, "incidents", "--json")
        assert "unrecognized" in listed.stderr  # it knows no --runtime-dir
        state = [sys.executable, "-P", "-m", "pipeline", "incidents", "--json", f"--state-dir={service.base / 'state'}"]
        told = subprocess.run(state, env=service.environment, capture_output=True, text=True, timeout=30)
        assert json.loads(told.stdout)["muted"] is True
        assert ask(service, "unmute", "a").stdout == "a: reported again\n"
        late = wait_until(lambda: [li for li in service.lines("incident opened") if "WARNING" in li], 20, "told late")
        assert len(late) == 1


MISTAKES: list[tuple[tuple[str, ...], int, str]] = [
    (("mute", "b", "30m"), 66, "b: no such source; there are a"),
    (("mute", "a"), 66, "for how long?"),
    (("mute", "a", "soon"), 2, "not like 90s"),
    (("mute", "a", "99d"), 2, "more than 30 d"),
    (("unmute",), 2, "required"),
]


def test_mistakes_end_in_one_line(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1") as service:
        for words, code, told in MISTAKES:
            done = ask(service, *words)
            assert (done.returncode, told in done.stderr.splitlines()[-1]) == (code, True), done.stderr


def test_no_state_directory_is_said(tmp_path: Path) -> None:
    done = ask(Rig(tmp_path), "mute", "a", "1h")
    assert done.returncode == 66 and done.stderr.startswith(f"stillwatch: {tmp_path / 'state'}: no such directory")


@pytest.mark.parametrize("words", [("mute", "a", "1h"), ("unmute", "a")])
def test_a_file_that_cannot_be_written_is_71(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "state" / "mutes.json.new").mkdir(parents=True)
    done = ask(Rig(tmp_path), *words)
    assert done.returncode == 71 and done.stderr.count("\n") == 1 and "ask as the service's user" in done.stderr
