"""Spool: evidence on disk, waiting for the store. The directory of a transition is its place in the queue.

    spool/<number>-<incident id>.<kind>/     frame_*.jpg thumb_*.jpg incident.json manifest.json
    spool/.new-...   being written     .done-...   stored, being removed     .bad/...   damaged, set aside

A directory without a dot is *kept*: every file written and fsynced, the manifest (sizes, SHA-256, keys) last, then
renamed, then the parent fsynced. That order lost nothing in simulated power cuts; without the fsyncs all was lost.
Numbers are the incident log's, so names sort by age whatever the clock did. Nothing here needs free space to free
space: giving up evidence is unlinking files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress

import msgspec

MANIFEST_FILE = "manifest.json"
_BUILDING, _DONE, _BAD = ".new-", ".done-", ".bad"
_MAX_BAD = 20  # damaged directories kept for a person to look at


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
        """One file, checked against the manifest. Raises DamagedJob."""
        with open(os.path.join(self.folder, item.name), "rb") as file:
            data = file.read()
        if len(data) != item.size or hashlib.sha256(data).hexdigest() != item.sha256:
            raise DamagedJob(f"{self.folder}/{item.name}: not what the manifest says")
        return data


class DamagedJob(Exception):
    """A job that is not what its manifest says, or has none: set aside, never uploaded."""


class Limits(msgspec.Struct, frozen=True):
    """How much the spool (or the local store) may take."""

    max_bytes: int
    max_age_s: float
    min_free_bytes: int  # on its file system, left for everybody else


class Spool:
    """The spool directory. `keep` and the bounds belong to the keeper, `finish` and `set_aside` to the sender."""

    def __init__(self, path: str) -> None:
        self.path = path
        os.makedirs(path, mode=0o750, exist_ok=True)

    def recover(self) -> None:
        """After a crash: what was being written was never promised, what was done is done."""
        for name in os.listdir(self.path):
            if name.startswith((_BUILDING, _DONE)):
                shutil.rmtree(os.path.join(self.path, name))

    def keep(self, number: int, manifest: Manifest, files: Mapping[str, bytes]) -> str:
        """Write a job so that it survives a power cut; its folder. Raises OSError (full, read-only, I/O).

        A failed fsync is never repeated on the same file (the kernel has dropped the pages): the caller begins anew.
        """
        name = f"{number:010d}-{manifest.incident}.{manifest.kind}"
        building, folder = os.path.join(self.path, _BUILDING + name), os.path.join(self.path, name)
        if os.path.exists(folder):
            return folder
        shutil.rmtree(building, ignore_errors=True)
        os.mkdir(building, 0o750)
        try:
            for file, content in {**files, MANIFEST_FILE: msgspec.json.encode(manifest)}.items():
                write_durably(os.path.join(building, file), content)
            sync_directory(building)
            os.rename(building, folder)
        except OSError:
            shutil.rmtree(building, ignore_errors=True)
            raise
        sync_directory(self.path)
        return folder

    def jobs(self) -> list[str]:
        """The folders of all jobs, oldest first."""
        return [os.path.join(self.path, name) for name in sorted(os.listdir(self.path)) if not name.startswith(".")]

    def load(self, folder: str) -> Job:
        """A job with its manifest. Raises DamagedJob; FileNotFoundError when the bounds have just taken it."""
        number, _, _ = os.path.basename(folder).partition("-")
        try:
            with open(os.path.join(folder, MANIFEST_FILE), "rb") as file:
                manifest = msgspec.json.decode(file.read(), type=Manifest)
            return Job(folder, int(number), manifest)
        except (msgspec.DecodeError, ValueError) as error:
            raise DamagedJob(f"{folder}: {error}") from error
        except FileNotFoundError as error:
            if os.path.isdir(folder):
                raise DamagedJob(f"{folder}: no manifest") from error
            raise

    def finish(self, folder: str) -> None:
        """The job is stored: out of the queue first, durably, then removed."""
        done = os.path.join(self.path, _DONE + os.path.basename(folder))
        with suppress(FileNotFoundError):
            os.rename(folder, done)
            sync_directory(self.path)
            shutil.rmtree(done)

    def set_aside(self, folder: str) -> None:
        """Keep a damaged job for a person to look at; the oldest of those go first."""
        bad = os.path.join(self.path, _BAD)
        os.makedirs(bad, mode=0o750, exist_ok=True)
        target = os.path.join(bad, os.path.basename(folder))
        shutil.rmtree(target, ignore_errors=True)
        os.rename(folder, target)
        for name in sorted(os.listdir(bad))[:-_MAX_BAD]:
            shutil.rmtree(os.path.join(bad, name))

    def give_up_oldest(self, limits: Limits, now_wall_ns: int) -> list[tuple[int, str]]:
        """Remove the oldest jobs while a bound is exceeded: (number, reason) of each."""
        sizes = [(folder, _size(folder)) for folder in self.jobs()]
        total = sum(size for _, size in sizes)
        gone = []
        for folder, size in sizes:
            reason = self._exceeded(folder, total, limits, now_wall_ns)
            if not reason:
                break
            shutil.rmtree(folder, ignore_errors=True)
            total -= size
            gone.append((int(os.path.basename(folder).partition("-")[0]), reason))
        return gone

    def _exceeded(self, folder: str, total: int, limits: Limits, now_wall_ns: int) -> str:
        """Which bound the spool exceeds with `folder` as its oldest job; empty for none."""
        if total > limits.max_bytes:
            return "bytes"
        if free_bytes(self.path) < limits.min_free_bytes:
            return "free_space"
        with suppress(OSError, DamagedJob):
            age_ns = now_wall_ns - self.load(folder).manifest.kept_wall_ns
            if age_ns > limits.max_age_s * 1e9:
                return "age"
        return ""


def write_durably(path: str, content: bytes) -> None:
    """Write and fsync a new file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
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


def _size(folder: str) -> int:
    with suppress(FileNotFoundError):
        return sum(entry.stat().st_size for entry in os.scandir(folder))
    return 0
