"""`learn-no-signal`, the file that it makes, and those who read it: replay and the running service."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import detectors, learned
from pipeline.commands import incidents
from pipeline.model import Exit, InputError
from pipeline.signature import learn
from tests.cards import captured, plain, wandering, write
from tests.machine import STRANGER, FaultRig, needs
from tests.support import ROOT, make_frame, publish, wait_until

pytestmark = pytest.mark.any_python


def card(number: int) -> bytes:
    """What the grabber of these tests shows: words that move on teal."""
    return captured(write(plain("106070"), "NO INPUT", *wandering(number)), 1.0, 85, number)


def film(number: int) -> bytes:
    return make_frame(number % 50, 1280, 720)


def record(directory: Path, count: int, make: Callable[[int], bytes], first: int = 1) -> Path:
    directory.mkdir(exist_ok=True)
    for number in range(first, first + count):
        publish(directory, number, make(number))
    return directory


def stillwatch(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "pipeline", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=40)


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One line on standard error, and nothing stored."""
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("stillwatch: "), done.stderr
    missing = [word for word in words if word not in done.stderr]
    assert not missing, f"{missing} not in {done.stderr}"


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    return record(tmp_path / "cards", 20, card)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def teach(cards: Path, state: Path, source: str = "a") -> Path:
    done = stillwatch("learn-no-signal", source, "--from", cards, "--state-dir", state)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return Path(learned.path_of(str(state), source))


# -- learning ---------------------------------------------------------------------------------------------------------


def test_it_says_what_it_saw_and_how_to_check_it(cards: Path, state: Path) -> None:
    done = stillwatch("learn-no-signal", "stb1", "--from", cards, "--state-dir", state)
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    assert "stb1: 20 frames" in text and "capture_000000001 to capture_000000020, about 1280x720" in text
    assert "stands still, mostly in #11606F; plain, and something moves on it" in text
    assert "recognised in 20 of these frames; without learning in 0" in text
    assert f"./stillwatch replay --no-signal {state}/no_signal/stb1.json DIR" in text.replace("- ", "-")
    file = state / "no_signal" / "stb1.json"
    assert file.stat().st_size < 24_000 and stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_of_a_configured_source_the_newest_frames_are_taken(tmp_path: Path, state: Path) -> None:
    record(tmp_path / "frames", 30, film, first=500)
    record(tmp_path / "frames", 10, card)  # numbers began anew: the lower are the newer
    (tmp_path / "settings.toml").write_text('[[source]]\nname = "stb1"\ndir = "frames"\n')
    words = ["learn-no-signal", "stb1", f"--config={tmp_path}/settings.toml", f"--state-dir={state}"]
    done = stillwatch(*words, "--frames", "10")
    assert done.returncode == 0, done.stderr
    assert "capture_000000001 to capture_000000010" in done.stdout
    refused(stillwatch(*words), Exit.FAILED, "frames", "of the picture stands still", "--frames N")
    assert learned.find(str(state), "stb1") is not None, "what was learned before is kept"


def test_a_source_of_the_command_line_will_do(cards: Path, state: Path) -> None:
    done = stillwatch("learn-no-signal", "a", "--source", f"a={cards}", "--state-dir", state)
    assert done.returncode == 0 and learned.find(str(state), "a")


def test_a_card_that_is_known_already_is_learned_and_that_is_said(tmp_path: Path, state: Path) -> None:
    record(tmp_path / "blue", 5, lambda number: captured(plain("0000BE"), 1.0, 85, number))
    done = stillwatch("learn-no-signal", "a", "--from", tmp_path / "blue", "--state-dir", state)
    assert done.returncode == 0
    assert "recognised in 5 of these frames; without learning in 5" in " ".join(done.stdout.split())


def test_frames_that_cannot_be_read_are_left_out(cards: Path, state: Path) -> None:
    (cards / "capture_000000020.jpg").write_bytes(b"no JPEG")
    done = stillwatch("learn-no-signal", "a", "--from", cards, "--state-dir", state)
    assert done.returncode == 0 and "a: 19 frames" in done.stdout


