"""News: what a child is told while it runs, by its supervisor: one text, of which only the newest counts.

It lies in anonymous memory that both have, so it may hold secrets and has no bound to wait at. Whoever reads while it
is being written finds that its sum is wrong, and is woken again when it is whole.
"""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress

_HEAD = struct.Struct("=QI")  # length, CRC-32


class News:
    """One child's. Made by the supervisor; the child inherits both descriptors."""

    def __init__(self, memory_fd: int, bell_fd: int) -> None:
        self.fds = (memory_fd, bell_fd)
        self._memory_fd, self._bell_fd = memory_fd, bell_fd

    @classmethod
    def create(cls) -> News:
        """Empty ones; the descriptors are not inherited unless they are passed on."""
        memory_fd = os.memfd_create("stillwatch-news", os.MFD_CLOEXEC)
        return cls(memory_fd, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def fileno(self) -> int:
        """Readable when there is something to hear."""
        return self._bell_fd

    def tell(self, text: bytes) -> None:
        """Put a text in place of the one before, and wake the child."""
        os.pwrite(self._memory_fd, _HEAD.pack(len(text), zlib.crc32(text)) + text, 0)
        os.eventfd_write(self._bell_fd, 1)

    def hear(self) -> bytes | None:
        """The newest text if something has been told since the last time, and if it is whole."""
        try:
            os.eventfd_read(self._bell_fd)
        except BlockingIOError:
            return None
        with suppress(struct.error):
            length, checksum = _HEAD.unpack(os.pread(self._memory_fd, _HEAD.size, 0))
            text = os.pread(self._memory_fd, length, _HEAD.size)
            return text if zlib.crc32(text) == checksum else None
        return None
