"""The self-report: what the supervisor logs about every process and every source, and the books.

Each number is named once, here and in the README ("The numbers it prints"). Measured by the supervisor alone, with
psutil; the children pay nothing for it.
"""

from __future__ import annotations

import logging
import os

import psutil

from pipeline.board import Board, ChildRow, SourceRow
from pipeline.child import event, log
from pipeline.model import SourceState, State
from pipeline.ring import Books, Lane, Ring

_NS = 1_000_000_000


class Report:
    """Writes the self-report of one service. CPU shares are of the time since the last report."""

    def __init__(self, ring: Ring, board: Board) -> None:
        self._ring = ring
        self._board = board
        self._processes: dict[int, psutil.Process] = {}
        self._before: dict[str, tuple[int, int]] = {}

    def write(self, now_ns: int) -> None:
        """One line per process, one per source with its books, and one for the whole."""
        self._process("supervisor", os.getpid())
        for child in self._board.children:
            if child.pid:
                self._process(child.name.decode(), child.pid, **_child_values(child, now_ns))
        lanes = self._ring.lanes
        for lane, row in zip(lanes, self._board.sources, strict=False):
            self._source(lane, row, now_ns)

    def write_books(self, *, final: bool = False) -> None:
        """The books of every source; `final` for the last word at a stop, where what is in flight is left."""
        for lane, row in zip(self._ring.lanes, self._board.sources, strict=False):
            books = lane.books()
            level = logging.INFO if books.balanced else logging.ERROR
            name = "books at stop" if final else "books"
            log.log(level, event(name, source=row.name.decode(), **books_values(books)))

    def _process(self, name: str, pid: int, **values: object) -> None:
        try:
            process = self._processes.get(pid) or psutil.Process(pid)
            self._processes[pid] = process
            with process.oneshot():
                cpu_pct, rss_mb = process.cpu_percent(), process.memory_info().rss / 2**20
                threads, switches = process.num_threads(), process.num_ctx_switches()
        except psutil.Error:
            self._processes.pop(pid, None)  # it has just died; its successor is reported next time
            return
        text = event(
            "report",
            process=name,
            pid=pid,
            cpu_pct=f"{cpu_pct:.2f}",
            rss_mb=f"{rss_mb:.1f}",
            threads=threads,
            wakeups=switches.voluntary,
            **values,
        )
        log.info(text)

    def _source(self, lane: Lane, row: SourceRow, now_ns: int) -> None:
        books = lane.books()
        values = {
            "state": SourceState(row.state).name.lower(),
            "frame_age_s": _age_s(row.last_put_ns, now_ns),
            "lag_ms": f"{row.lag_ns / 1e6:.1f}",
            "max_lag_ms": f"{row.max_lag_ns / 1e6:.1f}",
            "black": row.black_frames,
            "freeze": row.freeze_frames,
            "unknown": row.unknown_frames,
            **books_values(books),
        }
        values.update({name: count for name, count in troubles(lane, row).items() if count})
        level = logging.INFO if books.balanced else logging.ERROR
        log.log(level, event("report", source=row.name.decode(), **values))


def books_values(books: Books) -> dict[str, object]:
    """The books in the order of their equation."""
    return {
        "published": books.published,
        "judged": books.judged,
        "invalid": books.invalid,
        "skipped": books.skipped,
        "vanished": books.vanished,
        "in_flight": books.in_flight,
        "balanced": "yes" if books.balanced else "NO",
    }


def troubles(lane: Lane, row: SourceRow) -> dict[str, int]:
    """Counters that stay zero while all is well."""
    return {
        "lane_refused": lane.refused,
        "names_refused": row.refused_names,
        "left_behind": row.left_behind,
        "overflows": row.overflows,
        "rearmed": row.rearmed,
        "gaps": row.gaps,
        "numbering_restarts": row.numbering_restarts,
        "duplicates": row.duplicates,
        "stale_sidecars": row.stale_sidecars,
        "sidecar_failures": row.sidecar_failures,
        "unreadable": row.unreadable,
        "torn_slots": row.torn_slots,
        "buried": row.buried,
        "shed": row.shed,
    }


def _child_values(child: ChildRow, now_ns: int) -> dict[str, object]:
    return {
        "state": State(child.state).name,
        "core": child.cpu if child.cpu >= 0 else "any",
        "restarts": child.restarts,
        "turns": child.turns,
        "heartbeat_age_s": _age_s(child.heartbeat_ns, now_ns),
    }


def _age_s(then_ns: int, now_ns: int) -> str:
    return f"{max(0, now_ns - then_ns) / _NS:.1f}" if then_ns else "never"
