"""Checks of the machine: interpreter and packages, cores, clock, memory, and what a Raspberry Pi says of itself."""

from __future__ import annotations

import re
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from pipeline import clock, pihealth
from pipeline.checks import programs
from pipeline.checks.checkup import Finding, counted, fail, ok, skipped, unknown, warn
from pipeline.settings import Settings, usable_cpus
from pipeline.spool import EARLIEST_NS

REQUIREMENTS = str(Path(__file__).parents[2] / "requirements.txt")
MIN_PYTHON = (3, 11)
LATEST_YEAR = 2100
SPARE_BYTES = 200 * 2**20  # for the service's processes and everybody else
LOADED = "cv2 numpy inotify_simple psutil setproctitle msgspec rich"  # what the service cannot be without
LOAD_S = 10.0  # a Pi loads OpenCV from a cold card in a few seconds
_REMAKE = "rm -rf .venv, then ./stillwatch doctor (an installation: sudo systemd/install.sh)"
_CMDLINE = "append `cgroup_enable=memory cgroup_memory=1` to the one line of /boot/firmware/cmdline.txt, and reboot"
_SUPPLY = "use the official supply and a short thick cable; give USB grabbers a powered hub"
_COOL = "give it a heat sink or a fan"


# -- Python -----------------------------------------------------------------------------------------------------------


def python() -> Finding:
    """The interpreter's version."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < MIN_PYTHON:
        mend = "sudo apt-get install -y python3, or set STILLWATCH_PYTHON"
        return fail("python", found, "3.11 or newer is needed", mend)
    return ok("python", found)


def packages(requirements: str = REQUIREMENTS) -> Finding:
    """Every package of requirements.txt: there, of a version that was tried; and the large ones can be loaded."""
    missing, old, untried = [], [], []
    wanted = list(_required(requirements))
    for name, least, below in wanted:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if _numbers(version) < least:
            old.append(f"{name} {version}")
        elif below and _numbers(version) >= below:
            untried.append(f"{name} {version}")
    if missing or old:
        parts = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"too old: {', '.join(old)}"] * bool(old)
        why = "OpenCV before 4.11, for one, takes truncated frames for whole ones"
        return fail("packages", "; ".join(parts), why, _REMAKE)
    if refusal := _load():
        return fail("packages", refusal, "no frame can be judged without them", _REMAKE)
    if untried:
        found = f"newer than any that was tried: {', '.join(untried)}"
        return warn("packages", found, "it may behave otherwise", _REMAKE)
    return ok("packages", f"all {len(wanted)}, opencv {metadata.version('opencv-python-headless')}")


def _required(path: str) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Name, least version and first version that was not tried, of each line."""
    with open(path, encoding="utf-8") as lines:
        found = (re.match(r"([A-Za-z0-9-]+)>=([0-9.]+)(?:,<([0-9.]+))?", line) for line in lines)
        return [(match[1], _numbers(match[2]), _numbers(match[3] or "")) for match in found if match]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]+", version)[:3])


def _load() -> str:
    """Why they cannot be loaded; empty if they can. In a process of its own: a wheel for another processor kills it."""
    statement = f"import {LOADED.replace(' ', ', ')}"
    try:
        answer = programs.ask([sys.executable, "-P", "-c", statement], limit_s=LOAD_S)
    except programs.NoAnswer:
        return f"loading them took over {LOAD_S:.0f} s"
    if answer.code < 0:
        return f"loading them ended by signal {-answer.code}: made for another processor?"
    return answer.text.strip().rpartition("\n")[2] if answer.code else ""


# -- cores and clock --------------------------------------------------------------------------------------------------


def cores(settings: Settings) -> Finding:
    """Whether the workers get the cores they are to have."""
    usable, wanted, workers = usable_cpus(), settings.worker_cpus(), settings.worker_count()
    absent = sorted(set(wanted) - set(usable))
    found = f"{len(usable)} usable ({_ranges(usable)}), {counted(workers, 'worker')} on {_ranges(wanted)}"
    better = f"--cpus {_ranges(usable[1:] or usable)}"
    if absent:
        why = f"there is no core {_ranges(absent)} for this process: a worker that is to have it runs unpinned"
        return warn("cores", found, why, better)
    if workers > len(set(wanted)):
        why = "workers that share a core judge no more frames than one would"
        return warn("cores", found, why, f"--workers {len(set(wanted))}, or more --cpus")
    return ok("cores", found)


