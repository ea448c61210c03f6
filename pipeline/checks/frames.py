"""Checks of the directories into which frames are published, and of how they are published."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from inotify_simple import INotify, flags

from pipeline.checks.checkup import Finding, fail, ok, skipped, together, unknown, warn
from pipeline.checks.places import describe_place
from pipeline.checks.subject import Subject
from pipeline.frames import SUFFIX, FrameNames
from pipeline.model import describe, printable
from pipeline.mounts import file_system_type, is_blind, is_memory
from pipeline.ownership import can_be_made
from pipeline.settings import Source

LOOK_S = 2.0  # for a frame to come
MANY_FRAMES = 20_000  # the monitor that this one replaces stood before 220,000
MOST_NAMES = 400_000  # read in a second or two, even on a Pi
SAMPLE = 20  # of the newest frames: sizes and times
LEFT_OVER_S = 10.0
MIB, GIB = 2**20, 2**30
LEAST_BYTES, LEAST_INODES = 16 * MIB, 256
DAY_S = 86_400
_CAME = flags.MOVED_TO | flags.CLOSE_WRITE | flags.CREATE | flags.ONLYDIR


@dataclass
class Names:
    """What a directory holds, by names alone."""

    frames: int = 0
    newest: list[str] = field(default_factory=list)  # frames by number, the highest first
    others: list[str] = field(default_factory=list)  # pictures that are no frames of this source
    temporary: list[str] = field(default_factory=list)


def frames(subject: Subject, source: Source) -> list[Finding]:
    """One source's directory: there, open to the service, what it lies on, its room, what is in it."""
    name = f"frames {source.name}"
    return together(name, _of_frames(name, subject, source))


def _of_frames(name: str, subject: Subject, source: Source) -> Iterator[Finding]:
    if not os.path.isdir(source.dir):
        yield _absent(name, subject, source)
        return
    yield _rights(name, subject, source)
    kind = file_system_type(source.dir)
    yield ok(name, f"{source.dir} on {describe_place(source.dir)}")
    if is_blind(kind) and not (source.poll or subject.settings.poll):
        why = "inotify cannot see there what others change: the source is polled, which costs CPU for ever"
        yield warn(name, f"{source.dir} is on {kind}", why, "publish to a disk of this machine, or set poll = true")
    yield _room(name, source)
    names = list_names(source)
    if not is_memory(kind):
        why = "an SD card wears out by frames: the usual 128 GB card is rated for some 117 TB"
        mend = "publish into a tmpfs: a line in /etc/fstab like `tmpfs /srv/frames tmpfs size=256M,mode=0770 0 0`"
        yield warn(name, f"{source.dir} is not in memory{_budget(source, names)}", why, mend)
    yield from _contents(name, source, names)


def _absent(name: str, subject: Subject, source: Source) -> Finding:
    if source.capture and can_be_made(source, subject.settings.runtime_dir):
        return ok(name, f"{source.dir} is made at the start")
    why = "nothing can be seen before it is there; the service waits for it"
    mend = f"sudo install -d -o {subject.account.name} -m 2770 {source.dir}; or correct dir of the source"
    return fail(name, f"{source.dir} is not there", why, mend)


def _rights(name: str, subject: Subject, source: Source) -> Finding:
    may = subject.account.may(source.dir)
    if may is None:
        return unknown(name, f"only root can find out what {subject.account.name} may do in {source.dir}")
    if may:
        return ok(name, "")
    why = "frames are read there, and sidecars written beside them"
    group = "stillwatch" if subject.is_installed else "$(id -gn)"
    mend = f"sudo chgrp {group} {source.dir} && sudo chmod g+rwxs {source.dir}; or mount it writable"
    return fail(name, f"{subject.account.name} may not read and write in {source.dir}", why, mend)


