"""One source's files, and how they go: by number, oldest first, each with what stands beside it.

Where frames are ours to delete, a frame goes with its sidecar and thumbnail, and chunks of sound count in the same
bounds. Elsewhere only our own sidecars go, each once its frame has gone and `sidecar_keep_s` has passed.
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from inotify_simple import flags

from pipeline.board import SourceRow
from pipeline.child import event, log
from pipeline.frames import SIDECAR_SUFFIX, SUFFIX, FrameNames
from pipeline.model import SourceState, describe
from pipeline.mounts import file_system_type, is_memory
from pipeline.ownership import MARK
from pipeline.settings import Source
from pipeline.stock import Frame, Stock, as_they_came

THUMBNAIL_SUFFIX = "_thumbnail.jpg"
TEMPORARY_SUFFIX = ".tmp"
SOUND_DIR, SOUND_PREFIX, SOUND_SUFFIX = "audio", "audio_", ".wav"  # as capture.sh names them
BLOCK_BYTES = 4096  # what a sidecar takes on a tmpfs
LEAST_BY_AGE = 10  # frames that stay however old: the last picture of a source that has stalled, and its number
LEAST_BY_SPACE = 2  # frames that stay however full the disk is
GRAINS = 60  # of the time for which files are kept: they go in so many steps
SIDECAR_KEEP_S, SIDECAR_KEEP_IN_MEMORY_S = (
    86_400.0,
    600.0,
)  # what reads them expects a day; a tmpfs would be full of them
FRAME_BYTES = 100_000  # of 720p, for a budget before any has come
BATCH = 2000  # files looked at in one turn: a directory of 220,000 must not make this child pass for hung
WINDOW = 8  # numbers probed where no events tell
LATE_NS = 15_000_000_000
"""A frame that went younger than this may have been in a worker's hands: its sidecar is looked for once more."""

_NS = 1_000_000_000
LEFT_OVER_NS = 10_000_000_000  # a temporary file that has not changed for so long is written by nobody


