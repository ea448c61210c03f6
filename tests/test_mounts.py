"""Which file system a directory lies on, asked of real mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.mounts import file_system_type, is_blind
from tests.machine import bindfs, mounted, needs, overlay, tmpfs, unmount


def test_the_kernels_own_file_systems_have_their_names() -> None:
    assert file_system_type("/proc") == "proc"
    assert file_system_type("/sys") == "sysfs"
    assert file_system_type("/proc/self/fd") == "proc"


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_system_type(str(tmp_path / "gone"))


@needs("bindfs")
def test_a_directory_below_a_mount_has_its_type_and_one_beside_it_has_not(tmp_path: Path) -> None:
    (tmp_path / "mirror2").mkdir()
    with bindfs(tmp_path / "back", tmp_path / "mirror") as mirror:
        (mirror / "frames").mkdir()
        assert is_blind(file_system_type(str(mirror)))
        assert is_blind(file_system_type(str(mirror / "frames")))
        assert not is_blind(file_system_type(str(tmp_path / "mirror2")))


@needs()
@pytest.mark.parametrize("name", ["with space", "with\nnewline", "with\\backslash", "é"])
def test_a_mount_point_may_have_any_name(name: str, tmp_path: Path) -> None:
    with mounted(tmp_path / name, "mount", "-t", "tmpfs", "test", str(tmp_path / name)) as point:
        assert file_system_type(str(point)) == "tmpfs"


@needs("bindfs")
def test_a_symlink_is_followed(tmp_path: Path) -> None:
    with bindfs(tmp_path / "back", tmp_path / "mirror") as mirror:
        (tmp_path / "link").symlink_to(mirror)
        assert is_blind(file_system_type(str(tmp_path / "link")))


@needs("bindfs")
def test_of_two_mounts_on_one_point_the_upper_counts(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "point") as point:
        with bindfs(tmp_path / "back", point):
            assert is_blind(file_system_type(str(point)))
        assert file_system_type(str(point)) == "tmpfs"


@needs("bindfs")
def test_a_mount_that_another_one_hides_does_not_count(tmp_path: Path) -> None:
    """A tmpfs on `top/frames`, then a mirror over `top`: the path leads into the mirror."""
    (tmp_path / "back" / "frames").mkdir(parents=True)
    with tmpfs(tmp_path / "top" / "frames"):
        with bindfs(tmp_path / "back", tmp_path / "top") as top:
            assert is_blind(file_system_type(str(top / "frames")))
        assert file_system_type(str(tmp_path / "top" / "frames")) == "tmpfs"


@needs()
def test_a_bind_mount_has_the_type_of_what_it_shows(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "memory") as memory:
        (memory / "frames").mkdir()
        point = tmp_path / "point"
        with mounted(point, "mount", "--bind", str(memory / "frames"), str(point)):
            assert file_system_type(str(point)) == "tmpfs"


@needs()
def test_an_overlay_is_called_so(tmp_path: Path) -> None:
    with overlay(tmp_path, tmp_path / "merged") as merged:
        assert file_system_type(str(merged)) == "overlay"


@needs()
def test_a_mount_that_was_detached_has_no_name_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tmpfs(tmp_path / "point") as point:
        monkeypatch.chdir(point)
        unmount(point, "-l")
        assert file_system_type(".") == ""
        monkeypatch.undo()


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse", "fuse.sshfs", "fuseblk"])
def test_file_systems_that_others_change_are_blind(kind: str) -> None:
    assert is_blind(kind)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs", "btrfs", "overlay", "exfat", "vfat", ""])
def test_local_file_systems_are_not_blind(kind: str) -> None:
    assert not is_blind(kind)
