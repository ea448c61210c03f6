"""`replay`: judge recorded directories in order, by the rules of the service, and write nothing into them."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext

import msgspec

from pipeline import config, console, detectors, learned, rejudge, sidecar, timeline, tuning
from pipeline.child import set_up_logging
from pipeline.incidentlog import describe_incident
from pipeline.incidents import Incident
from pipeline.instance import sole_user
from pipeline.model import ConfigError, Exit, InputError, describe
from pipeline.recording import NOTED, EvidencePath, Recording, SidecarRecording, name_of, open_any
from pipeline.settings import Settings, Source
from pipeline.signature import Signature

MIN_FPS, MAX_FPS = 0.001, 1000.0
EPILOG = """\
examples:
  ./stillwatch replay recordings/stb1                      a table of what was found
  ./stillwatch replay --json recordings/stb1 | jq .freeze  one line per frame (the sidecar's fields), then the incidents
  ./stillwatch replay --state-dir out recordings/*         also log and store the incidents with their evidence
  ./stillwatch replay --set rules.freeze.raise_s=10 --set black.lit_tiles_pct_max=5 recordings/stb1
                                                           which incidents would appear and disappear? Of sidecars
                                                           alone: rules.* and what their readings decide
  ./stillwatch replay --plot hour.html recordings/stb1     the same to look at: one file for any browser
  ./stillwatch replay --no-signal FILE recordings/stb1     would this learned picture call a programme "no signal"?

Exit codes: 0 judged (what the store did not take yet is said, and stays in the spool of --state-dir), 66 a directory is
missing or holds no frames, 71 incidents could not be written down (a full disk), 78 a setting is wrong.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `replay`."""
    what = "a directory of <prefix><digits>.jpg files, or of what is left of them: their sidecars"
    parser.add_argument("dirs", nargs="+", metavar="DIR", help=what)
    parser.add_argument("--fps", type=_rate, default=5.0, help="frames per second of the recording (default 5)")
    parser.add_argument("--json", action="store_true", help="one line of JSON per frame on standard output")
    parser.add_argument(
        "--state-dir", type=_directory, metavar="DIR", help="send incidents through hold, spool, log and store there"
    )
    parser.add_argument(
        "--no-signal", metavar="FILE", help="a learned no-signal picture (default: the source's in --state-dir)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="try a setting of the source, and tell which incidents that changes; may be given again",
    )
    parser.add_argument("--plot", metavar="FILE", help="draw readings, verdicts and incidents into an HTML file")
    parser.add_argument(
        "--config", metavar="FILE", help="take settings from this file; a source's are for the DIR of its name"
    )
    parser.add_argument(
        "--prefix", type=console.utf8, default="capture_", help="what frame names begin with (default capture_)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Judge every directory; the summary (or the lines) go to standard output."""
    detectors.prepare()
    places = {"state_dir": arguments.state_dir, "runtime_dir": arguments.state_dir} if arguments.state_dir else {}
    # What is recorded is past: nobody is told by the webhook.
    configured = config.load(arguments.config, os.environ, {"webhook_url": "", **places})
    settings = msgspec.structs.replace(configured, source=())  # none of them is watched
    sources = [tuning.of_directory(configured, name_of(path), path, arguments.prefix) for path in arguments.dirs]
    if arguments.set:
        return _try(arguments, settings, sources)
    set_up_logging("replay", settings.log_level)
    with sole_user(settings.state_dir, "state_dir") if arguments.state_dir else nullcontext():
        path = EvidencePath(settings) if arguments.state_dir else None
        signature = _signature(arguments)
        opened = Recording if path else open_any  # without frames there is no evidence to keep
        draws = bool(arguments.plot)
        recordings = [opened(s, arguments.fps, settings, path, signature, draws=draws) for s in sources]
        _judge_all(recordings, arguments.json)
        kept = path.finish(recordings) if path else True
    if arguments.plot:
        _plot(recordings, arguments.plot)
    if arguments.json:
        for recording in recordings:
            for incident in recording.incidents.values():
                sys.stdout.write(msgspec.json.encode(describe_incident(incident)).decode() + "\n")
    else:
        print_summary(recordings)
    return Exit.OK if kept else Exit.OS_ERROR


def _signature(arguments: argparse.Namespace) -> Signature | None:
    return learned.read(arguments.no_signal) if arguments.no_signal else None


def _try(arguments: argparse.Namespace, settings: Settings, sources: list[Source]) -> int:
    """Judge every directory twice, as it is set and with --set, and tell what that changes."""
    if arguments.state_dir:
        raise ConfigError("--set with --state-dir: a trial is not recorded; leave one of them out")
    signature = _signature(arguments)
    before = [open_any(source, arguments.fps, settings, None, signature) for source in sources]
    changed = [tuning.changed(source, arguments.set) for source in sources]
    after = [open_any(s, arguments.fps, settings, None, signature, draws=bool(arguments.plot)) for s in changed]
    for recording in after:
        if isinstance(recording, SidecarRecording):
            recording.tried = _decided(arguments.set)
    _judge_all([*before, *after], arguments.json, after)
    if arguments.plot:
        _plot(after, arguments.plot)
    entries = [
        entry
        for old, new in zip(before, after, strict=True)
        for entry in tuning.compare(old.incidents.values(), new.incidents.values())
    ]
    if arguments.json:
        for change, incident, _ in entries:
            line = {**describe_incident(incident), "change": change}
            sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    else:
        print_summary(after, incidents=False)
        _print_changes(entries)
    return Exit.OK


def _decided(assignments: list[str]) -> frozenset[str]:
    """The settings that are tried on sidecars alone, which have readings, not pictures."""
    keys = {assignment: assignment.partition("=")[0].strip() for assignment in assignments}
    for assignment, key in keys.items():
        if not key.startswith("rules.") and key not in rejudge.DECIDED:
            known = ", ".join(("rules.*", *rejudge.DECIDED))
            raise InputError(f"--set {assignment}: needs the frames, and only sidecars are left; those decide {known}")
    return frozenset(keys.values())


def _print_changes(entries: list[tuple[tuning.Change, Incident, Incident | None]]) -> None:
    columns = ["source", "condition", "with --set", "from frame", "seconds", "seconds before", "id"]
    rows: list[list[object]] = []
    for change, incident, earlier in entries:
        now = "-" if change == "disappears" else f"{incident.duration_s:.1f}"
        was = "-" if earlier is None else f"{earlier.duration_s:.1f}"
        rows.append([incident.source, incident.condition, change, incident.onset.number, now, was, incident.id])
    if rows:
        console.print_table("incidents", columns, rows)
    else:
        console.say("no incidents, neither as it is set nor with --set")


def _judge_all(recordings: list[Recording], tell: bool, told: list[Recording] | None = None) -> None:
    """Judge them in order under a progress bar; `tell` writes each frame's sidecar to standard output, if not of all
    then of those that are to be `told`."""
    with console.progress() as bar:
        task = bar.add_task("judging", total=sum(len(r.frames) for r in recordings))
        for recording in recordings:
            for content in recording.judge():
                bar.advance(task)
                if tell and (told is None or recording in told):
                    sys.stdout.write(sidecar.encode(content).decode())


def _plot(recordings: list[Recording], file: str) -> None:
    """Draw the recordings into one HTML file."""
    parts = [(r.timeline, list(r.incidents.values()), r.thumbnails()) for r in recordings]
    page = timeline.render(parts, f"Stillwatch: {', '.join(r.source.name for r in recordings)}")
    try:
        with open(file, "w", encoding="utf-8") as stream:
            stream.write(page)
    except OSError as error:
        raise InputError(f"{file}: {describe(error)}; name a file that can be written with --plot") from error


def print_summary(recordings: list[Recording], *, incidents: bool = True) -> None:
    """What the directories hold, where each condition held, and the incidents."""
    console.print_table(
        "frames",
        ["source", "frames", "judged", "invalid", "gone", *NOTED],
        [[r.source.name, len(r.frames), r.judged, r.invalid, r.gone, *map(r.count, NOTED)] for r in recordings],
    )
    rows = [[r.source.name, *span.row(r.fps)] for r in recordings for span in r.spans]
    if rows:
        console.print_table("conditions", ["source", "condition", "first", "last", "frames", "seconds"], rows)
    found = [incident for recording in recordings for incident in recording.incidents.values()]
    if incidents and found:
        columns = ["source", "condition", "state", "from frame", "seconds", "frames", "id"]
        console.print_table("incidents", columns, [_incident_row(incident) for incident in found])


def _incident_row(incident: Incident) -> list[object]:
    fields = describe_incident(incident)
    seconds = f"{incident.duration_s:.1f}"
    return [
        incident.source,
        incident.condition,
        fields["state"],
        incident.onset.number,
        seconds,
        fields["coverage"],
        incident.id,
    ]


def _rate(text: str) -> float:
    value = float(text)
    if not MIN_FPS <= value <= MAX_FPS:
        raise argparse.ArgumentTypeError(f"must be from {MIN_FPS} to {MAX_FPS}")
    return value


def _directory(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a directory")
    return text
