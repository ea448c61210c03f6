"""Spool: what is kept is whole, in order, bounded, and never in half."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import msgspec
import pytest

from pipeline.spool import (
    EARLIEST_NS,
    INCIDENT_FILE,
    UPLOADED,
    DamagedJob,
    Item,
    Limits,
    Manifest,
    Spool,
    number_of,
    references,
)

NOW_NS = EARLIEST_NS + 10**18
NO_LIMITS = Limits(10**12, 1e9, 0)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(str(tmp_path / "spool"))
    made.recover()
    return made


def keep(
    spool: Spool, number: int, content: bytes = b"picture", wall_ns: int = NOW_NS, synchronised: bool = True
) -> str:
    item = Item("frame_0.jpg", "alerts/k", "image/jpeg", len(content), hashlib.sha256(content).hexdigest())
    return spool.keep(
        number, Manifest("abc", "opened", "stb1", wall_ns, [item], synchronised), {"frame_0.jpg": content}
    )


def test_a_job_is_read_back(spool: Spool) -> None:
    folder = keep(spool, 7)
    job = spool.load(folder)
    assert (job.number, job.manifest.incident, job.read(job.manifest.items[0])) == (7, "abc", b"picture")
    assert number_of(folder) == 7


def test_jobs_come_by_number_not_by_time(spool: Spool) -> None:
    for number in (12, 3, 100_000):
        keep(spool, number)
    assert [number_of(folder) for folder in spool.jobs()] == [3, 12, 100_000]


def test_keeping_twice_is_keeping_once(spool: Spool) -> None:
    assert keep(spool, 1) == keep(spool, 1, b"other")
    assert len(spool.jobs()) == 1


@pytest.mark.parametrize("failing", range(1, 5))
def test_a_failed_fsync_leaves_nothing_and_is_not_repeated_on_the_same_file(
    spool: Spool, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, directory, parent: wherever it fails, the caller begins anew with new files."""
    synced: list[int] = []
    plain = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        if len(synced) == failing:
            raise OSError(errno.EIO, "Input/output error")
        plain(fd)

    keepers = []  # keeps the inodes of what was removed from being used again
    plain_open = os.open

    def remember(*arguments: object, **more: object) -> int:
        fd = plain_open(*arguments, **more)  # type: ignore[arg-type]
        keepers.append(os.dup(fd))
        return fd

    monkeypatch.setattr("pipeline.spool.os.fsync", fsync)
    monkeypatch.setattr("pipeline.spool.os.open", remember)
    with pytest.raises(OSError, match="Input/output"):
        keep(spool, 1)
    assert len(synced) == failing
    assert os.listdir(spool.path) == []
    failed = synced[-1]
    folder = keep(spool, 1)
    assert spool.jobs() == [folder]
    if failing < 4:  # the fourth is the spool itself, whose new entry is a new page
        assert failed not in synced[failing:]
    for fd in keepers:
        os.close(fd)


def test_after_a_crash_only_whole_jobs_are_left(spool: Spool) -> None:
    folder = keep(spool, 1)
    for name in (".new-0000000002-abc.opened", ".done-0000000003-abc.opened", "something"):
        Path(spool.path, name).mkdir()
    Path(spool.path, "0000000009-abc.opened.txt").write_bytes(b"")
    again = Spool(spool.path)
    again.recover()
    assert again.jobs() == [folder]
    assert sorted(os.listdir(spool.path)) == [".bad", "0000000001-abc.opened"]


def test_no_state_directory_yet_is_an_empty_spool(tmp_path: Path) -> None:
    assert Spool(str(tmp_path / "none")).jobs() == []


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", bytes(range(100, 199)), b"\xff", None])
def test_a_manifest_that_is_none_is_damage(spool: Spool, content: bytes | None) -> None:
    folder = keep(spool, 1)
    path = Path(folder, "manifest.json")
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DamagedJob):
        spool.load(folder)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "gone.jpg", ".", "a\0b"])
def test_a_manifest_leads_nowhere_else(spool: Spool, name: str) -> None:
    folder = keep(spool, 1)
    job = spool.load(folder)
    with pytest.raises(DamagedJob):
        job.read(msgspec.structs.replace(job.manifest.items[0], name=name))


def test_a_job_that_was_taken_is_gone_not_damaged(spool: Spool) -> None:
    folder = keep(spool, 1)
    job = spool.load(folder)
    spool.finish(folder)
    with pytest.raises(FileNotFoundError):
        spool.load(folder)
    with pytest.raises(FileNotFoundError):
        job.read(job.manifest.items[0])
    with pytest.raises(FileNotFoundError):
        spool.mark(folder, UPLOADED)
    spool.finish(folder)
    spool.set_aside(folder)


def test_marks_are_found_again(spool: Spool) -> None:
    folder = keep(spool, 1)
    assert spool.marks(folder) == set()
    spool.mark(folder, UPLOADED)
    spool.mark(folder, UPLOADED)
    assert Spool(spool.path).marks(folder) == {UPLOADED}


def test_few_damaged_jobs_stay(spool: Spool) -> None:
    for number in range(30):
        spool.set_aside(keep(spool, number))
    assert spool.jobs() == []
    assert sorted(os.listdir(Path(spool.path, ".bad"))) == [f"{n:010d}-abc.opened" for n in range(10, 30)]


