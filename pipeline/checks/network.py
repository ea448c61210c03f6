"""Checks of what is elsewhere: the bucket, by one probe object, and the webhook. One try each, never a loop."""

from __future__ import annotations

import importlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import msgspec

from pipeline.checks.checkup import AS_ROOT, Finding, fail, ok, skipped, unknown, warn
from pipeline.checks.subject import Subject
from pipeline.model import ConfigError
from pipeline.store import Kind, R2Settings, StoreError, r2_settings

CONNECT_S, READ_S = 4.0, 8.0  # less patience than the service has: somebody waits
SKEW_S = 60.0  # R2 takes up to 15 minutes; a clock that is kept right is not off by one
_NS = 10**9
_WAITS = "evidence waits in the spool meanwhile, as long as that has room"
_OF_THE_STORE = {
    Kind.RETRY: f"R2 cannot be reached; {_WAITS}",
    Kind.PAUSE: f"R2 refuses; {_WAITS}",
    Kind.CLOCK: f"R2 refuses whoever has another time; {_WAITS}",
    Kind.DEAD_LETTER: "R2 does not take what is sent",
}


def r2(subject: Subject, *, online: bool = True) -> list[Finding]:
    """Put, head, get, compare and delete a probe object; and how far this clock is from the server's."""
    if path := subject.closed_secret():
        return [unknown("r2", f"{path} may not be read by you", AS_ROOT)]
    try:
        settings = r2_settings(subject.environment, subject.credentials_dir)
    except ConfigError:
        return [skipped("r2", "its settings are wrong: see configuration")]
    if settings is None:
        return [skipped("r2", f"not configured: evidence stays in {subject.settings.state_dir}/store")]
    if not online:
        return [skipped("r2", "left out (--no-network)")]
    with _opened(settings) as store:
        return list(_probe(store, f"doctor/{subject.settings.host_name()}/probe"))


@contextmanager
def _opened(settings: R2Settings) -> Iterator[Any]:
    store = importlib.import_module("pipeline.r2").R2Store(settings, connect_s=CONNECT_S, read_s=READ_S)  # 35 MB
    try:
        yield store
    finally:
        store.close()


def _probe(store: Any, key: str) -> Iterator[Finding]:
    started = time.monotonic()
    try:
        wrong = _round_trip(store, key)
    except StoreError as error:
        yield fail("r2", f"{store.describe()}: {error.op}: {error.cause}", _OF_THE_STORE[error.kind], error.hint)
        if error.server_date_ns is not None:
            yield _skew(error.server_date_ns)
        return
    took_s = time.monotonic() - started
    if wrong:
        yield fail("r2", f"{store.describe()}: {wrong}", "evidence would not be what was sent", "report it to R2")
    else:
        yield ok("r2", f"{store.describe()}: put, head, get and delete of a probe in {took_s:.1f} s")
    with suppress(StoreError):  # the probe's own refusal has been told
        if (date_ns := store.server_date_ns()) is not None:
            yield _skew(date_ns)


def _round_trip(store: Any, key: str) -> str:
    """What came back otherwise than it was sent; empty for nothing. The probe is not left behind."""
    content = os.urandom(1024)
    store.put(key, content, "application/octet-stream")
    try:
        if store.head(key) != len(content):
            return "head told another size"
        if store.get(key) != content:
            return "get returned other bytes"
    finally:
        store.delete(key)
    return "it is still there after a delete" if store.head(key) is not None else ""


def _skew(date_ns: int) -> Finding:
    """`Date` has whole seconds, and the answer was on its way."""
    ahead_s = (time.time_ns() - date_ns) / _NS
    text = f"this clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the server's"
    if abs(ahead_s) > SKEW_S:
        why = "R2 refuses uploads from 15 minutes on, and incidents get wrong times"
        return warn("r2 clock", text, why, "sudo timedatectl set-ntp true")
    return ok("r2 clock", text)


def webhook(subject: Subject, *, online: bool = True, post: bool = False) -> Finding:
    """Whether the webhook's host has an address; if asked for, whether it takes a POST. Never names more than the host:
    the rest of a URL often is a secret."""
    name, url = "webhook", subject.settings.webhook_url
    if not url:
        return skipped(name, "not configured")
    if not online:
        return skipped(name, "left out (--no-network)")
    host = urlsplit(url).hostname or ""
    try:
        addresses = socket.getaddrinfo(host, urlsplit(url).port or 443, type=socket.SOCK_STREAM)
    except OSError as error:
        why = "nobody is told of incidents; notices wait in the spool"
        return fail(name, f"{host}: {error.strerror or error}", why, f"getent hosts {host}; correct webhook_url or DNS")
    if not post:
        return ok(name, f"{host} is {addresses[0][4][0]}; nothing was sent (--probe-webhook does)")
    return _post(name, url, host)


def _post(name: str, url: str, host: str) -> Finding:
    body = msgspec.json.encode({"schema": 1, "state": "probe", "text": "stillwatch doctor asks whether you hear it"})
    try:
        importlib.import_module("pipeline.webhook").Webhook(url).post(body, f"doctor-{time.time_ns()}")
    except StoreError as error:
        return fail(name, f"{host}: {error.cause}", "nobody is told of incidents", error.hint)
    return ok(name, f"{host} has taken a probe")
