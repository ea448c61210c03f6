"""`demo`: the main job on real input in under a minute, and proof that it was done.

`ffmpeg/capture.sh` plays five scenes (a live one, one that freezes, one that goes black, one that loses its signal, one
that falls silent) and publishes them by atomic rename into a directory in memory; the whole service runs on them, with
durations shorter than the usual; incidents are told as they open and close; the summary holds what was found against
what was made, and names the evidence.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from pipeline import console
from pipeline.child import set_up_logging
from pipeline.commands import incidents
from pipeline.grab import SCRIPT
from pipeline.instance import sole_instance
from pipeline.model import MAX_WORKERS, Exit, InputError, Rule, StillwatchError, UnavailableError
from pipeline.ring import Books
from pipeline.service import Service
from pipeline.settings import AUDIO_DIR, Settings, Source
from pipeline.sidecar import Sidecar
from pipeline.supervisor import Supervisor

EPILOG = """\
Takes about half a minute. Frames are in memory and go away; the evidence of the four incidents (about 2 MB) stays on
disk to be looked at. --keep DIR puts all of it there, frames and sidecars included.
Exit codes: 0 all faults were found, nothing else was, and the books balance; 1 otherwise; 69 FFmpeg is missing.
"""

FPS = 5
FRAMES = 90
FAULT_S = (6, 12)  # from, to
FAULT = range(FAULT_S[0] * FPS + 1, FAULT_S[1] * FPS + 1)  # numbers of the faulty frames; FFmpeg counts from 1
STILL = FAULT[3:]  # three predecessors must be alike first
SILENT = range(FAULT.start + FPS, FAULT.stop + FPS)  # a chunk of sound is heard when its second is over,
HEARD_WITHIN = FPS  # and by those frames that come after that
PATIENCE_S = 60.0  # without anything new: FFmpeg may take half of it to begin where a machine is emulated
SLOW_S = 600.0  # no source is stalled and no frame is passed over: on such a machine all takes its time
RULES = {rule: Rule(3.0, 1.0) for rule in ("no_signal", "black", "audio_loss")} | {"freeze": Rule(4.0, 2.0)}
EVIDENCE = sorted(["incident.json", *(f"{kind}_{n}.jpg" for kind in ("frame", "thumb") for n in range(4))])


class Scene(msgspec.Struct, frozen=True):
    """One source of the demo, and the frames in which each condition must be found."""

    name: str
    input: str  # what capture.sh calls it
    found: dict[str, range] = {}
    incident: str = ""  # the one condition that must become an incident
    sound: bool = False


_FIELDS = {"blackscreen": "black", "freeze": "freeze", "no_signal": "no_signal"}
SCENES = (
    Scene("live", "live"),
    Scene("frozen", "freeze", {"freeze": STILL}, "freeze"),
    Scene("dark", "black", {"black": FAULT, "freeze": STILL}, "black"),  # a black picture stands still as well
    Scene("unplugged", "bars", {"no_signal": FAULT, "freeze": STILL}, "no_signal"),
    Scene("mute", "silence", {"audio_loss": SILENT}, "audio_loss", sound=True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `demo`."""
    count = range(1, MAX_WORKERS + 1)
    parser.add_argument("--workers", type=int, choices=count, metavar="N", help="processes that judge (default: auto)")
    parser.add_argument(
        "--in-turn",
        action="store_true",
        help="play one scene after the other, for a machine that cannot run five FFmpegs at once; two minutes",
    )
    parser.add_argument("--keep", metavar="DIR", help="put frames and sidecars there and leave them")


def run(arguments: argparse.Namespace) -> int:
    """Play the scenes through the service. Returns 0 only if all was found and the books balance."""
    if not shutil.which("ffmpeg"):
        raise UnavailableError("ffmpeg is not installed; type: sudo apt-get install -y ffmpeg")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - mkdtemp makes it private
    scratch = Path(arguments.keep or tempfile.mkdtemp(prefix="stillwatch-demo-", dir=memory))
    state = scratch / "state" if arguments.keep else Path(tempfile.mkdtemp(prefix="stillwatch-evidence-"))
    played = False
    try:
        answer = _play(scratch, state, arguments.workers, 1 if arguments.in_turn else len(SCENES))
        played = True
    finally:
        if not arguments.keep:
            shutil.rmtree(scratch)
            if not played:
                shutil.rmtree(state)
    console.say(f"evidence and incident log: {state}; look again: ./stillwatch incidents --state-dir {state}")
    return answer


