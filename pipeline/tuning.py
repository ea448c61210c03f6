"""Tuning: the settings of a recorded source, with some of them changed, and what that does to its incidents.

A setting is named as in the configuration file's table of a source: `freeze.point_levels`, `rules.black.raise_s`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from pipeline import config
from pipeline.incidents import Incident
from pipeline.model import ConfigError
from pipeline.settings import Settings, Source

_STAND_IN = "recording"  # a recorded directory may be called what no source may

Change = Literal["appears", "disappears", "changes", "stays"]


def changed(source: Source, assignments: Sequence[str]) -> Source:
    """`source` with `KEY=VALUE` applied, checked as if the file said so. Raises ConfigError, which names the key."""
    tree: dict[str, Any] = {"name": _STAND_IN, "dir": source.dir or os.curdir}
    base = msgspec.to_builtins(source)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise ConfigError(f"--set {assignment}: write it like freeze.point_levels=4")
        if path[0] in ("name", "dir", "prefix", "capture"):
            raise ConfigError(f"--set {assignment}: {path[0]} says where frames are, not how they are judged")
        _put(tree, base, path, _value(text.strip()))
    try:
        settings = config.load(None, {}, {"source": [tree]})
    except ConfigError as error:
        raise ConfigError(str(error).replace("command line: source[0].", "--set ")) from None
    (made,) = settings.source
    kept = {field: getattr(source, field) for field in ("name", "dir", "prefix", "capture")}
    untouched = {field: getattr(source, field) for field in source.__struct_fields__ if field not in tree}
    return replace(made, **{**untouched, **kept})


def _put(tree: dict[str, Any], base: Mapping[str, Any], path: list[str], value: object) -> None:
    """Set one value in the table; the tables on the way keep what the source has there."""
    for name in path[:-1]:
        below = base.get(name)
        base = below if isinstance(below, Mapping) else {}
        tree = tree.setdefault(name, dict(base))
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {'.'.join(path)}: {name} is no table")
    tree[path[-1]] = value


def _value(text: str) -> object:
    """A value as TOML has it; a bare word is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def of_directory(settings: Settings, name: str, path: str, prefix: str) -> Source:
    """How frames of a recorded directory are judged: as the source of that name, if one is configured."""
    known = next((source for source in settings.source if source.name == name), None)
    if known is None:
        return Source(name=name, dir=path, prefix=prefix)
    return replace(known, dir=path, prefix=prefix, capture=None, audio_dir="")


def compare(before: Iterable[Incident], after: Iterable[Incident]) -> list[tuple[Change, Incident, Incident | None]]:
    """What became of each incident, by onset: the incident as it is now (as it was, where it disappears), and as it was
    before. Two of one condition that overlap are the same one, begun or ended at another frame."""
    left = list(before)
    found: list[tuple[Change, Incident, Incident | None]] = []
    for incident in after:
        earlier = next((other for other in left if _is_same(other, incident)), None)
        if earlier is not None:
            left.remove(earlier)
        found.append((_change(earlier, incident), incident, earlier))
    found += [("disappears", incident, incident) for incident in left]
    return sorted(found, key=lambda entry: (entry[1].onset.number, entry[1].condition))


def _is_same(one: Incident, other: Incident) -> bool:
    first, second = sorted((one, other), key=lambda incident: incident.onset.time_ns)
    overlap = second.onset.time_ns <= first.onset.time_ns + first.duration_s * 1e9
    return one.condition == other.condition and overlap


def _change(earlier: Incident | None, incident: Incident) -> Change:
    if earlier is None:
        return "appears"
    same = (earlier.onset, earlier.duration_s, earlier.reason) == (incident.onset, incident.duration_s, incident.reason)
    return "stays" if same else "changes"
