"""Grab: the FFmpeg of one source, kept running through ffmpeg/capture.sh.

    WAITING --> STARTING --> RUNNING --> STOPPING --.      WAITING: for its device, or for the next try
       ^           |  no frame for start_s, stall_s  |     STOPPING: SIGTERM, then SIGKILL
       '-----------'---------------------------------'

FFmpeg's end is an event (a pidfd), its silence is not: a grabber that hangs never exits. Its standard error is a file
in memory that it can always write to; the last lines are kept. It dies with this process (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipeline import lastwords, ownership
from pipeline.backoff import Backoff
from pipeline.board import SourceRow
from pipeline.child import SECRET, die_with_parent, event, log
from pipeline.model import CaptureState, ConfigError, Exit, describe, masked, printable
from pipeline.settings import Source

SCRIPT = str(Path(__file__).resolve().parent.parent / "ffmpeg" / "capture.sh")
RETRY_FIRST_S, RETRY_CAP_S = 0.5, 30.0
PROGRESS = 10  # frames, and the next death is a first one again
KILL_S = 2.0  # from SIGTERM to SIGKILL: FFmpeg ends its outputs within a few frames
KILL_AGAIN_S = 1.0  # one that waits in the kernel ends when that lets it go
LOOK_S = 1.0  # between two looks for a device that is not there

_DEVICES = ("v4l2-copy", "v4l2-encode", "file")  # profiles whose input may be unplugged, and comes back
_NO_REASON = ("stillwatch: ", "capture.sh: exec ", "deprecated pixel format")  # lines that give none for an end
_NOT_FOR_IT = (*SECRET, "CAPTURE_", "STILLWATCH_", "CLOUDFLARE_")
"""What names of variables begin with that capture.sh is given none of but by us."""
_MOST = 999_999_999  # that capture.sh takes as the first number; above it, it finds its own
_READ_BYTES = 64 * 1024
_CUT_BYTES = 256 * 1024
_NS = 1_000_000_000


class Tail:
    """The last lines of what FFmpeg says, over all its runs. Reading never waits, writing never waits for reading."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=lastwords.MAX_LINES)
        self._fd = -1
        self._at = 0
        self._rest = b""  # of a line that is not complete

    def open(self) -> int:
        """A new, empty file for the next run; its descriptor."""
        self.close()
        self._fd, self._at, self._rest = os.memfd_create("ffmpeg-stderr", os.MFD_CLOEXEC), 0, b""
        fcntl.fcntl(self._fd, fcntl.F_SETFL, os.O_APPEND)  # so that it may be cut while FFmpeg writes
        return self._fd

    def take(self) -> list[str]:
        """The lines that have come, kept as well. Of a flood only its end is read, and the file is begun anew."""
        if self._fd < 0:
            return []
        size = os.fstat(self._fd).st_size
        if size - self._at > _READ_BYTES:
            self._at, self._rest = size - _READ_BYTES, b""
        data = os.pread(self._fd, _READ_BYTES, self._at)
        self._at += len(data)
        if self._at > _CUT_BYTES:
            os.ftruncate(self._fd, 0)
            self._at = 0
        *complete, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[: 4 * lastwords.MAX_LINE]
        return self._keep(complete)

    def close(self) -> list[str]:
        """The run has ended; its last lines, also one that was not ended."""
        if self._fd < 0:
            return []
        lines = self.take() + self._keep([self._rest])
        os.close(self._fd)
        self._fd, self._rest = -1, b""
        return lines

    def _keep(self, raw: list[bytes]) -> list[str]:
        texts = [printable(line.decode(errors="backslashreplace").strip())[: lastwords.MAX_LINE] for line in raw]
        lines = [text for text in texts if text]
        self.lines.extend(lines)
        return lines


