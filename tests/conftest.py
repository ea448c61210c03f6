"""Fixtures for all tests: a real service, and proof that no test leaves a process behind."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import Rig, children_of_tests

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored, here and in all that tests start


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


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Makes services: `with rig("--workers=2", sources=("a", "b")) as service:`."""

    def make(*flags: str, sources: tuple[str, ...] = ("a",), **environment: str) -> Rig:
        return Rig(tmp_path, *flags, sources=sources, **environment)

    yield make
