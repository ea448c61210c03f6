"""`doctor`: every step of "verify operation": what was found, why it matters, and the command that mends it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import msgspec

from pipeline import config, console, installed
from pipeline.checks import (
    account,
    capture,
    checkup,
    frames,
    inotify,
    machine,
    network,
    places,
    service,
    systemdunit,
    unit,
)
from pipeline.checks.checkup import AS_ROOT, NETWORK_LIMIT_S, Check, Finding, Verdict
from pipeline.checks.programs import NoAnswer
from pipeline.checks.subject import Subject
from pipeline.checks.systemdunit import Unit
from pipeline.commands.run import flags_of
from pipeline.model import ConfigError, Exit, InputError
from pipeline.settings import Settings

EPILOG = """\
examples:
  ./stillwatch doctor                                     the installed service, or this machine without one
  ./stillwatch doctor --source stb1=/srv/frames/stb1      before the first `run`
  ./stillwatch doctor clock r2                            these checks alone, after something was mended
  sudo stillwatch doctor --json | jq '.findings[] | select(.verdict == "fail")'

One line for each check: ok, warn (it works, but not as well or not for as long as it could), FAIL, unknown (it could
not be found out: often because only root may), skipped (there is nothing of the kind here). Below what is not ok: why
it matters, and how to mend it. A few seconds; nothing is changed, no service is needed and none is disturbed. R2 is
tried with one probe object (doctor/<host>/probe), which is deleted again.

Exit codes: 0 fit: nothing failed, though there may be warnings; 1 not fit; 66 no such check; 78 the configuration is
wrong.
"""
_STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red", Verdict.UNKNOWN: "cyan"}
_PLAIN = "dim"  # of what is skipped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `doctor`."""
    add = parser.add_argument
    add(
        "check",
        metavar="CHECK",
        nargs="*",
        help="only these, by name or first word: `frames` is that of every source",
    )
    add("--config", metavar="FILE", help=f"the service's settings (default, where installed: {installed.CONFIG_FILE})")
    add("--source", metavar="NAME=DIR", action="append", help="a source (repeatable); replaces the file's")
    add("--workers", metavar="N|auto", help="as for `run`")
    add("--cpus", metavar="LIST", help="as for `run`")
    add("--state-dir", metavar="DIR", help="as for `run`")
    add("--runtime-dir", metavar="DIR", help="as for `run`")
    add("--json", action="store_true", help="one JSON object")
    add("--no-network", action="store_true", help="leave out what needs a network: R2 and the webhook")
    add("--probe-webhook", action="store_true", help='POST {"state": "probe"} to webhook_url')


def run(arguments: argparse.Namespace) -> int:
    """Check everything, and say whether it is fit."""
    checks = list(_checks(arguments, _unit()))
    findings, width = [], max(len(check.name) for check in checks)
    for finding in checkup.run_all(checks):
        findings.append(finding)
        if not arguments.json:
            show(finding, width)
            sys.stdout.flush()
    fit = checkup.fit(findings)
    by_verdict = {verdict: [f.name for f in findings if f.verdict is verdict] for verdict in Verdict}
    if arguments.json:
        counts = {verdict: len(names) for verdict, names in by_verdict.items()}
        sys.stdout.write(msgspec.json.encode({"fit": fit, "counts": counts, "findings": findings}).decode() + "\n")
    else:
        console.say("")
        console.say(f"{'fit' if fit else 'NOT fit'}: {_summary(by_verdict)}")
    if "configuration" in by_verdict[Verdict.FAIL]:
        return Exit.CONFIG
    return Exit.OK if fit else Exit.FAILED


def show(finding: Finding, width: int) -> None:
    """One line, its name as wide as the widest; below it what to do, where there is something."""
    word = "FAIL" if finding.verdict is Verdict.FAIL else finding.verdict.value
    console.item(f"{word:<8}{finding.name:<{width}}  ", finding.found, _STYLES.get(finding.verdict, _PLAIN))
    if finding.why:
        console.item(f"{'':8}why:  ", finding.why, _PLAIN)
    if finding.mend:
        console.item(f"{'':8}mend: ", finding.mend, _PLAIN, whole=True)


