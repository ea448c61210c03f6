"""One source's FFmpeg: kept running, watched, stopped; and what it says. With the real FFmpeg."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from inotify_simple import INotify, flags

from pipeline import grab, lastwords, ownership
from pipeline.backoff import Backoff
from pipeline.child import die_with_parent
from pipeline.grab import KILL_S, Tail, environment_for
from pipeline.lastwords import MAX_LINE, MAX_LINES
from pipeline.model import CaptureState
from pipeline.settings import Capture, Source
from tests.captures import SCENE, CaptureBench, StubFFmpeg, invalid_frames, leftovers
from tests.live import is_gone
from tests.streams import PASSWORD, record
from tests.support import ROOT, wait_until


def source(base: Path, name: str = "a", capture: dict[str, Any] | None = None, **values: Any) -> Source:
    """A captured source with a directory of its own."""
    directory = base / "frames" / name
    directory.mkdir(parents=True, exist_ok=True)
    return Source(name=name, dir=str(directory), capture=Capture(**{**SCENE, **(capture or {})}), **values)


def frames(source: Source) -> list[str]:
    return sorted(path.name for path in Path(source.dir).glob("capture_*.jpg"))


# -- what it says -----------------------------------------------------------------------------------------------------


def said(tail: Tail, *parts: bytes) -> list[str]:
    """What is heard of these parts, one after the other."""
    fd, heard = tail.open(), []
    for part in parts:
        os.write(fd, part)
        heard += tail.take()
    return heard + tail.close()


def test_lines_are_heard_whole_however_they_come() -> None:
    assert said(Tail(), b"one\ntw", b"o\n", b"\n  \nthree") == ["one", "two", "three"]


def test_only_the_last_lines_are_kept_over_all_runs() -> None:
    tail = Tail()
    for run in range(3):
        said(tail, b"".join(b"%d-%d\n" % (run, line) for line in range(15)))
    assert list(tail.lines) == [*(f"1-{n}" for n in range(10, 15)), *(f"2-{n}" for n in range(15))]
    assert len(tail.lines) == MAX_LINES


def test_nobody_waits_for_a_reader_and_a_flood_takes_no_memory() -> None:
    tail = Tail()
    fd = tail.open()
    for _ in range(50):  # 50 MB that nobody reads
        assert os.write(fd, b"x" * 99 + b"\n" + b"y" * (2**20 - 100)) == 2**20
    os.write(fd, b"\nthe end\n")
    heard = tail.take()
    assert heard[-1] == "the end" and max(map(len, heard)) <= MAX_LINE
    assert os.fstat(fd).st_size == 0, "what was read is given back"
    os.write(fd, b"after it\n")
    assert tail.take() == ["after it"] and tail.close() == []


def test_foreign_bytes_stay_in_their_line() -> None:
    assert said(Tail(), b"\xff\x1b[2Jred\rover\n") == ["\\xff\\x1b[2Jred\\rover"]


def test_last_words_are_published_whole_and_forgotten(tmp_path: Path) -> None:
    lastwords.write(str(tmp_path), "a", [f"line {n}" for n in range(50)])
    assert lastwords.read(str(tmp_path), "a") == [f"line {n}" for n in range(30, 50)]
    assert lastwords.read(str(tmp_path), "b") == []
    lastwords.forget(str(tmp_path), "a")
    lastwords.forget(str(tmp_path), "a")
    assert lastwords.read(str(tmp_path), "a") == [] and list((tmp_path / "lastwords").iterdir()) == []


# -- running ----------------------------------------------------------------------------------------------------------


def test_frames_come_and_the_process_is_ffmpeg_itself(tmp_path: Path) -> None:
    one = source(tmp_path, capture={"thumbnails": True, "audio": True})
    with CaptureBench(tmp_path, one) as bench:
        ffmpeg = bench.ffmpeg()
        assert ffmpeg.ppid() == os.getpid() and "-atomic_writing" in ffmpeg.cmdline()
        bench.turn_until(lambda: bench.row().kept_frames >= 5 and bench.row().capture_state == CaptureState.RUNNING)
        assert (bench.row().ffmpeg_pid, bench.row().ffmpeg_restarts) == (ffmpeg.pid, 0)
    assert is_gone(ffmpeg.pid) and bench.row().ffmpeg_pid == 0
    assert invalid_frames(Path(one.dir)) == [] == leftovers(Path(one.dir))


def test_an_ffmpeg_that_ends_is_started_again_and_numbers_go_on(tmp_path: Path) -> None:
    one = source(tmp_path)
    with CaptureBench(tmp_path, one) as bench:
        ffmpeg = bench.ffmpeg()
        bench.turn_until(lambda: frames(one))
        ffmpeg.kill()
        bench.turn_until(lambda: bench.row().ffmpeg_restarts == 1)
        before = {name: (Path(one.dir) / name).stat().st_mtime_ns for name in frames(one)}
        bench.turn_until(lambda: len(frames(one)) > len(before))
        after = {name: (Path(one.dir) / name).stat().st_mtime_ns for name in frames(one)}
        assert {name: after[name] for name in before} == before, "nothing was overwritten"


def test_numbers_go_on_even_when_all_files_have_gone(tmp_path: Path) -> None:
    one = source(tmp_path)
    with CaptureBench(tmp_path, one) as bench:
        bench.turn_until(lambda: len(frames(one)) >= 5)
        ffmpeg = bench.ffmpeg()
        ffmpeg.suspend()
        highest = bench.turn_until(lambda: frames(one)[-1])
        bench.turn_until(lambda: bench.role.grabbers[0][1].frames.next_number > 5)
        for name in frames(one):
            (Path(one.dir) / name).unlink()
        ffmpeg.kill()
        bench.turn_until(lambda: frames(one))
        assert frames(one)[0] > highest


@pytest.mark.slow
def test_one_that_cannot_start_is_tried_ever_more_rarely_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stub = StubFFmpeg(tmp_path / "stub")
    stub.set("exit")
    one = source(tmp_path, capture={"ffmpeg": str(stub.path)})
    with CaptureBench(tmp_path, one) as bench:
        bench.turn_until(lambda: len(stub.starts) == 4)
        assert bench.role.grabbers[0][0]._backoff.delay_s >= 1.0
        told = [line for line in caplog.text.splitlines() if "capture ended" in line]
        assert len(told) == 1 and "exit=1" in told[0] and "Input/output error" in told[0]
        assert "/dev/video0: Input/output error" in lastwords.read(bench.runtime_dir, "a")
        stub.set("good")
        bench.turn_until(lambda: frames(one))
        bench.turn_until(lambda: not lastwords.read(bench.runtime_dir, "a"), what="words that explain nothing any more")


def test_progress_makes_the_next_death_a_first_one(tmp_path: Path) -> None:
    stub = StubFFmpeg(tmp_path / "stub")
    stub.set("exit")
    one = source(tmp_path, capture={"ffmpeg": str(stub.path)})
    with CaptureBench(tmp_path, one) as bench:
        backoff = bench.role.grabbers[0][0]._backoff
        bench.turn_until(lambda: backoff.failures == 3)
        stub.set("good")
        bench.turn_until(lambda: frames(one))
        assert backoff.failures >= 3, "a single frame is no progress"
        bench.turn_until(lambda: backoff.failures == 0)
        assert len(frames(one)) >= grab.PROGRESS


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["hang", "deaf"])
def test_one_that_says_nothing_is_stopped_and_started_again(tmp_path: Path, mode: str) -> None:
    stub = StubFFmpeg(tmp_path / "stub")
    stub.set(mode)
    one = source(tmp_path, capture={"ffmpeg": str(stub.path), "start_s": 2}, stall_s=2)
    with CaptureBench(tmp_path, one) as bench:
        bench.turn_until(lambda: bench.row().ffmpeg_stalls == 1)
        stub.set("good")
        bench.turn_until(lambda: frames(one), KILL_S + 20)
        assert bench.row().ffmpeg_restarts >= 1 and set(stub.starts) == {mode, "good"}


def test_a_stopped_one_is_killed_and_its_silence_explained(tmp_path: Path) -> None:
    one = source(tmp_path, stall_s=1.0)
    with CaptureBench(tmp_path, one) as bench:
        ffmpeg = bench.ffmpeg()
        bench.turn_until(lambda: frames(one))
        ffmpeg.suspend()
        words = bench.turn_until(lambda: lastwords.read(bench.runtime_dir, "a"), what="last words before the stall")
        assert words[0].startswith("capture.sh: exec ") and bench.row().ffmpeg_stalls == 0
        bench.turn_until(lambda: bench.row().ffmpeg_stalls == 1)
        bench.turn_until(lambda: is_gone(ffmpeg.pid), KILL_S + 5)
        assert "no frame for 1." in "".join(lastwords.read(bench.runtime_dir, "a"))
        assert bench.ffmpeg().pid != ffmpeg.pid


def test_a_host_that_stalled_is_not_ffmpegs_fault(tmp_path: Path) -> None:
    with CaptureBench(tmp_path, source(tmp_path, stall_s=1.0)) as bench:
        ffmpeg = bench.ffmpeg()
        bench.turn_until(lambda: bench.row().capture_state == CaptureState.RUNNING)
        ffmpeg.suspend()
        bench.role._wakes_ns -= 5 * 10**9  # this process was held up as well
        grabber = bench.role.grabbers[0][0]
        grabber._newest_ns -= 5 * 10**9
        bench.turn_until(lambda: True)
        assert bench.row().ffmpeg_stalls == 0
        bench.turn_until(lambda: bench.row().ffmpeg_stalls == 1, what="but of what follows it is")


def test_an_input_that_goes_and_comes_back_is_picked_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "stillwatch")
    film, away = tmp_path / "film.mkv", tmp_path / "away.mkv"
    record(film, "testsrc2=size=320x180:rate=10", seconds=1)
    film.rename(away)
    lost = source(tmp_path, capture={"profile": "file", "input": str(film), "size": "", "copy": True})
    with CaptureBench(tmp_path, lost, source(tmp_path, "b")) as bench:
        bench.turn_until(lambda: bench.row(1).kept_frames > 3)
        assert bench.row(0).capture_state == CaptureState.WAITING and bench.row(0).ffmpeg_pid == 0
        assert lastwords.read(bench.runtime_dir, "a") == [f"stillwatch: {film}: not there"]
        pid = bench.ffmpeg(1).pid
        away.rename(film)
        bench.turn_until(lambda: frames(lost))
        assert bench.ffmpeg(1).pid == pid, "nobody else was disturbed"
        assert caplog.text.count("input absent") == caplog.text.count("input is there") == 1


def test_it_dies_with_whoever_started_it(tmp_path: Path) -> None:
    program = (
        "import os, subprocess, time; from functools import partial; from pipeline.child import die_with_parent; "
        "asks = partial(die_with_parent, os.getpid()); "
        "print(subprocess.Popen(['sleep', '1000'], preexec_fn=asks).pid, flush=True); time.sleep(1000)"
    )
    command = [sys.executable, "-P", "-c", program]
    parent = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    with parent.stdout:
        child = psutil.Process(int(parent.stdout.readline()))
        wait_until(lambda: child.cmdline()[:1] == ["sleep"], 20, "the steps before it are done")
    parent.kill()
    parent.wait()
    wait_until(lambda: is_gone(child.pid), 20, "it died as well")


def test_it_does_not_start_when_its_parent_died_before_it_could_be_told() -> None:
    asks = partial(die_with_parent, 1)  # that is not who started this
    done = subprocess.run(["echo", "started"], capture_output=True, preexec_fn=asks, check=False)
    assert done.stdout == b""


def test_a_closed_capture_leaves_nothing_even_of_a_deaf_one(tmp_path: Path) -> None:
    stub = StubFFmpeg(tmp_path / "stub")
    stub.set("deaf")
    with CaptureBench(tmp_path, source(tmp_path, capture={"ffmpeg": str(stub.path)})) as bench:
        bench.turn_until(lambda: stub.starts == ["deaf"])
        pid = int(bench.row().ffmpeg_pid)
    assert is_gone(pid)


def test_other_peoples_capture_in_the_same_directory_is_left_alone(tmp_path: Path) -> None:
    one = source(tmp_path)
    with CaptureBench(tmp_path, one) as bench, contextlib.ExitStack() as stack:
        bench.turn_until(lambda: frames(one))
        words = [grab.SCRIPT, "--profile=lavfi", "--input=scene:live", f"--dir={one.dir}"]
        second = stack.enter_context(subprocess.Popen(words, stderr=subprocess.PIPE, text=True))
        stack.callback(second.kill)
        assert second.wait(20) == 75


# -- row 20: FFmpeg killed a hundred times ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.costly
@pytest.mark.timeout(600)
def test_a_hundred_kills_publish_no_truncated_frame_and_leave_nothing(tmp_path: Path) -> None:
    """Half of them aimed at a write: as soon as the temporary file of a large frame is there."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    chance = random.Random(seed)
    noise = "testsrc2=size=1280x720:rate=10,noise=alls=90:allf=t"  # 1.5 MB a frame
    one = source(tmp_path, capture={"input": noise, "size": "", "quality": 2, "fps": 10, "thumbnails": True})
    with CaptureBench(tmp_path, one) as bench, contextlib.closing(INotify()) as inotify:
        inotify.add_watch(one.dir, flags.CREATE)
        bench.role.grabbers[0][0]._backoff = Backoff(0.001, 0.01)
        halves = 0
        for _ in range(100):
            ffmpeg = bench.ffmpeg()
            inotify.read(timeout=0)
            events = inotify.read(timeout=30_000)
            assert events, "FFmpeg writes nothing"
            if chance.random() < 0.5:
                inotify.read(timeout=int(chance.uniform(1, 200)))
            ffmpeg.send_signal(signal.SIGKILL)
            wait_until(partial(is_gone, ffmpeg.pid), 20)
            halves += len(leftovers(Path(one.dir)))
            bench.turn_until(lambda: bench.row().ffmpeg_pid == 0 or not leftovers(Path(one.dir)))
        bench.role.close()
        assert invalid_frames(Path(one.dir)) == [] and leftovers(Path(one.dir)) == []
        assert bench.row().ffmpeg_restarts >= 99 and bench.row().frames_removed > 0
        assert bench.row().tmp_removed >= halves > 0, "no kill hit a write: nothing was shown"


