"""Many files: how long a start takes over a full directory, and how soon a watcher has caught up that lost events."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.model import StillwatchError
from pipeline.speed.stage import Running, pss_mb, running

SIZES = (1_000, 10_000, 100_000, 220_000, 500_000)
"""Files: half frames, half sidecars. 220,000 is a day of one source at 1.3 frames/s."""

EVENTS = 20_000
_QUEUED = Path("/proc/sys/fs/inotify/max_queued_events")
_CATCH_UP_S = 60.0


def startup(base: Path, files: int) -> dict[str, Any]:
    """Seconds from the supervisor's first instant to READY over a directory of so many (empty) files."""
    with running(base, 1, fill=partial(_fill, files // 2)) as service:
        return {
            "files": files,
            "ready_s": round(service.ready_s, 3),
            "watcher_mb": round(sum(map(pss_mb, service.pids("watcher"))), 1),
        }


def _fill(frames: int, directory: Path) -> None:
    """Frames that have their sidecars: links to one empty file, because half a million inodes take 300 MB."""
    seed = directory / "seed"
    seed.touch()
    for number in range(frames):
        os.link(seed, directory / f"capture_{number:09d}.jpg")
        os.link(seed, directory / f"capture_{number:09d}.json")


def overflow(base: Path, picture: Path) -> dict[str, Any]:
    """Stop the watcher, publish more frames than the kernel keeps events of, and let it go on: how long until it knows
    of every frame."""
    events = max(EVENTS, int(_QUEUED.read_text()) + EVENTS // 5)
    with running(base, 1) as service:
        service.judge([picture], 1)
        watcher, row = service.pids("watcher")[0], service.board.sources[0][1]
        with _stopped(watcher):
            begun = time.monotonic()
            for _ in range(events):
                service.publish([picture])
            publish_s, begun = time.monotonic() - begun, time.monotonic()
        _wait(service, lambda: int(row.published) >= events + 1)
        took_s = time.monotonic() - begun
        if not row.overflows:
            raise StillwatchError(f"{events} events did not overflow the watcher's queue: nothing was measured")
        return {"events": events, "reconciled_s": round(took_s, 3), "published_in_s": round(publish_s, 2)}


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _wait(service: Running, condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + _CATCH_UP_S
    while not condition():
        if time.monotonic() > give_up or service.popen.poll() is not None:
            raise StillwatchError("the watcher did not catch up within 60 s; try `./stillwatch run` to see why")
        time.sleep(0.001)
