"""`python -m pipeline COMMAND`: reads the command line and hands over to the command's module."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from pipeline import __version__
from pipeline.model import Exit, StillwatchError

COMMANDS = {
    "demo": "see it work in under a minute: FFmpeg makes sources with faults, the whole pipeline finds them",
    "run": "the service: watch directories of frames, judge them, write sidecars",
    "replay": "judge a recorded directory in order, with the same rules, writing nothing into it",
}

EPILOG = """\
`./stillwatch COMMAND --help` explains a command; `./stillwatch test` runs the test suite.

exit codes: 0 ok, 1 the answer is no, 2 wrong command line, 66 nothing to read, 69 a program is missing,
            70 a fault of ours (see the log), 75 another instance runs, 78 the configuration is wrong
"""


def main(arguments: list[str]) -> int:
    """Run one command; a user's mistake ends in one line, never in a traceback."""
    parser = argparse.ArgumentParser(
        prog="stillwatch",
        description="Watches video-capture rigs: judges every frame that FFmpeg publishes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"stillwatch {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    name = parser.parse_known_args(arguments)[0].command
    module = importlib.import_module(f"pipeline.commands.{name}")
    command = argparse.ArgumentParser(
        prog=f"stillwatch {name}",
        description=COMMANDS[name],
        epilog=module.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(command)
    try:
        return int(module.run(command.parse_args(arguments[arguments.index(name) + 1 :])))
    except StillwatchError as error:
        sys.stderr.write(f"stillwatch: {_one_line(str(error))}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK


def _one_line(text: str) -> str:
    """Names come from outside: one with a newline or an escape sequence in it must not act on a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
