"""Sources whose every fault is known beforehand: films of good, black and frozen scenes, and what must come of them.

A `Film` publishes one source's frames at its own pace. Every frame has bytes of its own (a comment in the JPEG), so
that a piece of evidence tells which frame it is, and its identity is noted, so that the id of the incident is known
before anybody has judged it. `audit.py` compares that with what a service has recorded, stored and told.

A service that is started anew judges without what its predecessor remembered: a run that was not an incident yet begins
again with the first frame that the new one judges. `begins` has the number of that frame for every start; the first and
last frames that may follow from it are worked out here, from the pictures alone.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, inf
from pathlib import Path
from typing import NamedTuple

from pipeline.frames import identity_of
from pipeline.incidents import LEAST_HOLE_S, incident_id
from pipeline.model import FrameId
from tests.support import make_frame, plain_frame, publish

HOST = "rig1"
BLACK_LEVEL = 16
GOOD_PICTURES, STILL_PICTURES = 50, 40
PREDECESSORS = 3
"""Frames before it that a frame must be like to be frozen: the fourth of a still scene is the first frozen one."""


@dataclass(frozen=True)
class Script:
    """How long scenes last (seconds, from-to) and when a fault counts. Whoever kills the service must leave every fault
    scene one stretch under one service of more than raise_s, every good one such a stretch of more than clear_s."""

    good_s: tuple[float, float]
    fault_s: tuple[float, float]
    raise_s: float
    clear_s: float

    @property
    def settings(self) -> str:
        """The same as settings of a source, which may be silent for as long as it likes."""
        rule = f"{{ raise_s = {self.raise_s}, clear_s = {self.clear_s} }}"
        return f"stall_s = 3600.0\nrules = {{ black = {rule}, freeze = {rule} }}\n"


class Shot(NamedTuple):
    """One published frame."""

    identity: FrameId
    data: bytes


class Scene(NamedTuple):
    """Frames `first` to `last` of a source. `condition` is empty where all is well."""

    condition: str
    first: int
    last: int
    still: int  # picture of a frozen scene


class Onset(NamedTuple):
    """A way in which a fault scene may become an incident."""

    id: str
    number: int  # of its first bad frame
    last_good: int | None  # the frame before it, if the service that judged it had seen that


class Film:
    """One source: publishes frame after frame, and knows what must come of it."""

    def __init__(self, name: str, directory: Path, fps: float, script: Script, chance: random.Random) -> None:
        self.name, self.fps, self.script = name, fps, script
        self.scenes: list[Scene] = []
        self.shots: list[Shot] = []  # number 1 first
        self.begins = [1]  # the first frame that each service judged
        self.due = 0.0  # monotonic: the next frame
        self.ends = inf  # monotonic: no new fault begins after it
        self.done = False
        self._dir, self._chance = directory, chance
        self._cut()

    # -- publishing -------------------------------------------------------------------------------------------------

    def publish(self) -> bool:
        """Publish the next frame; whether something is to change on it: a run begins, an incident opens or closes."""
        scene, number = self.scenes[-1], len(self.shots) + 1
        data = labelled(self._picture(scene, number), f"{self.name} {number}")
        path = publish(self._dir, number, data)
        self.shots.append(Shot(identity_of(path.stat()), data))
        self.due = time.monotonic() + 1 / self.fps  # never two at once to catch up: that would shorten a scene
        changes = self._changes(scene, number)
        if number == scene.last:
            self._cut()
        return changes

    @property
    def is_open(self) -> bool:
        """Whether a fault has lasted long enough for an incident, as far as this side can know."""
        scene = self.scenes[-1]
        begun = scene.first + _lead(scene.condition)
        return bool(scene.condition) and begun < len(self.shots) and self._since_s(begun) > self.script.raise_s + 0.2

    def _picture(self, scene: Scene, number: int) -> bytes:
        if scene.condition == "black":
            return plain_frame(BLACK_LEVEL)
        return make_frame(scene.still if scene.condition else number % GOOD_PICTURES)

    def _cut(self) -> None:
        """Begin the next scene: good and fault in turn, and a good one last."""
        was_good = bool(self.scenes) and not self.scenes[-1].condition
        if was_good and time.monotonic() >= self.ends:
            self.done = True
            return
        condition = self._chance.choice(("black", "freeze")) if was_good else ""
        length_s = self._chance.uniform(*(self.script.fault_s if condition else self.script.good_s))
        first, still = len(self.shots) + 1, GOOD_PICTURES + len(self.scenes) % STILL_PICTURES
        self.scenes.append(Scene(condition, first, first + ceil(length_s * self.fps) - 1, still))

    def _changes(self, scene: Scene, number: int) -> bool:
        begun = scene.first + _lead(scene.condition)
        if number <= begun + 1:
            return number == begun + 1
        limit_s = self.script.raise_s if scene.condition else self.script.clear_s
        return self._since_s(begun, number - 1) < limit_s <= self._since_s(begun, number)

    def _since_s(self, number: int, until: int = 0) -> float:
        """Seconds from one frame to another (the newest)."""
        return (self.shot(until or len(self.shots)).identity.mtime_ns - self.shot(number).identity.mtime_ns) / 1e9

    # -- what must come of it -----------------------------------------------------------------------------------------

    def shot(self, number: int) -> Shot:
        """A published frame."""
        return self.shots[number - 1]

    def faults(self) -> list[tuple[Scene, Scene]]:
        """Every fault scene, and the good one after it."""
        return [(fault, good) for fault, good in pairwise(self.scenes) if fault.condition]

    def onsets(self, fault: Scene) -> list[Onset]:
        """The incidents of which a fault scene must make exactly one: one only, if no service began within it."""
        lead, found = _lead(fault.condition), []
        for begin, end in self._services():
            seen = max(fault.first, begin)
            number = seen + lead
            if seen <= fault.last and number <= min(fault.last, end):
                id_ = incident_id(HOST, self.name, fault.condition, self.shot(number).identity)
                found.append(Onset(id_, number, number - 1 if seen > begin else None))
                found += self._after_holes(fault, number, min(fault.last, end))
        return found

    def _after_holes(self, fault: Scene, onset: int, last: int) -> Iterator[Onset]:
        """What is frozen or black when a start has taken longer than a run is believed to go on begins anew."""
        for number in range(onset + 1, last + 1):
            times = [self.shot(n).identity.mtime_ns for n in (number - 1, number)]
            if len(self.begins) > 1 and times[1] - times[0] > LEAST_HOLE_S * 1e9:
                yield Onset(incident_id(HOST, self.name, fault.condition, self.shot(number).identity), number, None)

    def recoveries(self, fault: Scene, good: Scene) -> list[int]:
        """The frames that may be the first good one after a fault: one only, if no service began near it."""
        lead = _lead(fault.condition)  # so many frames must be remembered before one can be called unlike them
        firsts = ((max(good.first, begin + lead), end) for begin, end in self._services())
        return sorted({first for first, end in firsts if first <= min(good.last, end)})

    def _services(self) -> list[tuple[int, int]]:
        """The first and the last frame that each service judged."""
        return list(zip(self.begins, [*(begin - 1 for begin in self.begins[1:]), len(self.shots)], strict=True))


def labelled(data: bytes, text: str) -> bytes:
    """A JPEG with a comment: other bytes, the same picture."""
    comment = text.encode()
    return data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2) + comment + data[2:]


def _lead(condition: str) -> int:
    """Frames of a scene before the first that can be judged bad (or, after it, good)."""
    return PREDECESSORS if condition == "freeze" else 0
