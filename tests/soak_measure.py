"""What the soak measures: memory and descriptors of every process over time, whether they grow, and pictures of it."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from tests.support import open_descriptors

YOUNG_S = (6.0, 16.0)
"""At this age a child that is killed once a minute is compared with its predecessors: all has been loaded by then."""

WARM_S = 60.0  # of a process that lives on: until then it is still loading, and caches fill
GROWTH_MB = 1.0  # of a process that lives on, over the whole soak
YOUNG_GROWTH_MB = 2.0  # of one generation against another: what a child of one age has done differs
STORE_MB, STORE_MOST_MB = 0.012, 4.5
"""A new uploader walks the local store and reads the log, of which SQLite keeps 2 MB: for each incident, and at most.
In a soak it was 12.6 MB with 15, 17.5 with 410 and no more with 762; 16.9 with 1,800 of recordings."""
MIB = 2**20


class Sample(NamedTuple):
    """One look at one process."""

    at_s: float  # since the soak began
    name: str
    pid: int
    age_s: float
    rss_mb: float
    pss_mb: float
    uss_mb: float
    descriptors: int


class Trend(NamedTuple):
    """Whether something grew: the Theil-Sen slope (the median of the slopes between all pairs of points, which single
    wild points do not move) over the time from the first point to the last."""

    name: str
    what: str
    points: int
    median: float
    slope_per_h: float
    growth: float
    limit: float

    @property
    def flat(self) -> bool:
        """Fewer than three points say nothing."""
        return self.points < 3 or self.growth <= self.limit


def theil_sen(points: Sequence[tuple[float, float]]) -> float:
    """The median slope over all pairs of points (x, y); 0 for fewer than two."""
    x, y = (np.asarray(values, dtype=float) for values in zip(*points, strict=True))
    first, second = np.triu_indices(len(x), 1)
    apart = x[second] - x[first]
    slopes = (y[second] - y[first])[apart > 0] / apart[apart > 0]
    return float(np.median(slopes)) if slopes.size else 0.0


def trend(name: str, what: str, points: Sequence[tuple[float, float]], limit: float) -> Trend:
    """Judge points of (seconds, value)."""
    if not points:
        return Trend(name, what, 0, 0.0, 0.0, 0.0, limit)
    slope = theil_sen(points)
    span = points[-1][0] - points[0][0]
    return Trend(name, what, len(points), statistics.median(y for _, y in points), slope * 3600, slope * span, limit)


class Gauge:
    """Looks at processes, and keeps what it saw. `quiet` ones were taken while no frame came and every child ran."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self.samples: list[Sample] = []
        self.quiet: list[Sample] = []

    @property
    def now_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begun

    def look(self, pids: dict[str, int], *, quiet: bool = False) -> None:
        """One sample of each that is there."""
        for name, pid in pids.items():
            with contextlib.suppress(psutil.Error, OSError):  # killed just now
                process = psutil.Process(pid)
                memory = process.memory_full_info()
                age_s = time.time() - process.create_time()
                figures = (memory.rss / MIB, memory.pss / MIB, memory.uss / MIB)
                sample = Sample(self.now_s, name, pid, age_s, *figures, open_descriptors(pid))
                (self.quiet if quiet else self.samples).append(sample)

    def trends(self, long_lived: Iterable[str], killed: Iterable[str], stored: int = 0) -> list[Trend]:
        """Memory of processes that live on and, of those that are killed, of their generations at one age; and the
        descriptors of all. Judged by what a process has for itself (USS): its share of the libraries (PSS) changes with
        whoever else uses them. `stored`: incidents in the store."""
        found = []
        for name in long_lived:
            grown = [(s.at_s, s.uss_mb) for s in self.samples if s.name == name and s.age_s > WARM_S]
            found.append(trend(name, "USS MB", grown, GROWTH_MB))
        for name in killed:
            young = {s.pid: (s.at_s, s.uss_mb) for s in self.samples if s.name == name and _is_young(s)}
            limit = YOUNG_GROWTH_MB + (min(STORE_MB * stored, STORE_MOST_MB) if name == "uploader" else 0)
            found.append(trend(name, "USS MB when young", list(young.values()), limit))
        for name in (*long_lived, *killed):
            numbers = [(s.at_s, float(s.descriptors)) for s in self.quiet if s.name == name]
            found.append(trend(name, "descriptors", numbers, 0.5))
        return found

    def peak_mb(self, name: str) -> list[float]:
        """The largest RSS, PSS and USS of a process."""
        mine = [(s.rss_mb, s.pss_mb, s.uss_mb) for s in self.samples if s.name == name]
        return [max(figures) for figures in zip(*mine, strict=True)]


def _is_young(sample: Sample) -> bool:
    return YOUNG_S[0] <= sample.age_s <= YOUNG_S[1]


class Minute(NamedTuple):
    """The books at the end of a minute, summed over all sources."""

    at_s: float
    published: int  # renames, as the publisher counted them
    seen: int  # by the service
    judged: int
    invalid: int
    skipped: int
    vanished: int
    in_flight: int
    unseen: int  # deleted before the watcher could look
    incidents: int
    max_lag_ms: float  # put to sidecar, of the slowest frame so far
    memory_used_mb: float  # of the frames' file system


def plot(path: Path, title: str, gauge: Gauge, minutes: list[Minute]) -> str:
    """Write a PNG; empty, or why there is none."""
    try:
        import matplotlib  # noqa: PLC0415 - a soak without pictures is one all the same

        matplotlib.use("Agg")
        from matplotlib import pyplot  # noqa: PLC0415
    except ImportError as error:
        return f"no picture: {error}; pip install -r requirements-dev.txt"
    figure, panels = pyplot.subplots(2, 2, figsize=(13, 8), constrained_layout=True)
    figure.suptitle(title)
    for name in sorted({sample.name for sample in gauge.samples}):
        mine = [s for s in gauge.samples if s.name == name]
        panels[0, 0].plot([s.at_s / 60 for s in mine], [s.uss_mb for s in mine], ".", ms=3, label=name)
        calm = [s for s in gauge.quiet if s.name == name]
        panels[0, 1].plot([s.at_s / 60 for s in calm], [s.descriptors for s in calm], ".-", ms=4, label=name)
    at = [minute.at_s / 60 for minute in minutes]
    for label in ("published", "judged"):
        panels[1, 0].plot(at, [getattr(minute, label) for minute in minutes], ".-", label=label)
    for label in ("invalid", "skipped", "vanished", "incidents"):
        panels[1, 1].plot(at, [getattr(minute, label) for minute in minutes], ".-", label=label)
    captions = (
        "memory (USS, MB)",
        "descriptors, when all is quiet",
        "frames",
        "frames not judged; incidents",
    )
    for panel, caption in zip(panels.flat, captions, strict=True):
        panel.set_title(caption)
        panel.set_xlabel("minutes")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return ""
