"""Faults of the directories and of inotify, done to the real service: what came meanwhile is judged exactly once.

Numbers in brackets are those of the list of faults to survive.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.board import Board, SourceRow
from pipeline.frames import identity_of
from pipeline.model import Exit, SourceState
from tests.machine import FaultRig, bindfs, in_namespace_with, needs, overlay, sysctl, tmpfs, unmount
from tests.support import make_frame, publish, sidecars, wait_until

pytestmark = pytest.mark.any_python

WATCHING, POLLING, MISSING = SourceState.WATCHING, SourceState.POLLING, SourceState.MISSING
FOUND_S = 20.0  # the watcher looks every 2.5 s; this machine may be busy


@pytest.fixture
def service(tmp_path: Path) -> FaultRig:
    """A service over one source, not started yet."""
    return FaultRig(tmp_path)


def row_of(service: FaultRig, lane: int = 0) -> SourceRow:
    """A copy of a source's row of the board."""
    board = Board.open(str(service.base / "run"))
    copy = SourceRow.from_buffer_copy(board.memory.sources[lane])
    os.close(board.fd)
    return copy


def wait_state(service: FaultRig, state: SourceState, rearmed: int = 0) -> None:
    """Wait until the watcher sees its source so, after having armed it this often again."""

    def is_so() -> bool:
        row = row_of(service)
        return bool(row.state == state and row.rearmed >= rearmed)

    wait_until(is_so, FOUND_S, f"{state.name}, re-armed {rearmed} times; log:\n{service.log}")


def assert_judged(service: FaultRig, count: int) -> None:
    """Exactly so many frames were published and judged, each once, and nothing broke."""
    books = service.books()["a"]
    assert (books["published"], books["judged"]) == (count, count), books
    assert "Traceback" not in service.log
    assert "duplicates=" not in service.log


def wait_sidecar(directory: Path, number: int) -> dict[str, object]:
    found: dict[int, dict[str, object]] = wait_until(lambda: sidecars(directory), FOUND_S, f"sidecars in {directory}")
    return found[number]


# -- limits of inotify (10, 11) ---------------------------------------------------------------------------------------


@needs()
def test_an_overflow_loses_no_frame(service: FaultRig) -> None:
    service.config = service.base / "settings.toml"
    service.config.write_text(f'overload_lag_s = 600\n[[source]]\nname = "a"\ndir = "{service.dir}"\n')
    with contextlib.ExitStack() as restored:
        restored.enter_context(sysctl("fs.inotify.max_queued_events", 64))
        with service:
            restored.close()  # the limit is taken when the watcher opens its inotify
            watcher = service.child("watcher")
            watcher.suspend()
            for number in range(1, 1001):
                service.publish(number, make_frame(number % 7, 160, 100))
            watcher.resume()
            service.wait_sidecars(1000, timeout_s=40)
            assert row_of(service).overflows > 0
            assert service.lines("inotify queue overflowed")
            assert_judged(service, 1000)


@needs("unshare")
@pytest.mark.parametrize(
    ("limit", "name"),
    [
        ("max_inotify_watches", "fs.inotify.max_user_watches"),
        ("max_inotify_instances", "fs.inotify.max_user_instances"),
    ],
)
def test_an_exhausted_limit_is_named_and_the_source_polled(service: FaultRig, limit: str, name: str) -> None:
    service.wrapper = in_namespace_with(**{limit: 0})
    with service:
        assert row_of(service).state == POLLING
        warnings = [line for line in service.lines("WARNING") if "polling" in line]
        assert len(warnings) == 1 and name in warnings[0], warnings
        for number in range(1, 6):
            service.publish(number)
        service.wait_sidecars(5)
        assert row_of(service).events == 0
        assert_judged(service, 5)


# -- directories that come and go (12, 13) ----------------------------------------------------------------------------


def test_a_missing_directory_is_waited_for(service: FaultRig) -> None:
    service.dir.rmdir()
    with service:
        wait_state(service, MISSING)
        assert len(service.lines("directory missing, waiting for it")) == 1
        service.dir.mkdir()
        service.publish(1)
        service.wait_sidecars(1)
        wait_state(service, WATCHING)
        assert_judged(service, 1)


