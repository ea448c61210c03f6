"""Processes that are killed, stopped or stuck under the real service. Each test proves that its fault happened.

The numbers in the names are rows of the fault table. STILLWATCH_STORM=400 runs the storm at its full size: 400 kills
over 20,000 frames.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.board import ChildRow
from pipeline.model import State
from pipeline.ring import CAPACITY, POISON_DEATHS
from tests.live import (
    ToyRig,
    board_of,
    child_row,
    damage,
    ended,
    is_gone,
    record_at,
    ring_of,
    running_pid,
    slot_at,
    source_row,
    stopped,
)
from tests.support import Rig, make_frame, publish, sidecars, wait_until
from tests.toy_service import GATE, order

pytestmark = pytest.mark.any_python

KILLS = int(os.environ.get("STILLWATCH_STORM", "40"))
FRAMES_PER_KILL = 50
KILL_EVERY_S = 0.04


def config(tmp_path: Path, **values: float) -> str:
    """The flag that names a configuration file with these values."""
    file = tmp_path / "stillwatch.toml"
    file.write_text("".join(f"{key} = {value}\n" for key, value in values.items()), encoding="utf-8")
    return f"--config={file}"


def with_order(number: int, words: str) -> bytes:
    """A frame that tells the toy worker what to do."""
    return make_frame(number % 50) + order(words)


def judged(found: dict[int, dict[str, Any]]) -> list[int]:
    """The sequences that were judged."""
    return sorted(number for number, content in found.items() if content["analyzed"] and "error" not in content)


def at_rate(frames_per_s: float) -> Iterator[int]:
    """1, 2, 3 ... at the rate of a capture."""
    due = time.monotonic()
    number = 0
    while True:
        number += 1
        yield number
        due += 1 / frames_per_s
        time.sleep(max(0, due - time.monotonic()))


def deaths(service: Rig, how: str) -> int:
    """How many children the log has said to have died like that."""
    return sum(f"exit={how}" in line for line in service.lines(" child died "))


def kill(row: ChildRow) -> bool:
    """Kill a child by SIGKILL and wait until the supervisor has seen it; False if there was none just now."""
    pid = int(row.pid)
    if not pid or is_gone(pid):
        return False
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: row.pid != pid, 30, "the death is noticed")
    return True


@contextmanager
def gate(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A closed gate: frames ordered to wait at it wait. Yields what opens it."""
    file = tmp_path / GATE
    file.touch()
    yield file.unlink
    file.unlink(missing_ok=True)


def wait_busy(service: Rig, name: str, index: int, but: int = 0) -> int:
    """Wait until a child has slot `index` in hand; its pid, another than `but`."""
    row = child_row(service, name)

    def busy() -> bool:
        return row.pid not in (0, but) and row.busy_since_ns > 0 and row.busy_index == index

    wait_until(busy, 20, f"{name} busy with {index}")
    return int(row.pid)


