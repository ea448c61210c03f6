"""Listens to one source: finds its newest chunk of sound when a frame is judged, and says how loud that is.

FFmpeg's segment muxer cannot rename, so a chunk is complete when it is closed (IN_CLOSE_WRITE); others may rename
theirs. Events wait in the kernel until a frame is judged: nothing here wakes the worker. Where inotify is refused or
blind the next numbers are probed, and when nothing has come for a while, the directory is looked at again.

Only a whole chunk is believed, one whose header has its sizes: FFmpeg writes them when it closes the file. A chunk that
is missing, cut, short, damaged or not of this frame's time says nothing: that is unknown, never silence.
"""

from __future__ import annotations

import heapq
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress

from inotify_simple import INotify, flags

from pipeline import audio
from pipeline.audio import BadAudio
from pipeline.model import Sound, describe
from pipeline.mounts import file_system_type, is_blind

STALE_NS = 3_000_000_000
"""A chunk of a second is at most 1.1 s old when the next one is closed; after three, sound no longer comes."""

LOOK_EVERY_NS = 2_500_000_000  # while nothing comes, as the watcher looks at frames' directories
WINDOW = 8  # numbers that are probed: one is being written, and each killed FFmpeg has left one
TRIED = 4  # of a listing, the newest first
UNKNOWN = Sound()
_NAME = re.compile(r"(.*?)([0-9]{1,18})\.wav", re.DOTALL)
_CHUNKS = flags.CLOSE_WRITE | flags.MOVED_TO
_LEAVES = flags.DELETE_SELF | flags.MOVE_SELF
_ENDS = _LEAVES | flags.Q_OVERFLOW | flags.IGNORED | flags.UNMOUNT  # what the watch says is not enough any more
_NO_SIZE = (b"\0\0\0\0", b"\xff\xff\xff\xff")


class Listener:
    """The sound of one source. `hear` once per frame; where nothing is known, `trouble` says why."""

    def __init__(self, directory: str, loss_db: float, *, poll: bool = False) -> None:
        """`loss_db`: dBFS at or below which a channel is silent. `poll`: probe instead of inotify."""
        self._directory, self._loss_db, self._poll = directory, loss_db, poll
        self._inotify: INotify | None = None
        self._place: tuple[int, int] | None = None  # device and inode of the directory as it was looked at
        self._changed_ns = 0  # its own file time then
        self._name = ""  # of the chunk that the sound is taken from
        self._sound, self._closed_ns = UNKNOWN, 0
        self._look_due_ns = 0  # monotonic
        self._look()
        self.trouble = ""  # whoever captures may be starting as well: only the next look complains

    def close(self) -> None:
        """Let the watch go."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def hear(self, frame_ns: int) -> Sound:
        """What is known of the sound at a frame of this file time."""
        if self._inotify is not None:
            self._read_events(self._inotify)
        elif self._place is not None:
            self._probe()
        lost = self._place is None or not self._is_of(frame_ns)
        if lost and time.monotonic_ns() >= self._look_due_ns:
            self._look()
            if self._place is not None and not self._is_of(frame_ns):
                off_s = abs(frame_ns - self._closed_ns) / 1e9
                self.trouble = f"{self._name} is {off_s:.1f} s off" if self._name else "no chunk in it"
        return self._sound if self._is_of(frame_ns) else UNKNOWN

    def _is_of(self, frame_ns: int) -> bool:
        return abs(frame_ns - self._closed_ns) <= STALE_NS

    # -- which is the newest --------------------------------------------------------------------------------------

    def _read_events(self, inotify: INotify) -> None:
        """Take the newest of the chunks that were closed since the last frame."""
        newest = ""
        for found in inotify.read(timeout=0):
            if found.mask & _ENDS:
                self._place, self._look_due_ns = None, 0
            elif _NAME.fullmatch(found.name):
                newest = found.name
        if newest:
            self._take(newest)

    def _probe(self) -> None:
        """Take the newest whole one of the next numbers."""
        if known := _NAME.fullmatch(self._name):
            prefix, digits = known.groups()
            following = range(int(digits) + WINDOW, int(digits), -1)
            names = [f"{prefix}{number:0{len(digits)}d}.wav" for number in following]
            self._take_whole(name for name in names if os.path.exists(f"{self._directory}/{name}"))

    def _look(self) -> None:
        """Look at the directory: watch it if it is another one than before, list it if anything has changed."""
        self._look_due_ns = time.monotonic_ns() + LOOK_EVERY_NS
        try:
            status = os.stat(self._directory)
            place = status.st_dev, status.st_ino
            if place != self._place:
                self.close()
                self._watch()
            elif status.st_mtime_ns == self._changed_ns:
                return
            self._place, self._changed_ns = place, status.st_mtime_ns
            self._list()
        except OSError as error:
            self._place = None
            self.trouble = f"{self._directory}: {describe(error)}"

    def _watch(self) -> None:
        """Watch the directory; where inotify is refused or blind, numbers are probed."""
        if self._poll or is_blind(file_system_type(self._directory)):
            return
        with suppress(OSError):
            self._inotify = INotify()
            try:
                self._inotify.add_watch(self._directory, _CHUNKS | _LEAVES | flags.ONLYDIR)
            except OSError:
                self.close()

    def _list(self) -> None:
        """Take the newest whole chunk that is there, by number."""
        with os.scandir(self._directory) as entries:
            found = [(int(match[2]), match[0]) for entry in entries if (match := _NAME.fullmatch(entry.name))]
        self._take_whole(name for _, name in heapq.nlargest(TRIED, found))

    # -- what it says ---------------------------------------------------------------------------------------------

    def _take_whole(self, names: Iterable[str]) -> None:
        """Take the first of these that can be measured: others may be being written."""
        for name in names:
            with suppress(OSError, BadAudio):
                self._measure(name)
                return

    def _take(self, name: str) -> None:
        """Take a chunk that was closed, for what it is."""
        try:
            self._measure(name)
        except (OSError, BadAudio) as error:
            self._sound, self._closed_ns = UNKNOWN, time.time_ns()
            self.trouble = f"{name}: {describe(error) if isinstance(error, OSError) else error}"

    def _measure(self, name: str) -> None:
        path = f"{self._directory}/{name}"
        data = audio.read_chunk(path)
        if data[4:8] in _NO_SIZE:
            raise BadAudio("not closed: whoever writes it goes on, or was killed")
        loudness = audio.measure(data)
        verdict = audio.judge_audio(loudness, self._loss_db)
        self._sound = Sound(verdict, loudness.mean_db, audio.volume_percentage(loudness.mean_db))
        self._name, self._closed_ns, self.trouble = name, os.stat(path).st_mtime_ns, ""