def test_a_missing_directory_is_an_error_if_strict(service: FaultRig) -> None:
    service.dir.rmdir()
    service.flags = ("--strict",)
    service.start()
    assert service.process
    assert service.process.wait(10) == Exit.CONFIG
    assert service.log.count("\n") == 1
    assert str(service.dir) in service.log


def test_a_directory_removed_and_made_anew_is_armed_again(service: FaultRig) -> None:
    with service:
        service.publish(100)
        service.wait_sidecars(1)
        shutil.rmtree(service.dir)
        wait_state(service, MISSING)
        assert service.lines("watch lost")
        service.dir.mkdir()
        service.publish(1)
        service.wait_sidecars(1)
        wait_state(service, WATCHING, rearmed=1)
        assert_judged(service, 2)


def test_a_directory_renamed_away_is_not_followed(service: FaultRig) -> None:
    with service:
        service.publish(1)
        service.wait_sidecars(1)
        away = service.base / "away"
        service.dir.rename(away)
        publish(away, 2, make_frame(2))
        service.dir.mkdir()
        service.publish(3)
        wait_sidecar(service.dir, 3)
        publish(away, 4, make_frame(4))
        service.publish(5)
        service.wait_sidecars(2)
        assert sorted(sidecars(away)) == [1]
        assert_judged(service, 3)


# -- mounts (14, 15) --------------------------------------------------------------------------------------------------


@needs()
def test_a_file_system_mounted_over_is_noticed_and_its_end_too(service: FaultRig) -> None:
    with service:
        service.publish(1)
        service.wait_sidecars(1)
        with tmpfs(service.dir):
            assert row_of(service).state == WATCHING, "no event tells"
            service.publish(2)
            wait_sidecar(service.dir, 2)
            wait_state(service, WATCHING, rearmed=1)
        wait_state(service, WATCHING, rearmed=2)
        service.publish(3)
        service.wait_sidecars(2)
        assert sorted(sidecars(service.dir)) == [1, 3]
        assert_judged(service, 3)


@needs()
def test_an_unmounted_directory_is_armed_again_when_it_is_mounted(service: FaultRig) -> None:
    with tmpfs(service.dir) as point, service:
        service.publish(1)
        service.wait_sidecars(1)
        unmount(point)
        wait_until(lambda: service.lines("watch lost"), FOUND_S)
        assert "unmount" in service.lines("watch lost")[0]
        wait_state(service, WATCHING, rearmed=1)  # what the mount has hidden until now
        with tmpfs(point):
            service.publish(2)
            wait_sidecar(service.dir, 2)
            assert_judged(service, 2)


@pytest.mark.slow
@needs()
def test_a_directory_detached_under_a_writer_is_left_without_a_busy_loop(service: FaultRig) -> None:
    with tmpfs(service.dir) as point, service:
        service.publish(1)
        service.wait_sidecars(1)
        with (point / "capture_000000002.jpg.tmp").open("wb") as writer:
            busy = subprocess.run(["umount", str(point)], capture_output=True)
            assert busy.returncode != 0, "a plain umount is refused while a writer is there"
            at = os.open(point, os.O_PATH)
            unmount(point, "-l")
            watcher = service.child("watcher")
            used_s = sum(watcher.cpu_times()[:2])
            writer.write(make_frame(2))
            writer.flush()
            os.rename("capture_000000002.jpg.tmp", "capture_000000002.jpg", src_dir_fd=at, dst_dir_fd=at)
            wait_state(service, WATCHING, rearmed=1)
            assert sum(watcher.cpu_times()[:2]) - used_s < 1
            assert os.listdir(f"/proc/self/fd/{at}") != [], "the writer's own view is still there"
            os.close(at)
        with tmpfs(point):
            wait_state(service, WATCHING, rearmed=2)
            service.publish(3)
            service.wait_sidecars(1)
            assert sorted(sidecars(service.dir)) == [3]
            books = service.books()["a"]
            assert books["judged"] + books["vanished"] == books["published"]
            assert books["judged"] == 2


# -- what inotify cannot tell apart or see (16, 17, 18) ---------------------------------------------------------------


