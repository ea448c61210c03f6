"""The evidence path: hold to log and spool (keeper), spool to store and webhook (sender), on good and bad days."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.clockgate import ClockGate
from pipeline.incidentlog import FILE_NAME
from pipeline.model import ConfigError
from pipeline.r2 import CONNECT_S, R2Store
from pipeline.spool import Job, Spool
from pipeline.store import Kind, LocalStore, R2Settings, StoreError, evidence_key
from pipeline.webhook import Webhook
from tests import uploads
from tests.machine import needs
from tests.s3_servers import ScriptedServer
from tests.support import wait_until
from tests.uploads import (
    CLOSED,
    OPENED,
    Desk,
    FakeHook,
    FakeStore,
    Post,
    S,
    UploaderProcess,
    all_files,
    closed,
    counters,
    disk,
    evidence,
    incident,
    make_hold,
    make_settings,
    publish,
    rows,
)

pytest_plugins = ("tests.s3_fixtures",)
Scripted = Callable[..., ScriptedServer]
SECRET = "testsecrettestsecret"


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What was logged."""
    caplog.set_level(logging.DEBUG, "stillwatch")
    yield caplog
    assert SECRET not in caplog.text


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A desk over a local store."""
    made = Desk(make_settings(tmp_path))
    yield made
    made.close()


def lines(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    """Logged lines with a text."""
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


# -- a good day ------------------------------------------------------------------------------------------------------


def test_an_incident_is_recorded_kept_stored_and_told(desk: Desk, told: pytest.LogCaptureFixture) -> None:
    hold = make_hold(desk.settings)
    publish(hold, incident())
    publish(hold, closed(incident()), "closed")
    assert desk.settle() is None
    assert desk.settle() is None
    assert set(evidence(desk.settings).values()) == {"stored"} and len(evidence(desk.settings)) == 2
    assert hold.waiting() == [] and desk.spool.jobs() == []
    home = evidence_key("black", "rig1", "stb1", incident().id, "")[: -len("/%")]
    files = all_files(Path(desk.settings.state_dir, "store", home))
    assert {name: data for name, data in files.items() if name != "incident.json"} == {**OPENED, **CLOSED}
    content = json.loads(files["incident.json"])
    assert (content["state"], content["duration_s"], content["reason"]) == ("closed", 30.0, "recovered")
    assert sorted(content["evidence"]) == sorted({**OPENED, **CLOSED})
    (refs,) = rows(desk.settings, "SELECT refs FROM incidents")
    assert json.loads(refs[0])["original_r2_paths"] == [f"{home}/frame_{n}.jpg" for n in range(4)]
    assert lines(told, "incident opened") == [
        f"incident opened source=stb1 condition=black id={incident().id} since=2026-11-22T08:37:51.000000+00:00"
    ]
    assert "duration_s=30.0 frames='148 of 150 frames, longest gap 0.6 s' reason=recovered" in told.text
    assert {record.levelname for record in told.records if "incident opened" in record.getMessage()} == {"WARNING"}


def test_a_transition_that_comes_twice_is_recorded_kept_and_told_once(
    desk: Desk, told: pytest.LogCaptureFixture
) -> None:
    hold = make_hold(desk.settings)
    for _ in range(2):
        publish(hold, incident())
        desk.settle()
    publish(hold, incident())
    desk.keep()
    assert len(evidence(desk.settings)) == 1 and len(lines(told, "incident opened")) == 1
    assert desk.spool.jobs() == [] and hold.waiting() == []


class Killed(BaseException):
    """The end of a process, at the call that was patched."""


def kill(*_: object) -> None:
    raise Killed


@pytest.mark.parametrize("step", ["record", "set_kept", "remove", "removed"])
def test_a_kill_between_two_steps_is_made_good(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = shutil.rmtree

    def kill_at_last(path: str, **options: Any) -> None:
        if os.path.basename(path).startswith(".done-"):
            raise Killed
        remove(path, **options)

    desk = Desk(make_settings(tmp_path))
    hold = make_hold(desk.settings)
    publish(hold, incident())
    with monkeypatch.context() as patch:
        if step == "remove":
            patch.setattr("pipeline.hold.Hold.remove", kill)
        elif step == "removed":
            patch.setattr(shutil, "rmtree", kill_at_last)
        elif step == "set_kept":
            patch.setattr("pipeline.incidentlog.IncidentLog.set_kept", kill)
        else:
            patch.setattr("pipeline.spool.Spool.keep", kill)
        with pytest.raises(Killed):
            desk.keep()
    desk.close()
    again = Desk(desk.settings)
    again.settle()
    assert evidence(desk.settings) == {(incident().id, "opened"): "stored"}
    assert counters(desk.settings) == {}
    assert os.listdir(hold.path) == [".runs"]
    again.close()


def test_a_sender_quicker_than_the_keeper_after_a_kill_costs_no_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job that is in the spool, and a keeper that was killed before it could write that down
    desk = Desk(make_settings(tmp_path))
    hold = make_hold(desk.settings)
    publish(hold, incident())
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("pipeline.incidentlog.IncidentLog.set_kept", kill)
        desk.keep()
    desk.close()
    # When the next sender is done with that job before the next keeper begins, and the incident ends
    again = Desk(desk.settings)
    again.send()
    again.keep()
    assert set(evidence(again.settings).values()) == {"stored"} and hold.waiting() == []
    publish(hold, closed(incident()), "closed")
    again.settle()
    again.close()
    # Then its last JSON names the evidence of the beginning as well
    home = evidence_key("black", "rig1", "stb1", incident().id, "incident.json")
    content = json.loads(Path(again.settings.state_dir, "store", home).read_bytes())
    assert (content["state"], sorted(content["evidence"])) == ("closed", sorted({**OPENED, **CLOSED}))


def test_open_incidents_of_unknown_sources_of_this_host_are_closed(tmp_path: Path) -> None:
    first = Desk(make_settings(tmp_path))
    hold = make_hold(first.settings)
    for number, (source, host) in enumerate([("stb1", "rig1"), ("gone", "rig1"), ("gone", "rig2")], 1):
        publish(hold, incident(number, source, host=host))
    first.keep()
    first.close()
    second = Desk(first.settings)
    second.settle()
    found = rows(first.settings, "SELECT source, host, closed_at IS NOT NULL, reason FROM incidents ORDER BY id")
    assert found == [
        ("stb1", "rig1", 0, ""),
        ("gone", "rig1", 1, "source no longer configured"),
        ("gone", "rig2", 0, ""),
    ]
    second.close()


def test_never_two_open_for_one_source_and_condition(desk: Desk) -> None:
    hold = make_hold(desk.settings)
    publish(hold, incident(1))
    publish(hold, incident(2))
    publish(hold, incident(3, "stb2"))
    desk.keep()
    assert rows(desk.settings, "SELECT id, reason FROM incidents WHERE closed_at IS NOT NULL") == [
        (incident(1).id, "superseded")
    ]


# -- bad days of the network -----------------------------------------------------------------------------------------


def test_a_retry_waits_longer_each_time_says_little_and_recovers(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    store = FakeStore([Kind.RETRY] * 6)
    desk = Desk(make_settings(tmp_path), store)
    publish(make_hold(desk.settings), incident())
    desk.keep()
    waits = []
    while wait_s := desk.send():
        waits.append(wait_s)
        desk.pass_s(wait_s + 1)
    assert len(waits) == 6
    for n, wait_s in enumerate(waits):
        assert 2**n / 2 - 0.1 <= wait_s <= 2**n
    assert 1 <= len(lines(told, "uploads failed")) <= 3
    assert lines(told, "recovered") == ["recovered what=uploads failures=6"]
    desk.keep()
    assert evidence(desk.settings) == {(incident().id, "opened"): "stored"}
    desk.close()


def test_a_network_that_works_every_other_time_is_told_of_twice_a_minute(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    jobs = 100
    store = FakeStore([Kind.RETRY, *[None] * len(OPENED), None] * jobs)
    desk = Desk(make_settings(tmp_path), store)
    hold, begun_ns = make_hold(desk.settings), desk.now_ns
    for n in range(jobs):
        publish(hold, incident(n, f"source{n}"))
        while wait_s := desk.settle():
            desk.pass_s(wait_s + 1)
    assert not store.script and set(evidence(desk.settings).values()) == {"stored"}
    half_minutes = (desk.now_ns - begun_ns) // (30 * S) + 1
    assert half_minutes * 3 < jobs, "else nothing could be seen"
    assert 1 <= len(lines(told, "uploads failed")) <= half_minutes
    assert 1 <= len(lines(told, "recovered")) <= half_minutes
    desk.close()


def test_what_is_stored_of_a_job_is_not_sent_again_when_the_rest_fails(tmp_path: Path) -> None:
    store = FakeStore([None, Kind.RETRY] * 50)
    desk = Desk(make_settings(tmp_path), store)
    publish(make_hold(desk.settings), incident())
    desk.keep()
    while wait_s := desk.send():
        desk.pass_s(wait_s + 1)
    desk.keep()
    assert evidence(desk.settings) == {(incident().id, "opened"): "stored"}
    assert len(store.objects) == len(OPENED) + 1 and len(store.puts) == 2 * len(store.objects) - 1
    desk.close()


class Picky(FakeStore):
    """A store that never takes one source's evidence."""

    def put(self, key: str, data: bytes, content_type: str) -> None:
        if "/stb1/" in key:
            self.puts.append(key)
            raise StoreError("put", key, "500 InternalError", "try again later", Kind.RETRY)
        super().put(key, data, content_type)


