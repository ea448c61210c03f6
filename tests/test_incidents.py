"""The tracker, by timelines: one fact per row.

A timeline is drawn with one character per second:

    .  false    T  true    ?  unknown    -  a frame on which this condition was not to be judged    space  no frame

and below it what the tracker told on each frame: b began, o opened, r recovering, c closed, d dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.incidents import (
    NEEDED,
    VOTES,
    Coverage,
    Incident,
    Sighting,
    Tally,
    Tracker,
    TrackerState,
    Transition,
    incident_id,
)
from pipeline.model import RANK, RULES, FrameId, Rule, Verdict
from pipeline.ring import MAX_STATE_BYTES

S = 1_000_000_000
WALL = 1_795_336_670 * S
RULE = Rule(raise_s=3, clear_s=2)
SHORT: Mapping[str, Rule] = dict.fromkeys(RANK, RULE)
VALUES = {".": False, "T": True, "?": None}
INITIALS = {"began": "b", "opened": "o", "recovering": "r", "closed": "c", "dropped": "d"}

Fed = tuple[Sighting, dict[str, Verdict]]
Stretch = tuple[int, float, dict[str, str]]


def sighting(second: float, number: int = -1, name: str = "") -> Sighting:
    """The frame of this second; its number is the second's unless told otherwise."""
    number = number if number >= 0 else int(second)
    at = round(second * S)
    return Sighting(
        S + at, WALL + at, number, name or f"capture_{number:09d}", FrameId(40, 71885 + number, WALL, 118211)
    )


def tracker(rules: Mapping[str, Rule] = SHORT, state: TrackerState | None = None) -> Tracker:
    return Tracker("pi4", "stb1", rules, state)


def film(**timelines: str) -> list[Fed]:
    """The frames of some conditions' timelines, drawn one below the other."""
    fed = []
    for second in range(max(map(len, timelines.values()))):
        marks = {condition: drawn.ljust(second + 1)[second] for condition, drawn in timelines.items()}
        if set(marks.values()) != {" "}:
            readings = {"second": float(second)}
            known = {name: Verdict(VALUES[mark], readings) for name, mark in marks.items() if mark in VALUES}
            fed.append((sighting(second), known))
    return fed


def play(fed: Iterable[Fed], by: Tracker) -> list[Transition]:
    return [transition for frame, verdicts in fed for transition in by.feed(frame, verdicts)]


def told(condition: str, by: Tracker, fed: list[Fed]) -> tuple[str, list[Transition]]:
    """What was told of a condition, drawn, and all transitions in their order."""
    drawn, all_told = "", []
    for frame, verdicts in fed:
        now = by.feed(frame, verdicts)
        all_told += now
        here = [INITIALS[transition.kind] for transition in now if transition.incident.condition == condition]
        assert len(here) <= 1, "cannot be drawn"
        drawn = drawn.ljust(frame.number) + "".join(here)
    return drawn.rstrip(), all_told


def numbers(incident: Incident) -> list[int | None]:
    """Numbers of the frames last good, onset, confirmed, recovery."""
    frames = (incident.last_good, incident.onset, incident.confirmed, incident.recovery)
    return [frame.number if frame else None for frame in frames]


def last(transitions: list[Transition], kind: str) -> Incident:
    return next(transition.incident for transition in reversed(transitions) if transition.kind == kind)


# -- one condition: raise after 3 s, clear after 2 s -------------------------------------------------------------------

