"""The unit `stillwatch.service` as systemd knows it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from pipeline.checks import programs

NAME = "stillwatch.service"
LOG = f"journalctl -u {NAME} -n 100"  # to be typed
_SYSTEMD = "/run/systemd/system"  # sd_booted(3)
_PROPERTIES = (
    "LoadState UnitFileState ActiveState SubState Result User SupplementaryGroups FragmentPath DropInPaths"
    " NeedDaemonReload ProtectHome PrivateTmp PrivateDevices ProtectSystem ReadWritePaths RuntimeDirectory"
    " StateDirectory LogsDirectory MemoryMax"
)


@dataclass(frozen=True)
class Unit:
    """Its properties, by systemd's names; empty texts where there is no such unit."""

    properties: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> str:
        return self.properties.get(name, "")

    @property
    def installed(self) -> bool:
        """Whether systemd has loaded the unit's file."""
        return self["LoadState"] == "loaded"


def look() -> Unit | None:
    """Ask systemd; None where this machine runs without it. Raises OSError and NoAnswer."""
    if not os.path.isdir(_SYSTEMD):
        return None
    answer = programs.ask(["systemctl", "show", NAME, f"--property={','.join(_PROPERTIES.split())}"])
    if answer.code:
        raise programs.NoAnswer(f"systemctl: {answer.text.strip().partition(chr(10))[0]}")
    lines = (line.partition("=") for line in answer.text.splitlines())
    return Unit({name: value for name, equals, value in lines if equals})
