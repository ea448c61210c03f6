"""The capture child: owns every FFmpeg, what they say, and the files that they and we make in memory.

It reads no frame and knows no network. One turn a second while anything is captured: read which files came, delete what
is past its bounds, look whether every FFmpeg still delivers. An FFmpeg's end wakes it at once. New settings are told
to this process while it runs: an FFmpeg that they do not concern is not interrupted.
"""

from __future__ import annotations

import select
import time
from collections.abc import Mapping

from pipeline.board import Board
from pipeline.child import Child, event, log, trim_memory
from pipeline.grab import Grabber
from pipeline.mounts import is_memory
from pipeline.retention import OwnFrames, Retention
from pipeline.settings import Settings
from pipeline.shelf import kind_of

STOP_S = 0.6  # for all FFmpegs together, from SIGTERM to SIGKILL, when the service stops
OVERSLEPT_S = 2.0  # this process itself was held up: no FFmpeg is blamed for its silence
READY_S = 0.1  # between two looks whether the watcher is ready, before which nothing is captured
_NS = 1_000_000_000


class Capture:
    """All FFmpegs and all files of one service. `step(now_ns)` is one turn."""

    def __init__(self, settings: Settings, board: Board, lanes: Mapping[str, int], poll: select.poll) -> None:
        """`lanes` names the row that each source has on the board. An FFmpeg's end is told through `poll`."""
        self._board, self._poll = board, poll
        self.retention = Retention(settings, board, lanes)
        self._wakes_ns = 0
        self.grabbers: list[tuple[Grabber, OwnFrames]] = []
        self._lanes: dict[str, int] = {}
        self._share_out(settings, lanes)
        _warn_of_disk(settings)

    def adopt(self, settings: Settings, lanes: Mapping[str, int]) -> None:
        """Go over to other settings: FFmpegs that they leave as they were run on, all others are stopped first."""
        self.retention.adopt(settings, lanes)
        before = {id(grabber) for grabber, _ in self.grabbers}
        self._share_out(settings, lanes)
        left_alone = sum(id(grabber) in before for grabber, _ in self.grabbers)
        log.info(event("settings taken over", ffmpegs=len(self.grabbers), left_alone=left_alone))

    def _share_out(self, settings: Settings, lanes: Mapping[str, int]) -> None:
        """To every captured source its FFmpeg, the one it has if that will do."""
        shelves = [s for s in self.retention.shelves if isinstance(s, OwnFrames) and s.source.capture is not None]
        kept = {shelf.source.name: found for shelf in shelves if (found := self._grabber_for(shelf, lanes))}
        self._stop([grabber for grabber, _ in self.grabbers if grabber not in kept.values()])
        self.grabbers, self._lanes = [], dict(lanes)
        for shelf in shelves:
            name = shelf.source.name
            if name not in kept:
                shelf.frames.sweep(time.monotonic_ns())  # of an earlier run that was killed
                row = self._board.memory.sources[lanes[name]]
                kept[name] = Grabber(shelf.source, row, settings.runtime_dir, self._poll, shelf.frames.sweep)
            self.grabbers.append((kept[name], shelf))

    def _grabber_for(self, shelf: OwnFrames, lanes: Mapping[str, int]) -> Grabber | None:
        name = shelf.source.name
        has = (grabber for grabber, _ in self.grabbers if grabber.source.name == name)
        grabber = next(has, None)
        if grabber is None or self._lanes[name] != lanes[name]:
            return None
        return grabber if grabber.adopt(shelf.source, shelf.frames.sweep) else None

    def step(self, now_ns: int) -> None:
        """Files first: a new FFmpeg must not be thanked for frames of the one before."""
        late_s = (now_ns - self._wakes_ns) / _NS if self._wakes_ns else 0.0
        self.retention.step(now_ns)
        if not self._board.memory.ready_ns:  # frames that came before the watcher would be left behind
            return
        for grabber, shelf in self.grabbers:
            if late_s > OVERSLEPT_S:
                grabber.excuse(now_ns)
            grabber.step(now_ns, shelf.frames.came_ns, shelf.frames.next_number)
        if late_s > OVERSLEPT_S and self.grabbers:
            log.warning(event("host stalled, no FFmpeg is blamed", late_s=late_s))

    def timeout_s(self, now_ns: int) -> float:
        """How long the loop may sleep when nothing happens."""
        timeout_s = min([self.retention.pace_s, *(grabber.wait_s(now_ns) for grabber, _ in self.grabbers)])
        if self.grabbers and not self._board.memory.ready_ns:
            timeout_s = READY_S
        self._wakes_ns = now_ns + int(timeout_s * _NS)
        return timeout_s

    def close(self) -> None:
        """Stop all FFmpegs. What they published stays."""
        self._stop([grabber for grabber, _ in self.grabbers])
        self.retention.close()

    def _stop(self, grabbers: list[Grabber]) -> None:
        for grabber in grabbers:
            grabber.ask_to_stop()
        deadline_ns = time.monotonic_ns() + int(STOP_S * _NS)
        for grabber in grabbers:
            grabber.close(deadline_ns, time.monotonic_ns())


def _warn_of_disk(settings: Settings) -> None:
    kind = kind_of(settings.runtime_dir)
    if kind and not is_memory(kind):
        mend = "name one on a tmpfs with --runtime-dir: the board alone is written every second"
        log.warning(event("runtime directory is not in memory", dir=settings.runtime_dir, type=kind, mend=mend))


def run(child: Child) -> int:
    """The capture child's life: beat first, so that the others need not wait for large directories to be listed."""
    child.beat(time.monotonic_ns())
    capture = Capture(child.settings, child.board, child.lanes, child.signals.poll)
    child.confirm()
    trim_due = True
    while not child.stopping:
        now_ns = time.monotonic_ns()
        child.beat(now_ns)
        if child.take_news():
            capture.adopt(child.settings, child.lanes)
            child.confirm()
            trim_due = True
        capture.step(now_ns)
        if trim_due:
            trim_memory()  # listings are large
            trim_due = False
        child.signals.wait(min(child.heartbeat_s, capture.timeout_s(time.monotonic_ns())))
    capture.close()
    return 0