TIMELINES = {
    "an incident from end to end": (
        "..TTTTTT....",
        "   b o   rc",
    ),
    "all is well": (
        "............",
        "",
    ),
    "one odd frame does not raise": (
        "..T...T...T.",
        "",
    ),
    "two of three do, from the first of them on": (
        "..T.TT......",
        "    bo rc",
    ),
    "one odd good frame does not end a run": (
        "..TT.TT",
        "   b o",
    ),
    "an incident opens on a true frame, not on the odd good one": (
        "..TTT.TT",
        "   b  o",
    ),
    "a run shorter than raise_s is dropped": (
        "..TTT....",
        "   b  d",
    ),
    "one odd good frame does not start a recovery": (
        "..TTTTT.TT.TT",
        "   b o",
    ),
    "one odd bad frame does not undo a recovery": (
        "..TTTT..T..",
        "   b o r c",
    ),
    "an odd bad frame does not close": (
        "..TTTT..T",
        "   b o r",
    ),
    "two bad frames undo a recovery, the next starts anew": (
        "..TTTT..TT....",
        "   b o r   rc",
    ),
    "the first frames may be bad": (
        "TTTT",
        " b o",
    ),
    "unknown frames raise nothing": (
        "..T????????",
        "",
    ),
    "unknown frames confirm nothing": (
        "..TTT??",
        "   b",
    ),
    "unknown frames close nothing": (
        "..TTTT..???",
        "   b o r",
    ),
    "unknown frames have no vote": (
        "..T?T?T..?.",
        "    b o r c",
    ),
    "frames not to be judged have no vote": (
        "..T-T-T..-.",
        "    b o r c",
    ),
    "a hole no longer than raise_s is bridged": (
        "..TTT??T",
        "   b   o",
    ),
    "a longer one drops the run, which begins anew after it": (
        "..TTT???TTTT",
        "   b    db o",
    ),
    "also where there are no frames at all": (
        "..TTT   TTTT",
        "   b    db o",
    ),
    "an unknown frame is enough to notice": (
        "..TTT   ?",
        "   b    d",
    ),
    "and so is one on which it was not to be judged": (
        "..TTT   -",
        "   b    d",
    ),
    "votes do not reach over a hole": (
        "..T   T..",
        "",
    ),
    "an incident stays open over a hole": (
        "..TTTT       TT...",
        "   b o          rc",
    ),
    "a recovery is not believed over a hole": (
        "..TTTT..    ....",
        "   b o r     rc",
    ),
    "the same condition may open again": (
        "..TTTT...TTTT...",
        "   b o rc b o rc",
    ),
}


@pytest.mark.parametrize(("drawn", "expected"), TIMELINES.values(), ids=list(TIMELINES))
def test_one_condition(drawn: str, expected: str) -> None:
    assert told("black", tracker(), film(black=drawn))[0] == expected


def test_an_incident_names_its_frames_and_lasts_from_the_first_bad_to_the_first_good() -> None:
    # its frames:             g o   !  R
    closed = last(play(film(black="..T.TTTT..."), tracker()), "closed")
    assert numbers(closed) == [1, 2, 5, 8]
    assert (closed.duration_s, closed.closed_wall_ns, closed.reason) == (6.0, closed.onset.wall_ns + 6 * S, "recovered")
    assert closed.readings == {"second": 5.0}
    assert (closed.host, closed.source, closed.condition) == ("pi4", "stb1", "black")
    assert closed.id == incident_id("pi4", "stb1", "black", closed.onset.identity)


@pytest.mark.parametrize(
    ("drawn", "kind", "expected"),
    [
        ("..TT", "began", [1, 2, None, None]),
        ("T.T", "began", [None, 0, None, None]),
        ("...T.T", "began", [2, 3, None, None]),
        ("..TTTT", "opened", [1, 2, 5, None]),
        ("..TTTT..", "recovering", [1, 2, 5, 6]),
        ("..TTTT.T.", "recovering", [1, 2, 5, 6]),  # the odd bad frame is within the recovery
        ("..TTTT..TT....", "closed", [1, 2, 5, 10]),  # the recovery that lasted
        ("..T     TT", "began", [1, 8, None, None]),  # good before a hole is still the last good
        ("..TTT     TT", "began", [1, 10, None, None]),  # also that before a dropped run, while it is remembered
    ],
)
def test_frames_to_hold(drawn: str, kind: str, expected: list[int | None]) -> None:
    assert numbers(last(play(film(freeze=drawn), tracker()), kind)) == expected


