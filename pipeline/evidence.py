"""Evidence: what a worker does when an incident begins, opens, recovers or closes. Writes to hold, wakes the keeper.

began       link the last good frame and the onset at once: retention may take them before the incident is confirmed
opened      hand over frame_0 (last good), frame_1 (onset), frame_2 (confirming), their thumbnails, the incident
recovering  link the first good frame
closed      hand over frame_3 (recovery), its thumbnail, the incident
dropped     forget the links: it was a blip
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import msgspec

from pipeline import detectors
from pipeline.board import SourceRow
from pipeline.child import event, log
from pipeline.frames import SUFFIX
from pipeline.hold import TRANSITION_FILE, Hold
from pipeline.incidents import Incident, Sighting, Tracker, Transition
from pipeline.judge import STALLED
from pipeline.mounts import describe_refusal
from pipeline.settings import Source
from pipeline.store import evidence_key

LAST_GOOD, ONSET, CONFIRMING, RECOVERY = (f"frame_{n}.jpg" for n in range(4))
OPENED_FRAMES = (LAST_GOOD, ONSET, CONFIRMING)
MAX_WAITING = 100
"""Transitions that wait in memory for a full tmpfs: an hour of one incident every 36 s."""
MAX_UNTOLD = 6
"""Of these survive their worker: 0.8 KB each, in a commit record of 24 KiB."""


class Evidence:
    """The evidence of one source, as the worker that serves it holds it."""

    def __init__(
        self,
        hold: Hold,
        source: Source,
        row: SourceRow,
        ring_keeper: Callable[[], None],
        last_words: Callable[[], list[str]] = list,
    ) -> None:
        """`last_words` gives what the source's FFmpeg said last."""
        self._hold = hold
        self._source = source
        self._row = row
        self._ring_keeper = ring_keeper
        self._last_words = last_words
        self._waiting: list[tuple[Transition, dict[str, bytes]]] = []

    def act(self, transitions: Iterable[Transition], stem: str = "", data: bytes = b"") -> None:
        """Do what each transition asks for. `data` is the frame in hand, called `stem`: it needs no link to be kept."""
        in_hand = {stem: data} if data else {}
        for transition in transitions:
            incident, kind = transition.incident, transition.kind
            if kind == "began":
                self._link(incident, LAST_GOOD, incident.last_good)
                self._link(incident, ONSET, incident.onset)
            elif kind == "recovering":
                self._link(incident, RECOVERY, incident.recovery)
            elif kind == "dropped":
                self._hold.drop_run(self._source.name, incident.id)
            elif kind == "opened":
                notes = self._last_words() if incident.condition == STALLED else []
                noted = msgspec.structs.replace(transition, notes=notes)
                self._link(incident, CONFIRMING, incident.confirmed)
                self._waiting.append((noted, _missing(CONFIRMING, incident.confirmed, in_hand)))
            else:
                self._waiting.append((transition, _missing(RECOVERY, incident.recovery, in_hand)))
        if self._waiting:
            self._hand_over()

    @property
    def waits(self) -> bool:
        """Whether a transition could not be handed over yet: call `act` again, with nothing new."""
        return bool(self._waiting)

    def untold(self) -> list[Transition]:
        """The newest of those that wait, for the commit record: there is room for a few, and not for notes."""
        return [msgspec.structs.replace(transition, notes=[]) for transition, _ in self._waiting[-MAX_UNTOLD:]]

    def forget_orphans(self, wanted: Iterable[str]) -> None:
        """Remove what an earlier worker held for runs that nobody follows any more."""
        self._hold.drop_orphans(self._source.name, wanted)

    def _link(self, incident: Incident, name: str, frame: Sighting | None) -> None:
        """Hold one frame of a run; one that retention has taken already is only missed, not an error."""
        if frame is None or not frame.name:  # a tick has no file
            return
        try:
            path = f"{self._source.dir}/{frame.name}{SUFFIX}"
            self._hold.keep_frame(self._source.name, incident.id, name, path)
        except OSError:
            self._row.evidence_missed += 1

    def _hand_over(self) -> None:
        """Publish what waits. A full tmpfs keeps it waiting in memory: the incident goes on without its evidence."""
        self._row.hold_dropped += max(0, len(self._waiting) - MAX_WAITING)
        del self._waiting[:-MAX_WAITING]
        while self._waiting:
            transition, in_hand = self._waiting[0]
            try:
                self._row.hold_dropped += self._publish(transition, in_hand)
            except OSError as error:
                if not self._row.hold_failures:
                    cause = describe_refusal(error, self._hold.path)
                    log.log(logging.ERROR, event("evidence not held", source=self._source.name, cause=cause))
                self._row.hold_failures += 1
                return
            del self._waiting[0]
            self._ring_keeper()

    def _publish(self, transition: Transition, in_hand: dict[str, bytes]) -> int:
        incident, kind = transition.incident, transition.kind
        wanted = OPENED_FRAMES if kind == "opened" else (RECOVERY,)
        held = self._hold.run_frames(self._source.name, incident.id)
        frames = {name: path for name, path in held.items() if name in wanted}
        made = {name: content for name, content in in_hand.items() if name not in frames}
        for name in (*frames, *made):
            with suppress(OSError, detectors.BadPicture):
                content = made[name] if name in made else _read(frames[name])
                made[name.replace("frame", "thumb")] = detectors.thumbnail(content)
        made[TRANSITION_FILE] = msgspec.json.encode(transition)
        dropped = self._hold.publish(self._source.name, incident.id, kind, frames, made)
        if kind == "closed":
            self._hold.drop_run(self._source.name, incident.id)
        return dropped


def incident_fields(tracker: Tracker, transitions: Iterable[Transition]) -> dict[str, Any]:
    """What the sidecar of the frame that caused these transitions says of incidents."""
    opened = [transition.incident for transition in transitions if transition.kind == "opened"]
    return {
        "conditions": tracker.phases(),
        "incident_ids": tracker.open_ids(),
        "r2_images": keys_of(opened[0]) if opened else None,
    }


def keys_of(incident: Incident) -> dict[str, list[str]]:
    """Where the evidence of an incident will be in the store: known before anything is uploaded. A silence has no
    frames of its own, and there may have been no good one before it all."""
    sightings = (incident.last_good, incident.onset, incident.confirmed)
    names = [name for name, frame in zip(OPENED_FRAMES, sightings, strict=True) if frame and frame.name]

    def key(name: str) -> str:
        return evidence_key(incident.condition, incident.host, incident.source, incident.id, name)

    return {
        "original_r2_paths": [key(name) for name in names],
        "thumbnail_r2_paths": [key(name.replace("frame", "thumb")) for name in names],
    }


def _missing(name: str, frame: Sighting | None, in_hand: dict[str, bytes]) -> dict[str, bytes]:
    """The frame in hand, under its evidence name, if it is the one."""
    return {name: in_hand[frame.name]} if frame is not None and frame.name in in_hand else {}


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