def test_learning_again_replaces_it(cards: Path, tmp_path: Path, state: Path) -> None:
    file = teach(cards, state)
    before = file.read_bytes()
    (file.parent / "a.json.new").write_bytes(b"of a call that was killed")
    purple = record(tmp_path / "purple", 5, lambda number: captured(plain("602080"), 1.0, 85, number))
    assert teach(purple, state) == file and file.read_bytes() != before
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


@needs("chown")
def test_the_file_belongs_to_the_owner_of_the_state_directory(cards: Path, state: Path) -> None:
    """Learned by root, read by a service that is not."""
    state.mkdir()
    os.chown(state, STRANGER, STRANGER)
    file = teach(cards, state)
    assert {path.stat().st_uid for path in (file, file.parent)} == {STRANGER}


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "count", "words"),
    [
        (film, 10, ["stands still", "--frames N"]),
        (lambda number: captured(plain("000000"), 2.0, 85, number), 10, ["plain black", "nothing is to be learned"]),
        (card, 2, ["2 frames are too few"]),
        (lambda number: make_frame(0) if number > 3 else card(number), 6, ["differ in size"]),
    ],
    ids=["a programme", "black", "too few", "two sizes"],
)
def test_what_is_not_fit_is_refused_with_the_mend(
    tmp_path: Path, state: Path, make: Callable[[int], bytes], count: int, words: list[str]
) -> None:
    directory = record(tmp_path / "shown", count, make)
    refused(stillwatch("learn-no-signal", "a", "--from", directory, "--state-dir", state), Exit.FAILED, *words)
    assert not state.exists()


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["x"], Exit.CONFIG, ["'x' is not configured", "--config", "--from"]),
        (["a b", "--from", "cards"], Exit.CONFIG, ["'a b'", "letters"]),
        (["../a", "--from", "cards"], Exit.CONFIG, ["'../a'"]),
        (["a", "--from", "missing"], Exit.NO_INPUT, ["missing", "No such file", "--from"]),
        (["a", "--from", "."], Exit.NO_INPUT, ["no capture_<digits>.jpg in it"]),
        (["a", "--from", "bad"], Exit.NO_INPUT, ["none of its 3 newest frames can be read"]),
        (["a", "--from", "cards", "--config", "missing.toml"], Exit.CONFIG, ["missing.toml"]),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_a_mistake_is_one_line(
    tmp_path: Path, state: Path, cards: Path, words: list[str], code: int, named: list[str]
) -> None:
    record(tmp_path / "bad", 3, lambda _: b"no JPEG")
    done = stillwatch("learn-no-signal", *words, "--state-dir", state, cwd=tmp_path)
    refused(done, code, *named)
    assert not state.exists()


def test_forgetting(cards: Path, state: Path) -> None:
    file = teach(cards, state)
    done = stillwatch("learn-no-signal", "a", "--forget", "--state-dir", state)
    assert done.returncode == 0 and "forgotten" in done.stdout and not file.exists()
    again = stillwatch("learn-no-signal", "a", "--forget", "--state-dir", state)
    assert again.returncode == Exit.FAILED and "not learned" in again.stdout and again.stderr == ""


# -- those who read it ------------------------------------------------------------------------------------------------

