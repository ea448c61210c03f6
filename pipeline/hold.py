"""Hold: evidence put aside at once, on the frames' own tmpfs. Written by workers, emptied by the keeper.

    hold/.runs/<source>~<incident id>/    frame_0.jpg frame_1.jpg        a run that may yet become an incident
    hold/.runs/<source>~.new-...          being built
    hold/<time>-<incident id>.<kind>/     frame_*.jpg thumb_*.jpg transition.json        kind: opened or closed
    hold/.done-...  kept, being removed     .bad-...  damaged, set aside

A directory without a dot is complete: it is built among its source's runs and renamed, so that what a killed worker
leaves is its successor's to remove, as `.done-` is that of the keeper's. Frames are hard links, so that retention may
delete the originals; where linking fails (another file system, another owner) they are copied. No fsync, no disk, no
network: the keeper moves it all to the spool, at most a second later.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

HOLD_DIR = "hold"  # in the runtime directory
TRANSITION_FILE = "transition.json"
_RUNS = ".runs"
_BUILDING, _DONE, _BAD = ".new-", ".done-", ".bad-"
_OWNER = "~"  # not in a source's name
_MAX_OWNER_BYTES = 128  # of the 255 of a file name
_EVIDENCE = re.compile(r"(?:frame|thumb)_[0-9]{1,3}\.jpg")
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)
_MAX_FILE_BYTES = 32 * 2**20
_MAX_BAD = 5  # damaged directories kept for a person to look at: they lie in memory


class DamagedHold(Exception):
    """A directory without a transition that can be read."""


class Hold:
    """The hold directory of one service."""

    def __init__(self, path: str, max_bytes: int, *, link: bool = True) -> None:
        """`link` False: frames are copied, for a recording of which not even a link count may change."""
        self.path = path
        self._put = link_or_copy if link else _copy
        self._runs = os.path.join(path, _RUNS)
        self._max_bytes = max_bytes

    def prepare(self) -> None:
        """Make the directory, and take away what an earlier service was building. Once, before any worker runs."""
        os.makedirs(self.path, mode=0o750, exist_ok=True)
        shutil.rmtree(self._runs, ignore_errors=True)
        os.mkdir(self._runs, 0o750)
        self.drop_done()

    # -- runs: what may become an incident ------------------------------------------------------------------------

    def keep_frame(self, source: str, incident: str, name: str, path: str) -> None:
        """Hold one frame of a run as `name`, in place of an earlier one. Raises OSError when it is gone or refused."""
        folder = self._run(source, incident)
        with suppress(FileExistsError):
            os.mkdir(folder, 0o750)
        target = os.path.join(folder, name)
        with suppress(FileNotFoundError):
            os.unlink(target)
        self._put(path, target)

    def drop_run(self, source: str, incident: str) -> None:
        """The run was a blip, or its incident is closed."""
        shutil.rmtree(self._run(source, incident), ignore_errors=True)

    def drop_orphans(self, source: str, wanted: Iterable[str]) -> None:
        """Remove the runs of a source that its judge does not speak of, and what was being built of it: a worker died
        before it could. For the worker that begins to serve the source."""
        keep = {os.path.basename(self._run(source, incident)) for incident in wanted}
        for name in os.listdir(self._runs):
            if name.startswith(_owner(source) + _OWNER) and name not in keep:
                shutil.rmtree(os.path.join(self._runs, name), ignore_errors=True)

    def run_frames(self, source: str, incident: str) -> dict[str, str]:
        """The frames held for a run: name to path."""
        folder = self._run(source, incident)
        try:
            return {name: os.path.join(folder, name) for name in sorted(os.listdir(folder))}
        except FileNotFoundError:
            return {}

    def _run(self, source: str, incident: str) -> str:
        return os.path.join(self._runs, f"{_owner(source)}{_OWNER}{incident}")

    # -- transitions: handed to the keeper ------------------------------------------------------------------------

    def publish(
        self, source: str, incident: str, kind: str, frames: Mapping[str, str], made: Mapping[str, bytes]
    ) -> int:
        """Hand over a transition: `frames` (name to path) are linked, `made` (name to content) written; `made` has the
        transition itself. Returns how many older pieces of evidence gave way. Raises OSError when memory is full."""
        name = f"{time.monotonic_ns():020d}-{incident}.{kind}"
        folder = self._run(source, _BUILDING + name)
        os.mkdir(folder, 0o750)
        try:
            for frame, path in frames.items():
                with suppress(FileNotFoundError):  # retention was quicker: the transition matters more
                    self._put(path, os.path.join(folder, frame))
            for file, content in made.items():
                with open(os.path.join(folder, file), "wb") as stream:
                    stream.write(content)
            os.rename(folder, os.path.join(self.path, name))
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return self._make_room()

    def waiting(self) -> list[str]:
        """The complete directories, oldest first; none before the service has made the hold."""
        try:
            names = sorted(name for name in os.listdir(self.path) if not name.startswith("."))
        except FileNotFoundError:
            return []
        return [os.path.join(self.path, name) for name in names]

    def read(self, folder: str) -> tuple[bytes, dict[str, bytes]]:
        """A transition and its evidence, by name. Evidence that gives way meanwhile is left out. Raises DamagedHold."""
        found = {}
        try:
            for name in sorted(os.listdir(folder)):
                if name == TRANSITION_FILE or _EVIDENCE.fullmatch(name):
                    with suppress(FileNotFoundError):
                        found[name] = _read(os.path.join(folder, name))
        except OSError as error:
            if error.errno in _PASSING:
                raise
            raise DamagedHold(error.strerror) from error
        if TRANSITION_FILE not in found:
            raise DamagedHold(f"no {TRANSITION_FILE}")
        return found.pop(TRANSITION_FILE), found

    def read_transition(self, folder: str) -> bytes:
        """The transition alone. Raises DamagedHold, or OSError when it is not there or the system refused."""
        return _read(os.path.join(folder, TRANSITION_FILE))

    def remove(self, folder: str) -> None:
        """The keeper has it. A kill in between leaves no directory that looks complete."""
        done = os.path.join(self.path, _DONE + os.path.basename(folder))
        os.rename(folder, done)
        shutil.rmtree(done, ignore_errors=True)

    def drop_done(self) -> None:
        """Remove what a killed keeper had kept and not yet removed. For the keeper, and before there is one."""
        with suppress(FileNotFoundError):
            for name in os.listdir(self.path):
                if name.startswith(_DONE):
                    shutil.rmtree(os.path.join(self.path, name), ignore_errors=True)

    def set_aside(self, folder: str) -> None:
        """Keep a damaged directory (or whatever it is) for a person to look at; the oldest of those go first."""
        target = os.path.join(self.path, _BAD + os.path.basename(folder))
        with suppress(FileNotFoundError):
            _remove(target)
        with suppress(FileNotFoundError):
            os.rename(folder, target)
        for name in sorted(name for name in os.listdir(self.path) if name.startswith(_BAD))[:-_MAX_BAD]:
            _remove(os.path.join(self.path, name))

    def _make_room(self) -> int:
        """Above the bound the oldest evidence goes first; the transitions themselves stay."""
        dropped, sizes = 0, [(folder, _size(folder)) for folder in self.waiting()]
        total = sum(size for _, size in sizes)
        for folder, size in sizes:
            if total <= self._max_bytes:
                break
            if size:
                _give_up_evidence(folder)
                total -= size
                dropped += 1
        return dropped


def _owner(source: str) -> str:
    """A source's name, or what stands for a long one: a replayed directory's may fill a file name by itself."""
    name = os.fsencode(source)
    return source if len(name) <= _MAX_OWNER_BYTES else hashlib.sha256(name).hexdigest()


def link_or_copy(path: str, target: str) -> None:
    """A hard link to `path`, or a copy where the file system or its owner does not allow one."""
    try:
        os.link(path, target)
    except FileNotFoundError:
        raise
    except OSError:
        _copy(path, target)


def _copy(path: str, target: str) -> None:
    shutil.copyfile(path, target)


def _give_up_evidence(folder: str) -> None:
    with suppress(FileNotFoundError):  # the keeper has taken it meanwhile
        for name in os.listdir(folder):
            if name != TRANSITION_FILE:
                os.unlink(os.path.join(folder, name))


def _read(path: str) -> bytes:
    """A regular file; anything else was not put here by a worker."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_FILE_BYTES:
            raise DamagedHold(f"{os.path.basename(path)} is no file of ours")
        return file.read()


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        os.unlink(path)


def _size(folder: str) -> int:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.name != TRANSITION_FILE)
    return 0
