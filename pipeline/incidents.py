"""Tracks the conditions of one source: ordered verdicts in, incidents out. Touches no file, clock or process.

Per condition, where "voted" is what NEEDED of the last VOTES known verdicts say:

             voted true                held for raise_s              voted false               held for clear_s
    CLEAR ---- began ----> PENDING ------- opened -------> OPEN ---- recovering ----> RECOVERING --- closed ---> CLEAR
      ^                       |                             ^                              |
      '------ dropped --------'  voted false: a blip        '-------- voted true ----------'

- Time is frame time, given with the frame. The onset is the first true frame of the run, the recovery the first good
  one; an incident lasts from the one to the other. Time that would run backwards stands still.
- Unknown is neither yes nor no: it opens and closes nothing, and is counted. Where nothing was known for longer than
  raise_s, neither a run nor a recovery is believed to have gone on: the run is dropped, the recovery starts again.
- A cause hides its consequences (RANK). While one above it is pending, a condition does not open; when that one opens,
  it is closed or dropped with a reference to it, and starts anew once the cause has closed. So at most one incident of
  a source is open at any time.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec
from msgspec.structs import replace

from pipeline.model import RANK, RULES, FrameId, Rule, Verdict

VOTES, NEEDED = 3, 2
"""So many of the last known verdicts must agree: one odd frame neither raises nor clears."""

LEAST_HOLE_S = 3.0
"""Seconds: nothing shorter is a hole, however short raise_s is. Under overload one verdict a second is promised."""

_NS = 1_000_000_000


class Phase(enum.StrEnum):
    """Where a condition stands."""

    CLEAR = "clear"
    PENDING = "pending"
    OPEN = "open"
    RECOVERING = "recovering"


_PHASES = tuple(Phase)
_PLACES = {condition: 4 * at for at, condition in enumerate(RANK)}
_LIVE = (Phase.OPEN, Phase.RECOVERING)


def unpack_phases(packed: int) -> dict[str, Phase]:
    """Where each condition stands, of what `Tracker.packed_phases` made; those that are clear are left out."""
    found = {condition: _PHASES[packed >> place & 15] for condition, place in _PLACES.items()}
    return {condition: phase for condition, phase in found.items() if phase is not Phase.CLEAR}


class Sighting(msgspec.Struct, frozen=True, array_like=True):
    """One frame (or tick) as the tracker sees it."""

    time_ns: int  # frame time: monotonic, means nothing to another run
    wall_ns: int  # its file time, for people
    number: int
    name: str  # without suffix
    identity: FrameId


class Coverage(msgspec.Struct):
    """What an incident rests on, from its onset on."""

    frames: int = 0  # published, of those on which the condition was to be judged
    judged: int = 0  # those with a known verdict
    true: int = 0
    longest_gap_s: float = 0.0  # between two known verdicts

    def describe(self) -> str:
        """`148 of 150 frames, longest gap 0.6 s`."""
        return f"{self.judged} of {self.frames} frames, longest gap {self.longest_gap_s:.1f} s"


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """A condition that lasted, or (`confirmed` None) that may come to last, as it stood at a transition."""

    id: str
    host: str
    source: str
    condition: str
    last_good: Sighting | None  # None: no good frame is remembered from before the onset
    onset: Sighting  # opened at its wall_ns
    confirmed: Sighting | None = None
    recovery: Sighting | None = None  # the first good frame, where there was one
    duration_s: float = 0.0  # so far; final once closed
    closed_wall_ns: int | None = None  # onset.wall_ns and the duration; None while it is pending or open
    reason: str = ""  # of the end: recovered, explained, blip, unknown, superseded, or what close_all was told
    explained_by: str | None = None  # the id of its cause
    across_restart: bool = False  # measured with the wall clock: its onset was seen by an earlier run
    readings: dict[str, float] = {}  # at confirmation
    coverage: Coverage = msgspec.field(default_factory=Coverage)

    def ended(self, end: Sighting, reason: str, cause: str | None = None) -> Incident:
        """Closed or dropped as of `end`, or of its recovery if that came first."""
        end = min(end, self.recovery or end, key=lambda frame: frame.time_ns)
        wall_ns = self.onset.wall_ns + self.length_ns(end)
        return replace(self.lasting(end), closed_wall_ns=wall_ns, reason=reason, explained_by=cause)

    def lasting(self, end: Sighting) -> Incident:
        """With the duration up to `end`."""
        return replace(self, duration_s=self.length_ns(end) / _NS)

    def length_ns(self, end: Sighting) -> int:
        """Onset to end: by the wall clock across a restart, but not less than was lived through since."""
        by_wall_ns = end.wall_ns - self.onset.wall_ns if self.across_restart else 0
        return max(0, end.time_ns - self.onset.time_ns, by_wall_ns)


Kind = Literal["began", "opened", "recovering", "closed", "dropped"]


class Transition(msgspec.Struct, frozen=True):
    """What happened to an incident. `began` and `recovering` tell which frames to hold before retention takes them;
    after `dropped` they are not needed, and the frame of a later `recovering` takes the place of an earlier one's."""

    kind: Kind
    incident: Incident
    notes: list[str] = []  # what else is known of its cause, for people: FFmpeg's last words


