"""Judges recorded sidecars anew where only they are left: other thresholds on the readings that they hold.

Exact, but for rounding, for what was true, which the readings decide. What was refused at a glance has fewer readings,
and stays refused; a black that was refused is taken for one only where little is lit around its core.
"""

from __future__ import annotations

from collections.abc import Collection

from msgspec.structs import replace

from pipeline.freeze import is_large
from pipeline.model import BlackThresholds
from pipeline.settings import Source
from pipeline.sidecar import FREEZE_FAULT, Sidecar

DECIDED = (
    "static_ok",
    "black.black_pct_min",
    "black.lit_tiles_pct_max",
    "black.tint_max",
    "macroblocks.quality_min",
    "macroblocks.incident",
    "audio.loss_db",
)
"""The settings of a source that readings can decide; `rules.*` need no reading."""

_LITTLE_LIT_PCT = 10.0  # of what is not the core: a logo and a clock


def rejudged(content: Sidecar, source: Source, keys: Collection[str]) -> Sidecar:
    """The sidecar as it would be with these settings of a source, of DECIDED; all others stand."""
    if any(key.startswith("black.") for key in keys) and content.blackscreen is not None:
        content = replace(content, blackscreen=_is_black(content, source.black))
    if "macroblocks.quality_min" in keys and content.quality_score is not None:
        content = replace(content, macroblocks=content.quality_score < source.macroblocks.quality_min)
    if "audio.loss_db" in keys and content.audio is not None and (levels := _channels(content)):
        content = replace(content, audio=max(levels) > source.audio.loss_db)
    if "static_ok" in keys and FREEZE_FAULT in content.readings:
        content = replace(content, readings={**content.readings, FREEZE_FAULT: float(_is_fault(content, source))})
    return content


def _is_black(content: Sidecar, limits: BlackThresholds) -> bool:
    readings = content.readings
    core_pct, lit_tiles_pct = readings.get("black_core_pct", 0.0), readings.get("black_lit_tiles_pct", 100.0)
    plain = core_pct >= limits.black_pct_min and lit_tiles_pct <= limits.lit_tiles_pct_max
    if not plain or readings.get("black_tint", 0.0) > limits.tint_max:
        return False
    if content.blackscreen:
        return True
    untinted = "black_tint" in readings or readings.get("black_level", 255.0) <= limits.tint_above_level
    return untinted and readings.get("black_lit_pct", 100.0) <= _LITTLE_LIT_PCT


def _channels(content: Sidecar) -> list[float]:
    return [level for name, level in content.readings.items() if name.startswith("audio_channel_")]


def _is_fault(content: Sidecar, source: Source) -> bool:
    if not source.static_ok:
        return content.freeze_kind in ("whole", "partial") or content.readings[FREEZE_FAULT] > 0
    stopped = int(content.readings.get("freeze_stopped_tiles", 0))
    return content.readings[FREEZE_FAULT] > 0 and is_large(stopped, len((content.tile_map or "").replace(" ", "")))
