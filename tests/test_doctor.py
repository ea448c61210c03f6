"""`doctor` as a process: a healthy machine, and each of its faults made for real - limits, mounts, programs, owners."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from inotify_simple import INotify

from pipeline.checks import frames, machine, programs
from pipeline.checks.checkup import Verdict
from pipeline.settings import Settings
from tests import readme
from tests.doctoring import AS_STRANGER, call, examine, stub
from tests.live import is_gone
from tests.machine import (
    STRANGER,
    UNPRIVILEGED,
    UNSYNCHRONISED,
    WallClock,
    bindfs,
    fake_sys,
    filled,
    in_mounts,
    in_namespace_with,
    in_own_run,
    mounted,
    needs,
    open_place,
    read_only,
    tmpfs,
    without_inodes,
)
from tests.support import ROOT, Rig, make_frame, publish, wait_until

pytestmark = pytest.mark.any_python

OLD = "ffmpeg version 4.2.2-static https://johnvansickle.com\\n  libavformat    58. 29.100 / 58. 29.100"
NEW = "ffmpeg version 7.1.5\\n  libavformat    61.  7.100 / 61.  7.100"
OPTION = "\\n  -atomic_writing  <boolean>  E.......... set atomic writing (default false)"


@contextmanager
def publishing(*directories: Path, how: Callable[[Path, int, bytes], object] = publish) -> Iterator[None]:
    """Frames that come, some per second, until the end."""
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.wait(0.05):
            number += 1
            for directory in directories:
                how(directory, number, make_frame(number % 50))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


def source(base: Path, name: str = "a") -> tuple[str, Path]:
    """A flag for a source, and its new directory."""
    directory = base / "frames" / name
    directory.mkdir(parents=True, exist_ok=True)
    return f"--source={name}={directory}", directory


def captured(tmp_path: Path, table: str, directory: str = "") -> str:
    """A flag for a configuration with one captured source."""
    place = f'dir = "{directory}"\n' if directory else ""
    (tmp_path / "c.toml").write_text(f'[[source]]\nname = "a"\n{place}[source.capture]\n{table}\n')
    return f"--config={tmp_path / 'c.toml'}"


# -- all is well -----------------------------------------------------------------------------------------------------


@needs()
def test_a_healthy_service_on_a_healthy_machine_is_fit(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "memory", "size=256m,mode=0755") as memory:
        service = Rig(memory, "--workers=1", sources=("a", "b"))
        (tmp_path / "state").mkdir()
        (memory / "state").symlink_to(tmp_path / "state")
        with service, publishing(*service.dirs.values()):
            service.wait_sidecars(1, "a")
            flags = [f"--source={name}={directory}" for name, directory in service.dirs.items()]
            found = examine(memory, *flags, "--workers=1")
        assert found.fit and found.code == 0 and not found.counts["fail"], found.findings
        for name in ("configuration", "python", "packages", "ffmpeg", "cores", "inotify", "frames a", "frames b"):
            assert found.verdict(name) == "ok", found.of(name)
        for name in ("arrivals", "runtime directory", "state directory", "service"):
            assert found.verdict(name) == "ok", found.of(name)
        assert found.of("arrivals")[0]["found"] == "by rename: a, b"
        assert re.match(r"runs for \d+ s, 2 sources, 1 worker", found.of("service")[0]["found"])


def test_a_person_reads_a_line_for_each_and_the_mend_below_what_is_not_ok(tmp_path: Path) -> None:
    done = call(f"--source=a={tmp_path / 'gone'}", f"--runtime-dir={tmp_path}", f"--state-dir={tmp_path}")
    lines = done.stdout.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("FAIL    frames a "))
    assert lines[at].endswith("gone is not there")
    assert lines[at + 1].strip().startswith("why: ") and lines[at + 2].strip().startswith("mend: sudo install -d ")
    assert re.fullmatch(r"NOT fit: 1 fail \(frames a\), \d warn \(.*\), \d+ ok, \d+ skipped", lines[-1])
    assert done.returncode == 1 and not done.stderr


def test_nothing_needs_to_be_there(tmp_path: Path) -> None:
    found = examine(tmp_path)
    assert found.code == 0 and found.fit
    found.amiss("configuration", "warn", "no source is configured")
    for name in ("arrivals", "secrets", "r2", "webhook", "service"):
        assert found.verdict(name) == "skipped"


def test_it_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "LOOK_S", 0.3)
    flag, directory = source(tmp_path)
    publish(directory, 1, make_frame(1))
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    examine(tmp_path, flag)
    assert sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_every_verdict_is_counted(tmp_path: Path) -> None:
    found = examine(tmp_path)
    assert set(found.counts) == {verdict.value for verdict in Verdict}
    assert sum(found.counts.values()) == len(found.findings)


@needs()
def test_an_ordinary_user_can_ask(tmp_path: Path) -> None:
    with open_place() as base, publishing(source(base)[1]):
        os.chown(base, STRANGER, STRANGER)
        os.chown(base / "frames" / "a", STRANGER, STRANGER)
        found = examine(base, source(base)[0], wrapper=AS_STRANGER, environment={"HOME": str(base)})
        assert found.code == 0, found.findings
        assert found.verdict("inotify") == found.verdict("arrivals") == "ok"


@needs()
def test_a_tree_that_may_only_be_read_can_be_asked_about(tmp_path: Path) -> None:
    with read_only(tmp_path):
        found = examine(tmp_path, "state directory")
    found.amiss("state directory", "fail", "may not write")


# -- the configuration -----------------------------------------------------------------------------------------------


def test_a_wrong_configuration_is_78_and_the_machine_is_examined_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("wrokers = 3\n")
    found = examine(tmp_path, "configuration", "python", "ffmpeg", f"--config={tmp_path / 'c.toml'}")
    assert found.code == 78 and not found.fit
    assert "wrokers: unknown key; did you mean 'workers'?" in found.amiss("configuration", "fail")["found"]
    assert found.verdict("python") == "ok" and found.verdict("ffmpeg") == "ok"


def test_two_sources_with_one_directory_are_78(tmp_path: Path) -> None:
    _, directory = source(tmp_path)
    found = examine(tmp_path, "configuration", f"--source=a={directory}", f"--source=b={directory}")
    assert found.code == 78
    found.amiss("configuration", "fail", "a and b are one directory")


def test_half_of_the_settings_of_r2_are_78_and_the_rest_is_examined(tmp_path: Path) -> None:
    flag, directory = source(tmp_path)
    with publishing(directory):
        found = examine(tmp_path, "configuration", "r2", "arrivals", flag, environment={"CLOUDFLARE_R2_BUCKET": "rig"})
    assert found.code == 78
    found.amiss("configuration", "fail", "CLOUDFLARE_R2_BUCKET is set but")
    assert found.verdict("r2") == "skipped" and found.verdict("arrivals") == "ok"


@needs()
def test_a_configuration_that_only_root_may_read_is_unknown(tmp_path: Path) -> None:
    with open_place() as base:
        (base / "c.toml").touch(0o600)
        os.chown(base / "c.toml", STRANGER, STRANGER)
        found = examine(base, "configuration", f"--config={base / 'c.toml'}", wrapper=UNPRIVILEGED)
        assert found.code == 0
        assert "sudo" in found.amiss("configuration", "unknown", "Permission denied")["mend"]


# -- Python ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "verdict", "text"),
    [
        ("no-such-package>=1.0,<2  # why", "fail", "missing: no-such-package"),
        ("opencv-python-headless>=99.0,<100", "fail", "too old: opencv-python-headless"),
        ("psutil>=1.0,<2", "warn", "newer than any that was tried: psutil"),
        ("psutil>=1.0,<99", "ok", "all 1"),
    ],
)
def test_packages_are_compared_with_the_requirements(tmp_path: Path, line: str, verdict: str, text: str) -> None:
    (tmp_path / "requirements.txt").write_text(f"# comment\n\n{line}\n")
    found = machine.packages(str(tmp_path / "requirements.txt"))
    assert (found.verdict, text in found.found) == (verdict, True)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("raise ImportError('libGL.so.1: cannot open shared object file')", "libGL.so.1"),
        (f"import os; os.kill(os.getpid(), {signal.SIGILL})", "made for another processor?"),
    ],
    ids=["library missing", "other processor"],
)
def test_a_package_that_cannot_be_loaded_fails(tmp_path: Path, module: str, text: str) -> None:
    (tmp_path / "cv2.py").write_text(module + "\n")
    path = f"{tmp_path}:{ROOT}"
    found = examine(tmp_path, "packages", environment={"PYTHONPATH": path})
    assert found.code == 1
    found.amiss("packages", "fail", text)


# -- FFmpeg ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "verdict", "text"),
    [
        (NEW + OPTION, "ok", "7.1.5 has atomic_writing"),
        (OLD + OPTION, "warn", "4.2.2-static is older than 5.1"),
        (OLD, "fail", "has no atomic_writing"),
        ("error while loading shared libraries: libx264.so.164", "fail", "cannot be run: error while loading"),
    ],
    ids=["new", "old", "without atomic_writing", "broken"],
)
def test_ffmpeg_is_asked_what_it_can_do(tmp_path: Path, says: str, verdict: str, text: str) -> None:
    found = examine(tmp_path, "ffmpeg", environment=stub(tmp_path / "bin", "ffmpeg", f"printf '{says}'"))
    (finding,) = found.of("ffmpeg")
    assert (finding["verdict"], text in finding["found"]) == (verdict, True), finding
    assert found.code == (verdict == "fail")


def test_an_ffmpeg_that_takes_its_time_is_well(tmp_path: Path) -> None:
    """As from a cold card, beside the other checks."""
    path = stub(tmp_path / "bin", "ffmpeg", f"sleep 6; printf '{NEW + OPTION}'")
    assert examine(tmp_path, "ffmpeg", environment=path).verdict("ffmpeg") == "ok"


def test_an_ffmpeg_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "LIMIT_S", 2.0)
    script = f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
    found = examine(tmp_path, "ffmpeg", environment=stub(tmp_path / "bin", "ffmpeg", script))
    found.amiss("ffmpeg", "fail", "gave no answer within")
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: is_gone(pid), 20, "its end")


def test_a_missing_ffmpeg_fails_where_something_is_captured(tmp_path: Path) -> None:
    flag = captured(tmp_path, 'profile = "lavfi"\ninput = "scene:live"')
    (tmp_path / "empty").mkdir()
    without = {"PATH": str(tmp_path / "empty")}
    examine(tmp_path, "ffmpeg", environment=without).amiss("ffmpeg", "warn", "not installed")
    found = examine(tmp_path, "ffmpeg", flag, environment=without)
    assert "apt-get install -y ffmpeg" in found.amiss("ffmpeg", "fail", "not installed")["mend"]


# -- cores, clock, memory --------------------------------------------------------------------------------------------


def test_cores_that_are_not_there_are_a_warning(tmp_path: Path) -> None:
    found = examine(tmp_path, "cores", "--cpus=700-702", "--workers=3")
    assert found.code == 0
    assert "--cpus" in found.amiss("cores", "warn", "3 workers on 700-702")["mend"]


def test_workers_that_share_a_core_are_a_warning(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    examine(tmp_path, "cores", f"--cpus={core}", "--workers=2").amiss("cores", "warn")


@needs("strace")
def test_a_clock_that_nobody_keeps_is_a_warning(tmp_path: Path) -> None:
    found = examine(tmp_path, "clock", wrapper=(*in_own_run(), *UNSYNCHRONISED))
    assert "timedatectl" in found.amiss("clock", "warn", "kept right by nobody")["mend"]


@needs()
def test_a_clock_that_systemd_keeps_is_well(tmp_path: Path) -> None:
    kept = in_mounts(
        "mount -t tmpfs t /run", "mkdir -p /run/systemd/timesync", "touch /run/systemd/timesync/synchronized"
    )
    assert examine(tmp_path, "clock", wrapper=kept).verdict("clock") == "ok"


@pytest.mark.parametrize("years", [-20, 100])
def test_a_clock_that_cannot_be_right_fails(tmp_path: Path, years: int) -> None:
    """The check alone: under faketime a sleep of the standard library fails now and then, in whatever waits."""
    program = "from pipeline.checks.machine import clock_kept; found = clock_kept(); print(found.verdict, found.found)"
    clock = WallClock(tmp_path, years * 365 * 86_400).environment
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **clock}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=30)
    assert re.fullmatch(r"fail (20\d\d|21\d\d)-.* UTC: that cannot be\n", done.stdout)


def in_proc(tmp_path: Path, **files: str) -> tuple[str, ...]:
    """A wrapper: these files in the place of those of /proc, `__` being a slash."""
    orders = []
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        orders.append(f'mount --bind "{tmp_path / name}" /proc/{name.replace("__", "/")}')
    return in_mounts(*orders)


def as_proc(tmp_path: Path, **files: str) -> str:
    """A directory with such files."""
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    return str(tmp_path)


@needs()
def test_too_little_memory_is_a_warning(tmp_path: Path) -> None:
    meminfo = "MemTotal: 1000000 kB\nMemAvailable: 200000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"
    found = examine(tmp_path, "memory", wrapper=in_proc(tmp_path, meminfo=meminfo))
    found.amiss("memory", "warn", "195 MB of 977 MB available")


@pytest.mark.parametrize(("place", "verdict"), [("/var/swap file", "warn"), ("/dev/zram0 partition", "ok")])
def test_frames_that_are_swapped_to_a_card_are_a_warning(tmp_path: Path, place: str, verdict: str) -> None:
    meminfo = "MemTotal: 4000000 kB\nMemAvailable: 3000000 kB\nSwapTotal: 500000 kB\nSwapFree: 100 kB\n"
    swaps = f"Filename Type Size Used Priority\n{place} 500000 499900 -2\n"
    found = machine.memory(Settings(), as_proc(tmp_path, meminfo=meminfo, swaps=swaps))
    assert found.verdict == verdict
    assert verdict == "ok" or found.mend == "sudo swapoff /var/swap"


@pytest.mark.parametrize(
    ("cmdline", "cgroups", "verdict"),
    [
        ("console=tty1 cgroup_disable=memory rootwait\n", "#name\nmemory\t0\t90\t0\n", "warn"),
        ("console=tty1 cgroup_disable=memory cgroup_enable=memory\n", "#name\nmemory\t0\t90\t1\n", "ok"),
        ("console=tty1\n", "#name\ncpu\t0\t90\t1\n", "skipped"),
    ],
)
def test_memory_cgroups_that_firmware_switches_off(tmp_path: Path, cmdline: str, cgroups: str, verdict: str) -> None:
    found = machine.memory_cgroup(as_proc(tmp_path, cmdline=cmdline, cgroups=cgroups), str(tmp_path / "sys"))
    assert found.verdict == verdict
    assert verdict != "warn" or ("cgroup_disable=memory" in found.found and "cmdline.txt" in found.mend)


@needs()
def test_a_kernel_without_memory_cgroups_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    files = in_proc(tmp_path, cmdline="cgroup_disable=memory", cgroups="#name\nmemory\t0\t90\t0\n")
    examine(tmp_path, "memory cgroup", wrapper=(*fake_sys(tmp_path / "sys"), *files)).amiss("memory cgroup", "warn")


# -- the Pi ----------------------------------------------------------------------------------------------------------


def sysfs(root: Path, throttled: bytes = b"", temperature: bytes = b"", alarm: bytes = b"") -> Path:
    """A Pi's sysfs."""
    files = {
        "devices/platform/soc/soc:firmware/get_throttled": throttled,
        "class/thermal/thermal_zone0/temp": temperature,
        "class/hwmon/hwmon0/name": b"rpi_volt\n",
        "class/hwmon/hwmon0/in0_lcrit_alarm": alarm,
    }
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


