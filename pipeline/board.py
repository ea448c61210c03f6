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
        ("log_dropped", ctypes.c_uint64),  # child: log lines that nobody took
        ("settings_version", ctypes.c_uint64),  # child that is told of settings while it runs: which it goes by
        ("spare", ctypes.c_uint64 * 5),
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
        ("published", ctypes.c_uint64),  # watcher: frames put, or waiting outside a full lane
        ("watched_since_ns", ctypes.c_uint64),  # watcher: the first one's first turn; no silence is older
        ("armed_dev", ctypes.c_uint64),  # watcher: the directory armed last, so that a successor knows it again
        ("armed_ino", ctypes.c_uint64),
        ("spare_w", ctypes.c_uint64 * 3),
        ("judged", ctypes.c_uint64),  # worker, and all that follow: as in its last commit
        ("invalid", ctypes.c_uint64),
        ("skipped", ctypes.c_uint64),
        ("vanished", ctypes.c_uint64),
        ("phases", ctypes.c_uint64),  # of the conditions in the order of RANK, 4 bits each: Phase
        ("last_number", ctypes.c_uint64),
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
        ("zaps", ctypes.c_uint64),  # channel changes
        ("evidence_missed", ctypes.c_uint64),  # frames gone before they could be held
        ("hold_dropped", ctypes.c_uint64),  # evidence that gave way in a full hold
        ("hold_failures", ctypes.c_uint64),
        ("no_signal_frames", ctypes.c_uint64),
        ("silent_frames", ctypes.c_uint64),
        ("capture_state", ctypes.c_uint64),  # capture, and all that follow: CaptureState
        ("ffmpeg_pid", ctypes.c_uint64),  # 0 while there is none
        ("ffmpeg_restarts", ctypes.c_uint64),
        ("ffmpeg_stalls", ctypes.c_uint64),  # FFmpegs that were stopped because no frame came
        ("kept_frames", ctypes.c_uint64),  # files of frames that are there, as far as they are ours to delete
        ("kept_bytes", ctypes.c_uint64),  # what they take, sidecars and sound included
        ("frames_removed", ctypes.c_uint64),  # whatever the reason
        ("frames_evicted", ctypes.c_uint64),  # of these, because the file system was nearly full
        ("sidecars_removed", ctypes.c_uint64),  # beside frames that others had deleted
        ("tmp_removed", ctypes.c_uint64),  # what a killed FFmpeg had been writing
        ("spare_c", ctypes.c_uint64 * 6),
    ]


class LineRow(ctypes.Structure):
    """One of the sender's lines: uploads, notices."""

    _fields_ = [
        ("state", ctypes.c_uint64),  # sender, as all that follow: LineState
        ("failures", ctypes.c_uint64),  # in a row
        ("due_ns", ctypes.c_uint64),  # the next try
        ("done", ctypes.c_uint64),  # since the uploader's start
        ("spare", ctypes.c_uint64 * 4),
    ]


class BoardMemory(ctypes.Structure):
    """The whole file."""

    _fields_ = [
        ("magic", ctypes.c_uint64),
        ("supervisor_pid", ctypes.c_uint64),
        ("started_ns", ctypes.c_uint64),
        ("ready_ns", ctypes.c_uint64),
        ("started_wall_ns", ctypes.c_int64),
        ("sd_bytes", ctypes.c_uint64),  # supervisor: written to disks since the start, by all processes
        ("sd_bytes_per_s", ctypes.c_int64),  # supervisor: between the last two self-reports; -1 for unknown
        ("spare", ctypes.c_uint64 * 9),
        ("uploads", LineRow),
        ("notices", LineRow),
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
        memory.sd_bytes_per_s = -1
        for row, name in enumerate(children):
            board.add_child(row, name)
        for lane, name in enumerate(sources):
            board.add_source(lane, name)
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
            mend = "is the service running with this --runtime-dir?"
            if isinstance(error, PermissionError):
                mend = "ask as a user of the service's group"
            raise InputError(f"{path}: {error.strerror}; {mend}") from error
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
        """The rows that are in use; those of a worker that was taken away are not."""
        return [row for row in self.memory.children if row.name]

    @property
    def sources(self) -> list[tuple[int, SourceRow]]:
        """The lanes that are in use, and their rows."""
        return [(lane, row) for lane, row in enumerate(self.memory.sources) if row.name]

    def add_child(self, row: int, name: str) -> None:
        """Begin a row. Supervisor only, as are the next three."""
        self.memory.children[row] = ChildRow(name=name.encode(), state=State.NEW, cpu=-1)

    def remove_child(self, row: int) -> None:
        """Give a row back."""
        self.memory.children[row] = ChildRow()

    def add_source(self, lane: int, name: str) -> None:
        """Begin the row of a source."""
        self.memory.sources[lane] = SourceRow(name=name.encode(), state=SourceState.NEW)

    def remove_source(self, lane: int) -> None:
        """Give the row of a source back."""
        self.memory.sources[lane] = SourceRow()


def exit_name(code: int) -> str:
    """`EXIT_CONFIG` rather than 78, where the code is one of ours."""
    return Exit(code).name if code in set(Exit) else str(code)
