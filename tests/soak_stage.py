"""What the soak shows a service and does to it: sources that follow a script, kills, and faults by a seed.

Whoever publishes here deletes nothing but by a fault: the frames are given to the service to delete, so that its
capture child runs as well. Every fault is counted when it has happened, not when it was meant to.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count, groupby
from operator import itemgetter
from pathlib import Path

import psutil

from pipeline import sidecar
from pipeline.board import Board, ChildRow
from pipeline.incidents import LEAST_HOLE_S
from pipeline.model import State
from tests.live import stopped
from tests.machine import filled
from tests.support import frame_name, make_frame, plain_frame, publish

FPS = 5.0
GOOD_S, FAULT_S = (6.0, 10.0), (6.0, 9.0)  # how long a scene lasts, from-to
RAISE_S, CLEAR_S = 2.0, 1.0
BLACK_LEVEL = 16
GOOD_PICTURES, STILL_PICTURES = 50, 40
BURST = 100  # frames at once
STRIKES_S = (3.0, 50.0)  # of a minute: what lasts is over before its end, when the books are looked at
NEAR_NS = 5_000_000_000  # a fault so shortly before a scene may have to do with it
HOLE_S = LEAST_HOLE_S / 2  # the service may count more between two frames than their publisher
DISTURBED_S = 1.0  # after a fault that takes frames, one of those before it may be the newest good one
STOPPED_S, FULL_S = (0.5, 2.5), 1.0
DECK = {"damaged": 4, "vanished": 4, "burst": 2, "numbering restart": 1, "process stopped": 2, "memory full": 1}
"""Faults of one minute, at random moments of it and on random sources."""

NO_PICTURE, PNG_BEGIN = b"<html>no picture</html>", b"\x89PNG\r\n\x1a\n"  # damaged in other ways than cut off

VICTIMS = ("watcher", "worker/0", "uploader", "capture")
"""Killed once a minute. The second worker is not: a leak of few bytes per frame shows in a long life only."""


@dataclass
class Scene:
    """What a source shows for a while. `condition` is empty where all is well."""

    condition: str
    picture: bytes  # of every frame of a black or frozen scene
    begun_ns: int  # wall clock, as file times
    ended_ns: int = 0
    disturbed: bool = False  # a fault may have taken evidence of it
    verdicts: str = ""  # on its frames, as their sidecars said before they were deleted


class Reel:
    """One source: publishes frame after frame, good and bad scenes in turn, and notes what is done to it."""

    def __init__(self, name: str, directory: Path, chance: random.Random) -> None:
        self.name, self.dir = name, directory
        self.scenes: list[Scene] = []
        self.due = 0.0  # monotonic: the next frame
        self.published = self.unlinked = self.refused = 0
        self.number = 0
        self.damage: bytes | None = None  # in place of the next frame
        self.vanishes = False  # the next frame goes before it can be read
        self.ending = False  # no new fault scene begins
        self._shown, self._turns_at, self._published_at, self._disturbed_at = 0, 0.0, 0.0, -DISTURBED_S
        self._chance = chance

    @property
    def done(self) -> bool:
        """Whether nothing of a fault scene can still be going on."""
        scene = self.scenes[-1]
        return self.ending and not scene.condition and time.time_ns() - scene.begun_ns > (CLEAR_S + 2) * 1e9

    def publish(self) -> None:
        """The next frame, as FFmpeg would; without space there is none."""
        self._bridge_hole()
        if time.monotonic() >= self._turns_at and not (self.ending and self.scenes and not self.scenes[-1].condition):
            self._turn()
        self._shown += 1
        data = self.damage or self.scenes[-1].picture or make_frame(self._shown % GOOD_PICTURES)
        if self.damage is not None:
            data, self.damage = self.damage, None
        try:
            path = publish(self.dir, self.number + 1, data)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self.refused += 1
            (self.dir / f"{frame_name(self.number + 1)}.tmp").unlink(missing_ok=True)
            return
        self.number += 1
        self.published += 1
        self._published_at = time.monotonic()
        if self.vanishes:
            path.unlink(missing_ok=True)
            self.unlinked, self.vanishes = self.unlinked + 1, False
            self.disturb()

    def _bridge_hole(self) -> None:
        """Where no frame came for long (the books were looked at, the machine was busy), the service begins anew with
        what it has not opened or closed yet: the scene goes on for as long as one must."""
        now = time.monotonic()
        if now - self._published_at > HOLE_S and self.scenes:
            self._turns_at = max(self._turns_at, now + (FAULT_S if self.scenes[-1].condition else GOOD_S)[0])
            self.disturb()

    def disturb(self) -> None:
        """Evidence of what is going on, has just ended or is about to begin may be missing."""
        self._disturbed_at = time.monotonic()
        for scene in self.scenes[-2:]:
            scene.disturbed = True

    def _turn(self) -> None:
        """Begin the next scene."""
        now_ns = time.time_ns()
        condition, picture = "", b""
        if self.scenes:
            self.scenes[-1].ended_ns = now_ns
            if not self.scenes[-1].condition:
                self.read_verdicts()
                condition = self._chance.choice(("black", "freeze"))
                still = GOOD_PICTURES + len(self.scenes) % STILL_PICTURES
                picture = plain_frame(BLACK_LEVEL) if condition == "black" else make_frame(still)
        disturbed = time.monotonic() - self._disturbed_at < DISTURBED_S  # the frame before it may have gone
        self.scenes.append(Scene(condition, picture, now_ns, disturbed=disturbed))
        self._turns_at = time.monotonic() + self._chance.uniform(*(FAULT_S if condition else GOOD_S))

    def read_verdicts(self) -> None:
        """What became of the frames of the last fault scene, which is over, while their sidecars are still there."""
        for scene in self.scenes[-2:-1]:
            found = [content for path in self.dir.glob("*.json") if (content := sidecar.read(str(path)))]
            ids = [(content.frame_id, content) for content in found if content.frame_id]
            mine = [(i.mtime_ns, c) for i, c in ids if scene.begun_ns <= i.mtime_ns <= scene.ended_ns]
            told = [_verdict(content, scene.condition) for _, content in sorted(mine, key=itemgetter(0))]
            scene.verdicts = " ".join(f"{len(list(run))} {verdict}," for verdict, run in groupby(told)).rstrip(",")


def _verdict(content: sidecar.Sidecar, condition: str) -> str:
    if not content.analyzed or content.error:
        return "not judged"
    if condition == "black":
        return {None: "unknown", False: "lit", True: "black"}[content.blackscreen]
    return content.freeze_kind or {None: "unknown", False: "moving", True: "standing"}[content.freeze]


class Trouble:
    """Everything that is done to a service: one minute's kills and faults are dealt at its beginning."""

    def __init__(
        self, board: Board, supervisor: int, reels: list[Reel], chance: random.Random, memory: Path | None
    ) -> None:
        """`memory`: the file system of frames and hold, if it is ours to fill."""
        self.rows: dict[str, ChildRow] = {row.name.decode(): row for row in board.children}
        self.kills, self.done = Counter[str](), Counter[str]()
        self.killed: dict[str, int] = {}  # the pid that was killed last
        self._struck: list[tuple[int, str]] = []  # wall clock, and what was done then
        self._supervisor, self._reels, self._chance, self._memory = supervisor, reels, chance, memory
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._lasting = contextlib.ExitStack()

    @property
    def due(self) -> float:
        """When something is to happen next, monotonic."""
        return self._heap[0][0] if self._heap else float("inf")

    def deal(self, begin: float) -> None:
        """Plan a minute that begins then."""
        names = [name for name in DECK if name != "memory full" or self._memory]
        actions = [self._drawn(name) for name in names for _ in range(DECK[name])]
        actions += [partial(self._kill, name) for name in VICTIMS]
        for action in actions:
            self._at(begin + self._chance.uniform(*STRIKES_S), action)

    def _drawn(self, fault: str) -> Callable[[], None]:
        """A fault, all of it that is left to chance drawn: what has happened until then changes nothing."""
        chance, reel, whole = self._chance, self._chance.choice(self._reels), make_frame(0)
        part = whole[: chance.randrange(3, len(whole) - 2)]
        drawn: dict[str, Callable[[], None]] = {
            "damaged": partial(self._damage, reel, chance.choice((NO_PICTURE, part, PNG_BEGIN))),
            "vanished": partial(self._take_away, reel),
            "burst": partial(self._burst, reel),
            "numbering restart": partial(self._restart_numbers, reel),
            "process stopped": partial(
                self._stop, chance.choice((*self.rows, "supervisor")), chance.uniform(*STOPPED_S)
            ),
            "memory full": self._fill,
        }
        return drawn[fault]

    def strike(self) -> None:
        """Do what is due."""
        heapq.heappop(self._heap)[2]()

    def between(self, begin_ns: int, end_ns: int) -> str:
        """What was done in this time (wall clock): `-0.4 s numbering restart b, ...`, seconds from its beginning."""
        mine = [(at_ns - begin_ns, what) for at_ns, what in self._struck if begin_ns - NEAR_NS <= at_ns <= end_ns]
        return ", ".join(f"{after_ns / 1e9:+.1f} s {what}" for after_ns, what in mine)

    def close(self) -> None:
        """End whatever lasts."""
        self._lasting.close()

    def whole(self) -> bool:
        """Whether every child runs, and none that was killed."""
        return all(
            row.state == State.RUNNING and row.pid not in (0, self.killed.get(name)) for name, row in self.rows.items()
        )

    def _note(self, fault: str, where: str = "") -> None:
        self.done[fault] += 1
        self._struck.append((time.time_ns(), f"{fault} {where}".rstrip()))

    def _at(self, due: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (due, next(self._order), action))

    def _kill(self, name: str) -> None:
        row = self.rows[name]
        pid = int(row.pid)
        if row.state != State.RUNNING or pid in (0, self.killed.get(name)):
            self._at(time.monotonic() + 0.2, partial(self._kill, name))
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.kills[name] += 1
            self.killed[name] = pid
            self._struck.append((time.time_ns(), f"kill of {name}"))

    def _damage(self, reel: Reel, data: bytes) -> None:
        reel.damage = data
        self._note("damaged", reel.name)

    def _take_away(self, reel: Reel) -> None:
        reel.vanishes = True
        self._note("vanished", reel.name)

    def _burst(self, reel: Reel) -> None:
        for _ in range(BURST):
            reel.publish()
        self._note("burst", reel.name)

    def _restart_numbers(self, reel: Reel) -> None:
        reel.number = 0
        self._note("numbering restart", reel.name)

    def _stop(self, name: str, lasts_s: float) -> None:
        pid = self._supervisor if name == "supervisor" else int(self.rows[name].pid)
        pause = contextlib.ExitStack()
        try:
            if pid:
                pause.enter_context(stopped(pid))
        except (psutil.Error, OSError, AssertionError):
            pid = 0
        if not pid:  # it has just been killed
            self._at(time.monotonic() + 0.2, partial(self._stop, name, lasts_s))
            return
        self._lasting.push(pause)
        self._note("process stopped", name)
        self._at(time.monotonic() + lasts_s, pause.close)

    def _fill(self) -> None:
        assert self._memory
        full = contextlib.ExitStack()
        full.enter_context(filled(self._memory))
        self._lasting.push(full)
        self._note("memory full")
        self._disturb_all()
        self._at(time.monotonic() + FULL_S, partial(self._free, full))

    def _free(self, full: contextlib.ExitStack) -> None:
        full.close()
        self._disturb_all()

    def _disturb_all(self) -> None:
        for reel in self._reels:
            reel.disturb()
