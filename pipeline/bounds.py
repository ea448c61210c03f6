"""The bounds of spool and local store: the oldest evidence gives way, the incident rows stay."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from msgspec.structs import replace

from pipeline.backoff import LOG_EVERY_NS
from pipeline.child import event, log
from pipeline.durable import free_bytes
from pipeline.settings import Settings
from pipeline.spool import EARLIEST_NS, ROOM_BYTES, Limits, Spool
from pipeline.store import LocalStore, ObjectStore, StoredObject, StoreError

LOOK_EVERY_NS = 600 * 10**9  # for age
WALK_EVERY_NS = 3600 * 10**9  # for age, and to agree with the disk again
SLACK = 0.95  # of the bound is left after a walk, so that not every upload needs one


class Bounds:
    """Keeps spool and local store within their limits; disk I/O only. What was given up stands in `dropped` and
    `dropped_stored` until the keeper has written it down."""

    def __init__(self, settings: Settings, spool: Spool, store: ObjectStore, synchronised: Callable[[], bool]) -> None:
        self._spool, self._synchronised = spool, synchronised
        self._limits = Limits(settings.spool_max_bytes, settings.spool_max_age_s, settings.min_free_bytes)
        store_limits = Limits(settings.store_max_bytes, settings.store_max_age_s, settings.min_free_bytes)
        self._store = StoreBounds(store, store_limits) if isinstance(store, LocalStore) else None
        self.dropped: list[tuple[int, str]] = []  # numbers of transitions, and why
        self.dropped_stored: list[tuple[str, str]] = []  # ids of incidents, and why
        self._unsaid: dict[tuple[str, str], int] = {}  # given up, not in the text log yet
        self._say_due_ns = self._look_due_ns = 0

    def added(self, size: int) -> None:
        """So much has been stored."""
        if self._store:
            self._store.added(size)

    def keep(self, now_ns: int, *, grown: bool) -> None:
        """After everything that may have `grown`, and now and then for age."""
        if grown or now_ns >= self._look_due_ns:
            if now_ns >= self._look_due_ns:
                self._warn_of_little_space()
            self._look_due_ns = now_ns + LOOK_EVERY_NS
            self._give_up(now_ns, self._limits)
        self._say_what_went(now_ns)

    def miss(self, stored: Iterable[tuple[str, list[str]]]) -> None:
        """Notice what was given up in the local store just before a kill: incidents, and the keys of their pictures."""
        if self._store:
            self.dropped_stored += [(incident, "lost") for incident, keys in stored if self._store.lacks(keys)]

    def close(self) -> None:
        """Say what is still unsaid."""
        self._say_due_ns = 0
        self._say_what_went(0)

    def make_way(self, size: int) -> None:
        """Before a job of `size` bytes is written: the spool is never above its bound, not for a moment."""
        only_bytes = replace(self._limits, min_free_bytes=0)  # for free space, what is stored goes first: afterwards
        dropped = self._spool.give_up_oldest(only_bytes, None, spare=size)
        self.dropped += dropped
        self._note("spool", dropped)

    def make_room(self, now_ns: int) -> None:
        """On a full disk: at least the oldest job goes, whatever the bounds."""
        self._give_up(now_ns, replace(self._limits, min_free_bytes=max(self._limits.min_free_bytes, ROOM_BYTES)), 1)

    def _give_up(self, now_ns: int, limits: Limits, at_least: int = 0) -> None:
        """Let the oldest evidence go where a bound is exceeded: stored here before still waiting."""
        wall_ns = time.time_ns() if self._synchronised() else None
        stored: list[tuple[str, str]] = []
        if self._store:
            with suppress(StoreError):  # the sender meets the same disk, and says so
                stored = self._store.give_up_oldest(now_ns, wall_ns)
                self.dropped_stored += stored
        dropped = self._spool.give_up_oldest(limits, wall_ns, at_least=at_least)
        self.dropped += dropped
        self._note("store", stored)
        self._note("spool", dropped)

    def _warn_of_little_space(self) -> None:
        free = free_bytes(self._spool.path)
        if free < self._limits.min_free_bytes:
            values = {"path": self._spool.path, "free_mb": free >> 20, "min_free_mb": self._limits.min_free_bytes >> 20}
            hint = "free some space, or lower min_free_bytes: evidence gives way first"
            log.warning(event("disk short of space", **values, hint=hint))

    def _note(self, place: str, gone: Iterable[tuple[object, str]]) -> None:
        """For the next line that tells what was given up."""
        for _, reason in gone:
            self._unsaid[place, reason] = self._unsaid.get((place, reason), 0) + 1

    def _say_what_went(self, now_ns: int) -> None:
        """Tell what was given up, at most every 30 s."""
        if self._unsaid and now_ns >= self._say_due_ns:
            self._say_due_ns = now_ns + LOG_EVERY_NS
            for (place, reason), count in self._unsaid.items():
                log.warning(event("evidence given up", place=place, reason=reason, count=count))
            self._unsaid = {}


class StoreBounds:
    """Keeps a LocalStore within its limits; disk I/O only. Between walks it adds up what it is told."""

    def __init__(self, store: LocalStore, limits: Limits) -> None:
        self._store, self._limits = store, limits
        self._total = 0
        self._walk_due_ns = 0

    def added(self, size: int) -> None:
        """So much has been stored."""
        self._total += size

    def lacks(self, keys: Iterable[str]) -> bool:
        """Whether one of these objects is not there."""
        return not all(os.path.exists(os.path.join(self._store.root, key)) for key in keys)

    def give_up_oldest(self, now_ns: int, wall_ns: int | None) -> list[tuple[str, str]]:
        """Delete what exceeds a bound, oldest incident first: (incident id, reason) of each. Raises StoreError.

        Without the wall time (nobody keeps the clock right) age is no reason."""
        if not os.path.isdir(self._store.root):
            return []
        if self._total <= self._limits.max_bytes and now_ns < self._walk_due_ns and not self._lacks_space():
            return []
        self._walk_due_ns = now_ns + WALK_EVERY_NS
        return list(self._sweep(wall_ns))

    def _sweep(self, wall_ns: int | None) -> Iterator[tuple[str, str]]:
        groups = _by_directory(self._store.objects())
        self._total = sum(item.size for group in groups for item in group)
        goal = self._limits.max_bytes * (SLACK if self._total > self._limits.max_bytes else 1)
        for group in groups:
            reason = self._exceeded(group, goal, wall_ns)
            if not reason:
                return
            for item in group:
                self._store.delete(item.key)
                self._total -= item.size
            yield group[0].key.split("/")[-2], reason

    def _exceeded(self, group: list[StoredObject], goal: float, wall_ns: int | None) -> str:
        if self._total > goal:
            return "bytes"
        if self._lacks_space():
            return "free_space"
        newest_ns = max(item.mtime_ns for item in group)
        if wall_ns is not None and EARLIEST_NS <= newest_ns < wall_ns - self._limits.max_age_s * 1e9:
            return "age"
        return ""

    def _lacks_space(self) -> bool:
        return self._limits.lacks_space(self._store.free_bytes(), self._total)


def _by_directory(objects: list[StoredObject]) -> list[list[StoredObject]]:
    """Incidents, the one that was added to longest ago first. What lies elsewhere is not ours to delete."""
    groups: dict[str, list[StoredObject]] = {}
    for item in objects:
        if item.key.count("/") == 5:
            groups.setdefault(os.path.dirname(item.key), []).append(item)
    return sorted(groups.values(), key=lambda group: max(item.mtime_ns for item in group))
