"""Screen recordings: programs under Xvfb, grabbed by FFmpeg as the service grabs a desktop. Made once, kept with the
clips; no two recordings are the same, so this part of the set is not reproducible picture by picture (its truth comes
from its own pixels).

Needs Xvfb, xterm, xclock, xeyes, xdotool, feh and xsetroot: apt-get install xvfb xterm x11-apps x11-xserver-utils
xdotool feh. A recording whose programs are missing is left out, with its cases, and named.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline import console
from tests.footage.clips import Library

SECONDS = 70
SIZE = "1280x720"

_LOG = (
    'i=0; while :; do i=$((i+1)); echo "$(date +%T) worker[$i]: took $((i*7919%997)) ms, queue $((i%13))";'
    " sleep {pause}; done"
)
_LISTING = "ls -l --color=always /usr/bin | head -60; exec sleep 1000"
_TYPING = """while :; do
  for word in 'ls -l /etc ' 'cat /etc/hostname ' 'echo waiting for the build to finish ' 'uptime '; do
    xdotool type --delay 140 "$word"; xdotool key Return; sleep 1.3
  done; sleep 4
done"""
_WANDER = """i=0; while :; do i=$((i+1));
  if [ $((i % 60)) -lt 45 ]; then xdotool mousemove $((640 + (i * 37) % 500 - 250)) $((360 + (i * 23) % 300 - 150)); fi
  sleep 0.2; done"""


class Recording(NamedTuple):
    """What runs on the screen: one shell command per program."""

    needs: tuple[str, ...]
    commands: tuple[str, ...]


def _terminal(command: str, geometry: str = "140x45+20+20", colours: str = "-bg black -fg grey80") -> str:
    return f'exec xterm {colours} -geometry {geometry} -e sh -c "$0"\n{command}'


RECORDINGS: Mapping[str, Recording] = {
    "desktop-top": Recording(("xterm", "top"), (_terminal("exec top -d 1"),)),
    "desktop-log": Recording(("xterm",), (_terminal(_LOG.format(pause=0.4), colours="-bg ivory -fg black"),)),
    "desktop-clock": Recording(
        ("xterm", "xclock"), (_terminal(_LISTING, "110x45+10+10"), "exec xclock -update 1 -geometry 220x220+1020+40")
    ),
    "desktop-typing": Recording(("xterm", "xdotool"), (_terminal("exec sh"), "sleep 2;" + _TYPING)),
    "desktop-slides-a": Recording(("feh",), ("exec feh -F -D 6 fruits.jpg graf1.png messi5.jpg home.jpg leuvenA.jpg",)),
    "desktop-fast-log": Recording(("xterm",), (_terminal(_LOG.format(pause=0.05), "100x30+200+80"),)),
    "desktop-eyes": Recording(
        ("xeyes", "xdotool", "xsetroot"),
        ("exec xsetroot -solid steelblue", "exec xeyes -geometry 400x260+440+230", _WANDER),
    ),
    "desktop-digital": Recording(
        ("xclock", "xterm"),
        (
            _terminal(_LISTING, "100x40+10+10", "-bg navy -fg white"),
            "exec xclock -digital -update 1 -geometry +1000+650",
        ),
    ),
    "desktop-still": Recording(("xterm",), (_terminal(_LISTING, "130x48+60+20", "-bg white -fg black"),)),
    "desktop-slides-b": Recording(("feh",), ("exec feh -F -D 9 building.jpg aloeL.jpg baboon.jpg board.jpg",)),
    "desktop-top-slow": Recording(
        ("xterm", "top"), (_terminal("exec top -d 1.7", "120x40+100+60", "-bg navy -fg white"),)
    ),
}


def record(library: Library) -> dict[str, str]:
    """Make the recordings that are missing, all at once; the reasons why some could not be, by name."""
    wanted = [name for name in RECORDINGS if not (library.directory / name).is_dir()]
    reasons = {name: reason for name in wanted if (reason := _cannot(RECORDINGS[name]))}
    wanted = [name for name in wanted if name not in reasons]
    if wanted:
        console.say(f"recording {len(wanted)} desktops for {SECONDS} s: {', '.join(wanted)}")
    with contextlib.ExitStack() as stack:
        jobs = {name: stack.enter_context(_recording(library, name)) for name in wanted}
        for name, job in jobs.items():
            if job.wait() != 0:
                reasons[name] = "ffmpeg could not grab the screen"
    for name in wanted:
        scratch = library.directory / f".{name}"
        if name in reasons:
            shutil.rmtree(scratch)
        else:
            scratch.rename(library.directory / name)
    return reasons


def _cannot(recording: Recording) -> str:
    missing = [program for program in ("Xvfb", *recording.needs) if not shutil.which(program)]
    return f"no {', '.join(missing)} here; see the top of tests/footage/desktop.py for the packages" if missing else ""


@contextlib.contextmanager
def _recording(library: Library, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """FFmpeg, recording. All that runs for it ends with the block."""
    scratch = library.directory / f".{name}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(_screen())
        environment = {**os.environ, "DISPLAY": display}
        for command in RECORDINGS[name].commands:
            stack.enter_context(_running(command, library.directory / "photos", environment))
        source = ["-f", "x11grab", "-framerate", "5", "-video_size", SIZE, "-draw_mouse", "1", "-i", display]
        # The first seconds show programs that start.
        target = ["-ss", "4", "-t", str(SECONDS), "-pix_fmt", "yuvj444p", "-q:v", "1", "-qmin", "1", "%06d.jpg"]
        ffmpeg = ["ffmpeg", "-v", "error", "-nostdin", *source, *target]
        yield stack.enter_context(_group(ffmpeg, cwd=scratch))


@contextlib.contextmanager
def _screen() -> Iterator[str]:
    """A screen of its own: its DISPLAY."""
    ours, theirs = os.pipe()
    command = ["Xvfb", "-displayfd", str(theirs), "-screen", "0", f"{SIZE}x24", "-nolisten", "tcp", "-noreset"]
    with _group(command, pass_fds=(theirs,)):
        os.close(theirs)
        with os.fdopen(ours) as pipe:
            number = pipe.readline().strip()
        assert number, "Xvfb did not start"
        yield f":{number}"


@contextlib.contextmanager
def _running(command: str, directory: Path, environment: dict[str, str]) -> Iterator[None]:
    """A shell command; what follows its first line is its $0, which spares quoting."""
    script, _, argument = command.partition("\n") if command.startswith("exec xterm") else (command, "", "sh")
    with _group(["sh", "-c", script, argument], cwd=directory, env=environment):
        yield


@contextlib.contextmanager
def _group(
    command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None, pass_fds: tuple[int, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a process group of its own, which ends with the block."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        pass_fds=pass_fds,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
