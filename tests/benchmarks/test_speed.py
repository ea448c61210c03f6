"""What `bench` measures, piece by piece: ./stillwatch test tests/benchmarks/test_speed.py --benchmark-enable."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any  # of `pedantic`, which has no types

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pipeline import accuracy, detectors
from pipeline.judge import Judge
from pipeline.model import PICTURE_BYTES, PICTURE_CELLS, Outcome
from pipeline.ring import Doorbell, Ring
from pipeline.settings import Source
from pipeline.speed import crowds, rivals
from pipeline.speed.queues import STATE
from pipeline.speed.stage import make_pictures, running
from tests.benchmarks.tools import memory_dir
from tests.benchmarks.watching import WAYS, rename

MANY = 100


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    with memory_dir() as path:
        yield path


@pytest.fixture(scope="module")
def pictures(base: Path) -> list[Path]:
    return make_pictures(base / "pictures")


# -- a frame ----------------------------------------------------------------------------------------------------------


@pytest.mark.benchmark(group="a frame of 720p")
@pytest.mark.parametrize("rule", ["bare", "old"])
def test_a_loop(benchmark: BenchmarkFixture, pictures: list[Path], rule: str) -> None:
    detectors.prepare()
    paths, numbers = [str(path) for path in pictures], iter(range(2, 10**9))
    benchmark(lambda: getattr(rivals, rule)(paths, next(numbers)))


@pytest.mark.benchmark(group="a frame of 720p")
def test_the_judge_alone(benchmark: BenchmarkFixture, pictures: list[Path]) -> None:
    detectors.prepare()
    frames, numbers = [path.read_bytes() for path in pictures], iter(range(10**9))
    judge = Judge(Source(name="a", dir="."), [memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)])

    def one() -> bytes:
        at = next(numbers)
        sighting = accuracy.sighting(at, 5.0)
        order = judge.observe(at, sighting.identity)
        judgement = judge.judge(frames[at % len(frames)], sighting.name, order, sighting.time_ns)
        judge.track(sighting, judgement)
        return judge.encoded_state()

    assert benchmark(one)


@pytest.mark.benchmark(group="100 frames of 720p through a service, per source")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_busy_service(benchmark: Any, base: Path, pictures: list[Path], workers: int) -> None:
    with running(base, workers, workers) as service:
        service.judge(pictures, 20)
        benchmark.pedantic(lambda: service.judge(pictures, MANY), rounds=5)
        assert service.judged() == service.next_number * workers


@pytest.mark.benchmark(group="rename to sidecar of a frame that comes alone")
def test_latency(benchmark: Any, base: Path, pictures: list[Path]) -> None:
    with running(base, 1) as service:
        service.judge(pictures, 20)

        def one() -> None:
            sidecar = service.dirs[0] / f"capture_{service.next_number:09d}.json"
            service.publish(pictures)
            give_up = time.monotonic() + 10
            while not sidecar.exists() and time.monotonic() < give_up:
                time.sleep(0.0001)
            assert sidecar.exists()

        benchmark.pedantic(one, setup=lambda: time.sleep(0.02), rounds=50)


# -- queues -----------------------------------------------------------------------------------------------------------


@pytest.mark.benchmark(group="100 messages, put and taken in one process")
def test_ring(benchmark: BenchmarkFixture) -> None:
    ring, bell = Ring.create(), Doorbell.create()
    lane = ring.lanes[0]
    lane.adopt()

    def through() -> None:
        for number in range(MANY):
            assert lane.put(number, 9, 0)
            bell.ring()
        bell.clear()
        while lane.reserve():
            lane.complete(Outcome.JUDGED, STATE)

    benchmark(through)
    assert lane.books().balanced and lane.backlog == 0


@pytest.mark.benchmark(group="100 messages, put and taken in one process")
def test_queue(benchmark: BenchmarkFixture) -> None:
    queue: multiprocessing.Queue[tuple[int, int, int]] = multiprocessing.Queue()

    def through() -> None:
        for number in range(MANY):
            queue.put((number, 9, 0))
        for number in range(MANY):
            assert queue.get()[0] == number

    try:
        benchmark(through)
    finally:
        queue.close()
        queue.join_thread()


# -- watching ---------------------------------------------------------------------------------------------------------


@pytest.mark.benchmark(group="100 renames that have come already, or nearly")
@pytest.mark.parametrize("way", WAYS)
def test_taking_renames(benchmark: Any, tmp_path: Path, way: str) -> None:
    seed, directory, numbers = tmp_path / "seed", tmp_path / "frames", itertools.count(0, MANY)
    seed.touch()
    directory.mkdir()
    with closing(WAYS[way](str(directory))) as names:
        next(names)
        benchmark.pedantic(
            lambda: [next(names) for _ in range(MANY)],
            setup=lambda: rename(seed, directory, next(numbers), MANY, 0.0),
            rounds=30,
        )


# -- crowds -----------------------------------------------------------------------------------------------------------


@pytest.mark.benchmark(group="start and stop of a service over so many files")
@pytest.mark.parametrize("files", crowds.SIZES[:3])
def test_start(benchmark: Any, base: Path, files: int) -> None:
    found = benchmark.pedantic(lambda: crowds.startup(base, files), rounds=2)
    assert found["ready_s"] > 0


@pytest.mark.benchmark(group="20,000 events lost and reconciled, with the service's start and stop")
def test_overflow(benchmark: Any, base: Path, pictures: list[Path]) -> None:
    found = benchmark.pedantic(lambda: crowds.overflow(base, pictures[0]), rounds=1)
    assert found["events"] >= crowds.EVENTS
