"""The board: shared status of all children and sources, in one small file that `status` may read.

The file `board` (0640) lies in the runtime directory, is made anew at each start and mapped by every process; a
reader needs no permission from anybody and disturbs nobody. Every cell has one writer, named beside it. Instants are
CLOCK_MONOTONIC nanoseconds, 0 for never.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import time

from pipeline.model import MAX_SOURCES, MAX_WORKERS, Exit, InputError, SourceState, State

FILE_NAME = "board"
MAX_CHILDREN = MAX_WORKERS + 8
_MAGIC = 0x5354494C4C574231  # "STILLWB1"
_NAME_BYTES = 64
CLOCK_SET_NS = 1_000_000_000  # NTP slews by less over years of uptime; a step is more


class ChildRow(ctypes.Structure):
    """One child."""

    _fields_ = [
        ("name", ctypes.c_char * _NAME_BYTES),  # supervisor
        ("pid", ctypes.c_uint64),  # supervisor; 0 while there is none
        ("state", ctypes.c_uint64),  # supervisor
        ("restarts", ctypes.c_uint64),  # supervisor
        ("started_ns", ctypes.c_uint64),  # supervisor: the last spawn
        ("heartbeat_ns", ctypes.c_uint64),  # child, from its own loop
        ("busy_since_ns", ctypes.c_uint64),  # child: start of the piece of work in hand
        ("busy_lane", ctypes.c_uint64),  # child: whose frame that is
        ("busy_index", ctypes.c_uint64),  # child: and which slot
        ("cpu", ctypes.c_int64),  # child: the core it is pinned to, -1 for none
        ("turns", ctypes.c_uint64),  # child: turns of its loop that found work
        ("spare", ctypes.c_uint64 * 7),
    ]


class SourceRow(ctypes.Structure):
    """One source. The frame counts are in the ring's records; here is what has no other home."""

    _fields_ = [
        ("name", ctypes.c_char * _NAME_BYTES),  # supervisor
        ("state", ctypes.c_uint64),  # watcher: SourceState
        ("events", ctypes.c_uint64),  # watcher: renames seen
        ("refused_names", ctypes.c_uint64),  # watcher: frame names too long to carry
        ("overflows", ctypes.c_uint64),  # watcher: IN_Q_OVERFLOW
        ("scans", ctypes.c_uint64),  # watcher: directory listings, the one at start included
        ("rearmed", ctypes.c_uint64),  # watcher: watches that had to be set again
        (
            "left_behind",
            ctypes.c_uint64,
        ),  # watcher: frames found by a scan and not queued (older than asked for)
        ("last_put_ns", ctypes.c_uint64),  # watcher
        ("since_ns", ctypes.c_int64),  # watcher: wall clock of its first listing; what is older was left there
        ("spare_w", ctypes.c_uint64 * 7),
        ("last_number", ctypes.c_uint64),  # worker, and all that follow
        ("last_done_ns", ctypes.c_uint64),
        ("lag_ns", ctypes.c_uint64),  # put to sidecar of the last frame
        ("max_lag_ns", ctypes.c_uint64),  # since the start
        ("black_frames", ctypes.c_uint64),
        ("freeze_frames", ctypes.c_uint64),
        ("unknown_frames", ctypes.c_uint64),
        ("duplicates", ctypes.c_uint64),
        ("stale_sidecars", ctypes.c_uint64),
        ("sidecar_failures", ctypes.c_uint64),
        ("unreadable", ctypes.c_uint64),
        ("torn_slots", ctypes.c_uint64),
        ("gaps", ctypes.c_uint64),
        ("numbering_restarts", ctypes.c_uint64),
        ("buried", ctypes.c_uint64),
        ("shed", ctypes.c_uint64),
        ("open_incidents", ctypes.c_uint64),
        ("incidents", ctypes.c_uint64),  # opened since the start
        ("blips", ctypes.c_uint64),
        ("evidence_missed", ctypes.c_uint64),  # frames gone before they could be held
        ("hold_dropped", ctypes.c_uint64),  # evidence that gave way in a full hold
        ("hold_failures", ctypes.c_uint64),
        ("spare", ctypes.c_uint64 * 2),
    ]


