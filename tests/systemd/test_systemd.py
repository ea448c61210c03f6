"""The service in a real systemd, on Debian 12 and 13: installed by install.sh, and then whatever happens to a service.

Faults are real: SIGKILL, SIGSTOP, memory taken away, directories closed. Each test asks first whether its fault has
happened, and then what systemd knows of the unit: its main process, how often it was restarted, how it ended.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.machine import needs
from tests.support import ROOT, costly, make_frame, plain_frame, publish, sidecars, wait_until
from tests.systemd.machine import SUITES, TOOLS, Machine, booted

FIRST, *OTHERS = SUITES

pytestmark = [pytest.mark.slow, pytest.mark.any_python, pytest.mark.timeout(900), needs(*TOOLS)]

PARTS = ["pipeline", "ffmpeg", "systemd", "stillwatch", "requirements.txt"]
PARTS += ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE"]
PIP = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "PIP_CONFIG_FILE": "/dev/null"}
QUICKLY = {"PIP_NO_COMPILE": "1"}
"""For versions after the first: what is imported is compiled at every start, which takes less than to compile all."""
CONFIG = "/etc/stillwatch/stillwatch.toml"
FRAMES = "/srv/frames/a"
WATCHDOG_S = 4
SETTINGS = f"""\
# mine
workers = 2
hang_s = 2.0
[[source]]
name = "a"
dir = "{FRAMES}"
stall_s = 9999.0
"""
LOCAL = "local directory /var/lib/stillwatch/store"
SECRET = "s3cr3t-of-the-test"
R2 = {
    "r2-endpoint": "https://127.0.0.1:9\n",  # nobody listens there
    "r2-access-key-id": "key-of-the-test\n",
    "r2-secret-access-key": f"  {SECRET}\n\n",
    "r2-bucket": "evidence\r\n",
}


class Service:
    """The installed service, and the frames that are published for it."""

    def __init__(self, machine: Machine, checkout: Path) -> None:
        self.machine, self.checkout = machine, checkout
        self._numbers = itertools.count(1)
        self._installed = False
        self.frames = machine.path(FRAMES)

    def install(self, *words: str, check: bool | int = True) -> str:
        """Run install.sh of the checkout as it is now."""
        more = QUICKLY if self._installed else {}
        self._installed = True
        return self.machine.run("/checkout/systemd/install.sh", *words, check=check, **PIP, **more)

    def configure(self, text: str) -> None:
        self.machine.path(CONFIG).write_text(text, encoding="utf-8")

    def give(self, **credentials: str) -> None:
        """Write credentials' files; those that are not named are emptied."""
        directory = self.machine.path("/etc/stillwatch/credentials")
        for path in directory.iterdir():
            path.write_text(credentials.get(path.name.replace("-", "_"), ""))

    def publish(self, count: int = 10, data: bytes | None = None) -> list[int]:
        """Publish frames; their numbers."""
        numbers = list(itertools.islice(self._numbers, count))
        for number in numbers:
            publish(self.frames, number, make_frame(number % 50) if data is None else data)
        return numbers

    def wait_judged(self, numbers: list[int]) -> None:
        """Wait until each of these has its sidecar."""
        wait_until(lambda: all((self.frames / f"capture_{n:09d}.json").exists() for n in numbers), 60, f"{numbers}")
        found = sidecars(self.frames)
        assert all(found[number]["analyzed"] for number in numbers)

    def in_use(self) -> str:
        return os.readlink(self.machine.path("/opt/stillwatch/current"))

    def main_pid(self) -> str:
        return self.machine.property("MainPID")

    def restarts(self) -> int:
        return int(self.machine.property("NRestarts"))

    def incidents(self) -> list[dict[str, str]]:
        said = self.machine.run("stillwatch", "incidents", "--json")
        return [json.loads(line) for line in said.splitlines() if line.startswith("{")]

    def restart(self, *, check: bool = True) -> None:
        self.machine.run("systemctl", "reset-failed", "stillwatch", check=False)
        self.machine.run("systemctl", "restart", "stillwatch", check=check)

    def ended(self, code: int, text: str) -> str:
        """Start it; it must end with this code, at once and for good, and the journal has this text as an error. What
        else the journal has of it."""
        begun = self.machine.now()
        self.restart(check=False)
        wait_until(lambda: self.machine.property("ActiveState") == "failed", 20, "the end")
        assert self.machine.properties("ExecMainStatus", "NRestarts") == {"ExecMainStatus": str(code), "NRestarts": "0"}
        wait_until(lambda: text in self.machine.journal(begun, "--priority=err"), 10, text)
        return self.machine.journal(begun)


