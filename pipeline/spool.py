"""Spool: evidence on disk, waiting for the store. The directory of a transition is its place in the queue.

    spool/<number>-<incident id>.<kind>/     frame_*.jpg thumb_*.jpg incident.json manifest.json
                                             .uploaded .refused .notified .untold: what the sender has done with it
                                             .without-<name>: evidence of an earlier job that was given up since
    spool/.new-...   being written     .done-...   given up or stored, being removed     .bad/...   damaged, set aside

A directory without a dot is *kept*: every file written, then every file fsynced (the first makes the journal write, the
others find it written), the manifest (sizes, SHA-256, keys) among them, then the directory fsynced, renamed, and the
parent fsynced. That order lost nothing in simulated power cuts; without the fsyncs all was lost. Numbers are the
incident log's, so names sort by age whatever the clock did. Nothing here needs free space to free space: giving up
evidence is unlinking files.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from pipeline import durable

MANIFEST_FILE = "manifest.json"
INCIDENT_FILE = "incident.json"
SPOOL_DIR = "spool"  # in the state directory
UPLOADED, REFUSED = ".uploaded", ".refused"  # by the store
NOTIFIED, UNTOLD = ".notified", ".untold"  # taken, or refused for ever, by the webhook
MARKS = (UPLOADED, REFUSED, NOTIFIED, UNTOLD)
WITHOUT = ".without-"  # and a name: that evidence was given up, the incident's file must not name it any more
EARLIEST_NS = 1_704_067_200 * 10**9  # 2024-01-01: a file that is older was written before the clock was set
ROOM_BYTES = 2**20  # is made on a full disk, whatever the bounds: for rows and the next evidence
LEAST_BYTES = 64 * 2**20  # of evidence stays on a disk that others have filled: some 200 incidents'
_BUILDING, _DONE, _BAD = ".new-", ".done-", ".bad"
_MAX_BAD = 20  # damaged directories kept for a person to look at
_DAMAGE = (errno.EIO, errno.EUCLEAN, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
_NAME = re.compile(r"([0-9]{1,18})-[A-Za-z0-9_-]+\.(?:opened|closed)")


class DamagedJob(Exception):
    """A job that is not what its manifest says, or has none: set aside, never uploaded."""


class Item(msgspec.Struct, frozen=True):
    """One file of a job."""

    name: str
    key: str
    content_type: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a job consists of."""

    incident: str
    kind: str
    source: str
    kept_wall_ns: int  # for the bound by age; never for order
    items: list[Item]
    clock_synchronised: bool = True  # else its age is unknown: the first NTP step may add weeks
    muted: bool = False  # nobody is told


class Job(msgspec.Struct, frozen=True):
    """One spool directory."""

    folder: str
    number: int
    manifest: Manifest

    def read(self, item: Item) -> bytes:
        """One file, checked against the manifest; of the incident's, what was given up since is left out. Raises
        DamagedJob; FileNotFoundError when the job has gone."""
        if os.path.basename(item.name) != item.name:
            raise DamagedJob(f"{item.name!r} lies elsewhere")
        data = _read(self.folder, item.name)
        if len(data) != item.size or hashlib.sha256(data).hexdigest() != item.sha256:
            raise DamagedJob(f"{item.name} is not what the manifest says")
        return _without(data, self._given_up()) if item.name == INCIDENT_FILE else data

    def _given_up(self) -> list[str]:
        """Names of evidence of earlier jobs of this incident that was given up after this one was kept."""
        return [name.removeprefix(WITHOUT) for name in os.listdir(self.folder) if name.startswith(WITHOUT)]


class Settled(msgspec.Struct, frozen=True):
    """What the sender hands back to the keeper: what has become of a job's evidence, and whether it is done with."""

    folder: str
    evidence: str  # stored, refused or damaged
    incident: str = ""
    refs: dict[str, Any] = {}
    size: int = 0
    untold: bool = False  # the webhook refused its notice
    last: bool = True  # nothing is left to be done with it; else its notice still waits


SettledQueue = queue.SimpleQueue[Settled]


class Limits(msgspec.Struct, frozen=True):
    """How much the spool (or the local store) may take."""

    max_bytes: int
    max_age_s: float
    min_free_bytes: int  # on its file system, left for everybody else

    def lacks_space(self, free: int, kept: int) -> bool:
        """Whether evidence (`kept` bytes of it) must give way on a disk with so many bytes free. Where others have
        filled the disk, giving up the last of it would help nobody: it stays until there is no room at all."""
        return free < self.min_free_bytes and (kept > LEAST_BYTES or free < ROOM_BYTES)