class Tally(msgspec.Struct, array_like=True):
    """Runs of a condition that did not become incidents."""

    blips: int = 0  # shorter than raise_s: channel changes
    blips_s: float = 0.0
    longest_blip_s: float = 0.0
    suppressed: int = 0  # hidden by a cause
    interrupted: int = 0  # nothing was known for too long


class Vote(msgspec.Struct, frozen=True, array_like=True):
    """One known verdict."""

    value: bool
    seen: int  # Track.seen at it
    frame: Sighting


class Track(msgspec.Struct, array_like=True):
    """One condition of one source."""

    condition: str
    phase: Phase = Phase.CLEAR
    seen: int = 0  # frames on which it was to be judged
    votes: list[Vote] = []  # the newest known verdicts that still count
    incident: Incident | None = None  # in every phase but CLEAR; its coverage stands below
    coverage: Coverage = msgspec.field(default_factory=Coverage)
    known_ns: int = 0  # frame time of the newest verdict in the coverage
    good: int = 0  # false verdicts since the recovery began
    tally: Tally = msgspec.field(default_factory=Tally)

    def hear(self, value: bool, frame: Sighting) -> bool | None:
        """Count a known verdict; what the last ones agree on with it, None while there are too few."""
        if self.incident is not None:
            self.cover(value, frame.time_ns)
        # One more is kept than has a vote: the last good frame of a run that begins with the oldest vote.
        self.votes = [*self.votes[-VOTES:], Vote(value, self.seen, frame)]
        last = self.votes[-VOTES:]
        true = sum([vote.value for vote in last])
        if len(last) - true >= NEEDED:
            return False
        return True if true >= NEEDED else None

    def cover(self, value: bool, time_ns: int) -> None:
        self.good += not value
        self.coverage.judged += 1
        self.coverage.true += value
        self.coverage.longest_gap_s = max(self.coverage.longest_gap_s, (time_ns - self.known_ns) / _NS)
        self.known_ns = time_ns

    def turned(self) -> int:
        """Where in `votes` the run begins that was voted just now. It ends with the newest vote, and as the vote went
        the other way before, the one that is kept beyond the last three is of the other side."""
        return next(at for at, vote in enumerate(self.votes) if vote.value is self.votes[-1].value)


class TrackerState(msgspec.Struct, array_like=True):
    """What the commit record keeps of a tracker."""

    time_ns: int = 0  # of the newest frame
    tracks: list[Track] = []


def incident_id(host: str, source: str, condition: str, onset: FrameId) -> str:
    """Judging the same frames again makes the same id."""
    return hashlib.sha256(msgspec.msgpack.encode((host, source, condition, onset))).hexdigest()[:16]


