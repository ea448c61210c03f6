"""The supervisor over toy children: deaths, hangs, back-off, the stop ladder. Real processes, real signals."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.board import Board, ChildRow
from pipeline.child import CONTROL_SIGNALS, Handover, Spec, log
from pipeline.model import Exit, State
from pipeline.process import PROGRESS_S, Death, Timer, environment_of
from pipeline.ring import Doorbell, Ring
from pipeline.service import Service
from pipeline.settings import Settings, Source
from pipeline.supervisor import MAX_FAILED_STARTS, START_S, Supervisor
from tests.children import EXIT_OWN
from tests.live import ROOT_ENVIRONMENT, ended, is_gone, python, stopped
from tests.support import open_descriptors, wait_until

NS = 1_000_000_000
HANG_S = 60.0


class Stage:
    """A supervisor in this process, over the toy children named; its turns are taken by the test."""

    def __init__(self, folder: Path, *entries: str, orders: tuple[int, ...] = (), stop_s: float = 5.0) -> None:
        self.deaths: list[Death] = []
        self.ready = 0
        self.stopped = False
        specs = [
            Spec(
                f"toy/{n}",
                f"tests.children:{entry}",
                row=n,
                stop_order=(*orders, *[0] * len(entries))[n],
                stop_s=stop_s,
            )
            for n, entry in enumerate(entries)
        ]
        self.ring, self.bell, self.doorbell = Ring.create(), Doorbell.create(), Doorbell.create()
        self.board = Board.create(str(folder), [spec.name for spec in specs], [])
        self.supervisor = Supervisor(
            specs,
            self.board,
            self.bell,
            self._handover,
            hang_s=HANG_S,
            on_death=self.deaths.append,
            on_ready=self._on_ready,
        )

    def _handover(self, spec: Spec) -> tuple[Handover, tuple[int, ...]]:
        fds = (self.ring.fd, self.board.fd, self.bell.fd)
        return Handover(spec, Settings(), *fds, (self.doorbell.fd,), os.getpid()), (*fds, self.doorbell.fd)

    def _on_ready(self) -> None:
        self.ready += 1

    @property
    def row(self) -> ChildRow:
        """The first child's row."""
        return self.board.children[0]

    def step(self, now_ns: int | None = None) -> None:
        """One turn, now or at a chosen instant."""
        self.supervisor.step(time.monotonic_ns() if now_ns is None else now_ns)

    def turn_until(self, condition: Callable[[], object], what: str = "") -> None:
        """Turn as `run` does, until a condition holds."""

        def turn() -> object:
            self.step()
            if not (found := condition()):
                self.supervisor.wait(0.1)
            return found

        wait_until(turn, 120, what)

    def run(self) -> int:
        """Turn until all children run; the pid of the first."""
        self.turn_until(lambda: all(row.state == State.RUNNING for row in self.board.children), "all run")
        return int(self.row.pid)

    def let_die(self) -> None:
        """Wait until the first child's process has ended, without a turn."""
        pid = int(self.row.pid)
        assert pid
        wait_until(lambda: is_gone(pid), 20, "the toy's end")

    def stop(self) -> None:
        """Stop the children: the ladder under test, or the end of a test that is about something else."""
        if not self.stopped:
            self.stopped = True
            self.supervisor.close()

    def close(self) -> None:
        """Stop the children, and give every descriptor back."""
        self.stop()
        self.ring.close()
        for fd in (self.board.fd, self.bell.fd, self.doorbell.fd):
            os.close(fd)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Makes stages; each is closed at the end."""
    made: list[Stage] = []

    def make(*entries: str, orders: tuple[int, ...] = (), stop_s: float = 5.0) -> Stage:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Stage(folder, *entries, orders=orders, stop_s=stop_s))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def log_lines(caplog: pytest.LogCaptureFixture) -> Callable[[str], int]:
    """Counts the log's lines that contain a text."""
    caplog.set_level(logging.INFO, log.name)

    def count(text: str) -> int:
        return sum(text in message for message in caplog.messages)

    return count


# -- start ------------------------------------------------------------------------------------------------------------


