"""What must be in order before anything is captured: directories that may be emptied, and all that capture.sh says of
the settings and of FFmpeg. Asked once, by the service, so that a mistake ends the start and not every try. And what is
no longer in order afterwards: frames in memory of sources that have left.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time

from pipeline import ownership
from pipeline.child import event, log
from pipeline.grab import SCRIPT, environment_for
from pipeline.model import (
    ConfigError,
    Exit,
    UnavailableError,
    describe,
    printable,
)
from pipeline.ownership import MARK
from pipeline.settings import FRAMES_DIR, Settings, Source

ANSWER_S = 30.0  # a Pi starts FFmpeg from a cold card in a few seconds
RELOAD_ANSWER_S = 15.0  # nobody looks after the children meanwhile; systemd is told every 10 s, and waits for 30


def prepare(settings: Settings, answer_s: float = ANSWER_S) -> None:
    """Make and mark the directories of captured sources, and ask capture.sh about each, no longer than `answer_s` in
    all. Raises ConfigError, or UnavailableError where FFmpeg is missing or gives no answer."""
    captured = [
        (f"source[{n}]", source)
        for n, source in enumerate(settings.source)
        if source.capture is not None and _may_begin(source, settings)
    ]
    for key, source in captured:
        _prepare_directory(key, source, settings.runtime_dir)
    deadline = time.monotonic() + answer_s
    asked: list[tuple[str, subprocess.Popen[str]]] = []
    try:
        for key, source in captured:
            asked.append((key, _ask(key, source)))
        for key, process in asked:
            _hear(key, process, max(0.0, deadline - time.monotonic()))
    finally:  # whoever has been refused, or is to stop, leaves none of them
        for _, process in asked:
            _end(process)


def remove_left(settings: Settings) -> None:
    """Remove the directories below <runtime_dir>/frames that carry our mark and belong to no source any more: nobody
    would delete their frames, and they lie in memory. Evidence has links of its own."""
    place = os.path.join(os.path.abspath(settings.runtime_dir), FRAMES_DIR)
    used = [os.path.realpath(path) + "/" for s in settings.source for path in (s.dir, s.audio_path) if path]
    try:
        with os.scandir(place) as entries:
            ours = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False) and _is_marked(entry.path)]
    except OSError:
        return  # nothing was ever captured there
    for path in ours:
        if any(directory.startswith(os.path.realpath(path) + "/") for directory in used):
            continue
        try:
            _remove(path)
        except OSError as error:
            log.warning(event("frames of a source that left not removed", dir=path, cause=describe(error)))


def _is_marked(path: str) -> bool:
    return os.path.isfile(os.path.join(path, MARK)) and not os.path.ismount(path)


def _remove(path: str) -> None:
    """The mark goes last: what was not done is done at the next start. An FFmpeg holds a lock while it lives."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with os.scandir(path) as entries:
            found = [entry for entry in entries if entry.name != MARK]
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        os.unlink(os.path.join(path, MARK))
        os.rmdir(path)
    finally:
        os.close(fd)
    log.info(event("frames of a source that left removed", dir=path, files=len(found)))


def _may_begin(source: Source, settings: Settings) -> bool:
    """Whether the directory can be made; not while what is above it is missing, a mount perhaps: that is waited for."""
    if settings.strict or ownership.can_be_made(source, settings.runtime_dir):
        return True
    log.warning(event("no directory for frames, waiting for what is above it", source=source.name, dir=source.dir))
    return False


def _prepare_directory(key: str, source: Source, runtime_dir: str) -> None:
    try:
        ownership.take(source, runtime_dir)
    except ConfigError as error:
        raise ConfigError(f"{key}.dir: {error}") from error
    except OSError as error:
        raise ConfigError(f"{key}.dir: {source.dir}: {describe(error)}; make it, or name another") from error


def _ask(key: str, source: Source) -> subprocess.Popen[str]:
    """A rehearsal: nothing is captured. All at once, because each starts FFmpeg to see what it can do."""
    try:
        return subprocess.Popen(
            [SCRIPT, "--dry-run"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment_for(source),
            encoding="utf-8",
            errors="backslashreplace",
            process_group=0,  # with the FFmpegs that it asks
        )
    except OSError as error:
        raise UnavailableError(f"{key}.capture: {SCRIPT}: {describe(error)}; install Stillwatch again") from error


def _end(process: subprocess.Popen[str]) -> None:
    """Leave nothing of one that was not heard to its end, nor of the FFmpeg that it asks."""
    with process:  # closes the pipe, and waits
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _hear(key: str, process: subprocess.Popen[str], timeout_s: float) -> None:
    try:
        _, said = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{key}.capture: FFmpeg gives no answer in time; try it by hand") from None
    if process.returncode in (Exit.OK, Exit.NO_INPUT):  # what is unplugged now may come
        return
    last = said.strip().rpartition("\n")[2].removeprefix("capture.sh: ")
    text = f"{key}.capture: {printable(last) or f'capture.sh ended with {process.returncode}'}"
    raise UnavailableError(text) if process.returncode == Exit.UNAVAILABLE else ConfigError(text)
