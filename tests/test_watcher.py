"""The watcher in-process: real inotify, a real ring and board, and a clock that the test moves."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import intake as module
from pipeline.board import Board, SourceRow
from pipeline.intake import CLOCK_OF_FILES
from pipeline.listing import Directory, Listing
from pipeline.model import ConfigError, Outcome, SourceState
from pipeline.ring import CAPACITY, Doorbell, Ring
from pipeline.settings import Settings, Source
from pipeline.watcher import CHECK_S, PROBE_WINDOW, QUIET_S, Watcher
from tests.machine import STRANGER, bindfs, needs, open_place, overlay
from tests.support import frame_name, publish, wait_until

NS = 1_000_000_000


class Bench:
    """Everything around one watcher: directories, ring, board, doorbell, the worker's end of the lanes, a clock."""

    def __init__(self, base: Path, *names: str, poll: bool = False, startup_frames: int = 10) -> None:
        self.dirs = {name: base / name for name in names}
        for directory in self.dirs.values():
            directory.mkdir(exist_ok=True)
        (base / "run").mkdir(exist_ok=True)
        sources = tuple(Source(name=name, dir=str(directory)) for name, directory in self.dirs.items())
        self.settings = Settings(source=sources, poll=poll, startup_frames=startup_frames)
        self.ring = Ring.create()
        self.board = Board.create(str(base / "run"), ["watcher", "worker/0"], list(names))
        self.doorbell = Doorbell.create()
        for lane in range(len(names)):
            self.ring.grant(lane, 0)
        self.now_ns = time.monotonic_ns()
        self.watcher = self.new_watcher()

    def new_watcher(self) -> Watcher:
        """A watcher over the same ring and board; one that was there is left as a killed one leaves things."""
        self.watcher = Watcher(self.settings, self.ring, self.board, [self.doorbell])
        return self.watcher

    def kill(self) -> None:
        """What the kernel does for a killed watcher: its inotify is closed, and nothing else."""
        if self.watcher.inotify:
            self.watcher.inotify.close()
            self.watcher.inotify = None

    def step(self, after_s: float = 0.0) -> None:
        self.now_ns += int(after_s * NS)
        self.watcher.step(self.now_ns)

    def publish(self, *numbers: int, source: str | None = None) -> None:
        for number in numbers:
            publish(self.dir if source is None else self.dirs[source], number, b"x")

    @property
    def dir(self) -> Path:
        return next(iter(self.dirs.values()))

    def row(self, lane: int = 0) -> SourceRow:
        row: SourceRow = self.board.memory.sources[lane]
        return row

    def state(self, lane: int = 0) -> SourceState:
        return SourceState(self.row(lane).state)

    def judge(self, *, at_most: int = 1 << 30, lane: int = 0, sidecars: bool = True) -> list[int]:
        """Take slots as a worker does, in their order; with sidecars, as it does when all is well."""
        served, numbers = self.ring.lanes[lane], list[int]()
        served.adopt()
        while len(numbers) < at_most and (slot := served.reserve()):
            if slot.tick:
                served.complete(None, b"")
                continue
            if sidecars:
                (list(self.dirs.values())[lane] / f"capture_{slot.number:0{slot.width}d}.json").touch()
            served.complete(Outcome.JUDGED, b"")
            numbers.append(slot.number)
        return numbers

    def assert_books(self, published: int) -> None:
        """Everything was judged, and as much as that was published."""
        books = self.ring.lanes[0].books()
        assert books.balanced
        assert (books.published, books.judged, books.in_flight) == (published, published, 0)

    def close(self) -> None:
        self.watcher.close()
        self.ring.close()
        os.close(self.board.fd)
        os.close(self.doorbell.fd)


def wait_for_a_later_file_time(directory: Path) -> None:
    """File times follow the kernel's tick of up to 10 ms: wait until what is written now is later than all before."""
    probe = directory / "clock"
    probe.touch()
    begun_ns = probe.stat().st_mtime_ns
    wait_until(lambda: time.clock_gettime_ns(CLOCK_OF_FILES) > begun_ns)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with contextlib.closing(Bench(tmp_path, "a")) as made:
        yield made


@pytest.fixture
def polling(tmp_path: Path) -> Iterator[Bench]:
    with contextlib.closing(Bench(tmp_path, "a", poll=True)) as made:
        assert made.watcher.inotify is None
        yield made


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What is logged meanwhile, one text per record."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    log, collector = logging.getLogger("stillwatch"), Collector()
    before = log.level
    log.addHandler(collector)
    log.setLevel(logging.INFO)
    yield lines
    log.removeHandler(collector)
    log.setLevel(before)


