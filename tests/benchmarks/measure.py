"""The figures of the README's "Measured" section, each measured on this machine by one word:

    .venv/bin/python -m tests.benchmarks.measure WHAT ... [--seconds N]

Nothing here is asserted: machines differ and are noisy. Comparisons are paired: both sides in turn, in one run.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.speed import stage
from tests.benchmarks.tools import (
    Latencies,
    cpu_ns,
    main,
    memory_dir,
    pss_mb,
    publish_linked,
    say,
    spread,
    tree_cpu_ns,
    voluntary_switches,
)
from tests.support import Rig, wait_until

FRAME_COUNT = 60
PACED_FPS = 20.0


# -- frames ---------------------------------------------------------------------------------------------------------


def make_frames(target: Path) -> list[bytes]:
    """720p JPEGs of 60-120 KB: a moving test picture under noise."""
    graph = "testsrc2=size=1280x720:rate=5,noise=alls=6:allf=t"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", graph, "-frames:v", str(FRAME_COUNT), "-q:v", "5"]
    subprocess.run([*command, "-pix_fmt", "yuvj422p", str(target / "frame_%03d.jpg")], check=True)
    frames = [path.read_bytes() for path in sorted(target.glob("frame_*.jpg"))]
    sizes = [len(frame) for frame in frames]
    say(f"frames: 1280x720 4:2:2, {min(sizes) // 1000}-{max(sizes) // 1000} KB")
    return frames


# -- the measurements -----------------------------------------------------------------------------------------------


def latency(seconds: float) -> dict[str, object]:
    """Rename to sidecar with four real FFmpegs, 1280x720 at 5 frames/s, seen by a third party through inotify."""
    names = ("a", "b", "c", "d")
    with memory_dir() as base, Rig(base, sources=names) as service:
        latencies = Latencies(service.dirs.values())
        source = ["-f", "lavfi", "-i", "testsrc2=size=1280x720:rate=5,realtime", "-t", str(seconds)]
        target = ["-q:v", "4", "-f", "image2", "-atomic_writing", "1"]
        publishers = [
            subprocess.Popen(
                ["ffmpeg", "-nostdin", "-v", "error", *source, *target, str(directory / "capture_%09d.jpg")]
            )
            for directory in service.dirs.values()
        ]
        while any(p.poll() is None for p in publishers) or latencies.waiting:
            latencies.watch(0.5)
        latencies.close()
        frames = sum(1 for d in service.dirs.values() for p in d.iterdir() if p.suffix == ".jpg")
        cars = sum(1 for d in service.dirs.values() for p in d.iterdir() if p.suffix == ".json")
        books = service.books()
    return {
        "seconds": seconds,
        "frames": frames,
        "sidecars": cars,
        "judged": sum(account["judged"] for account in books.values()),
        "books": "balanced",
        **spread(latencies.take()),
    }


def startup(_seconds: float) -> dict[str, object]:
    """READY over a directory of 220,000 files; no stat per file; no directory opened once it runs."""
    with memory_dir() as base:
        service = Rig(base)
        seed = service.dir / "seed"
        seed.write_bytes(b"x")
        for number in range(110_000):
            os.link(seed, service.dir / f"capture_{number:09d}.jpg")
            os.link(seed, service.dir / f"capture_{number:09d}.json")
        begun = time.monotonic()
        with service:
            ready_s = time.monotonic() - begun
            watcher_pss_mb = pss_mb(service.child("watcher").pid)
        traced = _trace_service(base)
    return {"files": 220_000, "ready_s": round(ready_s, 2), "watcher_pss_mb": round(watcher_pss_mb, 1), **traced}


class TracedRig(Rig):
    """A service under strace."""

    @property
    def command(self) -> list[str]:
        return ["strace", "-D", "-f", "-o", str(self.base / "strace.txt"), *super().command]


def _trace_service(base: Path) -> dict[str, object]:
    """System calls of the whole start, then of 100 frames in steady state."""
    trace = base / "strace.txt"
    (base / "service.log").unlink()
    with TracedRig(base) as service:
        started = trace.read_text()
        for number in range(200_000, 200_100):
            publish_linked(service.dir / "seed", service.dir, number)
        wait_until(lambda: sum(e.name.endswith(".json") for e in os.scandir(service.dir)) >= 110_100, 60)
        steady = trace.read_text()[len(started) :]
    stats = [line for line in started.splitlines() if "capture_" in line and ("stat" in line or "access" in line)]
    opened = [line for line in steady.splitlines() if "O_DIRECTORY" in line and "O_TMPFILE" not in line]
    return {"stats_of_frames_at_start": len(stats), "directories_opened_in_steady_state": len(opened)}


def idle(seconds: float) -> dict[str, object]:
    """CPU and wake-ups of the whole tree while the sources are silent."""
    with memory_dir() as base, Rig(base, "--workers=3", sources=("a", "b", "c", "d")) as service:
        pids = [process.pid for process in service.tree()]
        time.sleep(5)
        cpu, switches, begun = sum(map(cpu_ns, pids)), sum(map(voluntary_switches, pids)), time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - begun
        cpu, switches = sum(map(cpu_ns, pids)) - cpu, sum(map(voluntary_switches, pids)) - switches
    return {
        "seconds": round(took),
        "processes": len(pids),
        "cpu_pct": round(cpu / took / 1e7, 4),
        "voluntary_switches_per_s": round(switches / took, 2),
    }


def cpu(seconds: float) -> dict[str, object]:
    """CPU per frame of all processes against the bare loop, saturated and paced, in turn."""
    with memory_dir() as base:
        frames = base / "jpegs"
        frames.mkdir()
        make_frames(frames)
        files = sorted(frames.glob("frame_*.jpg"))
        rounds = max(3, int(seconds / 12))
        saturated = _pairs(rounds, lambda n: _bare(files, 600, 0), lambda n: _pipeline(base, f"s{n}", files, 600, 0))
        paced = _pairs(
            rounds, lambda n: _bare(files, 100, PACED_FPS), lambda n: _pipeline(base, f"p{n}", files, 100, PACED_FPS)
        )
    return {"saturated": saturated, f"at_{PACED_FPS:.0f}_fps": paced}


def _pairs(rounds: int, bare: Callable[[int], float], whole: Callable[[int], float]) -> dict[str, object]:
    """Both sides in turn; medians in milliseconds of CPU per frame, and the ratio pair by pair."""
    pairs = [(bare(n), whole(n)) for n in range(rounds)]
    ratios = [b / a for a, b in pairs]
    return {
        "bare_ms": round(statistics.median(a for a, _ in pairs), 3),
        "pipeline_ms": round(statistics.median(b for _, b in pairs), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min_max": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def _bare(files: list[Path], count: int, fps: float) -> float:
    """Milliseconds of CPU per frame of a loop that reads the files and decodes them at 1/8, and nothing else."""
    code = f"""
