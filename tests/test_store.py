"""The stores: one suite over a directory, SeaweedFS and rclone, then what each may do wrong and what it is called."""

from __future__ import annotations

import base64
import errno
import hashlib
import logging
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import r2
from pipeline.model import ConfigError
from pipeline.r2 import READ_S, R2Store
from pipeline.store import (
    MAX_KEY_BYTES,
    MAX_PART_BYTES,
    Kind,
    LocalStore,
    ObjectStore,
    R2Settings,
    StoreError,
    evidence_key,
    open_store,
    r2_settings,
)
from tests.machine import needs, tmpfs
from tests.s3_servers import Certificate, ScriptedServer
from tests.support import ROOT

pytest_plugins = ("tests.s3_fixtures",)

JPEG = "image/jpeg"
EVIDENCE = evidence_key("black", "pi", "stb1", "0123abcd", "frame_0.jpg")
ODD_KEYS = [
    EVIDENCE,
    evidence_key("freeze", "../..", "a/b\0\n", "", "."),
    evidence_key("ü" * 300, "x" * 1000, "日本", "~", "%2F"),
    "a",
    "a b/ c ",
    "+&=#?;:@,$!*'()[]{}|\\^`\"<>~",
    "ü/日本",
    "%2F/%25/%/%41/%2E%2E",
    ".hidden/..x/...",
    "x" * 250,
    "/".join(["y" * 203] * 5),
]
Make = Callable[[R2Settings], R2Store]


