"""Sound and no-signal cards in the running service: real FFmpegs, real chunks, and every way a chunk can be wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands import incidents
from tests.live import child_row, running_pid
from tests.machine import FaultRig, in_namespace_with, needs
from tests.support import wait_until
from tests.test_capture_script import Capture
from tests.test_listening import BAD, LOUD, QUIET, close_chunk, name

pytestmark = pytest.mark.any_python

SOURCE = """
[[source]]
name = "{name}"
dir = "{dir}"
audio_dir = "{audio}"
[source.rules.audio_loss]
raise_s = {raise_s}
clear_s = 1
[source.rules.no_signal]
raise_s = 2
clear_s = 1
"""


def service_with(base: Path, sound: tuple[str, ...], silent: tuple[str, ...] = (), raise_s: float = 2) -> FaultRig:
    """A service whose first sources have sound."""
    rig = FaultRig(base, sources=(*sound, *silent))
    tables = [
        SOURCE.format(name=source, dir=directory, audio="audio" if source in sound else "", raise_s=raise_s)
        for source, directory in rig.dirs.items()
    ]
    rig.config = base / "settings.toml"
    rig.config.write_text("min_free_bytes = 0\n" + "".join(tables), encoding="utf-8")
    for source in sound:
        (rig.dirs[source] / "audio").mkdir()
    return rig


def told(rig: FaultRig) -> list[tuple[str, str, str]]:
    """The incidents: source, condition, reason of the end."""
    found = incidents.read(str(rig.base / "state"))
    return sorted((one["source"], one["condition"], one["reason"]) for one in found)


def show(rig: FaultRig, number: int, source: str | None = None) -> dict[str, Any]:
    """Publish a frame; its sidecar."""
    path = rig.publish(number, source=source)
    wait_until(path.with_suffix(".json").exists, 20, "its sidecar")
    return rig.wait_sidecars(1, source)[number]


@pytest.mark.slow
def test_silence_and_a_card_are_one_incident_each_and_nothing_else(tmp_path: Path) -> None:
    with service_with(tmp_path, ("loud",), ("bars",)) as service:
        scenes = {"loud": ("scene:silence:4-9", "--audio"), "bars": ("scene:bars:4-9", "--size=640x360")}
        captures = [
            Capture(service.dirs[source], "--profile=lavfi", f"--input={scene}", "--duration=13", flag)
            for source, (scene, flag) in scenes.items()
        ]
        for capture in captures:
            with capture:
                capture.ended_well()
        loud, bars = service.wait_sidecars(65, "loud"), service.wait_sidecars(65, "bars")
        wait_until(lambda: len(told(service)) == 2, 30, "two incidents")
        books = service.books()
    assert [account["judged"] for account in books.values()] == [65, 65]
    assert told(service) == [("bars", "no_signal", "recovered"), ("loud", "audio_loss", "recovered")]
    # The tone of FFmpeg's sine is at -21 dBFS; it is silent in chunks 5 to 9, which are heard a second later.
    heard = [loud[number]["audio"] for number in range(1, 66)]
    assert heard[:4] == [None] * 4 and True in heard[:12]
    assert {*heard[11:20]} == {True} and {*heard[31:44]} == {False} and {*heard[56:]} == {True}
    assert {loud[n]["mean_volume_db"] for n in range(33, 44)} == {-91.0}
    assert loud[60]["mean_volume_db"] == pytest.approx(-21.1, abs=0.2) and loud[60]["volume_percentage"] == 64
    assert loud[60]["readings"]["audio_channel_1_db"] == loud[60]["mean_volume_db"]
    assert loud[44]["conditions"]["audio_loss"] == "open" and loud[15]["conditions"]["audio_loss"] == "clear"
    # A source without sound never says anything of it
    for content in bars.values():
        assert [content[key] for key in ("audio", "mean_volume_db", "volume_percentage")] == [None] * 3
        assert "audio_loss" not in content["conditions"]
        assert not any(reading.startswith("audio") for reading in content["readings"])
    # and bars are a card exactly as long as they are there
    assert [number for number in sorted(bars) if bars[number]["no_signal"]] == list(range(21, 46))
    assert {content["no_signal"] for content in loud.values()} == {False}


@pytest.mark.slow
def test_a_source_that_is_captured_has_its_sound_without_being_told_where(tmp_path: Path) -> None:
    """Captured, judged and cleared away by one service: chunks go with their frames."""
    rig = FaultRig(tmp_path, sources=("a",))
    rig.config = tmp_path / "settings.toml"
    rig.config.write_text(
        f"""min_free_bytes = 0
