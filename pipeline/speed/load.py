"""How much the service carries, and how soon it answers: frames/s by workers, memory, rename to sidecar by rate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from inotify_simple import INotify, flags

from pipeline.model import StillwatchError
from pipeline.settings import usable_cpus
from pipeline.speed.stage import STALL_S, Running, pss_mb, running, uss_mb

RATES = (20.0, 100.0, 500.0)
"""Frames/s at which latency is measured: four sources at 5, more than a Pi is asked for, and a burst without end."""

SOURCE_FPS = 5.0
FULL = 0.6
"""Share of a worker's time that may be planned: beyond it the latency grows, and FFmpeg wants the cores as well."""

PERCENTILES = (50, 90, 99, 99.9)
_WARM = 20  # frames after which everything has been loaded


def throughput(base: Path, pictures: Sequence[Path], workers: int, seconds: float) -> dict[str, Any]:
    """Frames/s and CPU per frame while there is always something to do, one source per worker: a source's frames are
    judged in order, by one worker. And the memory of each kind of process after that."""
    with running(base, workers, workers) as service:
        service.judge(pictures, _WARM)
        begun, used_ns, judged = time.monotonic(), service.cpu_ns(), service.judged()
        service.keep_busy(pictures, lambda: time.monotonic() >= begun + seconds)
        took_s, frames = time.monotonic() - begun, service.judged() - judged
        used_ns = service.cpu_ns() - used_ns
        memory = _memory(service)
    return {
        "workers": workers,
        "frames_per_s": round(frames / took_s, 1),
        "cpu_ms_per_frame": round(used_ns / max(frames, 1) / 1e6, 3),
        "memory": memory,
    }


def _memory(service: Running) -> dict[str, Any]:
    """MB: PSS of all together and of each kind, and what one more worker would take (USS)."""
    worker = service.pids("worker")
    shares = {"supervisor": round(pss_mb(service.popen.pid), 1)}
    for kind in ("watcher", "capture", "uploader"):
        shares[kind] = round(sum(map(pss_mb, service.pids(kind))), 1)
    each = sum(map(pss_mb, worker)) / len(worker)
    return {
        "all_mb": round(sum(map(pss_mb, service.pids())), 1),
        **{f"{name}_mb": share for name, share in shares.items()},
        "worker_mb": round(each, 1),
        "one_more_worker_mb": round(max(map(uss_mb, worker)), 1),
    }


def advise(found: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many workers to run, and how many sources of 720p at 5 frames/s they then carry.

    As many workers as still add at least half of what the first one does, with a core left for FFmpeg."""
    first = found[0]["frames_per_s"]
    best = 1
    for before, after in pairwise(found):
        if after["frames_per_s"] - before["frames_per_s"] < first / 2:
            break
        best = int(after["workers"])
    workers = max(1, min(best, len(usable_cpus()) - 1))
    return {"workers": workers, "sources": int(found[workers - 1]["frames_per_s"] * FULL / SOURCE_FPS)}


# -- latency ----------------------------------------------------------------------------------------------------------


def latency(base: Path, pictures: Sequence[Path], rate: float, seconds: float) -> dict[str, Any]:
    """Rename to sidecar at `rate` frames/s with one worker, as somebody who watches the directory sees it."""
    count = max(20, int(rate * seconds))
    with running(base, 1) as service:
        service.judge(pictures, _WARM)
        before = service.judged()
        waited_s = _watch(service, pictures, rate, count)
        give_up = time.monotonic() + 0.5
        while (judged := service.judged() - before) < count and time.monotonic() < give_up:
            time.sleep(0.01)  # the board is told after the sidecar; what is missing then was passed over
    ordered = sorted(1e3 * one for one in waited_s)
    return {
        "rate": rate,
        "frames": count,
        "judged": judged,
        **{f"p{pct:g}_ms": round(percentile(ordered, pct), 2) for pct in PERCENTILES},
        "max_ms": round(ordered[-1], 2),
        "curve_ms": [round(percentile(ordered, at / 2), 2) for at in range(200)],
    }


def percentile(ordered: Sequence[float], pct: float) -> float:
    """The value below which `pct` percent of the ordered values lie."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * pct / 100))]


def _watch(service: Running, pictures: Sequence[Path], rate: float, count: int) -> list[float]:
    """Seconds from the rename of each frame to its sidecar."""
    published: dict[str, float] = {}  # by sidecar: when its frame was
    waited_s: list[float] = []
    observer = INotify(nonblocking=True)
    try:
        observer.add_watch(str(service.dirs[0]), flags.CREATE)
        begun = time.monotonic()
        for number in range(count):
            while (wait_s := begun + number / rate - time.monotonic()) > 0:
                waited_s += _seen(observer, published, wait_s)
            name = f"capture_{service.next_number:09d}.json"
            published[name] = time.monotonic()
            service.publish(pictures)
        give_up = time.monotonic() + STALL_S
        while published and time.monotonic() < give_up:
            waited_s += _seen(observer, published, 0.1)
    finally:
        observer.close()
    if published:
        raise StillwatchError(f"{len(published)} of {count} frames were not judged; is the machine overloaded?")
    return waited_s


def _seen(observer: INotify, published: dict[str, float], wait_s: float) -> list[float]:
    """Seconds that each sidecar took that appears within `wait_s`."""
    events = observer.read(timeout=max(1, int(wait_s * 1000)))
    now = time.monotonic()
    return [now - published.pop(event.name) for event in events if event.name in published]
