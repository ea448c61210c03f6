"""The `incidents` command as a process, over logs that the real keeper wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from pipeline.incidents import Incident
from tests.support import ROOT
from tests.uploads import Desk, S, incident, make_hold, make_settings, publish

PLAIN = {n: v for n, v in os.environ.items() if not n.startswith("CLOUDFLARE_R2_") and n != "PYTHONUNBUFFERED"}
PLAIN["PYTHONPATH"] = str(ROOT)
"""As a person's: no store configured, and output that is buffered."""


def command(state_dir: str | Path, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "pipeline", "incidents", f"--state-dir={state_dir}", *arguments]


def listed(
    state_dir: str | Path,
    *arguments: str,
    wrapper: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run(
        [*wrapper, *command(state_dir, *arguments)],
        env={**PLAIN, **(environment or {})},
        capture_output=True,
        encoding="utf-8",
        timeout=30,
    )


def lines(state_dir: str | Path, *arguments: str, **options: Any) -> list[dict[str, Any]]:
    """The incidents as `--json` tells them; the command must succeed without a complaint."""
    done = listed(state_dir, "--json", *arguments, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.split("\n")[:-1]]


def table(text: str) -> list[list[str]]:
    """The cells of a table, row by row, without its heading."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def aged(number: int, age_s: float, source: str = "stb1", condition: str = "black") -> Incident:
    """An incident whose onset was so long ago; ended, it has lasted 30 s."""
    what, wall_ns = incident(number, source, condition), int((datetime.now(UTC).timestamp() - age_s) * S)
    return replace(what, onset=replace(what.onset, wall_ns=wall_ns))


def written(base: Path, *incidents: Incident, store: Any = None) -> str:
    """A state directory whose log the keeper wrote: these opened, those with a duration of 30 s closed too."""
    desk = Desk(make_settings(base, source=()), store)
    hold = make_hold(desk.settings)
    for what in incidents:
        publish(hold, replace(what, closed_wall_ns=None, duration_s=10.0, reason=""))
        if what.closed_wall_ns is not None:
            publish(hold, what, "closed")
    desk.settle()
    desk.settle()
    desk.close()
    return desk.settings.state_dir


def ids(found: list[dict[str, Any]]) -> list[int]:
    return [int(one["id"], 16) for one in found]
