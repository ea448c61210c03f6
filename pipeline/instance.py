"""What makes an instance the only one: it holds its directories, and no two of its sources are one directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pipeline.model import ConfigError, InstanceError, describe
from pipeline.settings import Settings

LOCK_NAME = "lock"


@contextmanager
def sole_user(directory: str, key: str) -> Iterator[None]:
    """Hold a directory, the setting `key`, for this process; it is made when it is not there.

    Raises ConfigError when it cannot be used, InstanceError while another process holds it."""
    other = f"name another with --{key.replace('_', '-')}"
    try:
        os.makedirs(directory, mode=0o750, exist_ok=True)
        if key == "runtime_dir" and os.stat(directory).st_uid not in {0, os.geteuid()}:  # its default may be anybody's
            raise ConfigError(f"{key}: {directory} belongs to another user; {other}")
        fd = os.open(os.path.join(directory, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise ConfigError(f"{key}: {directory}: {describe(error)}; {other}, or mend its owner") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise InstanceError(f"{key}: another instance uses {directory}; stop it, or {other}") from error
    try:
        yield
    finally:
        os.close(fd)


@contextmanager
def sole_instance(settings: Settings) -> Iterator[None]:
    """Hold both directories of an instance: two keepers on one state directory would undo each other's work."""
    with sole_user(settings.runtime_dir, "runtime_dir"), ExitStack() as stack:
        if not os.path.exists(settings.state_dir) or not os.path.samefile(settings.state_dir, settings.runtime_dir):
            stack.enter_context(sole_user(settings.state_dir, "state_dir"))
        yield


def refuse_shared_directories(settings: Settings) -> None:
    """Two sources on one directory would merge silently: the kernel keeps one watch per inode."""
    seen: dict[object, str] = {}
    for source in settings.source:
        try:
            status = os.stat(source.dir)
            identity: object = (status.st_dev, status.st_ino)
        except OSError:
            identity = os.path.realpath(source.dir)  # not there yet
        other = seen.setdefault(identity, source.name)
        if other != source.name:
            raise ConfigError(f"source: {other} and {source.name} are one directory, {source.dir}; give each its own")
