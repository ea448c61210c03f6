"""What has come into directories since the last look, without a wake-up for each file.

inotify collects the names while nobody waits for it; `look` reads them all at once, when its caller wakes anyway. A
directory is listed, by names only, when it is first seen, when another one stands under its path, and when the kernel
has dropped events. Where there are no events, the names that must come next are probed.
"""

from __future__ import annotations

import errno
import os
from typing import Protocol

from inotify_simple import INotify, flags

from pipeline.child import event, log
from pipeline.model import describe

MAX_PROBES = 64
"""Rounds of probing in one look: each stands for at least one new file."""

RELIST_S = 10.0  # a directory without events that has changed, and where no number was hit, is listed so rarely
_NS = 1_000_000_000
_OVERFLOW = int(flags.Q_OVERFLOW)


class Place(Protocol):
    """One directory, and who wants to know what comes into it."""

    path: str
    mask: int
    """The inotify events that tell of a complete file."""

    @property
    def polled(self) -> bool:
        """Whether events are known not to come here."""

    def came(self, name: str, now_ns: int) -> None:
        """A file of this name is complete."""

    def listed(self, names: list[str], now_ns: int) -> None:
        """All names that are there: some have been told of before, and some will be told of again."""

    def expected(self) -> list[str]:
        """The names of which one must come next; none while nobody can know."""


class _Watched:
    """A place and how it is seen."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.wd: int | None = None
        self.identity: tuple[int, int] | None = None  # of the directory that was listed last
        self.mtime_ns = 0
        self.listed_ns = 0


class Arrivals:
    """All places of one process. `look(now_ns)` is to be called at least every few seconds: 16,384 events are kept."""

    def __init__(self, places: list[Place]) -> None:
        self._watched = [_Watched(place) for place in places]
        self._by_wd: dict[int, _Watched] = {}
        self._inotify = _open_inotify()

    def change(self, places: list[Place]) -> None:
        """Other places from now on; those that stay are not listed again."""
        known = {id(watched.place): watched for watched in self._watched}
        for watched in self._watched:
            if all(watched.place is not place for place in places):  # before another place of its directory is watched
                self._unwatch(watched)
        self._watched = [known.get(id(place)) or _Watched(place) for place in places]

    def look(self, now_ns: int) -> None:
        """Tell every place what has come."""
        for watched in self._watched:
            self._arm(watched, now_ns)
        for wd, mask, _cookie, name in self._inotify.read(timeout=0) if self._inotify else ():
            if mask & _OVERFLOW:
                log.warning(event("events lost, listing", sysctl="fs.inotify.max_queued_events"))
                for watched in self._by_wd.values():
                    _list(watched, now_ns)
            elif name and (found := self._by_wd.get(wd)):
                found.place.came(name, now_ns)
        for watched in self._watched:
            if watched.wd is None and watched.identity is not None:
                _probe(watched, now_ns)

    def close(self) -> None:
        """Remove all watches."""
        if self._inotify:
            self._inotify.close()

    def _arm(self, watched: _Watched, now_ns: int) -> None:
        """Watch the directory that the path leads to now; watch first, then list."""
        try:
            status = os.stat(watched.place.path)
        except OSError:
            self._unwatch(watched)
            watched.identity = None
            return
        identity = (status.st_dev, status.st_ino)
        if identity == watched.identity and (watched.wd is None) == (watched.place.polled or not self._inotify):
            return
        self._unwatch(watched)
        if self._inotify and not watched.place.polled:
            self._watch(watched, self._inotify)
        watched.identity = identity
        _list(watched, now_ns)

    def _watch(self, watched: _Watched, inotify: INotify) -> None:
        try:
            watched.wd = inotify.add_watch(watched.place.path, watched.place.mask | flags.ONLYDIR)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):  # no more watches: none of this process is worth a try
                log.info(event("watch refused, probing for files", dir=watched.place.path, cause=describe(error)))
                inotify.close()
                self._inotify = None
            return
        self._by_wd[watched.wd] = watched

    def _unwatch(self, watched: _Watched) -> None:
        if watched.wd is None:
            return
        del self._by_wd[watched.wd]
        if self._inotify:
            try:
                self._inotify.rm_watch(watched.wd)
            except OSError as error:
                if error.errno != errno.EINVAL:  # EINVAL: the kernel has removed it already
                    raise
        watched.wd = None


def _open_inotify() -> INotify | None:
    try:
        return INotify(nonblocking=True)
    except OSError as error:
        log.info(event("no events, probing for files", cause=describe(error)))
        return None


def _list(watched: _Watched, now_ns: int) -> None:
    place = watched.place
    try:
        watched.mtime_ns = os.stat(place.path).st_mtime_ns
        place.listed(os.listdir(place.path), now_ns)
    except OSError:
        watched.identity = None  # it has gone, or may not be read: the next look tries again
    watched.listed_ns = now_ns


def _probe(watched: _Watched, now_ns: int) -> None:
    """Look for the next numbers; list where none is there and yet something has changed."""
    place, found = watched.place, False
    for _ in range(MAX_PROBES):
        expected = place.expected()
        there = [name for name in expected if os.path.exists(f"{place.path}/{name}")]
        if not there:
            break
        found = True
        for name in there:
            place.came(name, now_ns)
    if found or (expected and now_ns - watched.listed_ns < RELIST_S * _NS):
        return
    try:
        changed = os.stat(place.path).st_mtime_ns != watched.mtime_ns
    except OSError:
        changed = False
    if changed:
        _list(watched, now_ns)
