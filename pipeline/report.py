"""The self-report: what the supervisor logs about every process and every source, and the books.

Each number is named once, here and in the README ("The numbers it prints"). Measured by the supervisor alone, with
psutil; the children pay nothing for it.
"""

from __future__ import annotations

import logging
import os

import psutil

from pipeline import pihealth
from pipeline.board import Board, ChildRow, SourceRow
from pipeline.child import event, log
from pipeline.diskwrites import written_bytes
from pipeline.model import CaptureState, SourceState, State
from pipeline.ring import Books, Lane, Ring

BOOKS = ("published", "judged", "invalid", "skipped", "vanished", "in_flight")
"""published = judged + invalid + skipped + vanished + in_flight"""

_NS = 1_000_000_000


class Report:
    """Writes the self-report of one service. CPU shares are of the time since the last report."""

    def __init__(self, ring: Ring, board: Board, sys_root: str = pihealth.SYS) -> None:
        self._ring = ring
        self._board = board
        self._sys_root = sys_root
        self._cpu_before: dict[int, tuple[float, int]] = {}  # pid -> CPU seconds, when looked at
        self._sd_first = self._written() or 0  # by this process before it was a service: pip may have been run in it
        self._sd_before = 0, int(board.memory.started_ns)  # bytes, when looked at

    def write(self, now_ns: int) -> None:
        """One line for the host, one per process, one per source with its books, and the books of all sources."""
        self._host(now_ns)
        seen = dict(self._cpu_before)
        self._cpu_before.clear()
        self._process("supervisor", os.getpid(), self._board.memory.started_ns, seen, now_ns)
        for child in self._board.children:
            if child.pid:
                values = _child_values(child, now_ns)
                self._process(child.name.decode(), child.pid, child.started_ns, seen, now_ns, **values)
        for lane, row in self._board.sources:
            self._source(self._ring.lanes[lane], row, now_ns)
        self.write_books("books")

    def write_books(self, name: str) -> None:
        """The books of all sources together; ERROR if an account does not balance."""
        accounts = [self._ring.lanes[lane].books() for lane, _ in self._board.sources]
        values = {key: sum(getattr(books, key) for books in accounts) for key in BOOKS}
        balanced = all(books.balanced for books in accounts)
        _log(balanced, event(name, **values, balanced="yes" if balanced else "NO"), "supervisor")

    def write_source_books(self, name: str) -> None:
        """The books of every source."""
        for lane, _ in self._board.sources:
            self.write_books_of(lane, name)

    def write_books_of(self, lane: int, name: str) -> None:
        """The books of one source."""
        books, source = self._ring.lanes[lane].books(), self._board.memory.sources[lane].name.decode()
        _log(books.balanced, event(name, source=source, **books_values(books)), "supervisor")

    def measure_disk(self) -> bool:
        """Bring the board's count of bytes written to disks up to date; False where the kernel does not count."""
        total, memory = self._written(), self._board.memory
        if total is not None:  # a file that goes before it was written is taken back, but a counter must not fall
            memory.sd_bytes = max(int(memory.sd_bytes), total - self._sd_first)
        return total is not None

    def _written(self) -> int | None:
        return written_bytes([os.getpid(), *(child.pid for child in self._board.children if child.pid)])

    def _host(self, now_ns: int) -> None:
        memory, (bytes_before, looked_ns) = self._board.memory, self._sd_before
        if self.measure_disk():
            written = int(memory.sd_bytes) - bytes_before
            memory.sd_bytes_per_s = int(written / max((now_ns - looked_ns) / _NS, 1e-3))
            self._sd_before = int(memory.sd_bytes), now_ns
        health = pihealth.read(self._sys_root)
        values = {
            "temperature_c": _known(health.temperature_c, ".1f"),
            "throttled": _known(health.throttled, "#x"),
            "under_voltage": {True: "yes", False: "no", None: "null"}[health.under_voltage],
            "load": f"{os.getloadavg()[0]:.2f}",
            "memory_available_mb": psutil.virtual_memory().available // 2**20,
            "sd_bytes_per_s": memory.sd_bytes_per_s if memory.sd_bytes_per_s >= 0 else "null",
        }
        _log(True, event("report", **values), "host")

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
            **({"capture": CaptureState(row.capture_state).name.lower()} if row.capture_state else {}),
            "frame_age_s": _age(row.last_put_ns, now_ns),
            "lag_ms": f"{row.lag_ns / 1e6:.1f}",
            "max_lag_ms": f"{row.max_lag_ns / 1e6:.1f}",
            "black": row.black_frames,
            "freeze": row.freeze_frames,
            "no_signal": row.no_signal_frames,
            "silent": row.silent_frames,
            "zaps": row.zaps,
            "unknown": row.unknown_frames,
            **books_values(books),
        }
        deleted = {"frames_removed": row.frames_removed, "sidecars_removed": row.sidecars_removed}
        values.update({name: count for name, count in deleted.items() if count})
        values.update({name: count for name, count in {"lane_refused": lane.refused, **troubles(row)}.items() if count})
        _log(books.balanced, event("report", **values), f"source/{row.name.decode()}")


def _log(good: bool, text: str, who: str) -> None:
    log.log(logging.INFO if good else logging.ERROR, text, extra={"who": who})


def books_values(books: Books) -> dict[str, object]:
    """The books in the order of their equation."""
    return {**{key: getattr(books, key) for key in BOOKS}, "balanced": "yes" if books.balanced else "NO"}


def troubles(row: SourceRow) -> dict[str, int]:
    """Counters that stay zero while all is well."""
    return {
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
        "evidence_missed": row.evidence_missed,
        "hold_failures": row.hold_failures,
        "hold_dropped": row.hold_dropped,
        "ffmpeg_restarts": row.ffmpeg_restarts,
        "ffmpeg_stalls": row.ffmpeg_stalls,
        "frames_evicted": row.frames_evicted,
        "tmp_removed": row.tmp_removed,
    }


def _child_values(child: ChildRow, now_ns: int) -> dict[str, object]:
    return {
        "state": State(child.state).name,
        "core": child.cpu if child.cpu >= 0 else "any",
        "restarts": child.restarts,
        "turns": child.turns,
        "heartbeat_age_s": _age(child.heartbeat_ns, now_ns),
        **({"log_dropped": child.log_dropped} if child.log_dropped else {}),
    }


def age_s(then_ns: int, now_ns: int) -> float | None:
    """Seconds since an instant of the board, to a tenth; None for never."""
    return round(max(0, now_ns - then_ns) / _NS, 1) if then_ns else None


def _known(value: float | None, form: str) -> str:
    """A number as text; `null` for what this machine does not tell."""
    return "null" if value is None else format(value, form)


def _age(then_ns: int, now_ns: int) -> str:
    found = age_s(then_ns, now_ns)
    return "never" if found is None else f"{found:.1f}"
