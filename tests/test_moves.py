"""Sources that change their worker while frames flow: none is lost, judged twice, or judged out of order."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from pipeline.instance import sole_instance
from pipeline.service import Service
from pipeline.settings import Settings, Source
from tests.support import make_frame, publish, sidecars

pytestmark = pytest.mark.any_python

FRAMES, MOVES = 600, 40


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_source_moves_between_workers_under_load_and_kills(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    chance, names = random.Random(seed), ("a", "b")
    for name in names:
        (tmp_path / name).mkdir()
    settings = Settings(
        source=tuple(Source(name=name, dir=str(tmp_path / name), stall_s=3600) for name in names),
        workers=2,
        overload_lag_s=600,  # on a busy machine frames would be passed over, and a silent source have ticks in its lane
        runtime_dir=str(tmp_path / "run"),
        state_dir=str(tmp_path / "state"),
    )
    caplog.set_level("ERROR", "stillwatch")
    with sole_instance(settings):
        service = Service(settings)
        try:
            moved = _drive(service, tmp_path, chance)
            books = [service.ring.lanes[lane].books() for lane in range(2)]
            judges = [service.board.memory.sources[lane] for lane in range(2)]
        finally:
            service.close()
    assert moved >= MOVES
    for name, account, row in zip(names, books, judges, strict=True):
        assert account.balanced and account.judged == account.published == FRAMES
        assert row.numbering_restarts == row.gaps == 0, "the judge saw every frame in order"
        found = sidecars(tmp_path / name)
        previous = [found[n]["last_3_filenames"][0] for n in range(2, FRAMES + 1)]
        assert previous == [f"capture_{n:09d}.jpg" for n in range(1, FRAMES)], "its history moved with it"


def _drive(service: Service, base: Path, chance: random.Random) -> int:
    """Publish, move and kill until all is judged; how many moves were finished."""
    supervisor, lanes = service.supervisor, service.ring.lanes[:2]
    published = moved = kills = 0
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        supervisor.step(time.monotonic_ns())
        supervisor.wait(0.005)
        if not service.board.memory.ready_ns:
            continue
        for _ in range(5 if published < FRAMES else 0):
            published += 1
            for name in ("a", "b"):
                publish(base / name, published, make_frame(published % 20))
        for lane in lanes:
            holder = lane.holder
            if holder is not None and chance.random() < 0.3:
                service.move(lane.index, 1 - holder)
                moved += 1
        if kills < 4 and published > FRAMES * (kills + 1) / 5 and (pid := service.board.memory.children[1].pid):
            os.kill(pid, signal.SIGKILL)
            kills += 1
        if published == FRAMES and all(lane.last_record().tail == FRAMES for lane in lanes):
            return moved
    raise AssertionError(f"published {published}, books {[lane.books() for lane in lanes]}")