@pytest.mark.parametrize(
    ("throttled", "verdict", "text"),
    [
        (b"0\n", "ok", "neither now nor since the boot"),
        (b"50005\n", "fail", "0x50005: now under-voltage, throttled; since boot under-voltage, throttled"),
        (b"throttled=0x50000", "warn", "now nothing; since boot under-voltage, throttled"),
        (b"80008\n", "warn", "now soft temperature limit"),
        (b"N/A", "skipped", ""),
        (b"", "skipped", ""),
        (b"\x00\xff\x80", "skipped", ""),
    ],
)
def test_throttling_is_spelled_out(tmp_path: Path, throttled: bytes, verdict: str, text: str) -> None:
    found = machine.throttling(str(sysfs(tmp_path, throttled)))
    assert found.verdict == verdict and text in found.found
    if verdict != "ok" and text:
        assert ("supply" in found.mend) == ("under-voltage" in text) != ("fan" in found.mend)


@needs()
def test_a_pi_is_asked_how_it_is(tmp_path: Path) -> None:
    pi = fake_sys(sysfs(tmp_path / "sys", b"50005", b"81000", b"1"))
    found = examine(tmp_path, "throttling", "temperature", "supply", wrapper=pi)
    assert [finding["verdict"] for finding in found.findings] == ["fail", "warn", "fail"] and found.code == 1