# -- the cold start ---------------------------------------------------------------------------------------------------


def test_a_start_takes_the_newest_frames_without_a_sidecar(bench: Bench) -> None:
    bench.publish(*range(1, 21))
    for number in (18, 19):
        (bench.dir / frame_name(number)).with_suffix(".json").touch()
    bench.step()
    assert bench.judge() == [*range(9, 18), 20]
    assert bench.row().left_behind == 8
    assert (bench.state(), bench.row().scans) == (SourceState.WATCHING, 1)


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [5]), (100, [1, 2, 3, 4, 5])])
def test_startup_frames_says_how_many(tmp_path: Path, count: int, expected: list[int]) -> None:
    with contextlib.closing(Bench(tmp_path, "a", startup_frames=count)) as bench:
        bench.publish(1, 2, 3, 4, 5)
        bench.step()
        assert bench.judge() == expected
        bench.publish(6)
        bench.step()
        assert bench.judge() == [6]


def test_a_start_in_an_empty_directory_sees_the_first_frame(bench: Bench) -> None:
    bench.step()
    bench.publish(0)
    bench.step()
    assert bench.judge() == [0]


def test_frames_that_come_while_the_watch_is_set_are_queued_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def list_late(directory: Directory) -> Listing:
        bench.publish(2, 3)
        listing = Listing(directory)
        bench.publish(4)
        return listing

    monkeypatch.setattr(module, "Listing", list_late)
    bench.publish(1)
    bench.step()
    monkeypatch.undo()
    assert bench.row().events == 3, "2 and 3 were listed and told by events, 4 by its event alone"
    bench.publish(5)
    bench.step()
    assert bench.judge() == [1, 2, 3, 4, 5]