@pytest.fixture(scope="module", params=[FIRST, *costly(*OTHERS)])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A machine with the service, freshly installed beside a configuration that was there before."""
    checkout = tmp_path_factory.mktemp("checkout")
    checkout.chmod(0o755)
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, checkout / name)
    with booted(request.param, checkout) as machine:
        service = Service(machine, checkout)
        machine.path("/etc/stillwatch").mkdir()
        service.configure(SETTINGS)
        machine.path("/etc/systemd/system/stillwatch.service.d").mkdir()
        machine.path("/etc/systemd/system/stillwatch.service.d/test.conf").write_text(
            f"[Service]\nWatchdogSec={WATCHDOG_S}\n"  # in place of 30 s, for the tests' sake
        )
        machine.run("groupadd", "--system", "stillwatch")
        machine.path(CONFIG).chmod(0o640)
        machine.run("chgrp", "stillwatch", CONFIG)
        machine.run("install", "-d", "-m", "2775", "-g", "stillwatch", FRAMES)
        said = service.install()
        assert re.search(r"runs: 1 of 1 sources, 2 workers, 0 open incidents$", said, re.MULTILINE), said
        yield service


@pytest.fixture
def service(installed: Service) -> Service:
    """The service as it is right after its installation, running."""
    installed.configure(SETTINGS)
    installed.give()
    installed.restart()
    return installed


def seconds(machine: Machine, since: str, until: str) -> float:
    """Between two instants that systemd has noted."""
    noted = machine.properties(since, until)
    return (int(noted[until]) - int(noted[since])) / 1e6


# --- as it is installed ----------------------------------------------------------------------------------------------


def test_it_starts_at_boot_as_its_own_user_and_says_how_it_is(service: Service) -> None:
    machine = service.machine
    assert machine.run("systemctl", "is-enabled", "stillwatch").strip() == "enabled"
    took_s = seconds(machine, "ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    print(f"{machine.suite}: start to READY {took_s:.2f} s")  # noqa: T201 - a figure for those who run it with -s
    assert machine.property("StatusText") == "1 of 1 sources, 2 workers, 0 open incidents"
    uid = int(machine.run("id", "-u", "stillwatch"))
    for process in machine.processes():
        assert set(process.uids()) == {uid}
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert re.search(r"^CapBnd:\s0+$", status, re.MULTILINE) and re.search(r"^Seccomp:\s2$", status, re.MULTILINE)
        assert process.nice() == {"worker": 5, "uploader": 10}.get(_role(process), 0)
        score = int(Path(f"/proc/{process.pid}/oom_score_adj").read_text())
        assert score == {"worker": 300, "uploader": 200}.get(_role(process), 0)


def _role(process: psutil.Process) -> str:
    return " ".join(process.cmdline()).split()[1].split("/")[0]


def test_systemd_finds_nothing_to_say_and_little_to_attack(installed: Service) -> None:
    machine, unit = installed.machine, "/etc/systemd/system/stillwatch.service"
    assert machine.run("systemd-analyze", "verify", "--man=no", unit) == ""
    said = machine.run("systemd-analyze", "security", "--no-pager", "stillwatch")
    found = re.search(r"Overall exposure level for stillwatch.service: ([0-9.]+)", said)
    assert found and float(found[1]) <= 1.5, said


def test_a_frame_is_judged_and_others_may_read_its_sidecar(service: Service) -> None:
    numbers = service.publish()
    service.wait_judged(numbers)
    path = service.frames / f"capture_{numbers[-1]:09d}.json"
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_example_shows_it_working(service: Service) -> None:
    """The test picture of the example: captured by an FFmpeg within the unit, in memory, and judged."""
    machine, frames = service.machine, service.machine.path("/run/stillwatch/frames/test")
    service.configure((ROOT / "systemd" / "stillwatch.toml").read_text(encoding="utf-8"))
    service.restart()
    wait_until(lambda: frames.is_dir() and len(sidecars(frames)) > 3, 60, "verdicts")
    [ffmpeg] = _ffmpegs(machine)
    capture = machine.process("capture")
    assert ffmpeg.uids() == capture.uids() and ffmpeg.nice() == 0
    for victim in (ffmpeg, capture):  # the FFmpeg of a capture that is killed dies with it, and another takes its place
        _replaced(machine, frames, victim)
    begun = time.monotonic()
    machine.run("systemctl", "stop", "stillwatch")
    took_s = time.monotonic() - begun
    print(f"{machine.suite}: stop while capturing {took_s:.2f} s")  # noqa: T201
    assert took_s < 5 and not _ffmpegs(machine)


def _replaced(machine: Machine, frames: Path, victim: psutil.Process) -> None:
    [ffmpeg] = _ffmpegs(machine)
    victim.kill()
    wait_until(lambda: not ffmpeg.is_running(), 20, "FFmpeg's end")
    last = max(sidecars(frames))
    wait_until(lambda: max(sidecars(frames)) > last + 3, 60, "a new FFmpeg")


def _ffmpegs(machine: Machine) -> list[psutil.Process]:
    return [p for p in psutil.Process(machine.leader).children(recursive=True) if p.name() == "ffmpeg"]


@pytest.mark.parametrize("place", ["/srv", "/run", "/dev/shm"])
def test_directories_that_come_later_can_be_watched(service: Service, place: str) -> None:
    """Made, or mounted, after the service has got its own view of the file system."""
    directory = f"{place}/later"
    service.configure(SETTINGS.replace(FRAMES, directory))
    service.restart()
    machine = service.machine
    machine.run("install", "-d", "-m", "2775", "-g", "stillwatch", directory)
    for number in (1, 2):
        wait_until(lambda: "armed source=a" in machine.journal() or "1 of 1" in _status(machine), 20, "armed")
        publish(machine.path(directory), number, make_frame(number))
        wait_until((machine.path(directory) / f"capture_{number:09d}.json").exists, 20, f"{directory}: {number}")
        if number == 1:
            machine.run("mount", "-t", "tmpfs", "-o", "size=1m,mode=2775", "test", directory)
            machine.run("chgrp", "stillwatch", directory)
    machine.run("umount", directory)


def _status(machine: Machine) -> str:
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=USR1", "stillwatch")
    return machine.property("StatusText")


def test_it_writes_nowhere_else(service: Service) -> None:
    service.configure(SETTINGS.replace(FRAMES, "/opt/frames"))
    service.machine.run("install", "-d", "-m", "0777", "/opt/frames")
    service.restart()
    publish(service.machine.path("/opt/frames"), 1, make_frame())
    wait_until(lambda: "sidecar" in service.machine.journal("--priority=warning"), 20, "the refusal")
    assert not list(service.machine.path("/opt/frames").glob("*.json"))


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_no_matter_for_the_unit(service: Service) -> None:
    before, victim = service.main_pid(), service.machine.process("worker/0")
    victim.kill()
    wait_until(lambda: service.machine.processes("worker/0") not in ([], [victim]), 20, "its successor")
    service.wait_judged(service.publish())
    assert (service.main_pid(), service.restarts()) == (before, 0)


def test_a_frozen_watcher_is_replaced_by_the_supervisor(service: Service) -> None:
    before, victim = service.main_pid(), service.machine.process("watcher")
    victim.suspend()
    numbers = service.publish()
    wait_until(lambda: "child hung, killing it child=watcher" in service.machine.journal(), 20, "the hang to be seen")
    service.wait_judged(numbers)
    assert (service.main_pid(), service.restarts()) == (before, 0)


def test_a_frozen_supervisor_is_replaced_by_the_watchdog(service: Service) -> None:
    before, begun = service.main_pid(), service.machine.now()
    children = service.machine.processes()
    service.machine.process("supervisor").suspend()
    numbers = service.publish()
    wait_until(lambda: service.restarts() == 1, WATCHDOG_S + 30, "the watchdog")
    wait_until(lambda: service.machine.property("ActiveState") == "active", 30, "READY")
    told = service.machine.journal(begun)
    assert "Watchdog timeout" in told and "supervisor.py" in told, "no stack of what it was at"
    service.wait_judged(numbers)
    assert service.main_pid() != before
    assert not any(process.is_running() for process in children)


def test_a_frozen_uploader_restarts_nothing(service: Service) -> None:
    before, victim = service.main_pid(), service.machine.process("uploader")
    victim.suspend()
    begun = time.monotonic()
    while time.monotonic() - begun < 2.5 * WATCHDOG_S:
        service.wait_judged(service.publish(2))
        assert victim.status() == psutil.STATUS_STOPPED
    victim.resume()
    assert (service.main_pid(), service.restarts()) == (before, 0)
    assert service.machine.process("uploader").pid == victim.pid


def test_a_worker_that_the_kernel_kills_for_memory_is_replaced(service: Service) -> None:
    """The unit goes on (OOMPolicy=continue): systemd itself sees the kill where it has a memory controller."""
    before, victims = service.main_pid(), service.machine.processes("worker")
    with short_of_memory(service.machine, victims):
        wait_until(lambda: service.publish(1) and not all(v.is_running() for v in victims), 60, "the kernel to kill")
    wait_until(lambda: len(service.machine.processes("worker")) == 2, 60, "the successors")
    assert "exit=SIGKILL" in service.machine.journal()
    service.wait_judged(service.publish())
    assert (service.main_pid(), service.restarts()) == (before, 0)


@contextlib.contextmanager
def short_of_memory(machine: Machine, victims: list[psutil.Process]) -> Iterator[None]:
    """No memory for these: in the unit's own cgroup where that is counted, else (version 1) in one of the host's."""
    unit = machine.path("/sys/fs/cgroup") / machine.property("ControlGroup").lstrip("/")
    if (unit / "memory.current").exists():
        limit = int((unit / "memory.current").read_text()) // 4
        machine.run("systemctl", "set-property", "--runtime", "stillwatch", f"MemoryMax={limit}")
        try:
            yield
        finally:
            machine.run("systemctl", "set-property", "--runtime", "stillwatch", "MemoryMax=infinity")
        return
    group = Path(f"/sys/fs/cgroup/memory/stillwatch-oom-{os.getpid()}")
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text("65536")
        for victim in victims:
            (group / "cgroup.procs").write_text(str(victim.pid))
        yield
        assert "oom_kill 0" not in (group / "memory.oom_control").read_text()
    finally:
        (group / "memory.limit_in_bytes").write_text("-1")
        for pid in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(pid)
        wait_until(lambda: _removed(group), 30, f"{group} to be empty")


def _removed(directory: Path) -> bool:
    with contextlib.suppress(OSError):
        directory.rmdir()
    return not directory.exists()


# --- stop, reload, settings ------------------------------------------------------------------------------------------


def test_it_stops_within_five_seconds_while_frames_flow(service: Service) -> None:
    machine, processes = service.machine, service.machine.processes()
    assert len(processes) >= 5
    service.publish(200)
    begun, since = time.monotonic(), machine.now()
    machine.run("systemctl", "stop", "stillwatch")
    took_s = time.monotonic() - begun
    print(f"{machine.suite}: stop {took_s:.2f} s")  # noqa: T201
    assert took_s < 5 and machine.properties("Result", "ExecMainStatus") == {"Result": "success", "ExecMainStatus": "0"}
    assert not any(process.is_running() for process in processes)
    assert "balanced=yes" in machine.journal(since)
    assert machine.path("/run/stillwatch/lock").exists(), "what is held would be lost"


def test_a_reload_takes_new_settings_and_refuses_wrong_ones(service: Service) -> None:
    machine, before = service.machine, service.main_pid()
    more = FRAMES.replace("/a", "/b")
    machine.run("install", "-d", "-m", "2775", "-g", "stillwatch", more)
    service.configure(f'{SETTINGS}[[source]]\nname = "b"\ndir = "{more}"\nstall_s = 9999.0\n')
    machine.run("systemctl", "reload", "stillwatch")
    wait_until(lambda: "change done sources=2" in machine.journal(), 60, "the change")
    publish(machine.path(more), 1, make_frame())
    wait_until((machine.path(more) / "capture_000000001.json").exists, 20, "a verdict on the new source")
    service.configure("workers = many")
    machine.run("systemctl", "reload", "stillwatch")
    wait_until(lambda: "reload refused" in machine.journal("--priority=err"), 20, "the refusal")
    service.wait_judged(service.publish())
    assert (service.main_pid(), service.restarts()) == (before, 0)


def test_wrong_settings_end_it_once_and_the_journal_says_why(service: Service) -> None:
    service.configure(SETTINGS.replace("hang_s", "hnag_s"))
    service.ended(78, "hnag_s: unknown key; did you mean 'hang_s'?")


def test_credentials_with_blanks_around_them_are_used_and_never_logged(service: Service) -> None:
    service.give(**{name.replace("-", "_"): value for name, value in R2.items()})
    assert _store(service).startswith("R2 bucket evidence")
    assert SECRET not in service.machine.journal()


def test_without_credentials_evidence_stays_here(service: Service) -> None:
    assert _store(service) == LOCAL
    directory = service.machine.path("/etc/stillwatch/credentials")
    aside = directory.with_name("aside")
    directory.rename(aside)
    try:
        assert _store(service) == LOCAL
    finally:
        aside.rename(directory)


def _store(service: Service) -> str:
    """Where evidence goes, as the uploader says after a restart."""
    begun = service.machine.now()
    service.restart()
    found = wait_until(
        lambda: re.search(r"uploader ready store='(.*?)'", service.machine.journal(begun)), 10, "a store"
    )
    return str(found[1])


def test_some_credentials_are_an_error_that_names_the_missing_one(service: Service) -> None:
    service.give(r2_endpoint=R2["r2-endpoint"], r2_access_key_id="key-of-mine")
    assert "key-of" not in service.ended(78, "CLOUDFLARE_R2_SECRET_ACCESS_KEY is not")


# --- whose files -----------------------------------------------------------------------------------------------------


def test_a_state_directory_that_is_read_only_ends_it_once(service: Service) -> None:
    machine = service.machine
    machine.run("systemctl", "stop", "stillwatch")
    machine.run("mount", "-o", "bind,ro", "/var/lib/stillwatch", "/var/lib/stillwatch")
    try:
        service.ended(78, "state_dir: /var/lib/stillwatch: Read-only file system; ")
    finally:
        machine.run("umount", "/var/lib/stillwatch")


def test_a_state_directory_of_somebody_else_ends_it_once(service: Service) -> None:
    service.machine.run("install", "-d", "-m", "0755", "/srv/foreign")
    service.configure(f'state_dir = "/srv/foreign"\n{SETTINGS}')
    service.ended(78, "state_dir: /srv/foreign: Permission denied; ")


def test_systemd_gives_its_own_directories_back_to_it(service: Service) -> None:
    service.machine.run("systemctl", "stop", "stillwatch")
    service.machine.run("chown", "-R", "nobody", "/var/lib/stillwatch")
    service.restart()
    assert service.machine.run("stat", "-c", "%U", "/var/lib/stillwatch/lock").strip() == "stillwatch"


# --- versions --------------------------------------------------------------------------------------------------------

one_machine = pytest.mark.parametrize("installed", [FIRST], indirect=True)
"""What install.sh does with versions is its own doing, not systemd's: it is shown once."""


