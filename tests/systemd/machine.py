"""A Debian machine with a real systemd as its PID 1, in a container: made once, booted in a second, thrown away.

The tree is made with mmdebstrap (under a minute, 700 MB, kept in the cache directory), booted with systemd-nspawn on an
overlay that nobody keeps, with all of the host's capabilities, as on a real machine. It has no network: the Python
packages are downloaded by the host's pip and bound in.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import ROOT, wait_until

SUITES = {"bookworm": "3.11", "trixie": "3.13"}  # Debian 12 and 13, and their Python
TOOLS = ("mmdebstrap", "systemd-nspawn", "nsenter", "setpriv")
PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,ca-certificates,procps,util-linux,passwd,ffmpeg"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillwatch-tests"
CGROUPS = Path("/sys/fs/cgroup")
BUILD_S = 900
BOOT_S = 60
ORDER_S = 400


class Machine:
    """A booted machine. `run` gives it orders as its root; `path` is its file system, seen from here."""

    def __init__(self, suite: str, process: subprocess.Popen[bytes], console: Path) -> None:
        self.suite, self._process, self._console = suite, process, console
        leader = wait_until(self._leader, BOOT_S, "the container's first process")
        self.leader: int = leader
        wait_until(self._is_up, BOOT_S, "systemd to come up")

    def _leader(self) -> int | None:
        """PID 1, as it is called here: nspawn's child, once it has become systemd."""
        if self._process.poll() is not None:
            said = self._console.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["?"]
            pytest.skip(f"no container can be started here: {said[-1]}")
        for child in psutil.Process(self._process.pid).children():
            with contextlib.suppress(psutil.Error):
                if child.name() in ("systemd", "init"):
                    return child.pid
        return None

    def _is_up(self) -> bool:
        return self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded")

    def popen(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command as root in the machine."""
        variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        command = ["nsenter", f"--target={self.leader}", "--all", "--root", "--wd", "--", *words]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**variables, **environment},
        )

    def run(self, *words: str, check: bool | int = True, **environment: str) -> str:
        """Run a command as root in the machine; what it said. `check` is the exit code that it must have."""
        process = self.popen(*words, **environment)
        try:
            said = process.communicate(timeout=ORDER_S)[0]
        finally:
            process.kill()
        if check is not False:
            assert process.returncode == (0 if check is True else check), f"{words}: {process.returncode}\n{said}"
        return said

    def path(self, name: str) -> Path:
        """A file of the machine."""
        return Path(f"/proc/{self.leader}/root") / name.lstrip("/")

    def properties(self, *names: str) -> dict[str, str]:
        """What systemd knows of the service."""
        said = self.run("systemctl", "show", "stillwatch", *(f"--property={name}" for name in names))
        return dict(line.split("=", 1) for line in said.splitlines())

    def property(self, name: str) -> str:
        """One of these."""
        return self.properties(name)[name]

    def processes(self, role: str = "") -> list[psutil.Process]:
        """The service's processes, as they are called here: all, or those of a role (`worker`)."""
        found = []
        for process in psutil.Process(self.leader).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(f"stillwatch: {role}"):
                    found.append(process)
        return found

    def process(self, role: str) -> psutil.Process:
        """The one process of a role, once it is there."""
        found: list[psutil.Process] = wait_until(lambda: self.processes(role), 20, f"a {role}")
        return found[0]

    def journal(self, *words: str) -> str:
        """What the service has logged."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--unit=stillwatch", "--output=cat", "--no-pager", *words)

    @staticmethod
    def now() -> str:
        """For `journal`: what comes from now on. (With --after-cursor, journalctl 252 leaves out one line more.)"""
        return f"--since=@{time.time():.6f}"


@contextlib.contextmanager
def booted(suite: str, checkout: Path) -> Iterator[Machine]:
    """A machine of this suite, with the checkout at /checkout and Python packages at /wheels. Skips where that cannot
    be made, and says why."""
    tree, wheels = _tree(suite), _wheels(SUITES[suite])
    console = CACHE / f"{suite}.{os.getpid()}.console"
    name = f"stillwatch-{suite}-{os.getpid()}"
    command = ["setpriv", "--pdeathsig=KILL", "--", "systemd-nspawn", "--quiet", "--boot", "--volatile=overlay"]
    command += [f"--directory={tree}", f"--machine={name}", "--register=no", "--private-network", "--link-journal=no"]
    command += ["--capability=all", f"--bind-ro={checkout}:/checkout", f"--bind-ro={wheels}:/wheels"]
    if not Path("/run/systemd/system").exists():  # nobody here to ask for a scope
        command.append("--keep-unit")
    environment = {**os.environ, "SYSTEMD_SECCOMP": "0", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
    with _cgroups(name) as groups, console.open("wb") as log:
        join = 'for f; do shift; [ "$f" = -- ] && break; echo $$ > "$f"; done; exec "$@"'
        process = subprocess.Popen(
            ["sh", "-c", join, "sh", *(f"{group}/cgroup.procs" for group in groups), "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
        )
        try:
            yield Machine(suite, process, console)
        finally:
            _power_off(process)
    console.unlink()


def _power_off(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)  # nspawn asks for an orderly end
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _cgroups(name: str) -> Iterator[list[Path]]:
    """A cgroup of the machine's own in every hierarchy, so that nothing is left in the host's; none where the host's
    systemd makes them."""
    groups: list[Path] = []
    if not Path("/run/systemd/system").exists():
        places = [CGROUPS] if (CGROUPS / "cgroup.procs").exists() else sorted(CGROUPS.iterdir())
        for place in places:
            if os.access(place / "cgroup.procs", os.W_OK) and not place.is_symlink():
                group = place / name
                group.mkdir()
                groups.append(group)
                for file in ("cpuset.mems", "cpuset.cpus"):  # of version 1: empty until somebody says
                    if (place / file).exists() and place != CGROUPS:
                        (group / file).write_text((place / file).read_text())
    try:
        yield groups
    finally:
        for group in groups:
            for directory, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)


def _tree(suite: str) -> Path:
    """The machine's file system, made by whoever comes first."""
    tree = CACHE / f"{suite}-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:8]}"
    if not tree.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        half = tree.with_suffix(f".{os.getpid()}")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", suite, str(half)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S)
        if done.returncode:
            shutil.rmtree(half, ignore_errors=True)
            pytest.skip(f"no Debian {suite} could be made: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        (half / "etc" / "machine-id").write_text("")
        (half / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
        for unit in ("getty.target", "console-getty.service"):  # of no use here, and slow
            (half / "etc" / "systemd" / "system" / unit).symlink_to("/dev/null")
        half.rename(tree)
    return tree


def _wheels(python: str) -> Path:
    """What requirements.txt asks for, for the machine's Python, as far as pip can have it."""
    requirements = ROOT / "requirements.txt"
    wheels = CACHE / f"wheels-{python}-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:8]}"
    if not wheels.exists():
        machine = platform.machine()
        half = wheels.with_suffix(f".{os.getpid()}")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--dest",
            str(half),
        ]
        command += [f"--platform=manylinux{tag}_{machine}" for tag in ("2014", "_2_28", "_2_27", "_2_17")]
        command += ["--only-binary=:all:", f"--python-version={python}", "-r", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S)
        if done.returncode:
            shutil.rmtree(half, ignore_errors=True)
            pytest.skip(f"pip could not download: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        half.rename(wheels)
    return wheels
