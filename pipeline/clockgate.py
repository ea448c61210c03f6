"""The clock gate: nothing is signed for R2 before this machine's clock can be believed.

A Pi has no clock battery: until the first NTP step its requests carry a time that R2 refuses (15 minutes at most). So
the first upload waits until the kernel or systemd says that the clock is kept, or until the server's own `Date`, asked
for once a minute, is within 5 minutes of ours. A refusal because of the clock closes the gate again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from pipeline import clock
from pipeline.backoff import Backoff
from pipeline.child import event, log
from pipeline.store import StoreError

PROBE_EVERY_S = 61.0  # fewer than one request a minute
LOOK_EVERY_S = 10.0  # at the kernel's word, which costs nothing
MAX_SKEW_S = 300.0
_NS = 10**9


class ClockGate:
    """Open, or waiting for the clock. Network I/O through `server_date_ns` alone, which asks the store for its time."""

    def __init__(
        self,
        server_date_ns: Callable[[], int | None],
        synchronised: Callable[[], bool] = clock.synchronised,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._server_date_ns, self._synchronised, self._wall_ns = server_date_ns, synchronised, wall_ns
        self._open = False
        self._distrusted = False  # the server has refused our time: only the server can take that back
        self._probe_due_ns = 0
        self._waits = Backoff()

    def wait_s(self, now_ns: int) -> float:
        """Seconds until it is to be asked again; 0 when it is open."""
        if self._open or (not self._distrusted and self._synchronised()):
            return self._let_through()
        if now_ns >= self._probe_due_ns:
            self._probe_due_ns = now_ns + int(PROBE_EVERY_S * _NS)
            date_ns, cause = self._ask()
            if date_ns is not None and abs(self._skew_s(date_ns)) <= MAX_SKEW_S:
                return self._let_through()
            self._say(now_ns, date_ns, cause)
        until_probe_s = (self._probe_due_ns - now_ns) / _NS
        return max(0.01, until_probe_s if self._distrusted else min(LOOK_EVERY_S, until_probe_s))

    def refused(self, error: StoreError, now_ns: int) -> float:
        """The server did not accept our time: wait for the clock; seconds."""
        self._open, self._distrusted = False, True
        self._probe_due_ns = now_ns + int(PROBE_EVERY_S * _NS)
        self._say(now_ns, error.server_date_ns, str(error))
        return PROBE_EVERY_S

    def _let_through(self) -> float:
        self._open, self._distrusted = True, False
        if failures := self._waits.worked():
            log.info(event("recovered", what="clock", failures=failures))
        return 0.0

    def _ask(self) -> tuple[int | None, str]:
        try:
            return self._server_date_ns(), "not synchronised"
        except StoreError as error:
            return error.server_date_ns, str(error)

    def _skew_s(self, date_ns: int) -> float:
        return (self._wall_ns() - date_ns) / _NS

    def _say(self, now_ns: int, date_ns: int | None, cause: str) -> None:
        if self._waits.failed(now_ns, PROBE_EVERY_S):
            skew = "unknown" if date_ns is None else f"{self._skew_s(date_ns):.0f}"
            what = event("uploads wait for the clock", skew_s=skew, cause=cause, retry_in_s=PROBE_EVERY_S)
            log.log(logging.WARNING, what)
