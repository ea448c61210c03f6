"""The wall clock jumps under the real service: nothing lasts longer for it, nothing is given up, nothing comes twice.

Numbers in brackets are those of the list of faults to survive.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.spool import Spool
from pipeline.store import R2Settings
from tests.evidence_rig import EvidenceRig, QuickRig, ended, opened
from tests.live import board_of
from tests.machine import UNSYNCHRONISED, WallClock, in_own_run, needs, synchronise
from tests.s3_servers import ScriptedServer
from tests.support import sidecars, wait_until
from tests.uploads import counters

pytestmark = pytest.mark.any_python

pytest_plugins = ("tests.s3_fixtures",)
Scripted = Callable[..., ScriptedServer]
HOUR_S = 3600
DAY_S = 24 * HOUR_S
TO_1970_S = 20 - int(time.time())
NOWHERE = 'webhook_url = "http://127.0.0.1:9/"'
"""Nobody is there: of what has been stored, the notice stays in the spool."""


@pytest.mark.slow
@pytest.mark.parametrize("jump_s", [3 * HOUR_S, -3 * HOUR_S, TO_1970_S], ids=["+3h", "-3h", "1970"])
def test_a_jump_makes_no_incident_longer_and_no_evidence_old(tmp_path: Path, jump_s: int) -> None:
    """[42]"""
    service, clock = EvidenceRig(tmp_path, sources=("a", "b"), more=NOWHERE), WallClock(tmp_path)
    service.clock = clock
    with service:
        begun = time.monotonic()
        before = service.begin("a")
        service.end("a")
        across = service.begin("a")
        wait_until(lambda: len(service.stored()) == 9 + 7 and len(service.evidence()) == 3, 20, service.log)
        pictures = {key: data for key, data in service.stored().items() if key.endswith(".jpg")}
        clock.set(jump_s)
        service.end("a")
        lived_s = time.monotonic() - begun
        after = [service.begin("b")]
        for _ in range(5):
            service.end("b")
            after.append(service.begin("b"))
        expected = {*ended(before, across, *after[:-1]), *opened(after[-1])}
        wait_until(lambda: set(service.evidence()) == expected, 20, service.log)
        wait_until(lambda: len(service.stored()) == 7 * 9 + 7, 20, service.log)
        assert len({before, across, *after}) == 8
        stamps = [datetime.fromisoformat(line.split()[0]) for line in service.lines("incident opened")]
        assert (stamps[-1] - stamps[0]).total_seconds() == pytest.approx(jump_s, abs=60), "the clock has not jumped"
        for line in service.lines("incident closed"):
            (duration_s,) = re.findall(r"duration_s=([\d.]+)", line)
            assert 0 <= float(duration_s) <= lived_s + 1, line
        assert service.stored().items() >= pictures.items()
        service.wait_evidence({**ended(before, across, *after[:-1]), **opened(after[-1])})
        assert len(Spool(str(service.state / "spool")).jobs()) == len(expected), "every notice waits"
        assert counters(service.settings) == {}
        assert {child.restarts for child in board_of(service).children} == {0}
        assert all(content["analyzed"] for source in "ab" for content in sidecars(service.dirs[source]).values())
        books = service.books()
    assert (books["a"]["judged"], books["b"]["judged"]) == (12, 34)


@pytest.mark.slow
def test_a_start_with_an_earlier_clock_makes_no_incident_shorter_than_it_was(tmp_path: Path) -> None:
    """[42] Across a restart only the wall clock can tell how long an incident has lasted."""
    service, clock = EvidenceRig(tmp_path), WallClock(tmp_path)
    service.clock = clock
    with service:
        incident = service.begin()
        service.wait_evidence(opened(incident))
        service.stop()
        clock.set(-3 * HOUR_S)
        service.start()
        service.wait_ready(2)
        service.end()
        service.wait_evidence(ended(incident))
        (line,) = service.lines("incident closed")
        (duration_s,) = re.findall(r"duration_s=([\d.]+)", line)
        assert 0 <= float(duration_s) < 60, line


# -- before the first NTP step (43) -----------------------------------------------------------------------------------


@pytest.mark.slow
@needs("strace", "unshare")
def test_evidence_from_before_the_clock_was_set_is_not_old_afterwards(
    tmp_path: Path, scripted: Scripted, s3: Any
) -> None:
    """[43] A Pi that was off for twenty days boots with the time of its last shutdown, and without a network. The step
    to the right time makes what waits look twenty days old; it must not be given up for that."""
    server = scripted(s3.answer(503, "SlowDown"))
    service, clock = EvidenceRig(tmp_path, r2=server.settings), WallClock(tmp_path, -20 * DAY_S)
    service.clock = clock
    service.wrapper = (*in_own_run(), *UNSYNCHRONISED)
    with service:
        early = []
        for _ in range(3):
            early.append(service.begin())
            service.end()
        service.wait_evidence(ended(*early, where="kept"))
        assert service.lines("uploads wait for the clock") and not server.requests
        clock.set(0)
        synchronise(service.child("uploader").pid)
        late = service.begin()  # with the next one, the keeper looks at its bounds
        service.end()
        wait_until(lambda: set(service.evidence()) == {*ended(*early, late)}, 20, service.log)
        wait_until(lambda: "held" not in service.evidence().values(), 20, service.log)
        assert set(service.evidence().values()) == {"kept"}
        server.script[:] = [s3.stored]
        service.wait_evidence(ended(*early, late), 40)
        assert counters(service.settings) == {}
        bodies = [request.body for request in server.requests if request.path.endswith("incident.json")]
        assert {b'"clock_synchronised":false' in body for body in bodies} == {True, False}


# -- a clock that the server refuses (44) -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_clock_that_a_real_server_refuses_is_waited_for_until_it_is_right(
    tmp_path: Path, seaweedfs: R2Settings
) -> None:
    """[44] Two hours ahead: the server says RequestTimeTooSkewed, and how late it is."""
    service, clock = QuickRig(tmp_path, r2=seaweedfs), WallClock(tmp_path, 2 * HOUR_S)
    service.clock = clock
    with service:
        before = [process.pid for process in service.tree()]
        incidents = []
        for _ in range(3):
            incidents.append(service.begin())
            service.end()
        service.wait_evidence(ended(*incidents, where="kept"))
        (line, *_) = wait_until(lambda: service.lines("uploads wait for the clock"), 20, service.log)
        assert re.search(r"skew_s=7[12]\d\d ", line), line
        clock.set(0)
        service.wait_evidence(ended(*incidents), 30)
        assert service.lines("recovered what=clock")
        assert [process.pid for process in service.tree()] == before
        assert counters(service.settings) == {}
