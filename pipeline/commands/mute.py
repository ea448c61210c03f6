"""`mute`: maintenance. A source's incidents are recorded, but neither logged as news nor told to the webhook."""

from __future__ import annotations

import argparse
import os
import re
import time
from contextlib import suppress

from pipeline import console, installed, mutes
from pipeline.board import Board
from pipeline.model import Exit, InputError, StillwatchError, describe
from pipeline.sidecar import timestamp

MAX_S = 30 * 86_400
_NS = 10**9
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
EPILOG = """\
examples:
  ./stillwatch mute stb1 30m       somebody works on stb1: nobody is alarmed for half an hour
  ./stillwatch mute                who is muted, and until when
  ./stillwatch unmute stb1         done

Frames are judged as always, and incidents are recorded with their evidence, marked as muted. What is still open when
the time is over is reported then.
Exit codes: 0 done, 66 no such source or no state directory, 71 the file cannot be written.
"""


class RefusedError(StillwatchError):
    """The mute could not be written down."""

    exit_code = Exit.OS_ERROR


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `mute`."""
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="its name, as in `status`; none: list")
    parser.add_argument("duration", nargs="?", type=_duration_s, metavar="DURATION", help="like 90s, 30m, 2h, 1d")
    add_places(parser)


def add_places(parser: argparse.ArgumentParser) -> None:
    """Where the service is."""
    parser.add_argument("--config", metavar="FILE", help="the service's settings: they name its directories")
    parser.add_argument("--state-dir", metavar="DIR", help=f"the service's state directory ({installed.WHICH})")
    parser.add_argument("--runtime-dir", metavar="DIR", help="the service's runtime directory")


def run(arguments: argparse.Namespace) -> int:
    """Mute a source, or list those that are."""
    if arguments.source is None:
        _list(installed.settings_for_reading(arguments).state_dir)
    elif arguments.duration is None:
        raise InputError(f"{arguments.source}: for how long? Write it like `mute {arguments.source} 30m`")
    else:
        set_mute(arguments, time.time_ns() + arguments.duration * _NS)
    return Exit.OK


def set_mute(arguments: argparse.Namespace, until_ns: int) -> None:
    """Write it down, and say what holds now."""
    settings = installed.settings_for_reading(arguments)
    source, state_dir, wall_ns = arguments.source, settings.state_dir, time.time_ns()
    configured = {source.name for source in settings.source}
    known = configured | _sources(settings.runtime_dir) | set(mutes.read(state_dir))
    if known and source not in known:
        raise InputError(f"{source}: no such source; there are {', '.join(sorted(known))}")
    try:
        mutes.write(state_dir, source, until_ns, wall_ns)
    except FileNotFoundError as error:
        raise InputError(f"{state_dir}: no such directory; name the service's with --state-dir") from error
    except OSError as error:
        raise RefusedError(f"{state_dir}: {describe(error)}; ask as the service's user") from error
    told = f"muted until {(timestamp(until_ns) or '')[:19]} UTC" if until_ns > wall_ns else "reported again"
    console.say(f"{source}: {told}")


def _sources(runtime_dir: str) -> set[str]:
    """The sources of the running service; none if there is none."""
    with suppress(InputError):
        board = Board.open(runtime_dir)
        names = {row.name.decode() for _, row in board.sources}
        os.close(board.fd)
        return names
    return set()


def _list(state_dir: str) -> None:
    wall_ns = time.time_ns()
    rows = [[name, (timestamp(until) or "")[:19]] for name, until in mutes.read(state_dir).items() if until > wall_ns]
    if rows:
        console.print_table("muted", ["source", "until (UTC)"], sorted(rows))
    else:
        console.say("nobody is muted")


def _duration_s(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,7})([smhd])", text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= MAX_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 90s, 30m, 2h or 1d, or more than 30 d")
    return seconds
