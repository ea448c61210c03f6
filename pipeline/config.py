"""Reads the settings in: the command line over the environment over the file over the defaults.

Every mistake is a ConfigError of one line that names the key, where it stands, and what would be right. Apart from
`settings`, so that the children, who are handed a finished tree, need not carry a TOML reader.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import msgspec

from pipeline.model import (
    MAX_SOURCES,
    MAX_WORKERS,
    RULES,
    AudioThresholds,
    BlackThresholds,
    ConfigError,
    FreezeThresholds,
    NoSignalThresholds,
    Rule,
    describe,
    masked,
)
from pipeline.settings import AUDIO_DIR, FRAMES_DIR, Capture, Settings, Source, is_http_url, parse_cpus

ENVIRONMENT_PREFIX = "STILLWATCH_"
_SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SCALARS = tuple(field for field in msgspec.structs.fields(Settings) if field.name != "source")
_TEXTS = {field.name for field in _SCALARS if field.type is str}  # "3" is a list of cores as well as a number
_FLAGS = {field.name for field in _SCALARS if field.type is bool}
_OF_THE_LAUNCHER = {"STILLWATCH_PYTHON"}

_HAS_MEANING_FOR = {  # an option of capture.sh: the profiles that know it
    "size": ("v4l2-copy", "v4l2-encode", "x11grab", "lavfi"),
    "input_fps": ("v4l2-copy", "v4l2-encode"),
    "copy": ("rtsp", "file", "url"),
    "live": ("url",),
    "rtsp_transport": ("rtsp",),
}
_FILES = ("file", "v4l2-copy", "v4l2-encode")  # profiles whose input is a path
_SILENT = ("v4l2-copy", "v4l2-encode", "x11grab")  # profiles whose input has no sound
_AUDIO_INPUT = re.compile(r"(alsa|pulse|lavfi):.+")
_RIGHT = {  # what would be right, where msgspec's words do not say it: key and how they begin
    ("source", "Expected `array`"): "{}; write [[source]], in two brackets, before each source",
    ("workers", "Expected `int | str`"): f'{{}}; write a number from 1 to {MAX_WORKERS}, or "auto"',
}
_FRAMES_TO_A_STALL = 2.0  # intervals between frames: one that comes late is no stall

MAX_PREFIX_BYTES = 230  # leaves room for a few digits and the suffix in a name of 255


def load(file: str | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Settings:
    """The settings for this run, checked. `flags` holds only what the command line gave.

    A source's relative `dir` is meant from where it was written: the file's directory, or the one that the command
    line was typed in.
    """
    tree: dict[str, Any] = _read_file(file) if file else {}
    where = dict.fromkeys(tree, file or "")
    for name, text in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX) and text and name not in _OF_THE_LAUNCHER:
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
            tree[key], where[key] = _value_of(key, text), f"environment variable {name}"
    for key, value in flags.items():
        tree[key], where[key] = value, "command line"
    settings = _convert(tree, where)
    base = os.getcwd() if "source" in flags or not file else os.path.dirname(os.path.abspath(file))
    runtime_dir = settings.runtime_dir or default_runtime_dir(environment)
    settings = msgspec.structs.replace(
        settings,
        runtime_dir=runtime_dir,
        state_dir=settings.state_dir or default_state_dir(environment),
        log_file=_absolute(os.getcwd(), settings.log_file),
        metrics_file=_absolute(os.getcwd(), settings.metrics_file),
        source=tuple(_placed_source(source, base, runtime_dir) for source in settings.source),
    )
    _check(settings, where)
    return settings


def default_runtime_dir(environment: Mapping[str, str]) -> str:
    """systemd's, else /run for root, else the user's own runtime directory, else one in shared memory."""
    if environment.get("RUNTIME_DIRECTORY"):
        return environment["RUNTIME_DIRECTORY"].split(":")[0]
    if os.geteuid() == 0:
        return "/run/stillwatch"
    if environment.get("XDG_RUNTIME_DIR"):
        return os.path.join(environment["XDG_RUNTIME_DIR"], "stillwatch")
    return f"/dev/shm/stillwatch-{os.geteuid()}"  # noqa: S108 - made 0750 and checked for its owner before use


def default_state_dir(environment: Mapping[str, str]) -> str:
    """systemd's, else /var/lib for root, else the user's state directory."""
    if environment.get("STATE_DIRECTORY"):
        return environment["STATE_DIRECTORY"].split(":")[0]
    if os.geteuid() == 0:
        return "/var/lib/stillwatch"
    home = environment.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(home, "stillwatch")


def _placed_source(source: Source, base: str, runtime_dir: str) -> Source:
    """With absolute paths: a directory in memory where a captured source names none, files from `base`."""
    capture = source.capture
    if capture is None:
        return msgspec.structs.replace(source, dir=_absolute(base, source.dir))
    if capture.profile in _FILES and "://" not in capture.input:
        capture = msgspec.structs.replace(capture, input=_absolute(base, capture.input))
    place = os.path.join(os.path.abspath(runtime_dir), FRAMES_DIR, source.name)
    return msgspec.structs.replace(source, dir=_absolute(base, source.dir) or place, capture=capture)


def _absolute(base: str, path: str) -> str:
    return os.path.abspath(os.path.join(base, path)) if path else ""


def _read_file(file: str) -> dict[str, Any]:
    try:
        with open(file, "rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"{file}: {describe(error)}; name an existing file with --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from error


def _value_of(key: str, text: str) -> Any:
    """An environment variable's text as what the setting wants, as far as it is that; the rest is told when checked."""
    if key in _TEXTS:
        return text
    if key in _FLAGS:
        return {"1": True, "true": True, "0": False, "false": False}.get(text.lower(), text)
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _convert(tree: dict[str, Any], where: Mapping[str, str]) -> Settings:
    try:
        return msgspec.convert(_with_whole_rules(tree), Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), tree, where)) from error
    except UnicodeEncodeError:
        key = next((key for key, value in tree.items() if isinstance(value, str) and not value.isprintable()), "?")
        raise ConfigError(_placed(key, "must be valid UTF-8", where)) from None


