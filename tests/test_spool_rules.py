"""Hold, incident log, spool and sender under any sequence of incidents, crashes, damage and a store that is away.

After whatever has happened: every transition that was handed over is recorded once and, unless it was damaged or given
up and that is said, its evidence is in the store, byte for byte, under its own key and no other. What is stored or told
twice was so by a crash, once for each at most. Nothing half is ever called kept.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipeline.hold import TRANSITION_FILE
from pipeline.incidents import Incident, Kind
from pipeline.spool import INCIDENT_FILE, MANIFEST_FILE, REFUSED, UPLOADED, DamagedJob
from pipeline.store import Kind as StoreKind
from pipeline.store import evidence_key
from tests.deaths import LEAKS, Death, dies_at
from tests.uploads import Desk, FakeHook, FakeStore, closed, incident, make_hold, make_settings, publish, rows

pytestmark = pytest.mark.filterwarnings(*LEAKS)

PICTURES: dict[Kind, dict[str, bytes]] = {
    "opened": {f"{kind}_{n}.jpg": f"{kind} {n}".encode() * 40 for kind in ("frame", "thumb") for n in range(3)},
    "closed": {f"{kind}_3.jpg": f"{kind} 3".encode() * 40 for kind in ("frame", "thumb")},
}
SPOOL_BYTES = 20_000  # some five jobs
TURNS = 60
End = tuple[int, str]  # a line of the pipeline, or of one module of it
keepers_end = st.tuples(st.integers(1, 400), st.just("")) | st.tuples(
    st.integers(1, 80), st.sampled_from(["keeper", "spool", "durable", "hold", "incidentlog"])
)
senders_end = st.tuples(st.integers(1, 200), st.just("")) | st.tuples(
    st.integers(1, 60), st.sampled_from(["sender", "spool"])
)


class SpoolMachine(RuleBasedStateMachine):
    """Keeper and sender on one disk, and a list of what was handed to them."""

    def __init__(self) -> None:
        super().__init__()
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.base = Path(tempfile.mkdtemp(prefix="stillwatch-test-", dir=memory))
        self.settings = make_settings(self.base, spool_max_bytes=SPOOL_BYTES)
        self.hold = make_hold(self.settings)
        self.store, self.hook = FakeStore(), FakeHook()
        self.open: list[Incident] = []
        self.given: dict[tuple[str, str], Incident] = {}  # by incident and kind
        self.damaged = set[tuple[str, str]]()  # so in hold or spool
        self.crashes = 0
        self.now_ns = 10**9
        self.desk = self._start()

    def teardown(self) -> None:
        try:
            self.store.script, self.hook.script = [], []
            self._settle()
            self._check_all()
        finally:
            self.desk.close()
            shutil.rmtree(self.base)

    # -- what may happen ----------------------------------------------------------------------------------------------

    @rule(source=st.sampled_from(["stb1", "stb2"]))
    def an_incident_opens(self, source: str) -> None:
        new = incident(len(self.given) + 1, source, f"condition{len(self.given)}")  # the keeper closes one by another
        self._hand_over(new, "opened")
        self.open.append(new)

    @rule(which=st.integers(0, 9))
    def an_incident_closes(self, which: int) -> None:
        if self.open:
            self._hand_over(closed(self.open.pop(which % len(self.open))), "closed")

    @rule(turns=st.integers(1, 4))
    def keep(self, turns: int) -> None:
        for _ in range(turns):
            self.desk.keeper.step(self._tick())

    @rule(turns=st.integers(1, 4))
    def send(self, turns: int) -> None:
        for _ in range(turns):
            self.desk.sender.step(self._tick())

    @rule(source=st.sampled_from(["stb1", "stb2"]), deaths=st.lists(keepers_end, min_size=1, max_size=3))
    def crash_while_keeping(self, source: str, deaths: list[End]) -> None:
        self.an_incident_opens(source)
        for end in deaths:
            with dies_at(*end) as death:
                self.desk.keeper.step(self._tick())
            self._begin_anew(death)

    @rule(deaths=st.lists(senders_end, min_size=1, max_size=3))
    def crash_while_sending(self, deaths: list[End]) -> None:
        for end in deaths:
            with dies_at(*end) as death:
                self.desk.sender.step(self._tick())
                self.desk.keeper.step(self._tick())  # it writes down what was sent
            self._begin_anew(death)

    @rule(failing=st.integers(1, 8), error=st.sampled_from([errno.ENOSPC, errno.EIO]))
    def a_disk_fails(self, failing: int, error: int) -> None:
        """The n-th fsync of a turn of the keeper fails."""
        left, plain = failing, os.fsync

        def fsync(fd: int) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise OSError(error, os.strerror(error))
            plain(fd)

        with mock.patch("os.fsync", fsync):
            self.desk.keeper.step(self._tick())

    @rule(requests=st.integers(1, 6))
    def the_store_is_away(self, requests: int) -> None:
        self.store.script += [StoreKind.RETRY] * requests

    @rule(requests=st.integers(1, 3))
    def the_webhook_is_away(self, requests: int) -> None:
        self.hook.script += [StoreKind.RETRY] * requests

    @rule(which=st.integers(0, 9), share=st.floats(0, 0.99), file=st.sampled_from([MANIFEST_FILE, "frame", "thumb"]))
    def damage_a_job(self, which: int, share: float, file: str) -> None:
        """A file of a job is cut, as after a power cut on a disk that lies."""
        jobs = self.desk.spool.jobs()
        if jobs:
            folder = Path(jobs[which % len(jobs)])
            self._cut(folder, next((path for path in sorted(folder.glob(f"{file}*"))), None), share)

    @rule(which=st.integers(0, 9), share=st.floats(0, 0.99))
    def damage_what_is_held(self, which: int, share: float) -> None:
        waiting = self.hold.waiting()
        if waiting:
            folder = Path(waiting[which % len(waiting)])
            self._cut(folder, folder / TRANSITION_FILE, share)

    @invariant()
    def what_is_kept_is_whole(self) -> None:
        for folder in self.desk.spool.jobs():
            place = _place(folder)
            if place not in self.damaged:
                job = self.desk.spool.load(folder)
                assert (job.manifest.incident, job.manifest.kind) == place
                shrunk = not {UPLOADED, REFUSED}.isdisjoint(os.listdir(folder))
                for item in job.manifest.items:
                    with contextlib.suppress(*([DamagedJob] if shrunk else [])):
                        data = job.read(item)  # and compares it with the manifest
                        assert len(data) == item.size or item.name == INCIDENT_FILE

    @invariant()
    def nothing_is_stored_that_was_not_given(self) -> None:
        wanted = {key: data for place in self.given for key, data in self._pictures(place).items()}
        for key, data in self.store.objects.items():
            if not key.endswith(INCIDENT_FILE):
                assert wanted[key] == data, key

    # -- how it ends --------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        for _ in range(TURNS):
            self.now_ns += 1000 * 10**9  # no back-off is longer
            self.desk.now_ns = self.now_ns
            self.desk.settle()
            if not self.hold.waiting() and not self.desk.spool.jobs():
                return
        raise AssertionError(f"not settled: {self.hold.waiting()} {self.desk.spool.jobs()}")

    def _check_all(self) -> None:
        found = rows(self.settings, "SELECT incident, kind, evidence FROM transitions ORDER BY number")
        evidence = {(row[0], row[1]): row[2] for row in found}
        assert len(evidence) == len(found), "recorded twice"
        assert set(evidence) <= set(self.given)
        for place in set(self.given) - self.damaged:
            assert place in evidence, f"{place} is lost"
            assert evidence[place] == "stored" or evidence[place].startswith("dropped:"), (place, evidence[place])
        for place, where in evidence.items():
            there = self._pictures(place).items() <= self.store.objects.items()
            assert there or where != "stored", f"{place} is not stored"
            assert not there or where != "dropped:lost", f"{place} is stored, and said to be lost"
        for id_ in {id_ for id_, _ in self.given}:
            if evidence.get((id_, "opened")) == evidence.get((id_, "closed")) == "stored":
                self._check_last_json(id_)
        told = Counter(key for key, _ in self.hook.posts)
        assert set(told) <= {f"{id_}.{kind}" for id_, kind in self.given}
        assert sum(times - 1 for times in told.values()) <= self.crashes
        for id_ in {id_ for id_, _ in self.given}:
            kinds = [key.partition(".")[2] for key, _ in self.hook.posts if key.startswith(id_)]
            assert kinds == sorted(kinds, reverse=True), f"{id_} was told {kinds}"
        left = [name for name in os.listdir(self.desk.spool.path) if name != ".bad"]
        assert not left, left

    def _check_last_json(self, incident_id: str) -> None:
        """What was stored last names all evidence of the incident."""
        what = self.given[incident_id, "closed"]
        key = evidence_key(what.condition, what.host, what.source, what.id, INCIDENT_FILE)
        told = json.loads(self.store.objects[key])
        assert (told["transition"], set(told["evidence"])) == ("closed", {n for p in PICTURES.values() for n in p})

    def _hand_over(self, what: Incident, kind: Kind) -> None:
        publish(self.hold, what, kind, PICTURES[kind])
        self.given[what.id, kind] = what

    def _pictures(self, place: tuple[str, str]) -> dict[str, bytes]:
        """What must be in the store for a transition."""
        what, kind = self.given[place], place[1]
        pictures = PICTURES["opened" if kind == "opened" else "closed"]
        return {evidence_key(what.condition, what.host, what.source, what.id, n): data for n, data in pictures.items()}

    def _cut(self, folder: Path, file: Path | None, share: float) -> None:
        if file and file.exists():
            data = file.read_bytes()
            file.write_bytes(data[: int(share * len(data))])
            self.damaged.add(_place(str(folder)))

    def _begin_anew(self, death: Death) -> None:
        if death.happened:
            self.crashes += 1
            self.desk.close()
            self.desk = self._start()

    def _start(self) -> Desk:
        desk = Desk(self.settings, self.store, self.hook)
        desk.now_ns = self.now_ns
        return desk

    def _tick(self) -> int:
        self.now_ns += 10**8
        return self.now_ns


def _place(folder: str) -> tuple[str, str]:
    """Incident and kind, of a directory in hold or spool."""
    incident_id, _, kind = os.path.basename(folder).partition("-")[2].partition(".")
    return incident_id, kind


TestSpoolMachine = SpoolMachine.TestCase
TestSpoolMachine.settings = settings(max_examples=60, stateful_step_count=25)