def test_an_event_that_a_listing_answered_is_forgotten_only_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same name again is another frame: FFmpeg has restarted."""

    def list_late(directory: Directory) -> Listing:
        bench.publish(1)
        return Listing(directory)

    monkeypatch.setattr(module, "Listing", list_late)
    bench.step()
    monkeypatch.undo()
    assert bench.judge() == [1]
    bench.publish(1)
    bench.step()
    assert bench.judge() == [1]


# -- events -----------------------------------------------------------------------------------------------------------


def test_frames_are_queued_in_the_order_in_which_they_came(bench: Bench) -> None:
    bench.step()
    bench.publish(5, 3, 4, 5, 1)
    bench.step()
    assert bench.judge() == [5, 3, 4, 5, 1]
    assert bench.row().events == 5
    assert bench.row().scans == 1, "no directory is listed while events flow"


@pytest.mark.parametrize("name", ["capture_1.jpg.tmp", "capture_1_thumbnail.jpg", "capture_1.json", "other_1.jpg"])
def test_other_names_are_neither_queued_nor_counted(bench: Bench, name: str) -> None:
    bench.step()
    (bench.dir / "x").touch()
    (bench.dir / "x").rename(bench.dir / name)
    bench.step()
    assert bench.judge() == []
    assert (bench.row().events, bench.row().refused_names) == (0, 0)


def test_a_number_too_long_to_carry_is_refused_and_counted(bench: Bench) -> None:
    bench.step()
    bench.publish(10**18, 10**18 - 1)
    bench.step()
    assert bench.judge() == [10**18 - 1]
    assert bench.row().refused_names == 1


def test_the_doorbell_rings_for_frames_and_for_nothing_else(bench: Bench) -> None:
    def rung() -> bool:
        ready = bool(select.select([bench.doorbell], [], [], 0)[0])
        bench.doorbell.clear()
        return ready

    bench.step()
    assert rung(), "a predecessor may have died before it rang"
    bench.step(1)
    assert not rung()
    bench.publish(1)
    bench.step()
    assert rung()


def test_closing_removes_all_watches(bench: Bench) -> None:
    bench.step()
    assert bench.watcher.inotify
    fd = bench.watcher.inotify.fileno()
    info = Path(f"/proc/self/fdinfo/{fd}")
    assert "inotify wd:" in info.read_text()
    bench.watcher.close()
    assert not info.exists()
    assert all(watched.wd is None for watched in bench.watcher.sources)
    bench.watcher.inotify = None


# -- a full lane ------------------------------------------------------------------------------------------------------


def test_frames_wait_while_the_lane_is_full_and_are_put_later_in_order(bench: Bench) -> None:
    total = CAPACITY + 300
    bench.step()
    bench.publish(*range(1, CAPACITY + 101))
    bench.step()
    assert bench.ring.lanes[0].backlog == CAPACITY
    assert bench.ring.lanes[0].refused > 0
    assert bench.ring.lanes[0].books().in_flight == CAPACITY + 100
    assert bench.watcher.timeout_s(bench.now_ns) <= 0.05, "it looks again soon"
    found = bench.judge(at_most=50)
    bench.publish(*range(CAPACITY + 101, total + 1))
    bench.step()
    assert bench.ring.lanes[0].backlog == CAPACITY, "those that came later wait behind"
    while more := bench.judge():
        found += more
        bench.step()
    assert found == list(range(1, total + 1))
    bench.assert_books(total)


# -- the successor of a dead watcher ----------------------------------------------------------------------------------


@pytest.mark.parametrize("judged", [0, 2, 5], ids=lambda count: f"{count} judged before")
def test_a_successor_queues_exactly_what_was_missed(bench: Bench, judged: int) -> None:
    bench.step()
    bench.publish(1, 2, 3, 4, 5)
    bench.step()
    found = bench.judge(at_most=judged)
    bench.kill()
    bench.publish(6, 7, 20)
    bench.new_watcher()
    bench.step()
    assert found + bench.judge() == [1, 2, 3, 4, 5, 6, 7, 20]
    bench.assert_books(8)


def test_events_that_the_dead_one_had_not_read_are_not_lost(bench: Bench) -> None:
    bench.step()
    bench.publish(1, 2)
    bench.kill()
    bench.new_watcher()
    bench.step()
    assert bench.judge() == [1, 2]


def test_a_successor_does_not_take_what_the_start_left_behind(tmp_path: Path) -> None:
    with contextlib.closing(Bench(tmp_path, "a", startup_frames=0)) as bench:
        bench.publish(1, 2, 3)
        wait_for_a_later_file_time(bench.dir.parent)
        bench.step()
        bench.kill()
        bench.publish(4)
        bench.new_watcher()
        bench.step()
        assert bench.judge() == [4]


@pytest.mark.parametrize("restarted", [3, 5, 9])
def test_a_successor_finds_a_numbering_restart_whole(bench: Bench, restarted: int) -> None:
    bench.step()
    bench.publish(1, 2, 3, 4, 5)
    bench.step()
    assert bench.judge() == [1, 2, 3, 4, 5]
    bench.kill()
    wait_for_a_later_file_time(bench.dir.parent)
    bench.publish(*range(1, restarted + 1))
    bench.new_watcher()
    bench.step()
    assert bench.judge() == list(range(1, restarted + 1))


def test_what_waited_in_the_dead_one_is_queued_by_its_successor_and_counted_once(bench: Bench) -> None:
    bench.step()
    bench.publish(*range(1, CAPACITY + 51))
    bench.step()
    assert bench.watcher.sources[0].intake.pending.count == 50
    bench.kill()
    found = bench.judge()
    bench.new_watcher()
    bench.step()
    found += bench.judge()
    assert found == list(range(1, CAPACITY + 51))
    bench.assert_books(CAPACITY + 50)


def test_a_successor_rings_for_what_the_dead_one_put_without_ringing(bench: Bench) -> None:
    bench.step()
    bench.publish(1)
    bench.step()
    bench.doorbell.clear()
    bench.kill()
    bench.new_watcher()
    bench.step()
    assert select.select([bench.doorbell], [], [], 0)[0]


# -- polling ----------------------------------------------------------------------------------------------------------


def test_polling_finds_the_next_numbers_without_listing(polling: Bench) -> None:
    polling.publish(1, 2)
    polling.step()
    assert polling.judge() == [1, 2]
    scans = polling.row().scans
    for number in range(3, 60, 3):
        polling.publish(number, number + 1, number + 2)
        polling.step(0.1)
        assert polling.judge() == [number, number + 1, number + 2]
    assert polling.row().scans == scans
    assert polling.state() is SourceState.POLLING


def test_polling_steps_over_a_gap_within_its_window(polling: Bench) -> None:
    polling.publish(1)
    polling.step()
    polling.publish(1 + PROBE_WINDOW)
    polling.step(0.1)
    assert polling.judge() == [1, 1 + PROBE_WINDOW]


def test_polling_finds_a_gap_beyond_its_window_by_listing(polling: Bench) -> None:
    polling.publish(1)
    polling.step()
    scans = polling.row().scans
    polling.publish(5000)
    polling.step(0.1)
    assert polling.judge() == [1]
    polling.step(QUIET_S)
    assert polling.judge() == [5000]
    assert polling.row().scans == scans + 1


def test_polling_finds_a_numbering_restart_and_no_frame_twice(polling: Bench) -> None:
    polling.publish(*range(1, 21))
    polling.step()
    polling.judge()
    for path in polling.dir.glob("*.jpg"):
        path.with_suffix(".json").touch()
    wait_for_a_later_file_time(polling.dir.parent)
    polling.publish(1)
    polling.step(QUIET_S + 0.1)
    found = polling.judge()
    for number in range(2, 30):
        polling.publish(number)
        polling.step(0.1)
        found += polling.judge(sidecars=number > 20)
    assert found == list(range(1, 30))


def test_polling_an_unchanged_directory_never_lists_it(polling: Bench) -> None:
    polling.publish(1)
    polling.step()
    scans = polling.row().scans
    for _ in range(100):
        polling.step(1)
    assert polling.row().scans == scans


@pytest.mark.parametrize("frames", [0, 1])
def test_polling_lists_a_directory_that_changes_without_frames_ever_more_rarely(polling: Bench, frames: int) -> None:
    polling.publish(*range(frames))
    polling.step()
    for number in range(300):
        (polling.dir / f"other{number}").touch()
        polling.step(0.1)
    assert 1 < polling.row().scans <= 10


def test_a_polled_directory_that_was_replaced_is_seen_whatever_its_inode(polling: Bench) -> None:
    """ext4 gives a new directory the inode of the one that was just removed."""
    polling.publish(*range(1, 101))
    polling.step()
    polling.judge()
    shutil.rmtree(polling.dir)
    polling.dir.mkdir()
    polling.publish(1, 2)
    polling.step(CHECK_S)
    assert polling.judge() == [1, 2]


def test_one_source_may_be_polled_beside_one_that_is_watched(tmp_path: Path) -> None:
    with contextlib.closing(Bench(tmp_path, "a", "b")) as bench:
        polled = Source(name="b", dir=str(bench.dirs["b"]), poll=True)
        bench.settings = Settings(source=(bench.settings.source[0], polled))
        bench.kill()
        bench.new_watcher()
        bench.step()
        assert (bench.state(0), bench.state(1)) == (SourceState.WATCHING, SourceState.POLLING)
        bench.publish(1, source="a")
        bench.publish(1, source="b")
        bench.step(0.1)
        assert (bench.judge(lane=0), bench.judge(lane=1)) == ([1], [1])


# -- directories ------------------------------------------------------------------------------------------------------


def test_a_directory_that_is_not_there_is_waited_for(bench: Bench, logged: list[str]) -> None:
    bench.dir.rmdir()
    bench.step()
    bench.step(CHECK_S)
    assert bench.state() is SourceState.MISSING
    assert len([line for line in logged if "directory missing" in line]) == 1
    bench.dir.mkdir()
    bench.publish(1)
    bench.step(CHECK_S)
    assert bench.state() is SourceState.WATCHING
    assert bench.judge() == [1]


def test_a_directory_that_was_replaced_is_seen_whatever_its_inode(bench: Bench) -> None:
    bench.publish(*range(1, 101))
    bench.step()
    bench.judge()
    shutil.rmtree(bench.dir)
    bench.dir.mkdir()
    bench.publish(1, 2)
    bench.step()
    assert bench.judge() == [1, 2]
    assert bench.row().rearmed == 1


def test_a_successor_arms_and_that_mends_nothing_unless_the_directory_is_another(bench: Bench) -> None:
    bench.step()
    for _ in range(2):
        bench.kill()
        bench.new_watcher()
        bench.step()
        assert bench.state() is SourceState.WATCHING and bench.row().rearmed == 0
    bench.kill()
    bench.dir.rename(bench.dir.with_name("away"))  # keeps its inode from the next
    bench.dir.mkdir()
    bench.new_watcher()
    bench.step()
    assert bench.row().rearmed == 1


def test_two_sources_in_one_directory_are_refused_with_both_names(tmp_path: Path) -> None:
    with contextlib.closing(Bench(tmp_path, "a")) as bench:
        (tmp_path / "link").symlink_to(bench.dir)
        twin = Source(name="b", dir=str(tmp_path / "link"))
        bench.settings = Settings(source=(*bench.settings.source, twin))
        bench.kill()
        bench.new_watcher()
        with pytest.raises(ConfigError, match="a and b are one directory"):
            bench.step()


def test_a_conflict_that_appears_later_is_said_once_and_mended(tmp_path: Path, logged: list[str]) -> None:
    with contextlib.closing(Bench(tmp_path, "a", "b")) as bench:
        bench.step()
        bench.dirs["b"].rmdir()
        bench.dirs["b"].symlink_to(bench.dirs["a"])
        for _ in range(3):
            bench.step(CHECK_S)
        assert (bench.state(0), bench.state(1)) == (SourceState.WATCHING, SourceState.CONFLICT)
        refusals = [line for line in logged if "source refused" in line]
        assert len(refusals) == 1
        assert "a and b are one directory" in refusals[0]
        bench.publish(1, source="a")
        bench.step()
        assert (bench.judge(lane=0), bench.judge(lane=1)) == ([1], [])
        bench.dirs["b"].unlink()
        bench.dirs["b"].mkdir()
        bench.publish(1, source="b")
        bench.step(CHECK_S)
        assert bench.state(1) is SourceState.WATCHING
        assert bench.judge(lane=1) == [1]


@needs()
def test_a_directory_that_may_not_be_read_is_said_once(logged: list[str]) -> None:
    with open_place() as base, contextlib.closing(Bench(base, "a")) as bench:
        bench.dir.chmod(0o711)
        os.seteuid(STRANGER)
        try:
            for _ in range(4):
                bench.step(CHECK_S)
        finally:
            os.seteuid(0)
        assert bench.state() is SourceState.MISSING
        assert len(logged) == 1, logged
        assert "Permission denied" in logged[0]
        bench.publish(1)
        bench.step(CHECK_S)
        assert bench.judge() == [1]


# -- file systems that hide renames -----------------------------------------------------------------------------------


@needs("bindfs")
def test_fuse_is_polled_from_the_start(tmp_path: Path, logged: list[str]) -> None:
    with bindfs(tmp_path / "back", tmp_path / "a"), contextlib.closing(Bench(tmp_path, "a")) as bench:
        bench.step()
        assert bench.state() is SourceState.POLLING
        assert any("inotify cannot see this file system" in line for line in logged)
        publish(tmp_path / "back", 1, b"x")

        def found() -> list[int]:
            bench.step(QUIET_S)
            return bench.judge()

        assert wait_until(found) == [1]  # FUSE remembers a directory's time for a second


@needs()
@pytest.mark.parametrize("before", [0, 3])
def test_an_overlay_that_hides_its_renames_is_found_out_and_polled(
    tmp_path: Path, before: int, logged: list[str]
) -> None:
    with overlay(tmp_path, tmp_path / "a"), contextlib.closing(Bench(tmp_path, "a")) as bench:
        for number in range(1, before + 1):
            publish(tmp_path / "upper", number, b"x")
        bench.step()
        assert bench.state() is SourceState.WATCHING
        assert bench.judge() == list(range(1, before + 1))
        publish(tmp_path / "upper", before + 1, b"x")
        bench.step(CHECK_S)
        assert bench.row().events == 0, "inotify was silent"
        assert bench.state() is SourceState.POLLING
        assert any("frames came without a rename" in line for line in logged)
        bench.step(0.1)
        bench.step(QUIET_S)
        assert bench.judge() == [before + 1]


def test_other_files_and_deletions_raise_no_suspicion(bench: Bench) -> None:
    bench.publish(*range(1, 6))
    bench.step()
    bench.publish(6)
    bench.step()
    scans = bench.row().scans
    for number in range(20):
        (bench.dir / f"other{number}").touch()
        (bench.dir / frame_name(1 + number)).unlink(missing_ok=True)
        bench.step(CHECK_S)
    assert bench.state() is SourceState.WATCHING
    assert bench.row().scans == scans


def test_unjudged_frames_of_an_earlier_recording_raise_no_suspicion(bench: Bench) -> None:
    """FFmpeg restarted at 1 and stalled at 3; 4 and 5 are old and have no sidecar. Then somebody else's file comes."""
    bench.publish(*range(1, 31))
    bench.step()
    wait_for_a_later_file_time(bench.dir.parent)
    bench.publish(1, 2, 3)
    bench.step(CHECK_S)
    (bench.dir / "other").touch()
    bench.step(CHECK_S)
    assert bench.state() is SourceState.WATCHING
    assert bench.judge()[-3:] == [1, 2, 3]
