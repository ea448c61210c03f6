"""Sudden death at a chosen line of the pipeline: what SIGKILL does to a process, done to the objects of a role.

A line is the smallest step that matters here: between two of them everything that other processes and the disk can see
stays as it is. What cannot be seen from outside (locks, memory of its own) is dropped with the objects.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

PIPELINE = str(Path(__file__).resolve().parent.parent / "pipeline") + "/"

LEAKS = ("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
"""Filters for such tests: the dead close nothing. (For a process the kernel does.)"""


class Killed(BaseException):
    """It is dead. No handler of the pipeline catches this."""


@dataclass
class Death:
    """Whether it came: the work may have been done before the line was reached."""

    happened: bool = False


@contextmanager
def dies_at(line: int, module: str = "") -> Iterator[Death]:
    """Die before the `line`-th line of the pipeline (of one module of it) that this thread executes."""
    death, left, where = Death(), line, f"{PIPELINE}{module}.py" if module else PIPELINE

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if death.happened or not frame.f_code.co_filename.startswith(where):
            return None
        if event == "line":
            left -= 1
            if left <= 0:
                death.happened = True
                raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield death
    except Killed:
        pass
    finally:
        sys.settrace(before)


def close_all_below(folder: Path) -> None:
    """Close what the dead have left open there (and no map, which has a descriptor of its own)."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith(f"{folder}/"):
                os.close(int(name))