def test_installing_again_changes_nothing(service: Service) -> None:
    before = service.main_pid(), service.in_use()
    assert "is installed already, and runs" in service.install()
    assert (service.main_pid(), service.in_use()) == before


@contextlib.contextmanager
def changed(file: Path, before: str, after: str) -> Iterator[None]:
    """A checkout of another version."""
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
    try:
        yield
    finally:
        file.write_text(text)


@one_machine
def test_upgrade_and_rollback_keep_what_was_recorded_and_configured(service: Service) -> None:
    service.configure(SETTINGS.replace("stall_s = 9999.0", "stall_s = 1.0"))
    service.restart()
    wait_until(service.incidents, 30, "an incident")
    ids, old, text = _ids(service), service.in_use(), service.machine.path(CONFIG).read_text()
    with changed(service.checkout / "pipeline" / "__init__.py", '"0.', '"9.'):
        assert "runs: 1 of 1 sources" in service.install()
    new = service.in_use()
    assert new.startswith("9.") and new != old and _serves(service, new)
    assert service.machine.run("stillwatch", "--version").startswith("stillwatch 9.")
    assert _ids(service) >= ids and service.machine.path(CONFIG).read_text() == text
    for name in (old, new, old):
        service.machine.run("/opt/stillwatch/current/systemd/install.sh", "rollback")
        assert service.in_use() == name and _serves(service, name)
        assert _ids(service) >= ids and service.machine.path(CONFIG).read_text() == text
    service.wait_judged(service.publish())


