"""`bench` as a process, short: that it measures what it says. What it measures is no test's business."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from PIL import Image

from pipeline.speed import queues
from pipeline.speed.load import advise
from tests.support import ROOT, wait_until

pytestmark = pytest.mark.any_python


def bench(*flags: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*flags), env=environment(path), capture_output=True, text=True, timeout=200)


def command(*flags: str) -> list[str]:
    return [sys.executable, "-P", "-m", "pipeline", "bench", *flags]


def environment(path: str | None = None) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)} | ({} if path is None else {"PATH": path})


def scratch() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("stillwatch-bench-")}


def scratch_of(popen: subprocess.Popen[str], before: set[str]) -> str:
    """The directory of a run that has begun; others may run beside it."""
    for name in scratch() - before:
        if any(str(popen.pid) in owner for owner in mentions(name)):
            return name
    return ""


def mentions(name: str) -> list[str]:
    """The pids of the parents of the services that use this directory."""
    parents = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        if any(f"/{name}/" in word for word in process.info["cmdline"] or ()):
            parents.append(str(process.info["ppid"]))
    return parents


@pytest.mark.slow
@pytest.mark.costly
@pytest.mark.timeout(240)
def test_it_measures_all_of_it_and_draws_it(tmp_path: Path) -> None:
    picture = tmp_path / "bench.png"
    done = bench("--quick", "--seconds=0.5", "--workers=1", "--json", f"--plot={picture}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["workers"] for one in found["throughput"]] == [1]
    assert found["throughput"][0]["frames_per_s"] > 1 and found["throughput"][0]["cpu_ms_per_frame"] > 0.1
    assert found["throughput"][0]["memory"]["worker_mb"] > 10
    assert found["throughput"][0]["bare_of_linear"] == 1.0
    assert [one["frames"] for one in found["latency"]] == [20, 50, 250]
    assert all(0 < one["p50_ms"] <= one["p99_ms"] <= one["max_ms"] for one in found["latency"])
    assert found["advice"]["workers"] == 1 and found["picture"]["mean_bytes"] > 10_000
    assert set(found["cpu"]["saturated"]["cpu_ms_per_frame"]) == {"pipeline", "bare", "old", "ffmpeg"}
    assert all(value > 0.01 for way in found["cpu"].values() for value in way["cpu_ms_per_frame"].values())
    assert [one["files"] for one in found["startup"]] == [1_000, 10_000, 100_000]
    assert found["overflow"]["events"] >= 20_000 and found["overflow"]["reconciled_s"] > 0
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.width > 600


def test_no_kill_harms_the_ring(capsys: pytest.CaptureFixture[str]) -> None:
    """The kills of `bench`, with the queue beside it: what becomes of that is chance, so only the kills are asked."""
    seed = random.randrange(2**32)
    with capsys.disabled():
        sys.stdout.write(f"[seed {seed}] ")
    found = queues.compare(trials=3, rounds=1, seed=seed)
    for when in ("idle", "busy"):
        assert found[when]["ring"]["killed"] == found[when]["queue"]["killed"] == 3
        assert (found[when]["ring"]["stuck"], found[when]["ring"]["lost"]) == (0, 0)
        assert found[when]["ring"]["repeated"] <= 3
    assert found["speed"]["ring_per_s"] > 0 and found["speed"]["queue_per_s"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_behind(number: signal.Signals) -> None:
    before = scratch()
    with subprocess.Popen(
        command("--only=latency", "--seconds=60"), env=environment(), stderr=subprocess.PIPE, text=True
    ) as popen:
        name = wait_until(lambda: scratch_of(popen, before), 60, "a service runs")
        popen.send_signal(number)
        _, complaints = popen.communicate(timeout=60)
    assert (popen.returncode, complaints) == (130, "")
    assert name not in scratch() and mentions(name) == []


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--only=cpu,speed",), 2, "no such part: speed; there are throughput, latency, cpu, queues, startup"),
        (("--plot=bench.svg",), 66, "not a .png in a directory that is there"),
        (("--plot=/nowhere/bench.png",), 66, "not a .png in a directory that is there"),
    ],
)
def test_a_mistake_is_said_before_anything_is_measured(flags: tuple[str, ...], code: int, says: str) -> None:
    done = bench(*flags)
    assert done.returncode == code and says in done.stderr


def test_a_picture_without_matplotlib_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError(\"No module named 'matplotlib'\")")
    hidden = {**environment(), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command(f"--plot={tmp_path}/b.png"), env=hidden, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (
        69,
        "stillwatch: --plot: No module named 'matplotlib'; .venv/bin/pip install 'matplotlib>=3.9,<4'\n",
    )


def test_without_ffmpeg_it_says_how_to_get_it(tmp_path: Path) -> None:
    done = bench(path=str(tmp_path))
    assert (done.returncode, done.stderr) == (69, "stillwatch: ffmpeg is not installed; apt-get install ffmpeg\n")


def test_accuracy_without_footage_is_said_in_one_line(tmp_path: Path) -> None:
    done = bench("--accuracy", str(tmp_path / "none"))
    assert done.returncode == 66 and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("rates", "cores", "workers"), [([100, 190, 270, 300], 4, 3), ([100, 110], 2, 1), ([100], 1, 1), ([100, 200], 8, 2)]
)
def test_as_many_workers_as_pay_and_a_core_for_ffmpeg(
    rates: list[float], cores: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.speed.load.usable_cpus", lambda: list(range(cores)))
    found = advise([{"workers": n + 1, "frames_per_s": rate} for n, rate in enumerate(rates)])
    assert found == {"workers": workers, "sources": int(rates[workers - 1] * 0.6 / 5)}
