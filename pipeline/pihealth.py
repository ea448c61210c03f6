"""How the Raspberry Pi under us is: throttling, temperature and supply, as its kernel tells in sysfs.

What a machine does not tell, or tells in a way that makes no sense, is None: everything here is absent on a machine
that is no Pi, and some of it on a Pi with another kernel. No program is started for it.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass

SYS = "/sys"
THROTTLED_FILE = "devices/platform/soc/soc:firmware/get_throttled"
THERMAL_FILE = "class/thermal/thermal_zone0/temp"
SUPPLY_NAME = "rpi_volt"  # the hwmon driver's name; in0_lcrit_alarm: the supply is too low
FLAGS = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
"""Bits 0-3 of get_throttled, now, and 16-19, since the boot (Raspberry Pi documentation, graphics utilities)."""

SINCE_BOOT = 16
SOFT_LIMIT_C, HARD_LIMIT_C = 80.0, 85.0  # the firmware slows the cores down from the first on, harder at the second
_PLAUSIBLE_C = (-40.0, 150.0)
_MAX_BYTES = 64  # none of these files is longer
_THROTTLED = re.compile(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]{1,8})")


@dataclass(frozen=True)
class PiHealth:
    """One look. None: not told here."""

    throttled: int | None = None  # get_throttled's bits
    temperature_c: float | None = None
    under_voltage: bool | None = None  # the supply's own alarm, now


def read(sys_root: str = SYS) -> PiHealth:
    """Look once."""
    return PiHealth(
        parse_throttled(_text(f"{sys_root}/{THROTTLED_FILE}")),
        _temperature_c(_text(f"{sys_root}/{THERMAL_FILE}")),
        _alarm(sys_root),
    )


def parse_throttled(text: str | None) -> int | None:
    """The bits, from sysfs (`50005`) or from `vcgencmd get_throttled` (`throttled=0x50005`)."""
    found = _THROTTLED.fullmatch(text) if text else None
    return int(found[1], 16) if found else None


def now_and_before(throttled: int) -> tuple[list[str], list[str]]:
    """What of FLAGS holds now, and what has held since the boot."""
    now = [name for bit, name in enumerate(FLAGS) if throttled >> bit & 1]
    return now, [name for bit, name in enumerate(FLAGS) if throttled >> (SINCE_BOOT + bit) & 1]


def _temperature_c(text: str | None) -> float | None:
    """From thousandths of a degree."""
    if not text or not re.fullmatch(r"-?[0-9]{1,7}", text, re.ASCII):
        return None
    celsius = int(text) / 1000
    return celsius if _PLAUSIBLE_C[0] <= celsius <= _PLAUSIBLE_C[1] else None


def _alarm(sys_root: str) -> bool | None:
    for place in sorted(glob.glob(f"{glob.escape(sys_root)}/class/hwmon/*/name")):
        if _text(place) == SUPPLY_NAME:
            return {"0": False, "1": True}.get(_text(place.removesuffix("name") + "in0_lcrit_alarm") or "")
    return None


def _text(path: str) -> str | None:
    """A small file's content; None where there is none, or none that is text. Drivers may refuse as well."""
    try:
        with open(path, "rb", buffering=0) as file:
            return (file.read(_MAX_BYTES) or b"").decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
