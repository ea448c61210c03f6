"""The variables of the monitor that this one replaces, and what they are in a configuration of ours.

`HOST_VIDEO_SOURCE` and `DEVICE<n>_VIDEO` name what is captured: a device, an X display, a URL or a recording. `null`
and nothing at all are none; an `x` or `#` before a variable's name disables it. Frames lay in `captures/` below the
capture path.
"""

from __future__ import annotations

import io
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec
from dotenv.parser import parse_stream

from pipeline.model import printable

_FIELDS = {  # the part of a variable's name that follows HOST_ or DEVICE<n>_
    "HOST": {"VIDEO_SOURCE": "video", "VIDEO_AUDIO": "audio", "VIDEO_CAPTURE_PATH": "path", "VIDEO_FPS": "fps"},
    "DEVICE": {
        "NAME": "name",
        "VIDEO": "video",
        "VIDEO_AUDIO": "audio",
        "VIDEO_CAPTURE_PATH": "path",
        "VIDEO_FPS": "fps",
    },
}
_NAME = re.compile(r"(x?)(HOST|DEVICE)([0-9]*)_(\w+)", re.ASCII)
_COMMENTED = re.compile(r"^[ \t]*#[# \t]*(?:export[ \t]+)?x?((?:HOST_VIDEO|DEVICE[0-9]+)_\w*[ \t]*=)", re.M | re.ASCII)
_DISPLAY = re.compile(r"[A-Za-z0-9.-]*:[0-9]+(\.[0-9]+)?(\+[0-9]+,[0-9]+)?")
_REFERENCE = re.compile(r"\$\{|\$[A-Za-z_]")
_FPS = re.compile(r"[0-9]{1,4}(\.[0-9]{1,3})?")
_MOST_FPS = 1000.0
_STALL_S = 5.0  # the default of `stall_s`: no shorter than two frames' distance
_COMMENT_AT = 44
_FRAMES = "captures"  # below a capture path: where the old capture published and the old monitor watched
_PULSE = "alsa:... for the installed service: a user's PulseAudio is closed to it, and then FFmpeg ends"
_MOST_LETTERS = 63  # of a source's name

HEADER = """\
# Made by `stillwatch import-env`. What it captures is published in memory (the runtime directory), not on a disk.
# Check it with `stillwatch doctor --config FILE`; every other setting is in systemd/stillwatch.toml and the README.
"""


@dataclass
class Old:
    """One source as the variables have it, or would have it if they were not disabled."""

    called: str  # HOST or DEVICE<n>
    on: dict[str, str] = field(default_factory=dict)
    off: dict[str, str] = field(default_factory=dict)
    lines: dict[str, tuple[str, int]] = field(default_factory=dict)  # what is on: the variable that said it, its line

    @property
    def disabled(self) -> bool:
        """Whether nothing that is enabled says what to watch."""
        return not {"video", "path"} & set(self.on)

    @property
    def values(self) -> dict[str, str]:
        """What counts."""
        return {**self.off, **self.on} if self.disabled else self.on


class Line(msgspec.Struct, frozen=True):
    """One line of a configuration; its comment says what a person should know of it."""

    key: str
    value: object
    comment: str = ""
    off: bool = False

    def __str__(self) -> str:
        text = f"{'#' * self.off}{self.key} = {msgspec.json.encode(self.value).decode()}"
        return f"{text:<{_COMMENT_AT}} # {self.comment}" if self.comment else text


def convert(text: str) -> tuple[str, list[str], int]:
    """An env file's text as a configuration in TOML, what was left out or deserves a look (no values are repeated:
    they may be secrets), and the number of sources, the disabled ones included."""
    sources, warnings = read(text)
    blocks, taken = [HEADER], set[str]()
    for old in sources:
        lines = [str(line) for line in _block(old, taken, warnings)]
        heading = f"# {old.called}" + (", disabled" if old.disabled else "")
        blocks.append("\n".join([heading, *(f"#{line}" if old.disabled else line for line in lines), ""]))
    return "\n".join(blocks), warnings, len(sources)


def read(text: str) -> tuple[list[Old], list[str]]:
    """The sources that an env file names, and warnings."""
    found: dict[tuple[str, int], Old] = {}
    warnings = []
    for binding in parse_stream(io.StringIO(_COMMENTED.sub(r"x\1", text))):
        key, line = binding.key, binding.original.line
        if binding.error:
            warnings.append(f"line {line} is not understood; left out")
        elif key is not None and (place := _place(key)):
            rig, number, name, disabled = place
            old = found.setdefault((rig, number), Old(f"{rig}{number}" if rig == "DEVICE" else rig))
            value = (binding.value or "").strip()
            if not value.isprintable():
                warnings.append(f"line {line}: {key} has a control character; left out")
                continue
            if not disabled:
                warnings += _collisions(old, name, key, line)
            if not disabled:
                old.on.pop(name, None)
            if value and value.lower() != "null":
                (old.off if disabled else old.on)[name] = value
                if not disabled and _REFERENCE.search(value):
                    warnings.append(f"line {line}: {key} refers to a variable, which is not followed; write its value")
        elif key is not None:
            warnings.append(_unknown(key, line))
    return [old for _, old in sorted(found.items(), key=_order) if {"video", "path"} & set(old.values)], warnings