def test_a_job_that_is_never_taken_holds_up_its_own_source_only(tmp_path: Path) -> None:
    store = Picky()
    desk = Desk(make_settings(tmp_path), store)
    hold = make_hold(desk.settings)
    for number, source in enumerate(("stb1", "stb1", "tv", "stb2")):
        publish(hold, incident(number, source))
    desk.keep()
    for _ in range(20):
        desk.pass_s(400)
        desk.settle()
    told = evidence(desk.settings)
    assert [told[incident(n).id, "opened"] for n in range(4)] == ["kept", "kept", "stored", "stored"]
    tried = {key.split("/")[4] for key in store.puts if "/stb1/" in key}
    assert tried == {incident(0).id}, "the second waits for the first: they are told of in order"
    again = len(store.puts)
    desk.pass_s(400)
    desk.settle()
    assert len(store.puts) == again + 1, "it is still tried"
    desk.close()


def test_a_pause_keeps_everything_and_tries_every_five_minutes(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    store = FakeStore([Kind.PAUSE] * 2)
    desk = Desk(make_settings(tmp_path), store)
    hold = make_hold(desk.settings)
    publish(hold, incident(1))
    publish(hold, incident(2, "stb2"))
    desk.keep()
    assert 299 < (desk.send() or 0) <= 300
    desk.pass_s(200)
    assert len(store.puts) == 1 and 99 < (desk.send() or 0) < 101
    assert len(store.puts) == 1
    desk.pass_s(101)
    desk.send()
    assert len(store.puts) == 2 and len(desk.spool.jobs()) == 2
    assert [r.levelname for r in told.records if "uploads paused" in r.getMessage()] == ["ERROR", "ERROR"]
    desk.pass_s(301)
    desk.settle()
    assert set(evidence(desk.settings).values()) == {"stored"}
    desk.close()


def test_a_pause_is_said_at_once_also_behind_other_failures(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    """A person must mend it, and nothing is tried for five minutes."""
    desk = Desk(make_settings(tmp_path), FakeStore([Kind.RETRY, Kind.PAUSE, Kind.PAUSE]))
    publish(make_hold(desk.settings), incident())
    desk.keep()
    for _ in range(3):
        desk.pass_s((desk.send() or 0) + 1)  # the time that the try itself took counts as well
    assert len(lines(told, "uploads failed")) == 1
    assert [r.levelname for r in told.records if "uploads paused" in r.getMessage()] == ["ERROR", "ERROR"]
    desk.close()


def test_a_dead_letter_is_set_aside_and_the_next_goes_on(tmp_path: Path) -> None:
    desk = Desk(make_settings(tmp_path), FakeStore([Kind.DEAD_LETTER]), hook := FakeHook())
    hold = make_hold(desk.settings)
    publish(hold, incident(1))
    publish(hold, incident(2, "stb2"))
    desk.settle()
    desk.settle()
    assert evidence(desk.settings) == {(incident(1).id, "opened"): "refused", (incident(2).id, "opened"): "stored"}
    assert counters(desk.settings) == {"evidence_refused": 1}
    assert len(os.listdir(os.path.join(desk.spool.path, ".bad"))) == 1
    assert len(hook.posts) == 2
    desk.close()


def test_a_dead_webhook_hides_nothing_that_is_stored(tmp_path: Path) -> None:
    """The row knows where its evidence is, and what waits for the webhook alone takes little room, and loses none."""
    store, hook = FakeStore(), FakeHook([Kind.PAUSE] * 99)
    desk = Desk(make_settings(tmp_path), store, hook)
    hold = make_hold(desk.settings)
    publish(hold, incident(1))
    for _ in range(3):
        desk.settle()
    assert evidence(desk.settings) == {(incident(1).id, "opened"): "stored"}
    assert b"frame_0.jpg" in rows(desk.settings, "SELECT refs FROM incidents")[0][0].encode()
    job = Path(desk.spool.jobs()[0])
    assert sorted(os.listdir(job)) == [".uploaded", "incident.json", "manifest.json"]
    desk.close()
    again = Desk(desk.settings, store, hook)  # the next uploader finds nothing else to do
    puts = len(store.puts)
    again.settle()
    again.pass_s(400)
    hook.script.clear()
    for _ in range(3):
        again.settle()
    assert [key for key, _ in hook.posts] == [f"{incident(1).id}.opened"] and len(store.puts) == puts
    assert not again.spool.jobs() and set(evidence(desk.settings).values()) == {"stored"}
    again.close()


def test_a_notice_that_is_given_up_is_no_lost_evidence(tmp_path: Path) -> None:
    desk = Desk(make_settings(tmp_path), FakeStore(), FakeHook([Kind.PAUSE] * 99))
    publish(make_hold(desk.settings), incident(1))
    desk.settle()
    desk.settle()
    desk.close()
    tight = Desk(make_settings(tmp_path, spool_max_bytes=10), FakeStore(), FakeHook([Kind.PAUSE] * 99))
    tight.settle()
    tight.pass_s(100)
    tight.settle()
    assert not tight.spool.jobs() and counters(tight.settings) == {"notices_dropped_bytes": 1}
    assert set(evidence(tight.settings).values()) == {"stored"}
    tight.close()


def test_a_notice_that_the_webhook_refuses_for_ever_is_counted_once(tmp_path: Path) -> None:
    desk = Desk(make_settings(tmp_path), FakeStore(), hook := FakeHook([Kind.DEAD_LETTER]))
    hold = make_hold(desk.settings)
    publish(hold, incident(1))
    publish(hold, incident(2, "stb2"))
    desk.settle()
    desk.settle()
    assert [key for key, _ in hook.posts] == [f"{incident(2).id}.opened"]
    assert counters(desk.settings) == {"notices_refused": 1}
    assert set(evidence(desk.settings).values()) == {"stored"} and not desk.spool.jobs()
    desk.close()


def test_webhook_and_uploads_do_not_wait_for_each_other(tmp_path: Path) -> None:
    store, hook = FakeStore(), FakeHook([Kind.RETRY] * 3)
    desk = Desk(make_settings(tmp_path), store, hook)
    hold = make_hold(desk.settings)
    publish(hold, incident(1))
    publish(hold, closed(incident(1)), "closed")
    publish(hold, incident(2))
    desk.keep()
    desk.send()
    assert len([key for key in store.puts if key.endswith("incident.json")]) == 3 and not hook.posts
    assert len(desk.spool.jobs()) == 3
    desk.close()
    again = Desk(desk.settings, store, hook)  # what is uploaded is not uploaded again
    puts = len(store.puts)
    again.keep()
    while wait_s := again.send():
        again.pass_s(wait_s + 1)
    assert [key for key, _ in hook.posts] == [
        f"{incident(1).id}.opened",
        f"{incident(1).id}.closed",
        f"{incident(2).id}.opened",
    ]
    assert len(store.puts) == puts
    again.keep()
    assert set(evidence(desk.settings).values()) == {"stored"}
    again.close()


def test_a_black_store_does_not_keep_the_webhook_waiting(tmp_path: Path) -> None:
    desk = Desk(make_settings(tmp_path), FakeStore([Kind.PAUSE] * 9), hook := FakeHook())
    hold = make_hold(desk.settings)
    for number in range(3):
        publish(hold, incident(number, "stb1" if number else "stb2"))
    desk.keep()
    desk.send()
    assert len(hook.posts) == 3 + 1  # the first of stb1 is superseded by the second
    desk.close()


# -- the clock -------------------------------------------------------------------------------------------------------


def test_nothing_is_sent_to_r2_before_the_clock_is_set(tmp_path: Path) -> None:
    """Row 43: adjtimex says 5, then 0."""
    state, asked, store = [5], [], FakeStore()

    def ask() -> int | None:
        asked.append(1)
        raise StoreError("head", "bucket", "network is unreachable", "", Kind.RETRY)

    desk = Desk(make_settings(tmp_path), store, gate=ClockGate(ask, lambda: state[0] != 5), synchronised=False)
    publish(make_hold(desk.settings), incident())
    desk.keep()
    for _ in range(60):
        wait_s = desk.send()
        assert wait_s and wait_s <= 10
        desk.pass_s(wait_s)
    assert store.puts == [] and 8 <= len(asked) <= 10  # 600 s
    assert evidence(desk.settings) == {(incident().id, "opened"): "kept"}
    state[0] = 0
    desk.settle()
    assert store.objects and set(evidence(desk.settings).values()) == {"stored"}
    assert json.loads(store.objects[next(k for k in store.objects if "json" in k)])["clock_synchronised"] is False
    desk.close()


@pytest.mark.parametrize(("skew_s", "opens"), [(250, True), (-250, True), (400, False), (-7200, False)])
def test_a_server_date_within_minutes_ends_the_wait(tmp_path: Path, skew_s: int, opens: bool) -> None:
    store = FakeStore()
    gate = ClockGate(lambda: time.time_ns() - skew_s * S, lambda: False)
    desk = Desk(make_settings(tmp_path), store, gate=gate)
    publish(make_hold(desk.settings), incident())
    desk.keep()
    desk.send()
    assert bool(store.puts) is opens
    desk.close()


def test_a_skewed_clock_waits_less_than_a_request_a_minute_and_says_by_how_much(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    """Row 44: the server refuses our time although the kernel calls it synchronised."""
    store = FakeStore([Kind.CLOCK], date_ns=time.time_ns() - 7200 * S)
    asked: list[int] = []
    skew = [7200]

    def ask() -> int | None:
        asked.append(1)
        return time.time_ns() - skew[0] * S

    desk = Desk(make_settings(tmp_path), store, gate=ClockGate(ask, lambda: True))
    publish(make_hold(desk.settings), incident())
    desk.keep()
    while desk.now_ns < 600 * S:
        desk.pass_s(desk.send() or 1)
    assert len(store.puts) == 1 and 1 <= len(asked) <= 10
    assert "skew_s=7200" in lines(told, "uploads wait for the clock")[0]
    skew[0] = 0
    desk.pass_s(61)
    desk.settle()
    assert set(evidence(desk.settings).values()) == {"stored"}
    assert len(lines(told, "recovered what=clock")) == 1
    desk.close()


def test_the_local_store_waits_for_no_clock(tmp_path: Path) -> None:
    desk = Desk(make_settings(tmp_path), synchronised=False)
    publish(make_hold(desk.settings), incident())
    assert desk.settle() is None
    assert set(evidence(desk.settings).values()) == {"stored"}
    desk.close()


# -- against servers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", params=["seaweedfs", "rclone"])
def server(request: pytest.FixtureRequest) -> R2Settings:
    """Settings of a real server."""
    settings: R2Settings = request.getfixturevalue(request.param)
    return settings


def test_evidence_reaches_a_real_server_byte_for_byte(tmp_path: Path, server: R2Settings) -> None:
    desk = Desk(make_settings(tmp_path), store := R2Store(server))
    hold = make_hold(desk.settings)
    for number in range(1, 4):
        publish(hold, incident(number, condition="freeze"))
        publish(hold, closed(incident(number, condition="freeze")), "closed")
    desk.settle()
    assert set(evidence(desk.settings).values()) == {"stored"}
    for number in range(1, 4):
        for name, data in {**OPENED, **CLOSED}.items():
            assert store.get(evidence_key("freeze", "rig1", "stb1", incident(number).id, name)) == data
        about = store.get(evidence_key("freeze", "rig1", "stb1", incident(number).id, "incident.json"))
        assert json.loads(about)["state"] == "closed"
    assert abs((store.server_date_ns() or 0) - time.time_ns()) < 60 * S
    store.close()
    desk.close()


@pytest.mark.parametrize("wrong", [{"secret_access_key": "x" * 40}, {"bucket": "missing"}], ids=["key", "bucket"])
def test_a_wrong_key_or_bucket_pauses_and_a_right_one_resumes(
    tmp_path: Path, seaweedfs: R2Settings, wrong: dict[str, str], told: pytest.LogCaptureFixture
) -> None:
    """Row 45: nothing is lost, and a restart of the uploader alone mends it."""
    bad = R2Store(R2Settings(**{**{f: getattr(seaweedfs, f) for f in seaweedfs.__dataclass_fields__}, **wrong}))
    desk = Desk(make_settings(tmp_path), bad)
    publish(make_hold(desk.settings), incident(77))
    desk.keep()
    assert (desk.send() or 0) > 290 and lines(told, "uploads paused")
    assert len(desk.spool.jobs()) == 1
    desk.close()
    bad.close()
    again = Desk(desk.settings, good := R2Store(seaweedfs))
    again.settle()
    assert set(evidence(desk.settings).values()) == {"stored"}
    good.close()
    again.close()


def test_bursts_resets_cuts_and_hangs_end_with_one_object_per_key(
    tmp_path: Path, scripted: Scripted, s3: Any, told: pytest.LogCaptureFixture
) -> None:
    """Row 46."""
    faults = [s3.answer(429, "TooManyRequests"), s3.answer(503, "SlowDown"), s3.reset, s3.answer(500, "Oops"), s3.hang]
    server = scripted(*faults, s3.stored)
    store = R2Store(server.settings, connect_s=0.5, read_s=0.5)
    desk = Desk(make_settings(tmp_path), store)
    publish(make_hold(desk.settings), incident())
    desk.keep()
    while wait_s := desk.send():
        desk.pass_s(wait_s + 1)
    assert lines(told, "recovered") == [f"recovered what=uploads failures={len(faults)}"]
    assert desk.now_ns > (0.5 * (2**5 - 1)) * S
    desk.keep()
    assert set(evidence(desk.settings).values()) == {"stored"}
    done = [request.path for request in server.requests[len(faults) :]]
    assert len(done) == len(set(done)) == len(OPENED) + 1
    store.close()
    desk.close()


def test_a_black_hole_does_not_delay_the_keeper(tmp_path: Path, scripted: Scripted) -> None:
    """Row 48: the sender hangs in its PUT, incidents are recorded and kept as fast as ever."""
    server = scripted(deaf="after TLS")
    settings = make_settings(tmp_path)
    hold = make_hold(settings)
    with UploaderProcess(tmp_path, settings, server.settings) as uploader:
        delays = []
        for number in range(1, 11):
            begun = time.monotonic()
            publish(hold, incident(number, condition="black" if number % 2 else "freeze"))
            uploader.keeper_bell.ring()
            wait_until(lambda: not hold.waiting(), 20)
            delays.append(time.monotonic() - begun)
        assert server._threads[1:], "nobody has called the deaf server"
        assert max(delays) < CONNECT_S, delays
        assert uploader.stop() < CONNECT_S, "nobody waits for the network"
    kept = evidence(settings)
    assert set(kept.values()) == {"kept"} and len([k for k in kept if k[1] == "opened"]) == 10
    assert SECRET not in uploader.log


# -- the process -------------------------------------------------------------------------------------------------------


def test_the_uploader_works_when_rung_and_is_small(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    hold = make_hold(settings)
    with UploaderProcess(tmp_path, settings) as uploader:
        publish(hold, incident())
        uploader.keeper_bell.ring()
        wait_until(lambda: evidence_or_nothing(settings) == {(incident().id, "opened"): "stored"}, 20)
        maps = Path(f"/proc/{uploader.popen.pid}/maps").read_text()
        assert "_cv2" not in maps and "cv2" not in maps and "_ssl" not in maps
        rss_mib = psutil.Process(uploader.popen.pid).memory_info().rss / 2**20
        assert rss_mib <= 27, rss_mib  # 25 without typing_extensions, which tools for tests bring and msgspec loads
        assert psutil.Process(uploader.popen.pid).num_threads() == 2
        assert uploader.stop() < CONNECT_S


def test_what_is_held_when_it_is_stopped_is_kept(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, source=())
    hold = make_hold(settings)
    with UploaderProcess(tmp_path, settings) as uploader:
        wait_until(lambda: evidence_or_nothing(settings) == {} and Path(settings.state_dir, FILE_NAME).exists(), 20)
        for number in range(5):  # nobody rings
            publish(hold, incident(number, f"s{number}"))
        assert uploader.stop() < CONNECT_S
    assert hold.waiting() == [] and len(evidence(settings)) == 5


def test_an_idle_uploader_sleeps(tmp_path: Path) -> None:
    """No wake-up beyond the heartbeat, not even after trouble."""
    settings = make_settings(tmp_path, hang_s=1.0)
    hold = make_hold(settings)
    os.makedirs(os.path.join(settings.state_dir, FILE_NAME))  # no log can be opened
    with UploaderProcess(tmp_path, settings) as uploader:
        wait_until(lambda: "incidents not kept" in uploader.log, 20)
        os.rmdir(os.path.join(settings.state_dir, FILE_NAME))
        publish(hold, incident())
        uploader.keeper_bell.ring()
        wait_until(lambda: evidence_or_nothing(settings) == {(incident().id, "opened"): "stored"}, 30)
        assert "recovered what='keeping incidents'" in uploader.log
        wait_until(lambda: not os.listdir(os.path.join(settings.state_dir, "spool")), 30)  # the work ends after the row
        beaten = uploader.row.heartbeat_ns
        wait_until(lambda: uploader.row.heartbeat_ns != beaten, 30)
        process, beats = psutil.Process(uploader.popen.pid), set[int]()

        def has_beaten() -> bool:
            beats.add(uploader.row.heartbeat_ns)
            return len(beats) > 6

        woken, used = process.num_ctx_switches().voluntary, sum(process.cpu_times()[:2])
        wait_until(has_beaten, 30)
        assert process.num_ctx_switches().voluntary - woken <= 2 * len(beats)
        assert sum(process.cpu_times()[:2]) - used <= 0.05
        uploader.stop()


def test_r2_costs_boto3_and_no_more(tmp_path: Path, seaweedfs: R2Settings) -> None:
    settings = make_settings(tmp_path)
    hold = make_hold(settings)
    with UploaderProcess(tmp_path, settings, seaweedfs) as uploader:
        if "wait for the clock" not in uploader.log:
            publish(hold, incident(8))
            uploader.keeper_bell.ring()
            wait_until(
                lambda: evidence_or_nothing(settings) == {(incident(8).id, "opened"): "stored"}, 15, uploader.log
            )
        rss_mib = psutil.Process(uploader.popen.pid).memory_info().rss / 2**20
        assert rss_mib <= 60, rss_mib
        words = Path(f"/proc/{uploader.popen.pid}/cmdline").read_bytes()
        assert SECRET.encode() not in words and SECRET not in uploader.log


def evidence_or_nothing(settings: Any) -> dict[tuple[str, str], str]:
    try:
        return evidence(settings)
    except sqlite3.Error:
        return {}


def test_sigkill_in_mid_put_sends_the_same_again(tmp_path: Path, scripted: Scripted, s3: Any) -> None:
    """Row 8: the server has the first files, and hangs in the third."""
    settings = make_settings(tmp_path)
    publish(make_hold(settings), incident())
    hanging = scripted(s3.answer(200), s3.stored, s3.stored, s3.hang)  # the first one asks for the clock
    with UploaderProcess(tmp_path, settings, hanging.settings) as uploader:
        wait_until(lambda: len([r for r in hanging.requests if r.method == "PUT"]) >= 3, 20, uploader.log)
        uploader.kill()
    first = [r for r in hanging.requests if r.method == "PUT"]
    assert evidence(settings) == {(incident().id, "opened"): "kept"}
    port = scripted(s3.stored)
    with UploaderProcess(tmp_path, settings, port.settings) as uploader:
        wait_until(lambda: evidence(settings) == {(incident().id, "opened"): "stored"}, 20, uploader.log)
        assert uploader.stop() < 1.5
    second = [r for r in port.requests if r.method == "PUT"]
    assert [r.path for r in second[:3]] == [r.path for r in first]
    assert [r.body for r in second[:3]] == [r.body for r in first]
    assert len({r.path for r in second}) == len(second) == len(OPENED) + 1
    assert uploader.log.count("incident opened") == 1


def test_kills_while_incidents_come_lose_and_double_nothing(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, source=())
    hold = make_hold(settings)
    deaths = 0
    for round_number in range(6):
        with UploaderProcess(tmp_path, settings) as uploader:
            for number in range(10):
                publish(hold, incident(round_number * 10 + number, f"s{round_number * 10 + number}"))
                uploader.keeper_bell.ring()
            wait_until(lambda: len(hold.waiting()) <= 7, 20)
            uploader.kill()
            deaths += 1
    assert deaths == 6 and hold.waiting()
    with UploaderProcess(tmp_path, settings) as uploader:
        wait_until(lambda: list(evidence(settings).values()).count("stored") == 60, 20)
        uploader.stop()
    assert hold.waiting() == [] and len(evidence(settings)) == 60 and counters(settings) == {}
    files = all_files(Path(settings.state_dir, "store"))
    assert len(files) == 60 * (len(OPENED) + 1) and all(files.values())


# -- bad days of the disk --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_times_the_bound_stays_within_it_and_keeps_every_row(tmp_path: Path) -> None:
    """Row 49: 24 h offline, compressed."""
    bound = 40 * sum(map(len, OPENED.values()))
    store = FakeStore([Kind.RETRY] * 10**6)
    desk = Desk(make_settings(tmp_path, spool_max_bytes=bound, source=()), store)
    hold = make_hold(desk.settings)
    keep, sizes = desk.spool.keep, list[int]()

    def keep_and_look(*job: Any) -> str:  # where the spool is biggest
        folder = keep(*job)
        sizes.append(sum(map(len, all_files(Path(desk.spool.path)).values())) if len(sizes) % 20 == 0 else 0)
        return folder

    desk.spool.keep = keep_and_look  # type: ignore[method-assign, assignment]
    for number in range(400):
        publish(hold, incident(number, f"s{number}"))
        desk.keep()
    biggest = max(sizes)
    assert 0 < biggest <= bound
    found = list(evidence(desk.settings).items())
    dropped = [key for key, where in found if where == "dropped:bytes"]
    kept = [key for key, where in found if where == "kept"]
    assert len(found) == 400 and len(dropped) + len(kept) == 400 and len(dropped) >= 360
    assert min(kept) > max(dropped)  # the oldest went
    assert counters(desk.settings) == {"evidence_dropped_bytes": len(dropped)}
    assert rows(desk.settings, "SELECT COUNT(*) FROM incidents") == [(400,)]
    desk.close()


def test_what_was_given_up_is_not_named_by_what_comes_after_it(tmp_path: Path) -> None:
    """The closing names the opening's evidence, which gives way before either is stored; then R2 works again."""
    bound = 2 * sum(map(len, OPENED.values()))
    store, hook = FakeStore([Kind.PAUSE] * 50), FakeHook([Kind.PAUSE] * 50)
    desk = Desk(make_settings(tmp_path, spool_max_bytes=bound, source=()), store, hook)
    hold = make_hold(desk.settings)
    publish(hold, incident(1))
    publish(hold, closed(incident(1)), "closed", {"frame_3.jpg": b"recovery", "thumb_3.jpg": b"small"})
    publish(hold, incident(2, "tv"))
    desk.settle()
    assert evidence(desk.settings)[incident(1).id, "opened"] == "dropped:bytes"
    store.script, hook.script = [], []
    desk.pass_s(400)
    desk.settle()
    (key,) = [key for key in store.objects if incident(1).id in key and key.endswith("incident.json")]
    told = json.loads(store.objects[key])
    assert set(told["evidence"]) == {"frame_3.jpg", "thumb_3.jpg"}
    assert {*told["original_r2_paths"], *told["thumbnail_r2_paths"]} == set(store.objects) - {key} - {
        other for other in store.objects if incident(2).id in other
    }
    assert [body["evidence"].keys() for name, body in hook.posts if incident(1).id in name] == [told["evidence"].keys()]
    desk.close()


def test_what_is_stored_stays_named_when_only_its_notice_is_given_up(tmp_path: Path) -> None:
    """The opening is uploaded, its notice waits for the webhook and gives way; the closing names all evidence."""
    small = {"frame_3.jpg": b"recovery", "thumb_3.jpg": b"small"}
    bound = sum(map(len, OPENED.values())) + 8000  # with its manifest: one opening alone
    store, hook = FakeStore(), FakeHook([Kind.PAUSE] * 50)
    desk = Desk(make_settings(tmp_path, spool_max_bytes=bound, source=()), store, hook)
    hold = make_hold(desk.settings)
    publish(hold, incident(1))
    desk.keep()
    desk.send()  # and the keeper does not know of it yet
    publish(hold, closed(incident(1)), "closed", small)
    publish(hold, incident(2, "tv"))
    hook.script = []
    desk.pass_s(400)
    for _ in range(3):
        desk.settle()
    assert counters(desk.settings) == {"notices_dropped_bytes": 1}
    assert {evidence(desk.settings)[incident(1).id, kind] for kind in ("opened", "closed")} == {"stored"}
    (key,) = [key for key in store.objects if incident(1).id in key and key.endswith("incident.json")]
    assert set(json.loads(store.objects[key])["evidence"]) == {*OPENED, *small}
    desk.close()


def test_what_the_local_store_gave_up_before_a_kill_is_written_down_after_it(tmp_path: Path) -> None:
    desk = Desk(make_settings(tmp_path, source=()))
    hold = make_hold(desk.settings)
    for number in (1, 2):
        publish(hold, incident(number, f"s{number}"))
    desk.settle()
    desk.close()
    (gone,) = Path(desk.settings.state_dir, "store").rglob(incident(1).id)
    (gone / "frame_1.jpg").unlink()
    again = Desk(desk.settings)
    again.keep()
    assert [evidence(desk.settings)[incident(n).id, "opened"] for n in (1, 2)] == ["dropped:lost", "stored"]
    assert counters(desk.settings) == {"store_dropped_lost": 1}
    again.close()


def test_a_job_that_may_not_be_read_holds_up_nobody(tmp_path: Path) -> None:
    """Somebody replayed into the service's directory as root."""
    store = FakeStore()
    desk = Desk(make_settings(tmp_path, source=()), store)
    hold = make_hold(desk.settings)
    for number, source in enumerate(("stb1", "tv")):
        publish(hold, incident(number, source))
    desk.keep()
    first = desk.spool.jobs()[0]
    plain = Spool.load

    def refuse(spool: Spool, folder: str) -> Job:
        if folder == first:
            raise PermissionError(errno.EACCES, "Permission denied")
        return plain(spool, folder)

    desk.spool.load = refuse.__get__(desk.spool)  # type: ignore[method-assign]
    for _ in range(12):
        desk.pass_s(400)
        desk.settle()
    assert [evidence(desk.settings)[incident(n).id, "opened"] for n in (0, 1)] == ["kept", "stored"]
    desk.close()


def test_the_local_store_is_bounded_too(tmp_path: Path) -> None:
    bound = 10 * (sum(map(len, OPENED.values())) + 1500)
    desk = Desk(make_settings(tmp_path, store_max_bytes=bound, source=()))
    hold = make_hold(desk.settings)
    for number in range(40):
        publish(hold, incident(number, f"s{number}"))
        desk.settle()
    left = sum(map(len, all_files(Path(desk.settings.state_dir, "store")).values()))
    assert 0 < left <= bound
    found = evidence(desk.settings)
    gone = [key for key, where in found.items() if where == "dropped:bytes"]
    assert counters(desk.settings) == {"store_dropped_bytes": len(gone)} and len(gone) >= 28
    assert max(gone) < min(key for key, where in found.items() if where == "stored")
    assert rows(desk.settings, f"SELECT refs FROM incidents WHERE id = '{gone[0][0]}'") == [("{}",)]
    desk.close()


def test_age_counts_only_while_somebody_keeps_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_settings(tmp_path, spool_max_age_s=3600.0)
    hold = make_hold(settings)
    desk = Desk(settings, FakeStore([Kind.PAUSE] * 9))
    publish(hold, incident(1))
    desk.keep()
    desk.close()
    later = time.time_ns() + 3 * 3600 * S
    monkeypatch.setattr("pipeline.keeper.time.time_ns", lambda: later)
    unsynchronised = Desk(settings, FakeStore([Kind.PAUSE] * 9), synchronised=False)
    publish(hold, incident(2, "stb2"))
    unsynchronised.keep()
    assert set(evidence(settings).values()) == {"kept"}
    unsynchronised.close()
    again = Desk(settings, FakeStore([Kind.PAUSE] * 9))
    again.keep()
    assert evidence(settings) == {(incident(1).id, "opened"): "dropped:age", (incident(2).id, "opened"): "kept"}
    later += 30 * 86400 * S  # the first step of NTP
    again.pass_s(3600)
    again.keep()
    assert evidence(settings)[incident(2).id, "opened"] == "kept"
    again.close()


@needs("mkfs.ext4", "losetup")
def test_a_full_disk_is_waited_for_and_can_be_freed(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    """Row 50: the disk of others is full; when there is evidence to give up, that is given up instead."""
    with disk(tmp_path) as point:
        desk = Desk(make_settings(tmp_path, state_dir=str(point / "state")), FakeStore([Kind.PAUSE] * 99))
        hold = make_hold(desk.settings)
        publish(hold, incident(1, "stb1"))
        desk.keep()
        (point / "ballast").write_bytes(b"")
        with (point / "ballast").open("wb") as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
                file.flush()
        publish(hold, incident(2, "stb2"), files={"frame_0.jpg": os.urandom(200_000)})
        for _ in range(20):
            desk.keep()
            desk.pass_s(31)
        assert len(lines(told, "incidents not kept")) >= 1
        assert len(hold.waiting()) == 1, "nothing but the ballast could be freed"
        assert desk.spool.jobs() == []  # given up to make room
        (point / "ballast").unlink()
        desk.keep()
        assert hold.waiting() == []
        assert evidence(desk.settings)[incident(2).id, "opened"] == "kept"
        assert evidence(desk.settings)[incident(1).id, "opened"] == "dropped:free_space"
        assert len(lines(told, "recovered what='keeping incidents'")) == 1
        desk.close()


@needs("mkfs.ext4", "losetup")
def test_a_disk_full_of_our_own_evidence_frees_itself(tmp_path: Path) -> None:
    """Row 50: where SQLite cannot even delete a row, files are unlinked."""
    with disk(tmp_path) as point:
        settings = make_settings(tmp_path, state_dir=str(point / "state"), source=())
        desk = Desk(settings, FakeStore([Kind.PAUSE] * 99))
        hold = make_hold(settings)
        for number in range(60):
            publish(hold, incident(number, f"s{number}"), files={"frame_0.jpg": os.urandom(300_000)})
            for _ in range(5):
                desk.keep()
                desk.pass_s(31)
        assert hold.waiting() == []
        assert rows(settings, "SELECT COUNT(*) FROM incidents") == [(60,)]
        found = list(evidence(settings).values())
        assert found[-1] == "kept" and sum(where.startswith("dropped") for where in found) > 30
        assert sum(counters(settings).values()) == sum(where.startswith("dropped") for where in found)
        desk.close()


@needs("mkfs.ext4", "losetup")
def test_a_read_only_disk_is_waited_for(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    with disk(tmp_path) as point:
        desk = Desk(make_settings(tmp_path, state_dir=str(point / "state")))
        hold = make_hold(desk.settings)
        publish(hold, incident(1))
        desk.settle()
        desk.keeper.close()  # a file that is open for writing would forbid it
        subprocess.run(["mount", "-o", "remount,ro", str(point)], check=True)
        publish(hold, incident(2, "stb2"))
        for _ in range(5):
            desk.keep()
            desk.pass_s(20)
        assert len(hold.waiting()) == 1 and 2 <= len(lines(told, "incidents not kept")) <= 5
        subprocess.run(["mount", "-o", "remount,rw", str(point)], check=True)
        desk.pass_s(31)
        desk.settle()
        assert hold.waiting() == [] and set(evidence(desk.settings).values()) == {"stored"}
        desk.close()


@needs("strace", root=False)
@pytest.mark.parametrize("when", ["1", "3", "6", "9", "12"])
def test_a_failed_fsync_keeps_the_incident_in_hold_until_it_works(tmp_path: Path, when: str) -> None:
    """Row 52: wherever fsync fails, nothing is acknowledged; the next try writes new files."""
    settings = make_settings(tmp_path)
    hold = make_hold(settings)
    publish(hold, incident())
    trace = tmp_path / "trace"
    inject = ["-e", f"inject=fsync,fdatasync:error=EIO:when={when}", "-e", "trace=fsync,fdatasync"]
    with UploaderProcess(tmp_path, settings, None, "strace", "-D", "-f", "-qq", "-o", str(trace), *inject) as uploader:
        wait_until(lambda: evidence_or_nothing(settings) == {(incident().id, "opened"): "stored"}, 20, uploader.log)
        uploader.stop()
    assert trace.read_text().count("INJECTED") >= 1
    assert "incidents not kept" in uploader.log or "uploads failed" in uploader.log
    assert hold.waiting() == []
    files = all_files(Path(settings.state_dir, "store"))
    assert len(files) == len(OPENED) + 1 and all(files.values())


@pytest.mark.slow
@needs("strace", root=False)
def test_a_slow_disk_slows_the_keeper_alone(tmp_path: Path) -> None:
    """Row 54: holding is as quick as ever, and the incident is kept in the end."""
    settings = make_settings(tmp_path)
    hold = make_hold(settings)
    trace = tmp_path / "trace"
    inject = ["-e", "inject=fsync,fdatasync:delay_enter=200000", "-e", "trace=fsync,fdatasync"]
    with UploaderProcess(tmp_path, settings, None, "strace", "-D", "-f", "-qq", "-o", str(trace), *inject) as uploader:
        begun = time.monotonic()
        delays = []
        for number in range(3):
            before = time.monotonic()
            publish(hold, incident(number, f"stb{number}"))
            uploader.keeper_bell.ring()
            delays.append(time.monotonic() - before)
        wait_until(lambda: not hold.waiting(), 40, uploader.log)
        assert time.monotonic() - begun > 3.0 and max(delays) < 0.1
        uploader.kill()
    assert trace.read_text().count("DELAYED") > 15


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"{", os.urandom(300), b"[]", b'{"kind":"began","incident":{}}', b"\xff\xfe", b'{"a":' * 9999],
    ids=["empty", "torn", "random", "list", "other", "not UTF-8", "deep"],
)
def test_a_damaged_hold_directory_is_set_aside(desk: Desk, content: bytes) -> None:
    """Row 53."""
    hold = make_hold(desk.settings)
    Path(publish(hold, incident(1)), "transition.json").write_bytes(content)
    publish(hold, incident(2))
    desk.keep()
    assert hold.waiting() == [] and counters(desk.settings) == {"hold_damaged": 1}
    assert list(evidence(desk.settings)) == [(incident(2).id, "opened")]
    assert len([name for name in os.listdir(hold.path) if name.startswith(".bad-")]) == 1


@pytest.mark.parametrize("victim", ["manifest.json", "frame_1.jpg", "incident.json"])
@pytest.mark.parametrize("change", [lambda data: os.urandom(len(data)), lambda data: data[:-1], lambda _: b"", None])
def test_a_damaged_job_is_never_sent(tmp_path: Path, victim: str, change: Callable[[bytes], bytes] | None) -> None:
    desk = Desk(make_settings(tmp_path), store := FakeStore(), hook := FakeHook())
    hold = make_hold(desk.settings)
    publish(hold, incident(1))
    publish(hold, incident(2, "stb2"))
    desk.keep()
    path = Path(desk.spool.jobs()[0], victim)
    path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))
    desk.settle()
    desk.settle()
    assert evidence(desk.settings) == {(incident(1).id, "opened"): "damaged", (incident(2).id, "opened"): "stored"}
    assert counters(desk.settings) == {"evidence_damaged": 1}
    assert not [key for key in store.puts if incident(1).id in key]
    assert len([key for key, _ in hook.posts if incident(2).id in key]) == 1
    desk.close()


@pytest.mark.parametrize("damage", ["random", "header", "middle", "empty"])
def test_a_damaged_incident_log_is_begun_anew(tmp_path: Path, damage: str, told: pytest.LogCaptureFixture) -> None:
    settings = make_settings(tmp_path, source=())
    desk = Desk(settings, FakeStore([Kind.PAUSE] * 9))
    hold = make_hold(settings)
    for number in range(30):
        publish(hold, incident(number, f"s{number}"))
    desk.keep()
    desk.close()
    path = Path(settings.state_dir, FILE_NAME)
    data = bytearray(path.read_bytes())
    if damage == "random":
        data[:] = os.urandom(len(data))
    elif damage == "header":
        data[:100] = os.urandom(100)
    elif damage == "middle":
        data[4096:] = os.urandom(len(data) - 4096)
    else:
        data.clear()
    path.write_bytes(data)
    again = Desk(settings, FakeStore())
    publish(hold, incident(99))
    for _ in range(5):
        again.settle()
        again.pass_s(31)
    assert hold.waiting() == [] and again.spool.jobs() == []
    assert (incident(99).id, "opened") in evidence(settings)
    assert rows(settings, "SELECT MIN(number) FROM transitions") == [(31,)]  # behind what the spool had
    if damage != "empty":
        assert len(lines(told, "incident log damaged, begun anew")) == 1
        assert Path(f"{path}.damaged").exists()
    again.close()


@pytest.mark.parametrize("cell", [b"\xff[", b"[1", b"{}", b""], ids=["no text", "cut", "no list", "empty"])
def test_a_damaged_cell_of_the_log_holds_up_no_incident(desk: Desk, cell: bytes) -> None:
    hold = make_hold(desk.settings)
    publish(hold, incident())
    desk.settle()
    with closing(sqlite3.connect(Path(desk.settings.state_dir, FILE_NAME), isolation_level=None)) as db:
        assert db.execute("UPDATE transitions SET files = CAST(? AS TEXT)", (cell,)).rowcount == 1
    publish(hold, closed(incident()), "closed")
    publish(hold, incident(2, "stb2"))
    desk.settle()
    desk.settle()
    assert list(evidence(desk.settings).values()) == ["stored"] * 3
    assert hold.waiting() == [] and "hold_damaged" not in counters(desk.settings)


def test_bounds_may_take_a_job_while_it_is_sent(tmp_path: Path) -> None:
    desk = Desk(make_settings(tmp_path), store := FakeStore())
    publish(make_hold(desk.settings), incident())
    desk.keep()
    plain_put = store.put

    def put(key: str, data: bytes, content_type: str) -> None:
        plain_put(key, data, content_type)
        for folder in desk.spool.jobs():
            desk.spool.finish(folder)

    store.put = put  # type: ignore[method-assign]
    assert desk.settle() is None
    assert len(store.puts) == len(OPENED) + 1
    desk.close()


# -- the webhook -------------------------------------------------------------------------------------------------------


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[Post], list[int]]]:
    """A webhook's URL, what it was sent, and the statuses that it answers with (200 when there are none)."""
    with uploads.receiver() as (port, got, statuses):
        yield f"http://user:secretword@127.0.0.1:{port}/hook?token=hushhush", got, statuses


