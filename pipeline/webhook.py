"""One POST of an incident's JSON to somebody who wants to know. Network I/O and nothing else.

Failures are StoreErrors, classed like those of the store. The URL often holds a secret (a token in its path), so only
its host is ever named. The receiver sees an incident at least once: `Idempotency-Key` tells a repeat from news.
"""

from __future__ import annotations

import base64
import http.client
import threading
from contextlib import suppress
from socket import SHUT_RDWR
from urllib.parse import unquote, urlsplit

from pipeline.model import ConfigError
from pipeline.settings import is_http_url
from pipeline.store import Kind, StoreError, one_line

TIMEOUT_S = 5.0  # per address, and of silence
DEADLINE_S = 20.0  # for all of it: a server may also dribble
_LATER = (408, 425, 429)
_THIS_ONE = (400, 409, 413, 415, 422)


class Webhook:
    """Where incidents are told."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S, deadline_s: float = DEADLINE_S) -> None:
        if not is_http_url(url):
            raise ConfigError("webhook_url: not a URL; write it like https://host/path")
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._tls = parts.scheme == "https"
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Content-Type": "application/json", "User-Agent": "stillwatch", "Connection": "close"}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        self._timeout_s, self._deadline_s = timeout_s, deadline_s

    def post(self, body: bytes, idempotency_key: str) -> None:
        """Tell it once. Raises StoreError."""
        connection_type = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = connection_type(self._host, self._port, timeout=self._timeout_s)
        alarm = threading.Timer(self._deadline_s, _cut, (connection,))
        alarm.daemon = True
        alarm.start()
        cause = ""
        try:
            connection.request("POST", self._target, body, {**self._headers, "Idempotency-Key": idempotency_key})
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException, ValueError) as error:
            status, cause = 0, getattr(error, "strerror", None) or type(error).__name__
        finally:
            alarm.cancel()
            connection.close()
        if not 200 <= status < 300:  # outside the handler: a chained error would print the request
            raise self._failure(status, cause)

    def _failure(self, status: int, cause: str) -> StoreError:
        if not status:
            kind, hint = Kind.RETRY, "check the network and webhook_url; try again later"
        elif status >= 500 or status in _LATER:
            kind, hint = Kind.RETRY, "try again later"
        elif status in _THIS_ONE:
            kind, hint = Kind.DEAD_LETTER, "the receiver never takes this one"
        else:
            kind, hint = Kind.PAUSE, "check webhook_url"
        return StoreError("post", one_line(self._host), cause or f"status {status}", hint, kind)


def _cut(connection: http.client.HTTPConnection) -> None:
    with suppress(OSError, AttributeError):  # not connected yet, or no longer
        connection.sock.shutdown(SHUT_RDWR)