def _summary(by_verdict: Mapping[Verdict, Sequence[str]]) -> str:
    """`2 fail (frames stb1, r2), 1 warn (clock), 12 ok, 6 skipped`: the worst first."""
    parts = []
    for verdict in (Verdict.FAIL, Verdict.WARN, Verdict.UNKNOWN, Verdict.OK, Verdict.SKIPPED):
        names = by_verdict[verdict]
        named = "" if verdict in (Verdict.OK, Verdict.SKIPPED) else f" ({', '.join(dict.fromkeys(names))})"
        parts += [f"{len(names)} {verdict}{named}"] * bool(names)
    return ", ".join(parts)


def _is_wanted(check: Check, names: Sequence[str]) -> bool:
    """Where none is named, all are wanted."""
    return not names or check.name in names or check.name.partition(" ")[0] in names


def _unit() -> Unit | None:
    try:
        return systemdunit.look()
    except (OSError, NoAnswer):
        return None


def _checks(arguments: argparse.Namespace, found: Unit | None) -> Iterable[Check]:
    """Those that are asked for; only those of the machine where the configuration is wrong."""
    file = arguments.config or ""
    if not file and not arguments.source and found is not None and found.installed:
        file = installed.CONFIG_FILE
    meant = found is not None and found.installed and file == installed.CONFIG_FILE
    environment = installed.environment_of_unit(os.environ) if meant else dict(os.environ)
    try:
        settings = config.load(file, environment, flags_of(arguments))
    except ConfigError as error:
        of_host = [check for check in _of_host(Settings()) if _is_wanted(check, arguments.check)]
        return [Check("configuration", partial(_refused, error)), *of_host]
    subject = _subject(settings, environment, file, found, meant=meant)
    checks = [
        Check("configuration", partial(places.configuration, subject)),
        *_of_host(settings),
        *_of_capture(subject),
        *_of_service(subject, online=not arguments.no_network, post=arguments.probe_webhook),
    ]
    for name in arguments.check:
        if not any(_is_wanted(check, [name]) for check in checks):
            raise InputError(f"there is no check {name!r}; there are: {', '.join(check.name for check in checks)}")
    return [check for check in checks if _is_wanted(check, arguments.check)]


def _subject(
    settings: Settings, environment: Mapping[str, str], file: str, found: Unit | None, *, meant: bool
) -> Subject:
    """With the user and the credentials that the unit gives the installed service, where that one is meant."""
    user = account.named(found["User"], found["SupplementaryGroups"].split()) if meant and found is not None else None
    credentials = environment.get("CREDENTIALS_DIRECTORY") or (installed.CREDENTIALS_DIR if meant else None)
    return Subject(settings, user or account.mine(), environment, file, credentials, found, meant)


def _refused(error: ConfigError) -> Finding:
    if isinstance(error.__cause__, PermissionError):
        return checkup.unknown("configuration", str(error), AS_ROOT)
    why = "the service does not start with it (exit code 78); what depends on it was not checked"
    return checkup.fail("configuration", str(error), why, "correct it")


def _of_host(settings: Settings) -> list[Check]:
    return [
        Check("python", machine.python),
        Check("packages", machine.packages),
        Check("ffmpeg", partial(capture.ffmpeg, settings)),
        Check("cores", partial(machine.cores, settings)),
        Check("clock", machine.clock_kept),
        Check("memory", partial(machine.memory, settings)),
        Check("memory cgroup", machine.memory_cgroup),
        Check("throttling", machine.throttling),
        Check("temperature", machine.temperature),
        Check("supply", machine.supply),
    ]


def _of_capture(subject: Subject) -> list[Check]:
    sources = subject.settings.source
    return [
        Check("inotify", partial(inotify.inotify, subject)),
        *[Check(f"capture {s.name}", partial(capture.capture, subject, s)) for s in sources if s.capture],
        *[Check(f"frames {s.name}", partial(frames.frames, subject, s)) for s in sources],
        Check("arrivals", partial(frames.arrivals, subject)),
    ]


def _of_service(subject: Subject, *, online: bool, post: bool) -> list[Check]:
    return [
        Check("runtime directory", partial(places.runtime_directory, subject)),
        Check("state directory", partial(places.state_directory, subject)),
        Check("files", partial(places.files, subject)),
        Check("secrets", partial(places.secrets, subject)),
        Check("r2", partial(network.r2, subject, online=online), NETWORK_LIMIT_S),
        Check("webhook", partial(network.webhook, subject, online=online, post=post), NETWORK_LIMIT_S),
        Check("unit", partial(unit.unit, subject)),
        Check("service", partial(service.service, subject)),
    ]
