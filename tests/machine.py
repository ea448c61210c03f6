"""What tests do to the machine, each undone at the end: mounts, kernel limits, lost privileges, failing calls.

Limits that the kernel counts per user namespace are set in a namespace of their own, so that whatever else runs here
goes on; the one that it does not (`max_queued_events`) is changed only while the service starts.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import Rig, wait_until

UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")
"""Run before a command: user 0 without capabilities, to whom other people's files are closed like to anybody."""

STRANGER = 65534  # whose files those are

_DEVICE = {"bindfs": "/dev/fuse", "mount.exfat-fuse": "/dev/fuse", "losetup": "/dev/loop-control"}
_CAP_SYS_ADMIN = 1 << 21


def needs(*tools: str, root: bool = True) -> pytest.MarkDecorator:
    """Skip where a tool (or the device that it uses, or root with the right to mount) is missing, and say which."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    missing += [_DEVICE[tool] for tool in tools if tool in _DEVICE and not os.path.exists(_DEVICE[tool])]
    if root and not _is_root():
        missing.insert(0, "root with CAP_SYS_ADMIN")
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def _is_root() -> bool:
    """Containers run as a root that may not mount."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return os.geteuid() == 0 and bool(found and int(found[1], 16) & _CAP_SYS_ADMIN)


class FaultRig(Rig):
    """A service that is started through another program (`wrapper`), or from a file of settings (`config`)."""

    wrapper: tuple[str, ...] = ()
    config: Path | None = None

    @property
    def command(self) -> list[str]:
        words = super().command
        if self.config:
            words = [word for word in words if not word.startswith("--source=")]
            words.append(f"--config={self.config}")
        return [*self.wrapper, *words]


def in_namespace_with(**limits: int) -> tuple[str, ...]:
    """A wrapper for FaultRig: a user namespace of its own with these limits, such as `max_inotify_watches=0`."""
    orders = [f"echo {value} > /proc/sys/user/{name}" for name, value in limits.items()]
    return ("unshare", "--user", "--map-root-user", "sh", "-ec", "; ".join([*orders, 'exec "$@"']), "sh")


@contextlib.contextmanager
def sysctl(name: str, value: int) -> Iterator[None]:
    """A kernel setting changed and restored."""
    path = Path("/proc/sys") / name.replace(".", "/")
    before = path.read_text()
    path.write_text(str(value))
    try:
        yield
    finally:
        path.write_text(before)


@contextlib.contextmanager
def mounted(point: Path, *command: str) -> Iterator[Path]:
    """Something mounted on `point` by `command`; if it is still mounted there at the end, it is unmounted."""
    point.mkdir(parents=True, exist_ok=True)
    before = mounts_on(point)
    subprocess.run(command, check=True, capture_output=True, timeout=20)
    try:
        wait_until(lambda: mounts_on(point) > before, 10, f"a mount on {point}")
        yield point
    finally:
        while mounts_on(point) > before:
            unmount(point, "-l")


def mounts_on(point: Path) -> int:
    """How many mounts lie on `point`, one over the other."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    escaped = re.sub(r"[ \t\n\\]", lambda letter: f"\\{ord(letter[0]):03o}", str(point))
    return sum(line.split(" ")[4] == escaped for line in lines)


def unmount(point: Path, *flags: str) -> None:
    """Unmount what lies on top of `point`."""
    subprocess.run(["umount", *flags, str(point)], check=True, timeout=20)


def tmpfs(point: Path, options: str = "size=4m") -> contextlib.AbstractContextManager[Path]:
    """A file system in memory."""
    return mounted(point, "mount", "-t", "tmpfs", "-o", options, "test", str(point))


def bindfs(backing: Path, point: Path) -> contextlib.AbstractContextManager[Path]:
    """A FUSE mirror of `backing`: no O_TMPFILE, and blind to what happens in `backing`."""
    backing.mkdir(parents=True, exist_ok=True)
    return mounted(point, "bindfs", "-o", "nonempty", str(backing), str(point))


def overlay(base: Path, point: Path) -> contextlib.AbstractContextManager[Path]:
    """An overlay; `base/upper` is its upper directory."""
    for name in ("lower", "upper", "work"):
        (base / name).mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    return mounted(point, "mount", "-t", "overlay", "test", "-o", options, str(point))


@contextlib.contextmanager
def exfat(base: Path, point: Path) -> Iterator[Path]:
    """A file system without hard links."""
    image = base / "exfat.img"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.exfat", str(image)], check=True, capture_output=True, timeout=20)
    found = subprocess.run(["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True)
    loop = found.stdout.strip()
    try:
        with mounted(point, "mount.exfat-fuse", loop, str(point)):
            yield point
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


@contextlib.contextmanager
def failing_calls(pid: int, inject: str, path: Path, log: Path) -> Iterator[None]:
    """System calls of a running process that fail on one path: `openat:error=EIO:when=1..2`. strace's log proves it."""
    command = ["strace", "-qq", "-f", "-p", str(pid), "-o", str(log), "-e", f"inject={inject}", "-P", str(path)]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        status = Path(f"/proc/{pid}/status")
        wait_until(lambda: "TracerPid:\t0" not in status.read_text(), 10, "strace to attach")
        yield
    finally:
        tracer.terminate()
        tracer.wait(10)


@contextlib.contextmanager
def open_place() -> Iterator[Path]:
    """A new directory that users without privileges can reach; pytest's own is closed to them."""
    with tempfile.TemporaryDirectory(prefix="stillwatch-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)
