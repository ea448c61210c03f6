"""Bad files under frame names, done to the real service: each has one sidecar of the right kind, neighbours are judged.

Numbers in brackets are those of the list of faults to survive. All bad files go through one service; the tests then
look at what it left. Good frames stand before, between and after them.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

from pipeline.board import Board, SourceRow
from tests.machine import STRANGER, UNPRIVILEGED, FaultRig, failing_calls, needs
from tests.support import frame_name, make_frame, publish, sidecars, wait_until
from tests.test_frames import EOI, VALID, orientation, pillow, with_header, without_tables

pytestmark = pytest.mark.any_python

FRAME = make_frame(1)
SEED = 20261122
Maker = Callable[[Path], None]


def content(data: bytes) -> Maker:
    return lambda path: void(path.write_bytes(data))


def void(_: object) -> None:
    """For makers: what they return is nothing."""


def make_socket(path: Path) -> None:
    at = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{at}/{path.name}")  # a socket's path may have 108 bytes
    os.close(at)


def damaged(seed: int, *, hole: bool = False) -> bytes:
    """A frame with 64 random bytes, or 4 KiB of nothing, in its middle."""
    data = bytearray(make_frame(2, 640, 360))
    middle = len(data) // 2
    data[middle : middle + (4096 if hole else 64)] = bytes(4096) if hole else random.Random(seed).randbytes(64)
    return bytes(data)


INVALID: dict[str, tuple[Maker, str]] = {
    **{
        f"cut at {percent} pct": (content(FRAME[: len(FRAME) * percent // 100]), "truncated|empty|not a")
        for percent in range(100)
    },
    "text": (content(b"hello\n"), "not a JPEG"),
    "HTML": (content(b"<!DOCTYPE html>"), "not a JPEG"),
    "PNG": (content(cv2.imencode(".png", np.zeros((9, 9), np.uint8))[1].tobytes()), "not a JPEG"),
    "black BMP": (content(cv2.imencode(".bmp", np.zeros((9, 9), np.uint8))[1].tobytes()), "not a JPEG"),
    "directory": (lambda path: path.mkdir(), "not a regular file"),
    "symlink loop": (lambda path: path.symlink_to(path.name.removesuffix(".tmp")), "not a regular file"),
    "symlink to a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "FIFO": (os.mkfifo, "not a regular file"),
    "socket": (make_socket, "not a regular file"),
    "lossless": (content(with_header(FRAME, coding=0xC3)), "SOF3"),
    "arithmetic coding": (content(with_header(FRAME, coding=0xC9)), "SOF9"),
    "bomb 32767": (content(with_header(FRAME, width=32767, height=32767)), "too many pixels"),
    "bomb 65500": (content(with_header(FRAME, width=65500, height=65500)), "too many pixels"),
    "size of nothing": (content(with_header(FRAME, width=0)), "bad size"),
}

ODD = {
    "64 random bytes": damaged(SEED),
    "4 KiB hole": damaged(SEED, hole=True),
    "cut and closed": FRAME[: len(FRAME) // 2] + EOI,
    "zeros and closed": FRAME[: len(FRAME) // 2] + bytes(len(FRAME) // 2) + EOI,
}

GOOD = {
    **VALID,
    **{f"orientation {n}, upright": pillow(size=(180, 320), exif=orientation(n)) for n in range(2, 9)},
    "another size": pillow(size=(641, 359)),
    "and back": make_frame(3),
    "MJPEG without tables, padded": without_tables(FRAME) + bytes(700),
}


class Outcome:
    """What one run over all files left: sidecars by file, the books, the log, the worker's growth."""

    def __init__(self, service: FaultRig) -> None:
        self.numbers: dict[str, int] = {}
        self.good: list[int] = []
        self._service = service
        self._number = 0
        with service:
            for seed in range(4):
                self._publish_good(seed)
            service.wait_sidecars(4)
            worker = service.child("worker")
            before = worker.memory_info().rss
            self._publish_all()
            self.sidecars = service.wait_sidecars(self._number, timeout_s=60)
            self.grown_bytes = worker.memory_info().rss - before
            self.same_worker = service.child("worker").pid == worker.pid
            self.books = service.books()["a"]
        self.log = service.log

    def of(self, kind: str) -> dict[str, Any]:
        return self.sidecars[self.numbers[kind]]

    def _publish_all(self) -> None:
        for at, (kind, (make, _)) in enumerate(INVALID.items()):
            self._publish(kind, make)
            if at % 10 == 0 or not kind.startswith("cut"):
                self._publish_good(at)
        for at, (kind, data) in enumerate({**ODD, **GOOD}.items()):
            self._publish(kind, content(data))
            self._publish_good(at)

    def _publish(self, kind: str, make: Maker) -> None:
        self._number += 1
        self.numbers[kind] = self._number
        path = self._service.dir / frame_name(self._number)
        temporary = Path(f"{path}.tmp")
        make(temporary)
        temporary.rename(path)

    def _publish_good(self, seed: int) -> None:
        self._number += 1
        self.good.append(self._number)
        self._service.publish(self._number, make_frame(100 + seed % 20))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    print(f"seed {SEED}")  # noqa: T201 - shown when a test fails
    return Outcome(FaultRig(tmp_path_factory.mktemp("frames")))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FaultRig]:
    """A service over one source, not started yet."""
    yield FaultRig(tmp_path)