def _with_whole_rules(tree: dict[str, Any]) -> dict[str, Any]:
    """With what a source's rules leave out taken from the rules that hold by default."""
    sources = tree.get("source")
    if not isinstance(sources, list):
        return tree
    return {**tree, "source": [_with_whole_rule(source) for source in sources]}


def _with_whole_rule(source: Any) -> Any:
    if not (isinstance(source, dict) and isinstance(rules := source.get("rules"), dict)):
        return source
    usual = {name: msgspec.to_builtins(RULES[name]) for name in rules if name in RULES}
    whole = {name: usual.get(name, {}) | rule if isinstance(rule, dict) else rule for name, rule in rules.items()}
    return {**source, "rules": whole}


def _explain(message: str, tree: Mapping[str, Any], where: Mapping[str, str]) -> str:
    """msgspec's message as `FILE: source[0].prefix: ...`, with a suggestion for an unknown key."""
    reason, _, path = message.partition(" - at `$")
    path = _named_rule(path.rstrip("`").lstrip("."), tree)
    if unknown := re.search(r"unknown field `(.*)`", reason, re.DOTALL):
        key = f"{path}.{unknown[1]}".lstrip(".")
        near = difflib.get_close_matches(unknown[1], _keys_at(path), 1)
        reason = "unknown key" + (f"; did you mean {near[0]!r}?" if near else "")
    elif missing := re.search(r"missing required field `(.*)`", reason):
        key, reason = f"{path}.{missing[1]}".lstrip("."), "missing; it is required"
    else:
        key = path
        reason = _RIGHT.get((key, reason.partition(", got ")[0]), "{}").format(reason)
    return _placed(key, reason, where)


