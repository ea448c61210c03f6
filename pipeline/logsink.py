"""Where log lines go: standard error (a terminal, a pipe, the journal) or a file. Never waits for whoever reads.

A pipe that nobody reads, or a journal that is stuck, takes no more lines: they are counted, and the next line that is
taken is preceded by one that tells how many are missing. The descriptor itself is left as it was given: others have it
too, so it is opened anew, or written to with MSG_DONTWAIT where it is a socket.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Mapping
from contextlib import suppress

MAX_WRITE_BYTES = 4096  # PIPE_BUF: a pipe takes so much at once or nothing
_PRIORITIES = ((logging.CRITICAL, 3), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
"""syslog's numbers. CRITICAL is told as an error: journald syncs to the card at once for every line above that."""


class LogSink(logging.Handler):
    """One process's way out. Formatted lines go to `fd`, or to the file `path` (opened anew when it was rotated)."""

    def __init__(self, fd: int, path: str = "", environment: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.dropped = 0  # lines that were not taken, since the start
        self._untold = 0
        self._is_cut = False  # the beginning of a long line was taken, its end was not
        self._path, self._identity = path, (0, 0)
        self._journal = not path and is_journal(fd, environment if environment is not None else os.environ)
        self._socket: socket.socket | None = None
        self._fd = -1 if path else self._take(fd)
        if path:
            self._follow_file()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or count it."""
        try:
            line = self.format(record)
            missing = f"{self._untold} log lines were dropped: nobody took them"
            if self._untold and self._write(missing, logging.WARNING):
                self._untold = 0
            if not self._write(line, record.levelno):
                self.dropped += 1
                self._untold += 1
        except Exception:  # noqa: BLE001 - logging's own way: a line that cannot be formatted stops nobody
            self.handleError(record)

    def close(self) -> None:
        """Let go what was opened here."""
        super().close()
        if self._socket:
            self._socket.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _take(self, fd: int) -> int:
        """A way to `fd` that does not block and shares its flags with nobody."""
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            self._socket = socket.socket(fileno=os.dup(fd))
            return -1
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # a file never blocks, and its offset is to be shared
            with suppress(OSError):  # another user's terminal, after su: it may block
                return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        return os.dup(fd)

    def _write(self, line: str, level: int) -> bool:
        prefix = next(f"<{number}>" for least, number in _PRIORITIES if level >= least) if self._journal else ""
        data = "".join(f"{prefix}{part}\n" for part in line.split("\n")).encode("utf-8", "backslashreplace")
        data = b"\n" * self._is_cut + data
        at = 0
        try:
            if self._path:
                self._follow_file()
            for at in range(0, len(data), MAX_WRITE_BYTES):
                self._put(data[at : at + MAX_WRITE_BYTES])
        except OSError:
            self._is_cut |= at > 0
            return False
        self._is_cut = False
        return True

    def _put(self, data: bytes) -> None:
        if self._socket:
            self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        else:
            os.write(self._fd, data)

    def _follow_file(self) -> None:
        """Open the file, and open it anew when another stands under its name."""
        with suppress(FileNotFoundError):
            found = os.stat(self._path)
            if (found.st_dev, found.st_ino) == self._identity:
                return
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        opened = os.fstat(self._fd)
        self._identity = opened.st_dev, opened.st_ino


def is_journal(fd: int, environment: Mapping[str, str]) -> bool:
    """Whether a descriptor leads to systemd's journal, as JOURNAL_STREAM says."""
    found = os.fstat(fd)
    return environment.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"
