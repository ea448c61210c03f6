"""Toy processes that fail in one chosen way each, for tests of the supervisor and the ring.

A toy child has the shape of a role, `run(child) -> int`, and is named in a spec as `tests.children:hang`.
`python -m tests.children NAME ...` runs the toys that are programs of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable

from pipeline import supervisor as supervising
from pipeline.board import Board
from pipeline.child import HEARTBEAT_S, Child, Handover, Spec
from pipeline.model import ConfigError, Outcome
from pipeline.ring import MAX_STATE_BYTES, Doorbell, Lane, Ring
from pipeline.settings import Settings

EXIT_OWN = 3
EXIT_WRONG = 9

# -- children of a supervisor -----------------------------------------------------------------------------------------


def idle(child: Child) -> int:
    """Lives and beats until it is told to stop."""
    while not child.stopping:
        child.beat(time.monotonic_ns())
        child.signals.wait(child.heartbeat_s)
    return 0


def ready_then_exit(child: Child) -> int:
    """Starts, makes progress, ends."""
    child.row.turns = 1
    child.beat(time.monotonic_ns())
    return 0


def crash_at_start(child: Child) -> int:
    """Ends with a code of its own before its first heartbeat."""
    os._exit(EXIT_OWN)


def wrong_configuration(child: Child) -> int:
    """Ends as a role does that finds its configuration wrong."""
    raise ConfigError("toy: wrong from birth; give it another one")


def fault_of_ours(child: Child) -> int:
    """Ends by an exception that nobody expected."""
    raise RuntimeError("toy: nobody expected this")


def ready_then_crash_at_bell(child: Child) -> int:
    """Becomes ready, then crashes without progress when its doorbell is rung."""
    child.beat(time.monotonic_ns())
    if _rung(child):
        os._exit(EXIT_OWN)
    return 0


def _rung(child: Child) -> bool:
    """Waits until its doorbell is rung, which is left ringing, or it is told to stop; whether it was rung."""
    child.signals.poll.register(child.doorbells[0].fileno(), select.POLLIN)
    while not child.stopping:
        if child.signals.wait(HEARTBEAT_S):
            return True
    return False


def hang_at_start(child: Child) -> int:
    """Never beats."""
    while not child.stopping:
        child.signals.wait(HEARTBEAT_S)
    return 0


def never_start(child: Child) -> int:
    """Is so long in starting that it has not come to hear signals."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    return hang_at_start(child)


def hang(child: Child) -> int:
    """Beats once and never again: its loop is stuck."""
    child.beat(time.monotonic_ns())
    return hang_at_start(child)


def hang_while_busy(child: Child) -> int:
    """Goes on beating, but never finishes the slot in hand."""
    child.row.busy_lane, child.row.busy_index, child.row.busy_since_ns = 2, 7, time.monotonic_ns()
    return idle(child)


def ignore_term(child: Child) -> int:
    """Does not listen when it is asked to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return idle(child)


def segfault(child: Child) -> int:
    """Crashes on slot 7 of lane 2, after it had made progress."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    child.row.busy_lane, child.row.busy_index, child.row.busy_since_ns = 2, 7, time.monotonic_ns()
    child.row.turns = 1
    child.beat(time.monotonic_ns())
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def leak(child: Child) -> int:
    """Shows how many descriptors it was born with, opens many more and, when its doorbell is rung, ends without closing
    one."""
    child.row.turns = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        os.pipe()
    child.beat(time.monotonic_ns())
    if _rung(child):
        child.doorbells[0].clear()  # or its successor would hear it, too
    return 0


def stop_slowly(child: Child) -> int:
    """Shows when it was asked to stop (`busy_lane`) and when it did (`busy_index`)."""
    idle(child)
    child.row.busy_lane = time.monotonic_ns()
    time.sleep(0.2)
    child.row.busy_index = time.monotonic_ns()
    return 0