def test_a_child_runs_from_its_first_heartbeat(stage: Callable[..., Stage]) -> None:
    toys = stage("hang_at_start", "idle")
    toys.step()
    assert [row.state for row in toys.board.children] == [State.STARTING, State.STARTING]
    toys.turn_until(lambda: toys.board.children[1].state == State.RUNNING, "the second runs")
    assert toys.row.state == State.STARTING
    assert toys.ready == 0


def test_ready_is_said_once_when_all_run(stage: Callable[..., Stage]) -> None:
    toys = stage("idle", "idle")
    pid = toys.run()
    os.kill(pid, signal.SIGKILL)
    toys.turn_until(lambda: toys.row.restarts, "a restart")
    toys.run()
    assert toys.ready == 1


# -- death ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("ready_then_exit", "OK"),
        ("crash_at_start", str(EXIT_OWN)),
        ("wrong_configuration", "CONFIG"),
        ("fault_of_ours", "SOFTWARE"),
        ("segfault", "SIGSEGV"),
        ("leak", "OK"),
    ],
)
def test_every_death_is_told_by_its_name(stage: Callable[..., Stage], entry: str, name: str) -> None:
    toys = stage(entry)
    toys.doorbell.ring()  # one of them waits for it
    toys.turn_until(lambda: toys.deaths, "a death")
    assert str(toys.deaths[0]) == name


def test_a_death_wakes_the_supervisor_at_once(stage: Callable[..., Stage]) -> None:
    # Given a supervisor that would sleep for a minute
    toys = stage("idle")
    pid = toys.run()
    toys.supervisor.wait(0)  # whatever rang before
    os.kill(pid, signal.SIGKILL)
    # When it goes to sleep
    begun = time.monotonic()
    toys.supervisor.wait(at_most_s=HANG_S)
    # Then the death wakes it
    assert time.monotonic() - begun < HANG_S / 4
    toys.step()
    assert [(death.pid, death.signal) for death in toys.deaths] == [(pid, signal.SIGKILL)]


def test_a_crash_in_work_blames_the_frame_in_hand(stage: Callable[..., Stage]) -> None:
    toys = stage("segfault")
    toys.turn_until(lambda: toys.deaths, "a death")
    assert (toys.deaths[0].busy, toys.deaths[0].blames_frame) == ((2, 7), True)


def test_a_kill_from_outside_blames_no_frame(stage: Callable[..., Stage]) -> None:
    toys = stage("hang_while_busy")
    os.kill(toys.run(), signal.SIGKILL)
    toys.turn_until(lambda: toys.deaths, "a death")
    assert (toys.deaths[0].busy, toys.deaths[0].blames_frame) == ((2, 7), False)


def test_a_crash_between_frames_blames_no_frame(stage: Callable[..., Stage]) -> None:
    toys = stage("idle")
    os.kill(toys.run(), signal.SIGSEGV)
    toys.turn_until(lambda: toys.deaths, "a death")
    assert (toys.deaths[0].busy, toys.deaths[0].blames_frame) == (None, False)


def test_a_successor_does_not_inherit_its_predecessors_stamps(stage: Callable[..., Stage]) -> None:
    toys = stage("hang_while_busy")
    os.kill(toys.run(), signal.SIGKILL)
    toys.let_die()
    assert toys.row.busy_since_ns and toys.row.heartbeat_ns
    now_ns = time.monotonic_ns()
    toys.step(now_ns)
    toys.step(now_ns + NS)
    assert toys.row.pid
    assert (toys.row.busy_since_ns, toys.row.heartbeat_ns, toys.row.turns) == (0, 0, 0)


# -- back-off ---------------------------------------------------------------------------------------------------------


def restart_delay_s(toys: Stage, now_ns: int) -> float:
    """How long after `now_ns` (its death is seen then) the first child is started again, to a millisecond."""
    toys.let_die()
    for delay_ms in range(2000):
        toys.step(now_ns + delay_ms * 1_000_000)
        if toys.row.pid or toys.supervisor.exit_code is not None:
            return delay_ms / 1000
    raise AssertionError("not started again within 2 s")


def test_deaths_before_progress_are_answered_ever_later_then_end_the_program(stage: Callable[..., Stage]) -> None:
    toys, now_ns = stage("crash_at_start"), time.monotonic_ns()
    toys.step(now_ns)
    delays = [restart_delay_s(toys, now_ns := now_ns + NS) for _ in range(MAX_FAILED_STARTS)]
    assert delays == [0.1, 0.2, 0.4, 0.5, 0.0]
    assert (toys.supervisor.exit_code, toys.row.state) == (EXIT_OWN, State.FATAL)


