"""The words of Stillwatch as types: states, exit codes, conditions, verdicts, and one frame's identity.

Owns no behaviour and imports nothing of ours: every other module may import this one.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_SOURCES = 64
"""Lanes in the ring: fixed and generous, so that no memory is ever re-sized while children have it mapped."""

MAX_WORKERS = 64

Level = Annotated[int, Meta(ge=0, le=255)]
Levels = Annotated[float, Meta(ge=0, le=255)]
Pct = Annotated[float, Meta(ge=0, le=100)]


class Exit(enum.IntEnum):
    """Exit codes of `./stillwatch`; 64-78 are sysexits.h's, so that systemd and people can tell them apart."""

    OK = 0
    FAILED = 1  # the command ran and the answer is no: an expectation was not met
    USAGE = 2  # argparse's own code for a wrong command line
    NO_INPUT = 66  # an input directory or file has nothing to work on
    UNAVAILABLE = 69  # something the command needs (FFmpeg, Python) is not there
    SOFTWARE = 70  # a fault of ours: a traceback is in the log
    OS_ERROR = 71  # the system refused a resource: memory, descriptors, processes
    TEMPORARY = 75  # another instance runs on the same runtime directory
    CONFIG = 78  # the configuration is wrong; restarting cannot mend it


class State(enum.IntEnum):
    """State of a child, written by the supervisor (FATAL: it cannot start, so the program ends)."""

    NEW = 0
    STARTING = 1
    RUNNING = 2
    BACKOFF = 3
    STOPPING = 4
    STOPPED = 5
    FATAL = 6


class SourceState(enum.IntEnum):
    """How the watcher sees a source now."""

    NEW = 0
    WATCHING = 1  # inotify
    POLLING = 2  # next numbers are probed: no inotify here
    MISSING = 3  # the directory is not there (yet); looked for again and again
    CONFLICT = 4  # the directory has become the same one as another source's


class Outcome(enum.StrEnum):
    """What became of a published frame: every slot of the ring ends as exactly one of these."""

    JUDGED = "judged"
    INVALID = "invalid"
    SKIPPED = "skipped"
    VANISHED = "vanished"


class FrameId(msgspec.Struct, frozen=True, array_like=True):
    """Identity of one published file: names repeat after a numbering restart, identities do not."""

    dev: int
    inode: int
    mtime_ns: int
    size: int


class Verdict(msgspec.Struct, frozen=True):
    """One condition judged for one frame: yes, no, or unknown (None), and the numbers that decided it."""

    value: bool | None
    readings: dict[str, float]


class BlackThresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A picture is black if nearly all of it lies in one narrow dark band and few tiles hold the rest."""

    top_level: Level = 27
    """Levels: the highest that can be black. Raised black reaches 24, plus the half band of noise above it;
    a plain 0000FF blue card is 29 in grey. (FFmpeg blackdetect: 25 full range, 37 limited.)"""

    band_levels: Annotated[int, Meta(ge=1, le=256)] = 7
    """Levels, at most top_level + 1: width of the dark band. Noise of sigma 6 at full size leaves sigma 0.75
    here, so +-3 holds four sigmas; a dark film's gradient 0-24 puts 7 of its 25 levels into any one band."""

    black_pct_min: Pct = 92.0
    """Pct of the picture in the band. Volicon and virtualpytest ask for 95 at full size, but letters light up
    every 1/8 pixel they touch: two large lines of subtitles with logo and clock left 93.4, a page of credits
    89.7."""

    lit_tiles_pct_max: Pct = 22.0
    """Pct of the 16 x 9 tiles that the rest may touch. The same subtitles with logo and clock touched 19; 60
    scattered lights of a night scene 31, though they are only 1.4 pct of the picture."""

    tint_above_level: Level = 17
    """Level: a brighter black is confirmed in colour. Limited-range black is 16, plus 1 for rounding."""

    tint_max: Levels = 32.0
    """Levels between the largest and the smallest of B, G, R, mean: a 0000BE no-signal card has 190, but its
    grey of 22 is that of a raised black (which has under 5)."""


class FreezeThresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A picture is like its predecessors if no point changed and the difference does not grow with age."""

    point_levels: Level = 6
    """Levels: a pixel that differs by more has changed. Frozen pictures under noise of sigma 4.5, coded at
    JPEG quality 50-95, reached 4; the changing digit of a clock 9 px high 10, a dim mouse pointer 38
    (synthetic scenes)."""

    changed_pct_max: Pct = 0.0
    """Pct of changed pixels that is still alike. None: a mouse pointer is 0.05. Raise it to look past a
    clock."""

    drift_max: Levels = 0.08
    """Levels: by how much the mean difference against the oldest predecessor may exceed that against the
    newest. Noise differs by as much from each (measured to 0.02 at 720p, 0.05 at 320x240, sigma 2.5), a slow
    fade or pan by more from older ones: a fade of 0.5 per frame drifts 0.9, a pan of 0.25 px in a dark scene
    0.13 under noise of sigma 2."""


RANK = ("capture_stalled", "no_signal", "black", "freeze", "audio_loss")
"""Every condition, a cause before its consequences (Volicon: VIDEO > AUDIO > OTHER)."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a condition becomes an incident, and when that ends."""

    raise_s: Annotated[float, Meta(ge=0, le=86_400)]
    """Seconds from the first true frame to the incident, and the longest time without a verdict that is bridged: more
    than a channel change takes (up to 10 s), and more than the time between two frames of the source."""

    clear_s: Annotated[float, Meta(ge=0, le=86_400)]
    """Seconds from the first good frame to the end. Without it alarms flap: virtualpytest, ZoneMinder #964."""

    clear_frames: Annotated[int, Meta(ge=0)] = 0
    """Good frames that the end needs besides, for a condition whose sign is that frames do not come."""


RULES: Mapping[str, Rule] = {
    "capture_stalled": Rule(5.0, 0.0, clear_frames=10),  # others wait 10-60 s; at 5 frames/s, 25 missing say enough
    "no_signal": Rule(5.0, 5.0),  # a grabber's card is no picture anyone shows: no need to wait long
    "black": Rule(10.0, 2.0),  # a channel change is over by then; any picture for 2 s ends it
    "freeze": Rule(30.0, 10.0),  # Volicon's 30/10: a still ident or menu lasts a few seconds
    "audio_loss": Rule(20.0, 5.0),  # Nautel and Liquidsoap: 20 s of silence
}


class Judgement(msgspec.Struct, frozen=True):
    """All verdicts on one frame, and what they were compared with."""

    black: Verdict
    freeze: Verdict
    freeze_diffs: list[float]  # mean difference in grey levels against each predecessor, newest first
    predecessors: list[str]  # their names without suffix, newest first
    decode_s: float


class InvalidFrame(Exception):
    """A file with a frame's name that cannot be judged. Its text is the reason; the identity says which file it was."""

    def __init__(self, reason: str, identity: FrameId | None = None) -> None:
        super().__init__(reason)
        self.identity = identity


class StillwatchError(Exception):
    """Something the user can mend. Its text is one line: the thing, the cause, the mend."""

    exit_code = Exit.FAILED


class ConfigError(StillwatchError):
    """A setting is wrong; the text names the key and where it stands."""

    exit_code = Exit.CONFIG


class InputError(StillwatchError):
    """An input that was named cannot be worked on."""

    exit_code = Exit.NO_INPUT


class InstanceError(StillwatchError):
    """Another instance holds the runtime directory."""

    exit_code = Exit.TEMPORARY


class UnavailableError(StillwatchError):
    """A program that the command needs is not there."""

    exit_code = Exit.UNAVAILABLE


def describe(error: OSError) -> str:
    """An OSError's reason without its number and paths: `Permission denied`."""
    return error.strerror or type(error).__name__
