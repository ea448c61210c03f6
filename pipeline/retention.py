"""Retention: what is deleted from the frames' directories, and when. The one deleter; it needs no worker to live.

Per source: keep_s, keep_frames and max_bytes. Per file system: free blocks and inodes, so that room is made before
FFmpeg meets ENOSPC; the source that takes most gives its oldest. Evidence has hard links of its own. One turn looks at
what has come since the last, which costs a `stat` per frame; the nearer a disk is to its end, the sooner the next.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Protocol

from pipeline.arrivals import Arrivals
from pipeline.board import Board, SourceRow
from pipeline.child import HEARTBEAT_S, event, log
from pipeline.mounts import is_memory
from pipeline.settings import Settings, Source
from pipeline.shelf import BATCH, LEAST_BY_AGE, LEAST_BY_SPACE, Files, Frames, Sidecars, Sounds, kind_of
from pipeline.space import Disk

PACE_S = 1.0  # between two turns where frames are ours to delete
LEAST_PACE_S = 0.02
TURNS_TO_FULL = 4  # at least so many turns before a disk would be full
EXPECTED_BYTES_S, EXPECTED_FILES_S = 1e6, 30.0  # from a captured source, at least: none may come as a surprise
LOG_EVERY_NS = 600_000_000_000  # a disk that is too small for its bounds stays so
_TRIES = 3  # frames that evidence links to free nothing: what is lacking is then asked again


class Shelf(Protocol):
    """One source's part."""

    source: Source

    @property
    def places(self) -> list[Files]:
        """The directories to look into."""

    @property
    def bytes(self) -> int:
        """What could be freed here, as far as is known."""

    @property
    def files(self) -> int:
        """The same in inodes."""

    @property
    def may_give(self) -> bool:
        """Whether anything may be evicted here."""

    def keep(self, now_ns: int) -> bool:
        """Delete what is past its bounds; whether there is more to be done at once."""

    def evict(self, now_ns: int) -> int:
        """Delete the oldest; the bytes that this freed."""

    def show(self) -> None:
        """Tell the board."""


class OwnFrames:
    """A source whose frames are ours to delete."""

    def __init__(self, source: Source, row: SourceRow) -> None:
        self.source, self._row = source, row
        self.frames = Frames(source, row)
        self._sounds = Sounds(source, row)

    @property
    def places(self) -> list[Files]:
        sounds = self.source.capture is not None and self.source.capture.audio  # else they are somebody else's
        return [self.frames, self._sounds] if sounds else [self.frames]

    @property
    def bytes(self) -> int:
        return self.frames.stock.bytes + self._sounds.stock.bytes

    @property
    def files(self) -> int:
        return 2 * self.frames.stock.count + self._sounds.stock.count

    @property
    def may_give(self) -> bool:
        return self.frames.stock.count > LEAST_BY_SPACE or self._sounds.stock.count > 0

    def keep(self, now_ns: int) -> bool:
        self.frames.follow_up(now_ns)
        for _ in range(BATCH):
            if self._has_old_frames(now_ns):
                self.frames.drop_oldest(now_ns)
            elif self._has_old_sounds(now_ns):
                self._sounds.drop_oldest(now_ns)
            elif self.source.max_bytes and self.bytes > self.source.max_bytes and self.may_give:
                self._drop_older(now_ns)
            else:
                return False
        return True

    def evict(self, now_ns: int) -> int:
        before = self._row.frames_removed
        freed = self._drop_older(now_ns)
        self._row.frames_evicted += self._row.frames_removed - before
        return freed

    def show(self) -> None:
        self._row.kept_frames, self._row.kept_bytes = self.frames.stock.count, self.bytes

    def _has_old_frames(self, now_ns: int) -> bool:
        stock, most = self.frames.stock, self.source.keep_frames
        past = stock.count > LEAST_BY_AGE and now_ns - stock.oldest_ns > self.frames.keep_ns
        return past or (most > 0 and stock.count > max(most, LEAST_BY_SPACE))

    def _has_old_sounds(self, now_ns: int) -> bool:
        stock = self._sounds.stock
        return stock.count > 0 and now_ns - stock.oldest_ns > self._sounds.keep_ns

    def _drop_older(self, now_ns: int) -> int:
        """Frame or sound, whichever came first."""
        frames, sounds = self.frames, self._sounds
        giving = [files for files, least in ((frames, LEAST_BY_SPACE), (sounds, 0)) if files.stock.count > least]
        return min(giving, key=lambda files: files.stock.oldest_ns).drop_oldest(now_ns)


class OthersFrames:
    """A source whose frames others delete: only our sidecars go."""

    def __init__(self, source: Source, row: SourceRow) -> None:
        self.source = source
        self._sidecars = Sidecars(source, row)

    @property
    def places(self) -> list[Files]:
        return [self._sidecars]

    @property
    def bytes(self) -> int:
        return 0  # nobody's before the frames that are ours

    files = bytes

    @property
    def may_give(self) -> bool:
        return self._sidecars.stock.count > LEAST_BY_SPACE

    def keep(self, now_ns: int) -> bool:
        sidecars = self._sidecars
        for stock, drop in (
            (sidecars.stock, sidecars.drop_oldest),
            (sidecars.staying, sidecars.drop_staying),
        ):
            for _ in range(BATCH):
                if not stock.count or now_ns - stock.oldest_ns <= sidecars.keep_ns:
                    break
                drop(now_ns)
            else:
                return True
        return False

    def evict(self, now_ns: int) -> int:
        return self._sidecars.drop_oldest(now_ns)

    def show(self) -> None:
        """Nothing that the sidecars do not count themselves."""