def _collisions(old: Old, name: str, key: str, line: int) -> Iterator[str]:
    """What is said twice, or of a device whose number is written in two ways."""
    if name in old.lines:
        key_before, line_before = old.lines[name]
        yield f"line {line}: {key} says again what {key_before} in line {line_before} does; the last one counts"
    elif other := next((place for place in old.lines.values() if _rig(place[0]) != _rig(key)), None):
        yield f"line {line}: {key} is taken for the device of {other[0]} in line {other[1]}"
    old.lines[name] = key, line


def _rig(key: str) -> str:
    """HOST or DEVICE<n>, as it is written."""
    return key.partition("_")[0]


def _order(item: tuple[tuple[str, int], Old]) -> tuple[bool, int]:
    """The host first, then devices by number."""
    rig, number = item[0]
    return rig != "HOST", number


def _place(key: str) -> tuple[str, int, str, bool] | None:
    """Whose variable it is, what it says, and whether it is disabled."""
    match = _NAME.fullmatch(key)
    if match is None or bool(match[3]) != (match[2] == "DEVICE") or match[4] not in _FIELDS[match[2]]:
        return None
    return match[2], int(match[3] or 0), _FIELDS[match[2]][match[4]], bool(match[1])


def _unknown(key: str, line: int) -> str:
    if key.startswith("CLOUDFLARE_R2_"):
        return f"line {line}: {key} belongs in no configuration; keep it in the environment or as a systemd credential"
    return f"line {line}: {printable(key)} has no meaning here; left out"


def _block(old: Old, taken: set[str], warnings: list[str]) -> Iterator[str | Line]:
    values = old.values
    name = _name(values.get("name") or old.called.lower(), taken)
    was = "" if values.get("name", name) == name else f"was {values['name']}"
    capture = list(_capture(old.called, values, warnings))
    fps = next((line.value for line in capture if line.key == "fps"), None)
    yield "[[source]]"
    yield Line("name", name, was)
    if path := values.get("path"):
        why = "the old place; without this line frames are in memory" if capture else "another FFmpeg publishes here"
        yield Line("dir", _frames_below(path), why, off=bool(capture))
    if isinstance(fps, float) and 2 / fps > _STALL_S:
        yield Line("stall_s", float(math.ceil(2 / fps)), "two frames that do not come")
    if capture:
        yield "[source.capture]"
        yield from capture


def _capture(called: str, values: dict[str, str], warnings: list[str]) -> Iterator[Line]:
    video = values.get("video")
    if video is None:
        return
    profile, why = _profile(video)
    if profile == "file" and "/" not in video:
        warnings.append(f"{called}: its video is no device, display, URL or path; taken for a recording")
    yield Line("profile", profile, why)
    by_number = (
        "better: its name in /dev/v4l/by-path, which does not change" if re.match("/dev/video[0-9]", video) else ""
    )
    yield Line("input", video, by_number)
    if profile == "url":
        yield Line("live", True, "false for a recording")
    if fps := values.get("fps"):
        if _FPS.fullmatch(fps) and 0 < float(fps) <= _MOST_FPS:
            yield Line("fps", float(fps))
        else:
            warnings.append(f"{called}: its frames per second are no number from 0.001 to 1000; left out")
    if audio := values.get("audio"):
        yield Line("audio", True)
        sound = _audio(audio)
        yield Line("audio_input", sound, _PULSE if sound.startswith("pulse:") else "")


def _frames_below(path: str) -> str:
    """The directory of the frames, which some may have named themselves."""
    return path if os.path.basename(os.path.normpath(path)) == _FRAMES else os.path.join(path, _FRAMES)


def _profile(video: str) -> tuple[str, str]:
    """How capture.sh would capture it, and what a person should know of that."""
    if video.startswith("/dev/"):
        return "v4l2-copy", "v4l2-encode for one that delivers no MJPEG"
    if _DISPLAY.fullmatch(video):
        return "x11grab", ""
    if re.match(r"rtsps?://", video):
        return "rtsp", ""
    return ("url", "") if re.match(r"[a-z][a-z0-9+.-]*://", video) else ("file", "a recording, played again and again")


def _audio(audio: str) -> str:
    """As capture.sh names inputs of sound."""
    if re.match(r"(alsa|pulse|lavfi):.", audio):
        return audio
    return "pulse:default" if audio == "pulse" else f"alsa:{audio}"


def _name(called: str, taken: set[str]) -> str:
    """A name that a source may have, and that none has yet."""
    plain = unicodedata.normalize("NFKD", called).encode("ascii", "ignore").decode()
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")[:_MOST_LETTERS] or "source"
    name = next(name for name in _numbered(base) if name not in taken)
    taken.add(name)
    return name


def _numbered(base: str) -> Iterable[str]:
    yield base
    for number in range(2, 10_000):
        yield f"{base[: _MOST_LETTERS - 5]}-{number}"
