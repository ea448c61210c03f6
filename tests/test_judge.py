"""The judge of one source: order, gaps, restarts, and a history that survives its worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import pytest

from pipeline.frames import MAX_DIGITS
from pipeline.history import PREDECESSORS
from pipeline.incidents import Sighting, Transition
from pipeline.judge import LATE_IN_A_ROW, NOT_HEARD, Judge, Order
from pipeline.model import FrameId, InvalidFrame, Judgement, NoSignalThresholds, Sound, Verdict
from pipeline.ring import MAX_STATE_BYTES, Ring
from pipeline.settings import Capture, Source
from pipeline.sidecar import verdict_fields
from tests.cards import captured, plain
from tests.support import make_frame, plain_frame

SOURCE = Source(name="a", dir="/frames/a")
SECOND = 10**9
STILL = make_frame(7)
BLACK = plain_frame(4)
FILM = [make_frame(1), make_frame(2), STILL, STILL, STILL, STILL, STILL, make_frame(3), BLACK, BLACK, BLACK, BLACK]
"""Live, frozen from the fourth still on, live, black."""


@pytest.fixture
def cells() -> Iterator[list[memoryview]]:
    """The shared cells of a lane."""
    ring = Ring.create()
    views = ring.lanes[0].picture_cells()
    yield views  # the map goes when the last judge does


@pytest.fixture
def judge(cells: list[memoryview]) -> Judge:
    """A judge that has seen nothing."""
    return Judge(SOURCE, cells)


def file(number: int, mtime_ns: int | None = None) -> FrameId:
    """The identity of a frame's file; later numbers are newer unless a time is given."""
    return FrameId(40, number, number * 1000 if mtime_ns is None else mtime_ns, 9000)


def show(judge: Judge, number: int, data: bytes, mtime_ns: int | None = None) -> Judgement:
    """Let the judge see one frame."""
    order = judge.observe(number, file(number, mtime_ns))
    return judge.judge(data, f"capture_{number:09d}", order, number * SECOND)


def verdicts(judgement: Judgement) -> tuple[object, ...]:
    """All of a judgement but the time it took."""
    return judgement.black, judgement.freeze, judgement.freeze_diffs, judgement.predecessors


# -- sequence ---------------------------------------------------------------------------------------------------------


def test_rising_numbers_follow_each_other(judge: Judge) -> None:
    assert [judge.observe(n, file(n)) for n in (1000, 1001, 1002)] == [Order.NEXT] * 3
    assert (judge.state.gaps, judge.state.numbering_restarts) == (0, 0)


def test_numbers_that_never_came_are_gaps(judge: Judge) -> None:
    for number in (10, 11, 14, 15, 20):
        judge.observe(number, file(number))
    assert judge.state.gaps == 2 + 4


def test_a_lower_number_in_a_newer_file_is_a_restart(judge: Judge) -> None:
    judge.observe(500, file(500, mtime_ns=1000))
    assert judge.observe(1, file(1, mtime_ns=2000)) is Order.RESTART
    assert judge.observe(2, file(2, mtime_ns=3000)) is Order.NEXT
    assert (judge.state.numbering_restarts, judge.state.gaps) == (1, 0)


def test_the_same_number_in_a_newer_file_is_a_restart(judge: Judge) -> None:
    judge.observe(1, file(1, mtime_ns=1000))
    assert judge.observe(1, file(1, mtime_ns=2000)) is Order.RESTART


def test_a_restart_forgets_what_was_seen_before(judge: Judge) -> None:
    # Given three stills of one recording
    for number in (501, 502, 503):
        show(judge, number, STILL)
    # When another begins with the same picture
    first = show(judge, 1, STILL, mtime_ns=504_000)
    # Then that is no freeze: nothing is known of what was before it
    assert (first.freeze.value, first.predecessors) == (None, [])
    assert show(judge, 2, STILL, mtime_ns=505_000).predecessors == ["capture_000000001"]


def test_a_lower_number_in_an_older_file_is_late(judge: Judge) -> None:
    judge.observe(5, file(5))
    assert judge.observe(3, file(3)) is Order.LATE
    assert judge.observe(6, file(6)) is Order.NEXT
    assert (judge.state.number, judge.state.gaps, judge.state.numbering_restarts) == (6, 0, 0)


