"""What tests of the evidence path share: transitions to hold, a disk to break, and the real uploader as a process."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pipeline.board import Board
from pipeline.child import Handover, Spec, signals_blocked
from pipeline.clockgate import ClockGate
from pipeline.hold import HOLD_DIR, TRANSITION_FILE, Hold
from pipeline.incidentlog import FILE_NAME
from pipeline.incidents import Coverage, Incident, Kind, Sighting, Transition
from pipeline.keeper import Keeper
from pipeline.model import FrameId
from pipeline.ring import Doorbell, Ring
from pipeline.sender import Notifier, Sender
from pipeline.settings import Settings, Source
from pipeline.spool import SPOOL_DIR, Manifest, SettledQueue, Spool
from pipeline.store import Kind as StoreKind
from pipeline.store import LocalStore, ObjectStore, R2Settings, StoreError
from tests.machine import mounted
from tests.support import ROOT, wait_until

HOST = "rig1"
S = 10**9
WALL_NS = 1_795_336_670 * S
PICTURE = b"\xff\xd8" + bytes(range(256)) * 40 + b"\xff\xd9"
OPENED = {f"{kind}_{n}.jpg": PICTURE + bytes([n]) for kind in ("frame", "thumb") for n in range(3)}
CLOSED = {f"{kind}_3.jpg": PICTURE + b"3" for kind in ("frame", "thumb")}


def make_settings(base: Path, **values: Any) -> Settings:
    """Settings for a service below `base`, without a bound by free space."""
    fields: dict[str, Any] = {
        "source": tuple(Source(name=name, dir=str(base / name)) for name in ("stb1", "stb2")),
        "runtime_dir": str(base / "run"),
        "state_dir": str(base / "state"),
        "host": HOST,
        "min_free_bytes": 0,
    }
    return Settings(**{**fields, **values})


def make_hold(settings: Settings) -> Hold:
    """The hold, as the service makes it."""
    hold = Hold(os.path.join(settings.runtime_dir, HOLD_DIR), settings.hold_max_bytes)
    hold.prepare()
    return hold


def sighting(number: int, time_s: float = 0.0) -> Sighting:
    """A frame that many seconds after the first."""
    return Sighting(int(time_s * S), WALL_NS + int(time_s * S), number, f"capture_{number}", FrameId(1, number, 3, 4))


def incident(number: int = 1, source: str = "stb1", condition: str = "black", host: str = HOST) -> Incident:
    """An incident that has just opened."""
    return Incident(
        id=f"{number:016x}",
        host=host,
        source=source,
        condition=condition,
        last_good=sighting(number),
        onset=sighting(number + 1, 1.0),
        confirmed=sighting(number + 9, 11.0),
        duration_s=10.0,
        readings={"black_pct": 99.0},
        coverage=Coverage(150, 148, 140, 0.6),
    )


def closed(opened: Incident) -> Incident:
    """The same, ended."""
    return opened.ended(sighting(200, 31.0), "recovered")


def publish(hold: Hold, what: Incident, kind: Kind = "opened", files: dict[str, bytes] | None = None) -> str:
    """Hold a transition as a worker does; its directory."""
    before = set(hold.waiting())
    pictures = (OPENED if kind == "opened" else CLOSED) if files is None else files
    content = {**pictures, TRANSITION_FILE: msgspec.json.encode(Transition(kind, what))}
    hold.publish(what.source, what.id, kind, {}, content)
    return next(iter(set(hold.waiting()) - before))


def rows(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    """Ask the incident log, as another process would."""
    path = Path(settings.state_dir, FILE_NAME)
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute(query).fetchall()


def evidence(settings: Settings) -> dict[tuple[str, str], str]:
    """Where the evidence of each transition is said to be."""
    return {(i, k): e for i, k, e in rows(settings, "SELECT incident, kind, evidence FROM transitions")}


def counters(settings: Settings) -> dict[str, int]:
    """What was counted."""
    return {str(name): int(value) for name, value in rows(settings, "SELECT name, value FROM counters")}


def all_files(root: Path) -> dict[str, bytes]:
    """Every file below a directory; one that goes while they are read is none."""
    found = {}
    for folder, _, names in os.walk(root):
        for path in (Path(folder, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    found[str(path.relative_to(root))] = path.read_bytes()
    return found


@dataclass
class FakeStore:
    """A store in memory that fails as it is told: one error per put from `script`, then none."""

    script: list[StoreKind | None] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    date_ns: int | None = None

    def put(self, key: str, data: bytes, content_type: str) -> None:
        self.puts.append(key)
        if kind := self.script.pop(0) if self.script else None:
            raise StoreError("put", key, "403 Fault", "as scripted", kind, self.date_ns)
        self.objects[key] = data

    def get(self, key: str) -> bytes:
        return self.objects[key]

    def head(self, key: str) -> int | None:
        return len(self.objects[key]) if key in self.objects else None

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def url(self, key: str, *, expires_s: int | None = None) -> str:
        return f"fake://{key}"

    def describe(self) -> str:
        return "fake"


@dataclass
class FakeHook:
    """A receiver that fails as it is told."""

    script: list[StoreKind | None] = field(default_factory=list)
    posts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def post(self, body: bytes, idempotency_key: str) -> None:
        if kind := self.script.pop(0) if self.script else None:
            raise StoreError("post", "hook", "status 500", "as scripted", kind)
        self.posts.append((idempotency_key, json.loads(body)))


class Post(NamedTuple):
    """What a webhook was sent."""

    path: str
    headers: dict[str, str]
    body: bytes


@contextlib.contextmanager
def receiver() -> Iterator[tuple[int, list[Post], list[int]]]:
    """A webhook: its port on this machine, what it was sent, and what it answers with (200 when there is nothing)."""
    got: list[Post] = []
    statuses: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            with contextlib.suppress(OSError):  # whoever posts may be killed meanwhile
                body = self.rfile.read(length)
                if len(body) < length:
                    return
                got.append(Post(self.path, dict(self.headers), body))
                self.send_response(statuses.pop(0) if statuses else 200)
                self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port, got, statuses
        finally:
            server.shutdown()
            thread.join(5)


class Desk:
    """Keeper and sender in this process, with a clock of their own."""

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore | None = None,
        hook: Notifier | None = None,
        gate: ClockGate | None = None,
        synchronised: bool = True,
    ) -> None:
        self.settings = settings
        self.store = store or LocalStore(os.path.join(settings.state_dir, "store"))
        self.spool = Spool(os.path.join(settings.state_dir, SPOOL_DIR))
        settled: SettledQueue = queue.SimpleQueue()
        self.keeper = Keeper(settings, self.spool, self.store, settled, synchronised=lambda: synchronised)
        self.sender = Sender(self.spool, self.store, settled, webhook=hook, gate=gate)
        self.now_ns = S

    def keep(self) -> int:
        """Let the keeper work while there is something to do; how often it did."""
        turns = 0
        while self.keeper.step(self.now_ns):
            turns += 1
        return turns

    def send(self) -> float | None:
        """Let the sender work while it does not want to wait; what it wants then."""
        while (wait_s := self.sender.step(self.now_ns)) == 0.0:
            pass
        return wait_s

    def settle(self) -> float | None:
        """Keep, send, and write down what was sent."""
        self.keep()
        wait_s = self.send()
        self.keep()
        return wait_s

    def pass_s(self, seconds: float) -> None:
        """Time passes."""
        self.now_ns += int(seconds * S)

    def close(self) -> None:
        self.keeper.close()


class UploaderProcess:
    """The real uploader, started as the supervisor does."""

    def __init__(self, base: Path, settings: Settings, r2: R2Settings | None = None, *wrapper: str) -> None:
        self.settings, self.log_path = settings, base / "uploader.log"
        os.makedirs(settings.runtime_dir, exist_ok=True)
        self._ring, self._bell, self.keeper_bell = Ring.create(), Doorbell.create(), Doorbell.create()
        self.board = Board.create(settings.runtime_dir, ["uploader"], [source.name for source in settings.source])
        self.row = self.board.memory.children[0]
        spec = Spec("uploader", "pipeline.uploader:run", row=0)
        fds = (self._ring.fd, self.board.fd, self._bell.fd, self.keeper_bell.fd)
        handover = Handover(spec, settings, *fds[:3], (), os.getpid(), fds[3])
        payload = os.memfd_create("handover")
        os.write(payload, msgspec.json.encode(handover))
        os.lseek(payload, 0, os.SEEK_SET)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDFLARE_R2_")}
        environment |= {"PYTHONPATH": str(ROOT), **(r2_environment(r2) if r2 else {})}
        with self.log_path.open("ab") as log, signals_blocked():
            self.popen = subprocess.Popen(
                [*wrapper, sys.executable, "-P", "-m", "pipeline.child", str(payload)],
                pass_fds=(payload, *fds),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        os.close(payload)

    def __enter__(self) -> UploaderProcess:
        wait_until(lambda: self.row.heartbeat_ns or self.popen.poll() is not None, 20, "the first heartbeat")
        assert self.popen.poll() is None, self.log
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(10)

    @property
    def log(self) -> str:
        """All that was logged by this and earlier ones."""
        return self.log_path.read_text(encoding="utf-8")

    def stop(self) -> float:
        """Ask it to stop; the seconds that it took."""
        begun = time.monotonic()
        self.popen.send_signal(signal.SIGTERM)
        assert self.popen.wait(10) == 0, self.log
        return time.monotonic() - begun

    def kill(self) -> None:
        """SIGKILL."""
        self.popen.kill()
        assert self.popen.wait(10) == -signal.SIGKILL


def r2_environment(r2: R2Settings) -> dict[str, str]:
    """The environment that configures it."""
    names = {"ENDPOINT": r2.endpoint, "ACCESS_KEY_ID": r2.access_key_id, "BUCKET": r2.bucket}
    names["SECRET_ACCESS_KEY"] = r2.secret_access_key
    return {**{f"CLOUDFLARE_R2_{name}": value for name, value in names.items()}, "AWS_CA_BUNDLE": r2.ca_bundle or ""}


@contextlib.contextmanager
def disk(base: Path, mib: int = 8, block_bytes: int = 1024) -> Iterator[Path]:
    """A small ext4 disk of its own; its image is `base/disk.img`. With blocks smaller than a page of memory, a full one
    kills (SIGBUS) whoever has SQLite map a new -shm file; those of real disks have 4096 bytes."""
    image = base / "disk.img"
    with image.open("wb") as file:
        file.truncate(mib << 20)
    format_it = ["mkfs.ext4", "-q", "-m", "0", "-b", str(block_bytes), "-F", str(image)]
    subprocess.run(format_it, check=True, capture_output=True, timeout=20)
    with mounted(base / "disk", "mount", "-o", "loop", str(image), str(base / "disk")) as point:
        yield point


def check_spool(path: Path) -> int:
    """Every job of a spool is whole; how many there are."""
    spool = Spool(str(path))
    jobs = [spool.load(folder) for folder in spool.jobs()]
    for job in jobs:
        for item in job.manifest.items:
            assert len(job.read(item)) == item.size > 0
    return len(jobs)


def tampered(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file in place."""
    path.write_bytes(change(path.read_bytes()))


def manifest_of(folder: str) -> Manifest:
    """A job's manifest."""
    return msgspec.json.decode(Path(folder, "manifest.json").read_bytes(), type=Manifest)
