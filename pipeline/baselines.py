"""The rules Stillwatch is measured against: that of the monitor it replaces, and FFmpeg's filters. Loaded by nothing
that watches.

- "old": freeze is a mean absolute difference below 0.5 levels, at full size in grey, against each of the last three
  frames; black is more than 95 % of the pixels at or below 10.
- "upstream": virtualpytest as it was left. Freeze is less than 0.8 % of the pixels of a 320x180 thumbnail differing by
  more than 10, against at least two of the last three; black is more than 95 % of the pixels at or below 10 in rows
  5-70 %, counted on every fourth pixel, and on all where that gives 70-90 %.
- FFmpeg's freezedetect and blackdetect with their defaults (n 0.001, d 2; pic_th 0.98, pix_th 0.10, d 2) and with
  others. Their verdicts are given afterwards for the whole stretch, back to its first frame: hindsight that a monitor
  does not have.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.detectors import BadPicture
from pipeline.model import UnavailableError

Grey = npt.NDArray[np.uint8]

OLD_DIFF_MAX = 0.5
OLD_BLACK_LEVEL = 10
OLD_BLACK_PCT = 95.0
UPSTREAM_CHANGED_PCT = 0.8
UPSTREAM_POINT_LEVELS = 10
PREDECESSORS = 3

FREEZE_SETTINGS = tuple(itertools.product((0.001, 0.0003, 0.003, 0.005, 0.01, 0.02), (2.0, 0.6)))
"""freezedetect's n and d; the first are its defaults."""

BLACK_SETTINGS = tuple(itertools.product((0.98, 0.95, 0.90), (0.10, 0.05, 0.15), (2.0, 0.2)))
"""blackdetect's pic_th, pix_th and d; the first are its defaults."""

_GREY = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
_TIMEOUT_S = 600.0


def decode(data: bytes) -> Grey:
    """A frame in grey at full size. Raises BadPicture."""
    frame = cv2.imdecode(np.frombuffer(data, np.uint8), _GREY)
    if frame is None:
        raise BadPicture("not a whole picture: OpenCV cannot decode it")
    return frame  # type: ignore[return-value]  # imdecode makes bytes


class OldRule:
    """The rule that Stillwatch replaces. Feed it one source's frames in order."""

    def __init__(self) -> None:
        self._before: deque[Grey] = deque(maxlen=PREDECESSORS)

    def judge(self, frame: Grey) -> dict[str, bool | None]:
        """Verdicts on the next frame. A frame of another size is unlike its predecessors."""
        same = [other for other in self._before if other.shape == frame.shape]
        freeze = None
        if len(self._before) == PREDECESSORS:
            freeze = len(same) == PREDECESSORS and all(_mean_diff(frame, other) < OLD_DIFF_MAX for other in same)
        self._before.append(frame)
        return {"freeze": freeze, "black": dark_pct(frame) > OLD_BLACK_PCT}


