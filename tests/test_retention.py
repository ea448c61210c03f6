"""Retention: what is deleted, when, and that a file system is never full because of us. On real tmpfs mounts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import shelf as shelf_module
from pipeline.board import Board, SourceRow
from pipeline.model import SourceState
from pipeline.ownership import MARK
from pipeline.retention import PACE_S, OwnFrames, Retention
from pipeline.settings import Capture, Settings, Source
from pipeline.shelf import BATCH, LATE_NS, LEAST_BY_AGE, LEAST_BY_SPACE, SIDECAR_KEEP_IN_MEMORY_S, SIDECAR_KEEP_S
from tests.machine import filled, needs, tmpfs
from tests.support import frame_name, publish

S = 10**9
CAPTURED = Capture(profile="lavfi", input="scene:live", audio=True)


class Desk:
    """A retention with a clock of its own, and whoever publishes, judges and deletes beside it."""

    def __init__(self, base: Path, *sources: Source) -> None:
        (base / "run").mkdir(exist_ok=True)
        self.settings = Settings(source=sources, runtime_dir=str(base / "run"), state_dir=str(base))
        names = [source.name for source in sources]
        self.board = Board.create(str(base / "run"), [], names)
        self.retention = Retention(self.settings, self.board, {name: lane for lane, name in enumerate(names)})
        self.now_ns = time.monotonic_ns()

    def row(self, lane: int = 0) -> SourceRow:
        row: SourceRow = self.board.memory.sources[lane]
        return row

    def pass_s(self, seconds: float = 0.0) -> None:
        """Time passes, and then it is retention's turn."""
        self.now_ns += int(seconds * S)
        self.retention.step(self.now_ns)

    def close(self) -> None:
        self.retention.close()
        os.close(self.board.fd)


@contextlib.contextmanager
def desk(base: Path, *sources: Source) -> Iterator[Desk]:
    """A desk after its first turn."""
    with contextlib.closing(Desk(base, *sources)) as made:
        made.pass_s()
        yield made


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    path = tmp_path / "frames"
    path.mkdir()
    return path


def own(directory: Path, name: str = "a", **values: Any) -> Source:
    """A source whose frames are ours to delete."""
    if directory.is_dir():
        (directory / MARK).touch()
    return Source(name=name, dir=str(directory), **{"capture": CAPTURED, **values})


def show(directory: Path, *numbers: int, size: int = 10_000, beside: bool = True) -> None:
    """Publish frames, each with a sidecar and a thumbnail."""
    for number in numbers:
        path = publish(directory, number, bytes(size))
        if beside:
            path.with_suffix(".json").write_text("{}")
            thumbnail = path.with_name(f"{path.stem}_thumbnail.jpg")
            thumbnail.with_suffix(".jpg.tmp").write_bytes(bytes(2000))
            thumbnail.with_suffix(".jpg.tmp").rename(thumbnail)


def numbers_in(directory: Path, suffix: str = ".jpg") -> list[int]:
    """The numbers of the files that end so."""
    names = (path.name.removesuffix(suffix) for path in directory.iterdir() if path.name.endswith(suffix))
    return sorted(int(name.removeprefix("capture_")) for name in names if name.removeprefix("capture_").isdigit())


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_frames_go_after_keep_s_with_what_stands_beside_them(tmp_path: Path, frames: Path) -> None:
    with desk(tmp_path, own(frames, keep_s=10.0)) as at:
        for number in range(1, 101):
            show(frames, number)
            at.pass_s(0.2)
        left = numbers_in(frames)
        assert left == list(range(left[0], 101)) and 48 <= len(left) <= 56
        assert numbers_in(frames, ".json") == left == numbers_in(frames, "_thumbnail.jpg")
        assert at.row().frames_removed == 100 - len(left) and at.row().frames_evicted == 0
        assert at.row().kept_frames == len(left)
        assert len(left) * 20_000 < at.row().kept_bytes < len(left) * 24_000


def test_the_last_frames_of_a_silent_source_stay(tmp_path: Path, frames: Path) -> None:
    with desk(tmp_path, own(frames, keep_s=1.0)) as at:
        show(frames, *range(1, 51))
        for _ in range(100):
            at.pass_s(10)
        assert numbers_in(frames) == list(range(51 - LEAST_BY_AGE, 51))


def test_what_is_mounted_over_a_directory_of_ours_is_left_alone(tmp_path: Path, frames: Path) -> None:
    source = own(frames, keep_s=1.0)
    (frames / MARK).unlink()
    show(frames, *range(1, 31))
    with desk(tmp_path, source) as at:
        at.pass_s(60)
        assert numbers_in(frames) == list(range(1, 31))