def _room(name: str, source: Source) -> Finding:
    found = os.statvfs(source.dir)
    total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    mend = "make it larger (sudo mount -o remount,size=...), or have fewer frames kept (keep_s, max_bytes)"
    why = "FFmpeg ends when it meets a full file system, and sidecars are not written"
    if found.f_files and not found.f_favail:
        return fail(name, f"{source.dir}: no inodes free", why, mend.replace("size=", "nr_inodes="))
    if total and free < MIB:
        return fail(name, f"{source.dir}: full", why, mend)
    if found.f_files and found.f_favail < LEAST_INODES:
        return warn(name, f"{source.dir}: {found.f_favail} inodes free", why, mend.replace("size=", "nr_inodes="))
    if total and free < min(LEAST_BYTES, total // 10):
        return warn(name, f"{source.dir}: {free / MIB:.1f} MB free", why, mend)
    return ok(name, f"{free / MIB:.0f} MB free")


def _contents(name: str, source: Source, names: Names) -> Iterator[Finding]:
    wanted = f"{source.prefix}<digits>{SUFFIX}"
    if names.others and not names.frames:
        why = "they are never judged"
        text = f"no file in {source.dir} is called {wanted}, but there is {printable(names.others[0])}"
        yield fail(name, text, why, "set prefix of the source, or call them so")
    if names.frames > MANY_FRAMES:
        why = "nobody deletes them: listings at a start take long, and memory or disk fill up"
        mend = 'have whoever publishes delete them, or set retention = "always"'
        yield warn(name, f"{names.frames} frames in {source.dir}", why, mend)
    old = [path for path in names.temporary if (_age_s(path) or 0) > LEFT_OVER_S]
    if old and not source.deletes_frames:
        why = "an FFmpeg was killed while it wrote them"
        mend = f"find {source.dir} -maxdepth 1 -name '*.tmp' -mmin +1 -delete"
        yield warn(name, f"{len(old)} left-over .tmp in {source.dir}", why, mend)
    yield ok(name, f"{names.frames} frames")


def list_names(source: Source) -> Names:
    """Read a directory's names, as far as MOST_NAMES."""
    parse, found = FrameNames(source.prefix).parse, Names()
    numbers: list[tuple[int, str]] = []
    with os.scandir(source.dir) as entries:
        for entry in islice(entries, MOST_NAMES):
            if (frame := parse(entry.name)) is not None:
                numbers.append((frame[0], entry.name))
            elif entry.name.endswith(f"{SUFFIX}.tmp"):
                found.temporary.append(entry.path)
            elif entry.name.endswith(SUFFIX) and "_thumbnail" not in entry.name and not found.others:
                found.others.append(entry.name)
    numbers.sort(reverse=True)
    found.frames, found.newest = len(numbers), [name for _, name in numbers[:SAMPLE]]
    return found


def _budget(source: Source, names: Names) -> str:
    """What the newest frames make in a day; empty where that cannot be told."""
    sizes, times = [], []
    for name in names.newest:
        try:
            status = os.stat(os.path.join(source.dir, name))
        except OSError:
            continue
        sizes.append(status.st_size)
        times.append(status.st_mtime)
    span_s = max(times) - min(times) if times else 0.0
    if span_s <= 0:
        return ""
    rate = (len(times) - 1) / span_s
    daily = rate * DAY_S * sum(sizes) / len(sizes)
    return f": {rate:.1f} frames/s of {sum(sizes) / len(sizes) / 1000:.0f} kB are {daily / 1e9:.0f} GB a day"


def _age_s(path: str) -> float | None:
    try:
        return time.time() - os.stat(path).st_mtime
    except OSError:
        return None


# -- how they come ----------------------------------------------------------------------------------------------------


def arrivals(subject: Subject) -> list[Finding]:
    """Wait for a frame of every source, and see how it gets its name: by rename, or while it is being written."""
    name = "arrivals"
    watched = [source for source in subject.settings.source if _can_be_watched(source)]
    if not watched:
        return [skipped(name, "there is no directory in which they could be seen")]
    try:
        seen = _look(watched)
    except OSError as error:
        return [unknown(name, f"inotify refused: {describe(error)}", "see inotify")]
    renamed = [source.name for source in watched if seen[source.name]["MOVED_TO"]]
    idle = [source.name for source in watched if not seen[source.name] and source.capture]
    found = [ok(name, f"by rename: {', '.join(renamed)}")] * bool(renamed)
    if idle:
        text = f"{', '.join(idle)}: no frame within {LOOK_S:.0f} s; captured only while the service runs"
        found.append(skipped(name, text))
    return [*found, *(_how(name, s, seen[s.name]) for s in watched if s.name not in {*renamed, *idle})]


def _can_be_watched(source: Source) -> bool:
    return os.path.isdir(source.dir) and not is_blind(file_system_type(source.dir))


def _look(sources: list[Source]) -> dict[str, Counter[str]]:
    """Per source, how often a frame came by which event, until each has shown one or the time is over."""
    seen: dict[str, Counter[str]] = {source.name: Counter() for source in sources}
    with INotify() as instance:
        by_wd = {instance.add_watch(source.dir, _CAME): source for source in sources}
        parsers = {source.name: FrameNames(source.prefix).parse for source in sources}
        deadline = time.monotonic() + LOOK_S
        while not all(seen.values()) and (left_s := deadline - time.monotonic()) > 0:
            for wd, mask, _cookie, name in instance.read(timeout=int(left_s * 1000) + 1):
                source = by_wd.get(wd)
                if source is not None and parsers[source.name](name) is not None:
                    events = [flag.name or "" for flag in flags.from_mask(mask)]
                    seen[source.name].update(events)
    return seen


def _how(name: str, source: Source, seen: Counter[str]) -> Finding:
    if seen:
        why = "frames are judged while they are being written, or never seen at all"
        mend = "add -atomic_writing 1 before FFmpeg's output, or capture with ffmpeg/capture.sh"
        return fail(name, f"{source.name}: written in place, not renamed", why, mend)
    text = f"{source.name}: no frame within {LOOK_S:.0f} s"
    return warn(name, text, "nobody publishes there now", f"start its FFmpeg: ffmpeg/capture.sh --dir {source.dir} ...")