import sys, time, simplejpeg
files = sys.argv[1:]
def one(n):
    with open(files[n % len(files)], "rb") as file:
        simplejpeg.decode_jpeg(file.read(), "GRAY", min_height=1, min_width=1, min_factor=8)
for n in range(10): one(n)
begun, cpu = time.monotonic(), time.process_time()
for n in range({count}):
    if {fps}: time.sleep(max(0, begun + n / ({fps} or 1) - time.monotonic()))
    one(n)
print((time.process_time() - cpu) / {count} * 1e3)
"""
    command = [sys.executable, "-c", code, *map(str, files)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=stage.environment())
    return float(done.stdout)


def _pipeline(base: Path, name: str, files: list[Path], count: int, fps: float) -> float:
    """Milliseconds of CPU per frame of all processes of the service."""
    with Rig(base / name, "--workers=1") as service:
        for number in range(20):
            publish_linked(files[number % len(files)], service.dir, number)
        service.wait_sidecars(20)
        before, begun = tree_cpu_ns(service), time.monotonic()
        for number in range(count):
            if fps:
                time.sleep(max(0, begun + number / fps - time.monotonic()))
            publish_linked(files[number % len(files)], service.dir, 20 + number)
        wait_until(lambda: sum(e.name.endswith(".json") for e in os.scandir(service.dir)) == count + 20, 60)
        used = tree_cpu_ns(service) - before
        assert service.books()["a"]["judged"] == count + 20, "a frame was not judged: nothing to compare"
    shutil.rmtree(base / name)
    return used / count / 1e6


def memory(_seconds: float) -> dict[str, object]:
    """PSS of every process after real frames have passed."""
    names = ("a", "b", "c")
    with memory_dir() as base:
        frames = base / "jpegs"
        frames.mkdir()
        make_frames(frames)
        files = sorted(frames.glob("frame_*.jpg"))
        with Rig(base, "--workers=3", sources=names) as service:
            for number in range(200):
                for directory in service.dirs.values():
                    publish_linked(files[number % len(files)], directory, number)
            for name in names:
                service.wait_sidecars(200, name, 60)
            found = {" ".join(p.cmdline()).strip(): round(pss_mb(p.pid), 1) for p in service.tree()}
    return {**found, "all": round(sum(found.values()), 1)}


MEASUREMENTS = {
    "latency": latency,
    "startup": startup,
    "idle": idle,
    "cpu": cpu,
    "memory": memory,
}


if __name__ == "__main__":
    main(__doc__, MEASUREMENTS)
