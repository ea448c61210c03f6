"""Both clocks at one instant, and whether the wall clock can be believed: a Pi has no battery for it, and boots into
the past."""

from __future__ import annotations

import ctypes
import os
import time

SYNCHRONISED_FILE = "/run/systemd/timesync/synchronized"
CLOSE_NS = 1_000_000  # two readings as close as this are of one instant
_READINGS = 5
_TIME_ERROR = 5
_TIMEX_BYTES = 208  # struct timex on 64 bits; smaller on 32

_libc = ctypes.CDLL(None, use_errno=True)


def now_ns() -> tuple[int, int]:
    """The monotonic and the wall clock at one instant: who is held up between two readings reads again. Else a frame
    would seem older than it is, by as long as others had the core."""
    readings = (_reading() for _ in range(_READINGS))
    best = next(readings)
    while best[0] > CLOSE_NS and (other := next(readings, None)):
        best = min(best, other)
    return best[1:]


def _reading() -> tuple[int, int, int]:
    """How far apart the readings are, and these."""
    begun_ns = time.monotonic_ns()
    wall_ns = time.time_ns()
    apart_ns = time.monotonic_ns() - begun_ns
    return apart_ns, begun_ns + apart_ns // 2, wall_ns


def adjtimex() -> int:
    """The state of the kernel's clock: 5 for unsynchronised, -1 where asking is not allowed. Changes nothing."""
    return int(_libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))  # modes = 0: read only


def synchronised() -> bool:
    """Whether somebody keeps this machine's clock right."""
    return 0 <= adjtimex() < _TIME_ERROR or os.path.exists(SYNCHRONISED_FILE)
