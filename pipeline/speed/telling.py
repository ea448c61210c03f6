"""What a session of measuring found, as tables, and what to set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import console
from pipeline.speed.load import FULL, PERCENTILES, SOURCE_FPS

GOALS = {"saturated": 1.15, "paced": 1.4, "p99_ms": 5.0, "of_linear": 0.9, "ready_s": 1.0, "reconciled_s": 1.0}
"""What is asked of it: CPU against the bare loop, ms at 100 frames/s, the share of linear scaling with two workers,
seconds to READY over READY_FILES, and until 20,000 events are reconciled."""

READY_FILES = 220_000  # what the monitor scanned every second that Stillwatch replaces

SIDES = {
    "bare": "bare 1/8 decode loop",
    "pipeline": "whole pipeline",
    "ffmpeg": "FFmpeg, freezedetect+blackdetect",
    "old": "old rule, full size, 3 decodes",
}


def show(found: Mapping[str, Any]) -> None:
    """All tables of what was measured."""
    machine, picture = found["machine"], found["picture"]
    console.say(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}, Python {machine['python']}; load "
        f"{machine['load_before']} before, {machine['load_after']} after; JPEGs of {picture['size']}, "
        f"{picture['least'] // 1000}-{picture['most'] // 1000} KB"
    )
    for part, tell in _TELLERS.items():
        if part in found:
            tell(found)


def _throughput(found: Mapping[str, Any]) -> None:
    rows = [
        [
            row["workers"],
            row["frames_per_s"],
            row["of_linear"],
            row["bare_of_linear"],
            row["cpu_ms_per_frame"],
            row["memory"]["all_mb"],
        ]
        for row in found["throughput"]
    ]
    columns = ["workers", "frames/s", "of linear", "bare loops alike", "CPU ms per frame", "memory MB"]
    console.print_table("as fast as it goes", columns, rows)
    memory = found["throughput"][-1]["memory"]
    console.say(
        f"memory (PSS): a worker {memory['worker_mb']} MB, one more {memory['one_more_worker_mb']} MB; watcher "
        f"{memory['watcher_mb']}, supervisor {memory['supervisor_mb']}, capture {memory['capture_mb']}, uploader "
        f"{memory['uploader_mb']} MB"
    )


def _latency(found: Mapping[str, Any]) -> None:
    keys = [*(f"p{pct:g}_ms" for pct in PERCENTILES), "max_ms"]
    rows = [
        [f"{one['rate']:.0f}", one["frames"], one["judged"], *(one[key] for key in keys)] for one in found["latency"]
    ]
    titles = ["frames/s", "frames", "judged", *(key.replace("_", " ") for key in keys)]
    console.print_table("rename to sidecar, one worker, one source", titles, rows)


def _cpu(found: Mapping[str, Any]) -> None:
    rows = []
    for way, title in (("saturated", "as fast as it goes"), ("paced", "at 20 frames/s")):
        one = found["cpu"][way]
        for side in (side for side in SIDES if side in one["cpu_ms_per_frame"]):
            ratio = one["ratio"].get(side)
            against = f"{ratio[0]} x ({ratio[1]}-{ratio[2]})" if ratio else ""
            rows.append([title, SIDES[side], one["cpu_ms_per_frame"][side], against])
    console.print_table("CPU per frame, in turn", ["pace", "what", "ms", "pipeline against it"], rows)


def _queues(found: Mapping[str, Any]) -> None:
    queues = found["queues"]
    speed = queues["speed"]
    rows = [
        [f"{name}, {when}", *(queues[when][side][key] for key in ("killed", "stuck", "lost", "repeated"))]
        for side, name in (("ring", "ring"), ("queue", "multiprocessing.Queue"))
        for when in ("idle", "busy")
    ]
    console.print_table(
        f"one consumer killed by SIGKILL, 40 messages each time (seed {queues['seed']})",
        ["what", "kills", "stuck for ever", "messages lost", "done twice"],
        rows,
    )
    console.say(
        f"ring {speed['ring_per_s']}/s with a commit each, multiprocessing.Queue {speed['queue_per_s']}/s: "
        f"{speed['ratio'][0]} x ({speed['ratio'][1]}-{speed['ratio'][2]})"
    )


def _startup(found: Mapping[str, Any]) -> None:
    rows = [[one["files"], one["ready_s"], one["watcher_mb"]] for one in found["startup"]]
    console.print_table("READY over a directory of so many files", ["files", "s", "watcher MB"], rows)
    lost = found["overflow"]
    console.say(f"{lost['events']} events while the watcher stood still: all known after {lost['reconciled_s']} s")


def _advice(found: Mapping[str, Any]) -> None:
    for goal in goals(found):
        console.say(goal)
    advice, machine = found["advice"], found["machine"]
    console.say(
        f"{machine['cores']} cores: run with --workers {advice['workers']}; that carries {advice['sources']} sources "
        f"of {found['picture']['size']} at {SOURCE_FPS:.0f} frames/s with {100 * (1 - FULL):.0f} % to spare, if FFmpeg "
        "leaves the cores alone"
    )


def goals(found: Mapping[str, Any]) -> Iterator[str]:
    """A line for each goal that was measured: what is asked, what it is."""
    for what, asked, is_, met in _against_goals(found):
        yield f"{what}: asked for {asked}, is {is_}: {'met' if met else 'NOT met'}"


def _against_goals(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    for way in ("saturated", "paced") if "cpu" in found else ():
        ratio = found["cpu"][way]["ratio"]["bare"][0]
        yield f"CPU against the bare loop, {way}", f"<= {GOALS[way]} x", f"{ratio} x", ratio <= GOALS[way]
    for one in found.get("latency", ()):
        if one["rate"] == 100:
            yield (
                "p99 at 100 frames/s",
                f"< {GOALS['p99_ms']} ms",
                f"{one['p99_ms']} ms",
                one["p99_ms"] < GOALS["p99_ms"],
            )
    for one in found.get("throughput", ()):
        if one["workers"] == 2:
            share = one["of_linear"]
            yield "two workers", f">= {GOALS['of_linear']} of linear", f"{share}", share >= GOALS["of_linear"]
    for one in found.get("startup", ()):
        if one["files"] == READY_FILES:
            asked = f"< {GOALS['ready_s']} s"
            yield f"READY over {READY_FILES:,} files", asked, f"{one['ready_s']} s", one["ready_s"] < GOALS["ready_s"]
    if "overflow" in found:
        took_s = found["overflow"]["reconciled_s"]
        asked = f"< {GOALS['reconciled_s']} s"
        yield "lost events reconciled", asked, f"{took_s} s", took_s < GOALS["reconciled_s"]


_TELLERS = {
    "throughput": _throughput,
    "latency": _latency,
    "cpu": _cpu,
    "queues": _queues,
    "startup": _startup,
    "advice": _advice,
}
