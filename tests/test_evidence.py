"""Evidence: what a worker holds at each transition of an incident, and what it does while memory is full."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from pipeline.board import SourceRow
from pipeline.evidence import MAX_UNTOLD, MAX_WAITING, Evidence, keys_of
from pipeline.hold import HOLD_DIR, TRANSITION_FILE, Hold
from pipeline.incidents import Coverage, Incident, Kind, Transition
from pipeline.judge import JudgeState
from pipeline.ring import MAX_STATE_BYTES
from pipeline.settings import Source
from tests.machine import filled, needs, tmpfs
from tests.support import make_frame
from tests.uploads import Desk, all_files, closed, evidence, incident, make_settings, rows, sighting

LAST_GOOD, ONSET, CONFIRMING, RECOVERY = 1, 2, 10, 11
"""Numbers of the frames of `incident(1)`, and of the one that ends it."""

OPENED = [f"{kind}_{n}.jpg" for kind in ("frame", "thumb") for n in range(3)]
ENDED = ["frame_3.jpg", "thumb_3.jpg"]


class Place:
    """A directory of frames, the hold beside it, and the evidence of one source."""

    def __init__(self, base: Path) -> None:
        self.frames = base / "stb1"
        self.frames.mkdir()
        self.hold = Hold(str(base / HOLD_DIR), 2**30)
        self.hold.prepare()
        self.row = SourceRow()
        self.rung = 0
        self.evidence = self.successor()

    def successor(self) -> Evidence:
        """The evidence as another worker begins with it."""
        return Evidence(self.hold, Source(name="stb1", dir=str(self.frames)), self.row, self._ring)

    def _ring(self) -> None:
        self.rung += 1

    def path(self, number: int) -> Path:
        return self.frames / f"capture_{number}.jpg"

    def publish(self, *numbers: int) -> None:
        for number in numbers:
            self.path(number).write_bytes(make_frame(number))

    def act(self, kind: Kind, what: Incident, in_hand: int | None = None) -> None:
        """One transition, with a frame in hand that retention has taken from the directory already."""
        data = make_frame(in_hand) if in_hand else b""
        self.evidence.act([Transition(kind, what)], f"capture_{in_hand}" if in_hand else "", data)

    def held(self, at: int = 0) -> tuple[Transition, dict[str, bytes]]:
        """What has been handed over, the oldest first."""
        body, files = self.hold.read(self.hold.waiting()[at])
        return msgspec.json.decode(body, type=Transition), files


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    yield Place(tmp_path)


def recovering(what: Incident, number: int = RECOVERY) -> Incident:
    return replace(what, recovery=sighting(number, 20.0))


def pictures(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.startswith("frame")}


# -- each transition --------------------------------------------------------------------------------------------------


def test_began_links_two_frames_and_hands_nothing_over(place: Place) -> None:
    place.publish(LAST_GOOD, ONSET)
    place.act("began", incident())
    held = place.hold.run_frames("stb1", incident().id)
    assert {name: os.stat(path).st_ino for name, path in held.items()} == {
        "frame_0.jpg": place.path(LAST_GOOD).stat().st_ino,
        "frame_1.jpg": place.path(ONSET).stat().st_ino,
    }
    assert place.hold.waiting() == [] and place.rung == 0 and not place.evidence.waits


def test_opened_hands_over_three_frames_that_retention_has_taken_meanwhile(place: Place) -> None:
    place.publish(LAST_GOOD, ONSET)
    place.act("began", incident())
    place.path(LAST_GOOD).unlink()
    place.path(ONSET).unlink()
    place.act("opened", incident(), in_hand=CONFIRMING)
    transition, files = place.held()
    assert transition == Transition("opened", incident())
    assert sorted(files) == OPENED
    assert list(pictures(files).values()) == [make_frame(n) for n in (LAST_GOOD, ONSET, CONFIRMING)]
    for n in range(3):
        assert files[f"thumb_{n}.jpg"][:2] == b"\xff\xd8"
        assert len(files[f"thumb_{n}.jpg"]) < len(files[f"frame_{n}.jpg"])
    assert place.rung == 1 and not place.evidence.waits
    assert place.row.evidence_missed == 1, "the confirming frame, which was in hand"


def test_the_confirming_frame_is_linked_where_it_is_still_there(place: Place) -> None:
    place.publish(LAST_GOOD, ONSET, CONFIRMING)
    written_ns = place.path(CONFIRMING).stat().st_mtime_ns
    place.act("began", incident())
    place.act("opened", incident(), in_hand=CONFIRMING)
    assert sorted(place.held()[1]) == OPENED and place.row.evidence_missed == 0
    linked = Path(place.hold.waiting()[0], "frame_2.jpg").stat()
    assert linked.st_ino == place.path(CONFIRMING).stat().st_ino
    assert linked.st_mtime_ns == written_ns, "the frame itself was written to"


def test_frames_that_have_gone_are_counted_and_cost_only_themselves(place: Place) -> None:
    place.act("began", incident())
    assert place.row.evidence_missed == 2
    place.act("opened", incident(), in_hand=CONFIRMING)
    assert sorted(place.held()[1]) == ["frame_2.jpg", "thumb_2.jpg"]
    assert place.row.evidence_missed == 3 and place.row.hold_failures == 0


def test_no_last_good_frame_is_none_missed(place: Place) -> None:
    place.publish(ONSET, CONFIRMING)
    what = replace(incident(), last_good=None)
    place.act("began", what)
    place.act("opened", what, in_hand=CONFIRMING)
    assert sorted(pictures(place.held()[1])) == ["frame_1.jpg", "frame_2.jpg"]
    assert place.row.evidence_missed == 0


def test_another_frame_in_hand_is_not_taken_for_the_confirming_one(place: Place) -> None:
    place.act("opened", incident(), in_hand=CONFIRMING + 1)
    assert place.held()[1] == {}


def test_closed_hands_over_the_recovery_alone_and_ends_the_run(place: Place) -> None:
    place.publish(LAST_GOOD, ONSET, CONFIRMING, RECOVERY)
    place.act("began", incident())
    place.act("opened", incident(), in_hand=CONFIRMING)
    place.act("recovering", recovering(incident()))
    place.path(RECOVERY).unlink()
    assert len(place.hold.waiting()) == 1, "recovering hands nothing over"
    place.act("closed", closed(recovering(incident())), in_hand=RECOVERY + 1)
    transition, files = place.held(1)
    assert transition.kind == "closed" and sorted(files) == ENDED
    assert files["frame_3.jpg"] == make_frame(RECOVERY)
    assert place.hold.run_frames("stb1", incident().id) == {}
    assert place.rung == 2


def test_after_a_relapse_the_later_recovery_counts(place: Place) -> None:
    place.publish(RECOVERY, RECOVERY + 5)
    for number in (RECOVERY, RECOVERY + 5):
        place.act("recovering", recovering(incident(), number))
    place.act("closed", closed(recovering(incident(), RECOVERY + 5)))
    assert pictures(place.held()[1]) == {"frame_3.jpg": make_frame(RECOVERY + 5)}


def test_an_end_without_a_recovery_is_handed_over_without_pictures(place: Place) -> None:
    place.act("closed", closed(incident()))
    transition, files = place.held()
    assert transition.kind == "closed" and files == {}
    assert place.rung == 1 and place.row.evidence_missed == 0


def test_dropped_forgets_the_run_and_tells_nobody(place: Place) -> None:
    place.publish(LAST_GOOD, ONSET)
    place.act("began", incident())
    place.act("dropped", incident())
    assert place.hold.run_frames("stb1", incident().id) == {}
    assert place.hold.waiting() == [] and place.rung == 0


def test_a_frame_that_no_decoder_reads_is_evidence_without_a_thumbnail(place: Place) -> None:
    place.path(ONSET).write_bytes(b"no picture")
    place.act("began", replace(incident(), last_good=None))
    place.act("opened", incident(), in_hand=CONFIRMING)
    assert sorted(place.held()[1]) == ["frame_1.jpg", "frame_2.jpg", "thumb_2.jpg"]
    assert place.held()[1]["frame_1.jpg"] == b"no picture"


# -- judged again after a kill ----------------------------------------------------------------------------------------


def test_judging_again_after_a_kill_makes_one_row_with_the_same_evidence(place: Place, tmp_path: Path) -> None:
    place.publish(LAST_GOOD, ONSET, CONFIRMING)
    place.act("began", incident())
    place.act("opened", incident(), in_hand=CONFIRMING)
    first = place.held()
    place.evidence = place.successor()  # the worker died before the commit: it all comes again
    place.evidence.forget_orphans([incident().id])
    place.act("began", incident())
    place.act("opened", incident(), in_hand=CONFIRMING)
    assert place.held(1) == first
    desk = Desk(make_settings(tmp_path, runtime_dir=str(tmp_path), source=()))
    desk.settle()
    desk.settle()
    assert evidence(desk.settings) == {(incident().id, "opened"): "stored"}
    assert rows(desk.settings, "SELECT COUNT(*) FROM incidents") == [(1,)]
    assert place.hold.waiting() == []
    desk.close()


def test_a_successor_goes_on_with_the_runs_that_it_follows_and_forgets_the_others(place: Place) -> None:
    place.publish(LAST_GOOD, ONSET)
    for number in (1, 2):
        place.act("began", replace(incident(number), last_good=sighting(LAST_GOOD), onset=sighting(ONSET)))
    place.path(LAST_GOOD).unlink()
    place.path(ONSET).unlink()
    place.evidence = place.successor()
    place.evidence.forget_orphans([incident(2).id])
    assert place.hold.run_frames("stb1", incident(1).id) == {}
    place.act("opened", incident(2))
    assert sorted(pictures(place.held()[1])) == ["frame_0.jpg", "frame_1.jpg"]


# -- memory is full ---------------------------------------------------------------------------------------------------


@needs("mount")
def test_a_full_memory_keeps_it_waiting_counts_and_hands_over_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tmpfs(tmp_path / "small", "size=1m") as small:
        place = Place(small)
        place.publish(LAST_GOOD, ONSET)
        place.act("began", incident())
        with filled(small):
            place.act("opened", incident(), in_hand=CONFIRMING)
            for failures in (1, 2, 3):
                assert place.row.hold_failures == failures and place.evidence.waits
                place.evidence.act([])
            place.act("closed", closed(recovering(incident())))
            assert place.hold.waiting() == [] and place.rung == 0
        assert [r.getMessage() for r in caplog.records] == [
            "evidence not held source=stb1 cause='No space left on device'"
        ]
        place.evidence.act([])
        assert [place.held(n)[0].kind for n in (0, 1)] == ["opened", "closed"]
        assert sorted(place.held(0)[1]) == OPENED, "what was in hand has waited too"
        assert not place.evidence.waits and place.rung == 2 and place.row.hold_dropped == 0
        assert place.hold.run_frames("stb1", incident().id) == {}


@needs("mount")
def test_what_waits_in_a_worker_that_is_killed_is_handed_over_by_its_successor(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=1m") as small:
        place = Place(small)
        place.publish(LAST_GOOD, ONSET)
        place.act("began", incident())
        with filled(small):
            place.act("opened", incident(), in_hand=CONFIRMING)
            place.act("closed", closed(recovering(incident())))
            assert place.hold.waiting() == []
            state = msgspec.msgpack.encode(JudgeState(untold=place.evidence.untold()))
        untold = msgspec.msgpack.decode(state, type=JudgeState).untold
        heir = place.successor()
        heir.act(untold)
        heir.forget_orphans([])
        assert [place.held(n)[0].kind for n in (0, 1)] == ["opened", "closed"]
        assert sorted(place.held(0)[1]) == sorted(set(OPENED) - {"frame_2.jpg", "thumb_2.jpg"}), "but what was in hand"


def test_what_waits_fits_into_a_commit_record() -> None:
    long = incident(1, "s" * 200, "capture_stalled", "h" * 64)
    waiting = [Transition("opened", replace(long, coverage=Coverage(10**6, 10**6, 10**6, 99.9)))] * MAX_UNTOLD
    assert len(msgspec.msgpack.encode(waiting)) < MAX_STATE_BYTES / 2


@needs("mount")
def test_so_many_transitions_wait_and_the_oldest_give_way(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=16m") as small:
        place = Place(small)
        with filled(small):
            for number in range(MAX_WAITING + 5):
                place.act("opened", incident(number), in_hand=number + 9)
            assert place.row.hold_failures == MAX_WAITING + 5
            assert place.row.hold_dropped == 5
            assert place.hold.waiting() == []
        place.evidence.act([])
        found = [place.held(at) for at in range(MAX_WAITING)]
        assert [told.incident.id for told, _ in found] == [incident(n).id for n in range(5, MAX_WAITING + 5)]
        assert [files["frame_2.jpg"] for _, files in found] == [make_frame(n + 9) for n in range(5, MAX_WAITING + 5)]
        assert len(place.hold.waiting()) == MAX_WAITING == place.rung


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "source"), [("rig1", "stb1"), ("a b/../ü", "\n%"), ("", "x" * 300)], ids=["plain", "odd", "long"]
)
def test_the_sidecar_names_the_keys_that_the_keeper_stores(tmp_path: Path, host: str, source: str) -> None:
    place = Place(tmp_path)
    place.publish(LAST_GOOD, ONSET, CONFIRMING)
    what = incident(1, source, "freeze", host)
    place.act("began", what)
    place.act("opened", what, in_hand=CONFIRMING)
    desk = Desk(make_settings(tmp_path, runtime_dir=str(tmp_path), source=()))
    desk.settle()
    desk.settle()
    desk.close()
    keys = keys_of(what)
    files = all_files(Path(desk.settings.state_dir, "store"))
    named = [*keys["original_r2_paths"], *keys["thumbnail_r2_paths"]]
    assert sorted(key for key in files if key.endswith(".jpg")) == sorted(named)
    assert [files[key] for key in keys["original_r2_paths"]] == [make_frame(n) for n in (LAST_GOOD, ONSET, CONFIRMING)]
    (refs,) = rows(desk.settings, "SELECT refs FROM incidents")
    said = msgspec.json.decode(refs[0])
    assert {field: said[field] for field in keys} == keys


def test_the_sidecar_names_no_picture_that_there_never_was() -> None:
    tick = replace(sighting(ONSET), name="")
    nothing_before = replace(incident(), last_good=None)
    silence = replace(incident(), onset=tick, confirmed=tick)
    names = [
        [key.rpartition("/")[2] for key in keys_of(what)["original_r2_paths"]] for what in (nothing_before, silence)
    ]
    assert names == [["frame_1.jpg", "frame_2.jpg"], ["frame_0.jpg"]]


def test_transition_files_are_the_only_other_content(place: Place) -> None:
    place.publish(LAST_GOOD, ONSET, CONFIRMING)
    place.act("began", incident())
    place.act("opened", incident(), in_hand=CONFIRMING)
    assert sorted(os.listdir(place.hold.waiting()[0])) == sorted([*OPENED, TRANSITION_FILE])
