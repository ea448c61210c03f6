"""Tells a channel change from an outage: a short black that ends in another scene.

A *zap* is no incident, but a statistic of its source. It is known a second after the black has ended, when a fade is
over and the new programme is to be seen. Integers only.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np

from pipeline.model import Verdict, Zap
from pipeline.tiles import UNIT, Ints, Picture, grid_of

MOST_S = 10.0
"""Seconds: a longer black is an outage (virtualpytest's limit, and the default raise_s of black)."""

_SETTLED_NS = 1_000_000_000
_OTHER_SCENE = (
    42 * UNIT
)  # mean difference of tiles: 49-111 between channels, mostly under 38 within a film (tuning half)
_BANNER_PCT = 8.0  # of what is not the core: logo and clock light up less


class ZapMemory(msgspec.Struct, array_like=True):
    """What must be remembered of a source. Times of people are those of the frames' files."""

    before: bytes = b""  # some tiles of a picture that was not black, at most a second old
    seen_ns: int = -_SETTLED_NS  # its frame time
    since_ns: int = -1  # frame time of the black's first picture; -1: none, or it is over and done with
    until_ns: int = -1  # and of the first after it
    start_ns: int = 0  # the same for people
    end_ns: int = 0
    banner: bool = False


class Zaps(NamedTuple):
    """One source's judge of channel changes; it may be made anew for every picture, for all is in its memory."""

    memory: ZapMemory

    def judge(self, picture: Picture, black: Verdict, time_ns: int, wall_ns: int) -> Zap | None:
        """The zap that is known now, with this picture; it lies a second back."""
        state = self.memory
        if black.value:
            self._see_black(black, time_ns, wall_ns)
            return None
        if state.since_ns < 0:
            if not 0 <= time_ns - state.seen_ns < _SETTLED_NS:
                state.before, state.seen_ns = _packed(_scene(picture)), time_ns
            return None
        if state.until_ns < 0:
            state.until_ns, state.end_ns = time_ns, wall_ns
        if time_ns - state.until_ns < _SETTLED_NS:
            return None
        means = _scene(picture)
        duration_s = (state.until_ns - state.since_ns) / 1e9
        other = _is_another(means, state.before)
        found = Zap(state.start_ns, state.end_ns, round(duration_s, 3), state.banner)
        self.memory.since_ns = self.memory.until_ns = -1
        state.before, state.seen_ns = _packed(means), time_ns
        return found if other and duration_s < MOST_S else None

    def _see_black(self, black: Verdict, time_ns: int, wall_ns: int) -> None:
        state = self.memory
        if state.since_ns < 0:
            state.since_ns, state.start_ns, state.banner = time_ns, wall_ns, False
        state.until_ns = -1  # black again: it was not over
        state.banner = state.banner or black.readings.get("black_lit_pct", 0.0) >= _BANNER_PCT


def _scene(picture: Picture) -> Ints:
    """What a scene is known by: a quarter of its tiles is enough."""
    return grid_of(*picture.shape).means(picture)[::2, ::2]


def _packed(means: Ints) -> bytes:
    return (means // UNIT).astype(np.uint8).tobytes()


def _is_another(means: Ints, before: bytes) -> bool:
    """Whether this is another scene than that before the black; where none was seen, it is not known to be."""
    if len(before) != means.size:
        return False
    known = np.frombuffer(before, np.uint8).astype(np.int32) * UNIT
    return int(np.abs(means.ravel() - known).sum()) > _OTHER_SCENE * means.size
