"""Listening: the newest whole chunk and what it says; whatever is missing, cut or old is unknown, never silence."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from pipeline import audio
from pipeline.audio import LOSS_DB
from pipeline.listening import STALE_NS, UNKNOWN, Listener
from pipeline.model import AudioThresholds, Sound
from pipeline.settings import Capture, Source
from tests.machine import bindfs, needs, sysctl
from tests.support import open_descriptors, wait_until
from tests.test_audio import RATE, wav

TONE = np.rint(8000 * np.sin(np.arange(RATE) * 2 * np.pi * 440 / RATE)).astype(np.int16)
SILENCE = np.zeros(RATE, np.int16)
LOUD, QUIET = wav(TONE), wav(SILENCE)
ONE_DEAD = wav(np.stack([TONE, SILENCE], 1), channels=2)
UNFINISHED = LOUD[:4] + b"\xff" * 4 + LOUD[8:40] + b"\xff" * 4 + LOUD[44:]
"""As FFmpeg leaves a chunk that it was killed in: with sound, and without sizes."""

BAD = {
    "empty": b"",
    "half a header": QUIET[:20],
    "header only": QUIET[:44],
    "truncated": QUIET[: len(QUIET) // 2],
    "short": wav(SILENCE[:800]),
    "never closed": UNFINISHED,
    "never closed, and silent": QUIET[:4] + b"\xff" * 4 + QUIET[8:],
    "no sound": b"not a chunk at all" * 100,
    "another coding": QUIET[:20] + b"\x03" + QUIET[21:],
}


def name(number: int) -> str:
    return f"audio_{number:09d}.wav"


def close_chunk(directory: Path, number: int, data: bytes = LOUD) -> Path:
    """A chunk as FFmpeg's segment muxer makes it: written in place, then closed."""
    path = directory / name(number)
    path.write_bytes(data)
    return path


def hear(listener: Listener, later_s: float = 0.0) -> Sound:
    """What is known at a frame of now, or of later."""
    return listener.hear(time.time_ns() + int(later_s * 1e9))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "audio"
    directory.mkdir()
    return directory


@pytest.fixture(params=["inotify", "probing"])
def listen(request: pytest.FixtureRequest, directory: Path) -> Iterator[Callable[[], Listener]]:
    """Makes listeners to `directory`, both ways."""
    made: list[Listener] = []

    def make() -> Listener:
        made.append(Listener(str(directory), LOSS_DB, poll=request.param == "probing"))
        assert (made[-1]._inotify is None) is (request.param == "probing")
        return made[-1]

    yield make
    for listener in made:
        listener.close()


# -- what is heard ----------------------------------------------------------------------------------------------------


def test_sound_and_silence(directory: Path, listen: Callable[[], Listener]) -> None:
    close_chunk(directory, 1)
    listener = listen()
    heard = hear(listener)
    assert (heard.loss.value, heard.mean_db, heard.volume_pct) == (False, -15.3, 74)
    close_chunk(directory, 2, QUIET)
    heard = hear(listener)
    assert (heard.loss.value, heard.mean_db, heard.volume_pct) == (True, -91.0, 0)
    close_chunk(directory, 3)
    assert hear(listener).loss.value is False
    assert listener.trouble == ""


def test_a_dead_channel_is_seen_and_is_no_loss(directory: Path, listen: Callable[[], Listener]) -> None:
    close_chunk(directory, 1, ONE_DEAD)
    loss = hear(listen()).loss
    assert loss.value is False
    readings = loss.readings
    assert (readings["audio_channel_1_db"], readings["audio_channel_2_db"]) == (-15.3, -91.0)
    assert readings["audio_dead_channels"] == 1.0


def test_the_threshold_is_the_sources_own(directory: Path) -> None:
    close_chunk(directory, 1)
    for loss_db, silent in ((-20.0, False), (-15.0, True)):
        with closing(Listener(str(directory), loss_db)) as listener:
            assert hear(listener).loss.value is silent
    assert AudioThresholds().loss_db == LOSS_DB


def test_of_several_the_newest_is_heard(directory: Path, listen: Callable[[], Listener]) -> None:
    close_chunk(directory, 1, QUIET)
    listener = listen()
    for number in (2, 3, 4):
        close_chunk(directory, number, QUIET)
    close_chunk(directory, 5)
    assert hear(listener).loss.value is False
    assert listener._name == name(5)


