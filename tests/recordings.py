"""Scenes by a script, recorded or live: what is to be seen when, which incidents that makes, and whether their evidence
has arrived in the bucket.

Every frame has its own bytes (a comment in the JPEG says which one it is), so that evidence can be told apart.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import detectors
from pipeline.incidents import incident_id
from pipeline.model import RULES, FrameId, Rule
from pipeline.store import R2Settings
from tests.support import ROOT, Rig, frame_name, make_frame, plain_frame, wait_until

BEGUN_NS = 1_795_336_670 * 10**9  # 2026-11-22, the file time of the first frame
FIRST = 1  # the number of the first frame, as FFmpeg counts
PREDECESSORS = 3  # a picture is called frozen from the fourth on
_LIVE_PICTURES = 40
_FROZEN_SEED = 1000


@dataclass(frozen=True)
class Episode:
    """A run of black frames, or of one picture."""

    condition: str
    first: int
    frames: int

    @property
    def after(self) -> int:
        """The first good frame."""
        return self.first + self.frames


@dataclass(frozen=True)
class Expected:
    """An incident by the numbers of its frames."""

    source: str
    condition: str
    last_good: int
    onset: int
    confirming: int
    recovery: int

    @property
    def frames(self) -> tuple[int, int, int, int]:
        """What is in its `frame_0.jpg` to `frame_3.jpg`."""
        return self.last_good, self.onset, self.confirming, self.recovery


@dataclass(frozen=True)
class Script:
    """What one source shows."""

    source: str
    episodes: tuple[Episode, ...]
    fps: int = 5
    rules: Mapping[str, Rule] = field(default_factory=lambda: RULES)

    def frame(self, number: int) -> bytes:
        """The JPEG of one frame."""
        episode = next((e for e in self.episodes if e.first <= number < e.after), None)
        if episode is None:
            picture = make_frame(number % _LIVE_PICTURES)
        elif episode.condition == "black":
            picture = plain_frame(0)
        else:
            picture = make_frame(_FROZEN_SEED + episode.first % 7)
        return commented(picture, f"{self.source} {number}".encode())

    def expected(self, count: int) -> list[Expected]:
        """The incidents of the first `count` frames, those that are closed by then."""
        found = []
        for episode in self.episodes:
            rule = self.rules[episode.condition]
            onset = episode.first + (PREDECESSORS if episode.condition == "freeze" else 0)
            confirming = onset + _frames(rule.raise_s * self.fps)
            closed = episode.after + _frames(rule.clear_s * self.fps)
            if confirming < episode.after and closed < FIRST + count:
                found.append(Expected(self.source, episode.condition, onset - 1, onset, confirming, episode.after))
        return found

    def is_calm(self, number: int) -> bool:
        """Whether before this frame every incident is closed, and no other one has begun."""
        clear = 2 + _frames(max((rule.clear_s for rule in self.rules.values()), default=0.0) * self.fps)
        return not any(episode.first < number < episode.after + clear for episode in self.episodes)

    def record(self, directory: Path, count: int) -> None:
        """Write the first `count` frames, with the file times that they would have."""
        directory.mkdir(parents=True)
        for number in range(FIRST, FIRST + count):
            path = directory / frame_name(number)
            path.write_bytes(self.frame(number))
            at_ns = BEGUN_NS + (number - FIRST) * 10**9 // self.fps
            os.utime(path, ns=(at_ns, at_ns))


def _frames(exact: float) -> int:
    """So many whole frames are not less."""
    return int(-(-exact // 1))


def commented(picture: bytes, comment: bytes) -> bytes:
    """The same picture, with a comment in its head."""
    return picture[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + picture[2:]


class Live:
    """Shows a running service what the scripts say, one frame at a time; somebody must call `step` again and again."""

    def __init__(self, service: Rig, scripts: Sequence[Script]) -> None:
        self._service, self._scripts = service, scripts
        now, apart = time.monotonic(), 1 / sum(script.fps for script in scripts)
        self._due = {script.source: now + n * apart for n, script in enumerate(scripts)}
        self._stopping = False

    def step(self) -> float:
        """Publish what is due; seconds until the next frame is."""
        now = time.monotonic()
        for script in self._scripts:
            if self._due[script.source] <= now and not self._is_over(script):
                number = FIRST + self._count(script)
                self._service.publish(number, script.frame(number), script.source)
                self._due[script.source] = now + 1 / script.fps  # none is made up for: that would shorten a scene
        return max(0.0, min(self._due.values()) - time.monotonic())

    def play_until(self, condition: Callable[[], Any], timeout_s: float, what: str = "") -> None:
        """Go on until a condition holds."""
        wait_until(lambda: (self.step(), condition())[1], timeout_s, what)

    def end(self, timeout_s: float = 30.0) -> None:
        """Go on until nothing is wrong with any source, then be still."""
        self._stopping = True
        self.play_until(lambda: all(self._is_over(script) for script in self._scripts), timeout_s, "the end")

    def expected(self) -> list[Expected]:
        """The incidents so far."""
        return [incident for script in self._scripts for incident in script.expected(self._count(script))]

    def _count(self, script: Script) -> int:
        return len(self._service.published[script.source])

    def _is_over(self, script: Script) -> bool:
        return self._stopping and script.is_calm(FIRST + self._count(script))


def scenes_config(base: Path, scripts: Iterable[Script], host: str) -> Path:
    """A configuration file for a service in `base` whose sources are those of the scripts."""
    lines = [f'host = "{host}"', "min_free_bytes = 0", "workers = 2"]
    for script in scripts:
        lines += ["[[source]]", f'name = "{script.source}"', f'dir = "{base / "frames" / script.source}"']
        lines.append("stall_s = 3600.0")  # the end of a script is not the end of a capture
        lines += [
            f"rules.{name} = {{ raise_s = {rule.raise_s}, clear_s = {rule.clear_s} }}"
            for name, rule in script.rules.items()
        ]
    path = base / "service.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def cycle(source: str, condition: str, count: int, period: int, frames: int, **more: Any) -> Script:
    """A script whose condition comes again in every period, in its middle."""
    firsts = range(FIRST + (period - frames) // 2, count, period)
    return Script(source, tuple(Episode(condition, first, frames) for first in firsts), **more)


# -- what must have become of it ------------------------------------------------------------------------------------


def pipeline(*words: str | Path, r2: R2Settings | None = None, timeout_s: float = 120, **environment: str) -> str:
    """Run a command of Stillwatch, which must succeed; standard output, then standard error."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDFLARE_R2_")}
    variables |= {"PYTHONPATH": str(ROOT), **(r2_environment(r2) if r2 else {}), **environment}
    command = [sys.executable, "-P", "-m", "pipeline", *map(str, words)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def clock_ahead(seconds: float) -> dict[str, str]:
    """Environment variables of a process whose wall clock is wrong. File times stay what they are."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    assert library, "needs faketime: apt-get install faketime"
    return {"LD_PRELOAD": str(library), "FAKETIME": f"{seconds:+.0f}", "NO_FAKE_STAT": "1"}


def r2_environment(r2: R2Settings) -> dict[str, str]:
    """The settings of a store as the environment has them."""
    names = {"ENDPOINT": r2.endpoint, "ACCESS_KEY_ID": r2.access_key_id, "BUCKET": r2.bucket}
    names["SECRET_ACCESS_KEY"] = r2.secret_access_key
    return {**{f"CLOUDFLARE_R2_{name}": value for name, value in names.items()}, "AWS_CA_BUNDLE": r2.ca_bundle or ""}


def logged_incidents(state_dir: Path) -> list[dict[str, Any]]:
    """The incident log as the command tells of it."""
    lines = pipeline("incidents", "--json", "--state-dir", state_dir).splitlines()
    return [json.loads(line) for line in lines]


def objects_of(settings: R2Settings, host: str) -> dict[str, bytes]:
    """Everything in a bucket that one host may have stored, wherever it lies."""
    store = importlib.import_module("pipeline.r2").R2Store(settings)  # 30 MB, for those who ask
    try:
        pages = store._client.get_paginator("list_objects_v2").paginate(Bucket=settings.bucket)
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return {key: store.get(key) for key in keys if host in key.split("/")}
    finally:
        store.close()


def check_evidence(
    host: str,
    directories: Mapping[str, Path],
    expected: Iterable[Expected],
    logged: Iterable[Mapping[str, Any]],
    objects: Mapping[str, bytes],
    *,
    exact: bool = True,
) -> int:
    """Every expected incident is closed in the log, stored, and complete in the bucket; nothing else is in either.
    How many objects that are. Without `exact` the confirming frame may be a neighbour: live frames have jitter."""
    log = {incident["id"]: incident for incident in logged}
    seen: set[str] = set()
    for incident in expected:
        directory = directories[incident.source]
        found = log.pop(_id(host, incident, directory), None)
        assert found, f"not in the log: {incident}"
        home = f"alerts/{incident.condition}/{host}/{incident.source}/{found['id']}"
        assert (found["state"], found["reason"]) == ("closed", "recovered"), found
        assert found["evidence"] == {"opened": "stored", "closed": "stored"}, found
        for name, kind in (("original", "frame"), ("thumbnail", "thumb")):
            assert found[f"{name}_r2_paths"] == [f"{home}/{kind}_{n}.jpg" for n in range(4)]
            assert len(found[f"{name}_urls"]) == 4
        _check_pictures(home, incident, directory, objects, exact)
        told = json.loads(objects[f"{home}/incident.json"])
        assert (told["state"], told["id"], told["condition"]) == ("closed", found["id"], incident.condition)
        names = ["incident.json", *(f"{kind}_{n}.jpg" for kind in ("frame", "thumb") for n in range(4))]
        assert told["evidence"] == {name: f"{home}/{name}" for name in names if name != "incident.json"}
        seen |= {f"{home}/{name}" for name in names}
    assert log == {}, "nobody has made these"
    assert seen == set(objects)
    return len(seen)


def _check_pictures(home: str, incident: Expected, directory: Path, objects: Mapping[str, bytes], exact: bool) -> None:
    for n, number in enumerate(incident.frames):
        stored = objects[f"{home}/frame_{n}.jpg"]
        near = range(number - 2, number + 3) if n == 2 and not exact else (number,)
        originals = [(directory / frame_name(candidate)).read_bytes() for candidate in near]
        assert stored in originals, f"{home}/frame_{n}.jpg is not frame {number}"
        assert objects[f"{home}/thumb_{n}.jpg"] == detectors.thumbnail(stored)


def _id(host: str, incident: Expected, directory: Path) -> str:
    found = (directory / frame_name(incident.onset)).stat()
    onset = FrameId(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
    return incident_id(host, incident.source, incident.condition, onset)