def _ranges(numbers: list[int]) -> str:
    """`0-2,5`."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def clock_kept() -> Finding:
    """Whether somebody keeps the clock right, and whether it can be right at all."""
    now, state = datetime.now(UTC), clock.adjtimex()
    found = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    mend = "sudo timedatectl set-ntp true, and a network"
    if time.time_ns() < EARLIEST_NS or now.year >= LATEST_YEAR:
        why = "incidents get wrong times, and TLS refuses every certificate"
        return fail("clock", f"{found}: that cannot be", why, mend)
    if clock.synchronised():
        return ok("clock", f"{found}, synchronised")
    if state < 0:
        return unknown("clock", f"{found}; the kernel does not say whether anybody keeps it right", "timedatectl")
    why = "uploads to R2 wait until it is, or until the server's time agrees"
    return warn("clock", f"{found}, kept right by nobody", why, mend)


# -- memory -----------------------------------------------------------------------------------------------------------


def memory(settings: Settings, proc: str = "/proc") -> Finding:
    """Whether there is room for what is to be kept in memory, and where it would be swapped to."""
    figures = _meminfo(f"{proc}/meminfo")
    total, free = figures["MemTotal"], figures["MemAvailable"]
    swapped = figures.get("SwapTotal", 0) - figures.get("SwapFree", 0)
    wanted = settings.bytes_in_memory()
    found = f"{_mb(free)} of {_mb(total)} available; frames and evidence may take {_mb(wanted)}"
    if free < wanted + SPARE_BYTES:
        why = "the kernel kills processes when memory ends, and files in memory are not freed by that"
        return warn("memory", found, why, "lower max_bytes of the sources or hold_max_bytes, or end other programs")
    if swapped > SPARE_BYTES and (device := _swap_on_card(proc)):
        why = "frames in memory are swapped to the SD card, which wears it out and takes seconds"
        return warn("memory", f"{found}; {_mb(swapped)} swapped to {device}", why, f"sudo swapoff {device}")
    return ok("memory", found)


def _meminfo(path: str) -> dict[str, int]:
    """In bytes."""
    with open(path, encoding="ascii") as lines:
        return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}


def _swap_on_card(proc: str) -> str:
    """The swap area that is not compressed memory; empty if there is none."""
    with open(f"{proc}/swaps", encoding="utf-8") as lines:
        places = [line.split()[0] for line in list(lines)[1:]]
    return next((place for place in places if not place.startswith("/dev/zram")), "")


def _mb(count: int) -> str:
    return f"{count / 2**20:.0f} MB"


def memory_cgroup(proc: str = "/proc", sys_root: str = pihealth.SYS) -> Finding:
    """Whether limits of memory in units have any effect: the Pi's firmware switches them off."""
    name = "memory cgroup"
    with open(f"{proc}/cmdline", encoding="utf-8", errors="replace") as file:
        disabled = [word for word in file.read().split() if word.startswith("cgroup_disable=") and "memory" in word]
    if ["memory", "1"] in [[row[0], row[-1]] for row in _rows(f"{proc}/cgroups")] or any(
        "memory" in row for row in _rows(f"{sys_root}/fs/cgroup/cgroup.controllers")
    ):
        return ok(name, "limits of memory in units have effect")
    if disabled:
        why = "MemoryMax= and MemoryHigh= of this and any other unit are ignored without a word"
        return warn(name, f"{disabled[0]} on the kernel's command line", why, _CMDLINE)
    return skipped(name, "this kernel does not tell")


def _rows(path: str) -> list[list[str]]:
    """A file's lines in words; none where it is not there."""
    try:
        with open(path, encoding="ascii", errors="replace") as lines:
            return [words for line in lines if (words := line.split())]
    except OSError:
        return []


# -- the Pi -----------------------------------------------------------------------------------------------------------


def throttling(sys_root: str = pihealth.SYS) -> Finding:
    """The firmware's word on supply and heat, now and since the boot; from vcgencmd where sysfs does not have it."""
    name, bits = "throttling", pihealth.read(sys_root).throttled
    if bits is None:
        bits = _ask_vcgencmd()
    if bits is None:
        return skipped(name, "not told here (no Raspberry Pi?)")
    now, before = pihealth.now_and_before(bits)
    text = f"{bits:#x}: now {', '.join(now) or 'nothing'}; since boot {', '.join(before) or 'nothing'}"
    mend = _SUPPLY if pihealth.FLAGS[0] in (*now, *before) else _COOL
    why = "frames are judged late, and a weak supply makes USB grabbers and SD cards fail"
    if pihealth.FLAGS[0] in now:
        return fail(name, text, why, mend)
    if now or before:
        return warn(name, text, why, mend)
    return ok(name, "neither now nor since the boot")


def _ask_vcgencmd() -> int | None:
    try:
        return pihealth.parse_throttled(programs.ask(["vcgencmd", "get_throttled"], limit_s=2.0).text.strip())
    except (OSError, programs.NoAnswer):
        return None


def temperature(sys_root: str = pihealth.SYS) -> Finding:
    """The processor's."""
    name, celsius = "temperature", pihealth.read(sys_root).temperature_c
    if celsius is None:
        return skipped(name, "not told here")
    text = f"{celsius:.1f} °C"
    if celsius >= pihealth.HARD_LIMIT_C:
        return fail(name, text, "from 85 °C on a Pi slows down to protect itself", _COOL)
    if celsius >= pihealth.SOFT_LIMIT_C:
        return warn(name, text, "from 80 °C on a Pi begins to slow down", _COOL)
    return ok(name, text)


def supply(sys_root: str = pihealth.SYS) -> Finding:
    """The alarm of the Pi's supply."""
    name, alarm = "supply", pihealth.read(sys_root).under_voltage
    if alarm is None:
        return skipped(name, "not told here (no Raspberry Pi?)")
    if alarm:
        return fail(name, "under-voltage", "USB grabbers and SD cards fail by it, and cores are slowed down", _SUPPLY)
    return ok(name, "no under-voltage")
