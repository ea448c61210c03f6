"""The keeper: what workers hold becomes recorded (a row in the incident log) and kept (a job in the spool).

    hold/ --read--> row committed --> log line --> spool/<number>-.../ fsynced --> `kept` --> hold directory removed
    sender --Settled--> references and `stored` into the log --> job removed

Each arrow may be cut by a kill and is then walked again: the row is known, the job is there, the hold directory goes
last. Whatever the disk does, the transition stays in hold until both are safe.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import queue
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec
from msgspec.structs import replace

from pipeline import clock, incidentlog, mutes
from pipeline.backoff import Backoff
from pipeline.bounds import Bounds
from pipeline.child import event, log
from pipeline.durable import free_bytes
from pipeline.hold import HOLD_DIR, DamagedHold, Hold
from pipeline.incidentlog import IncidentLog, decode_transition, describe_incident, place_of
from pipeline.incidents import Incident, Sighting, Transition
from pipeline.model import FrameId, describe
from pipeline.settings import Settings
from pipeline.sidecar import timestamp
from pipeline.spool import (
    INCIDENT_FILE,
    DamagedJob,
    Item,
    Manifest,
    Settled,
    SettledQueue,
    Spool,
    number_of,
    references,
)
from pipeline.store import ObjectStore, evidence_key

UNCONFIGURED = "source no longer configured"
SUPERSEDED = "superseded"
LAST_TRY_S = 30.0  # between tries while the disk refuses
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Keeper:
    """Hold, spool and incident log; `step()` is one turn. Disk I/O only, no network; one thread, the only one that
    writes the log. An error of the disk is waited for, never raised."""

    def __init__(
        self,
        settings: Settings,
        spool: Spool,
        store: ObjectStore,
        settled: SettledQueue,
        wake_sender: Callable[[], None] = lambda: None,
        synchronised: Callable[[], bool] = clock.synchronised,
    ) -> None:
        self._settings, self._spool, self._store = settings, spool, store
        self._hold = Hold(os.path.join(settings.runtime_dir, HOLD_DIR), settings.hold_max_bytes)
        self._settled, self._wake_sender, self._synchronised = settled, wake_sender, synchronised
        self._bounds = Bounds(settings, spool, store, synchronised)
        self._book: IncidentLog | None = None
        self._back: deque[Settled] = deque()  # from the sender, not written down yet
        self._uncounted: dict[str, int] = {}
        self._trouble = Backoff(cap_s=LAST_TRY_S)

    def step(self, now_ns: int) -> bool:
        """Do one piece of work; False when there is none, or the disk must be waited for (see `wait_s`)."""
        if now_ns < self._trouble.due_ns:
            return False
        try:
            book = self._book or self._open()
            worked = self._settle(book) or self._keep_oldest(book) or self._report_late(book)
            self._keep_bounds(book, now_ns, worked)
        except (OSError, sqlite3.Error) as error:
            self._failed(error, now_ns)
            return False
        if failures := self._trouble.worked():  # what failed is always what is tried first
            log.info(event("recovered", what="keeping incidents", failures=failures))
        return worked

    def wait_s(self, now_ns: int) -> float | None:
        """Seconds until the disk is to be tried again; None while it does what it should."""
        return self._trouble.wait_s(now_ns) if self._trouble.failures else None

    def close(self) -> None:
        """Close the incident log, and say what was not said yet."""
        self._bounds.close()
        self._close_book()

    def _close_book(self) -> None:
        if self._book:
            self._book.close()
            self._book = None

    # -- start ------------------------------------------------------------------------------------------------------

    def _open(self) -> IncidentLog:
        os.makedirs(self._settings.state_dir, mode=0o750, exist_ok=True)
        self._spool.recover()
        self._hold.drop_done()
        book = IncidentLog(self._settings.state_dir)
        try:
            there = {number_of(folder) for folder in self._spool.jobs()}
            book.start_after(max(there, default=0))
            self._note_kept(book)
            self._close_unconfigured(book)
            # Given up, and killed before that could be written down:
            known = (
                there | {number for number, _ in self._bounds.dropped} | {number_of(job.folder) for job in self._back}
            )
            known |= {number_of(folder) for folder in self._spool.jobs()}
            self._bounds.dropped += [(number, "lost") for number in book.numbers("kept") if number not in known]
            self._bounds.miss(book.stored_references())
        except BaseException:
            book.close()
            raise
        self._book = book
        self._wake_sender()
        return book

    def _note_kept(self, book: IncidentLog) -> None:
        """Write down what had been kept when a kill came, before the sender is done with it and the job is gone."""
        held = set(book.numbers("held"))
        for folder in self._spool.jobs():
            if (number := number_of(folder)) in held:
                with suppress(DamagedJob, OSError):
                    names = [item.name for item in self._spool.load(folder).manifest.items]
                    book.set_kept(number, [name for name in names if name != INCIDENT_FILE])

    def _close_unconfigured(self, book: IncidentLog) -> None:
        """Nobody judges these any more. A replay has no sources to compare with."""
        names, host = {source.name for source in self._settings.source}, self._settings.host_name()
        for incident in book.open_incidents() if names else ():
            if incident.host == host and incident.source not in names:
                self._keep(book, ended_now(incident, UNCONFIGURED), {})

    # -- from hold to log and spool -----------------------------------------------------------------------------------

    def _keep_oldest(self, book: IncidentLog) -> bool:
        folder = next(iter(self._hold.waiting()), None)
        if folder is None:
            return False
        try:
            body, files = self._hold.read(folder)
            transition = decode_transition(body)
            if transition.kind == "opened" and not book.knows(transition):
                self._close_others(book, transition.incident)
            self._keep(book, transition, files)
        except (OSError, sqlite3.Error):
            raise
        except DamagedHold as error:
            self._set_aside(folder, str(error))
        except Exception as error:  # noqa: BLE001 - round one item: a fault of ours must not stop the others
            log.exception(event("incident not kept, a fault of ours", folder=folder))
            self._set_aside(folder, type(error).__name__)
        else:
            self._hold.remove(folder)
        return True

    def _keep(self, book: IncidentLog, transition: Transition, files: Mapping[str, bytes]) -> None:
        """Record and keep one transition; whatever of it has been done already is not done again."""
        incident = transition.incident
        muted = transition.kind == "opened" and self._is_muted(incident)
        number, news = book.record(transition, muted=muted, synchronised=self._synchronised())
        muted = book.is_muted(incident.id)
        if news:
            _tell(transition, muted=muted)
        if book.evidence(number) == "held":
            transition = replace(transition, notes=book.notes(incident.id))
            manifest, content = self._pack(transition, files, book.kept_files(incident.id), muted=muted)
            self._bounds.make_way(sum(map(len, content.values())) + len(msgspec.json.encode(manifest)))
            self._spool.keep(number, manifest, content)
            book.set_kept(number, files)
            self._wake_sender()

    def _is_muted(self, incident: Incident) -> bool:
        return mutes.is_muted(self._settings.state_dir, incident.source, time.time_ns())

    def _report_late(self, book: IncidentLog) -> bool:
        """What opened while its source was muted, and is still open now that it is not: told as if it opened now, by a
        job of its own that has nothing but the incident."""
        late = next((incident for incident in book.open_muted() if not self._is_muted(incident)), None)
        if late is None:
            return False
        opened = Transition("opened", late, book.notes(late.id))
        number = book.number_of_report(late.id)
        self._spool.keep(number, *self._pack(opened, {}, book.kept_files(late.id)))
        book.set_kept(number, ())
        book.unmute(late.id)
        _tell(opened)
        self._wake_sender()
        return True

    def _close_others(self, book: IncidentLog, incident: Incident) -> None:
        """Never two open for one source and condition: whoever knew of the earlier one has forgotten it."""
        for other in book.open_incidents():
            if place_of(other) == place_of(incident) and other.id != incident.id:
                self._keep(book, ended_now(other, SUPERSEDED), {})

    def _pack(
        self, transition: Transition, files: Mapping[str, bytes], earlier: list[str], *, muted: bool = False
    ) -> tuple[Manifest, dict[str, bytes]]:
        """The job of a transition. Its incident.json names the evidence of earlier transitions too."""
        incident, wall_ns, synchronised = transition.incident, time.time_ns(), self._synchronised()
        items = [_item(incident, name, content) for name, content in files.items()]
        keys = {name: _key(incident, name) for name in sorted({*earlier, *files})}
        told = {
            "schema": 1,
            "transition": transition.kind,
            **describe_incident(incident),
            "notes": transition.notes,
            "evidence": keys,
            **references(keys, self._store.url, timestamp(wall_ns)),
            "clock_synchronised": synchronised,
            "muted": muted,
            "incident": incident,
        }
        content = {**files, INCIDENT_FILE: msgspec.json.encode(told)}
        items.append(_item(incident, INCIDENT_FILE, content[INCIDENT_FILE]))  # last: with it, all is there
        manifest = Manifest(incident.id, transition.kind, incident.source, wall_ns, items, synchronised, muted)
        return manifest, content

    def _set_aside(self, folder: str, cause: str) -> None:
        log.error(event("held incident damaged, set aside", folder=os.path.basename(folder), cause=cause))
        self._hold.set_aside(folder)
        self._count("hold_damaged")

    # -- back from the sender -----------------------------------------------------------------------------------------

    def _settle(self, book: IncidentLog) -> bool:
        """Write down what became of one job, then remove it: a kill in between has it handed back again."""
        self._collect()
        if not self._back:
            return False
        job = self._back[0]
        book.settle(number_of(job.folder), job.evidence, job.incident, job.refs, untold=job.untold)
        self._release(job)
        self._back.popleft()
        return True

    def _collect(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._back.append(self._settled.get_nowait())

    def _release(self, job: Settled) -> None:
        if job.evidence == "stored" and not job.last:
            self._spool.shrink(job.folder)
        elif job.evidence == "stored":
            self._spool.finish(job.folder)
        elif job.last:
            self._spool.set_aside(job.folder)
        self._bounds.added(job.size)

    # -- bounds -------------------------------------------------------------------------------------------------------

    def _keep_bounds(self, book: IncidentLog, now_ns: int, worked: bool) -> None:
        """Let go what exceeds a bound, and write down what went."""
        bounds = self._bounds
        bounds.keep(now_ns, grown=worked)
        while bounds.dropped and self._settle(book):  # what is stored already was only waiting to be told
            pass
        for number, _ in bounds.dropped:  # first, so that a kill in between has it done again
            if book.evidence(number) != "stored":
                self._spool.leave_out(*book.files_of(number))
        for incident, _ in bounds.dropped_stored:
            self._spool.leave_out(incident, book.kept_files(incident, "stored"))
        if bounds.dropped:
            book.drop(bounds.dropped)
            bounds.dropped = []
        if bounds.dropped_stored:
            book.drop_stored(bounds.dropped_stored)
            bounds.dropped_stored = []
        while self._uncounted:
            name = next(iter(self._uncounted))
            book.count(name, self._uncounted[name])
            del self._uncounted[name]

    def _count(self, name: str) -> None:
        self._uncounted[name] = self._uncounted.get(name, 0) + 1

    # -- trouble ------------------------------------------------------------------------------------------------------

    def _failed(self, error: OSError | sqlite3.Error, now_ns: int) -> None:
        """Wait, make room where there is none, and begin the incident log anew where it is no log."""
        if isinstance(error, sqlite3.Error):
            self._close_book()  # its file is opened anew: what a failed fsync has left in it is not trusted
        if incidentlog.is_damaged(error):
            with suppress(OSError):
                where = incidentlog.set_aside(self._settings.state_dir)
                log.error(event("incident log damaged, begun anew", old=where, cause=error))
                self._count("log_damaged")
                self._trouble.failed(now_ns, 0.1)
                return
        with suppress(OSError):
            if self._is_full(error):
                self._make_room(now_ns)
        cause = describe(error) if isinstance(error, OSError) else str(error)
        if self._trouble.failed(now_ns):
            values: dict[str, object] = {"cause": cause}
            with suppress(OSError):
                values["waiting"] = len(self._hold.waiting())
            values |= {"failures": self._trouble.failures, "retry_in_s": self._trouble.delay_s}
            log.error(event("incidents not kept", **values))

    def _is_full(self, error: OSError | sqlite3.Error) -> bool:
        """Whether the disk is full. A log that is opened on a full one lacks its shared memory: an I/O error."""
        if isinstance(error, OSError):
            return error.errno in _FULL
        unopened = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE
        return incidentlog.is_full(error) or (unopened and not free_bytes(self._settings.state_dir))

    def _make_room(self, now_ns: int) -> None:
        """Unlink: first what is stored already, then the oldest evidence. The log would need room to say so first."""
        self._collect()
        stored = [job.folder for job in self._back if job.evidence == "stored" and os.path.isdir(job.folder)]
        for folder in stored:
            self._spool.finish(folder)
        if stored:
            return
        self._bounds.make_room(now_ns)


def ended_now(incident: Incident, reason: str) -> Transition:
    """An incident that nobody follows any more, closed as of now."""
    end = Sighting(incident.onset.time_ns, time.time_ns(), -1, "", FrameId(0, 0, 0, 0))
    return Transition("closed", replace(incident, across_restart=True, recovery=None).ended(end, reason))


def _key(incident: Incident, name: str) -> str:
    return evidence_key(incident.condition, incident.host, incident.source, incident.id, name)


def _item(incident: Incident, name: str, content: bytes) -> Item:
    kind = "application/json" if name == INCIDENT_FILE else "image/jpeg"
    return Item(name, _key(incident, name), kind, len(content), hashlib.sha256(content).hexdigest())


def _tell(transition: Transition, *, muted: bool = False) -> None:
    incident = transition.incident
    values: dict[str, object] = {"source": incident.source, "condition": incident.condition, "id": incident.id}
    if muted:
        values["muted"] = "yes"
    if transition.kind == "opened":
        since, level = timestamp(incident.onset.wall_ns), logging.INFO if muted else logging.WARNING
        log.log(level, event("incident opened", **values, since=since))
        return
    values["duration_s"] = f"{incident.duration_s:.1f}"
    log.info(event("incident closed", **values, frames=incident.coverage.describe(), reason=incident.reason))
