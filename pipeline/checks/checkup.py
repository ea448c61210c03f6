"""What a check of `doctor` finds, and the round of all checks: each alone, none longer than its time, none missed.

A check is a function without arguments that returns one Finding or several. All run at once in threads of their own,
because some wait for a network or a program; what hangs or fails is a finding too, and the others go on.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

LIMIT_S = 12.0  # for a check that asks programs and file systems
NETWORK_LIMIT_S = 30.0
AS_ROOT = "run `doctor` with sudo"


class Verdict(enum.StrEnum):
    """What a check says."""

    OK = "ok"
    WARN = "warn"  # it works, but not as well or not for as long as it could
    FAIL = "fail"  # something that is wanted does not work
    UNKNOWN = "unknown"  # it could not be found out
    SKIPPED = "skipped"  # there is nothing of the kind here


@dataclass(frozen=True)
class Finding:
    """What one check found. `why` and `mend` are for those that are not ok."""

    name: str
    verdict: Verdict
    found: str
    why: str = ""  # it matters
    mend: str = ""  # the command, or what to do


@dataclass(frozen=True)
class Check:
    """One check and how long it may take."""

    name: str
    ask: Callable[[], Finding | Sequence[Finding]]
    limit_s: float = LIMIT_S


@dataclass
class _Run:
    check: Check
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._ask, name=self.check.name, daemon=True)
        self.thread.start()

    def _ask(self) -> None:
        try:
            found = self.check.ask()
        except Exception as error:  # noqa: BLE001 - a check that fails is a finding, and the others go on
            cause = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
            found = unknown(self.check.name, f"the check itself failed: {cause}", "report it, with this line")
        self.findings = [found] if isinstance(found, Finding) else list(found)


def ok(name: str, found: str) -> Finding:
    """All is well."""
    return Finding(name, Verdict.OK, found)


def warn(name: str, found: str, why: str, mend: str) -> Finding:
    """It works, but."""
    return Finding(name, Verdict.WARN, found, why, mend)


def fail(name: str, found: str, why: str, mend: str) -> Finding:
    """It does not work."""
    return Finding(name, Verdict.FAIL, found, why, mend)


def unknown(name: str, found: str, mend: str = "") -> Finding:
    """It could not be found out."""
    return Finding(name, Verdict.UNKNOWN, found, "", mend)


def skipped(name: str, found: str) -> Finding:
    """There is nothing of the kind here."""
    return Finding(name, Verdict.SKIPPED, found)


def together(name: str, findings: Iterable[Finding]) -> list[Finding]:
    """Several aspects of one thing: what is not ok each by itself; else one line for all."""
    found = list(findings)
    amiss = [finding for finding in found if finding.verdict is not Verdict.OK]
    return amiss or [ok(name, "; ".join(finding.found for finding in found if finding.found))]


def counted(count: int, noun: str) -> str:
    """`1 source`, `2 sources`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def run_all(checks: Iterable[Check]) -> Iterator[Finding]:
    """Run all at once; their findings in the order of the checks, each as soon as it is there."""
    started = time.monotonic()
    for run in [_Run(check) for check in checks]:
        run.thread.join(max(0.0, started + run.check.limit_s - time.monotonic()))
        if run.thread.is_alive():
            yield unknown(run.check.name, f"no answer within {run.check.limit_s:.0f} s", "try it by hand")
        else:
            yield from run.findings


def fit(findings: Iterable[Finding]) -> bool:
    """Whether nothing failed. Warnings are allowed, and so is what could not be found out."""
    return all(finding.verdict is not Verdict.FAIL for finding in findings)
