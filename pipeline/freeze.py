"""Judges whether a source stands still, and in which way: the whole picture, all but a clock, or a screen by right.

What moves is told by `motion`, picture by picture; here is remembered, per tile, how it moved until it stopped (the
tile map). From that follows what a stop means:

- Tiles in steady motion that stop *together*, at the speed they had and without a cut: something has stopped. It is a
  freeze from the fourth like picture on, `whole` or, where a few tiles move on (clock, ticker, spinner), `partial`.
- Otherwise a picture may stand because nothing happens. Where such pauses ended a short while ago (a clock that ticks,
  a stream of one picture per second), it has to stand for patience_s.
- A screen that was reached by a cut, and on which nothing ticked, stands by right: `still`.

A slow pan or fade is told from noise by its growth: it is further from an older picture than from a newer one, while
noise is as far from each.

Integers only: differences in 1/UNIT levels, running values in 1/_FINE of that, times in ms. Owns no clock: frame times
come in. What must be remembered is a FreezeMemory, for the commit record.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline import motion
from pipeline.history import PREDECESSORS, History
from pipeline.model import FreezeKind, FreezeThresholds, Verdict
from pipeline.motion import Span, Step
from pipeline.overlay import rest_has_stopped
from pipeline.standing import MAX_MS, NOT_COMPARED, FreezeMemory, Standing
from pipeline.tilemap import KEPT_SLOTS, SETTLE_SLOTS, TileMap
from pipeline.tiles import UNIT, Flags, Grid, Ints, Picture

_FINE = 1024

# The tile map. All numbers from here on were chosen on the tuning half of the labelled footage (tests/footage).
_LEAST_FRAME_MS, _COPIED_FRAME_MS = 10, 200
"""Nothing captures a hundred frames a second: where they come as fast, a recording is copied in, and each of its frames
counts as one of the usual five a second."""

SLOT_MS = 120  # a tile has moved in a slot of time or it has not; up to 8 frames/s, every frame is a slot
_STEADY_PCT = 45  # of the slots of its rate: a source may show each picture twice

# Stops
_TOGETHER_MS = 250  # or five quarters of a frame: a tile may have paused just then
_LEAST_STOPPED = 4  # tiles
_STILL_STOPPED_PCT = 60  # of them; where more move again, so does the source
_LONGEST_GAP_MS = 700  # between two pictures of a source in motion; what is longer is a pause
_GAP_PCT = 190  # of the longest step between two motions lately: it must stand for longer than is usual
_FILM_PCT = 25  # of all tiles is a large part: what moves so much
_FILM_FRAMES = 3  # for so long is no screen; with static_ok, only what was as large can freeze

# Partial freezes
_PARTIAL_STOPPED = 8  # tiles
_PARTIAL_OF_STEADY_PCT = 20  # tiles that stopped together, of those that were in motion
_PARTIAL_OF_MOVING_PCT = 90  # of those that move on
_PARTIAL_MOVING_PCT = 33  # of all: a ticker over the whole width moves 22
_PARTIAL_RESIDUE = 55, 1000  # what may be left of the usual speed where it stands,
_PARTIAL_NOISE = 13, 10  # besides the noise of the quietest tiles

_PARTIAL_SPEED = UNIT * 3 // 4  # that they had on average: what was fainter may just be fainter still

# Slow motion
_WRONG_TIMES = 5, 2  # the limit on growth is raised by so much of what noise has lately grown the wrong way
_FAR_BASE = UNIT * _FINE * 8 // 100  # 0.08 levels,
_FAR_TIMES = 2  # and twice the usual distance: further from where it began, a standing picture is in slow motion

_EXACT = 3  # pictures in a row that are the same to the last bit: there is no noise

# Cuts
_CUT_TIMES = 5, 2  # a cut exceeds what is usual so many times,
_CUT_BASE = 8 * UNIT  # and by so much: in difference, which half of the tiles must share, or in redistribution
_CUT_UNKNOWN = 30 * UNIT  # the difference, where no usual one is known
_ANEW_BASE = UNIT // 2  # instead of _CUT_BASE, in redistribution, from one recording to the next

# Patience
_FIRST_MS = 1000  # the first picture must stand for so long: clocks tick every second
_SCREEN_MS = 1500  # and so must any that was not reached by a cut, where no film is known to run
_FORGET_MS = 10_000  # a pause is remembered for so long
_QUIETER_PCT = 75  # of the least difference seen in it: what is quieter still is no such pause


_NO_FAULT = Verdict(False, {})


class _Stop(NamedTuple):
    """Tiles that were in steady motion and stand now."""

    mask: Flags
    together: int  # those that stopped with each other
    ticking: int  # tiles that used to tick and stand


def is_large(tiles: int, of: int) -> bool:
    """Whether so many tiles are a large part of all of them, as a film is on a screen."""
    return 100 * tiles >= _FILM_PCT * of


class Freeze:
    """One source's judge of standing pictures. Feed it every picture in order, before the history gets it."""

    def __init__(
        self, limits: FreezeThresholds, memory: FreezeMemory | None = None, *, static_ok: bool = False
    ) -> None:
        self._limits, self._static_ok = limits, static_ok
        self._state = memory or FreezeMemory()
        self._grid = Grid(*self._state.size)
        self._map = TileMap(self._grid.shape, self._state.tiles)
        self._means = self._no_means()

    @property
    def memory(self) -> FreezeMemory:
        """What the commit record keeps; live: encode it at once."""
        self._state.tiles = self._map.packed
        return self._state

    def judge(self, picture: Picture, history: History, time_ns: int) -> Standing:
        """Whether the picture stands. `time_ns` is its frame time.

        Unknown with fewer than three predecessors of its size, and while it is the first one and has not stood for a
        second. Readings: freeze_max_diff (levels, any pixel against any of the three), freeze_changed_pct (of the
        tiles), freeze_noise (levels); of a picture that has moved as a whole these are against the newest alone, of any
        other there are freeze_drift (levels: growth of the distance with age), freeze_still_s and freeze_stopped_tiles.
        """
        predecessors = history.pictures() if history.matches(picture) else []
        if self._state.size != picture.shape:
            self._begin(picture, time_ns)
        elif not predecessors:
            self._begin_anew(picture, history.before, time_ns)
        if not predecessors:
            return NOT_COMPARED
        elapsed_ms = self._pass_time(time_ns)
        if len(self._means) != len(predecessors):
            self._means = np.stack([self._grid.means(other) for other in predecessors])
        now = self._look(picture, predecessors[0])
        self._follow(now)
        standing = self._stand(picture, predecessors[1:], now, elapsed_ms)
        self._remember_means(now.means)
        return standing

    def _remember_means(self, means: Ints) -> None:
        """Of the predecessors' tiles, newest first."""
        if len(self._means) < PREDECESSORS:
            self._means = np.concatenate([means[None], self._means])
        else:
            self._means[1:] = self._means[:-1]
            self._means[0] = means

    def _no_means(self) -> Ints:
        return np.empty((0, *self._grid.shape), np.int32)

    def _look(self, picture: Picture, newest: Picture) -> Step:
        """On a screen whose pictures come without any noise the hand of a clock may move by a single level."""
        state, known = self._state, len(self._means) == PREDECESSORS
        enough = _PARTIAL_MOVING_PCT * self._grid.size // 100 if known else self._grid.size
        exact = state.same >= _EXACT and not state.lively
        now = motion.step(picture, newest, self._means, self._grid, self._limits, enough=enough, exact=exact)
        state.same = 0 if now.total else min(state.same + 1, _EXACT)
        return now

    def _stand(self, picture: Picture, older: list[Picture], now: Step, elapsed_ms: int) -> Standing:
        """What follows from what was seen. Where much of it has moved nothing can stand, and no more is looked at."""
        known, size = len(older) + 1 == PREDECESSORS, self._grid.size
        if known and 100 * max(now.moving, self._moved_lately()) > _PARTIAL_MOVING_PCT * size:
            return self._all_moves(now, motion.totals(picture, now, older))
        seen = motion.span(picture, now, older, self._grid)
        standing = self._decide(now, seen, elapsed_ms) if known else NOT_COMPARED
        return standing._replace(diffs=self._diffs(seen.totals, picture))

    def _moved_lately(self) -> int:
        """Tiles that have moved since the oldest predecessor."""
        return int(np.count_nonzero(self._map.changed_ms > self._state.shown_ms[0]))

    # -- memory -------------------------------------------------------------------------------------------------

    def _begin(self, picture: Picture, time_ns: int) -> None:
        """Nothing is known: the first picture, or the first of another size."""
        height, width = picture.shape
        self._state = FreezeMemory(size=(height, width), time_ns=time_ns)
        self._grid = Grid(height, width)
        self._map = TileMap(self._grid.shape)
        self._means = self._no_means()

    def _begin_anew(self, picture: Picture, before: Picture | None, time_ns: int) -> None:
        """The first picture of a new recording, which is compared with none. If it shows the scene of the picture
        `before` it, the source goes on: it must be seen to stop. Else nothing is known but how much its pictures differ
        as a rule, unless it was a cut; where it was none, less is enough for another scene."""
        if before is None:
            return self._begin(picture, time_ns)
        state, means = self._state, self._grid.means(before)
        self._means = means[None]
        now, paused_ms = self._look(picture, before), state.paused_ms
        usual = state.usual, state.usual_spread
        self._pass_time(time_ns)
        if self._follow(now):
            return self._begin(picture, time_ns)
        if motion.redistributed(now.means, means) > _ANEW_BASE + usual[1] * _CUT_TIMES[0] // _CUT_TIMES[1]:
            self._begin(picture, time_ns)
            self._state.usual, self._state.usual_spread = usual  # or what moves next would pass for a cut
            return
        self._means = now.means[None]
        state.paused_ms = min(state.paused_ms, paused_ms)  # between recordings no clock could be seen to tick
        state.was_alike = state.anchored = False  # of the next three pictures nobody will ask

    def _pass_time(self, time_ns: int) -> int:
        """Let everything grow older; by how many ms. Time that would run backwards stands still."""
        state = self._state
        elapsed_ms = min(max(0, time_ns - state.time_ns) // 1_000_000, MAX_MS)
        if elapsed_ms < _LEAST_FRAME_MS:
            elapsed_ms = _COPIED_FRAME_MS
        state.time_ns = max(state.time_ns, time_ns)
        state.shown_ms = (*state.shown_ms, state.now_ms)[-PREDECESSORS:]
        state.now_ms += elapsed_ms
        state.slot_ms += elapsed_ms
        state.still_ms = min(state.still_ms + elapsed_ms, MAX_MS)
        state.paused_ms = min(state.paused_ms + elapsed_ms, MAX_MS)
        if state.stop_ms >= 0:
            state.stop_ms = min(state.stop_ms + elapsed_ms, MAX_MS)
        return elapsed_ms

    def _follow(self, now: Step) -> bool:
        """Remember what moved. Whether it was a cut: then it is forgotten."""
        state = self._state
        quiet = now.quiet * _FINE
        state.quiet = quiet if state.quiet < 0 else min(quiet, state.quiet + (quiet - state.quiet) // 10)
        spread = motion.redistributed(now.means, self._means[0]) if now.mean > _CUT_BASE else 0
        if self._is_cut(now, spread):
            self._new_scene(now)
            return True
        if state.slot_ms >= SLOT_MS or not state.slots:
            state.slots, state.slot_ms = min(state.slots + 1, MAX_MS), 0
            self._map.next_slot()
        if now.moving:
            self._end_stand(now, spread)
            self._note_motion(now)
        state.stand_level = min(state.stand_level, now.mean) if state.still_ms else now.mean
        return False

    def _note_motion(self, now: Step) -> None:
        state = self._state
        self._map.note(now.moved, now.tiles, state.now_ms)
        if state.lively < _FILM_FRAMES:
            state.lively += 100 * now.moving >= _FILM_PCT * self._grid.size
            state.by_cut = state.by_cut and state.lively < _FILM_FRAMES

    def _end_stand(self, now: Step, spread: int) -> None:
        """Something moved. If the picture stood before, and it was no freeze, that was a pause."""
        state, mean = self._state, now.mean * _FINE
        if not state.was_frozen:
            step_ms = state.still_ms if state.still_ms <= _LONGEST_GAP_MS else 0
            state.gap_ms = max(step_ms, state.gap_ms - state.gap_ms // 16)
            state.anchored = False
            if state.was_alike:
                state.slots, state.slot_ms = 1, 0  # rates are told from what moves on
                recent = state.paused_ms < _FORGET_MS
                state.pause_level = min(state.pause_level, state.stand_level) if recent else state.stand_level
                state.paused_ms = 0
        state.usual = state.usual + (mean - state.usual) // 4 if state.usual else mean
        state.usual_spread = max(spread, state.usual_spread - state.usual_spread // 8)
        state.still_ms = 0

    def _is_cut(self, now: Step, spread: int) -> bool:
        """Motion differs much, too, but it moves the levels about: a cut brings others."""
        state = self._state
        if not state.usual:
            return now.mean > _CUT_UNKNOWN
        if spread > _CUT_BASE + state.usual_spread * _CUT_TIMES[0] // _CUT_TIMES[1]:
            return True
        if now.mean <= _CUT_BASE + state.usual // _FINE * _CUT_TIMES[0] // _CUT_TIMES[1]:
            return False
        return 2 * int(np.count_nonzero(now.tiles > _CUT_BASE)) > self._grid.size

    def _new_scene(self, now: Step) -> None:
        """Forget how things moved: they did in another scene. The cut's difference counts as usual for a while: where
        every picture is another one, that is motion."""
        state = self._state
        self._map.clear(state.now_ms)
        state.slots = state.slot_ms = state.still_ms = state.gap_ms = 0
        state.usual = now.mean * _FINE
        state.by_cut, state.lively, state.anchored, state.was_frozen = True, 0, False, False
        state.paused_ms, state.stop_ms, state.stopped = MAX_MS, -1, 0

    # -- decision -----------------------------------------------------------------------------------------------

    def _diffs(self, totals: list[int], picture: Picture) -> list[float]:
        return [round(total / picture.size, 2) for total in totals]

    def _all_moves(self, now: Step, totals: list[int]) -> Standing:
        """Nothing stands."""
        state = self._state
        if not state.slots % SETTLE_SLOTS:
            self._map.settle(~now.moved, state.slots)
        state.was_frozen = state.was_alike = state.rest_stopped = False
        state.stop_ms, state.stopped, state.alike_ms = -1, 0, 0
        verdict = Verdict(False, self._readings(now, now.largest, now.moving))
        diffs = self._diffs(totals, now.difference)
        return Standing(verdict, _NO_FAULT, diffs, None, self._map.text(state.now_ms))

    def _readings(self, now: Step, largest: int, changed: int) -> dict[str, float]:
        return {
            "freeze_max_diff": float(largest),
            "freeze_changed_pct": round(100 * changed / self._grid.size, 2),
            "freeze_noise": round(now.quiet / UNIT, 2),
        }

    def _decide(self, now: Step, seen: Span, elapsed_ms: int) -> Standing:
        state = self._state
        stop = self._find_stop(now, seen, elapsed_ms)
        unlike = seen.differing
        drift, creeps = self._drift(now, seen)
        self._time_likeness(unlike, elapsed_ms)
        kind: FreezeKind | None = None
        state.was_frozen = False
        slow = creeps or (not unlike and self._has_left(now))
        if slow and not unlike:
            state.still_ms = state.alike_ms = 0
        elif not unlike:
            kind = self._kind_of_stand(now, stop)
        elif not slow and self._is_partial(now, stop, unlike):
            kind, state.was_frozen = "partial", True
        state.rest_stopped = not slow and self._rest_has_stopped()
        if state.rest_stopped and kind != "whole":
            kind, state.was_frozen = "partial", True
        readings = self._readings(now, seen.largest, unlike)
        readings["freeze_drift"] = round(drift / (UNIT * _FINE), 3)
        readings["freeze_still_s"] = round(state.still_ms / 1000, 1)
        readings["freeze_stopped_tiles"] = float(stop.together)
        stands: bool | None = kind is not None
        fault: bool | None = kind in ("whole", "partial") and self._is_fault(stop)
        if kind and self._is_new():
            kind, stands = None, None  # an incident that comes of it began here all the same
        return Standing(Verdict(stands, readings), Verdict(fault, readings), [], kind, self._map.text(state.now_ms))

    def _time_likeness(self, unlike: int, elapsed_ms: int) -> None:
        """For how long all pictures have been like those before them: at first, since the oldest of these."""
        state = self._state
        if unlike:
            state.alike_ms = 0
        elif state.was_alike:
            state.alike_ms = min(state.alike_ms + elapsed_ms, MAX_MS)
        else:
            state.alike_ms = state.now_ms - state.shown_ms[0]
        state.was_alike = not unlike

    def _rest_has_stopped(self) -> bool:
        ages_ms = self._state.now_ms - self._map.changed_ms
        return rest_has_stopped(self._map.recent_moves, ages_ms, KEPT_SLOTS, self._state.rest_stopped)

    def _find_stop(self, now: Step, seen: Span, elapsed_ms: int) -> _Stop:
        """Tiles that were in steady motion and stand; the stop that most of them share."""
        state, alike = self._state, ~seen.unlike
        self._map.settle(~now.moved, state.slots)
        ticking = int(np.count_nonzero(self._map.ticking & alike))
        mask = (self._map.rate >= _STEADY_PCT) & self._map.abrupt & alike
        ages = state.now_ms - self._map.changed_ms[mask]
        if not ages.size:
            state.stop_ms, state.stopped = -1, 0
            return _Stop(mask, 0, ticking)
        youngest, tolerance_ms = int(ages.min()), max(_TOGETHER_MS, elapsed_ms * 5 // 4)
        together = int(np.count_nonzero(ages <= youngest + tolerance_ms))
        before = (ages >= state.stop_ms) & (ages <= state.stop_ms + tolerance_ms)
        known = int(np.count_nonzero(before)) if state.stop_ms >= 0 else 0
        if known < together or not known:
            state.stop_ms, state.stopped = youngest, 0
        together = max(together, known)
        state.stopped = max(state.stopped, together)
        return _Stop(mask, together, ticking)

    def _drift(self, now: Step, seen: Span) -> tuple[int, bool]:
        """By how much what stands is further from the oldest predecessor than from the newest, and whether that is
        motion."""
        state, growth, count = self._state, now.shifts[-1] - now.shifts[0], self._grid.size
        if 0 < seen.differing < count:
            growth, count = growth[~seen.unlike], count - seen.differing
        drift = int(growth.sum()) * _FINE // count
        if not seen.differing:
            state.wrong = max(state.wrong - state.wrong // 32, -drift)
        limit = round(self._limits.drift_levels * UNIT) * _FINE + state.wrong * _WRONG_TIMES[0] // _WRONG_TIMES[1]
        return drift, drift > limit

    def _has_left(self, now: Step) -> bool:
        """Whether a picture that seems to stand has come away from where it stood first: slow motion. What stopped
        before did not, then, and it has to stand for patience_s."""
        state, size = self._state, self._grid.size
        near = int(now.shifts[0].sum()) * _FINE // size
        state.near = state.near + (near - state.near) // 10 if state.near else near
        if not state.anchored:
            self._map.anchor[:], state.anchored = self._means[-1], True
        far = int(motion.distance(now.means, self._map.anchor).sum()) * _FINE // size
        if far <= _FAR_BASE + _FAR_TIMES * state.near:
            return False
        self._map.anchor[:] = now.means
        self._map.rate[:] = 0
        state.paused_ms = state.pause_level = 0
        return True

    def _kind_of_stand(self, now: Step, stop: _Stop) -> FreezeKind | None:
        """In which way a picture stands that is like the three before it; None while it must be waited for."""
        state = self._state
        patience_ms = round(self._limits.patience_s * 1000)
        usual_gap = 100 * state.still_ms < _GAP_PCT * state.gap_ms
        if self._stopped_together(stop) and not usual_gap:
            state.was_frozen = True
            return "whole"
        if state.alike_ms < patience_ms and self._is_pause(now):
            return None
        if state.alike_ms < _SCREEN_MS and state.usual and state.lively < _FILM_FRAMES and not state.by_cut:
            return None
        return "still" if state.by_cut and not stop.ticking else "whole"

    def _is_pause(self, now: Step) -> bool:
        """Whether such pauses were seen lately: a clock that ticks."""
        quieter = 100 * now.mean < _QUIETER_PCT * self._state.pause_level
        return self._state.paused_ms < _FORGET_MS and not quieter

    def _stopped_together(self, stop: _Stop) -> bool:
        enough = max(_LEAST_STOPPED * 100, _STILL_STOPPED_PCT * self._state.stopped)
        return 100 * stop.together >= enough

    def _is_partial(self, now: Step, stop: _Stop, moving: int) -> bool:
        """Whether all stands that was in motion, but for a few tiles that move on."""
        if not self._stopped_together(stop) or stop.together < _PARTIAL_STOPPED:
            return False
        few = 100 * moving <= _PARTIAL_MOVING_PCT * self._grid.size
        if not few or 100 * stop.together < _PARTIAL_OF_MOVING_PCT * moving:
            return False
        self._map.settle(now.moved, self._state.slots)
        steady = int(np.count_nonzero(self._map.rate >= _STEADY_PCT))
        if 100 * stop.together < _PARTIAL_OF_STEADY_PCT * steady:
            return False
        left, speed = int(now.tiles[stop.mask].sum()), self._map.usual_speed(stop.mask)
        count = int(np.count_nonzero(stop.mask))
        noise = self._state.quiet * count // _FINE
        allowed = speed * _PARTIAL_RESIDUE[0] // _PARTIAL_RESIDUE[1] + noise * _PARTIAL_NOISE[0] // _PARTIAL_NOISE[1]
        return left <= allowed and speed >= _PARTIAL_SPEED * count

    def _is_new(self) -> bool:
        """Whether the picture has not stood for long, and nothing was seen before: a clock may be about to tick."""
        state = self._state
        return not state.usual and state.alike_ms < _FIRST_MS and not self._map.moves.any()

    def _is_fault(self, stop: _Stop) -> bool:
        """Whether a stand that is not `still` is one: always, unless still screens are normal for this source."""
        return not self._static_ok or is_large(stop.together, self._grid.size)
