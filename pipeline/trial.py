"""A trial: Stillwatch and the rules it is measured against judge a labelled directory.

Owns who takes part and how the results are laid out; what a score is belongs to `accuracy`, what the others do to
`baselines`. Cases are independent, so they are judged in as many processes as asked for.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import accuracy, baselines, console, detectors
from pipeline.accuracy import IncidentScore, Ledger, Opened, Score, Verdicts
from pipeline.detectors import BadPicture
from pipeline.frames import SUFFIX, FrameNames, read_frame
from pipeline.judge import Judge
from pipeline.listing import Directory, Listing
from pipeline.model import (
    PICTURE_BYTES,
    PICTURE_CELLS,
    BlockThresholds,
    FrameId,
    InputError,
    InvalidFrame,
    Judgement,
    describe,
)
from pipeline.settings import Source
from pipeline.truth import CONDITIONS, PREFIX, SCORED, Truth

STILLWATCH, OLD, UPSTREAM, FFMPEG = "stillwatch", "old", "upstream", "ffmpeg"
RULES = (STILLWATCH, OLD, UPSTREAM, FFMPEG)
"""Who can take part. FFmpeg takes part with each setting of its filters, as `ffmpeg n=0.001 d=2.0`."""

DEFAULTS = {"freeze": f"{FFMPEG} n=0.001 d=2.0", "black": f"{FFMPEG} pic_th=0.98 pix_th=0.1 d=2.0"}
"""FFmpeg's filters as they come."""

_LOOK_EVERY_S = 0.4  # for macroblocks: more often than the service does, so that there is something to count

Frames = list[tuple[bytes, FrameId]]


class CaseResult(NamedTuple):
    """One case: per rule and condition the score and, where both conditions are judged, the incidents."""

    name: str
    truth: Truth
    scores: dict[str, dict[str, Score]]  # by condition, by rule
    incidents: dict[str, dict[str, IncidentScore]]


def judge_all(
    directory: Path,
    cases: Mapping[str, Truth],
    rules: Iterable[str] = RULES,
    *,
    processes: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> list[CaseResult]:
    """Judge the cases of a labelled directory, in order of their names; `tick` is called after each.

    Raises InputError for the first case whose frames and truth do not fit.
    """
    jobs = [
        (directory / name, cases[name], tuple(rules)) for name in sorted(cases, key=lambda name: -cases[name].frames)
    ]
    results = []
    with contextlib.closing(_judged(jobs, processes or os.cpu_count() or 1)) as judged:
        for result in judged:
            results.append(result)
            tick()
    return sorted(results, key=lambda result: result.name)


def _judged(jobs: Sequence[tuple[Path, Truth, tuple[str, ...]]], processes: int) -> Generator[CaseResult, None, None]:
    """As they are done. One process is this one."""
    if processes == 1:
        yield from itertools.starmap(judge_case, jobs)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), detectors.prepare) as pool:
        running = [pool.submit(judge_case, *job) for job in jobs]
        try:
            for job in as_completed(running):
                yield job.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def judge_case(case: Path, truth: Truth, rules: Iterable[str] = RULES) -> CaseResult:
    """Let every rule judge one case."""
    frames = read_frames(case, truth)
    scores: dict[str, dict[str, Score]] = {condition: {} for condition in SCORED}
    incidents: dict[str, dict[str, IncidentScore]] = {condition: {} for condition in CONDITIONS}
    for rule, (verdicts, opened) in _verdicts(frames, truth.fps, rules).items():
        for condition, values in verdicts.items():
            scores[condition][rule] = accuracy.score_frames(values, _known(condition, values, truth), truth.fps)
            if opened is not None and condition in CONDITIONS:
                incidents[condition][rule] = accuracy.score_incidents(opened, truth, condition)
    return CaseResult(case.name, truth, scores, incidents)


def _known(condition: str, verdicts: Verdicts, truth: Truth) -> Sequence[bool | None]:
    """The truth by which these verdicts are scored. Nobody looks for macroblocks in every frame: the others do not
    count."""
    known = truth.known(condition)
    if condition in CONDITIONS:
        return known
    return [value if verdict is not None else None for verdict, value in zip(verdicts, known, strict=True)]


