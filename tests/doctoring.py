"""`doctor`, in this process or in one behind a wrapper: what it finds, by name; and stubs of programs for its PATH."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from pipeline.commands import doctor
from tests.machine import STRANGER
from tests.support import ROOT

Found = dict[str, str]
"""One finding: name, verdict, found, why, mend."""


@dataclass(frozen=True)
class Examination:
    """How it ended, and what it found."""

    code: int
    fit: bool
    counts: dict[str, int]
    findings: list[Found]

    def of(self, name: str) -> list[Found]:
        """The findings of one check."""
        return [finding for finding in self.findings if finding["name"] == name]

    def verdict(self, name: str) -> str:
        """The verdict of a check that has one finding."""
        (finding,) = self.of(name)
        return finding["verdict"]

    def amiss(self, name: str, verdict: str, text: str = "") -> Found:
        """The one finding of a check with this verdict and this text; it says why it matters and how to mend it."""
        found = [f for f in self.of(name) if f["verdict"] == verdict and text in f["found"]]
        assert len(found) == 1, (name, verdict, text, self.findings)
        assert found[0]["mend"] and (found[0]["why"] or verdict == "unknown")
        return found[0]


AS_STRANGER = ("setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", "--")
"""A wrapper: an ordinary user."""


def inherited() -> dict[str, str]:
    """The environment without settings of ours."""
    ours = ("CLOUDFLARE_R2_", "STILLWATCH_", "CREDENTIALS_DIRECTORY")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def call(
    *flags: str, wrapper: tuple[str, ...] = (), environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `doctor` as a process."""
    python, path = _python_for_anybody() if set(AS_STRANGER[:2]) <= set(wrapper) else (sys.executable, str(ROOT))
    command = [*wrapper, python, "-P", "-m", "pipeline", "doctor", *flags]
    full = {**inherited(), "PYTHONPATH": path, **(environment or {})}
    return subprocess.run(command, env=full, capture_output=True, text=True, timeout=55)


def call_here(words: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run `doctor` in this process: its exit code and what it prints. For most of its tests, which are many."""
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    full = {**inherited(), "PYTHONPATH": str(ROOT), **(environment or {})}
    with mock.patch.dict(os.environ, full, clear=True), contextlib.redirect_stdout(io.StringIO()) as out:
        return doctor.run(parser.parse_args(words)), out.getvalue()


def _python_for_anybody() -> tuple[str, str]:
    """An interpreter that others than root may use, with our packages; where there is none the test is skipped."""
    if "root" not in Path(sys.executable).resolve().parts:
        return sys.executable, str(ROOT)
    system = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    if not os.path.exists(system):
        pytest.skip(f"needs an interpreter that an ordinary user may run: {system}")
    return system, f"{ROOT}:{sysconfig.get_path('purelib')}"


def examine(
    base: Path | None,
    *words: str,
    wrapper: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Examination:
    """Run `doctor --json` on the service of `base` (None: on that of the machine); the words are checks and flags."""
    places = [f"--runtime-dir={base / 'run'}", f"--state-dir={base / 'state'}"] if base else []
    words = (*words, *places, "--json")
    if wrapper:
        done = call(*words, wrapper=wrapper, environment=environment)
        assert not done.stderr, done.stderr
        code, printed = done.returncode, done.stdout
    else:
        code, printed = call_here(words, environment)
    told = json.loads(printed)
    for finding in told["findings"]:
        assert "the check itself failed" not in finding["found"], finding
    return Examination(code, told["fit"], told["counts"], told["findings"])


def stub(folder: Path, name: str, script: str) -> dict[str, str]:
    """A program of this name before all others on PATH; the environment that has it."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}