[[source]]
name = "a"
dir = "{rig.dir}"
keep_s = 5
[source.capture]
profile = "lavfi"
input = "scene:silence:3-600"
audio = true
""",
        encoding="utf-8",
    )
    with rig as service:
        heard: list[bool | None] = []

        def newest() -> bool | None:
            with suppress(FileNotFoundError, ValueError):  # none yet, or cleared away meanwhile
                path = max(service.dir.glob("*.json"))
                heard.append(json.loads(path.read_text(encoding="utf-8"))["audio"])
            return heard[-1] if heard else None

        wait_until(newest, 30, "sound")
        wait_until(lambda: newest() is False, 30, "silence")
        wait_until(lambda: not (service.dir / "audio" / name(1)).exists(), 30, "the first chunk is cleared away")
        assert newest() is False
        assert service.books()["a"]["judged"] >= 25
        assert not service.lines("sound unknown")  # at its end the last chunk is cut


def test_bad_chunks_are_unknown_in_the_running_service_and_open_nothing(tmp_path: Path) -> None:
    """Silence would be an incident at its second frame here."""
    with service_with(tmp_path, ("a",), raise_s=0) as service:
        sound = service.dir / "audio"
        for number, data in enumerate(BAD.values(), 1):
            close_chunk(sound, number, data)
            assert show(service, 2 * number)["audio"] is None
            assert show(service, 2 * number + 1)["conditions"]["audio_loss"] == "clear"
        (said,) = service.lines("sound unknown")  # the first that the worker saw closed; others only in sidecars
        assert re.search(r" WARNING worker/0 .* source=a cause='audio_00000000\d.wav: ", said)
        count = 2 * len(BAD) + 1
        close_chunk(sound, count, LOUD)
        assert show(service, count + 1)["audio"] is True
        assert told(service) == []
        close_chunk(sound, count + 1, QUIET)
        assert show(service, count + 2)["audio"] is False
        assert show(service, count + 3)["conditions"]["audio_loss"] == "open", "true silence is seen"


def test_an_incident_ends_when_a_reload_takes_its_condition_away(tmp_path: Path) -> None:
    with service_with(tmp_path, ("a",), raise_s=0) as service:
        sound = service.dir / "audio"
        close_chunk(sound, 1, LOUD)
        assert show(service, 1)["audio"] is True
        close_chunk(sound, 2, QUIET)
        show(service, 2)
        assert show(service, 3)["conditions"]["audio_loss"] == "open"
        assert service.config and service.process
        text = service.config.read_text(encoding="utf-8")
        service.config.write_text(text.replace('audio_dir = "audio"', 'audio_dir = ""'), encoding="utf-8")
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: told(service) == [("a", "audio_loss", "superseded")], 30, "the incident is closed")
        assert "audio_loss" not in show(service, 4)["conditions"]


def test_a_worker_that_takes_over_knows_what_there_is_to_hear(tmp_path: Path) -> None:
    with service_with(tmp_path, ("a",)) as service:
        sound = service.dir / "audio"
        assert show(service, 1)["audio"] is None
        close_chunk(sound, 1, LOUD)
        assert show(service, 2)["audio"] is True
        (sound / name(2)).write_bytes(QUIET[:4] + b"\xff" * 4 + QUIET[8:])  # the one that is being written
        before = running_pid(service, "worker/0")
        os.kill(before, signal.SIGKILL)
        running_pid(service, "worker/0", but=before)
        assert child_row(service, "worker/0").restarts == 1
        now_ns = time.time_ns()
        os.utime(sound / name(1), ns=(now_ns, now_ns))  # the machine may have been slow: it is as old as it was
        assert show(service, 3)["audio"] is True


def test_new_workers_listen_and_old_ones_do_not(tmp_path: Path) -> None:
    with service_with(tmp_path, ("a", "b")) as service:
        close_chunk(service.dirs["a"] / "audio", 1, QUIET)
        assert show(service, 1, "a")["audio"] is False
        assert service.process
        os.kill(service.process.pid, signal.SIGHUP)
        wait_until(lambda: service.lines("change done"), 20, "a reload")
        close_chunk(service.dirs["a"] / "audio", 2, LOUD)
        assert show(service, 2, "a")["audio"] is True
        assert show(service, 1, "b")["audio"] is None
        descriptors = [fd for worker in service.children("worker") for fd in Path(f"/proc/{worker.pid}/fd").iterdir()]
        assert sum(os.readlink(fd) == "anon_inode:inotify" for fd in descriptors) == 2, "one watch for each source"


@needs("unshare")
def test_without_inotify_sound_is_heard_all_the_same(tmp_path: Path) -> None:
    service = service_with(tmp_path, ("a",))
    service.wrapper = in_namespace_with(max_inotify_instances=0)
    with service:
        assert "polling" in service.log
        sound = service.dir / "audio"
        close_chunk(sound, 1, LOUD)
        wait_until(lambda: show(service, len(service.published["a"]) + 1)["audio"], 30, "it is heard")
        close_chunk(sound, 2, QUIET)
        assert show(service, len(service.published["a"]) + 1)["audio"] is False
