"""The last lines that a source's FFmpeg said, where its worker finds them: one small file per source in the runtime
directory. Written by the capture child while nothing comes, gone when frames come again.
"""

from __future__ import annotations

import os
from contextlib import suppress

MAX_LINES = 20
MAX_LINE = 2000  # characters: FFmpeg's whole command line is one of them
_DIR = "lastwords"
_MAX_BYTES = 4 * MAX_LINES * (MAX_LINE + 1)


def write(runtime_dir: str, source: str, lines: list[str]) -> None:
    """Publish the lines of a source, in place of earlier ones. Raises OSError."""
    path = _path(runtime_dir, source)
    with suppress(FileExistsError):
        os.mkdir(os.path.dirname(path), 0o750)
    temporary = _path(runtime_dir, f".{source}")  # no source is called so
    with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(f"{line}\n" for line in lines[-MAX_LINES:])
    os.rename(temporary, path)


def forget(runtime_dir: str, source: str) -> None:
    """Frames come again: what was said before explains nothing any more."""
    with suppress(OSError):
        os.unlink(_path(runtime_dir, source))


def read(runtime_dir: str, source: str) -> list[str]:
    """The lines, oldest first; none where nothing was said."""
    try:
        with open(_path(runtime_dir, source), encoding="utf-8", errors="backslashreplace") as file:
            return file.read(_MAX_BYTES).splitlines()[-MAX_LINES:]
    except OSError:
        return []


def _path(runtime_dir: str, source: str) -> str:
    return os.path.join(runtime_dir, _DIR, source)
