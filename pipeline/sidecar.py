"""The sidecar: the JSON beside a frame that says what was judged. Built here, published once, read back here.

Publishing is atomic and wakes nobody: an unnamed file (O_TMPFILE) is written and linked to its name, which raises
IN_CREATE only, while the watcher listens to renames. A file system without O_TMPFILE gets the second way: a file in
`.stillwatch/` inside the frames' directory (the only other place that is surely the same file system), linked and
unlinked; one without hard links the third: renamed into place, which does wake the watcher, for a name it ignores.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any

import msgspec

from pipeline.frames import SIDECAR_SUFFIX
from pipeline.frames import SUFFIX as FRAME_SUFFIX
from pipeline.model import FrameId, Judgement, Zap

SCRATCH = ".stillwatch"
FREEZE_FAULT = "freeze_fault"  # reading: 1 where the picture stands and should not, which is what incidents ask
MAX_SIDECAR_BYTES = 1024 * 1024
_FIRST_SECOND, _LAST_SECOND = -62135596800, 253402300799  # the years 1 to 9999
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}
_NO_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV}


class Published(Enum):
    """What publishing found at the sidecar's name."""

    NEW = auto()
    DUPLICATE = auto()  # this very frame has its sidecar already
    REPLACED = auto()  # an older frame of the same name had left one


class Sidecar(msgspec.Struct, kw_only=True, omit_defaults=False):
    """All fields of a sidecar, in the order in which they are written. Unknown is None."""

    schema: int = 1
    analyzed: bool = True
    source: str
    filename: str
    sequence: int
    timestamp: str | None = None
    error: str | msgspec.UnsetType = msgspec.UNSET
    skipped: str | msgspec.UnsetType = msgspec.UNSET
    blackscreen: bool | None = None
    blackscreen_percentage: float | None = None
    freeze: bool | None = None
    freeze_kind: str | None = None  # whole, partial, still: how it stands
    freeze_diffs: list[float] = []
    last_3_filenames: list[str] = []
    last_3_thumbnails: list[str] = []
    no_signal: bool | None = None
    macroblocks: bool | None = None
    quality_score: float | None = None
    audio: bool | None = None
    volume_percentage: int | None = None
    mean_volume_db: float | None = None
    frame_id: FrameId | None = None
    readings: dict[str, float] = {}
    tile_map: str | None = None  # seconds since each tile changed, see TileMap.text
    zap: dict[str, str | float | bool | None] | None = None  # the channel change that is known with this frame
    conditions: dict[str, str] = {}
    incident_ids: list[str] = []
    r2_images: dict[str, list[str]] | None = None
    performance_ms: dict[str, float] = {}


def read(path: str) -> Sidecar | None:
    """A sidecar; None when it is none, or gone."""
    try:
        with open(path, "rb", opener=_open_without_blocking) as file:
            return _decode_sidecar(file.read(MAX_SIDECAR_BYTES))
    except (OSError, msgspec.DecodeError, RecursionError):
        return None


class _Identity(msgspec.Struct):
    frame_id: FrameId | None = None


_encode = msgspec.json.Encoder().encode
_decode_sidecar = msgspec.json.Decoder(Sidecar).decode
_decode_identity = msgspec.json.Decoder(_Identity).decode


def encode(sidecar: Sidecar) -> bytes:
    """One line of JSON, UTF-8, newline at the end."""
    return _encode(sidecar) + b"\n"


def build(
    source: str, stem: str, sequence: int, identity: FrameId, *, time_ns: int | None = None, **fields: Any
) -> Sidecar:
    """A frame's sidecar. Its time is the file's own unless `time_ns` (wall clock) says otherwise."""
    return Sidecar(
        source=source,
        filename=stem + FRAME_SUFFIX,
        sequence=sequence,
        timestamp=timestamp(identity.mtime_ns if time_ns is None else time_ns),
        frame_id=identity,
        **fields,
    )


