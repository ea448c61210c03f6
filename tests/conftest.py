"""Fixtures for all tests: a real service, and proof that no test leaves a process behind."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest

from tests.support import Rig, children_of_tests

# Machines are noisy: no test asserts a duration. What one run of the suite finds, the next finds again; who wants to
# look further has new inventions at every run, by --hypothesis-profile=explore.
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.register_profile("repeat", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeat")

# Where it is set, each of the six processes of each service that a test starts compiles the program anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored, here and in all that tests start


MADE_ONCE = {"installed": "a machine", "outcome": "bad frames", "seaweedfs": "SeaweedFS"}
"""Fixtures that take long to make, and what they are; one of them may be asked for by a parameter of its name."""


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n N --dist loadgroup`, all tests that share what is made once are run by one process."""
    for item in items:
        values = getattr(getattr(item, "callspec", None), "params", {})
        asked = {*getattr(item, "fixturenames", ()), values.get("server"), values.get("place")}
        for name, what in MADE_ONCE.items():
            if name in asked:
                item.add_marker(pytest.mark.xdist_group(f"{what} {values.get(name, '')}".strip()))


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
