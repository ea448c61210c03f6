"""`run`: the service. The one place where ring, board, children and supervisor are wired together."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import setproctitle

from pipeline import config, incidentlog
from pipeline.board import Board
from pipeline.child import HANDLED_SIGNALS, Handover, Spec, event, log, set_up_logging
from pipeline.hold import HOLD_DIR, Hold
from pipeline.incidents import Incident
from pipeline.model import ConfigError, InstanceError, describe
from pipeline.report import Report
from pipeline.ring import Doorbell, Ring
from pipeline.settings import Settings
from pipeline.supervisor import Death, Supervisor, Timer

LOCK_NAME = "lock"
WATCHER_STOP_S = 1.0
WORKER_STOP_S = 2.8  # a worker drains what is ready for at most 2 s
UPLOADER_STOP_S = 1.0
UPLOADER_HANG_S = 120.0  # a worn SD card may take seconds for each fsync

EPILOG = """\
examples:
  ./stillwatch run --source stb1=/srv/frames/stb1 --source tv2=/srv/frames/tv2
  ./stillwatch run --config /etc/stillwatch.toml --workers 3 --cpus 1-3

Settings come from the command line, over the environment (STILLWATCH_WORKERS, ...), over the file, over the defaults.
Exit codes: 0 stopped by a signal, 75 another instance uses this runtime directory, 78 the configuration is wrong.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `run`. A flag that is not given leaves the setting to environment, file and default."""
    add = parser.add_argument
    add(
        "--config",
        metavar="FILE",
        help="settings in TOML: [[source]] tables with name and dir, and any key below",
    )
    add(
        "--source",
        metavar="NAME=DIR",
        action="append",
        help="watch this directory (repeatable); replaces the file's",
    )
    add("--workers", metavar="N|auto", help="processes that judge frames, 1-64 (auto: usable cores - 1)")
    add("--cpus", metavar="LIST", help="cores to pin them to, like 1-3 (default: all usable but the first)")
    add(
        "--startup-frames",
        type=int,
        metavar="N",
        help="frames without a sidecar judged at start (default 10)",
    )
    add("--strict", action="store_true", default=None, help="a directory that does not exist is an error")
    add("--poll", action="store_true", default=None, help="probe for frames instead of using inotify")
    add("--state-dir", metavar="DIR", help="incident log and evidence, on disk")
    add("--runtime-dir", metavar="DIR", help="lock and board; one instance per directory")
    add("--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR"], help="default INFO")
    add(
        "--report-every",
        type=float,
        metavar="S",
        dest="report_every_s",
        help="self-report period (default 60)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal. Returns the exit code."""
    settings = config.load(arguments.config, os.environ, flags_of(arguments))
    if not settings.source:
        raise ConfigError("source: none given; add --source NAME=DIR or a [[source]] table in --config FILE")
    set_up_logging("supervisor", settings.log_level)
    setproctitle.setproctitle("stillwatch: supervisor")
    with runtime_lock(settings.runtime_dir):
        service = Service(settings)
        try:
            return service.supervisor.run()
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)  # a second one must not break the stop ladder
            service.close()


