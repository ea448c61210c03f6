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
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import msgspec
import setproctitle

from pipeline.board import Board, ChildRow
from pipeline.incidents import Incident
from pipeline.logsink import LogSink
from pipeline.model import ConfigError, Exit, StillwatchError, describe
from pipeline.news import News
from pipeline.ring import Doorbell, Ring
from pipeline.settings import Settings

HEARTBEAT_S = 5.0
"""A child wakes at least this often. Seven idle children make 1.4 wake-ups a second."""

SECRET = ("CLOUDFLARE_R2_", "CREDENTIALS_DIRECTORY", "STILLWATCH_WEBHOOK_URL")
"""What names of environment variables begin with that only the child that needs them is given: whoever may read
/proc/PID/environ of one that decodes foreign pictures learns nothing."""

END_SIGNALS = {signal.SIGTERM, signal.SIGINT}
CONTROL_SIGNALS = {signal.SIGHUP, signal.SIGUSR1, signal.SIGTTIN, signal.SIGTTOU}  # what they ask for: see `service`
HANDLED_SIGNALS = END_SIGNALS | CONTROL_SIGNALS
SLICE_NS = 100_000  # the shortest the kernel grants
_PR_SET_PDEATHSIG = 1
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "armv7l": 380}
_RESET_ON_FORK = 1  # FFmpeg, which a child may start, is not to be switched every 0.1 ms
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
    trusted: bool = False  # is given what is SECRET
    captures: bool = False  # is given what is captured: a camera's URL may hold a password
    informed: bool = False  # is told of new settings and goes over to them, instead of being replaced
    vital: bool = True  # the watchdog stops when it hangs
    nice: int = 0
    oom_score_adj: int = 0  # whom the kernel takes first when memory is short: the highest


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
    lanes: dict[str, int] = {}  # which lane each source has, by name
    version: int = 0  # of all this: it grows with each change of settings
    news_fds: tuple[int, int] | None = None  # where the next one is told


class Child:
    """A running child: what it was given, and how it waits."""

    def __init__(self, handover: Handover, sink: LogSink) -> None:
        self.spec = handover.spec
        self._sink = sink
        self.resumed = handover.resumed
        self.lanes = handover.lanes
        self._version = handover.version
        self._follow(handover.settings)
        self.ring = Ring(handover.ring_fd)
        self.board = Board(handover.board_fd)
        self.row: ChildRow = self.board.memory.children[self.spec.row]
        self.doorbells = [Doorbell(fd) for fd in handover.doorbell_fds]
        self.bell = Doorbell(handover.bell_fd)
        self.keeper_bell = Doorbell(handover.keeper_fd)
        for ignored in (signal.SIGINT, *CONTROL_SIGNALS):  # sent to the whole group: the parent decides
            signal.signal(ignored, signal.SIG_IGN)
        self.signals = SignalBox()
        self.signals.install(signal.SIGTERM)
        self._news = News(*handover.news_fds) if handover.news_fds else None
        if self._news:
            self.signals.poll.register(self._news.fileno(), select.POLLIN)

    @property
    def stopping(self) -> bool:
        """Whether the supervisor has asked this child to stop."""
        return signal.SIGTERM in self.signals.received

    def take_news(self) -> bool:
        """Whether `settings` and `lanes` are others from now on; say `confirm` when they are gone by."""
        text = self._news.hear() if self._news else None
        handover = msgspec.json.decode(text, type=Handover) if text else None
        if handover is None or handover.version <= self._version:  # it was started with these
            return False
        self._version, self.lanes = handover.version, handover.lanes
        self._follow(handover.settings)
        log.setLevel(handover.settings.log_level)
        return True

    def confirm(self) -> None:
        """This child goes by the settings that it was given last."""
        self.row.settings_version = self._version
        self.bell.ring()

    def _follow(self, settings: Settings) -> None:
        self.settings = settings
        self.heartbeat_s = min(HEARTBEAT_S, settings.hang_s / 2)  # or an idle child would pass for hung

    def beat(self, now_ns: int) -> None:
        """Stamp the heartbeat; the first one tells the supervisor that this child is ready."""
        first = not self.row.heartbeat_ns
        self.row.heartbeat_ns = now_ns
        self.row.log_dropped = self._sink.dropped
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

    def take_place(self) -> None:
        """Step back behind others, as the spec says. Never forward: that takes privileges."""
        if self.spec.nice > 0:
            os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), self.spec.nice))
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
            if int(file.read()) < self.spec.oom_score_adj:
                file.write(str(self.spec.oom_score_adj))


class SignalBox:
    """Signals as data: handlers only record and wake the loop; the loop acts and logs."""

    def __init__(self) -> None:
        self.received: set[int] = set()
        self.controls: deque[int] = deque()  # CONTROL_SIGNALS, each as often as it came
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
        if number in CONTROL_SIGNALS:
            self.controls.append(number)
        else:
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


def set_up_logging(name: str, level: str, path: str = "") -> LogSink:
    """Log to standard error, which keeps its meaning even where a library's own noise is led elsewhere, or to `path`.

    Raises ConfigError when the file cannot be written."""
    fd = os.dup(2)
    faulthandler.enable(fd, all_threads=False)
    try:
        sink = LogSink(fd, path)
    except OSError as error:
        raise ConfigError(f"log_file: {path}: {describe(error)}; name a file that can be written") from error
    sink.setFormatter(_OneLine(name))
    log.handlers[:] = [sink]
    log.propagate = False
    log.setLevel(level)
    return sink


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
        attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.SCHED_OTHER, _RESET_ON_FORK, nice, 0, SLICE_NS, 0, 0)
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
    sink = set_up_logging(handover.spec.name, handover.settings.log_level, handover.settings.log_file)
    child = Child(handover, sink)
    child.pin()
    child.take_place()
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
