"""A proxy with TLS before a real S3 server: it hands requests on, or does one of the faults instead, and counts both.

What it hands on, it does not change, the Host header least of all: that is part of the signature. So the signatures are
made for the proxy's port, the server checks them as if it had been called there, and what is stored in the end is in a
real server.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

from pipeline.store import R2Settings
from tests.s3_servers import Act, Certificate, Request, ScriptedServer, answer, hang, reset

SKEW_S = 7200.0
UPSTREAM_S = 20.0
_HOP = {"connection", "content-length", "keep-alive", "transfer-encoding"}
_BURST = ((503, "SlowDown"), (503, "ServiceUnavailable"), (429, "TooManyRequests"), (500, "InternalError"))


class Proxy:
    """Stands before `upstream`. `choose` names the fault for each request, empty for none."""

    def __init__(self, certificate: Certificate, upstream: R2Settings) -> None:
        address = urlsplit(upstream.endpoint)
        self._host, self._port = address.hostname or "", address.port or 443
        self._context = ssl.create_default_context(cafile=upstream.ca_bundle)
        self._burst = itertools.cycle(_BURST)
        self._faults: Mapping[str, Act] = {
            "burst": self._refuse,
            "hang": hang,
            "reset": reset,
            "half": self._half,
            "skew": _skewed,
            "bucket": _bucketless,
        }
        self.injected: Counter[str] = Counter()
        self.fault = ""
        self.choose: Callable[[Request], str] = lambda _: self.fault
        self._server = ScriptedServer(certificate, [self._act])

    @property
    def settings(self) -> R2Settings:
        """How to reach it."""
        return self._server.settings

    @property
    def requests(self) -> list[Request]:
        """All that came, handed on or not."""
        return self._server.requests

    @contextlib.contextmanager
    def doing(self, fault: str) -> Iterator[None]:
        """Every request meets this fault meanwhile, and one does at least."""
        before, self.fault = self.injected[fault], fault
        try:
            yield
        finally:
            self.fault = ""
        assert self.injected[fault] > before, f"no request has met {fault}"

    def close(self) -> None:
        """End all connections and threads."""
        self._server.close()

    def _act(self, server: ScriptedServer, connection: ssl.SSLSocket) -> None:
        request = server.requests[-1]  # there is one sender: nobody else has called meanwhile
        fault = self.choose(request)
        self.injected[fault] += 1
        if fault:
            self._faults[fault](server, connection)
        else:
            self._forward(request, connection)

    def _forward(self, request: Request, connection: ssl.SSLSocket) -> None:
        with contextlib.closing(
            http.client.HTTPSConnection(self._host, self._port, timeout=UPSTREAM_S, context=self._context)
        ) as upstream:
            upstream.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(request.body)
            connection.sendall(_relayed(request, upstream.getresponse()))

    def _half(self, server: ScriptedServer, connection: ssl.SSLSocket) -> None:
        """The connection breaks in the middle of the body, on both sides."""
        request = server.requests[-1]
        lines = [f"{request.method} {request.path} HTTP/1.1", *(f"{k}: {v}" for k, v in request.headers.items())]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        raw = socket.create_connection((self._host, self._port), UPSTREAM_S)
        with self._context.wrap_socket(raw, server_hostname=self._host) as upstream:
            upstream.sendall(head + request.body[: len(request.body) // 2])
        connection.shutdown(socket.SHUT_RDWR)

    def _refuse(self, server: ScriptedServer, connection: ssl.SSLSocket) -> None:
        answer(*next(self._burst), "as scripted")(server, connection)


@contextlib.contextmanager
def proxy_to(upstream: R2Settings, certificate: Certificate) -> Iterator[Proxy]:
    """A proxy before a server."""
    proxy = Proxy(certificate, upstream)
    try:
        yield proxy
    finally:
        proxy.close()


def every(count: int, *faults: str) -> Callable[[Request], str]:
    """For `Proxy.choose`: every `count`-th PUT meets one of these, in turn."""
    turns, puts = itertools.cycle(faults), itertools.count(1)
    return lambda request: next(turns) if request.method == "PUT" and next(puts) % count == 0 else ""


def _relayed(request: Request, found: http.client.HTTPResponse) -> bytes:
    body = found.read()
    size = found.getheader("Content-Length", "0") if request.method == "HEAD" else str(len(body))
    headers = [(name, value) for name, value in found.getheaders() if name.lower() not in _HOP]
    lines = [f"{name}: {value}" for name, value in [*headers, ("Content-Length", size)]]
    return "\r\n".join([f"HTTP/1.1 {found.status} {found.reason}", *lines, "", ""]).encode("latin-1") + body


def _skewed(server: ScriptedServer, connection: ssl.SSLSocket) -> None:
    """As a server answers whose clock is two hours behind ours."""
    told = "The difference between the request time and the server's time is too large."
    _refuse_request(server, connection, 403, "RequestTimeTooSkewed", told, time.time() - SKEW_S)


def _bucketless(server: ScriptedServer, connection: ssl.SSLSocket) -> None:
    _refuse_request(server, connection, 404, "NoSuchBucket", "The specified bucket does not exist", time.time())


def _refuse_request(
    server: ScriptedServer, connection: ssl.SSLSocket, status: int, code: str, message: str, date_s: float
) -> None:
    """The answer to a HEAD has no body, and so no code."""
    head = server.requests[-1].method == "HEAD"
    answer(status, code, message, body=b"" if head else None, date_s=date_s)(server, connection)