def _named_rule(path: str, tree: Mapping[str, Any]) -> str:
    """The path with the condition's name where msgspec says `rules[...]`: the first rule that it refuses."""
    if not (found := re.match(r"source\[(\d+)\]\.rules\[\.\.\.\]", path)):
        return path
    for name, rule in tree["source"][int(found[1])]["rules"].items():
        try:
            msgspec.convert(rule, Rule)
        except msgspec.ValidationError:
            return f"{found[0].removesuffix('[...]')}.{name}{path[found.end() :]}"
    return path


def _placed(key: str, reason: str, where: Mapping[str, str]) -> str:
    """The one line: where the key stands, the key, what is wrong with it."""
    place = next((place for top, place in where.items() if re.split(r"[.\[]", key.removeprefix(top))[0] == ""), "")
    return f"{place}: {masked(key)}: {masked(reason)}".removeprefix(": ")


def _keys_at(path: str) -> list[str]:
    struct: Any = Settings
    if path.startswith("source"):
        tables = {
            "black": BlackThresholds,
            "freeze": FreezeThresholds,
            "no_signal": NoSignalThresholds,
            "audio": AudioThresholds,
            "capture": Capture,
        }
        last = path.rpartition(".")[2]
        struct = Rule if ".rules." in path else tables.get(last, Source)
    return [field.name for field in msgspec.structs.fields(struct)]


def _check(settings: Settings, where: Mapping[str, str]) -> None:
    """What types cannot say."""

    def wrong(key: str, reason: str) -> ConfigError:
        return ConfigError(_placed(key, reason, where))

    if isinstance(settings.workers, str) and settings.workers != "auto":
        raise wrong("workers", f"{settings.workers!r} is neither a number from 1 to {MAX_WORKERS} nor 'auto'")
    if settings.cpus:
        try:
            parse_cpus(settings.cpus)
        except ConfigError as error:
            raise wrong("cpus", str(error)) from error
    for key in ("runtime_dir", "state_dir", "log_file", "metrics_file"):
        if not _is_plain(getattr(settings, key)):
            raise wrong(key, f"{getattr(settings, key)!r} must be valid UTF-8 without NUL")
    if settings.webhook_url and not is_http_url(settings.webhook_url):  # it may hold a secret: not repeated
        raise wrong("webhook_url", "not a URL; write it like https://host/path")
    if settings.log_level not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise wrong("log_level", f"{settings.log_level!r} is none of DEBUG, INFO, WARNING, ERROR")
    if len(settings.source) > MAX_SOURCES:
        raise wrong("source", f"{len(settings.source)} sources, at most {MAX_SOURCES} are possible")
    names: set[str] = set()
    for at, source in enumerate(settings.source):
        _check_source(source, names, lambda key, reason, at=at: wrong(f"source[{at}].{key}", reason))
        names.add(source.name)
        if settings.strict and source.capture is None and not os.path.isdir(source.dir):
            raise wrong(f"source[{at}].dir", f"{source.dir}: no such directory, and --strict does not wait for it")


