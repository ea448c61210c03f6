"""`status`: how a running service is, read from its board without asking anybody."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

import msgspec

from pipeline import console, incidentlog, installed, pihealth, snapshot
from pipeline.board import Board
from pipeline.model import Exit
from pipeline.snapshot import HostView, LineView, ProcessView, Snapshot, SourceView

LOOK_S = 1.0  # between two looks: rates are their difference
WATCH_S = 2.0
EPILOG = """\
examples:
  ./stillwatch status                     tables: sources, processes, evidence
  ./stillwatch status --watch             the same, again every 2 s, until Ctrl-C
  ./stillwatch status --json | jq '.sources[] | select(.frame_age_s > 5)'

Takes a second: frames per second and CPU are measured over it. Any user who may read the runtime directory may ask
(the group of the service); nobody is disturbed by it.
Exit codes: 0 it runs and every source is watched, 1 it does not run or a source is not watched, 66 there is no board.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `status`."""
    add = parser.add_argument
    add("--config", metavar="FILE", help="the service's settings: they name its directories")
    add("--runtime-dir", metavar="DIR", help=f"the service's runtime directory ({installed.WHICH})")
    add("--state-dir", metavar="DIR", help="the service's state directory (likewise)")
    add("--json", action="store_true", help="one JSON object")
    add("--watch", action="store_true", help=f"look again every {WATCH_S:.0f} s")


def run(arguments: argparse.Namespace) -> int:
    """Show it once, or until interrupted."""
    settings = installed.settings_for_reading(arguments)
    before = look(settings.runtime_dir, settings.state_dir)
    while True:
        time.sleep(LOOK_S if not arguments.watch else WATCH_S)
        now = look(settings.runtime_dir, settings.state_dir)
        if arguments.watch and sys.stdout.isatty():
            console.clear()
        if arguments.json:
            told = as_json(before, now) | {"given_up": incidentlog.read_counters(settings.state_dir)}
            sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
        else:
            show(before, now)
            _show_given_up(settings.state_dir)
        sys.stdout.flush()
        if not arguments.watch:
            return Exit.OK if is_well(now) else Exit.FAILED
        before = now


def look(runtime_dir: str, state_dir: str) -> Snapshot:
    """One look at the service of these directories. Raises InputError when there is none."""
    board = Board.open(runtime_dir)
    try:
        return snapshot.take(board, state_dir)
    finally:
        os.close(board.fd)


def is_well(now: Snapshot) -> bool:
    """Whether the service runs, is ready, and sees every source."""
    return (
        now.running and now.ready_after_s is not None and all(s.state in ("WATCHING", "POLLING") for s in now.sources)
    )


def as_json(before: Snapshot, now: Snapshot) -> dict[str, Any]:
    """Everything that is known, with the rates of the time between two looks."""
    told: dict[str, Any] = msgspec.to_builtins(now)
    del told["taken_ns"]
    rates, cpu = snapshot.rates(before, now), snapshot.cpu_pct(before, now)
    for source in told["sources"]:
        source["published_fps"], source["judged_fps"] = (round(rate, 2) for rate in rates[source["name"]])
    for process in told["processes"]:
        process["cpu_pct"] = round(cpu[process["pid"]], 2) if process["pid"] in cpu else None
    return told


def show(before: Snapshot, now: Snapshot) -> None:
    """Tables for a person."""
    if not now.running:
        age_s = now.ended_age_s
        since = "" if age_s is None else f", since {console.duration(age_s)}"
        console.say(f"the service does not run{since}: this is how it was when it ended")
    else:
        ready = "not ready yet" if now.ready_after_s is None else f"ready after {now.ready_after_s:.1f} s"
        console.say(f"running for {console.duration(now.uptime_s or 0)}, {ready}, pid {now.pid}")
    rates, cpu = snapshot.rates(before, now), snapshot.cpu_pct(before, now)
    columns = ["source", "state", "last frame", "fps", "judged", "backlog", "lag", "condition", "incidents", "zaps"]
    console.print_table("sources", columns, [_source_row(source, rates[source.name]) for source in now.sources])
    if rows := [[s.name, *item] for s in now.sources for item in s.troubles.items()]:
        console.print_table("to look at", ["source", "counter", "count"], rows)
    if now.processes:
        columns = ["process", "state", "pid", "core", "cpu", "memory", "restarts", "heartbeat"]
        console.print_table("processes", columns, [_process_row(p, cpu.get(p.pid)) for p in now.processes])
    console.say(f"host: {host_line(now.host)}")
    spool = "may not be looked at" if now.spool.jobs is None else f"{now.spool.jobs} waiting"
    size = "" if not now.spool.size_bytes else f" ({now.spool.size_bytes / 2**20:.1f} MB)"
    console.say(f"evidence: {spool}{size}; uploads {_line(now.uploads)}; notices {_line(now.notices)}")


def _show_given_up(state_dir: str) -> None:
    """Of evidence and notices, ever; nothing where nothing was."""
    if counters := incidentlog.read_counters(state_dir):
        console.say("given up: " + ", ".join(f"{name} {count}" for name, count in sorted(counters.items())))


def host_line(host: HostView) -> str:
    """What is known of the machine, in one line."""
    parts = [f"load {host.load:.2f}", f"{host.memory_available_bytes / 2**20:.0f} MB of memory available"]
    if host.temperature_c is not None:
        parts.insert(0, f"{host.temperature_c:.1f} °C")
    if host.throttled is not None:
        now, before = pihealth.now_and_before(host.throttled)
        parts.append(f"now {', '.join(now)}" if now else "not throttled")
        if before:
            parts.append(f"since boot {', '.join(before)}")
    if host.under_voltage:
        parts.append("the supply is too weak")
    rate = "?" if host.sd_bytes_per_s is None else f"{host.sd_bytes_per_s / 1e3:.1f}"
    return "; ".join([*parts, f"{rate} kB/s to disk"])


def _source_row(source: SourceView, rates: tuple[float, float]) -> list[object]:
    conditions = [f"{name} {phase}" for name, phase in source.conditions.items()]
    if source.muted_until:
        conditions.append(f"muted until {source.muted_until[:16].replace('T', ' ')} UTC")
    return [
        source.name,
        source.state.lower(),
        "never" if source.frame_age_s is None else f"{source.frame_age_s:.1f} s ago",
        f"{rates[0]:.1f}",
        f"{rates[1]:.1f}",
        source.backlog,
        f"{source.lag_ms:.1f} ms",
        ", ".join(conditions) or "-",
        source.incidents,
        source.zaps,
    ]


def _process_row(process: ProcessView, cpu_pct: float | None) -> list[object]:
    memory, age_s = process.memory_bytes, process.heartbeat_age_s
    return [
        process.name,
        process.state.lower(),
        process.pid or "-",
        "any" if process.core is None else process.core,
        "-" if cpu_pct is None else f"{cpu_pct:.1f} %",
        "-" if memory is None else f"{memory / 2**20:.0f} MB",
        process.restarts,
        "-" if age_s is None else f"{age_s:.1f} s ago",
    ]


def _line(line: LineView) -> str:
    text = line.state.lower()
    if line.failures:
        text += f" ({line.failures} failures, next try in {line.retry_in_s or 0:.0f} s)"
    return text
