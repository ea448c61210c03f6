"""Spool: evidence on disk, waiting for the store. The directory of a transition is its place in the queue.

    spool/<number>-<incident id>.<kind>/     frame_*.jpg thumb_*.jpg incident.json manifest.json
                                             .uploaded .refused .notified: what the sender has done with it
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
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

MANIFEST_FILE = "manifest.json"
INCIDENT_FILE = "incident.json"
SPOOL_DIR = "spool"  # in the state directory
UPLOADED, REFUSED, NOTIFIED = ".uploaded", ".refused", ".notified"
MARKS = (UPLOADED, REFUSED, NOTIFIED)
EARLIEST_NS = 1_704_067_200 * 10**9  # 2024-01-01: a file that is older was written before the clock was set
_BUILDING, _DONE, _BAD = ".new-", ".done-", ".bad"
_MAX_BAD = 20  # damaged directories kept for a person to look at
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


class Job(msgspec.Struct, frozen=True):
    """One spool directory."""

    folder: str
    number: int
    manifest: Manifest

    def read(self, item: Item) -> bytes:
        """One file, checked against the manifest. Raises DamagedJob; FileNotFoundError when the job has gone."""
        if os.path.basename(item.name) != item.name:
            raise DamagedJob(f"{item.name!r} lies elsewhere")
        data = _read(self.folder, item.name)
        if len(data) != item.size or hashlib.sha256(data).hexdigest() != item.sha256:
            raise DamagedJob(f"{item.name} is not what the manifest says")
        return data


class Settled(msgspec.Struct, frozen=True):
    """What the sender hands back to the keeper: nothing is left to be done with this job over the network."""

    folder: str
    evidence: str  # stored, refused or damaged
    incident: str = ""
    refs: dict[str, Any] = {}
    size: int = 0


SettledQueue = queue.SimpleQueue[Settled]


class Limits(msgspec.Struct, frozen=True):
    """How much the spool (or the local store) may take."""

    max_bytes: int
    max_age_s: float
    min_free_bytes: int  # on its file system, left for everybody else


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
                shutil.rmtree(os.path.join(self.path, name))
            elif not name.startswith(".") and not _NAME.fullmatch(name):
                self.set_aside(os.path.join(self.path, name))

    def keep(self, number: int, manifest: Manifest, files: Mapping[str, bytes]) -> str:
        """Write a job so that it survives a power cut; its folder. Raises OSError (full, read-only, I/O).

        A failed fsync is never repeated on the same file (the kernel has dropped the pages): whatever was written is
        removed, and the caller begins anew.
        """
        name = f"{number:010d}-{manifest.incident}.{manifest.kind}"
        building, folder = os.path.join(self.path, _BUILDING + name), os.path.join(self.path, name)
        if os.path.exists(folder):  # a kill came before this could be written down
            sync_directory(self.path)
            return folder
        shutil.rmtree(building, ignore_errors=True)
        os.mkdir(building, 0o750)
        try:
            write_durably(building, {**files, MANIFEST_FILE: msgspec.json.encode(manifest)})
            sync_directory(building)
            os.rename(building, folder)
            sync_directory(self.path)
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
        with suppress(FileExistsError):
            os.close(os.open(os.path.join(folder, done), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o640))
        sync_directory(folder)

    def marks(self, folder: str) -> set[str]:
        """What has been done with a job."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return {name for name in os.listdir(folder) if name in MARKS}
        return set()

    def finish(self, folder: str) -> None:
        """The job is stored: out of the queue first, durably, then removed."""
        self._take_out(folder)
        sync_directory(self.path)
        self._remove_taken(folder)

    def set_aside(self, folder: str) -> None:
        """Keep a damaged job for a person to look at; the oldest of those go first."""
        bad = os.path.join(self.path, _BAD)
        os.makedirs(bad, mode=0o750, exist_ok=True)
        target = os.path.join(bad, os.path.basename(folder))
        _remove(target)
        with suppress(FileNotFoundError):
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
        for folder in jobs:
            reason = self._exceeded(folder, total, limits, wall_ns) or ("disk_full" if len(gone) < at_least else "")
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

    def _exceeded(self, folder: str, total: int, limits: Limits, wall_ns: int | None) -> str:
        """Which bound the spool exceeds with `folder` as its oldest job; empty for none."""
        if total > limits.max_bytes:
            return "bytes"
        if free_bytes(self.path) < limits.min_free_bytes:
            return "free_space"
        if wall_ns is not None:
            with suppress(OSError, DamagedJob):
                kept_ns = self.load(folder).manifest.kept_wall_ns
                if kept_ns >= EARLIEST_NS and wall_ns - kept_ns > limits.max_age_s * 1e9:
                    return "age"
        return ""


def number_of(folder: str) -> int:
    """The number in a job's name."""
    found = _NAME.fullmatch(os.path.basename(folder))
    return int(found[1]) if found else 0


def write_durably(folder: str, files: Mapping[str, bytes]) -> None:
    """Write new files into a folder, then fsync each."""
    opened: list[int] = []
    try:
        for name, content in files.items():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            opened.append(os.open(os.path.join(folder, name), flags, 0o640))
            view = memoryview(content)
            while view:
                view = view[os.write(opened[-1], view) :]
        for fd in opened:
            os.fsync(fd)
    finally:
        for fd in opened:
            os.close(fd)


def sync_directory(path: str) -> None:
    """Make the names in a directory survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def free_bytes(path: str) -> int:
    """What an ordinary user may still write on this file system."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _read(folder: str, name: str) -> bytes:
    """A file of a job. What cannot be read although the job is there is damage."""
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return file.read()
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        if error.errno in (errno.EIO, errno.EISDIR, errno.ENOTDIR) or (gone and os.path.isdir(folder)):
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


def _size(folder: str) -> int:
    with suppress(FileNotFoundError, NotADirectoryError):
        return sum(entry.stat().st_size for entry in os.scandir(folder))
    return 0
