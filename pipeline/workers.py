"""The workers: each judges the frames of the lanes granted to it and writes their sidecars.

A worker reads frames and writes only beside them (no fsync, no network, no SD card). One turn serves every lane once,
so a fast source never starves a slow one. For each slot: read, judge, publish the sidecar, commit. Under overload a
lane sheds: it judges every k-th frame and gives the others a sidecar that says `skipped`, never less than one verdict
a second.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import time
from functools import partial
from typing import Any

from pipeline import clock, detectors, lastwords, sidecar
from pipeline.board import SourceRow
from pipeline.child import HEARTBEAT_S, Child, event, log
from pipeline.evidence import Evidence, incident_fields
from pipeline.frames import SUFFIX, FrameNames, identity_of, read_frame
from pipeline.hold import HOLD_DIR, Hold
from pipeline.incidents import Sighting, Transition
from pipeline.judge import NOT_HEARD, Judge, Order, frame_time_ns
from pipeline.learned import find_or_warn
from pipeline.listening import Listener
from pipeline.model import FrameId, InvalidFrame, Judgement, Outcome, Sound, describe
from pipeline.mounts import describe_refusal
from pipeline.ring import Lane, Slot, TornSlot
from pipeline.settings import Source
from pipeline.shedding import Shedding
from pipeline.sidecar import Published, Sidecar, SidecarWriter

DRAIN_S = 2.0  # to finish what is ready when asked to stop
LOG_EVERY_NS = 30_000_000_000  # the same trouble of one source is logged this often
_GONE = (errno.ENOENT, errno.ENOTDIR)
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN, errno.EINTR)
_READ_TRIES = 3
_READ_PAUSE_S = 0.02
_NS = 1_000_000_000


class ServedLane:
    """One source as its worker serves it: lane, judge, sidecars."""

    def __init__(self, source: Source, lane: Lane, row: SourceRow, child: Child) -> None:
        self.source = source
        self.lane = lane
        self.row = row
        record, settings = lane.adopt(), child.settings
        signature = find_or_warn(settings.state_dir, source.name)
        cells, host = lane.picture_cells(), settings.host_name()
        self.judge = Judge(source, cells, record.state, host=host, signature=signature)
        hold = Hold(os.path.join(settings.runtime_dir, HOLD_DIR), settings.hold_max_bytes)
        words = partial(lastwords.read, settings.runtime_dir, source.name)
        self._evidence = Evidence(hold, source, row, child.keeper_bell.ring, words)
        if not record.tail:  # what an earlier run left open goes on
            self._evidence.act(self.judge.tracker.resume(child.resumed, *clock.now_ns()))
        untold = self.judge.state.untold  # of a worker that died while there was no room in memory
        self._evidence.act(untold)
        self._evidence.act(self.judge.tracker.close_without_rule(*clock.now_ns()))  # the settings were reloaded since
        self._evidence.forget_orphans([*self.judge.tracker.held_ids(), *(told.incident.id for told in untold)])
        self._names = FrameNames(source.prefix)
        self._writer = SidecarWriter(source.dir)
        self._shedding = Shedding(settings.overload_lag_s)
        self._logged_ns: dict[str, int] = {}
        poll, directory = source.poll or settings.poll, source.audio_path
        self._listener = Listener(directory, source.audio.loss_db, poll=poll) if directory else None

    def close(self) -> None:
        """Let the lane go."""
        if self._listener is not None:
            self._listener.close()

    def serve(self, slot: Slot) -> None:
        """Carry one slot to its end: sidecar first, then the commit that acknowledges it."""
        if slot.tick:
            self._note_silence(slot)
            return
        try:
            outcome = self._handle(slot)
        except Exception as error:  # noqa: BLE001 - round one frame: a fault of ours must not stop the lane
            log.exception(event("frame not judged, a fault of ours", source=self.source.name, number=slot.number))
            outcome = self._mark_fault(slot, type(error).__name__)
        if outcome is not Outcome.JUDGED:
            self.judge.pass_over()
        self._commit(outcome)
        self._show(slot)

    def _note_silence(self, slot: Slot) -> None:
        """A tick: the source is overdue. No frame, no sidecar; the tracker decides what it means."""
        try:
            now_ns, wall_ns = clock.now_ns()
            wall_ns -= now_ns - slot.put_ns
            self._act(self.judge.track_silence(slot.put_ns, wall_ns))
        except Exception:  # noqa: BLE001 - round one tick: a fault of ours must not stop the lane
            log.exception(event("silence not judged, a fault of ours", source=self.source.name))
        self._commit(None)
        self._show_tracker()

    def _show_tracker(self) -> None:
        self.row.open_incidents = len(self.judge.tracker.open_ids())
        self.row.phases = self.judge.tracker.packed_phases()

    def _commit(self, outcome: Outcome | None) -> None:
        """Acknowledge the slot (None: it was a tick). A state that cannot be written down is not worth the lane: the
        last one stays."""
        self.judge.state.untold = self._evidence.untold() if self._evidence.waits else []
        try:
            state = self.judge.encoded_state()
        except (OverflowError, ValueError):
            log.exception(event("state not encoded, a fault of ours", source=self.source.name))
            state = self.lane.record.state
        self.lane.complete(outcome, state)

    def give_up_torn(self) -> None:
        """The slot that is due is damaged in memory: nobody knows which frame it was."""
        self._say(logging.ERROR, "slot torn, frame unknown", index=self.lane.record.tail)
        self.row.torn_slots += 1
        self._commit(None if self.lane.was_tick(self.lane.record.tail) else Outcome.SKIPPED)

    # -- one frame ----------------------------------------------------------------------------------------------

    def _handle(self, slot: Slot) -> Outcome:
        stem = self._names.stem(slot.number, slot.width)
        path = f"{self.source.dir}/{stem}{SUFFIX}"
        begun_ns = time.monotonic_ns()
        try:
            if self.lane.is_buried(slot.index):
                self.row.buried += 1
                raise InvalidFrame("poison: workers died on this frame", identity_of(os.lstat(path)))
            if self._shedding.sheds(slot, begun_ns):
                self.row.shed += 1
                return self._skip(slot, stem, identity_of(os.stat(path)), "overload")
            data, identity = self._read(path)
        except InvalidFrame as error:
            return self._reject(slot, stem, error)
        except OSError as error:
            return self._not_read(slot, stem, path, error)
        return self._judge(slot, stem, data, identity, begun_ns)

    def _read(self, path: str) -> tuple[bytes, FrameId]:
        """Read a frame; what may pass (too many open files, I/O) is tried again a few times."""
        for _ in range(_READ_TRIES - 1):
            try:
                return read_frame(path)
            except OSError as error:
                if error.errno not in _PASSING:
                    raise
                time.sleep(_READ_PAUSE_S)
        return read_frame(path)

    def _judge(self, slot: Slot, stem: str, data: bytes, identity: FrameId, begun_ns: int) -> Outcome:
        order, frame = self.judge.observe(slot.number, identity), self._sighting(slot, stem, identity)
        try:
            judgement = self.judge.judge(data, stem, order, frame.time_ns, self._hear(identity))
        except InvalidFrame as error:
            return self._publish_invalid(slot, stem, identity, str(error), order)
        followed = self._follow(frame, order, judgement, data)
        self._publish(stem, identity, self._judged(slot, stem, identity, judgement, begun_ns, followed))
        self._shedding.judged(time.monotonic_ns())
        return Outcome.JUDGED

    def _hear(self, identity: FrameId) -> Sound:
        """What is known of the sound at a frame; a source without sound costs nothing."""
        if self._listener is None:
            return NOT_HEARD
        sound = self._listener.hear(identity.mtime_ns)
        if self._listener.trouble:
            self._say(logging.WARNING, "sound unknown", cause=self._listener.trouble)
        return sound

    def _not_read(self, slot: Slot, stem: str, path: str, error: OSError) -> Outcome:
        """The frame has gone, or the system refused; the second says nothing about the frame."""
        if error.errno in _GONE:
            return Outcome.VANISHED
        self.row.unreadable += 1
        self._say(logging.WARNING, "frame unreadable", frame=stem, cause=describe(error))
        try:
            identity = identity_of(os.stat(path))
        except OSError as later:
            return Outcome.VANISHED if later.errno in _GONE else Outcome.SKIPPED
        return self._skip(slot, stem, identity, f"unreadable: {describe(error)}")

    def _skip(self, slot: Slot, stem: str, identity: FrameId, reason: str) -> Outcome:
        order = self.judge.observe(slot.number, identity)
        followed = self._follow(self._sighting(slot, stem, identity), order)
        self._publish(stem, identity, self._sidecar(slot, stem, identity, analyzed=False, skipped=reason, **followed))
        return Outcome.SKIPPED

    def _reject(self, slot: Slot, stem: str, error: InvalidFrame) -> Outcome:
        """A file that cannot be a frame; without an identity it has gone meanwhile."""
        if error.identity is None:
            return Outcome.VANISHED
        order = self.judge.observe(slot.number, error.identity)
        return self._publish_invalid(slot, stem, error.identity, str(error), order)

    def _mark_fault(self, slot: Slot, fault: str) -> Outcome:
        """Give the frame on which we failed an error sidecar, so that it is not tried for ever."""
        stem = self._names.stem(slot.number, slot.width)
        try:
            identity = identity_of(os.stat(f"{self.source.dir}/{stem}{SUFFIX}"))
        except OSError:
            return Outcome.VANISHED
        return self._publish_invalid(slot, stem, identity, f"internal: {fault}", Order.LATE)

    def _publish_invalid(self, slot: Slot, stem: str, identity: FrameId, reason: str, order: Order) -> Outcome:
        self._say(logging.WARNING, "frame invalid", frame=stem, cause=reason)
        followed = self._follow(self._sighting(slot, stem, identity), order)
        self._publish(stem, identity, self._sidecar(slot, stem, identity, error=reason, **followed))
        return Outcome.INVALID

    def _sighting(self, slot: Slot, stem: str, identity: FrameId) -> Sighting:
        time_ns = frame_time_ns(identity, *clock.now_ns())
        return Sighting(time_ns, identity.mtime_ns, slot.number, stem, identity)

    def _follow(
        self, frame: Sighting, order: Order, judgement: Judgement | None = None, data: bytes = b""
    ) -> dict[str, Any]:
        """Show the frame to the tracker and hold the evidence it asks for; what the sidecar says of incidents."""
        if order is Order.LATE:
            return {}
        transitions = self.judge.track(frame, judgement)
        self._act(transitions, frame.name, data)
        return incident_fields(self.judge.tracker, transitions)

    def _act(self, transitions: list[Transition], stem: str = "", data: bytes = b"") -> None:
        if transitions or self._evidence.waits:
            self._evidence.act(transitions, stem, data)
        self.row.incidents += sum(transition.kind == "opened" for transition in transitions)

    # -- sidecars -----------------------------------------------------------------------------------------------

    def _sidecar(self, slot: Slot, stem: str, identity: FrameId, **fields: Any) -> Sidecar:
        return sidecar.build(self.source.name, stem, slot.number, identity, **fields)

    def _judged(
        self,
        slot: Slot,
        stem: str,
        identity: FrameId,
        judgement: Judgement,
        begun_ns: int,
        followed: dict[str, Any],
    ) -> Sidecar:
        fields = sidecar.verdict_fields(judgement) | followed
        done_ns = time.monotonic_ns()
        fields["performance_ms"] = {
            "queued": round((begun_ns - slot.put_ns) / 1e6, 3),
            "decode": round(judgement.decode_s * 1e3, 3),
            "total": round((done_ns - begun_ns) / 1e6, 3),
        }
        return self._sidecar(slot, stem, identity, **fields)

    def _publish(self, stem: str, identity: FrameId, content: Sidecar) -> None:
        """Publish a sidecar; a file system that refuses costs the sidecar, never the verdict."""
        try:
            published = self._writer.publish(stem, sidecar.encode(content), identity)
        except OSError as error:
            self.row.sidecar_failures += 1
            cause = describe_refusal(error, self.source.dir)
            self._say(logging.ERROR, "sidecar not written", frame=stem, cause=cause)
            return
        self.row.duplicates += published is Published.DUPLICATE
        self.row.stale_sidecars += published is Published.REPLACED

    # -- showing ------------------------------------------------------------------------------------------------

    def _show(self, slot: Slot) -> None:
        """Show on the board what `status` and the self-report want to know."""
        row, state, record = self.row, self.judge.state, self.lane.record
        row.judged, row.invalid = record.judged, record.invalid
        row.skipped, row.vanished = record.skipped, record.vanished
        now_ns = time.monotonic_ns()
        row.last_number, row.last_done_ns, row.lag_ns = max(0, state.number), now_ns, now_ns - slot.put_ns
        row.max_lag_ns = max(row.max_lag_ns, row.lag_ns)
        row.black_frames, row.freeze_frames = state.black_frames, state.freeze_frames
        row.unknown_frames = state.unknown_frames
        row.no_signal_frames, row.silent_frames, row.zaps = state.no_signal_frames, state.silent_frames, state.zaps
        self._show_tracker()
        if state.numbering_restarts > row.numbering_restarts:
            hint = "a new FFmpeg run; if often: two writers, or -update 1"
            self._say(logging.WARNING, "numbers began anew", restarts=state.numbering_restarts, hint=hint)
        row.gaps, row.numbering_restarts = state.gaps, state.numbering_restarts

    def _say(self, level: int, name: str, **values: object) -> None:
        """Log a trouble of this source, the same one at most every LOG_EVERY_NS; the counters tell the rest."""
        now_ns = time.monotonic_ns()
        if now_ns >= self._logged_ns.get(name, 0):
            self._logged_ns[name] = now_ns + LOG_EVERY_NS
            log.log(level, event(name, source=self.source.name, **values))


class Worker:
    """All lanes granted to one worker. `step()` is one turn."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._index = child.spec.index
        self._grants = -1
        self._served: dict[int, ServedLane] = {}

    def step(self) -> bool:
        """Serve one slot of every lane that has one; False when there was nothing to do."""
        if self._child.ring.grants != self._grants:
            self._take_and_release()
        worked = False
        for served in self._served.values():
            worked |= self._serve_one(served)
        return worked

    def _serve_one(self, served: ServedLane) -> bool:
        row, lane = self._child.row, served.lane
        try:
            slot = lane.reserve()
        except TornSlot:
            served.give_up_torn()
            return True
        if slot is None:
            return False
        row.busy_lane, row.busy_index = lane.index, slot.index
        row.busy_since_ns = time.monotonic_ns()
        served.serve(slot)
        row.turns += 1
        row.heartbeat_ns = time.monotonic_ns()
        row.busy_since_ns = 0
        return True

    def _take_and_release(self) -> None:
        """Follow the grants: let go what is no longer ours, then take what has become ours."""
        self._grants = self._child.ring.grants
        ring, board = self._child.ring, self._child.board
        for lane in ring.lanes:  # all: a source may have left the settings
            if lane.leaver == self._index:
                if served := self._served.pop(lane.index, None):
                    served.close()
                lane.release()
                self._child.bell.ring()
        for source in self._child.settings.source:
            lane = ring.lanes[self._child.lanes[source.name]]
            if lane.holder == self._index and lane.index not in self._served:
                self._served[lane.index] = ServedLane(source, lane, board.memory.sources[lane.index], self._child)


