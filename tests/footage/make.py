"""Builds the labelled set that detectors are tuned and measured on: python -m tests.footage.make DIR [--only NAME...]

One directory per case with frames and truth.json (format: pipeline/truth.py; meaning: tests/footage/truths.py). A case
that is there is left alone, so that a second call does nothing and an interrupted one goes on; --force makes it anew.
Fetched clips and screen recordings stay in DIR/.clips.

Every clip, photograph, seed and recording belongs to one split, "tuning" or "validation": thresholds are chosen on the
first and reported on the second.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import cv2

from pipeline import console
from pipeline.model import StillwatchError
from pipeline.truth import FILE
from tests.footage import broken, desktop
from tests.footage.broken import BrokenCase
from tests.footage.cases import STOCKS, Stock
from tests.footage.cases_black import blacks
from tests.footage.cases_freeze import freezes
from tests.footage.cases_live import desktops, live
from tests.footage.clips import Library
from tests.footage.compose import Case, build

CLIPS = ".clips"


@functools.cache
def all_cases() -> dict[str, Case | BrokenCase]:
    """Every case by name."""
    parts: tuple[Callable[[Stock], Iterator[Case | BrokenCase]], ...] = (
        live,
        desktops,
        freezes,
        blacks,
        broken.broken,
    )
    cases = [case for stock in STOCKS for part in parts for case in part(stock)]
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), f"two cases have one name: {sorted(n for n in names if names.count(n) > 1)}"
    return {case.name: case for case in cases}


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = _parser().parse_args(arguments)
    names = [name for name in all_cases() if not options.only or any(part in name for part in options.only)]
    if options.list:
        for name in names:
            console.say(name)
        return 0
    try:
        _fill(options, names)
    except StillwatchError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _fill(options: argparse.Namespace, names: list[str]) -> None:
    options.directory.mkdir(parents=True, exist_ok=True)
    library = Library(options.directory / CLIPS)
    library.prepare()
    for recording, reason in desktop.record(library).items():
        names = [name for name in names if recording not in all_cases()[name].scene.clips]
        console.say(f"left out {recording} and its cases: {reason}")
    missing = [name for name in names if options.force or not (options.directory / name / FILE).exists()]
    build_all(options.directory, missing, options.processes)
    console.say(f"{options.directory}: {len(names)} cases, {len(missing)} of them made now")


def build_all(directory: Path, names: list[str], processes: int | None = None) -> None:
    """Build these cases, the longest first, with a progress bar."""
    cases = all_cases()
    names = sorted(names, key=lambda name: -cases[name].frames * cases[name].size[0])
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes or os.cpu_count(), context, _prepare) as pool, console.progress() as bar:
        task = bar.add_task("frames", total=sum(cases[name].frames for name in names))
        jobs = {pool.submit(_build, directory, name): name for name in names}
        try:
            for job in as_completed(jobs):
                job.result()
                bar.advance(task, cases[jobs[job]].frames)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _prepare() -> None:
    cv2.setNumThreads(1)


def _build(directory: Path, name: str) -> None:
    try:
        case, library = all_cases()[name], Library(directory / CLIPS)
        if isinstance(case, BrokenCase):
            broken.build(case, library, directory)
        else:
            build(case, library, directory)
    except Exception as error:
        error.add_note(f"while building {name}")
        raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.footage.make", description="build the labelled set")
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases whose names contain one of these")
    parser.add_argument("--force", action="store_true", help="build again what is there")
    parser.add_argument("--list", action="store_true", help="print the names and build nothing")
    parser.add_argument("--processes", type=int, metavar="N", help="build so many at once (default: one per core)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
