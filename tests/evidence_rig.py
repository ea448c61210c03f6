"""A whole service whose incidents open and close at once: for faults under the evidence path.

The rule for black has no duration, so that two black frames open an incident and two live ones close it.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path

from pipeline.hold import HOLD_DIR, Hold
from pipeline.store import R2Settings
from tests import uploads
from tests.live import source_row
from tests.machine import FaultRig, WallClock
from tests.support import frame_name, make_frame, plain_frame, sidecars, wait_until

AT_ONCE = "raise_s = 0\nclear_s = 0"
SETTINGS = """
min_free_bytes = 0
host = "rig1"
{more}
"""
SOURCE = """
[[source]]
name = "{name}"
dir = "{dir}"
stall_s = 1e6
[source.rules.black]
{rule}
"""


class EvidenceRig(FaultRig):
    """A service with a file of settings (`more` and the `rule` for black are TOML), over R2 if it is told how."""

    def __init__(
        self,
        base: Path,
        *flags: str,
        sources: tuple[str, ...] = ("a",),
        state: Path | None = None,
        rule: str = AT_ONCE,
        more: str = "",
        r2: R2Settings | None = None,
        **environment: str,
    ) -> None:
        self.state = state or base / "state"
        super().__init__(base, f"--state-dir={self.state}", *flags, sources=sources)
        plain = {name: value for name, value in self.environment.items() if not name.startswith("CLOUDFLARE_R2_")}
        self.environment = {**plain, **(uploads.r2_environment(r2) if r2 else {}), **environment}
        self.clock: WallClock | None = None  # that the service and its frames go by
        self.settings = uploads.make_settings(base, state_dir=str(self.state))
        self.config = base / "settings.toml"
        tables = [SOURCE.format(name=name, dir=directory, rule=rule) for name, directory in self.dirs.items()]
        self.config.write_text("".join([SETTINGS.format(more=more), *tables]), encoding="utf-8")

    @property
    def command(self) -> list[str]:
        words = super().command
        if not self.clock:
            return words
        at = len(self.wrapper)  # not for the wrapper: what its programs leave in /dev/shm, nobody removes
        return [*words[:at], "env", *(f"{name}={value}" for name, value in self.clock.environment.items()), *words[at:]]

    # -- frames -------------------------------------------------------------------------------------------------------

    def prepare(self, scenes: str, source: str | None = None) -> list[Path]:
        """Write a frame for every letter, `l`ive or `b`lack, under the names that `release` takes from them."""
        name = source or next(iter(self.dirs))
        written = []
        for scene in scenes:
            number = len(self.published[name]) + 1
            self.published[name].append(number)
            path = self.dirs[name] / f"{frame_name(number)}.tmp"
            path.write_bytes(plain_frame(0) if scene == "b" else make_frame(number % 50))
            if self.clock:
                os.utime(path, (now_s := time.time() + self.clock.ahead_s, now_s))
            written.append(path)
        return written

    def release(self, prepared: Iterable[Path]) -> None:
        """Publish by rename, and wait until all of the source are judged; their sidecars may be missing."""
        for path in prepared:
            path.rename(path.with_suffix(""))
        lane = list(self.dirs.values()).index(path.parent)
        newest = self.published[path.parent.name][-1]
        wait_until(lambda: source_row(self, lane).last_number >= newest, 20, f"frame {newest} judged")

    def show(self, scenes: str, source: str | None = None) -> None:
        """Publish these frames, and wait until they are judged."""
        self.release(self.prepare(scenes, source))

    def begin(self, source: str | None = None) -> str:
        """Open an incident; its id, by the sidecar that names it."""
        self.show("llbb", source)
        name = source or next(iter(self.dirs))
        newest = sidecars(self.dirs[name])[self.published[name][-1]]
        (opened,) = newest["incident_ids"]
        return str(opened)

    def end(self, source: str | None = None) -> None:
        """Close it."""
        self.show("ll", source)

    # -- what became of it --------------------------------------------------------------------------------------------

    def evidence(self) -> dict[tuple[str, str], str]:
        """Where the incident log says the evidence of each transition is; nothing while there is no log."""
        try:
            return uploads.evidence(self.settings)
        except sqlite3.Error:
            return {}

    def wait_log(self) -> None:
        """Wait until the keeper has opened the incident log."""
        wait_until(self._has_log, 20, "the incident log")

    def _has_log(self) -> bool:
        try:
            return uploads.rows(self.settings, "SELECT COUNT(*) FROM transitions") != []
        except sqlite3.Error:
            return False

    def wait_evidence(self, expected: dict[tuple[str, str], str], timeout_s: float = 30.0) -> None:
        """Wait until the log says exactly this."""
        try:
            wait_until(lambda: self.evidence() == expected, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{self.evidence()} is not {expected}\n{self.log}") from error

    def held(self) -> list[str]:
        """What workers have handed over and the keeper has not taken yet."""
        return Hold(os.path.join(self.base, "run", HOLD_DIR), 0).waiting()

    def stored(self) -> dict[str, bytes]:
        """Every object of the local store."""
        return uploads.all_files(self.state / "store")


class QuickRig(EvidenceRig):
    """The same with the uploader of `tests.quick_service`."""

    @property
    def command(self) -> list[str]:
        return ["tests.quick_service" if word == "pipeline" else word for word in super().command]


def opened(*incidents: str, where: str = "stored") -> dict[tuple[str, str], str]:
    """What the log says of incidents that are open."""
    return {(incident, "opened"): where for incident in incidents}


def ended(*incidents: str, where: str = "stored") -> dict[tuple[str, str], str]:
    """What the log says of incidents that have come and gone."""
    return {(incident, kind): where for incident in incidents for kind in ("opened", "closed")}
