"""Faults under the evidence path of the real service: memory and disk that are full, slow, read-only or damaged.

Numbers in brackets are those of the list of faults to survive.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.incidentlog import FILE_NAME
from pipeline.spool import Spool
from tests.evidence_rig import EvidenceRig, ended, opened
from tests.live import board_of, child_row, running_pid, source_row
from tests.machine import failing_calls, filled, needs, read_only, tmpfs, without_inodes
from tests.s3_servers import ScriptedServer
from tests.support import sidecars, wait_until
from tests.uploads import check_spool, disk

pytestmark = pytest.mark.any_python

pytest_plugins = ("tests.s3_fixtures",)
SEED = 20261122
Scripted = Callable[..., ScriptedServer]

PICTURES = {f"{kind}_{n}.jpg" for kind in ("frame", "thumb") for n in range(3)}


# -- the memory of the frames (24, 25) --------------------------------------------------------------------------------


@needs("mount")
@pytest.mark.parametrize(("kind", "cause"), [("bytes", "No space left on device"), ("inodes", "no inodes left")])
def test_full_memory_costs_sidecars_and_no_incident(tmp_path: Path, kind: str, cause: str) -> None:
    """Frames, hold and board lie on one file system, and somebody else fills it."""
    with tmpfs(tmp_path / "memory", "size=4m,nr_inodes=200") as memory:
        service = EvidenceRig(memory, state=tmp_path / "state", more="report_every_s = 0.2")
        service.log_path = tmp_path / "service.log"
        with service:
            service.show("llll")
            prepared = service.prepare("bbbb")
            with filled(memory) if kind == "bytes" else without_inodes(memory):
                service.release(prepared)
                row = source_row(service)
                assert (row.black_frames, row.incidents, row.open_incidents) == (4, 1, 1)
                assert row.sidecar_failures == 4 and row.hold_failures >= 1
                assert service.held() == [] and service.evidence() == {}
                assert sorted(sidecars(service.dir)) == [1, 2, 3, 4]
            report = wait_until(lambda: service.lines("sidecar_failures=4"), 30, "the self-report")[-1]
            assert "hold_failures=" in report and ("evidence_missed=" in report) is (kind == "inodes")
            for what in ("sidecar not written", "evidence not held"):
                assert cause in service.lines(what)[0], service.lines(what)
            service.show("b")  # room again: what has waited is handed over with the next frame
            (incident,) = sidecars(service.dir)[9]["incident_ids"]
            service.wait_evidence(opened(incident))
            service.end()
            service.wait_evidence(ended(incident))
            assert child_row(service, "worker/0").restarts == 0
            books = service.books()["a"]
        assert books["judged"] == books["published"] == 11
        kept = {key.rpartition("/")[2] for key in service.stored()}
        lost = {"frame_0.jpg", "frame_1.jpg", "thumb_0.jpg", "thumb_1.jpg"} if kind == "inodes" else set()
        assert kept == (PICTURES - lost) | {"frame_3.jpg", "thumb_3.jpg", "incident.json"}


# -- the disk (50, 54) ------------------------------------------------------------------------------------------------


@needs("strace")
def test_a_slow_disk_slows_nobody_but_the_keeper(tmp_path: Path) -> None:
    """[54] Every fsync takes 2 s; meanwhile frames are judged and incidents held as ever."""
    with EvidenceRig(tmp_path, "--workers=2", sources=("a", "b")) as service:
        service.show("ll", "b")
        trace = tmp_path / "trace"
        with failing_calls(running_pid(service, "uploader"), "fsync,fdatasync:delay_enter=2000000", None, trace):
            first = service.begin("a")
            wait_until(trace.read_text, 30, "the keeper is held up")
            incidents = []
            for _ in range(20):
                incidents.append(service.begin("b"))
                service.end("b")
            assert len(sidecars(service.dirs["b"])) == 2 + 20 * 6
            assert "stored" not in service.evidence().values(), "twenty incidents took longer than one to be kept"
            assert len(service.held()) >= 35
            wait_until(lambda: "DELAYED" in trace.read_text(), 30, "the first fsync has ended")
        service.wait_evidence({**ended(*incidents), **opened(first)})
        assert service.held() == []
        assert [source_row(service, lane).hold_failures for lane in (0, 1)] == [0, 0]
        assert service.books()["b"]["judged"] == 2 + 20 * 6


@needs("mkfs.ext4", "losetup")
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_disk_that_refuses_is_waited_for_while_detection_goes_on(tmp_path: Path, kind: str) -> None:
    """[50]"""
    with disk(tmp_path, 16, 4096) as point, EvidenceRig(tmp_path, state=point / "state") as service:
        service.wait_log()
        uploader = running_pid(service, "uploader")
        with filled(point) if kind == "full" else read_only(service.state):
            incidents = [service.begin()]
            wait_until(lambda: service.lines("incidents not kept"), 30, "the alert")
            for _ in range(5):
                service.end()
                incidents.append(service.begin())
            assert len(sidecars(service.dir)) == 5 * 6 + 4
            assert service.held() and "stored" not in service.evidence().values()
            (alert, *_) = service.lines("incidents not kept")
            assert " ERROR uploader " in alert and ("full" if kind == "full" else "Read-only") in alert
        service.end()
        service.wait_evidence(ended(*incidents), 60)
        assert service.lines("recovered what='keeping incidents'")
        assert service.held() == [] and running_pid(service, "uploader") == uploader
        assert check_spool(service.state / "spool") == 0
        assert service.books()["a"]["judged"] == 6 * 6


@needs("mkfs.ext4", "losetup")
def test_a_service_that_starts_on_a_disk_full_of_its_own_evidence_makes_room(
    tmp_path: Path, scripted: Scripted, s3: Any
) -> None:
    """[50] Its incident log cannot even be opened before there is room."""
    server = scripted(s3.answer(503, "SlowDown"))
    with disk(tmp_path, 16, 4096) as point:
        service = EvidenceRig(tmp_path, state=point / "state", r2=server.settings)
        with service:
            earlier = []
            for _ in range(10):
                earlier.append(service.begin())
                service.end()
            service.wait_evidence(ended(*earlier, where="kept"))
            service.stop()
            with filled(point):
                service.start()
                service.wait_ready(2)
                incident = service.begin()
                wait_until(lambda: service.evidence().get((incident, "opened")) == "kept", 30, "kept on a full disk")
                service.end()
                wait_until(lambda: service.evidence().get((incident, "closed")) == "kept", 30, "kept on a full disk")
                found = service.evidence()
            assert service.lines("incidents not kept"), "there was room"
            assert "dropped:free_space" in {found[key] for key in ended(*earlier)} <= {"dropped:free_space", "kept"}
            assert len(found) == 22, "every row is there"
            assert child_row(service, "uploader").restarts == 0
            assert service.books()


# -- damage (53) ------------------------------------------------------------------------------------------------------


def overwrite(path: Path, noise: random.Random, limit: int = 2**20) -> None:
    """Random bytes in place: whoever has it open or mapped meets them too."""
    size = min(path.stat().st_size, limit)
    assert size, f"{path} is empty"
    with path.open("r+b") as file:
        file.write(noise.randbytes(size))


def oldest_job(service: EvidenceRig) -> Path:
    return Path(Spool(str(service.state / "spool")).jobs()[0])


def damage_wal(service: EvidenceRig, noise: random.Random) -> None:
    overwrite(service.state / f"{FILE_NAME}-wal", noise)


def damage_shared_memory(service: EvidenceRig, noise: random.Random) -> None:
    overwrite(service.state / f"{FILE_NAME}-shm", noise)


def damage_log(service: EvidenceRig, noise: random.Random) -> None:
    overwrite(service.state / FILE_NAME, noise, 4096)


def damage_manifest(service: EvidenceRig, noise: random.Random) -> None:
    overwrite(oldest_job(service) / "manifest.json", noise)


def damage_picture(service: EvidenceRig, noise: random.Random) -> None:
    overwrite(next(oldest_job(service).glob("frame_*.jpg")), noise)


def add_junk(service: EvidenceRig, noise: random.Random) -> None:
    """What nobody of ours made, under names that look as if."""
    spool, hold = service.state / "spool", service.base / "run" / "hold"
    for name in ("0000000001-x.opened", ".new-0000000002-x.opened", ".done-x", "x", "hold.opened"):
        (spool / name).write_bytes(noise.randbytes(100))
        (hold / f"{name}.closed").write_bytes(noise.randbytes(100))
    (spool / "0000000003-y.closed").mkdir(exist_ok=True)
    (hold / "00000000000000000001-y.opened").mkdir(exist_ok=True)
    (hold / "00000000000000000001-y.opened" / "transition.json").write_bytes(noise.randbytes(100))


def kill_all(service: EvidenceRig) -> None:
    """SIGKILL to the supervisor, with whom all of it goes."""
    everybody = service.tree()
    assert service.process and len(everybody) >= 4
    service.process.kill()
    service.process.wait(20)
    psutil.wait_procs(everybody, 20)
    assert not any(process.is_running() for process in everybody)


Damage = Callable[[EvidenceRig, random.Random], None]
DAMAGE: dict[Damage, str] = {
    damage_wal: "",  # SQLite passes over what has no right checksum
    damage_shared_memory: "",  # made anew
    damage_log: "",  # its pages stand in the WAL as well; noticed where that is damaged too
    damage_manifest: "job damaged, set aside",
    damage_picture: "job damaged, set aside",
    add_junk: "held incident damaged, set aside",
}
"""And what is always said of it."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds", [*([one] for one in DAMAGE), [*DAMAGE]], ids=[*(one.__name__ for one in DAMAGE), "all"]
)
def test_random_bytes_in_the_state_are_survived_live_and_at_the_next_start(
    tmp_path: Path, scripted: Scripted, s3: Any, kinds: Sequence[Damage]
) -> None:
    print(f"seed {SEED}")  # noqa: T201 - shown when the test fails
    server = scripted(s3.answer(503, "SlowDown"))
    service = EvidenceRig(tmp_path, sources=("a", "b"), r2=server.settings)
    with service:
        first = service.begin("a")
        service.end("a")
        second = service.begin("a")
        service.wait_evidence({**ended(first, where="kept"), **opened(second, where="kept")})
        for damage in kinds:
            damage(service, random.Random(SEED))
        service.begin("b")  # live: it goes on
        wait_until(lambda: not service.held(), 30, "the keeper has taken it")
        kill_all(service)
        for damage in kinds:
            damage(service, random.Random(SEED + 1))
        server.script[:] = [s3.stored]
        service.start()
        service.wait_ready(2)
        service.end("b")
        last = service.begin("b")
        wait_until(lambda: service.evidence().get((last, "opened")) == "stored", 30, service.log)
        wait_until(lambda: not Spool(str(service.state / "spool")).jobs() and not service.held(), 30, "all is settled")
        assert {row.restarts for row in board_of(service).children} == {0}
        assert all(DAMAGE[damage] in service.log for damage in kinds), service.log
        assert len(kinds) == 1 or "incident log damaged, begun anew" in service.log
        assert "fault of ours" not in service.log and "Traceback" not in service.log
        assert service.books()
