"""Compares what films must have come to with what a service has recorded, stored and told. Nothing is asserted here:
what is wrong is listed, for a test to refuse and a measurement to print."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec

from pipeline import detectors, incidentlog
from pipeline.incidents import Incident
from pipeline.spool import INCIDENT_FILE
from pipeline.store import evidence_key
from tests.scenes import Film, Onset, Scene
from tests.support import Rig, sidecars
from tests.uploads import Post, all_files

CLOCK_S = 0.1
"""How far the clock of a frame (now less the age of its file) may be off when the machine holds up whoever reads it."""


@dataclass
class Findings:
    """What was expected and found. The lists must be empty; lines may be lost, but never doubled."""

    expected: int = 0
    recorded: int = 0
    resumed: int = 0  # of these, incidents that went on across a start of the service
    posts_repeated: int = 0
    lines_lost: int = 0  # of the text log: a kill between the row and its line
    lost: list[str] = field(default_factory=list)  # fault scenes without an incident
    doubled: list[str] = field(default_factory=list)  # fault scenes with more than one
    unexpected: list[str] = field(default_factory=list)  # incidents of no fault scene
    unrecorded: list[str] = field(default_factory=list)  # named by a sidecar, and not in the log
    not_closed: list[str] = field(default_factory=list)
    not_stored: list[str] = field(default_factory=list)  # transitions whose evidence is not where it should be
    wrong_evidence: list[str] = field(default_factory=list)
    wrong_notices: list[str] = field(default_factory=list)
    lines_doubled: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> dict[str, list[str]]:
        """The lists that are not empty."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, list) and value}

    def counts(self) -> dict[str, object]:
        """For a measurement's JSON: numbers, and of the lists their lengths and the first few."""
        numbers = {name: len(v) if isinstance(v, list) else v for name, v in asdict(self).items()}
        return {**numbers, **{f"{name}_first": value[:3] for name, value in self.wrong.items()}}


def recorded(state: Path) -> list[Incident]:
    """The incidents of a log; none where there is no log yet."""
    if not (state / incidentlog.FILE_NAME).exists():
        return []
    with contextlib.closing(incidentlog.connect_for_reading(str(state))) as db:
        return [msgspec.json.decode(row["body"], type=Incident) for row in db.execute("SELECT body FROM incidents")]


