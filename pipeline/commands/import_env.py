"""`import-env`: the variables of the monitor that this one replaces, as a commented configuration."""

from __future__ import annotations

import argparse
import os
import sys

from pipeline import legacy
from pipeline.model import Exit, InputError, describe

EPILOG = """\
examples:
  ./stillwatch import-env ~/.env                          to the terminal
  ./stillwatch import-env ~/.env -o stillwatch.toml       then: ./stillwatch doctor --config stillwatch.toml

It knows HOST_VIDEO_SOURCE, HOST_VIDEO_AUDIO, HOST_VIDEO_CAPTURE_PATH, HOST_VIDEO_FPS and, for every number,
DEVICE1_NAME, DEVICE1_VIDEO, DEVICE1_VIDEO_AUDIO, DEVICE1_VIDEO_CAPTURE_PATH, DEVICE1_VIDEO_FPS. The value null is none;
a source whose variables have an x or # before their names is kept as a comment. What is not understood is told on
standard error, by name and line, without its value.

Exit codes: 0 done, 66 no such file, no source in it, or the output exists (--force).
"""
_MOST_BYTES = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `import-env`."""
    add = parser.add_argument
    add("file", metavar="FILE", help="the old .env")
    add("-o", "--output", metavar="FILE", help="write the configuration there instead of standard output")
    add("--force", action="store_true", help="overwrite that file")


def run(arguments: argparse.Namespace) -> int:
    """Convert it."""
    configuration, warnings, sources = legacy.convert(_read(arguments.file))
    for warning in warnings:
        sys.stderr.write(f"stillwatch: {arguments.file}: {warning}\n")
    if not sources:
        raise InputError(f"{arguments.file}: no HOST_VIDEO_SOURCE and no DEVICE<n>_VIDEO in it; name another file")
    if arguments.output:
        _write(arguments.output, configuration, force=arguments.force)
    else:
        sys.stdout.write(configuration)
    return Exit.OK


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_MOST_BYTES).decode()
    except OSError as error:
        raise InputError(f"{path}: {describe(error)}; name the old .env") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: {error.reason}; name the old .env") from error


def _write(path: str, content: str, *, force: bool) -> None:
    """A URL in it may hold a password: others may not read it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if force else os.O_EXCL)
    try:
        with os.fdopen(os.open(path, flags, 0o640), "w", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError as error:
        raise InputError(f"{path}: is there already; name another, or overwrite it with --force") from error
    except OSError as error:
        raise InputError(f"{path}: {describe(error)}; name another with -o") from error