def test_keep_frames_bounds_their_number(tmp_path: Path, frames: Path) -> None:
    with desk(tmp_path, own(frames, keep_frames=7)) as at:
        show(frames, *range(1, 51))
        at.pass_s(0.1)
        assert numbers_in(frames) == list(range(44, 51))


def test_max_bytes_bounds_frames_sidecars_thumbnails_and_sound_together(tmp_path: Path, frames: Path) -> None:
    (frames / "audio").mkdir()
    with desk(tmp_path, own(frames, max_bytes=400_000)) as at:
        for number in range(1, 61):
            show(frames, number)
            (frames / "audio" / f"audio_{number:09d}.wav").write_bytes(bytes(32_000))
            at.pass_s(1.0)
        used = sum(path.stat().st_blocks * 512 for path in frames.rglob("*") if path.is_file())
        assert 300_000 < used <= 400_000 and at.row().kept_bytes <= 400_000
        left, sounds = numbers_in(frames), sorted(path.name for path in (frames / "audio").iterdir())
        assert left[-1] == 60 and sounds[-1] == "audio_000000060.wav"
        assert abs(len(left) - len(sounds)) <= 1, "the older goes first, whatever it is"


def test_sound_goes_after_keep_s_and_none_stays(tmp_path: Path, frames: Path) -> None:
    (frames / "audio").mkdir()
    with desk(tmp_path, own(frames, keep_s=5.0)) as at:
        for number in range(1, 21):
            (frames / "audio" / f"audio_{number:09d}.wav").write_bytes(bytes(32_000))
            at.pass_s(1.0)
        left = sorted(path.name for path in (frames / "audio").iterdir())
        assert left[-1] == "audio_000000020.wav" and 5 <= len(left) <= 7
        at.pass_s(20)
        assert list((frames / "audio").iterdir()) == []


@pytest.mark.parametrize("values", [{"capture": Capture(profile="lavfi")}, {"capture": None, "retention": "always"}])
def test_sound_that_is_not_captured_here_stays(tmp_path: Path, frames: Path, values: dict[str, Any]) -> None:
    (frames / "audio").mkdir()
    theirs = frames / "audio" / "audio_000000001.wav"
    theirs.write_bytes(bytes(32_000))
    with desk(tmp_path, own(frames, keep_s=5.0, max_bytes=1, **values)) as at:
        at.pass_s(20)
        assert theirs.exists()


def test_evidence_survives_by_its_links(tmp_path: Path, frames: Path) -> None:
    with desk(tmp_path, own(frames, keep_frames=2)) as at:
        show(frames, 1)
        os.link(frames / frame_name(1), tmp_path / "held.jpg")
        show(frames, *range(2, 20))
        at.pass_s(1)
        assert not (frames / frame_name(1)).exists() and (tmp_path / "held.jpg").read_bytes() == bytes(10_000)


def test_a_wall_clock_that_jumps_deletes_nothing(tmp_path: Path, frames: Path) -> None:
    with desk(tmp_path, own(frames)) as at:
        show(frames, *range(1, 31))
        for path in frames.iterdir():
            os.utime(path, (0, 0))
        at.pass_s(1)
        assert len(numbers_in(frames)) == 30


# -- what was there, and what comes late ------------------------------------------------------------------------------


def test_what_an_earlier_run_left_is_taken_over(tmp_path: Path, frames: Path) -> None:
    show(frames, *range(1, 31))
    (frames / frame_name(5)).unlink()  # a sidecar and a thumbnail without their frame
    (frames / "notes.json").write_text("{}")
    (frames / "capture_.jpg").write_text("")
    with desk(tmp_path, own(frames, keep_s=5.0)) as at:
        assert len(numbers_in(frames, ".json")) == 30
        at.pass_s(6)
        assert numbers_in(frames) == list(range(31 - LEAST_BY_AGE, 31)) == numbers_in(frames, ".json")
        left = {path.name for path in frames.iterdir() if "_0" not in path.name}
        assert left == {"notes.json", "capture_.jpg", MARK}
        assert at.retention.shelves[0].places[0].next_number == 31


def test_a_large_directory_is_emptied_in_pieces(tmp_path: Path, frames: Path) -> None:
    for number in range(2 * BATCH + 500):
        (frames / frame_name(number)).touch()
    with desk(tmp_path, own(frames, keep_s=5.0)) as at:
        at.pass_s(6)
        assert at.row().frames_removed == BATCH and at.retention.pace_s < PACE_S
        for _ in range(2):
            at.pass_s(at.retention.pace_s)
        assert len(numbers_in(frames)) == LEAST_BY_AGE


