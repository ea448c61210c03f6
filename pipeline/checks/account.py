"""Whose rights count: those of the user that the service runs as, asked of the kernel."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from pipeline.checks import programs

_PASSED_ON = ("PATH", "LANG", "DISPLAY", "XAUTHORITY", "CAPTURE_")
"""What names of variables begin with that another user's program is given."""

_TESTS = {os.R_OK: "-r", os.W_OK: "-w", os.X_OK: "-x"}


@dataclass(frozen=True)
class Account:
    """A user with all its groups."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]

    @property
    def is_me(self) -> bool:
        """Whether this process has it."""
        return self.uid == os.geteuid()

    @property
    def can_be_assumed(self) -> bool:
        """Whether this process, which is another's, may run programs as this user."""
        return not self.is_me and os.geteuid() == 0

    def ask(self, command: list[str], *, environment: Mapping[str, str] | None = None) -> programs.Answer:
        """Run a program as this user where that is possible, else as who we are. Raises OSError, NoAnswer."""
        if not self.can_be_assumed:
            return programs.ask(command, environment=environment)
        given = os.environ if environment is None else environment
        passed_on = {name: value for name, value in given.items() if name.startswith(_PASSED_ON)}
        return programs.ask(command, environment=passed_on, user=self.uid, group=self.gid, groups=self.groups)

    def may(self, path: str, mode: int = os.R_OK | os.W_OK | os.X_OK) -> bool | None:
        """Whether it has these rights, access control lists and read-only mounts included; None where only root could
        find that out."""
        if self.is_me:
            return os.access(path, mode, effective_ids=True)
        if not self.can_be_assumed:
            return None
        words = [word for bit, test in _TESTS.items() if mode & bit for word in ("-a", test, path)][1:]
        try:
            answer = self.ask(["test", *words])
        except (OSError, programs.NoAnswer):
            return None
        return answer.code == 0


def mine() -> Account:
    """This process's own."""
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return Account(name, uid, os.getegid(), tuple(os.getgroups()))


def named(name: str, more_groups: Iterable[str] = ()) -> Account | None:
    """A user of this machine, also in these groups, as far as they are; None if there is none."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    groups = set(os.getgrouplist(name, entry.pw_gid))
    for group in more_groups:
        with suppress(KeyError):
            groups.add(int(group) if group.isdigit() else grp.getgrnam(group).gr_gid)
    return Account(name, entry.pw_uid, entry.pw_gid, tuple(sorted(groups)))
