"""The metrics file: what node_exporter's textfile collector serves for Prometheus. No port, no thread.

Written anew at READY and every METRICS_EVERY_S by rename, so that a half-written file is never served, and removed at
the end: it speaks of a service that runs. What a kill leaves has an age, which node_exporter tells
(node_textfile_mtime_seconds). Everybody may read it: node_exporter is another user. Names and units are Prometheus's:
base units, `_total` for counters, which begin at 0 with the service. Loaded only when a file is asked for: the library
takes 11 MB.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline import __version__, pihealth, snapshot
from pipeline.board import Board
from pipeline.incidents import Phase
from pipeline.model import RANK, LineState
from pipeline.snapshot import OUTCOMES, Snapshot

MODE = 0o644  # there is no secret in it


class MetricsFile:
    """Writes one service's metrics to `path`. Raises OSError when the file cannot be written."""

    def __init__(self, path: str, board: Board, state_dir: str) -> None:
        self._path, self._board, self._state_dir = path, board, state_dir

    def write(self) -> None:
        """Look, and write what was seen."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Look(snapshot.take(self._board, self._state_dir), time.time()))
        fresh = f"{self._path}.new"  # not *.prom: read by nobody
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
            with open(fd, "wb") as file:
                os.fchmod(fd, MODE)  # whatever the umask
                file.write(generate_latest(registry))
            os.rename(fresh, self._path)
        except OSError:
            with suppress(OSError):
                os.unlink(fresh)
            raise


class Look(Collector):
    """A snapshot, taken at `wall_s`, as Prometheus wants it."""

    def __init__(self, seen: Snapshot, wall_s: float) -> None:
        self._seen, self._wall_s = seen, wall_s

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        yield InfoMetricFamily("stillwatch_build", "The version that runs", value={"version": __version__})
        yield from self._sources()
        yield from self._processes()
        yield from self._host()
        yield from self._evidence()

    def _sources(self) -> Iterator[Metric]:
        published = CounterMetricFamily("stillwatch_frames_published", "Frames that came", labels=["source"])
        done = CounterMetricFamily("stillwatch_frames", "What became of frames", labels=["source", "outcome"])
        newest = GaugeMetricFamily("stillwatch_last_frame_timestamp_seconds", "Newest frame", labels=["source"])
        watched = GaugeMetricFamily("stillwatch_source_watched", "1 while its directory is seen", labels=["source"])
        backlog = GaugeMetricFamily("stillwatch_backlog_frames", "Frames that wait", labels=["source"])
        lag = GaugeMetricFamily("stillwatch_lag_seconds", "Arrival to sidecar, newest frame", labels=["source"])
        incidents = CounterMetricFamily("stillwatch_incidents", "Incidents opened", labels=["source"])
        zaps = CounterMetricFamily("stillwatch_zaps", "Channel changes", labels=["source"])
        standing = GaugeMetricFamily(
            "stillwatch_condition_open", "1 while an incident is open", labels=["source", "condition"]
        )
        muted = GaugeMetricFamily(
            "stillwatch_source_muted", "1 while its incidents are not reported", labels=["source"]
        )
        troubles = CounterMetricFamily("stillwatch_troubles", "Should stay 0", labels=["source", "kind"])
        for source in self._seen.sources:
            published.add_metric([source.name], source.published)
            for outcome in OUTCOMES:
                done.add_metric([source.name, outcome], getattr(source, outcome))
            if source.frame_age_s is not None:
                newest.add_metric([source.name], round(self._wall_s - source.frame_age_s, 1))
            watched.add_metric([source.name], source.state in ("WATCHING", "POLLING"))
            backlog.add_metric([source.name], source.backlog)
            lag.add_metric([source.name], source.lag_ms / 1e3)
            incidents.add_metric([source.name], source.incidents)
            zaps.add_metric([source.name], source.zaps)
            for condition in RANK:
                phase = source.conditions.get(condition)
                standing.add_metric([source.name, condition], phase in (Phase.OPEN, Phase.RECOVERING))
            muted.add_metric([source.name], source.muted_until is not None)
            for kind, count in source.troubles.items():
                troubles.add_metric([source.name, kind], count)
        yield from (published, done, newest, watched, backlog, lag, incidents, zaps, standing, muted, troubles)

    def _processes(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("stillwatch_process_running", "1 while it runs", labels=["process"])
        cpu = CounterMetricFamily("stillwatch_process_cpu_seconds", "CPU of the present process", labels=["process"])
        memory = GaugeMetricFamily("stillwatch_process_resident_memory_bytes", "Resident memory", labels=["process"])
        restarts = CounterMetricFamily("stillwatch_process_restarts", "Deaths made good", labels=["process"])
        for process in self._seen.processes:
            running.add_metric([process.name], process.state == "RUNNING")
            if process.cpu_s is not None and process.memory_bytes is not None:
                cpu.add_metric([process.name], process.cpu_s)
                memory.add_metric([process.name], process.memory_bytes)
            restarts.add_metric([process.name], process.restarts)
        yield from (running, cpu, memory, restarts)

    def _host(self) -> Iterator[Metric]:
        host = self._seen.host
        yield CounterMetricFamily("stillwatch_sd_written_bytes", "Written to disks, all processes", value=host.sd_bytes)
        if host.temperature_c is not None:
            yield GaugeMetricFamily("stillwatch_temperature_celsius", "Of the processor", value=host.temperature_c)
        if host.throttled is not None:
            throttled = GaugeMetricFamily("stillwatch_throttled", "1 while it is so", labels=["reason", "since"])
            for since, shift in (("now", 0), ("boot", pihealth.SINCE_BOOT)):
                for bit, reason in enumerate(pihealth.FLAGS):
                    throttled.add_metric([reason, since], host.throttled >> (shift + bit) & 1)
            yield throttled
        if host.under_voltage is not None:
            yield GaugeMetricFamily("stillwatch_under_voltage", "1 while it is so", value=host.under_voltage)

    def _evidence(self) -> Iterator[Metric]:
        spool = self._seen.spool
        if spool.jobs is not None and spool.size_bytes is not None:
            yield GaugeMetricFamily("stillwatch_spool_jobs", "Transitions that wait for the store", value=spool.jobs)
            yield GaugeMetricFamily("stillwatch_spool_bytes", "What they take on the disk", value=spool.size_bytes)
        done = CounterMetricFamily("stillwatch_deliveries", "Since the uploader's start", labels=["line"])
        failures = GaugeMetricFamily("stillwatch_delivery_failures", "In a row, now", labels=["line"])
        paused = GaugeMetricFamily("stillwatch_delivery_paused", "1 while a person must mend it", labels=["line"])
        for name, line in (("uploads", self._seen.uploads), ("notices", self._seen.notices)):
            done.add_metric([name], line.done)
            failures.add_metric([name], line.failures)
            paused.add_metric([name], line.state == LineState.PAUSED.name)
        yield from (done, failures, paused)
