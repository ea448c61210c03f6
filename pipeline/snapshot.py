"""What a running service looks like from outside, at one moment: read from its board, its spool and its incident log.

Nobody is asked and nothing is written, so that looking disturbs nothing; rates are the difference of two looks. For
`status` and for the metrics file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress

import msgspec
import psutil

from pipeline import mutes, pihealth
from pipeline.board import Board, BoardMemory, ChildRow, LineRow, SourceRow
from pipeline.incidents import unpack_phases
from pipeline.model import LineState, SourceState, State
from pipeline.report import age_s, troubles
from pipeline.sidecar import timestamp
from pipeline.spool import SPOOL_DIR, Spool

OUTCOMES = ("judged", "invalid", "skipped", "vanished")
_NS = 1_000_000_000
_TICK_NS = 20_000_000  # the kernel's stamp of a process is as exact as this
_START_TIME = 19  # field of /proc/PID/stat, counted behind the name: in ticks since the boot, sleep included


class ProcessView(msgspec.Struct, frozen=True):
    """One process. CPU is of one core, since it started."""

    name: str
    pid: int
    state: str
    core: int | None
    cpu_s: float | None
    memory_bytes: int | None  # resident
    restarts: int
    heartbeat_age_s: float | None
    uptime_s: float


class SourceView(msgspec.Struct, frozen=True):
    """One source."""

    name: str
    state: str
    published: int
    judged: int
    invalid: int
    skipped: int
    vanished: int
    backlog: int
    frame_age_s: float | None
    last_number: int
    lag_ms: float
    max_lag_ms: float
    conditions: dict[str, str]  # those that are not clear
    open_incidents: int
    incidents: int
    zaps: int  # channel changes
    troubles: dict[str, int]  # what should be zero and is not
    muted_until: str | None  # UTC; None: its incidents are reported


class LineView(msgspec.Struct, frozen=True):
    """Uploads, or notices."""

    state: str
    failures: int
    retry_in_s: float | None
    done: int


class SpoolView(msgspec.Struct, frozen=True):
    """Evidence on the disk that waits for the store; None where it may not be looked at."""

    jobs: int | None
    size_bytes: int | None


class HostView(msgspec.Struct, frozen=True):
    """The machine; None for what it does not tell."""

    temperature_c: float | None
    throttled: int | None  # bits: see pihealth
    under_voltage: bool | None
    load: float
    memory_available_bytes: int
    sd_bytes: int  # written to disks since the start, by all processes
    sd_bytes_per_s: int | None  # between the last two self-reports


class Snapshot(msgspec.Struct, frozen=True):
    """The service at one moment."""

    running: bool
    pid: int
    uptime_s: float | None  # of one that has ended, until its last sign of life; None: not known
    ended_age_s: float | None  # since that last sign; None while it runs, or not known
    ready_after_s: float | None
    taken_ns: int  # monotonic
    processes: list[ProcessView]
    sources: list[SourceView]
    host: HostView
    spool: SpoolView
    uploads: LineView
    notices: LineView


def take(board: Board, state_dir: str) -> Snapshot:
    """Look once."""
    now_ns, memory = time.monotonic_ns(), board.memory
    pid, started_ns = int(memory.supervisor_pid), int(memory.started_ns)
    supervisor = ChildRow(name=b"supervisor", pid=pid, state=State.RUNNING, started_ns=started_ns, cpu=-1)
    running = _is_ours(pid, started_ns)
    last_ns = now_ns if running else _last_sign_ns(board, now_ns)
    mutes_ns = mutes.read(state_dir)
    ready_ns = int(memory.ready_ns)
    return Snapshot(
        running=running,
        pid=pid,
        uptime_s=round((last_ns - started_ns) / _NS, 1) if last_ns else None,
        ended_age_s=round((now_ns - last_ns) / _NS, 1) if last_ns and not running else None,
        ready_after_s=round((ready_ns - started_ns) / _NS, 3) if ready_ns else None,
        taken_ns=now_ns,
        processes=[_process(row, now_ns) for row in (supervisor, *board.children)] if running else [],
        sources=[_source(row, now_ns, mutes_ns.get(row.name.decode(), 0)) for _, row in board.sources],
        host=_host(memory),
        spool=_spool(state_dir),
        uploads=_line(memory.uploads, now_ns),
        notices=_line(memory.notices, now_ns),
    )


def rates(earlier: Snapshot, later: Snapshot) -> Mapping[str, tuple[float, float]]:
    """Frames per second, published and judged, of each source between two looks."""
    took_s = max((later.taken_ns - earlier.taken_ns) / _NS, 1e-3)
    before = {source.name: source for source in earlier.sources}
    found = {}
    for source in later.sources:
        known = before.get(source.name, source)
        found[source.name] = ((source.published - known.published) / took_s, (source.judged - known.judged) / took_s)
    return found


def cpu_pct(earlier: Snapshot, later: Snapshot) -> Mapping[int, float]:
    """CPU of each process between two looks, in percent of one core."""
    took_s = max((later.taken_ns - earlier.taken_ns) / _NS, 1e-3)
    before = {process.pid: process.cpu_s for process in earlier.processes}
    return {
        process.pid: 100 * (process.cpu_s - (before.get(process.pid) or 0.0)) / took_s
        for process in later.processes
        if process.cpu_s is not None and before.get(process.pid) is not None
    }


def _is_ours(pid: int, started_ns: int) -> bool:
    """Whether the supervisor lives: the board's file outlives it, and its number may be another process's by now."""
    try:
        named = "stillwatch" in " ".join(psutil.Process(pid).cmdline())
        return named and _born_ns(pid) <= started_ns + _TICK_NS
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False


def _born_ns(pid: int) -> int:
    """When a process began, on the monotonic clock, which a step of the other one does not move; 0 where that is not
    told."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[_START_TIME])
    except OSError:
        return 0
    slept_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return ticks * _NS // os.sysconf("SC_CLK_TCK") - slept_ns


