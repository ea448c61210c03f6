"""One frozen tree of settings: what can be set, with its default and the reason for it. Read in by `config`."""

from __future__ import annotations

import os
import re
from typing import Annotated

import msgspec
from msgspec import Meta

from pipeline.model import MAX_WORKERS, RULES, BlackThresholds, ConfigError, FreezeThresholds, Rule

Seconds = Annotated[float, Meta(gt=0, le=1e6)]
"""A duration. Bounded, because "inf" and "nan" are numbers to TOML and to a command line."""


MIB = 2**20
DAY_S = 86_400.0
Bytes = Annotated[int, Meta(ge=0, le=2**50)]
Age = Annotated[float, Meta(gt=0, le=1e9)]


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One captured stream and its directory."""

    name: str
    dir: str
    prefix: str = "capture_"  # frames are `<prefix><digits>.jpg`
    poll: bool = False  # probe for frames instead of inotify
    black: BlackThresholds = BlackThresholds()
    freeze: FreezeThresholds = FreezeThresholds()
    rules: dict[str, Rule] = {}  # per condition, in place of the default rule: [source.rules.black]

    def rule_of(self, condition: str) -> Rule:
        """The rule of a condition for this source."""
        return self.rules.get(condition) or RULES[condition]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. Defaults with their reasons."""

    source: tuple[Source, ...] = ()
    workers: Annotated[int, Meta(ge=1, le=MAX_WORKERS)] | str = "auto"  # auto: usable cores - 1, at least 1
    cpus: str = ""  # cores for the workers, "1-3" or "1,3"; empty: all usable but the first, which is left to FFmpeg
    state_dir: str = ""  # incident log and evidence: on disk
    runtime_dir: str = ""  # lock and board: gone after a reboot
    log_level: str = "INFO"
    report_every_s: Annotated[float, Meta(ge=0.1, le=1e6)] = 60.0
    startup_frames: Annotated[int, Meta(ge=0)] = 10  # frames without a sidecar that are judged at start, newest first
    strict: bool = False  # a directory that is not there is an error instead of being waited for
    poll: bool = False  # probe all sources instead of inotify
    host: str = ""  # this rig's name in incidents and keys; empty: the machine's
    hold_max_bytes: Bytes = 64 * MIB  # evidence on its way from the workers, in memory
    spool_max_bytes: Bytes = 256 * MIB  # evidence on disk that waits for the store: about 1,000 incidents
    spool_max_age_s: Age = 7 * DAY_S
    store_max_bytes: Bytes = 1024 * MIB  # the local store, which is used where R2 is not configured
    store_max_age_s: Age = 30 * DAY_S
    min_free_bytes: Bytes = 512 * MIB  # left free on the disk for everybody else
    webhook_url: str = ""  # every open and close of an incident is POSTed there as JSON
    hang_s: Annotated[float, Meta(ge=1, le=1e6)] = 10.0  # silence of a child, or time on one frame, before it is killed
    overload_lag_s: Seconds = 5.0  # age of the oldest waiting frame at which a worker sheds

    def host_name(self) -> str:
        """This rig's name."""
        return self.host or os.uname().nodename

    def worker_count(self) -> int:
        """The number of workers, `auto` resolved for this machine."""
        return self.workers if isinstance(self.workers, int) else max(1, len(usable_cpus()) - 1)

    def worker_cpus(self) -> list[int]:
        """The cores for the workers, in turn. They may be absent here: the child warns and runs unpinned."""
        if self.cpus:
            return parse_cpus(self.cpus)
        usable = usable_cpus()
        return usable[1:] or usable


def usable_cpus() -> list[int]:
    """The cores this process may run on."""
    return sorted(os.sched_getaffinity(0))


def parse_cpus(text: str) -> list[int]:
    """`1-3,5` as [1, 2, 3, 5]. Raises ConfigError."""
    cpus: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part, re.ASCII)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise ConfigError(f"{text!r} is not a list of cores; write it like 1-3 or 1,3")
        cpus += range(int(match[1]), int(match[2] or match[1]) + 1)
    return cpus
