"""Looking into a running service, and damaging it: its board, its very ring, and workers that obey frames."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from pipeline.board import Board, ChildRow, SourceRow
from pipeline.model import State
from pipeline.ring import _RECORDS_AT, _SLOT_BYTES, _SLOTS_AT, CAPACITY, RECORD_BYTES, Lane, Ring
from tests.support import Rig, wait_until


class ToyRig(Rig):
    """A rig whose workers do what frames tell them (`toy_service.order`)."""

    @property
    def command(self) -> list[str]:
        return ["tests.toy_service" if part == "pipeline" else part for part in super().command]


def board_of(rig: Rig) -> Board:
    """The live board of a service."""
    board = Board.open(str(rig.base / "run"))
    os.close(board.fd)  # the map has its own
    return board


def source_row(rig: Rig, source: int = 0) -> SourceRow:
    """The live row of a source."""
    row: SourceRow = board_of(rig).memory.sources[source]
    return row


def total(rig: Rig, counter: str) -> int:
    """A counter of the board, summed over all sources."""
    return sum(getattr(row, counter) for _, row in board_of(rig).sources)


def child_row(rig: Rig, name: str) -> ChildRow:
    """The live row of a child."""
    return next(row for row in board_of(rig).children if row.name.decode() == name)


def running_pid(rig: Rig, name: str, but: int = 0) -> int:
    """The pid of a child once it runs; `but` is the pid that it must no longer have."""
    row = child_row(rig, name)
    wait_until(lambda: row.pid not in (0, but) and row.state == State.RUNNING, 20, f"{name} runs")
    return int(row.pid)


def has_in_memory(pid: int, text: str) -> bool:
    """Whether a process has a text anywhere in the memory that it may write to."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            place, rights = line.split()[:2]
            if "rw" in rights and "[v" not in line:
                first, last = (int(number, 16) for number in place.split("-"))
                memory.seek(first)
                with suppress(OSError):  # unmapped meanwhile
                    if text.encode() in memory.read(last - first):
                        return True
    return False


@contextmanager
def ring_of(rig: Rig) -> Iterator[Ring]:
    """The ring of a running service, mapped through its supervisor's descriptor."""
    assert rig.process
    folder = f"/proc/{rig.process.pid}/fd"
    path = next(f"{folder}/{fd}" for fd in os.listdir(folder) if "stillwatch-ring" in os.readlink(f"{folder}/{fd}"))
    ring = Ring(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    try:
        yield ring
    finally:
        ring.lanes.clear()
        ring.close()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process under SIGSTOP; it goes on afterwards, if it is still there."""
    process = psutil.Process(pid)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED, 30, f"{pid} stopped")
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie that nobody reaps has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def ended(processes: list[psutil.Process]) -> Iterator[None]:
    """Processes that must not outlive a test, even one that fails: orphans are no children of the test runner."""
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def slot_at(lane: Lane, index: int) -> int:
    """Where in the ring's memory a slot lies."""
    return lane.base + _SLOTS_AT + (index % CAPACITY) * _SLOT_BYTES


def record_at(lane: Lane, tail: int) -> int:
    """Where in the ring's memory the record of this tail lies."""
    return lane.base + _RECORDS_AT + (tail & 1) * RECORD_BYTES


def damage(ring: Ring, at: int) -> None:
    """Flip one bit of the ring's memory."""
    ring.memory[at] ^= 0x10


def python(*arguments: str) -> list[str]:
    """The command line of a toy program."""
    return [sys.executable, "-P", "-m", *arguments]


ROOT_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
