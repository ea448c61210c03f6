"""What file system a directory lies on, by name, from /proc/self/mountinfo."""

from __future__ import annotations

import os

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
