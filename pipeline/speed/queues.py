"""The ring against multiprocessing.Queue: messages per second, and what a SIGKILL of a consumer does to each.

Both carry what a slot carries, from one process to another, and both do it in turn. Consumers of the ring commit each
message with a judge's state, which a queue cannot; those of the queue only take it. Consumers tick off what they have
done in memory that survives them. Kills are real:

    idle   nobody has anything to do, and one consumer is killed. Then messages are put.
    busy   messages flow, and one consumer is killed at a random moment.

Afterwards the ring gets a successor for its consumer, as a service does; the queue has a second consumer, as a pool
has. A queue whose survivors take nothing more for a second is called stuck: the dead one held its lock.

Runs in a process of its own (`python -m pipeline.speed.queues ...`), which prints one JSON object: it forks.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import multiprocessing.process
import os
import random
import select
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec

from pipeline.child import die_with_parent
from pipeline.model import Outcome, StillwatchError
from pipeline.ring import Doorbell, Ring
from pipeline.speed.stage import run_module

MESSAGES = 40  # of a trial
WORK_S = 0.0003  # that a consumer takes for one, where it may be killed
STUCK_S = 1.0
WAIT_S = 20.0
STATE = bytes(5225)
"""What a judge keeps of itself in a commit, of this size for 720p pictures in motion."""

BURST = 20_000  # messages of one measurement of speed
_FORK = multiprocessing.get_context("fork")
Message = tuple[int, int, int]  # number, digits of its name, when it was put


def compare(trials: int, rounds: int, seed: int) -> dict[str, Any]:
    """All of it, in a process of its own."""
    found: dict[str, Any] = msgspec.json.decode(run_module(__name__, [str(trials), str(rounds), str(seed)]))
    return found


class Ledger:
    """How often each message was done, in memory that all processes share."""

    def __init__(self, count: int) -> None:
        self._done = mmap.mmap(-1, count)

    def tick(self, number: int) -> None:
        self._done[number] = min(255, self._done[number] + 1)

    @property
    def counts(self) -> list[int]:
        return list(self._done[:])

    @property
    def done(self) -> int:
        """Messages that were done at least once."""
        return len(self._done) - self._done[:].count(0)


class Channel(Protocol):
    """One way from a producer to consumers."""

    consumers: list[multiprocessing.process.BaseProcess]

    def put(self, number: int) -> None:
        """Send one message."""

    def replace(self) -> None:
        """What is done about a consumer that was killed."""

    def close(self) -> None:
        """End all consumers."""


class RingChannel:
    """A lane with one consumer, which gets a successor."""

    def __init__(self, ledger: Ledger, work_s: float) -> None:
        self._ring, self._bell, self._ledger, self._work_s = Ring.create(), Doorbell.create(), ledger, work_s
        self._lane = self._ring.lanes[0]
        self.consumers = [self._consumer()]

    def _consumer(self) -> multiprocessing.process.BaseProcess:
        return _start(self._consume, os.getpid())

    def _consume(self, parent: int) -> None:
        _begin(parent)
        lane, poll = self._ring.lanes[0], select.poll()
        poll.register(self._bell, select.POLLIN)
        lane.adopt()
        while True:
            slot = lane.reserve()
            if slot is None:
                poll.poll()
                self._bell.clear()
                continue
            _work(self._work_s)
            self._ledger.tick(slot.number)
            lane.complete(Outcome.JUDGED, STATE)

    def put(self, number: int) -> None:
        give_up = time.monotonic() + WAIT_S
        while not self._lane.put(number, 9, time.monotonic_ns()):
            if time.monotonic() > give_up:
                raise StillwatchError("the ring's consumer takes nothing")
            time.sleep(0.0005)
        self._bell.ring()

    def replace(self) -> None:
        self.consumers[0].join()
        self.consumers[0] = self._consumer()

    def close(self) -> None:
        _end(self.consumers)
        self._ring.close()
        os.close(self._bell.fd)


class QueueChannel:
    """A multiprocessing.Queue with `consumers` consumers."""

    def __init__(self, ledger: Ledger, work_s: float, consumers: int = 2) -> None:
        self._queue: Any = _FORK.Queue()
        self._ledger, self._work_s = ledger, work_s
        self.consumers = [_start(self._consume, os.getpid()) for _ in range(consumers)]

    def _consume(self, parent: int) -> None:
        _begin(parent)
        while True:
            number, _, _ = self._queue.get()
            _work(self._work_s)
            self._ledger.tick(number)

    def put(self, number: int) -> None:
        message: Message = (number, 9, time.monotonic_ns())
        self._queue.put(message)

    def replace(self) -> None:
        """The other one goes on."""

    def close(self) -> None:
        _end(self.consumers)
        self._queue.cancel_join_thread()
        self._queue.close()


def _start(target: Callable[[int], None], parent: int) -> multiprocessing.process.BaseProcess:
    process = _FORK.Process(target=target, args=(parent,), daemon=True)
    process.start()
    return process


def _begin(parent: int) -> None:
    """A consumer dies silently, and not later than who made it."""
    die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _end(consumers: list[multiprocessing.process.BaseProcess]) -> None:
    for process in consumers:
        process.kill()
        process.join()


def _work(seconds: float) -> None:
    """As a worker does: on the core, not asleep."""
    until = time.perf_counter() + seconds
    while seconds and time.perf_counter() < until:
        pass


# -- kills ------------------------------------------------------------------------------------------------------------


def kill_trial(make: Callable[[Ledger, float], Channel], chance: random.Random, *, busy: bool) -> dict[str, int]:
    """Kill one consumer; what became of the messages."""
    ledger = Ledger(1 + MESSAGES)
    channel = make(ledger, WORK_S)
    try:
        channel.put(0)  # all has been set up when it is done
        _wait(lambda: ledger.done == 1, WAIT_S)
        victim = chance.choice(channel.consumers)
        if not busy:
            time.sleep(0.02)  # into the wait for more
            victim.kill()
            victim.join()
        at = chance.randrange(MESSAGES // 5, MESSAGES)
        for number in range(1, MESSAGES + 1):
            channel.put(number)
            if busy and number == at:
                _wait(lambda: ledger.done > at // 2, WAIT_S)
                victim.kill()
        channel.replace()
        return _outcome(ledger, victim)
    finally:
        channel.close()


def _outcome(ledger: Ledger, victim: multiprocessing.process.BaseProcess) -> dict[str, int]:
    """Wait until all is done, or nothing more has been done for long."""
    done, moved = ledger.done, time.monotonic()
    while done <= MESSAGES and time.monotonic() < moved + STUCK_S:
        time.sleep(0.002)
        if ledger.done != done:
            done, moved = ledger.done, time.monotonic()
    victim.join()
    undone = MESSAGES + 1 - done
    return {
        "killed": int(victim.exitcode == -signal.SIGKILL),
        "stuck": int(undone > 1),  # a consumer has one message in hand; more were there for the others to take
        "lost": undone,
        "repeated": sum(count > 1 for count in ledger.counts),
    }


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while not condition() and time.monotonic() < give_up:
        time.sleep(0.0005)


CHANNELS: dict[str, Callable[[Ledger, float], Channel]] = {"ring": RingChannel, "queue": QueueChannel}


def kills(trials: int, chance: random.Random, *, busy: bool) -> dict[str, dict[str, int]]:
    """Of each side: trials, and what they came to."""
    found = {name: {"trials": 0, "killed": 0, "stuck": 0, "lost": 0, "repeated": 0} for name in CHANNELS}
    for _ in range(trials):
        for name, make in CHANNELS.items():
            found[name]["trials"] += 1
            for what, count in kill_trial(make, chance, busy=busy).items():
                found[name][what] += count
    return found


# -- speed ------------------------------------------------------------------------------------------------------------


def per_s(name: str) -> float:
    """Messages per second through an otherwise idle channel with one consumer."""
    ledger = Ledger(BURST + 1)
    with _single(name, ledger) as channel:
        channel.put(BURST)
        _wait(lambda: ledger.done == 1, WAIT_S)
        begun = time.monotonic()
        for number in range(BURST):
            channel.put(number)
        _wait(lambda: ledger.done > BURST, WAIT_S)
        return BURST / (time.monotonic() - begun)


@contextlib.contextmanager
def _single(name: str, ledger: Ledger) -> Iterator[Channel]:
    channel: Channel = RingChannel(ledger, 0) if name == "ring" else QueueChannel(ledger, 0, consumers=1)
    try:
        yield channel
    finally:
        channel.close()


def speed(rounds: int) -> dict[str, Any]:
    """Both in turn; medians, and the ring's as a multiple of the queue's, round by round."""
    pairs = [(per_s("ring"), per_s("queue")) for _ in range(rounds)]
    ratios = [ring / queue for ring, queue in pairs]
    return {
        "ring_per_s": round(statistics.median(ring for ring, _ in pairs)),
        "queue_per_s": round(statistics.median(queue for _, queue in pairs)),
        "ratio": [round(pick(ratios), 2) for pick in (statistics.median, min, max)],
        "rounds": rounds,
    }


def main(trials: int, rounds: int, seed: int) -> dict[str, Any]:
    """Speed, then idle kills, then busy ones."""
    chance = random.Random(seed)
    return {
        "seed": seed,
        "speed": speed(rounds),
        "idle": kills(trials, chance, busy=False),
        "busy": kills(trials, chance, busy=True),
    }


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.stdout.write(msgspec.json.encode(main(*map(int, sys.argv[1:]))).decode() + "\n")
