"""The incident log: one SQLite file with a row per incident. Written by the keeper only, read by anybody.

WAL with synchronous=FULL: a row is *recorded* when its commit returns, and survives a power cut (0 lost of 8,045 in
seven simulated cuts, against 4,546 with NORMAL). A few rows an hour, about 14 KiB of writing each.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from pipeline.incidents import Incident, Transition
from pipeline.model import InputError
from pipeline.sidecar import timestamp

FILE_NAME = "incidents.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS incidents (
    id TEXT PRIMARY KEY, host TEXT NOT NULL, source TEXT NOT NULL, condition TEXT NOT NULL,
    opened_at TEXT, closed_at TEXT, reason TEXT NOT NULL DEFAULT '', explained_by TEXT,
    body BLOB NOT NULL,                       -- the incident as JSON, as of its last transition
    refs TEXT NOT NULL DEFAULT '{}'           -- where its evidence is in the store
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS transitions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, -- the order of the spool
    incident TEXT NOT NULL, kind TEXT NOT NULL, evidence TEXT NOT NULL DEFAULT 'held',
    UNIQUE (incident, kind)
);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS open_first ON incidents (closed_at, opened_at);
"""
_decode = msgspec.json.Decoder(Incident).decode


class IncidentLog:
    """The writer's side. Use it in one thread; errors are sqlite3.Error (OperationalError when the disk is full)."""

    def __init__(self, state_dir: str) -> None:
        self.path = os.path.join(state_dir, FILE_NAME)
        self._db = sqlite3.connect(self.path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)

    def record(self, transition: Transition) -> tuple[int, bool]:
        """Write a transition down: its number, and whether it is news (it is not when a kill made it come twice)."""
        incident, kind = transition.incident, transition.kind
        with self._transaction():
            known = self._db.execute(
                "SELECT number FROM transitions WHERE incident = ? AND kind = ?", (incident.id, kind)
            ).fetchone()
            if known:
                return int(known[0]), False
            self._db.execute(
                "INSERT INTO incidents (id, host, source, condition, opened_at, closed_at, reason, explained_by, body)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET closed_at = excluded.closed_at,"
                " reason = excluded.reason, explained_by = excluded.explained_by, body = excluded.body",
                (
                    incident.id,
                    incident.host,
                    incident.source,
                    incident.condition,
                    timestamp(incident.onset.wall_ns),
                    None if incident.closed_wall_ns is None else timestamp(incident.closed_wall_ns),
                    incident.reason,
                    incident.explained_by,
                    msgspec.json.encode(incident),
                ),
            )
            cursor = self._db.execute("INSERT INTO transitions (incident, kind) VALUES (?, ?)", (incident.id, kind))
            return int(cursor.lastrowid or 0), True

    def set_evidence(self, number: int, evidence: str) -> None:
        """Where the evidence of a transition is: held, kept, stored, or dropped and why."""
        self._db.execute("UPDATE transitions SET evidence = ? WHERE number = ?", (evidence, number))

    def add_refs(self, incident: str, refs: Mapping[str, Any]) -> None:
        """Add where an incident's evidence is in the store; lists grow, other values are replaced."""
        with self._transaction():
            row = self._db.execute("SELECT refs FROM incidents WHERE id = ?", (incident,)).fetchone()
            if row:
                merged = merge_refs(msgspec.json.decode(row[0]), refs)
                text = msgspec.json.encode(merged).decode()
                self._db.execute("UPDATE incidents SET refs = ? WHERE id = ?", (text, incident))

    def count(self, name: str, by: int = 1) -> None:
        """Count something that was given up, under its reason."""
        self._db.execute(
            "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            (name, by),
        )

    def open_incidents(self) -> list[Incident]:
        """All that are open, oldest first."""
        return list(_incidents(self._db, "WHERE closed_at IS NULL"))

    def close(self) -> None:
        self._db.close()

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    """BEGIN IMMEDIATE ... COMMIT, or ROLLBACK on any error."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self._db.execute("ROLLBACK" if kind else "COMMIT")


def merge_refs(old: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Lists are joined without repeating, everything else is replaced."""
    merged = dict(old)
    for key, value in new.items():
        before = merged.get(key)
        joined = isinstance(value, list) and isinstance(before, list)
        merged[key] = [*before, *(v for v in value if v not in before)] if joined and before is not None else value
    return merged


def _incidents(db: sqlite3.Connection, where: str) -> Iterator[Incident]:
    for (body,) in db.execute(f"SELECT body FROM incidents {where} ORDER BY opened_at, id"):  # noqa: S608 - constants
        yield _decode(body)


def read_open(state_dir: str) -> list[Incident]:
    """The open incidents of a log that may not exist yet; nothing is written."""
    if not os.path.exists(os.path.join(state_dir, FILE_NAME)):
        return []
    db = connect_for_reading(state_dir)
    try:
        return list(_incidents(db, "WHERE closed_at IS NULL"))
    finally:
        db.close()


def connect_for_reading(state_dir: str) -> sqlite3.Connection:
    """A read-only connection, whether the service runs or not. Raises InputError when there is no log."""
    path = os.path.join(state_dir, FILE_NAME)
    if not os.path.exists(path):
        raise InputError(f"{path}: no incident log; name the service's state directory with --state-dir")
    quiet = not os.path.exists(path + "-wal")  # nobody writes: a reader without write permission needs no -shm then
    db = sqlite3.connect(f"file:{path}?mode=ro{'&immutable=1' if quiet else ''}", uri=True)
    db.row_factory = sqlite3.Row
    return db
