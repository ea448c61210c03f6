"""`doctor` and the service: real ones, well and unwell, and units as a stub of systemctl tells them."""

from __future__ import annotations

import grp
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pipeline.checks import programs, systemdunit
from tests.doctoring import AS_STRANGER, Examination, examine, stub
from tests.live import board_of, running_pid
from tests.machine import STRANGER, FaultRig, in_mounts, needs, open_place
from tests.support import Rig, wait_until

pytestmark = pytest.mark.any_python

SYSTEMD = ("mount -t tmpfs t /run", "mkdir -p /run/systemd/system")
"""Mounts of a machine that looks as if systemd ran it."""

UNIT = {
    "LoadState": "loaded",
    "UnitFileState": "enabled",
    "ActiveState": "active",
    "FragmentPath": "/etc/systemd/system/stillwatch.service",
    "User": "root",
    "NeedDaemonReload": "no",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "no",
    "ProtectSystem": "strict",
    "ReadWritePaths": "-/srv -/run",
    "RuntimeDirectory": "stillwatch",
    "StateDirectory": "stillwatch",
    "LogsDirectory": "stillwatch",
    "MemoryMax": "infinity",
}
"""As `systemctl show` tells of systemd/stillwatch.service (but for its user)."""


SOURCE = '[[source]]\nname = "a"\ndir = "{}"\n'
GRABBER = '[[source]]\nname = "a"\n[source.capture]\nprofile = "v4l2-copy"\ninput = "/dev/v4l/by-path/x"\n'
RECORDING = '[[source]]\nname = "a"\n[source.capture]\nprofile = "file"\ninput = "/tmp/film.mp4"\n'
Installed = tuple[tuple[str, ...], dict[str, str]]
"""A wrapper and an environment."""


def of_service(service: Rig) -> Examination:
    """Examine a service with its own sources."""
    sources = [f"--source={name}={directory}" for name, directory in service.dirs.items()]
    return examine(service.base, "service", *sources)


# -- a service --------------------------------------------------------------------------------------------------------


