"""Watcher, ring and worker under any sequence of frames, kills, restarts and damage: the real roles over one memory.

After whatever has happened: every frame that is there has one sidecar, its own; each source was judged in order;
nothing was judged twice but for kills, one frame each at most; the books balance.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline import ring as ring_module
from pipeline import workers
from pipeline.board import Board
from pipeline.child import Child
from pipeline.judge import NOT_HEARD, Judge, Order
from pipeline.model import Judgement, Sound
from pipeline.ring import Doorbell, Ring, TornSlot
from pipeline.settings import Settings, Source
from pipeline.watcher import Watcher
from pipeline.workers import Worker
from tests.deaths import LEAKS, close_all_below, dies_at
from tests.live import damage, slot_at
from tests.scenes import labelled
from tests.support import make_frame, publish, sidecars
from tests.uploads import make_hold

pytestmark = pytest.mark.filterwarnings(*LEAKS)

NAMES = ("a", "b")
FEW_SLOTS = 8  # so that a lane is full soon
SLOT_BYTES = 40  # of a slot's 64, which have a meaning
S = 10**9
TURNS = 400  # within which all must be settled

sources = st.sampled_from(range(len(NAMES)))
anywhere = st.tuples(st.integers(1, 500), st.just(""))  # a turn takes some hundred lines
watchers_end = anywhere | st.tuples(st.integers(1, 60), st.sampled_from(["ring", "intake"]))
workers_end = anywhere | st.tuples(st.integers(1, 60), st.sampled_from(["ring", "sidecar"]))
End = tuple[int, str]


class QueueMachine(RuleBasedStateMachine):
    """The roles, and a list of what was published beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="stillwatch-test-"))
        self.dirs = [self.base / name for name in NAMES]
        for directory in [*self.dirs, self.base / "run"]:
            directory.mkdir()
        self.settings = Settings(
            source=tuple(Source(name=name, dir=str(self.base / name)) for name in NAMES),
            runtime_dir=str(self.base / "run"),
            state_dir=str(self.base / "state"),
            host="rig1",
            overload_lag_s=1e6,
        )
        make_hold(self.settings)
        self.patches = contextlib.ExitStack()
        self.patches.enter_context(mock.patch.object(ring_module, "CAPACITY", FEW_SLOTS))
        self.patches.enter_context(mock.patch.object(workers, "Judge", self._witness()))
        self.ring = Ring.create()
        self.board = Board.create(self.settings.runtime_dir, ["watcher", "worker/0"], list(NAMES))
        self.bell = Doorbell.create()
        for lane in range(len(NAMES)):
            self.ring.grant(lane, 0)
        self.published: list[list[int]] = [[], []]
        self.gone = set[tuple[int, int]]()
        self.torn = set[tuple[int, int]]()
        self.judged: list[tuple[str, str]] = []  # source and frame, as it came to the judge
        self.kills = self.put_again = self.damages = 0
        self.now_ns = time.monotonic_ns()
        self.rings = [Ring(os.dup(self.ring.fd)) for _ in range(2)]
        self.watcher, self.worker = self._new_watcher(), self._new_worker()
        self.watcher.step(self.now_ns)

    def teardown(self) -> None:
        try:
            self._settle()
            self._check_all()
        finally:
            self._kill_inotify()
            self.patches.close()
            for fd in (self.ring.fd, *(ring.fd for ring in self.rings), self.board.fd, self.bell.fd):
                os.close(fd)
            for directory in self.dirs:
                close_all_below(directory)
            shutil.rmtree(self.base)

    # -- what may happen ----------------------------------------------------------------------------------------------

    @rule(source=sources, count=st.sampled_from([1, 2, 3, FEW_SLOTS + 4]))
    def publish(self, source: int, count: int) -> None:
        for _ in range(count):
            number = len(self.published[source]) + 1
            picture = make_frame(number % 7, 64, 64)
            publish(self.dirs[source], number, labelled(picture, f"{NAMES[source]} {number}"))
            self.published[source].append(number)

    @precondition(lambda self: any(self.published))
    @rule(source=sources)
    def take_newest_away(self, source: int) -> None:
        if self.published[source]:
            number = self.published[source][-1]
            (self.dirs[source] / f"capture_{number:09d}.jpg").unlink(missing_ok=True)
            self.gone.add((source, number))

    @rule(after_s=st.sampled_from([0.0, 0.1, 3.0, 7.0]))
    def watch(self, after_s: float) -> None:
        self.now_ns += int(after_s * S)
        self.watcher.step(self.now_ns)

    @rule(turns=st.integers(1, 12))
    def work(self, turns: int) -> None:
        for _ in range(turns):
            self.worker.step()

    @rule(deaths=st.lists(watchers_end, min_size=1, max_size=3))
    def kill_watchers(self, deaths: list[End]) -> None:
        for end in deaths:
            self.publish(end[0] % len(NAMES), 1)
            with dies_at(*end) as death:
                self.watcher.step(self.now_ns)
            if death.happened:
                self._kill_inotify()
                self.watcher = self._new_watcher()

    @rule(deaths=st.lists(workers_end, min_size=1, max_size=3))
    def kill_workers(self, deaths: list[End]) -> None:
        for end in deaths:
            self.publish(end[0] % len(NAMES), 1)
            self.watcher.step(self.now_ns)
            with dies_at(*end) as death:
                self.worker.step()
            if death.happened:
                self.kills += 1
                self.worker = self._new_worker()

    @rule(source=sources, which=st.integers(0, FEW_SLOTS - 1), byte=st.integers(0, SLOT_BYTES - 1))
    def damage_a_slot(self, source: int, which: int, byte: int) -> None:
        self.publish(source, 1)
        self.watcher.step(self.now_ns)
        lane = self.ring.lanes[source]
        waiting = range(lane.last_record().tail, lane.head)
        if waiting:
            index = waiting[which % len(waiting)]
            with contextlib.suppress(TornSlot):  # the same damage once more would mend it
                if not lane.slot(index).tick:
                    self.torn.add((source, lane.slot(index).number))
                    self.damages += 1
                    damage(self.ring, slot_at(lane, index) + byte)

    @invariant()
    def books_balance(self) -> None:
        for lane in self.ring.lanes[: len(NAMES)]:
            assert lane.books().balanced, lane.books()

    # -- how it ends --------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Let watcher and worker go on until nothing is left to do."""
        for _ in range(TURNS):
            self.now_ns += S // 10
            self.watcher.step(self.now_ns)
            worked = self.worker.step()
            if not worked and not any(lane.books().in_flight for lane in self.ring.lanes[: len(NAMES)]):
                return
        raise AssertionError(f"not settled: {[lane.books() for lane in self.ring.lanes[: len(NAMES)]]}")

    def _check_all(self) -> None:
        for source, directory in enumerate(self.dirs):
            found = sidecars(directory)
            owed = {n for n in self.published[source] if not {(source, n)} & (self.gone | self.torn)}
            assert owed <= set(found), f"lost: {sorted(owed - set(found))}"
            assert set(found) <= set(self.published[source])
            first = list(dict.fromkeys(number for name, number in self._numbers() if name == NAMES[source]))
            in_order = [number for number in first if (source, number) not in self.torn]
            assert in_order == sorted(in_order), in_order
        rows = self.board.memory.sources[: len(NAMES)]
        assert sum(row.torn_slots for row in rows) <= self.damages, "a slot was torn that nobody damaged"
        looked_for = sum(row.vanished for row in rows)
        assert looked_for <= len(self.gone) + self.put_again, "a frame was looked for that was never there"
        again = sum(count - 1 for count in Counter(self.judged).values())
        assert again <= self.kills + self.put_again, (again, self.kills, self.put_again)

    def _numbers(self) -> list[tuple[str, int]]:
        return [(name, int(stem.removeprefix("capture_"))) for name, stem in self.judged]

    def _new_watcher(self) -> Watcher:
        if self.torn:  # what waits behind a torn slot is not known to wait
            self.put_again += sum(lane.backlog for lane in self.ring.lanes[: len(NAMES)])
        os.close(self.rings[0].fd)
        self.rings[0] = Ring(os.dup(self.ring.fd))
        return Watcher(self.settings, self.rings[0], self.board, [self.bell])

    def _kill_inotify(self) -> None:
        """What the kernel does for a killed watcher."""
        if self.watcher.inotify:
            self.watcher.inotify.close()
            self.watcher.inotify = None

    def _new_worker(self) -> Worker:
        os.close(self.rings[1].fd)
        self.rings[1] = Ring(os.dup(self.ring.fd))
        child = SimpleNamespace(
            spec=SimpleNamespace(index=0),
            settings=self.settings,
            ring=self.rings[1],
            board=self.board,
            row=self.board.memory.children[1],
            lanes={name: lane for lane, name in enumerate(NAMES)},
            bell=self.bell,
            keeper_bell=self.bell,
            resumed=[],
        )
        worker = Worker(cast(Child, child))
        worker.step()  # takes its lanes
        return worker

    def _witness(self) -> type[Judge]:
        machine = self

        class Witness(Judge):
            """Notes what it is shown, and that it is what the name says."""

            def judge(self, data: bytes, stem: str, order: Order, time_ns: int, sound: Sound = NOT_HEARD) -> Judgement:
                label = data[6 : 4 + int.from_bytes(data[4:6])].decode()
                source, number = label.split()
                assert (source, f"capture_{int(number):09d}") == (self._source.name, stem), "a wrong path"
                machine.judged.append((source, stem))
                return super().judge(data, stem, order, time_ns, sound)

        return Witness


TestQueueMachine = pytest.mark.timeout(600)(QueueMachine.TestCase)  # a failure takes minutes to be made small
TestQueueMachine.settings = settings(max_examples=40, stateful_step_count=25)
