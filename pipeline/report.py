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

BOOKS = ("published", "judged", "invalid", "skipped", "vanished", "in_flight")
"""published = judged + invalid + skipped + vanished + in_flight"""

_NS = 1_000_000_000


class Report:
    """Writes the self-report of one service. CPU shares are of the time since the last report."""

    def __init__(self, ring: Ring, board: Board) -> None:
        self._ring = ring
        self._board = board
        self._cpu_before: dict[int, tuple[float, int]] = {}  # pid -> CPU seconds, when looked at

    def write(self, now_ns: int) -> None:
        """One line per process, one per source with its books, and the books of all sources together."""
        seen = dict(self._cpu_before)
        self._cpu_before.clear()
        self._process("supervisor", os.getpid(), self._board.memory.started_ns, seen, now_ns)
        for child in self._board.children:
            if child.pid:
                values = _child_values(child, now_ns)
                self._process(child.name.decode(), child.pid, child.started_ns, seen, now_ns, **values)
        for lane, row in zip(self._ring.lanes, self._board.sources, strict=False):
            self._source(lane, row, now_ns)
        self.write_books("books")

    def write_books(self, name: str) -> None:
        """The books of all sources together; ERROR if an account does not balance."""
        accounts = [lane.books() for lane, _ in zip(self._ring.lanes, self._board.sources, strict=False)]
        values = {key: sum(getattr(books, key) for books in accounts) for key in BOOKS}
        balanced = all(books.balanced for books in accounts)
        _log(balanced, event(name, **values, balanced="yes" if balanced else "NO"), "supervisor")

    def write_source_books(self, name: str) -> None:
        """The books of every source."""
        for lane, row in zip(self._ring.lanes, self._board.sources, strict=False):
            books = lane.books()
            _log(books.balanced, event(name, source=row.name.decode(), **books_values(books)), "supervisor")

    def _process(
        self, name: str, pid: int, started_ns: int, seen: dict[int, tuple[float, int]], now_ns: int, **values: object
    ) -> None:
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                times, memory, switches = process.cpu_times(), process.memory_info(), process.num_ctx_switches()
        except psutil.Error:
            return  # it has just died; its successor is reported next time
        used = times.user + times.system
        used_before, looked_ns = seen.get(pid, (0.0, started_ns))
        self._cpu_before[pid] = used, now_ns
        cpu_pct = 100 * (used - used_before) / max((now_ns - looked_ns) / _NS, 1e-3)
        figures = {"cpu_pct": f"{cpu_pct:.2f}", "rss_mb": f"{memory.rss / 2**20:.1f}", "wakeups": switches.voluntary}
        _log(True, event("report", pid=pid, **figures, **values), name)

    def _source(self, lane: Lane, row: SourceRow, now_ns: int) -> None:
        books = lane.books()
        values: dict[str, object] = {
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
        _log(books.balanced, event("report", **values), f"source/{row.name.decode()}")


def _log(good: bool, text: str, who: str) -> None:
    log.log(logging.INFO if good else logging.ERROR, text, extra={"who": who})


def books_values(books: Books) -> dict[str, object]:
    """The books in the order of their equation."""
    return {**{key: getattr(books, key) for key in BOOKS}, "balanced": "yes" if books.balanced else "NO"}


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
