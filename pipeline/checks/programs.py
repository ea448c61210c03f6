"""Asking a program something, with an end to it: it and whatever it started are killed when the time is over."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

LIMIT_S = 10.0  # a Pi starts FFmpeg from a cold card in a few seconds, and all checks ask theirs at once


@dataclass(frozen=True)
class Answer:
    """How it ended, and what it said on standard output and standard error together."""

    code: int
    text: str


class NoAnswer(Exception):
    """It did not end in time; the text says so."""


def ask(
    command: list[str],
    *,
    limit_s: float | None = None,
    environment: Mapping[str, str] | None = None,
    user: int | None = None,
    group: int | None = None,
    groups: Iterable[int] | None = None,
) -> Answer:
    """Run it in the C locale, for no longer than LIMIT_S unless another limit is given, as another user if one is
    named: from the root directory then, as that user may not stand where we do. Raises OSError where it cannot be run,
    NoAnswer."""
    limit_s = LIMIT_S if limit_s is None else limit_s
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**(os.environ if environment is None else environment), "LC_ALL": "C.UTF-8"},
        start_new_session=True,
        cwd=None if user is None else "/",
        user=user,
        group=group,
        extra_groups=None if groups is None else list(groups),
        encoding="utf-8",
        errors="backslashreplace",
    )
    with process:
        try:
            text, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise NoAnswer(f"{command[0]} gave no answer within {limit_s:.0f} s") from None
    return Answer(process.returncode, text)