def test_the_webhook_gets_json_and_an_idempotency_key(receiver: Any) -> None:
    url, got, _ = receiver
    Webhook(url).post(b"{}", "abc.opened")
    ((path, headers, body),) = got
    assert (path, body, headers["Idempotency-Key"]) == ("/hook?token=hushhush", b"{}", "abc.opened")
    assert headers["Authorization"].startswith("Basic ") and headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (500, Kind.RETRY),
        (503, Kind.RETRY),
        (429, Kind.RETRY),
        (400, Kind.DEAD_LETTER),
        (413, Kind.DEAD_LETTER),
        (401, Kind.PAUSE),
        (404, Kind.PAUSE),
        (302, Kind.PAUSE),
    ],
)
def test_an_answer_of_the_webhook_is_classed_without_its_secrets(receiver: Any, status: int, kind: Kind) -> None:
    url, _, statuses = receiver
    statuses.append(status)
    with pytest.raises(StoreError) as caught:
        Webhook(url).post(b"{}", "abc.opened")
    assert caught.value.kind is kind
    assert not re.search("hushhush|secretword", str(caught.value)) and str(status) in str(caught.value)


def test_a_webhook_that_dribbles_is_cut_off(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    server = scripted(deaf="before TLS")
    address = server.settings.endpoint.replace("https", "http")
    begun = time.monotonic()
    with pytest.raises(StoreError) as caught:
        Webhook(address, timeout_s=30, deadline_s=0.3).post(b"{}", "k")
    assert caught.value.kind is Kind.RETRY and time.monotonic() - begun < 3


@pytest.mark.parametrize("url", ["ftp://x/", "https://", "x", "http://[::1/", "https://exämple.org/", "http://a:b/"])
def test_a_webhook_url_that_is_none_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError, match="webhook_url"):
        Webhook(url)


def test_local_leftovers_of_a_killed_put_are_cleaned(desk: Desk) -> None:
    scratch = Path(desk.settings.state_dir, "store", ".tmp")
    scratch.mkdir(parents=True)
    (scratch / "1-1").write_bytes(b"half")
    publish(make_hold(desk.settings), incident())
    desk.settle()
    assert list(scratch.iterdir()) == [] and isinstance(desk.store, LocalStore)
