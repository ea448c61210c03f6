"""Fixtures for all tests: a real service, and proof that no test leaves a process behind."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support import Rig, children_of_tests

# Machines are noisy: no test asserts a duration. What one run of the suite finds, the next finds again; who wants to
# look further has new inventions at every run, by --hypothesis-profile=explore.
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.register_profile("repeat", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeat")

# Where it is set, each of the six processes of each service that a test starts compiles the program anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Under nohup the one would be ignored, behind a shell's & the other, here and in all that tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


MADE_ONCE = {
    "Debian 12": r"/systemd/.*bookworm",
    "Debian 13": r"/systemd/.*trixie",
    "bad frames": r"/test_faults_frames\.py",
    "SeaweedFS": r"/test_(store|uploader)\.py.*seaweedfs|/test_evidence_path\.py",
}
"""What takes long to make, and the ids of the tests that share it."""


class Sharing(LoadScopeScheduling):  # type: ignore[misc] # carries no types
    """With `-n N`: tests that share something are run by one process, every other test by whoever is free."""

    def _split_scope(self, nodeid: str) -> str:
        return next((what for what, ids in MADE_ONCE.items() if re.search(ids, nodeid)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Sharing:
    """In the place of xdist's own, by whose loadgroup pytest 9.2 shares nothing."""
    return Sharing(config, log)


@pytest.fixture(autouse=True)
def no_process_left_behind() -> Iterator[None]:
    """Whatever a test starts has ended when it ends."""
    before = set(children_of_tests())
    yield
    left = set(children_of_tests()) - before
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    assert not left, f"left behind: {left}"


@pytest.fixture(autouse=True)
def logging_stays_as_it_is() -> Iterator[None]:
    """No test sets up logging for those that follow: they would see no line."""
    log = logging.getLogger("stillwatch")
    before = list(log.handlers), log.propagate, log.level
    yield
    after = list(log.handlers), log.propagate, log.level
    log.handlers[:], log.propagate, log.level = before
    assert after == before, "logging is set up for all tests that follow"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Makes services: `with rig("--workers=2", sources=("a", "b")) as service:`."""

    def make(*flags: str, sources: tuple[str, ...] = ("a",), **environment: str) -> Rig:
        return Rig(tmp_path, *flags, sources=sources, **environment)

    yield make
