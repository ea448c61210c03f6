"""What storms of SIGKILL cost, in frames and in incidents; each measured on this machine by one word:

    .venv/bin/python -m tests.benchmarks.kills WHAT ... [--seconds N]

The tests assert (`tests/test_faults_processes.py`, `tests/test_faults_incidents.py`); this does it for longer and
prints.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from inotify_simple import INotify, flags

from tests.benchmarks.tools import Measurement, main, memory_dir
from tests.live import total
from tests.storms import child_storm, supervisor_storm
from tests.support import Rig, make_frame, publish, sidecars


def worker_kills(_seconds: float) -> dict[str, object]:
    """400 SIGKILLs of random workers while 20,000 small frames pass, one after every 50 sidecars."""
    return _storm("worker", kills=400, frames=20_000, sources=4)


def watcher_kills(_seconds: float) -> dict[str, object]:
    """60 SIGKILLs of the watcher while 3,000 small frames pass, one after every 50 sidecars."""
    return _storm("watcher", kills=60, frames=3_000, sources=2)


def _storm(role: str, kills: int, frames: int, sources: int) -> dict[str, object]:
    """Kill children of a role while frames pass; what was lost, doubled or spoilt."""
    names = tuple("abcdefgh"[:sources])
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    data = [make_frame(n) for n in range(20)]
    with memory_dir() as base, Rig(base, "--workers=2", sources=names) as service:
        observer = INotify(nonblocking=True)
        for directory in service.dirs.values():
            observer.add_watch(str(directory), flags.CREATE)
        published = done = killed = 0
        while done < frames:
            allowed = frames if killed == kills else (killed + 1) * frames // kills  # the rest waits for its kill
            while published < allowed:
                name = names[published % sources]
                publish(service.dirs[name], published // sources, data[published % len(data)])
                published += 1
            done += sum(event.name.endswith(".json") for event in observer.read(timeout=20))
            victims = service.children(role) if killed < kills and done >= killed * frames // kills else []
            if victims:
                chance.choice(victims).kill()
                killed += 1
        observer.close()
        found = {name: sidecars(directory) for name, directory in service.dirs.items()}
        troubles = {key: total(service, key) for key in ("duplicates", "stale_sidecars")}
        accounts = service.books().values()
    outcomes = {key: sum(account[key] for account in accounts) for key in ("judged", "invalid", "skipped", "vanished")}
    lost = frames - sum(map(len, found.values()))
    return {"seed": seed, "kills": killed, "frames": frames, "lost": lost, **outcomes, **troubles, "books": "balanced"}


def child_kills(seconds: float) -> dict[str, object]:
    """SIGKILL of every child once a second, under load: what becomes of incidents."""
    with memory_dir() as base, tempfile.TemporaryDirectory() as state:
        return child_storm(base, Path(state), seconds, random.randrange(2**32)).counts()


def supervisor_kills(_seconds: float) -> dict[str, object]:
    """Ten SIGKILLs of the supervisor, each after READY: what becomes of incidents."""
    with memory_dir() as base, tempfile.TemporaryDirectory() as state:
        return supervisor_storm(base, Path(state), 10, random.randrange(2**32)).counts()


MEASUREMENTS: dict[str, Measurement] = {
    "worker-kills": worker_kills,
    "watcher-kills": watcher_kills,
    "child-kills": child_kills,
    "supervisor-kills": supervisor_kills,
}


if __name__ == "__main__":
    main(__doc__, MEASUREMENTS, seconds=120.0)
