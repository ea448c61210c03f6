"""`incidents`: what went wrong, open ones first, read from the incident log whether the service runs or not."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sqlite3
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from pipeline import console, incidentlog, installed
from pipeline.incidents import Incident
from pipeline.model import Exit, InputError
from pipeline.store import ENVIRONMENT_PREFIX, LocalStore, ObjectStore, open_store, r2_settings

URL_S = 24 * 3600
EPILOG = """\
examples:
  ./stillwatch incidents --since 24h            open ones first, then what was closed in the last day
  ./stillwatch incidents --source stb1 --json   one line per incident, to pipe
  ./stillwatch incidents --url --since 1h       with links to the pictures, valid for a day

Exit codes: 0 listed (also when there are none), 66 there is no incident log.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `incidents`."""
    add = parser.add_argument
    add("--config", metavar="FILE", help="the service's settings: they name its directories")
    add("--state-dir", metavar="DIR", help=f"the service's state directory ({installed.WHICH})")
    add("--source", type=console.utf8, metavar="NAME", help="of this source only")
    add("--since", type=_instant, metavar="WHEN", help="opened or still open since: 90m, 24h, 7d, or 2026-11-22T10:00")
    add("--json", action="store_true", help="one line of JSON per incident")
    add("--url", action="store_true", help=f"links to the evidence, valid for {URL_S // 3600} h")


def run(arguments: argparse.Namespace) -> int:
    """List the incidents."""
    state_dir = installed.settings_for_reading(arguments).state_dir
    store = _store(state_dir) if arguments.url else None
    try:
        found = list(read(state_dir, arguments.source, arguments.since, store))
    except sqlite3.Error as error:
        hint = "ask as a user of its group"
        if incidentlog.is_damaged(error):
            hint = "it is damaged: the service sets it aside and begins a new one when it starts"
        raise InputError(f"{state_dir}: incident log not readable: {error}; {hint}") from error
    if arguments.json:
        for incident in found:
            sys.stdout.write(msgspec.json.encode(incident).decode() + "\n")
    elif found:
        columns = ["source", "condition", "opened (UTC)", "lasted", "frames", "evidence", "id"]
        console.print_table("incidents", columns, [_row(incident) for incident in found])
        for incident in found if arguments.url else ():
            for url in incident["urls"]:
                console.say(f"{incident['id']}  {url}")
    else:
        console.say("no incidents")
    return Exit.OK


def _store(state_dir: str) -> ObjectStore:
    """Where the service stores evidence, if this environment is the service's."""
    return open_store(r2_settings(os.environ, os.environ.get("CREDENTIALS_DIRECTORY")), f"{state_dir}/store")


def read(
    state_dir: str, source: str | None = None, since: datetime | None = None, store: ObjectStore | None = None
) -> Iterator[dict[str, Any]]:
    """The incidents of a log, open ones first, then the newest. `since` also keeps what was open then."""
    with contextlib.closing(incidentlog.connect_for_reading(state_dir)) as db:
        rows = db.execute(
            "SELECT * FROM incidents WHERE (:source IS NULL OR source = :source)"
            " AND (:since IS NULL OR closed_at IS NULL OR closed_at >= :since)"
            " ORDER BY closed_at IS NOT NULL, opened_at DESC",
            {"source": source, "since": since and since.isoformat(timespec="microseconds")},
        ).fetchall()
        evidence: dict[str, dict[str, str]] = {}
        for transition in db.execute("SELECT incident, kind, evidence FROM transitions"):
            evidence.setdefault(transition["incident"], {})[transition["kind"]] = transition["evidence"]
    for row in rows:
        incident = _about(row)
        if not row["closed_at"]:
            incident["duration_s"] = _age_s(row["opened_at"])
        refs = incidentlog.decode_refs(row["refs"])
        incident |= _added_later(dict(row)) | {"evidence": evidence.get(row["id"], {}), **refs}
        if store is not None:
            incident["urls"] = _links(refs, store)
        yield incident


def _added_later(row: dict[str, Any]) -> dict[str, Any]:
    """What the logs of earlier versions do not have."""
    return {
        "muted": bool(row.get("muted", False)),
        "notes": incidentlog.decode_notes(row.get("notes", "[]")),
        "clock_synchronised": bool(row.get("clock_synchronised", True)),
    }


def _links(refs: dict[str, Any], store: ObjectStore) -> list[str]:
    """Links to the pictures of an incident. Raises InputError for those in R2 where only the service could sign."""
    found = []
    for key, url in incidentlog.places(refs):
        if url.startswith("file:"):
            found.append(url)
        elif isinstance(store, LocalStore):
            raise InputError(
                "the evidence is in R2, and this environment has not its settings: "
                f"set the {ENVIRONMENT_PREFIX}* variables that the service has"
            )
        else:
            found.append(store.url(key, expires_s=URL_S))
    return found


def _about(row: sqlite3.Row) -> dict[str, Any]:
    """An incident by its body; by the other columns where that is damaged: the file as a whole is still good."""
    try:
        return incidentlog.describe_incident(msgspec.json.decode(row["body"], type=Incident))
    except (msgspec.MsgspecError, ValueError):
        columns = ("id", "host", "source", "condition", "opened_at", "closed_at", "reason", "explained_by")
        state, lasted_s = ("closed" if row["closed_at"] else "open"), _between_s(row["opened_at"], row["closed_at"])
        unknown = {"duration_s": lasted_s, "coverage": "damaged", "across_restart": None, "readings": {}}
        return {"state": state, **{name: row[name] for name in columns}, **unknown}


def _row(incident: dict[str, Any]) -> list[object]:
    lasted = f"{incident['duration_s']:.1f} s" + ("" if incident["closed_at"] else ", OPEN")
    lasted += ", muted" if incident["muted"] else ""
    opened = (incident["opened_at"] or "?")[:19].replace("T", " ")
    opened += "" if incident["clock_synchronised"] else " (clock not set)"
    evidence = " ".join(f"{kind}:{where}" for kind, where in incident["evidence"].items())
    return [
        incident["source"],
        incident["condition"],
        opened,
        lasted,
        incident["coverage"],
        evidence,
        incident["id"],
    ]


def _age_s(opened_at: str | None) -> float:
    """How long an open incident has lasted, by the wall clock: a figure for people."""
    return _between_s(opened_at, datetime.now(UTC).isoformat())


def _between_s(earlier: str | None, later: str | None) -> float:
    if not earlier or not later:
        return 0.0
    try:
        length = datetime.fromisoformat(later) - datetime.fromisoformat(earlier)
    except (ValueError, TypeError):  # a damaged cell
        return 0.0
    return max(0.0, round(length.total_seconds(), 3))


def _instant(text: str) -> datetime:
    """`24h` ago, or an ISO date; without a zone it is UTC, as everything in the log."""
    try:
        if match := re.fullmatch(r"([0-9]{1,12})([smhd])", text):
            unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[match[2]]
            return datetime.now(UTC) - timedelta(**{unit: int(match[1])})
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except OverflowError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is beyond the calendar") from error
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither like 24h nor like 2026-11-22T10:00") from error