def _ids(service: Service) -> set[str]:
    return {incident["id"] for incident in service.incidents()}


def _serves(service: Service, version: str) -> bool:
    """Whether all of its processes are of this version, as what they have loaded says."""
    maps = [Path(f"/proc/{process.pid}/maps").read_text() for process in service.machine.processes()]
    return len(maps) >= 5 and all(set(re.findall(r"/opt/stillwatch/([^/]+)/", text)) == {version} for text in maps)


@pytest.mark.costly
@one_machine
@pytest.mark.parametrize(
    ("file", "before", "after", "code"),
    [
        ("pipeline/ring.py", "import os\n", "import os, nothing_of_this_name\n", 1),
        (
            "pipeline/config.py",
            "tree: dict[str, Any] = _read_file(file)",
            "tree: dict = {'gone': 1}; _read_file(file)",
            78,
        ),
        ("requirements.txt", "boto3>=1.36", "not-to-be-had-anywhere>=1.36", 69),
    ],
)
def test_a_version_that_is_no_good_is_never_in_use(
    service: Service, file: str, before: str, after: str, code: int
) -> None:
    running, kept = service.main_pid(), service.in_use()
    with changed(service.checkout / file, before, after):
        said = service.install(check=code)
    assert "nothing was changed" in said or "is in use" in said, said
    assert (service.main_pid(), service.in_use(), service.restarts()) == (running, kept, 0)