def test_frames_are_told_before_the_incident_is_confirmed() -> None:
    began, opened = play(film(black="..TTTT"), tracker())
    assert (began.kind, began.incident.confirmed, began.incident.closed_wall_ns) == ("began", None, None)
    assert (opened.kind, opened.incident.id) == ("opened", began.incident.id)


def test_good_frames_are_counted_where_the_rule_asks_for_them() -> None:
    fed = film(capture_stalled="..TTTT...T..")
    assert told("capture_stalled", tracker({"capture_stalled": Rule(3, 0, clear_frames=4)}), fed)[0] == "   b o r  c"


DEFAULTS = {  # condition: seconds of true, seconds of false, what is told
    "capture_stalled": (6, 10, " b   o r       c"),
    "no_signal": (6, 6, " b   o r   c"),
    "black": (11, 3, " b        o rc"),
    "freeze": (31, 11, " b" + " " * 28 + "o r        c"),
    "macroblocks": (21, 11, " b" + " " * 18 + "o r        c"),
    "audio_loss": (21, 6, " b" + " " * 18 + "o r   c"),
}


@pytest.mark.parametrize("condition", RANK)
def test_default_rules(condition: str) -> None:
    true_s, false_s, expected = DEFAULTS[condition]
    fed = film(**{condition: "T" * true_s + "." * false_s})
    assert told(condition, tracker(RULES), fed)[0] == expected
    fed = film(**{condition: "T" * (true_s - 1) + "." * false_s})
    assert "o" not in told(condition, tracker(RULES), fed)[0]


def test_a_rule_of_no_seconds_still_wants_two_of_three_frames() -> None:
    transitions = play(film(black="...T..TT.T.."), tracker({"black": Rule(0, 0)}))
    assert [t.kind for t in transitions] == ["began", "opened", "recovering", "closed"]
    assert numbers(transitions[-1].incident) == [5, 6, 7, 8]


# -- what it rests on --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drawn", "kind", "expected"),
    [
        ("..TT", "began", Coverage(2, 2, 2, 1.0)),
        ("..T.T", "began", Coverage(3, 3, 2, 1.0)),
        ("..T?T", "began", Coverage(3, 2, 2, 2.0)),
        ("..T-T", "began", Coverage(2, 2, 2, 2.0)),  # not to be judged: it is missed by nobody
        ("..TT??T", "opened", Coverage(5, 3, 3, 3.0)),
        ("..TT.TT?..?.", "closed", Coverage(10, 8, 4, 2.0)),
        ("..TTTT       T...", "closed", Coverage(8, 8, 5, 8.0)),
    ],
)
def test_coverage(drawn: str, kind: str, expected: Coverage) -> None:
    assert last(play(film(black=drawn), tracker()), kind).coverage == expected


def test_coverage_in_words() -> None:
    fed = [(sighting(n * 0.2, n), {"freeze": Verdict(None if n in (70, 71) else True, {})}) for n in range(151)]
    incident = last(play(fed, tracker(RULES)), "opened")
    assert incident.coverage.describe() == "149 of 151 frames, longest gap 0.6 s"


def test_short_runs_are_counted() -> None:
    by = tracker()
    # blips of    3 s   2 s     a hole      a cause opens
    freeze = "....TTT...TT....TT    ....TTTT."
    cause_ = "                         TTTTT"
    play(film(freeze=freeze, no_signal=cause_), by)
    assert by.tallies()["freeze"] == Tally(blips=2, blips_s=5.0, longest_blip_s=3.0, suppressed=1, interrupted=1)
    by.tallies()["freeze"].blips = 0
    assert by.tallies()["freeze"].blips == 2


# -- ranks -------------------------------------------------------------------------------------------------------------

