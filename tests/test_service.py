"""A running service that is to be another: reload, more and fewer workers, the self-report on demand. No frame is lost.

Each test publishes while the change goes on, and then asks: has every frame exactly one sidecar, do the books balance,
do the sidecars speak of their true predecessors (so that no frame was judged out of order or twice)?
"""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.settings import usable_cpus
from tests.live import child_row
from tests.support import Rig, frame_name, sidecars, wait_until

pytestmark = pytest.mark.timeout(240)
FPS = 25
Maker = Callable[..., "Configured"]


class Configured(Rig):
    """A service whose sources stand in a file."""

    @property
    def file(self) -> Path:
        return self.base / "stillwatch.toml"

    def configure(self, *names: str, extra: str = "", source_extra: str = "") -> None:
        """Write the file: these sources, each in its directory."""
        for name in names:
            self.dirs.setdefault(name, self.base / "frames" / name).mkdir(parents=True, exist_ok=True)
            self.published.setdefault(name, [])
        tables = [f'[[source]]\nname = "{name}"\ndir = "{self.dirs[name]}"\n{source_extra}' for name in names]
        patience = "overload_lag_s = 600\n"  # on a busy machine frames would be passed over
        self.file.write_text(patience + extra + "\n" + "\n".join(tables), encoding="utf-8")

    @property
    def command(self) -> list[str]:
        return [*(word for word in super().command if not word.startswith("--source=")), f"--config={self.file}"]

    def signal(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def wait_changes(self, count: int) -> None:
        """Wait until so many changes are done."""
        wait_until(lambda: len(self.lines("change done")) >= count, 60, f"change {count} done: {self.log}")


@contextmanager
def publishing(service: Rig, *names: str) -> Iterator[None]:
    """Publish into these sources at FPS until the block is left."""
    stop = threading.Event()

    def run() -> None:
        number = 1
        while not stop.wait(1 / FPS):
            for name in names:
                service.publish(number, source=name)
            number += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def check(service: Rig, *names: str) -> dict[str, dict[str, int]]:
    """Every published frame has its sidecar, in order; the books."""
    for name in names:
        numbers = service.published[name]
        found = service.wait_sidecars(len(numbers), name)
        assert sorted(found) == numbers
        for number in numbers[3:]:
            assert found[number]["last_3_filenames"][0] == frame_name(number - 1), f"{name}: {number}"
    books = service.books()
    for name in names:
        assert books[name]["judged"] == len(service.published[name]) == books[name]["published"]
    return books


@pytest.fixture
def service(tmp_path: Path) -> Maker:
    def make(*flags: str, sources: tuple[str, ...] = ("a", "b"), **values: Any) -> Configured:
        made = Configured(tmp_path, *flags, sources=sources)
        made.configure(*sources, **values)
        return made

    return make


@pytest.mark.slow
def test_workers_come_and_go_while_frames_flow(service: Maker) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    chance, names = random.Random(seed), ("a", "b", "c")
    with service("--workers=1", sources=names) as running:
        with publishing(running, *names):
            wanted = 1
            for change in range(1, 6):
                number = signal.SIGTTIN if wanted == 1 or (wanted < 4 and chance.random() < 0.6) else signal.SIGTTOU
                wanted += 1 if number == signal.SIGTTIN else -1
                running.signal(number)
                running.wait_changes(change)
                assert len(running.children("worker")) == wanted
        assert running.lines("source moved"), "no lane has changed hands: nothing was shown"
        check(running, *names)


def test_signals_in_a_burst_end_where_they_point(service: Maker) -> None:
    with service("--workers=1") as running:
        with publishing(running, "a", "b"):
            for _ in range(3):
                running.signal(signal.SIGTTIN)
                running.signal(signal.SIGHUP)
                time.sleep(0.05)  # a signal that is pending already does not count twice
            running.signal(signal.SIGTTOU)
            wait_until(lambda: len(running.children("worker")) == 3 and running.lines("change done"), 60, "3 workers")
        assert not running.lines("child died")
        check(running, "a", "b")


def test_never_fewer_than_one_worker(service: Maker) -> None:
    with service("--workers=1") as running:
        running.signal(signal.SIGTTOU)
        running.wait_changes(1)
        assert len(running.children("worker")) == 1


def test_a_reload_replaces_every_child_and_loses_nothing(service: Maker) -> None:
    with service("--workers=2") as running:
        capture = running.child("capture").pid  # goes over to other settings itself: its FFmpegs would die with it
        before = {process.pid for process in running.tree()[1:]}
        with publishing(running, "a", "b"):
            for change in range(1, 4):
                running.configure("a", "b", source_extra=f"stall_s = {change + 3}.0\n")
                running.signal(signal.SIGHUP)
                running.wait_changes(change)
        after = {process.pid for process in running.tree()[1:]}
        assert len(after) == len(before) and before & after == {capture}
        check(running, "a", "b")


def test_new_thresholds_hold_from_the_reload_on(service: Maker) -> None:
    with service("--workers=1", sources=("a",)) as running:
        running.publish(1)
        assert running.wait_sidecars(1)[1]["blackscreen"] is False
        text = "[source.black]\nblack_pct_min = 0.0\nlit_tiles_pct_max = 100.0\ntop_level = 255\nband_levels = 256\n"
        running.configure("a", source_extra=text + "tint_above_level = 255\n")
        running.signal(signal.SIGHUP)
        running.wait_changes(1)
        running.publish(2)
        assert running.wait_sidecars(2)[2]["blackscreen"] is True


def test_sources_come_and_go_by_reload(service: Maker) -> None:
    with service("--workers=2") as running:
        with publishing(running, "a"):
            for number in range(1, 20):
                running.publish(number, source="b")
            running.wait_sidecars(19, "b")
            running.configure("a", "c", "d")  # b leaves, its lane is taken later
            running.signal(signal.SIGHUP)
            running.wait_changes(1)
            assert running.lines("source left source=b published=19 judged=19")
            for name in ("c", "d"):
                for number in range(1, 20):
                    running.publish(number, source=name)
                running.wait_sidecars(19, name)
            running.configure("a", "b", "c", "d", "e")
            running.signal(signal.SIGHUP)
            running.wait_changes(2)
            for number in (20, 21):
                running.publish(number, source="b")
            running.publish(1, source="e")
            running.wait_sidecars(21, "b")
            running.wait_sidecars(1, "e")
        books = check(running, "a", "c", "d", "e")
        assert books["b"]["judged"] == 2, "a source that comes back begins anew"
        assert sidecars(running.dirs["b"])[20]["last_3_filenames"] == []


def test_an_incident_of_a_source_that_left_is_closed_with_a_reason(service: Maker) -> None:
    with service("--workers=1", source_extra="stall_s = 0.5\n") as running:
        wait_until(lambda: len(running.lines("incident opened")) == 2, 20, "both are silent")
        running.configure("a", source_extra="stall_s = 0.5\n")
        running.signal(signal.SIGHUP)
        line = wait_until(lambda: running.lines("incident closed"), 20, "b's is closed")
        assert len(line) == 1 and "source=b" in line[0] and "no longer configured" in line[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nonsense", "not valid TOML"),
        ('[[source]]\nname = "a"\ndir = "x"\nprefx = "y"', "did you mean 'prefix'"),
        ("workers = 3", "none given"),
    ],
)
def test_settings_that_are_wrong_change_nothing(service: Maker, text: str, told: str) -> None:
    with service("--workers=1", sources=("a",)) as running:
        pids = {process.pid for process in running.tree()}
        running.file.write_text(text)
        running.signal(signal.SIGHUP)
        refused = wait_until(lambda: running.lines("reload refused"), 30, "the refusal")
        assert told in refused[0]
        running.publish(1)
        running.wait_sidecars(1)
        assert {process.pid for process in running.tree()} == pids