def test_a_wrong_configuration_ends_the_program_at_once(stage: Callable[..., Stage]) -> None:
    toys = stage("idle", "wrong_configuration")
    toys.turn_until(lambda: toys.supervisor.exit_code is not None, "the end")
    assert toys.supervisor.exit_code == Exit.CONFIG
    assert len(toys.deaths) == 1


def test_kills_from_outside_at_the_start_never_end_the_program(stage: Callable[..., Stage]) -> None:
    toys, now_ns = stage("hang_at_start"), time.monotonic_ns()
    toys.step(now_ns)
    for _ in range(MAX_FAILED_STARTS + 2):
        os.kill(toys.row.pid, signal.SIGKILL)
        delay_s = restart_delay_s(toys, now_ns := now_ns + NS)
    assert delay_s == 0.5
    assert toys.supervisor.exit_code is None
    assert len(toys.deaths) == MAX_FAILED_STARTS + 2


def test_a_child_that_had_worked_is_back_at_once(stage: Callable[..., Stage]) -> None:
    toys, now_ns = stage("ready_then_exit"), time.monotonic_ns()
    toys.step(now_ns)
    assert [restart_delay_s(toys, now_ns + n * NS) for n in range(1, 4)] == [0, 0, 0]
    assert toys.row.restarts == 3


def test_progress_forgives_failed_starts(stage: Callable[..., Stage]) -> None:
    # Given a child that was killed twice while starting
    toys, now_ns = stage("ready_then_crash_at_bell"), time.monotonic_ns()
    toys.step(now_ns)
    for _ in range(2):
        os.kill(toys.row.pid, signal.SIGKILL)
        restart_delay_s(toys, now_ns := now_ns + NS)
    # When its successor runs for long and then dies
    wait_until(lambda: toys.row.heartbeat_ns, 20, "a heartbeat")
    toys.step(now_ns := now_ns + NS)
    os.kill(toys.row.pid, signal.SIGKILL)
    # Then it is back at once
    assert restart_delay_s(toys, now_ns + int((PROGRESS_S + 1) * NS)) == 0


