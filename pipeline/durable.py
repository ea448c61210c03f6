"""What survives a power cut: files and names that are on the disk before the call returns.

A failed fsync is never repeated on the same file: the kernel has dropped its pages and a second call would succeed.
Whoever gets an error here writes a new file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping


def write_files(folder: str, files: Mapping[str, bytes]) -> None:
    """Write new files (name to content) into a folder, then fsync each: the first fsync makes the journal write, the
    others find it written. Raises OSError."""
    opened: list[int] = []
    try:
        for name, content in files.items():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            opened.append(os.open(os.path.join(folder, name), flags, 0o640))
            view = memoryview(content)
            while view:
                view = view[os.write(opened[-1], view) :]
        for fd in opened:
            os.fsync(fd)
    finally:
        for fd in opened:
            os.close(fd)


def sync_directory(path: str) -> None:
    """Make the names in a directory survive. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def free_bytes(path: str) -> int:
    """What others than root may still write to the file system of `path`. Raises OSError."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