RANKED = {
    "a cause closes its consequence, which begins anew after it": {
        "black": ("........TTTTT...........", "         b o  rc"),
        "freeze": ("..TTTTTTTTTTTTTTTTTTTT.", "   b o     c    b o"),
    },
    "a run is dropped when a cause opens": {
        "black": ("..TTTT...", "   b o rc"),
        "audio_loss": ("...TTTTTT", "    bd"),
    },
    "nothing opens under a pending cause, but after its blip": {
        "no_signal": ("...TT....", "    b d"),
        "freeze": ("..TTTTTTT", "   b  o"),
    },
    "a consequence never hides its cause": {
        "black": ("......TTTT...TT", "       b o rc b"),
        "audio_loss": ("TTTTTTTTTTTTTTTT", " b o     c   b"),
    },
    "a cause that recovers still hides": {
        "black": ("TTTT..TT..TT..", " b o r   r   r"),
        "freeze": ("TTTTTTTTTTTTTT", " b d"),
    },
    "and one of which nothing is known any more": {
        "no_signal": ("TTTT????????????", " b o"),
        "freeze": ("TTTTTTTTTTTTTTTT", " b d"),
    },
    "a pending cause of which nothing is known does not block for ever": {
        "no_signal": ("..TT????????????", "   b   d"),
        "freeze": ("..TTTTTTTTTTTTTT", "   b   o"),
    },
}


@pytest.mark.parametrize("rows", RANKED.values(), ids=list(RANKED))
def test_ranks(rows: dict[str, tuple[str, str]]) -> None:
    fed = film(**{condition: drawn for condition, (drawn, _) in rows.items()})
    assert {name: told(name, tracker(), fed)[0] for name in rows} == {name: row[1] for name, row in rows.items()}


@pytest.mark.parametrize(
    ("freeze", "seconds"),
    [
        ("..TTTTTTTTTTT", 6),  # until the cause began, not until it was confirmed
        ("..TTTT....TTT", 4),  # until its own recovery, where that came first
        ("..TTTTTTTT...", 6),
        ("..TTTT..TTTTT", 6),  # a recovery that was undone is none
    ],
)
def test_what_is_explained_ends_where_its_cause_began(freeze: str, seconds: int) -> None:
    transitions = play(film(freeze=freeze, black="........TTTTT"), tracker({**SHORT, "freeze": Rule(3, 9)}))
    cause, explained = last(transitions, "opened"), last(transitions, "closed")
    assert (cause.condition, explained.condition) == ("black", "freeze")
    assert (explained.reason, explained.explained_by, explained.duration_s) == ("explained", cause.id, seconds)


def test_after_its_cause_a_condition_starts_with_no_votes() -> None:
    by = tracker({"black": Rule(3, 0), "freeze": RULE})
    assert told("freeze", by, film(black="TTTT....", freeze="TTTTTTTT"))[0] == " b d  b"


def test_what_is_dropped_names_its_cause() -> None:
    transitions = play(film(freeze="..TTTT", black="..TTTT"), tracker())
    assert [(t.kind, t.incident.condition) for t in transitions] == [
        ("began", "black"),
        ("began", "freeze"),
        ("opened", "black"),
        ("dropped", "freeze"),
    ]
    assert transitions[3].incident.explained_by == transitions[2].incident.id


# -- time --------------------------------------------------------------------------------------------------------------


def test_time_that_runs_backwards_stands_still() -> None:
    fed = film(black="..TTTTTT......")
    for at in (4, 9):  # these frames' times lie long before their predecessors'
        fed[at] = (msgspec.structs.replace(fed[at][0], time_ns=1), fed[at][1])
    drawn, transitions = told("black", tracker(), fed)
    assert drawn == "   b o   rc"
    for sighted in (last(transitions, "closed").onset, last(transitions, "closed").recovery):
        assert sighted is not None and sighted.time_ns >= fed[2][0].time_ns
    assert last(transitions, "closed").coverage.longest_gap_s == 2.0


def test_frames_of_one_time_are_frames_all_the_same() -> None:
    fed = [(sighting(7, number), {"black": Verdict(True, {})}) for number in range(50)]
    assert told("black", tracker(), fed)[0] == " b"
    assert [t.kind for t in play(fed, tracker({"black": Rule(0, 0)}))] == ["began", "opened"]


