"""`bench`: what this machine carries, measured with the real service on real JPEGs; or how well the detectors judge."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from pipeline import console, trial, truth
from pipeline.model import Exit, InputError, UnavailableError
from pipeline.settings import usable_cpus
from pipeline.speed import telling
from pipeline.speed.session import FULL, PARTS, QUICK, Session

EPILOG = """\
examples:
  ./stillwatch bench                            everything, about four minutes on two cores; what to set
  ./stillwatch bench --quick                    under a minute, and less exact
  ./stillwatch bench --only cpu,latency         some of it: throughput, latency, cpu, queues, startup
  ./stillwatch bench --json --plot bench.png    one JSON object, and a picture
  ./stillwatch bench --accuracy DIR             how well the detectors judge labelled footage, beside the rule they
                                                replace and FFmpeg's own filters (see tests/footage for how to make it)

Run it while the machine does what it usually does: FFmpeg's share of the cores is part of the answer. What is compared
runs in turn. The watcher against other libraries of inotify: ./stillwatch test --version, then
.venv/bin/python -m tests.benchmarks.watching.
Exit codes: 0 measured, 1 the service did not keep up, 66 no labelled footage there, 69 FFmpeg or matplotlib is missing.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench`."""
    add = parser.add_argument
    add("--quick", action="store_true", help="under a minute, and less exact")
    add("--only", type=_parts, metavar="PART,...", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    add("--seconds", type=float, metavar="S", help="of load, per number of workers and per rate (default 12; quick 2)")
    add("--workers", type=int, metavar="N", help="measure 1 to N workers (default: one per usable core)")
    add("--json", action="store_true", help="one JSON object")
    add("--plot", type=Path, metavar="FILE.png", help="draw a picture as well (needs matplotlib)")
    add("--accuracy", type=Path, metavar="DIR", help="judge the labelled footage in DIR instead")
    add("--split", choices=["tuning", "validation"], help="with --accuracy: this part of the footage only")


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return parts


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print what was found."""
    if arguments.accuracy:
        return _accuracy(arguments.accuracy, arguments.split, arguments.json)
    plotter = _plotter(arguments.plot) if arguments.plot else None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing is left behind
    found = _measure(arguments)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        telling.show(found)
    if plotter:
        plotter.draw(arguments.plot, found)
    return Exit.OK


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    plan = QUICK if arguments.quick else FULL
    if arguments.seconds:
        plan = plan._replace(seconds=arguments.seconds)
    with console.progress() as bar:
        task = bar.add_task("measuring")
        session = Session(plan, arguments.workers or len(usable_cpus()), lambda: bar.advance(task))
        bar.update(task, total=session.steps(arguments.only))
        return session.measure(arguments.only)


def _plotter(path: Path) -> Any:
    """The module that draws, before anything is measured in vain."""
    if path.suffix != ".png" or not path.absolute().parent.is_dir():
        raise InputError(f"--plot {path}: not a .png in a directory that is there; name another")
    try:
        importlib.import_module("matplotlib")
        return importlib.import_module("pipeline.speed.plot")
    except ImportError as error:
        raise UnavailableError(f"--plot: {error}; .venv/bin/pip install 'matplotlib>=3.9,<4'") from error


def _accuracy(directory: Path, split: truth.Split | None, as_json: bool) -> int:
    cases = truth.cases(directory, split)
    with console.progress() as bar:
        task = bar.add_task("cases", total=len(cases))
        results = trial.judge_all(directory, cases, trial.RULES, tick=lambda: bar.advance(task))
    if as_json:
        sys.stdout.write(msgspec.json.encode(trial.as_dict(results)).decode() + "\n")
    else:
        trial.print_report(results)
    return Exit.OK