def test_the_same_chunk_is_read_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close_chunk(directory, 1)
    with closing(Listener(str(directory), LOSS_DB)) as listener:
        first = hear(listener)
        monkeypatch.setattr(audio, "measure", None)
        assert [hear(listener) for _ in range(5)] == [first] * 5


def test_a_chunk_that_is_renamed_into_place_counts(directory: Path) -> None:
    with closing(Listener(str(directory), LOSS_DB)) as listener:
        close_chunk(directory.parent, 7).rename(directory / name(7))
        assert hear(listener).loss.value is False


def test_other_files_say_nothing(directory: Path, listen: Callable[[], Listener]) -> None:
    close_chunk(directory, 3)
    listener = listen()
    for other in ("audio_000000004.wav.tmp", "notes.txt", "audio_.wav", "capture_000000004.jpg"):
        (directory / other).write_bytes(QUIET)
    assert hear(listener).loss.value is False


# -- what is not ------------------------------------------------------------------------------------------------------


def test_before_the_first_chunk_nothing_is_known(listen: Callable[[], Listener]) -> None:
    assert hear(listen()) is UNKNOWN


def test_a_chunk_that_is_being_written_is_not_looked_at(directory: Path, listen: Callable[[], Listener]) -> None:
    close_chunk(directory, 1)
    listener = listen()
    with (directory / name(2)).open("wb") as file:
        file.write(QUIET[:4] + b"\xff" * 4 + QUIET[8:])
        file.flush()
        assert hear(listener).loss.value is False
        file.seek(0)
        file.write(QUIET)
    assert hear(listener).loss.value is True


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_a_bad_chunk_is_unknown_and_the_next_good_one_is_not(directory: Path, data: bytes) -> None:
    close_chunk(directory, 1, QUIET)
    with closing(Listener(str(directory), LOSS_DB)) as listener:
        assert hear(listener).loss.value is True
        close_chunk(directory, 2, data)
        assert hear(listener) is UNKNOWN and name(2) in listener.trouble
        assert hear(listener) is UNKNOWN
        close_chunk(directory, 3)
        assert hear(listener).loss.value is False and listener.trouble == ""


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_bad_chunks_alone_never_are_silence(directory: Path, listen: Callable[[], Listener], data: bytes) -> None:
    for number in (1, 2, 3):
        close_chunk(directory, number, data)
    listener = listen()
    close_chunk(directory, 4, data)
    assert [hear(listener) for _ in range(3)] == [UNKNOWN] * 3


def test_a_chunk_that_has_gone_is_unknown(directory: Path) -> None:
    with closing(Listener(str(directory), LOSS_DB)) as listener:
        close_chunk(directory, 1, QUIET).unlink()
        assert hear(listener) is UNKNOWN
        assert "No such file" in listener.trouble


def test_a_fifo_in_its_place_does_not_block(directory: Path, listen: Callable[[], Listener]) -> None:
    close_chunk(directory, 1)
    os.mkfifo(directory / name(2))
    listener = listen()
    assert hear(listener).loss.value is False
    os.mkfifo(directory / name(3))
    assert hear(listener).loss.value is False


def test_an_old_chunk_says_nothing_of_a_later_frame_nor_of_a_much_earlier_one(
    directory: Path, listen: Callable[[], Listener]
) -> None:
    closed_ns = close_chunk(directory, 1, QUIET).stat().st_mtime_ns
    listener = listen()
    assert listener.hear(closed_ns + STALE_NS).loss.value is True
    assert listener.hear(closed_ns + STALE_NS + 1) is UNKNOWN
    assert listener.hear(closed_ns - STALE_NS).loss.value is True
    assert listener.hear(closed_ns - STALE_NS - 1) is UNKNOWN


def test_sound_that_stops_coming_is_told_once_it_was_looked_for(
    directory: Path, listen: Callable[[], Listener]
) -> None:
    close_chunk(directory, 1)
    listener = listen()
    assert hear(listener, 5) is UNKNOWN and listener.trouble == ""
    listener._look_due_ns = 0
    assert hear(listener, 5) is UNKNOWN
    assert listener.trouble == f"{name(1)} is 5.0 s off"


# -- a successor ------------------------------------------------------------------------------------------------------


def test_a_successor_lists_once_and_takes_the_newest_whole_chunk(
    directory: Path, listen: Callable[[], Listener]
) -> None:
    close_chunk(directory, 1)
    close_chunk(directory, 2, QUIET)
    close_chunk(directory, 3, UNFINISHED)
    close_chunk(directory, 4, b"")
    listener = listen()
    assert hear(listener).loss.value is True
    assert listener._name == name(2)


