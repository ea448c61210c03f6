"""Where learned no-signal pictures lie: `<state_dir>/no_signal/<source>.json`, one small file for each source."""

from __future__ import annotations

import os
from contextlib import suppress

import msgspec

from pipeline import durable
from pipeline.child import event, log
from pipeline.model import InputError, describe
from pipeline.signature import Learned, Signature

FOLDER = "no_signal"
MAX_BYTES = 1024 * 1024  # it has 20 KB
_NEW = ".new"


def path_of(state_dir: str, source: str) -> str:
    """The file of a source's signature."""
    return os.path.join(state_dir, FOLDER, f"{source}.json")


def read(path: str) -> Signature:
    """The signature in a file. Raises InputError when it is not there, or is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(fd, "rb") as file:
            signature = msgspec.json.decode(file.read(MAX_BYTES), type=Signature)
        Learned(signature)  # proves that it can be used
    except OSError as error:
        raise InputError(f"{path}: {describe(error)}; name the file of a learned picture") from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged: {error}; learn it again: ./stillwatch learn-no-signal SOURCE") from error
    return signature


def find(state_dir: str, source: str) -> Signature | None:
    """A source's signature, None if there is none. Raises InputError when it cannot be used."""
    path = path_of(state_dir, source)
    return read(path) if os.path.lexists(path) else None


def find_or_warn(state_dir: str, source: str) -> Signature | None:
    """A source's signature; where it cannot be used that is logged, and the source is judged without."""
    try:
        return find(state_dir, source)
    except InputError as error:
        log.warning(event("learned picture not used", source=source, cause=error))
        return None


def save(state_dir: str, source: str, signature: Signature) -> str:
    """Store a source's signature durably, and return its path. It belongs to whoever the state directory belongs to,
    so that a service of another user can read it. Raises OSError."""
    path = path_of(state_dir, source)
    folder, name = os.path.split(path)
    _make(state_dir, None)
    _make(folder, state_dir)
    fresh = f"{name}{_NEW}"
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, fresh))  # of a call that was killed
    durable.write_files(folder, {fresh: msgspec.json.encode(signature) + b"\n"})
    _give_to_owner_of(state_dir, os.path.join(folder, fresh))
    os.rename(os.path.join(folder, fresh), path)
    durable.sync_directory(folder)
    return path


def forget(state_dir: str, source: str) -> bool:
    """Remove a source's signature; False if there was none. Raises OSError."""
    path = path_of(state_dir, source)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    durable.sync_directory(os.path.dirname(path))
    return True


def _make(folder: str, owner: str | None) -> None:
    if os.path.isdir(folder):
        return
    os.makedirs(folder, mode=0o750, exist_ok=True)
    if owner:
        _give_to_owner_of(owner, folder)
    durable.sync_directory(os.path.dirname(folder))


def _give_to_owner_of(folder: str, path: str) -> None:
    if os.geteuid() == 0:
        status = os.stat(folder)
        os.chown(path, status.st_uid, status.st_gid)
