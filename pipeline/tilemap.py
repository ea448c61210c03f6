"""The tile map: per tile of a source's picture, when it changed last and how it moved until then.

A tile has moved in a *slot* of time (freeze.SLOT_MS) or it has not: a bit. From these bits follow its *rate* - in how
many of the slots before its last motion it moved - and whether it *ticks*. A tile that has stopped keeps what it was
when it did. While much of a picture moves nobody asks for that: it is worked out, and set down for good, only when
something may have stopped (`settle`). Integers only.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.tiles import Flags, Ints

# Chosen on the tuning half of the labelled footage (tests/footage).
RATE_SLOTS = 15  # a rate is told from so many: 3 s at 5 frames/s
_LEAST_SLOTS = 4
TICK_SLOTS = 10  # in each of the last three times ten slots it has moved: it ticks
KEPT_SLOTS = 3 * TICK_SLOTS  # before a tile's last motion these are looked at
SETTLE_SLOTS = 16  # of the 64 bits of a tile; the others reach KEPT_SLOTS further back
_ABRUPT_PCT = 35  # of its usual speed a tile has when it is stopped; what has less comes to rest
_SPEED_SHIFT = 2  # a tile's usual speed follows the newest by a quarter

_KEPT = (1 << KEPT_SLOTS) - 1
_GROUP = (1 << TICK_SLOTS) - 1
_ONE = np.uint64(1)
_SYMBOLS = np.frombuffer(b"0123456789abcdefghijklmnopqrstuvwxyz", np.uint8)

_PLANES = (  # widest first, so that all are aligned
    ("moves", np.uint64),
    ("changed_ms", np.int64),
    ("last", np.int32),
    ("speed", np.int32),
    ("anchor", np.int32),
    ("rate", np.uint8),
    ("ticking", np.bool_),
    ("abrupt", np.bool_),
    ("_unsettled", np.bool_),
)
_TILE_BYTES = sum(np.dtype(kind).itemsize for _, kind in _PLANES)


class TileMap:
    """One source's, all of it in one block of memory, so that the commit record has it by one copy. Times are frame
    times in ms, differences in 1/UNIT levels."""

    moves: npt.NDArray[np.uint64]  # a bit per slot, the newest lowest
    changed_ms: npt.NDArray[np.int64]
    last: Ints  # mean difference at the last motion
    speed: Ints  # and what was usual before it
    anchor: Ints  # mean of the tile in a picture since which all stands
    rate: npt.NDArray[np.uint8]  # pct of slots, settled; as are the next two
    ticking: Flags
    abrupt: Flags  # stopped at the speed it had
    _unsettled: Flags

    def __init__(self, shape: tuple[int, int], packed: bytes = b"") -> None:
        size = shape[0] * shape[1]
        self._memory = bytearray(packed or size * _TILE_BYTES)
        at = 0
        for name, kind in _PLANES:
            setattr(self, name, np.frombuffer(self._memory, kind, size, at).reshape(shape))
            at += size * np.dtype(kind).itemsize
        self._text = np.full((shape[0], shape[1] + 1), ord(" "), np.uint8)

    @property
    def packed(self) -> bytes:
        """What a successor is made of."""
        return bytes(self._memory)

    def clear(self, now_ms: int) -> None:
        """Forget how things moved: they did in another scene. All has changed now."""
        self._memory[:] = bytes(len(self._memory))
        self.changed_ms[:] = now_ms

    def next_slot(self) -> None:
        """A slot is over."""
        np.left_shift(self.moves, _ONE, out=self.moves)

    def note(self, moved: Flags, tiles: Ints, now_ms: int) -> None:
        """What moved, and how fast."""
        self.moves |= moved
        np.copyto(self.speed, self._usual(), where=moved)
        np.copyto(self.last, tiles, where=moved)
        np.copyto(self.changed_ms, now_ms, where=moved)
        self._unsettled |= moved

    def _usual(self) -> Ints:
        """The usual speed of every tile, its last motion included."""
        usual: Ints = np.where(self.speed == 0, self.last, self.speed + ((self.last - self.speed) >> _SPEED_SHIFT))
        return usual

    def settle(self, where: Flags, slots: int) -> None:
        """Set down what these tiles were at their last motion, if that is not done. `slots` are those since the scene
        began or went on. At the latest after SETTLE_SLOTS, or some are forgotten."""
        due = self._unsettled & where
        for at in np.flatnonzero(due).tolist():
            self._settle_tile(at, slots)
        self._unsettled ^= due

    def _settle_tile(self, at: int, slots: int) -> None:
        moves = self.moves.item(at)
        back = (moves & -moves).bit_length() - 1  # slots since the last motion
        moves = moves >> back & _KEPT
        known = min(max(slots - back, 1), RATE_SLOTS)
        recent = (moves & (1 << known) - 1).bit_count()
        self.rate.flat[at] = recent * 100 // known if known >= _LEAST_SLOTS else 0
        self.ticking.flat[at] = moves >> 2 * TICK_SLOTS > 0 and moves >> TICK_SLOTS & _GROUP > 0
        self.abrupt.flat[at] = self.last.item(at) * 100 >= self.speed.item(at) * _ABRUPT_PCT

    def usual_speed(self, mask: Flags) -> int:
        """Sum over these tiles."""
        return int(self._usual()[mask].sum())

    def recent_moves(self) -> Ints:
        """The newest KEPT_SLOTS slots of every tile."""
        return (self.moves & np.uint64(_KEPT)).astype(np.int32)

    def text(self, now_ms: int) -> str:
        """For a sidecar: one character per tile, row by row with blanks between. 0-9 and a-y are the whole seconds
        since the tile changed, up to 34; z is 35 or more."""
        self._text[:, :-1] = _SYMBOLS.take((now_ms - self.changed_ms) // 1000, mode="clip")
        return self._text.tobytes()[:-1].decode("ascii")
