"""The drawing of a recording: everything in its place, nothing but one file, and as much as fits to look at."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from msgspec.structs import replace

from pipeline import sidecar
from pipeline.incidents import Coverage, Incident, Sighting
from pipeline.model import Exit, FrameId
from pipeline.timeline import FILM, Timeline, evidence_of, render
from tests.support import ROOT, make_frame

pytestmark = pytest.mark.any_python

S = 10**9
WALL = 1_795_336_670 * S
SVG = re.compile(r"<svg .*?</svg>", re.DOTALL)


def sighting(number: int, name: str | None = None) -> Sighting:
    at = WALL + number * S // 5
    return Sighting(at, at, number, f"capture_{number}" if name is None else name, FrameId(1, number, at, 9))


def drawn(count: int = 100, black: range = range(0)) -> Timeline:
    line = Timeline("stb1", 5.0)
    for number in range(count):
        fields = {"blackscreen": number in black, "freeze": None if number < 3 else False}
        readings = {"black_pct": 100.0 if number in black else 1.0}
        identity = FrameId(1, number, WALL, 9)
        stem = f"capture_{number}"
        line.add(stem, sidecar.build("stb1", stem, number, identity, time_ns=WALL, readings=readings, **fields))
    return line


def incident(onset: int, duration_s: float) -> Incident:
    return Incident(
        id="abc",
        host="pi",
        source="stb1",
        condition="black",
        duration_s=duration_s,
        coverage=Coverage(),
        closed_wall_ns=1,
        reason="recovered",
        last_good=sighting(onset - 1),
        onset=sighting(onset),
        confirmed=sighting(onset + 20),
    )


def rects(page: str) -> list[dict[str, str]]:
    """The rectangles of the first drawing that say what they are."""
    found = SVG.search(page)
    assert found
    svg = ElementTree.fromstring(found[0])
    return [{**r.attrib, "title": r[0].text or ""} for r in svg.iter("rect") if len(r)]


def test_bars_and_strips_stand_where_the_frames_are() -> None:
    page = render([(drawn(100, range(40, 60)), [incident(40, 4.0)], {})], "one")
    bar, *strips = rects(page)
    assert (float(bar["x"]), float(bar["width"])) == (150 + 1200 * 0.4, 1200 * 0.2)
    by_words = {strip["title"]: (float(strip["x"]), float(strip["width"])) for strip in strips}
    assert by_words == {
        "black: true, frames 40 to 59": (630.0, 240.0),
        "freeze: unknown, frames 0 to 2": (150.0, 36.0),
    }


def test_nothing_that_stands_out_is_lost_among_many_frames() -> None:
    page = render([(drawn(20_000, range(9_000, 9_001)), [], {})], "many")
    (points,) = re.findall(r'<polyline points="([^"]*)"><title>black_pct', page)
    heights = {float(point.split(",")[1]) for point in points.split()}
    assert len(heights) == 2 and max(heights) - min(heights) == 46
    assert len(page) < 60_000


class Sources(HTMLParser):
    """Everything that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_hostile_names_are_text_and_nothing_is_loaded() -> None:
    name = "<script>alert(1)</script>&\"'"
    line = drawn()
    line.source = name
    page = render([(line, [incident(40, 4.0)], {"capture_40": b"\xff\xd8"})], name)
    assert "<script" not in page and page.count("&lt;script&gt;") == 3
    sources = Sources()
    sources.feed(page)
    assert sources.found == ["data:image/jpeg;base64,/9g="]


def test_the_film_is_spread_over_the_whole() -> None:
    assert drawn(5).film() == [f"capture_{n}" for n in range(5)]
    film = [int(stem.rpartition("_")[2]) for stem in drawn(1200).film()]
    assert len(film) == FILM and film[0] == 50 and set(np.diff(film)) == {100}


def test_a_tick_is_no_frame() -> None:
    silence = replace(incident(40, 4.0), onset=sighting(40, ""))
    assert [what for what, _ in evidence_of(silence)] == ["last good", "confirming"]


def replay(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "pipeline", "replay", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("recording") / "stb1"
    place.mkdir()
    black = bytes(cv2.imencode(".jpg", np.zeros((240, 320), np.uint8))[1])
    for number in range(100):
        (place / f"capture_{number}.jpg").write_bytes(black if 20 <= number < 80 else make_frame(number))
    return place


def test_replay_draws_what_it_found(recording: Path, tmp_path: Path) -> None:
    file = tmp_path / "it.html"
    done = replay("--plot", str(file), str(recording))
    assert (done.returncode, done.stderr) == (0, "")
    page = file.read_text()
    titles = [rect["title"] for rect in rects(page)]
    assert any(title.startswith("black, 12 s, recovered") for title in titles)
    assert page.count("<img ") == FILM + 4
    assert len(list(recording.iterdir())) == 100, "nothing is written beside the frames"


def test_a_drawing_that_cannot_be_written_is_said_in_one_line(recording: Path, tmp_path: Path) -> None:
    done = replay("--plot", str(tmp_path / "none" / "it.html"), str(recording))
    assert done.returncode == Exit.NO_INPUT and done.stderr.count("\n") == 1 and "--plot" in done.stderr
