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

from tests.s3_servers import NotInstalled
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


BLACK_HOLE = "10.0.0.2"
"""An address that takes everything and answers nothing, behind `in_black_hole`."""


def in_black_hole(*orders: str) -> tuple[str, ...]:
    """A wrapper for FaultRig: a network and mounts of its own. All that is sent is lost without an answer, names are
    asked for there too, and somebody keeps the clock right."""
    network = (
        "ip link add v0 type veth peer name v1; ip link set lo up; ip link set v1 up; ip link set v0 up; "
        f"ip addr add 10.0.0.1/24 dev v0; ip neigh add {BLACK_HOLE} lladdr 02:00:00:00:00:02 dev v0; "
        f"ip route add default via {BLACK_HOLE}"
    )
    mounts = (
        "mount -t tmpfs test /run; mkdir -p /run/systemd/timesync; touch /run/systemd/timesync/synchronized; "
        f"echo nameserver {BLACK_HOLE} > /run/resolv.conf; mount --bind /run/resolv.conf /etc/resolv.conf"
    )
    script = "; ".join([network, mounts, *orders, 'exec "$@"'])
    return ("unshare", "--net", "--mount", "sh", "-ec", script, "sh")


UNSYNCHRONISED = (
    *("strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null"),
    *("-e", "trace=clock_adjtime,adjtimex", "-e", "inject=clock_adjtime,adjtimex:retval=5"),
)
"""A wrapper for FaultRig: the kernel says that nobody keeps the clock right."""

_SYNCHRONISED_FILE = "run/systemd/timesync/synchronized"


def in_own_run() -> tuple[str, ...]:
    """A wrapper for FaultRig: a /run of its own, in which systemd may come to say that the clock is kept right."""
    script = f'mount -t tmpfs test /run; mkdir -p "$(dirname /{_SYNCHRONISED_FILE})"; exec "$@"'
    return ("unshare", "--mount", "sh", "-ec", script, "sh")


def synchronise(pid: int) -> None:
    """Have systemd say so, in the mounts of this process."""
    Path(f"/proc/{pid}/root", _SYNCHRONISED_FILE).touch()


def in_mounts(*orders: str) -> tuple[str, ...]:
    """A wrapper for FaultRig: mounts of its own, after these commands of a shell."""
    return ("unshare", "--mount", "sh", "-ec", "; ".join([*orders, 'exec "$@"']), "sh")


def fake_sys(tree: Path) -> tuple[str, ...]:
    """A wrapper for FaultRig: this directory in the place of /sys."""
    return in_mounts(f'mount --bind "{tree}" /sys')


class WallClock:
    """A wall clock that the test sets, for processes with this `environment`; monotonic time goes on as ever."""

    def __init__(self, base: Path, ahead_s: int = 0) -> None:
        found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        if not found:
            pytest.skip("needs faketime: apt-get install faketime")
        self._file = base / "clock"
        self.ahead_s = 0
        self.set(ahead_s)
        self.environment = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            **dict.fromkeys(("FAKETIME_NO_CACHE", "DONT_FAKE_MONOTONIC", "NO_FAKE_STAT"), "1"),
        }

    def set(self, ahead_s: int) -> None:
        """Set it that far ahead of this machine's."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{ahead_s:+d}\n")
        fresh.rename(self._file)
        self.ahead_s = ahead_s


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
        wait_until(lambda: mounts_on(point) > before, 30, f"a mount on {point}")
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


@contextlib.contextmanager
def filled(point: Path) -> Iterator[Path]:
    """A file system without a free byte: a file of somebody else takes all, until the end."""
    ballast = point / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    try:
        yield ballast
    finally:
        ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def without_inodes(point: Path) -> Iterator[None]:
    """A file system (with few inodes) without a free one: somebody else's empty files take all, until the end."""
    taken: list[Path] = []
    with contextlib.suppress(OSError):
        while len(taken) < 10_000:
            path = point / f"taken-{len(taken)}"
            path.touch()
            taken.append(path)
    try:
        assert os.statvfs(point).f_favail == 0
        yield
    finally:
        for path in taken:
            path.unlink()


def read_only(point: Path) -> contextlib.AbstractContextManager[Path]:
    """A directory that is refused to whoever writes by path; what is open already stays open for writing."""
    return mounted(point, "mount", "-o", "bind,ro", str(point), str(point))


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
def failing_calls(pid: int, inject: str, path: Path | None, log: Path) -> Iterator[None]:
    """System calls of a running process that fail or take long, on one path or all: `openat:error=EIO:when=1..2`,
    `fsync:delay_enter=2000000`. strace's log proves it."""
    command = ["strace", "-qq", "-f", "-p", str(pid), "-o", str(log), "-e", f"inject={inject}"]
    command += ["-P", str(path)] if path else ["-e", f"trace={inject.partition(':')[0]}"]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        status = Path(f"/proc/{pid}/status")
        wait_until(lambda: "TracerPid:\t0" not in status.read_text(), 30, "strace to attach")
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


@contextlib.contextmanager
def skipping() -> Iterator[None]:
    """Where a server is not installed, the test says so and is left out."""
    try:
        yield
    except NotInstalled as error:
        pytest.skip(str(error))
