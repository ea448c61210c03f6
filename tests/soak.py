"""Soak: the real service for hours, under random faults, each of its processes killed once a minute.

    python -m tests.soak --minutes 120          CI runs --minutes 3

Four sources at 5 frames/s and bursts show good, black and frozen scenes in turn. Every minute all is held still for a
moment: the books must balance, and the service must have seen every frame that was published and not deleted before it
could look. At the end every black or frozen scene must be one incident of the log, closed, with its evidence in the
store; nothing else may be there; memory and descriptors must not have grown. Prints a page, writes a PNG (where
matplotlib is), and ends with 1 if anything was not so.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline import incidentlog
from pipeline.console import print_table, progress, say
from pipeline.hold import HOLD_DIR
from pipeline.incidents import Incident
from pipeline.ring import Ring
from pipeline.spool import SPOOL_DIR, Spool
from pipeline.store import evidence_key
from tests.audit import recorded
from tests.live import board_of, ring_of
from tests.machine import FaultRig, tmpfs
from tests.soak_measure import Gauge, Minute, plot
from tests.soak_stage import CLEAR_S, DECK, FPS, RAISE_S, VICTIMS, Reel, Scene, Trouble
from tests.support import wait_until

SOURCES = ("a", "b", "c", "d")
HOST = "soak"
MEMORY = "size=64m"
MINUTE_S = 60.0
LOOK_EVERY_S = 5.0
QUIET_S = 30.0  # until all that was published is judged, all evidence is stored, and every child runs
CLOCK_NS = 100_000_000  # a file's time is the kernel's last tick
LONG_LIVED = ("supervisor", "worker/1")
COMPARED_PCT = 10  # of the scenes at least nothing may have disturbed, or nothing is shown of evidence


class Soak:
    """One run over a service that is READY."""

    def __init__(self, rig: FaultRig, ring: Ring, seed: int, memory: Path | None) -> None:
        assert rig.process
        self.rig, self.ring, self.memory = rig, ring, memory
        self.board = board_of(rig)
        self.lanes = {row.name.decode(): lane for lane, row in self.board.sources}
        # Each its own chance: what one draws does not depend on when another did.
        self.reels = [Reel(name, path, random.Random(f"{seed}/{name}")) for name, path in rig.dirs.items()]
        self.trouble = Trouble(self.board, rig.process.pid, self.reels, random.Random(f"{seed}/trouble"), memory)
        self.gauge = Gauge()
        self.minutes: list[Minute] = []
        self.failures: list[str] = []
        self.deaths = Counter[str]()
        self.incidents = self.scenes = self.undisturbed = 0

    def run(self, minutes: float) -> None:
        """Publish, strike and look for so long."""
        with progress() as bar:
            task = bar.add_task("soak", total=round(minutes * MINUTE_S))
            end = time.monotonic() + minutes * MINUTE_S
            while (begin := time.monotonic()) < end:
                self.trouble.deal(begin)
                self._show(begin + MINUTE_S)
                bar.update(task, completed=round(self.gauge.now_s))
                self._close_minute()
        for reel in self.reels:
            reel.ending = True
        self._show(float("inf"))
        for reel in self.reels:
            reel.read_verdicts()
        self._await_quiet("at the end")

    def _show(self, until: float) -> None:
        """Publish every source at its pace, strike when it is time, look at the processes now and then."""
        begin = time.monotonic()
        look_due = begin
        for n, reel in enumerate(self.reels):
            reel.due = begin + n / len(self.reels) / FPS
        while (now := time.monotonic()) < until and not all(reel.scenes and reel.done for reel in self.reels):
            reel = min(self.reels, key=lambda reel: reel.due)
            due = min(reel.due, look_due, self.trouble.due)
            time.sleep(max(0.0, due - now))
            if due == reel.due:
                reel.publish()
                reel.due = max(reel.due + 1 / FPS, time.monotonic())
            elif due == look_due:
                self.gauge.look(self._pids())
                look_due += LOOK_EVERY_S
            else:
                self.trouble.strike()

    def _pids(self) -> dict[str, int]:
        assert self.rig.process
        children = {name: int(row.pid) for name, row in self.trouble.rows.items() if row.pid}
        return {"supervisor": self.rig.process.pid, **children}

    # -- every minute -------------------------------------------------------------------------------------------------

    def _close_minute(self) -> None:
        self._await_quiet(f"minute {len(self.minutes) + 1}")
        self.gauge.look(self._pids(), quiet=True)
        minute = self._count()
        self.minutes.append(minute)
        if not sys.stderr.isatty():
            memory = " ".join(f"{s.name}={s.uss_mb:.1f}/{s.descriptors}" for s in self.gauge.quiet[-6:])
            say(
                f"minute {len(self.minutes)}: published={minute.published} judged={minute.judged} "
                f"invalid={minute.invalid} vanished={minute.vanished} unseen={minute.unseen} "
                f"incidents={minute.incidents}; USS MB/descriptors {memory}"
            )

    def _await_quiet(self, when: str) -> None:
        try:
            wait_until(self._is_quiet, QUIET_S, "every child runs and has done its work")
        except AssertionError as error:
            self.failures.append(f"{when}: {error}: {self._undone()}")

    def _is_quiet(self) -> bool:
        return self.trouble.whole() and not self._undone()

    def _undone(self) -> list[str]:
        """What is not as it should be once all is done: the books, and evidence that is not in the store yet."""
        hold, spool = self.rig.base / "run" / HOLD_DIR, Spool(str(self.state / SPOOL_DIR))
        waiting = len(list(hold.glob("[!.]*"))) + len(spool.jobs())
        return self._unaccounted() + ([f"{waiting} pieces of evidence wait"] if waiting else [])

    def _unaccounted(self) -> list[str]:
        """Sources whose books do not balance: with themselves, or with what was published. A frame that was deleted
        before the watcher looked has not been seen; one that has no sidecar is seen again by a new watcher."""
        wrong = []
        for reel in self.reels:
            lane = self.lanes[reel.name]
            books, row = self.ring.lanes[lane].books(), self.board.memory.sources[lane]
            unseen = reel.published - books.published
            lost = not -row.sidecar_failures <= unseen <= reel.unlinked + row.frames_evicted
            if books.in_flight or not books.balanced or lost:
                wrong.append(f"{reel.name}: published {reel.published}, deleted {reel.unlinked}, {books}")
        return wrong

    def _count(self) -> Minute:
        books = [self.ring.lanes[lane].books() for lane in self.lanes.values()]
        rows = [row for _, row in self.board.sources]
        sums = {key: sum(getattr(b, key) for b in books) for key in ("judged", "invalid", "skipped", "vanished")}
        published, seen = sum(reel.published for reel in self.reels), sum(b.published for b in books)
        used = os.statvfs(self.rig.base)
        return Minute(
            at_s=self.gauge.now_s,
            published=published,
            seen=seen,
            **sums,
            in_flight=sum(b.in_flight for b in books),
            unseen=published - seen,
            incidents=sum(row.incidents for row in rows),
            max_lag_ms=max(row.max_lag_ns for row in rows) / 1e6,
            memory_used_mb=(used.f_blocks - used.f_bfree) * used.f_frsize / 2**20,
        )

    @property
    def state(self) -> Path:
        """The state directory."""
        return self.rig.log_path.parent / "state"

    # -- at the end ---------------------------------------------------------------------------------------------------

    def audit(self) -> None:
        """After the stop: what was asked for has happened, and every scene is an incident."""
        self._audit_faults()
        self._audit_incidents()
        trends = self.gauge.trends(LONG_LIVED, VICTIMS, self.incidents)
        self.failures += [f"{t.name}: {t.what} grew by {t.growth:.2f}" for t in trends if not t.flat]

    def _audit_faults(self) -> None:
        died = [line for line in self.rig.lines(" child died ") if " exit=SIGKILL" in line]
        self.deaths = Counter({name: sum(f" child={name} " in line for line in died) for name in VICTIMS})
        for name in VICTIMS:
            if not self.trouble.kills[name] or self.deaths[name] < self.trouble.kills[name]:
                self.failures.append(f"{name} was killed {self.trouble.kills[name]} times, died {self.deaths[name]}")
        rows = [row for _, row in self.board.sources]
        proofs = {
            "damaged": sum(row.invalid for row in rows),
            "vanished": sum(row.vanished for row in rows) + max(0, self.minutes[-1].unseen),
            "numbering restart": sum(row.numbering_restarts for row in rows),
            "memory full": sum(row.frames_evicted + row.sidecar_failures for row in rows) + self._refused,
        }
        missing = [name for name, number in proofs.items() if self.trouble.done[name] and not number]
        missing += [name for name in DECK if not self.trouble.done[name] and (name != "memory full" or self.memory)]
        self.failures += [f"fault that did not happen: {name}" for name in missing]

    @property
    def _refused(self) -> int:
        return sum(reel.refused for reel in self.reels)

    def _audit_incidents(self) -> None:
        found = recorded(self.state)
        self.incidents = len(found)
        with contextlib.closing(incidentlog.connect_for_reading(str(self.state))) as db:
            stored = set(db.execute("SELECT incident, kind FROM transitions WHERE evidence = 'stored'").fetchall())
        left = {incident.id: incident for incident in found}
        for reel in self.reels:
            for scene in reel.scenes:
                if scene.condition:
                    self._audit_scene(reel, scene, left, {(row[0], row[1]) for row in stored})
        if 100 * self.undisturbed < COMPARED_PCT * self.scenes:
            self.failures.append(f"evidence was compared of {self.undisturbed} of {self.scenes} scenes only")
        self.failures += [
            f"incident of no scene: {i.source} {i.condition} {i.onset.name} {i.id}" for i in left.values()
        ]

    def _audit_scene(self, reel: Reel, scene: Scene, left: dict[str, Incident], stored: set[tuple[str, str]]) -> None:
        begin, end = scene.begun_ns - CLOCK_NS, scene.ended_ns
        mine = [
            incident
            for incident in left.values()
            if (incident.source, incident.condition) == (reel.name, scene.condition)
            and begin <= incident.onset.wall_ns <= end
        ]
        self.scenes += 1
        self.undisturbed += not scene.disturbed
        wrong = [f"{len(mine)} incidents instead of one"] if len(mine) != 1 else []
        for incident in mine:
            del left[incident.id]
            if incident.reason != "recovered":
                wrong.append(f"{incident.id} ended as {incident.reason!r}")
            wrong += [
                f"{incident.id}.{kind} is not stored"
                for kind in ("opened", "closed")
                if (incident.id, kind) not in stored
            ]
            if not scene.disturbed:
                wrong += self._wrong_pictures(scene, incident)
        if wrong:
            place = f"{reel.name} {scene.condition} {time.strftime('%H:%M:%S', time.gmtime(scene.begun_ns / 1e9))}"
            struck = self.trouble.between(scene.begun_ns, scene.ended_ns)
            self.failures.append(f"{place}: {'; '.join(wrong)}; frames: {scene.verdicts}; faults: {struck}")

    def _wrong_pictures(self, scene: Scene, incident: Incident) -> list[str]:
        """Onset and confirming frame are the scene's, byte for byte; before and after it were others."""
        wrong = []
        for n in range(4):
            key = evidence_key(incident.condition, incident.host, incident.source, incident.id, f"frame_{n}.jpg")
            path = self.state / "store" / key
            data = path.read_bytes() if path.exists() else b""
            if not data or ((data == scene.picture) != (n in (1, 2)) and (scene.condition, n) != ("freeze", 0)):
                wrong.append(f"{incident.id} frame_{n}.jpg is {'another picture' if data else 'missing'}")
        return wrong

    # -- the page -----------------------------------------------------------------------------------------------------

    def report(self, seed: int) -> None:
        """Print it."""
        if not self.minutes:
            return
        last = self.minutes[-1]
        print_table(
            f"Soak of {self.gauge.now_s / 60:.1f} minutes, seed {seed}, Python {sys.version.split()[0]}",
            ["frames published", "seen", "judged", "invalid", "skipped", "vanished", "unseen", "refused (full)"],
            [[*map(str, last[1:6]), str(last.vanished), str(last.unseen), str(self._refused)]],
        )
        kills = [[name, str(self.trouble.kills[name]), str(self.deaths[name])] for name in VICTIMS]
        faults = [[name, str(self.trouble.done[name]), ""] for name in DECK]
        print_table("Kills and faults", ["what", "times", "deaths in the log"], kills + faults)
        if not self.memory:
            say("memory full: not tried, there is no right to mount a file system that could be filled")
        trends = self.gauge.trends(LONG_LIVED, VICTIMS, self.incidents)
        print_table(
            "Growth (Theil-Sen)",
            ["process", "what", "points", "median", "per hour", "in all", "limit", "flat"],
            [
                [
                    *(t.name, t.what, str(t.points), f"{t.median:.1f}", f"{t.slope_per_h:+.2f}", f"{t.growth:+.2f}"),
                    *(f"{t.limit:.1f}", ("yes" if t.flat else "NO") if t.points >= 3 else "too few points"),
                ]
                for t in trends
            ],
        )
        peaks = [[name, *(f"{mb:.1f}" for mb in self.gauge.peak_mb(name))] for name in (*LONG_LIVED, *VICTIMS)]
        print_table("Memory at most, MB", ["process", "RSS", "PSS", "USS"], peaks)
        say(
            f"incidents: {self.incidents} in the log, {self.scenes} scenes, of {self.undisturbed} the evidence was "
            f"compared; slowest frame {last.max_lag_ms:.0f} ms; frames' memory {last.memory_used_mb:.0f} MB"
        )