@pytest.mark.parametrize(
    ("limits", "wall_ns", "gone"),
    [
        (NO_LIMITS, NOW_NS + 10**18, []),
        (Limits(5000, 1e9, 0), NOW_NS, [(1, "bytes"), (2, "bytes")]),
        (Limits(10**12, 10.0, 0), NOW_NS + 11 * 10**9, [(n, "age") for n in (1, 2, 3)]),
        (Limits(10**12, 10.0, 0), NOW_NS + 9 * 10**9, []),
        (Limits(10**12, 10.0, 0), None, []),
        (Limits(10**12, 10.0, 0), 0, []),  # the clock is back in 1970
    ],
)
def test_the_oldest_go_first_and_say_why(
    spool: Spool, limits: Limits, wall_ns: int | None, gone: list[tuple[int, str]]
) -> None:
    for number in (1, 2, 3):
        keep(spool, number, bytes(3000))
    assert spool.give_up_oldest(limits, wall_ns) == gone
    assert len(spool.jobs()) == 3 - len(gone)
    assert not [name for name in os.listdir(spool.path) if name.startswith(".done")]


def test_for_a_disk_that_others_have_filled_not_all_is_given_up(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        keep(spool, number, bytes(3000))
    short = Limits(10**12, 1e9, 2**62)  # of which no disk has so much free
    assert spool.give_up_oldest(short, NOW_NS) == [], "64 MB stay"
    monkeypatch.setattr("pipeline.spool.LEAST_BYTES", 5000)
    assert spool.give_up_oldest(short, NOW_NS) == [(1, "free_space"), (2, "free_space")]
    monkeypatch.setattr("pipeline.spool.ROOM_BYTES", 2**62)
    assert spool.give_up_oldest(short, NOW_NS) == [(3, "free_space")], "where there is no room at all, nothing stays"


def test_what_was_kept_before_the_clock_was_set_has_no_age(spool: Spool) -> None:
    keep(spool, 1, wall_ns=10**9)
    assert spool.give_up_oldest(Limits(10**12, 10.0, 0), NOW_NS) == []


def test_what_was_kept_while_nobody_kept_the_clock_is_as_old_as_what_came_after_it(spool: Spool) -> None:
    keep(spool, 1, wall_ns=NOW_NS - 10**18, synchronised=False)
    limits = Limits(10**12, 10.0, 0)
    assert spool.give_up_oldest(limits, NOW_NS) == []
    keep(spool, 2, wall_ns=NOW_NS)
    keep(spool, 3, wall_ns=NOW_NS - 10**18, synchronised=False)
    assert spool.give_up_oldest(limits, NOW_NS) == []
    assert spool.give_up_oldest(limits, NOW_NS + 11 * 10**9) == [(1, "age"), (2, "age")]


def test_a_full_disk_takes_at_least_one(spool: Spool) -> None:
    for number in (1, 2):
        keep(spool, number)
    assert spool.give_up_oldest(NO_LIMITS, NOW_NS, at_least=1) == [(1, "disk_full")]


def test_references_name_pictures_only() -> None:
    keys = {"frame_0.jpg": "a/f0", "thumb_0.jpg": "a/t0", "incident.json": "a/i"}
    assert references(keys, lambda key: f"u:{key}", "now") == {
        "original_urls": ["u:a/f0"],
        "original_r2_paths": ["a/f0"],
        "thumbnail_urls": ["u:a/t0"],
        "thumbnail_r2_paths": ["a/t0"],
        "timestamp": "now",
    }


def test_what_is_no_directory_is_set_aside_at_start(spool: Spool) -> None:
    os.symlink("/nonexistent", os.path.join(spool.path, "0000000001-abc.opened"))
    Path(spool.path, "0000000002-abc.opened").write_bytes(b"")
    folder = keep(spool, 3)
    spool.recover()
    assert spool.jobs() == [folder]


def test_what_was_given_up_since_is_named_no_more(spool: Spool) -> None:
    keys = {f"frame_{n}.jpg": f"alerts/frame_{n}.jpg" for n in (1, 2, 3)}
    told = msgspec.json.encode({"evidence": keys, **references(keys, "file:{}".format, None)})
    item = Item(INCIDENT_FILE, "k", "application/json", len(told), hashlib.sha256(told).hexdigest())
    manifest = Manifest("abc", "closed", "stb1", NOW_NS, [item])
    folder = spool.keep(7, manifest, {INCIDENT_FILE: told})
    other = spool.keep(8, msgspec.structs.replace(manifest, incident="def"), {INCIDENT_FILE: told})
    for _ in range(2):  # a kill may have it done again
        spool.leave_out("abc", ["frame_1.jpg", "frame_3.jpg"])
    assert spool.load(other).read(item) == told, "another incident's"
    said = msgspec.json.decode(spool.load(folder).read(item))
    assert said["evidence"] == {"frame_2.jpg": "alerts/frame_2.jpg"}
    assert said["original_r2_paths"] == ["alerts/frame_2.jpg"] and said["original_urls"] == ["file:alerts/frame_2.jpg"]
