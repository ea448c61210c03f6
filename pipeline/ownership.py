"""Which directories are ours to empty: those below `<runtime_dir>/frames/`, and those that bear our mark. Nobody's
recordings are taken for ours.
"""

from __future__ import annotations

import os
import re

from pipeline.frames import FrameNames
from pipeline.model import ConfigError
from pipeline.settings import AUDIO_DIR, FRAMES_DIR, Source

MARK = ".captured-by-stillwatch"
"""In every directory in which we capture: its frames may be deleted."""

_ENDING = re.compile(r"(_thumbnail\.jpg|\.json|\.jpg)(\.tmp)?$")  # how the names end of all that goes with a frame
_CHUNK = re.compile(r"audio_[0-9]+\.wav")
_SEGMENT = re.compile(r"live\.m3u8|live_[0-9]+\.ts(\.tmp)?")


def take(source: Source, runtime_dir: str) -> None:
    """Make a captured source's directory and mark it, before anything is captured there. What is above it is made
    below the runtime directory only: elsewhere a mount may be missing. Raises OSError, and ConfigError where others'
    files would be deleted."""
    if may_make(source.dir, runtime_dir):
        os.makedirs(source.dir, exist_ok=True)
    elif not os.path.isdir(source.dir):
        os.mkdir(source.dir)
    mark = os.path.join(source.dir, MARK)
    if os.path.exists(mark):
        return
    if not _is_below(source.dir, os.path.join(runtime_dir, FRAMES_DIR)) and holds_foreign_frames(source):
        raise ConfigError(
            f"{source.dir} holds frames that were not captured here, or what goes with them, and would be deleted; name"
            ' an empty directory, or set retention = "always"'
        )
    _write(mark)


def mark_again(source: Source, device: int, first: int) -> None:
    """Whoever empties a directory while an FFmpeg of ours publishes there removes the mark as well. All frames from
    number `first` on are ours, unless another file system was mounted there. Raises OSError."""
    mark = os.path.join(source.dir, MARK)
    if os.path.exists(mark) or os.stat(source.dir).st_dev != device:
        return
    names = FrameNames(source.prefix)
    found = [names.parse(_ENDING.sub(".jpg", name)) for name in os.listdir(source.dir)]
    if all(frame is None or frame[0] >= first for frame in found):
        _write(mark)


def _write(mark: str) -> None:
    os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))


def may_make(path: str, runtime_dir: str) -> bool:
    """Whether a directory may be made with all that is above it."""
    return _is_below(path, runtime_dir)


def can_be_made(source: Source, runtime_dir: str) -> bool:
    """Whether `take` makes a directory that is not there, as far as names tell."""
    return may_make(source.dir, runtime_dir) or os.path.isdir(os.path.dirname(source.dir))


def holds_foreign_frames(source: Source) -> bool:
    """Whether files that were not captured here lie where ours would be deleted by their names: frames, sidecars,
    thumbnails, sound, segments. Raises OSError."""
    if source.retention == "always" or os.path.exists(os.path.join(source.dir, MARK)):
        return False
    names = FrameNames(source.prefix)
    if any(names.parse(_ENDING.sub(".jpg", name)) is not None for name in os.listdir(source.dir)):
        return True
    sound = source.capture is not None and source.capture.audio and _holds(source, AUDIO_DIR, _CHUNK)
    return sound or (source.capture is not None and source.capture.hls and _holds(source, "hls", _SEGMENT))


def _holds(source: Source, folder: str, pattern: re.Pattern[str]) -> bool:
    try:
        return any(pattern.fullmatch(name) for name in os.listdir(os.path.join(source.dir, folder)))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_below(path: str, top: str) -> bool:
    return path.startswith(os.path.abspath(top) + "/")
