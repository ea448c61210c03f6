"""The bounds of the local store: the oldest incidents' evidence gives way, the incident rows stay."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pipeline.spool import EARLIEST_NS, Limits
from pipeline.store import LocalStore, StoredObject

WALK_EVERY_NS = 3600 * 10**9  # for age, and to agree with the disk again
SLACK = 0.95  # of the bound is left after a walk, so that not every upload needs one


class StoreBounds:
    """Keeps a LocalStore within its limits; disk I/O only. Between walks it adds up what it is told."""

    def __init__(self, store: LocalStore, limits: Limits) -> None:
        self._store, self._limits = store, limits
        self._total = 0
        self._walk_due_ns = 0

    def added(self, size: int) -> None:
        """So much has been stored."""
        self._total += size

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
        return self._store.free_bytes() < self._limits.min_free_bytes


def _by_directory(objects: list[StoredObject]) -> list[list[StoredObject]]:
    """Incidents, the one that was added to longest ago first. What lies elsewhere is not ours to delete."""
    groups: dict[str, list[StoredObject]] = {}
    for item in objects:
        if item.key.count("/") == 5:
            groups.setdefault(os.path.dirname(item.key), []).append(item)
    return sorted(groups.values(), key=lambda group: max(item.mtime_ns for item in group))