def test_a_late_frame_is_judged_by_itself_and_remembered_by_nobody(judge: Judge) -> None:
    for number in (5, 6, 7):
        show(judge, number, STILL)
    late = show(judge, 4, BLACK)
    assert (late.black.value, late.freeze.value, late.predecessors) == (True, None, [])
    assert show(judge, 8, STILL).freeze.value is True


def test_several_late_frames_in_a_row_are_a_restart_under_a_clock_set_back(judge: Judge) -> None:
    judge.observe(500, file(500, mtime_ns=9_000_000))
    orders = [judge.observe(n, file(n, mtime_ns=n)) for n in range(1, LATE_IN_A_ROW + 2)]
    assert orders == [Order.LATE] * (LATE_IN_A_ROW - 1) + [Order.RESTART, Order.NEXT]


def test_late_frames_now_and_then_are_no_restart(judge: Judge) -> None:
    orders = [judge.observe(n, file(n)) for n in (10, 9, 8, 11, 9, 8, 12)]
    assert Order.RESTART not in orders
    assert judge.state.numbering_restarts == 0


# -- verdicts ---------------------------------------------------------------------------------------------------------


def test_the_fourth_like_picture_is_a_freeze_candidate(judge: Judge) -> None:
    assert [show(judge, n, STILL).freeze.value for n in range(1, 6)] == [None, None, None, True, True]


def test_the_film_is_judged_as_it_was_made(judge: Judge) -> None:
    found = [show(judge, number, data) for number, data in enumerate(FILM)]
    assert [j.freeze.value for j in found] == [None] * 3 + [False] * 2 + [True] * 2 + [False] * 4 + [True]
    assert [j.black.value for j in found] == [False] * 8 + [True] * 4
    assert (judge.state.black_frames, judge.state.freeze_frames) == (4, 3)


def test_predecessors_are_named_newest_first(judge: Judge) -> None:
    for number in (1, 2, 3, 4):
        show(judge, number, make_frame(number))
    assert show(judge, 5, make_frame(5)).predecessors == [f"capture_{n:09d}" for n in (4, 3, 2)]


def test_another_picture_size_begins_a_new_history(judge: Judge) -> None:
    for number in (1, 2, 3):
        show(judge, number, STILL)
    larger = make_frame(7, 640, 360)
    assert [show(judge, n, larger).freeze.value for n in (4, 5, 6, 7)] == [None, None, None, True]


