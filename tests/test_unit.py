"""What systemd/ holds, as far as that can be asked without a running systemd: tests/systemd has one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from pipeline import config
from pipeline.model import Exit
from pipeline.settings import Settings
from pipeline.store import r2_settings
from tests.doctoring import stub
from tests.machine import STRANGER, UNPRIVILEGED, in_mounts, needs, open_place
from tests.support import ROOT

UNIT = ROOT / "systemd" / "stillwatch.service"
MAX_EXPOSURE = 1.5


def values(key: str) -> list[str]:
    """What the unit says for a key."""
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit as if it were installed here: its program is one that there is."""
    copy = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8")
    assert text.count("ExecStart=/usr/local/bin/stillwatch ") == 1
    copy.write_text(text.replace("/usr/local/bin/stillwatch", "/bin/true"), encoding="utf-8")
    return copy


@needs("systemd-analyze", root=False)
def test_systemd_has_nothing_to_say_about_it(unit: Path) -> None:
    """It returns 0 also for unknown keys and bad values: only silence counts."""
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    unit.write_text(unit.read_text().replace("OOMPolicy=continue", "OOMPolicy=perhaps"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert "perhaps" in done.stdout + done.stderr, "it never complains: nothing was shown"


@needs("systemd-analyze", root=False)
def test_it_is_hardened(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found and float(found[1]) <= MAX_EXPOSURE, done.stdout + done.stderr


def test_a_wrong_configuration_is_not_tried_again() -> None:
    assert values("RestartPreventExitStatus") == [str(int(Exit.CONFIG))]


def test_every_credential_is_one_that_is_read_and_may_be_missing(tmp_path: Path) -> None:
    files = dict(value.split(":", 1) for value in values("LoadCredential"))
    assert files == {name: f"/etc/stillwatch/credentials/{name}" for name in files}
    defaults = dict(value.split(":", 1) for value in values("SetCredential"))
    assert defaults == dict.fromkeys(files, "\\n"), "a missing file would keep the unit from starting"
    for name in files:
        (tmp_path / name).write_text("\n")
    assert r2_settings({}, str(tmp_path)) is None
    right = {"r2-endpoint": "https://a.r2.cloudflarestorage.com", "r2-public-url": "https://evidence.example.com"}
    for name in files:
        (tmp_path / name).write_text(right.get(name, "some-value") + "\n")
    found = r2_settings({}, str(tmp_path))
    assert found and found.public_url and found.secret_access_key == "some-value"


# --- the example configuration ---------------------------------------------------------------------------------------

EXAMPLE = ROOT / "systemd" / "stillwatch.toml"


def test_the_example_is_a_configuration_that_works_at_once() -> None:
    found = config.load(str(EXAMPLE), {}, {"runtime_dir": "/run/stillwatch", "state_dir": "/var/lib/stillwatch"})
    assert [source.dir for source in found.source] == ["/run/stillwatch/frames/test"]


def test_what_the_example_shows_are_defaults_and_can_be_uncommented(tmp_path: Path) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    shown = re.findall(r"^#(\w+ = .*)$", text[: text.index("[[source]]")], re.MULTILINE)
    defaults = tomllib.loads("\n".join(shown))
    assert len(defaults) > 5 and {key: getattr(Settings(), key) for key in defaults} == defaults
    path = tmp_path / "all.toml"
    path.write_text(re.sub(r"^#(\w+ = |\[)", r"\1", text, flags=re.MULTILINE), encoding="utf-8")
    sources = {source.name: source for source in config.load(str(path), {}, {}).source}
    assert sorted(sources) == ["desktop", "hall", "stb1", "test", "tv2"]
    assert sources["tv2"].rules["freeze"].raise_s == 30.0


# --- install.sh ------------------------------------------------------------------------------------------------------

INSTALL = ROOT / "systemd" / "install.sh"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["instal"], "'instal': not known; see --help"),
        (["install", "rollback"], "one command only; see --help"),
        (["rollback", "--no-start"], "--no-start is for install"),
        (["--purge"], "--purge is for uninstall"),
    ],
)
def test_a_wrong_command_line_does_nothing(words: list[str], text: str) -> None:
    done = subprocess.run([str(INSTALL), *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"install.sh: {text}\n")


def test_help_says_every_place_and_exit_code() -> None:
    done = subprocess.run([str(INSTALL), "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    script = INSTALL.read_text(encoding="utf-8")
    codes = {int(code) for code in re.findall(r"\b(?:die|fail \S+) (\d+) ", script)}
    assert {int(code) for code in re.findall(r"\b(\d+) [a-z]", done.stdout.partition("exit codes:")[2])} == codes | {0}


@needs("setpriv")
def test_installing_without_being_root_is_refused_in_one_line() -> None:
    with open_place() as place:
        script = shutil.copy(INSTALL, place)
        command = [*UNPRIVILEGED[:-1], f"--reuid={STRANGER}", "--", script]
        done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (71, "")
    assert done.stderr == f"install.sh: must be root: sudo {script} install\n"


@needs("unshare")
def test_uninstall_goes_on_where_something_is_mounted(tmp_path: Path) -> None:
    """In mounts of its own, with a systemctl that does nothing: somebody's tmpfs lies below the runtime directory."""
    masked = ["/opt", "/usr/local/bin", "/run", "/var/log", "/etc/systemd/system"]
    wrapper = in_mounts(
        *[f"mount -t tmpfs t {place}" for place in masked],
        "mkdir -p /opt/stillwatch/1 /run/stillwatch/frames",
        "mount -t tmpfs t /run/stillwatch/frames",
        "touch /run/stillwatch/board /run/stillwatch/frames/theirs /etc/systemd/system/stillwatch.service",
    )
    script = f'"{INSTALL}" uninstall; echo "code $?"; find {" ".join(masked)} -type f; ls /opt'
    environment = {**os.environ, **stub(tmp_path / "bin", "systemctl", "exit 0")}
    done = subprocess.run([*wrapper, "sh", "-c", script], env=environment, capture_output=True, text=True)
    said, _, left = done.stdout.partition("code ")
    assert left == "0\n/run/stillwatch/frames/theirs\n", done.stdout + done.stderr
    assert "/run/stillwatch could not be removed whole" in said and "removed\n" in said