def test_what_takes_a_restart_is_said(service: Maker) -> None:
    with service("--workers=1", sources=("a",)) as running:
        running.configure("a", extra='host = "another"')
        running.signal(signal.SIGHUP)
        running.wait_changes(1)
        assert running.lines("settings take a restart keys=host")


def test_cores_limits_and_the_self_report_follow_a_reload(service: Maker) -> None:
    core = usable_cpus()[0]  # which no worker has unless it is told
    values = {"sources": ("a",), "extra": "hang_s = 1000.0\nreport_every_s = 3600.0\n"}
    with service("--workers=1", **values) as running:
        running.configure("a", extra=f'hang_s = 1.0\nreport_every_s = 0.5\ncpus = "{core}"\n')
        running.signal(signal.SIGHUP)
        running.wait_changes(1)
        assert not running.lines("settings take a restart")
        assert running.child("worker").cpu_affinity() == [core]
        assert child_row(running, "worker/0").cpu == core
        wait_until(lambda: len(running.lines(" books ")) > 1, 20, "self-reports")
        running.child("watcher").suspend()
        assert wait_until(lambda: running.lines("child hung"), 20, "the limit of hang_s")


def test_the_self_report_comes_when_asked(service: Maker) -> None:
    with service("--workers=1", "--report-every=3600") as running:
        assert not running.lines(" report ")
        running.signal(signal.SIGUSR1)
        wait_until(lambda: running.lines(" books "), 30, "the self-report")
        assert len(running.lines(" source/")) == 2


