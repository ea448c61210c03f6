"""A day without network, compressed, on the real uploader: the measurement `offline`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pipeline.hold import Hold
from pipeline.settings import Settings
from tests.benchmarks.stage import bucket, state_dir
from tests.benchmarks.tools import memory_dir
from tests.recordings import objects_of
from tests.s3_servers import free_ports, settings_for
from tests.support import wait_until
from tests.uploads import UploaderProcess, closed, counters, evidence, incident, make_hold, make_settings, publish, rows

DAY_INCIDENTS = 960  # one in 90 s
FRAME_BYTES, THUMB_BYTES = 60_000, 6_000


def offline(_seconds: float) -> dict[str, object]:
    """24 hours offline, compressed: ten times the bound of the spool arrives. Then the network comes back."""
    pictures = FRAME_BYTES + THUMB_BYTES
    bound = DAY_INCIDENTS * 4 * pictures // 10
    with memory_dir() as base, state_dir() as state, bucket() as (server, certificate):
        settings = make_settings(base, state_dir=str(state), spool_max_bytes=bound, source=())
        hold = make_hold(settings)
        nobody = settings_for(free_ports(1)[0], certificate)
        with UploaderProcess(base, settings, nobody) as uploader, Sampler(state / "spool") as sampler:
            begun = time.monotonic()
            for number in range(DAY_INCIDENTS):
                wait_until(lambda: len(hold.waiting()) < 6, 30, "the keeper")
                _show(hold, number, uploader)
            wait_until(lambda: not hold.waiting(), 30, "the keeper")
            took_s = round(time.monotonic() - begun, 1)
            uploader.stop()
        found = _after_a_day(settings)
        with UploaderProcess(base, settings, server) as uploader:
            wait_until(lambda: "kept" not in evidence(settings).values(), 120, uploader.log)
            uploader.stop()
        stored = [place for place, where in evidence(settings).items() if where == "stored"]
        wanted = {key: data for place in stored for key, data in _wanted(*place).items()}
        objects = objects_of(server, settings.host)
        assert {key: data for key, data in objects.items() if not key.endswith("incident.json")} == wanted
        sizes = {"bound_mb": bound / 1e6, "arrived_mb": DAY_INCIDENTS * 4 * pictures / 1e6, **sampler.found(bound)}
        return {"seconds": took_s, **sizes, **found, "stored_when_back": len(stored), "identical": "all"}


def _show(hold: Hold, number: int, uploader: UploaderProcess) -> None:
    """One incident, opened and closed."""
    opened = incident(number, f"s{number}")
    publish(hold, opened, files=_pictures(number, range(3)))
    publish(hold, closed(opened), "closed", _pictures(number, range(3, 4)))
    uploader.keeper_bell.ring()


def _pictures(number: int, which: range) -> dict[str, bytes]:
    """Pictures that no two incidents share."""
    sizes = {f"frame_{n}.jpg": FRAME_BYTES for n in which} | {f"thumb_{n}.jpg": THUMB_BYTES for n in which}
    return {name: hashlib.shake_128(f"{number} {name}".encode()).digest(size) for name, size in sizes.items()}


def _wanted(id_: str, kind: str) -> dict[str, bytes]:
    """What must be in the bucket of one transition."""
    number = int(id_, 16)
    home = f"alerts/black/rig1/s{number}/{id_}"
    which = range(3) if kind == "opened" else range(3, 4)
    return {f"{home}/{name}": data for name, data in _pictures(number, which).items()}


def _after_a_day(settings: Settings) -> dict[str, object]:
    """Every incident is in the log and closed; every piece of evidence is kept, or dropped and counted."""
    (total, ended) = rows(settings, "SELECT COUNT(*), COUNT(closed_at) FROM incidents")[0]
    assert total == ended == DAY_INCIDENTS
    places = Counter(evidence(settings).values())
    dropped = {place.partition(":")[2]: count for place, count in places.items() if place.startswith("dropped:")}
    assert places["kept"] + sum(dropped.values()) == 2 * DAY_INCIDENTS, places
    assert counters(settings) == {f"evidence_dropped_{reason}": count for reason, count in dropped.items()}
    return {"incidents_in_the_log": total, "kept": places["kept"], "dropped_and_counted": dropped}


class Sampler:
    """Looks at the size of a directory without a pause."""

    def __init__(self, path: Path) -> None:
        self._path, self._sizes, self._stopping = path, list[int](), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def found(self, bound: int) -> Mapping[str, object]:
        """The biggest size, and how often it was over the bound."""
        over = [size for size in self._sizes if size > bound]
        return {"samples": len(self._sizes), "max_mb": max(self._sizes) / 1e6, "samples_over_bound": len(over)}

    def _run(self) -> None:
        while not self._stopping.wait(0.002):
            self._sizes.append(_bytes_in(self._path))


def _bytes_in(path: Path) -> int:
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for folder in os.scandir(path):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                total += sum(entry.stat().st_size for entry in os.scandir(folder))
    return total