def _last_sign_ns(board: Board, now_ns: int) -> int:
    """The newest heartbeat of a service that has ended; 0 where none is known: it never ran, or in an earlier boot."""
    newest_ns = max((int(row.heartbeat_ns) for row in board.children), default=0)
    return newest_ns if int(board.memory.started_ns) <= newest_ns <= now_ns else 0


def _process(row: ChildRow, now_ns: int) -> ProcessView:
    cpu_s, memory_bytes = None, None
    if row.pid:
        with suppress(psutil.Error):
            process = psutil.Process(row.pid)
            times = process.cpu_times()
            cpu_s, memory_bytes = times.user + times.system, process.memory_info().rss
    return ProcessView(
        row.name.decode(),
        row.pid,
        State(row.state).name,
        row.cpu if row.cpu >= 0 else None,
        cpu_s,
        memory_bytes,
        row.restarts,
        age_s(row.heartbeat_ns, now_ns),
        round((now_ns - row.started_ns) / _NS, 1),
    )


def _source(row: SourceRow, now_ns: int, muted_ns: int) -> SourceView:
    outcomes = {name: int(getattr(row, name)) for name in OUTCOMES}
    return SourceView(
        name=row.name.decode(),
        state=SourceState(row.state).name,
        published=row.published,
        **outcomes,
        backlog=max(0, row.published - sum(outcomes.values())),
        frame_age_s=age_s(row.last_put_ns, now_ns),
        last_number=row.last_number,
        lag_ms=round(row.lag_ns / 1e6, 1),
        max_lag_ms=round(row.max_lag_ns / 1e6, 1),
        conditions={condition: phase.value for condition, phase in unpack_phases(row.phases).items()},
        open_incidents=row.open_incidents,
        incidents=row.incidents,
        zaps=row.zaps,
        troubles={name: count for name, count in troubles(row).items() if count},
        muted_until=timestamp(muted_ns) if muted_ns > time.time_ns() else None,
    )


def _host(memory: BoardMemory) -> HostView:
    health, rate = pihealth.read(), int(memory.sd_bytes_per_s)
    return HostView(
        health.temperature_c,
        health.throttled,
        health.under_voltage,
        round(os.getloadavg()[0], 2),
        psutil.virtual_memory().available,
        memory.sd_bytes,
        rate if rate >= 0 else None,
    )


def _line(row: LineRow, now_ns: int) -> LineView:
    state = LineState(row.state)
    retry_in_s = round(max(0, row.due_ns - now_ns) / _NS, 1) if state in (LineState.FAILING, LineState.PAUSED) else None
    return LineView(state.name, row.failures, retry_in_s, row.done)


def _spool(state_dir: str) -> SpoolView:
    """Sizes as the directory tells; a job may go while we look."""
    try:
        jobs = Spool(os.path.join(state_dir, SPOOL_DIR)).jobs()
        size_bytes = 0
        for job in jobs:
            with suppress(FileNotFoundError, NotADirectoryError):
                size_bytes += sum(entry.stat().st_size for entry in os.scandir(job))
    except PermissionError:
        return SpoolView(None, None)
    return SpoolView(len(jobs), size_bytes)