def test_two_sources_in_one_directory_are_refused_with_both_names(tmp_path: Path) -> None:
    service = FaultRig(tmp_path, sources=("left", "right"))
    service.dirs["right"].rmdir()
    service.dirs["right"].symlink_to(service.dirs["left"])
    service.start()
    assert service.process
    assert service.process.wait(10) == Exit.CONFIG
    assert service.log.count("\n") == 1
    assert "left" in service.log and "right" in service.log


@needs("bindfs")
def test_frames_written_behind_a_fuse_mount_are_found_by_polling(service: FaultRig) -> None:
    backing = service.base / "backing"
    with bindfs(backing, service.dir), service:
        assert row_of(service).state == POLLING
        assert any("inotify cannot see this file system" in line for line in service.lines("WARNING"))
        for number in (1, 2, 3):
            publish(backing, number, make_frame(number))
        service.wait_sidecars(3)
        assert row_of(service).events == 0
        assert_judged(service, 3)


@needs()
@pytest.mark.parametrize("before", [0, 2])
def test_frames_written_behind_an_overlay_are_found_and_it_is_polled_from_then_on(
    service: FaultRig, before: int
) -> None:
    upper = service.base / "upper"
    with overlay(service.base, service.dir):
        for number in range(1, before + 1):
            publish(upper, number, make_frame(number))
        with service:
            wait_state(service, WATCHING)
            service.wait_sidecars(before)
            for number in range(before + 1, before + 4):
                publish(upper, number, make_frame(number))
            service.wait_sidecars(before + 3)
            wait_state(service, POLLING)
            assert row_of(service).events == 0
            assert_judged(service, before + 3)


def test_its_own_sidecars_do_not_wake_the_watcher(service: FaultRig) -> None:
    with service:
        for number in range(1, 101):
            service.publish(number)
        service.wait_sidecars(100)
        assert row_of(service).events == 100
        assert row_of(service).scans == 1
        assert_judged(service, 100)


# -- names that come again (21) ---------------------------------------------------------------------------------------


@needs("ffmpeg", root=False)
def test_frames_of_an_ffmpeg_that_begins_at_1_again_replace_the_old_sidecars(service: FaultRig) -> None:
    with service:
        for run, size in enumerate(("320x180", "160x96"), 1):
            source = f"testsrc2=size={size}:rate=50"
            command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-frames:v", "20", "-f", "image2"]
            target = str(service.dir / "capture_%09d.jpg")
            subprocess.run([*command, "-atomic_writing", "1", target], check=True, timeout=30)
            wait_until(lambda: all_current(service.dir), FOUND_S, "every frame's own sidecar")
            assert row_of(service).events == 20 * run
        row = row_of(service)
        assert row.stale_sidecars == 20
        assert row.numbering_restarts == 1
        assert_judged(service, 40)


def test_a_picture_that_stops_shortly_after_the_numbers_began_anew_is_a_freeze(service: FaultRig) -> None:
    """Not `still`, as a screen would be: a soak lost an incident by that."""
    with service:
        for number in range(1, 21):
            publish(service.dir, number, make_frame(number))
        wait_until(lambda: all_current(service.dir), FOUND_S, "the first recording is judged")
        shown = [make_frame(21), make_frame(22), *[make_frame(23)] * 12]
        for number, data in enumerate(shown, 1):
            publish(service.dir, number, data)
        wait_until(lambda: all_current(service.dir), FOUND_S, "the second is judged")
        found = sidecars(service.dir)
        assert [found[number]["freeze_kind"] for number in range(3, 15)] == [None] * 3 + ["whole"] * 9
        assert all(found[number]["readings"]["freeze_fault"] == 1 for number in range(6, 15))
        assert row_of(service).numbering_restarts == 1


def all_current(directory: Path) -> bool:
    """Whether every frame has a sidecar that speaks of the file that is there now."""
    frames = sorted(directory.glob("*.jpg"))
    try:
        found = [json.loads(path.with_suffix(".json").read_bytes())["frame_id"] for path in frames]
    except FileNotFoundError:
        return False
    identities = [identity_of(path.stat()) for path in frames]
    return found == [[i.dev, i.inode, i.mtime_ns, i.size] for i in identities]
