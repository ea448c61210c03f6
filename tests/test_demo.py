"""The demo: what a stranger types first. It must find its faults, and leave nothing behind however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import ROOT, wait_until

pytestmark = pytest.mark.any_python

DEMO = [sys.executable, "-P", "-m", "pipeline", "demo"]
SCENES = ("live", "frozen", "dark", "unplugged", "mute")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_the_demo_finds_its_faults_and_keeps_what_it_was_asked_to(tmp_path: Path) -> None:
    done = subprocess.run([*DEMO, f"--keep={tmp_path}"], env=ENVIRONMENT, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "demo passed" in done.stdout
    assert len(list(tmp_path.glob("*/capture_*.json"))) == 5 * 90
    found = [("dark", "black"), ("frozen", "freeze"), ("mute", "audio_loss"), ("unplugged", "no_signal")]
    for turn in ("opened", "closed"):
        lines = [line.split() for line in done.stdout.splitlines() if line.startswith(turn)]
        assert sorted((source, condition) for _, condition, source, *_ in lines) == found
    assert len(list(tmp_path.glob("state/store/alerts/*/*/*/*/*"))) == 4 * 9
    again = subprocess.run([*DEMO, f"--keep={tmp_path}"], env=ENVIRONMENT, capture_output=True, text=True, timeout=55)
    assert again.returncode == 66
    assert again.stderr.count("\n") == 1 and "not empty" in again.stderr


@pytest.mark.slow
@pytest.mark.costly
@pytest.mark.timeout(240)
def test_scenes_in_turn_are_found_as_well(tmp_path: Path) -> None:
    demo = [*DEMO, "--in-turn", f"--keep={tmp_path}"]
    done = subprocess.run(demo, env=ENVIRONMENT, capture_output=True, text=True, timeout=220)
    assert done.returncode == 0, done.stdout + done.stderr
    begun = [min(file.stat().st_mtime for file in (tmp_path / name).glob("capture_*.jpg")) for name in SCENES]
    assert begun == sorted(begun)
    assert begun[-1] - begun[0] > 4 * 15, "one after the other"


def test_an_ffmpeg_that_cannot_capture_is_told_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\necho 'libavformat 56. 1.100'\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    environment = {**ENVIRONMENT, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    done = subprocess.run(DEMO, env=environment, capture_output=True, text=True, timeout=55)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "has no atomic_writing" in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["ffmpeg"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_no_ffmpeg_and_no_frames_behind(tmp_path: Path, number: int) -> None:
    demo = subprocess.Popen(
        DEMO, env={**ENVIRONMENT, "TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    tree = psutil.Process(demo.pid)

    def targets() -> list[str]:
        """Where FFmpegs publish; those that capture.sh only asks for their version do not, and are soon gone."""
        found = []
        for process in tree.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found += [word for word in process.cmdline()[-1:] if word.endswith("capture_%09d.jpg")]
        return found

    scratch = wait_until(targets, 20, "FFmpeg publishes")
    everybody = tree.children(recursive=True)
    demo.send_signal(number)
    _, errors = demo.communicate(timeout=10)
    assert demo.returncode == 130, errors
    assert b"Traceback" not in errors
    wait_until(lambda: not any(p.is_running() for p in everybody), 20, "nothing is left")
    assert not Path(scratch[0]).parent.parent.exists()
    assert not list(tmp_path.iterdir()), "evidence of a demo that was not finished"