@contextlib.contextmanager
def service() -> Iterator[tuple[FaultRig, Path | None]]:
    """A service: frames and hold in a memory file system of its own where we may mount one, log and state on disk."""
    with contextlib.ExitStack() as stack:
        shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stillwatch-soak-", dir=shared)))
        disk = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stillwatch-soak-")))
        memory: Path | None = None
        with contextlib.suppress(subprocess.CalledProcessError, OSError):
            memory = stack.enter_context(tmpfs(base / "memory", MEMORY))
        rig = FaultRig(memory or base, f"--state-dir={disk / 'state'}", "--report-every=60", sources=SOURCES)
        rig.log_path = disk / "service.log"
        rig.config = disk / "stillwatch.toml"
        rule = f"{{ raise_s = {RAISE_S}, clear_s = {CLEAR_S} }}"
        rig.config.write_text(
            f'host = "{HOST}"\nworkers = 2\nmin_free_bytes = 0\n'
            + "".join(
                f'[[source]]\nname = "{name}"\ndir = "{directory}"\nretention = "always"\nkeep_s = 30\n'
                f"stall_s = 3600\nrules = {{ black = {rule}, freeze = {rule} }}\n"
                for name, directory in rig.dirs.items()
            )
        )
        yield rig, memory


def soak(minutes: float, seed: int, picture: Path) -> int:
    """Run it, report, and say with the exit code whether all was well."""
    with service() as (rig, memory), rig:
        with ring_of(rig) as ring:
            run = Soak(rig, ring, seed, memory)
            try:
                run.run(minutes)
            finally:
                run.trouble.close()
        try:
            rig.books()
        except AssertionError as error:
            run.failures.append(f"books at stop: {error}")
        run.audit()
        run.report(seed)
        if run.failures:
            for line in ["last lines of the log:", *rig.log.splitlines()[-20:]]:
                say(line)
    title = f"Stillwatch soak, {minutes:g} minutes, seed {seed}: {'FAILED' if run.failures else 'passed'}"
    why = plot(picture, title, run.gauge, run.minutes)
    say(why or f"picture: {picture}")
    for failure in run.failures:
        say(f"FAILED {failure}")
    say("FAILED" if run.failures else "passed")
    return 1 if run.failures else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120.0, help="how long (default 120)")
    parser.add_argument("--seed", type=int, help="of scenes, kills and faults (default: a new one, printed)")
    parser.add_argument("--png", type=Path, default=Path("soak.png"), help="where the plots go (default soak.png)")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(2**32)
    say(f"seed {seed}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left behind
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in [name for name in os.environ if name.startswith("CLOUDFLARE_R2_")]:
        del os.environ[name]  # invented incidents are nothing for a real bucket
    return soak(arguments.minutes, seed, arguments.png)


if __name__ == "__main__":
    sys.exit(main())
