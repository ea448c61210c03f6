"""Checks of what delivers frames: FFmpeg, each source's own capture, and the devices that it captures from."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from functools import partial

from pipeline.checks import programs
from pipeline.checks.account import Account
from pipeline.checks.checkup import Finding, fail, ok, together, unknown, warn
from pipeline.checks.subject import Subject
from pipeline.grab import SCRIPT, environment_for
from pipeline.model import Exit, describe, printable
from pipeline.ownership import can_be_made, holds_foreign_frames
from pipeline.settings import Settings, Source

FIVE_ONE = (59, 27)
"""libavformat's number in FFmpeg 5.1. Older ones publish truncated frames on a full disk (4.2 does, 5.1 ends)."""

BY_PATH = "/dev/v4l/by-path"
_INSTALL = "sudo apt-get install -y ffmpeg"


# -- FFmpeg -----------------------------------------------------------------------------------------------------------


def ffmpeg(settings: Settings) -> list[Finding]:
    """Each FFmpeg that is used: there, and able to publish frames whole."""
    captured = {source.capture.ffmpeg or "ffmpeg" for source in settings.source if source.capture}
    return [_ffmpeg(name, wanted=bool(captured)) for name in sorted(captured or {"ffmpeg"})]


def _ffmpeg(program: str, *, wanted: bool) -> Finding:
    """The help of its muxer has the options, and before it the versions of its libraries."""
    name, path = "ffmpeg", shutil.which(program)
    if path is None and not wanted:
        why = "no source is captured by Stillwatch itself, but the demo needs one"
        return warn(name, f"{program}: not installed", why, _INSTALL)
    if path is None:
        return fail(name, f"{program}: not installed", "nothing can be captured", _INSTALL)
    try:
        answer = programs.ask([path, "-h", "muxer=image2"])
    except (OSError, programs.NoAnswer) as error:
        return fail(name, f"{path}: {error}", "nothing can be captured", f"try it by hand: {path} -version")
    version = re.search(r"ffmpeg version (\S+)", answer.text)
    library = re.search(r"libavformat +([0-9]+)\. *([0-9]+)", answer.text)
    if not library:
        text = f"{path} cannot be run: {answer.text.strip().partition(chr(10))[0]}"
        return fail(name, text, "nothing can be captured", _INSTALL)
    found = f"{path} {version[1] if version else 'of unknown version'}"
    if "-atomic_writing" not in answer.text:
        why = "frames would be seen half written"
        return fail(name, f"{found} has no atomic_writing", why, "install FFmpeg 5.1 or newer (Debian 12 has it)")
    if (int(library[1]), int(library[2])) < FIVE_ONE:
        why = "on a full disk it goes on and publishes truncated frames"
        return warn(name, f"{found} is older than 5.1", why, "install FFmpeg 5.1 or newer (Debian 12 has it)")
    return ok(name, f"{found} has atomic_writing")


# -- each source's capture --------------------------------------------------------------------------------------------


def capture(subject: Subject, source: Source) -> list[Finding]:
    """What capture.sh says of a source's settings, and the device that they name."""
    name = f"capture {source.name}"
    return together(name, _of_capture(name, subject, source))


def _of_capture(name: str, subject: Subject, source: Source) -> Iterator[Finding]:
    assert source.capture is not None
    device = source.capture.input if source.capture.profile.startswith("v4l2") else ""
    if device:
        yield from _device(name, subject, device)
    if not os.path.isdir(source.dir):
        made = can_be_made(source, subject.settings.runtime_dir)
        yield ok(name, f"its directory is made at the start{'' if made else ', once it can be: see frames'}")
    elif holds_foreign_frames(source):
        why = "they would be deleted, so the service refuses to start (exit code 78)"
        mend = 'name an empty directory, or set retention = "always"'
        yield fail(name, f"{source.dir} holds frames that were not captured here, or what goes with them", why, mend)
    if device and not os.path.exists(device):
        return  # capture.sh has nothing else to say
    try:
        answer = _rehearse(source, subject.account)
    except programs.NoAnswer as error:
        yield unknown(name, str(error), f"try FFmpeg by hand: {source.capture.ffmpeg or 'ffmpeg'} -version")
        return
    except OSError as error:
        text, mend = f"{SCRIPT}: {describe(error)}", "install Stillwatch where everybody may read it"
        if subject.account.may(SCRIPT, os.R_OK | os.X_OK) is False:
            yield fail(name, text, f"{subject.account.name} may not run it, so its FFmpeg does not start", mend)
        else:
            yield unknown(name, text, f"try it by hand: {SCRIPT} --help")
        return
    lines = [line.removeprefix("capture.sh: ") for line in answer.text.strip().splitlines()]
    if answer.code == Exit.OK:
        yield ok(name, f"{source.capture.profile}, as capture.sh would run it")
        return
    text, _, mend = printable(lines[-1] if lines else f"capture.sh ended with {answer.code}").partition("; ")
    yield fail(name, text, "its FFmpeg does not start", mend or "correct [source.capture]")


def _rehearse(source: Source, account: Account) -> programs.Answer:
    """What capture.sh says to the service's user, who must be able to read and write; before the first start in a
    directory that goes again."""
    ask = partial(account.ask, [SCRIPT, "--dry-run"])
    environment = environment_for(source)
    if os.path.isdir(source.dir):
        return ask(environment=environment)
    place = "/tmp" if account.can_be_assumed else None  # noqa: S108 - ours may be closed to that user
    with tempfile.TemporaryDirectory(prefix="stillwatch-doctor-", dir=place) as instead:
        if account.can_be_assumed:
            os.chown(instead, account.uid, account.gid)
        return ask(environment={**environment, "CAPTURE_DIR": instead})


def _device(name: str, subject: Subject, device: str) -> Iterator[Finding]:
    """A grabber: there, by the name of its USB port, and open to the service's user."""
    known = _by_path()
    try:
        status = os.stat(device)
    except OSError:
        there = f"there are: {', '.join(known)}" if known else "plug it in; ls -l /dev/v4l/by-path"
        yield fail(name, f"{device} is not there", "nothing can be captured from it", there)
        return
    if not stat.S_ISCHR(status.st_mode):
        yield fail(name, f"{device} is no device", "nothing can be captured from it", f"ls -l {BY_PATH}")
        return
    if re.fullmatch(r"/dev/video[0-9]+", device):
        why = "the number changes when grabbers are plugged in another order, and two of a kind change places"
        port = next((path for path in known if os.path.realpath(path) == device), f"a name from {BY_PATH}")
        yield warn(name, f"{device} is named by its number", why, f'input = "{port}"')
    if subject.account.may(device, os.R_OK | os.W_OK) is False:
        mend = f"sudo usermod -aG video {subject.account.name}, then start the service again"
        yield fail(name, f"{subject.account.name} may not use {device}", "its FFmpeg does not start", mend)
    yield ok(name, device)


def _by_path() -> list[str]:
    """Every grabber by its USB port; the second node of each has no pictures."""
    try:
        return sorted(f"{BY_PATH}/{name}" for name in os.listdir(BY_PATH) if name.endswith("-index0"))
    except OSError:
        return []
