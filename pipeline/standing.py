"""What is found of a picture that may stand, and what must be remembered to find it in the next."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from pipeline.model import FreezeKind, Verdict

MAX_MS = 10**9
"""Where times stop to grow: 11 days."""


class FreezeMemory(msgspec.Struct, array_like=True):
    """What a successor needs to go on as its predecessor would have. Times lie before the newest picture."""

    size: tuple[int, int] = (1, 1)  # of the pictures
    tiles: bytes = b""  # the tile map
    time_ns: int = 0
    now_ms: int = 0  # since the first picture of this size, as time is counted here
    shown_ms: tuple[int, ...] = ()  # when its predecessors came, newest last
    slot_ms: int = 0  # the newest slot's age
    slots: int = 0  # since the scene began or went on
    by_cut: bool = False  # the scene began with a cut, and no film came of it
    lively: int = 0  # pictures since then in which a large part moved, up to _FILM_FRAMES
    still_ms: int = 0  # since anything moved
    gap_ms: int = 0  # longest step between two motions lately
    paused_ms: int = MAX_MS  # since a pause ended
    pause_level: int = 0  # least mean difference seen in it
    stand_level: int = 0  # and in the present one
    usual: int = 0  # running mean difference of pictures that move
    usual_spread: int = 0  # how far their levels were lately redistributed
    quiet: int = -1  # of the quietest tiles; -1: not known
    wrong: int = 0  # how far noise has lately grown the wrong way
    near: int = 0  # usual distance to the newest while it stands
    anchored: bool = False  # a picture is remembered since which it stands
    stop_ms: int = -1  # since the tiles stopped together; -1: they have not
    stopped: int = 0  # how many that were, at most
    was_alike: bool = False  # the newest picture was like the three before it
    alike_ms: int = 0  # and for so long all have been
    was_frozen: bool = False  # and it was a freeze
    same: int = 0  # pictures in a row without any difference, up to where that is no chance
    rest_stopped: bool = False  # all but an overlay has stopped


class Standing(NamedTuple):
    """What was found of one picture."""

    verdict: Verdict  # whether the picture stands
    fault: Verdict  # whether that is one: what incidents ask
    diffs: list[float]  # mean difference in levels against each predecessor, newest first
    kind: FreezeKind | None  # in which way it stands, where it does
    tile_map: str | None


NOT_COMPARED = Standing(Verdict(None, {}), Verdict(None, {}), [], None, None)