def test_a_sidecar_that_comes_after_its_frame_has_gone_goes_too(tmp_path: Path, frames: Path) -> None:
    with desk(tmp_path, own(frames, keep_frames=2)) as at:
        show(frames, *range(1, 11), beside=False)
        at.pass_s(0.1)
        for number in range(1, 9):  # the worker had them in hand
            (frames / frame_name(number)).with_suffix(".json").write_text("{}")
        at.pass_s(1)
        assert len(numbers_in(frames, ".json")) == 8
        at.pass_s(LATE_NS / S + 1)
        assert numbers_in(frames, ".json") == []


def test_a_late_thumbnail_goes_at_once(tmp_path: Path, frames: Path) -> None:
    with desk(tmp_path, own(frames, keep_frames=2)) as at:
        show(frames, *range(1, 11), beside=False)
        at.pass_s(0.1)
        late = frames / "capture_000000001_thumbnail.jpg"
        late.with_suffix(".jpg.tmp").touch()
        late.with_suffix(".jpg.tmp").rename(late)
        at.pass_s(0.1)
        assert not late.exists()


@pytest.mark.parametrize("lead", [20, -20])
def test_thumbnails_before_and_after_their_frames_go_with_them(tmp_path: Path, frames: Path, lead: int) -> None:
    """Row 26: FFmpeg 7 and newer write a frame's outputs in any order, one of them up to 20 frames ahead."""
    with desk(tmp_path, own(frames, keep_frames=30)) as at:
        show(frames, *range(1, 6))
        at.pass_s(0.1)
        for number in range(6, 100):
            for which, kind in ((number, ".jpg"), (number + lead, "_thumbnail.jpg")):
                if 5 < which < 100:
                    temporary = frames / f"capture_{which:09d}{kind}.tmp"
                    temporary.write_bytes(bytes(9_000))
                    temporary.rename(temporary.with_suffix(""))
            at.pass_s(0.1)
            assert all(which > number - 30 for which in numbers_in(frames))
        at.pass_s(LATE_NS / S + 1)
        assert numbers_in(frames) == list(range(70, 100))
        assert numbers_in(frames, "_thumbnail.jpg") == list(range(70, 100 + min(lead, 0)))


def test_numbers_that_begin_anew_mix_with_nothing(tmp_path: Path, frames: Path) -> None:
    """Row 21: FFmpeg starts at 1 again while its old frames are there; each file goes by its own age."""
    with desk(tmp_path, own(frames, keep_s=30.0)) as at:
        show(frames, *range(1, 21))
        at.pass_s(1)
        at.pass_s(20)
        show(frames, *range(1, 11))
        at.pass_s(1)
        at.pass_s(12)  # the first run is past its time, the second is not
        assert numbers_in(frames) == list(range(1, 11))
        at.pass_s(30)
        assert numbers_in(frames) == list(range(1, 11)), "ten stay"


def test_of_numbers_that_began_anew_before_the_start_the_earlier_go_first(tmp_path: Path, frames: Path) -> None:
    show(frames, *range(1, 31), beside=False)
    for path in frames.iterdir():
        os.utime(path, ns=(0, path.stat().st_mtime_ns - S))
    show(frames, *range(1, 6))
    with desk(tmp_path, Source(name="a", dir=str(frames), retention="always", keep_frames=7)) as at:
        assert numbers_in(frames) == [1, 2, 3, 4, 5, 29, 30]
        assert at.retention.shelves[0].places[0].next_number == 6
        show(frames, 6, 7)
        at.pass_s(1)
        assert numbers_in(frames) == list(range(1, 8))


def test_where_we_capture_the_numbers_tell_whatever_the_clock_was(tmp_path: Path, frames: Path) -> None:
    show(frames, *range(1, 31), beside=False)
    for number in range(1, 21):  # written before somebody put the clock back
        os.utime(frames / frame_name(number), ns=(0, time.time_ns() + 3600 * S))
    os.utime(frames / frame_name(30), (0, -(10**9)))
    with desk(tmp_path, own(frames, keep_frames=7)) as at:
        assert numbers_in(frames) == list(range(24, 31)) and at.retention.shelves[0].places[0].next_number == 31


