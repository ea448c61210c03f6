"""The Pi's own readings: from trees like its sysfs, sound and unsound, up to the line that a service prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.pihealth import SYS, PiHealth, now_and_before, parse_throttled, read
from tests.machine import FaultRig, fake_sys, needs
from tests.support import wait_until

FILES = {
    "throttled": "devices/platform/soc/soc:firmware/get_throttled",
    "temperature": "class/thermal/thermal_zone0/temp",
    "supply": "class/hwmon/hwmon1/name",
    "alarm": "class/hwmon/hwmon1/in0_lcrit_alarm",
}
GARBAGE = [b"", b"\n", b"N/A", b"\x00\xff\xfe\x80", b"throttled=", b"1.5", b"9" * 100, "٣".encode(), b"-", b"0x"]


def tree(root: Path, **content: bytes) -> str:
    """A sysfs with these of FILES."""
    root.mkdir(exist_ok=True)
    for name, data in content.items():
        path = root / FILES[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(root)


def test_a_healthy_pi(tmp_path: Path) -> None:
    root = tree(tmp_path, throttled=b"0\n", temperature=b"51121\n", supply=b"rpi_volt\n", alarm=b"0\n")
    assert read(root) == PiHealth(0, 51.121, False)


def test_a_pi_with_a_weak_supply(tmp_path: Path) -> None:
    root = tree(tmp_path, throttled=b"50005\n", temperature=b"84500\n", supply=b"rpi_volt\n", alarm=b"1\n")
    assert read(root) == PiHealth(0x50005, 84.5, True)


def test_a_machine_that_is_no_pi_tells_nothing(tmp_path: Path) -> None:
    assert read(str(tmp_path)) == read(str(tmp_path / "gone")) == PiHealth(None, None, None)


def test_this_machine_can_be_asked() -> None:
    assert isinstance(read(SYS), PiHealth)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_nonsense_is_unknown(tmp_path: Path, garbage: bytes) -> None:
    root = tree(tmp_path, throttled=garbage, temperature=garbage, supply=b"rpi_volt", alarm=garbage)
    assert read(root).temperature_c is None
    assert read(root).under_voltage is None
    if garbage != b"9" * 100:  # of which the driver's buffer would show the first part only
        assert read(root).throttled is None


@pytest.mark.parametrize("celsius", [b"151000", b"-41000", b"9999999"])
def test_a_temperature_that_no_processor_has_is_unknown(tmp_path: Path, celsius: bytes) -> None:
    assert read(tree(tmp_path, temperature=celsius)).temperature_c is None


def test_one_reading_may_be_absent_without_the_others(tmp_path: Path) -> None:
    assert read(tree(tmp_path, temperature=b"40000")) == PiHealth(None, 40.0, None)


def test_a_directory_in_a_files_place_is_unknown(tmp_path: Path) -> None:
    for path in FILES.values():
        (tmp_path / path).mkdir(parents=True)
    assert read(str(tmp_path)) == PiHealth(None, None, None)


def test_the_supply_is_found_among_other_sensors(tmp_path: Path) -> None:
    root = tree(tmp_path, supply=b"cpu_thermal\n")
    other = tmp_path / "class/hwmon/hwmon2"
    other.mkdir()
    (other / "name").write_bytes(b"rpi_volt\n")
    assert read(root).under_voltage is None
    (other / "in0_lcrit_alarm").write_bytes(b"1\n")
    assert read(root).under_voltage is True


@pytest.mark.parametrize(
    ("text", "bits"),
    [("0", 0), ("50005", 0x50005), ("0x50005", 0x50005), ("throttled=0x50005", 0x50005), ("FFFFFFFF", 0xFFFFFFFF)]
    + [(text, None) for text in ("", "N/A", "throttled=", "1_000", "123456789", "-1", None)],
)
def test_throttling_is_read_from_both_of_its_forms(text: str | None, bits: int | None) -> None:
    assert parse_throttled(text) == bits


@pytest.mark.parametrize(
    ("bits", "now", "before"),
    [
        (0, [], []),
        (0x1, ["under-voltage"], []),
        (0x50005, ["under-voltage", "throttled"], ["under-voltage", "throttled"]),
        (0xA000A, ["frequency capped", "soft temperature limit"], ["frequency capped", "soft temperature limit"]),
        (0xFFF0FFF0, [], []),
    ],
)
def test_every_bit_has_its_name(bits: int, now: list[str], before: list[str]) -> None:
    assert now_and_before(bits) == (now, before)


# -- the real service -------------------------------------------------------------------------------------------------


@needs("unshare")
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            {"throttled": b"50005\n", "temperature": b"84500\n", "supply": b"rpi_volt", "alarm": b"1"},
            "temperature_c=84.5 throttled=0x50005 under_voltage=yes",
        ),
        ({}, "temperature_c=null throttled=null under_voltage=null"),
        (dict.fromkeys(FILES, b"N/A"), "temperature_c=null throttled=null under_voltage=null"),
        (dict.fromkeys(FILES, b"\x00\xff\xfe"), "temperature_c=null throttled=null under_voltage=null"),
    ],
    ids=["weak supply", "no Pi", "N/A", "binary"],
)
def test_a_service_reports_what_its_host_tells(tmp_path: Path, content: dict[str, bytes], told: str) -> None:
    root = tree(tmp_path / "sys", **content)
    service = FaultRig(tmp_path, "--workers=1", "--report-every=0.2")
    service.wrapper = fake_sys(Path(root))
    with service:
        service.publish(1)
        service.wait_sidecars(1)
        line = wait_until(lambda: service.lines(" host report "), 30, "a line about the host")[-1]
        assert f" INFO host report {told} load=" in line
        assert re.search(r" load=\d+\.\d\d memory_available_mb=\d+ sd_bytes_per_s=(\d+|null)$", line)
        assert not service.lines("Traceback")
        assert service.books()["a"]["judged"] == 1