def row_of(service: FaultRig, lane: int = 0) -> SourceRow:
    """A copy of a source's row of the board."""
    board = Board.open(str(service.base / "run"))
    copy = SourceRow.from_buffer_copy(board.memory.sources[lane])
    os.close(board.fd)
    return copy


# -- bad contents (27-32) ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", INVALID)
def test_a_bad_file_has_one_error_sidecar_and_no_verdict(outcome: Outcome, kind: str) -> None:
    found = outcome.of(kind)
    assert re.search(INVALID[kind][1], found["error"])
    assert found["analyzed"] is True
    assert (found["blackscreen"], found["freeze"]) == (None, None)


@pytest.mark.parametrize("kind", ODD)
def test_damage_inside_a_frame_is_no_crash_and_no_fault_of_the_source(outcome: Outcome, kind: str) -> None:
    """No decoder tells damage from picture: at worst one frame is judged by what is left of it."""
    found = outcome.of(kind)
    assert "error" in found or (found["blackscreen"] is False and not found["freeze"]), found


@pytest.mark.parametrize("kind", GOOD)
def test_every_usual_coding_is_judged(outcome: Outcome, kind: str) -> None:
    found = outcome.of(kind)
    assert "error" not in found
    assert found["blackscreen"] is False
    assert found["freeze"] in (False, None)


def test_all_neighbours_are_judged_and_none_is_black_or_frozen(outcome: Outcome) -> None:
    found = [outcome.sidecars[number] for number in outcome.good]
    assert all("error" not in content and content["blackscreen"] is False for content in found)
    assert not any(content["freeze"] for content in found)


def test_a_change_of_size_begins_a_new_history(outcome: Outcome) -> None:
    assert outcome.of("another size")["freeze"] is None
    assert outcome.of("another size")["last_3_filenames"] == []


def test_the_books_say_which_were_invalid(outcome: Outcome) -> None:
    errors = sum("error" in content for content in outcome.sidecars.values())
    assert outcome.books["invalid"] == errors >= len(INVALID)
    assert outcome.books["judged"] == len(outcome.sidecars) - errors
    assert outcome.books["published"] == len(outcome.sidecars)


def test_no_bad_file_costs_a_worker_or_its_memory(outcome: Outcome) -> None:
    assert outcome.same_worker
    assert outcome.grown_bytes < 20 << 20


def test_many_bad_files_do_not_flood_the_log(outcome: Outcome) -> None:
    lines = [line for line in outcome.log.splitlines() if "frame invalid" in line]
    assert 1 <= len(lines) <= 3
    assert len(outcome.log.splitlines()) < 60
    assert "Traceback" not in outcome.log


# -- frames that go, and a system that refuses (33, 34) ---------------------------------------------------------------


def test_frames_that_vanish_are_counted_and_not_logged(service: FaultRig) -> None:
    with service:
        service.publish(1)
        service.wait_sidecars(1)
        lines = service.log.count("\n")
        worker = service.child("worker")
        worker.suspend()
        for number in range(2, 202):
            service.publish(number).unlink()
        worker.resume()
        service.publish(202)
        service.wait_sidecars(2)
        assert service.log.count("\n") <= lines + 3
        books = service.books()["a"]
        assert (books["published"], books["judged"], books["vanished"]) == (202, 2, 200)
        assert books["invalid"] == 0
    assert sorted(sidecars(service.dir)) == [1, 202]


@needs("setpriv")
def test_a_frame_that_may_not_be_read_is_skipped_with_the_reason(service: FaultRig) -> None:
    service.wrapper = UNPRIVILEGED
    with service:
        secret = service.dir / f"{frame_name(1)}.tmp"
        secret.write_bytes(FRAME)
        secret.chmod(0o600)
        os.chown(secret, STRANGER, STRANGER)
        secret.rename(service.dir / frame_name(1))
        service.publish(2)
        found = service.wait_sidecars(2)
        assert found[1]["skipped"] == "unreadable: Permission denied"
        assert (found[1]["analyzed"], found[1]["blackscreen"], found[1]["freeze"]) == (False, None, None)
        assert found[2]["blackscreen"] is False
        assert row_of(service).unreadable == 1
        books = service.books()["a"]
        assert (books["judged"], books["skipped"], books["invalid"]) == (1, 1, 0)


def lowest_free_descriptor(process: psutil.Process) -> int:
    taken = {int(name) for name in os.listdir(f"/proc/{process.pid}/fd")}
    return next(fd for fd in range(len(taken) + 1) if fd not in taken)


