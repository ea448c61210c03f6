"""`learn-no-signal`: learn the picture that a source shows without a signal, from the frames that are there now."""

from __future__ import annotations

import argparse
import heapq
import os
import shlex
import time
from contextlib import suppress

from msgspec.structs import replace

from pipeline import config, console, detectors, installed, learned, signature
from pipeline.commands.run import flags_of
from pipeline.detectors import BadPicture, Picture
from pipeline.frames import SUFFIX, FrameNames, read_frame
from pipeline.listing import Directory, Frame, Listing
from pipeline.model import ConfigError, Exit, InputError, InvalidFrame, StillwatchError, describe
from pipeline.nosignal import NoSignal
from pipeline.settings import Settings, Source
from pipeline.signature import Learned, Signature

FRAMES, MOST_FRAMES = 50, 1000  # 10 s at 5 frames/s
LEAST_RECOGNISED_PCT = 90

EPILOG = """\
examples:
  sudo stillwatch learn-no-signal stb1                           unplug stb1, wait 10 s, then type this
  ./stillwatch learn-no-signal stb1 --config stillwatch.toml     for a service that is not installed
  ./stillwatch learn-no-signal stb1 --from recordings/no-signal  from recorded frames
  ./stillwatch learn-no-signal stb1 --forget

Colour bars, plain blue and plain grey are known without learning. Several frames are looked at: what moves is left
out. A running service takes up what was learned when it is reloaded (SIGHUP) or restarted.
Exit codes: 0 learned (or forgotten), 1 nothing can be recognised by these frames (or nothing was there to forget),
66 there are no frames, 78 the configuration is wrong.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `learn-no-signal`."""
    add = parser.add_argument
    add("name", metavar="SOURCE", help="the source's name")
    add("--from", metavar="DIR", dest="directory", help="take the frames from here instead of the source's directory")
    add("--frames", type=_count, default=FRAMES, metavar="N", help=f"how many, the newest (default {FRAMES})")
    add("--forget", action="store_true", help="remove what was learned")
    add("--config", metavar="FILE", help="the service's settings")
    add("--source", metavar="NAME=DIR", action="append", help="a source, as for `run`")
    add("--state-dir", metavar="DIR", help=f"the service's state directory ({installed.WHICH})")
    add("--runtime-dir", metavar="DIR", help="the service's runtime directory (likewise)")


def run(arguments: argparse.Namespace) -> int:
    """Learn, or forget."""
    if arguments.source:
        settings = config.load(arguments.config, os.environ, flags_of(arguments))
    else:
        settings = installed.settings_for_reading(arguments)
    source = _source(settings, arguments.name, arguments.directory, arguments.forget)
    if arguments.forget:
        known = learned.forget(settings.state_dir, source.name)
        console.say(
            f"{source.name}: forgotten; reload or restart the service" if known else f"{source.name}: not learned"
        )
        return Exit.OK if known else Exit.FAILED
    detectors.prepare()
    shown = _Shown(source, arguments.frames)
    try:
        found = signature.learn([colour for _, colour in shown.pictures])
    except signature.Unfit as error:
        raise StillwatchError(f"{source.dir}: {error}") from error
    recognised = shown.tell(found)
    if 100 * recognised < LEAST_RECOGNISED_PCT * len(shown.pictures):
        raise StillwatchError(
            f"{source.dir}: recognised in {recognised} of its own {len(shown.pictures)} frames only, so not stored;"
            " wait until nothing but the no-signal picture is shown, or take fewer frames: --frames N"
        )
    path = learned.save(settings.state_dir, source.name, found)
    console.say(f"stored in {path}; reload or restart the service to use it")
    words = shlex.join(["./stillwatch", "replay", "--no-signal", path])
    console.say(f"check it on a recording of a programme, in which nothing may be called no_signal: {words} DIR")
    return Exit.OK


