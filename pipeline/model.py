"""The words of Stillwatch as types: states, exit codes, conditions, verdicts, and one frame's identity.

Owns no behaviour and imports nothing of ours: every other module may import this one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MAX_SOURCES = 64
"""Lanes in the ring: fixed and generous, so that no memory is ever re-sized while children have it mapped."""

MAX_WORKERS = 64

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""For the environment of whatever imports NumPy: its threads have nothing to do here, and spin when they start."""

PICTURE_BYTES = 320 * 1024
"""Room for one stored picture. A frame of w x h becomes ceil(w/8) * ceil(h/8) <= (w+7) * (h+7) / 64 bytes; with JPEG's
longest side of 65,535 that stays below this for every shape of up to 20 million pixels (4K has 8.3, 5K 14.7)."""

PICTURE_CELLS = 4
"""Stored pictures per source: the last three, and one that is being written."""

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


class LineState(enum.IntEnum):
    """How uploads, or notices, are doing."""

    IDLE = 0  # nothing has been asked of it yet
    WORKING = 1
    FAILING = 2  # tried again by itself
    PAUSED = 3  # a person must mend it
    CLOCK = 4  # waits until the clock is set


class CaptureState(enum.IntEnum):
    """What becomes of a source's own FFmpeg now."""

    NONE = 0  # somebody else captures, or nobody yet
    WAITING = 1  # for its device, or until the next try
    STARTING = 2  # no frame has come yet
    RUNNING = 3
    STOPPING = 4


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
    """A picture is black if its core, all but the edges where logos and banners stand, is one plain dark field."""

    top_level: Level = 31
    """Levels: the highest that is black for a source of which nothing else was learned. A raised black of 24 under
    noise reaches 28. (FFmpeg blackdetect: 25 full range, 37 limited.)"""

    band_levels: Annotated[int, Meta(ge=1, le=256)] = 7
    """Levels, at most top_level + 1: width of the dark band. Noise of sigma 6 at full size leaves sigma 0.75
    here, so +-3 holds four sigmas; a dark film's gradient 0-24 puts 7 of its 25 levels into any one band."""

    black_pct_min: Pct = 98.5
    """Pct of the core in the band."""

    lit_tiles_pct_max: Pct = 6.0
    """Pct of the core's tiles whose mean may be another: a waiting circle touches 4 of 144."""

    tint_above_level: Level = 4
    """Level: a brighter black is confirmed in colour. A navy blue card of 90 is 10 in grey, one of 64 is 7."""

    tint_max: Levels = 28.0
    """Levels between the largest and the smallest of B, G, R, mean: a navy card has 90, a raised black under noise
    and 4:2:0 coding under 5."""


FreezeKind = Literal["whole", "partial", "still"]
"""How a picture stands: all of it has stopped; all but a clock, ticker or spinner; or it is a screen that was reached
by a cut and stands by right."""


class FreezeThresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A picture stands if no tile of it differs from the three before it, and the distance does not grow with age."""

    point_levels: Level = 6
    """Levels: a pixel that differs by more has changed. Frozen pictures under noise of sigma 4.5, coded at
    JPEG quality 50-95, reached 4; the changing digit of a clock 9 px high 10, a dim mouse pointer 38
    (synthetic scenes). Under more noise the limit rises by up to 4."""

    tile_levels: Levels = 0.35
    """Levels: by how much the mean of a tile may leave the others of its row. Noise of sigma 1 reached 0.3, a logo that
    breathes slowly leaves by 1.7 in three frames. Under more noise the limit rises to 1.5."""

    drift_levels: Levels = 0.05
    """Levels: by how much the distance of tiles to the oldest predecessor may exceed that to the newest. Noise of sigma
    3 reached 0.03; a fade of 0.5 levels per frame drifts 0.3, a pan of 0.25 px 0.2, in a dark scene 0.08. Where noise
    is seen to drift the wrong way (line jitter, a wavering JPEG quality: 0.1) the limit rises with it."""

    patience_s: Annotated[float, Meta(ge=0, le=3600)] = 2.0
    """Seconds that a picture must stand after a cut, and where pauses are usual: clocks tick every second, a process
    list is renewed every 1-2 s. A film that stops needs none."""


class AudioThresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The sound is lost if every channel is silent."""

    loss_db: Annotated[float, Meta(ge=-91, le=0)] = -50.0
    """dBFS: a channel at or below is silent. virtualpytest's; a line without a signal hisses at -55. Others take -22.5
    to -60: it depends on the rig."""


class NoSignalThresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A picture stands for "no signal" if it is a known card or the learned one."""

    cards: bool | None = None
    """Whether colour bars, plain blue and plain grey are known without learning. None: yes, but not where a desktop is
    captured (x11grab), which may be plain itself."""

    plain_pct_min: Pct = 88.0
    """Pct of a plain card that has its colour."""

    lit_tiles_pct_max: Pct = 14.0
    """Pct of the 16 x 9 tiles of a plain card that text may touch."""

    learned_pct_min: Pct = 90.0
    """Pct of the points that stood still when it was learned and must be as they were: HyperHDR's."""


class BlockThresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A picture has fallen apart if too many of its macroblocks have corners where the codec's grid has them."""

    every_s: Annotated[float, Meta(ge=0, le=3600)] = 5.0
    """Seconds from one look to the next, 1 at least; 0: never. A look needs the frame at full size and costs three to
    five times as much as a frame does otherwise."""

    quality_min: Pct = 50.0
    """quality_score below which the picture has fallen apart; see macroblocks.HALF_PCT."""

    incident: bool = False
    """Whether that is an incident. Off: what a codec does to a good stream differs from rig to rig."""


RANK = ("capture_stalled", "no_signal", "black", "freeze", "audio_loss", "macroblocks")
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
    "capture_stalled": Rule(5.0, 0.0, clear_frames=10),  # raise_s is the source's stall_s; others wait 10-60 s
    "no_signal": Rule(5.0, 5.0),  # a grabber's card is no picture anyone shows: no need to wait long
    "black": Rule(10.0, 2.0),  # a channel change is over by then; any picture for 2 s ends it
    "freeze": Rule(30.0, 10.0),  # Volicon's 30/10: a still ident or menu lasts a few seconds
    "audio_loss": Rule(20.0, 5.0),  # Nautel and Liquidsoap: 20 s of silence
    "macroblocks": Rule(20.0, 10.0),  # of 5 looks at every 5 s, and no shower of rain
}


class Sound(msgspec.Struct, frozen=True):
    """What is known of a source's sound at one frame."""

    loss: Verdict = Verdict(None, {})
    mean_db: float | None = None  # dBFS
    volume_pct: int | None = None  # the same for people


class Zap(msgspec.Struct, frozen=True):
    """A channel change: a short black that ended in another scene. Times are those of the frames' files."""

    start_ns: int
    end_ns: int
    duration_s: float
    banner: bool  # a programme banner was on it


class Judgement(msgspec.Struct, frozen=True):
    """All verdicts on one frame, and what they were compared with."""

    black: Verdict
    freeze: Verdict  # the picture stands
    freeze_diffs: list[float]  # mean difference in grey levels against each predecessor, newest first
    predecessors: list[str]  # their names without suffix, newest first
    decode_s: float
    no_signal: Verdict = Verdict(None, {})
    sound: Sound = Sound()
    freeze_fault: Verdict = Verdict(None, {})  # it stands, and not by right: what incidents ask
    freeze_kind: FreezeKind | None = None
    tile_map: str | None = None  # seconds since each tile changed, see TileMap.text
    zap: Zap | None = None  # that is known with this frame
    macroblocks: Verdict = Verdict(None, {})
    quality_score: float | None = None  # 100: no macroblocks to be seen

    def verdict(self, condition: str) -> Verdict:
        """The verdict on one condition, as incidents ask for it."""
        by_condition = {
            "no_signal": self.no_signal,
            "black": self.black,
            "freeze": self.freeze_fault,
            "macroblocks": self.macroblocks,
            "audio_loss": self.sound.loss,
        }
        return by_condition[condition]


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


def masked(text: str) -> str:
    """Without what a URL in it may hold of secrets: all up to the last @, and the query."""
    return re.sub(r"(:/+[^?]*\?).+", r"\1***", re.sub(r"(:/+).*@", r"\1***@", text))


def printable(text: str) -> str:
    """A text of foreign origin in one line, with everything that would act on a terminal escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
