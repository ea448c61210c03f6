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

from pipeline import config, console, incidentlog
from pipeline.incidents import Incident
from pipeline.model import Exit, InputError
from pipeline.store import ObjectStore, open_store, r2_settings

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
    add("--state-dir", metavar="DIR", help="the service's state directory (default: where `run` would put it)")
    add("--source", metavar="NAME", help="of this source only")
    add("--since", type=_instant, metavar="WHEN", help="opened or still open since: 90m, 24h, 7d, or 2026-11-22T10:00")
    add("--json", action="store_true", help="one line of JSON per incident")
    add("--url", action="store_true", help=f"links to the evidence, valid for {URL_S // 3600} h")


def run(arguments: argparse.Namespace) -> int:
    """List the incidents."""
    state_dir = arguments.state_dir or config.default_state_dir(os.environ)
    store = open_store(r2_settings(os.environ, os.environ.get("CREDENTIALS_DIRECTORY")), f"{state_dir}/store")
    try:
        found = list(read(state_dir, arguments.source, arguments.since, store if arguments.url else None))
    except sqlite3.Error as error:
        raise InputError(f"{state_dir}: incident log not readable: {error}; ask as a user of its group") from error
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
        incident = incidentlog.describe_incident(msgspec.json.decode(row["body"], type=Incident))
        if not row["closed_at"]:
            incident["duration_s"] = _age_s(row["opened_at"])
        refs = msgspec.json.decode(row["refs"])
        incident |= {"evidence": evidence.get(row["id"], {}), **refs}
        if store is not None:
            keys = [*refs.get("original_r2_paths", []), *refs.get("thumbnail_r2_paths", [])]
            incident["urls"] = [store.url(key, expires_s=URL_S) for key in keys]
        yield incident


def _row(incident: dict[str, Any]) -> list[object]:
    lasted = f"{incident['duration_s']:.1f} s" + ("" if incident["closed_at"] else ", OPEN")
    opened = (incident["opened_at"] or "?")[:19].replace("T", " ")
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
    if not opened_at:
        return 0.0
    return max(0.0, round((datetime.now(UTC) - datetime.fromisoformat(opened_at)).total_seconds(), 3))


def _instant(text: str) -> datetime:
    """`24h` ago, or an ISO date; without a zone it is UTC, as everything in the log."""
    if match := re.fullmatch(r"(\d{1,6})([smhd])", text):
        unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[match[2]]
        return datetime.now(UTC) - timedelta(**{unit: int(match[1])})
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither like 24h nor like 2026-11-22T10:00") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)
