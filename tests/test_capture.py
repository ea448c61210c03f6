"""Captured sources under the whole service: FFmpegs that die, hang and come back, full memory, changes of settings.

With the real FFmpeg's test sources, and a stand-in where it must misbehave.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import statistics
import subprocess
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline import capturecheck, config, ownership
from pipeline.board import Board
from pipeline.capturecheck import remove_left
from pipeline.model import CaptureState, ConfigError, Exit, UnavailableError
from pipeline.ownership import MARK
from pipeline.settings import Capture, Settings, Source
from tests.captures import SCENE, CaptureRig, StubFFmpeg, invalid_frames, leftovers
from tests.live import is_gone, running_pid, stopped
from tests.machine import filled, in_namespace_with, needs, tmpfs
from tests.streams import PASSWORD
from tests.support import frame_name, make_frame, publish, sidecars, wait_until
from tests.uploads import all_files

pytestmark = pytest.mark.any_python

STALL_S = 1.5  # less than the usual, for the tests' sake


def quick(**keys: Any) -> dict[str, Any]:
    """A source whose silence is noticed soon."""
    return {"stall_s": STALL_S, **keys}


def scene(**values: Any) -> dict[str, Any]:
    """A test scene with some options more."""
    return {**SCENE, **values}


def stalls(service: CaptureRig, count: int = 1, closed: bool = False) -> list[dict[str, Any]]:
    """Wait for that many incidents; they must all be stalls."""

    def found() -> list[dict[str, Any]] | None:
        incidents = service.incidents()
        ready = sum(incident["state"] == "closed" or not closed for incident in incidents)
        return incidents if ready >= count else None

    incidents: list[dict[str, Any]] = wait_until(found, 90, f"{count} incidents")
    assert [incident["condition"] for incident in incidents] == ["capture_stalled"] * count, incidents
    return incidents


# -- as it should be --------------------------------------------------------------------------------------------------


def test_a_configuration_file_is_a_rig(tmp_path: Path) -> None:
    hall = {"keep_s": 1.0, "capture": scene(fps=10, thumbnails=True, audio=True)}
    with CaptureRig(tmp_path, "--workers=1", "--report-every=1", sources={"hall": hall, "desk": {}}) as service:
        service.wait_frames("hall", 30), service.wait_frames("desk", 5)
        ffmpegs = [service.ffmpeg(name) for name in service.dirs]
        assert all(process.ppid() == service.child("capture").pid for process in ffmpegs)
        line = wait_until(lambda: service.lines("source/hall report"), 30, "a report")[-1]
        assert "capture=running" in line and "ffmpeg_restarts" not in line
        wait_until(lambda: service.row("hall").frames_removed > 5, 30, "retention")
        assert list(service.dirs["hall"].glob("audio/*.wav"))
        frames = sidecars(service.dirs["hall"])
        assert all(content["analyzed"] and "error" not in content for content in frames.values())
        assert service.lines("capture.sh: exec "), "the command line is in the log"
        books = service.books()
    assert all(is_gone(process.pid) for process in ffmpegs)
    assert books["hall"]["invalid"] == books["hall"]["skipped"] == 0 and service.row("hall").capture_state == 0
    assert leftovers(service.dirs["hall"]) == []


def test_retention_goes_on_although_no_worker_lives(tmp_path: Path) -> None:
    with CaptureRig(tmp_path, "--workers=1", sources={"a": {"keep_frames": 20, "capture": scene(fps=20)}}) as service:
        service.wait_frames("a")
        with stopped(running_pid(service, "worker/0")):
            removed = service.row("a").frames_removed
            wait_until(lambda: service.row("a").frames_removed > removed + 40, 8, "frames removed")
            assert len(list(service.dirs["a"].glob("*.jpg"))) < 60
        wait_until(lambda: service.row("a").vanished > 0, 20, "what was gone meanwhile")
        service.wait_frames("a", 5)


def test_without_inotify_frames_are_captured_and_removed_as_well(tmp_path: Path) -> None:
    service = CaptureRig(tmp_path, "--workers=1", sources={"a": {"keep_frames": 10, "capture": scene(fps=10)}})
    service.wrapper = in_namespace_with(max_inotify_instances=0)
    with service:
        assert service.lines("no events, probing for files")
        service.wait_frames("a", 20)
        wait_until(lambda: service.row("a").frames_removed > 10, 20, "frames removed")
        wait_until(lambda: service.row("a").capture_state == CaptureState.RUNNING, 30, "running")
        assert not service.lines("no frame comes")


def test_it_stops_within_five_seconds_with_all_its_ffmpegs(tmp_path: Path) -> None:
    stub = StubFFmpeg(tmp_path / "stub")
    stub.set("deaf")
    sources = {"a": {}, "b": {"capture": scene(ffmpeg=str(stub.path))}}
    with CaptureRig(tmp_path, "--workers=1", sources=sources) as service:
        wait_until(lambda: stub.starts, 20, "the deaf one")
        pids = [int(service.row(name).ffmpeg_pid) for name in sources]
        assert service.stop(within_s=5) == 0
        assert all(is_gone(pid) for pid in pids)


def test_a_start_that_waits_for_ffmpegs_answer_ends_when_it_is_to(tmp_path: Path) -> None:
    """capture.sh would give up on that FFmpeg after 25 s, with 78."""
    program, asked = tmp_path / "mute", tmp_path / "asked"
    program.write_text(f"#!/bin/bash\necho $$ >>{asked}\nexec sleep 1000\n")
    program.chmod(0o755)
    sources = {name: {"capture": scene(ffmpeg=str(program))} for name in ("a", "b")}
    service = CaptureRig(tmp_path, "--workers=1", sources=sources)
    service.start()
    wait_until(lambda: asked.exists() and asked.read_text().count("\n") == 2, 20, "two that are asked")
    assert service.stop() == 0
    wait_until(lambda: all(is_gone(int(pid)) for pid in asked.read_text().split()), 30, "none is left")
    assert not service.lines(" ready ")


# -- mistakes at the start --------------------------------------------------------------------------------------------


def refused(service: CaptureRig, code: int, *words: str) -> None:
    """The start must end with this code and one line."""
    done = subprocess.run(
        service.command, env=service.environment, cwd=service.base, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == code, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("stillwatch: ")]
    assert len(told) == 1 and all(word in told[0] for word in words), done.stderr


def old_ffmpeg(tmp_path: Path) -> str:
    """An FFmpeg that knows no atomic_writing."""
    path = tmp_path / "old"
    path.write_text('#!/bin/sh\n[ "$1" != -h ] || echo "libavformat    56. 40.101 / 56. 40.101"\n')
    path.chmod(0o755)
    return str(path)


def test_an_ffmpeg_without_atomic_writing_is_refused(tmp_path: Path) -> None:
    service = CaptureRig(tmp_path, sources={"a": {}, "b": {"capture": scene(ffmpeg=old_ffmpeg(tmp_path))}})
    refused(service, Exit.CONFIG, "source[1].capture: ", "atomic_writing", "5.1")


def test_an_ffmpeg_that_is_not_there_is_said(tmp_path: Path) -> None:
    service = CaptureRig(tmp_path, sources={"a": {"capture": scene(ffmpeg="/nowhere/ffmpeg")}})
    refused(service, Exit.UNAVAILABLE, "source[0].capture: ", "/nowhere/ffmpeg", "apt-get")


def test_ffmpegs_that_give_no_answer_are_waited_for_once_and_left_behind_never(tmp_path: Path) -> None:
    """Together: a reload holds up whoever looks after the children, and tells systemd nothing meanwhile."""
    silent = tmp_path / "silent"
    silent.write_text(f"#!/bin/sh\necho $$ >>{tmp_path}/pids\nexec sleep 1000\n")
    silent.chmod(0o755)
    captured = Capture(**scene(ffmpeg=str(silent)))
    sources = tuple(Source(name=name, dir=str(tmp_path / name), capture=captured) for name in "abc")
    begun = time.monotonic()
    with pytest.raises(UnavailableError, match="gives no answer"):
        capturecheck.prepare(Settings(source=sources, runtime_dir=str(tmp_path)), 3.0)
    assert time.monotonic() - begun < 8.0
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert pids
    wait_until(lambda: all(is_gone(pid) for pid in pids), 5, "their end")


def test_what_capture_sh_refuses_is_refused_at_the_start(tmp_path: Path) -> None:
    camera = {"profile": "rtsp", "input": f"http://user:{PASSWORD}@camera/"}
    service = CaptureRig(tmp_path, sources={"a": {"capture": camera}})
    refused(service, Exit.CONFIG, "source[0].capture: ", "rtsp:// URL", "***@camera")


def test_recordings_of_others_are_never_taken_for_our_own_frames(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    publish(kept, 1, make_frame(1))
    service = CaptureRig(tmp_path, sources={"a": {"dir": str(kept)}})
    refused(service, Exit.CONFIG, "source[0].dir: ", str(kept), "would be deleted", "retention")
    assert [path.name for path in kept.iterdir()] == ["capture_000000001.jpg"]


@pytest.mark.parametrize(
    "name",
    [
        "capture_1.json",
        "capture_000000001_thumbnail.jpg",
        "capture_000000001.jpg.tmp",
        "audio/audio_000000001.wav",
        "hls/live_000000001.ts",
        "hls/live.m3u8",
    ],
)
def test_nothing_of_others_is_deleted_for_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "kept" / name
    path.parent.mkdir(parents=True)
    path.touch()
    source = Source(name="a", dir=str(tmp_path / "kept"), capture=Capture(**scene(audio=True, hls=True)))
    with pytest.raises(ConfigError, match="would be deleted"):
        ownership.take(source, str(tmp_path / "run"))
    assert list((tmp_path / "kept").rglob(f"*{ownership.MARK}")) == []
    plain = Source(name="a", dir=source.dir, capture=Capture(**SCENE))
    if "/" in name:
        ownership.take(plain, str(tmp_path / "run"))


def test_what_lies_below_our_own_frames_is_ours(tmp_path: Path) -> None:
    place = tmp_path / "run" / "frames" / "a"
    place.mkdir(parents=True)
    publish(place, 1, make_frame(1))
    ownership.take(Source(name="a", dir=str(place), capture=Capture(**SCENE)), str(tmp_path / "run"))
    assert (place / ownership.MARK).exists()


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ('profile = "rtsp://user:SECR/ET@h/x"\ninput = "x"', "source[0].capture.profile"),
        ('profile = "file"\ninput = "rtsp://user:SECR/ET@h/x"', "capture.input: is a URL"),
        ('profile = "v4l2-copy"\ninput = "rtsp://user:SECR/ET@h/x"', "capture.input: is a URL"),
        ('profile = "rtsp"\ninput = "x"\n"rtsp://user:SECR/ET@h/x" = 1', "unknown key"),
    ],
)
def test_a_mistake_repeats_no_secret(tmp_path: Path, mistake: str, words: str) -> None:
    (tmp_path / "rig.toml").write_text(f'[[source]]\nname = "a"\n[source.capture]\n{mistake}\n')
    with pytest.raises(ConfigError) as caught:
        config.load(str(tmp_path / "rig.toml"), {}, {})
    assert words in str(caught.value) and "SECR" not in str(caught.value) and "ET@" not in str(caught.value)


def test_captured_sound_has_one_place(tmp_path: Path) -> None:
    for place, fits in (("foo", False), ("audio", True), ("audio/", True), ("", True)):
        lines = ["[[source]]", 'name = "a"', f'audio_dir = "{place}"', "[source.capture]", 'profile = "lavfi"']
        (tmp_path / "rig.toml").write_text("\n".join([*lines, 'input = "scene:live"', "audio = true"]))
        with contextlib.nullcontext() if fits else pytest.raises(ConfigError, match="audio_dir"):
            config.load(str(tmp_path / "rig.toml"), {}, {})


def test_a_directory_below_one_that_is_missing_is_not_made(tmp_path: Path) -> None:
    """A mount may be missing there: what is made in its place would be on the card."""
    place = tmp_path / "missing" / "a"
    service = CaptureRig(tmp_path, sources={"a": {"dir": str(place)}, "b": {}})
    service.flags = ("--strict",)
    refused(service, Exit.CONFIG, "source[0].dir: ", "No such file")
    service.flags = ()
    with service:
        service.wait_frames("b", 3)
        assert len(service.lines("waiting for what is above it")) == 1 and not place.parent.exists()
        place.parent.mkdir()
        service.wait_frames("a", 3)


def test_an_ffmpeg_that_becomes_unfit_later_is_tried_again(tmp_path: Path) -> None:
    program = tmp_path / "ffmpeg"
    shutil.copy(old_ffmpeg(tmp_path), tmp_path / "unfit")
    program.symlink_to(str(shutil.which("ffmpeg")))
    sources = {"a": {"capture": scene(ffmpeg=str(program))}, "b": {}}
    with CaptureRig(tmp_path, "--workers=1", sources=sources) as service:
        service.wait_frames("a")
        program.unlink()
        program.symlink_to(tmp_path / "unfit")
        service.ffmpeg("a").kill()
        ended = wait_until(lambda: [line for line in service.lines("capture ended") if "said=" in line], 20, "its end")
        assert "source=a" in ended[0]
        wait_until(lambda: "atomic_writing" in (tmp_path / "run/lastwords/a").read_text(), 20, "the reason")
        service.wait_frames("b", 5)
        program.unlink()
        program.symlink_to(str(shutil.which("ffmpeg")))
        service.wait_frames("a")


# -- row 20 and 21 ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_20_killed_ffmpegs_are_gaps_and_never_black_or_frozen(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    chance = random.Random(seed)
    rules = {"black": {"raise_s": 0.5, "clear_s": 0.5}, "freeze": {"raise_s": 0.5, "clear_s": 0.5}}
    text = "".join(
        f"[source.rules.{name}]\n" + "".join(f"{key} = {value}\n" for key, value in rule.items())
        for name, rule in rules.items()
    )
    service = CaptureRig(tmp_path, "--workers=1", sources={"a": {"stall_s": 30.0, "capture": scene(fps=25)}})
    assert service.config
    service.config.write_text(service.config.read_text() + text)
    with service:
        for _ in range(6):
            service.wait_frames("a", 20)
            time.sleep(chance.uniform(0, 0.3))
            service.ffmpeg("a").kill()
        service.wait_frames("a", 15)
        assert service.row("a").ffmpeg_restarts == 6
        assert service.incidents() == [] and service.row("a").black_frames == service.row("a").freeze_frames == 0
        assert invalid_frames(service.dirs["a"]) == [] and service.row("a").numbering_restarts == 0
        books = service.books()["a"]
    assert books["invalid"] == books["skipped"] == 0


def test_21_an_ffmpeg_that_begins_at_1_again_is_judged_anew(tmp_path: Path) -> None:
    """Somebody else's FFmpeg, without start_number, in a directory that we may empty."""
    frames = tmp_path / "frames"
    frames.mkdir()
    source = {"dir": str(frames), "retention": "always", "keep_s": 60.0, "capture": {}}

    def run(color: str) -> None:
        command = ["ffmpeg", "-nostdin", "-v", "error", "-f", "lavfi", "-i", f"{color},realtime", "-frames:v", "20"]
        target = ["-f", "image2", "-atomic_writing", "1", str(frames / "capture_%09d.jpg")]
        subprocess.run([*command, *target], check=True)

    with CaptureRig(tmp_path, "--workers=1", sources={"a": source}) as service:
        run("testsrc2=size=320x180:rate=20")
        service.wait_sidecars(20, "a")
        first = {number: content["frame_id"] for number, content in sidecars(frames).items()}
        run("smptebars=size=320x180:rate=20")
        wait_until(lambda: service.row("a").judged >= 40, 20, "both runs judged")
        second = {number: content["frame_id"] for number, content in sidecars(frames).items()}
        assert first.keys() == second.keys() and not any(first[number] == second[number] for number in first)
        assert service.row("a").numbering_restarts == 1 and service.row("a").stale_sidecars == 20


