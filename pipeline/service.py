"""One instance of the service: ring, board, children and supervisor, wired together. Runs under `run` and the demo.

sole_instance(settings) --> Service(settings) --> service.supervisor.run() --> service.close()
"""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator

import msgspec
from msgspec.structs import replace

from pipeline import capturecheck, incidentlog
from pipeline.board import Board
from pipeline.child import Handover, Spec, event, log
from pipeline.hold import HOLD_DIR, Hold
from pipeline.incidents import Incident
from pipeline.instance import refuse_shared_directories
from pipeline.model import MAX_SOURCES, MAX_WORKERS, ConfigError, UnavailableError
from pipeline.news import News
from pipeline.process import Death, settings_of
from pipeline.report import Report
from pipeline.ring import Doorbell, Ring
from pipeline.settings import Settings
from pipeline.supervisor import Supervisor
from pipeline.telling import WORKER, Telling

CAPTURE = "capture"
FIRST_WORKER_ROW = 8  # of the board: behind it, workers come and go
FIXED = ("runtime_dir", "state_dir", "host", "log_file", "metrics_file")  # a reload does not change these
WORKER_NICE = 5  # FFmpeg, which cannot wait, goes first
UPLOADER_NICE = 10
CAPTURE_STOP_S = 0.9  # FFmpegs get 0.6 s of it
WATCHER_STOP_S = 1.0
WORKER_STOP_S = 2.8  # a worker drains what is ready for at most 2 s
UPLOADER_STOP_S = 2.0  # at the lowest weight it may be long in getting the core
UPLOADER_HANG_S = 120.0  # a worn SD card may take seconds for each fsync