@pytest.fixture(scope="session", params=["local", "seaweedfs", "rclone"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> R2Settings | str:
    """Settings of a server, or a directory."""
    if request.param == "local":
        return str(tmp_path_factory.mktemp("store"))
    settings: R2Settings = request.getfixturevalue(request.param)
    return settings


@pytest.fixture(params=["seaweedfs", "rclone"], scope="session")
def server(request: pytest.FixtureRequest) -> R2Settings:
    """Settings of a real server."""
    settings: R2Settings = request.getfixturevalue(request.param)
    return settings


@pytest.fixture
def store(place: R2Settings | str) -> Iterator[ObjectStore]:
    """Each kind of store in turn."""
    made = open_store(None, place) if isinstance(place, str) else open_store(place, "")
    yield made
    if isinstance(made, R2Store):
        made.close()


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes R2 stores with short time-outs."""
    made: list[R2Store] = []

    def new(settings: R2Settings) -> R2Store:
        made.append(R2Store(settings, connect_s=0.5, read_s=0.5))
        return made[-1]

    yield new
    for one in made:
        one.close()


def failure(call: Callable[[], object]) -> StoreError:
    """The error of a call, after looking for secrets in every text that could be made of it."""
    with pytest.raises(StoreError) as caught:
        call()
    error = caught.value
    texts = [str(error), repr(error), error.cause, "".join(traceback.format_exception(error))]
    for secret in ("testsecret", "testkeytestkey"):
        assert not any(secret in text for text in texts)
    assert error.__cause__ is None or isinstance(error.__cause__, OSError)
    assert "\n" not in str(error)
    return error


# -- one suite over all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ODD_KEYS, ids=range(len(ODD_KEYS)))
def test_what_was_put_is_what_one_gets(store: ObjectStore, key: str) -> None:
    for data in (b"", b"first", b"and the second, longer", b"and the second, longer"):
        store.put(key, data, JPEG)
        assert store.get(key) == data
        assert store.head(key) == len(data)
    store.delete(key)
    store.delete(key)
    assert store.head(key) is None
    assert failure(lambda: store.get(key)).kind is Kind.DEAD_LETTER


def test_two_megabytes(store: ObjectStore) -> None:
    data = os.urandom(2 << 20)
    store.put("big", data, JPEG)
    assert store.get("big") == data
    assert store.head("big") == len(data)
    store.delete("big")


def test_keys_do_not_mix(store: ObjectStore) -> None:
    keys = ["m/a%2Fb", "m/a/b", "m/A/b", "m/a b", "m/a+b", "m/a%20b"]
    for key in keys:
        store.put(key, key.encode(), "text/plain")
    for key in keys:
        assert store.get(key) == key.encode()
        store.delete(key)


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../../b", "a/./b", "a\0b", "a\nb", "\udc80", "z" * 1025]
)
def test_a_key_that_could_leave_its_place_is_refused(store: ObjectStore, key: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.put(key, b"x", JPEG),
        lambda: store.get(key),
        lambda: store.head(key),
        lambda: store.delete(key),
        lambda: store.url(key),
    ]
    for call in calls:
        error = failure(call)
        assert (error.kind, error.key) == (Kind.DEAD_LETTER, key)


def test_two_threads_put_at_once(store: ObjectStore) -> None:
    def put(name: str) -> None:
        for number in range(10):
            store.put(f"t/{name}/{number}", name.encode() * 1000, JPEG)

    threads = [threading.Thread(target=put, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in "ab":
        for number in range(10):
            assert store.get(f"t/{name}/{number}") == name.encode() * 1000
            store.delete(f"t/{name}/{number}")


def test_it_describes_itself_without_secrets(store: ObjectStore, place: R2Settings | str) -> None:
    for text in (store.describe(), repr(store), str(place), repr(place), f"{place}"):
        assert "testsecret" not in text
        assert "testkey" not in text


# -- the directory --------------------------------------------------------------------------------------------------


def test_a_local_put_is_durable_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        calls.append("data" if "/.tmp/" in name else os.path.relpath(name, tmp_path))
        sync(descriptor)

    def renamed(old: str, new: str) -> None:
        rename(old, new)
        calls.append("rename")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", renamed)
    store = LocalStore(str(tmp_path / "store"))
    store.put("a/b/c", b"1", JPEG)
    assert calls == ["data", "rename", "store/a/b", "store/a", "store", "."]
    calls.clear()
    store.put("a/b/d", b"2", JPEG)
    assert calls == ["data", "rename", "store/a/b"]  # the directories above are known to be on the disk
    store.delete("a/b/c")
    store.delete("a/b/d")
    assert not (tmp_path / "store" / "a").exists()
    calls.clear()
    store.put("a/b/d", b"2", JPEG)
    assert calls == ["data", "rename", "store/a/b", "store/a", "store", "."]  # they are other ones


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_a_failed_fsync_leaves_the_old_object_and_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = LocalStore(str(tmp_path))
    store.put("a/b", b"old", JPEG)
    inodes: list[int] = []

    def fsync(descriptor: int) -> None:
        inodes.append(os.fstat(descriptor).st_ino)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        for _ in range(2):
            error = failure(lambda: store.put("a/b", b"new", JPEG))
            assert error.kind is (Kind.PAUSE if number == errno.EROFS else Kind.RETRY)
    assert len(inodes) == 2  # each put asks once
    assert store.get("a/b") == b"old"
    assert not list((tmp_path / ".tmp").iterdir())
    store.put("a/b", b"new", JPEG)
    assert store.get("a/b") == b"new"


def test_names_that_a_directory_cannot_have_are_dead_letters(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.put("a/b", b"x", JPEG)
    for key in ("a", "a/b/c", "n" * 256, ".tmp/x", ".tmp"):
        assert failure(lambda key=key: store.put(key, b"y", JPEG)).kind is Kind.DEAD_LETTER  # type: ignore[misc]
    assert store.head("a") is None
    assert store.head("a/b/c") is None
    store.delete("a")
    assert [item.key for item in store.objects()] == ["a/b"]


def test_objects_come_oldest_first(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "none yet"))
    assert store.objects() == []
    for age, key in enumerate(["new/1", "mid/2", "old/3"]):
        store.put(key, b"x" * age, JPEG)
        os.utime(f"{store.root}/{key}", ns=(0, 10**18 - age))
    assert [(item.key, item.size) for item in store.objects()] == [("old/3", 2), ("mid/2", 1), ("new/1", 0)]
    assert store.free_bytes() > 0
    assert store.url("a%2F/b c") == f"file://{tmp_path}/none%20yet/a%252F/b%20c"


@needs()
def test_a_full_disk_says_so_and_can_be_freed(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=1m"):
        store = LocalStore(str(tmp_path / "disk" / "store"))
        for number in range(3):
            store.put(f"a/{number}", b"x" * 300_000, JPEG)
        error = failure(lambda: store.put("a/1", b"y" * 300_000, JPEG))
        assert (error.kind, error.cause) == (Kind.RETRY, "No space left on device")
        assert store.get("a/1") == b"x" * 300_000
        store.delete(store.objects()[0].key)
        store.put("a/1", b"y" * 300_000, JPEG)


def test_a_killed_writer_leaves_whole_objects(tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.store import LocalStore; s = LocalStore(sys.argv[1])\n"
        "s.put('a/b', b'0' * 300000, ''); print('ready', flush=True)\n"
        "for n in range(10**6): s.put('a/b', b'%d' % (n % 10) * 300000, '')"
    )
    store = LocalStore(str(tmp_path))
    for delay_ms in (1, 3, 7, 12, 20):
        command = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout and writer.stdout.readline() == b"ready\n"
            time.sleep(delay_ms / 1000)
            writer.send_signal(signal.SIGKILL)
        data = store.get("a/b")
        assert len(data) == 300_000
        assert len(set(data)) == 1
    store.clean()
    assert not list((tmp_path / ".tmp").iterdir())
    assert [item.key for item in store.objects()] == ["a/b"]


def test_boto3_is_not_loaded_without_r2(tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.store import open_store; s = open_store(None, sys.argv[1])\n"
        "s.put('a', b'x', ''); s.get('a'); s.url('a'); s.delete('a')\n"
        "print(sorted({'boto3', 'botocore', 'urllib3', 'ssl', 'http.client', 'pipeline.r2'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, check=True)
    assert found.stdout == b"[]\n"


# -- keys -----------------------------------------------------------------------------------------------------------

parts = st.lists(
    st.one_of(st.text(), st.sampled_from(["", ".", "..", "%", "%2E", "a/b", "A" * 300])), min_size=5, max_size=5
)


@given(parts, parts)
def test_evidence_keys_are_safe_and_never_shared(one: list[str], other: list[str]) -> None:
    key = evidence_key(*one)
    first, *rest = key.split("/")
    assert first == "alerts"
    assert len(rest) == 5
    assert len(key) <= MAX_KEY_BYTES
    for part in rest:
        assert set(part) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-%")
        assert part not in ("", ".", "..")
        assert len(part) <= MAX_PART_BYTES
    assert (evidence_key(*other) == key) == (one == other)


@given(st.text(), st.text())
def test_long_names_do_not_collide(head: str, tail: str) -> None:
    one, other = "x" * 300 + head, "x" * 300 + tail
    assert (evidence_key("black", "pi", one, "1", "f") == evidence_key("black", "pi", other, "1", "f")) == (
        head == tail
    )


def test_plain_names_stay_as_they_are() -> None:
    assert EVIDENCE == "alerts/black/pi/stb1/0123abcd/frame_0.jpg"
    assert evidence_key("black", "a~b", "..", "\udc80", "") == "alerts/black/a%7Eb/%2E%2E/%ED%B2%80/%"


def test_a_shortened_name_is_no_other_name() -> None:
    short = evidence_key("c", "h", "x" * 1000, "i", "f").split("/")[3]
    assert len(short) == MAX_PART_BYTES
    assert evidence_key("c", "h", short, "i", "f").split("/")[3] != short


# -- settings -------------------------------------------------------------------------------------------------------

ENVIRONMENT = {
    "CLOUDFLARE_R2_ENDPOINT": "https://account.r2.example.com/",
    "CLOUDFLARE_R2_ACCESS_KEY_ID": "idididid",
    "CLOUDFLARE_R2_SECRET_ACCESS_KEY": "s3cr3t/",
    "CLOUDFLARE_R2_BUCKET": "rig-1",
}


def test_settings_from_the_environment() -> None:
    expected = R2Settings("https://account.r2.example.com", "idididid", "s3cr3t/", "rig-1")
    assert r2_settings(ENVIRONMENT, None) == expected
    public = {**ENVIRONMENT, "CLOUDFLARE_R2_PUBLIC_URL": "https://pics.example.com/x/\n"}
    assert r2_settings(public, None) == replace(expected, public_url="https://pics.example.com/x")
    for text in (repr(expected), str(expected), f"{expected}", f"{[expected]}"):
        assert "s3cr3t" not in text
        assert "ididid" not in text


def test_settings_from_systemd_credentials(tmp_path: Path) -> None:
    for name, value in ENVIRONMENT.items():
        file = "r2-" + name.removeprefix("CLOUDFLARE_R2_").lower().replace("_", "-")
        (tmp_path / file).write_text(value + "\n")
    stale = {"CLOUDFLARE_R2_SECRET_ACCESS_KEY": "old"}
    assert r2_settings(stale, str(tmp_path)) == r2_settings(ENVIRONMENT, None)
    (tmp_path / "r2-bucket").unlink()
    with pytest.raises(ConfigError, match=r"CLOUDFLARE_R2_BUCKET is not; set it \(or the credential r2-bucket"):
        r2_settings({}, str(tmp_path))
    (tmp_path / "r2-bucket").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="r2-bucket is not text"):
        r2_settings({}, str(tmp_path))


def test_no_settings_is_no_r2(tmp_path: Path) -> None:
    assert r2_settings({}, None) is None
    assert r2_settings(dict.fromkeys(ENVIRONMENT, " "), str(tmp_path)) is None


@pytest.mark.parametrize("missing", ENVIRONMENT)
def test_half_the_settings_name_the_missing_one(missing: str) -> None:
    with pytest.raises(ConfigError, match=f"{missing} is not; set it") as caught:
        r2_settings({name: value for name, value in ENVIRONMENT.items() if name != missing}, None)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENDPOINT", "https://user:s3cr3t@account.r2.example.com"),
        ("ENDPOINT", "https://account.r2.example.com/s3cr3t"),
        ("ENDPOINT", "http://account.r2.example.com"),
        ("ENDPOINT", "s3cr3t"),
        ("ACCESS_KEY_ID", "s3cr3t s3cr3t"),
        ("SECRET_ACCESS_KEY", "s3cr3t\ns3cr3t"),
        ("SECRET_ACCESS_KEY", "s3cr3té"),
        ("BUCKET", "../s3cr3t"),
        ("BUCKET", "S3cr3t"),
        ("PUBLIC_URL", "https://pics.example.com/?s3cr3t"),
        ("PUBLIC_URL", "https://[s3cr3t"),
        ("PUBLIC_URL", "s3cr3t"),
    ],
)
def test_a_wrong_setting_is_named_and_not_shown(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"CLOUDFLARE_R2_{name} is not right; ") as caught:
        r2_settings({**ENVIRONMENT, f"CLOUDFLARE_R2_{name}": value}, None)
    assert "3cr3t" not in "".join(traceback.format_exception(caught.value))


def test_a_certificate_bundle_of_ones_own(tmp_path: Path) -> None:
    for name in ("AWS_CA_BUNDLE", "CLOUDFLARE_R2_CA"):
        with pytest.raises(ConfigError, match=name):
            r2_settings({**ENVIRONMENT, name: str(tmp_path / "none")}, None)
        (tmp_path / name).touch()
    given_both = {**ENVIRONMENT, "AWS_CA_BUNDLE": str(tmp_path / "AWS_CA_BUNDLE"), "CLOUDFLARE_R2_CA": "/etc/hostname"}
    found = r2_settings({**given_both, "CLOUDFLARE_R2_CA": str(tmp_path / "CLOUDFLARE_R2_CA")}, None)
    assert found and found.ca_bundle == str(tmp_path / "CLOUDFLARE_R2_CA")


# -- the real servers' refusals -------------------------------------------------------------------------------------


def every_operation(store: R2Store) -> list[Callable[[], object]]:
    return [
        lambda: store.put("k", b"x", JPEG),
        lambda: store.get("k"),
        lambda: store.head("k"),
        lambda: store.delete("k"),
    ]


@pytest.mark.parametrize(
    ("wrong", "mend"),
    [
        ({"secret_access_key": "q" * 40}, "check CLOUDFLARE_R2_SECRET_ACCESS_KEY"),
        ({"access_key_id": "unknownkey"}, "check CLOUDFLARE_R2_ACCESS_KEY_ID"),
        ({"bucket": "no-such-bucket"}, "CLOUDFLARE_R2_BUCKET|Object Read & Write on this bucket"),
    ],
)
def test_a_refusal_pauses(server: R2Settings, make: Make, wrong: dict[str, str], mend: str) -> None:
    for call in every_operation(make(replace(server, **wrong))):
        error = failure(call)
        assert error.kind is Kind.PAUSE
        assert error.server_date_ns and abs(error.server_date_ns - time.time_ns()) < 5e9
    with pytest.raises(StoreError, match=mend):
        make(replace(server, **wrong)).put("k", b"x", JPEG)


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_wrong_clock_is_called_so(
    server: R2Settings, make: Make, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    import botocore.auth  # noqa: PLC0415 - to set its clock

    now = botocore.auth.get_current_datetime
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: now() + timedelta(hours=hours))
    monkeypatch.setattr(r2, "time_ns", lambda: time.time_ns() + hours * 3600 * 10**9)
    for call in every_operation(make(server)):
        error = failure(call)
        assert error.kind is Kind.CLOCK
        assert error.server_date_ns and abs(error.server_date_ns - time.time_ns()) < 5e9
        assert "7200 s " in error.hint or "7199 s " in error.hint or "7201 s " in error.hint


def test_a_presigned_url_opens_the_object(server: R2Settings, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(server)
    store.put("p%2Fq/r s", b"picture", JPEG)
    url = store.url("p%2Fq/r s", expires_s=60)
    with urllib.request.urlopen(url, context=ssl.create_default_context(cafile=server.ca_bundle)) as opened:
        assert opened.read() == b"picture"
    for wrong in (0, -1, 7 * 24 * 3600 + 1):
        with pytest.raises(ValueError, match="lives 1 to 604800 s"):
            store.url("a", expires_s=wrong)


def test_losing_when_required_would_be_noticed(rclone: R2Settings, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real R2 refuses boto3's default upload over HTTPS, and so does rclone: the suite above holds the setting."""
    make(rclone).put("checksum", b"x", JPEG)
    config = vars(r2)["Config"]

    def without(**options: Any) -> Any:
        options.pop("request_checksum_calculation")
        return config(**options)

    monkeypatch.setattr(r2, "Config", without)
    with pytest.raises(StoreError, match="MissingContentLength"):
        # ContentMD5 alone also stops the trailer: without it the setting is all there is.
        make(rclone)._call("put", "k", lambda: make(rclone)._client.put_object(Bucket="rig", Key="k", Body=b"x"))


# -- what goes over the wire ----------------------------------------------------------------------------------------


def test_a_put_is_one_plain_signed_request(
    scripted: Callable[..., ScriptedServer], s3: Any, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[default\nregion = nowhere")
    (tmp_path / ".aws" / "credentials").write_text("not an ini file")
    stray = {"HOME": str(tmp_path), "AWS_PROFILE": "nobody", "AWS_ENDPOINT_URL": "https://127.0.0.1:1"}
    stray |= {"AWS_CA_BUNDLE": "/nowhere", "AWS_SESSION_TOKEN": "token", "AWS_MAX_ATTEMPTS": "9"}
    for name, value in stray.items():
        monkeypatch.setenv(name, value)
    server = scripted(s3.stored)
    make(server.settings).put(EVIDENCE, b"picture", JPEG)
    (request,) = server.requests
    assert (request.method, request.path, request.body) == ("PUT", f"/rig/{EVIDENCE}", b"picture")
    assert request.headers["content-length"] == "7"
    assert request.headers["content-type"] == JPEG
    assert request.headers["content-md5"] == base64.b64encode(hashlib.md5(b"picture").digest()).decode()
    assert request.headers["x-amz-content-sha256"] == hashlib.sha256(b"picture").hexdigest()
    assert "/auto/s3/aws4_request" in request.headers["authorization"]
    unwanted = {"transfer-encoding", "content-encoding", "expect", "x-amz-trailer", "x-amz-security-token"}
    assert not unwanted & set(request.headers)
    assert not [name for name in request.headers if "checksum" in name]


def test_the_client_waits_as_long_as_the_design_says(scripted: Callable[..., ScriptedServer], s3: Any) -> None:
    store = R2Store(scripted(s3.hang).settings)
    config = store._client.meta.config
    assert (config.connect_timeout, config.read_timeout, config.max_pool_connections) == (5.0, 20.0, 2)
    assert config.retries["total_max_attempts"] == 1
    store.close()


SKEWED = {"date_s": 1e9}  # the server lives in 2001
ANSWERS: list[tuple[int, str, dict[str, Any], Kind]] = [
    (500, "InternalError", {}, Kind.RETRY),
    (501, "NotImplemented", {}, Kind.RETRY),
    (503, "ServiceUnavailable", {}, Kind.RETRY),
    (503, "SlowDown", SKEWED, Kind.RETRY),
    (503, "", {"body": b"<html>busy</html>"}, Kind.RETRY),
    (429, "TooManyRequests", {}, Kind.RETRY),
    (400, "BadDigest", {}, Kind.RETRY),
    (400, "RequestTimeout", {}, Kind.RETRY),
    (400, "ClientDisconnect", {}, Kind.RETRY),
    (301, "PermanentRedirect", {"x_amz_bucket_region": "nowhere"}, Kind.RETRY),
    (307, "TemporaryRedirect", {"Location": "https://127.0.0.1:1/"}, Kind.RETRY),
    (401, "Unauthorized", {}, Kind.PAUSE),
    (403, "AccessDenied", {}, Kind.PAUSE),
    (403, "", {"body": b"\x00\xff not XML"}, Kind.PAUSE),
    (403, "SignatureDoesNotMatch", {}, Kind.PAUSE),
    (403, "InvalidAccessKeyId", {}, Kind.PAUSE),
    (403, "NotEntitled", {}, Kind.PAUSE),
    (404, "NoSuchBucket", {}, Kind.PAUSE),
    (403, "AccessDenied", {"Date": "yesterday"}, Kind.PAUSE),
    (403, "RequestTimeTooSkewed", {}, Kind.CLOCK),
    (400, "ExpiredRequest", {}, Kind.CLOCK),
    (403, "RequestTimeTooSkewed", {"Date": "yesterday"}, Kind.CLOCK),
    (400, "AccessDenied", SKEWED, Kind.CLOCK),
    (401, "Unauthorized", SKEWED, Kind.CLOCK),
    (400, "InvalidObjectName", {}, Kind.DEAD_LETTER),
    (400, "KeyTooLongError", {}, Kind.DEAD_LETTER),
    (400, "MetadataTooLarge", {}, Kind.DEAD_LETTER),
    (400, "EntityTooLarge", {}, Kind.DEAD_LETTER),
    (413, "", {"body": b"too large"}, Kind.DEAD_LETTER),
    (403, "ObjectLockedByBucketPolicy", {}, Kind.DEAD_LETTER),
]


@pytest.mark.parametrize(("status", "code", "more", "kind"), ANSWERS)
def test_each_answer_has_its_kind(
    scripted: Callable[..., ScriptedServer],
    s3: Any,
    make: Make,
    status: int,
    code: str,
    more: dict[str, Any],
    kind: Kind,
) -> None:
    message = (
        "testkeytestkey0000000 \n\x9b31m testsecrettestsecrettestsecrettestsecret Signature=abcdef, " + "long " * 200
    )
    server = scripted(s3.answer(status, code, "" if "body" in more else message, **more))
    started = time.monotonic()
    error = failure(lambda: make(server.settings).put("k", b"x", JPEG))
    assert error.kind is kind
    assert code in str(error)
    assert "abcdef" not in str(error)
    assert len(str(error)) < 500
    assert (error.server_date_ns is None) == (more.get("Date") == "yesterday")
    assert [request.method for request in server.requests] == ["PUT"]  # boto3 tried once and followed nothing
    assert time.monotonic() - started < READ_S / 2, "nobody waited for more"


# -- the network ----------------------------------------------------------------------------------------------------


def test_a_burst_of_refusals_is_one_error_each(scripted: Callable[..., ScriptedServer], s3: Any, make: Make) -> None:
    busy = s3.answer(503, "SlowDown"), s3.answer(429, "TooManyRequests"), s3.reset, s3.answer(500, "InternalError")
    server = scripted(*busy, *busy, s3.stored)
    store = make(server.settings)
    for _ in range(8):
        assert failure(lambda: store.put("k", b"x", JPEG)).kind is Kind.RETRY
    store.put("k", b"x", JPEG)
    assert len(server.requests) == 9


CUT = {
    "no answer": b"",
    "half a line": b"HTTP/1.1 20",
    "half the headers": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half the body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500,
    "half an error": b"HTTP/1.1 503 Busy\r\nContent-Length: 1000\r\n\r\n<Error><Code>Slow",
    "no HTTP": b"SSH-2.0-hello\r\n\r\n",
    "a wrong length": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
    "a wrong date": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nLast-Modified: never\r\n\r\n",
}


@pytest.mark.parametrize("name", CUT)
def test_half_an_answer_to_a_get(scripted: Callable[..., ScriptedServer], s3: Any, make: Make, name: str) -> None:
    server = scripted(s3.partial(CUT[name]))
    started = time.monotonic()
    assert failure(lambda: make(server.settings).get("k")).kind is Kind.RETRY
    assert time.monotonic() - started < READ_S / 2, "nobody waited for more"


@pytest.mark.parametrize("name", CUT)
def test_half_an_answer_to_a_put(scripted: Callable[..., ScriptedServer], s3: Any, make: Make, name: str) -> None:
    server = scripted(s3.partial(CUT[name]))
    assert failure(lambda: make(server.settings).put("k", b"x", JPEG)).kind is Kind.RETRY


@pytest.mark.parametrize("deaf", ["", "before TLS", "after TLS"])
def test_a_hang_is_bounded(scripted: Callable[..., ScriptedServer], s3: Any, make: Make, deaf: str) -> None:
    server = scripted(s3.hang, deaf=deaf)
    for call in every_operation(make(server.settings)):
        started = time.monotonic()
        error = failure(call)
        assert error.kind is Kind.RETRY
        assert "timeout" in error.cause
        assert time.monotonic() - started < READ_S / 2, "nobody waited for more"
    if deaf:  # more than the kernel takes in
        started = time.monotonic()
        assert failure(lambda: make(server.settings).put("k", bytes(16 << 20), JPEG)).kind is Kind.RETRY
        assert time.monotonic() - started < 3


def test_nobody_there(make: Make, certificate: Certificate, s3: Any) -> None:
    settings = s3.settings_for(s3.free_ports(1)[0], certificate)
    error = failure(lambda: make(settings).put("k", b"x", JPEG))
    assert (error.kind, error.cause) == (Kind.RETRY, "Connection refused")
    assert error.server_date_ns is None
    error = failure(lambda: make(replace(settings, endpoint="https://nowhere.invalid")).put("k", b"x", JPEG))
    assert error.kind is Kind.RETRY


def test_a_certificate_that_nobody_signed(scripted: Callable[..., ScriptedServer], s3: Any, make: Make) -> None:
    server = scripted(s3.answer(200))
    error = failure(lambda: make(replace(server.settings, ca_bundle=None)).put("k", b"x", JPEG))
    assert error.kind is Kind.RETRY
    assert error.cause == "certificate refused: self-signed certificate"
    assert not server.requests


def test_a_certificate_of_another_time_means_the_clock(
    scripted: Callable[..., ScriptedServer], s3: Any, make: Make, tmp_path: Path
) -> None:
    """At 1970 no certificate is valid yet: a Pi without a clock battery sees this before any HTTP status."""
    expired = s3.make_expired(tmp_path)
    server = scripted(s3.answer(200), certificate=expired)
    error = failure(lambda: make(server.settings).put("k", b"x", JPEG))
    assert error.kind is Kind.CLOCK
    assert "expired" in error.cause


# -- secrets --------------------------------------------------------------------------------------------------------


def test_nothing_is_logged_even_at_debug(
    scripted: Callable[..., ScriptedServer], s3: Any, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = scripted(s3.stored, s3.answer(403, "SignatureDoesNotMatch"), s3.reset)
    store = make(server.settings)
    store.put("k", b"x", JPEG)
    for _ in range(2):
        failure(lambda: store.put("k", b"x", JPEG))
    store.url("k", expires_s=60)
    assert [record for record in caplog.records if record.name.split(".")[0] in ("boto3", "botocore", "urllib3")] == []


def test_urls(make: Make) -> None:
    settings = R2Settings("https://account.r2.example.com", "idididid", "s3cr3t", "rig")
    assert make(settings).url("a%2F/b c") == "r2://rig/a%2F/b c"
    public = replace(settings, public_url="https://pics.example.com")
    assert make(public).url("a%2F/b c") == "https://pics.example.com/a%252F/b%20c"
    presigned = make(public).url("k", expires_s=604800)
    assert presigned.startswith("https://account.r2.example.com/rig/k?")
    assert "X-Amz-Expires=604800" in presigned
    assert "s3cr3t" not in presigned
