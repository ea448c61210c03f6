"""Check of the service where it runs: what its board says of processes, sources and evidence."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from pipeline import snapshot
from pipeline.board import Board
from pipeline.checks import systemdunit
from pipeline.checks.checkup import AS_ROOT, Finding, counted, fail, ok, skipped, together, unknown, warn
from pipeline.checks.subject import Subject
from pipeline.console import duration
from pipeline.model import InputError, LineState, State
from pipeline.settings import Source
from pipeline.snapshot import Snapshot, SourceView

_SLACK_S = 1.0  # between two readings of two clocks
_UNKNOWN = Source(name="")  # one that is watched and not configured any more


def service(subject: Subject) -> list[Finding]:
    """Whether it runs, is ready, and sees every source fresh."""
    name, runtime_dir = "service", subject.settings.runtime_dir
    try:
        board = Board.open(runtime_dir)
    except InputError as error:
        return [_no_board(subject, error)]
    try:
        seen = snapshot.take(board, subject.settings.state_dir)
    finally:
        os.close(board.fd)
    if not seen.running:
        ago = "" if seen.ended_age_s is None else f" {duration(seen.ended_age_s)} ago"
        return [_not_running(subject, f"the last one with {runtime_dir} has ended{ago}")]
    return together(name, _of_service(subject, seen))


def _no_board(subject: Subject, error: InputError) -> Finding:
    if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
        return _not_running(subject, f"none runs with {subject.settings.runtime_dir}")
    if isinstance(error.__cause__, PermissionError):
        mend = f"sudo usermod -aG {subject.account.name} $USER, and log in again; or {AS_ROOT}"
        return unknown("service", f"{subject.settings.runtime_dir}/board may not be read by you", mend)
    return warn("service", str(error), "what it does cannot be seen", "sudo systemctl restart stillwatch")


def _not_running(subject: Subject, text: str) -> Finding:
    if not subject.is_installed:
        return skipped("service", text)
    return warn("service", f"does not run ({text})", "nothing is watched", "sudo systemctl start stillwatch")


def _of_service(subject: Subject, seen: Snapshot) -> Iterator[Finding]:
    name, log = "service", systemdunit.LOG if subject.is_installed else "look into its log"
    workers = sum(process.name.startswith("worker/") for process in seen.processes)
    ran, sources = duration(seen.uptime_s or 0), counted(len(seen.sources), "source")
    yield ok(name, f"runs for {ran}, {sources}, {counted(workers, 'worker')}")
    if seen.ready_after_s is None:
        yield warn(name, "is not ready yet", "frames are not judged before that", f"wait; {log}")
    yield _settings_in_use(subject, seen)
    for process in seen.processes:
        if process.state in (State.BACKOFF.name, State.FATAL.name):
            yield fail(name, f"{process.name} is {process.state}", "it cannot start", log)
        elif process.restarts:
            times = "once" if process.restarts == 1 else f"{process.restarts} times"
            yield warn(name, f"{process.name} was restarted {times}", "something kills it", log)
    configured = {source.name: source for source in subject.settings.source}
    for source in seen.sources:
        yield _source(source, configured.get(source.name, _UNKNOWN), seen)
    for line, view in (("uploads", seen.uploads), ("notices", seen.notices)):
        if view.state == LineState.PAUSED.name:
            yield fail(name, f"{line} wait for somebody to mend them", "the log says what was refused", log)
        elif view.state in (LineState.FAILING.name, LineState.CLOCK.name):
            text = f"{line}: {view.state.lower()}, {view.failures} failures in a row"
            yield warn(name, text, "evidence waits in the spool", log)


def _settings_in_use(subject: Subject, seen: Snapshot) -> Finding:
    """Whether the service goes by the file as it is now. It has read it when its watcher began: a reload renews it."""
    name, file = "service", subject.config_file
    configured, watched = {source.name for source in subject.settings.source}, {source.name for source in seen.sources}
    mend = "sudo systemctl reload stillwatch" if subject.is_installed else f"kill -HUP {seen.pid}"
    if configured and configured != watched:
        other = [f"{source} is not watched" for source in sorted(configured - watched)]
        other += [f"{source} is watched all the same" for source in sorted(watched - configured)]
        why = "the service goes by the settings that it was started or reloaded with"
        text = f"{counted(len(configured), 'source')} configured, {len(watched)} watched: {', '.join(other)}"
        return warn(name, text, why, mend)
    read_s = next((process.uptime_s for process in seen.processes if process.name == "watcher"), None)
    if read_s is None or not file or time.time() - os.stat(file).st_mtime > read_s - _SLACK_S:
        return ok(name, "")
    why = "a change has no effect before a reload"
    return warn(name, f"{file} was changed after the service read it", why, mend)


def _source(source: SourceView, configured: Source, seen: Snapshot) -> Finding:
    name, age_s, stall_s = "service", source.frame_age_s, configured.stall_s
    start_s = max(stall_s, configured.capture.start_s if configured.capture else 0.0)
    if source.state not in ("WATCHING", "POLLING"):
        why = {"MISSING": "its directory is not there", "CONFLICT": "another source has its directory"}
        mend = "make the directory, or correct the configuration"
        return fail(name, f"{source.name} is {source.state.lower()}", why.get(source.state, "not seen yet"), mend)
    if age_s is None and (seen.uptime_s or 0) - (seen.ready_after_s or 0) > start_s:
        return fail(name, f"{source.name}: no frame since the start", "nobody publishes there", "look at its FFmpeg")
    if age_s is not None and age_s > stall_s:
        text = f"{source.name}: no frame for {age_s:.0f} s"
        return fail(name, text, "its capture has stalled", "look at its FFmpeg, its grabber and its cable")
    return ok(name, "")