# -- secrets ----------------------------------------------------------------------------------------------------------


def test_a_password_is_in_the_environment_of_capture_sh_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "stillwatch")
    url = f"rtsp://user:{PASSWORD}@127.0.0.1:1/stream"
    camera = source(tmp_path, capture={"profile": "rtsp", "input": url, "size": ""})
    assert environment_for(camera)["CAPTURE_INPUT"] == url
    with CaptureBench(tmp_path, camera) as bench:
        bench.turn_until(lambda: bench.row().ffmpeg_restarts == 1)
        words = " ".join(lastwords.read(bench.runtime_dir, "a"))
        assert "rtsp://***@127.0.0.1:1" in words and PASSWORD not in words
    assert "***@" in caplog.text and PASSWORD not in caplog.text


def test_nothing_of_the_users_own_capture_variables_comes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTURE_HLS", "1")
    monkeypatch.setenv("CAPTURE_DURATION", "1")
    given = environment_for(source(tmp_path), 7)
    assert given["CAPTURE_HLS"] == "0" and "CAPTURE_DURATION" not in given and given["CAPTURE_FIRST"] == "7"


def test_capture_sh_is_given_no_setting_and_no_key_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STILLWATCH_WEBHOOK_URL", "CLOUDFLARE_R2_SECRET_ACCESS_KEY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.setenv(name, PASSWORD)
    given = environment_for(source(tmp_path))
    assert PASSWORD not in given.values() and given["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("profile", ["file", "v4l2-copy"])
def test_what_is_waited_for_is_named_without_its_secrets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, profile: str
) -> None:
    lost = source(tmp_path, capture={"profile": profile, "input": "/x/rtsp:/user:SECR/ET@cam/x?token=ET", "size": ""})
    with CaptureBench(tmp_path, lost) as bench:
        bench.turn_until(lambda: "input absent" in caplog.text)
        words = lastwords.read(bench.runtime_dir, "a")
    assert words == ["stillwatch: /x/rtsp:/***@cam/x?***: not there"] and "ET" not in caplog.text


