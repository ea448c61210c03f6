"""The round of checks, without any real one: what fails or hangs is a finding, and the others go on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import psutil
import pytest

from pipeline.checks import account, checkup, machine, programs
from pipeline.checks.checkup import Check, Verdict, fail, fit, ok, run_all, skipped, together, unknown, warn
from tests.machine import STRANGER, needs, open_place
from tests.support import wait_until


def test_findings_come_in_the_order_of_the_checks() -> None:
    gate = threading.Event()

    def late() -> checkup.Finding:
        gate.wait(10)
        return ok("late", "")

    def early() -> checkup.Finding:
        gate.set()
        return ok("early", "")

    assert [finding.name for finding in run_all([Check("late", late), Check("early", early)])] == ["late", "early"]


def test_a_check_that_fails_is_unknown_with_its_cause_and_the_others_go_on() -> None:
    def broken() -> checkup.Finding:
        raise ZeroDivisionError("first line\nsecond")

    first, second = run_all([Check("broken", broken), Check("good", partial(ok, "good", "x"))])
    assert (first.verdict, second.verdict) == (Verdict.UNKNOWN, Verdict.OK)
    assert first.found == "the check itself failed: ZeroDivisionError: first line" and first.mend


def test_a_check_that_hangs_is_unknown_and_the_others_go_on() -> None:
    gate = threading.Event()

    def hanging() -> checkup.Finding:
        gate.wait(30)
        return ok("hanging", "")

    first, second = run_all([Check("hanging", hanging, 0.05), Check("good", partial(ok, "good", "x"))])
    gate.set()
    assert (first.name, first.verdict, second.verdict) == ("hanging", Verdict.UNKNOWN, Verdict.OK)
    assert "no answer within" in first.found
    wait_until(lambda: threading.active_count() == 1, 30, "its thread to end")


def test_a_hanging_check_does_not_keep_the_process() -> None:
    program = (
        "import threading; from pipeline.checks.checkup import *\n"
        "print(*[f.verdict for f in run_all([Check('x', lambda: threading.Event().wait(), 0.05)])])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, "unknown\n")


def test_only_a_failure_makes_unfit() -> None:
    passing = [ok("a", ""), warn("b", "", "", ""), unknown("c", ""), skipped("d", "")]
    assert fit(passing) and not fit([*passing, fail("e", "", "", "")])


def test_aspects_are_one_line_while_all_are_well_and_else_each_its_own() -> None:
    assert together("x", [ok("x", "one"), ok("x", ""), ok("x", "two")]) == [ok("x", "one; two")]
    bad, worse = warn("x", "three", "", ""), fail("x", "four", "", "")
    assert together("x", [ok("x", "one"), bad, worse]) == [bad, worse]


# -- programs ----------------------------------------------------------------------------------------------------


def test_a_program_says_how_it_ended_and_what_it_said_on_both_streams() -> None:
    answer = programs.ask(["sh", "-c", "echo one; echo two >&2; printf '\\377'; exit 3"])
    assert answer == programs.Answer(3, "one\ntwo\n\\xff")


def test_a_program_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(programs.NoAnswer, match="sh gave no answer"):
        programs.ask(["sh", "-c", script], limit_s=2.0)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", 30, "its child's end")


def test_a_program_that_is_not_there_is_an_oserror() -> None:
    with pytest.raises(FileNotFoundError):
        programs.ask(["no-such-program-here"])


# -- accounts ----------------------------------------------------------------------------------------------------


def test_my_own_rights_are_asked_of_the_kernel(tmp_path: Path) -> None:
    me = account.mine()
    assert me.is_me and me.uid == os.geteuid()
    assert me.may(str(tmp_path)) is True
    assert me.may(str(tmp_path / "gone")) is False


@needs()
@pytest.mark.parametrize(
    ("mode", "wanted", "may"),
    [
        (0o700, os.R_OK, False),
        (0o755, os.R_OK | os.X_OK, True),
        (0o755, os.W_OK, False),
        (0o777, os.R_OK | os.W_OK | os.X_OK, True),
        (0o773, os.R_OK | os.W_OK, False),
    ],
)
def test_root_can_ask_for_another_user(mode: int, wanted: int, may: bool) -> None:
    stranger = account.Account("nobody", STRANGER, STRANGER, (STRANGER,))
    with open_place() as base:
        (base / "place").mkdir()
        (base / "place").chmod(mode)
        assert stranger.may(str(base / "place"), wanted) is may


@needs()
def test_a_group_counts() -> None:
    with open_place() as base:
        os.chown(base, 0, 12345)
        base.chmod(0o770)
        assert account.Account("nobody", STRANGER, STRANGER, (STRANGER, 12345)).may(str(base)) is True
        assert account.Account("nobody", STRANGER, STRANGER, (STRANGER,)).may(str(base)) is False


def test_a_user_of_this_machine_is_found_by_name() -> None:
    root = account.named("root")
    assert root is not None and (root.uid, root.name) == (0, "root")
    assert account.named("no-such-user-here") is None


def test_a_program_ends_before_its_check() -> None:
    assert max(programs.LIMIT_S, machine.LOAD_S) < checkup.LIMIT_S, "so that the check says what did not answer"
