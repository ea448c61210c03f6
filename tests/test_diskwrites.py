"""Bytes written to disks, as the kernel counts them: checked against what processes really write."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.diskwrites import written_bytes
from pipeline.mounts import file_system_type
from tests.machine import needs, tmpfs
from tests.support import Rig, wait_until

MIB = 2**20
WRITER = """
import os, subprocess, sys
path, size, then = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if then == "by a child":
    subprocess.run([sys.executable, "-c", f"open({path!r}, 'wb').write(bytes({size}))"], check=True)
else:
    open(path, "wb").write(bytes(size))
if then == "delete":
    os.unlink(path)
print("done", flush=True)
sys.stdin.read()
"""


@contextmanager
def writer(path: Path, size: int, then: str = "keep") -> Iterator[int]:
    """A process that has written a file, and waits."""
    command = [sys.executable, "-P", "-c", WRITER, str(path), str(size), then]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdin
        assert process.stdout.readline() == b"done\n"
        yield process.pid
        process.stdin.close()


def counted(pids: list[int]) -> int:
    found = written_bytes(pids)
    assert found is not None, "this kernel does not count (CONFIG_TASK_IO_ACCOUNTING)"
    return found


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A directory that is not in memory."""
    if file_system_type(str(tmp_path)) in ("tmpfs", "ramfs", "overlay"):
        pytest.skip(f"{tmp_path} is not on a disk")
    return tmp_path


def test_what_goes_to_a_disk_counts(disk: Path) -> None:
    with writer(disk / "file", MIB) as pid:
        assert MIB <= counted([pid]) < 2 * MIB


@needs()
def test_what_stays_in_memory_does_not(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "memory") as memory, writer(memory / "file", MIB) as pid:
        assert (memory / "file").stat().st_size == MIB
        assert counted([pid]) < MIB // 4


def test_a_file_that_goes_before_it_was_written_does_not(disk: Path) -> None:
    with writer(disk / "file", MIB, "delete") as pid:
        assert "cancelled_write_bytes: 1048576" in Path(f"/proc/{pid}/io").read_text()
        assert counted([pid]) < MIB // 4


def test_a_child_counts_while_it_lives_and_after_it_was_reaped(disk: Path) -> None:
    with writer(disk / "file", MIB, "by a child") as pid:
        assert counted([pid]) >= MIB
    before = counted([os.getpid()])
    with writer(disk / "other", MIB) as child:
        during = counted([os.getpid()])
        assert during - before >= MIB
        assert counted([os.getpid(), child]) == during, "nobody counts twice"
    assert counted([os.getpid()]) >= during


def test_a_process_that_has_gone_counts_nothing() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert written_bytes([gone.pid]) is None


@pytest.mark.parametrize("content", ["", "write_bytes: many\ncancelled_write_bytes: 0\n", "rchar: 1\n", "\x00"])
def test_a_kernel_that_does_not_count_is_unknown(tmp_path: Path, content: str) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "io").write_text(content)
    assert written_bytes([7], str(tmp_path)) is None


@needs()
def test_a_service_whose_frames_are_in_memory_writes_nothing(tmp_path: Path) -> None:
    """Frames, sidecars, board and log in memory: only evidence goes to the disk."""
    with tmpfs(tmp_path / "memory", "size=32m") as memory:
        (memory / "frames").mkdir()
        (tmp_path / "frames").symlink_to(memory / "frames")
        (tmp_path / "run").symlink_to(memory)
        service = Rig(tmp_path, "--workers=1", "--report-every=0.2")
        service.log_path = memory / "log"
        with service:
            wait_for_silence(service)  # what the start has written: incident log, lock
            for number in range(50):
                service.publish(number)
            service.wait_sidecars(50)
            wait_for_silence(service)
            rates = re.findall(r" host report .* sd_bytes_per_s=(\d+)", service.log)
            assert sum(map(int, rates)) * 0.2 < 50 * 4096, "less than a block per frame, start included"


def wait_for_silence(service: Rig) -> None:
    """Wait for one more line about the host, which says that nothing was written."""
    said = len(service.lines(" host report "))
    wait_until(lambda: any(line.endswith("=0") for line in service.lines(" host report ")[said:]), 20, "silence")


def test_a_service_that_writes_says_how_much(rig: Callable[..., Rig], disk: Path) -> None:
    with rig("--workers=1", "--report-every=0.2") as service:

        def rates() -> list[int]:
            return [int(n) for n in re.findall(r"host report .* sd_bytes_per_s=(\d+)", service.log)]

        for number in range(20):
            service.publish(number)
        service.wait_sidecars(20)
        wait_until(lambda: rates() and max(rates()) > 20 * 4096, 20, "the sidecars in the account")
