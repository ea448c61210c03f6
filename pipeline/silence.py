"""Absence is an event too: when a source has published nothing for its stall_s, its worker is told by a tick.

A tick is a slot of the source's lane, so that the one who owns the tracker opens the incident, in order with the
frames. What was told stands in the ring, when the newest frame came on the board: a successor of the watcher goes on.
"""

from __future__ import annotations

from pipeline.board import Board
from pipeline.intake import Intake

MAX_TICKS = 2
"""Ticks per silence, stall_s apart: the first opens the incident unless the newest frame was judged very late."""

_NS = 1_000_000_000


class Silence:
    """One source's. Times are monotonic nanoseconds."""

    def __init__(self, intake: Intake, board: Board) -> None:
        source = intake.source
        self._intake, self._memory = intake, board.memory
        self._stall_ns = int(source.stall_s * _NS)
        start_s = source.capture.start_s if source.capture else 0.0
        self._start_ns = max(int(start_s * _NS), self._stall_ns)  # to the very first frame: FFmpeg opens its input
        self._excused_ns = 0

    def begin(self, now_ns: int) -> None:
        """The source is watched from now on, unless an earlier watcher has said so."""
        if not self._intake.row.watched_since_ns:
            self._intake.row.watched_since_ns = now_ns

    def excuse(self, now_ns: int) -> None:
        """The host stalled: what did not come until now is nobody's fault."""
        self._excused_ns = now_ns

    def due_ns(self, now_ns: int) -> int:
        """When a tick is due, if no frame comes before; after the last one, when to ask again."""
        row, ticks = self._intake.row, self._intake.lane.ticks_since_frame
        if self._intake.pending.count or ticks >= MAX_TICKS:  # they come faster than they are judged; or all is said
            return now_ns + self._stall_ns
        begun_ns = max(int(row.watched_since_ns), int(self._memory.ready_ns))  # nothing is captured before READY
        newest_ns = int(row.last_put_ns)
        first_ns = self._stall_ns if newest_ns > begun_ns else self._start_ns
        return max(newest_ns, begun_ns, self._excused_ns) + first_ns + ticks * self._stall_ns

    def look_ns(self, now_ns: int) -> int:
        """When to ask again whether a tick is due: the first frame may come meanwhile, and from then on stall_s counts,
        which may be over long before start_s."""
        return min(self.due_ns(now_ns), now_ns + self._stall_ns)

    def tell(self, now_ns: int) -> None:
        """Put the tick; a full lane refuses it, and says the contrary."""
        self._intake.put_tick(now_ns)
