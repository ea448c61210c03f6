"""Overload: which frames a lane that has fallen behind still judges. The others get a sidecar that says so.

Every k-th frame, more and more sparsely while it falls further behind, and never less than one verdict a second.
"""

from __future__ import annotations

from pipeline.ring import Slot

MAX_STRIDE = 64
VERDICT_EVERY_NS = 1_000_000_000  # the floor under overload
_NS = 1_000_000_000


class Shedding:
    """Decides which frames a lane that has fallen behind still judges."""

    def __init__(self, lag_limit_s: float) -> None:
        self._limit_ns = int(lag_limit_s * _NS)
        self._stride = 1
        self._last_verdict_ns = 0

    def sheds(self, slot: Slot, now_ns: int) -> bool:
        """Whether to pass over this frame: lag above the limit starts it, half the limit ends it."""
        lag_ns = now_ns - slot.put_ns
        if lag_ns > self._limit_ns and self._stride == 1:
            self._stride = 2
        elif lag_ns < self._limit_ns // 2:
            self._stride = 1
        due = slot.index % self._stride == 0 and self._stride < MAX_STRIDE
        if self._stride == 1 or due or now_ns - self._last_verdict_ns >= VERDICT_EVERY_NS:
            if lag_ns > self._limit_ns:
                self._stride = min(2 * self._stride, MAX_STRIDE)
            return False
        return True

    def judged(self, now_ns: int) -> None:
        """A verdict has been reached. Its end counts: judging may itself take longer than VERDICT_EVERY_NS."""
        self._last_verdict_ns = now_ns
