"""The sender: jobs of the spool to the object store, and their incidents to the webhook.

Two lines, uploads and notices, each in the order of the spool, each with its own back-off: neither waits for the other.
A job that fails time and again is stuck: the jobs of other sources go first, those of its own wait for it.
Marks in the job say what is done, so that a crash repeats one step at most, and every step may be repeated. A job of
which nothing is left to do goes back to the keeper, who writes it down and removes it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from pipeline.backoff import Backoff
from pipeline.board import LineRow
from pipeline.child import event, log
from pipeline.clockgate import ClockGate
from pipeline.model import LineState, describe
from pipeline.sidecar import timestamp
from pipeline.spool import (
    INCIDENT_FILE,
    NOTIFIED,
    REFUSED,
    UNTOLD,
    UPLOADED,
    DamagedJob,
    Job,
    Settled,
    SettledQueue,
    Spool,
    references,
)
from pipeline.store import Kind, LocalStore, ObjectStore, StoreError

PAUSE_S = 300.0  # a person must mend it; and whoever has mended it wants to see it work
FAULT_S = 60.0  # after a fault of ours
STUCK_TRIES = 5  # failures in a row; it may be the job, and not the network


class Notifier(Protocol):
    """Who is told of every transition: `webhook.Webhook`."""

    def post(self, body: bytes, idempotency_key: str) -> None:
        """Tell it once. Raises StoreError."""


class Line:
    """One kind of delivery, as it fails and recovers."""

    def __init__(self, what: str, done: str, refused: str, pause_s: float, row: LineRow) -> None:
        self.what, self.done, self.refused = what, done, refused  # its name and its marks
        self._row = row
        self.tries: dict[str, int] = {}  # folder -> how often it has failed
        self.backoff = Backoff()
        self._pause_s = pause_s

    def failed(self, error: StoreError, now_ns: int) -> float:
        """Wait as its kind asks, and say so; seconds to wait."""
        paused = error.kind is Kind.PAUSE
        state = LineState.PAUSED if paused else LineState.FAILING
        # A pause calls for a person: it is said at once.
        if self.backoff.failed(now_ns, self._pause_s if paused else None) or (paused and self._row.state != state):
            level = logging.ERROR if paused else logging.WARNING
            name = f"{self.what} paused" if paused else f"{self.what} failed"
            waits = {"failures": self.backoff.failures, "retry_in_s": self.backoff.delay_s}
            log.log(level, event(name, cause=str(error), **waits))
        self.show(state)
        return self.backoff.delay_s

    def show(self, state: LineState) -> None:
        """For `status`."""
        self._row.state, self._row.failures, self._row.due_ns = state, self.backoff.failures, self.backoff.due_ns

    def worked(self) -> None:
        """One line when it works again."""
        self._row.done += 1
        if failures := self.backoff.worked():
            log.info(event("recovered", what=self.what, failures=failures))
        self.show(LineState.WORKING)


class Sender:
    """Network I/O, and reading and marking jobs of the spool; `step()` is one delivery. Nothing waits for it."""

    def __init__(
        self,
        spool: Spool,
        store: ObjectStore,
        settled: SettledQueue,
        wake_keeper: Callable[[], None] = lambda: None,
        webhook: Notifier | None = None,
        gate: ClockGate | None = None,
        pause_s: float = PAUSE_S,
        rows: tuple[LineRow, LineRow] | None = None,  # of the board: uploads, notices
    ) -> None:
        self._spool, self._store, self._settled, self._wake_keeper = spool, store, settled, wake_keeper
        self._webhook, self._gate = webhook, gate
        uploads, notices = rows or (LineRow(), LineRow())
        self._uploads = Line("uploads", UPLOADED, REFUSED, pause_s, uploads)
        self._notices = Line("notices", NOTIFIED, UNTOLD, pause_s, notices)
        self._done: dict[str, set[str]] = {}  # folder -> marks; also those that the disk would not take
        self._handed: set[str] = set()  # back to the keeper, who has not removed them yet
        self._told: set[str] = set()  # the keeper knows what became of their evidence; their notices wait
        self._sent: dict[str, set[str]] = {}  # folder -> its keys that are stored: where every other request fails, a
        # job that began anew each time would never get through
        self._clean = not isinstance(store, LocalStore)
        self.bell = threading.Event()  # rung when there is something new in the spool
        self.stopping = threading.Event()

    def step(self, now_ns: int) -> float | None:
        """Make one upload and one notice, where they are due; seconds until it wants to be called again, None: when it
        is told that there is something new."""
        waits = [self._upload(now_ns), self._notify(now_ns)]
        return min((wait for wait in waits if wait is not None), default=None)

    # -- the queue ----------------------------------------------------------------------------------------------------

    def _next(self, line: Line) -> str | None:
        """The oldest job that a line has not brought to its end, and that is not stuck or waits for one that is; where
        all are or do, the one that was tried least."""
        folders = self._spool.jobs()
        there = set(folders)
        self._handed &= there
        self._told &= there
        self._done = {folder: marks for folder, marks in self._done.items() if folder in there}
        self._sent = {folder: keys for folder, keys in self._sent.items() if folder in there}
        line.tries = {folder: tries for folder, tries in line.tries.items() if folder in there}
        stuck: dict[str, str] = {}  # source -> folder
        for folder in folders:
            if folder not in self._done:
                self._done[folder] = self._spool.marks(folder)
                self._settle(folder)
            if folder in self._handed or not self._done[folder].isdisjoint((line.done, line.refused)):
                continue
            if not line.tries:
                return folder
            source = self._source_of(folder)
            if source not in stuck:
                if line.tries.get(folder, 0) < STUCK_TRIES:
                    return folder
                stuck[source] = folder
        return min(stuck.values(), key=line.tries.__getitem__, default=None)

    def _source_of(self, folder: str) -> str:
        with suppress(DamagedJob, OSError):
            return self._spool.load(folder).manifest.source
        return ""

    def _mark(self, folder: str, mark: str) -> None:
        """Remember a step, durably if the disk lets us: without that, a crash repeats it."""
        self._done.setdefault(folder, set()).add(mark)
        try:
            self._spool.mark(folder, mark)
        except FileNotFoundError:  # the bounds have taken the job meanwhile
            return
        except OSError as error:
            log.warning(event("mark not written", mark=mark, cause=describe(error)))
        self._settle(folder)

    def _settle(self, folder: str) -> None:
        """Hand a job back when its evidence is stored, and once more when its notice is taken as well: a webhook that
        fails keeps nobody from knowing where the evidence is."""
        marks = self._done[folder]
        last = not self._webhook or not marks.isdisjoint((NOTIFIED, UNTOLD))
        if marks.isdisjoint((UPLOADED, REFUSED)) or (folder in self._told and not last):
            return
        try:
            manifest = self._spool.load(folder).manifest
        except OSError:  # gone meanwhile; or not to be read, and then delivering it says so
            return
        except DamagedJob as error:
            self._set_aside(folder, error)
            return
        stored = UPLOADED in marks
        keys = {item.name: item.key for item in manifest.items}
        refs = references(keys, self._store.url, timestamp(manifest.kept_wall_ns)) if stored else {}
        size = 0 if folder in self._told else sum(item.size for item in manifest.items)
        evidence = "stored" if stored else "refused"
        self._hand(Settled(folder, evidence, manifest.incident, refs, size, UNTOLD in marks, last))

    def _set_aside(self, folder: str, error: DamagedJob) -> None:
        log.error(event("job damaged, set aside", job=folder.rpartition("/")[2], cause=str(error)))
        self._hand(Settled(folder, "damaged"))

    def _hand(self, settled: Settled) -> None:
        (self._handed if settled.last else self._told).add(settled.folder)
        self._settled.put(settled)
        self._wake_keeper()

    # -- uploads ------------------------------------------------------------------------------------------------------

    def _upload(self, now_ns: int) -> float | None:
        folder = self._next(self._uploads)
        if folder is None:
            return None
        if wait_s := self._uploads.backoff.wait_s(now_ns):
            return wait_s
        if self._gate and (wait_s := self._gate.wait_s(now_ns)):
            self._uploads.show(LineState.CLOCK)
            return wait_s
        return self._deliver(self._uploads, folder, now_ns, self._put_all)

    def _put_all(self, job: Job) -> None:
        if not self._clean and isinstance(self._store, LocalStore):
            self._store.clean()
            self._clean = True
        files = [(item, job.read(item)) for item in job.manifest.items]  # all are looked at before any is sent
        sent = self._sent.setdefault(job.folder, set())
        for item, data in files:
            if item.key in sent:
                continue
            if self.stopping.is_set():
                raise StopSending
            self._store.put(item.key, data, item.content_type)
            sent.add(item.key)
            self._uploads.tries.pop(job.folder, None)  # it gets on

    def _notify(self, now_ns: int) -> float | None:
        folder = self._next(self._notices) if self._webhook else None
        if folder is None:
            return None
        if wait_s := self._notices.backoff.wait_s(now_ns):
            return wait_s
        return self._deliver(self._notices, folder, now_ns, self._post)

    def _post(self, job: Job) -> None:
        assert self._webhook
        if job.manifest.muted:
            return
        item = next((item for item in job.manifest.items if item.name == INCIDENT_FILE), None)
        if item is None:
            raise DamagedJob(f"no {INCIDENT_FILE}")
        self._webhook.post(job.read(item), f"{job.manifest.incident}.{job.manifest.kind}")

    def _deliver(self, line: Line, folder: str, now_ns: int, send: Callable[[Job], None]) -> float | None:
        """Carry one job to the end of one line, or wait as the failure asks."""
        begun_ns = time.monotonic_ns()
        try:
            send(self._spool.load(folder))
        except StopSending:
            return None
        except FileNotFoundError:  # the bounds have taken the job meanwhile
            self._done.pop(folder, None)
        except DamagedJob as error:
            self._set_aside(folder, error)
        except StoreError as error:
            if error.kind is Kind.RETRY:
                line.tries[folder] = line.tries.get(folder, 0) + 1
            return self._refused(line, folder, error, now_ns + time.monotonic_ns() - begun_ns)
        except OSError as error:
            line.tries[folder] = line.tries.get(folder, 0) + 1
            hint = "make it the service's again (chown)" if isinstance(error, PermissionError) else "check the disk"
            return line.failed(StoreError("read", folder, describe(error), hint, Kind.RETRY), now_ns)
        else:
            line.worked()
            self._mark(folder, line.done)
        return 0.0

    def _refused(self, line: Line, folder: str, error: StoreError, now_ns: int) -> float:
        if error.kind is Kind.DEAD_LETTER:
            log.error(event(f"{line.what}: job refused, set aside", cause=str(error)))
            self._mark(folder, line.refused)
            return 0.0
        if error.kind is Kind.CLOCK and self._gate:
            line.show(LineState.CLOCK)
            return self._gate.refused(error, now_ns)
        return line.failed(error, now_ns)


class StopSending(Exception):
    """The service stops between two files; the job is sent again."""


class SenderThread:
    """A sender in a thread of its own: it sleeps until its bell rings or it wants to try again."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ask it to stop; whether it has. It is not waited for longer: a crash repeats an idempotent PUT."""
        self._sender.stopping.set()
        self._sender.bell.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        sender = self._sender
        while not sender.stopping.is_set():
            sender.bell.clear()
            try:
                wait_s = sender.step(time.monotonic_ns())
            except Exception:  # noqa: BLE001 - the top of a loop
                log.exception("sending stopped by a fault of ours")
                wait_s = FAULT_S
            if wait_s != 0.0 and not sender.stopping.is_set():
                sender.bell.wait(wait_s)
