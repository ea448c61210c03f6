"""`python -m pipeline COMMAND`: reads the command line and hands over to the command's module."""

from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` is there to answer it: no traceback from an import

import argparse  # noqa: E402
import importlib  # noqa: E402
import io  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

from pipeline import __version__  # noqa: E402
from pipeline.logsink import is_journal  # noqa: E402
from pipeline.model import Exit, StillwatchError, describe, printable  # noqa: E402

COMMANDS = {
    "demo": "see it work in under a minute: FFmpeg makes sources with faults, the whole pipeline finds them",
    "run": "the service: watch directories of frames, judge them, write sidecars",
    "status": "how the running service is: sources, processes, evidence",
    "doctor": 'every step of "verify operation": what is wrong, why it matters, the command that mends it',
    "incidents": "what went wrong: open incidents first, with their evidence",
    "mute": "maintenance: record a source's incidents, but report them to nobody for a while",
    "unmute": "the maintenance of a source is over",
    "bench": "what this machine carries: frames/s, CPU per frame, latency; recommends --workers",
    "learn-no-signal": "learn the picture that a source shows without a signal",
    "import-env": "the old monitor's HOST_VIDEO_* and DEVICE<n>_VIDEO* variables as a configuration",
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
    module = importlib.import_module(f"pipeline.commands.{name.replace('-', '_')}")
    command = argparse.ArgumentParser(
        prog=f"stillwatch {name}",
        description=COMMANDS[name],
        epilog=module.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(command)
    try:
        code = int(module.run(command.parse_args(arguments[arguments.index(name) + 1 :])))
        sys.stdout.flush()
        return code
    except StillwatchError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        return Exit.OK
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _complain(f"{place}{describe(error)}; the system refused")
        return Exit.OS_ERROR
    finally:
        _drop_unwritten()


def _complain(text: str) -> None:
    """The one line that a command ends with; in the journal, as an error."""
    priority = "<3>" if is_journal(2, os.environ) else ""
    sys.stderr.write(f"{priority}stillwatch: {printable(text)}\n")


def _open_standard_streams() -> None:
    """Started with a standard stream closed: /dev/null takes its number, before a file of ours does."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # JSON is UTF-8 whatever the locale
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def _drop_unwritten() -> None:
    """What standard output does not take: the interpreter's end would try again, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
