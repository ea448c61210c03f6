"""Row 51: power cuts. The disk's image is copied at random moments while a keeper works; each copy must have all that
was acknowledged before, and nothing torn.

A copy is a state that the disk was in: it is read twice, and both must be alike. Every fsync is slowed down, so that
there are such moments in the middle of keeping, not only between two incidents.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.incidentlog import FILE_NAME
from pipeline.store import Kind
from tests.machine import mounted, needs
from tests.support import ROOT, wait_until
from tests.uploads import Desk, FakeStore, check_spool, disk, evidence, make_settings

pytestmark = pytest.mark.any_python

CUTS = int(os.environ.get("STILLWATCH_TEST_POWER_CUTS", "5"))
RECOVERY_S = 2.0
PROGRAM = """
import sys, time
from pathlib import Path
from pipeline.incidentlog import IncidentLog
from pipeline.spool import Spool
from pipeline.store import Kind
from tests.uploads import Desk, FakeStore, incident, make_hold, make_settings, publish, closed

def telling(kind, name):
    plain = getattr(kind, name)
    def told(self, *arguments, **options):
        done = plain(self, *arguments, **options)
        what = arguments[0].incident.id + "." + arguments[0].kind if name == "record" else Path(done).name[11:]
        print(name, what, flush=True)
        return done
    setattr(kind, name, told)

telling(IncidentLog, "record")
telling(Spool, "keep")
base, state = Path(sys.argv[1]), sys.argv[2]
settings = make_settings(base, state_dir=state, source=())
desk, hold = Desk(settings, FakeStore([Kind.PAUSE] * 10**6)), make_hold(settings)
for number in range(10**6):
    publish(hold, incident(number, f"s{number}"), files={"frame_0.jpg": b"picture" * 1500, "thumb_0.jpg": b"t" * 999})
    publish(hold, closed(incident(number, f"s{number}")), "closed", files={"frame_3.jpg": b"end" * 900})
    desk.keep()
"""


@contextlib.contextmanager
def working_keeper(base: Path, point: Path, said: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A keeper on the disk at `point`, as fast as slowed fsyncs let it."""
    slowly = ["strace", "-D", "-f", "-qq", "-o", str(base / "trace"), "-e", "trace=fsync,fdatasync"]
    slowly += ["-e", "inject=fsync,fdatasync:delay_enter=3000:delay_exit=3000"]
    command = [*slowly, sys.executable, "-P", "-c", PROGRAM, str(base), str(point / "state")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with said.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: said.read_text().count("\n") > 3 or process.poll() is not None, 20)
        assert process.poll() is None, said.read_text()
        yield process
    finally:
        process.kill()
        process.wait(10)


def cut(image: Path, copy: Path) -> None:
    """What the disk has on it at one moment."""

    def unchanged() -> bool:
        data = image.read_bytes()
        copy.write_bytes(data)
        return data == image.read_bytes()

    wait_until(unchanged, 20, "a moment without a write")


def acknowledged(said: Path) -> set[tuple[str, str]]:
    """(record or keep, incident.kind), without a line that is being written."""
    whole = said.read_text().rpartition("\n")[0].splitlines()
    return {(words[0], words[1]) for line in whole if len(words := line.split(" ")) == 2}


def look_after(base: Path, copy: Path, promised: set[tuple[str, str]]) -> tuple[float, bool]:
    """Mount a copy, start a keeper on it and compare; seconds to recover, and whether it was cut in mid-work."""
    flags = subprocess.run(["dumpe2fs", "-h", str(copy)], capture_output=True, text=True, check=True).stdout
    assert "needs_recovery" in flags, "the copy is not one of a disk in use"
    point = base / "copy"
    with mounted(point, "mount", "-o", "loop", str(copy), str(point)):
        spool = point / "state/spool"
        unfinished = any(name.startswith(".new-") for name in os.listdir(spool))
        settings = make_settings(base / "again", state_dir=str(point / "state"), source=())
        begun = time.monotonic()
        desk = Desk(settings, FakeStore([Kind.PAUSE] * 9))
        desk.keep()
        took_s = time.monotonic() - begun
        assert check_spool(spool) == len(desk.spool.jobs())
        with contextlib.closing(sqlite3.connect(point / "state" / FILE_NAME)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        said = evidence(settings)
        recorded = {f"{name}.{kind}" for name, kind in said}
        kept = {Path(folder).name[11:] for folder in desk.spool.jobs()}
        desk.close()
    assert {what for kind, what in promised if kind == "record"} <= recorded
    assert {what for kind, what in promised if kind == "keep"} <= kept
    assert {f"{name}.{kind}" for (name, kind), where in said.items() if where == "kept"} <= kept
    assert set(said.values()) <= {"kept", "held"}
    return took_s, unfinished


@pytest.mark.slow
@needs("mkfs.ext4", "losetup", "strace", "dumpe2fs")
@pytest.mark.timeout(60 + 5 * CUTS)
def test_a_power_cut_loses_nothing_acknowledged(tmp_path: Path) -> None:
    seed = random.randrange(10**9)
    sys.stdout.write(f"seed {seed}\n")
    choice = random.Random(seed)
    took, unfinished, promises = [], 0, 0
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="stillwatch-cut-", dir=memory) as name:
        base = Path(name)
        for number in range(CUTS):
            place = base / str(number)
            place.mkdir()
            with disk(place, 12) as point, working_keeper(place, point, place / "said"):
                lines = choice.randrange(4, 120)
                wait_until(lambda: (place / "said").read_text().count("\n") >= lines, 30)  # noqa: B023
                promised = acknowledged(place / "said")
                cut(place / "disk.img", place / "copy.img")
            took_s, in_mid_work = look_after(place, place / "copy.img", promised)
            took.append(took_s)
            unfinished += in_mid_work
            promises += len(promised)
            shutil.rmtree(place)
    sys.stdout.write(
        f"{CUTS} cuts, {promises} promises, {unfinished} in mid-work, slowest recovery {max(took):.3f} s\n"
    )
    assert promises > 20 * CUTS / 5 and max(took) < RECOVERY_S