class Tracker:
    """One source's conditions. It must see every frame and tick in order; `state` is its whole memory, and live:
    encode it at once. A tracker made from the decoded state goes on as this one would have."""

    def __init__(
        self, host: str, source: str, rules: Mapping[str, Rule] = RULES, state: TrackerState | None = None
    ) -> None:
        if unknown := sorted(set(rules) - set(RANK)):
            raise ValueError(f"no such condition: {', '.join(unknown)}")
        self._host, self._source, self._rules = host, source, rules
        self._hole_ns = {name: int(max(LEAST_HOLE_S, rule.raise_s) * _NS) for name, rule in rules.items()}
        self.state = state or TrackerState()
        known = {track.condition: track for track in self.state.tracks}
        self._without_rule = [track for track in self.state.tracks if track.condition not in rules]
        self.state.tracks = [known.get(name) or Track(name) for name in RANK if name in rules]
        self._told: list[Transition] = []

    def feed(self, frame: Sighting, verdicts: Mapping[str, Verdict]) -> list[Transition]:
        """What this frame changes. A condition that is not in `verdicts` was not to be judged on it; one that was, and
        could not be (the frame was shed or invalid), is in it with the value None, and counted."""
        if frame.time_ns < self.state.time_ns:
            frame = replace(frame, time_ns=self.state.time_ns)
        self.state.time_ns = frame.time_ns
        cause, blocked = None, False
        for track in self.state.tracks:
            if cause is not None:
                self._hide(track, cause)
                continue
            if track.votes:
                self._notice_hole(track, frame)
            if (verdict := verdicts.get(track.condition)) is not None:
                self._judge(track, frame, verdict, blocked)
            blocked = blocked or track.phase is Phase.PENDING
            cause = track.incident if track.phase in _LIVE else None
        return self._take()

    def phases(self) -> dict[str, str]:
        """Where each condition stands, for the sidecar."""
        return {track.condition: track.phase.value for track in self.state.tracks}

    def packed_phases(self) -> int:
        """The same for the board: 4 bits for each condition, in the order of RANK. See `unpack_phases`."""
        return sum(_PHASES.index(track.phase) << _PLACES[track.condition] for track in self.state.tracks)

    def open_ids(self) -> list[str]:
        """The id of the open incident, if there is one; of several only between `resume` and the next frame."""
        return [track.incident.id for track in self.state.tracks if track.incident and track.phase in _LIVE]

    def held_ids(self) -> list[str]:
        """Ids of all that is pending, open or recovering: what else is held for this source is an orphan."""
        return [track.incident.id for track in self.state.tracks if track.incident]

    def tallies(self) -> dict[str, Tally]:
        """Per condition, the runs that did not become incidents."""
        return {track.condition: replace(track.tally) for track in self.state.tracks}

    def resume(self, incidents: Iterable[Incident], time_ns: int, wall_ns: int) -> list[Transition]:
        """Take over this source's open incidents of an earlier run; `time_ns` is now on this run's clock, and no frame
        that is judged later is earlier. What was seen since their opening is not known here: up to now (`wall_ns`) it
        is a gap. Those that cannot be taken over (no rule any more, or their condition has another one already) are
        closed. Where there are none, frames from before the start keep their own times."""
        tracks = {track.condition: track for track in self.state.tracks}
        for earlier in incidents:
            if (earlier.host, earlier.source) != (self._host, self._source) or earlier.closed_wall_ns is not None:
                continue
            self.state.time_ns = max(self.state.time_ns, time_ns)
            incident = _carried_over(earlier, self.state.time_ns)
            track = tracks.get(earlier.condition)
            if track is not None and track.incident is None:
                track.incident, track.phase, track.votes = incident, Phase.OPEN, []
                unseen_ns = max(0, wall_ns - (earlier.confirmed or earlier.onset).wall_ns)
                track.coverage, track.known_ns = replace(earlier.coverage), self.state.time_ns - unseen_ns
            elif track is None or track.incident is None or track.incident.id != earlier.id:
                self._told.append(
                    Transition("closed", incident.ended(incident.confirmed or incident.onset, "superseded"))
                )
        return self._take()

    def close_all(self, reason: str, time_ns: int, wall_ns: int) -> list[Transition]:
        """Close what is open and drop what is pending, as of then: nobody judges this source any more."""
        return self._close(self.state.tracks, reason, time_ns, wall_ns)

    def close_without_rule(self, time_ns: int, wall_ns: int) -> list[Transition]:
        """The same for conditions of `state` that have no rule any more: the settings were changed."""
        return self._close(self._without_rule, "superseded", time_ns, wall_ns)

    def _close(self, tracks: Iterable[Track], reason: str, time_ns: int, wall_ns: int) -> list[Transition]:
        end = Sighting(max(time_ns, self.state.time_ns), wall_ns, -1, "", FrameId(0, 0, 0, 0))
        for track in tracks:
            self._end(track, end, reason)
        return self._take()

    def _judge(self, track: Track, frame: Sighting, verdict: Verdict, blocked: bool) -> None:
        """First what the votes say, then whether they have said so for long enough. Only a true verdict opens, and only
        a false one closes."""
        track.seen += 1
        track.coverage.frames += track.incident is not None
        if verdict.value is None:
            return
        voted = track.hear(verdict.value, frame)
        if track.phase is Phase.CLEAR and voted is True:
            self._begin(track)
        elif track.phase is Phase.PENDING and voted is False:
            self._drop_blip(track)
        elif track.phase is Phase.OPEN and voted is False:
            self._recover(track)
        elif track.phase is Phase.RECOVERING and voted is True:
            self._relapse(track)
        if track.phase is Phase.PENDING and verdict.value and not blocked:
            self._open_if_held(track, frame, verdict)
        elif track.phase is Phase.RECOVERING and not verdict.value:
            self._close_if_held(track, frame)

    def _begin(self, track: Track) -> None:
        at = track.turned()
        before, run = track.votes[:at], track.votes[at:]
        onset = run[0]
        track.coverage, track.known_ns = Coverage(track.seen - onset.seen + 1), onset.frame.time_ns
        for vote in run:
            track.cover(vote.value, vote.frame.time_ns)
        track.phase = Phase.PENDING
        track.incident = Incident(
            id=incident_id(self._host, self._source, track.condition, onset.frame.identity),
            host=self._host,
            source=self._source,
            condition=track.condition,
            last_good=before[-1].frame if before else None,
            onset=onset.frame,
        )
        self._tell("began", track, track.incident.lasting(run[-1].frame))

    def _drop_blip(self, track: Track) -> None:
        good, tally = track.votes[track.turned()].frame, track.tally
        length_s = _of(track).length_ns(good) / _NS
        tally.blips += 1
        tally.blips_s += length_s
        tally.longest_blip_s = max(tally.longest_blip_s, length_s)
        self._end(track, good, "blip")

    def _open_if_held(self, track: Track, frame: Sighting, verdict: Verdict) -> None:
        incident = _of(track)
        if frame.time_ns - incident.onset.time_ns >= self._rules[track.condition].raise_s * _NS:
            track.phase = Phase.OPEN
            track.incident = replace(incident, confirmed=frame, readings=dict(verdict.readings))
            self._tell("opened", track, track.incident.lasting(frame))

    def _recover(self, track: Track) -> None:
        run = track.votes[track.turned() :]
        track.good = sum(not vote.value for vote in run)
        track.phase, track.incident = Phase.RECOVERING, replace(_of(track), recovery=run[0].frame)
        self._tell("recovering", track, track.incident.lasting(run[0].frame))

    def _relapse(self, track: Track) -> None:
        track.phase, track.incident = Phase.OPEN, replace(_of(track), recovery=None)

    def _close_if_held(self, track: Track, frame: Sighting) -> None:
        rule, good = self._rules[track.condition], _of(track).recovery
        assert good is not None
        if track.good >= rule.clear_frames and frame.time_ns - good.time_ns >= rule.clear_s * _NS:
            self._end(track, good, "recovered")

    def _hide(self, track: Track, cause: Incident) -> None:
        """A cause is open: from its onset on, it explains what is seen here."""
        track.tally.suppressed += track.phase is Phase.PENDING
        self._end(track, cause.onset, "explained", cause.id)
        track.votes = []

    def _notice_hole(self, track: Track, frame: Sighting) -> None:
        """Where nothing was known for too long: of what was known before, only the last good frame still counts."""
        newest = track.votes[-1].frame
        if frame.time_ns - newest.time_ns <= self._hole_ns[track.condition]:
            return
        if track.phase is Phase.RECOVERING:
            self._relapse(track)
        elif track.phase is Phase.PENDING:
            track.tally.interrupted += 1
            self._end(track, newest, "unknown")
        track.votes = [vote for vote in track.votes if not vote.value and track.phase is Phase.CLEAR][-1:]

    def _end(self, track: Track, end: Sighting, reason: str, cause: str | None = None) -> None:
        """Close or drop what there is."""
        if track.incident is not None:
            kind: Kind = "closed" if track.phase in _LIVE else "dropped"
            self._tell(kind, track, track.incident.ended(end, reason, cause))
            track.phase, track.incident = Phase.CLEAR, None

    def _tell(self, kind: Kind, track: Track, incident: Incident) -> None:
        """A snapshot: nothing in it is touched again."""
        snapshot = replace(incident, readings=dict(incident.readings), coverage=replace(track.coverage))
        self._told.append(Transition(kind, snapshot))

    def _take(self) -> list[Transition]:
        told, self._told = self._told, []
        return told


def _of(track: Track) -> Incident:
    assert track.incident is not None, f"{track.condition} is clear"
    return track.incident


def _carried_over(incident: Incident, now_ns: int) -> Incident:
    """An open incident of an earlier run, whose frame times mean nothing here: all become now."""
    return replace(
        incident,
        last_good=incident.last_good and replace(incident.last_good, time_ns=now_ns),
        onset=replace(incident.onset, time_ns=now_ns),
        confirmed=incident.confirmed and replace(incident.confirmed, time_ns=now_ns),
        recovery=None,
        across_restart=True,
    )