def _is_plain(text: str) -> bool:
    """Whether a text can be part of a path and stand in JSON."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _check_source(source: Source, names: set[str], wrong: Any) -> None:
    if not _SOURCE_NAME.fullmatch(source.name):
        raise wrong(
            "name",
            f"{source.name!r} must be 1-63 letters, digits, '.', '_' or '-', and begin with a letter or digit",
        )
    if source.name in names:
        raise wrong("name", f"{source.name!r} is used twice; every source needs a name of its own")
    for key, text in (("dir", source.dir), ("prefix", source.prefix), ("audio_dir", source.audio_dir)):
        if not _is_plain(text):
            raise wrong(key, f"{text!r} must be valid UTF-8 without NUL")
    if not source.dir and source.capture is None:
        raise wrong("dir", "missing; it is required where nothing is captured ([source.capture])")
    if not source.dir or (os.path.exists(source.dir) and not os.path.isdir(source.dir)):
        raise wrong("dir", f"{source.dir!r} is not a directory")
    for at, (left, top, right, bottom) in enumerate(source.masks):
        if left >= right or top >= bottom:
            raise wrong(f"masks[{at}]", "has no area; write it as [left, top, right, bottom], each from 0 to 1")
    if source.black.band_levels > source.black.top_level + 1:
        raise wrong("black.band_levels", f"{source.black.band_levels} levels do not fit below top_level + 1")
    if "/" in source.prefix or len(os.fsencode(source.prefix)) > MAX_PREFIX_BYTES:
        raise wrong(
            "prefix", f"{source.prefix!r} must be part of a file name: no '/', at most {MAX_PREFIX_BYTES} bytes"
        )
    for condition in source.rules:
        if condition not in RULES:
            near = difflib.get_close_matches(condition, RULES, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(RULES)}"
            raise wrong(f"rules.{condition}", f"unknown condition; {hint}")
    blocks, raise_s = source.macroblocks, source.rule_of("macroblocks").raise_s
    if 0 < blocks.every_s < 1:
        raise wrong(
            "macroblocks.every_s", f"{blocks.every_s:g} s is too often for a look at full size: 1 or more, or 0"
        )
    if blocks.incident and not 0 < blocks.every_s <= raise_s / 2:
        raise wrong("macroblocks.every_s", f"{blocks.every_s:g} s; an incident after {raise_s:g} s needs two looks")
    stalled = source.rules.get("capture_stalled")
    if stalled and stalled.raise_s not in (source.stall_s, RULES["capture_stalled"].raise_s):
        raise wrong("rules.capture_stalled.raise_s", "has no meaning here; set the source's stall_s")
    if source.capture is not None:
        _check_capture(source, source.capture, lambda key, reason: wrong(f"capture.{key}", reason))


def _check_capture(source: Source, capture: Capture, wrong: Any) -> None:
    """What capture.sh would refuse, told by the key. The input is never shown: it may hold a password."""
    for key in ("input", "audio_input", "ffmpeg"):
        if not getattr(capture, key).isprintable():
            raise wrong(key, "has a control character; leave it out")
    for key, profiles in _HAS_MEANING_FOR.items():
        if getattr(capture, key) and capture.profile not in profiles:
            raise wrong(key, f"has no meaning for the profile {capture.profile}; it is for {', '.join(profiles)}")
    if not capture.input and not (capture.profile == "x11grab" and os.environ.get("DISPLAY")):
        raise wrong("input", "missing; it is the device, display, URL, recording or graph to capture")
    if "://" in capture.input and capture.profile in _FILES:
        raise wrong("input", "is a URL; that is for the profiles url and rtsp")
    if capture.size and capture.profile == "lavfi" and not capture.input.startswith("scene:"):
        raise wrong("size", "has no meaning for a graph; say it there")
    if capture.quality is not None and (capture.copy or capture.profile == "v4l2-copy"):
        raise wrong("quality", "has no meaning where frames are copied")
    if capture.audio_input and not _AUDIO_INPUT.fullmatch(capture.audio_input):
        raise wrong("audio_input", "must be alsa:DEVICE, pulse:DEVICE or lavfi:GRAPH")
    if capture.audio_input and not (capture.audio or capture.hls):
        raise wrong("audio_input", "nothing is made of the sound; set audio or hls to true")
    if capture.audio and os.path.normpath(source.audio_path) != os.path.normpath(f"{source.dir}/{AUDIO_DIR}"):
        raise wrong("audio", f"its chunks go to {AUDIO_DIR}; leave out the source's audio_dir")
    if capture.audio and not capture.audio_input and capture.profile in _SILENT:
        raise wrong("audio", f"{capture.profile} has no sound of its own; set audio_input, to alsa:hw:1 for example")
    if capture.profile == "x11grab" and capture.fps == 0:
        raise wrong("fps", "a display has no rate of its own; say how often to look")
    if capture.rate and source.stall_s < _FRAMES_TO_A_STALL / capture.rate:
        least = _FRAMES_TO_A_STALL / capture.rate
        raise wrong("fps", f"{capture.rate:g} frames/s would pass for a stall; set the source's stall_s to {least:g}")
