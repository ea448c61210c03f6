"""Tells systemd how the service is (sd_notify): one datagram to the socket that NOTIFY_SOCKET names, or nothing.

A notification never blocks: a receiver that does not read loses what it would not take, and is asked again with the
next one. READY and STOPPING alone are worth a short wait.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

PATIENCE_S = 1.0  # for READY and STOPPING
NAMES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")  # not for the children: they are not the main process


class Systemd:
    """The service manager, if there is one: all methods do nothing where NOTIFY_SOCKET is not set."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(environment) if self._address else None

    def ready(self, status: str) -> bool:
        """The service works from now on."""
        return self._send(f"READY=1\nSTATUS={status}", PATIENCE_S)

    def stopping(self) -> bool:
        """The service has begun to stop."""
        return self._send("STOPPING=1\nSTATUS=stopping", PATIENCE_S)

    def status(self, text: str) -> bool:
        """What `systemctl status` shows in its own line."""
        return self._send(f"STATUS={text}", 0.0)

    def alive(self) -> bool:
        """Reset the watchdog."""
        return self._send("WATCHDOG=1", 0.0)

    def _send(self, text: str, patience_s: float) -> bool:
        """Whether it was taken."""
        if not self._address:
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(patience_s)
            sender.sendto(text.encode(), address)
            return True
        return False


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """The time within which systemd wants to hear from this process; None if it does not."""
    asked = environment.get("WATCHDOG_USEC", "")
    for_us = environment.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
    return int(asked) / 1e6 if asked.isdigit() and int(asked) > 0 and for_us else None