def test_a_service_that_has_stopped_is_told(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1") as service:
        service.stop()
        found = of_service(service)
    assert found.verdict("service") == "skipped" and "has ended" in found.of("service")[0]["found"]


def test_a_source_without_frames_or_directory_fails(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1", sources=("a", "b")) as service:
        board = board_of(service)
        wait_until(lambda: board.memory.sources[0].state, 30, "a state")
        shutil.rmtree(service.dirs["b"])
        wait_until(lambda: "directory missing" in service.log, 30)
        config = service.base / "c.toml"
        tables = [f'[[source]]\nname = "{n}"\ndir = "{d}"\nstall_s = 0.5\n' for n, d in service.dirs.items()]
        config.write_text("".join(tables))
        wait_until(lambda: board.memory.ready_ns, 60, "READY")
        wait_until(lambda: time.monotonic_ns() - board.memory.ready_ns > 10**9, 30, "more than its stall_s")
        found = examine(service.base, "service", f"--config={config}")
    assert found.code == 1
    found.amiss("service", "fail", "a: no frame since the start")
    found.amiss("service", "fail", "b is missing")


def test_a_captured_source_has_its_time_to_begin(rig: Callable[..., Rig]) -> None:
    """A grabber takes seconds to its first frame, and nothing is captured before READY."""
    with rig("--workers=1") as service:
        board = board_of(service)
        wait_until(lambda: board.memory.ready_ns, 20, "READY")
        wait_until(lambda: time.monotonic_ns() - board.memory.ready_ns > 10**9, 10, "more than its stall_s")
        config, text = service.base / "c.toml", f'[[source]]\nname = "a"\ndir = "{service.dir}"\nstall_s = 0.5\n'
        capture = '[source.capture]\nprofile = "lavfi"\ninput = "scene:live"\n'
        for start_s, code in ((600, 0), (0.5, 1)):
            config.write_text(f"{text}{capture}start_s = {start_s}\n")
            assert examine(service.base, "service", f"--config={config}").code == code


def test_a_source_that_has_stalled_fails(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1") as service:
        service.publish(1)
        service.wait_sidecars(1)
        (service.base / "c.toml").write_text(f'[[source]]\nname = "a"\ndir = "{service.dir}"\nstall_s = 0.1\n')
        ask = partial(examine, service.base, "service", f"--config={service.base / 'c.toml'}")
        wait_until(lambda: not ask().fit, 30, "the stall")
        ask().amiss("service", "fail", "a: no frame for ")


def test_settings_that_the_service_has_not_read_are_a_warning(tmp_path: Path) -> None:
    service = FaultRig(tmp_path, "--workers=1")
    service.config = tmp_path / "c.toml"
    service.config.write_text(SOURCE.format(service.dir))
    os.utime(service.config, (time.time() - 3600,) * 2)  # as a file is that was not changed lately
    with service:
        ask = partial(examine, tmp_path, "service", f"--config={service.config}")
        assert not [finding for finding in ask().of("service") if finding["verdict"] == "warn"]
        service.config.write_text(SOURCE.format(service.dir) + "stall_s = 6\n")
        os.utime(service.config, (time.time() + 60,) * 2)
        ask().amiss("service", "warn", "c.toml was changed after")
        service.config.write_text(SOURCE.format(service.dir) + SOURCE.replace('"a"', '"b"').format(tmp_path))
        mend = ask().amiss("service", "warn", "2 sources configured, 1 watched: b is not watched")["mend"]
        os.utime(service.config, (time.time() - 3600,) * 2)
        subprocess.run(mend.split(), check=True)
        wait_until(lambda: service.lines("change done"), 20, "the reload")
        assert not [finding for finding in ask().of("service") if finding["verdict"] == "warn"]


def test_a_process_that_was_restarted_is_a_warning(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1") as service:
        pid = running_pid(service, "worker/0")
        os.kill(pid, signal.SIGKILL)
        running_pid(service, "worker/0", but=pid)
        of_service(service).amiss("service", "warn", "worker/0 was restarted once")


def test_a_board_that_is_none_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "board").write_bytes(b"nonsense")
    found = examine(tmp_path, "service")
    assert found.code == 0
    found.amiss("service", "warn", "not a board")


@needs()
def test_a_board_that_may_not_be_read_is_unknown() -> None:
    with open_place() as base:
        (base / "run").mkdir(mode=0o700)
        (base / "run" / "board").touch()
        found = examine(base, "service", wrapper=AS_STRANGER, environment={"HOME": str(base)})
        found.amiss("service", "unknown", "may not be read by you")


# -- the unit ---------------------------------------------------------------------------------------------------------


def installed(base: Path, configuration: str, **properties: str) -> Installed:
    """A machine with an installed service: its configuration, and a systemctl that tells this of its unit."""
    for name in ("upper/stillwatch/credentials", "work"):
        (base / name).mkdir(parents=True, exist_ok=True)
    (base / "upper" / "stillwatch" / "stillwatch.toml").write_text(configuration)
    over = f"mount -t overlay o -o lowerdir=/etc,upperdir={base}/upper,workdir={base}/work /etc"
    lines = "\n".join(f"{name}={value}" for name, value in {**UNIT, **properties}.items())
    return in_mounts(*SYSTEMD, over), stub(base / "bin", "systemctl", f"cat <<'END'\n{lines}\nEND")


def told(base: Path, configuration: str = "", **properties: str) -> Examination:
    """Examine such a service and its unit; its directories are where systemd makes them."""
    wrapper, environment = installed(base, configuration, **properties)
    return examine(None, "unit", "service", wrapper=wrapper, environment=environment)


@needs()
def test_a_unit_that_is_enabled_is_well(tmp_path: Path) -> None:
    found = told(tmp_path, DropInPaths="/etc/systemd/system/stillwatch.service.d/override.conf")
    text = "/etc/systemd/system/stillwatch.service, enabled, active; changed by /etc/systemd/system/"
    assert found.verdict("unit") == "ok" and found.of("unit")[0]["found"].startswith(text)


@needs()
@pytest.mark.parametrize(
    ("properties", "verdict", "text", "mend"),
    [
        ({"LoadState": "not-found"}, "warn", "is not installed", "systemd/install.sh"),
        ({"UnitFileState": "disabled"}, "warn", "is disabled", "systemctl enable stillwatch"),
        ({"NeedDaemonReload": "yes"}, "warn", "have changed", "daemon-reload"),
        ({"ActiveState": "failed", "Result": "watchdog"}, "fail", "has failed (watchdog)", "journalctl -u"),
    ],
)
def test_a_unit_that_is_not_as_it_should_be(
    tmp_path: Path, properties: dict[str, str], verdict: str, text: str, mend: str
) -> None:
    found = told(tmp_path, **properties)
    assert mend in found.amiss("unit", verdict, text)["mend"]
    assert found.code == (verdict == "fail")


@needs()
def test_an_installed_service_that_does_not_run_is_a_warning(tmp_path: Path) -> None:
    assert "systemctl start" in told(tmp_path, ActiveState="inactive").amiss("service", "warn", "does not run")["mend"]


@needs()
@pytest.mark.parametrize(
    ("configuration", "properties", "verdict", "text", "mend"),
    [
        (SOURCE.format("/home/pi/frames"), {}, "fail", "ProtectHome=yes hides /home/pi/frames", "ProtectHome=no"),
        (SOURCE.format("/tmp/frames"), {}, "fail", "PrivateTmp=yes hides /tmp/frames", "PrivateTmp=no"),
        (SOURCE.format("/mnt/a"), {}, "fail", "keeps /mnt/a read-only", "ReadWritePaths=/mnt/a"),
        ('log_file = "/var/log/s.log"', {}, "fail", "keeps /var/log read-only", "ReadWritePaths=/var/log"),
        (RECORDING, {}, "fail", "PrivateTmp=yes hides /tmp/film.mp4", "PrivateTmp=no"),
        (GRABBER, {"PrivateDevices": "yes"}, "fail", "hides every grabber", "PrivateDevices=no"),
        (GRABBER, {"MemoryMax": "300000000"}, "warn", "MemoryMax=300M, but frames", "lower max_bytes"),
    ],
    ids=["home", "tmp", "read-only", "log", "recording", "grabber", "memory"],
)
def test_lines_of_the_unit_that_are_in_the_way(
    tmp_path: Path, configuration: str, properties: dict[str, str], verdict: str, text: str, mend: str
) -> None:
    assert mend in told(tmp_path, configuration, **properties).amiss("unit", verdict, text)["mend"]


@needs()
def test_lines_of_the_unit_that_are_in_nobodys_way(tmp_path: Path) -> None:
    sources = "".join(SOURCE.replace('"a"', f'"{n}"').format(path) for n, path in enumerate(["/srv/a", "/dev/shm/b"]))
    places = 'log_file = "/var/log/stillwatch/log"\nmetrics_file = "/run/x.prom"\n'
    found = told(tmp_path, places + sources + GRABBER.replace('"a"', '"c"'), MemoryMax="4000000000")
    assert found.verdict("unit") == "ok", found.of("unit")
    elsewhere = told(tmp_path, SOURCE.format("/home/a"), ProtectHome="no", ProtectSystem="full")
    assert elsewhere.verdict("unit") == "ok", elsewhere.of("unit")


@needs()
def test_a_systemctl_that_fails_or_hangs_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemdunit, "_SYSTEMD", str(tmp_path))
    monkeypatch.setattr(programs, "LIMIT_S", 0.2)
    for script in ("echo 'Failed to connect to bus' >&2; exit 1", "sleep 100 & wait"):
        found = examine(tmp_path, "unit", environment=stub(tmp_path / "bin", "systemctl", script))
        assert found.verdict("unit") == "skipped" and found.code == 0


@needs()
def test_the_installed_configuration_is_examined_where_none_is_named() -> None:
    """With the directories and the user that the unit gives the service."""
    with open_place() as base:
        frames = base / "frames"
        frames.mkdir(mode=0o700)
        wrapper, environment = installed(base, SOURCE.format(frames), User="nobody", ProtectHome="no", PrivateTmp="no")
        ask = partial(examine, None, "configuration", "frames", "secrets", wrapper=wrapper, environment=environment)
        found = ask()
        assert found.of("configuration")[0]["found"] == "/etc/stillwatch/stillwatch.toml: 1 source"
        found.amiss("frames a", "fail", "nobody may not read and write")
        assert found.verdict("secrets") == "ok"
        os.chown(frames, STRANGER, STRANGER)
        assert not [finding for finding in ask().of("frames a") if finding["verdict"] == "fail"]


@needs("ffmpeg")
def test_a_capture_is_rehearsed_by_the_user_that_the_unit_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read what is closed to others, and stands where they may not; the service would not start."""
    with open_place() as base:
        (base / "closed").mkdir(mode=0o700)
        monkeypatch.chdir(base / "closed")
        monkeypatch.setenv("TMPDIR", str(base / "closed"))
        recording = base / "film.mp4"
        command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=320x180", "-frames:v", "5"]
        subprocess.run([*command, str(recording)], check=True, timeout=30)
        table = f'[[source]]\nname = "a"\n[source.capture]\nprofile = "file"\ninput = "{recording}"\n'

        def ask(groups: str = "") -> Examination:
            lines = {"ProtectHome": "no", "PrivateTmp": "no", "SupplementaryGroups": groups}
            wrapper, environment = installed(base, table, User="nobody", **lines)
            return examine(None, "capture a", wrapper=wrapper, environment=environment)

        os.chown(recording, 0, grp.getgrnam("video").gr_gid)
        recording.chmod(0o640)
        assert str(recording) in ask().amiss("capture a", "fail", "it may not be read")["found"]
        assert ask("video audio").verdict("capture a") == "ok"
        os.chown(recording, STRANGER, STRANGER)
        assert ask().verdict("capture a") == "ok"