class UpstreamRule:
    """virtualpytest's rule at its last commit. Feed it one source's frames in order."""

    def __init__(self) -> None:
        self._before: deque[Grey] = deque(maxlen=PREDECESSORS)

    def judge(self, frame: Grey) -> dict[str, bool | None]:
        """Verdicts on the next frame."""
        small: Grey = cv2.resize(frame, (320, 180), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        freeze = None
        if len(self._before) == PREDECESSORS:
            alike = [_changed_pct(small, other) < UPSTREAM_CHANGED_PCT for other in self._before]
            freeze = sum(alike) >= PREDECESSORS - 1
        self._before.append(small)
        return {"freeze": freeze, "black": _is_black_upstream(frame)}


def ffmpeg_verdicts(frames: Sequence[bytes], fps: float) -> dict[str, dict[str, list[bool]]]:
    """Verdicts of FFmpeg's filters with every setting: by condition and setting, one per frame.

    All run in one chain over one decode. Raises UnavailableError without FFmpeg, and if it did not take every frame.
    """
    chain = [f"freezedetect=n={n}:d={d},{_printer(f'f{at}')}" for at, (n, d) in enumerate(FREEZE_SETTINGS)]
    chain += [f"blackdetect=pic_th={pic}:pix_th={pix}:d=0,{_printer(f'b{pic}-{pix}')}" for pic, pix in _black_pairs()]
    with tempfile.TemporaryDirectory() as directory:
        taken = _run_ffmpeg(frames, fps, ",".join(chain), directory)
        if taken != len(frames):
            raise UnavailableError(f"ffmpeg took {taken} of {len(frames)} frames; see whether each is a whole JPEG")
        printed = {path.name: path.read_text(encoding="utf-8") for path in Path(directory).iterdir()}
    freeze = {
        f"n={n} d={d}": _between(printed.get(f"f{at}", ""), "freeze", len(frames), fps, 0.0)
        for at, (n, d) in enumerate(FREEZE_SETTINGS)
    }
    black = {
        f"pic_th={pic} pix_th={pix} d={d}": _between(printed.get(f"b{pic}-{pix}", ""), "black", len(frames), fps, d)
        for pic, pix, d in BLACK_SETTINGS
    }
    return {"freeze": freeze, "black": black}


def best(scores: Mapping[str, float | None]) -> str:
    """The setting with the highest score."""
    return max(scores, key=lambda setting: scores[setting] or 0.0)


def _black_pairs() -> list[tuple[float, float]]:
    return sorted({(pic, pix) for pic, pix, _ in BLACK_SETTINGS})


def _printer(name: str) -> str:
    """Print what the filter before it has to say into a file, and hand the frame on without."""
    return f"metadata=print:file={name},metadata=delete"


def _run_ffmpeg(frames: Iterable[bytes], fps: float, filters: str, directory: str) -> int:
    """How many frames came out of the chain."""
    source = ["-f", "image2pipe", "-c:v", "mjpeg", "-framerate", str(fps), "-i", "-"]
    command = ["ffmpeg", "-v", "error", "-nostats", "-progress", "pipe:1", *source, "-vf", filters, "-f", "null", "-"]
    try:
        done = subprocess.run(
            command, input=b"".join(frames), capture_output=True, cwd=directory, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise UnavailableError("ffmpeg: not found; apt-get install ffmpeg, or leave FFmpeg's filters out") from error
    counts = re.findall(rb"^frame=\s*(\d+)", done.stdout, re.MULTILINE)
    return int(counts[-1]) if counts else 0


def _between(printed: str, what: str, frames: int, fps: float, least_s: float) -> list[bool]:
    """True from each start to its end; what has no end lasts to the last frame."""
    verdicts = [False] * frames
    begun: float | None = None
    for edge, text in [*re.findall(rf"{what}_(start|end)=([\d.]+)", printed), ("end", str(frames / fps))]:
        if edge == "start":
            begun = float(text)
        elif begun is not None:
            if float(text) - begun >= least_s:
                first, end = round(begun * fps), round(float(text) * fps)
                verdicts[first:end] = [True] * (end - first)
            begun = None
    return verdicts


def _mean_diff(frame: Grey, other: Grey) -> float:
    return cv2.sumElems(cv2.absdiff(frame, other))[0] / frame.size


def _changed_pct(frame: Grey, other: Grey) -> float:
    _, changed = cv2.threshold(cv2.absdiff(frame, other), UPSTREAM_POINT_LEVELS, 255, cv2.THRESH_BINARY)
    return 100 * cv2.countNonZero(changed) / frame.size


def dark_pct(frame: Grey) -> float:
    """Share of the pixels at or below 10."""
    return 100 * int(np.count_nonzero(frame <= OLD_BLACK_LEVEL)) / frame.size


def _is_black_upstream(frame: Grey) -> bool:
    height = frame.shape[0]
    rows = frame[height * 5 // 100 : height * 70 // 100]
    pct = dark_pct(rows[::2, ::2])
    if 70 <= pct <= 90:
        pct = dark_pct(rows)
    return pct > OLD_BLACK_PCT
