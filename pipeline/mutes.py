"""Whose incidents are not reported for a while: maintenance. One small file in the state directory.

Written by `mute` and `unmute`, read by the keeper and `status`. Wall-clock time: a person says how long, and it must
outlive a restart.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from pipeline import durable

FILE_NAME = "mutes.json"


def read(state_dir: str) -> dict[str, int]:
    """Until when each source is muted (wall clock, ns), over or not. A file that is damaged, or may not be read, mutes
    nobody: recording must go on."""
    try:
        with open(os.path.join(state_dir, FILE_NAME), "rb") as file:
            return msgspec.json.decode(file.read(), type=dict[str, int])
    except (OSError, msgspec.MsgspecError, ValueError):
        return {}


def is_muted(state_dir: str, source: str, wall_ns: int) -> bool:
    """Whether a source is muted at that moment."""
    return wall_ns < read(state_dir).get(source, 0)


def write(state_dir: str, source: str, until_ns: int, wall_ns: int) -> None:
    """Mute a source until then (0: no longer); what is over is forgotten. Raises OSError."""
    with _locked(state_dir):
        kept = {name: until for name, until in read(state_dir).items() if until > wall_ns and name != source}
        if until_ns > wall_ns:
            kept[source] = until_ns
        fresh = f"{FILE_NAME}.new"
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(state_dir, fresh))
        durable.write_files(state_dir, {fresh: msgspec.json.encode(kept)})
        owner = os.stat(state_dir)
        with suppress(PermissionError):  # written by root, it must be the service's all the same
            os.chown(os.path.join(state_dir, fresh), owner.st_uid, owner.st_gid)
        os.rename(os.path.join(state_dir, fresh), os.path.join(state_dir, FILE_NAME))
        durable.sync_directory(state_dir)


@contextmanager
def _locked(state_dir: str) -> Iterator[None]:
    """Two who mute at once do so one after the other."""
    fd = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
