"""The whole service on real input: what every user sees first."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

import pytest

from tests.support import Rig, sidecars, wait_until


def test_every_frame_of_a_real_ffmpeg_gets_one_sidecar(rig: Callable[..., Rig]) -> None:
    ffmpeg = shutil.which("ffmpeg")
    assert ffmpeg, "ffmpeg is needed: apt-get install ffmpeg"
    with rig("--log-level=DEBUG") as service:
        assert "Starting inotify event loop (zero CPU when idle)..." in service.log
        command = [ffmpeg, "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25", "-frames:v", "50"]
        target = str(service.dir / "capture_%09d.jpg")
        subprocess.run([*command, "-f", "image2", "-atomic_writing", "1", target], check=True)
        found = service.wait_sidecars(50)
        assert "inotify event: capture_000000001.jpg" in service.log
        assert service.books()["a"]["judged"] == 50
    assert sorted(found) == list(range(1, 51))
    assert all(content["analyzed"] and content["blackscreen"] is False for content in found.values())
    assert found[50]["last_3_filenames"] == [f"capture_{n:09d}.jpg" for n in (49, 48, 47)]


@pytest.mark.parametrize("number", [2, 15], ids=["SIGINT", "SIGTERM"])
def test_a_signal_stops_it_with_0_and_books(rig: Callable[..., Rig], number: int) -> None:
    with rig("--workers=2", sources=("a", "b")) as service:
        service.publish(1, source="a")
        service.wait_sidecars(1, "a")
        wait_until(lambda: len(service.tree()) == 4, 5, "supervisor, watcher and two workers")
        assert service.stop(number) == 0
        assert service.books()["a"]["judged"] == 1
    assert sidecars(service.dirs["b"]) == {}