@needs()
def test_vcgencmd_is_asked_where_sysfs_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    path = stub(tmp_path / "bin", "vcgencmd", 'test "$1" = get_throttled && echo throttled=0x50005')
    found = examine(tmp_path, "throttling", wrapper=fake_sys(tmp_path / "sys"), environment=path)
    found.amiss("throttling", "fail", "0x50005")


@pytest.mark.parametrize(
    ("temperature", "verdict"), [(b"79900", "ok"), (b"80000", "warn"), (b"85000", "fail"), (b"hot", "skipped")]
)
def test_heat_is_told(tmp_path: Path, temperature: bytes, verdict: str) -> None:
    assert machine.temperature(str(sysfs(tmp_path, temperature=temperature))).verdict == verdict


@pytest.mark.parametrize(("alarm", "verdict"), [(b"0\n", "ok"), (b"1\n", "fail"), (b"N/A", "skipped")])
def test_a_weak_supply_is_told(tmp_path: Path, alarm: bytes, verdict: str) -> None:
    assert machine.supply(str(sysfs(tmp_path, alarm=alarm))).verdict == verdict


# -- inotify ---------------------------------------------------------------------------------------------------------


@needs()
@pytest.mark.parametrize(
    ("limit", "key"),
    [("max_inotify_watches", "max_user_watches"), ("max_inotify_instances", "max_user_instances")],
)
def test_inotify_that_is_used_up_fails_and_names_the_sysctl(tmp_path: Path, limit: str, key: str) -> None:
    found = examine(tmp_path, "inotify", "arrivals", source(tmp_path)[0], wrapper=in_namespace_with(**{limit: 0}))
    assert found.code == 1
    assert f"fs.inotify.{key}=" in found.amiss("inotify", "fail", f"{key} is 0")["mend"]
    assert f"fs.inotify.{key}=" in found.amiss("inotify", "fail", "is used up")["mend"]
    assert found.verdict("arrivals") in ("unknown", "warn")


