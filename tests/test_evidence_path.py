"""Evidence from the frame to the bucket of a real server: recorded hours in small, and the service under faults.

What stands between Stillwatch and the server is a proxy that breaks what it is told to; what is compared in the end is
what the server has.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.clockgate import ClockGate
from pipeline.model import Rule
from pipeline.r2 import R2Store
from pipeline.store import R2Settings
from tests.live import child_row, has_in_memory, running_pid
from tests.machine import FaultRig, needs
from tests.recordings import (
    Episode,
    Live,
    Script,
    check_evidence,
    clock_ahead,
    cycle,
    logged_incidents,
    objects_of,
    pipeline,
    r2_environment,
    scenes_config,
)
from tests.s3_proxy import SKEW_S, Proxy, every, proxy_to
from tests.s3_servers import ACCESS_KEY, SECRET_KEY, Certificate
from tests.support import wait_until
from tests.uploads import Desk, S, evidence, incident, make_hold, make_settings, publish

pytest_plugins = ("tests.s3_fixtures",)

FRAMES = 900
STB1 = Script(
    "stb1",
    (Episode("black", 51, 75), Episode("black", 201, 20), Episode("freeze", 301, 200), Episode("black", 700, 60)),
)  # the second one is too short
STB2 = Script(
    "stb2", (Episode("freeze", 101, 160), Episode("freeze", 401, 154))
)  # the second opens with its last frame
INCIDENTS = 5

RULES = {"black": Rule(0.55, 0.35), "freeze": Rule(0.55, 0.35)}
SCENES = [
    cycle("a", "black", 3000, 30, 13, fps=10, rules=RULES),
    cycle("b", "freeze", 3000, 30, 15, fps=10, rules=RULES),
]


@pytest.fixture
def proxy(seaweedfs: R2Settings, certificate: Certificate) -> Iterator[Proxy]:
    """A proxy before SeaweedFS."""
    with proxy_to(seaweedfs, certificate) as made:
        yield made


class Tape:
    """Two recordings, and what their replay has led to."""

    def __init__(self, base: Path) -> None:
        self.host = f"{base.name}-{os.getpid()}"
        self.state, self.dirs = base / "state", {script.source: base / script.source for script in (STB1, STB2)}
        for script in (STB1, STB2):
            script.record(self.dirs[script.source], FRAMES)

    def replay(self, r2: R2Settings, **environment: str) -> str:
        settings = {"STILLWATCH_HOST": self.host, "STILLWATCH_MIN_FREE_BYTES": "0", **environment}
        return pipeline("replay", "--state-dir", self.state, *self.dirs.values(), r2=r2, timeout_s=55, **settings)

    def check(self, bucket: R2Settings) -> int:
        expected = [incident for script in (STB1, STB2) for incident in script.expected(FRAMES)]
        objects = objects_of(bucket, self.host)
        return check_evidence(self.host, self.dirs, expected, logged_incidents(self.state), objects) // 9

    @property
    def kept(self) -> int:
        """How much evidence waits; none may be anywhere but in the spool."""
        found = [where for one in logged_incidents(self.state) for where in one["evidence"].values()]
        assert set(found) == {"kept"}
        return len(found)


@pytest.fixture
def tape(tmp_path: Path) -> Tape:
    return Tape(tmp_path)


# -- recordings ------------------------------------------------------------------------------------------------------


def test_the_evidence_of_a_recording_reaches_a_real_server_byte_for_byte(tape: Tape, seaweedfs: R2Settings) -> None:
    tape.replay(seaweedfs)
    assert tape.check(seaweedfs) == INCIDENTS
    tape.replay(seaweedfs)  # again: the same incidents, and nothing more
    assert tape.check(seaweedfs) == INCIDENTS


@pytest.mark.slow
def test_what_breaks_on_the_way_is_sent_again(tape: Tape, proxy: Proxy, seaweedfs: R2Settings) -> None:
    """Row 46."""
    faults = ("burst", "reset", "half")
    proxy.choose = every(5, *faults)
    told = tape.replay(proxy.settings)
    assert all(proxy.injected[fault] >= 2 for fault in faults), proxy.injected
    assert "uploads failed" in told
    assert tape.check(seaweedfs) == INCIDENTS


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["key", "bucket"])
def test_a_replay_that_may_not_store_ends_and_a_later_one_completes_it(
    tape: Tape, proxy: Proxy, seaweedfs: R2Settings, wrong: str
) -> None:
    """Row 45. It waits for nobody: a person must mend this, and everything is in the spool."""
    if wrong == "key":
        told = tape.replay(replace(proxy.settings, secret_access_key="x" * 40))
    else:
        with proxy.doing("bucket"):
            told = tape.replay(proxy.settings)
    assert "uploads paused" in told and SECRET_KEY not in told
    assert "evidence waits to be stored" in told
    assert [request.method for request in proxy.requests].count("PUT") == 1
    assert tape.kept == 2 * INCIDENTS
    tape.replay(proxy.settings)
    assert tape.check(seaweedfs) == INCIDENTS


@pytest.mark.slow
@needs("faketime", root=False)
def test_a_clock_two_hours_ahead_keeps_everything_until_it_is_right(
    tape: Tape, proxy: Proxy, seaweedfs: R2Settings
) -> None:
    """Row 44, with the server's own refusal."""
    told = tape.replay(proxy.settings, **clock_ahead(SKEW_S))
    skews = re.findall(r"uploads wait for the clock skew_s=(\d+)", told)
    assert skews and abs(int(skews[0]) - SKEW_S) < 30, told
    assert 1 <= len(proxy.requests) <= 2
    assert tape.kept == 2 * INCIDENTS
    tape.replay(proxy.settings)
    assert tape.check(seaweedfs) == INCIDENTS


