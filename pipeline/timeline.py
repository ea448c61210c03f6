"""The timeline of a recording as one HTML file without anything around it: to look at, and to send to somebody.

    film        a few frames, evenly spread
    incidents   a bar each, from onset to recovery, with the frames it rests on below
    verdicts    a strip per condition: true, false, unknown
    readings    a small chart each, over the same time

Owns the drawing alone: it is given sidecars, incidents and thumbnails, and touches no file.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from pipeline.incidents import Incident
from pipeline.sidecar import Sidecar, timestamp

CONDITIONS = {"no_signal": "no_signal", "black": "blackscreen", "freeze": "freeze", "macroblocks": "macroblocks"}
"""Conditions, and the sidecar's fields of their verdicts; the sound's, `audio`, says the contrary of a loss."""

FILM = 12
"""Frames of the film."""

_WIDTH = 1200  # of everything that is drawn over time, in the units of the drawing
_LEFT, _RIGHT = 150, 16  # for names, and for half of the last time
_STRIP, _CHART = 14, 46  # heights
_COLOURS = {
    "capture_stalled": "#7a5195",
    "no_signal": "#2f6fb3",
    "black": "#222222",
    "freeze": "#d1495b",
    "audio_loss": "#c98a1b",
    "macroblocks": "#3d8b5f",
}
_UNKNOWN = "#c9c9c9"


@dataclass
class Timeline:
    """What is known of one recording, frame by frame."""

    source: str
    fps: float
    stems: list[str] = field(default_factory=list)  # names of the frames, without suffix
    numbers: list[int] = field(default_factory=list)
    times: list[str] = field(default_factory=list)
    verdicts: dict[str, list[bool | None]] = field(default_factory=dict)
    readings: dict[str, list[float]] = field(default_factory=dict)  # NaN where there is none

    def add(self, stem: str, content: Sidecar) -> None:
        """The next frame."""
        at = len(self.numbers)
        self.stems.append(stem)
        self.numbers.append(content.sequence)
        self.times.append(content.timestamp or "")
        found = {condition: getattr(content, name) for condition, name in CONDITIONS.items()}
        found["audio_loss"] = None if content.audio is None else not content.audio
        for condition, value in found.items():
            self.verdicts.setdefault(condition, [None] * at).append(value)
        for name in {*self.readings, *content.readings}:
            self.readings.setdefault(name, [math.nan] * at).append(content.readings.get(name, math.nan))

    def film(self) -> list[str]:
        """Stems of the frames of the film."""
        count = len(self.stems)
        return [self.stems[(2 * at + 1) * count // (2 * FILM)] for at in range(FILM)] if count > FILM else self.stems


def evidence_of(incident: Incident) -> Iterator[tuple[str, str]]:
    """What the frames are that an incident rests on, and their stems."""
    named = {
        "last good": incident.last_good,
        "onset": incident.onset,
        "confirming": incident.confirmed,
        "recovery": incident.recovery,
    }
    for what, frame in named.items():
        if frame is not None and frame.name:
            yield what, frame.name


def render(timelines: Sequence[tuple[Timeline, Sequence[Incident], Mapping[str, bytes]]], title: str) -> str:
    """The page: of each recording its frames, its incidents, and thumbnails (JPEG) by stem."""
    body = "".join(_section(*parts) for parts in timelines)
    return _PAGE.format(title=escape(title), body=body)


def _section(line: Timeline, incidents: Sequence[Incident], thumbnails: Mapping[str, bytes]) -> str:
    if not line.numbers:
        return f"<section><h2>{escape(line.source)}</h2><p>No frame was judged.</p></section>"
    length_s = (line.numbers[-1] - line.numbers[0]) / line.fps
    about = f"{len(line.numbers)} frames, {_clock(length_s)}, from {line.times[0][:19].replace('T', ' ')} UTC"
    parts = [
        f"<section><h2>{escape(line.source)}</h2><p>{escape(about)}; {_count(len(incidents), 'incident')}</p>",
        _film(line.film(), thumbnails),
        _drawing(line, incidents),
        *(_card(incident, thumbnails) for incident in incidents),
        "</section>",
    ]
    return "".join(parts)


def _film(stems: Iterable[str], thumbnails: Mapping[str, bytes]) -> str:
    frames = "".join(_picture(stem, thumbnails[stem], "") for stem in stems if stem in thumbnails)
    return f'<div class="film">{frames}</div>' if frames else ""


def _card(incident: Incident, thumbnails: Mapping[str, bytes]) -> str:
    """One incident and the frames it rests on."""
    opened = (timestamp(incident.onset.wall_ns) or "?")[11:19]
    state = "open" if incident.closed_wall_ns is None else incident.reason
    what = f"{incident.condition}: {_clock(incident.duration_s)} from {opened}, {state}"
    readings = ", ".join(f"{name} {value:g}" for name, value in incident.readings.items())
    frames = "".join(_picture(s, thumbnails[s], what) for what, s in evidence_of(incident) if s in thumbnails)
    return (
        f'<div class="incident" style="border-color:{_COLOURS.get(incident.condition, "#555")}">'
        f"<h3>{escape(what)}</h3><p>{escape(incident.coverage.describe())}"
        f"{'; ' + escape(readings) if readings else ''} <code>{escape(incident.id)}</code></p>"
        f'<div class="frames">{frames}</div></div>'
    )


def _picture(stem: str, jpeg: bytes, what: str) -> str:
    data = base64.b64encode(jpeg).decode()
    words = escape(f"{what}: {stem}" if what else stem)
    caption = escape(what or stem.rpartition("_")[2].lstrip("0") or "0")
    image = f'<img src="data:image/jpeg;base64,{data}" alt="{words}" title="{words}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


# -- over time --------------------------------------------------------------------------------------------------------


def _drawing(line: Timeline, incidents: Sequence[Incident]) -> str:
    rows: list[str] = []
    y = 0.0
    for incident in incidents:
        rows.append(_bar(line, incident, y))
        y += _STRIP + 3
    y += 8 if incidents else 0
    for condition, values in line.verdicts.items():
        if any(value is not None for value in values):
            rows.append(_name(condition, y + _STRIP - 3) + _strip(line, condition, values, y))
            y += _STRIP + 5
    for name, readings in sorted(line.readings.items()):
        rows.append(_chart(line, name, readings, y + 10))
        y += _CHART + 14
    rows.append(_axis(line, y + 14))
    height = y + 36
    return f'<svg viewBox="0 0 {_LEFT + _WIDTH + _RIGHT} {height:.0f}" role="img">{"".join(rows)}</svg>'


def _x(line: Timeline, number: float) -> float:
    first, last = line.numbers[0], line.numbers[-1] + 1
    return _LEFT + _WIDTH * min(max((number - first) / (last - first), 0.0), 1.0)


def _bar(line: Timeline, incident: Incident, y: float) -> str:
    begin = _x(line, incident.onset.number)
    end = _x(line, incident.onset.number + incident.duration_s * line.fps)
    width = max(2.0, end - begin)
    words = escape(f"{incident.condition}, {_clock(incident.duration_s)}, {incident.reason or 'open'}, {incident.id}")
    colour = _COLOURS.get(incident.condition, "#555")
    return _name(f"incident: {incident.condition}", y + _STRIP - 3) + (
        f'<rect x="{begin:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_STRIP}" rx="2" fill="{colour}">'
        f"<title>{words}</title></rect>"
    )


def _strip(line: Timeline, condition: str, values: Sequence[bool | None], y: float) -> str:
    """True in the condition's colour, unknown in grey, false empty."""
    drawn = [f'<rect x="{_LEFT}" y="{y:.1f}" width="{_WIDTH}" height="{_STRIP}" class="empty"/>']
    for first, last, value in _runs(values):
        if value is False:
            continue
        begin, end = _x(line, line.numbers[first]), _x(line, line.numbers[last] + 1)
        colour = _COLOURS[condition] if value else _UNKNOWN
        words = f"{condition}: {'true' if value else 'unknown'}, frames {line.numbers[first]} to {line.numbers[last]}"
        drawn.append(
            f'<rect x="{begin:.1f}" y="{y:.1f}" width="{max(0.6, end - begin):.1f}" height="{_STRIP}" fill="{colour}">'
            f"<title>{escape(words)}</title></rect>"
        )
    return "".join(drawn)