@needs()
def test_what_others_use_up_is_counted(tmp_path: Path) -> None:
    with INotify() as one, INotify() as two, INotify() as three:
        assert one.fd != two.fd != three.fd
        found = examine(tmp_path, "inotify", wrapper=in_proc(tmp_path, sys__fs__inotify__max_user_instances="4\n"))
    in_use = re.search(r"is 4, (\d+) in use, 2 needed", found.amiss("inotify", "warn")["found"])
    assert in_use and int(in_use[1]) >= 3


@needs()
def test_a_short_queue_is_a_warning(tmp_path: Path) -> None:
    flags = [source(tmp_path, name)[0] for name in "abcd"]
    found = examine(tmp_path, "inotify", *flags, wrapper=in_proc(tmp_path, sys__fs__inotify__max_queued_events="200\n"))
    mend = found.amiss("inotify", "warn", "max_queued_events is 200: 5.0 s at 40 frames/s")["mend"]
    assert "fs.inotify.max_queued_events=16384" in mend


# -- directories of frames -------------------------------------------------------------------------------------------


def test_a_directory_that_is_missing_fails(tmp_path: Path) -> None:
    found = examine(tmp_path, "frames a", f"--source=a={tmp_path / 'gone'}")
    assert found.code == 1
    assert str(tmp_path / "gone") in found.amiss("frames a", "fail", "is not there")["mend"]


