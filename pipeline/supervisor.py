"""Starts, watches, restarts and stops children given as specs. Knows no role by name, loads no pixels, no network.

    NEW -> STARTING -> RUNNING -> (dies) -> BACKOFF -> STARTING ...       a child that cannot start: FATAL, program ends
                          `-> STOPPING -> STOPPED

Death is an event: a pidfd per child is in the poll set. A hang is a stale stamp: the supervisor sleeps exactly until
the first stamp would be too old, so an idle system costs it one wake-up per heartbeat. Only this module sends signals
to children.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from pipeline.board import Board, exit_name
from pipeline.child import (
    HANDLED_SIGNALS,
    HEARTBEAT_S,
    Handover,
    SignalBox,
    Spec,
    event,
    log,
    signals_blocked,
)
from pipeline.model import Exit, State, describe
from pipeline.ring import Doorbell

START_S = 30.0  # to the first heartbeat: a Pi that starts four interpreters from a cold card takes about ten
PROGRESS_S = 2.0  # a child that has lived this long after its first heartbeat has made progress
BACKOFF_FIRST_S = 0.05
BACKOFF_CAP_S = 0.5  # low: the usual cause is a kill from outside, and frames are waiting
MAX_FAILED_STARTS = 5
_MENDS = {
    errno.EMFILE: "raise the limit of open files (ulimit -n, LimitNOFILE=)",
    errno.EAGAIN: "raise the limit of processes (ulimit -u, TasksMax=)",
    errno.ENOMEM: "free memory",
}
OVERSLEPT_S = 2.0  # the supervisor itself was held up: the host stalled, so nobody is blamed for a stale stamp
_NS = 1_000_000_000
_ROOT = str(Path(__file__).resolve().parent.parent)

OWN_FAULT_SIGNALS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


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


class _Process:
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
        self.hung = False

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


class Supervisor:
    """All children of one service. `step(now_ns)` is one turn; `run()` turns until a signal or a fatal child."""

    def __init__(
        self,
        specs: list[Spec],
        board: Board,
        bell: Doorbell,
        handover: Callable[[Spec], tuple[Handover, tuple[int, ...]]],
        *,
        hang_s: float,
        on_death: Callable[[Death], None] = lambda death: None,
        on_ready: Callable[[], None] = lambda: None,
        on_bell: Callable[[], None] = lambda: None,
        timers: tuple[Timer, ...] = (),
    ) -> None:
        self.board = board
        self.exit_code: int | None = None
        self._closing = False
        self.signals = SignalBox()
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self.signals.install(*(HANDLED_SIGNALS - {signal.SIGHUP} if nohup else HANDLED_SIGNALS))
        self._bell = bell
        self._handover = handover
        self._hang_ns = int(hang_s * _NS)
        self._on_death, self._on_ready, self._on_bell = on_death, on_ready, on_bell
        self._timers = timers
        self._processes = [_Process(spec, board) for spec in specs]
        self._due_ns = 0
        self._excused_until_ns = 0
        self.signals.poll.register(bell.fileno(), select.POLLIN)

    # -- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Turn until SIGTERM, SIGINT or SIGHUP, or until a child cannot start. Returns the exit code."""
        self.step(time.monotonic_ns())
        while not self.ended:
            self.wait()
            if not self.signals.received:  # a signal to the whole group ends the children too: that is no death
                self.step(time.monotonic_ns())
        return self.exit_code or Exit.OK

    @property
    def ended(self) -> bool:
        """Whether a signal has come, or a child cannot start."""
        return bool(self.signals.received) or self.exit_code is not None

    def wait(self, at_most_s: float = HEARTBEAT_S) -> None:
        """Sleep until something happens or is due."""
        now_ns = time.monotonic_ns()
        self._due_ns = min(self._next_due_ns(now_ns), now_ns + int(at_most_s * _NS))
        ready = self.signals.wait((self._due_ns - now_ns) / _NS)
        if self._bell.fileno() in ready:
            self._bell.clear()
            self._on_bell()

    def step(self, now_ns: int) -> None:
        """One turn: reap, check the stamps, start who is due, run the timers that are due."""
        if self._due_ns and now_ns - self._due_ns > OVERSLEPT_S * _NS:
            log.warning(event("host stalled, nobody is blamed", late_s=(now_ns - self._due_ns) / _NS))
            self._excused_until_ns = now_ns + self._hang_ns
        self._due_ns = 0
        for process in self._processes:
            self._reap(process, now_ns)
        for process in self._processes:
            self._check(process, now_ns)
        for process in self._processes:
            if process.popen is None and process.state in {State.NEW, State.BACKOFF} and now_ns >= process.start_at_ns:
                self._spawn(process, now_ns)
        self._announce_ready(now_ns)
        for timer in self._timers:
            timer.step(now_ns)

    def _next_due_ns(self, now_ns: int) -> int:
        due = [timer.due_ns for timer in self._timers]
        for process in self._processes:
            if process.state is State.BACKOFF:
                due.append(process.start_at_ns)
            elif process.popen is not None:
                due.append(max(self._deadline_ns(process), self._excused_until_ns) + _NS // 100)
        return min(due, default=now_ns + int(HEARTBEAT_S * _NS))

    # -- children -----------------------------------------------------------------------------------------------

    def _spawn(self, process: _Process, now_ns: int) -> None:
        row, spec = process.row, process.spec
        row.heartbeat_ns = row.busy_since_ns = row.turns = 0
        row.started_ns = now_ns
        process.hung, process.running_since_ns = False, 0
        try:
            process.popen, process.pidfd = self._exec(spec)
        except OSError as error:
            log.error(
                event("child not started", child=spec.name, cause=describe(error), mend=_MENDS.get(error.errno or 0))
            )
            process.failed_starts += 1
            if process.failed_starts >= MAX_FAILED_STARTS and not self.board.memory.ready_ns:
                self._give_up(process, Exit.OS_ERROR, describe(error))
            else:  # a running service waits for the system to recover
                self._schedule(process, now_ns)
            return
        self.signals.poll.register(process.pidfd, select.POLLIN)
        row.pid = process.popen.pid
        process.set_state(State.STARTING)

    def _exec(self, spec: Spec) -> tuple[subprocess.Popen[bytes], int]:
        """Start a child, what it is given in a memfd; the process and its pidfd. OSError leaves nothing behind."""
        handover, fds = self._handover(spec)
        payload = os.memfd_create("stillwatch-handover")
        try:
            os.write(payload, msgspec.json.encode(handover))
            os.lseek(payload, 0, os.SEEK_SET)
            with signals_blocked():
                popen = subprocess.Popen(
                    [sys.executable, "-P", "-m", "pipeline.child", str(payload)],
                    pass_fds=(payload, *fds),
                    stdin=subprocess.DEVNULL,
                    env={
                        **os.environ,
                        "PYTHONPATH": _ROOT,
                        "OPENBLAS_NUM_THREADS": "1",
                        "OMP_NUM_THREADS": "1",
                    },
                )
        finally:
            os.close(payload)
        try:
            return popen, os.pidfd_open(popen.pid)
        except OSError:
            popen.kill()
            popen.wait()
            raise

    def _reap(self, process: _Process, now_ns: int) -> Death | None:
        """Take note of a child that has ended. Returns how, or None while it lives."""
        popen, row = process.popen, process.row
        if popen is None or popen.poll() is None:
            return None
        self.signals.poll.unregister(process.pidfd)
        os.close(process.pidfd)
        code = popen.returncode
        death = Death(
            process.spec,
            popen.pid,
            code if code >= 0 else None,
            -code if code < 0 else None,
            process.hung,
            (row.busy_lane, row.busy_index) if row.busy_since_ns else None,
        )
        process.popen, row.pid = None, 0
        if process.state is State.STOPPING or (self._closing and code == 0):  # a signal to the group asks everybody
            process.set_state(State.STOPPED)
            log.info(event("child stopped", child=process.spec.name, exit=death))
            return death
        log.warning(event("child died", child=process.spec.name, pid=death.pid, exit=death, hung=death.hung))
        self._on_death(death)
        self._after_death(process, death, now_ns)
        return death

    def _after_death(self, process: _Process, death: Death, now_ns: int) -> None:
        """Restart with back-off; give up on a child that fails by itself before it ever made progress."""
        if process.made_progress(now_ns):
            process.failed_starts = process.own_failures = 0
        else:
            process.failed_starts += 1
            process.own_failures += death.hung or death.exit_code is not None or death.signal in OWN_FAULT_SIGNALS
            if death.exit_code == Exit.CONFIG or process.own_failures >= MAX_FAILED_STARTS:
                self._give_up(process, death.exit_code or Exit.SOFTWARE, str(death))
                return
        process.row.restarts += 1
        self._schedule(process, now_ns)

    def _give_up(self, process: _Process, exit_code: int, cause: str) -> None:
        process.set_state(State.FATAL)
        self.exit_code = exit_code
        log.critical(event("child cannot start, stopping", child=process.spec.name, cause=cause))

    def _schedule(self, process: _Process, now_ns: int) -> None:
        failures = process.failed_starts
        delay_s = min(BACKOFF_CAP_S, BACKOFF_FIRST_S * 2 ** min(failures, 10)) if failures else 0.0
        process.start_at_ns = now_ns + int(delay_s * _NS)
        process.set_state(State.BACKOFF)

    def _deadline_ns(self, process: _Process) -> int:
        """The instant at which this child's stamps are too old."""
        row = process.row
        if not row.heartbeat_ns:
            return int(row.started_ns + START_S * _NS)
        hang_ns = self._hang_ns if process.spec.hang_s is None else int(process.spec.hang_s * _NS)
        return int((row.busy_since_ns or row.heartbeat_ns) + hang_ns)

    def _check(self, process: _Process, now_ns: int) -> None:
        """STARTING -> RUNNING at the first heartbeat; kill a child whose stamps are too old."""
        if process.popen is None or process.hung:
            return
        if process.state is State.STARTING and process.row.heartbeat_ns:
            process.set_state(State.RUNNING)
            process.running_since_ns = now_ns
        if now_ns > max(self._deadline_ns(process), self._excused_until_ns):
            process.hung = True
            log.error(event("child hung, killing it", child=process.spec.name, busy=bool(process.row.busy_since_ns)))
            process.popen.kill()

    def _announce_ready(self, now_ns: int) -> None:
        if not self.board.memory.ready_ns and all(p.state is State.RUNNING for p in self._processes):
            self.board.memory.ready_ns = now_ns
            self._on_ready()

    # -- stopping -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """The one stop ladder. Children stop in the order of the data flow, so that nobody waits for a dead source:
        ask (SIGTERM), wait until the group's deadline, SIGKILL, reap."""
        self._closing = True
        self.signals.poll.unregister(self._bell.fileno())  # nobody answers it any more: it would wake every wait below
        for order in sorted({p.spec.stop_order for p in self._processes}):
            group = [p for p in self._processes if p.spec.stop_order == order]
            for process in group:
                self._ask_to_stop(process)
            deadline_ns = time.monotonic_ns() + int(max(p.spec.stop_s for p in group) * _NS)
            self._await_end(group, deadline_ns)
            for process in group:
                if process.popen is not None:
                    log.error(event("child did not stop, killing it", child=process.spec.name))
                    process.popen.kill()
            self._await_end(group, time.monotonic_ns() + _NS)
        self.signals.close()

    def _ask_to_stop(self, process: _Process) -> None:
        process.set_state(State.STOPPING if process.popen else State.STOPPED)
        if process.popen:
            process.popen.terminate()

    def _await_end(self, group: list[_Process], deadline_ns: int) -> None:
        while any(p.popen for p in group):
            now_ns = time.monotonic_ns()
            if now_ns >= deadline_ns:
                return
            self.signals.wait((deadline_ns - now_ns) / _NS)
            for process in self._processes:  # all: the pidfd of a later group's death would wake every wait
                self._reap(process, now_ns)


class Timer:
    """Calls `action` every `every_s` seconds of monotonic time, the first time one period after the start."""

    def __init__(self, every_s: float, action: Callable[[int], None]) -> None:
        self._every_ns = int(every_s * _NS)
        self._action = action
        self.due_ns = time.monotonic_ns() + self._every_ns

    def step(self, now_ns: int) -> None:
        if now_ns >= self.due_ns:
            self.due_ns = now_ns + self._every_ns
            self._action(now_ns)
