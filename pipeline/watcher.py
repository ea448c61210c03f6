"""The watcher: one light process that sees renames through inotify and puts frames into the ring.

It decodes nothing, writes no file, and knows no network. Per source:

    NEW --+--> WATCHING  inotify tells of every rename         <--+  the directory is removed, moved, unmounted,
          +--> POLLING   next numbers are probed instead       <--+  mounted over: MISSING until one is there again
          +--> MISSING   looked for every CHECK_S              ---'

Arming is always: watch first, then one listing, then read the events that came meanwhile, then queue what either has
seen. The same is done whenever events may have been lost: an overflow, another directory under the old path, a
successor of a killed watcher. No directory is listed while events flow.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import time
from collections.abc import Mapping

from inotify_simple import INotify, flags

from pipeline.board import Board
from pipeline.child import HEARTBEAT_S, Child, event, log, trim_memory
from pipeline.listing import Frame, Listing
from pipeline.model import ConfigError, SourceState, describe
from pipeline.mounts import file_system_type, is_blind
from pipeline.ring import Doorbell, Ring
from pipeline.settings import Settings
from pipeline.watched import Watched

CHECK_S = 2.5
"""Between two looks at a directory's identity: nothing else tells of a mount over it. Re-armed within 5 s."""

POLL_S = 0.1  # between two probes of a polled source
PROBE_WINDOW = 8  # numbers probed in one tick: a gap this long is stepped over without a listing
QUIET_S = 2.0  # a polled source without a hit for this long is listed, if its directory has changed
QUIET_CAP_S = 60.0  # the wait doubles up to this while listings find nothing
CATCH_UP_S = 0.02  # between two tries while a lane is full
OVERSLEPT_S = 2.0  # the watcher itself was held up: the host stalled, so no source is blamed for its silence

_MASK = flags.MOVED_TO | flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR
_MOVED_TO, _OVERFLOW = int(flags.MOVED_TO), int(flags.Q_OVERFLOW)
_LOST = int(flags.DELETE_SELF | flags.MOVE_SELF | flags.IGNORED | flags.UNMOUNT)
_SYSCTL = {errno.ENOSPC: "fs.inotify.max_user_watches", errno.EMFILE: "fs.inotify.max_user_instances"}
_GONE = (-1, -1)
_NS = 1_000_000_000