@needs()
def test_a_directory_of_others_fails(tmp_path: Path) -> None:
    with open_place() as base:
        flag, directory = source(base)
        os.chown(directory, STRANGER, STRANGER)
        found = examine(base, "frames a", flag, wrapper=UNPRIVILEGED)
        found.amiss("frames a", "fail", "may not read and write")


@needs()
def test_a_directory_that_is_mounted_read_only_fails(tmp_path: Path) -> None:
    flag, directory = source(tmp_path)
    with read_only(directory):
        examine(tmp_path, "frames a", flag).amiss("frames a", "fail", "may not read and write")


@needs()
def test_frames_in_memory_are_well_and_on_a_disk_there_is_a_budget(tmp_path: Path) -> None:
    flag, directory = source(tmp_path)
    for number in range(20):
        path = publish(directory, number, bytes(100_000))
        os.utime(path, (1e9 + number / 5, 1e9 + number / 5))
    text = examine(tmp_path, "frames a", flag).amiss("frames a", "warn", "not in memory")["found"]
    assert text.endswith("is not in memory: 5.0 frames/s of 100 kB are 43 GB a day")
    with tmpfs(directory, "size=32m"):
        found = examine(tmp_path, "frames a", flag)
    assert found.verdict("frames a") == "ok" and f"{directory} on tmpfs" in found.of("frames a")[0]["found"]


@needs()
def test_a_full_file_system_fails_for_bytes_and_for_inodes(tmp_path: Path) -> None:
    flag, directory = source(tmp_path)
    with tmpfs(directory, "size=8m"), filled(directory):
        examine(tmp_path, "frames a", flag).amiss("frames a", "fail", "full")
    with tmpfs(directory, "size=8m,nr_inodes=40"), without_inodes(directory):
        assert "nr_inodes" in examine(tmp_path, "frames a", flag).amiss("frames a", "fail", "no inodes free")["mend"]
    with tmpfs(directory, "size=8m,nr_inodes=40"):
        examine(tmp_path, "frames a", flag).amiss("frames a", "warn", "inodes free")


@needs("bindfs")
def test_a_file_system_that_hides_changes_is_a_warning(tmp_path: Path) -> None:
    flag, directory = source(tmp_path)
    with bindfs(tmp_path / "back", directory):
        found = examine(tmp_path, "frames a", "arrivals", flag)
        found.amiss("frames a", "warn", "is on fuse")
        assert found.verdict("arrivals") == "skipped"


def test_a_prefix_that_is_wrong_is_found(tmp_path: Path) -> None:
    flag, directory = source(tmp_path)
    publish(directory, 7, make_frame(1), prefix="frame_")
    text = examine(tmp_path, "frames a", flag).amiss("frames a", "fail", "no file in")["found"]
    assert text.endswith("is called capture_<digits>.jpg, but there is frame_000000007.jpg")