def test_a_frame_that_cannot_be_decoded_leaves_the_history_alone(judge: Judge) -> None:
    for number in (1, 2, 3):
        show(judge, number, STILL)
    with pytest.raises(InvalidFrame, match="cannot decode"):
        show(judge, 4, STILL[: len(STILL) // 2])
    judge.pass_over()
    assert judge.state.unknown_frames == 1
    assert show(judge, 5, STILL).freeze.value is True


# -- no signal, sound -------------------------------------------------------------------------------------------------

NAVY = captured(plain("000080"))
"""A card so dark that its grey is that of a raised black."""


def follow(judge: Judge, film: list[bytes], sound: Sound = NOT_HEARD) -> list[Transition]:
    """What becomes of a film of one frame a second."""
    found = []
    for number, data in enumerate(film, 1):
        identity = file(number)
        judgement = judge.judge(data, f"capture_{number:09d}", judge.observe(number, identity), number * SECOND, sound)
        seen = Sighting(number * SECOND, number * SECOND, number, f"capture_{number:09d}", identity)
        found += judge.track(seen, judgement)
    return found


def opened(transitions: list[Transition]) -> list[str]:
    return [transition.incident.condition for transition in transitions if transition.kind == "opened"]


def test_a_missing_signal_is_one_incident_though_its_card_stands_still(judge: Judge) -> None:
    live = [make_frame(seed, 1280, 720) for seed in range(10)]
    transitions = follow(judge, [*live, *[NAVY] * 50, *live])
    assert opened(transitions) == ["no_signal"]
    assert (judge.state.no_signal_frames, judge.state.black_frames, judge.state.freeze_frames) == (50, 0, 47)
    closed = [transition.incident for transition in transitions if transition.kind == "closed"]
    assert [(one.condition, one.reason, one.duration_s) for one in closed] == [("no_signal", "recovered", 50.0)]


def test_the_verdict_on_a_card_has_its_readings_in_the_sidecar(judge: Judge) -> None:
    fields = verdict_fields(show(judge, 1, NAVY))
    assert fields["no_signal"] is True and fields["readings"]["no_signal_plain_pct"] == 100.0


SILENCE = Sound(Verdict(True, {"audio_mean_db": -91.0}), -91.0, 0)
WITH_SOUND = msgspec.structs.replace(SOURCE, audio_dir="audio")


def test_only_a_source_with_sound_can_lose_it(cells: list[memoryview]) -> None:
    live = [make_frame(seed) for seed in range(30)]
    deaf, hearing = Judge(SOURCE, cells), Judge(WITH_SOUND, cells)
    assert opened(follow(deaf, live, SILENCE)) == [] and "audio_loss" not in deaf.tracker.phases()
    assert opened(follow(hearing, live, SILENCE)) == ["audio_loss"]
    assert hearing.state.silent_frames == 30
    fields = verdict_fields(show(hearing, 31, STILL))
    assert [fields[key] for key in ("audio", "volume_percentage", "mean_volume_db")] == [None] * 3


def test_what_was_heard_stands_in_the_sidecar(judge: Judge) -> None:
    fields = verdict_fields(judge.judge(STILL, "x", judge.observe(1, file(1)), SECOND, SILENCE))
    assert [fields[key] for key in ("audio", "volume_percentage", "mean_volume_db")] == [False, 0, -91.0]
    assert fields["readings"]["audio_mean_db"] == -91.0


def test_silence_under_a_card_is_explained_by_it(cells: list[memoryview]) -> None:
    transitions = follow(Judge(WITH_SOUND, cells), [make_frame(1, 1280, 720), *[NAVY] * 50], SILENCE)
    assert opened(transitions) == ["no_signal"]


def test_a_frame_that_was_not_judged_says_nothing_of_sound_or_signal(cells: list[memoryview]) -> None:
    judge = Judge(WITH_SOUND, cells)
    judge.track(Sighting(SECOND, SECOND, 1, "x", file(1)), None)
    assert {track.seen for track in judge.tracker.state.tracks} == {1}
    assert not any(track.votes for track in judge.tracker.state.tracks)


def test_a_desktop_may_be_plain(cells: list[memoryview]) -> None:
    desktop = msgspec.structs.replace(SOURCE, capture=Capture(profile="x11grab", input=":1"))
    insisting = msgspec.structs.replace(desktop, no_signal=NoSignalThresholds(cards=True))
    verdicts = [show(Judge(source, cells), 1, NAVY).no_signal.value for source in (SOURCE, desktop, insisting)]
    assert verdicts == [True, None, True]


def test_all_conditions_at_once_fit_into_the_record(cells: list[memoryview]) -> None:
    """Every one with an incident, the longest names and all its votes; only one of them can be open."""
    judge = Judge(WITH_SOUND, cells, host="h" * 64)
    stem = "p" * 232 + "9" * MAX_DIGITS
    yes, no = Verdict(True, {f"reading_{n}": 1e300 for n in range(8)}), Verdict(False, {})
    for turn, verdict in enumerate([no, no, *[yes] * 4]):
        identity = FrameId(2**63, 2**63, 2**63 - 1, 2**62)
        judge.judge(STILL, stem, judge.observe(10**MAX_DIGITS - 9 + turn, identity), 2**62 + turn)
        sighting = Sighting(2**62 + turn, 2**62 + turn, 10**MAX_DIGITS, stem, identity)
        judge.tracker.feed(sighting, dict.fromkeys(judge.tracker.phases(), verdict))
    assert set(judge.tracker.phases().values()) == {"pending"} and len(judge.tracker.phases()) == 5
    assert len(judge.encoded_state()) < MAX_STATE_BYTES * 0.9


# -- a successor ------------------------------------------------------------------------------------------------------


def successor(judge: Judge, cells: list[memoryview]) -> Judge:
    """The judge of the worker that takes over after this one's commit."""
    return Judge(SOURCE, cells, judge.encoded_state())


def killed_in_the_next_frame(judge: Judge, cells: list[memoryview]) -> Judge:
    """The judge that takes over when this one is killed after the next picture and before the next commit."""
    committed = judge.encoded_state()
    show(judge, 10_000, make_frame(49))
    return Judge(SOURCE, cells, committed)


@pytest.mark.parametrize("take_over", [successor, killed_in_the_next_frame])
def test_a_successor_judges_exactly_as_its_predecessor_would_have(
    cells: list[memoryview], take_over: Callable[[Judge, list[memoryview]], Judge]
) -> None:
    # Given the verdicts of one judge over the whole film, and over it once more when the numbers have begun anew
    ring = Ring.create()
    alone = Judge(SOURCE, ring.lanes[0].picture_cells())
    shown = [(number, data, turn * 10**6 + number) for turn in range(2) for number, data in enumerate(FILM)]
    expected = [verdicts(show(alone, *frame)) for frame in shown]
    # When at every frame another one takes over
    judge, found = Judge(SOURCE, cells), []
    for frame in shown:
        judge = take_over(judge, cells)
        found.append(verdicts(show(judge, *frame)))
    # Then nobody can tell
    assert found == expected
    assert (judge.state.black_frames, judge.state.freeze_frames) == (8, 6)
    assert judge.state.numbering_restarts == 1


def test_a_successor_knows_that_the_numbers_began_anew_before_a_frame_was_no_picture(
    judge: Judge, cells: list[memoryview]
) -> None:
    """What was shown before is not forgotten with the frame that could not be judged."""
    for number in range(500, 512):
        show(judge, number, make_frame(number))
    judge.observe(1, file(1, mtime_ns=10**6))
    with pytest.raises(InvalidFrame):
        judge.judge(b"no picture", "capture_000000001", Order.RESTART, 512 * SECOND)
    heir = successor(judge, cells)
    found = [show(heir, number, make_frame(600), 10**6 + number) for number in range(2, 9)]
    assert found[0].predecessors == []
    assert [one.freeze_kind for one in found] == [None] * 3 + ["whole"] * 4


def test_a_successor_goes_on_counting(judge: Judge, cells: list[memoryview]) -> None:
    for number in (1, 4, 3):
        judge.observe(number, file(number))
    judge.pass_over()
    judge.observe(1, file(1, mtime_ns=10**6))
    heir = successor(judge, cells)
    assert heir.state == judge.state
    assert (heir.state.gaps, heir.state.unknown_frames, heir.state.numbering_restarts) == (2, 1, 1)


def test_a_successor_that_finds_its_pictures_damaged_says_unknown(judge: Judge, cells: list[memoryview]) -> None:
    for number in (1, 2, 3):
        show(judge, number, STILL)
    committed = judge.encoded_state()
    cells[judge.state.history[-1].cell][0] ^= 0xFF
    heir = Judge(SOURCE, cells, committed)
    assert show(heir, 4, STILL).freeze.value is None


def test_the_longest_names_and_numbers_fit_into_the_record(judge: Judge) -> None:
    stem = "p" * 232 + "9" * MAX_DIGITS
    for number in range(PREDECESSORS + 1):
        identity = FrameId(2**63, 2**63, 2**63 - 1 + number, 1)
        judge.judge(STILL, stem, judge.observe(10**MAX_DIGITS - 9 + number, identity), 2**62 + number)
    assert len(judge.encoded_state()) < MAX_STATE_BYTES / 2


def test_numbers_that_jump_for_ever_fill_no_commit_record(judge: Judge) -> None:
    """40 alternating names made `gaps` pass 64 bits, and the service could not commit any more."""
    highest = 10**MAX_DIGITS - 1
    for turn in range(40):
        judge.observe(1 if turn % 2 else highest, file(turn, mtime_ns=turn))
    assert len(judge.encoded_state()) < MAX_STATE_BYTES
    assert judge.state.gaps == 2**53