# -- directories that go ----------------------------------------------------------------------------------------------


def test_a_directory_that_was_removed_is_made_and_marked_before_anything_is_captured(tmp_path: Path) -> None:
    one = source(tmp_path)
    with CaptureBench(tmp_path, one) as bench:
        ownership.take(one, bench.runtime_dir)
        bench.turn_until(lambda: frames(one))
        Path(one.dir).rename(tmp_path / "away")  # at once: FFmpeg writes on while files are removed one by one
        shutil.rmtree(tmp_path / "away")
        bench.turn_until(lambda: bench.row().ffmpeg_restarts > 0 and frames(one))
        ownership.take(one, bench.runtime_dir)  # as every start and every reload does
        assert (Path(one.dir) / ownership.MARK).exists()


def test_a_directory_that_was_emptied_under_a_running_ffmpeg_is_marked_again(tmp_path: Path) -> None:
    one = source(tmp_path)
    with CaptureBench(tmp_path, one) as bench:
        bench.turn_until(lambda: frames(one))
        mark = Path(one.dir) / ownership.MARK
        mark.unlink()
        bench.turn_until(mark.exists)
        mark.unlink()
        (Path(one.dir) / "capture_000000000.jpg").touch()  # not of this run
        bench.turn_until(lambda: True)
        assert not mark.exists() and bench.row().ffmpeg_restarts == 0


