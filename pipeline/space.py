"""Room on one file system: how much must be freed now, and how long what is free will last. Blocks and inodes alike.

FFmpeg ends at the first ENOSPC and does not come back by itself, so room is made before that.
"""

from __future__ import annotations

import os

RESERVE_SHARE = 0.25
"""Of a small file system: 64 MB for four sources at 5 frames/s is then never more than 80 % full between two looks."""

RESERVE_BYTES, RESERVE_FILES = 16 * 2**20, 256  # of a large one, or RESERVE_S of what comes, if that is more
RESERVE_S = 30.0
_RATE_S = 0.5  # a rate is measured over so long: shorter, one frame would pass for a flood
_DECAY = 0.8  # of a rate in that time: a burst is not forgotten at once
_NS = 1_000_000_000


class _Account:
    """Bytes or inodes of a file system. A total of 0 means without a bound."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._free_before = self._came = 0
        self.total = self.free = 0
        self.rate = 0.0  # per second

    def measure(self, total: int, free: int, came: int, passed_s: float | None) -> None:
        self.total, self.free = total, free
        self._came += came
        if passed_s is None:
            return
        grown = max(self._came, self._free_before - free)  # others write here as well
        self.rate = max(grown / passed_s, self.rate * _DECAY) if passed_s else 0.0
        self._free_before, self._came = free, 0

    def lack(self, pace_s: float) -> int:
        """How much must be freed, so that the reserve is still there after `pace_s`."""
        reserve = min(self.total * RESERVE_SHARE, max(self._least, self.rate * RESERVE_S))
        return max(0, int(reserve + self.rate * pace_s - self.free)) if self.total else 0

    def lasts_s(self, least_rate: float) -> float:
        rate = max(self.rate, least_rate)
        return self.free / rate if self.total and rate else float("inf")


class Disk:
    """One file system."""

    def __init__(self) -> None:
        self._bytes, self._files = _Account(RESERVE_BYTES), _Account(RESERVE_FILES)
        self._rated_ns = 0

    def measure(self, path: str, now_ns: int, bytes_came: int, files_came: int) -> None:
        """Look at it again, by a path on it; what has come there since the last look. Raises OSError."""
        found = os.statvfs(path)
        passed_s: float | None = (now_ns - self._rated_ns) / _NS if self._rated_ns else 0.0
        if passed_s and passed_s < _RATE_S:
            passed_s = None
        else:
            self._rated_ns = now_ns
        self._bytes.measure(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, bytes_came, passed_s)
        self._files.measure(found.f_files, found.f_favail, files_came, passed_s)

    def lack(self, pace_s: float) -> tuple[int, int]:
        """Bytes and inodes to be freed now."""
        return self._bytes.lack(pace_s), self._files.lack(pace_s)

    def lasts_s(self, least_bytes_s: float, least_files_s: float) -> float:
        """Until it is full, if no less than that comes per second."""
        return min(self._bytes.lasts_s(least_bytes_s), self._files.lasts_s(least_files_s))