def flags_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line names."""
    names = {field for field in Settings.__struct_fields__ if field != "source"}
    flags = {key: value for key, value in vars(arguments).items() if key in names and value is not None}
    if "workers" in flags:
        with suppress(ValueError):
            flags["workers"] = int(flags["workers"])
    if arguments.source:
        flags["source"] = [_parse_source(text) for text in arguments.source]
    return flags


def _parse_source(text: str) -> dict[str, str]:
    name, equals, directory = text.partition("=")
    if not equals or not directory:
        raise ConfigError(f"command line: --source {text!r}: write it as NAME=DIR")
    return {"name": name, "dir": directory}


@contextmanager
def runtime_lock(runtime_dir: str) -> Iterator[None]:
    """Hold the runtime directory for this process; it is made when it is not there."""
    try:
        os.makedirs(runtime_dir, mode=0o750, exist_ok=True)
        if os.stat(runtime_dir).st_uid not in {0, os.geteuid()}:
            raise ConfigError(f"runtime_dir: {runtime_dir} belongs to another user; name another with --runtime-dir")
        fd = os.open(os.path.join(runtime_dir, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise ConfigError(f"runtime_dir: {runtime_dir}: {describe(error)}; name another with --runtime-dir") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise InstanceError(
            f"another instance uses {runtime_dir}; stop it, or name another directory with --runtime-dir"
        ) from error
    try:
        yield
    finally:
        os.close(fd)


def make_state_dir(state_dir: str) -> None:
    """The state directory, made when it is not there. Raises ConfigError when it cannot be written."""
    try:
        os.makedirs(state_dir, mode=0o750, exist_ok=True)
        writable = os.access(state_dir, os.W_OK | os.X_OK)
    except OSError as error:
        raise ConfigError(f"state_dir: {state_dir}: {describe(error)}; name another with --state-dir") from error
    if not writable:
        raise ConfigError(f"state_dir: {state_dir}: not writable; name another with --state-dir, or mend its owner")


def refuse_shared_directories(settings: Settings) -> None:
    """Two sources on one directory would merge silently: the kernel keeps one watch per inode."""
    seen: dict[object, str] = {}
    for source in settings.source:
        try:
            status = os.stat(source.dir)
            identity: object = (status.st_dev, status.st_ino)
        except OSError:
            identity = os.path.realpath(source.dir)  # not there yet
        other = seen.setdefault(identity, source.name)
        if other != source.name:
            raise ConfigError(f"source: {other} and {source.name} are one directory, {source.dir}; give each its own")


class Service:
    """Everything that one instance consists of. The supervisor runs it; `close` takes it down in order."""

    def __init__(self, settings: Settings) -> None:
        refuse_shared_directories(settings)
        self.settings = settings
        workers = settings.worker_count()
        specs = self._specs(workers)
        self.ring = Ring.create()
        self.board = Board.create(settings.runtime_dir, [s.name for s in specs], [s.name for s in settings.source])
        self._bell = Doorbell.create()
        self._doorbells = [Doorbell.create() for _ in range(workers)]
        self._keeper_bell = Doorbell.create()
        self._resumed = self._open_incidents()
        Hold(os.path.join(settings.runtime_dir, HOLD_DIR), settings.hold_max_bytes).prepare()
        for lane in range(len(settings.source)):
            self.ring.grant(lane, lane % workers)
        self._moving: dict[int, int] = {}  # lane -> the worker that is to have it
        self.report = Report(self.ring, self.board)
        self.supervisor = Supervisor(
            specs,
            self.board,
            self._bell,
            self._handover,
            hang_s=settings.hang_s,
            on_death=self._on_death,
            on_ready=self._on_ready,
            on_bell=self._finish_moves,
            timers=(Timer(settings.report_every_s, self.report.write),),
        )

    def close(self) -> None:
        """Stop the children, then say what became of every frame."""
        self.supervisor.close()
        self.report.write_source_books("books at stop")
        log.info("stopped")

    def move(self, lane: int, worker: int) -> None:
        """Give a source to another worker. The old one finishes the frame in hand first, so none is judged twice."""
        holder = self.ring.lanes[lane].holder
        if holder is None or holder == worker:
            return
        self._moving[lane] = worker
        self.ring.revoke(lane)
        self._doorbells[holder].ring()

    def _finish_moves(self) -> None:
        """Grant the lanes that have been let go; the bell tells."""
        for lane, worker in list(self._moving.items()):
            if self.ring.lanes[lane].released:
                del self._moving[lane]
                self.ring.grant(lane, worker)
                self._doorbells[worker].ring()
                log.info(event("source moved", source=self.settings.source[lane].name, worker=worker))

    def _open_incidents(self) -> tuple[Incident, ...]:
        """What an earlier run of this host left open, for the workers to go on with."""
        make_state_dir(self.settings.state_dir)
        try:
            found = incidentlog.read_open(self.settings.state_dir)
        except sqlite3.Error as error:
            log.error(event("incident log not read", state_dir=self.settings.state_dir, cause=error))
            return ()
        return tuple(incident for incident in found if incident.host == self.settings.host_name())

    def _specs(self, workers: int) -> list[Spec]:
        cpus = self.settings.worker_cpus()
        uploader = Spec(
            "uploader",
            "pipeline.uploader:run",
            row=1 + workers,
            stop_order=2,
            stop_s=UPLOADER_STOP_S,
            hang_s=UPLOADER_HANG_S,
        )
        watcher = Spec("watcher", "pipeline.watcher:run", row=0, stop_order=0, stop_s=WATCHER_STOP_S)
        return [
            watcher,
            *(
                Spec(
                    f"worker/{n}",
                    "pipeline.workers:run",
                    row=1 + n,
                    index=n,
                    cpu=cpus[n % len(cpus)],
                    stop_order=1,
                    stop_s=WORKER_STOP_S,
                )
                for n in range(workers)
            ),
            uploader,
        ]

    def _handover(self, spec: Spec) -> tuple[Handover, tuple[int, ...]]:
        doorbells = tuple(doorbell.fd for doorbell in self._doorbells)
        fds = (self.ring.fd, self.board.fd, self._bell.fd, *doorbells, self._keeper_bell.fd)
        handover = Handover(
            spec,
            self.settings,
            self.ring.fd,
            self.board.fd,
            self._bell.fd,
            doorbells,
            os.getpid(),
            self._keeper_bell.fd,
            self._resumed,
        )
        return handover, fds

    def _on_death(self, death: Death) -> None:
        """The poison rule: a frame on which its workers crash or hang is set aside."""
        if death.blames_frame and death.busy:
            lane, index = death.busy
            deaths = self.ring.lanes[lane].blame(index)
            name = self.settings.source[lane].name
            log.error(event("frame suspected", source=name, index=index, deaths=deaths, exit=death))

    def _on_ready(self) -> None:
        memory = self.board.memory
        took_s = (memory.ready_ns - memory.children[0].started_ns) / 1e9
        sources, workers = len(self.settings.source), len(self._doorbells)
        log.info(event("ready", sources=sources, workers=workers, took_s=took_s, pid=os.getpid()))
