"""Hold: what workers put aside, what the keeper takes, and what gives way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.hold import TRANSITION_FILE, DamagedHold, Hold
from tests.machine import needs, tmpfs

MADE = {TRANSITION_FILE: b"{}"}


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    made = Hold(str(tmp_path / "hold"), 10_000)
    made.prepare()
    return made


def frame(tmp_path: Path, name: str = "capture_1.jpg", content: bytes = b"picture") -> str:
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)


def test_a_frame_is_linked_and_outlives_retention(hold: Hold, tmp_path: Path) -> None:
    path = frame(tmp_path)
    hold.keep_frame("stb1", "abc", "frame_0.jpg", path)
    held = hold.run_frames("stb1", "abc")["frame_0.jpg"]
    assert os.stat(held).st_ino == os.stat(path).st_ino
    os.unlink(path)
    hold.publish("stb1", "abc", "opened", {"frame_0.jpg": held}, MADE)
    hold.drop_run("stb1", "abc")
    assert hold.read(hold.waiting()[0]) == (b"{}", {"frame_0.jpg": b"picture"})


@needs("mount")
def test_a_frame_on_another_file_system_is_copied(hold: Hold, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "frames") as frames:
        path = frame(frames)
        hold.keep_frame("stb1", "abc", "frame_0.jpg", path)
        held = hold.run_frames("stb1", "abc")["frame_0.jpg"]
        assert os.stat(held).st_dev != os.stat(path).st_dev
        assert Path(held).read_bytes() == b"picture"


def test_a_later_frame_takes_the_place_of_an_earlier_one(hold: Hold, tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        hold.keep_frame("stb1", "abc", "frame_3.jpg", frame(tmp_path, content=content))
        os.unlink(tmp_path / "capture_1.jpg")
    assert Path(hold.run_frames("stb1", "abc")["frame_3.jpg"]).read_bytes() == b"second"


def test_a_frame_that_has_gone_is_an_error_and_costs_a_transition_nothing(hold: Hold, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hold.keep_frame("stb1", "abc", "frame_0.jpg", str(tmp_path / "gone"))
    hold.publish("stb1", "abc", "opened", {"frame_0.jpg": str(tmp_path / "gone")}, MADE)
    assert hold.read(hold.waiting()[0]) == (b"{}", {})


def test_orphans_of_one_source_go_and_no_others(hold: Hold, tmp_path: Path) -> None:
    for source, incident in [("stb1", "a"), ("stb1", "b"), ("stb11", "c")]:
        hold.keep_frame(source, incident, "frame_0.jpg", frame(tmp_path))
    hold.drop_orphans("stb1", ["b"])
    assert [bool(hold.run_frames(*run)) for run in [("stb1", "a"), ("stb1", "b"), ("stb11", "c")]] == [
        False,
        True,
        True,
    ]


class Killed(BaseException):
    """The end of a process, at the call that was patched."""


def kill(*_: object, **__: object) -> None:
    raise Killed


def test_what_a_killed_worker_was_building_goes_with_its_successor(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given two workers that were killed before they could hand over what they had built
    for source in ("stb1", "stb11"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, "rename", kill)
            hold.publish(source, "abc", "opened", {}, MADE)
    built = os.listdir(os.path.join(hold.path, ".runs"))
    assert len(built) == 2 and hold.waiting() == []
    # When the successor of one begins, then what the other's source has is left alone
    hold.drop_orphans("stb1", ["abc"])
    assert os.listdir(os.path.join(hold.path, ".runs")) == [name for name in built if name.startswith("stb11~")]


def test_what_a_killed_keeper_was_removing_goes_with_its_successor(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    hold.publish("stb1", "abc", "opened", {}, MADE)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("pipeline.hold.shutil.rmtree", kill)
        hold.remove(hold.waiting()[0])
    assert len(os.listdir(hold.path)) == 2
    hold.drop_done()
    assert os.listdir(hold.path) == [".runs"]


def test_a_name_that_fills_a_file_name_by_itself_is_held(hold: Hold, tmp_path: Path) -> None:
    """As that of a replayed directory."""
    for source in (255 * "x", 254 * "x", 85 * "日"):
        hold.keep_frame(source, "a", "frame_0.jpg", frame(tmp_path))
        assert list(hold.run_frames(source, "a")) == ["frame_0.jpg"]
    hold.drop_orphans(255 * "x", [])
    assert [len(hold.run_frames(source, "a")) for source in (255 * "x", 254 * "x", 85 * "日")] == [0, 1, 1]


def test_the_oldest_evidence_gives_way_and_transitions_stay(hold: Hold) -> None:
    dropped = [hold.publish("stb1", str(n), "opened", {}, {**MADE, "frame_0.jpg": bytes(3000)}) for n in range(6)]
    assert dropped == [0, 0, 0, 1, 1, 1]
    found = [hold.read(folder) for folder in hold.waiting()]
    assert [len(files) for _, files in found] == [0, 0, 0, 1, 1, 1]
    assert all(body == b"{}" for body, _ in found)


@needs("mount")
def test_a_full_memory_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=64k") as small:
        hold = Hold(str(small / "hold"), 10**9)
        hold.prepare()
        with pytest.raises(OSError, match="No space"):
            hold.publish("stb1", "abc", "opened", {}, {**MADE, "frame_0.jpg": bytes(100_000)})
        assert os.listdir(hold.path) == [".runs"]
        hold.publish("stb1", "abc", "opened", {}, MADE)


def test_a_killed_service_leaves_only_what_is_complete(hold: Hold, tmp_path: Path) -> None:
    hold.publish("stb1", "abc", "opened", {}, MADE)
    hold.keep_frame("stb1", "x", "frame_0.jpg", frame(tmp_path))
    for name in (".runs/stb1~.new-1-abc.opened", ".done-2-abc.opened"):
        os.mkdir(os.path.join(hold.path, name))
    hold.prepare()
    assert len(hold.waiting()) == 1 and sorted(os.listdir(hold.path))[0] == ".runs"
    assert os.listdir(os.path.join(hold.path, ".runs")) == []
    assert len(os.listdir(hold.path)) == 2


def test_transitions_wait_in_their_order(hold: Hold) -> None:
    for n in (3, 1, 2):
        hold.publish("stb1", str(n), "opened", {}, MADE)
    assert [folder.rpartition("-")[2] for folder in hold.waiting()] == ["3.opened", "1.opened", "2.opened"]


def test_no_hold_yet_is_an_empty_one(tmp_path: Path) -> None:
    assert Hold(str(tmp_path / "none"), 1).waiting() == []


def _file(folder: Path) -> None:
    folder.write_bytes(b"")


def _empty(folder: Path) -> None:
    folder.mkdir()


def _link(folder: Path) -> None:
    folder.mkdir()
    (folder / TRANSITION_FILE).symlink_to("/etc/passwd")


def _fifo(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / TRANSITION_FILE)


def _huge(folder: Path) -> None:
    folder.mkdir()
    with (folder / TRANSITION_FILE).open("wb") as file:
        file.truncate(2**30)


@pytest.mark.parametrize("make", [_file, _empty, _link, _fifo, _huge])
def test_what_no_worker_made_is_damage(hold: Hold, make: Callable[[Path], None]) -> None:
    folder = Path(hold.path, "00001-x.opened")
    make(folder)
    with pytest.raises(DamagedHold):
        hold.read(str(folder))
    hold.set_aside(str(folder))
    assert hold.waiting() == []


def test_foreign_files_beside_a_transition_are_not_evidence(hold: Hold) -> None:
    hold.publish("stb1", "abc", "opened", {}, {**MADE, "manifest.json": b"x", "frame_0.jpg": b"y"})
    assert hold.read(hold.waiting()[0])[1] == {"frame_0.jpg": b"y"}


def test_few_damaged_directories_stay(hold: Hold) -> None:
    for n in range(20):
        os.mkdir(os.path.join(hold.path, f"{n:05d}-x.opened"))
        hold.set_aside(os.path.join(hold.path, f"{n:05d}-x.opened"))
    assert sorted(name for name in os.listdir(hold.path) if name.startswith(".bad-")) == [
        f".bad-{n:05d}-x.opened" for n in range(15, 20)
    ]
