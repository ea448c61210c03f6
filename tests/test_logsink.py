"""Log lines: where they go, and that nobody waits for whoever reads them."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.board import Board
from pipeline.logsink import MAX_WRITE_BYTES, LogSink, is_journal
from pipeline.model import Exit
from tests.support import ROOT, Rig, make_frame, publish, sidecars, wait_until


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of its own, without handlers before and after."""
    found = logging.Logger("test", logging.DEBUG)
    yield found
    for handler in list(found.handlers):
        handler.close()


def read_all(fd: int) -> str:
    """What a non-blocking descriptor has."""
    os.set_blocking(fd, False)
    parts = []
    try:
        while part := os.read(fd, 65536):
            parts.append(part)
    except BlockingIOError:
        pass
    return b"".join(parts).decode()


def test_a_pipe_that_nobody_reads_costs_lines_and_no_time(logger: logging.Logger) -> None:
    reader, writer = os.pipe()
    sink = LogSink(writer)
    logger.addHandler(sink)
    for number in range(10_000):
        logger.info("line %d", number)
    assert os.get_blocking(writer), "the descriptor is everybody's: its flags stay"
    dropped = sink.dropped
    first = read_all(reader).splitlines()
    assert dropped > 0 and len(first) == 10_000 - dropped and first[0] == "line 0"
    logger.info("again")
    assert read_all(reader).splitlines() == [f"{dropped} log lines were dropped: nobody took them", "again"]
    os.close(reader)
    os.close(writer)


def test_a_line_that_was_cut_does_not_run_into_the_next(logger: logging.Logger) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 3 * 4096)
    logger.addHandler(LogSink(writer))
    logger.info("x" * 30_000)
    assert set(read_all(reader).strip()) == {"x"}
    logger.info("next")
    assert read_all(reader).splitlines()[-1] == "next"
    os.close(reader)
    os.close(writer)


def test_a_socket_that_nobody_reads_costs_lines_and_no_time(logger: logging.Logger) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        sink = LogSink(ours.fileno())
        logger.addHandler(sink)
        for _ in range(20_000):
            logger.info("x" * 100)
        assert sink.dropped > 0 and ours.getblocking()


def test_the_journal_gets_priorities_for_every_line_and_never_critical(logger: logging.Logger) -> None:
    reader, writer = os.pipe()
    status = os.fstat(writer)
    environment = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    assert is_journal(writer, environment) and not is_journal(reader, {"JOURNAL_STREAM": "1:2"})
    logger.addHandler(LogSink(writer, environment=environment))
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logger.log(level, "a\nb")
    lines = read_all(reader).splitlines()
    assert lines == [f"<{n}>{text}" for n in (7, 6, 4, 3, 3) for text in "ab"]
    os.close(reader)
    os.close(writer)


def test_a_long_line_and_a_name_that_is_no_text(logger: logging.Logger) -> None:
    reader, writer = os.pipe()
    logger.addHandler(LogSink(writer))
    logger.info("%s\udcff", "y" * (2 * MAX_WRITE_BYTES))
    assert read_all(reader) == "y" * (2 * MAX_WRITE_BYTES) + "\\udcff\n"
    os.close(reader)
    os.close(writer)


def test_a_file_is_opened_anew_when_it_was_rotated(logger: logging.Logger, tmp_path: Path) -> None:
    path = tmp_path / "log"
    logger.addHandler(LogSink(2, str(path)))
    logger.info("one")
    path.rename(tmp_path / "log.1")
    logger.info("two")
    path.unlink()
    logger.info("three")
    assert ((tmp_path / "log.1").read_text(), path.read_text()) == ("one\n", "three\n")


def test_the_service_logs_to_a_file_that_may_be_rotated(rig: Callable[..., Rig], tmp_path: Path) -> None:
    service = rig("--workers=1", f"--log-file={tmp_path / 'its.log'}")
    service.log_path = tmp_path / "its.log"
    with service:
        service.log_path.rename(tmp_path / "its.log.1")
        service.stop()
        assert {line.split()[2] for line in service.log.splitlines()} >= {"supervisor"}
        assert "Starting inotify event loop" in (tmp_path / "its.log.1").read_text()


def test_a_log_file_that_cannot_be_is_a_configuration_error(tmp_path: Path) -> None:
    service = Rig(tmp_path, f"--log-file={tmp_path}")
    service.start()
    assert service.process and service.process.wait(20) == Exit.CONFIG
    assert service.log.startswith("stillwatch: log_file: ") and service.log.count("\n") == 1


@pytest.mark.slow
def test_a_blocked_sink_does_not_slow_the_pipeline(tmp_path: Path) -> None:
    """Row 39: the log goes to a pipe that is full and that nobody reads."""
    rig, (reader, writer) = Rig(tmp_path, "--workers=1", "--log-level=DEBUG"), os.pipe()
    frames, environment = rig.dir, rig.environment
    service = subprocess.Popen(rig.command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, env=environment)
    try:
        wait_until((tmp_path / "run" / "board").exists, 20, "the board")
        board = Board.open(str(tmp_path / "run"))
        wait_until(lambda: board.memory.ready_ns, 20, "ready")
        filler = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY | os.O_NONBLOCK)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(filler, bytes(512))
        os.close(filler)
        for number in range(3000):  # the watcher logs each at DEBUG
            publish(frames, number, make_frame(number % 5))
        wait_until(lambda: len(list(frames.glob("*.json"))) == 3000, 60, "all sidecars")
        assert len(sidecars(frames)) == 3000
        wait_until(lambda: board.children[0].log_dropped > 0, 20, "the watcher's count of dropped lines")
        os.close(board.fd)
    finally:
        children = psutil.Process(service.pid).children(recursive=True)
        service.send_signal(signal.SIGTERM)
        assert service.wait(10) == 0
        os.close(reader)
        os.close(writer)
        assert not any(child.is_running() for child in children)


def test_what_a_command_ends_with_is_an_error_in_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with path.open("wb") as log:
        found = os.fstat(log.fileno())
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        command = [sys.executable, "-P", "-m", "pipeline", "run", "--config=/nowhere"]
        done = subprocess.run(command, stderr=log, env=environment, timeout=20)
    assert done.returncode == Exit.CONFIG
    assert path.read_text().startswith("<3>stillwatch: /nowhere: ")