def test_numbers_go_on_after_those_that_killed_ffmpegs_left(directory: Path, listen: Callable[[], Listener]) -> None:
    close_chunk(directory, 1)
    listener = listen()
    for number in (2, 3, 4):
        close_chunk(directory, number, UNFINISHED)
    close_chunk(directory, 5, QUIET)
    assert hear(listener).loss.value is True


def test_a_listing_goes_by_number_not_by_name(directory: Path) -> None:
    for number, data in ((999_999_999, LOUD), (1_000_000_000, QUIET)):
        close_chunk(directory, number, data)
    with closing(Listener(str(directory), LOSS_DB)) as listener:
        assert hear(listener).loss.value is True


def test_a_numbering_restart_is_followed(directory: Path) -> None:
    close_chunk(directory, 500)
    with closing(Listener(str(directory), LOSS_DB)) as listener:
        assert hear(listener).loss.value is False
        close_chunk(directory, 1, QUIET)
        assert hear(listener).loss.value is True


# -- the directory ----------------------------------------------------------------------------------------------------


def look(listener: Listener) -> Sound:
    """Hear when nothing has come for long enough to look at the directory again."""
    listener._look_due_ns = listener._closed_ns = 0
    return hear(listener)


def test_a_directory_that_comes_later_is_found(directory: Path, listen: Callable[[], Listener]) -> None:
    directory.rmdir()
    listener = Listener(str(directory), LOSS_DB)
    with closing(listener):
        assert hear(listener) is UNKNOWN and listener.trouble == "", "it may come yet"
        assert look(listener) is UNKNOWN and "No such file" in listener.trouble
        directory.mkdir()
        close_chunk(directory, 1)
        assert look(listener).loss.value is False
        close_chunk(directory, 2, QUIET)
        assert hear(listener).loss.value is True


@pytest.mark.parametrize("go", [shutil.rmtree, lambda path: path.rename(f"{path}.old")], ids=["removed", "renamed"])
def test_a_directory_that_is_replaced_is_followed(
    directory: Path, listen: Callable[[], Listener], go: Callable[[Path], object]
) -> None:
    close_chunk(directory, 1)
    listener = listen()
    assert hear(listener).loss.value is False
    go(directory)
    hear(listener)
    directory.mkdir()
    close_chunk(directory, 1, QUIET)
    assert look(listener).loss.value is True
    close_chunk(directory, 2)
    assert hear(listener).loss.value is False


@needs("bindfs")
def test_a_file_system_that_is_blind_to_changes_is_probed(tmp_path: Path) -> None:
    back, mirror = tmp_path / "back", tmp_path / "mirror"
    with bindfs(back, mirror), closing(Listener(str(mirror), LOSS_DB)) as listener:
        assert listener._inotify is None
        close_chunk(back, 1)
        assert look(listener).loss.value is False
        close_chunk(back, 2, QUIET)
        assert wait_until(lambda: hear(listener).loss.value, 20, "silence") is True


@needs()
def test_lost_events_are_made_up_for(directory: Path) -> None:
    with sysctl("fs.inotify.max_queued_events", 8):
        listener = Listener(str(directory), LOSS_DB)
    with closing(listener):
        for number in range(1, 31):
            close_chunk(directory, number, LOUD if number < 30 else QUIET)
        assert hear(listener).loss.value is True, "the last of 30, where 8 events were kept"
        close_chunk(directory, 31)
        assert hear(listener).loss.value is False


def test_a_listener_leaves_no_descriptor(directory: Path) -> None:
    before = open_descriptors(os.getpid())
    listener = Listener(str(directory), LOSS_DB)
    assert open_descriptors(os.getpid()) == before + 1
    listener.close()
    listener.close()
    assert open_descriptors(os.getpid()) == before


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("audio_dir", "capture", "path"),
    [
        ("audio", None, "/frames/a/audio"),
        ("/elsewhere", None, "/elsewhere"),
        ("", None, ""),
        ("", Capture(profile="file", input="x"), ""),
        ("", Capture(profile="file", input="x", audio=True), "/frames/a/audio"),
    ],
    ids=str,
)
def test_a_source_has_sound_if_its_settings_say_so(audio_dir: str, capture: Capture | None, path: str) -> None:
    assert Source(name="a", dir="/frames/a", audio_dir=audio_dir, capture=capture).audio_path == path
