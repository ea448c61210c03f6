"""What `doctor` examines: settings, whose service it is, and where its secrets are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.checks.account import Account
from pipeline.checks.systemdunit import Unit
from pipeline.settings import Settings


@dataclass(frozen=True)
class Subject:
    """One configured service, running or not."""

    settings: Settings
    account: Account  # that the service runs as
    environment: Mapping[str, str]
    config_file: str = ""  # empty: none
    credentials_dir: str | None = None
    unit: Unit | None = None  # None: no systemd, or it could not be asked
    is_installed: bool = False  # whether it is the one that this unit starts

    def closed_secret(self) -> str:
        """A credential that this process may not read; empty if there is none."""
        if not self.credentials_dir:
            return ""
        try:
            paths = [entry.path for entry in os.scandir(self.credentials_dir)]
        except FileNotFoundError:
            return ""
        except PermissionError:
            return self.credentials_dir
        return next((path for path in sorted(paths) if not os.access(path, os.R_OK, effective_ids=True)), "")
