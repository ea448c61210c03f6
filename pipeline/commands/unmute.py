"""`unmute`: the maintenance of a source is over."""

from __future__ import annotations

import argparse

from pipeline.commands import mute
from pipeline.model import Exit

EPILOG = """\
What opened meanwhile and is still open is reported now.
Exit codes: 0 done, 66 no such source or no state directory, 71 the file cannot be written.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `unmute`."""
    parser.add_argument("source", metavar="SOURCE", help="its name")
    mute.add_places(parser)


def run(arguments: argparse.Namespace) -> int:
    """Take the mute back."""
    mute.set_mute(arguments, 0)
    return Exit.OK
