"""Watched: one source's directory as the watcher sees it; its state is on the board, so a successor goes on from it."""

from __future__ import annotations

from pipeline.board import Board
from pipeline.intake import Intake
from pipeline.model import SourceState
from pipeline.ring import Lane
from pipeline.settings import Source
from pipeline.silence import Silence


class Watched:
    """How the watcher sees one source's directory. The frames themselves are the intake's."""

    def __init__(self, source: Source, lane: Lane, board: Board) -> None:
        self.source = source
        self.lane = lane
        self.row = board.memory.sources[lane.index]
        self.intake = Intake(source, lane, board)
        self.wd: int | None = None
        self.inode: tuple[int, int] | None = None  # the directory armed last
        self.mtime_ns = 0  # of the directory, when last looked at
        self.events = 0  # renames seen when last looked at
        self.quiet_ns = 0  # polling: how long without a find until it is listed; set when armed
        self.hit_ns = 0  # polling: the last find
        self.silence = Silence(self.intake, board)

    @property
    def state(self) -> SourceState:
        return SourceState(self.row.state)

    @property
    def armed(self) -> bool:
        return self.row.state in (SourceState.WATCHING, SourceState.POLLING)

    def is_rearmed_by(self, inode: tuple[int, int]) -> bool:
        """Whether arming this directory now mends something. That a successor does what each watcher does first is
        none, if it finds the directory that was armed before."""
        if self.inode is None and self.armed:
            return (self.row.armed_dev, self.row.armed_ino) != inode
        return self.state is not SourceState.NEW