def test_what_a_killed_ffmpeg_left_is_found(tmp_path: Path) -> None:
    flag, directory = source(tmp_path)
    (directory / "capture_000000001.jpg.tmp").touch()
    assert not [f for f in examine(tmp_path, "frames a", flag).of("frames a") if ".tmp" in f["found"]], (
        "it may be in use"
    )
    os.utime(directory / "capture_000000001.jpg.tmp", (1e9, 1e9))
    examine(tmp_path, "frames a", flag).amiss("frames a", "warn", "1 left-over .tmp")


def test_a_directory_that_nobody_empties_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MANY_FRAMES", 200)
    flag, directory = source(tmp_path)
    for number in range(201):
        (directory / f"capture_{number}.jpg").touch()
    examine(tmp_path, "frames a", flag).amiss("frames a", "warn", "201 frames")


# -- how frames come -------------------------------------------------------------------------------------------------


def in_place(directory: Path, number: int, data: bytes) -> None:
    """As FFmpeg does without -atomic_writing."""
    (directory / f"capture_{number:09d}.jpg").write_bytes(data)


def linked(directory: Path, number: int, data: bytes) -> None:
    """A way that no rename is part of."""
    (directory / "other").write_bytes(data)
    os.link(directory / "other", directory / f"capture_{number:09d}.jpg")
    (directory / "other").unlink()


@pytest.mark.parametrize("how", [in_place, linked])
def test_frames_that_are_not_renamed_fail(tmp_path: Path, how: Callable[[Path, int, bytes], object]) -> None:
    flag, directory = source(tmp_path)
    other, good = source(tmp_path, "b")
    with publishing(directory, how=how), publishing(good):
        found = examine(tmp_path, "arrivals", flag, other)
    assert found.code == 1
    assert "-atomic_writing 1" in found.amiss("arrivals", "fail", "a: written in place")["mend"]
    assert [f["found"] for f in found.of("arrivals") if f["verdict"] == "ok"] == ["by rename: b"]


def test_a_source_to_which_nobody_publishes_is_a_warning(tmp_path: Path) -> None:
    flag, _ = source(tmp_path)
    found = examine(tmp_path, "arrivals", flag)
    assert found.code == 0
    found.amiss("arrivals", "warn", "a: no frame within 2 s")


# -- captured sources ------------------------------------------------------------------------------------------------


def test_a_capture_is_rehearsed(tmp_path: Path) -> None:
    _, directory = source(tmp_path)
    found = examine(
        tmp_path,
        "capture a",
        "arrivals",
        captured(tmp_path, 'profile = "lavfi"\ninput = "scene:live"', str(directory)),
    )
    assert found.verdict("capture a") == "ok" and found.verdict("arrivals") == "skipped"
    found = examine(
        tmp_path, "capture a", captured(tmp_path, 'profile = "lavfi"\ninput = "scene:nothing"', str(directory))
    )
    assert found.code == 1
    found.amiss("capture a", "fail", "must be live, freeze")


def test_a_recording_that_is_not_there_fails(tmp_path: Path) -> None:
    _, directory = source(tmp_path)
    flag = captured(tmp_path, f'profile = "file"\ninput = "{tmp_path}/gone.mp4"', str(directory))
    examine(tmp_path, "capture a", flag).amiss("capture a", "fail", "no such recording")


def test_a_directory_of_its_own_is_made_at_the_start(tmp_path: Path) -> None:
    found = examine(tmp_path, "capture a", "frames a", captured(tmp_path, 'profile = "lavfi"\ninput = "scene:live"'))
    assert found.verdict("capture a") == found.verdict("frames a") == "ok"


