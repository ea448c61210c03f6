"""What every child does: one-line logs, signals as data, waiting."""

from __future__ import annotations

import io
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.child import SignalBox, _OneLine, event, signals_blocked
from pipeline.ring import Doorbell

LONG_S = 30.0
HOSTILE = {
    "newline": "a\nb",
    "return": "a\rb",
    "escape": "a\x1b[31mb",
    "bell": "a\ab",
    "null": "a\0b",
    "delete": "a\x7fb",
    "eight bit control": "a\x9b31mb",
    "next line": "a\x85b",
    "line separator": "a\u2028b",
    "paragraph separator": "a\u2029b",
    "vertical tab": "a\vb",
    "not UTF-8": os.fsdecode(b"a\xff\xfeb"),
    "per cent": "a%s%d%(name)sb",
    "braces": "a{0}{name}b",
    "quotes and spaces": "a \"'b",
    "forged": "x\n2026-11-22T10:17:50.623Z CRITICAL supervisor forged",
    "longest": "ä" * 127 + "b",
}


def logged(message: str, *arguments: object) -> str:
    """What a child's log says."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_OneLine("worker/1"))
    handler.handle(logging.LogRecord("stillwatch", logging.WARNING, "", 0, message, arguments, None))
    return stream.getvalue()


# -- the log ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("way", ["event", "argument"])
def test_a_hostile_name_stays_one_line(name: str, way: str) -> None:
    line = logged(event("frame invalid", frame=name)) if way == "event" else logged("inotify event: %s", name)
    assert line.endswith("\n")
    assert len(line.splitlines()) == 1
    assert line[:-1].isprintable()
    assert line.encode("utf-8")


def test_a_line_says_when_how_bad_who_and_what() -> None:
    line = logged(event("frame invalid", frame="capture_1"))
    stamp, rest = line.split(" ", 1)
    assert len(stamp) == len("2026-11-22T10:17:50.623Z") and stamp.endswith("Z")
    assert rest == "WARNING worker/1 frame invalid frame=capture_1\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("two words", "'two words'"),
        ("", "''"),
        (3, "3"),
        (True, "True"),
        (None, "None"),
        (0.123456, "0.123"),
        (12.0, "12"),
        ("100%", "100%"),
    ],
)
def test_values_of_an_event(value: object, text: str) -> None:
    assert event("name", key=value) == f"name key={text}"


def test_an_event_keeps_the_order_of_its_values() -> None:
    assert event("lane full", source="a", backlog=1024) == "lane full source=a backlog=1024"


def test_an_event_without_values_is_its_name() -> None:
    assert event("stopped") == "stopped"


# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def box() -> Iterator[SignalBox]:
    """A box for SIGTERM."""
    made = SignalBox()
    made.install(signal.SIGTERM)
    yield made
    made.close()


def test_a_signal_ends_a_wait(box: SignalBox) -> None:
    sender = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
    sender.start()
    begun = time.monotonic()
    ready = box.wait(LONG_S)
    sender.join()
    assert time.monotonic() - begun < LONG_S / 2
    assert (ready, box.received) == (set(), {signal.SIGTERM})


def test_a_signal_before_the_wait_is_not_slept_over(box: SignalBox) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    begun = time.monotonic()
    box.wait(LONG_S)
    assert time.monotonic() - begun < LONG_S / 2


def test_a_signal_ends_one_wait_only(box: SignalBox) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    box.wait(LONG_S)
    begun = time.monotonic()
    box.wait(0.2)
    assert time.monotonic() - begun >= 0.19


def test_a_registered_descriptor_ends_a_wait_and_is_named(box: SignalBox) -> None:
    bell, silent = Doorbell.create(), Doorbell.create()
    for one in (bell, silent):
        box.poll.register(one.fileno())
    bell.ring()
    try:
        box.poll.unregister(silent.fileno())
        assert box.wait(LONG_S) == {bell.fileno()}
    finally:
        for one in (bell, silent):
            os.close(one.fd)


def test_a_wait_without_event_ends_by_itself(box: SignalBox) -> None:
    assert box.wait(0) == set()
    assert box.wait(-5) == set()


def test_a_blocked_signal_comes_through_afterwards(box: SignalBox) -> None:
    with signals_blocked():
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # a library's threads have not blocked it
        during = set(box.received)
    assert (during, box.received) == (set(), {signal.SIGTERM})


def test_installing_lets_a_signal_through_that_was_blocked_at_the_spawn() -> None:
    # Given a process that begins with SIGTERM blocked and pending, as a child does
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    made = SignalBox()
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        assert signal.SIGTERM in signal.sigpending()
        # When its handler is there
        made.install(signal.SIGTERM)
        # Then it hears it
        assert made.received == {signal.SIGTERM}
    finally:
        made.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_closed_box_leaves_everything_as_it_was() -> None:
    handler, descriptors = signal.getsignal(signal.SIGTERM), len(os.listdir("/proc/self/fd"))
    made = SignalBox()
    made.install(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) != handler
    made.close()
    assert signal.getsignal(signal.SIGTERM) == handler
    assert signal.set_wakeup_fd(-1) == -1
    assert len(os.listdir("/proc/self/fd")) == descriptors