class Retention:
    """All sources. `step(now_ns)` is one turn; the next is due `pace_s` later."""

    def __init__(self, settings: Settings, board: Board, lanes: Mapping[str, int]) -> None:
        """`lanes` names the row that each source has on the board."""
        self._board = board
        self.shelves: list[Shelf] = []
        self._lanes: dict[str, int] = {}
        self._arrivals = Arrivals([])
        self.adopt(settings, lanes)
        self._disks: dict[int, Disk | None] = {}  # by device number; None: not watched
        self._said_ns: dict[tuple[str, bool], int] = {}
        self.pace_s = LEAST_PACE_S

    def adopt(self, settings: Settings, lanes: Mapping[str, int]) -> None:
        """Go over to other settings. Of files for which they change nothing, all that is known stays known."""
        known = {(_bounds(shelf.source), self._lanes[shelf.source.name]): shelf for shelf in self.shelves}
        self._lanes, self.shelves = dict(lanes), []
        for source in settings.source:
            shelf = known.get((_bounds(source), lanes[source.name]))
            if shelf is None:
                row = self._board.memory.sources[lanes[source.name]]
                shelf = (OwnFrames if source.deletes_frames else OthersFrames)(source, row)
            shelf.source = source
            self.shelves.append(shelf)
        self._least_pace_s = PACE_S if any(s.source.deletes_frames for s in self.shelves) else HEARTBEAT_S
        self._arrivals.change([place for shelf in self.shelves for place in shelf.places])

    def step(self, now_ns: int) -> None:
        """See what has come, delete what is past its bounds, make room where it is needed."""
        self._arrivals.look(now_ns)
        more = [shelf.keep(now_ns) for shelf in self.shelves]
        lasts_s = self._make_room(now_ns)
        for shelf in self.shelves:
            shelf.show()
        wanted_s = LEAST_PACE_S if any(more) else lasts_s / TURNS_TO_FULL
        self.pace_s = min(self._least_pace_s, max(LEAST_PACE_S, wanted_s))

    def close(self) -> None:
        """Remove the watches. What is there stays, for the next start."""
        self._arrivals.close()

    def _make_room(self, now_ns: int) -> float:
        """On every file system; how long the one lasts that is full first."""
        lasts_s = float("inf")
        for disk, shelves in self._by_disk():
            ours = sum(shelf.source.capture is not None for shelf in shelves)
            with suppress(OSError):  # the directory has just gone
                self._make_room_on(disk, shelves, now_ns)
                lasts_s = min(lasts_s, disk.lasts_s(ours * EXPECTED_BYTES_S, ours * EXPECTED_FILES_S))
        return lasts_s

    def _by_disk(self) -> Iterable[tuple[Disk, list[Shelf]]]:
        """The file systems on which frames are ours to delete, and those in memory, which sidecars alone may fill."""
        found: dict[int, list[Shelf]] = {}
        for shelf in self.shelves:
            with suppress(OSError):
                found.setdefault(os.stat(shelf.source.dir).st_dev, []).append(shelf)
        for number in self._disks.keys() - found.keys():
            del self._disks[number]
        for number, shelves in found.items():
            if number not in self._disks:
                in_memory = is_memory(kind_of(shelves[0].source.dir))
                counts = in_memory or any(shelf.source.deletes_frames for shelf in shelves)
                self._disks[number] = Disk() if counts else None
            if disk := self._disks[number]:
                yield disk, shelves

    def _make_room_on(self, disk: Disk, shelves: list[Shelf], now_ns: int) -> None:
        path, places = shelves[0].source.dir, [place for shelf in shelves for place in shelf.places]
        came = [sum(place.bytes_came for place in places), sum(2 * place.files_came for place in places)]
        for place in places:
            place.bytes_came = place.files_came = 0
        evicted, short_of = 0, ""
        for _ in range(_TRIES):
            disk.measure(path, now_ns, *came)
            came, lack = [0, 0], disk.lack(self.pace_s)
            if not any(lack):
                break
            short_of = short_of or ("inodes" if lack[1] else "bytes")
            given = _evict(shelves, *lack, now_ns)
            evicted += given
            if not given:
                break
        if short_of:
            self._say(path, short_of, evicted, now_ns)

    def _say(self, path: str, short_of: str, evicted: int, now_ns: int) -> None:
        """Tell that a file system is nearly full; the board counts what went."""
        said_ns = self._said_ns.get((path, evicted > 0))
        if said_ns is not None and now_ns - said_ns < LOG_EVERY_NS:
            return
        self._said_ns[path, evicted > 0] = now_ns
        if evicted:
            mend = "a larger one, or lower keep_s or max_bytes"
            log.warning(event("file system nearly full, evicting the oldest", dir=path, short_of=short_of, mend=mend))
        else:
            mend = "remove what others have put there"
            log.error(event("file system nearly full, nothing left to evict", dir=path, short_of=short_of, mend=mend))


def _bounds(source: Source) -> object:
    """What is gone by here."""
    ours = source.deletes_frames
    kept = (source.keep_s, source.keep_frames, source.max_bytes, source.sidecar_keep_s)
    return source.name, source.dir, source.prefix, ours, *kept


def _evict(shelves: Iterable[Shelf], lack_bytes: int, lack_files: int, now_ns: int) -> int:
    """Delete the oldest of whoever has most, until that much should be free; how many went."""
    given = 0
    while (lack_bytes > 0 or lack_files > 0) and given < BATCH:
        giving = [shelf for shelf in shelves if shelf.may_give]
        if not giving:
            break
        most = max(giving, key=lambda shelf: shelf.files if lack_files > 0 else shelf.bytes)
        files = most.files
        lack_bytes -= most.evict(now_ns)
        lack_files -= max(1, files - most.files)
        given += 1
    return given
