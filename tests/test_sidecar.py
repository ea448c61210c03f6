"""Sidecars: published whole, once, without waking the watcher, on every file system; and what stands in them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inotify_simple import INotify, flags

from pipeline import sidecar
from pipeline.model import FrameId, Judgement, Verdict
from pipeline.sidecar import SCRATCH, Published, SidecarWriter, read_identity
from tests.machine import bindfs, exfat, needs, tmpfs

FIRST, SECOND = FrameId(1, 2, 3, 4), FrameId(1, 2, 4, 4)
STEM = "capture_000000001"
NAME = f"{STEM}.json"


def content(identity: FrameId = FIRST, stem: str = STEM) -> bytes:
    return sidecar.encode(sidecar.build("a", stem, 1, identity))


@contextlib.contextmanager
def watching(directory: Path, mask: int) -> Iterator[Callable[[], list[str]]]:
    """The names that events of this kind bring, asked for at any time."""
    with INotify() as inotify:
        inotify.add_watch(str(directory), mask)
        yield lambda: [event.name for event in inotify.read(timeout=0)]


def left_over(directory: Path) -> list[str]:
    """Everything in the directory but sidecars and an empty scratch directory."""
    found = [str(path.relative_to(directory)) for path in directory.rglob("*") if path.name != SCRATCH]
    return [name for name in found if not (name.endswith(".json") and "/" not in name)]


# -- the three ways ---------------------------------------------------------------------------------------------------


def test_3000_sidecars_wake_nobody_who_listens_to_renames(tmp_path: Path) -> None:
    writer = SidecarWriter(str(tmp_path))
    with watching(tmp_path, flags.MOVED_TO) as renames, watching(tmp_path, flags.CREATE) as creations:
        for number in range(3000):
            assert writer.publish(f"capture_{number:09d}", content(), FIRST) is Published.NEW
        assert len(creations()) == 3000
        assert renames() == []
        (tmp_path / NAME).rename(tmp_path / "renamed")
        assert renames() == ["renamed"], "it would have seen one"
    assert not (tmp_path / SCRATCH).exists()


@needs("bindfs")
def test_without_unnamed_files_a_sidecar_is_linked_and_wakes_nobody(tmp_path: Path) -> None:
    with bindfs(tmp_path / "back", tmp_path / "mirror") as directory:
        with pytest.raises(OSError, match="not supported"):
            os.open(directory, os.O_TMPFILE | os.O_WRONLY)
        writer = SidecarWriter(str(directory))
        with watching(directory, flags.MOVED_TO) as renames, watching(directory, flags.CREATE) as creations:
            assert writer.publish(STEM, content(), FIRST) is Published.NEW
            assert NAME in creations()
            assert renames() == []
        assert (directory / NAME).read_bytes() == content()
        assert left_over(directory) == []


@needs("mount.exfat-fuse", "mkfs.exfat", "losetup")
def test_without_hard_links_a_sidecar_is_renamed_into_place(tmp_path: Path) -> None:
    with exfat(tmp_path, tmp_path / "disk") as directory:
        (directory / "x").touch()
        with pytest.raises(PermissionError):
            os.link(directory / "x", directory / "y")
        (directory / "x").unlink()
        writer = SidecarWriter(str(directory))
        with watching(directory, flags.MOVED_TO) as renames:
            assert writer.publish(STEM, content(), FIRST) is Published.NEW
            assert renames() == [NAME]
        assert (directory / NAME).read_bytes() == content()
        assert writer.publish(STEM, content(), FIRST) is Published.DUPLICATE
        assert writer.publish(STEM, content(SECOND), SECOND) is Published.REPLACED
        assert (directory / NAME).read_bytes() == content(SECOND)
        assert left_over(directory) == []


@needs("bindfs")
def test_the_longest_frame_name_fits_in_the_scratch_directory_too(tmp_path: Path) -> None:
    stem = 232 * "p" + 18 * "1"
    with bindfs(tmp_path / "back", tmp_path / "mirror") as directory:
        assert SidecarWriter(str(directory)).publish(stem, content(), FIRST) is Published.NEW


@needs("bindfs")
def test_what_a_killed_worker_left_in_the_scratch_directory_is_not_written_through(tmp_path: Path) -> None:
    """Killed between link and unlink, it left a second name of a published sidecar; its process id may come again."""
    with bindfs(tmp_path / "back", tmp_path / "mirror") as directory:
        writer = SidecarWriter(str(directory))
        writer.publish(STEM, content(), FIRST)
        os.link(directory / NAME, directory / SCRATCH / str(os.getpid()))
        assert writer.publish("capture_2", b"another", FIRST) is Published.NEW
        assert (directory / NAME).read_bytes() == content()
        assert left_over(directory) == []


# -- what is there already --------------------------------------------------------------------------------------------


def test_the_same_frame_again_is_a_duplicate_and_changes_nothing(tmp_path: Path) -> None:
    writer = SidecarWriter(str(tmp_path))
    writer.publish(STEM, content(), FIRST)
    before = (tmp_path / NAME).stat()
    assert writer.publish(STEM, b"{}", FIRST) is Published.DUPLICATE
    after = (tmp_path / NAME).stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)


GARBAGE = {
    "another frame's": content(SECOND),
    "empty": b"",
    "cut": content()[:-20],
    "no JSON": b"\x00\xff garbage",
    "no object": b"[1, 2]",
    "no identity": b'{"analyzed": true}',
    "identity of another kind": b'{"frame_id": "x"}',
    "identity too short": b'{"frame_id": [1, 2]}',
    "nested without end": b'{"x": ' + 200_000 * b"[",
    "endless": b" " * (2 << 20),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_what_does_not_speak_of_this_frame_is_replaced(kind: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(GARBAGE[kind])
    assert SidecarWriter(str(tmp_path)).publish(STEM, content(), FIRST) is Published.REPLACED
    assert (tmp_path / NAME).read_bytes() == content()


SPECIAL: dict[str, Callable[[Path], None]] = {
    "dangling symlink": lambda path: path.symlink_to("gone"),
    "symlink to another file": lambda path: path.symlink_to("other"),
    "symlink loop": lambda path: path.symlink_to(path.name),
    "fifo": os.mkfifo,
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_replaced_without_blocking_or_following(kind: str, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("untouched")
    SPECIAL[kind](tmp_path / NAME)
    assert SidecarWriter(str(tmp_path)).publish(STEM, content(), FIRST) is Published.REPLACED
    assert (tmp_path / NAME).read_bytes() == content()
    assert not (tmp_path / NAME).is_symlink()
    assert (tmp_path / "other").read_text() == "untouched"


def test_a_directory_under_the_sidecars_name_is_an_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(OSError, match="directory"):
        SidecarWriter(str(tmp_path)).publish(STEM, content(), FIRST)
    assert list(tmp_path.iterdir()) == [tmp_path / NAME]


def test_the_identity_of_no_sidecar_is_none(tmp_path: Path) -> None:
    assert read_identity(str(tmp_path / "gone.json")) is None


# -- a file system that refuses ---------------------------------------------------------------------------------------


def fill(directory: Path) -> None:
    """Leave not one free block."""
    with (directory / "foreign").open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(1 << 16)):
                pass
        with pytest.raises(OSError, match="No space left"):
            file.write(b"x")


@needs()
def test_a_full_file_system_raises_and_leaves_nothing(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=256k") as directory:
        fill(directory)
        with pytest.raises(OSError, match="No space left") as caught:
            SidecarWriter(str(directory)).publish(STEM, content(), FIRST)
        assert caught.value.errno == errno.ENOSPC
        assert left_over(directory) == ["foreign"]
        (directory / "foreign").unlink()
        assert SidecarWriter(str(directory)).publish(STEM, content(), FIRST) is Published.NEW


@needs()
def test_without_a_free_inode_it_raises_and_leaves_nothing(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=1m,nr_inodes=8") as directory:
        with pytest.raises(OSError, match="No space left"):
            for number in range(8):
                (directory / str(number)).touch()
        before = sorted(left_over(directory))
        with pytest.raises(OSError, match="No space left"):
            SidecarWriter(str(directory)).publish(STEM, content(), FIRST)
        assert sorted(left_over(directory)) == before


@needs("bindfs")
def test_a_full_file_system_without_unnamed_files_leaves_no_scratch_file(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=256k") as disk, bindfs(disk, tmp_path / "mirror") as directory:
        writer = SidecarWriter(str(directory))
        writer.publish(STEM, content(), FIRST)
        fill(disk)
        with pytest.raises(OSError, match="No space left"):
            writer.publish("capture_2", content(), FIRST)
        assert left_over(directory) == ["foreign"]


@needs("mount.exfat-fuse", "mkfs.exfat", "losetup")
def test_a_failed_rename_leaves_no_scratch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with exfat(tmp_path, tmp_path / "disk") as directory:
        writer = SidecarWriter(str(directory))
        writer.publish(STEM, content(), FIRST)

        def refuse(*_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "rename", refuse)
        with pytest.raises(OSError, match="Input/output"):
            writer.publish("capture_2", content(), FIRST)
        assert left_over(directory) == []


def test_a_directory_that_has_gone_is_an_error_and_is_not_made_again(tmp_path: Path) -> None:
    directory = tmp_path / "frames"
    directory.mkdir()
    writer = SidecarWriter(str(directory))
    writer.publish(STEM, content(), FIRST)
    (directory / NAME).unlink()
    directory.rmdir()
    with pytest.raises(FileNotFoundError):
        writer.publish(STEM, content(), FIRST)
    assert not directory.exists()


@needs("bindfs")
def test_a_directory_that_has_gone_is_not_made_again_for_a_scratch_file(tmp_path: Path) -> None:
    with bindfs(tmp_path / "back", tmp_path / "mirror") as mirror:
        directory = mirror / "frames"
        directory.mkdir()
        writer = SidecarWriter(str(directory))
        writer.publish(STEM, content(), FIRST)
        (directory / NAME).unlink()
        (directory / SCRATCH).rmdir()
        directory.rmdir()
        with pytest.raises(FileNotFoundError):
            writer.publish(STEM, content(), FIRST)
        assert not directory.exists()


def test_a_directory_that_comes_back_is_served_as_before(tmp_path: Path) -> None:
    """A directory that is gone for a moment says nothing about what its file system can do."""
    directory = tmp_path / "frames"
    writer = SidecarWriter(str(directory))
    with pytest.raises(FileNotFoundError):
        writer.publish(STEM, content(), FIRST)
    directory.mkdir()
    assert writer.publish(STEM, content(), FIRST) is Published.NEW
    assert not (directory / SCRATCH).exists(), "still the first way"


# -- what stands in it ------------------------------------------------------------------------------------------------

IDENTITY = ["schema", "analyzed", "source", "filename", "sequence", "timestamp"]
VERDICTS = [
    *("blackscreen", "blackscreen_percentage", "freeze", "freeze_kind", "freeze_diffs", "last_3_filenames"),
    "last_3_thumbnails",
    *("no_signal", "macroblocks", "quality_score", "audio", "volume_percentage", "mean_volume_db"),
]
REST = ["frame_id", "readings", "tile_map", "zap", "conditions", "incident_ids", "r2_images", "performance_ms"]
COMMON_FIELDS = [*IDENTITY, *VERDICTS, *REST]
UNKNOWN = [
    "r2_images",
    *(field for field in VERDICTS if field not in ("freeze_diffs", "last_3_filenames", "last_3_thumbnails")),
]


def decoded(**fields: Any) -> dict[str, object]:
    built = sidecar.build("stb1", STEM, 1, FrameId(40, 71885, 1795336670623106000, 118211), **fields)
    line = sidecar.encode(built)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    found: dict[str, object] = json.loads(line)
    return found


def test_a_judged_frames_fields_are_those_that_consumers_know() -> None:
    judgement = Judgement(
        Verdict(False, {"black_pct": 3.1}), Verdict(None, {}), [4.97, 6.62], ["capture_0", "capture_00"], 0.001
    )
    found = decoded(**sidecar.verdict_fields(judgement), performance_ms={"queued": 0.2})
    assert list(found) == COMMON_FIELDS
    assert found["schema"] == 1
    assert found["analyzed"] is True
    assert found["source"] == "stb1"
    assert found["filename"] == f"{STEM}.jpg"
    assert found["sequence"] == 1
    assert found["timestamp"] == "2026-11-22T08:37:50.623106+00:00"
    assert found["frame_id"] == [40, 71885, 1795336670623106000, 118211]
    assert (found["blackscreen"], found["blackscreen_percentage"]) == (False, 3.1)
    assert (found["freeze"], found["freeze_diffs"]) == (None, [4.97, 6.62])
    assert found["last_3_filenames"] == ["capture_0.jpg", "capture_00.jpg"]
    assert found["last_3_thumbnails"] == ["capture_0_thumbnail.jpg", "capture_00_thumbnail.jpg"]
    assert found["readings"] == {"black_pct": 3.1}


def test_an_error_says_so_and_knows_nothing_else() -> None:
    found = decoded(error="truncated: no end-of-image marker")
    assert [key for key in found if key != "error"] == COMMON_FIELDS
    assert (found["analyzed"], found["error"]) == (True, "truncated: no end-of-image marker")
    assert all(found[key] is None for key in UNKNOWN)


def test_a_skipped_frame_says_so_and_was_not_analyzed() -> None:
    found = decoded(analyzed=False, skipped="overload")
    assert [key for key in found if key != "skipped"] == COMMON_FIELDS
    assert (found["analyzed"], found["skipped"]) == (False, "overload")
    assert all(found[key] is None for key in UNKNOWN)


@pytest.mark.parametrize(
    "prefix", ['"', "\\", "\n", "\r\n", "%s", "</script>", "\x00", "\x1b[2J", "\x7f", "é", "\U0001f4fa"]
)
def test_hostile_names_are_valid_json_on_one_line(prefix: str) -> None:
    line = sidecar.encode(sidecar.build("a", f"{prefix}1", 1, FIRST))
    assert json.loads(line.decode("utf-8"))["filename"] == f"{prefix}1.jpg"
    assert len(line.splitlines()) == 1


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_timestamp_is_exact_to_the_microsecond(time_ns: int) -> None:
    text = sidecar.timestamp(time_ns)
    assert text is not None
    passed = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    whole = (passed.days * 86400 + passed.seconds) * 10**6 + passed.microseconds
    assert whole == time_ns // 1000
    assert len(text) == len("2026-11-22T10:17:50.623106+00:00")


@pytest.mark.parametrize("time_ns", [10**22, -(10**22)])
def test_a_time_that_no_calendar_has_is_unknown(time_ns: int) -> None:
    assert sidecar.timestamp(time_ns) is None


@given(st.builds(FrameId, *[st.integers(-(2**63), 2**63 - 1)] * 4))
def test_an_identity_is_read_back_as_it_was_written(identity: FrameId) -> None:
    assert msgspec.json.decode(content(identity), type=sidecar.Sidecar).frame_id == identity