def _source(settings: Settings, name: str, directory: str | None, forget: bool) -> Source:
    """The source as it is configured. With a directory, or to be forgotten, it need not be. Raises ConfigError."""
    configured = next((source for source in settings.source if source.name == name), None)
    if configured is None and directory is None and not forget:
        known = ", ".join(source.name for source in settings.source) or "none is"
        raise ConfigError(
            f"source: {name!r} is not configured ({known}); name its settings with --config, or use --from"
        )
    directory = directory and os.path.abspath(directory)
    if configured is None:  # as a source of `run`, so that no name is taken that could not be one
        return config.load(None, {}, {"source": [{"name": name, "dir": directory or "/"}]}).source[0]
    return replace(configured, dir=directory) if directory else configured


class _Shown:
    """The newest frames of a source, in grey and in colour, oldest first."""

    def __init__(self, source: Source, count: int) -> None:
        self._source = source
        self._names = FrameNames(source.prefix)
        self.stems = self._newest(count)
        self.pictures: list[tuple[Picture, Picture]] = []
        for stem in self.stems:
            with suppress(FileNotFoundError, InvalidFrame, BadPicture):  # gone, or no frame: others are there
                data, _ = read_frame(f"{source.dir}/{stem}{SUFFIX}")
                self.pictures.append((detectors.decode(data), detectors.decode_colour(data)))
        if not self.pictures:
            raise InputError(f"{source.dir}: none of its {len(self.stems)} newest frames can be read; name another")

    def _newest(self, count: int) -> list[str]:
        """The names of the newest frames by their files' times: numbers may have begun anew."""
        directory = Directory(self._source.dir, self._names)
        try:
            frames = Listing(directory).frames
        except OSError as error:
            raise InputError(
                f"{self._source.dir}: {describe(error)}; name a directory of frames with --from"
            ) from error
        times: list[tuple[int, Frame]] = []
        for frame in frames:
            with suppress(OSError):
                times.append((os.stat(directory.path(frame)).st_mtime_ns, frame))
        if not times:
            raise InputError(f"{self._source.dir}: no {self._source.prefix}<digits>{SUFFIX} in it; capture some first")
        self.age_s = (time.time_ns() - max(times)[0]) / 1e9
        return [self._names.stem(*frame) for _, frame in sorted(heapq.nlargest(count, times))]

    def tell(self, found: Signature) -> int:
        """Say what was seen; in how many of these frames it is recognised."""
        about, thresholds = Learned(found), self._source.no_signal
        recogniser, knower = NoSignal(thresholds, found, cards=False), NoSignal(thresholds)
        recognised, known = (
            sum(_is_recognised(judge, *picture) for picture in self.pictures) for judge in (recogniser, knower)
        )
        height, width = self.pictures[-1][0].shape
        blue, green, red = about.commonest
        console.say(
            f"{self._source.name}: {len(self.pictures)} frames from {self._source.dir}, {self.stems[0]} to "
            f"{self.stems[-1]}, about {8 * width}x{8 * height}, the newest {self.age_s:.0f} s old"
        )
        console.say(
            f"{found.stable_pct:.0f} % of it stands still, mostly in #{red:02X}{green:02X}{blue:02X}; "
            + (f"{about.features} points make it recognisable" if not about.is_plain else _plainly(found))
        )
        console.say(f"recognised in {recognised} of these frames; without learning in {known}")
        return recognised


def _is_recognised(judge: NoSignal, grey: Picture, colour: Picture) -> bool:
    return judge.judge(grey, lambda: colour).value is True


def _plainly(found: Signature) -> str:
    return "plain, and something moves on it" if found.sprite else "plain: a menu with few words on it would look alike"


def _count(text: str) -> int:
    value = int(text)
    if not signature.LEAST_FRAMES <= value <= MOST_FRAMES:
        raise argparse.ArgumentTypeError(f"must be from {signature.LEAST_FRAMES} to {MOST_FRAMES}")
    return value
