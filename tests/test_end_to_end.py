"""The whole service on real input: what every user sees first."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import STOP_S, Rig, frame_name, make_frame, publish, sidecars, wait_until


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
        wait_until(lambda: len(service.tree()) == 6, 20, "supervisor, watcher, two workers, uploader and capture")
        assert service.stop(number) == 0
        assert service.books()["a"]["judged"] == 1
    assert sidecars(service.dirs["b"]) == {}


def test_all_that_was_published_while_a_directory_was_away_is_judged(rig: Callable[..., Rig]) -> None:
    """More than a lane holds, with numbers that were there before: names alone would not tell what is new."""
    with rig(STILLWATCH_OVERLOAD_LAG_S="600") as service:
        for number in range(1, 21):
            service.publish(number)
        service.wait_sidecars(20)
        away = service.dir.with_name("away")
        service.dir.rename(away)
        wait_until(lambda: "directory missing" in service.log, 30)
        for number in range(1, 1501):
            publish(away, number, make_frame(number % 50))
        away.rename(service.dir)
        wait_until(lambda: _own_sidecars(service.dir) == 1500, 30, "every frame has a sidecar of its own")
        books = service.books()["a"]
    assert books["judged"] == books["published"] == 1520


def _own_sidecars(directory: Path) -> int:
    """Sidecars that speak of the very file beside them, once the newest frame has one."""
    try:
        if not (directory / frame_name(1500)).with_suffix(".json").exists():
            return 0
        found = sidecars(directory)
    except FileNotFoundError:
        return 0  # one was just being replaced
    return sum(found[n]["frame_id"][1] == (directory / frame_name(n)).stat().st_ino for n in found)


def test_a_signal_to_the_whole_group_is_a_stop_and_no_death(tmp_path: Path) -> None:
    with Rig(tmp_path, "--workers=2") as service:
        assert service.process
        service.publish(1)
        service.wait_sidecars(1)
        for process in service.tree():
            process.send_signal(signal.SIGTERM)
        assert service.process.wait(STOP_S) == 0
        assert "child died" not in service.log
        assert service.books()["a"]["judged"] == 1