@pytest.mark.costly
@one_machine
def test_a_version_that_does_not_get_ready_makes_way_for_the_old_one(service: Service) -> None:
    kept, previous = service.in_use(), _previous(service)
    fails = '    raise RuntimeError("the fault of this test")\n    child.signals'
    with changed(service.checkout / "pipeline" / "workers.py", "    child.signals", fails):
        said = service.install(check=1)
    assert "did not become ready" in said and f"{kept} runs again" in said and "the fault of this test" in said, said
    assert service.in_use() == kept and _serves(service, kept)
    assert _previous(service) == previous
    service.wait_judged(service.publish())


def _previous(service: Service) -> str | None:
    path = service.machine.path("/opt/stillwatch/previous")
    return os.readlink(path) if path.is_symlink() else None


@one_machine
def test_uninstall_keeps_what_is_the_users_and_purge_does_not(service: Service) -> None:
    machine = service.machine
    service.publish(5, plain_frame(0))
    assert "stays: /etc/stillwatch" in service.install("uninstall")
    assert not service.machine.processes()
    for path in ("/opt/stillwatch", "/etc/systemd/system/stillwatch.service", "/usr/local/bin/stillwatch"):
        assert not os.path.lexists(machine.path(path)), path
    assert machine.path(CONFIG).read_text() == SETTINGS and machine.path("/var/lib/stillwatch").exists()
    assert "is not" not in service.install("uninstall")
    assert "runs: 1 of 1 sources" in service.install()
    assert machine.path(CONFIG).read_text() == SETTINGS
    service.install("uninstall", "--purge")
    for path in ("/opt/stillwatch", "/etc/stillwatch", "/var/lib/stillwatch", "/run/stillwatch", "/var/log/stillwatch"):
        assert not os.path.lexists(machine.path(path)), path
    machine.run("id", "stillwatch", check=1)