def _play(scratch: Path, state: Path, workers: int | None, at_once: int) -> int:
    for scene in SCENES:
        (scratch / scene.name).mkdir(parents=True, exist_ok=True)
        if any((scratch / scene.name).iterdir()):
            raise InputError(f"{scratch / scene.name}: not empty; name a new directory with --keep")
    settings = Settings(
        source=tuple(_source(scene, scratch) for scene in SCENES),
        workers=workers or "auto",
        runtime_dir=str(scratch / "run"),
        state_dir=str(state),
        log_level="ERROR",
        min_free_bytes=0,  # memory is what there is
        overload_lag_s=SLOW_S,
    )
    set_up_logging("supervisor", settings.log_level)
    console.say(
        f"{len(SCENES)} sources from FFmpeg, {FPS} frames/s, {FRAMES // FPS} s; {settings.worker_count()} worker(s)"
    )
    with sole_instance(settings):
        service = Service(settings)
        try:
            told = _publish(service, scratch, Story(state), at_once)
            books = [service.ring.lanes[lane].books() for lane in range(len(SCENES))]
        finally:
            service.close()
    return _summary(scratch, state, books, told)


def _source(scene: Scene, scratch: Path) -> Source:
    audio_dir = AUDIO_DIR if scene.sound else ""
    place = str(scratch / scene.name)
    return Source(name=scene.name, dir=place, audio_dir=audio_dir, rules=RULES, stall_s=SLOW_S)


def _publish(service: Service, scratch: Path, story: Story, at_once: int) -> Story:
    """Wait until the service is ready, run one FFmpeg per scene to its end, so many at once, and wait until all is
    judged and stored."""
    supervisor = service.supervisor
    while not service.board.memory.ready_ns:
        _turn(supervisor)
    publishers: list[subprocess.Popen[bytes]] = []
    lanes = service.ring.lanes[: len(SCENES)]
    give_up_ns, seen = 0, (-1, 0)
    try:
        with console.progress() as bar:
            task = bar.add_task("judging", total=FRAMES * len(SCENES))
            while not give_up_ns or time.monotonic_ns() < give_up_ns:
                playing = sum(publisher.poll() is None for publisher in publishers)
                for scene in SCENES[len(publishers) :][: at_once - playing]:
                    publishers.append(_start_ffmpeg(scene, scratch))
                _turn(supervisor)
                _check(publishers, scratch)
                story.tell(console.say)
                judged = sum(lane.last_record().tail for lane in lanes)
                bar.update(task, completed=judged)
                if (judged, story.turns) != seen:
                    seen, give_up_ns = (judged, story.turns), time.monotonic_ns() + int(PATIENCE_S * 1e9)
                played = len(publishers) == len(SCENES) and all(p.poll() is not None for p in publishers)
                if played and not any(lane.backlog for lane in lanes) and story.is_over:
                    break
    finally:
        for publisher in publishers:
            publisher.kill()
            publisher.wait()
    return story