def test_a_directory_that_is_replaced_is_looked_into_anew(tmp_path: Path, frames: Path) -> None:
    with desk(tmp_path, own(frames, keep_frames=5)) as at:
        show(frames, 1, 2)
        at.pass_s(1)
        frames.rename(tmp_path / "away")
        at.pass_s(1)
        frames.mkdir()
        (frames / MARK).touch()
        show(frames, *range(1, 11))
        at.pass_s(1)
        show(frames, *range(11, 21))
        at.pass_s(1)
        assert numbers_in(frames) == list(range(16, 21)) and numbers_in(tmp_path / "away") == [1, 2]


def test_lost_events_are_made_good_by_a_listing(tmp_path: Path, frames: Path) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with desk(tmp_path, own(frames, keep_frames=5)) as at:
        seed = frames / "seed"
        seed.write_bytes(b"x")
        for number in range(most + 100):
            os.link(seed, frames / "next.tmp")
            os.rename(frames / "next.tmp", frames / frame_name(number))
        for _ in range(most // BATCH + 2):
            at.pass_s(0.1)
        assert numbers_in(frames) == list(range(most + 95, most + 100))


def test_frames_are_found_without_events_as_well(tmp_path: Path, frames: Path) -> None:
    with desk(tmp_path, own(frames, keep_frames=5)) as at:
        at.row().state = SourceState.POLLING  # the watcher has found that nothing is told here
        show(frames, 1)
        for _ in range(12):
            at.pass_s(1)
        for number in range(2, 60):
            show(frames, number)
            at.pass_s(0.5)
        assert numbers_in(frames) == list(range(55, 60)) == numbers_in(frames, ".json")


# -- temporary files --------------------------------------------------------------------------------------------------


def test_what_a_killed_ffmpeg_was_writing_is_removed_once_none_holds_the_directory(
    tmp_path: Path, frames: Path
) -> None:
    left = [frames / f"capture_000000009{end}.tmp" for end in (".jpg", "_thumbnail.jpg")]
    others = [frames / "notes.tmp", frames / "capture_x.jpg.tmp"]
    for path in (*left, *others):
        path.write_bytes(b"half")
    with desk(tmp_path, own(frames)) as at:
        shelf = at.retention.shelves[0]
        assert isinstance(shelf, OwnFrames)
        fd = os.open(frames, os.O_RDONLY)  # as capture.sh does
        fcntl.flock(fd, fcntl.LOCK_EX)
        shelf.frames.sweep(at.now_ns)
        assert all(path.exists() for path in left) and at.row().tmp_removed == 0
        os.close(fd)
        shelf.frames.sweep(at.now_ns)
        assert not any(path.exists() for path in left) and all(path.exists() for path in others)
        assert at.row().tmp_removed == 2


def test_where_others_capture_a_temporary_file_must_stand_still_first(tmp_path: Path, frames: Path) -> None:
    stale, busy = frames / "capture_000000009.jpg.tmp", frames / "capture_000000010.jpg.tmp"
    for path in (stale, busy):
        path.write_bytes(b"half")
    with desk(tmp_path, own(frames, capture=None, retention="always")) as at:
        at.pass_s(5)
        assert stale.exists()
        busy.write_bytes(b"more")
        at.pass_s(6)
        assert not stale.exists() and busy.exists() and at.row().tmp_removed == 1


# -- directories of others --------------------------------------------------------------------------------------------


def test_frames_of_others_are_never_deleted_and_their_sidecars_only_after_them(tmp_path: Path, frames: Path) -> None:
    with desk(tmp_path, Source(name="a", dir=str(frames), sidecar_keep_s=60.0, max_bytes=1, keep_frames=1)) as at:
        show(frames, *range(1, 41))
        at.pass_s(61)
        assert len(numbers_in(frames)) == len(numbers_in(frames, ".json")) == 40
        for number in range(1, 21):
            (frames / frame_name(number)).unlink()
        at.pass_s(30)
        assert len(numbers_in(frames, ".json")) == 40, "it is looked at again as late as a new one"
        at.pass_s(32)
        assert numbers_in(frames, ".json") == list(range(21, 41)) == numbers_in(frames)
        assert at.row().sidecars_removed == 20 and at.row().frames_removed == 0


def test_always_deletes_the_frames_of_others(tmp_path: Path, frames: Path) -> None:
    with desk(tmp_path, Source(name="a", dir=str(frames), retention="always", keep_frames=3)) as at:
        show(frames, *range(1, 11))
        at.pass_s(1)
        assert numbers_in(frames) == [8, 9, 10] == numbers_in(frames, ".json")


@needs("mount")
def test_sidecars_stay_ten_minutes_in_memory_and_a_day_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tmpfs(tmp_path / "memory") as memory:
        with desk(tmp_path, Source(name="a", dir=str(memory))) as at:
            assert at.retention.shelves[0].places[0].keep_ns == SIDECAR_KEEP_IN_MEMORY_S * S
        monkeypatch.setattr(shelf_module, "kind_of", lambda path: "ext4")
        with desk(tmp_path, Source(name="a", dir=str(memory))) as at:
            assert at.retention.shelves[0].places[0].keep_ns == SIDECAR_KEEP_S * S


def test_a_day_of_sidecars_costs_little_memory(tmp_path: Path, frames: Path) -> None:
    with desk(tmp_path, Source(name="a", dir=str(frames), sidecar_keep_s=86_400.0)) as at:
        files = at.retention.shelves[0].places[0]
        for number in range(86_400):
            files.came(frame_name(number), at.now_ns + number * S)
        assert files.stock.count == 86_400 and len(files.stock._ranges) <= 61


# -- file systems -----------------------------------------------------------------------------------------------------


@needs("mount")
def test_two_sources_share_a_small_disk_and_the_larger_gives(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "memory", "size=4m") as memory:
        (memory / "a").mkdir()
        (memory / "b").mkdir()
        with desk(tmp_path, own(memory / "a", "a"), own(memory / "b", "b")) as at:
            fullest = 0.0
            for number in range(1, 301):
                show(memory / "a", number, size=40_000)
                if number % 10 == 0:
                    show(memory / "b", number // 10, size=40_000)
                fullest = max(fullest, used(memory))
                at.pass_s(0.05)
            assert at.row(0).frames_evicted > 200 and at.row(1).frames_evicted < 5
            assert fullest < 0.85 and numbers_in(memory / "a")[-1] == 300
            at.pass_s(1)
            assert 0.6 < used(memory) <= 0.75


@needs("mount")
def test_inodes_are_room_as_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Row 25."""
    with tmpfs(tmp_path / "memory", "size=64m,nr_inodes=50") as memory, desk(tmp_path, own(memory)) as at:
        for number in range(1, 200):
            show(memory, number, size=100)
            at.pass_s(0.1)
        found = os.statvfs(memory)
        assert found.f_favail >= 10 and at.row().frames_evicted > 100
        assert "short_of=inodes" in caplog.text and "short_of=bytes" not in caplog.text


@needs("mount")
def test_a_disk_that_others_fill_leaves_the_newest_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tmpfs(tmp_path / "memory", "size=4m") as memory, desk(tmp_path, own(memory)) as at:
        show(memory, *range(1, 31))
        with filled(memory):
            for _ in range(3):
                at.pass_s(1)
            assert numbers_in(memory) == list(range(31 - LEAST_BY_SPACE, 31))
            assert "nothing left to evict" in caplog.text


@needs("mount")
def test_frames_that_evidence_links_to_free_nothing_and_more_go(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "memory", "size=2m") as memory:
        (memory / "a").mkdir()
        (memory / "hold").mkdir()
        with desk(tmp_path, own(memory / "a")) as at:
            show(memory / "a", *range(1, 31), size=40_000, beside=False)
            for number in range(1, 11):
                os.link(memory / "a" / frame_name(number), memory / "hold" / frame_name(number))
            assert used(memory) > 0.55
            show(memory / "a", *range(31, 45), size=40_000, beside=False)
            at.pass_s(1)
            assert used(memory) <= 0.75 and len(numbers_in(memory / "hold")) == 10


@needs("mount")
def test_sidecars_alone_do_not_fill_a_memory_disk(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "memory", "size=1m") as memory, desk(tmp_path, Source(name="a", dir=str(memory))) as at:
        for number in range(1, 400):
            path = publish(memory, number, b"x")
            path.with_suffix(".json").write_text("{}")
            path.unlink()
            at.pass_s(0.1)
        assert used(memory) < 0.85 and at.row().sidecars_removed > 150


@needs("mount")
def test_the_pace_follows_the_room_that_is_left(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "large", "size=256m") as large, tmpfs(tmp_path / "small", "size=400k") as small:
        with desk(tmp_path, own(large)) as at:
            at.pass_s(1)
            assert at.retention.pace_s == PACE_S
        with desk(tmp_path, own(small)) as at:
            at.pass_s(1)
            assert at.retention.pace_s < 0.15


def used(path: Path) -> float:
    """The share of a file system that is not free."""
    found = os.statvfs(path)
    return 1 - found.f_bavail / found.f_blocks