class BoardMemory(ctypes.Structure):
    """The whole file."""

    _fields_ = [
        ("magic", ctypes.c_uint64),
        ("supervisor_pid", ctypes.c_uint64),
        ("started_ns", ctypes.c_uint64),
        ("ready_ns", ctypes.c_uint64),
        ("started_wall_ns", ctypes.c_int64),
        ("children_count", ctypes.c_uint64),
        ("sources_count", ctypes.c_uint64),
        ("spare", ctypes.c_uint64 * 9),
        ("children", ChildRow * MAX_CHILDREN),
        ("sources", SourceRow * MAX_SOURCES),
    ]


class Board:
    """The mapped board. `memory.children[i]` and `memory.sources[i]` are live rows."""

    def __init__(self, fd: int, *, writable: bool = True) -> None:
        self.fd = fd
        size = ctypes.sizeof(BoardMemory)
        if writable:
            self._map = mmap.mmap(fd, size)
        else:  # ctypes wants a writable buffer: a private map gives it one and never writes through
            self._map = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE)
        self.memory = BoardMemory.from_buffer(self._map)

    @classmethod
    def create(cls, runtime_dir: str, children: list[str], sources: list[str]) -> Board:
        """A fresh board file for these children and sources; an old one is left to whoever still maps it."""
        path = os.path.join(runtime_dir, FILE_NAME)
        fresh = f"{path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)  # of a start that was killed: the caller holds the directory's lock
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        os.fchmod(fd, 0o640)  # whatever the umask
        os.posix_fallocate(fd, 0, ctypes.sizeof(BoardMemory))  # a full file system says so here, not by SIGBUS later
        board = cls(fd)
        memory = board.memory
        memory.supervisor_pid = os.getpid()
        memory.started_ns, memory.started_wall_ns = time.monotonic_ns(), time.time_ns()
        memory.children_count, memory.sources_count = len(children), len(sources)
        for row, name in zip(memory.children, children, strict=False):
            row.name, row.state, row.cpu = name.encode(), State.NEW, -1
        for source, name in zip(memory.sources, sources, strict=False):
            source.name, source.state = name.encode(), SourceState.NEW
        memory.magic = _MAGIC
        os.rename(fresh, path)
        return board

    @classmethod
    def open(cls, runtime_dir: str) -> Board:
        """The board of the service that uses `runtime_dir`, for reading. Raises InputError when there is none."""
        path = os.path.join(runtime_dir, FILE_NAME)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; is the service running with this --runtime-dir?") from error
        if os.fstat(fd).st_size != ctypes.sizeof(BoardMemory):
            os.close(fd)
            raise InputError(f"{path}: not a board of this version; restart the service or use its own `stillwatch`")
        board = cls(fd, writable=False)
        if board.memory.magic != _MAGIC:
            raise InputError(f"{path}: not a board; remove it and restart the service")
        return board

    def clock_was_set(self) -> bool:
        """Whether the wall clock has been set since the start: file times from before and after do not compare."""
        lived_ns = time.monotonic_ns() - int(self.memory.started_ns)
        ahead_ns = time.time_ns() - int(self.memory.started_wall_ns) - lived_ns
        return abs(ahead_ns) > CLOCK_SET_NS

    @property
    def children(self) -> list[ChildRow]:
        return list(self.memory.children[: self.memory.children_count])

    @property
    def sources(self) -> list[SourceRow]:
        return list(self.memory.sources[: self.memory.sources_count])


def exit_name(code: int) -> str:
    """`EXIT_CONFIG` rather than 78, where the code is one of ours."""
    return Exit(code).name if code in set(Exit) else str(code)
