"""Storms of SIGKILL over a real service that is shown films whose every fault is known beforehand.

Half of the kills strike at any moment, the other half just after a frame on which something is to change: while a
transition is on its way from the worker through hold, log and spool to the store. Shared by the fault tests and the
measurements `child-kills` and `supervisor-kills`.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Protocol

import psutil

from pipeline.board import ChildRow
from pipeline.hold import HOLD_DIR
from pipeline.model import State
from pipeline.spool import SPOOL_DIR
from tests.audit import Audit, Findings
from tests.live import child_row, ended, is_gone, total
from tests.scenes import HOST, Film, Script
from tests.support import Rig, sidecars, wait_until
from tests.uploads import Post, receiver

PACES = {"a": 5.0, "b": 6.0, "c": 8.0, "d": 10.0}  # frames/s of each source
WORKERS = 2
KILL_EVERY_S = 1.0
REST_S = 0.3  # at least so long after its last kill a child is killed again: after an aimed one the next would be close
AIMED = 0.5  # the share of kills that wait for a frame on which something is to change
REACH_S = {"watcher": 0.004, "worker/0": 0.0015, "worker/1": 0.0015, "uploader": 0.05, "supervisor": 0.05}
"""How long after such a frame an aimed kill comes, at most (a worker's: after it has the frame in hand): as long as the
child is busy with what that has led to. As often in the first tenth of this time as in the rest."""

HAND_S = 0.1  # within which a frame is in hand, unless the machine is busy with others
GONE_S = 20.0  # within which all children of a killed supervisor must have ended
LIFE_S = (2.0, 4.0)  # of a supervisor, from READY on
STARTUP_FRAMES = 1000  # whatever a killed service had not judged, the next one must
SETTLE_S = 60.0
CHILD_SCRIPT = Script(good_s=(1.4, 2.2), fault_s=(2.2, 3.0), raise_s=0.8, clear_s=0.4)
SUPERVISOR_SCRIPT = Script(good_s=(2.2, 2.6), fault_s=(2.8, 3.4), raise_s=0.5, clear_s=0.3)
"""Longer: a service that begins in the middle of a scene must still see enough of it, or its predecessor has."""


class FilmRig(Rig):
    """A service whose sources stand in its configuration file."""

    @property
    def command(self) -> list[str]:
        return [part for part in super().command if not part.startswith("--source=")]


@dataclass
class Stage:
    """A service, the films it is shown, and what its webhook was told."""

    service: FilmRig
    state: Path
    films: list[Film]
    posts: list[Post]
    chance: random.Random


@contextmanager
def stage(base: Path, state: Path, script: Script, seed: int) -> Iterator[Stage]:
    """A service that is READY, over sources without a frame."""
    chance = random.Random(seed)
    config = base / "stillwatch.toml"
    service = FilmRig(base, f"--config={config}", f"--state-dir={state}", sources=tuple(PACES))
    with receiver() as (port, posts, _):
        config.write_text(
            f'host = "{HOST}"\nworkers = {WORKERS}\nstartup_frames = {STARTUP_FRAMES}\n'
            "overload_lag_s = 600\nmin_free_bytes = 0\n"
            f'webhook_url = "http://127.0.0.1:{port}/"\n'
            + "".join(f'[[source]]\nname = "{n}"\ndir = "{d}"\n{script.settings}' for n, d in service.dirs.items())
        )
        with service:
            films = [Film(name, service.dirs[name], fps, script, chance) for name, fps in PACES.items()]
            yield Stage(service, state, films, posts, chance)


class Alarm(Protocol):
    """Something that is to happen between frames."""

    @property
    def due(self) -> float:
        """When, monotonic."""

    def ring(self) -> bool:
        """It is due; whether the show is over."""

    def notice(self, film: Film) -> None:
        """A frame was published on which something is to change."""


def show(films: list[Film], alarm: Alarm) -> None:
    """Publish every film at its own pace, until the alarm ends the show or all films are done."""
    for n, film in enumerate(films):
        film.due = time.monotonic() + n / len(films) / film.fps
    while active := [film for film in films if not film.done]:
        film = min(active, key=lambda film: film.due)
        time.sleep(max(0.0, min(film.due, alarm.due) - time.monotonic()))
        if alarm.due <= film.due:
            if alarm.ring():
                return
        elif film.publish():
            alarm.notice(film)


@dataclass
class Aim:
    """When one process is to be killed next: half of the times just after a frame that changes something."""

    chance: random.Random
    reach_s: float
    next_s: float  # monotonic
    due: float = inf
    aimed: bool = False
    delay_s: float = 0.0  # of an aimed kill

    def __post_init__(self) -> None:
        self.draw()

    def draw(self) -> None:
        """Choose between any moment and a good one."""
        self.due, self._waits = self.next_s, False
        self.aimed = self.chance.random() < AIMED
        self.delay_s = self.reach_s * 10 ** self.chance.uniform(-2, 0)

    def ripe(self) -> bool:
        """It is due: whether to strike now, or to wait for a frame."""
        if self.aimed and not self._waits:
            self.due, self._waits = inf, True
            return False
        return True

    def notice(self, delay_s: float | None = None) -> None:
        """That frame has come."""
        if self._waits and self.due == inf:
            self.due = time.monotonic() + (self.delay_s if delay_s is None else delay_s)


class Victim:
    """A child that is killed again and again."""

    def __init__(self, name: str, stage: Stage, begin: float) -> None:
        self.name = name
        self.row: ChildRow = child_row(stage.service, name)
        self.works = name.startswith("worker/")
        sources = list(PACES)
        self.sources = sources[int(name[-1]) :: WORKERS] if self.works else sources
        self.aim = Aim(stage.chance, REACH_S[name], begin)
        self.pid = 0  # killed last
        self.kills = self.at_work = self.starting = 0

    def strike(self) -> None:
        """Kill it, if it is there; else try again soon."""
        if self.aim.aimed and self.works:
            self._await_work()
        pid, state, busy = int(self.row.pid), self.row.state, self.row.busy_since_ns > 0
        if pid in (0, self.pid):
            self.aim.due = time.monotonic() + 0.01
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.kills += 1
            self.at_work += busy
            self.starting += state == State.STARTING
        self.pid = pid
        self.aim.next_s = max(self.aim.next_s + KILL_EVERY_S, time.monotonic() + REST_S)
        self.aim.draw()

    def notice(self, film: Film) -> None:
        """A frame was published on which something is to change."""
        if film.name in self.sources and self.row.state == State.RUNNING:
            self.aim.notice(0.0 if self.works else None)

    def _await_work(self) -> None:
        """Wait until it has that frame in hand, and then some; not for long, for other frames are due."""
        patience = time.monotonic() + HAND_S
        while not self.row.busy_since_ns and time.monotonic() < patience:
            time.sleep(0.00005)
        time.sleep(self.aim.delay_s)

    @property
    def whole(self) -> bool:
        """Whether it runs again."""
        return self.row.state == State.RUNNING and self.row.pid not in (0, self.pid)


class ChildKills:
    """Kills every child once a second, one after the other, for so long; and then until each had half as many kills as
    seconds, for on a busy machine they are long in coming back."""

    def __init__(self, stage: Stage, seconds: float) -> None:
        self._films, self._least, self._until = stage.films, seconds / 2, time.monotonic() + seconds
        names = ["watcher", *(f"worker/{n}" for n in range(WORKERS)), "uploader"]
        begin = time.monotonic() + KILL_EVERY_S
        step_s = KILL_EVERY_S / len(names)
        self.victims = [Victim(name, stage, begin + n * step_s) for n, name in enumerate(names)]

    @property
    def due(self) -> float:
        return min(victim.aim.due for victim in self.victims)

    def ring(self) -> bool:
        victim = min(self.victims, key=lambda victim: victim.aim.due)
        if victim.aim.ripe():
            victim.strike()
        if time.monotonic() >= self._until and min(victim.kills for victim in self.victims) >= self._least:
            for film in self._films:
                film.ends = min(film.ends, time.monotonic())
        return False

    def notice(self, film: Film) -> None:
        for victim in self.victims:
            victim.notice(film)


class SupervisorKill:
    """Kills the supervisor once, while an incident is open."""

    def __init__(self, stage: Stage) -> None:
        self._service, self._films = stage.service, stage.films
        self.aim = Aim(stage.chance, REACH_S["supervisor"], time.monotonic() + stage.chance.uniform(*LIFE_S))

    @property
    def due(self) -> float:
        return self.aim.due

    def ring(self) -> bool:
        if not any(film.is_open for film in self._films):
            self.aim.due = time.monotonic() + 0.05
            return False
        if not self.aim.ripe():
            return False
        assert self._service.process
        self._service.process.kill()
        return True

    def notice(self, film: Film) -> None:
        self.aim.notice()


class Peace:
    """Nothing happens."""

    @property
    def due(self) -> float:
        return inf

    def ring(self) -> bool:
        return False

    def notice(self, film: Film) -> None:
        pass


@dataclass
class Outcome:
    """What a storm did, and what was found after it."""

    seed: int
    frames: int
    judged: int  # frames whose sidecar has verdicts
    left: list[str]  # files that should have gone
    findings: Findings
    kills: dict[str, int]
    deaths: dict[str, int]  # by them, as the log tells
    extra: dict[str, object]

    def counts(self) -> dict[str, object]:
        """For a measurement's JSON."""
        numbers = {"seed": self.seed, "frames": self.frames, "judged": self.judged, "kills": self.kills}
        return {**numbers, **self.extra, **self.findings.counts(), "left": self.left, "books": "balanced"}


def child_storm(base: Path, state: Path, seconds: float, seed: int) -> Outcome:
    """Kill every child of a service once a second for `seconds` and more, until the scenes then running end. Frames
    and hold lie in `base`, log, spool and store in `state`."""
    with stage(base, state, CHILD_SCRIPT, seed) as on:
        begin, storm = time.monotonic(), ChildKills(on, seconds)
        show(on.films, storm)
        took_s = time.monotonic() - begin
        wait_until(lambda: all(victim.whole for victim in storm.victims), 20, "all children run again")
        settle(on)
        duplicates = total(on.service, "duplicates")
        books = on.service.books()
        assert sum(account["judged"] for account in books.values()) == sum(len(film.shots) for film in on.films)
    kills = {victim.name: victim.kills for victim in storm.victims}
    at_work = {victim.name: victim.at_work for victim in storm.victims if victim.works}
    starting = sum(victim.starting for victim in storm.victims)
    extra = {"seconds": round(took_s, 1), "at_work": at_work, "starting": starting, "judged_again": duplicates}
    died = [line for line in on.service.lines(" child died ") if " exit=SIGKILL" in line]
    return _outcome(on, seed, kills, {name: sum(f" child={name} " in line for line in died) for name in kills}, extra)


def supervisor_storm(base: Path, state: Path, kills: int, seed: int) -> Outcome:
    """Kill the supervisor `kills` times, each some seconds after READY, and start it again over the same state. Frames
    are published only while a service is READY; what it had not judged when it was killed, the next one must."""
    gone_s, waiting, shared = list[float](), 0, set[str]()
    with stage(base, state, SUPERVISOR_SCRIPT, seed) as on:
        for n in range(kills):
            tree = on.service.tree()
            shared |= _shared_memory(tree, base)
            with ended(tree[1:]):
                show(on.films, SupervisorKill(on))
                gone_s.append(await_end(on.service, tree))
            for film in on.films:
                film.begins.append(_first_unjudged(film, on.service.dirs[film.name]))
                waiting = max(waiting, len(film.shots) + 1 - film.begins[-1])
            on.service.start()
            on.service.wait_ready(times=n + 2)
        for film in on.films:
            film.ends = time.monotonic()
        show(on.films, Peace())
        settle(on)
        on.service.books()
    extra = {
        "gone_s_max": round(max(gone_s), 3),
        "unjudged_at_kill_max": waiting,
        "left_in_shm": sorted(path for path in shared if os.path.exists(path)),
    }
    starts = on.service.log.count(" ready sources=")
    return _outcome(on, seed, {"supervisor": kills}, {"supervisor": starts - 1}, extra)


def await_end(service: Rig, tree: list[psutil.Process]) -> float:
    """Seconds until a killed supervisor and its children have ended."""
    assert service.process
    begin = time.monotonic()
    wait_until(lambda: all(is_gone(process.pid) for process in tree[1:]), GONE_S, "the children's end")
    took_s = time.monotonic() - begin
    assert service.process.wait(GONE_S) == -signal.SIGKILL
    return took_s


def _first_unjudged(film: Film, directory: Path) -> int:
    """The first frame without a sidecar, which may not be published yet: with it the next service begins."""
    judged = sidecars(directory)
    return next(number for number in range(1, len(film.shots) + 2) if number not in judged)


def _shared_memory(tree: list[psutil.Process], base: Path) -> set[str]:
    """Named shared memory that these processes have mapped or open."""
    found = set()
    for process in tree:
        with suppress(OSError):
            found |= {line.split()[-1] for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines()}
            found |= {os.readlink(entry.path) for entry in os.scandir(f"/proc/{process.pid}/fd")}
    return {path for path in found if path.startswith("/dev/shm/") and not path.startswith(str(base))}


def settle(on: Stage) -> None:
    """Wait until every frame of the films has its sidecar, and all that is held is stored and told."""
    for film in on.films:
        on.service.wait_sidecars(len(film.shots), film.name, SETTLE_S)
    hold, spool = on.service.base / "run" / HOLD_DIR, on.state / SPOOL_DIR
    wait_until(lambda: not _visible(hold) and not _visible(spool), SETTLE_S, "all is stored and told")


def _visible(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if not name.startswith(".")]


def _outcome(on: Stage, seed: int, kills: dict[str, int], deaths: dict[str, int], extra: dict[str, object]) -> Outcome:
    """Look at everything, once the service has stopped."""
    found = [content for directory in on.service.dirs.values() for content in sidecars(directory).values()]
    return Outcome(
        seed,
        sum(len(film.shots) for film in on.films),
        sum(content["analyzed"] and "error" not in content for content in found),
        _left(on),
        Audit(on.service, on.state, on.films, on.posts).findings,
        kills,
        deaths,
        extra,
    )


def _left(on: Stage) -> list[str]:
    """What lies in hold, spool and the store's scratch directory, where nothing should."""
    hold = on.service.base / "run" / HOLD_DIR
    folders = (hold, hold / ".runs", on.state / SPOOL_DIR, on.state / "store" / ".tmp")
    return [f"{folder.name}/{name}" for folder in folders for name in os.listdir(folder) if name != ".runs"]
