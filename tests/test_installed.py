"""Whose places a command means that is told of none: the installed service's, where there is one."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import installed, learned, mutes
from pipeline.commands import incidents, learn_no_signal, mute, status, unmute
from pipeline.model import ConfigError, InputError
from tests.cards import captured, plain, write
from tests.support import Rig, publish

SOURCE = '[[source]]\nname = "{}"\ndir = "/srv/x"\n'


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration of an installed service (not there yet); all its other places are below `tmp_path` too."""
    for name in installed._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    places = {"RUNTIME_DIRECTORY": str(tmp_path / "run"), "STATE_DIRECTORY": str(tmp_path / "state")}
    monkeypatch.setattr(installed, "DIRECTORIES", places)
    monkeypatch.setattr(installed, "BOARD", str(tmp_path / "run" / "board"))
    monkeypatch.setattr(installed, "CONFIG_FILE", str(tmp_path / "stillwatch.toml"))
    return tmp_path / "stillwatch.toml"


def parsed(command: object, *words: str) -> argparse.Namespace:
    """A command's flags."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)  # type: ignore[attr-defined]
    return parser.parse_args(words)


def places(*words: str) -> tuple[str, str]:
    """Where `status` looks with these flags."""
    settings = installed.settings_for_reading(parsed(status, *words))
    return settings.runtime_dir, settings.state_dir


def test_where_nothing_is_installed_it_is_the_callers_own(etc: Path) -> None:
    assert str(etc.parent / "run") not in places()


def test_the_installed_service_is_found_by_its_configuration(etc: Path) -> None:
    etc.write_text("")
    assert places() == (str(etc.parent / "run"), str(etc.parent / "state"))
    etc.write_text('state_dir = "/srv/state"\n')
    assert places() == (str(etc.parent / "run"), "/srv/state")
    assert places(f"--config={etc}") == places()


def test_the_installed_service_is_found_by_its_board(etc: Path) -> None:
    """Its configuration may be closed to who asks, or may hold a mistake that the service has not met yet."""
    (etc.parent / "run").mkdir()
    (etc.parent / "run" / "board").touch()
    assert places() == (str(etc.parent / "run"), str(etc.parent / "state"))
    etc.write_text("workers = = 1")
    assert places() == (str(etc.parent / "run"), str(etc.parent / "state"))


def test_a_mistake_in_the_configuration_is_told_where_nothing_runs(etc: Path) -> None:
    etc.write_text("workers = = 1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        places()


def test_who_names_a_place_gets_that_one(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    etc.write_text("")
    own = etc.parent / "own.toml"
    own.write_text('runtime_dir = "/run/own"\nstate_dir = "/srv/own"\n')
    assert places("--runtime-dir=/run/own")[0] == "/run/own"
    assert str(etc.parent / "state") not in places("--runtime-dir=/run/own")
    assert places(f"--config={own}") == ("/run/own", "/srv/own")
    monkeypatch.setenv("STILLWATCH_STATE_DIR", "/srv/named")
    assert places()[1] == "/srv/named" and str(etc.parent / "run") not in places()


def test_the_commands_look_there(rig: Callable[..., Rig], etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    etc.write_text(SOURCE.format("b"))
    with rig("--workers=1") as service:
        assert service.base == etc.parent
        assert status.run(parsed(status, "--json")) == 0
        assert json.loads(capsys.readouterr().out)["sources"][0]["name"] == "a"
        assert incidents.run(parsed(incidents)) == 0
        for name in ("a", "b"):  # watched, and configured
            assert mute.run(parsed(mute, name, "1h")) == 0
        assert set(mutes.read(str(etc.parent / "state"))) == {"a", "b"}
        assert unmute.run(parsed(unmute, "a")) == 0


def test_only_a_configured_source_is_muted_where_none_runs(etc: Path) -> None:
    os.mkdir(etc.parent / "state")
    etc.write_text(SOURCE.format("tv2"))
    with pytest.raises(InputError, match="tv3: no such source; there are tv2"):
        mute.run(parsed(mute, "tv3", "1h"))
    assert mute.run(parsed(mute, "tv2", "1h")) == 0


def test_incidents_are_those_of_a_configuration(etc: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(f'state_dir = "{tmp_path}/elsewhere"\n')
    with pytest.raises(InputError, match=f"{tmp_path}/elsewhere/.*: no incident log"):
        incidents.run(parsed(incidents, f"--config={tmp_path / 'own.toml'}"))


def test_a_picture_is_learned_for_the_installed_service(etc: Path, tmp_path: Path) -> None:
    """Its state directory is where the service looks for it."""
    (tmp_path / "state").mkdir()
    frames = tmp_path / "run" / "frames" / "b"
    frames.mkdir(parents=True)
    for number in range(5):
        publish(frames, number, captured(write(plain("106070"), "NO INPUT", 200, 300), 1.0, 85, number))
    etc.write_text('[[source]]\nname = "b"\n[source.capture]\nprofile = "lavfi"\ninput = "scene:live"\n')
    assert learn_no_signal.run(parsed(learn_no_signal, "b")) == 0
    assert learned.find(str(tmp_path / "state"), "b") is not None
    assert learn_no_signal.run(parsed(learn_no_signal, "b", "--forget")) == 0
