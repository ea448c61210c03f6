"""Credentials and directories that are not as they should be: `run` ends with one line, `doctor` has a line on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

from tests.doctoring import examine
from tests.machine import STRANGER, UNPRIVILEGED, needs, open_place, read_only
from tests.support import Rig
from tests.test_settings import assert_refused, start

VALUES = {
    "r2-endpoint": "https://localhost:1",
    "r2-access-key-id": "AKIAHUSHHUSH",
    "r2-secret-access-key": "hushhush",
    "r2-bucket": "rig1-evidence",
}


def credentials(folder: Path, **changed: str | None) -> dict[str, str]:
    """The environment of a service with these files, of which some say something else or are not there."""
    folder.mkdir()
    for name, value in {**VALUES, **{f"r2-{key.replace('_', '-')}": text for key, text in changed.items()}}.items():
        if value is not None:
            (folder / name).write_bytes(value.encode())
            (folder / name).chmod(0o600)
    return {"CREDENTIALS_DIRECTORY": str(folder)}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"bucket": None}, ["CLOUDFLARE_R2_BUCKET is not; set it (or the credential r2-bucket)"]),
        ({"secret_access_key": ""}, ["CLOUDFLARE_R2_SECRET_ACCESS_KEY is not; set it"]),
        ({"access_key_id": " \n"}, ["CLOUDFLARE_R2_ACCESS_KEY_ID is not; set it"]),
        ({"secret_access_key": "hushhush\nhushhush\n"}, ["r2-secret-access-key is not right"]),
        ({"endpoint": "localhost"}, ["r2-endpoint is not right"]),
    ],
    ids=["missing", "empty", "white space", "two lines", "no URL"],
)
def test_credentials_that_cannot_be_used(tmp_path: Path, changed: dict[str, str | None], words: list[str]) -> None:
    environment = credentials(tmp_path / "credentials", **changed)
    done = start(tmp_path, "--source=a=.", environment=environment)
    assert_refused(done, *words)
    found = examine(tmp_path, "configuration", "r2", f"--source=a={tmp_path}", environment=environment)
    assert found.code == 78 and all(word in found.amiss("configuration", "fail")["found"] for word in words)
    assert found.verdict("r2") == "skipped"
    assert "hushhush" not in done.stderr.lower() + str(found).lower()


@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\n\n"], ids=repr)
def test_an_editors_white_space_is_no_part_of_a_credential(tmp_path: Path, end: str) -> None:
    changed = {name.removeprefix("r2-").replace("-", "_"): value + end for name, value in VALUES.items()}
    environment = credentials(tmp_path / "credentials", **changed)
    assert examine(tmp_path, "configuration", f"--source=a={tmp_path}", environment=environment).fit
    found = examine(tmp_path, "r2", environment=environment)
    found.amiss("r2", "fail", "https://localhost:1")
    assert "hushhush" not in str(found).lower()


def test_no_credentials_at_all_keep_evidence_here(tmp_path: Path) -> None:
    """As the unit has them where nobody has filled them in: a line end each."""
    environment = credentials(tmp_path / "credentials")
    for path in (tmp_path / "credentials").iterdir():
        path.write_text("\n")
    assert "evidence stays in" in examine(tmp_path, "r2", environment=environment).of("r2")[0]["found"]
    with Rig(tmp_path, "--workers=1", CREDENTIALS_DIRECTORY=environment["CREDENTIALS_DIRECTORY"]) as service:
        assert "local directory" in service.log


@needs("setpriv")
def test_a_credential_of_others(tmp_path: Path) -> None:
    with open_place() as base:
        environment = credentials(base / "credentials")
        os.chown(base / "credentials" / "r2-bucket", STRANGER, STRANGER)
        done = start(base, "--source=a=.", environment=environment, wrapper=UNPRIVILEGED)
        assert_refused(done, "credential", "r2-bucket", "Permission denied", "LoadCredential=")
        found = examine(base, "configuration", "r2", environment=environment, wrapper=UNPRIVILEGED)
        found.amiss("r2", "unknown", "r2-bucket may not be read by you")


# -- directories ------------------------------------------------------------------------------------------------------


def owned_by_another(place: Path) -> AbstractContextManager[object]:
    """A directory that the service may look into and not write in."""
    os.chown(place, STRANGER, STRANGER)
    return nullcontext()


@contextmanager
def taken_by_a_file(place: Path) -> Iterator[None]:
    """A file of that name."""
    place.rmdir()
    place.write_text("")
    yield


@needs("setpriv")
@pytest.mark.parametrize("key", ["state", "runtime"])
@pytest.mark.parametrize(
    ("spoil", "refusal", "told"),
    [
        (read_only, "Read-only file system", "may not write"),
        (owned_by_another, "", "may not write"),
        (taken_by_a_file, "exists", "is no directory"),
    ],
    ids=["read-only", "of another user", "a file"],
)
def test_a_directory_that_cannot_be_used(
    key: str, spoil: Callable[[Path], AbstractContextManager[object]], refusal: str, told: str
) -> None:
    with open_place() as base:
        for name in ("state", "runtime", "frames"):
            (base / name).mkdir()
        flags = [f"--source=a={base / 'frames'}", f"--state-dir={base / 'state'}", f"--runtime-dir={base / 'runtime'}"]
        with spoil(base / key):
            assert_refused(start(base, *flags, wrapper=UNPRIVILEGED), f"{key}_dir: {base / key}", refusal)
            found = examine(None, f"{key} directory", *flags, wrapper=UNPRIVILEGED)
            assert found.code == 1
            found.amiss(f"{key} directory", "fail", told)