def test_a_step_of_the_wall_clock_changes_nothing_but_the_stamps() -> None:
    fed = film(black="..TTTTTT....")
    stepped = [
        (msgspec.structs.replace(frame, wall_ns=frame.wall_ns + 86_400 * S * (at > 4)), verdicts)
        for at, (frame, verdicts) in enumerate(fed)
    ]
    incident, late = (last(play(some, tracker()), "closed") for some in (fed, stepped))
    assert (late.duration_s, late.closed_wall_ns) == (incident.duration_s, incident.closed_wall_ns)


# -- restarts ----------------------------------------------------------------------------------------------------------


def opened_earlier(condition: str = "black", source: str = "stb1") -> Incident:
    """An incident that an earlier run left open, of which it saw 4 s from its second 2 on."""
    return last(play(film(**{condition: "..TTTTT"}), Tracker("pi4", source, SHORT)), "opened")


def later(drawn: str, after_s: int, **more: str) -> list[Fed]:
    """Frames of the next run: the wall clock has gone on by `after_s`, the monotonic one began anew."""
    return [
        (msgspec.structs.replace(frame, wall_ns=frame.wall_ns + after_s * S, number=frame.number + 9000), verdicts)
        for frame, verdicts in film(black=drawn, **more)
    ]


def test_an_open_incident_survives_a_restart() -> None:
    earlier, by = opened_earlier(), tracker()
    assert by.resume([earlier], S, WALL + 100 * S) == []
    assert (by.open_ids(), by.phases()["black"]) == ([earlier.id], "open")
    closed = last(play(later(" TTT.....", 100), by), "closed")
    assert (closed.id, closed.across_restart, closed.reason) == (earlier.id, True, "recovered")
    assert closed.duration_s == 100 + 4 - 2  # by the wall clock
    assert closed.closed_wall_ns == closed.onset.wall_ns + 102 * S
    assert closed.coverage == Coverage(4 + 6, 4 + 6, 4 + 3, 95 + 1.0), "nobody knows what was seen meanwhile"


def test_a_wall_clock_set_back_by_a_reboot_leaves_what_was_lived_through() -> None:
    by = tracker()
    by.resume([opened_earlier()], S, WALL)
    assert last(play(later("TTTTT.....", -86_400), by), "closed").duration_s == 5


def test_a_recovery_of_an_earlier_run_starts_again() -> None:
    by = tracker()
    by.resume([last(play(film(black="..TTTT.."), tracker()), "recovering")], S, WALL)
    assert by.phases()["black"] == "open"
    assert numbers(by.close_all("gone", S, WALL)[0].incident) == [1, 2, 5, None]


def test_nothing_is_taken_over_before_the_newest_frame() -> None:
    by = tracker()
    play(film(freeze="........."), by)
    by.resume([opened_earlier()], 0, WALL)
    (closed,) = by.close_all("gone", sighting(12).time_ns, 0)
    assert closed.incident.duration_s == 4.0


def test_only_this_sources_open_incidents_are_taken_over() -> None:
    by = tracker()
    other = Tracker("pi5", "stb1", SHORT)
    foreign = last(play(film(black="TTTTT"), other), "opened")
    closed = last(play(film(black="TTTTT....."), tracker()), "closed")
    assert by.resume([opened_earlier(source="stb2"), foreign, closed], S, WALL) == []
    assert by.open_ids() == []


def test_frames_from_before_the_start_keep_their_times_where_nothing_is_taken_over() -> None:
    by = tracker()
    by.resume([opened_earlier(source="stb2")], sighting(60).time_ns, WALL)
    closed = last(play(film(black="..TTTT....."), by), "closed")
    assert (closed.duration_s, closed.closed_wall_ns) == (4.0, closed.onset.wall_ns + 4 * S)


