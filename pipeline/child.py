"""What every child does first and in each turn: title, core, signals, logging, heartbeat, waiting.

A child is started by exec as `python -m pipeline.child FD`; FD is a memfd with its Handover. It dies with its parent
(PR_SET_PDEATHSIG), stops when it gets SIGTERM, and shows that it lives by stamping its row of the board from its own
work loop: a helper thread would go on beating beside a stuck one.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import logging
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import msgspec
import setproctitle

from pipeline.board import Board, ChildRow
from pipeline.incidents import Incident
from pipeline.model import Exit, StillwatchError
from pipeline.ring import Doorbell, Ring
from pipeline.settings import Settings

HEARTBEAT_S = 5.0
"""A child wakes at least this often. Seven idle children make 1.4 wake-ups a second."""

HANDLED_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
SLICE_NS = 100_000  # the shortest the kernel grants
_PR_SET_PDEATHSIG = 1
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "armv7l": 380}
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")  # size, policy, flags, nice, priority, runtime, deadline, period
_CONTROL = {code: ascii(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}

_libc = ctypes.CDLL(None, use_errno=True)

log = logging.getLogger("stillwatch")


class Spec(msgspec.Struct, frozen=True):
    """The recipe of a child."""

    name: str  # role or role/n, as in logs and titles
    entry: str  # "package.module:function", imported inside the child
    row: int  # its row of the board
    index: int = 0  # n
    cpu: int | None = None  # the core to pin it to
    stop_order: int = 0  # children stop in ascending order: by data flow
    stop_s: float = 1.0  # how long it may take to stop before it is killed
    hang_s: float | None = None  # in place of the settings' limit, for a child that waits for slow disks


class Handover(msgspec.Struct, frozen=True):
    """All that a child is given. Never on its command line, where everybody could read it."""

    spec: Spec
    settings: Settings
    ring_fd: int
    board_fd: int
    bell_fd: int  # the supervisor's doorbell
    doorbell_fds: tuple[int, ...]  # one per worker
    parent_pid: int
    keeper_fd: int = -1  # the uploader's doorbell: something has been held
    resumed: tuple[Incident, ...] = ()  # incidents that an earlier run left open


class Child:
    """A running child: what it was given, and how it waits."""

    def __init__(self, handover: Handover) -> None:
        self.spec = handover.spec
        self.resumed = handover.resumed
        self.settings = handover.settings
        self.heartbeat_s = min(HEARTBEAT_S, handover.settings.hang_s / 2)  # or an idle child would pass for hung
        self.ring = Ring(handover.ring_fd)
        self.board = Board(handover.board_fd)
        self.row: ChildRow = self.board.memory.children[self.spec.row]
        self.doorbells = [Doorbell(fd) for fd in handover.doorbell_fds]
        self.bell = Doorbell(handover.bell_fd)
        self.keeper_bell = Doorbell(handover.keeper_fd)
        for ignored in (
            signal.SIGINT,
            signal.SIGHUP,
        ):  # a terminal sends these to everybody: the parent decides
            signal.signal(ignored, signal.SIG_IGN)
        self.signals = SignalBox()
        self.signals.install(signal.SIGTERM)

    @property
    def stopping(self) -> bool:
        """Whether the supervisor has asked this child to stop."""
        return signal.SIGTERM in self.signals.received

    def beat(self, now_ns: int) -> None:
        """Stamp the heartbeat; the first one tells the supervisor that this child is ready."""
        first = not self.row.heartbeat_ns
        self.row.heartbeat_ns = now_ns
        if first:
            self.bell.ring()

    def pin(self) -> None:
        """Pin this process to its core, believe only what the kernel says afterwards, and set the title."""
        wanted, title = self.spec.cpu, f"stillwatch: {self.spec.name}"
        self.row.cpu = -1
        if wanted is not None:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, {wanted})
            if os.sched_getaffinity(0) == {wanted}:
                self.row.cpu, title = wanted, f"{title} cpu={wanted}"
            else:
                log.warning(event("core absent, running unpinned", cpu=wanted))
        setproctitle.setproctitle(title)


class SignalBox:
    """Signals as data: handlers only record and wake the loop; the loop acts and logs."""

    def __init__(self) -> None:
        self.received: set[int] = set()
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.poll = select.poll()
        self.poll.register(self._read_fd, select.POLLIN)
        self._before: dict[int, Any] = {}
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)

    def install(self, *numbers: int) -> None:
        """Record these from now on, and let those that were blocked around the spawn come through."""
        for number in numbers:
            self._before[number] = signal.signal(number, self._record)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)

    def close(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(self._read_fd)
        os.close(self._write_fd)

    def wait(self, timeout_s: float) -> set[int]:
        """Wait for a registered descriptor or a signal; the ready descriptors, without the signals' own."""
        ready = {fd for fd, _ in self.poll.poll(max(0, timeout_s * 1000))}
        if self._read_fd in ready:
            ready.discard(self._read_fd)
            with contextlib.suppress(BlockingIOError):
                os.read(self._read_fd, 512)
        return ready

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self.received.add(number)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the handled signals around a spawn, so that no child can die before its handlers exist."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def event(name: str, **values: object) -> str:
    """A log line's text: `name key=value ...`."""
    return " ".join([name, *(f"{key}={_plain(value)}" for key, value in values.items())])