def test_a_mistake_is_found_before_the_first_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is not there yet, and the service would end with 78."""
    flag = captured(tmp_path, 'profile = "lavfi"\ninput = "scene:live"\nfps = 2.5')
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    examine(tmp_path, "capture a", flag).amiss("capture a", "fail", "a scene needs a whole number")
    assert not list((tmp_path / "tmp").iterdir())


def test_only_a_directory_that_the_start_does_not_make_fails(tmp_path: Path) -> None:
    scene = 'profile = "lavfi"\ninput = "scene:live"'
    found = examine(tmp_path, "frames a", captured(tmp_path, scene, str(tmp_path / "a")))
    assert found.verdict("frames a") == "ok"
    found = examine(tmp_path, "frames a", captured(tmp_path, scene, str(tmp_path / "missing" / "a")))
    assert "the service waits for it" in found.amiss("frames a", "fail", "is not there")["why"]


def test_frames_that_were_captured_elsewhere_would_be_deleted(tmp_path: Path) -> None:
    _, directory = source(tmp_path)
    publish(directory, 1, make_frame(1))
    flag = captured(tmp_path, 'profile = "lavfi"\ninput = "scene:live"', str(directory))
    examine(tmp_path, "capture a", flag).amiss("capture a", "fail", "not captured here")


def test_the_password_of_a_camera_is_not_shown(tmp_path: Path) -> None:
    _, directory = source(tmp_path)
    flag = captured(tmp_path, 'profile = "rtsp"\ninput = "http://user:hushhush@cam/x?token=hushhush"', str(directory))
    found = examine(tmp_path, "capture a", flag)
    found.amiss("capture a", "fail", "must be an rtsp:// URL")
    assert "hushhush" not in str(found)


DEVICES = (
    "mount -t tmpfs t /dev",
    *(f"mknod /dev/{name} c {number}" for name, number in {"null": "1 3", "urandom": "1 9", "video0": "81 0"}.items()),
    "chmod 666 /dev/null /dev/urandom",
    "chmod 660 /dev/video0",
    "mkdir -p /dev/v4l/by-path",
    "ln -s ../../video0 /dev/v4l/by-path/usb-0:1.2-video-index0",
    "ln -s ../../video1 /dev/v4l/by-path/usb-0:1.2-video-index1",
)
PORT = "/dev/v4l/by-path/usb-0:1.2-video-index0"


@needs()
def test_a_grabber_by_its_port_is_well_and_by_its_number_a_warning(tmp_path: Path) -> None:
    table = 'profile = "v4l2-copy"\ninput = "{}"'
    devices = in_mounts(*DEVICES)
    found = examine(tmp_path, "capture a", captured(tmp_path, table.format(PORT)), wrapper=devices)
    assert found.verdict("capture a") == "ok"
    found = examine(tmp_path, "capture a", captured(tmp_path, table.format("/dev/video0")), wrapper=devices)
    assert PORT in found.amiss("capture a", "warn", "named by its number")["mend"]


@needs()
def test_a_grabber_that_is_unplugged_fails_and_those_that_are_there_are_named(tmp_path: Path) -> None:
    flag = captured(tmp_path, 'profile = "v4l2-copy"\ninput = "/dev/v4l/by-path/usb-0:1.3-video-index0"')
    mend = examine(tmp_path, "capture a", flag, wrapper=in_mounts(*DEVICES)).amiss("capture a", "fail", "is not there")[
        "mend"
    ]
    assert PORT in mend and "index1" not in mend
    assert "plug it in" in examine(tmp_path, "capture a", flag).amiss("capture a", "fail", "is not there")["mend"]


@needs()
def test_a_grabber_that_is_not_ours_to_use_fails(tmp_path: Path) -> None:
    flag = captured(tmp_path, f'profile = "v4l2-copy"\ninput = "{PORT}"')
    closed = in_mounts(*DEVICES, f"chown {STRANGER}:{STRANGER} /dev/video0")
    found = examine(tmp_path, "capture a", flag, wrapper=(*closed, *UNPRIVILEGED))
    assert "usermod -aG video" in found.amiss("capture a", "fail", "may not use")["mend"]


# -- directories of the service --------------------------------------------------------------------------------------


@needs()
def test_a_state_directory_in_memory_is_a_warning(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "state", "size=64m"):
        found = examine(tmp_path, "state directory")
        found.amiss("state directory", "warn", "is in memory")
        found.amiss("state directory", "fail", "less than min_free_bytes")


def test_bounds_that_the_disk_cannot_hold_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(f"store_max_bytes = {2**50}\n")
    found = examine(tmp_path, "state directory", f"--config={tmp_path / 'c.toml'}")
    assert found.code == 0
    found.amiss("state directory", "warn", "bounds and min_free_bytes may take")


@needs()
def test_directories_of_others_fail(tmp_path: Path) -> None:
    with open_place() as base:
        for name in ("run", "state"):
            (base / name).mkdir(mode=0o700)
            os.chown(base / name, STRANGER, STRANGER)
        found = examine(base, "state directory", "runtime directory", wrapper=UNPRIVILEGED)
        found.amiss("state directory", "fail", "may not write")
        found.amiss("runtime directory", "fail", "belongs to another user")
        found.amiss("runtime directory", "fail", "may not write")


@needs()
def test_files_that_root_left_behind_are_found(tmp_path: Path) -> None:
    with open_place() as base:
        (base / "state").mkdir()
        (base / "state" / "incidents.sqlite").touch()
        os.chown(base / "state", STRANGER, STRANGER)
        found = examine(base, "state directory", wrapper=AS_STRANGER, environment={"HOME": str(base)})
        assert "chown -R" in found.amiss("state directory", "fail", "incidents.sqlite belongs to another")["mend"]


@needs()
def test_a_runtime_directory_on_a_disk_or_too_small_is_a_warning(tmp_path: Path) -> None:
    examine(tmp_path, "runtime directory").amiss("runtime directory", "warn", "is not in memory")
    with tmpfs(tmp_path / "run", "size=8m"):
        examine(tmp_path, "runtime directory").amiss("runtime directory", "warn", "8 MB free")


def test_places_for_log_and_metrics_that_are_missing_fail(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(f'log_file = "{tmp_path}/no/log"\nmetrics_file = "{tmp_path}/none/x.prom"\n')
    found = examine(tmp_path, "files", f"--config={tmp_path / 'c.toml'}")
    found.amiss("files", "fail", "log_file")
    found.amiss("files", "fail", "metrics_file")


@needs()
@pytest.mark.parametrize(
    ("name", "modes", "text", "mend"),
    [
        ("x.prom", (0o755, 0o755, 0o644), "", ""),
        ("x.prom", (0o751, 0o755, 0o644), "", ""),  # others may pass, and that is enough
        ("x.txt", (0o755, 0o755, 0o644), "x.txt does not end in .prom", "stillwatch.prom"),
        ("x.prom", (0o750, 0o755, 0o644), "/textfile/.. is closed", "chmod o+rx"),
        ("x.prom", (0o755, 0o751, 0o644), "/textfile is closed", "chmod o+rx"),
        ("x.prom", (0o755, 0o755, 0o640), "x.prom may not be read", "chmod o+r "),
    ],
)
def test_metrics_that_node_exporter_cannot_read_are_a_warning(
    name: str, modes: tuple[int, int, int], text: str, mend: str
) -> None:
    with open_place() as base, tmpfs(base / "memory"):
        path = base / "memory" / "textfile" / name
        path.parent.mkdir()
        path.touch()
        for place, mode in zip((base / "memory", path.parent, path), modes, strict=True):
            place.chmod(mode)
        (base / "c.toml").write_text(f'metrics_file = "{path}"\n')
        found = examine(base, "files", f"--config={base / 'c.toml'}")
        if text:
            text = text.replace("/textfile/..", f"{base}/memory")
            assert mend in found.amiss("files", "warn", text)["mend"]
        else:
            assert found.verdict("files") == "ok", found.of("files")


# -- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "verdict"), [(0o600, "ok"), (0o400, "ok"), (0o640, "warn"), (0o644, "warn")])
def test_credentials_that_others_may_read_are_a_warning(tmp_path: Path, mode: int, verdict: str) -> None:
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "r2-bucket").touch(0o600)
    (tmp_path / "credentials" / "r2-bucket").chmod(mode)
    found = examine(tmp_path, "secrets", environment={"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")})
    assert found.verdict("secrets") == verdict


@pytest.mark.parametrize(("mode", "verdict"), [(0o640, "ok"), (0o644, "warn")])
def test_a_webhook_that_everybody_may_read_is_a_warning(tmp_path: Path, mode: int, verdict: str) -> None:
    (tmp_path / "c.toml").write_text('webhook_url = "https://localhost/hushhush"\n')
    (tmp_path / "c.toml").chmod(mode)
    found = examine(tmp_path, "secrets", f"--config={tmp_path / 'c.toml'}")
    assert found.verdict("secrets") == verdict
    assert "hushhush" not in str(found)


@needs()
def test_credentials_that_only_root_may_read_are_unknown(tmp_path: Path) -> None:
    with open_place() as base:
        (base / "credentials").mkdir(mode=0o700)
        os.chown(base / "credentials", STRANGER, STRANGER)
        ask = partial(examine, base, environment={"CREDENTIALS_DIRECTORY": str(base / "credentials")})
        found = ask(wrapper=UNPRIVILEGED)
        assert found.code == 0
        assert "sudo" in found.amiss("secrets", "unknown")["mend"]
        assert "sudo" in found.amiss("r2", "unknown")["mend"]


@needs()
def test_a_mount_over_a_source_is_what_is_examined(tmp_path: Path) -> None:
    flag, directory = source(tmp_path)
    publish(directory, 1, make_frame(1))
    with mounted(directory, "mount", "-t", "tmpfs", "test", str(directory)):
        assert examine(tmp_path, "frames a", flag).of("frames a")[0]["found"].endswith("; 0 frames")


def test_the_readme_shows_every_check_in_its_order(tmp_path: Path) -> None:
    blocks = readme.section("Is it working?").split("```")
    shown = re.findall(r"^(?:ok|warn|FAIL|unknown|skipped) +(\S+(?: \S+)*)  ", blocks[3], re.MULTILINE)
    assert [name for name in shown if not name.startswith(("capture ", "frames "))] == [
        finding["name"] for finding in examine(tmp_path).findings
    ]
