"""What a service says of itself without being asked: the self-report, its state and life to systemd, metrics."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextlib import suppress

from pipeline.backoff import Backoff
from pipeline.board import Board
from pipeline.child import event, log
from pipeline.model import SourceState, describe
from pipeline.notify import Systemd
from pipeline.process import Timer
from pipeline.report import Report
from pipeline.settings import Settings

WORKER = "worker/"  # and its number: what workers are named
METRICS_EVERY_S = 15.0  # Prometheus's usual interval


class Telling:
    """All that is told by one service, in turns of its supervisor."""

    def __init__(self, settings: Settings, board: Board, report: Report, is_fresh: Callable[[int], bool]) -> None:
        """`is_fresh(now_ns)` says whether all turn who must."""
        self._settings, self._board, self._report, self._is_fresh = settings, board, report, is_fresh
        self._systemd = Systemd(os.environ)
        self._status_told = ""
        self._metrics: Callable[[], None] | None = None
        self._metrics_trouble = Backoff()
        self._report_timer = Timer(settings.report_every_s, self.report)
        self.timers = self._timers()

    def ready(self) -> None:
        """All is armed from now on."""
        self._status_told = self._status()
        self._systemd.ready(self._status_told)
        if self._settings.metrics_file:
            self._write_metrics(int(self._board.memory.ready_ns))

    def turn(self) -> None:
        """STATUS=, if there is news."""
        if self._board.memory.ready_ns and (text := self._status()) != self._status_told:
            self._status_told = text
            self._systemd.status(text)

    def report(self, now_ns: int) -> None:
        """The self-report."""
        self._report.write(now_ns)
        self._status_told = ""  # what was lost on its way is told again

    def every(self, report_every_s: float) -> None:
        """Another time between two self-reports."""
        self._report_timer.renew(report_every_s)

    def stopping(self) -> None:
        """The service has begun to stop."""
        self._systemd.stopping()
        if self._metrics is not None:  # they would say for ever that it runs
            with suppress(OSError):
                os.unlink(self._settings.metrics_file)

    def _timers(self) -> tuple[Timer, ...]:
        timers = [self._report_timer]
        if self._settings.metrics_file:
            timers.append(Timer(METRICS_EVERY_S, self._write_metrics))
        if self._systemd.watchdog_s:
            timers.append(Timer(self._systemd.watchdog_s / 3, self._tell_alive))
        return tuple(timers)

    def _write_metrics(self, now_ns: int) -> None:
        path = self._settings.metrics_file
        try:
            if self._metrics is None:
                module = importlib.import_module("pipeline.metrics")
                self._metrics = module.MetricsFile(path, self._board, self._settings.state_dir).write
            self._report.measure_disk()
            self._metrics()
        except OSError as error:
            if self._metrics_trouble.failed(now_ns):
                log.warning(event("metrics not written", file=path, cause=describe(error)))
        else:
            self._metrics_trouble.worked()

    def _tell_alive(self, now_ns: int) -> None:
        """The watchdog barks unless supervisor, watcher and workers all turn."""
        if self._board.memory.ready_ns and self._is_fresh(now_ns):
            self._systemd.alive()

    def _status(self) -> str:
        rows = [row for _, row in self._board.sources]
        seen = sum(row.state in (SourceState.WATCHING, SourceState.POLLING) for row in rows)
        workers = sum(row.name.startswith(WORKER.encode()) for row in self._board.children)
        incidents = sum(row.open_incidents for row in rows)
        return f"{seen} of {len(rows)} sources, {workers} workers, {incidents} open incidents"