def _without(told: bytes, names: Iterable[str]) -> bytes:
    """An incident's file without these names and the references to them."""
    incident = msgspec.json.decode(told)
    gone = {incident["evidence"].pop(name, None) for name in names} - {None}
    if not gone:
        return told
    for field in ("original", "thumbnail"):
        keys, urls = incident[f"{field}_r2_paths"], incident[f"{field}_urls"]
        left = [at for at, key in enumerate(keys) if key not in gone]
        incident[f"{field}_r2_paths"], incident[f"{field}_urls"] = [keys[at] for at in left], [urls[at] for at in left]
    return msgspec.json.encode(incident)


def references(keys: Mapping[str, str], url: Callable[[str], str], at: str | None) -> dict[str, Any]:
    """Where the pictures among these files (name to key) are in the store."""
    found: dict[str, Any] = {}
    for field, prefix in (("original", "frame_"), ("thumbnail", "thumb_")):
        pictures = [key for name, key in keys.items() if name.startswith(prefix)]
        found[f"{field}_urls"] = [url(key) for key in pictures]
        found[f"{field}_r2_paths"] = pictures
    return {**found, "timestamp": at}


class Spool:
    """The spool directory; disk I/O only. `mark` belongs to the sender, all else that writes to the keeper."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._sizes: dict[str, int] = {}  # of jobs; a kept job does not grow

    def recover(self) -> None:
        """At start, and after a crash: what was being written was never promised, what was done is done."""
        os.makedirs(self.path, mode=0o750, exist_ok=True)
        for name in os.listdir(self.path):
            if name.startswith((_BUILDING, _DONE)):
                _remove(os.path.join(self.path, name))
            elif not name.startswith(".") and not (_NAME.fullmatch(name) and _is_directory(self.path, name)):
                self.set_aside(os.path.join(self.path, name))

    def keep(self, number: int, manifest: Manifest, files: Mapping[str, bytes]) -> str:
        """Write a job so that it survives a power cut; its folder. Raises OSError (full, read-only, I/O).

        Whatever was written of a job that failed is removed, and the caller begins anew.
        """
        name = f"{number:010d}-{manifest.incident}.{manifest.kind}"
        building, folder = os.path.join(self.path, _BUILDING + name), os.path.join(self.path, name)
        if os.path.exists(folder):  # a kill came before this could be written down
            durable.sync_directory(self.path)
            return folder
        shutil.rmtree(building, ignore_errors=True)
        os.mkdir(building, 0o750)
        try:
            durable.write_files(building, {**files, MANIFEST_FILE: msgspec.json.encode(manifest)})
            durable.sync_directory(building)
            os.rename(building, folder)
            durable.sync_directory(self.path)
        except OSError:
            with suppress(OSError):
                os.rename(folder, building)
            shutil.rmtree(building, ignore_errors=True)
            raise
        return folder

    def jobs(self) -> list[str]:
        """The folders of all jobs, oldest first."""
        try:
            names = sorted(name for name in os.listdir(self.path) if _NAME.fullmatch(name))
        except FileNotFoundError:  # no state directory yet
            return []
        return [os.path.join(self.path, name) for name in names]

    def load(self, folder: str) -> Job:
        """A job with its manifest. Raises DamagedJob; FileNotFoundError when the bounds have just taken it."""
        try:
            manifest = msgspec.json.decode(_read(folder, MANIFEST_FILE), type=Manifest)
        except (msgspec.MsgspecError, ValueError) as error:
            raise DamagedJob(f"{MANIFEST_FILE}: {error}") from error
        return Job(folder, number_of(folder), manifest)

    def mark(self, folder: str, done: str) -> None:
        """Write down, durably, what has been done with a job. Raises OSError, FileNotFoundError when it has gone."""
        _touch(os.path.join(folder, done))
        durable.sync_directory(folder)

    def marks(self, folder: str) -> set[str]:
        """What has been done with a job."""
        with suppress(OSError):  # whatever it is, reading the job says so
            return {name for name in os.listdir(folder) if name in MARKS}
        return set()

    def finish(self, folder: str) -> None:
        """The job is stored: out of the queue first, durably, then removed."""
        self._take_out(folder)
        durable.sync_directory(self.path)
        self._remove_taken(folder)

    def shrink(self, folder: str) -> None:
        """The evidence is stored, the notice waits: only what that needs is left of the job."""
        with suppress(FileNotFoundError):  # the bounds have taken it meanwhile
            for name in os.listdir(folder):
                if name not in (INCIDENT_FILE, MANIFEST_FILE) and not name.startswith("."):  # nor any mark
                    os.unlink(os.path.join(folder, name))
        self._sizes.pop(folder, None)

    def leave_out(self, incident: str, names: Iterable[str]) -> None:
        """Evidence of an incident was given up: what is still to be told of it must not name that. Raises OSError."""
        for folder in self.jobs():
            if incident_of(folder) == incident:
                for name in names:
                    _touch(os.path.join(folder, WITHOUT + name))
                durable.sync_directory(folder)

    def set_aside(self, folder: str) -> None:
        """Keep a damaged job for a person to look at; the oldest of those go first."""
        bad = os.path.join(self.path, _BAD)
        os.makedirs(bad, mode=0o750, exist_ok=True)
        target = os.path.join(bad, os.path.basename(folder))
        _remove(target)
        with suppress(OSError):  # gone, or nobody may move it: whoever looks after the spool knows it is not to be sent
            os.rename(folder, target)
        for name in sorted(os.listdir(bad))[:-_MAX_BAD]:
            _remove(os.path.join(bad, name))

    def give_up_oldest(
        self, limits: Limits, wall_ns: int | None, *, at_least: int = 0, spare: int = 0
    ) -> list[tuple[int, str]]:
        """Remove the oldest jobs while a bound is exceeded, and `at_least` so many: (number, reason) of each. Without
        the wall time (nobody keeps the clock right) age is no reason. `spare` is room that something else asks for."""
        jobs = self.jobs()
        self._sizes = {folder: self._sizes.get(folder) or _size(folder) for folder in jobs}
        total = sum(self._sizes.values()) + spare
        gone: list[tuple[int, str]] = []
        for at, folder in enumerate(jobs):
            reason = self._exceeded(jobs[at:], total, limits, wall_ns) or ("disk_full" if len(gone) < at_least else "")
            if not reason:
                break
            self._take_out(folder)
            self._remove_taken(folder)
            total -= self._sizes.pop(folder)
            gone.append((number_of(folder), reason))
        return gone

    def _take_out(self, folder: str) -> None:
        """Out of the queue in one step: nobody sees half a job."""
        with suppress(FileNotFoundError):
            os.rename(folder, self._taken(folder))

    def _remove_taken(self, folder: str) -> None:
        shutil.rmtree(self._taken(folder), ignore_errors=True)

    def _taken(self, folder: str) -> str:
        return os.path.join(self.path, _DONE + os.path.basename(folder))

    def _exceeded(self, jobs: list[str], total: int, limits: Limits, wall_ns: int | None) -> str:
        """Which bound the spool exceeds with these jobs; empty for none."""
        if total > limits.max_bytes:
            return "bytes"
        if limits.lacks_space(durable.free_bytes(self.path), total):
            return "free_space"
        if wall_ns is not None:
            kept_ns = self._oldest_date_ns(jobs)
            if kept_ns is not None and wall_ns - kept_ns > limits.max_age_s * 1e9:
                return "age"
        return ""

    def _oldest_date_ns(self, jobs: list[str]) -> int | None:
        """The first of the jobs' wall times that can be believed: those in front of it are older than that."""
        for folder in jobs:
            with suppress(OSError, DamagedJob):
                manifest = self.load(folder).manifest
                if manifest.clock_synchronised and manifest.kept_wall_ns >= EARLIEST_NS:
                    return manifest.kept_wall_ns
        return None


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o640))


def number_of(folder: str) -> int:
    """The number in a job's name."""
    found = _NAME.fullmatch(os.path.basename(folder))
    return int(found[1]) if found else 0


def incident_of(folder: str) -> str:
    """The incident in a job's name."""
    return os.path.basename(folder).partition("-")[2].rpartition(".")[0]


def _read(folder: str, name: str) -> bytes:
    """A file of a job. What cannot be read although the job is there is damage."""
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return file.read()
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)  # the file, or the job as a whole
        if error.errno in _DAMAGE or (gone and os.path.lexists(folder)):
            raise DamagedJob(f"{name}: {error.strerror}") from error
        raise
    except ValueError as error:  # a null byte in the name
        raise DamagedJob(f"{name!r}: {error}") from error


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _is_directory(path: str, name: str) -> bool:
    """Not a link to one either: what is in it may be gone, and is not ours to delete."""
    return stat.S_ISDIR(os.lstat(os.path.join(path, name)).st_mode)


def _size(folder: str) -> int:
    with suppress(OSError), os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries)
    return 0