def test_a_slow_start_is_no_progress(stage: Callable[..., Stage]) -> None:
    # Given a child whose start took longer than progress does, as on a Pi with a cold card
    toys, now_ns = stage("ready_then_crash_at_bell"), time.monotonic_ns()
    toys.step(now_ns)
    wait_until(lambda: toys.row.heartbeat_ns, 20, "a heartbeat")
    ready_ns = now_ns + int((PROGRESS_S + 5) * NS)
    toys.step(ready_ns)
    assert toys.row.state == State.RUNNING
    # When it crashes right after its first heartbeat
    toys.doorbell.ring()
    # Then that is a failed start
    assert restart_delay_s(toys, ready_ns + NS // 10) == 0.1


@pytest.mark.parametrize("room", [0, 1, 2, 3])
def test_a_system_that_refuses_processes_is_asked_again_later(
    stage: Callable[..., Stage], log_lines: Callable[[str], int], room: int
) -> None:
    # Given a supervisor whose next descriptor but `room` is one too many
    toys, now_ns = stage("idle"), time.monotonic_ns()
    others = psutil.Process().children()  # servers of other tests
    with descriptors_left(room):
        # When it wants to start a child
        toys.step(now_ns)
        toys.step(now_ns + NS // 20)
        # Then it has tried once, and lives
        assert log_lines("child not started child=toy/0 cause='Too many open files'") == 1
        assert (toys.row.state, toys.row.pid) == (State.BACKOFF, 0)
    assert psutil.Process().children() == others
    # And it does once the system lets it
    toys.step(now_ns + NS)
    assert toys.run()


@contextlib.contextmanager
def descriptors_left(room: int) -> Iterator[None]:
    """This process under RLIMIT_NOFILE, with `room` descriptors to spare."""
    gc.collect()  # what earlier tests left would be closed some time, and make room
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    filled = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)]
    highest = max(filled[0], *map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + room + 1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                filled.append(os.dup(filled[0]))
        for _ in range(room):
            os.close(filled.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in filled:
            os.close(fd)


# -- hangs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("entry", "blames"), [("hang", False), ("hang_while_busy", True)])
def test_a_stale_stamp_is_a_hang(stage: Callable[..., Stage], entry: str, blames: bool) -> None:
    # Given a child that runs
    toys = stage(entry)
    pid = toys.run()
    stamp_ns = toys.row.busy_since_ns or toys.row.heartbeat_ns
    # When its stamp is as old as it may be, nothing happens
    toys.step(stamp_ns + int(HANG_S * NS))
    assert not is_gone(pid)
    # And when it is older
    toys.step(stamp_ns + int(HANG_S * NS) + 1)
    toys.let_die()
    toys.step(stamp_ns + int(HANG_S * NS) + 2)
    # Then it is killed and replaced
    assert [(death.signal, death.hung, death.blames_frame) for death in toys.deaths] == [(signal.SIGKILL, True, blames)]
    assert toys.row.pid not in (0, pid)


def test_a_beating_child_in_a_long_piece_of_work_is_a_hang(stage: Callable[..., Stage]) -> None:
    toys = stage("hang_while_busy")
    toys.run()
    assert toys.row.heartbeat_ns > toys.row.busy_since_ns
    toys.step(toys.row.busy_since_ns + int(HANG_S * NS) + 1)
    toys.let_die()


def test_a_child_that_never_beats_is_a_hang_after_the_time_to_start(stage: Callable[..., Stage]) -> None:
    toys, now_ns = stage("hang_at_start"), time.monotonic_ns()
    toys.step(now_ns)
    toys.step(now_ns + int(START_S * NS))
    assert not is_gone(toys.row.pid)
    toys.step(now_ns + int(START_S * NS) + 1)
    toys.let_die()
    toys.step(now_ns + int(START_S * NS) + 2)
    assert toys.deaths[0].hung


def test_a_stopped_child_is_replaced(stage: Callable[..., Stage]) -> None:
    toys = stage("idle")
    pid = toys.run()
    with stopped(pid):
        toys.step(toys.row.heartbeat_ns + int(HANG_S * NS) + 1)
        toys.let_die()
    toys.turn_until(lambda: toys.deaths, "a death")
    assert toys.deaths[0].hung
    assert toys.run() != pid


def test_nobody_is_blamed_when_the_host_stalled(stage: Callable[..., Stage]) -> None:
    # Given a supervisor that wakes long after the instant it had wanted to
    toys = stage("idle")
    pid = toys.run()
    toys.supervisor.wait(0)
    late_ns = time.monotonic_ns() + int(3 * HANG_S * NS)
    # When it finds all stamps stale
    toys.step(late_ns)
    # Then the children have once more the time to beat
    toys.step(late_ns + int(HANG_S * NS))
    assert not is_gone(pid)
    # But not for ever
    toys.step(late_ns + int(HANG_S * NS) + 1)
    toys.let_die()


# -- stop -------------------------------------------------------------------------------------------------------------


def test_children_stop_in_the_order_of_the_data_flow(stage: Callable[..., Stage]) -> None:
    # Given three children that take their time to stop, the middle one first
    toys = stage("stop_slowly", "stop_slowly", "stop_slowly", orders=(1, 0, 2))
    toys.run()
    # When all are stopped
    toys.stop()
    # Then each is asked only when the one before it has stopped
    asked, done = zip(*[(row.busy_lane, row.busy_index) for row in toys.board.children], strict=True)
    assert asked[1] < done[1] < asked[0] < done[0] < asked[2] < done[2]
    assert [row.state for row in toys.board.children] == [State.STOPPED] * 3


def test_children_of_one_order_stop_together(stage: Callable[..., Stage]) -> None:
    toys = stage("stop_slowly", "stop_slowly")
    toys.run()
    toys.stop()
    asked, done = zip(*[(row.busy_lane, row.busy_index) for row in toys.board.children], strict=True)
    assert max(asked) < min(done)


def test_a_child_that_does_not_listen_is_killed_at_its_deadline(
    stage: Callable[..., Stage], log_lines: Callable[[str], int]
) -> None:
    toys = stage("ignore_term", stop_s=0.3)
    pid, begun = toys.run(), time.monotonic()
    toys.stop()
    assert is_gone(pid)
    assert time.monotonic() - begun >= 0.3
    assert log_lines("child did not stop, killing it child=toy/0") == 1
    assert log_lines("child stopped child=toy/0 exit=SIGKILL") == 1


def test_nobody_waits_for_the_start_of_a_child_that_is_to_stop(
    stage: Callable[..., Stage], log_lines: Callable[[str], int]
) -> None:
    # Given one child that is at work and one that is starting, for as long as anybody looks
    toys = stage("idle", "never_start", stop_s=1000)
    toys.turn_until(lambda: toys.row.state == State.RUNNING, "the first runs")
    assert toys.board.children[1].state == State.STARTING
    # When both are stopped
    toys.stop()
    # Then one has been asked, and the other has not been waited for
    assert log_lines("child stopped child=toy/0 exit=OK") == log_lines("child stopped child=toy/1 exit=SIGKILL") == 1
    assert log_lines("child did not stop") == 0 and not toys.ready


def test_waiting_for_a_child_to_stop_costs_nothing(stage: Callable[..., Stage]) -> None:
    # Given a bell that rings and a death in a later group while the first one does not listen
    toys = stage("ignore_term", "idle", orders=(0, 1), stop_s=1.0)
    toys.run()
    toys.bell.ring()
    os.kill(toys.board.children[1].pid, signal.SIGKILL)
    # When the deadline is waited for
    spent_s = time.process_time()
    toys.stop()
    # Then the second is slept through
    assert time.process_time() - spent_s < 0.5
    assert [row.state for row in toys.board.children] == [State.STOPPED] * 2


def test_nothing_is_started_again_while_stopping(stage: Callable[..., Stage]) -> None:
    others = psutil.Process().children()  # servers of other tests
    toys = stage("idle", "stop_slowly", orders=(1, 0))
    os.kill(toys.run(), signal.SIGKILL)
    toys.stop()
    assert psutil.Process().children() == others
    assert toys.row.state == State.STOPPED


# -- signals around the spawn -----------------------------------------------------------------------------------------


def test_term_at_birth_waits_for_the_childs_own_handler(stage: Callable[..., Stage]) -> None:
    toys = stage(*["idle"] * 6)
    toys.step()
    for row in toys.board.children:
        os.kill(row.pid, signal.SIGTERM)
    toys.turn_until(lambda: len(toys.deaths) >= 6, "six deaths")
    assert [(death.exit_code, death.signal) for death in toys.deaths[:6]] == [(0, None)] * 6


@pytest.mark.parametrize("number", [signal.SIGINT, *sorted(CONTROL_SIGNALS)])
def test_what_a_terminal_sends_to_everybody_is_left_to_the_parent(stage: Callable[..., Stage], number: int) -> None:
    toys = stage("idle")
    toys.step()
    os.kill(toys.row.pid, number)  # at birth
    pid = toys.run()
    os.kill(pid, number)  # at work
    os.kill(pid, signal.SIGTERM)
    toys.turn_until(lambda: toys.deaths, "the end that was asked for")
    assert [(death.pid, death.exit_code) for death in toys.deaths] == [(pid, 0)]


def test_the_supervisors_own_signal_mask_is_as_before(stage: Callable[..., Stage]) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    stage("idle").run()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


# -- nothing is left --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_50_respawns_leak_no_descriptor(stage: Callable[..., Stage]) -> None:
    # Given a child that dies with fifty descriptors open, and shows how many it was born with
    toys = stage("leak")

    def respawn() -> None:
        before = toys.row.restarts
        toys.doorbell.ring()
        toys.turn_until(lambda: toys.row.restarts > before and toys.row.heartbeat_ns, "a successor")

    toys.turn_until(lambda: toys.row.heartbeat_ns, "the first one")
    respawn()
    gc.collect()  # what earlier tests have left to the collector is not counted
    ours, theirs = open_descriptors(os.getpid()), toys.row.turns
    # When it has died fifty times
    for _ in range(50):
        respawn()
    # Then neither we nor its successor have one more
    assert len(toys.deaths) == 51
    assert toys.row.turns == theirs
    assert open_descriptors(os.getpid()) <= ours + 1  # the pidfd of one that has not been reaped


def test_a_child_inherits_what_it_was_given_and_no_more(stage: Callable[..., Stage]) -> None:
    toys = stage("leak")
    toys.turn_until(lambda: toys.row.turns, "the toy's count")
    # 0 1 2, ring board bell doorbell, the maps of ring and board, the log twice, the signals' pipe, the folder listed
    assert toys.row.turns <= 3 + 4 + 2 + 2 + 2 + 1


def start_supervisor(folder: Path, entry: str, count: int) -> subprocess.Popen[bytes]:
    """A supervisor as a program of its own."""
    command = python("tests.children", "supervise", entry, str(count))
    return subprocess.Popen(
        command, cwd=folder, env=ROOT_ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


@pytest.mark.parametrize("moment", ["ready", "starting"])
def test_a_killed_supervisor_takes_its_children_along(tmp_path: Path, moment: str) -> None:
    # Given a supervisor and three children, running or in the middle of their start
    with start_supervisor(tmp_path, "idle", 3) as supervisor:
        family = psutil.Process(supervisor.pid)
        if moment == "ready":
            assert supervisor.stdout and supervisor.stdout.readline() == b"ready\n"
        wait_until(lambda: len(family.children()) == 3, 20, "three children")
        children = family.children()
        with ended(children):
            # When it is killed
            supervisor.kill()
            # Then nobody is left
            wait_until(lambda: all(is_gone(child.pid) for child in children), 20, moment)
        assert supervisor.wait(20) == -signal.SIGKILL


@pytest.mark.parametrize(("entry", "code"), [("crash_at_start", EXIT_OWN), ("wrong_configuration", Exit.CONFIG)])
def test_a_program_whose_child_cannot_start_ends_with_the_childs_code(tmp_path: Path, entry: str, code: int) -> None:
    with start_supervisor(tmp_path, entry, 2) as supervisor:
        assert supervisor.wait(30) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_program_with_0(tmp_path: Path, number: int) -> None:
    with start_supervisor(tmp_path, "idle", 1) as supervisor:
        assert supervisor.stdout and supervisor.stdout.readline() == b"ready\n"
        supervisor.send_signal(number)
        assert supervisor.wait(10) == 0


# -- timers -----------------------------------------------------------------------------------------------------------


def test_a_timer_calls_once_per_period() -> None:
    calls: list[int] = []
    timer = Timer(10, calls.append)
    due_ns = timer.due_ns
    for now_ns in (due_ns - 1, due_ns, due_ns + 1, due_ns + 10 * NS - 1, due_ns + 10 * NS):
        timer.step(now_ns)
    assert calls == [due_ns, due_ns + 10 * NS]


def test_a_timer_that_overslept_calls_once(stage: Callable[..., Stage]) -> None:
    calls: list[int] = []
    timer = Timer(10, calls.append)
    timer.step(timer.due_ns + 1000 * NS)
    timer.step(timer.due_ns - 1)
    assert len(calls) == 1


def test_secrets_are_given_to_the_trusted_child_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"CLOUDFLARE_R2_SECRET_ACCESS_KEY", "CREDENTIALS_DIRECTORY", "STILLWATCH_WEBHOOK_URL"}
    for name in secrets:
        monkeypatch.setenv(name, "s3cr3t")
    for trusted in (True, False):
        given = environment_of(Spec("toy", "tests.children:run", row=0, trusted=trusted))
        assert secrets & set(given) == (secrets if trusted else set())
        assert given["PATH"] == os.environ["PATH"]


def test_the_service_trusts_its_uploader_alone(tmp_path: Path) -> None:
    source = Source(name="a", dir=str(tmp_path / "a"))
    url = "https://hook.example.com/t0k3n"
    settings = Settings(
        source=(source,), runtime_dir=str(tmp_path), state_dir=str(tmp_path), workers=1, webhook_url=url
    )
    service = Service(settings)
    try:
        told = {spec.name: service.handover(spec)[0].settings.webhook_url for spec in service.specs}
        assert told == {"watcher": "", "worker/0": "", "uploader": url, "capture": ""}
        assert {spec.name for spec in service.specs if spec.trusted} == {"uploader"}
    finally:
        service.close()
