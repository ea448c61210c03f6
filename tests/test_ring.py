"""The shared-memory work queue: its protocol by rules, its crash safety by real kills."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.model import Outcome
from pipeline.ring import CAPACITY, MAX_STATE_BYTES, POISON_DEATHS, Books, Doorbell, Lane, Record, Ring, TornSlot
from tests.children import chain
from tests.live import ROOT_ENVIRONMENT, damage, python, record_at, slot_at
from tests.support import wait_until

WIDTH = 9


@pytest.fixture
def ring() -> Iterator[Ring]:
    """An empty ring."""
    made = Ring.create()
    yield made
    made.close()


@pytest.fixture
def lane(ring: Ring) -> Lane:
    """An empty lane, adopted by its worker."""
    ring.lanes[0].adopt()
    return ring.lanes[0]


def put(lane: Lane, *numbers: int) -> None:
    """Put frames."""
    for number in numbers:
        assert lane.put(number, WIDTH, time.monotonic_ns())


def take(lane: Lane) -> int:
    """Judge the slot that is due; its number."""
    slot = lane.reserve()
    assert slot
    lane.complete(Outcome.JUDGED, b"")
    return slot.number


def successor(ring: Ring) -> Ring:
    """The ring as a process sees it that has just inherited it. (Its map has a descriptor of its own.)"""
    return Ring(ring.fd)


# -- put, reserve, complete -------------------------------------------------------------------------------------------


def test_slots_come_out_in_the_order_in_which_they_were_put(lane: Lane) -> None:
    put(lane, 5, 3, 8)
    assert [take(lane), take(lane), take(lane)] == [5, 3, 8]


def test_a_slot_carries_all_that_was_put(lane: Lane) -> None:
    lane.put(2**63, 18, 77)
    slot = lane.reserve()
    assert slot
    assert (slot.index, slot.number, slot.width, slot.put_ns, slot.tick) == (0, 2**63, 18, 77, False)


def test_an_empty_lane_reserves_nothing(lane: Lane) -> None:
    assert lane.reserve() is None


def test_reserving_twice_gives_the_same_slot(lane: Lane) -> None:
    put(lane, 1, 2)
    assert lane.reserve() == lane.reserve()


def test_a_full_lane_refuses_and_counts_it(lane: Lane) -> None:
    put(lane, *range(CAPACITY))
    assert not lane.has_room
    assert lane.put(CAPACITY, WIDTH, 0) is False
    assert (lane.refused, lane.head, lane.backlog) == (1, CAPACITY, CAPACITY)


def test_one_commit_makes_room_for_one(lane: Lane) -> None:
    put(lane, *range(CAPACITY))
    take(lane)
    put(lane, CAPACITY)
    assert not lane.put(CAPACITY + 1, WIDTH, 0)


def test_order_is_kept_around_the_end_of_the_lane(lane: Lane) -> None:
    put(lane, *range(CAPACITY - 3))
    assert [take(lane) for _ in range(CAPACITY - 3)] == list(range(CAPACITY - 3))
    put(lane, *range(5000, 5010))
    assert lane.head > CAPACITY
    assert [take(lane) for _ in range(10)] == list(range(5000, 5010))


def test_lanes_do_not_touch_each_other(ring: Ring) -> None:
    first, second, last = ring.lanes[0], ring.lanes[1], ring.lanes[-1]
    for number, lane in enumerate((first, second, last)):
        lane.adopt()
        put(lane, *range(number, number + CAPACITY))
        lane.picture_cells()[-1][-1] = 0xFF
    for number, lane in enumerate((first, second, last)):
        lane.complete(Outcome.JUDGED, bytes([number]) * MAX_STATE_BYTES)
    for number, lane in enumerate((first, second, last)):
        assert lane.last_record().state == bytes([number]) * MAX_STATE_BYTES
        assert lane.slot(CAPACITY - 1).number == number + CAPACITY - 1
        assert lane.picture_cells()[-1][-1] == 0xFF


def test_a_ring_has_no_name_and_leaves_nothing(ring: Ring) -> None:
    assert os.readlink(f"/proc/self/fd/{ring.fd}").endswith("(deleted)")
    assert os.fstat(ring.fd).st_blocks * 512 < 64 * 1024  # nothing touched, nothing paid


# -- torn slots -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("byte", range(36))
def test_one_wrong_bit_in_a_slot_is_never_believed(ring: Ring, lane: Lane, byte: int) -> None:
    put(lane, 41)
    damage(ring, slot_at(lane, 0) + byte)
    with pytest.raises(TornSlot):
        lane.reserve()


def test_a_slot_of_the_round_before_is_never_believed(ring: Ring, lane: Lane) -> None:
    # Given an old slot, whole, where the new one should be: what an early read sees on a weakly ordered core
    put(lane, *range(CAPACITY))
    old = bytes(ring.memory[slot_at(lane, 0) :][:64])
    take(lane)
    put(lane, CAPACITY)
    # When the new one has not arrived
    ring.memory[slot_at(lane, 0) :][:64] = old
    # Then
    with pytest.raises(TornSlot):
        lane.slot(CAPACITY)


def test_a_slot_that_becomes_right_while_it_is_read_again_is_accepted(
    ring: Ring, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a slot whose last bytes are late
    put(lane, 41)
    damage(ring, slot_at(lane, 0) + 8)
    yields = Counter[str]()

    def arrive() -> None:
        yields["core"] += 1
        if yields["core"] == 5:
            damage(ring, slot_at(lane, 0) + 8)

    monkeypatch.setattr(os, "sched_yield", arrive)
    # When it is reserved
    slot = lane.reserve()
    # Then
    assert slot and slot.number == 41
    assert yields["core"] == 5


def test_a_slot_torn_for_good_is_skipped_and_the_next_is_right(ring: Ring, lane: Lane) -> None:
    put(lane, 1, 2)
    damage(ring, slot_at(lane, 0))
    with pytest.raises(TornSlot):
        lane.reserve()
    lane.complete(Outcome.SKIPPED, b"")
    assert take(lane) == 2
    assert lane.books() == Books(2, 1, 0, 1, 0, 0, 0, 2)


# -- commit records ---------------------------------------------------------------------------------------------------


def test_a_record_keeps_tail_outcomes_and_state_together(ring: Ring, lane: Lane) -> None:
    put(lane, *range(5))
    for outcome in (Outcome.JUDGED, Outcome.INVALID, Outcome.SKIPPED, Outcome.VANISHED, Outcome.JUDGED):
        lane.complete(outcome, outcome.encode())
    assert successor(ring).lanes[0].adopt() == Record(5, 2, 1, 1, 1, 0, b"judged")


def test_records_alternate_so_that_one_is_always_whole(ring: Ring, lane: Lane) -> None:
    put(lane, 1, 2)
    take(lane)
    before = bytes(ring.memory[record_at(lane, 1) :][:64])
    take(lane)
    assert record_at(lane, 1) != record_at(lane, 2)
    assert bytes(ring.memory[record_at(lane, 1) :][:64]) == before


@pytest.mark.parametrize("byte", [0, 4, 8, 16, 24, 56, 70], ids=lambda byte: f"byte{byte}")
def test_a_crash_in_mid_commit_leaves_the_record_before(ring: Ring, lane: Lane, byte: int) -> None:
    put(lane, 1, 2, 3)
    lane.complete(Outcome.JUDGED, b"state of one" * 9)
    lane.complete(Outcome.INVALID, b"state of two" * 9)
    damage(ring, record_at(lane, 2) + byte)
    heir = successor(ring).lanes[0]
    assert heir.adopt() == Record(1, 1, 0, 0, 0, 0, b"state of one" * 9)
    assert heir.books() == Books(3, 1, 0, 0, 0, 2, 0, 1)
    assert heir.reserve() == lane.slot(1)


def test_a_crash_in_the_very_first_commit_leaves_the_beginning(ring: Ring, lane: Lane) -> None:
    put(lane, 1)
    lane.complete(Outcome.JUDGED, b"state")
    damage(ring, record_at(lane, 1) + 60)
    heir = successor(ring).lanes[0]
    assert heir.adopt() == Record()
    assert heir.reserve() == lane.slot(0)


def test_the_largest_state_fits(ring: Ring, lane: Lane) -> None:
    put(lane, 1)
    lane.complete(Outcome.JUDGED, b"s" * MAX_STATE_BYTES)
    assert successor(ring).lanes[0].adopt().state == b"s" * MAX_STATE_BYTES


def test_a_state_too_large_is_refused_and_nothing_is_committed(lane: Lane) -> None:
    put(lane, 1, 2)
    with pytest.raises(ValueError, match=rf"{MAX_STATE_BYTES + 1} bytes"):
        lane.complete(Outcome.JUDGED, b"s" * (MAX_STATE_BYTES + 1))
    assert (lane.record, lane.last_record(), lane.backlog) == (Record(), Record(), 2)
    assert take(lane) == 1


def test_a_process_killed_in_mid_commit_leaves_a_whole_record(ring: Ring) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    storm = subprocess.run(
        python("tests.children", "commit_storm", str(ring.fd), str(seed), "300"),
        pass_fds=[ring.fd],
        env=ROOT_ENVIRONMENT,
        capture_output=True,
        check=True,
    )
    found = json.loads(storm.stdout)
    assert found["killed"] >= 300
    assert found["half_written"] > 0, "no kill fell into a record"
    assert found["wrong"] == []


# -- books and ticks --------------------------------------------------------------------------------------------------


def test_ticks_are_no_frames(lane: Lane) -> None:
    put(lane, 1)
    lane.put(0, 0, 0, tick=True)
    put(lane, 2)
    assert (lane.books().published, lane.books().in_flight) == (2, 2)
    take(lane)
    lane.complete(None, b"")
    assert lane.books() == Books(2, 1, 0, 0, 0, 1, 1, 2)
    assert lane.books().balanced


def test_a_restarted_watcher_goes_on_counting_ticks(ring: Ring, lane: Lane) -> None:
    put(lane, 1)
    lane.put(0, 0, 0, tick=True)
    heir = successor(ring).lanes[0]
    put(heir, 2)
    heir.put(0, 0, 0, tick=True)
    assert (heir.slot(2).ticks, heir.slot(3).ticks) == (1, 2)
    assert (lane.books().published, lane.books().in_flight) == (2, 2)


def test_a_damaged_newest_slot_costs_a_restarted_watcher_no_tick(ring: Ring, lane: Lane) -> None:
    # Given a tick that waits, a frame behind it whose slot is damaged, and a new watcher
    assert lane.put(1, WIDTH, 0, tick=True)
    put(lane, 2)
    damage(ring, slot_at(lane, 1))
    heir = successor(ring)
    assert heir.lanes[0].put(3, WIDTH, 0)
    # When all is served
    lane.complete(None, b"")
    lane.complete(Outcome.SKIPPED, b"")
    assert take(lane) == 3
    # Then nothing is in flight for ever
    assert lane.books() == Books(2, 1, 0, 1, 0, 0, 1, 3)


def test_frames_held_outside_a_full_lane_are_in_flight(lane: Lane) -> None:
    put(lane, *range(CAPACITY))
    lane.set_pending(7)
    assert (lane.books().published, lane.books().in_flight) == (CAPACITY + 7, CAPACITY + 7)
    assert lane.books().balanced


# -- a successor of the watcher ---------------------------------------------------------------------------------------


def test_the_frame_put_last_outlives_its_commit(ring: Ring, lane: Lane) -> None:
    put(lane, 1, 2, 3)
    lane.put(0, 0, 0, tick=True)
    for _ in range(4):
        take(lane)
    last = successor(ring).lanes[0].last_put()
    assert last and (last.number, last.tick) == (3, False)


def test_a_damaged_last_slot_makes_the_one_before_it_the_last_put(ring: Ring, lane: Lane) -> None:
    put(lane, 1, 2, 3)
    damage(ring, slot_at(lane, 2))
    last = lane.last_put()
    assert last and last.number == 2


def test_nothing_put_is_no_last_put(lane: Lane) -> None:
    assert lane.last_put() is None


def test_ready_slots_are_those_not_yet_committed(lane: Lane) -> None:
    put(lane, 1, 2, 3)
    take(lane)
    assert [slot.number for slot in lane.ready()] == [2, 3]


# -- grants -----------------------------------------------------------------------------------------------------------


def test_a_lane_is_served_by_the_worker_it_was_granted_to(ring: Ring) -> None:
    assert ring.lanes[5].holder is None
    ring.grant(3, 0)
    ring.grant(4, 63)
    assert [ring.lanes[lane].holder for lane in (3, 4, 5)] == [0, 63, None]


def test_every_change_of_a_grant_can_be_seen(ring: Ring) -> None:
    seen = {ring.grants}
    for _ in range(3):
        ring.grant(0, 1)
        seen.add(ring.grants)
        ring.revoke(0)
        seen.add(ring.grants)
    assert len(seen) == 7


def test_a_lane_moves_only_after_its_worker_has_let_it_go(ring: Ring) -> None:
    lane, released = ring.lanes[0], []
    for step in (partial(ring.grant, 0, 1), partial(ring.revoke, 0), lane.release):
        step()
        released.append(lane.released)
    assert released == [False, False, True]


def test_an_old_release_is_not_taken_for_a_new_one(ring: Ring) -> None:
    lane, released = ring.lanes[0], []
    ring.grant(0, 1)
    ring.revoke(0)
    lane.release()
    for step in (partial(ring.grant, 0, 2), partial(ring.revoke, 0)):
        step()
        released.append(lane.released)
    assert released == [False, False]


def test_the_next_worker_goes_on_where_the_last_one_stopped(ring: Ring, lane: Lane) -> None:
    put(lane, 1, 2, 3)
    take(lane)
    heir = successor(ring).lanes[0]
    heir.adopt()
    assert [take(heir), take(heir)] == [2, 3]


# -- poison -----------------------------------------------------------------------------------------------------------


def test_a_frame_is_buried_at_the_third_death(lane: Lane) -> None:
    deaths = [(lane.blame(7), lane.is_buried(7)) for _ in range(POISON_DEATHS)]
    assert deaths == [(1, False), (2, False), (3, True)]
    assert not lane.is_buried(6) and not lane.is_buried(8)


def test_deaths_on_different_frames_are_not_added_up(lane: Lane) -> None:
    assert [lane.blame(index) for index in (0, 0, 1, 0)] == [1, 2, 1, 1]
    assert not any(lane.is_buried(index) for index in (0, 1))


# -- the doorbell -----------------------------------------------------------------------------------------------------


@pytest.fixture
def doorbell() -> Iterator[Doorbell]:
    """A doorbell that nobody has rung."""
    made = Doorbell.create()
    yield made
    os.close(made.fd)


def rings(doorbell: Doorbell) -> bool:
    """Whether a reader that waits for the doorbell would wake."""
    return bool(select.select([doorbell], [], [], 0)[0])


def test_rings_that_nobody_heard_are_one(doorbell: Doorbell) -> None:
    for _ in range(1000):
        doorbell.ring()
    assert rings(doorbell)
    doorbell.clear()
    assert not rings(doorbell)


def test_clearing_a_silent_doorbell_does_not_wait(doorbell: Doorbell) -> None:
    doorbell.clear()
    assert not rings(doorbell)


def test_the_doorbell_is_a_hint_only(lane: Lane, doorbell: Doorbell) -> None:
    doorbell.ring()
    assert lane.reserve() is None  # rung without a slot
    doorbell.clear()
    put(lane, 1)
    assert take(lane) == 1  # a slot without a ring


# -- any sequence of all that ---------------------------------------------------------------------------------------


class LaneMachine(RuleBasedStateMachine):
    """A lane under any sequence of puts, commits, crashes and restarts, beside a list that does the same."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = Ring.create()
        self.watcher = self.ring.lanes[0]
        self.worker_ring = Ring(os.dup(self.ring.fd))
        self.worker = self.worker_ring.lanes[0]
        self.worker.adopt()
        self.waiting: list[int | None] = []  # None is a tick
        self.last: int | None = None
        self.done = Counter[Outcome | None]()
        self.state = b""
        self.number = self.refused = 0

    def teardown(self) -> None:
        self.ring.close()
        self.worker_ring.close()

    @rule(count=st.sampled_from([1, 2, 3, 700]), tick=st.booleans())
    def put(self, count: int, tick: bool) -> None:
        for _ in range(count):
            self.number += 1
            accepted = self.watcher.put(self.number, WIDTH, 0, tick=tick)
            assert accepted == (len(self.waiting) < CAPACITY)
            if accepted:
                self.waiting.append(None if tick else self.number)
                self.last = self.last if tick else self.number
            self.refused += not accepted

    @rule(count=st.sampled_from([1, 2, 3, 700]), outcome=st.sampled_from(Outcome), state=st.binary(max_size=40))
    def serve(self, count: int, outcome: Outcome, state: bytes) -> None:
        for _ in range(count):
            slot = self.worker.reserve()
            if not self.waiting:
                assert slot is None
                return
            assert slot
            due = self.waiting.pop(0)
            assert slot.tick if due is None else slot.number == due
            self.worker.complete(None if due is None else outcome, state)
            self.done[None if due is None else outcome] += 1
            self.state = state

    @precondition(lambda self: self.waiting)
    @rule(share=st.floats(0, 0.99), state=st.binary(min_size=1, max_size=40))
    def die_in_mid_commit(self, share: float, state: bytes) -> None:
        # Given the bytes that a commit would have written, when only a share of them arrives
        tail = self.worker.record.tail
        at = record_at(self.worker, tail + 1)
        cell = self.worker_ring.memory[at : at + 200]
        before, expected = bytes(cell), self.worker.last_record()
        self.worker.complete(Outcome.JUDGED, state)
        after = bytes(cell)
        kept = int(share * (56 + len(state)))
        cell[kept:] = before[kept:]
        if bytes(cell) == after:  # only bytes that were the same were missing: the commit did happen
            cell[:] = before
        cell.release()
        self.restart_worker()
        # Then the record before it is believed, and the same slot is due
        assert self.worker.last_record() == expected

    @rule()
    def restart_worker(self) -> None:
        self.worker_ring.close()
        self.worker_ring = Ring(os.dup(self.ring.fd))
        self.worker = self.worker_ring.lanes[0]
        assert self.worker.adopt().state == self.state

    @rule()
    def restart_watcher(self) -> None:
        heir = Ring(os.dup(self.ring.fd))
        self.ring.close()
        self.ring = heir
        self.watcher = heir.lanes[0]
        last = self.watcher.last_put()
        assert (last.number if last else None) == self.last or self.number > CAPACITY

    @invariant()
    def books_balance(self) -> None:
        books, done = self.watcher.books(), self.done
        waiting = sum(number is not None for number in self.waiting)
        assert books.balanced
        assert (books.judged, books.invalid) == (done[Outcome.JUDGED], done[Outcome.INVALID])
        assert (books.skipped, books.vanished) == (done[Outcome.SKIPPED], done[Outcome.VANISHED])
        assert (books.ticks, books.in_flight) == (done[None], waiting)
        assert books.published == sum(done.values()) - done[None] + waiting

    @invariant()
    def nothing_waits_that_was_not_put(self) -> None:
        assert self.watcher.backlog == len(self.waiting)
        assert self.watcher.refused == self.refused