# -- systemd ----------------------------------------------------------------------------------------------------------


@contextmanager
def manager(path: str) -> Iterator[socket.socket]:
    """What systemd is to the service: a datagram socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.settimeout(20)
        yield receiver


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, abstract: bool) -> None:
    name = f"@stillwatch-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with manager(name.replace("@", "\0")) as receiver:
        running = Rig(tmp_path, "--workers=1", NOTIFY_SOCKET=name, WATCHDOG_USEC="600000")
        with running:
            assert receiver.recv(999) == b"READY=1\nSTATUS=1 of 1 sources, 1 workers, 0 open incidents"
            assert [receiver.recv(999) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            for role in ("watcher", "worker", "uploader"):
                assert b"NOTIFY_SOCKET" not in Path(f"/proc/{running.child(role).pid}/environ").read_bytes()
        told = receiver.recv(999)
        while told == b"WATCHDOG=1":
            told = receiver.recv(999)
        assert told == b"STOPPING=1\nSTATUS=stopping"


def test_systemd_is_told_of_an_incident_and_of_a_change_when_they_come(service: Maker, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with manager(path) as receiver:
        running = service("--workers=1", "--report-every=3600", sources=("a",), source_extra="stall_s = 0.5\n")
        running.environment["NOTIFY_SOCKET"] = path
        with running:
            assert receiver.recv(999).startswith(b"READY=1\n")
            assert receiver.recv(999) == b"STATUS=1 of 1 sources, 1 workers, 1 open incidents"
            running.configure("a", "b")
            running.signal(signal.SIGHUP)
            told = [receiver.recv(999)]
            while not told[-1].startswith(b"STATUS=2 of 2 sources"):
                told.append(receiver.recv(999))
            assert all(one != other for one, other in pairwise(told)), "only news is told"


@pytest.mark.parametrize("name", ["/nowhere/notify", "@nobody-listens", "nonsense"])
def test_a_manager_that_is_not_there_changes_nothing(tmp_path: Path, name: str) -> None:
    with Rig(tmp_path, "--workers=1", NOTIFY_SOCKET=name, WATCHDOG_USEC="x") as running:
        running.publish(1)
        running.wait_sidecars(1)


def test_a_manager_that_never_reads_blocks_nobody(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with manager(path) as receiver, Rig(tmp_path, "--workers=1", NOTIFY_SOCKET=path, WATCHDOG_USEC="3000") as running:
        for number in range(100):
            running.publish(number)
        running.wait_sidecars(100)
        full = [receiver.recv(999)]
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                full.append(receiver.recv(999))
        assert len(full) > 5, "its queue was not full: nothing was shown"


def test_an_uploader_that_hangs_does_not_starve_the_watchdog(tmp_path: Path) -> None:
    """Row 41: a dead network or a slow card must not restart the monitor."""
    path = str(tmp_path / "notify")
    environment = {"STILLWATCH_HANG_S": "1", "WATCHDOG_USEC": "300000", "NOTIFY_SOCKET": path}
    with manager(path) as receiver, Rig(tmp_path, "--workers=1", **environment) as running:  # type: ignore[arg-type]
        child = running.child("uploader")
        child.suspend()
        begun, fed = time.monotonic(), 0
        while time.monotonic() - begun < 3:
            fed += receiver.recv(999) == b"WATCHDOG=1"
        assert fed > 10 and not running.lines("child hung")
        child.resume()
