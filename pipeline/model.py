"""The words of Stillwatch as types: states, exit codes, conditions, verdicts, and one frame's identity.

Owns no behaviour and imports nothing of ours: every other module may import this one.
"""

from __future__ import annotations

import enum

import msgspec

MAX_SOURCES = 64
"""Lanes in the ring: fixed and generous, so that no memory is ever re-sized while children have it mapped."""

MAX_WORKERS = 64


class Exit(enum.IntEnum):
    """Exit codes of `./stillwatch`; 64-78 are sysexits.h's, so that systemd and people can tell them apart."""

    OK = 0
    FAILED = 1  # the command ran and the answer is no: an expectation was not met
    USAGE = 2  # argparse's own code for a wrong command line
    NO_INPUT = 66  # an input directory or file has nothing to work on
    UNAVAILABLE = 69  # something the command needs (FFmpeg, Python) is not there
    SOFTWARE = 70  # a fault of ours: a traceback is in the log
    OS_ERROR = 71  # the system refused a resource: memory, descriptors, processes
    TEMPORARY = 75  # another instance runs on the same runtime directory
    CONFIG = 78  # the configuration is wrong; restarting cannot mend it


class State(enum.IntEnum):
    """State of a child, written by the supervisor (FATAL: it cannot start, so the program ends)."""

    NEW = 0
    STARTING = 1
    RUNNING = 2
    BACKOFF = 3
    STOPPING = 4
    STOPPED = 5
    FATAL = 6


class SourceState(enum.IntEnum):
    """How the watcher sees a source now."""

    NEW = 0
    WATCHING = 1  # inotify
    POLLING = 2  # next numbers are probed: no inotify here
    MISSING = 3  # the directory is not there (yet); looked for again and again
    CONFLICT = 4  # the directory has become the same one as another source's


class Outcome(enum.StrEnum):
    """What became of a published frame: every slot of the ring ends as exactly one of these."""

    JUDGED = "judged"
    INVALID = "invalid"
    SKIPPED = "skipped"
    VANISHED = "vanished"


class FrameId(msgspec.Struct, frozen=True, array_like=True):
    """Identity of one published file: names repeat after a numbering restart, identities do not."""

    dev: int
    inode: int
    mtime_ns: int
    size: int


class Verdict(msgspec.Struct, frozen=True):
    """One condition judged for one frame: yes, no, or unknown (None), and the numbers that decided it."""

    value: bool | None
    readings: dict[str, float]


class StillwatchError(Exception):
    """Something the user can mend. Its text is one line: the thing, the cause, the mend."""

    exit_code = Exit.FAILED


class ConfigError(StillwatchError):
    """A setting is wrong; the text names the key and where it stands."""

    exit_code = Exit.CONFIG


class InputError(StillwatchError):
    """An input that was named cannot be worked on."""

    exit_code = Exit.NO_INPUT


class InstanceError(StillwatchError):
    """Another instance holds the runtime directory."""

    exit_code = Exit.TEMPORARY


class UnavailableError(StillwatchError):
    """A program that the command needs is not there."""

    exit_code = Exit.UNAVAILABLE


def describe(error: OSError) -> str:
    """An OSError's reason without its number and paths: `Permission denied`."""
    return error.strerror or type(error).__name__