class Service:
    """Everything that one instance consists of. The supervisor runs it; `close` takes it down in order.

    SIGUSR1 prints the self-report. SIGHUP (new settings), SIGTTIN and SIGTTOU (a worker more, a worker less) change
    what this instance is to be; `_converge` brings it there, child by child, and each lane goes on where its last
    commit left it.
    """

    def __init__(self, settings: Settings, load: Callable[[], Settings] | None = None) -> None:
        """`load` reads the settings anew."""
        refuse_shared_directories(settings)
        capturecheck.prepare(settings)
        capturecheck.remove_left(settings)
        self.settings, self._load = settings, load
        self.lanes = {source.name: lane for lane, source in enumerate(settings.source)}
        self.specs = self._specs(settings.worker_count())
        self.ring = Ring.create()
        self.board = Board.create(settings.runtime_dir, [], list(self.lanes))
        for spec in self.specs:
            self.board.add_child(spec.row, spec.name)
        self._bell = Doorbell.create()
        self._doorbells = [Doorbell.create() for _ in self._workers()]  # grows; a doorbell is kept for the next worker
        self._keeper_bell = Doorbell.create()
        self._hold = Hold(os.path.join(settings.runtime_dir, HOLD_DIR), settings.hold_max_bytes)
        self._resumed = self._open_incidents()
        self._hold.prepare()
        self._version = 0  # of the settings and the doorbells
        self._given: dict[str, int] = {}  # which version each child has
        self._news = News.create()
        self._wanted_workers = len(self._doorbells)
        self._moving: dict[int, int] = {}  # lane -> the worker that is to have it
        self._leaving: dict[int, str] = {}  # lane -> its source, which is not configured any more
        self._share_lanes()
        self.report = Report(self.ring, self.board)
        self.telling = Telling(settings, self.board, self.report, self._is_fresh)
        self.supervisor = Supervisor(
            self.specs,
            self.board,
            self._bell,
            self.handover,
            hang_s=settings.hang_s,
            on_death=self._on_death,
            on_ready=self._on_ready,
            on_bell=self._finish_moves,
            on_control=self._on_control,
            on_turn=self.telling.turn,
            timers=self.telling.timers,
        )

    def close(self) -> None:
        """Stop the children, then say what became of every frame."""
        self.telling.stopping()
        self.supervisor.close()
        self.report.write_source_books("books at stop")
        log.info("stopped")

    # -- children -------------------------------------------------------------------------------------------------

    def _specs(self, workers: int) -> list[Spec]:
        uploader = Spec(
            "uploader",
            "pipeline.uploader:run",
            row=1,
            stop_order=3,
            stop_s=UPLOADER_STOP_S,
            hang_s=UPLOADER_HANG_S,
            trusted=True,
            vital=False,  # a dead network or a worn card must not restart the monitor
            nice=UPLOADER_NICE,
            oom_score_adj=200,
        )
        watcher = Spec("watcher", "pipeline.watcher:run", row=0, stop_order=1, stop_s=WATCHER_STOP_S)
        # Every service has one, because every service writes sidecars that somebody must delete:
        capture = Spec(
            CAPTURE,
            "pipeline.capture:run",
            row=2,
            stop_order=0,
            stop_s=CAPTURE_STOP_S,
            captures=True,
            informed=True,  # every FFmpeg dies with it
        )
        return [watcher, *(self._worker(n) for n in range(workers)), uploader, capture]

    def _worker(self, index: int) -> Spec:
        return Spec(
            f"{WORKER}{index}",
            "pipeline.workers:run",
            row=FIRST_WORKER_ROW + index,
            index=index,
            cpu=self._cpu(index),
            stop_order=2,
            stop_s=WORKER_STOP_S,
            nice=WORKER_NICE,
            oom_score_adj=300,
        )

    def _cpu(self, index: int) -> int:
        cpus = self.settings.worker_cpus()
        return cpus[index % len(cpus)]

    def _workers(self) -> list[Spec]:
        return [spec for spec in self.specs if spec.name.startswith(WORKER)]

    def handover(self, spec: Spec) -> tuple[Handover, tuple[int, ...]]:
        """What a child is given, and the descriptors it inherits."""
        self._given[spec.name] = self._version
        doorbells = tuple(doorbell.fd for doorbell in self._doorbells)
        fds = (self.ring.fd, self.board.fd, self._bell.fd, *doorbells, self._keeper_bell.fd)
        news_fds = self._news.fds if spec.informed else None
        handover = Handover(
            spec,
            settings_of(spec, self.settings),
            self.ring.fd,
            self.board.fd,
            self._bell.fd,
            doorbells,
            os.getpid(),
            self._keeper_bell.fd,
            self._resumed,
            self.lanes,
            self._version,
            news_fds,
        )
        return handover, (*fds, *(news_fds or ()))

    def _on_death(self, death: Death) -> None:
        """The poison rule: a frame on which its workers crash or hang is set aside."""
        if death.blames_frame and death.busy:
            lane, index = death.busy
            deaths = self.ring.lanes[lane].blame(index)
            name = self.board.memory.sources[lane].name.decode()
            log.error(event("frame suspected", source=name, index=index, deaths=deaths, exit=death))

    def _is_fresh(self, now_ns: int) -> bool:
        return self.supervisor.is_fresh(now_ns)

    def _open_incidents(self) -> tuple[Incident, ...]:
        """What an earlier run of this host left open, for the workers to go on with. What is held counts, and is read
        before the log: a keeper may be moving it."""
        held = incidentlog.held_transitions(self._hold)
        try:
            found = incidentlog.read_open(self.settings.state_dir, held)
        except sqlite3.Error as error:
            log.error(event("incident log not read", state_dir=self.settings.state_dir, cause=error))
            return ()
        return tuple(incident for incident in found if incident.host == self.settings.host_name())

    def _on_ready(self) -> None:
        memory = self.board.memory
        took_s = (memory.ready_ns - memory.children[0].started_ns) / 1e9
        sources, workers = len(self.settings.source), len(self._workers())
        log.info(event("ready", sources=sources, workers=workers, took_s=took_s, pid=os.getpid()))
        self.telling.ready()

    # -- changes ----------------------------------------------------------------------------------------------------

    def _on_control(self, number: int) -> None:
        if number == signal.SIGUSR1:
            self.telling.report(time.monotonic_ns())
        elif number == signal.SIGHUP:
            self.reload()
        else:
            self.set_workers(self._wanted_workers + (1 if number == signal.SIGTTIN else -1))

    def set_workers(self, count: int) -> None:
        """Have so many workers, within what is possible."""
        self._wanted_workers = min(MAX_WORKERS, max(1, count))
        log.info(event("workers wanted", count=self._wanted_workers))
        self.supervisor.carry_out(self._converge())

    def reload(self) -> None:
        """Read the settings anew and go over to them; settings that are wrong change nothing."""
        try:
            settings = self._load() if self._load else self.settings
            refuse_shared_directories(settings)
            capturecheck.prepare(settings, capturecheck.RELOAD_ANSWER_S)
            self._adopt(settings)
        except (ConfigError, UnavailableError) as error:
            log.error(event("reload refused", cause=error))
            return
        self.supervisor.carry_out(self._converge())

    def _adopt(self, settings: Settings) -> None:
        """Take over settings: sources that stay keep their lanes, others leave theirs or get a free one."""
        fixed = {key: getattr(self.settings, key) for key in FIXED}
        if ignored := [key for key, value in fixed.items() if getattr(settings, key) != value]:
            log.warning(event("settings take a restart", keys=",".join(ignored)))
        places = {source.name: (source.dir, source.prefix) for source in settings.source}
        gone = [s.name for s in self.settings.source if places.get(s.name) != (s.dir, s.prefix)]
        kept = {name: lane for name, lane in self.lanes.items() if name not in gone}
        left = self._leaving | {self.lanes[name]: name for name in gone}
        free = [lane for lane in range(MAX_SOURCES) if lane not in left and lane not in kept.values()]
        new = [name for name in places if name not in kept]
        if len(new) > len(free):
            raise ConfigError(f"source: {len(new)} new ones, but {len(free)} lanes are free; try again in a moment")
        if settings.workers != self.settings.workers:  # else what SIGTTIN and SIGTTOU have made of it stays
            self._wanted_workers = settings.worker_count()
        self.settings, self._leaving = replace(settings, **fixed), left
        self.lanes = kept | dict(zip(new, free, strict=False))
        for name in new:
            self.board.add_source(self.lanes[name], name)
        for at, spec in enumerate(self.specs):
            if spec.name.startswith(WORKER):
                self.specs[at] = replace(spec, cpu=self._cpu(spec.index))
                self.supervisor.respecify(self.specs[at])
        self.supervisor.allow_silence(settings.hang_s)
        self.telling.every(settings.report_every_s)
        self._resumed = self._open_incidents()
        self._version += 1
        log.setLevel(settings.log_level)
        log.info(event("settings reloaded", sources=len(settings.source), new=len(new), gone=len(gone)))

    def _converge(self) -> Iterator[str]:
        """What is to be replaced, one by one, and done between: new workers first, so that there is always one for
        every lane; then the watcher, so that nothing comes for a source that leaves; those whom it takes away last."""
        while len(self._workers()) < self._wanted_workers:
            yield from self._add_worker()
        yield from self._renew("watcher")
        yield from self._inform_capture()
        yield from self._clear_lanes()
        for spec in self._workers()[: self._wanted_workers]:
            yield from self._renew(spec.name)
        self._share_lanes()
        while self._moving:
            yield ""
        for spec in self._workers()[self._wanted_workers :]:
            self.specs.remove(spec)
            self.supervisor.retire(spec.name)
            yield from self._until_gone(spec.name)
        yield from self._renew("uploader")
        log.info(event("change done", sources=len(self.lanes), workers=len(self._workers())))

    def _renew(self, name: str) -> Iterator[str]:
        """Replace a child unless it has the newest settings: a death may have come before us."""
        if self._given[name] != self._version:
            yield name

    def _inform_capture(self) -> Iterator[str]:
        """Hand it the newest settings, and wait until it has begun, ended and let go what they change. One that dies
        meanwhile has a successor that was started with them."""
        spec = next(spec for spec in self.specs if spec.name == CAPTURE)
        if self._given[CAPTURE] != self._version:
            self._news.tell(msgspec.json.encode(self.handover(spec)[0]))
        while self.board.memory.children[spec.row].settings_version != self._version:
            yield ""
        self.supervisor.informed(CAPTURE)

    def _add_worker(self) -> Iterator[str]:
        spec = self._worker(len(self._workers()))
        yield from self._until_gone(spec.name)  # the plan before this one took it away
        if spec.index == len(self._doorbells):
            self._doorbells.append(Doorbell.create())
            self._given["watcher"] = -1  # must learn of it
        self.specs.append(spec)
        self.board.add_child(spec.row, spec.name)
        self.supervisor.add(spec)
        while not self.supervisor.is_running(spec.name):
            yield ""

    def _until_gone(self, name: str) -> Iterator[str]:
        while self.supervisor.has(name):
            yield ""

    def _clear_lanes(self) -> Iterator[str]:
        """Take the lanes of the sources that leave: nobody writes into them any more."""
        for lane in self._leaving:
            self._moving.pop(lane, None)
            self._take_away(lane)
        while not all(self.ring.lanes[lane].released for lane in self._leaving):
            yield ""
        for lane, name in self._leaving.items():
            self.report.write_books_of(lane, "source left")
            self.ring.reset(lane)
            if name not in self.lanes:
                self._hold.drop_orphans(name, ())
            self.board.remove_source(lane)
        if self._leaving:
            capturecheck.remove_left(self.settings)
        self._leaving = {}

    # -- lanes ------------------------------------------------------------------------------------------------------

    def _share_lanes(self) -> None:
        """Give every lane to a worker, in turn."""
        for turn, lane in enumerate(sorted(self.lanes.values())):
            self.move(lane, turn % self._wanted_workers)

    def move(self, lane: int, worker: int) -> None:
        """Give a source to another worker. The old one finishes the frame in hand first, so none is judged twice."""
        holder = self.ring.lanes[lane].holder
        if lane in self._moving:
            self._moving[lane] = worker
        elif holder is None:
            self._grant(lane, worker)
        elif holder != worker:
            self._moving[lane] = worker
            self._take_away(lane)

    def _take_away(self, lane: int) -> None:
        holder = self.ring.lanes[lane].holder
        if holder is not None:
            self.ring.revoke(lane)
            self._doorbells[holder].ring()

    def _grant(self, lane: int, worker: int) -> None:
        self.ring.grant(lane, worker)
        self._doorbells[worker].ring()

    def _finish_moves(self) -> None:
        """Grant the lanes that have been let go; the bell tells."""
        for lane, worker in list(self._moving.items()):
            if self.ring.lanes[lane].released:
                del self._moving[lane]
                self._grant(lane, worker)
                log.info(event("source moved", source=self.board.memory.sources[lane].name.decode(), worker=worker))
