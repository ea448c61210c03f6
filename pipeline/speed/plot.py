"""What a session of measuring found, as one picture. The only importer of matplotlib, which a service does not need and
an installation does not have: loaded by name, when a picture is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.speed.telling import GOALS, SIDES

Axes = Any  # matplotlib.axes.Axes

OURS, BARE, OTHERS, BAD = "#2f6fb3", "#9aa5b1", "#c98a1b", "#d1495b"
_COLOURS = {"pipeline": OURS, "bare": BARE, "ffmpeg": OTHERS, "old": BAD}
_RATES = ("#3d8b5f", OURS, BAD)
_COLUMNS = 3


def draw(path: Path, found: Mapping[str, Any]) -> None:
    """Write a PNG with a panel for each question that was asked. Raises ImportError without matplotlib."""
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    panels = [panel for part, panels in _PANELS.items() if part in found for panel in panels]
    rows = max(1, -(-len(panels) // _COLUMNS))
    figure, axes = pyplot.subplots(rows, _COLUMNS, figsize=(13.5, 4.0 * rows), constrained_layout=True, squeeze=False)
    machine = found["machine"]
    figure.suptitle(
        f"stillwatch bench: {machine['cpu']}, {machine['cores']} cores, {machine['kernel']}, Python "
        f"{machine['python']}; load {machine['load_before']} before, {machine['load_after']} after",
        fontsize="medium",
    )
    for axis, panel in zip(axes.flat, panels, strict=False):
        panel(axis, found)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    figure.savefig(path, dpi=85)
    pyplot.close(figure)


def _throughput(axis: Axes, found: Mapping[str, Any]) -> None:
    rows = found["throughput"]
    workers = [row["workers"] for row in rows]
    rates = [row["frames_per_s"] for row in rows]
    bars = axis.bar(workers, rates, color=OURS, width=0.6, label="measured")
    axis.bar_label(bars, fmt="%.0f")
    axis.plot(workers, [rates[0] * n for n in workers], "o--", color=BARE, label="linear")
    axis.set(title="frames/s, as fast as it goes", xlabel="workers", xticks=workers)
    axis.legend(fontsize="small")


def _memory(axis: Axes, found: Mapping[str, Any]) -> None:
    rows, kinds = found["throughput"], ("supervisor", "watcher", "capture", "uploader")
    workers, below = [row["workers"] for row in rows], [0.0] * len(rows)
    shares = {kind: [row["memory"][f"{kind}_mb"] for row in rows] for kind in kinds}
    shares["workers"] = [row["memory"]["worker_mb"] * row["workers"] for row in rows]
    for (name, values), colour in zip(shares.items(), (BARE, OTHERS, "#7a5195", "#3d8b5f", OURS), strict=True):
        axis.bar(workers, values, bottom=below, color=colour, width=0.6, label=name)
        below = [a + b for a, b in zip(below, values, strict=True)]
    axis.set(title="memory, MB (PSS)", xlabel="workers", xticks=workers, ylim=(0, 1.45 * max(below)))
    axis.legend(fontsize="small", loc="upper left", ncols=2)


def _latency(axis: Axes, found: Mapping[str, Any]) -> None:
    for one, colour in zip(found["latency"], _RATES, strict=False):
        curve = one["curve_ms"]
        axis.plot([at / 2 for at in range(len(curve))], curve, color=colour, label=f"{one['rate']:.0f} frames/s")
    axis.axhline(GOALS["p99_ms"], color="black", lw=0.8, ls=":")
    axis.annotate("asked of p99 at 100 frames/s", (1, GOALS["p99_ms"]), fontsize="x-small", va="bottom")
    axis.set(title="rename to sidecar, ms", xlabel="percent of the frames", yscale="log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize="small")


def _cpu(axis: Axes, found: Mapping[str, Any]) -> None:
    bars = [
        (f"{SIDES[side].split(',')[0]},\n{title}", one["cpu_ms_per_frame"][side], _COLOURS[side])
        for title, one in (("saturated", found["cpu"]["saturated"]), ("20 frames/s", found["cpu"]["paced"]))
        for side in SIDES
        if side in one["cpu_ms_per_frame"]
    ]
    names, values, colours = zip(*reversed(bars), strict=True)
    axis.bar_label(axis.barh(names, values, color=colours), fmt="%.2f", padding=2)
    axis.tick_params(axis="y", labelsize="x-small")
    axis.set(title="CPU per frame, ms", xlim=(0, 1.15 * max(values)))


def _queues(axis: Axes, found: Mapping[str, Any]) -> None:
    queues = found["queues"]
    shown = [(side, when) for side in ("ring", "queue") for when in ("idle", "busy")]
    names = [f"{'ring' if side == 'ring' else 'mp.Queue'},\n{when}" for side, when in shown]
    for at, (key, colour) in enumerate((("stuck", BAD), ("lost", OTHERS), ("repeated", BARE))):
        values = [queues[when][side][key] / queues[when][side]["killed"] for side, when in shown]
        places = [place + (at - 1) * 0.27 for place in range(len(shown))]
        titles = {"stuck": "stuck for ever", "lost": "messages lost", "repeated": "done twice"}
        axis.bar_label(axis.bar(places, values, 0.25, color=colour, label=titles[key]), fmt="%.2g", fontsize="x-small")
    axis.set_xticks(range(len(shown)), names, fontsize="small")
    axis.set(title="per SIGKILL of a consumer, 40 messages")
    axis.set_yscale("symlog", linthresh=1)
    axis.set_ylim(0, 100)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.legend(fontsize="small", loc="upper left")


def _startup(axis: Axes, found: Mapping[str, Any]) -> None:
    files, took_s = zip(*((one["files"], one["ready_s"]) for one in found["startup"]), strict=True)
    axis.plot(files, took_s, "o-", color=OURS)
    for x, y in zip(files, took_s, strict=True):
        axis.annotate(f"{y:.2f}", (x, y), textcoords="offset points", xytext=(0, 6), ha="center", fontsize="small")
    axis.set(title="start to READY, s", xlabel="files in the directory", xscale="log", ylim=(0, 1.25 * max(took_s)))
    axis.grid(alpha=0.3)


_PANELS: dict[str, tuple[Callable[[Axes, Mapping[str, Any]], None], ...]] = {
    "throughput": (_throughput, _memory),
    "latency": (_latency,),
    "cpu": (_cpu,),
    "queues": (_queues,),
    "startup": (_startup,),
}