class Grabber:
    """One source's FFmpeg. `step` is one turn; what ends is noticed through `poll`."""

    def __init__(
        self,
        source: Source,
        row: SourceRow,
        runtime_dir: str,
        poll: select.poll,
        swept: Callable[[int], None] = lambda now_ns: None,
    ) -> None:
        """`swept(now_ns)` is called when no FFmpeg of ours writes in the directory."""
        assert source.capture is not None
        self.source, self._capture, self._row = source, source.capture, row
        self._runtime_dir, self._poll, self._swept = runtime_dir, poll, swept
        self._backoff = Backoff(RETRY_FIRST_S, RETRY_CAP_S)
        self.tail = Tail()
        self._popen: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._started_ns = 0
        self._first_number = self._counted_from = 0  # of this run, as far as is known
        self._first_ns = self._newest_ns = 0  # of this run's frames
        self._kill_ns = 0  # when SIGTERM will not have helped
        self._absent = ""  # what is not there
        self._device = 0  # that frames are published on
        self._told: tuple[str, ...] = ()  # what the last words are
        self._set(CaptureState.WAITING)
        lastwords.forget(runtime_dir, source.name)

    def adopt(self, source: Source, swept: Callable[[int], None]) -> bool:
        """Go by other settings, if FFmpeg need not be begun anew for them; whether it need not."""
        if environment_for(source) != environment_for(self.source):
            return False
        assert source.capture is not None
        self.source, self._capture, self._swept = source, source.capture, swept
        return True

    # -- one turn -------------------------------------------------------------------------------------------------

    def step(self, now_ns: int, frame_ns: int, next_number: int) -> None:
        """Start, watch, stop. `frame_ns` is when the newest frame came, `next_number` the first that is free."""
        if self._popen is None:
            if now_ns >= self._backoff.due_ns and self._is_there():
                self._start(now_ns, next_number)
            return
        self._hear(self.tail.take())
        self._counted_from = self._counted_from or next_number  # at the start perhaps nobody had looked yet
        if next_number - self._counted_from >= PROGRESS:
            self._backoff.worked()
        if self._popen.poll() is not None:
            self._ended(now_ns)
        elif self._kill_ns:
            if now_ns >= self._kill_ns:
                self._signal(signal.SIGKILL)
                self._kill_ns = now_ns + int(KILL_AGAIN_S * _NS)
        else:
            self._watch(now_ns, frame_ns)

    def excuse(self, now_ns: int) -> None:
        """The host stalled: what did not come until now is not FFmpeg's fault."""
        if self._newest_ns:
            self._newest_ns = now_ns
        else:
            self._started_ns = now_ns

    def wait_s(self, now_ns: int) -> float:
        """Seconds until there may be something to do, FFmpeg's own end apart."""
        if self._popen is None:
            return max(self._backoff.wait_s(now_ns), LOOK_S if self._absent else 0.0)
        if self._kill_ns:
            return max(0.0, (self._kill_ns - now_ns) / _NS)
        since_ns = self._newest_ns or self._started_ns
        marks = (since_ns + int(limit_s * _NS) for limit_s in (self.source.stall_s / 2, self._limit_s))
        return min(((mark - now_ns) / _NS for mark in marks if mark >= now_ns), default=float("inf"))

    def ask_to_stop(self) -> None:
        """SIGTERM, for good."""
        if self._popen is not None:
            self._set(CaptureState.STOPPING)
            self._signal(signal.SIGTERM)

    def close(self, deadline_ns: int, now_ns: int) -> None:
        """Wait for the end until then; SIGKILL after it."""
        if self._popen is not None:
            try:
                self._popen.wait(max(0.0, (deadline_ns - now_ns) / _NS))
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
                with suppress(subprocess.TimeoutExpired):  # stuck in the kernel: it dies when that lets it go
                    self._popen.wait(0.2)
            self._forget_process()
        self._set(CaptureState.NONE)
        self._swept(now_ns)
        lastwords.forget(self._runtime_dir, self.source.name)

    # -- start ----------------------------------------------------------------------------------------------------

    def _is_there(self) -> bool:
        """Whether the input can be opened at all, and frames published: looked for in every turn, for two stats."""
        device = self._capture.input if self._capture.profile in _DEVICES else ""
        above = os.path.dirname(self.source.dir)  # never made anew: a mount may be missing there
        absent = ""
        if device and not os.path.exists(device):
            absent = masked(device)
        elif not ownership.can_be_made(self.source, self._runtime_dir):
            absent = above
        if absent and absent != self._absent:
            log.warning(event("input absent, waiting for it", source=self.source.name, input=absent))
            self._say_last(f"stillwatch: {absent}: not there")
        elif self._absent and not absent:
            log.info(event("input is there", source=self.source.name, input=self._absent))
        self._absent = absent
        return not absent

    def _start(self, now_ns: int, next_number: int) -> None:
        try:
            ownership.take(self.source, self._runtime_dir)
            self._device = os.stat(self.source.dir).st_dev
            self._popen = subprocess.Popen(
                [SCRIPT],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.tail.open(),
                env=environment_for(self.source, next_number),
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - safe: this process has one thread
                process_group=0,  # Ctrl-C is for the supervisor, who asks in order
            )
            self._pidfd = os.pidfd_open(self._popen.pid)
        except (OSError, ConfigError) as error:
            self._not_started(error, now_ns)
            return
        self._poll.register(self._pidfd, select.POLLIN)
        self._row.ffmpeg_restarts += self._started_ns > 0
        self._row.ffmpeg_pid = self._popen.pid
        self._started_ns, self._first_ns, self._newest_ns, self._kill_ns = now_ns, 0, 0, 0
        self._first_number, self._counted_from = max(next_number, 1), next_number
        self._set(CaptureState.STARTING)

    def _not_started(self, error: OSError | ConfigError, now_ns: int) -> None:
        if self._popen is not None:
            self._signal(signal.SIGKILL)
            self._popen.wait()
            self._popen = None
        cause = describe(error) if isinstance(error, OSError) else str(error)
        if self._backoff.failed(now_ns):
            log.error(event("capture not started", source=self.source.name, cause=cause))
        self._say_last(f"stillwatch: not started: {cause}")

    # -- watch ----------------------------------------------------------------------------------------------------

    def _watch(self, now_ns: int, frame_ns: int) -> None:
        if frame_ns > self._started_ns and frame_ns > self._newest_ns:
            self._newest_ns = frame_ns
            if not self._first_ns:
                self._first_ns = frame_ns
                self._set(CaptureState.RUNNING)
                log.info(event("capture running", source=self.source.name, took_s=(frame_ns - self._started_ns) / _NS))
            self._forget_last()
        with suppress(OSError):  # the directory has gone: FFmpeg ends
            ownership.mark_again(self.source, self._device, self._first_number)
        silent_ns = now_ns - (self._newest_ns or self._started_ns)
        if silent_ns >= self.source.stall_s * _NS / 2:  # the worker may open an incident before we act
            self._tell_last()
        if silent_ns > self._limit_s * _NS:
            self._stop(now_ns, silent_ns / _NS)

    @property
    def _limit_s(self) -> float:
        """How long this FFmpeg may be silent now."""
        return self.source.stall_s if self._first_ns else max(self._capture.start_s, self.source.stall_s)

    def _stop(self, now_ns: int, silent_s: float) -> None:
        assert self._popen is not None
        self._row.ffmpeg_stalls += 1
        log.warning(event("no frame comes, stopping FFmpeg", source=self.source.name, silent_s=silent_s))
        self._say_last(f"stillwatch: no frame for {silent_s:.1f} s, FFmpeg is stopped")
        self._set(CaptureState.STOPPING)
        self._kill_ns = now_ns + int(KILL_S * _NS)
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        """To FFmpeg, or to capture.sh with all that it has started."""
        assert self._popen is not None
        with suppress(ProcessLookupError):
            if self._popen.poll() is None:
                os.killpg(self._popen.pid, number)

    def _ended(self, now_ns: int) -> None:
        assert self._popen is not None
        how = exit_text(self._popen.returncode)
        self._forget_process()
        self._hear(self.tail.close())
        said = next((line for line in reversed(self.tail.lines) if not any(part in line for part in _NO_REASON)), "")
        speaks = self._backoff.failed(now_ns)
        if speaks:
            values = {"exit": how, "said": said, "retry_in_s": self._backoff.delay_s}
            log.warning(event("capture ended", source=self.source.name, **values))
        self._say_last(f"stillwatch: FFmpeg ended, exit={how}")
        self._set(CaptureState.WAITING)
        self._swept(now_ns)

    def _forget_process(self) -> None:
        if self._pidfd >= 0:
            self._poll.unregister(self._pidfd)
            os.close(self._pidfd)
        self._popen, self._pidfd, self._kill_ns, self._row.ffmpeg_pid = None, -1, 0, 0

    # -- what it says -----------------------------------------------------------------------------------------------

    def _hear(self, lines: list[str]) -> None:
        """capture.sh's own lines are for everybody: the command line, and warnings."""
        for line in lines:
            script = line.startswith("capture.sh: ")
            level = "warning" if line.startswith("capture.sh: warning: ") else "info" if script else "debug"
            getattr(log, level)(event("ffmpeg said", source=self.source.name, line=line))

    def _say_last(self, line: str) -> None:
        """A last word of our own."""
        self.tail.lines.append(line)
        self._tell_last()

    def _tell_last(self) -> None:
        """Publish the last words, if they are others than before."""
        if self._told == tuple(self.tail.lines):
            return
        try:
            lastwords.write(self._runtime_dir, self.source.name, list(self.tail.lines))
        except OSError as error:
            log.error(event("last words not written", source=self.source.name, cause=describe(error)))
        self._told = tuple(self.tail.lines)

    def _forget_last(self) -> None:
        if self._told:
            self._told = ()
            lastwords.forget(self._runtime_dir, self.source.name)

    def _set(self, state: CaptureState) -> None:
        self._row.capture_state = state


def environment_for(source: Source, next_number: int = 0) -> dict[str, str]:
    """The environment of a source's capture.sh: ours without settings and keys, and all that it is to do.

    It alone holds the input's secrets: what it starts is given no variable of these names."""
    assert source.capture is not None
    ours = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_IT)}
    place = {"CAPTURE_DIR": source.dir, "CAPTURE_PREFIX": source.prefix, "CAPTURE_FIRST": str(min(next_number, _MOST))}
    return ours | source.capture.environment() | place


def exit_text(code: int) -> str:
    """How a process ended: `SIGKILL`, `CONFIG` or `1`."""
    if code < 0:
        return signal.Signals(-code).name
    return Exit(code).name if code in set(Exit) and code >= Exit.NO_INPUT else str(code)
