"""Macroblocking made for real: clips go through a real encoder, their streams are damaged or starved as bad reception
and a thrifty operator do it, FFmpeg decodes what is left, and the picture is captured like any other.

Per captured frame, `macroblocks` in the truth comes from what only the maker knows: the same stream undamaged, and the
encoder's own grid.

- damaged: the macroblocks (16 x 16) that differ from the undamaged picture by DIFFERS levels or more in the mean. True
  from DAMAGED_PCT of them, false up to WHOLE_PCT, null in between.
- starved: by how much the step across the edges of 8 x 8 blocks exceeds that elsewhere, less the same in the clip
  itself. True from BLOCKY levels, false up to SMOOTH, null in between.

`freeze` and `black` are null: a broken stream may stand or go dark.
"""

from __future__ import annotations

import itertools
import random
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from pipeline import truth as labels
from pipeline.truth import Known, Split, Truth
from tests.footage.capture import Camera, Capture, write_frames
from tests.footage.cases import Stock, encoding
from tests.footage.clips import FPS, Frame, Library, Size
from tests.footage.compose import whole
from tests.footage.scenes import Scene

Codec = Literal["mpeg2", "h264"]

CODECS: tuple[Codec, ...] = ("mpeg2", "h264")
SIZES: tuple[tuple[Size, Size], ...] = (  # as sent, as captured
    ((720, 576), (720, 576)),
    ((1920, 1080), (1280, 720)),
    ((1280, 720), (1280, 720)),
    ((720, 576), (1280, 720)),
    ((640, 360), (640, 360)),
)
STREAM_FPS = 25
DIFFERS = 12.0
DAMAGED_PCT, WHOLE_PCT = 3.0, 0.3
BLOCKY, SMOOTH = 5.0, 0.5

_START = re.compile(rb"\x00\x00\x01")
_KEEP = 8  # bytes after a start code: headers, without which a decoder shows nothing at all


@dataclass(frozen=True)
class Stream:
    """How a clip is sent. `quality` is the encoder's: -q:v of MPEG-2 (2-31), -crf of H.264 (0-51)."""

    codec: Codec
    size: Size
    quality: int
    gop: int = 25
    slices: int = 1

    def command(self) -> list[str]:
        """The encoder: raw pictures in, an elementary stream out."""
        source = ["-f", "rawvideo", "-pix_fmt", "bgr24", "-s", f"{self.size[0]}x{self.size[1]}", "-r", str(STREAM_FPS)]
        mpeg2 = ["-c:v", "mpeg2video", "-q:v", f"{self.quality}", "-bf", "2", "-f", "mpeg2video"]
        more = ["-x264-params", f"slices={self.slices}:scenecut=0:threads=1", "-f", "h264"]
        h264 = ["-c:v", "libx264", "-preset", "veryfast", "-crf", f"{self.quality}", *more]
        coder = mpeg2 if self.codec == "mpeg2" else h264
        return _ffmpeg(*source, "-i", "-", "-pix_fmt", "yuv420p", "-g", f"{self.gop}", *coder, "-")

    @property
    def demuxer(self) -> str:
        return "mpegvideo" if self.codec == "mpeg2" else "h264"


@dataclass(frozen=True)
class BrokenCase:
    """One recipe. `hits`: damaged places per picture, from first_s to before last_s; 0: the stream is only starved."""

    name: str
    theme: str
    split: Split
    scene: Scene
    seconds: float
    stream: Stream
    size: Size
    hits: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0
    conceal: str = "guess_mvs+deblock"  # how the decoder hides what is missing
    capture: Capture = field(default_factory=Capture)
    kind: Literal["plain", "hard"] = "hard"

    @property
    def frames(self) -> int:
        return round(self.seconds * FPS)


def broken(stock: Stock) -> Iterator[BrokenCase]:
    """All of them."""
    clips = itertools.cycle([*stock.clips, stock.films[0]])
    for at, (codec, (sent, shown)) in enumerate(itertools.product(CODECS, SIZES)):
        hits, conceal = ((0.4, "guess_mvs+deblock"), (3.0, "favor_inter"))[at % 2]
        stream = Stream(codec, sent, 5 if codec == "mpeg2" else 22, slices=4)
        yield _case(stock, "damaged", f"{codec}-{sent[1]}-{shown[1]}", next(clips), stream, shown, hits, conceal)
    for quality, (sent, shown) in itertools.product((31, 16, 4), SIZES[:3]):
        what = f"q{quality}-{sent[1]}-{shown[1]}"
        yield _case(stock, "starved", what, next(clips), Stream("mpeg2", sent, quality), shown)


def _case(
    stock: Stock, theme: str, what: str, scene: Scene, stream: Stream, shown: Size, hits: float = 0, conceal: str = ""
) -> BrokenCase:
    name = f"{stock.split[0]}-{theme}-{what}"
    capture = encoding(name, sigma=random.Random(f"noise {name}").choice((0.0, 0.0, 1.0)))
    more = {"hits": hits, "first_s": 2.0, "last_s": 6.0, "conceal": conceal} if hits else {}
    return BrokenCase(name, theme, stock.split, scene, 8.0, stream, shown, capture=capture, **more)  # type: ignore[arg-type]


def build(case: BrokenCase, library: Library, directory: Path) -> None:
    """Make the case's directory, at once or not at all."""
    known: list[bool | None] = []
    camera = Camera(case.capture, case.size, case.name)
    with whole(directory / case.name) as temporary:
        write_frames(_captured(case, library, camera, known), camera, case.size, temporary)
        labels.write(temporary, _label(case, tuple(known)))


def _label(case: BrokenCase, known: Known) -> Truth:
    unknown = (None,) * len(known)
    return Truth(
        fps=FPS,
        freeze=unknown,
        black=unknown,
        macroblocks=known,
        clip=" + ".join(case.scene.clips),
        split=case.split,
        kind=case.kind,
        theme=case.theme,
    )


def _captured(
    case: BrokenCase, library: Library, camera: Camera, known: list[bool | None]
) -> Iterator[tuple[Frame, bool]]:
    paint = case.scene.open(library, case.stream.size)
    every = STREAM_FPS // FPS
    sent = [paint(at) for at in range(case.frames * every)]
    stream = _run(case.stream.command(), b"".join(frame.tobytes() for frame in sent))
    whole = _decode(stream, case)[: len(sent)]
    seen = _decode(damage(stream, case), case) if case.hits else whole
    in_step = len(seen) == len(whole)  # else a picture was lost: what comes after it is another moment's
    for at in range(0, len(sent), every):
        frame = seen[min(at, len(seen) - 1)]
        truth = _is_damaged(frame, whole[at]) if case.hits else _is_blocky(frame, sent[at])
        known.append(truth if in_step or at < case.first_s * STREAM_FPS else None)
        shown = frame if case.size == case.stream.size else cv2.resize(frame, case.size, interpolation=cv2.INTER_LINEAR)
        yield camera.capture(shown, at // every), False  # type: ignore[arg-type]


def damage(stream: bytes, case: BrokenCase) -> bytes:
    """The stream with some bytes of its pictures changed; no start code is made or lost."""
    dice = random.Random(f"damage {case.name}")
    data = bytearray(stream)
    slices = _slices(stream, case.stream.codec)
    pictures = case.frames * STREAM_FPS // FPS
    for at, (begin, end) in enumerate(slices):
        second = at / len(slices) * pictures / STREAM_FPS
        if case.first_s <= second < case.last_s and dice.random() < case.hits * pictures / len(slices):
            for _ in range(dice.randint(1, 4)):
                data[dice.randrange(begin, end)] = dice.randrange(4, 256)
    return bytes(data)


def _slices(stream: bytes, codec: str) -> list[tuple[int, int]]:
    """Where the coded pictures lie: of MPEG-2 every slice, of H.264 every slice that others may go on without."""
    starts = [found.end() for found in _START.finditer(stream)] + [len(stream) + 3]
    found = []
    for begin, end in itertools.pairwise(starts):
        code = stream[begin]
        is_slice = 0x01 <= code <= 0xAF if codec == "mpeg2" else code & 31 == 1
        if is_slice and end - 3 - begin > 2 * _KEEP:
            found.append((begin + _KEEP, end - 4))
    return found


def _decode(stream: bytes, case: BrokenCase) -> list[Frame]:
    width, height = case.stream.size
    conceal = ["-ec", case.conceal] if case.conceal else []
    command = _ffmpeg(
        *("-flags", "output_corrupt", *conceal, "-threads", "1", "-f", case.stream.demuxer, "-r", f"{STREAM_FPS}"),
        *("-i", "-", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "bgr24", "-"),
    )
    raw = np.frombuffer(_run(command, stream), np.uint8)
    return list(raw.reshape(-1, height, width, 3))


def _is_damaged(frame: Frame, whole: Frame) -> bool | None:
    apart = cv2.cvtColor(cv2.absdiff(frame, whole), cv2.COLOR_BGR2GRAY)
    height, width = apart.shape
    means = cv2.resize(apart, (width // 16, height // 16), interpolation=cv2.INTER_AREA)
    pct = 100.0 * float((means >= DIFFERS).mean())
    return True if pct >= DAMAGED_PCT else False if pct <= WHOLE_PCT else None


def _is_blocky(frame: Frame, clip: Frame) -> bool | None:
    excess = _edge_excess(frame) - _edge_excess(clip)
    return True if excess >= BLOCKY else False if excess <= SMOOTH else None


def _edge_excess(frame: Frame) -> float:
    """Levels: the mean step across the edges of 8 x 8 blocks above the mean step elsewhere."""
    grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY).astype(np.int16)
    excess = 0.0
    for picture in (grey, grey.T):
        steps = np.abs(np.diff(picture, axis=1)).mean(axis=0)
        on_edge = np.arange(1, picture.shape[1]) % 8 == 0
        excess += float(steps[on_edge].mean() - steps[~on_edge].mean()) / 2
    return excess


def _ffmpeg(*arguments: str) -> list[str]:
    return ["ffmpeg", "-v", "quiet", "-nostdin", *arguments]


def _run(command: Sequence[str], data: bytes) -> bytes:
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout
