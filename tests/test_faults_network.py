"""Faults between the real service and its store: refused keys, a wrong clock, a network that answers nothing.

Numbers in brackets are those of the list of faults to survive.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.r2 import R2Store
from pipeline.store import R2Settings
from tests.evidence_rig import EvidenceRig, QuickRig, ended
from tests.live import board_of, child_row, running_pid
from tests.machine import BLACK_HOLE, in_black_hole, needs
from tests.s3_servers import BUCKET, Certificate, ScriptedServer, free_ports, rclone_over
from tests.support import sidecars, wait_until
from tests.uploads import all_files

pytestmark = pytest.mark.any_python

pytest_plugins = ("tests.s3_fixtures",)
Scripted = Callable[..., ScriptedServer]


def pids(service: EvidenceRig) -> list[int]:
    """Of all its processes."""
    return [process.pid for process in service.tree()]


# -- keys and buckets (45) --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def wrong_bucket(base: Path, port: int, certificate: Certificate) -> Iterator[Callable[[], object]]:
    """rclone without the bucket; what makes it."""
    with rclone_over(base, port, certificate) as settings:
        store = R2Store(settings)
        yield partial(store._client.create_bucket, Bucket=BUCKET)
        store.close()


@contextlib.contextmanager
def wrong_key(base: Path, port: int, certificate: Certificate) -> Iterator[Callable[[], object]]:
    """rclone that takes another secret; what replaces it by one that takes ours, at the same address."""
    (base / "served" / BUCKET).mkdir()
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        first.enter_context(rclone_over(base, port, certificate, "another" * 6))

        def mend() -> None:
            first.close()
            second.enter_context(rclone_over(base, port, certificate))

        yield mend


@pytest.mark.parametrize(
    ("fault", "said"), [(wrong_bucket, "NoSuchBucket"), (wrong_key, "SignatureDoesNotMatch")], ids=["bucket", "key"]
)
def test_what_is_mended_at_the_server_resumes_without_a_restart(
    tmp_path: Path, certificate: Certificate, fault: Any, said: str, rclone: R2Settings
) -> None:
    """[45]"""
    (tmp_path / "served").mkdir()
    port = free_ports(1)[0]
    with (
        fault(tmp_path, port, certificate) as mend,
        QuickRig(tmp_path, r2=replace(rclone, endpoint=f"https://127.0.0.1:{port}")) as service,
    ):
        before = pids(service)
        incidents = []
        for _ in range(3):
            incidents.append(service.begin())
            service.end()
        service.wait_evidence(ended(*incidents, where="kept"))
        (alert, *_) = wait_until(lambda: service.lines("uploads paused"), 20, service.log)
        assert " ERROR uploader " in alert and said in alert
        mend()
        service.wait_evidence(ended(*incidents))
        assert len(service.lines("recovered what=uploads")) == 1
        assert pids(service) == before, "somebody was restarted"
        assert len(sidecars(service.dir)) == 3 * 6
        stored = all_files(tmp_path / "served" / BUCKET)
        assert len(stored) == 3 * 9 and all(stored.values())
        assert sorted({path.split("/")[-2] for path in stored}) == sorted(incidents)


# -- the clock (44) ---------------------------------------------------------------------------------------------------


def test_a_server_that_calls_our_clock_wrong_is_asked_once_a_minute(
    tmp_path: Path, scripted: Scripted, s3: Any
) -> None:
    """[44] However much there is to send."""
    behind_s = datetime.now().timestamp() + 7200
    server = scripted(s3.answer(403, "RequestTimeTooSkewed", "The difference is too large", date_s=behind_s))
    with EvidenceRig(tmp_path, r2=server.settings) as service:
        incidents = []
        for _ in range(20):
            incidents.append(service.begin())
            service.end()
        service.wait_evidence(ended(*incidents, where="kept"))
        (line, *_) = wait_until(lambda: service.lines("uploads wait for the clock"), 20, service.log)
        assert re.search(r"skew_s=-7[01]\d\d .*retry_in_s=61", line), line
        assert " WARNING uploader " in line
        asked = len(server.requests)
        assert asked == 1, "one question in the first minute"
        assert service.books()["a"]["judged"] == 20 * 6
    assert set(service.evidence().values()) == {"kept"} and len(service.evidence()) == 40


# -- no answer (48) ---------------------------------------------------------------------------------------------------


def connecting(pid: int) -> bool:
    """Whether a process's network has a connection that waits for an answer."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[3] == "02" for line in lines)


def asking_for_a_name(pid: int) -> bool:
    """Whether it waits for a name server."""
    lines = Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]
    return any(line.split()[2].endswith(":0035") for line in lines)


@pytest.mark.slow
@needs("unshare", "ip")
@pytest.mark.parametrize(
    ("endpoint", "waits"),
    [(f"https://{BLACK_HOLE}", connecting), ("https://account.r2.cloudflarestorage.com", asking_for_a_name)],
    ids=["address", "name"],
)
def test_a_network_that_answers_nothing_holds_up_nobody(
    tmp_path: Path, endpoint: str, waits: Callable[[int], bool]
) -> None:
    """[48] Every packet is lost: while an attempt hangs, frames are judged and incidents kept."""
    r2 = R2Settings(endpoint, "testkeytestkey0000000", "testsecrettestsecrettestsecrettestsecret", "rig")
    service = EvidenceRig(tmp_path, more="hang_s = 2", r2=r2)
    service.wrapper = in_black_hole()
    with service:
        uploader = running_pid(service, "uploader")
        before = pids(service)
        incidents = [service.begin()]
        wait_until(lambda: waits(uploader), 20, "an attempt is under way")
        row = child_row(service, "uploader")
        beats = {row.heartbeat_ns}
        for _ in range(10):
            service.end()
            incidents.append(service.begin())
            beats.add(row.heartbeat_ns)
        assert waits(uploader), "ten incidents took longer than one attempt"
        service.end()
        service.wait_evidence(ended(*incidents, where="kept"))

        def given_up() -> list[str]:
            beats.add(row.heartbeat_ns)
            return service.lines("uploads failed")

        failed = wait_until(given_up, 40, "it gives up")
        assert " WARNING uploader " in failed[0]
        assert len(beats) >= 3, "the keeper beats while the sender waits"
        opened = service.lines("incident opened")[0]
        stamps = [datetime.fromisoformat(line.split()[0]) for line in (opened, failed[0])]
        assert (stamps[1] - stamps[0]).total_seconds() <= 30
        wait_until(lambda: waits(uploader), 40, "the next attempt")
        assert pids(service) == before and {child.restarts for child in board_of(service).children} == {0}
        assert service.books()["a"]["judged"] == 11 * 6, "and stops in time"