class Audit:
    """One look at everything a service has left behind."""

    def __init__(self, service: Rig, state: Path, films: Iterable[Film], posts: list[Post]) -> None:
        self._films, self._state, self._service = list(films), state, service
        self.findings = Findings()
        with contextlib.closing(incidentlog.connect_for_reading(str(state))) as db:
            bodies = [
                msgspec.json.decode(row["body"], type=Incident) for row in db.execute("SELECT body FROM incidents")
            ]
            self._incidents = {incident.id: incident for incident in bodies}
            kept = db.execute("SELECT incident, kind, evidence FROM transitions").fetchall()
        self._evidence = {(row["incident"], row["kind"]): row["evidence"] for row in kept}
        self._matched: set[str] = set()
        for film in self._films:
            for fault, good in film.faults():
                self._check_scene(film, fault, good)
        self._check_log()
        self._check_lines()
        self._check_posts(posts)

    # -- incidents ----------------------------------------------------------------------------------------------------

    def _check_scene(self, film: Film, fault: Scene, good: Scene) -> None:
        onsets = {onset.id: onset for onset in film.onsets(fault)}
        there = [self._incidents[id_] for id_ in onsets if id_ in self._incidents]
        place = f"{film.name} {fault.condition} {fault.first}-{fault.last}"
        self.findings.expected += 1
        self._matched |= {incident.id for incident in there}
        if not there:
            self.findings.lost.append(place)
        elif len(there) > 1:
            self.findings.doubled.append(f"{place}: {' '.join(incident.id for incident in there)}")
        for incident in there:
            if incident.closed_wall_ns is None or incident.reason != "recovered":
                self.findings.not_closed.append(f"{place}: {incident.id} {incident.reason}")
            else:
                why = self._wrong_evidence(film, fault, good, onsets[incident.id], incident)
                self.findings.wrong_evidence += [f"{place}: {incident.id} {text}" for text in why]

    def _check_log(self) -> None:
        found = self.findings
        found.recorded = len(self._incidents)
        found.resumed = sum(incident.across_restart for incident in self._incidents.values())
        found.unexpected = [
            f"{incident.id} {incident.source} {incident.condition} {incident.onset.name}"
            for incident in self._incidents.values()
            if incident.id not in self._matched
        ]
        named = {
            id_
            for directory in self._service.dirs.values()
            for content in sidecars(directory).values()
            for id_ in content["incident_ids"]
        }
        found.unrecorded = sorted(named - set(self._incidents))
        wanted = dict.fromkeys(((id_, kind) for id_ in self._incidents for kind in ("opened", "closed")), "stored")
        found.not_stored = [
            f"{place[0]}.{place[1]}: {self._evidence.get(place)}"
            for place in wanted.keys() | self._evidence.keys()
            if self._evidence.get(place) != wanted.get(place)
        ]

    # -- evidence -----------------------------------------------------------------------------------------------------

    def _wrong_evidence(self, film: Film, fault: Scene, good: Scene, onset: Onset, incident: Incident) -> list[str]:
        """What of an incident's evidence is not what was published."""
        confirmed = incident.confirmed.number if incident.confirmed else 0
        recovery = incident.recovery.number if incident.recovery else 0
        why = [] if recovery in film.recoveries(fault, good) else [f"recovered at {recovery}"]
        if not self._may_confirm(film, fault, onset, confirmed):
            why.append(f"confirmed at {confirmed}")
        numbers = [onset.last_good, onset.number, confirmed, recovery]
        wanted: dict[str, bytes] = {}
        for n, number in enumerate(numbers):
            if number:
                data = film.shot(number).data
                wanted |= {f"frame_{n}.jpg": data, f"thumb_{n}.jpg": detectors.thumbnail(data)}
        home = evidence_key(incident.condition, incident.host, incident.source, incident.id, "x")[:-2]
        files = all_files(self._state / "store" / home)
        told = json.loads(files.pop(INCIDENT_FILE, b"{}"))
        for name in sorted(wanted.keys() | files.keys()):
            if files.get(name) != wanted.get(name):
                why.append(f"{name} {'differs' if name in files and name in wanted else 'missing or too many'}")
        if (told.get("state"), sorted(told.get("evidence", ()))) != ("closed", sorted(wanted)):
            why.append(f"{INCIDENT_FILE} says {told.get('state')} with {sorted(told.get('evidence', ()))}")
        return why

    def _may_confirm(self, film: Film, fault: Scene, onset: Onset, number: int) -> bool:
        """Whether this is the first frame that is raise_s after the onset."""
        if not onset.number < number <= fault.last:
            return False
        begun_ns, raise_s = film.shot(onset.number).identity.mtime_ns, film.script.raise_s
        at_s, before_s = ((film.shot(n).identity.mtime_ns - begun_ns) / 1e9 for n in (number, number - 1))
        return at_s >= raise_s - CLOCK_S and before_s < raise_s + CLOCK_S

    # -- who was told -------------------------------------------------------------------------------------------------

    def _check_lines(self) -> None:
        for kind in ("opened", "closed"):
            lines = self._service.lines(f" incident {kind} ")
            told = Counter(re.findall(r" id=(\w+)", "\n".join(lines)))
            self.findings.lines_lost += len(self._incidents.keys() - told.keys())
            self.findings.lines_doubled += [f"{id_}.{kind}" for id_, times in told.items() if times > 1]

    def _check_posts(self, posts: list[Post]) -> None:
        """Every transition at least once, each time in the same words, the opening before the end."""
        bodies: dict[str, set[bytes]] = {}
        for post in posts:
            bodies.setdefault(post.headers["Idempotency-Key"], set()).add(post.body)
        wanted = [f"{id_}.{kind}" for id_ in self._incidents for kind in ("opened", "closed")]
        wrong = [f"{key} not told" for key in wanted if key not in bodies]
        wrong += [f"{key} told of nothing" for key in bodies if key not in wanted]
        wrong += [f"{key} in {len(words)} versions" for key, words in bodies.items() if len(words) > 1]
        order = list(bodies)
        for id_ in self._incidents:
            keys = [key for key in order if key.startswith(f"{id_}.")]
            if keys != sorted(keys, reverse=True):
                wrong.append(f"{id_} told in the order {keys}")
        self.findings.wrong_notices = wrong
        self.findings.posts_repeated = len(posts) - len(bodies)
