"""Faults of captures, made by real FFmpegs of several ages: names that come again, numbers that run over, full memory.

Numbers in brackets are those of the list of faults to survive; the others are in test_capture, test_grab, test_sound.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import ffmpegs
from tests.captures import SCENE, CaptureRig
from tests.live import source_row
from tests.machine import needs, tmpfs
from tests.support import Rig, sidecars, wait_until

pytestmark = pytest.mark.any_python


def publish(directory: Path, frames: int, *options: str, rate: int = 10, ffmpeg: str = "ffmpeg") -> None:
    """Publish a moving picture in real time, as somebody else's FFmpeg."""
    source = ["-re", "-f", "lavfi", "-i", f"testsrc2=size=320x180:rate={rate}", "-frames:v", str(frames)]
    target = ["-pix_fmt", "yuvj420p", "-f", "image2", "-atomic_writing", "1", *options]
    subprocess.run([ffmpeg, "-nostdin", "-v", "error", *source, *target], check=True, cwd=directory, timeout=30)


# -- one name for several frames (19) ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [("-update", "1", "capture_000000001.jpg"), ("-strftime", "1", "capture_%Y%m%d%H%M.jpg")],
    ids=["update", "strftime"],
)
def test_19_a_name_that_comes_again_is_counted_and_never_frozen(tmp_path: Path, options: tuple[str, ...]) -> None:
    with Rig(tmp_path, "--workers=1", "--report-every=1") as service:
        row = source_row(service)
        publish(service.dir, 20, *options)
        wait_until(lambda: row.numbering_restarts > 3, 30, "the same name again")
        assert wait_until(lambda: service.lines("numbering_restarts="), 30, "the self-report")
        assert row.freeze_frames == 0 and row.incidents == 0
        assert len(sidecars(service.dir)) <= 2
        assert service.books()["a"]["invalid"] == 0


# -- numbers that grow longer, and that run over (22) -----------------------------------------------------------------


def test_22_a_tenth_digit_is_the_next_number(tmp_path: Path) -> None:
    with Rig(tmp_path, "--workers=1") as service:
        publish(service.dir, 8, "-start_number", "999999996", "capture_%09d.jpg")
        found = service.wait_sidecars(8)
        row = source_row(service)
        assert sorted(found) == list(range(999_999_996, 1_000_000_004))
        wait_until(lambda: row.last_number == 1_000_000_003, 10, "the board shows the last one")
        assert (row.numbering_restarts, row.gaps) == (0, 0)
        before = found[1_000_000_001]["last_3_filenames"]
        assert {"capture_1000000000.jpg", "capture_999999999.jpg"} <= {*before}
        assert service.books()["a"]["judged"] == 8


def test_22_numbers_that_run_over_are_no_frames(tmp_path: Path) -> None:
    with Rig(tmp_path, "--workers=1") as service:
        publish(service.dir, 6, "-start_number", "2147483646", "capture_%09d.jpg")
        names = [path.name for path in service.dir.glob("*.jpg")]
        assert any(name.startswith("capture_-") for name in names), "FFmpeg counts otherwise now: nothing was shown"
        kept = [name for name in names if not name.startswith("capture_-")]
        assert len(service.wait_sidecars(len(kept))) == len(kept) == 2
        publish(service.dir, 4, "-start_number", "1", "capture_%09d.jpg")  # somebody begins anew
        service.wait_sidecars(6)
        assert service.books()["a"]["published"] == 6


# -- full memory, with every FFmpeg (23) ------------------------------------------------------------------------------


@needs("mount")
def test_23_room_is_made_for_every_ffmpeg(tmp_path: Path) -> None:
    sources: dict[str, dict[str, Any]] = {}
    for version in ffmpegs.WHEELS:
        capture = {**SCENE, "fps": 25, "ffmpeg": ffmpegs.find(version)}
        sources[f"v{version}"] = {"dir": str(tmp_path / version), "capture": capture}
    places = [tmpfs(tmp_path / version, "size=400k") for version in ffmpegs.WHEELS]
    with places[0], places[1], places[2], CaptureRig(tmp_path, "--workers=1", sources=sources) as service:
        rows = [service.row(name) for name in sources]
        wait_until(lambda: min(row.frames_evicted for row in rows) > 60, 40, "room made in each")
        assert [row.ffmpeg_restarts for row in rows] == [0, 0, 0] and not service.lines("No space left")
        assert all(account["invalid"] == 0 for account in service.books().values())