# -- 1: the storm -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(240 + KILLS * 2)
def test_1_no_frame_is_lost_in_a_storm_of_kills(rig: Callable[..., Rig], tmp_path: Path) -> None:
    # Given two workers, four sources and always some work
    seed, names = random.randrange(2**32), ("a", "b", "c", "d")
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    chance, killed, hit_in_work = random.Random(seed), 0, 0
    total = KILLS * FRAMES_PER_KILL
    with (
        rig("--workers=2", config(tmp_path, overload_lag_s=600), sources=names) as service,
        ring_of(service) as ring,
    ):
        rows = [child_row(service, f"worker/{n}") for n in range(2)]
        number, kill_ns = 0, 0
        # When a random one of them is killed every 40 ms, mostly at work, sometimes while it starts
        while killed < KILLS or number < total:
            if number < total and sum(lane.backlog for lane in ring.lanes[:4]) < 300:
                for _ in range(10):
                    service.publish(number // 4 + 1, source=names[number % 4])
                    number += 1
            victim = chance.choice(rows)
            ripe = victim.busy_since_ns or chance.random() < (0.02 if victim.turns else 0.001)
            if killed < KILLS and ripe and time.monotonic_ns() - kill_ns > KILL_EVERY_S * 1e9:
                kill_ns = time.monotonic_ns()
                hit_in_work += victim.busy_since_ns > 0
                killed += kill(victim)
        # Then the pool is whole again, and every frame is judged
        wait_until(lambda: all(row.state == State.RUNNING for row in rows), 30, "two workers run")
        for name in names:
            assert judged(service.wait_sidecars(total // 4, name, 30)) == list(range(1, total // 4 + 1))
        duplicates = sum(row.duplicates for _, row in board_of(service).sources)
        books = service.books()
    assert deaths(service, "SIGKILL") == killed == KILLS
    assert hit_in_work > 0
    assert duplicates <= killed
    assert [books[name]["judged"] for name in names] == [total // 4] * 4
    assert "frame suspected" not in service.log


# -- 2, 3: killed while idle, stopped ---------------------------------------------------------------------------------


def test_2_workers_killed_while_idle_judge_the_next_frame(rig: Callable[..., Rig]) -> None:
    # Given two idle workers that have each judged a frame
    with rig("--workers=2", sources=("a", "b")) as service:
        for name in ("a", "b"):
            service.publish(1, source=name)
            service.wait_sidecars(1, name)
        rows = [child_row(service, f"worker/{n}") for n in range(2)]
        wait_until(lambda: not any(row.busy_since_ns for row in rows), 20, "idle")
        # When both are killed
        pids = [int(row.pid) for row in rows]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for n, pid in enumerate(pids):
            running_pid(service, f"worker/{n}", but=pid)
        # Then their successors judge the next frame within 3 s: it takes milliseconds unless a dead worker has taken
        # something along (a lock, a wake-up), and then it takes for ever, or until the next heartbeat after 5 s
        for name in ("a", "b"):
            service.publish(2, source=name)
        for name in ("a", "b"):
            service.wait_sidecars(2, name, timeout_s=3)
        assert deaths(service, "SIGKILL") == 2
        assert {account["judged"] for account in service.books().values()} == {2}


def test_2_a_frame_published_while_no_worker_lives_is_judged(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1") as service:
        os.kill(running_pid(service, "worker/0"), signal.SIGKILL)
        service.publish(1)
        assert judged(service.wait_sidecars(1)) == [1]
        assert deaths(service, "SIGKILL") == 1


def test_3_a_stopped_worker_is_replaced_and_its_frame_judged_once(tmp_path: Path) -> None:
    # Given a worker that is stopped in the middle of a frame
    with gate(tmp_path) as open_gate, ToyRig(tmp_path, "--workers=1", config(tmp_path, hang_s=2)) as service:
        service.publish(1, with_order(1, "gate"))
        pid = wait_busy(service, "worker/0", 0)
        with stopped(pid):
            open_gate()
            # When its stamp has become stale
            wait_until(lambda: is_gone(pid), 20, "the kill of the hung worker")
        # Then its successor judges that frame
        assert judged(service.wait_sidecars(1)) == [1]
        assert service.lines("child hung, killing it child=worker/0 busy=True")
        assert source_row(service).duplicates == 0
        assert service.books()["a"]["judged"] == 1


def test_3_a_worker_stopped_while_idle_is_replaced(rig: Callable[..., Rig], tmp_path: Path) -> None:
    with rig("--workers=1", config(tmp_path, hang_s=2)) as service:
        pid = running_pid(service, "worker/0")
        with stopped(pid):
            service.publish(1)
            assert judged(service.wait_sidecars(1)) == [1]
        assert service.lines("child hung, killing it child=worker/0 busy=False")
        assert "frame suspected" not in service.log
        assert service.books()["a"]["judged"] == 1


def test_3_a_stopped_watcher_is_replaced(rig: Callable[..., Rig], tmp_path: Path) -> None:
    with rig("--workers=1", config(tmp_path, hang_s=2)) as service:
        with stopped(running_pid(service, "watcher")):
            service.publish(1)
            assert judged(service.wait_sidecars(1)) == [1]
        assert service.lines("child hung, killing it child=watcher")
        assert service.books()["a"]["judged"] == 1


def test_3_a_short_hang_limit_does_not_kill_the_idle(rig: Callable[..., Rig], tmp_path: Path) -> None:
    # Given a limit below the 5 s after which an idle child usually beats
    with rig("--workers=1", config(tmp_path, hang_s=1)) as service:
        rows = board_of(service).children
        born = [row.started_ns for row in rows]
        # When the service has been idle for three times as long
        wait_until(lambda: time.monotonic_ns() - max(born) > 3e9, 30, "three seconds")
        # Then nobody was taken for hung
        assert [row.restarts for row in rows] == [0, 0, 0, 0]
        assert "hung" not in service.log


# -- 4, 5: poison, and what is not ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("words", "how"), [("segv", "SIGSEGV"), ("gate", "SIGKILL")], ids=["crash", "hang"])
def test_4_a_frame_on_which_workers_die_is_set_aside(tmp_path: Path, words: str, how: str) -> None:
    # Given one worker for two sources
    settings = config(tmp_path, hang_s=1, overload_lag_s=600)
    with gate(tmp_path), ToyRig(tmp_path, "--workers=1", settings, sources=("a", "b")) as service:
        # When the fourth of seven frames kills whoever reads it
        for number in range(1, 8):
            service.publish(number, with_order(number, words) if number == 4 else None, source="a")
            service.publish(number, source="b")
        found = {name: service.wait_sidecars(7, name, 30) for name in ("a", "b")}
        # Then it has an error after three deaths, and its neighbours their verdicts
        assert found["a"][4]["error"] == "poison: workers died on this frame"
        assert judged(found["a"]) == [1, 2, 3, 5, 6, 7]
        assert judged(found["b"]) == [1, 2, 3, 4, 5, 6, 7]
        assert deaths(service, how) == POISON_DEATHS
        assert child_row(service, "worker/0").restarts == POISON_DEATHS
        assert source_row(service).buried == 1
        assert service.books()["a"] | {"published": 7} == {
            "published": 7,
            "judged": 6,
            "invalid": 1,
            "skipped": 0,
            "vanished": 0,
            "in_flight": 0,
        }


@pytest.mark.slow
def test_5_a_frame_in_hand_at_five_kills_from_outside_is_judged(tmp_path: Path) -> None:
    # Given a frame that takes long
    with gate(tmp_path) as open_gate, ToyRig(tmp_path, "--workers=1") as service:
        service.publish(1, with_order(1, "gate"))
        # When its worker is killed five times while it has that very frame in hand
        pid = 0
        for _ in range(5):
            pid = wait_busy(service, "worker/0", 0, but=pid)
            os.kill(pid, signal.SIGKILL)
        wait_busy(service, "worker/0", 0, but=pid)
        open_gate()
        # Then it is judged
        assert judged(service.wait_sidecars(1)) == [1]
        assert deaths(service, "SIGKILL") == 5
        assert source_row(service).buried == 0
        assert service.books()["a"]["judged"] == 1


# -- 6: the watcher ---------------------------------------------------------------------------------------------------


def test_6_frames_published_while_the_watcher_is_dead_are_judged_once(rig: Callable[..., Rig]) -> None:
    # Given 30 frames/s
    unseen = 0
    with rig("--workers=1") as service:
        row = child_row(service, "watcher")
        pid, number = running_pid(service, "watcher"), 0
        for turn in at_rate(30):
            service.publish(number := number + 1)
            # When the watcher is killed every second, and 70 frames come at once while it is dead
            if turn % 30 == 15:
                os.kill(pid, signal.SIGKILL)
                for _ in range(70):
                    service.publish(number := number + 1)
                unseen += 70 * (row.state != State.RUNNING or row.pid == pid)
                pid = running_pid(service, "watcher", but=pid)
            if turn == 90:
                break
        # Then all are found, none twice
        assert judged(service.wait_sidecars(number)) == list(range(1, number + 1))
        assert source_row(service).duplicates == 0
        books = service.books()["a"]
    assert deaths(service, "SIGKILL") == 3
    assert unseen >= 70
    assert (books["published"], books["judged"]) == (number, number)


def test_6_frames_that_waited_in_a_dead_watcher_are_counted_once(rig: Callable[..., Rig]) -> None:
    # Given a full lane, and frames that wait in the watcher
    count = CAPACITY + 50
    with rig("--workers=1", STILLWATCH_OVERLOAD_LAG_S="600") as service, ring_of(service) as ring:
        assert service.process
        lane, worker = ring.lanes[0], running_pid(service, "worker/0")
        with stopped(worker):
            for number in range(1, count + 1):
                service.publish(number)
            wait_until(lambda: lane.books().in_flight == count, 20, "the last 50 wait")
            assert lane.refused > 0
            # When the watcher is killed, and its successor comes when the lane has room again
            with stopped(service.process.pid):
                os.kill(service.child("watcher").pid, signal.SIGKILL)
                os.kill(worker, signal.SIGCONT)
                wait_until(lambda: lane.backlog == 0, 20, "an empty lane")
        # Then each is judged and counted once
        assert judged(service.wait_sidecars(count)) == list(range(1, count + 1))
        books = service.books()["a"]
    assert deaths(service, "SIGKILL") == 1
    assert (books["published"], books["judged"], books["in_flight"]) == (count, count, 0)


def test_6_a_watcher_killed_before_it_rang_does_not_leave_its_frame_waiting(rig: Callable[..., Rig]) -> None:
    # Given an idle worker, and a watcher that has put a frame and not yet rung its doorbell
    with rig("--workers=1") as service, ring_of(service) as ring:
        pid = running_pid(service, "watcher")
        with stopped(pid):
            service.publish(1)
            assert ring.lanes[0].put(1, 9, time.monotonic_ns())
            # When it is killed
            os.kill(pid, signal.SIGKILL)
        running_pid(service, "watcher", but=pid)
        # Then its successor rings, long before the worker would have looked by itself (every 5 s)
        assert judged(service.wait_sidecars(1, timeout_s=3)) == [1]
        books = service.books()["a"]
    assert deaths(service, "SIGKILL") == 1
    assert (books["published"], books["judged"]) == (1, 1)


# -- 7, 9: the end of the supervisor ----------------------------------------------------------------------------------


def _shared_memory() -> set[str]:
    """What lies in shared memory, but for what other tests, which may run beside this one, put there."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("stillwatch-test-")}


def test_7_a_killed_supervisor_leaves_nothing_and_can_start_again(rig: Callable[..., Rig]) -> None:
    # Given a service at work
    shared = _shared_memory()
    with rig("--workers=2", sources=("a", "b")) as service:
        assert service.process
        for number in range(1, 31):
            service.publish(number, source="a")
        children = service.tree()[1:]
        assert len(children) == 5
        with ended(children):
            # When its supervisor is killed
            service.process.kill()
            # Then its children are gone, and nothing in shared memory is left
            wait_until(lambda: all(is_gone(child.pid) for child in children), 20, "the children's end")
        assert service.process.wait() == -signal.SIGKILL
        assert _shared_memory() == shared
        # And it starts again in the same runtime directory, with what is left to judge
        service.flags = (*service.flags, "--startup-frames=1000")
        service.start()
        service.wait_ready(times=2)
        assert judged(service.wait_sidecars(30, "a")) == list(range(1, 31))
        assert sorted(os.listdir(service.base / "run")) == ["board", "hold", "lock"]
        assert service.books()["a"]["in_flight"] == 0


def test_9_sigterm_under_load_ends_with_0_and_loses_nothing(rig: Callable[..., Rig]) -> None:
    # Given four sources under load
    names, enough = ("a", "b", "c", "d"), threading.Event()
    patience = {"STILLWATCH_OVERLOAD_LAG_S": "600"}  # on a busy machine frames would be passed over
    with rig("--workers=1", "--startup-frames=100000", sources=names, **patience) as service:

        def capture() -> None:
            for number in at_rate(100):
                for name in names:
                    service.publish(number, source=name)
                if enough.is_set():
                    return

        captures = threading.Thread(target=capture)
        captures.start()
        try:
            for name in names:
                service.wait_sidecars(20, name)
            # When it is told to stop
            assert service.stop() == 0
        finally:
            enough.set()
            captures.join()
        # Then its books agree with the sidecars there are
        books = service.books()
        for name in names:
            assert books[name]["judged"] == len(judged(sidecars(service.dirs[name])))
            assert books[name]["judged"] < len(service.published[name])
        # And its next start judges the rest
        service.start()
        service.wait_ready(times=2)
        for name in names:
            published = service.published[name]
            assert judged(service.wait_sidecars(len(published), name)) == published
        service.books()


# -- 36, 37, 38: the ring ---------------------------------------------------------------------------------------------


def test_36_a_slow_worker_never_blocks_the_watcher(tmp_path: Path) -> None:
    # Given a worker that hesitates at its first frame, then does 20 frames/s
    count = CAPACITY + 300
    with (
        gate(tmp_path) as open_gate,
        ToyRig(tmp_path, "--workers=1", config(tmp_path, overload_lag_s=0.5, hang_s=60)) as service,
        ring_of(service) as ring,
    ):
        row, lane = source_row(service), ring.lanes[0]
        # When more frames come than a lane holds
        for number in range(1, count + 1):
            service.publish(number, with_order(number, "gate" if number == 1 else "sleep 0.05"))
        # Then the watcher has seen them all while all are still waiting
        wait_until(lambda: row.events == count, 20, "all events taken")
        assert lane.books().in_flight == count
        open_gate()
        # And every one gets its sidecar long before they could all have been judged, what was passed over says so
        found = service.wait_sidecars(count, timeout_s=count * 0.05 / 2)
        passed_over = [content for content in found.values() if not content["analyzed"]]
        assert {content["skipped"] for content in passed_over} == {"overload"}
        assert {content["blackscreen"] for content in passed_over} == {None}
        # And frames that come now are judged as if nothing had been
        for number in range(count + 1, count + 6):
            service.publish(number, with_order(number, "sleep 0.05"))
        newest = service.wait_sidecars(count + 5)
        assert set(range(count + 1, count + 6)) <= set(judged(newest))
        assert max(newest[count + n]["performance_ms"]["queued"] for n in range(1, 6)) < 1000
        # And all is counted
        shed, refused, books = row.shed, lane.refused, service.books()["a"]
    assert shed == len(passed_over) == books["skipped"] > 0
    assert refused > 0
    assert books["judged"] == count + 5 - shed > 5


def test_37_a_fast_source_does_not_starve_a_slow_one(tmp_path: Path) -> None:
    # Given one worker, and a source that is far ahead of it
    with (
        ToyRig(tmp_path, "--workers=1", config(tmp_path, overload_lag_s=600), sources=("fast", "slow")) as service,
        ring_of(service) as ring,
    ):
        for number in range(1, 121):
            service.publish(number, with_order(number, "sleep 0.02"), source="fast")
        wait_until(lambda: ring.lanes[0].head == 120, 30, "all put")
        # When the other publishes a frame now and then
        for number in range(1, 6):
            service.publish(number, source="slow")
            slow = service.wait_sidecars(number, "slow")
        assert ring.lanes[0].backlog > 50, "the fast one is no longer ahead"
        fast = service.wait_sidecars(120, "fast")
        service.books()
    # Then it waits for one frame of the fast one, not for all
    waits = {name: [c["performance_ms"]["queued"] for c in all_.values()] for name, all_ in (("f", fast), ("s", slow))}
    assert max(waits["f"]) > 1000
    assert max(waits["s"]) < max(waits["f"]) / 4


def test_38_a_slot_damaged_under_the_reader_is_counted_and_never_believed(rig: Callable[..., Rig]) -> None:
    # Given a worker that is about to read five slots
    with rig("--workers=1") as service, ring_of(service) as ring:
        lane = ring.lanes[0]
        with stopped(running_pid(service, "worker/0")):
            for number in range(1, 6):
                service.publish(number)
            wait_until(lambda: lane.head == 5, 30, "five slots")
            # When the number in the third is not what was put there
            damage(ring, slot_at(lane, 2) + 8)
        # Then no frame is judged for it, and the others are
        assert judged(service.wait_sidecars(4)) == [1, 2, 4, 5]
        wait_until(lambda: lane.last_record().tail == 5, 30, "all done")
        assert source_row(service).torn_slots == 1
        assert service.lines("slot torn, frame unknown source=a index=2")
        books = service.books()["a"]
    assert (books["published"], books["judged"], books["skipped"]) == (5, 4, 1)


def test_38_a_worker_killed_in_mid_commit_is_followed_without_loss(rig: Callable[..., Rig]) -> None:
    # Given a worker whose last record is half written: its sidecars are there, its acknowledgement is not
    with rig("--workers=1") as service, ring_of(service) as ring:
        lane = ring.lanes[0]
        for number in range(1, 4):
            service.publish(number)
        wait_until(lambda: lane.last_record().tail == 3, 30, "three frames done")
        pid = running_pid(service, "worker/0")
        with stopped(pid):
            damage(ring, record_at(lane, 3) + 60)
            os.kill(pid, signal.SIGKILL)
        # When its successor takes over
        service.publish(4)
        service.wait_sidecars(4)
        # Then the third is judged again, found judged, and counted once
        wait_until(lambda: lane.last_record().tail == 4, 30, "four frames done")
        assert source_row(service).duplicates == 1
        assert service.books()["a"]["judged"] == 4


# -- the service as a process -----------------------------------------------------------------------------------------


def test_a_second_instance_is_refused_in_one_line(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1") as service:
        second = subprocess.run(
            service.command, env=service.environment, cwd=service.base, capture_output=True, text=True, timeout=30
        )
        assert second.returncode == 75
        assert second.stderr.count("\n") == 1
        assert second.stderr.startswith(f"stillwatch: runtime_dir: another instance uses {service.base / 'run'}; ")
        service.publish(1)
        service.wait_sidecars(1)


def test_every_process_says_in_its_title_what_it_is(rig: Callable[..., Rig]) -> None:
    core = sorted(os.sched_getaffinity(0))[-1]
    with rig("--workers=2", f"--cpus={core}") as service:
        titles = [" ".join(process.cmdline()).strip() for process in service.tree()]
    assert titles[0] == "stillwatch: supervisor"
    assert sorted(titles[1:]) == [
        "stillwatch: capture",
        "stillwatch: uploader",
        "stillwatch: watcher",
        f"stillwatch: worker/0 cpu={core}",
        f"stillwatch: worker/1 cpu={core}",
    ]


def test_workers_are_pinned_each_to_its_core(rig: Callable[..., Rig]) -> None:
    cores = sorted(os.sched_getaffinity(0))
    with rig(f"--workers={len(cores)}", f"--cpus={','.join(map(str, cores))}") as service:
        pids = [running_pid(service, f"worker/{n}") for n in range(len(cores))]
        assert [psutil.Process(pid).cpu_affinity() for pid in pids] == [[core] for core in cores]
        assert [child_row(service, f"worker/{n}").cpu for n in range(len(cores))] == cores
        assert psutil.Process(running_pid(service, "watcher")).cpu_affinity() == cores


def test_a_core_that_is_not_there_is_a_warning(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1", "--cpus=1023") as service:
        assert service.lines("WARNING worker/0 core absent, running unpinned cpu=1023")
        assert child_row(service, "worker/0").cpu == -1
        service.publish(1)
        assert judged(service.wait_sidecars(1)) == [1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_stops_it_with_0_and_books(tmp_path: Path, number: int) -> None:
    # A terminal sends its signals to every process of the group; nobody is killed because the machine is busy
    with ToyRig(tmp_path, "--workers=1", TOY_STOP_S="30") as service:
        service.publish(1)
        service.wait_sidecars(1)
        for child in service.tree()[1:]:
            if number != signal.SIGTERM:
                child.send_signal(number)
        assert service.stop(number) == 0
        assert service.books()["a"]["judged"] == 1
        assert service.lines("child stopped child=watcher exit=OK")
        assert service.lines("child stopped child=worker/0 exit=OK")


def test_signals_in_a_row_do_not_break_the_stop_ladder(rig: Callable[..., Rig]) -> None:
    with rig("--workers=2") as service:
        assert service.process
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            service.process.send_signal(number)
        assert service.process.wait(10) == 0
        assert service.log.endswith("stopped\n")


def test_a_service_stopped_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    service = Rig(tmp_path, "--workers=2")
    service.start()
    assert service.process
    try:
        wait_until(lambda: len(service.tree()) == 6, 20, "all have been started")
        tree = service.tree()
        assert service.stop() == 0
        wait_until(lambda: all(is_gone(process.pid) for process in tree), 20, "all gone")
    finally:
        service.process.kill()


def test_frames_there_before_the_start_are_judged_newest_ones_only(tmp_path: Path) -> None:
    service = Rig(tmp_path, "--workers=1", "--startup-frames=3")
    for number in range(1, 11):
        publish(service.dir, number, make_frame(number))
    with service:
        assert judged(service.wait_sidecars(3)) == [8, 9, 10]
        assert service.books()["a"]["published"] == 3
    assert len(sidecars(service.dir)) == 3


def test_two_instances_may_not_share_a_state_directory(rig: Callable[..., Rig], tmp_path: Path) -> None:
    with rig("--workers=1") as service:
        elsewhere = f"--runtime-dir={tmp_path / 'elsewhere'}"
        recording = [sys.executable, "-P", "-m", "pipeline", "replay", str(service.dir), "--state-dir"]
        service.publish(1)
        service.wait_sidecars(1)
        for command in ([*service.command, elsewhere], [*recording, str(service.base / "state")]):
            second = subprocess.run(command, env=service.environment, capture_output=True, text=True, timeout=30)
            assert second.returncode == 75
            assert second.stderr.startswith(f"stillwatch: state_dir: another instance uses {service.base / 'state'}; ")
            assert second.stderr.count("\n") == 1


def test_half_the_r2_settings_end_it_at_once_in_one_line(tmp_path: Path) -> None:
    service = Rig(tmp_path, CLOUDFLARE_R2_SECRET_ACCESS_KEY="s3cr3t-s3cr3t")
    service.start()
    assert service.process and service.process.wait(20) == 78
    assert service.log.count("\n") == 1 and "CLOUDFLARE_R2_ENDPOINT" in service.log and "s3cr3t" not in service.log
