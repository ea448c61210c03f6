"""Whether the wall clock can be believed: a Pi has no battery for it, and boots into the past."""

from __future__ import annotations

import ctypes
import os

SYNCHRONISED_FILE = "/run/systemd/timesync/synchronized"
_TIME_ERROR = 5
_TIMEX_BYTES = 208  # struct timex on 64 bits; smaller on 32

_libc = ctypes.CDLL(None, use_errno=True)


def adjtimex() -> int:
    """The state of the kernel's clock: 5 for unsynchronised, -1 where asking is not allowed. Changes nothing."""
    return int(_libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))  # modes = 0: read only


def synchronised() -> bool:
    """Whether somebody keeps this machine's clock right."""
    return 0 <= adjtimex() < _TIME_ERROR or os.path.exists(SYNCHRONISED_FILE)