def test_what_cannot_be_taken_over_is_closed() -> None:
    by, first = tracker({"black": RULE}), opened_earlier()
    second = msgspec.structs.replace(first, id="f" * 16)
    unruled = opened_earlier("freeze")
    ended = by.resume([first, first, second, unruled], S, WALL)
    assert [(t.kind, t.incident.id, t.incident.reason, t.incident.duration_s) for t in ended] == [
        ("closed", second.id, "superseded", 3.0),
        ("closed", unruled.id, "superseded", 3.0),
    ]
    assert by.open_ids() == [first.id]


def test_of_two_that_a_power_cut_left_open_the_cause_explains_the_other() -> None:
    by, black, freeze = tracker(), opened_earlier(), opened_earlier("freeze")
    by.resume([freeze, black], S, WALL)
    assert sorted(by.open_ids()) == sorted([black.id, freeze.id])
    (transition,) = by.feed(*later("T", 100)[0])
    assert (transition.kind, transition.incident.explained_by) == ("closed", black.id)
    assert by.open_ids() == [black.id]


def test_a_source_that_is_no_longer_configured() -> None:
    by = tracker()
    play(film(freeze="..TTTT"), by)
    (transition,) = by.close_all("source no longer configured", sighting(8).time_ns, WALL)
    assert (transition.kind, transition.incident.reason) == ("closed", "source no longer configured")
    assert transition.incident.duration_s == 6.0
    assert (by.open_ids(), by.phases()["freeze"]) == ([], "clear")
    by = tracker()
    play(film(freeze="..TT"), by)
    assert [(t.kind, t.incident.duration_s) for t in by.close_all("gone", 0, 0)] == [("dropped", 1.0)]
    assert by.close_all("gone", 0, 0) == []


# -- the rest of the interface -----------------------------------------------------------------------------------------


def test_phases_and_ids() -> None:
    by, seen = tracker({"black": RULE, "freeze": RULE}), []
    for frame, verdicts in film(black="..TTTT...", freeze="." * 9):
        by.feed(frame, verdicts)
        seen.append((by.phases()["black"], len(by.held_ids()), len(by.open_ids())))
    clear, pending, live = ("clear", 0, 0), ("pending", 1, 0), ("open", 1, 1)
    assert seen == [clear] * 3 + [pending] * 2 + [live] * 2 + [("recovering", 1, 1), clear]
    assert by.phases() == {"black": "clear", "freeze": "clear"}


def test_ids_tell_apart() -> None:
    frame, other = sighting(1).identity, sighting(2).identity
    args = [
        ("a", "b", "black", frame),
        ("ab", "", "black", frame),
        ("a", "b", "freeze", frame),
        ("a", "b", "black", other),
    ]
    ids = {incident_id(*arg) for arg in args}
    assert len(ids) == 4
    assert all(len(one) == 16 and set(one) <= set("0123456789abcdef") for one in ids)
    assert incident_id("pi4", "stb1", "black", FrameId(40, 71885, WALL, 118211)) == "dbfa56c4913b77fa"


def test_snapshots_do_not_change() -> None:
    by = tracker()
    fed = film(black="..TTTTTT....")
    readings = fed[5][1]["black"].readings
    transitions = play(fed[:6], by)
    before = msgspec.json.encode(transitions)
    readings["second"] = -1.0
    last(transitions, "opened").readings["mine"] = 1.0
    closed = last(play(fed[6:], by), "closed")
    assert closed.readings == {"second": 5.0}
    del last(transitions, "opened").readings["mine"]
    assert msgspec.json.encode(transitions) == before


def test_an_incident_is_json() -> None:
    closed = last(play(film(black="..TTTTTT...."), tracker()), "closed")
    assert msgspec.json.decode(msgspec.json.encode(closed), type=Incident) == closed


def test_what_has_no_rule_any_more_is_closed_once() -> None:
    before = tracker(SHORT)
    opened = last(play(film(black="..TTTTTT"), before), "opened")
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(before.state), type=TrackerState)
    after = tracker({name: rule for name, rule in SHORT.items() if name != "black"}, state)
    (closed,) = after.close_without_rule(20 * S, WALL + 19 * S)
    assert (closed.kind, closed.incident.id, closed.incident.reason) == ("closed", opened.id, "superseded")
    assert closed.incident.duration_s == 17.0
    assert after.close_without_rule(21 * S, WALL + 20 * S) == [] and after.held_ids() == []
    assert tracker(SHORT, before.state).close_without_rule(20 * S, WALL) == []


