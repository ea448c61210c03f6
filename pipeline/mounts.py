"""What file system a directory lies on, by name, from /proc/self/mountinfo; and why it refuses."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from pipeline.model import describe

MOUNTINFO = "/proc/self/mountinfo"

_BLIND = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "coda",
    "ncpfs",
    "vboxsf",
    "virtiofs",
    "lustre",
}
"""Changes made by another machine (or the host) raise no inotify event here: inotify(7)."""


def file_system_type(path: str) -> str:
    """The type of the file system behind `path`, such as `tmpfs`, `ext4` or `fuse.bindfs`; empty when unknown.

    The kernel is asked for the number of the mount that `path` leads to: a name may be hidden by a later mount.
    """
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
            number = next(line.split()[1] for line in lines if line.startswith("mnt_id:"))
    finally:
        os.close(fd)
    with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            if line.split(" ", 1)[0] == number:
                return line.partition(" - ")[2].split(" ", 1)[0]
    return ""


def is_blind(kind: str) -> bool:
    """Whether inotify may miss changes on a file system of this type. FUSE shows only what goes through the mount."""
    return kind in _BLIND or kind.startswith("fuse")


def describe_refusal(error: OSError, path: str) -> str:
    """Why the file system behind `path` refused: one without inodes has room, and says the same as a full one."""
    with suppress(OSError):
        if error.errno == errno.ENOSPC and not os.statvfs(path).f_favail:
            return "no inodes left"
    return describe(error)


def is_memory(kind: str) -> bool:
    """Whether files on a file system of this type are in memory."""
    return kind in ("tmpfs", "ramfs")


def block_device(path: str, sys_root: str = "/sys") -> str:
    """The disk behind `path`, like `mmcblk0p2`; empty where there is none, or none that has a name."""
    number = os.stat(path).st_dev
    try:
        link = os.readlink(f"{sys_root}/dev/block/{os.major(number)}:{os.minor(number)}")
    except OSError:
        return ""
    return os.path.basename(link)
