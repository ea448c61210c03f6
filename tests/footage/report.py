"""Judges a labelled directory, prints how well: python -m tests.footage.report DIR [--split tuning|validation] [--json]

Works on any directory in the format of pipeline/truth.py. The judging is pipeline/trial.py's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from pipeline import console, trial, truth
from pipeline.model import InputError, StillwatchError


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit codes as in pipeline.model.Exit."""
    options = _parser().parse_args(arguments)
    try:
        cases = truth.cases(options.directory, options.split)
        cases = {name: case for name, case in cases.items() if not options.only or any(o in name for o in options.only)}
        if not cases:
            raise InputError(f"{options.directory}: no case named like {' or '.join(options.only)}")
        with console.progress() as bar:
            task = bar.add_task("cases", total=len(cases))
            results = trial.judge_all(
                options.directory,
                {name: case.lenient() if options.lenient else case for name, case in cases.items()},
                options.rules,
                processes=options.processes,
                tick=lambda: bar.advance(task),
            )
    except StillwatchError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    if options.json:
        sys.stdout.write(msgspec.json.encode(trial.as_dict(results)).decode() + "\n")
    else:
        trial.print_report(results, options.worst)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.footage.report", description="measure the detectors")
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--split", choices=["tuning", "validation"])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases whose names contain one of these")
    parser.add_argument("--rules", nargs="+", choices=trial.RULES, default=trial.RULES, help="who takes part")
    parser.add_argument("--lenient", action="store_true", help="leave out still screens and pauses of live ones")
    parser.add_argument("--worst", type=int, default=10, metavar="N", help="how many of the worst cases to list")
    parser.add_argument("--json", action="store_true", help="everything, as one line of JSON")
    parser.add_argument("--processes", type=int, metavar="N", help="judge so many at once (default: one per core)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