# -- rows 23 to 25: full memory ---------------------------------------------------------------------------------------


class Gauge:
    """The fullest that a file system was, in bytes and inodes, as far as was looked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.bytes = self.inodes = 0.0

    def look(self) -> bool:
        """True, so that it fits into a condition."""
        found = os.statvfs(self._path)
        self.bytes = max(self.bytes, 1 - found.f_bavail / found.f_blocks)
        self.inodes = max(self.inodes, 1 - found.f_favail / found.f_files)
        return True


@pytest.mark.slow
@needs("mount")
def test_room_is_made_before_ffmpeg_finds_none(tmp_path: Path) -> None:
    """Rows 23 and 25: 400 KB for one source, 50 inodes for another."""
    bytes_, inodes = tmp_path / "bytes", tmp_path / "inodes"
    with tmpfs(bytes_, "size=400k"), tmpfs(inodes, "size=64m,nr_inodes=50"):
        sources = {
            "bytes": {"dir": str(bytes_), "capture": scene(fps=25)},
            "inodes": {"dir": str(inodes), "capture": scene(fps=25, size="160x90")},
        }
        with CaptureRig(tmp_path, "--workers=1", sources=sources) as service:
            gauges = [Gauge(bytes_), Gauge(inodes)]
            rows = [service.row(name) for name in sources]
            wait_until(
                lambda: all(gauge.look() for gauge in gauges) and min(row.judged for row in rows) > 150,
                40,
                "150 frames of each",
            )
            assert all(max(gauge.bytes, gauge.inodes) < 1.0 for gauge in gauges)
            assert not service.lines("capture ended")
            for name in sources:
                assert service.row(name).frames_evicted > 80, "it was never nearly full: nothing was shown"
                assert service.row(name).ffmpeg_restarts == 0 and service.lines(f"short_of={name}")
            books = service.books()
        assert all(account["invalid"] == 0 and account["judged"] > 150 for account in books.values())


@pytest.mark.slow
@needs("mount")
def test_24_ffmpeg_comes_back_when_others_have_made_room(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "memory", "size=2m") as memory:
        source = quick(dir=str(memory), capture=scene(fps=10))
        with CaptureRig(tmp_path, "--workers=1", sources={"a": source}) as service:
            service.settle()
            with filled(memory) as ballast:
                service.wait_frames("a", 20)  # our own frames have made room
                assert service.row("a").frames_evicted > 0
                wait_until(lambda: choke(ballast) and service.incidents(), 40, "not a byte is left")
                assert service.row("a").ffmpeg_restarts + len(service.lines("capture ended")) > 0
            (incident,) = stalls(service, closed=True)
            assert any("No space left" in line for line in incident["notes"]), incident["notes"]
            wait_until(lambda: not leftovers(memory), 30, "what was half written is removed")
            assert invalid_frames(memory) == []


def choke(ballast: Path) -> bool:
    """Take what has become free."""
    with ballast.open("ab", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return True


@needs("mount")
def test_frames_on_a_disk_are_warned_of_with_what_they_write(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "memory", "size=64m") as memory:
        sources: dict[str, dict[str, Any]] = {"in_memory": {"dir": str(memory)}, "on_disk": {"capture": scene(fps=5)}}
        with CaptureRig(tmp_path, "--workers=1", sources=sources) as service:
            (line,) = wait_until(lambda: service.lines("frames are not kept in memory"), 30, "the warning")
            assert "source=on_disk" in line and "fps=5" in line and "gb_per_day=45" in line


# -- row 58: exits, hangs, another size -------------------------------------------------------------------------------


FAULTS = {"exit": "exit", "hang": "hang", "stop": "good", "small": "small"}
"""What befalls a source, and what its FFmpeg is when it is started next."""


@pytest.mark.slow
def test_58_one_incident_each_and_back_by_itself(tmp_path: Path) -> None:
    """Four faults at once, rows 20 and 58, and a source beside them that must not notice."""
    stubs = {fault: StubFFmpeg(tmp_path / f"stub_{fault}") for fault in FAULTS}
    sources = {name: quick(capture=scene(ffmpeg=str(stub.path))) for name, stub in stubs.items()}
    sources["hang"]["capture"]["start_s"] = STALL_S  # of the others none hangs before its first frame
    with CaptureRig(tmp_path, "--workers=1", sources={**sources, "well": {}}) as service:
        service.settle()
        before = {name: service.ffmpeg(name) for name in service.dirs}
        begun = time.time()
        for fault, mode in FAULTS.items():
            stubs[fault].set(mode)
            before[fault].send_signal(signal.SIGSTOP if fault in ("stop", "small") else signal.SIGKILL)
        stalls(service, 4)
        took_s = [when(line) - begun for line in service.lines("incident opened")[-4:]]
        assert statistics.median(took_s) < STALL_S + 2, took_s
        for fault in ("exit", "hang"):
            stubs[fault].wait_tried(fault)
            stubs[fault].set("good")
        incidents = {incident["source"]: incident for incident in stalls(service, 4, closed=True)}
        for name in FAULTS:
            service.wait_frames(name, 5)
        assert len(service.incidents()) == 4 and incidents.keys() == FAULTS.keys()
        assert service.ffmpeg("well").pid == before["well"].pid
        for fault in FAULTS:
            assert incidents[fault]["reason"] == "recovered"
            assert any("capture.sh: exec" in line for line in incidents[fault]["notes"])
            row = service.row(fault)
            assert is_gone(before[fault].pid) and (row.ffmpeg_stalls > 0) == (fault != "exit") and not row.freeze_frames
            assert 1 <= row.ffmpeg_restarts < 8, "no storm of restarts"
        assert "/dev/video0: Input/output error" in incidents["exit"]["notes"]
        told = next((tmp_path / "state/store").glob(f"**/{incidents['exit']['id']}/incident.json")).read_text()
        assert "Input/output error" in told and '"transition":"closed"' in told
        assert not service.lines("child died")
        books = service.books()
    assert all(account["invalid"] == 0 for account in books.values())


def when(line: str) -> float:
    """The UTC second in which a line was logged."""
    return datetime.fromisoformat(line.split(maxsplit=1)[0]).timestamp()


# -- the capture child itself -----------------------------------------------------------------------------------------


def test_a_killed_capture_child_takes_its_ffmpegs_along_and_is_replaced(tmp_path: Path) -> None:
    with CaptureRig(tmp_path, "--workers=1", sources={"a": {}, "b": {}}) as service:
        for _ in range(2):
            service.wait_frames("a"), service.wait_frames("b")
            before = [service.ffmpeg(name) for name in ("a", "b")]
            highest = service.row("a").last_number
            service.child("capture").kill()
            for process in before:
                wait_until(partial(is_gone, process.pid), 20, "FFmpegs end with it")
            for name, process in zip(("a", "b"), before, strict=True):
                service.ffmpeg(name, but=process.pid)
            service.wait_frames("a", 3)
            assert service.row("a").last_number > highest
        assert service.row("a").numbering_restarts == 0 and service.incidents() == []
        service.books()


def test_a_capture_child_that_hangs_is_replaced(tmp_path: Path) -> None:
    environment = {"STILLWATCH_HANG_S": "1"}
    with CaptureRig(tmp_path, "--workers=1", sources={"a": {}}, **environment) as service:
        pid = running_pid(service, "capture")
        service.wait_frames("a")
        ffmpeg = service.ffmpeg("a")
        with stopped(pid):
            running_pid(service, "capture", but=pid)
        service.ffmpeg("a", but=ffmpeg.pid)
        service.wait_frames("a")


def test_a_killed_supervisor_takes_every_ffmpeg_along(tmp_path: Path) -> None:
    with CaptureRig(tmp_path, "--workers=1", sources={"a": {}}) as service:
        service.wait_frames("a")
        tree = service.tree()
        ffmpeg = service.ffmpeg("a")
        assert service.process and ffmpeg in tree
        service.process.kill()
        service.process.wait()
        wait_until(lambda: all(is_gone(process.pid) for process in tree), 20, "all have ended")
        service.start()
        service.wait_ready(2)
        service.wait_frames("a")


@pytest.mark.slow
def test_a_reload_interrupts_only_the_ffmpegs_that_it_changes(tmp_path: Path) -> None:
    sources: dict[str, dict[str, Any]] = {"a": {}}
    with CaptureRig(tmp_path, "--workers=1", sources=sources) as service:
        assert service.process
        service.wait_frames("a")
        ffmpeg = service.ffmpeg("a")
        service.configure({"a": {"black": {"black_pct_min": 90.0}}})
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(service.lines("change done")) == 1, 30, "the change")
        service.wait_frames("a")
        assert service.ffmpeg("a").pid == ffmpeg.pid
        service.dirs["b"] = tmp_path / "run" / "frames" / "b"
        service.configure({"a": {"black": {"black_pct_min": 90.0}}, "b": {}})
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(service.lines("change done")) == 2, 30, "the change")
        service.wait_frames("b"), service.wait_frames("a")
        assert service.ffmpeg("a").pid == ffmpeg.pid
        other = service.ffmpeg("b")
        service.configure(
            {"a": {"capture": scene(fps=8), "keep_s": 30.0}, "b": {"keep_s": 30.0}}, 'log_level = "DEBUG"'
        )
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(service.lines("change done")) == 3, 30, "the change")
        assert service.ffmpeg("a", but=ffmpeg.pid).pid != service.ffmpeg("b").pid == other.pid
        assert is_gone(ffmpeg.pid)
        service.wait_frames("a"), service.wait_frames("b")
        assert service.row("a").numbering_restarts == service.row("a").ffmpeg_restarts == 0
        service.configure({"b": {}})
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(service.lines("change done")) == 4, 30, "the change")
        assert [p.pid for p in service.tree() if p.name() == "ffmpeg"] == [other.pid]
        rows = {row.name.decode(): row for _, row in Board.open(str(tmp_path / "run")).sources}
        assert list(rows) == ["b"] and rows["b"].ffmpeg_pid
        assert not (tmp_path / "run" / "frames" / "a").exists(), "nobody would delete what is in it"


def test_a_capture_child_that_dies_while_it_is_told_has_a_successor_that_knows(tmp_path: Path) -> None:
    with CaptureRig(tmp_path, "--workers=1", sources={"a": {}, "b": {}}) as service:
        assert service.process
        service.wait_frames("a")
        child = service.child("capture")
        child.suspend()
        service.configure({"b": {}})
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: service.lines("child stopped child=watcher"), 20, "the change has begun")
        assert not service.lines("change done"), "it waits for the one that is told"
        child.kill()
        wait_until(lambda: service.lines("change done"), 30, "the change")
        service.wait_frames("b")
        assert len([p for p in service.tree() if p.name() == "ffmpeg"]) == 1


def test_frames_of_sources_that_left_are_removed_and_nothing_else(tmp_path: Path) -> None:
    frames = tmp_path / "run" / "frames"
    other = tmp_path / "other"
    for place in (frames / "kept", frames / "left" / "audio", frames / "theirs", frames / "used" / "within", other):
        place.mkdir(parents=True)
        publish(place, 1, make_frame(1))
    for marked in ("kept", "left", "used"):
        (frames / marked / MARK).touch()
    (other / MARK).touch()
    (frames / "link").symlink_to(other)
    (frames / "left" / "away").symlink_to(other)
    publish(frames / "left", 2, make_frame(2))
    evidence = tmp_path / "evidence.jpg"
    evidence.hardlink_to(frames / "left" / frame_name(2))
    sources = tuple(Source(name=name, dir=str(frames / where)) for name, where in (("a", "kept"), ("b", "used/within")))
    settings = Settings(source=sources, runtime_dir=str(tmp_path / "run"))
    descriptor = os.open(frames / "left", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    remove_left(settings)
    assert (frames / "left" / frame_name(2)).exists(), "somebody captures there"
    os.close(descriptor)
    remove_left(settings)
    assert sorted(path.name for path in frames.iterdir()) == ["kept", "link", "theirs", "used"]
    for place in (frames / "kept", frames / "theirs", frames / "used" / "within", other):
        assert (place / frame_name(1)).exists()
    assert evidence.read_bytes() == make_frame(2)


def test_a_reload_with_an_unfit_ffmpeg_changes_nothing(tmp_path: Path) -> None:
    with CaptureRig(tmp_path, "--workers=1", sources={"a": {}}) as service:
        assert service.process
        service.wait_frames("a")
        ffmpeg = service.ffmpeg("a")
        service.configure({"a": {"capture": scene(ffmpeg=old_ffmpeg(tmp_path))}})
        service.process.send_signal(signal.SIGHUP)
        (line,) = wait_until(lambda: service.lines("reload refused"), 20, "the refusal")
        assert "atomic_writing" in line and service.ffmpeg("a").pid == ffmpeg.pid
        service.wait_frames("a", 3)


def test_an_inputs_password_is_told_to_the_capture_child_alone(tmp_path: Path) -> None:
    camera = quick(capture={"profile": "rtsp", "input": f"rtsp://user:{PASSWORD}@127.0.0.1:1/stream"})
    with CaptureRig(tmp_path, "--workers=1", "--log-level=DEBUG", sources={"a": camera}) as service:
        (incident,) = stalls(service)
        assert any("***@127.0.0.1" in line for line in incident["notes"])
        for process in service.tree():
            place = Path(f"/proc/{process.pid}")
            if process.name() in ("ffmpeg", "bash", "capture.sh", "sed"):
                continue  # takes URLs on its command line only
            assert PASSWORD.encode() not in (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
        written = all_files(tmp_path)
        written.pop("stillwatch.toml")
        assert [path for path, data in written.items() if PASSWORD.encode() in data] == []


def test_only_sidecars_go_where_others_capture(tmp_path: Path) -> None:
    frames = tmp_path / "theirs"
    frames.mkdir()
    source = {"dir": str(frames), "sidecar_keep_s": 1.0, "keep_s": 1.0, "capture": {}}
    with CaptureRig(tmp_path, "--workers=1", sources={"a": source, "ours": {}}) as service:
        for number in range(1, 21):
            publish(frames, number, make_frame(number))
        service.wait_sidecars(20, "a")
        for number in range(1, 11):
            (frames / f"capture_{number:09d}.jpg").unlink()
        wait_until(lambda: len(sidecars(frames)) == 10, 20, "sidecars without frames go")
        assert sorted(sidecars(frames)) == list(range(11, 21)) and len(list(frames.glob("*.jpg"))) == 10
        assert service.row("a").capture_state == CaptureState.NONE