def supervise(entry: str, count: str) -> int:
    """A supervisor with `count` toy children, as a program; prints `ready` when all are."""
    specs = [Spec(f"toy/{n}", f"tests.children:{entry}", row=n) for n in range(int(count))]
    ring, bell = Ring.create(), Doorbell.create()
    board = Board.create(os.getcwd(), [spec.name for spec in specs], [])

    def handover(spec: Spec) -> tuple[Handover, tuple[int, ...]]:
        fds = (ring.fd, board.fd, bell.fd)
        return Handover(spec, Settings(), *fds, (), os.getpid()), fds

    def ready() -> None:
        sys.stdout.write("ready\n")
        sys.stdout.flush()

    supervisor = supervising.Supervisor(specs, board, bell, handover, hang_s=60, on_ready=ready)
    try:
        return supervisor.run()
    finally:
        supervisor.close()


# -- the two sides of a lane ------------------------------------------------------------------------------------------

_CHAIN = struct.Struct("=QI")
"""What a reader's state holds: the number that is due, and the CRC of all numbers before it."""


def chain(numbers: range) -> bytes:
    """The state of a reader that has seen these numbers in this order, each once."""
    crc = 0
    for number in numbers:
        crc = zlib.crc32(number.to_bytes(8, "little"), crc)
    return _CHAIN.pack(numbers.stop, crc)


def put_numbers(fd: str, count: str) -> int:
    """A watcher's side: puts 0, 1, 2 ... into lane 0, patiently."""
    lane = Ring(int(fd)).lanes[0]
    for number in range(int(count)):
        while not lane.put(number, 9, time.monotonic_ns()):
            time.sleep(0.001)
    return 0


def take_numbers(fd: str, count: str) -> int:
    """A worker's side: commits the numbers of lane 0 in their order, ends with EXIT_WRONG at the first wrong one."""
    lane = Ring(int(fd)).lanes[0]
    lane.adopt()
    while lane.record.tail < int(count):
        slot = lane.reserve()
        if slot is None:
            time.sleep(0.0005)
            continue
        due, crc = _CHAIN.unpack(lane.record.state) if lane.record.state else (0, 0)
        if slot.number != due or slot.index != due:
            return EXIT_WRONG
        lane.complete(Outcome.JUDGED, _CHAIN.pack(due + 1, zlib.crc32(slot.number.to_bytes(8, "little"), crc)))
    return 0


def state_of(tail: int) -> bytes:
    """A state as large as one can be, another for every tail."""
    return tail.to_bytes(8, "little") * (MAX_STATE_BYTES // 8)


def _commit_for_ever(lane: Lane) -> None:
    lane.adopt()
    while True:
        if lane.reserve():
            lane.complete(Outcome.JUDGED, state_of(lane.record.tail + 1))


def commit_storm(fd: str, seed: str, kills: str) -> int:
    """Kill a committing process at random moments, at least `kills` times and until one was in mid-record.

    Prints what was found wrong and how many kills left a record half written. Forks, because a process of its own
    image takes a hundred times longer to start.
    """
    chance, lane = random.Random(int(seed)), Ring(int(fd)).lanes[0]
    killed, half_written, wrong, tail = 0, 0, list[str](), 0
    deadline = time.monotonic() + 20
    while killed < int(kills) or (not half_written and time.monotonic() < deadline):
        while lane.put(killed, 9, time.monotonic_ns()):
            pass
        pid = os.fork()
        if pid == 0:
            _commit_for_ever(lane)
        while lane.last_record().tail == tail:
            pass
        kill_at = time.monotonic() + chance.uniform(0, 0.001)
        while time.monotonic() < kill_at:
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed += 1
        record, books = lane.adopt(), lane.books()
        half_written += record.tail > 1 and lane._read_record((record.tail + 1) & 1) is None
        if not (record.tail > tail and record.judged == record.tail and record.state == state_of(record.tail)):
            wrong.append(f"kill {killed}: record {record.tail} after {tail}")
        if not (books.balanced and books.published == lane.head and books.in_flight == lane.backlog):
            wrong.append(f"kill {killed}: {books}")
        tail = record.tail
    sys.stdout.write(json.dumps({"killed": killed, "half_written": half_written, "wrong": wrong}))
    return 0


PROGRAMS: dict[str, Callable[..., int]] = {
    program.__name__: program for program in (supervise, put_numbers, take_numbers, commit_storm)
}

if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(PROGRAMS[sys.argv[1]](*sys.argv[2:]))