def _runs(values: Sequence[bool | None]) -> Iterator[tuple[int, int, bool | None]]:
    """First, last and value of each run of equal ones."""
    first = 0
    for at in range(1, len(values) + 1):
        if at == len(values) or values[at] is not values[first]:
            yield first, at - 1, values[first]
            first = at


def _chart(line: Timeline, name: str, values: Sequence[float], y: float) -> str:
    known = [value for value in values if not math.isnan(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    extent = high - low or 1.0
    points: list[str] = []
    for number, least, greatest in _columns(line.numbers, values):
        for value in (least, greatest) if greatest > least else (least,):
            points.append(f"{_x(line, number):.1f},{y + _CHART - _CHART * (value - low) / extent:.1f}")
    return (
        f'{_name(name, y + _CHART / 2)}<text x="{_LEFT - 6}" y="{y + 8:.1f}" class="limit">{high:g}</text>'
        f'<text x="{_LEFT - 6}" y="{y + _CHART:.1f}" class="limit">{low:g}</text>'
        f'<rect x="{_LEFT}" y="{y:.1f}" width="{_WIDTH}" height="{_CHART}" class="empty"/>'
        f'<polyline points="{" ".join(points)}"><title>{escape(f"{name}: {low:g} to {high:g}")}</title></polyline>'
    )


def _columns(numbers: Sequence[int], values: Sequence[float]) -> Iterator[tuple[int, float, float]]:
    """Least and greatest value of each column that can be told apart: nothing that stands out is lost."""
    step = max(1, math.ceil(len(values) / _WIDTH))
    for at in range(0, len(values), step):
        known = [value for value in values[at : at + step] if not math.isnan(value)]
        if known:
            yield numbers[at], min(known), max(known)


def _axis(line: Timeline, y: float) -> str:
    length_s = (line.numbers[-1] + 1 - line.numbers[0]) / line.fps
    step = next((s for s in (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200) if length_s / s <= 12), 14400)
    marks = []
    for at in range(int(length_s // step) + 1):
        number = line.numbers[0] + at * step * line.fps
        marks.append(f'<text x="{_x(line, number):.1f}" y="{y:.1f}" class="tick">{_clock(at * step)}</text>')
        marks.append(f'<line x1="{_x(line, number):.1f}" x2="{_x(line, number):.1f}" y1="0" y2="{y - 12:.1f}"/>')
    return "".join(marks)


def _name(text: str, y: float) -> str:
    return f'<text x="0" y="{y:.1f}">{escape(text)}</text>'


def _clock(seconds: float) -> str:
    """`1:05` or `2:01:05`; less than a minute as `7.5 s`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 24px auto; max-width: 1350px; padding: 0 16px }}
body {{ color: #222; background: #fff }}
h1 {{ font-size: 20px }} h2 {{ font-size: 17px; margin: 28px 0 0 }} h3 {{ font-size: 14px; margin: 0 }}
p {{ margin: 2px 0 8px; color: #555 }} code {{ color: #888 }}
svg {{ width: 100%; font-size: 11px; margin: 12px 0 }}
svg text {{ fill: #333 }} svg .limit {{ text-anchor: end; fill: #888; font-size: 9px }}
svg .tick {{ text-anchor: middle; fill: #666 }} svg line {{ stroke: #0001 }}
svg .empty {{ fill: #f4f4f2 }} svg polyline {{ fill: none; stroke: #2f6fb3; stroke-width: 1.2 }}
figure {{ margin: 0 }} figcaption {{ font-size: 11px; color: #666; text-align: center }}
.film, .frames {{ display: flex; gap: 4px }} .film figure {{ flex: 1 }} .film img {{ width: 100%; display: block }}
.film {{ margin-left: 11.1% }} .frames img {{ height: 110px; display: block }}
.incident {{ border-left: 5px solid; padding: 4px 0 4px 12px; margin: 14px 0 }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""
