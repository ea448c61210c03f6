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
import re
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec
from msgspec.structs import replace

from pipeline import clock, incidentlog
from pipeline.backoff import LOG_EVERY_NS, Backoff
from pipeline.bounds import StoreBounds
from pipeline.child import event, log
from pipeline.hold import HOLD_DIR, DamagedHold, Hold
from pipeline.incidentlog import IncidentLog, describe_incident
from pipeline.incidents import Incident, Sighting, Transition
from pipeline.model import FrameId, describe
from pipeline.settings import Settings
from pipeline.sidecar import timestamp
from pipeline.spool import INCIDENT_FILE, Item, Limits, Manifest, Settled, SettledQueue, Spool, number_of, references
from pipeline.store import LocalStore, ObjectStore, StoreError, evidence_key

UNCONFIGURED = "source no longer configured"
SUPERSEDED = "superseded"
LAST_TRY_S = 30.0  # between tries while the disk refuses
ROOM_BYTES = 2**20  # made on a full disk, whatever the bound: rows and the next evidence
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KINDS = ("opened", "closed")


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
        self._limits = Limits(settings.spool_max_bytes, settings.spool_max_age_s, settings.min_free_bytes)
        store_limits = Limits(settings.store_max_bytes, settings.store_max_age_s, settings.min_free_bytes)
        self._bounds = StoreBounds(store, store_limits) if isinstance(store, LocalStore) else None
        self._book: IncidentLog | None = None
        self._back: deque[Settled] = deque()  # from the sender, not written down yet
        self._dropped: list[tuple[int, str]] = []  # given up, not written down yet
        self._dropped_stored: list[tuple[str, str]] = []
        self._uncounted: dict[str, int] = {}
        self._unsaid: dict[tuple[str, str], int] = {}  # given up, not in the text log yet
        self._say_due_ns = 0
        self._bounds_due_ns = 0
        self._trouble = Backoff(cap_s=LAST_TRY_S)

    def step(self, now_ns: int) -> bool:
        """Do one piece of work; False when there is none, or the disk must be waited for (see `wait_s`)."""
        if now_ns < self._trouble.due_ns:
            return False
        try:
            book = self._book or self._open()
            worked = self._settle(book) or self._keep_oldest(book)
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
        """Close the incident log."""
        if self._book:
            self._book.close()
            self._book = None

    # -- start ------------------------------------------------------------------------------------------------------

    def _open(self) -> IncidentLog:
        os.makedirs(self._settings.state_dir, mode=0o750, exist_ok=True)
        self._spool.recover()
        book = IncidentLog(self._settings.state_dir)
        try:
            there = {number_of(folder) for folder in self._spool.jobs()}
            book.start_after(max(there, default=0))
            self._close_unconfigured(book)
            # Given up, and killed before that could be written down:
            known = there | {number for number, _ in self._dropped} | {number_of(job.folder) for job in self._back}
            known |= {number_of(folder) for folder in self._spool.jobs()}
            self._dropped += [(number, "lost") for number in book.numbers("kept") if number not in known]
        except BaseException:
            book.close()
            raise
        self._book = book
        self._wake_sender()
        return book

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
            transition = _decode(body)
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
        number, news = book.record(transition)
        if news:
            _tell(transition)
        if book.evidence(number) == "held":
            manifest, content = self._pack(transition, files, book.kept_files(transition.incident.id))
            self._spool.keep(number, manifest, content)
            book.set_kept(number, files)
            self._wake_sender()

    def _close_others(self, book: IncidentLog, incident: Incident) -> None:
        """Never two open for one source and condition: whoever knew of the earlier one has forgotten it."""
        place = (incident.host, incident.source, incident.condition)
        for other in book.open_incidents():
            if (other.host, other.source, other.condition) == place and other.id != incident.id:
                self._keep(book, ended_now(other, SUPERSEDED), {})

    def _pack(
        self, transition: Transition, files: Mapping[str, bytes], earlier: list[str]
    ) -> tuple[Manifest, dict[str, bytes]]:
        """The job of a transition. Its incident.json names the evidence of earlier transitions too."""
        incident, wall_ns = transition.incident, time.time_ns()
        items = [_item(incident, name, content) for name, content in files.items()]
        keys = {name: _key(incident, name) for name in sorted({*earlier, *files})}
        told = {
            "schema": 1,
            "transition": transition.kind,
            **describe_incident(incident),
            "evidence": keys,
            **references(keys, self._store.url, timestamp(wall_ns)),
            "clock_synchronised": self._synchronised(),
            "incident": incident,
        }
        content = {**files, INCIDENT_FILE: msgspec.json.encode(told)}
        items.append(_item(incident, INCIDENT_FILE, content[INCIDENT_FILE]))  # last: with it, all is there
        return Manifest(incident.id, transition.kind, incident.source, wall_ns, items), content

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
        book.settle(number_of(job.folder), job.evidence, job.incident, job.refs)
        self._release(job)
        self._back.popleft()
        return True

    def _collect(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._back.append(self._settled.get_nowait())

    def _release(self, job: Settled) -> None:
        if job.evidence == "stored":
            self._spool.finish(job.folder)
        else:
            self._spool.set_aside(job.folder)
        if self._bounds:
            self._bounds.added(job.size)

    # -- bounds -------------------------------------------------------------------------------------------------------

    def _keep_bounds(self, book: IncidentLog, now_ns: int, worked: bool) -> None:
        """After everything that may have grown, and now and then for age."""
        if worked or now_ns >= self._bounds_due_ns:
            self._bounds_due_ns = now_ns + 600 * 10**9
            self._give_up(now_ns, self._limits)
        self._say_what_went(now_ns)
        if self._dropped:
            book.drop(self._dropped)
            self._dropped = []
        if self._dropped_stored:
            book.drop_stored(self._dropped_stored)
            self._dropped_stored = []
        while self._uncounted:
            name = next(iter(self._uncounted))
            book.count(name, self._uncounted[name])
            del self._uncounted[name]

    def _give_up(self, now_ns: int, limits: Limits, at_least: int = 0) -> None:
        """Let the oldest evidence go where a bound is exceeded: stored here before still waiting."""
        wall_ns = time.time_ns() if self._synchronised() else None
        stored: list[tuple[str, str]] = []
        if self._bounds:
            with suppress(StoreError):  # the sender meets the same disk, and says so
                stored = self._bounds.give_up_oldest(now_ns, wall_ns)
                self._dropped_stored += stored
        dropped = self._spool.give_up_oldest(limits, wall_ns, at_least=at_least)
        self._dropped += dropped
        for place, gone in (("store", stored), ("spool", dropped)):
            for _, reason in gone:
                self._unsaid[place, reason] = self._unsaid.get((place, reason), 0) + 1

    def _say_what_went(self, now_ns: int) -> None:
        """Tell what was given up, at most every 30 s."""
        if self._unsaid and now_ns >= self._say_due_ns:
            self._say_due_ns = now_ns + LOG_EVERY_NS
            for (place, reason), count in self._unsaid.items():
                log.warning(event("evidence given up", place=place, reason=reason, count=count))
            self._unsaid = {}

    def _count(self, name: str) -> None:
        self._uncounted[name] = self._uncounted.get(name, 0) + 1

    # -- trouble ------------------------------------------------------------------------------------------------------

    def _failed(self, error: OSError | sqlite3.Error, now_ns: int) -> None:
        """Wait, make room where there is none, and begin the incident log anew where it is no log."""
        if isinstance(error, sqlite3.Error):
            self.close()  # its file is opened anew: what a failed fsync has left in it is not trusted
        if incidentlog.is_damaged(error):
            with suppress(OSError):
                where = incidentlog.set_aside(self._settings.state_dir)
                log.error(event("incident log damaged, begun anew", old=where, cause=error))
                self._count("log_damaged")
                self._trouble.failed(now_ns, 0.1)
                return
        if (isinstance(error, OSError) and error.errno in _FULL) or incidentlog.is_full(error):
            with suppress(OSError):
                self._make_room(now_ns)
        cause = describe(error) if isinstance(error, OSError) else str(error)
        if self._trouble.failed(now_ns):
            values: dict[str, object] = {"cause": cause}
            with suppress(OSError):
                values["waiting"] = len(self._hold.waiting())
            values |= {"failures": self._trouble.failures, "retry_in_s": self._trouble.delay_s}
            log.error(event("incidents not kept", **values))

    def _make_room(self, now_ns: int) -> None:
        """Unlink: first what is stored already, then the oldest evidence. The log would need room to say so first."""
        self._collect()
        stored = [job.folder for job in self._back if job.evidence == "stored" and os.path.isdir(job.folder)]
        for folder in stored:
            self._spool.finish(folder)
        if stored:
            return
        self._give_up(now_ns, replace(self._limits, min_free_bytes=max(self._limits.min_free_bytes, ROOM_BYTES)), 1)


def ended_now(incident: Incident, reason: str) -> Transition:
    """An incident that nobody follows any more, closed as of now."""
    end = Sighting(incident.onset.time_ns, time.time_ns(), -1, "", FrameId(0, 0, 0, 0))
    return Transition("closed", replace(incident, across_restart=True, recovery=None).ended(end, reason))


def _decode(body: bytes) -> Transition:
    try:
        transition = msgspec.json.decode(body, type=Transition)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DamagedHold(f"transition: {error}") from error
    if transition.kind not in _KINDS or not _ID.fullmatch(transition.incident.id):
        raise DamagedHold("transition: not one that is handed over")
    return transition


def _key(incident: Incident, name: str) -> str:
    return evidence_key(incident.condition, incident.host, incident.source, incident.id, name)


def _item(incident: Incident, name: str, content: bytes) -> Item:
    kind = "application/json" if name == INCIDENT_FILE else "image/jpeg"
    return Item(name, _key(incident, name), kind, len(content), hashlib.sha256(content).hexdigest())


def _tell(transition: Transition) -> None:
    incident = transition.incident
    values: dict[str, object] = {"source": incident.source, "condition": incident.condition, "id": incident.id}
    if transition.kind == "opened":
        since = timestamp(incident.onset.wall_ns)
        log.log(logging.WARNING, event("incident opened", **values, since=since))
        return
    values["duration_s"] = f"{incident.duration_s:.1f}"
    log.info(event("incident closed", **values, frames=incident.coverage.describe(), reason=incident.reason))
