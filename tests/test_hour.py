"""Frames without end into a small memory disk: tests/benchmarks/hour.py, for a minute of frames instead of an hour."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.benchmarks import hour
from tests.machine import needs

pytestmark = pytest.mark.any_python


@pytest.mark.slow
@pytest.mark.costly
@needs("mount")
def test_a_memory_disk_is_never_full_and_nothing_goes_to_disks(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as logs:
        found = hour.run(tmp_path, Path(logs), frames=6_000, speed=8.0)
    assert found.evicted > 1_000, "it was never nearly full: nothing was shown"
    assert found.fullest_pct < 100 and found.fullest_inodes_pct < 100
    assert (found.ffmpeg_restarts, found.ffmpeg_stalls, found.no_space) == (0, 0, 0)
    assert (found.disk_bytes, found.incidents, found.invalid, found.refused) == (0, 0, 0, 0)
    assert found.judged > 1_000