def test_what_is_above_a_directory_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A tmpfs that was unmounted: what is made in its place would be on the card."""
    caplog.set_level("INFO", "stillwatch")
    one = Source(name="a", dir=str(tmp_path / "memory" / "a"), capture=Capture(**SCENE))
    with CaptureBench(tmp_path, one) as bench:
        bench.turn_until(lambda: "input absent" in caplog.text)
        for _ in range(10):
            bench.turn_until(lambda: True)
        assert not (tmp_path / "memory").exists() and caplog.text.count("not there") + caplog.text.count("absent") == 1
        (tmp_path / "memory").mkdir()
        bench.turn_until(lambda: frames(one))
        assert (Path(one.dir) / ownership.MARK).exists()


def test_frames_of_others_that_are_mounted_there_are_not_captured_over(tmp_path: Path) -> None:
    one = source(tmp_path)
    (Path(one.dir) / "capture_000000007.jpg").write_bytes(b"kept")
    with CaptureBench(tmp_path, one) as bench:
        bench.turn_until(lambda: "would be deleted" in "".join(lastwords.read(bench.runtime_dir, "a")))
    assert frames(one) == ["capture_000000007.jpg"]


# -- kills that do not help at once -----------------------------------------------------------------------------------


def test_one_that_does_not_end_is_killed_once_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in state D, in which SIGKILL has no effect: here it is swallowed."""
    stub, kills = StubFFmpeg(tmp_path / "stub"), []
    stub.set("deaf")
    one = source(tmp_path, capture={"ffmpeg": str(stub.path)})
    with CaptureBench(tmp_path, one) as bench:
        bench.turn_until(lambda: stub.starts == ["deaf"])
        grabber = bench.role.grabbers[0][0]
        with monkeypatch.context() as patch:
            patch.setattr(os, "killpg", lambda _, number: kills.append(number))
            now_ns = grabber._started_ns + 60 * 10**9
            grabber.step(now_ns, 0, 0)
            for tenth in range(100):
                later_ns = now_ns + tenth * 10**8
                grabber.step(later_ns, 0, 0)
                assert grabber.wait_s(later_ns) > 0
        assert kills[:2] == [signal.SIGTERM, signal.SIGKILL] and 7 <= kills.count(signal.SIGKILL) <= 9


def test_what_capture_sh_has_started_ends_with_it(tmp_path: Path) -> None:
    """An FFmpeg that hangs when it is asked what it can do."""
    program, told = tmp_path / "ffmpeg", tmp_path / "told"
    program.write_text(f"#!/bin/bash\ntrap '' TERM\necho $$ >{told}\nwhile :; do sleep 0.1; done\n")
    program.chmod(0o755)
    with CaptureBench(tmp_path, source(tmp_path, capture={"ffmpeg": str(program)})) as bench:
        pid = int(bench.turn_until(lambda: told.exists() and told.read_text()))
    wait_until(partial(is_gone, pid), 20, "it has ended as well")
