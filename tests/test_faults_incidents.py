"""Incidents under SIGKILL: none lost, none doubled, each with its evidence, whoever is killed and when.

The storms are those of the measurements `child-kills` and `supervisor-kills`, shorter; STILLWATCH_STORM_S=120 and
STILLWATCH_STORM_SUPERVISORS=10 run them at their full size. The tests after them hold still the moments that a storm
meets only now and then.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.audit import recorded
from tests.live import ended, running_pid, stopped
from tests.scenes import BLACK_LEVEL, Script
from tests.storms import WORKERS, Outcome, Stage, await_end, child_storm, settle, stage, supervisor_storm
from tests.support import plain_frame, wait_until

pytestmark = pytest.mark.any_python

SECONDS = float(os.environ.get("STILLWATCH_STORM_S", "8"))
SUPERVISOR_KILLS = int(os.environ.get("STILLWATCH_STORM_SUPERVISORS", "2"))


def check(outcome: Outcome) -> None:
    """Whatever was done to it: all frames judged, all incidents there, nothing left; and the kills were real."""
    assert outcome.findings.wrong == {}, outcome.counts()
    assert outcome.findings.expected == outcome.findings.recorded > 0
    assert outcome.judged == outcome.frames > 0
    assert outcome.left == []
    assert outcome.deaths == outcome.kills


@pytest.mark.slow
@pytest.mark.timeout(240 + SECONDS * 3)
def test_kills_of_every_child_once_a_second_lose_and_double_no_incident(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    outcome = child_storm(tmp_path, tmp_path / "state", SECONDS, seed)
    check(outcome)
    assert set(outcome.kills) == {"watcher", *(f"worker/{n}" for n in range(WORKERS)), "uploader"}
    assert min(outcome.kills.values()) >= SECONDS / 2


@pytest.mark.slow
@pytest.mark.timeout(240 + SUPERVISOR_KILLS * 40)
def test_kills_of_the_supervisor_lose_and_double_no_incident(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    outcome = supervisor_storm(tmp_path, tmp_path / "state", SUPERVISOR_KILLS, seed)
    check(outcome)
    assert outcome.kills == {"supervisor": SUPERVISOR_KILLS}
    assert outcome.findings.resumed > 0
    assert outcome.extra["left_in_shm"] == []


# -- moments held still -----------------------------------------------------------------------------------------------


SCRIPT = Script(good_s=(9, 9), fault_s=(9, 9), raise_s=0.3, clear_s=0.2)
GOOD, BLACK = "good", "black"


class Reel:
    """Frames of one source, as many as it takes until something has come of them."""

    def __init__(self, on: Stage) -> None:
        self._service, self._number = on.service, 0

    def run(self, what: str, until: Callable[[list[str]], bool]) -> list[str]:
        """Publish frames until the ids that the newest sidecar names are so; these ids."""
        ids: list[str] = []

        def done() -> bool:
            ids[:] = self._next(what)
            return until(ids)

        wait_until(done, 20, f"{what} frames lead to it")
        return ids

    def _next(self, what: str) -> list[str]:
        self._number += 1
        self._service.publish(self._number, plain_frame(BLACK_LEVEL) if what == BLACK else None, "a")
        ids: list[str] = self._service.wait_sidecars(self._number, "a")[self._number]["incident_ids"]
        return ids


def lasting(seconds: float) -> Callable[[list[str]], bool]:
    """True from so long after now on."""
    begin = time.monotonic()
    return lambda _: time.monotonic() - begin > seconds


def kill_supervisor(on: Stage) -> None:
    """Kill it, and see that its children end."""
    assert on.service.process
    tree = on.service.tree()
    with ended(tree[1:]):
        on.service.process.kill()
        await_end(on.service, tree)


def start_again(on: Stage) -> None:
    """Start the service over the same state."""
    on.service.start()
    on.service.wait_ready(times=on.service.log.count(" ready sources=") + 1)


def test_an_incident_only_held_when_the_supervisor_was_killed_goes_on(tmp_path: Path) -> None:
    # Given an incident that is in hold, and not yet in the log
    with stage(tmp_path, tmp_path / "state", SCRIPT, 0) as on:
        reel = Reel(on)
        reel.run(GOOD, lasting(0.2))
        with stopped(running_pid(on.service, "uploader")):
            first = reel.run(BLACK, bool)
            assert recorded(on.state) == []
            # When the supervisor is killed, and started again while the picture is still black
            kill_supervisor(on)
        start_again(on)
        # Then it is the same incident that goes on, and ends
        assert reel.run(BLACK, lasting(1.0)) == first
        reel.run(GOOD, lambda ids: not ids)
        settle(on)
        on.service.books()
    (incident,) = recorded(on.state)
    assert [incident.id] == first
    assert (incident.reason, incident.across_restart) == ("recovered", True)


def test_an_end_only_held_when_the_supervisor_was_killed_hides_no_new_incident(tmp_path: Path) -> None:
    # Given an incident that is open in the log, and closed in hold
    with stage(tmp_path, tmp_path / "state", SCRIPT, 0) as on:
        reel = Reel(on)
        reel.run(GOOD, lasting(0.2))
        first = reel.run(BLACK, bool)
        wait_until(lambda: recorded(on.state), 30, "its row")
        with stopped(running_pid(on.service, "uploader")):
            reel.run(GOOD, lambda ids: not ids)
            assert [incident.closed_wall_ns for incident in recorded(on.state)] == [None]
            # When the supervisor is killed, and the picture turns black again at the next start
            kill_supervisor(on)
        start_again(on)
        # Then that is another incident
        second = reel.run(BLACK, lambda ids: bool(ids) and ids != first)
        reel.run(GOOD, lambda ids: not ids)
        settle(on)
        on.service.books()
    assert {incident.id: incident.reason for incident in recorded(on.state)} == dict.fromkeys(
        [*first, *second], "recovered"
    )