def test_a_worker_without_descriptors_says_so_and_recovers(service: FaultRig) -> None:
    with service:
        service.publish(1)
        service.wait_sidecars(1)
        worker = service.child("worker")
        limit = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (lowest_free_descriptor(worker), limit[1]))
        service.publish(2)
        wait_until(lambda: row_of(service).unreadable == 1, 30, "the refusal")
        wait_until(lambda: row_of(service).sidecar_failures == 1, 30, "the sidecar's failure")
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, limit)
        service.publish(3)
        found = service.wait_sidecars(2)
        assert found[3]["blackscreen"] is False
        assert "Too many open files" in service.lines("frame unreadable")[0]
        books = service.books()["a"]
        assert (books["judged"], books["skipped"], books["invalid"]) == (2, 1, 0)


@needs("strace")
@pytest.mark.parametrize("call", ["openat", "read"])
def test_an_input_error_that_stays_is_skipped_and_the_next_frame_judged(service: FaultRig, call: str) -> None:
    with service:
        service.publish(1)
        service.wait_sidecars(1)
        path, log = service.dir / frame_name(2), service.base / "strace.log"
        with failing_calls(service.child("worker").pid, f"{call}:error=EIO", path, log):
            service.publish(2)
            found = service.wait_sidecars(2)
        assert log.read_text().count("INJECTED") == 3, "it was tried three times"
        assert found[2]["skipped"] == "unreadable: Input/output error"
        assert (found[2]["blackscreen"], found[2]["freeze"]) == (None, None)
        service.publish(3)
        service.wait_sidecars(3)
        books = service.books()["a"]
        assert (books["judged"], books["skipped"], books["invalid"]) == (2, 1, 0)


@needs("strace")
def test_a_frame_that_goes_while_it_is_refused_has_vanished(service: FaultRig) -> None:
    with service:
        path, log = service.dir / frame_name(1), service.base / "strace.log"
        with failing_calls(service.child("worker").pid, "openat:error=EACCES", path, log):
            watcher = service.child("watcher")
            watcher.suspend()
            service.publish(1).unlink()
            watcher.resume()
            service.publish(2)
            service.wait_sidecars(1)
        assert "INJECTED" in log.read_text()
        books = service.books()["a"]
        assert (books["judged"], books["vanished"], books["skipped"]) == (1, 1, 0)


@needs("strace")
def test_an_input_error_that_passes_costs_nothing(service: FaultRig) -> None:
    with service:
        service.publish(1)
        service.wait_sidecars(1)
        path, log = service.dir / frame_name(2), service.base / "strace.log"
        with failing_calls(service.child("worker").pid, "openat:error=EIO:when=1..2", path, log):
            service.publish(2)
            found = service.wait_sidecars(2)
        assert log.read_text().count("INJECTED") == 2
        assert found[2]["blackscreen"] is False
        assert row_of(service).unreadable == 0
        assert service.books()["a"]["judged"] == 2


# -- hostile names (35) -----------------------------------------------------------------------------------------------

PREFIXES = {
    "newline": "a\nb_",
    "format": "%s%n{}_",
    "dash": "-",
    "quotes": "'\"\\",
    "escape": "\x1b[31m_",
    "line-separator": "x\u2028\x85_",
    "longest": 230 * "p",
    "spaces": " a b ",
    "none": "",
}


def test_hostile_names_make_valid_json_and_one_line_per_event(tmp_path: Path) -> None:
    service = FaultRig(tmp_path, "--log-level=DEBUG", sources=tuple(PREFIXES))
    service.config = tmp_path / "settings.toml"
    tables = [
        f'[[source]]\nname = "{name}"\ndir = "{service.dirs[name]}"\nprefix = {json.dumps(prefix)}\n'
        for name, prefix in PREFIXES.items()
    ]
    service.config.write_text("\n".join(tables), encoding="utf-8")
    with service:
        for name, prefix in PREFIXES.items():
            publish(service.dirs[name], 1, FRAME, prefix)
            publish(service.dirs[name], 2, b"bad", prefix)
        for name, prefix in PREFIXES.items():
            found = service.wait_sidecars(2, name)
            assert found[1]["filename"] == f"{prefix}000000001.jpg"
            assert "error" in found[2]
        books = service.books()
    assert all((account["judged"], account["invalid"]) == (1, 1) for account in books.values())
    assert len(service.lines("inotify event: ")) == 2 * len(PREFIXES)
    assert len(service.lines("frame invalid")) == len(PREFIXES)
    stamped = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z (DEBUG|INFO|WARNING) \S+ ")
    assert [line for line in service.log.splitlines() if not stamped.match(line)] == []
    assert "\x1b" not in service.log


def test_names_that_are_no_frames_are_passed_over_and_too_long_ones_counted(service: FaultRig) -> None:
    with service:
        names = [b"capture_\xff1.jpg", b"capture_1\n.jpg", b"-rf.jpg", 251 * b"x" + b".jpg", b"capture_-1.jpg"]
        for name in [*names, b"capture_" + 19 * b"1" + b".jpg"]:
            temporary = os.path.join(os.fsencode(service.dir), b"new")
            with open(temporary, "wb") as file:
                file.write(FRAME)
            os.rename(temporary, os.path.join(os.fsencode(service.dir), name))
        service.publish(5)
        service.wait_sidecars(1)
        assert row_of(service).events == 1
        assert row_of(service).refused_names == 1
        assert service.books()["a"]["published"] == 1