class Story:
    """The incidents as the log tells of them, each turn told once."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = str(state_dir)
        self._told: set[tuple[str, str]] = set()
        self.incidents: list[dict[str, Any]] = []

    @property
    def is_over(self) -> bool:
        """Whether as many incidents as the scenes make are closed and their evidence stored."""
        stored = [i for i in self.incidents if i["closed_at"] and set(i["evidence"].values()) == {"stored"}]
        return len(stored) >= sum(bool(scene.incident) for scene in SCENES)

    @property
    def turns(self) -> int:
        """How often something was told."""
        return len(self._told)

    def tell(self, say: Callable[[str], None]) -> None:
        """Say what is new."""
        with contextlib.suppress(InputError):  # no log yet
            self.incidents = list(incidents.read(self._state_dir))
        for incident in reversed(self.incidents):
            for turn in ("opened", "closed") if incident["closed_at"] else ("opened",):
                if (incident["id"], turn) not in self._told:
                    self._told.add((incident["id"], turn))
                    say(f"{turn} {incident['condition']:10} {incident['source']:9} {incident['coverage']}")


def _turn(supervisor: Supervisor) -> None:
    """One turn of the service. Raises KeyboardInterrupt after a signal, StillwatchError when a child gave up."""
    supervisor.step(time.monotonic_ns())
    supervisor.wait(0.2)
    if supervisor.signals.received:
        raise KeyboardInterrupt
    if supervisor.exit_code is not None:
        raise StillwatchError("the service could not start; the log above says why")


def _start_ffmpeg(scene: Scene, scratch: Path) -> subprocess.Popen[bytes]:
    first, last = FAULT_S
    graph = f"scene:{scene.input}" + ("" if scene.input == "live" else f":{first}-{last}")
    command = [SCRIPT, "--profile=lavfi", f"--input={graph}", f"--fps={FPS}", f"--duration={FRAMES // FPS}"]
    command += [f"--dir={scratch / scene.name}", "--log-level=error", *(["--audio"] if scene.sound else [])]
    with (scratch / f"{scene.name}.log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _check(publishers: list[subprocess.Popen[bytes]], scratch: Path) -> None:
    """Raises StillwatchError, with its last words, when a capture has failed."""
    for scene, publisher in zip(SCENES, publishers, strict=False):  # some may be to come
        if publisher.poll():
            said = (scratch / f"{scene.name}.log").read_text(encoding="utf-8", errors="replace").strip()
            raise StillwatchError(
                f"{scene.name}: the capture ended with {publisher.returncode}: {said.splitlines()[-1:]}"
            )


def _summary(scratch: Path, state: Path, books: list[Books], story: Story) -> int:
    """Print what was found beside what was made; 0 if they agree."""
    good = _print_verdicts(scratch, books)
    incident_rows = []
    for scene in SCENES:
        found = [i for i in story.incidents if i["source"] == scene.name]
        expected = [scene.incident] if scene.incident else []
        agrees = [i["condition"] for i in found] == expected and all(i["reason"] == "recovered" for i in found)
        for incident in found:
            folder = state / "store/alerts" / incident["condition"] / incident["host"] / scene.name / incident["id"]
            files = sorted(path.name for path in folder.glob("*"))
            agrees &= files == EVIDENCE
            lasted = f"{incident['duration_s']:.1f} s"
            incident_rows.append(
                [scene.name, incident["condition"], lasted, f"{len(files)} files", _mark(agrees), folder]
            )
        good &= agrees
    console.print_table("incidents", ["source", "condition", "lasted", "evidence", "agrees", "in"], incident_rows)
    console.say("demo passed: every fault was found, nothing else was" if good else "demo FAILED: see the rows with NO")
    return Exit.OK if good else Exit.FAILED


def _mark(good: bool) -> str:
    return "yes" if good else "NO"


def _print_verdicts(scratch: Path, books: list[Books]) -> bool:
    """Print verdicts and books, and whether both are as they must be."""
    found_rows, books_rows, good = [], [], True
    for scene, account in zip(SCENES, books, strict=True):
        sidecars = _sidecars(scratch / scene.name)
        complete = len(sidecars) == FRAMES == account.published
        for condition, found in _found(sidecars).items():
            expected = list(scene.found.get(condition, ()))
            agrees = _is_about(found, expected) if condition == "audio_loss" else found == expected
            good &= agrees
            if found or expected:
                found_rows.append([scene.name, condition, _span(expected), _span(found), _mark(agrees)])
        good &= complete and account.balanced
        books_rows.append(
            [scene.name, account.published, account.judged, account.invalid, account.skipped, account.vanished,
             account.in_flight, len(sidecars), _mark(complete and account.balanced)]
        )  # fmt: skip
    console.print_table("verdicts", ["source", "condition", "made in frames", "found in frames", "agrees"], found_rows)
    columns = [
        "source",
        "published",
        "judged",
        "invalid",
        "skipped",
        "vanished",
        "in flight",
        "sidecars",
        "balanced",
    ]
    console.print_table("books", columns, books_rows)
    return good


def _found(sidecars: list[Sidecar]) -> dict[str, list[int]]:
    """Per condition the frames in which it was found."""
    found = {
        condition: [one.sequence for one in sidecars if getattr(one, field)] for field, condition in _FIELDS.items()
    }
    return found | {"audio_loss": [one.sequence for one in sidecars if one.audio is False]}


def _is_about(found: list[int], expected: list[int]) -> bool:
    """Whether a run of frames begins and ends about where it must."""
    if not found or not expected:
        return found == expected
    ends = abs(found[0] - expected[0]), abs(found[-1] - expected[-1])
    return max(ends) <= HEARD_WITHIN and found == list(range(found[0], found[-1] + 1))


def _sidecars(directory: Path) -> list[Sidecar]:
    decode = msgspec.json.Decoder(Sidecar).decode
    return [decode(path.read_bytes()) for path in sorted(directory.glob("*.json"))]


def _span(numbers: list[int]) -> str:
    """`31-60 (30)`; a broken run shows its count, so that it never looks whole."""
    return f"{numbers[0]}-{numbers[-1]} ({len(numbers)})" if numbers else "none"
