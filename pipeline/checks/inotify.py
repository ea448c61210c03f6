"""Check of inotify: whether the kernel's limits leave room for every source, counted for the service's user."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from inotify_simple import INotify, flags

from pipeline.checks.account import Account
from pipeline.checks.checkup import AS_ROOT, Finding, fail, ok, together, unknown, warn
from pipeline.checks.subject import Subject
from pipeline.model import describe
from pipeline.settings import Settings

WATCHES_PER_SOURCE = 4  # watcher, capture child, and the directory of sound for both capture child and worker
RATE = 10.0  # frames per second of a source that does not say its own
_WHY = "sources are polled where inotify is refused: that works, but costs CPU for ever"
_LINK = "anon_inode:inotify"
_LIMITS = {  # setting: its name per user namespace, what is set where it is too low
    "max_user_instances": ("max_inotify_instances", 512),
    "max_user_watches": ("max_inotify_watches", 65_536),
    "max_queued_events": ("", 16_384),
}


def inotify(subject: Subject, proc: str = "/proc") -> list[Finding]:
    """Limits against what is needed and what others use, and one try."""
    return together("inotify", _of_inotify(subject, proc))


def _of_inotify(subject: Subject, proc: str) -> Iterator[Finding]:
    name, settings = "inotify", subject.settings
    limits = {key: _limit(proc, key) for key in _LIMITS}
    used = dict(zip(limits, _used(subject.account, proc), strict=False))
    for key, needed in _needed(settings).items():
        limit, taken = limits[key], used.get(key)
        text = f"{key} is {limit}, " + ("" if taken is None else f"{taken} in use, ") + f"{needed} needed"
        if limit < needed:
            yield fail(name, text, _WHY, _mend(key, needed))
        elif taken is not None and limit - taken < needed:
            why = f"{_WHY}. If a service of this user runs already, its own are among those in use"
            yield warn(name, text, why, _mend(key, needed + taken))
        else:
            in_use = "" if taken is None else f", {taken} in use"
            yield ok(name, f"{needed} of {limit} {key.removeprefix('max_user_')} needed{in_use}")
    if used.get("max_user_watches", 0) is None and not subject.account.is_me:
        yield unknown(name, f"only root can count what {subject.account.name} uses", AS_ROOT)
    queue, rate = limits["max_queued_events"], _rate(settings)
    if queue < rate * settings.hang_s:
        why = f"it is full before a hanging watcher is replaced ({settings.hang_s:.0f} s), and directories are listed"
        text = f"max_queued_events is {queue}: {queue / rate:.1f} s at {rate:.0f} frames/s"
        yield warn(name, text, why, _mend("max_queued_events", int(rate * settings.hang_s)))
    yield from _try(settings)


def _needed(settings: Settings) -> dict[str, int]:
    """Watcher and capture child have an instance each, and so has every worker that listens to sound."""
    sources = max(1, len(settings.source))
    instances = 2 + min(settings.worker_count(), sum(bool(source.audio_path) for source in settings.source))
    return {"max_user_instances": instances, "max_user_watches": WATCHES_PER_SOURCE * sources}


def _rate(settings: Settings) -> float:
    return sum((source.capture and source.capture.rate) or RATE for source in settings.source) or RATE


def _limit(proc: str, key: str) -> int:
    """The lower of the kernel's and the user namespace's."""
    places = [f"{proc}/sys/fs/inotify/{key}"]
    if in_namespace := _LIMITS[key][0]:
        places.append(f"{proc}/sys/user/{in_namespace}")
    found = []
    for place in places:
        try:
            with open(place, encoding="ascii") as file:
                found.append(int(file.read()))
        except FileNotFoundError:  # a kernel without user namespaces
            continue
    return min(found)


def _used(account: Account, proc: str) -> tuple[int | None, int | None]:
    """Instances and watches of all processes of this user; None where they may not be looked at."""
    if not account.is_me and os.geteuid() != 0:
        return None, None
    instances = watches = 0
    for pid in filter(str.isdigit, os.listdir(proc)):
        try:
            if _real_uid(f"{proc}/{pid}/status") != account.uid:
                continue
            for fd in os.listdir(f"{proc}/{pid}/fd"):
                if os.readlink(f"{proc}/{pid}/fd/{fd}") == _LINK:
                    instances += 1
                    watches += _count(f"{proc}/{pid}/fdinfo/{fd}")
        except OSError:  # gone, or closed to us
            continue
    return instances, watches


def _real_uid(path: str) -> int:
    with open(path, encoding="utf-8", errors="replace") as lines:
        return next((int(line.split()[1]) for line in lines if line.startswith("Uid:")), -1)


def _count(path: str) -> int:
    with open(path, encoding="ascii", errors="replace") as lines:
        return sum(line.startswith("inotify ") for line in lines)


def _mend(key: str, needed: int) -> str:
    value = max(_LIMITS[key][1], 2 * needed)
    return f"echo fs.inotify.{key}={value} | sudo tee -a /etc/sysctl.d/90-stillwatch.conf && sudo sysctl --system"


def _try(settings: Settings) -> Iterator[Finding]:
    """Set a watch on every source, as this process's user, and take it away."""
    name, keys = "inotify", {errno.ENOSPC: "max_user_watches", errno.EMFILE: "max_user_instances"}
    try:
        with INotify() as instance:
            for source in settings.source:
                if os.path.isdir(source.dir):
                    instance.add_watch(source.dir, flags.MOVED_TO)
    except OSError as error:
        key = keys.get(error.errno or 0, "")
        mend = _mend(key, 1) if key else "see whether you may read the directories"
        text = f"refused: fs.inotify.{key} is used up" if key else f"refused: {describe(error)}"
        yield fail(name, text, _WHY, mend)
