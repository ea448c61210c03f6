"""When to try again, and when to speak about it. Pure: time comes in."""

from __future__ import annotations

import random

_NS = 1_000_000_000
LOG_EVERY_NS = 30 * _NS


class Backoff:
    """One thing that may fail again and again: exponential delay with jitter and cap, said once and then at most every
    30 s, also where it works in between; that it works again only after it was said. Durations are monotonic."""

    def __init__(self, first_s: float = 1.0, cap_s: float = 300.0) -> None:
        self._first_s, self._cap_s = first_s, cap_s
        self._said_ns: int | None = None
        self._is_said = False  # of the failures since it last worked
        self.failures = 0
        self.delay_s = 0.0
        self.due_ns = 0

    def failed(self, now_ns: int, delay_s: float | None = None) -> bool:
        """It failed: wait (`delay_s`, if the caller knows better). Whether to say so now."""
        longest_s = min(self._cap_s, self._first_s * 2 ** min(self.failures, 30))
        self.failures += 1
        self.delay_s = random.uniform(longest_s / 2, longest_s) if delay_s is None else delay_s
        self.due_ns = now_ns + int(self.delay_s * _NS)
        if self._said_ns is not None and now_ns - self._said_ns < LOG_EVERY_NS:
            return False
        self._said_ns, self._is_said = now_ns, True
        return True

    def worked(self) -> int:
        """It worked: after how many failures? 0 when there is nothing to say."""
        failures = self.failures if self._is_said else 0
        self.failures, self.delay_s, self.due_ns, self._is_said = 0, 0.0, 0, False
        return failures

    def wait_s(self, now_ns: int) -> float:
        """Seconds until the next try."""
        return max(0.0, (self.due_ns - now_ns) / _NS)
