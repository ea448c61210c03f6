"""One frozen tree of settings: what can be set, with its default and the reason for it. Read in by `config`."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from pipeline.model import (
    MAX_WORKERS,
    RULES,
    AudioThresholds,
    BlackThresholds,
    BlockThresholds,
    ConfigError,
    FreezeThresholds,
    NoSignalThresholds,
    Rule,
)

Seconds = Annotated[float, Meta(gt=0, le=1e6)]
"""A duration. Bounded, because "inf" and "nan" are numbers to TOML and to a command line."""

Share = Annotated[float, Meta(ge=0, le=1)]
"""Of the width or height of a picture."""

MIB = 2**20
DAY_S = 86_400.0
Bytes = Annotated[int, Meta(ge=0, le=2**50)]
Age = Annotated[float, Meta(gt=0, le=1e9)]
Fps = Annotated[float, Meta(ge=0, le=1000)]
Profile = Literal["v4l2-copy", "v4l2-encode", "x11grab", "rtsp", "file", "url", "lavfi"]
FRAMES_DIR = "frames"  # in the runtime directory: one directory for each source that is captured and names none
AUDIO_DIR = "audio"  # in a captured source's directory: capture.sh puts the chunks there
PROFILES: tuple[str, ...] = get_args(Profile)


class Capture(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a source is captured: the options of `ffmpeg/capture.sh`, whose `--help` says what each does. Empty, None and
    False are its defaults."""

    profile: Profile
    input: str = ""  # device, display, URL, file or graph; a URL may hold a password: only the capture child is told
    fps: Fps | None = None  # frames per second to publish; 0: every frame
    input_fps: Annotated[float, Meta(gt=0, le=1000)] | None = None
    size: Annotated[str, Meta(pattern=r"^([1-9][0-9]{0,4}x[1-9][0-9]{0,4})?$")] = ""
    quality: Annotated[int, Meta(ge=2, le=31)] | None = None
    rtsp_transport: Literal["", "tcp", "udp"] = ""
    copy: bool = False
    live: bool = False
    thumbnails: bool = False
    hls: bool = False
    audio: bool = False
    audio_input: str = ""
    ffmpeg: str = ""  # which FFmpeg
    start_s: Seconds = 20.0  # to the first frame: a grabber or a camera far away takes seconds; then stall_s counts

    @property
    def rate(self) -> float | None:
        """Frames per second that are to come; None where that is the input's choice."""
        if self.fps is None:
            return 2.0 if self.profile == "x11grab" else 5.0
        return self.fps or None

    def environment(self) -> dict[str, str]:
        """The variables that tell capture.sh all this, the input's secrets included."""
        given = {name: getattr(self, name) for name in self.__struct_fields__ if name != "start_s"}
        return {f"CAPTURE_{name.upper()}": _variable(value) for name, value in given.items() if value not in (None, "")}


def _variable(value: str | float | bool) -> str:
    """As capture.sh wants it: switches as 1 and 0, numbers without an exponent."""
    if isinstance(value, bool):
        return "1" if value else "0"
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One captured stream and its directory."""

    name: str
    dir: str = ""  # may be left out of a source that is captured: <runtime_dir>/frames/<name>
    prefix: str = "capture_"  # frames are `<prefix><digits>.jpg`
    capture: Capture | None = None  # [source.capture]: an FFmpeg of ours publishes here; None: somebody else does
    retention: Literal["own", "always"] = "own"  # delete frames here if we capture them, or whoever does
    keep_s: Seconds = 60.0  # frames and sound are deleted after that: evidence has links of its own
    keep_frames: Annotated[int, Meta(ge=0)] = 0  # and above this number; 0: no bound
    max_bytes: Bytes = (
        64 * MIB
    )  # and above this size, sidecars and sound included: 60 s of 720p at 10 frames/s; 0: no bound. HLS is not counted:
    # FFmpeg keeps its last few segments, about 0.4 MB
    sidecar_keep_s: Seconds | None = None  # where others delete the frames: None is 24 h, on a tmpfs 10 min
    audio_dir: str = ""  # chunks of sound: a directory, relative to `dir`; not needed with capture.audio
    poll: bool = False  # probe for frames instead of inotify
    stall_s: Seconds = 5.0  # without a frame for so long, it is stalled: 25 missing ones at 5 frames/s say enough
    black: BlackThresholds = BlackThresholds()
    freeze: FreezeThresholds = FreezeThresholds()
    no_signal: NoSignalThresholds = NoSignalThresholds()
    macroblocks: BlockThresholds = BlockThresholds()
    audio: AudioThresholds = AudioThresholds()
    static_ok: bool = (
        False  # still screens are normal here: only the stop of a large moving picture is a freeze incident
    )
    masks: tuple[tuple[Share, Share, Share, Share], ...] = ()  # left, top, right, bottom of what is not looked at
    rules: dict[str, Rule] = {}  # per condition, in place of the default rule: [source.rules.black]

    @property
    def deletes_frames(self) -> bool:
        """Whether frames in this directory are ours to delete."""
        return self.capture is not None or self.retention == "always"

    @property
    def audio_path(self) -> str:
        """The directory of its chunks of sound; empty for a source without."""
        captured = self.capture is not None and self.capture.audio
        name = self.audio_dir or (AUDIO_DIR if captured else "")
        return os.path.join(self.dir, name) if name else ""

    @property
    def knows_cards(self) -> bool:
        """Whether the known no-signal cards are looked for."""
        is_desktop = self.capture is not None and self.capture.profile == "x11grab"
        return not is_desktop if self.no_signal.cards is None else self.no_signal.cards

    def rule_of(self, condition: str) -> Rule:
        """The rule of a condition for this source."""
        rule = self.rules.get(condition) or RULES[condition]
        return rule if condition != "capture_stalled" else msgspec.structs.replace(rule, raise_s=self.stall_s)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. Defaults with their reasons."""

    source: tuple[Source, ...] = ()
    workers: Annotated[int, Meta(ge=1, le=MAX_WORKERS)] | str = "auto"  # auto: usable cores - 1, at least 1
    cpus: str = ""  # cores for the workers, "1-3" or "1,3"; empty: all usable but the first, which is left to FFmpeg
    state_dir: str = ""  # incident log and evidence: on disk
    runtime_dir: str = ""  # lock and board: gone after a reboot
    log_level: str = "INFO"
    log_file: str = ""  # in place of standard error; opened anew when it was rotated
    metrics_file: str = ""  # for node_exporter's textfile collector: NAME.prom, in memory if at all possible
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

    def bytes_in_memory(self) -> int:
        """What captured frames and evidence on its way may take, at most."""
        return self.hold_max_bytes + sum(source.max_bytes for source in self.source if source.capture)

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


def is_http_url(text: str) -> bool:
    """Whether a text is a URL that can be POSTed to."""
    try:
        parts = urlsplit(text)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    return named and parts.scheme in ("http", "https") and re.fullmatch(r"[!-~]+", text) is not None
