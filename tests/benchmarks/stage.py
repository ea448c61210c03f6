"""Where the evidence path is measured: a bucket, a disk, and a running service that is shown live scenes."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.model import Rule
from pipeline.store import R2Settings
from tests.benchmarks.tools import Latencies
from tests.machine import FaultRig
from tests.recordings import (
    Live,
    Script,
    check_evidence,
    cycle,
    logged_incidents,
    objects_of,
    r2_environment,
    scenes_config,
)
from tests.s3_servers import Certificate, make_certificate, seaweedfs
from tests.support import wait_until

WRONG_SECRET = "x" * 40
RULES = {"black": Rule(1.05, 0.65), "freeze": Rule(1.05, 0.65)}
SCENES = (
    cycle("a", "black", 10**5, 80, 25, fps=10, rules=RULES),
    cycle("b", "freeze", 10**5, 80, 28, fps=10, rules=RULES),
    Script("c", (), fps=10, rules=RULES),
    Script("d", (), fps=10, rules=RULES),
)


@contextlib.contextmanager
def bucket() -> Iterator[tuple[R2Settings, Certificate]]:
    """SeaweedFS with TLS and a key for its one bucket."""
    with tempfile.TemporaryDirectory(prefix="stillwatch-tls-") as name:
        certificate = make_certificate(Path(name))
        with seaweedfs(certificate) as settings:
            yield settings, certificate


@contextlib.contextmanager
def state_dir() -> Iterator[Path]:
    """A state directory on disk."""
    with tempfile.TemporaryDirectory(prefix="stillwatch-state-") as name:
        yield Path(name) / "state"


class Stage:
    """A running service that is shown live scenes, its way to the bucket, and somebody who takes the time."""

    def __init__(self, base: Path, state: Path, r2: R2Settings | None, **environment: str) -> None:
        self.state, self.host = state, base.name
        names = tuple(script.source for script in SCENES)
        values = {**(r2_environment(r2) if r2 else {}), **environment}
        self.service = FaultRig(base, f"--state-dir={state}", sources=names, **values)
        self.service.config = scenes_config(base, SCENES, self.host)
        self.live = Live(self.service, SCENES)
        self.latencies = Latencies(self.service.dirs.values())
        self.without_ms: list[float] = []
        self.during_ms: list[float] = []

    def play(self, seconds: float, until: Callable[[], object] = lambda: False) -> float:
        """Show scenes for so long, or until something holds; the seconds it took."""
        begun = time.monotonic()
        while (took_s := time.monotonic() - begun) < seconds and not until():
            self.latencies.watch(min(self.live.step(), 0.1))
        return took_s

    def restart_uploader(self) -> None:
        """As one does after a change of its keys; nobody else is touched."""
        self.service.child("uploader").terminate()

    def spooled(self) -> int:
        """Jobs that wait."""
        with contextlib.suppress(FileNotFoundError):
            return sum(not name.startswith(".") for name in os.listdir(self.state / "spool"))
        return 0

    def told(self, what: str) -> int:
        """How often the log has said something."""
        return len(self.service.lines(what))

    def finish(self, server: R2Settings) -> dict[str, object]:
        """Wait until all is stored, compare it with what was shown, and stop."""
        self.live.end()
        expected = self.live.expected()
        wait_until(lambda: self.told(" incident closed ") == len(expected), 30, "all incidents")
        wait_until(lambda: not self.spooled(), 60, "an empty spool")
        books = self.service.books()
        objects = objects_of(server, self.host)
        dirs = self.service.dirs
        count = check_evidence(self.host, dirs, expected, logged_incidents(self.state), objects, exact=False)
        judged = sum(account["judged"] for account in books.values())
        assert judged == sum(map(len, self.service.published.values()))
        return {"frames": judged, "judged": "all", "incidents": len(expected), "objects": count, "other_objects": 0}


def said(log: str) -> dict[str, int]:
    """How failures were classed, with their causes (without keys of objects): how often each was logged."""
    found = re.findall(r"(uploads failed|uploads paused|uploads wait for the clock)(?: skew_s=(\S+))? cause=(.*)", log)
    return dict(Counter(f"{kind}{skew and f' ({skew} s)'}: {_cause(rest)}" for kind, skew, rest in found))


def _cause(rest: str) -> str:
    """Without what was tried on which key, and without the advice."""
    return re.sub(r"^['\"]?(?:(?:put|head) \S+: )?", "", rest).partition(";")[0][:70]