def read_frames(case: Path, truth: Truth) -> Frames:
    """The frames of a case in the order of their numbers. InputError if there are more or fewer than truths."""
    names = FrameNames(PREFIX)
    listed = Listing(Directory(str(case), names)).frames
    if len(listed) != truth.frames:
        raise InputError(f"{case}: {len(listed)} frames, but truth of {truth.frames}; build or label it again")
    paths = [f"{case}/{names.stem(*frame)}{SUFFIX}" for frame in listed]
    try:
        return [read_frame(path) for path in paths]
    except (OSError, InvalidFrame) as error:
        reason = describe(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"{case}: a frame cannot be read: {reason}; build it again") from error


def stillwatch_verdicts(frames: Frames, fps: float) -> tuple[dict[str, list[bool | None]], list[Opened]]:
    """What the judge of the service says, frame by frame, and the incidents that its tracker opens."""
    cells = [memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)]
    source = Source(name="case", dir=".", macroblocks=BlockThresholds(every_s=_LOOK_EVERY_S))
    judge, ledger = Judge(source, cells), Ledger()
    verdicts: dict[str, list[bool | None]] = {condition: [] for condition in SCORED}
    for at, (data, _) in enumerate(frames):
        sighting = accuracy.sighting(at, fps)
        order = judge.observe(at, sighting.identity)
        judgement: Judgement | None = None
        try:
            judgement = judge.judge(data, sighting.name, order, sighting.time_ns)
        except InvalidFrame:
            judge.pass_over()
        ledger.note(judge.track(sighting, judgement), at)
        for condition in SCORED:
            verdicts[condition].append(getattr(judgement, condition).value if judgement else None)
    return verdicts, ledger.opened()


def best_settings(results: Iterable[CaseResult], condition: str) -> str | None:
    """FFmpeg's setting with the best F1 over these results, chosen with the truth in hand; None without FFmpeg."""
    scores = totals(results, condition)
    ffmpeg = [rule for rule in scores if rule.startswith(FFMPEG)]
    return max(ffmpeg, key=lambda rule: scores[rule].f1 or 0.0, default=None)


def totals(results: Iterable[CaseResult], condition: str) -> dict[str, Score]:
    """Per rule, all results together."""
    found: dict[str, Score] = {}
    for result in results:
        for rule, score in result.scores[condition].items():
            found[rule] = found.get(rule, Score()).plus(score)
    return found


def incident_totals(results: Iterable[CaseResult], condition: str) -> dict[str, IncidentScore]:
    """Per rule, all results together."""
    found: dict[str, IncidentScore] = {}
    for result in results:
        for rule, score in result.incidents[condition].items():
            found[rule] = found.get(rule, IncidentScore()).plus(score)
    return found


def groups(results: Sequence[CaseResult], condition: str = "") -> dict[str, list[CaseResult]]:
    """By theme, by kind, and all; those of which nothing is known of the condition are left out."""
    found: dict[str, list[CaseResult]] = {}
    if condition:
        results = [result for result in results if any(value is not None for value in result.truth.known(condition))]
    for result in sorted(results, key=lambda result: (result.truth.kind, result.truth.theme)):
        found.setdefault(f"{result.truth.theme or 'cases'} ({result.truth.kind})", []).append(result)
    for kind in ("plain", "hard"):
        found[f"all {kind}"] = [result for result in results if result.truth.kind == kind]
    found["all"] = list(results)
    return {name: group for name, group in found.items() if group}


def worst(results: Iterable[CaseResult], condition: str, rule: str = STILLWATCH) -> list[CaseResult]:
    """Those with wrong frames, most of them first."""
    wrong = {id(r): s.false_positives + s.misses for r in results if (s := r.scores[condition].get(rule))}
    return sorted((r for r in results if wrong.get(id(r))), key=lambda result: -wrong[id(result)])


def as_dict(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "cases": [
            {
                "name": result.name,
                **{key: getattr(result.truth, key) for key in ("clip", "split", "kind", "theme", "frames")},
                "scores": {c: {rule: s.as_dict() for rule, s in result.scores[c].items()} for c in SCORED},
                "incidents": {c: {rule: s._asdict() for rule, s in result.incidents[c].items()} for c in CONDITIONS},
            }
            for result in results
        ],
        "totals": {
            name: {c: {rule: s.as_dict() for rule, s in totals(group, c).items()} for c in SCORED}
            for name, group in groups(results).items()
        },
        "incidents": {c: {rule: s._asdict() for rule, s in incident_totals(results, c).items()} for c in CONDITIONS},
        "best": {condition: best_settings(results, condition) for condition in CONDITIONS},
    }


