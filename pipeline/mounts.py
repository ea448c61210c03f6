"""What file system a directory lies on, by name, from /proc/self/mountinfo."""

from __future__ import annotations

import os
import re

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
    """The type of the file system behind `path`, such as `tmpfs`, `ext4` or `fuse.bindfs`; empty when unknown."""
    real = os.path.realpath(path)
    best, found = -1, ""
    with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), left.split(" ")[4])
            inside = real == point or real.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= best:  # the later of two mounts on one point lies on top
                best, found = len(point), right.split(" ", 1)[0]
    return found


def is_blind(kind: str) -> bool:
    """Whether inotify may miss changes on a file system of this type. FUSE shows only what goes through the mount."""
    return kind in _BLIND or kind.startswith("fuse")