def test_a_server_with_another_time_is_asked_less_than_once_a_minute(tmp_path: Path, proxy: Proxy) -> None:
    """Row 44: the whole way through boto3, with ten minutes of our own."""
    store = R2Store(proxy.settings)
    desk = Desk(make_settings(tmp_path), store, gate=ClockGate(store.server_date_ns, lambda: True))
    publish(make_hold(desk.settings), incident(44))
    desk.keep()
    with proxy.doing("skew"):
        while desk.now_ns < 600 * S:
            desk.pass_s(desk.send() or 1)
    assert 2 <= len(proxy.requests) <= 10
    assert set(evidence(desk.settings).values()) == {"kept"}
    desk.pass_s(61)
    desk.settle()
    assert set(evidence(desk.settings).values()) == {"stored"}
    desk.close()
    store.close()


# -- the service -----------------------------------------------------------------------------------------------------


class Stage:
    """A running service that is shown live scenes, and its way to the bucket."""

    def __init__(self, base: Path, r2: R2Settings, **environment: str) -> None:
        self.host = f"{base.name}-{os.getpid()}"
        names = tuple(script.source for script in SCENES)
        self.service = FaultRig(base, sources=names, **(r2_environment(r2) | environment))
        self.service.config = scenes_config(base, SCENES, self.host)
        self.live = Live(self.service, SCENES)

    def told(self, kind: str) -> int:
        """Incidents that the log has told of."""
        return len(self.service.lines(f" incident {kind} "))

    def play_while_it_lasts(self, happens: Callable[[], Any]) -> None:
        """Go on until something has happened, and then until two incidents more have opened and closed."""
        self.live.play_until(happens, 40, "the fault")
        before = self.told("closed")
        self.live.play_until(lambda: self.told("closed") >= before + 2, 40, "two incidents")

    def finish(self, bucket: R2Settings) -> None:
        """Wait until all is stored; compare, and balance the books."""
        self.live.end()
        expected = self.live.expected()
        state = self.service.base / "state"
        wait_until(lambda: self.told("closed") == len(expected), 20, f"{len(expected)} incidents")
        wait_until(lambda: not os.listdir(state / "spool"), 40, "an empty spool")
        assert self.service.stop() == 0
        logged, objects = logged_incidents(state), objects_of(bucket, self.host)
        check_evidence(self.host, self.service.dirs, expected, logged, objects, exact=False)
        for source, account in self.service.books().items():
            assert account["judged"] == account["published"] == len(self.service.published[source])
        assert SECRET_KEY not in self.service.log


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["burst", "reset", "half"])
def test_detection_goes_on_under_a_fault_and_all_is_stored_after_it(
    tmp_path: Path, proxy: Proxy, seaweedfs: R2Settings, fault: str
) -> None:
    stage = Stage(tmp_path, proxy.settings)
    with stage.service as service:
        stage.live.play_until(lambda: proxy.injected[""] > 10, 30, "uploads")
        with proxy.doing(fault):
            stage.play_while_it_lasts(lambda: service.lines("uploads failed"))
            wait_until(lambda: all(service.wait_sidecars(len(n), s) for s, n in service.published.items()), 30)
        stage.finish(seaweedfs)
        assert service.lines("recovered what=uploads")


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["key", "bucket"])
def test_a_wrong_setting_is_mended_without_a_restart_of_those_who_judge(
    tmp_path: Path, proxy: Proxy, seaweedfs: R2Settings, wrong: str
) -> None:
    """Row 45: the uploader alone is started anew."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "r2-secret-access-key").write_text("x" * 40 if wrong == "key" else SECRET_KEY)
    (credentials / "r2-bucket").write_text("missing" if wrong == "bucket" else seaweedfs.bucket)
    stage = Stage(tmp_path, proxy.settings, CREDENTIALS_DIRECTORY=str(credentials))
    with stage.service as service:
        stage.play_while_it_lasts(lambda: service.lines("uploads paused"))
        assert [request.method for request in proxy.requests].count("PUT") == 1
        names = ("watcher", "worker/0", "worker/1")
        pids = [child_row(service, name).pid for name in names]
        uploader = running_pid(service, "uploader")
        (credentials / "r2-secret-access-key").write_text(SECRET_KEY)
        (credentials / "r2-bucket").write_text(seaweedfs.bucket)
        os.kill(uploader, 15)
        stage.live.play_until(lambda: proxy.injected[""] > 20, 30, "uploads")
        assert running_pid(service, "uploader") != uploader
        assert [child_row(service, name).pid for name in names] == pids
        stage.finish(seaweedfs)


@pytest.mark.slow
def test_boto3_and_the_keys_are_in_the_uploader_alone(tmp_path: Path, proxy: Proxy) -> None:
    stage = Stage(tmp_path, proxy.settings)
    with stage.service as service:
        stage.live.play_until(lambda: proxy.injected[""] > 3, 30, "uploads")
        pids = {row: running_pid(service, row) for row in ("watcher", "worker/0", "worker/1", "uploader")}
        holders = {
            text: [name for name, pid in pids.items() if has_in_memory(pid, text)]
            for text in ("/botocore/client.py", "/boto3/session.py", SECRET_KEY, ACCESS_KEY)
        }
        assert set(map(tuple, holders.values())) == {("uploader",)}, holders
        linked = {name for name, pid in pids.items() if "_ssl." in Path(f"/proc/{pid}/maps").read_text()}
        assert linked <= {"uploader"}