DAMAGED = {
    "empty": b"",
    "cut": b'{"schema": 1, "frames": 20',
    "another thing": b'{"schema": 1}',
    "of another version": b'{"schema": 2, "frames": 1, "stable_pct": 9.0, "colours": "", "spread": ""}',
    "text": b"\xff\xfe no JSON",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.json: damaged: .*; learn it again"):
        learned.read(str(file))


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    signature = learn([detectors.decode_colour(card(number)) for number in range(10)])
    path = learned.save(str(tmp_path / "new" / "state"), "a", signature)
    assert learned.read(path) == learned.find(str(tmp_path / "new" / "state"), "a") == signature
    assert learned.find(str(tmp_path), "a") is None


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Ten frames of a film, then twenty of the card, named as the source is."""
    record(tmp_path / "a", 10, film)
    return record(tmp_path / "a", 20, lambda number: card(number + 100), first=11)


def test_replay_shows_what_a_learned_picture_would_do(cards: Path, state: Path, mixed: Path) -> None:
    file = teach(cards, state)
    without = lines(stillwatch("replay", "--json", mixed))
    assert {frame["no_signal"] for frame in without[:30]} == {False}
    frames = lines(stillwatch("replay", "--json", "--no-signal", file, "--fps=2", mixed))
    assert [frame["no_signal"] for frame in frames[:30]] == [False] * 10 + [True] * 20
    assert [(one["condition"], one["source"]) for one in frames[30:]] == [("no_signal", "a")]
    table = stillwatch("replay", "--no-signal", file, mixed).stdout
    assert ["a", "no_signal", "11", "30", "20", "4.0"] in [row.replace("│", " ").split() for row in table.splitlines()]


def test_replay_takes_the_sources_own_from_the_state_directory(cards: Path, state: Path, mixed: Path) -> None:
    teach(cards, state)
    frames = lines(stillwatch("replay", "--json", "--state-dir", state, mixed))
    assert sum(frame.get("no_signal") is True for frame in frames) == 20


def test_replay_refuses_a_damaged_file(state: Path, mixed: Path) -> None:
    state.mkdir()
    (state / "x.json").write_bytes(b"{}")
    refused(stillwatch("replay", "--no-signal", state / "x.json", mixed), Exit.NO_INPUT, "x.json", "damaged")


RULES = "[source.rules.no_signal]\nraise_s = 0\nclear_s = 0\n"


def service_over(tmp_path: Path) -> FaultRig:
    rig = FaultRig(tmp_path)
    rig.config = tmp_path / "settings.toml"
    rig.config.write_text(f'min_free_bytes = 0\n[[source]]\nname = "a"\ndir = "{rig.dir}"\nstall_s = 600\n{RULES}')
    return rig


def test_a_running_service_takes_it_up_at_a_reload(cards: Path, tmp_path: Path) -> None:
    with service_over(tmp_path) as service:
        assert service.process
        for number in range(1, 4):
            service.publish(number, card(number))
        before = service.wait_sidecars(3)
        teach(cards, tmp_path / "state")
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: service.lines("change done"), 20, "a reload")
        for number in range(4, 8):
            service.publish(number, card(number))
        after = service.wait_sidecars(7)
        wait_until(lambda: list(incidents.read(str(tmp_path / "state"))), 30, "an incident")
        assert service.books()["a"]["judged"] == 7
    assert [before[number]["no_signal"] for number in (1, 2, 3)] == [False] * 3
    assert [after[number]["no_signal"] for number in (4, 5, 6, 7)] == [True] * 4
    assert [one["condition"] for one in incidents.read(str(tmp_path / "state"))] == ["no_signal"]


@pytest.mark.parametrize("data", [b"\xff\xfe no JSON", b""], ids=["text", "empty"])
def test_a_worker_goes_on_without_a_damaged_one(tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "state" / learned.FOLDER
    folder.mkdir(parents=True)
    (folder / "a.json").write_bytes(data)
    with service_over(tmp_path) as service:
        service.publish(1, card(1))
        service.publish(2, captured(plain("0000BE")))
        found = service.wait_sidecars(2)
        assert [found[number]["no_signal"] for number in (1, 2)] == [False, True]
        (line,) = service.lines("learned picture not used")
        assert " WARNING worker/0 " in line and "source=a" in line and "learn it again" in line
        assert not service.lines("child died")


def test_a_fifo_in_its_place_does_not_stop_a_worker(tmp_path: Path) -> None:
    folder = tmp_path / "state" / learned.FOLDER
    folder.mkdir(parents=True)
    os.mkfifo(folder / "a.json")
    with service_over(tmp_path) as service:
        service.publish(1, card(1))
        assert service.wait_sidecars(1)[1]["no_signal"] is False
        assert service.lines("learned picture not used")
