"""Absence as an event: ticks from the watcher, capture_stalled from the worker that takes them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.incidents import Sighting, Transition
from pipeline.judge import Judge
from pipeline.model import PICTURE_BYTES, PICTURE_CELLS, FrameId, Outcome
from pipeline.ring import Lane, Ring
from pipeline.settings import Capture, Source
from pipeline.silence import MAX_TICKS
from pipeline.watcher import OVERSLEPT_S
from tests.support import Rig, make_frame, sidecars, wait_until
from tests.test_watcher import Bench

S = 10**9
STALL_S = Source(name="a", dir="").stall_s


def ticks(lane: Lane) -> int:
    """Ticks put so far."""
    return lane.slot(lane.head - 1).ticks if lane.head else 0


# -- the watcher ----------------------------------------------------------------------------------------------------


def test_a_silent_source_gets_two_ticks_and_no_more(tmp_path: Path) -> None:
    with contextlib.closing(Bench(tmp_path, "a", "b")) as bench:
        lanes = bench.ring.lanes
        bench.step()
        found: list[int] = []
        for _ in range(60):
            bench.publish(len(found), source="b")
            bench.step(0.5)
            found.append(ticks(lanes[0]))
        assert found[int(STALL_S / 0.5) - 2] == 0 and found[-1] == MAX_TICKS
        assert ticks(lanes[1]) == 0
        assert bench.judge(lane=0) == [] and bench.judge(lane=1) == list(range(60))
        assert all(lane.books().balanced for lane in lanes[:2])


def test_after_a_frame_the_next_silence_is_told_too(tmp_path: Path) -> None:
    with contextlib.closing(Bench(tmp_path, "a")) as bench:
        bench.step()
        for number in range(3):
            bench.publish(number)
            bench.step(0.1)
            for _ in range(5):
                bench.step(STALL_S)
            assert ticks(bench.ring.lanes[0]) == MAX_TICKS * (number + 1)
        bench.judge()
        bench.assert_books(3)


def test_a_successor_tells_a_silence_once_more_at_most_where_it_was_told(tmp_path: Path) -> None:
    with contextlib.closing(Bench(tmp_path, "a")) as bench:
        bench.step()
        bench.publish(1)
        bench.step(0.1)
        for _ in range(8):
            bench.kill()
            bench.new_watcher()
            bench.step(STALL_S)
        assert ticks(bench.ring.lanes[0]) == MAX_TICKS


def test_a_host_that_stalled_opens_nothing(tmp_path: Path) -> None:
    with contextlib.closing(Bench(tmp_path, "a", "b")) as bench:
        bench.step()
        bench.watcher.timeout_s(bench.now_ns)
        bench.step(STALL_S + OVERSLEPT_S + 5)
        assert [ticks(lane) for lane in bench.ring.lanes[:2]] == [0, 0]
        for _ in range(3):  # and a silence that goes on after it is still seen
            bench.watcher.timeout_s(bench.now_ns)
            bench.step(STALL_S / 2)
        assert [ticks(lane) for lane in bench.ring.lanes[:2]] == [1, 1]


def test_a_source_that_came_by_a_reload_is_not_overdue_at_once(tmp_path: Path) -> None:
    with contextlib.closing(Bench(tmp_path, "a")) as bench:
        bench.board.memory.ready_ns = bench.now_ns
        bench.step()
        bench.now_ns += 86_400 * S  # days of silence of "a", then "b" is configured
        bench.kill()
        (tmp_path / "b").mkdir()
        bench.settings = replace(bench.settings, source=(*bench.settings.source, Source(name="b", dir=f"{tmp_path}/b")))
        bench.board.add_source(1, "b")
        bench.new_watcher()
        bench.step()
        bench.step(STALL_S - 0.1)
        assert ticks(bench.ring.lanes[0]) > 0 and ticks(bench.ring.lanes[1]) == 0
        for _ in range(3):  # a successor does not begin anew
            bench.kill()
            bench.new_watcher()
            bench.step(0.1)
        assert ticks(bench.ring.lanes[1]) == 1


def test_a_captured_source_has_start_s_to_its_first_frame(tmp_path: Path) -> None:
    with contextlib.closing(Bench(tmp_path, "a", "b")) as bench:
        capture = Capture(profile="lavfi", input="scene:live", start_s=20.0)
        sources = [replace(source, capture=capture) for source in bench.settings.source]
        bench.settings = replace(bench.settings, source=tuple(sources))
        bench.publish(1)  # of an earlier run
        bench.kill()
        bench.new_watcher()
        bench.step()
        bench.step(3)
        bench.board.memory.ready_ns = bench.now_ns  # FFmpeg starts only now
        bench.step(19.9)
        lanes = bench.ring.lanes
        assert ticks(lanes[0]) == ticks(lanes[1]) == 0
        bench.publish(2)
        bench.step(0.2)
        assert (ticks(lanes[0]), ticks(lanes[1])) == (0, 1)
        bench.step(STALL_S)  # once it has delivered, stall_s counts; and the second tick is stall_s after the first
        assert (ticks(lanes[0]), ticks(lanes[1])) == (1, 2)


def test_a_stall_soon_after_the_first_frame_is_seen_within_its_time(tmp_path: Path) -> None:
    """Long before start_s would have been over."""
    with contextlib.closing(Bench(tmp_path, "a")) as bench:
        capture = Capture(profile="lavfi", input="scene:live", start_s=600.0)
        (source,) = bench.settings.source
        bench.settings = replace(bench.settings, source=(replace(source, capture=capture),))
        bench.board.memory.ready_ns = bench.now_ns
        bench.kill()
        bench.new_watcher()
        bench.step()
        bench.step(1)
        bench.publish(1)
        bench.step(0.1)
        for _ in range(int(10 * STALL_S) - 1):  # as the loop sleeps: it wakes when it said that it would
            bench.step(min(0.1, bench.watcher.timeout_s(bench.now_ns)))
        assert ticks(bench.ring.lanes[0]) == 0
        for _ in range(3):
            bench.step(0.1)
        assert ticks(bench.ring.lanes[0]) == 1


def test_frames_that_inotify_hid_are_found_before_the_source_is_blamed(tmp_path: Path) -> None:
    with contextlib.closing(Bench(tmp_path, "a")) as bench:
        bench.step()
        bench.publish(1)
        bench.step(0.1)
        (bench.dir / "capture_000000002.jpg").write_bytes(b"x")  # no rename: no event that is listened to
        bench.step(STALL_S / 2)
        bench.step(STALL_S / 2)
        assert ticks(bench.ring.lanes[0]) == 0
        assert bench.judge() == [1, 2]


def test_the_loop_wakes_for_a_silence_and_not_before(tmp_path: Path) -> None:
    with contextlib.closing(Bench(tmp_path, "a")) as bench:
        bench.step()
        bench.publish(1)
        bench.step(0.2)
        wakes = 0
        while not ticks(bench.ring.lanes[0]):
            bench.step(bench.watcher.timeout_s(bench.now_ns) + 0.001)
            wakes += 1
        assert wakes <= 4  # the looks at the directory among them


# -- the ring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [1, 2])
def test_a_torn_slot_is_booked_as_what_it_was(torn: int) -> None:
    """Slot 1 is a tick, slot 2 a frame."""
    ring = Ring.create()
    lane = ring.lanes[0]
    for index in range(4):
        lane.put(index, 9, 1, tick=index == 1)
    ring.memory[lane.base + 4096 + torn * 64 + 8] ^= 255
    assert lane.was_tick(torn) is (torn == 1)
    lane.adopt()
    for index in range(4):
        lane.complete(None if index == 1 else Outcome.JUDGED, b"")
    books = lane.books()
    assert books.balanced and (books.published, books.ticks) == (3, 1)
    del lane
    ring.close()


# -- the judge ------------------------------------------------------------------------------------------------------


def new_judge(source: Source) -> Judge:
    cells = [memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)]
    return Judge(source, cells, host="rig")


def show(judge: Judge, number: int, at_s: float) -> list[Transition]:
    """Frame `number`, at_s seconds after the start."""
    identity = FrameId(1, number, int(at_s * S), 5)
    order = judge.observe(number, identity)
    stem = f"capture_{number:09d}"
    judgement = judge.judge(make_frame(number % 7), stem, order, int(at_s * S))
    return judge.track(Sighting(int(at_s * S), int(at_s * S), number, stem, identity), judgement)


def test_one_tick_opens_and_ten_good_frames_close() -> None:
    source = Source(name="a", dir="/a")
    judge, twin = new_judge(source), new_judge(source)
    for number in range(5):
        show(judge, number, 1 + number * 0.2), show(twin, number, 1 + number * 0.2)
    opened = judge.track_silence(int(6.8 * S), int(6.8 * S))
    assert [t.kind for t in opened] == ["began", "opened"]
    incident = opened[-1].incident
    assert incident.condition == "capture_stalled" and incident.last_good and incident.last_good.number == 4
    assert incident.id == twin.track_silence(7 * S, 7 * S)[-1].incident.id, "the same silence is the same incident"
    assert judge.track_silence(12 * S, 12 * S) == []
    closed = [t for n in range(5, 20) for t in show(judge, n, 20 + (n - 5) * 0.2) if t.kind == "closed"]
    assert len(closed) == 1 and judge.state.number == 19
    end = closed[0].incident
    assert end.reason == "recovered" and end.recovery and end.recovery.number == 5
    assert end.duration_s == pytest.approx(20 - 1.8, abs=0.01)


def test_two_silences_without_a_frame_are_two_incidents() -> None:
    ids = {new_judge(Source(name="a", dir="/a")).track_silence(n * S, n * S)[-1].incident.id for n in (10, 20)}
    assert len(ids) == 2


def test_a_stall_hides_what_it_explains() -> None:
    judge = new_judge(Source(name="a", dir="/a", stall_s=3.0))
    show(judge, 1, 1.0)
    assert judge.track_silence(5 * S, 5 * S)[-1].kind == "opened"
    assert judge.tracker.phases()["capture_stalled"] == "open"
    assert judge.tracker.phases()["freeze"] == "clear"


# -- the service ----------------------------------------------------------------------------------------------------


def incidents(service: Rig) -> list[dict[str, Any]]:
    """What the `incidents` command tells."""
    command = [sys.executable, "-P", "-m", "pipeline", "incidents", "--json", f"--state-dir={service.base / 'state'}"]
    done = subprocess.run(command, env=service.environment, cwd=service.base, capture_output=True, timeout=30)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_source_that_falls_silent_opens_an_incident_and_frames_close_it(rig: Callable[..., Rig]) -> None:
    with rig("--workers=1", sources=("a", "b")) as service:
        for number in range(5):
            service.publish(number)
        # "b" never publishes anything: that is a stall as well
        opened = wait_until(lambda: found if len(found := incidents(service)) == 2 else None, 30, "two incidents")
        assert {(i["source"], i["condition"], i["state"]) for i in opened} == {
            ("a", "capture_stalled", "open"),
            ("b", "capture_stalled", "open"),
        }
        for number in range(5, 20):
            service.publish(number)
        service.wait_sidecars(20)
        wait_until(lambda: sum(i["state"] == "closed" for i in incidents(service)) == 1, 20, "one closed")
        assert sidecars(service.dir)[6]["conditions"]["capture_stalled"] == "recovering"
        books = service.books()
        assert books["a"]["judged"] == 20 and books["b"]["published"] == 0
