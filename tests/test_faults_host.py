"""What the host does to the service: memory that the kernel takes back, and a manager that waits for a sign of life.

The numbers in the names are rows of the fault table (docs/faults.md).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import child_row, running_pid, stopped
from tests.machine import needs
from tests.support import Rig, make_frame, wait_until

pytestmark = pytest.mark.any_python

LARGE = make_frame(1, 1280, 720)
CGROUPS = Path("/sys/fs/cgroup")
SILENCE_S = 1.0  # five times what is between two signs of life


class Starvation:
    """A memory cgroup that has none to give. The kernel kills whoever of it asks for more."""

    def __init__(self, group: Path, limit: str, events: str) -> None:
        self._group, self._events = group, events
        (group / limit).write_text("65536")

    def add(self, pid: int) -> None:
        """From now on what this process asks for counts."""
        (self._group / "cgroup.procs").write_text(str(pid))

    @property
    def kills(self) -> int:
        """How many the kernel has killed."""
        words = (self._group / self._events).read_text().split()
        return int(words[words.index("oom_kill") + 1])


@contextlib.contextmanager
def starvation() -> Iterator[Starvation]:
    """Such a cgroup, of version 1 or 2; the test is skipped where neither can be made."""
    name = f"stillwatch-test-{os.getpid()}"
    one, two = CGROUPS / "memory", CGROUPS / "cgroup.subtree_control"
    if (one / "memory.limit_in_bytes").exists():
        group, limit, events = one / name, "memory.limit_in_bytes", "memory.oom_control"
    elif two.exists() and "memory" in two.read_text().split():
        group, limit, events = CGROUPS / name, "memory.max", "memory.events"
    else:
        pytest.skip("needs a memory cgroup (on a Pi: cgroup_enable=memory)")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"needs the right to make a cgroup: {error}")
    try:
        yield Starvation(group, limit, events)
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), 30, "the cgroup is empty")
        group.rmdir()


@needs()
def test_56_a_worker_that_the_kernel_kills_for_memory_is_replaced_and_nobody_else(tmp_path: Path) -> None:
    with starvation() as hunger, Rig(tmp_path, "--workers=2", sources=("a", "b")) as service:
        for source in ("a", "b"):
            service.publish(1, LARGE, source)
            service.wait_sidecars(1, source)
        before = {name: running_pid(service, name) for name in ("watcher", "worker/0", "worker/1", "uploader")}
        # When there is no more memory for one worker
        hunger.add(before["worker/0"])
        number = 1
        while not hunger.kills:
            number += 1
            assert number < 1000, "it lives without memory"
            for source in ("a", "b"):
                service.publish(number, LARGE, source)
                service.wait_sidecars(number, source)
        # Then it alone is replaced, at once and under its own name, and every frame is judged
        running_pid(service, "worker/0", but=before["worker/0"])
        assert service.lines("child died child=worker/0")[0].count(" exit=SIGKILL ") == 1
        assert len(service.lines("child died")) == hunger.kills == 1
        assert all(child_row(service, name).pid == pid for name, pid in before.items() if name != "worker/0")
        books = service.books()
        assert [books[source]["judged"] for source in ("a", "b")] == [number, number]


def test_41_a_frozen_supervisor_gives_no_sign_of_life(tmp_path: Path) -> None:
    """A frozen watcher is replaced by it before systemd's patience ends (row 3); for itself there is the watchdog."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(20)
        environment = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "600000"}
        with Rig(tmp_path, "--workers=1", **environment) as service:  # type: ignore[arg-type]
            assert [manager.recv(999) for _ in range(3)][1:] == [b"WATCHDOG=1"] * 2
            assert service.process
            with stopped(service.process.pid):
                manager.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        manager.recv(999)
                manager.settimeout(SILENCE_S)
                with pytest.raises(TimeoutError):
                    manager.recv(999)
            manager.settimeout(20)
            assert manager.recv(999) == b"WATCHDOG=1"
            service.publish(1)
            service.wait_sidecars(1)
            assert service.books()["a"]["judged"] == 1
