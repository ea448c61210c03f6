"""The figures of the evidence path, each measured on this machine by one word:

    .venv/bin/python -m tests.benchmarks.evidence WHAT ... [--seconds N]

It needs SeaweedFS (requirements-s3.txt); `hour` also needs faketime. What is lost, doubled or not byte for byte the
frame that was shown ends a measurement with an AssertionError; times are only reported: machines differ.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from pipeline.store import R2Settings
from tests.benchmarks.faults import faults
from tests.benchmarks.offline import offline
from tests.benchmarks.stage import WRONG_SECRET, Stage, bucket, said, state_dir
from tests.benchmarks.tools import Measurement, main, memory_dir, say, voluntary_switches
from tests.live import has_in_memory
from tests.recordings import Episode, Script, check_evidence, clock_ahead, logged_incidents, objects_of, pipeline
from tests.s3_proxy import SKEW_S, Proxy, every, proxy_to
from tests.s3_servers import Request

HOUR_FRAMES = 18_000  # at 5 frames/s
EPISODE_EVERY_S = 75


# -- a recorded hour ------------------------------------------------------------------------------------------------


def hour_script() -> Script:
    """In turn 20 s of black, a freeze of 45 s, and 6 s of black: too short."""
    episodes = []
    for n in range(HOUR_FRAMES // (EPISODE_EVERY_S * 5)):
        condition, seconds = (("black", 20), ("freeze", 45), ("black", 6))[n % 3]
        episodes.append(Episode(condition, n * EPISODE_EVERY_S * 5 + 26, seconds * 5))
    return Script("stb1", tuple(episodes))


class Hour:
    """One recorded hour, to be replayed against a bucket in good and bad circumstances."""

    def __init__(self, base: Path, server: R2Settings, proxy: Proxy) -> None:
        self._script, self._server, self._proxy = hour_script(), server, proxy
        self._dir = base / self._script.source
        self._script.record(self._dir, HOUR_FRAMES)
        self.expected = self._script.expected(HOUR_FRAMES)

    def plain(self) -> dict[str, object]:
        """Straight to the server."""
        with state_dir() as state:
            took_s, _ = self._replay("plain", state, self._server)
            return {"replay_s": took_s, **self._check("plain", state)}

    def mixed(self) -> dict[str, object]:
        """Every seventh PUT meets a burst of refusals, a reset or half a body; every 250th hangs."""
        self._proxy.choose = _one_of(every(250, "hang"), every(7, "burst", "reset", "half"))
        before = self._proxy.injected.copy()
        with state_dir() as state:
            took_s, told = self._replay("mixed", state, self._proxy.settings)
            met = {fault: count for fault, count in (self._proxy.injected - before).items() if fault}
            assert set(met) == {"burst", "reset", "half", "hang"}, met
            return {"replay_s": took_s, "faults": met, "said": said(told), **self._check("mixed", state)}

    def refused(self, name: str, r2: R2Settings, fault: str = "", **environment: str) -> dict[str, object]:
        """Nothing can be stored in the first replay, all is in the second."""
        self._proxy.choose = lambda _: fault
        with state_dir() as state:
            before = len(self._proxy.requests)
            took_s, told = self._replay(name, state, r2, **environment)
            asked = len(self._proxy.requests) - before
            places = Counter(where for one in logged_incidents(state) for where in one["evidence"].values())
            assert places == {"kept": 2 * len(self.expected)}, places
            assert not objects_of(self._server, name), "stored all the same"
            self._proxy.choose = lambda _: ""
            again_s, _ = self._replay(name, state, self._proxy.settings)
            first = {"replay_s": took_s, "requests": asked, "kept": places["kept"], "said": said(told)}
            return {**first, "completed_in_s": again_s, **self._check(name, state)}

    def _replay(self, host: str, state: Path, r2: R2Settings, **environment: str) -> tuple[float, str]:
        begun = time.monotonic()
        values = {"STILLWATCH_HOST": host, "STILLWATCH_MIN_FREE_BYTES": "0", **environment}
        told = pipeline("replay", "--state-dir", state, self._dir, r2=r2, timeout_s=300, **values)
        return round(time.monotonic() - begun, 1), told

    def _check(self, host: str, state: Path) -> dict[str, object]:
        objects, dirs = objects_of(self._server, host), {self._script.source: self._dir}
        count = check_evidence(host, dirs, self.expected, logged_incidents(state), objects)
        return {"objects": count, "other_objects": 0, "frames_identical": "all"}


def hour(_seconds: float) -> dict[str, object]:
    """A recorded hour of 18,000 frames through replay, spool and network into the bucket: well, then under faults."""
    with memory_dir() as base, bucket() as (server, certificate), proxy_to(server, certificate) as proxy:
        tape = Hour(base, server, proxy)
        right = proxy.settings
        runs: dict[str, Callable[[], dict[str, object]]] = {
            "plain": tape.plain,
            "mixed": tape.mixed,
            "wrong-secret": lambda: tape.refused("wrong-secret", replace(right, secret_access_key=WRONG_SECRET)),
            "wrong-bucket": lambda: tape.refused("wrong-bucket", replace(right, bucket="missing")),
            "no-such-bucket": lambda: tape.refused("no-such-bucket", right, "bucket"),
            "clock-2h-ahead": lambda: tape.refused("clock-2h-ahead", right, **clock_ahead(SKEW_S)),
        }
        for name, run in runs.items():
            say(f"hour/{name}: {json.dumps(run())}")
        return {"frames": HOUR_FRAMES, "incidents": len(tape.expected), "runs": len(runs), "lost": 0}


def _one_of(*choices: Callable[[Request], str]) -> Callable[[Request], str]:
    """The first that names a fault; all are asked, as they count."""
    return lambda request: next(filter(None, [choose(request) for choose in choices]), "")


# -- the process ----------------------------------------------------------------------------------------------------

WORK_INCIDENTS = 8
BOTO3 = "/botocore/client.py"  # a module's file name is in the memory of who has loaded it
PYTHON_TLS = "/_ssl."  # not libssl: OpenCV brings one of its own


def uploader(seconds: float) -> dict[str, object]:
    """What the uploader costs, without R2 and with it: memory after work, wake-ups while idle, and who has boto3."""
    with bucket() as (server, _):
        return {"local": _uploader(seconds, None), "r2": _uploader(seconds, server)}


def _uploader(seconds: float, server: R2Settings | None) -> dict[str, object]:
    with memory_dir() as base, state_dir() as state:
        stage = Stage(base, state, server)
        with stage.service as service:
            done = stage.play(120, lambda: stage.told(" incident closed ") >= WORK_INCIDENTS and not stage.spooled())
            assert done < 120, service.log
            pid = service.child("uploader").pid
            names = {" ".join(process.cmdline()).strip(): process.pid for process in service.tree()}
            time.sleep(5)
            memory = psutil.Process(pid).memory_full_info()
            before, begun = voluntary_switches(pid), time.monotonic()
            time.sleep(seconds)
            switches = (voluntary_switches(pid) - before) / (time.monotonic() - begun)
            stored = [one for one in logged_incidents(state) if set(one["evidence"].values()) == {"stored"}]
            return {
                "incidents_stored": len(stored),
                "rss_mb": round(memory.rss / 2**20, 1),
                "pss_mb": round(memory.pss / 2**20, 1),
                "idle_switches_per_s": round(switches, 2),
                "boto3_in": [name for name, process in names.items() if has_in_memory(process, BOTO3)],
                "tls_in": [name for name, process in names.items() if _maps(process, PYTHON_TLS)],
            }


def _maps(pid: int, library: str) -> bool:
    return library in Path(f"/proc/{pid}/maps").read_text()


MEASUREMENTS: dict[str, Measurement] = {"hour": hour, "faults": faults, "offline": offline, "uploader": uploader}


if __name__ == "__main__":
    main(__doc__, MEASUREMENTS)