def test_unknown_conditions_are_refused_in_rules_and_ignored_in_verdicts() -> None:
    with pytest.raises(ValueError, match="no such condition: gloom, haze"):
        tracker({"black": RULE, "haze": RULE, "gloom": RULE})
    assert play(film(freeze="TTTTTTTT"), tracker({"black": RULE})) == []


@pytest.mark.parametrize(("name", "limit"), [("capture_000000123", 5120), ("p" * 251, MAX_STATE_BYTES * 3 // 4)])
def test_the_largest_state_fits_into_the_record(name: str, limit: int) -> None:
    """All conditions pending, and one open on top of it, each with its own frames."""
    by = tracker({condition: Rule(1000 if condition != RANK[-1] else 3, 10) for condition in RANK})
    sizes = []
    for second in range(120):
        frame = msgspec.structs.replace(sighting(second, second), name=name)
        condition = RANK[-1 - second // 12 % len(RANK)]
        by.feed(frame, {condition: Verdict(second % 12 > 2, {"a_reading_pct": 1.5, "another_reading_db": 2.5})})
        sizes.append(len(msgspec.msgpack.encode(by.state)))
    assert [*by.phases().values()] == ["pending"] * (len(RANK) - 1) + ["open"]
    assert max(sizes) < limit


# -- any sequence ------------------------------------------------------------------------------------------------------

STRETCH = st.tuples(
    st.integers(1, 8),  # frames
    st.sampled_from([0.0, 0.2, 1.0, 1.0, 1.0, 2.5, 5.0, -3.0]),  # seconds between them
    st.fixed_dictionaries(
        {condition: st.sampled_from(["T", "T", ".", "?", "-", "TTT.", "...T", "T."]) for condition in RANK}
    ),
)
STRETCHES = st.lists(STRETCH, max_size=25)


def filmed(stretches: list[Stretch]) -> list[Fed]:
    """Frames of stretches of which each repeats one pattern per condition."""
    fed: list[Fed] = []
    second = 100.0
    for frames, step_s, patterns in stretches:
        for at in range(frames):
            second += step_s
            marks = {condition: pattern[at % len(pattern)] for condition, pattern in patterns.items()}
            verdicts = {name: Verdict(VALUES[mark], {"at": second}) for name, mark in marks.items() if mark in VALUES}
            fed.append((sighting(second, len(fed)), verdicts))
    return fed


def restored(by: Tracker) -> Tracker:
    """What a successor makes of the commit record."""
    return tracker(state=msgspec.msgpack.decode(msgspec.msgpack.encode(by.state), type=TrackerState))


class Ledger:
    """Follows transitions as the incident log does, and asserts what must hold at each of them."""

    def __init__(self) -> None:
        self.pending: dict[str, Incident] = {}
        self.open: dict[str, Incident] = {}
        self.ended: set[str] = set()

    def enter(self, transition: Transition) -> None:
        incident = transition.incident
        assert incident.id not in self.ended
        assert incident.duration_s >= 0
        getattr(self, f"_{transition.kind}")(incident.condition, incident)

    def _began(self, condition: str, incident: Incident) -> None:
        assert condition not in self.pending and condition not in self.open
        assert not any(RANK.index(cause) < RANK.index(condition) for cause in self.open)
        self.pending[condition] = incident

    def _opened(self, condition: str, incident: Incident) -> None:
        assert self.pending.pop(condition).id == incident.id
        above = {*self.pending, *self.open} & set(RANK[: RANK.index(condition)])
        assert not above, "a cause hides"
        assert incident.confirmed and incident.confirmed.time_ns - incident.onset.time_ns >= RULE.raise_s * S
        self.open[condition] = incident

    def _recovering(self, condition: str, incident: Incident) -> None:
        assert self.open[condition].id == incident.id and incident.recovery

    def _closed(self, condition: str, incident: Incident) -> None:
        assert self.open.pop(condition).id == incident.id
        self._end(incident)
        if incident.explained_by:
            assert incident.explained_by in {cause.id for cause in self.open.values()}

    def _dropped(self, condition: str, incident: Incident) -> None:
        assert self.pending.pop(condition).id == incident.id
        self._end(incident)

    def _end(self, incident: Incident) -> None:
        self.ended.add(incident.id)
        assert incident.closed_wall_ns is not None and incident.closed_wall_ns >= incident.onset.wall_ns
        coverage = incident.coverage
        assert coverage.frames >= coverage.judged >= coverage.true >= NEEDED


@given(STRETCHES)
def test_what_must_hold_at_every_transition(stretches: list[Stretch]) -> None:
    by, ledger = tracker(), Ledger()
    for frame, verdicts in filmed(stretches):
        before, values = by.phases(), {condition: verdict.value for condition, verdict in verdicts.items()}
        for transition in by.feed(frame, verdicts):
            ledger.enter(transition)
            needed = {"began": True, "opened": True, "recovering": False}.get(transition.kind)
            if transition.incident.reason == "recovered":
                needed = False
            assert needed is None or values.get(transition.incident.condition) is needed, "only a known verdict does"
        assert len(ledger.open) <= 1
        assert by.open_ids() == [incident.id for incident in ledger.open.values()]
        assert sorted(by.held_ids()) == sorted(i.id for i in [*ledger.open.values(), *ledger.pending.values()])
        assert by.phases().keys() == before.keys()


@given(STRETCHES, st.lists(st.booleans(), min_size=1, max_size=20))
def test_any_crash_makes_the_same_incidents(stretches: list[Stretch], crashes: list[bool]) -> None:
    """Killed after a commit, the successor goes on; killed before it, it judges the same frame again, and repeats
    what was told of it."""
    fed = filmed(stretches)
    by = tracker()
    transitions: list[Transition] = []
    for (frame, verdicts), crash in zip(fed, itertools.cycle(crashes), strict=False):
        if crash:
            lost = restored(by)
            again = lost.feed(frame, verdicts)
            by = restored(by)
            transitions += by.feed(frame, verdicts)
            assert again == transitions[len(transitions) - len(again) :]
        else:
            transitions += by.feed(frame, verdicts)
    whole = tracker()
    assert transitions == play(fed, whole)
    assert by.state == whole.state


@given(STRETCHES, st.lists(st.sets(st.sampled_from(RANK)), min_size=1, max_size=10))
def test_unknown_verdicts_open_and_close_nothing(stretches: list[Stretch], unknown: list[set[str]]) -> None:
    """Strewn between the others they change the coverage alone."""
    fed = filmed(stretches)
    strewn: list[Fed] = []
    for (frame, verdicts), conditions in zip(fed, itertools.cycle(unknown), strict=False):
        strewn += [(frame, verdicts), (frame, dict.fromkeys(conditions, Verdict(None, {})))]

    def told_of(some: list[Fed]) -> list[Transition]:
        return [
            msgspec.structs.replace(t, incident=msgspec.structs.replace(t.incident, coverage=Coverage()))
            for t in play(some, tracker())
        ]

    assert told_of(strewn) == told_of(fed)


@given(st.lists(st.booleans(), max_size=60))
def test_the_vote_is_that_of_the_last_three(values: list[bool]) -> None:
    """With rules of no duration, the phase is the majority."""
    by = tracker({"black": Rule(0, 0)})
    for at in range(len(values)):
        by.feed(sighting(at), {"black": Verdict(values[at], {})})
        last_few = values[max(0, at + 1 - VOTES) : at + 1]
        if len(last_few) == VOTES:
            assert (by.phases()["black"] == "open") == (sum(last_few) >= NEEDED)
