"""What waits outside a full lane, and what a listing finds that the events did not tell."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.frames import FrameNames, identity_of
from pipeline.listing import Directory, Frame, Listing

NAMES = FrameNames("capture_")


class Recorded:
    """A directory in which every frame and sidecar got its name at a second that the test says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.directory = Directory(str(path), NAMES)
        self.came: dict[str, int] = {}

    def frame(self, number: int, second: int, width: int = 9) -> None:
        """Publish a frame, in place of an earlier one."""
        path = self.path / f"{NAMES.stem(number, width)}.jpg"
        new = path.with_suffix(".tmp")
        new.write_bytes(b"x" * (1 + second % 50))
        new.rename(path)
        self.came[path.name] = second

    def sidecar(self, number: int, second: int, width: int = 9) -> None:
        """Judge the frame that is there."""
        path = self.path / f"{NAMES.stem(number, width)}.json"
        frame = path.with_suffix(".jpg")
        identity = list(identity_of(frame.stat()).__reduce__()[1]) if frame.exists() else None
        path.write_text(json.dumps({"frame_id": identity}))
        self.came[path.name] = second

    def judged(self, first: int, last: int, start: int = 0) -> None:
        """Frames one per second from `start`, each with its sidecar in the same second."""
        for number in range(first, last + 1):
            self.frame(number, start + number)
            self.sidecar(number, start + number)

    def new_since(self, second: int, *, trust_times: bool = True) -> list[int]:
        found = Listing(self.directory).new_since(second * 1_000_000_000, trust_times=trust_times)
        return [frame[0] for frame in found]

    def next_frames(self, number: int, window: int = 8) -> list[Frame]:
        return self.directory.next_frames((number, 9), window)

    def came_ns(self, frame: Frame, suffix: str = ".jpg") -> int | None:
        path = Path(self.directory.path(frame, suffix))
        return self.came[path.name] * 1_000_000_000 if path.exists() else None


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    made = Recorded(tmp_path)
    monkeypatch.setattr(made.directory, "came_ns", made.came_ns)
    return made


# -- what a listing tells ---------------------------------------------------------------------------------------------


def test_frames_are_ascending_by_number_and_not_by_name(recorded: Recorded) -> None:
    for number, width in ((1_000_000_000, 10), (999_999_999, 9), (2, 1)):
        recorded.frame(number, 0, width)
    assert Listing(recorded.directory).frames == [(2, 1), (999_999_999, 9), (1_000_000_000, 10)]


def test_other_names_are_no_frames(recorded: Recorded) -> None:
    for name in ("capture_1.jpg.tmp", "capture_1_thumbnail.jpg", "capture_-1.jpg", "other_1.jpg", "x.json"):
        (recorded.path / name).touch()
    (recorded.path / os.fsdecode(b"capture_\xff1.jpg")).touch()
    found = Listing(recorded.directory)
    assert (found.frames, found.newest()) == ([], None)


def test_a_frame_with_a_sidecar_is_judged(recorded: Recorded) -> None:
    recorded.judged(1, 2)
    recorded.frame(3, 3)
    found = Listing(recorded.directory)
    assert found.unjudged() == [(3, 9)]
    assert found.newest() == (3, 9)


def test_a_sidecar_of_other_digits_is_another_frames(recorded: Recorded) -> None:
    recorded.frame(1, 0, width=9)
    recorded.sidecar(1, 0, width=6)
    assert Listing(recorded.directory).unjudged() == [(1, 9)]


def test_a_directory_that_is_not_there_is_an_error(recorded: Recorded) -> None:
    recorded.path.rmdir()
    with pytest.raises(FileNotFoundError):
        Listing(recorded.directory)


# -- what is new ------------------------------------------------------------------------------------------------------


def test_what_came_later_is_new_over_any_gap(recorded: Recorded) -> None:
    recorded.judged(1, 5)
    recorded.frame(6, 6)
    recorded.frame(5000, 7)
    assert recorded.new_since(5) == [6, 5000]


def test_what_came_within_the_same_tick_of_the_clock_is_new_too(recorded: Recorded) -> None:
    recorded.judged(1, 5)
    recorded.frame(6, 5)
    assert recorded.new_since(5) == [6]


def test_nothing_is_new_when_all_is_judged(recorded: Recorded) -> None:
    recorded.judged(1, 5)
    assert recorded.new_since(3) == []


def test_older_frames_are_not_new_though_nobody_judged_them(recorded: Recorded) -> None:
    """They were passed over on purpose: a start takes only the newest."""
    for number in range(1, 6):
        recorded.frame(number, number)
    assert recorded.new_since(6) == []


def test_frames_that_overwrote_judged_ones_are_new(recorded: Recorded) -> None:
    """After a numbering restart the next names still have the sidecars of the earlier recording."""
    recorded.judged(1, 10)
    recorded.judged(1, 3, start=100)
    recorded.frame(4, 104)
    recorded.frame(5, 105)
    assert recorded.new_since(103) == [4, 5]


def test_the_end_of_the_old_recording_comes_before_the_restart(recorded: Recorded) -> None:
    recorded.judged(1, 10)
    recorded.frame(11, 11)
    for number in (1, 2):
        recorded.frame(number, 100 + number)
    assert recorded.new_since(10) == [11, 1, 2]


@pytest.mark.parametrize("end", [3, 5, 6, 8])
def test_a_restart_that_nobody_saw_is_new_as_far_as_it_came(recorded: Recorded, end: int) -> None:
    recorded.judged(0, 5)
    for number in range(1, end + 1):
        recorded.frame(number, 100 + number)
    assert recorded.new_since(5) == list(range(1, end + 1)), "an old frame 0 does not hide it"


# -- the next numbers -------------------------------------------------------------------------------------------------


def test_the_next_frames_are_those_within_the_window(recorded: Recorded) -> None:
    for number in (5, 6, 7, 9, 14):
        recorded.frame(number, number)
    assert recorded.next_frames(5) == [(6, 9), (7, 9), (9, 9)]


def test_the_next_number_may_have_one_digit_more(recorded: Recorded) -> None:
    recorded.frame(1_000_000_000, 1, width=10)
    assert recorded.next_frames(999_999_999) == [(1_000_000_000, 10)]


def test_the_next_names_of_an_earlier_recording_are_not_next(recorded: Recorded) -> None:
    recorded.judged(1, 10)
    recorded.judged(1, 3, start=100)
    assert recorded.next_frames(3) == []
    recorded.frame(4, 104)
    assert recorded.next_frames(3) == [(4, 9)]


def test_the_next_frame_is_found_after_the_clock_was_set_back(recorded: Recorded) -> None:
    recorded.judged(1, 5, start=10_000)
    recorded.frame(6, 6)
    assert recorded.next_frames(5) == [(6, 9)]


# -- clocks that are set -----------------------------------------------------------------------------------------------


def test_a_frame_linked_after_it_was_judged_is_not_new(recorded: Recorded) -> None:
    """A hard link changes a file's change time: the sidecar seems older, and is the frame's own all the same."""
    recorded.judged(1, 3)
    recorded.came["capture_000000002.jpg"] = 50
    assert recorded.new_since(0) == []


def test_after_a_step_of_the_clock_the_contents_decide(recorded: Recorded) -> None:
    """The clock went back an hour: 1 and 2 were overwritten since; their old sidecars only seem newer."""
    recorded.judged(1, 3, start=3600)
    recorded.frame(1, 10)
    recorded.frame(2, 11)
    assert recorded.new_since(5) == []
    assert recorded.new_since(5, trust_times=False) == [1, 2]
