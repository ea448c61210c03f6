"""Starts, watches, restarts and stops children given as specs. Knows no role by name, loads no pixels, no network.

    NEW -> STARTING -> RUNNING -> (dies) -> BACKOFF -> STARTING ...       a child that cannot start: FATAL, program ends
     ^                    `-> STOPPING -> STOPPED
     '--- replaced, one at a time: `carry_out` --'

Death is an event: a pidfd per child is in the poll set. A hang is a stale stamp: the supervisor sleeps exactly until
the first stamp would be too old, so an idle system costs it one wake-up per heartbeat. Only this module sends signals
to children.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterator

from pipeline.board import Board
from pipeline.child import (
    HANDLED_SIGNALS,
    HEARTBEAT_S,
    Handover,
    SignalBox,
    Spec,
    event,
    log,
)
from pipeline.model import Exit, State, describe
from pipeline.process import OWN_FAULT_SIGNALS, Death, Process, Timer, execute
from pipeline.ring import Doorbell

START_S = 30.0  # to the first heartbeat: a Pi that starts four interpreters from a cold card takes about ten
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
        on_control: Callable[[int], None] = lambda number: None,
        on_turn: Callable[[], None] = lambda: None,
        timers: tuple[Timer, ...] = (),
    ) -> None:
        self.board = board
        self.exit_code: int | None = None
        self._closing = False
        self.signals = SignalBox()
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self.signals.install(*(HANDLED_SIGNALS - {signal.SIGHUP} if nohup else HANDLED_SIGNALS))
        self._terminal = os.isatty(0)
        self._bell = bell
        self._handover = handover
        self._hang_ns = int(hang_s * _NS)
        self._on_death, self._on_ready, self._on_bell, self._on_control = on_death, on_ready, on_bell, on_control
        self._on_turn = on_turn
        self._plan: Iterator[str] = iter(())
        self._replaced: Process | None = None
        self._timers = timers
        self._processes = [Process(spec, board) for spec in specs]
        self._due_ns = 0
        self._excused_until_ns = 0
        self.signals.poll.register(bell.fileno(), select.POLLIN)

    # -- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Turn until SIGTERM or SIGINT, or until a child cannot start. Returns the exit code."""
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

    def carry_out(self, plan: Iterator[str]) -> None:
        """Replace children one by one: `plan` names the next one each time, "" to wait until something happens. What
        it does between two names is done when the one before is running again. What was planned before is dropped."""
        self._plan = plan

    def add(self, spec: Spec) -> None:
        """Start one more child."""
        self._processes.append(Process(spec, self.board))

    def retire(self, name: str) -> None:
        """Stop a child for good."""
        process = self._named(name)
        process.retired = True
        self._begin_stop(process, time.monotonic_ns())

    def respecify(self, spec: Spec) -> None:
        """Another recipe under the same name, for the next process that is started by it."""
        self._named(spec.name).spec = spec

    def allow_silence(self, hang_s: float) -> None:
        """Another limit for the stamps of children that are started from now on: the others beat as they were told."""
        self._hang_ns = int(hang_s * _NS)

    def informed(self, name: str) -> None:
        """A child goes by new settings without having been started: it beats as they say."""
        process = self._named(name)
        process.hang_ns = self._limit_ns(process.spec)

    def has(self, name: str) -> bool:
        """Whether there is a child of this name, in whatever state."""
        return any(process.spec.name == name for process in self._processes)

    def is_running(self, name: str) -> bool:
        """Whether a child of this name has given its first heartbeat and lives."""
        return any(process.spec.name == name and process.state is State.RUNNING for process in self._processes)

    def is_fresh(self, now_ns: int) -> bool:
        """Whether every vital child's stamps are young enough, or it is just being started."""
        vital = (process for process in self._processes if process.spec.vital and process.popen is not None)
        return all(now_ns <= max(self._deadline_ns(process), self._excused_until_ns) for process in vital)

    def step(self, now_ns: int) -> None:
        """One turn: reap, check the stamps, start who is due, run the timers that are due."""
        while self.signals.controls and not self._closing:
            self._control(self.signals.controls.popleft())
        if self._due_ns and now_ns - self._due_ns > OVERSLEPT_S * _NS:
            log.warning(event("host stalled, nobody is blamed", late_s=(now_ns - self._due_ns) / _NS))
            self._excused_until_ns = now_ns + self._hang_ns
        self._due_ns = 0
        for process in list(self._processes):
            self._reap(process, now_ns)
        for process in self._processes:
            self._check(process, now_ns)
        for process in self._processes:
            if process.popen is None and process.state in {State.NEW, State.BACKOFF} and now_ns >= process.start_at_ns:
                self._spawn(process, now_ns)
        self._announce_ready(now_ns)
        self._advance_plan(now_ns)
        self._on_turn()
        for timer in self._timers:
            timer.step(now_ns)

    def _control(self, number: int) -> None:
        if number == signal.SIGHUP and self._terminal and not os.isatty(0):  # it was closed
            self.signals.received.add(number)
        else:
            self._on_control(number)

    def _advance_plan(self, now_ns: int) -> None:
        """Go on with the replacement of children when the last one is running again."""
        if self._replaced and self._replaced.state is not State.RUNNING:
            return
        self._replaced = None
        if name := next(self._plan, ""):
            self._replaced = self._named(name)
            self._begin_stop(self._replaced, now_ns)

    def _begin_stop(self, process: Process, now_ns: int) -> None:
        process.stop_by_ns = now_ns + int(process.spec.stop_s * _NS)
        self._ask_to_stop(process)

    def _named(self, name: str) -> Process:
        return next(process for process in self._processes if process.spec.name == name)

    def _next_due_ns(self, now_ns: int) -> int:
        due = [timer.due_ns for timer in self._timers]
        for process in self._processes:
            if process.stop_by_ns:
                due.append(process.stop_by_ns)
            elif process.state is State.BACKOFF:
                due.append(process.start_at_ns)
            elif process.popen is not None:
                due.append(max(self._deadline_ns(process), self._excused_until_ns) + _NS // 100)
        return min(due, default=now_ns + int(HEARTBEAT_S * _NS))

    # -- children -----------------------------------------------------------------------------------------------

    def _spawn(self, process: Process, now_ns: int) -> None:
        row, spec = process.row, process.spec
        row.heartbeat_ns = row.busy_since_ns = row.turns = 0
        row.started_ns = now_ns
        process.hung, process.running_since_ns = False, 0
        process.hang_ns = self._limit_ns(spec)
        try:
            process.popen, process.pidfd = execute(*self._handover(spec))
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

    def _reap(self, process: Process, now_ns: int) -> Death | None:
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
            if not self._closing:
                self._after_stop(process)
            return death
        log.warning(event("child died", child=process.spec.name, pid=death.pid, exit=death, hung=death.hung))
        self._on_death(death)
        self._after_death(process, death, now_ns)
        return death

    def _after_stop(self, process: Process) -> None:
        """It was asked to stop: its successor starts at once, if it is to have one."""
        process.stop_by_ns = process.start_at_ns = process.failed_starts = process.own_failures = 0
        if process.retired:
            self._processes.remove(process)
            self.board.remove_child(process.spec.row)
        else:
            process.set_state(State.NEW)

    def _after_death(self, process: Process, death: Death, now_ns: int) -> None:
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

    def _give_up(self, process: Process, exit_code: int, cause: str) -> None:
        process.set_state(State.FATAL)
        self.exit_code = exit_code
        log.critical(event("child cannot start, stopping", child=process.spec.name, cause=cause))

    def _schedule(self, process: Process, now_ns: int) -> None:
        failures = process.failed_starts
        delay_s = min(BACKOFF_CAP_S, BACKOFF_FIRST_S * 2 ** min(failures, 10)) if failures else 0.0
        process.start_at_ns = now_ns + int(delay_s * _NS)
        process.set_state(State.BACKOFF)

    def _limit_ns(self, spec: Spec) -> int:
        return self._hang_ns if spec.hang_s is None else int(spec.hang_s * _NS)

    def _deadline_ns(self, process: Process) -> int:
        """The instant at which this child's stamps are too old."""
        row = process.row
        if not row.heartbeat_ns:
            return int(row.started_ns + START_S * _NS)
        return int((row.busy_since_ns or row.heartbeat_ns) + process.hang_ns)

    def _check(self, process: Process, now_ns: int) -> None:
        """STARTING -> RUNNING at the first heartbeat; kill a child whose stamps are too old."""
        if process.popen is None or process.hung:
            return
        if process.stop_by_ns:
            if now_ns >= process.stop_by_ns:
                log.error(event("child did not stop, killing it", child=process.spec.name))
                process.popen.kill()
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
        ask (SIGTERM), wait until the group's deadline, SIGKILL, reap. One that has not beaten yet is not asked: it may
        be long in starting, and nobody is to wait for that."""
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

    def _ask_to_stop(self, process: Process) -> None:
        process.set_state(State.STOPPING if process.popen else State.STOPPED)
        if not process.popen:
            return
        if self._closing and not process.row.heartbeat_ns:  # it hears nothing yet, and has nothing to finish
            process.popen.kill()
        else:
            process.popen.terminate()

    def _await_end(self, group: list[Process], deadline_ns: int) -> None:
        while any(p.popen for p in group):
            now_ns = time.monotonic_ns()
            if now_ns >= deadline_ns:
                return
            self.signals.wait((deadline_ns - now_ns) / _NS)
            for process in self._processes:  # all: the pidfd of a later group's death would wake every wait
                self._reap(process, now_ns)