class Files:
    """Numbered files of one directory; a Place of Arrivals."""

    def __init__(self, path: str, prefix: str, suffix: str, row: SourceRow, keep_s: float) -> None:
        self.path, self.suffix = path, suffix
        self.mask = int(flags.MOVED_TO)
        self.keep_ns = int(keep_s * _NS)
        self.stock = Stock(self.keep_ns // GRAINS)
        self.came_ns = 0  # when the newest came, as far as this process knows
        self.files_came = self.bytes_came = 0  # since somebody set them to 0
        self._names = FrameNames(prefix)
        self._row = row
        self._listed_ns = 0
        self._complained_ns = 0

    @property
    def next_number(self) -> int:
        """The number after the newest file's, as far as this process knows."""
        return self.stock.newest[0] + 1 if self.stock.newest else 0

    @property
    def polled(self) -> bool:
        """The watcher has found out whether events come here."""
        return bool(self._row.state == SourceState.POLLING)

    def frame_of(self, name: str, suffix: str) -> Frame | None:
        """Number and digits of a file that ends so."""
        return self._names.parse(name[: -len(suffix)] + SUFFIX) if name.endswith(suffix) else None

    def came(self, name: str, now_ns: int) -> None:
        """A file is complete."""
        frame = self.frame_of(name, self.suffix)
        if frame is None:
            self._beside(name)
        elif now_ns != self._listed_ns or not self.stock.has(frame):
            self._add(frame, now_ns, self._weight(frame))
            self.came_ns = now_ns

    def listed(self, names: list[str], now_ns: int) -> None:
        """What is there already counts as having come now: file times would lie wherever the clock was set."""
        first, self._listed_ns = not self._listed_ns, now_ns
        found = {frame for name in names if (frame := self._numbered(name)) is not None}
        for frame in self._in_order(self.stock.unknown_of(found)):
            self._add(frame, now_ns, self._weight(frame))
            self.came_ns = self.came_ns if first else now_ns

    def expected(self) -> list[str]:
        """The names of the next numbers."""
        if self.stock.newest is None:
            return []
        number, width = self.stock.newest
        return [self._names.stem(n, width) + self.suffix for n in range(number + 1, number + 1 + WINDOW)]

    def file(self, frame: Frame, suffix: str) -> str:
        """Where a file is, or what stands beside it."""
        return f"{self.path}/{self._names.stem(*frame)}{suffix}"

    def drop_oldest(self, now_ns: int) -> int:
        """Delete the file that came first; the bytes that this freed, if nothing else links to it."""
        frame, size, current = self.stock.drop_oldest()
        if not current:
            return 0
        self._unlink(self.file(frame, self.suffix), now_ns)
        return size

    def _in_order(self, frames: Iterable[Frame]) -> list[Frame]:
        """Files that were found at once, as they came."""
        return sorted(frames)

    def _add(self, frame: Frame, now_ns: int, size: int) -> None:
        self.stock.add(frame, now_ns, size)
        self.files_came += 1
        self.bytes_came += size

    def _beside(self, name: str) -> None:
        """A file of another kind."""

    def _numbered(self, name: str) -> Frame | None:
        return self.frame_of(name, self.suffix)

    def _weight(self, frame: Frame) -> int:
        """What a file takes on its file system; 0 when it has gone."""
        return self._size(self.file(frame, self.suffix))

    @staticmethod
    def _size(path: str) -> int:
        with suppress(OSError):
            return os.stat(path).st_blocks * 512
        return 0

    def _unlink(self, path: str, now_ns: int) -> bool:
        """Delete one file; whether it was there."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            if now_ns >= self._complained_ns:
                self._complained_ns = now_ns + 30 * 10**9
                log.error(event("file not deleted", path=path, cause=describe(error)))
            return False
        return True


class Sounds(Files):
    """Chunks of sound, complete when closed."""

    def __init__(self, source: Source, row: SourceRow) -> None:
        super().__init__(f"{source.dir}/{SOUND_DIR}", SOUND_PREFIX, SOUND_SUFFIX, row, source.keep_s)
        self.mask = int(flags.CLOSE_WRITE)


class Frames(Files):
    """Frames that are ours to delete, with sidecars and thumbnails."""

    def __init__(self, source: Source, row: SourceRow) -> None:
        super().__init__(source.dir, source.prefix, SUFFIX, row, source.keep_s)
        self._source = source
        self._late: deque[tuple[int, Frame]] = deque(maxlen=10 * BATCH)
        self._temporary: dict[str, tuple[int, int, int, int]] = {}
        self._warned = False

    def listed(self, names: list[str], now_ns: int) -> None:
        """Frames, and sidecars and thumbnails without one. Temporary files are left over if they do not change. Where
        our mark is missing, as in what is mounted over a directory of ours, nothing is ours to delete."""
        if self._source.retention != "always" and MARK not in names:
            names = []
        super().listed(names, now_ns)
        self._warn_of_disk()
        for name in names:
            if self._is_temporary(name):
                with suppress(OSError):
                    self._temporary[name] = (now_ns, *_fingerprint(f"{self.path}/{name}"))

    def drop_oldest(self, now_ns: int) -> int:
        """The frame first: one without a sidecar would be judged again by a new watcher."""
        late = now_ns - self.stock.oldest_ns < LATE_NS
        frame, size, current = self.stock.drop_oldest()
        if not current:
            return 0
        self._row.frames_removed += self._unlink(self.file(frame, SUFFIX), now_ns)
        self._unlink_beside(frame, now_ns)
        if late:
            self._late.append((now_ns, frame))
        return size

    def follow_up(self, now_ns: int) -> None:
        """Look once more for what came beside a frame after it was deleted."""
        while self._late and now_ns - self._late[0][0] > LATE_NS:
            frame = self._late.popleft()[1]
            if not os.path.exists(self.file(frame, SUFFIX)):
                self._unlink_beside(frame, now_ns)
        self._remove_stale(now_ns)

    def sweep(self, now_ns: int) -> None:
        """Remove what a killed FFmpeg was writing. FFmpeg holds a lock on the directory for as long as it lives."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in os.listdir(fd):
                if self._is_temporary(name):
                    self._row.tmp_removed += self._unlink(f"{self.path}/{name}", now_ns)
        except OSError:
            return  # somebody captures here
        finally:
            os.close(fd)

    def _warn_of_disk(self) -> None:
        """Once: at these rates a card is worn out within two years."""
        kind = kind_of(self.path)
        if self._warned or not kind or is_memory(kind):
            return
        self._warned = True
        rate = (self._source.capture and self._source.capture.rate) or 5.0
        daily = {"gb_per_day": round(rate * (FRAME_BYTES + BLOCK_BYTES) * 86_400 / 1e9), "at_kb_a_frame": 100}
        where = {"source": self._source.name, "dir": self.path, "type": kind, "fps": f"{rate:g}"}
        log.warning(event("frames are not kept in memory", **where, **daily, mend="use a directory on a tmpfs"))

    def _remove_stale(self, now_ns: int) -> None:
        """Of a directory in which others capture: no lock tells who is writing, but time does."""
        for name, (seen_ns, *before) in list(self._temporary.items()):
            if now_ns - seen_ns > LEFT_OVER_NS:
                del self._temporary[name]
                with suppress(OSError):
                    if _fingerprint(f"{self.path}/{name}") == tuple(before):
                        self._row.tmp_removed += self._unlink(f"{self.path}/{name}", now_ns)

    def _beside(self, name: str) -> None:
        thumbnail = self.frame_of(name, THUMBNAIL_SUFFIX)
        if thumbnail is None:
            return
        size, oldest = self._size(f"{self.path}/{name}"), self.stock.oldest
        if oldest is not None and thumbnail >= oldest:
            self.stock.weigh(size)
            self.bytes_came += size
            self.files_came += 1
        elif oldest is not None and not os.path.exists(self.file(thumbnail, SUFFIX)):
            self._unlink(f"{self.path}/{name}", 0)  # later than its frame's end

    def _numbered(self, name: str) -> Frame | None:
        return (
            self.frame_of(name, SUFFIX) or self.frame_of(name, SIDECAR_SUFFIX) or self.frame_of(name, THUMBNAIL_SUFFIX)
        )

    def _in_order(self, frames: Iterable[Frame]) -> list[Frame]:
        """FFmpegs of ours never begin anew (see capture.sh): there the numbers tell, and no clock that was set."""
        return sorted(frames) if self._source.capture else as_they_came(frames, self._written_ns)

    def _written_ns(self, frame: Frame) -> int:
        with suppress(OSError):
            return os.stat(self.file(frame, SUFFIX)).st_mtime_ns
        return 0

    def _weight(self, frame: Frame) -> int:
        return super()._weight(frame) + BLOCK_BYTES

    def _unlink_beside(self, frame: Frame, now_ns: int) -> None:
        self._unlink(self.file(frame, SIDECAR_SUFFIX), now_ns)
        self._unlink(self.file(frame, THUMBNAIL_SUFFIX), now_ns)

    def _is_temporary(self, name: str) -> bool:
        published = name.removesuffix(TEMPORARY_SUFFIX)
        return published != name and any(
            self.frame_of(published, suffix) is not None for suffix in (SUFFIX, THUMBNAIL_SUFFIX)
        )


class Sidecars(Files):
    """Our own sidecars beside frames that others delete."""

    def __init__(self, source: Source, row: SourceRow) -> None:
        super().__init__(source.dir, source.prefix, SUFFIX, row, source.sidecar_keep_s or SIDECAR_KEEP_S)
        self._source = source
        self.staying = Stock(self.stock.grain_ns)  # their frames were still there when they were due

    def listed(self, names: list[str], now_ns: int) -> None:
        """Frames, and sidecars without one. Where they lie decides for how long they stay, if nobody has said."""
        super().listed(names, now_ns)
        in_memory = is_memory(kind_of(self.path))
        keep_s = self._source.sidecar_keep_s or (SIDECAR_KEEP_IN_MEMORY_S if in_memory else SIDECAR_KEEP_S)
        self.keep_ns = int(keep_s * _NS)
        self.stock.grain_ns = self.staying.grain_ns = self.keep_ns // GRAINS
        log.info(event("sidecars go some time after their frames", source=self._source.name, sidecar_keep_s=keep_s))

    def drop_oldest(self, now_ns: int) -> int:
        """Remove the oldest sidecar if its frame has gone."""
        return self._drop_from(self.stock, now_ns)

    def drop_staying(self, now_ns: int) -> int:
        """The same for one that had to stay."""
        return self._drop_from(self.staying, now_ns)

    def _drop_from(self, stock: Stock, now_ns: int) -> int:
        frame, _, current = stock.drop_oldest()
        if not current:
            return 0
        if os.path.lexists(self.file(frame, SUFFIX)):
            self.staying.add(frame, now_ns)
            return 0
        removed = self._unlink(self.file(frame, SIDECAR_SUFFIX), now_ns)
        self._row.sidecars_removed += removed
        return BLOCK_BYTES * removed

    def _numbered(self, name: str) -> Frame | None:
        return self.frame_of(name, SUFFIX) or self.frame_of(name, SIDECAR_SUFFIX)

    def _weight(self, frame: Frame) -> int:
        return BLOCK_BYTES


def kind_of(path: str) -> str:
    """The type of the file system there; empty where there is nothing."""
    try:
        return file_system_type(path)
    except OSError:
        return ""


def _fingerprint(path: str) -> tuple[int, int, int]:
    status = os.lstat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns
