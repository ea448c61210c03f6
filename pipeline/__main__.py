"""`python -m pipeline COMMAND`: reads the command line and hands over to the command's module."""

from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` is there to answer it: no traceback from an import

import argparse  # noqa: E402
import importlib  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

from pipeline import __version__  # noqa: E402
from pipeline.model import Exit, StillwatchError, describe  # noqa: E402

COMMANDS = {
    "demo": "see it work in under a minute: FFmpeg makes sources with faults, the whole pipeline finds them",
    "run": "the service: watch directories of frames, judge them, write sidecars",
    "incidents": "what went wrong: open incidents first, with their evidence",
    "replay": "judge a recorded directory in order, with the same rules, writing nothing into it",
}

EPILOG = """\
`./stillwatch COMMAND --help` explains a command; `./stillwatch test` runs the test suite.

exit codes: 0 ok, 1 the answer is no, 2 wrong command line, 66 nothing to read, 69 a program is missing,
            70 a fault of ours (see the log), 71 the system refused (files, processes, memory),
            75 another instance runs, 78 the configuration is wrong, 130 interrupted
"""


def main(arguments: list[str]) -> int:
    """Run one command; a user's mistake ends in one line, never in a traceback."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _open_standard_streams()
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
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"stillwatch: {_one_line(place + describe(error))}; the system refused\n")
        return Exit.OS_ERROR


def _open_standard_streams() -> None:
    """Started with a standard stream closed: /dev/null takes its number, before a file of ours does."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _one_line(text: str) -> str:
    """Names come from outside: one with a newline or an escape sequence in it must not act on a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
