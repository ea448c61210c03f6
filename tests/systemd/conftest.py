"""The machine's own processes come and go while tests run: what is left behind is asked for there, by its service."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_process_left_behind() -> None:
    """In place of the one for all other tests."""