class DecoderNoise:
    """What C libraries print on standard error (libjpeg: a line per damaged frame), counted instead of shown."""

    def __init__(self) -> None:
        self._read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.dup2(write_fd, 2)
        os.close(write_fd)
        self.lines = 0

    def drain(self) -> None:
        """Count what has come, and log it in one line."""
        with contextlib.suppress(BlockingIOError):
            noise = os.read(self._read_fd, 65536)
            self.lines += noise.count(b"\n")
            last = noise.rstrip().rpartition(b"\n")[2].decode(errors="backslashreplace")
            log.info(event("decoder warned", lines_total=self.lines, last=last))


def run(child: Child) -> int:
    """A worker's life: serve while there is work, then sleep until the doorbell rings."""
    detectors.prepare()
    noise = DecoderNoise()
    worker = Worker(child)
    doorbell = child.doorbells[child.spec.index]
    child.signals.poll.register(doorbell.fileno(), select.POLLIN)
    noise_due_ns = 0
    while not child.stopping:
        now_ns = time.monotonic_ns()
        child.beat(now_ns)
        if now_ns >= noise_due_ns:
            noise.drain()
            noise_due_ns = now_ns + int(HEARTBEAT_S * _NS)
        if not worker.step() and child.signals.wait(child.heartbeat_s):
            doorbell.clear()
    drain_until_ns = time.monotonic_ns() + int(DRAIN_S * _NS)
    while time.monotonic_ns() < drain_until_ns and worker.step():
        pass
    return 0