class Watcher:
    """All sources of one service. `step(now_ns)` is one turn of the loop."""

    def __init__(
        self,
        settings: Settings,
        ring: Ring,
        board: Board,
        doorbells: list[Doorbell],
        lanes: Mapping[str, int] | None = None,  # by source; None: in their order
    ) -> None:
        self._settings = settings
        self._doorbells = doorbells
        self._debug = log.isEnabledFor(logging.DEBUG)
        self._by_wd: dict[int, Watched] = {}
        self._check_due_ns = 0
        self._silence_due_ns = 0
        self._wakes_ns = 0  # when the loop wanted to wake
        lanes = lanes or {source.name: n for n, source in enumerate(settings.source)}
        self.sources = [Watched(source, ring.lanes[lanes[source.name]], board) for source in settings.source]
        self.inotify = self._open_inotify()

    # -- the loop -----------------------------------------------------------------------------------------------

    def step(self, now_ns: int) -> None:
        """Take the events, look at the directories when that is due, put what waits; ring once per worker and part."""
        self._take_events(now_ns)
        self._ring()
        if now_ns >= self._check_due_ns:
            self._check_due_ns = now_ns + int(CHECK_S * _NS)
            for watched in self.sources:
                self._check(watched, now_ns)
            self._take_events(now_ns)
        for watched in self.sources:
            if watched.row.state == SourceState.POLLING:
                self._probe(watched, now_ns)
            if watched.intake.pending.count:
                watched.intake.put_pending(now_ns)
        if now_ns >= self._silence_due_ns:
            self._note_silences(now_ns)
        self._ring()

    def _note_silences(self, now_ns: int) -> None:
        """Tell the workers of the sources that are overdue, after a look at what their directories say."""
        if self._wakes_ns and now_ns - self._wakes_ns > OVERSLEPT_S * _NS:
            log.warning(event("host stalled, no source is blamed", late_s=(now_ns - self._wakes_ns) / _NS))
            for watched in self.sources:
                watched.silence.excuse(now_ns)
        for watched in self.sources:
            watched.silence.begin(now_ns)
            if now_ns >= watched.silence.due_ns(now_ns):
                self._check(watched, now_ns)
                if watched.wd is not None:  # whatever the directory's time says: it is as coarse as the kernel's tick
                    self._suspect_blindness(watched, now_ns)
                self._take_events(now_ns)
            if now_ns >= watched.silence.due_ns(now_ns):
                watched.silence.tell(now_ns)
        self._silence_due_ns = min(watched.silence.look_ns(now_ns) for watched in self.sources)

    def _ring(self) -> None:
        """Wake the workers that have got something since the last ring."""
        rung = set()
        for watched in self.sources:
            if watched.intake.put_since_ring:
                watched.intake.put_since_ring = False
                rung.add(watched.lane.holder)
        for worker in rung:
            if worker is not None:
                self._doorbells[worker].ring()

    def timeout_s(self, now_ns: int) -> float:
        """How long the loop may sleep when nothing happens."""
        timeout_s = min(HEARTBEAT_S, max(0, min(self._check_due_ns, self._silence_due_ns) - now_ns) / _NS)
        if any(watched.row.state == SourceState.POLLING for watched in self.sources):
            timeout_s = min(timeout_s, POLL_S)
        if any(watched.intake.pending.count for watched in self.sources):
            timeout_s = min(timeout_s, CATCH_UP_S)
        self._wakes_ns = now_ns + int(timeout_s * _NS)
        return timeout_s

    def close(self) -> None:
        """Remove all watches."""
        for watched in self.sources:
            self._unwatch(watched)
        if self.inotify:
            self.inotify.close()

    # -- events -------------------------------------------------------------------------------------------------

    def _take_events(self, now_ns: int) -> None:
        """Handle all events that are there; those read after a listing settle it."""
        while self.inotify:
            listed = [watched for watched in self.sources if watched.intake.unsettled]
            for wd, mask, _cookie, name in self.inotify.read(timeout=0):
                if mask & _MOVED_TO:
                    if watched := self._by_wd.get(wd):
                        self._on_rename(watched, name, now_ns)
                elif mask & _OVERFLOW:
                    self._on_overflow(now_ns)
                elif mask & _LOST and (watched := self._by_wd.get(wd)):
                    self._on_lost(watched, mask, now_ns)
            for watched in listed:
                watched.intake.settle(now_ns)
            if not any(watched.intake.unsettled for watched in self.sources):
                return

    def _on_rename(self, watched: Watched, name: str, now_ns: int) -> None:
        names = watched.intake.names
        frame = names.parse(name)
        if frame is None:
            watched.row.refused_names += names.is_refused(name)
            return
        if self._debug:
            log.debug("inotify event: %s", name)
        watched.intake.on_rename(frame, now_ns)

    def _on_overflow(self, now_ns: int) -> None:
        """The kernel dropped the newest events, of whatever watch: list every watched directory once."""
        log.warning(event("inotify queue overflowed, reconciling", sysctl="fs.inotify.max_queued_events"))
        for watched in list(self._by_wd.values()):
            watched.row.overflows += 1
            try:
                self._list_missed(watched, now_ns)
            except OSError as error:
                self._lose(watched, error)

    def _on_lost(self, watched: Watched, mask: int, now_ns: int) -> None:
        """The directory was removed, moved or unmounted; its path may already lead to another."""
        why = "+".join(flag.name.lower() for flag in flags.from_mask(mask))
        log.warning(event("watch lost", source=watched.source.name, why=why))
        self._unwatch(watched)
        watched.inode = _GONE  # its number may be that of its successor: ext4 gives it away at once
        self._arm(watched, now_ns)

    # -- arming -------------------------------------------------------------------------------------------------

    def _open_inotify(self) -> INotify | None:
        if self._settings.poll:
            return None
        try:
            return INotify(nonblocking=True)
        except OSError as error:
            sysctl = _SYSCTL.get(error.errno or 0, "none")
            log.warning(event("inotify refused, polling all sources", cause=describe(error), raise_sysctl=sysctl))
            return None

    def _check(self, watched: Watched, now_ns: int) -> None:
        """Compare the directory behind the path with the one that was armed."""
        try:
            status = os.stat(watched.source.dir)
        except OSError as error:
            self._lose(watched, error)
            return
        if not watched.armed or watched.inode != (status.st_dev, status.st_ino):
            self._unwatch(watched)
            self._arm(watched, now_ns)
        elif watched.wd is not None and status.st_mtime_ns != watched.mtime_ns:
            watched.mtime_ns = status.st_mtime_ns
            if watched.events == watched.row.events:
                self._suspect_blindness(watched, now_ns)
        watched.events = watched.row.events
        watched.intake.follow_clock()

    def _arm(self, watched: Watched, now_ns: int) -> None:
        """Watch (or poll) the directory that the path leads to now, then queue what is in it already."""
        try:
            status = os.stat(watched.source.dir)
            inode = (status.st_dev, status.st_ino)
            if self._conflicts(watched, inode):
                return
            state = self._watch(watched)
            again = os.stat(watched.source.dir)
            if (again.st_dev, again.st_ino) != inode:  # replaced meanwhile: the next check arms it
                self._unwatch(watched)
                return
            was, known = watched.state, watched.inode is not None or watched.armed
            rearmed = watched.is_rearmed_by(inode)
            watched.inode, watched.mtime_ns = inode, status.st_mtime_ns
            if known:
                self._list_missed(watched, now_ns)
            else:
                watched.hit_ns = now_ns
                appeared = was is not SourceState.NEW
                watched.intake.list_first(self._settings.startup_frames, appeared=appeared)
                self._settle_unwatched(watched, now_ns)
        except OSError as error:
            self._lose(watched, error)
            return
        watched.quiet_ns = int((QUIET_S if watched.intake.last[0] >= 0 else POLL_S) * _NS)
        watched.row.rearmed += rearmed
        watched.row.armed_dev, watched.row.armed_ino = inode
        watched.row.state = state
        log.info(event("armed", source=watched.source.name, by=state.name.lower()))

    def _list_missed(self, watched: Watched, now_ns: int) -> int:
        """Reconcile a source that was armed before; how many frames were found."""
        watched.hit_ns = now_ns
        found = watched.intake.list_missed()
        self._settle_unwatched(watched, now_ns)
        return found

    def _settle_unwatched(self, watched: Watched, now_ns: int) -> None:
        """Without a watch no event can come in between."""
        if watched.wd is None:
            watched.intake.settle(now_ns)

    def _watch(self, watched: Watched) -> SourceState:
        """Set the inotify watch, or say why this source is polled."""
        if not self.inotify or watched.source.poll:
            return SourceState.POLLING
        name, kind = watched.source.name, file_system_type(watched.source.dir)
        if is_blind(kind):
            log.warning(event("inotify cannot see this file system, polling", source=name, type=kind))
            return SourceState.POLLING
        try:
            watched.wd = self.inotify.add_watch(watched.source.dir, _MASK)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                raise  # polling would not see it either
            sysctl = _SYSCTL.get(error.errno or 0, "none")
            log.warning(event("watch refused, polling", source=name, cause=describe(error), raise_sysctl=sysctl))
            return SourceState.POLLING
        self._by_wd[watched.wd] = watched
        return SourceState.WATCHING

    def _unwatch(self, watched: Watched) -> None:
        if watched.wd is None or not self.inotify:
            return
        del self._by_wd[watched.wd]
        try:
            self.inotify.rm_watch(watched.wd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: the kernel has removed it already
                raise
        watched.wd = None

    def _lose(self, watched: Watched, error: OSError) -> None:
        """The directory is not there: said once, looked for at every check."""
        self._unwatch(watched)
        if watched.state is not SourceState.MISSING:
            watched.row.state = SourceState.MISSING
            where = {"source": watched.source.name, "dir": watched.source.dir}
            log.warning(event("directory missing, waiting for it", **where, cause=describe(error)))

    def _conflicts(self, watched: Watched, inode: tuple[int, int]) -> bool:
        """Whether another source has this very directory: its events would replace ours (one watch per inode)."""
        other = next((o for o in self.sources if o is not watched and o.armed and o.inode == inode), None)
        if other is None:
            return False
        text = f"{other.source.name} and {watched.source.name} are one directory, {watched.source.dir}"
        if watched.state is SourceState.NEW:
            raise ConfigError(f"source: {text}; give each source its own")
        if watched.state is not SourceState.CONFLICT:
            watched.row.state = SourceState.CONFLICT
            log.error(event("source refused", cause=text, mend="give each source its own"))
        return True

    # -- polling ------------------------------------------------------------------------------------------------

    def _probe(self, watched: Watched, now_ns: int) -> None:
        """One tick of a polled source: look for the next numbers; list only if it was quiet and yet changed."""
        intake = watched.intake
        found = intake.directory.next_frames(intake.last, PROBE_WINDOW) if intake.last[0] >= 0 else []
        for frame in found:
            intake.accept(frame, now_ns)
        if found:
            watched.row.events += len(found)
            watched.hit_ns, watched.quiet_ns = now_ns, int(QUIET_S * _NS)
            return
        if now_ns - watched.hit_ns < watched.quiet_ns:
            return
        try:
            mtime_ns = os.stat(watched.source.dir).st_mtime_ns
            if mtime_ns == watched.mtime_ns:
                return
            watched.mtime_ns = mtime_ns
            missed = self._list_missed(watched, now_ns)
        except OSError as error:
            self._lose(watched, error)
            return
        watched.quiet_ns = int(QUIET_S * _NS) if missed else min(2 * watched.quiet_ns, int(QUIET_CAP_S * _NS))

    def _suspect_blindness(self, watched: Watched, now_ns: int) -> None:
        """The directory changed and inotify was silent. If new frames are there, renames are hidden, or are none."""
        try:
            there = self._unseen(watched, now_ns)
            self._take_events(now_ns)  # the events of all that is there have come by now, if they come at all
            if not any(frame[0] > watched.intake.last[0] for frame in there):
                return
            mend = "publish by rename (FFmpeg: -atomic_writing 1)"
            log.warning(event("frames came without a rename, polling", source=watched.source.name, mend=mend))
            self._unwatch(watched)
            watched.row.state = SourceState.POLLING
            self._list_missed(watched, now_ns)
        except OSError as error:
            self._lose(watched, error)

    def _unseen(self, watched: Watched, now_ns: int) -> list[Frame]:
        """Frames newer than the last one seen. Where none was ever seen, only a listing can tell: ever more rarely."""
        last, directory = watched.intake.last, watched.intake.directory
        if last[0] >= 0:
            since = directory.came_ns(last) or 0
            return [f for f in directory.next_frames(last, PROBE_WINDOW) if (directory.came_ns(f) or 0) >= since]
        if now_ns - watched.hit_ns < watched.quiet_ns:
            return []
        watched.hit_ns, watched.quiet_ns = now_ns, min(2 * watched.quiet_ns, int(QUIET_CAP_S * _NS))
        watched.row.scans += 1
        return Listing(directory).unjudged()


def run(child: Child) -> int:
    """The watcher's life: arm, beat (which says ready), then sleep until something happens."""
    watcher = Watcher(child.settings, child.ring, child.board, child.doorbells, child.lanes)
    watcher.step(time.monotonic_ns())
    trim_memory()
    log.info("Starting inotify event loop (zero CPU when idle)...")
    if watcher.inotify:
        child.signals.poll.register(watcher.inotify.fileno(), select.POLLIN)
    while not child.stopping:
        now_ns = time.monotonic_ns()
        child.beat(now_ns)
        child.signals.wait(min(child.heartbeat_s, watcher.timeout_s(now_ns)))
        watcher.step(time.monotonic_ns())
    watcher.close()
    return 0
