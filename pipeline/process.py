"""One child as its supervisor sees it: the process, how it died, and the history that decides when the next may start.

Also what a child is started with: by exec, its Handover in a memfd, the secrets only if it is trusted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from pipeline import notify
from pipeline.board import Board, exit_name
from pipeline.child import SECRET, Handover, Spec, event, log, signals_blocked
from pipeline.model import ONE_THREAD, Exit, State
from pipeline.settings import Settings

PROGRESS_S = 2.0  # a child that has lived this long after its first heartbeat has made progress
OWN_FAULT_SIGNALS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
_ROOT = str(Path(__file__).resolve().parent.parent)
_NS = 1_000_000_000


class Death(msgspec.Struct, frozen=True):
    """How a child ended."""

    spec: Spec
    pid: int
    exit_code: int | None  # None when a signal ended it
    signal: int | None
    hung: bool  # the supervisor itself killed it for a stale stamp
    busy: tuple[int, int] | None  # lane and slot index of the frame it was on

    @property
    def blames_frame(self) -> bool:
        """Whether the frame in hand is a suspect: a crash or a hang on it, never a kill from outside."""
        crashed = self.signal in OWN_FAULT_SIGNALS or self.exit_code == Exit.SOFTWARE
        return self.busy is not None and (self.hung or crashed)

    def __str__(self) -> str:
        if self.signal is not None:
            return signal.Signals(self.signal).name
        return exit_name(self.exit_code or 0)


class Process:
    """One spec's current process, and the history that decides when the next one may start."""

    def __init__(self, spec: Spec, board: Board) -> None:
        self.spec = spec
        self.row = board.memory.children[spec.row]
        self.popen: subprocess.Popen[bytes] | None = None
        self.pidfd = -1
        self.failed_starts = 0  # before first progress, whoever ended them: for the back-off
        self.own_failures = 0  # of these, by their own doing: for giving up
        self.start_at_ns = 0
        self.running_since_ns = 0
        self.stop_by_ns = 0  # asked to stop so that another takes its place
        self.retired = False  # none will
        self.hung = False
        self.hang_ns = 0  # how old its stamps may be: what it was told when it started

    @property
    def state(self) -> State:
        return State(self.row.state)

    def set_state(self, state: State) -> None:
        if state is not self.state:
            log.debug(event("child state", child=self.spec.name, was=self.state.name, now=state.name))
            self.row.state = state

    def made_progress(self, now_ns: int) -> bool:
        since_ns = self.running_since_ns
        return self.row.turns > 0 or (since_ns > 0 and now_ns - since_ns > PROGRESS_S * _NS)


def execute(handover: Handover, fds: tuple[int, ...]) -> tuple[subprocess.Popen[bytes], int]:
    """Start a child, what it is given in a memfd; the process and its pidfd. OSError leaves nothing behind."""
    payload = os.memfd_create("stillwatch-handover")
    try:
        os.write(payload, msgspec.json.encode(handover))
        os.lseek(payload, 0, os.SEEK_SET)
        with signals_blocked():
            popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.child", str(payload)],
                pass_fds=(payload, *fds),
                stdin=subprocess.DEVNULL,
                env=environment_of(handover.spec),
            )
    finally:
        os.close(payload)
    try:
        return popen, os.pidfd_open(popen.pid)
    except OSError:
        popen.kill()
        popen.wait()
        raise


def environment_of(spec: Spec) -> dict[str, str]:
    """What a child finds in its environment: ours, without the secrets that are not for it."""
    given = {name: value for name, value in os.environ.items() if spec.trusted or not name.startswith(SECRET)}
    for name in notify.NAMES:
        given.pop(name, None)
    return {**given, **ONE_THREAD, "PYTHONPATH": _ROOT}


def settings_of(spec: Spec, settings: Settings) -> Settings:
    """The settings without the secrets that are not for this child."""
    if not spec.captures:
        blank = (s.capture and replace(s.capture, input="", audio_input="") for s in settings.source)
        sources = (replace(s, capture=capture) for s, capture in zip(settings.source, blank, strict=True))
        settings = replace(settings, source=tuple(sources))
    return settings if spec.trusted else replace(settings, webhook_url="")


class Timer:
    """Calls `action` every `every_s` seconds of monotonic time, the first time one period after the start."""

    def __init__(self, every_s: float, action: Callable[[int], None]) -> None:
        self._every_ns = int(every_s * _NS)
        self._action = action
        self.due_ns = time.monotonic_ns() + self._every_ns

    def renew(self, every_s: float) -> None:
        """Another period, if it is another: it begins now."""
        every_ns = int(every_s * _NS)
        if every_ns != self._every_ns:
            self._every_ns, self.due_ns = every_ns, time.monotonic_ns() + every_ns

    def step(self, now_ns: int) -> None:
        if now_ns >= self.due_ns:
            self.due_ns = now_ns + self._every_ns
            self._action(now_ns)