TestLaneMachine = LaneMachine.TestCase
TestLaneMachine.settings = settings(max_examples=60, stateful_step_count=25)


# -- two real processes -----------------------------------------------------------------------------------------------


def has_done(lane: Lane, tail: int) -> bool:
    """Whether a lane's worker has committed this many slots."""
    return lane.last_record().tail >= tail


def test_50000_slots_cross_while_the_reader_is_killed_again_and_again(ring: Ring) -> None:
    # Given a process that puts numbers and one that commits them, each to the CRC of all before it
    count, seed = 50_000, random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    chance, lane, kills = random.Random(seed), ring.lanes[0], 0
    due = [count * (n + 1) // 20 for n in range(15)]

    def start(program: str) -> subprocess.Popen[bytes]:
        command = python("tests.children", program, str(ring.fd), str(count))
        return subprocess.Popen(command, pass_fds=[ring.fd], env=ROOT_ENVIRONMENT)

    writer, reader = start("put_numbers"), start("take_numbers")
    try:
        # When the reader is killed at random moments of its work
        for tail in due:
            wait_until(partial(has_done, lane, tail), 20, f"{tail} commits")
            time.sleep(chance.uniform(0, 0.01))  # the fault: at no moment in particular
            reader.kill()
            kills += reader.wait(10) == -signal.SIGKILL
            reader = start("take_numbers")
        # Then its last successor finds every number once, in order
        assert reader.wait(50) == 0
        assert writer.wait(10) == 0
    finally:
        for process in (writer, reader):
            process.kill()
            process.wait()
    assert kills == len(due)
    assert lane.last_record().state == chain(range(count))
    assert lane.books() == Books(count, count, 0, 0, 0, 0, 0, count)
