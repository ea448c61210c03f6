"""Scores: verdicts against truth, frame by frame and incident by incident. Pure functions, no pixels, no files.

Per frame: a verdict of true is a hit or a false positive, any other is a miss or right. Where the truth is null the
frame is left out; where the verdict is unknown it counts as not raised, and is counted besides. A *false alarm* is a
run of false positives that no frame known to be right interrupts: an hour of flicker is many, a menu called frozen for
a minute is one.

Per incident: a fault must become an incident if it lasts for its rule's raise_s and SLACK_S more, may if it lasts for
about raise_s, and must not if it is shorter; any other incident is false.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pipeline.incidents import Sighting, Tracker, Transition
from pipeline.model import RULES, FrameId, Rule, Verdict
from pipeline.truth import CONDITIONS, Fault, Truth

SLACK_S = 2.0
"""Seconds: how far a fault's length may lie from raise_s for either outcome to be right. A detector needs frames to be
sure, and the vote of the tracker one more."""

_NS = 1_000_000_000

Verdicts = Sequence[bool | None]


class Score(NamedTuple):
    """Frames of one condition, counted; add scores up to get those of many cases."""

    hits: int = 0
    false_positives: int = 0
    misses: int = 0
    right: int = 0  # false as it should be
    unknown: int = 0  # verdicts of None where the truth is known; they are in misses or right as well
    alarms: int = 0  # runs of false positives
    hours: float = 0.0  # of footage, null truth included where not all is null

    def plus(self, other: Score) -> Score:
        """Both together."""
        return Score._make(map(operator.add, self, other))

    @property
    def precision(self) -> float | None:
        """Share of what was raised that was true; None if nothing was raised."""
        return _share(self.hits, self.hits + self.false_positives)

    @property
    def recall(self) -> float | None:
        """Share of what was true that was raised; None if nothing was true."""
        return _share(self.hits, self.hits + self.misses)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of both; None if nothing was true and nothing raised."""
        return _share(2 * self.hits, 2 * self.hits + self.false_positives + self.misses)

    @property
    def unknown_share(self) -> float | None:
        """Share of frames with known truth that got no verdict."""
        return _share(self.unknown, self.hits + self.false_positives + self.misses + self.right)

    @property
    def alarms_per_hour(self) -> float:
        """False alarms per hour of footage."""
        return self.alarms / self.hours if self.hours else 0.0

    def as_dict(self) -> dict[str, float | None]:
        """Counts and what follows from them, for JSON."""
        derived = ("precision", "recall", "f1", "unknown_share", "alarms_per_hour")
        return {**self._asdict(), **{name: getattr(self, name) for name in derived}}


def total(scores: Iterable[Score]) -> Score:
    """All together."""
    result = Score()
    for score in scores:
        result = result.plus(score)
    return result


def score_frames(verdicts: Verdicts, truth: Sequence[bool | None], fps: float) -> Score:
    """One case, one condition. ValueError unless there is one verdict per frame."""
    pairs = [(verdict, known) for verdict, known in zip(verdicts, truth, strict=True) if known is not None]
    return Score(
        hits=sum(verdict is True and known for verdict, known in pairs),
        false_positives=sum(verdict is True and not known for verdict, known in pairs),
        misses=sum(verdict is not True and known for verdict, known in pairs),
        right=sum(verdict is not True and not known for verdict, known in pairs),
        unknown=sum(verdict is None for verdict, _ in pairs),
        alarms=_runs(verdict is True and not known for verdict, known in pairs),
        hours=len(truth) / fps / 3600 if pairs else 0.0,
    )


class Opened(NamedTuple):
    """An incident that was opened, in positions of frames; `last` is the newest frame while it is open."""

    condition: str
    first: int
    last: int


class IncidentScore(NamedTuple):
    """Incidents of one condition, counted."""

    hits: int = 0  # faults that had to become one, and did
    misses: int = 0
    false: int = 0
    hours: float = 0.0

    def plus(self, other: IncidentScore) -> IncidentScore:
        """Both together."""
        return IncidentScore._make(map(operator.add, self, other))

    @property
    def false_per_hour(self) -> float:
        """False incidents per hour of footage."""
        return self.false / self.hours if self.hours else 0.0


def score_incidents(opened: Iterable[Opened], truth: Truth, condition: str) -> IncidentScore:
    """One case, one condition, by the rules that hold by default. Neither right nor wrong is an incident over nothing
    but null truth, and one that explains another condition's fault (a black picture stands, too)."""
    known = truth.known(condition)
    mine = [incident for incident in opened if incident.condition == condition]
    mine = [incident for incident in mine if set(known[incident.first : incident.last + 1]) != {None}]
    long = [fault for fault in truth.faults if fault.condition == condition and _length_s(fault, truth) > -SLACK_S]
    must = [fault for fault in long if _length_s(fault, truth) >= SLACK_S]
    others = [fault for fault in truth.faults if fault.condition != condition]
    return IncidentScore(
        hits=sum(any(_overlap(fault, incident) for incident in mine) for fault in must),
        misses=sum(not any(_overlap(fault, incident) for incident in mine) for fault in must),
        false=sum(not any(_overlap(fault, incident) for fault in (*long, *others)) for incident in mine),
        hours=truth.hours,
    )


def track(verdicts: Mapping[str, Verdicts], fps: float, rules: Mapping[str, Rule] = RULES) -> list[Opened]:
    """The incidents that the tracker of the service opens on these verdicts, so that every rule is asked alike."""
    tracker = Tracker("", "", {condition: rules[condition] for condition in CONDITIONS})
    ledger = Ledger()
    for at, values in enumerate(zip(*(verdicts[condition] for condition in CONDITIONS), strict=True)):
        told = {condition: Verdict(value, {}) for condition, value in zip(CONDITIONS, values, strict=True)}
        ledger.note(tracker.feed(sighting(at, fps), told), at)
    return ledger.opened()


class Ledger:
    """Collects a tracker's transitions into incidents."""

    def __init__(self) -> None:
        self._opened: dict[str, Opened] = {}
        self._ended: set[str] = set()
        self._newest = 0

    def note(self, transitions: Iterable[Transition], at: int) -> None:
        """What the frame at this position changed; Sighting.number must be the position."""
        self._newest = at
        for transition in transitions:
            incident = transition.incident
            if transition.kind == "opened":
                self._opened[incident.id] = Opened(incident.condition, incident.onset.number, at)
            elif transition.kind == "closed" and incident.id in self._opened:
                last = incident.recovery.number - 1 if incident.recovery else at
                self._opened[incident.id] = self._opened[incident.id]._replace(last=last)
                self._ended.add(incident.id)

    def opened(self) -> list[Opened]:
        """All incidents that were opened, in order; what is open lasts up to the newest frame."""
        return [
            incident if key in self._ended else incident._replace(last=self._newest)
            for key, incident in self._opened.items()
        ]


def sighting(at: int, fps: float) -> Sighting:
    """The frame at this position as the tracker sees it: its number is the position."""
    time_ns = round(at * _NS / fps)
    return Sighting(time_ns, time_ns, at, f"{at}", FrameId(0, at, time_ns, 0))


def _length_s(fault: Fault, truth: Truth) -> float:
    """By how much a fault lasts longer than it must to become an incident."""
    return (fault.last + 1 - fault.first) / truth.fps - RULES[fault.condition].raise_s


def _overlap(fault: Fault, incident: Opened) -> bool:
    return fault.first <= incident.last and incident.first <= fault.last


def _runs(wrong: Iterable[bool]) -> int:
    runs, before = 0, False
    for now in wrong:
        runs += now and not before
        before = now
    return runs


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