def verdict_fields(judgement: Judgement) -> dict[str, Any]:
    """The fields that a judgement fills."""
    sound, fault = judgement.sound, judgement.freeze_fault.value
    return {
        "blackscreen": judgement.black.value,
        "blackscreen_percentage": judgement.black.readings.get("black_pct"),
        "freeze": judgement.freeze.value,
        "freeze_kind": judgement.freeze_kind,
        "freeze_diffs": judgement.freeze_diffs,
        "last_3_filenames": [f"{stem}{FRAME_SUFFIX}" for stem in judgement.predecessors],
        "last_3_thumbnails": [f"{stem}_thumbnail{FRAME_SUFFIX}" for stem in judgement.predecessors],
        "no_signal": judgement.no_signal.value,
        "macroblocks": judgement.macroblocks.value,
        "quality_score": judgement.quality_score,
        "audio": None if sound.loss.value is None else not sound.loss.value,
        "volume_percentage": sound.volume_pct,
        "mean_volume_db": sound.mean_db,
        "readings": {
            **judgement.black.readings,
            **judgement.freeze.readings,
            **judgement.no_signal.readings,
            **judgement.macroblocks.readings,
            **sound.loss.readings,
            **({} if fault is None else {FREEZE_FAULT: float(fault)}),
        },
        "tile_map": judgement.tile_map,
        "zap": _zap_fields(judgement.zap) if judgement.zap else None,
    }


def _zap_fields(zap: Zap) -> dict[str, str | float | bool | None]:
    return {
        "start": timestamp(zap.start_ns),
        "end": timestamp(zap.end_ns),
        "duration_s": zap.duration_s,
        "banner": zap.banner,
    }


def timestamp(time_ns: int) -> str | None:
    """A wall-clock instant for people: UTC, ISO 8601, microseconds. None for a time that no calendar has."""
    second, rest_ns = divmod(time_ns, 1_000_000_000)
    if not _FIRST_SECOND <= second <= _LAST_SECOND:
        return None
    return datetime.fromtimestamp(second, UTC).replace(microsecond=rest_ns // 1000).isoformat(timespec="microseconds")


def read_identity(path: str) -> FrameId | None:
    """The identity of the frame that the sidecar at `path` judged; None when it is unreadable or gone."""
    try:
        with open(path, "rb", opener=_open_without_blocking) as file:
            return _decode_identity(file.read(MAX_SIDECAR_BYTES) or b"").frame_id
    except (OSError, msgspec.DecodeError, RecursionError):
        return None


def _open_without_blocking(path: str, mode: int) -> int:
    return os.open(path, mode | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)  # it may be a FIFO


class SidecarWriter:
    """Publishes the sidecars of one source's directory, by the first way that its file system allows."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._ways: list[Callable[[str, bytes], None]] = [
            self._unnamed,
            self._scratch_link,
            self._scratch_rename,
        ]

    def publish(self, stem: str, data: bytes, identity: FrameId) -> Published:
        """Write `data` as `<stem>.json`. Exactly one sidecar stands there afterwards, for this frame.

        Raises OSError when the file system refuses: full, read-only, gone.
        """
        path = f"{self.directory}/{stem}{SIDECAR_SUFFIX}"
        try:
            self._write(path, data)
        except FileExistsError:
            if read_identity(path) == identity:
                return Published.DUPLICATE
            with suppress(FileNotFoundError):
                os.unlink(path)
            self._write(path, data)
            return Published.REPLACED
        return Published.NEW

    def _write(self, path: str, data: bytes) -> None:
        """Write by the current way; a way that this file system refuses is never tried again."""
        while True:
            try:
                return self._ways[0](path, data)
            except FileExistsError:
                raise
            except OSError as error:
                refused = _NO_TMPFILE if self._ways[0] == self._unnamed else _NO_LINK
                if error.errno not in refused or len(self._ways) == 1 or not os.path.isdir(self.directory):
                    raise
                del self._ways[0]

    def _unnamed(self, path: str, data: bytes) -> None:
        fd = os.open(self.directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        try:
            _write_all(fd, data)
            os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd)  # without a dir_fd os.link does not follow
        finally:
            os.close(fd)

    def _scratch_link(self, path: str, data: bytes) -> None:
        scratch = self._scratch_file(data)
        try:
            os.link(scratch, path)
        finally:
            os.unlink(scratch)

    def _scratch_rename(self, path: str, data: bytes) -> None:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        scratch = self._scratch_file(data)
        try:
            os.rename(scratch, path)
        except OSError:
            os.unlink(scratch)
            raise

    def _scratch_file(self, data: bytes) -> str:
        folder = f"{self.directory}/{SCRATCH}"
        with suppress(FileExistsError):
            os.mkdir(folder)
        scratch = f"{folder}/{os.getpid()}"
        with suppress(FileNotFoundError):
            os.unlink(scratch)  # of a killed process with this id; it may be a published sidecar's second name
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            _write_all(fd, data)
        except OSError:
            os.unlink(scratch)
            raise
        finally:
            os.close(fd)
        return scratch


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
