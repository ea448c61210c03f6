"""Check of the installed unit: whether systemd starts it, and whether its lines leave the service what it needs."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pipeline.checks import systemdunit
from pipeline.checks.checkup import Finding, fail, ok, skipped, together, warn
from pipeline.checks.subject import Subject
from pipeline.checks.systemdunit import Unit

NAME = "unit"
SPARE_BYTES = 300_000_000
"""What the processes themselves need beside the files in memory, which count as the unit's as well."""

_HIDDEN = (  # directories that a line of the unit hides from the service
    ("ProtectHome", ("/home", "/root", "/run/user")),
    ("PrivateTmp", ("/tmp", "/var/tmp")),  # noqa: S108
)
_MADE = {"RuntimeDirectory": "/run", "StateDirectory": "/var/lib", "LogsDirectory": "/var/log"}
_NEVER_READ_ONLY = ("/dev", "/proc", "/sys")  # by ProtectSystem=strict
_EDIT = "sudo systemctl edit stillwatch, with [Service] and below it"


def unit(subject: Subject) -> list[Finding]:
    """Whether systemd starts it at boot, and with which lines."""
    found = subject.unit
    if found is None:
        return [skipped(NAME, "this machine runs without systemd, or it gave no answer")]
    if not found.installed:
        why = "nobody starts Stillwatch after a boot, and nobody restarts it"
        return [warn(NAME, f"{systemdunit.NAME} is not installed", why, "sudo systemd/install.sh")]
    return together(NAME, [*_of_state(found), *(_of_lines(subject, found) if subject.is_installed else ())])


def _of_state(found: Unit) -> Iterator[Finding]:
    drop_ins = found["DropInPaths"].split()
    yield ok(NAME, f"{found['FragmentPath']}, {found['UnitFileState']}, {found['ActiveState']}")
    yield ok(NAME, f"changed by {', '.join(drop_ins)}" if drop_ins else "")
    if found["UnitFileState"] not in ("enabled", "enabled-runtime", "static"):
        why = "it does not start at boot"
        yield warn(NAME, f"is {found['UnitFileState'] or 'not enabled'}", why, "sudo systemctl enable stillwatch")
    if found["NeedDaemonReload"] == "yes":
        why = "systemd goes by what it read before"
        mend = "sudo systemctl daemon-reload && sudo systemctl restart stillwatch"
        yield warn(NAME, "its files have changed since systemd read them", why, mend)
    if found["ActiveState"] == "failed":
        mend = f"{systemdunit.LOG}; then sudo systemctl reset-failed stillwatch && sudo systemctl start stillwatch"
        yield fail(NAME, f"has failed ({found['Result']})", "nothing is watched", mend)


def _of_lines(subject: Subject, found: Unit) -> Iterator[Finding]:
    for key, path in _places(subject):
        if line := _hides(found, path):
            mend = f"{_EDIT} {line}=no; or use a place below /srv"
            yield fail(NAME, f"{line}={found[line]} hides {path}", f"the service does not see {key}", mend)
        elif found["ProtectSystem"] == "strict" and not _below(path, _writable(found)):
            mend = f"{_EDIT} ReadWritePaths={path}; or use a place below /srv"
            yield fail(NAME, f"ProtectSystem=strict keeps {path} read-only", f"the service writes in {key}", mend)
    for source in subject.settings.source:
        recording = source.capture.input if source.capture and source.capture.profile == "file" else ""
        if recording and (line := _hides(found, os.path.realpath(recording))):
            why, mend = f"nothing is captured for {source.name}", f"{_EDIT} {line}=no; or put it below /srv"
            yield fail(NAME, f"{line}={found[line]} hides {recording}", why, mend)
    grabbed = [s for s in subject.settings.source if s.capture and s.capture.profile.startswith("v4l2")]
    if grabbed and found["PrivateDevices"] == "yes":
        text, mend = "PrivateDevices=yes hides every grabber", f"{_EDIT} PrivateDevices=no"
        yield fail(NAME, text, f"nothing is captured for {grabbed[0].name}", mend)
    limit, wanted = found["MemoryMax"], subject.settings.bytes_in_memory() + SPARE_BYTES
    if limit.isdigit() and int(limit) < wanted:
        why = "frames in memory count as its own: when they reach the limit, its processes are killed for them"
        text = f"MemoryMax={int(limit) // 10**6}M, but frames, evidence and processes may need {wanted // 10**6} MB"
        yield warn(NAME, text, why, f"{_EDIT} MemoryMax=infinity, or lower max_bytes of the sources")


def _places(subject: Subject) -> Iterator[tuple[str, str]]:
    """Each directory that the service writes in, and what for."""
    settings = subject.settings
    yield from ((f"the directory of {source.name}", os.path.realpath(source.dir)) for source in settings.source)
    for key in ("state_dir", "runtime_dir"):
        yield key, os.path.realpath(getattr(settings, key))
    for key in ("log_file", "metrics_file"):
        if path := getattr(settings, key):
            yield f"the directory of {key}", os.path.dirname(os.path.realpath(path))


def _hides(found: Unit, path: str) -> str:
    lines = (line for line, places in _HIDDEN if found[line] not in ("", "no") and _below(path, places))
    return next(lines, "")


def _writable(found: Unit) -> tuple[str, ...]:
    named = tuple(path.lstrip("-+") for path in found["ReadWritePaths"].split())
    made = tuple(f"{root}/{name}" for key, root in _MADE.items() for name in found[key].split())
    return (*named, *made, *_NEVER_READ_ONLY)


def _below(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(f"{place.rstrip('/')}/") for place in places)