def _plain(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return repr(text) if " " in text or not text else text


class _OneLine(logging.Formatter):
    """`2026-11-22T10:17:50.623Z INFO worker/1 event key=value`; control characters and bad bytes are escaped."""

    converter = staticmethod(time.gmtime)

    def __init__(self, name: str) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(who)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        self._name = name

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.who = getattr(record, "who", self._name)  # the supervisor reports in the name of others
        record.message = record.message.translate(_CONTROL).encode("utf-8", "backslashreplace").decode()
        return super().formatMessage(record)


def set_up_logging(name: str, level: str) -> None:
    """Log to standard error, which keeps its meaning even where a library's own noise is led elsewhere."""
    fd = os.dup(2)
    faulthandler.enable(fd, all_threads=False)
    handler = logging.StreamHandler(os.fdopen(fd, "w", encoding="utf-8", buffering=1))
    handler.setFormatter(_OneLine(name))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(level)


def trim_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc keeps it after a large listing)."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim:
        trim(0)


def ask_for_short_slices() -> None:
    """Ask the scheduler to let this process run soon after a wake-up, for short turns: not more CPU, only sooner.

    A frame takes a millisecond, FFmpeg's turn on the core three. Linux 6.12 and later (EEVDF) take `sched_runtime` of
    an ordinary process as the slice it wants; older kernels take no notice. See sched_setattr(2).
    """
    number = _SCHED_SETATTR.get(os.uname().machine)
    if number:
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.SCHED_OTHER, 0, nice, 0, SLICE_NS, 0, 0)
        _libc.syscall(number, 0, attributes, 0)


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it ended before the call above
        os._exit(Exit.FAILED)


def main(handover_fd: int) -> int:
    """The whole life of a child; returns its exit code."""
    with open(handover_fd, "rb") as file:
        handover = msgspec.json.decode(file.read(), type=Handover)
    die_with_parent(handover.parent_pid)
    os.umask(0o022)  # sidecars are for everybody who may read the frames
    set_up_logging(handover.spec.name, handover.settings.log_level)
    child = Child(handover)
    child.pin()
    ask_for_short_slices()
    module, _, function = handover.spec.entry.partition(":")
    try:
        run: Callable[[Child], Any] = getattr(importlib.import_module(module), function)
        code = int(run(child) or Exit.OK)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not hit the interpreter's end
        return code
    except StillwatchError as error:
        log.error(str(error))
        return error.exit_code
    except Exception:
        log.exception("stopped by a fault of ours")
        return Exit.SOFTWARE


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