def print_report(results: Sequence[CaseResult], worst_cases: int = 10) -> None:
    """Tables on standard output: frames per theme, incidents, and the worst cases of Stillwatch."""
    for condition in SCORED:
        best = best_settings(results, condition)
        shown = {STILLWATCH: STILLWATCH, OLD: OLD, UPSTREAM: UPSTREAM}
        if best:
            shown[DEFAULTS[condition]] = FFMPEG
            shown[best] = f"best {FFMPEG}" if best not in shown else f"{FFMPEG}, as it comes the best"
        shown = {rule: title for rule, title in shown.items() if rule in totals(results, condition)}
        if not shown or not (known := groups(results, condition)):
            continue
        rows = [_row(name, group, condition, list(shown)) for name, group in known.items()]
        title = f"{condition}: F1 (precision/recall) and false alarms per hour" + (f"; best is {best}" if best else "")
        console.print_table(title, ["cases", "min", "true", *shown.values()], rows)
        _print_worst(results, condition, worst_cases)
    rows = [
        [f"{condition} {rule}", score.hits, score.misses, score.false, f"{score.false_per_hour:.1f}"]
        for condition in CONDITIONS
        for rule, score in incident_totals(results, condition).items()
    ]
    console.print_table("incidents", ["rule", "found", "missed", "false", "false/h"], rows)
    wrong = [
        [result.name, condition, score.misses, score.false]
        for result in results
        for condition in CONDITIONS
        if (score := result.incidents[condition].get(STILLWATCH)) and (score.misses or score.false)
    ]
    if wrong:
        console.print_table(f"wrong incidents of {STILLWATCH}", ["case", "condition", "missed", "false"], wrong)


def _row(name: str, group: Sequence[CaseResult], condition: str, rules: Iterable[str]) -> list[object]:
    scores = totals(group, condition)
    any_score = next(iter(scores.values()))
    cells = [_cell(scores[rule]) for rule in rules]
    return [f"{name}, {len(group)}", f"{60 * any_score.hours:.1f}", any_score.hits + any_score.misses, *cells]


def _cell(score: Score) -> str:
    parts = ["-" if value is None else f"{value:.3f}" for value in (score.f1, score.precision, score.recall)]
    text = f"{parts[0]} ({parts[1]}/{parts[2]}) {score.alarms_per_hour:.0f}/h"
    return text + (f" ?{100 * share:.0f}%" if (share := score.unknown_share) and share >= 0.005 else "")


def _print_worst(results: Sequence[CaseResult], condition: str, count: int) -> None:
    rows = []
    for result in worst(results, condition)[:count]:
        score = result.scores[condition][STILLWATCH]
        rows.append([result.name, score.misses, score.false_positives, score.alarms, score.hits, result.truth.frames])
    if rows:
        columns = ["case", "missed", "false", "alarms", "right", "frames"]
        console.print_table(f"{condition}: the worst cases of {STILLWATCH}, in frames", columns, rows)


def _verdicts(
    frames: Frames, fps: float, rules: Iterable[str]
) -> dict[str, tuple[Mapping[str, Verdicts], list[Opened] | None]]:
    """Per rule the verdicts by condition, and its incidents."""
    found: dict[str, tuple[Mapping[str, Verdicts], list[Opened] | None]] = {}
    wanted = set(rules)
    if STILLWATCH in wanted:
        found[STILLWATCH] = stillwatch_verdicts(frames, fps)
    for rule, verdicts in _replaced_verdicts(frames, wanted).items():
        found[rule] = verdicts, accuracy.track(verdicts, fps)
    if FFMPEG in wanted:
        by_condition = baselines.ffmpeg_verdicts([data for data, _ in frames], fps)
        for condition, settings in by_condition.items():
            for setting, values in settings.items():
                found[f"{FFMPEG} {setting}"] = {condition: values}, None
    return found


def _replaced_verdicts(frames: Frames, wanted: set[str]) -> dict[str, dict[str, list[bool | None]]]:
    """The two full-size rules over one decode."""
    judges: dict[str, Any] = {OLD: baselines.OldRule(), UPSTREAM: baselines.UpstreamRule()}
    judges = {name: judge for name, judge in judges.items() if name in wanted}
    verdicts: dict[str, dict[str, list[bool | None]]] = {
        name: {condition: [] for condition in CONDITIONS} for name in judges
    }
    for data, _ in frames if judges else ():
        try:
            frame = baselines.decode(data)
        except BadPicture:
            frame = None
        for name, judge in judges.items():
            judged = judge.judge(frame) if frame is not None else dict.fromkeys(CONDITIONS)
            for condition in CONDITIONS:
                verdicts[name][condition].append(judged[condition])
    return verdicts
