"""`doctor` and what is elsewhere: real S3 servers, one that follows a script, a webhook, and no network at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.checks import checkup, network
from pipeline.store import R2Settings
from tests import s3_servers
from tests.doctoring import Examination, examine
from tests.machine import BLACK_HOLE, in_black_hole, needs, skipping
from tests.s3_servers import ACCESS_KEY, BUCKET, SECRET_KEY, Act, Certificate, ScriptedServer, answer, hang, stored
from tests.uploads import r2_environment, receiver

pytest_plugins = ("tests.s3_fixtures",)

Scripted = Callable[..., ScriptedServer]


def ask(base: Path, r2: R2Settings, *flags: str, wrapper: tuple[str, ...] = ()) -> Examination:
    """Have the bucket probed; the keys are nowhere in what is said."""
    found = examine(base, "r2", *flags, wrapper=wrapper, environment=r2_environment(r2))
    for secret in (r2.secret_access_key, r2.access_key_id):
        assert secret not in str(found)
    return found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor waits a second for a server."""
    monkeypatch.setattr(network, "CONNECT_S", 1.0)
    monkeypatch.setattr(network, "READ_S", 1.0)


def bytes_of(content: bytes) -> Act:
    """An answer with a body, as to a GET."""
    return answer(200, body=content)


# -- real servers -----------------------------------------------------------------------------------------------------


def test_a_bucket_that_can_be_used_is_well_and_the_probe_is_taken_away(
    certificate: Certificate, tmp_path: Path
) -> None:
    (tmp_path / "served" / BUCKET).mkdir(parents=True)
    with skipping(), s3_servers.rclone_over(tmp_path, s3_servers.free_ports(1)[0], certificate) as r2:
        found = ask(tmp_path, r2)
    assert found.verdict("r2") == "ok", found.of("r2")
    assert "put, head, get and delete of a probe in" in found.of("r2")[0]["found"]
    assert found.verdict("r2 clock") == "ok"
    assert not [path for path in (tmp_path / "served").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_server_that_checks_signatures_is_satisfied(seaweedfs: R2Settings, tmp_path: Path) -> None:
    found = ask(tmp_path, seaweedfs)
    assert found.verdict("r2") == "ok", found.of("r2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"secret_access_key": "wrong" * 8}, "check CLOUDFLARE_R2_SECRET_ACCESS_KEY"),
        ({"access_key_id": "unknownunknown000000"}, "check CLOUDFLARE_R2_ACCESS_KEY_ID"),
    ],
    ids=["secret", "key"],
)
def test_wrong_keys_are_told_with_their_mend(
    seaweedfs: R2Settings, tmp_path: Path, change: dict[str, str], hint: str
) -> None:
    found = ask(tmp_path, replace(seaweedfs, **change))
    assert found.code == 1
    assert found.amiss("r2", "fail", "put: 403")["mend"] == hint


def test_a_bucket_that_is_missing_is_told_with_its_mend(rclone: R2Settings, tmp_path: Path) -> None:
    found = ask(tmp_path, replace(rclone, bucket="missing"))
    assert "create the bucket" in found.amiss("r2", "fail", "NoSuchBucket")["mend"]


# -- a script ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead_s", [7200, -7200])
def test_a_clock_that_the_server_refuses_is_told_in_seconds(scripted: Scripted, tmp_path: Path, ahead_s: int) -> None:
    server = scripted(answer(403, "RequestTimeTooSkewed", "too far", date_s=time.time() - ahead_s))
    found = ask(tmp_path, server.settings)
    assert "wait for NTP or set it" in found.amiss("r2", "fail", "RequestTimeTooSkewed")["mend"]
    text = found.amiss("r2 clock", "warn")["found"]
    assert abs(int(text.split()[3]) - 7200) < 60
    assert ("ahead of" if ahead_s > 0 else "behind") in text
    assert len(server.requests) == 1, "asked once, never in a loop"


def test_a_server_whose_date_is_off_by_minutes_is_a_warning(scripted: Scripted, tmp_path: Path) -> None:
    late = time.time() - 120
    server = scripted(stored, answer(404, date_s=late), answer(404, "NoSuchKey"), answer(204), answer(200, date_s=late))
    found = ask(tmp_path, server.settings)
    found.amiss("r2", "fail", "head told another size")
    found.amiss("r2 clock", "warn", "ahead of the server's")
    assert [request.method for request in server.requests] == ["PUT", "HEAD", "GET", "DELETE", "HEAD"]


def test_other_bytes_than_were_sent_fail_and_the_probe_is_deleted(scripted: Scripted, tmp_path: Path) -> None:
    size = answer(200, body=b"", Content_Length="1024")
    server = scripted(stored, size, bytes_of(bytes(1024)), answer(204), answer(200))
    ask(tmp_path, server.settings).amiss("r2", "fail", "get returned other bytes")
    assert server.requests[3].method == "DELETE"
    assert {request.path for request in server.requests[:4]} == {server.requests[0].path}
    assert server.requests[0].path.startswith(f"/{BUCKET}/doctor/")


@pytest.mark.parametrize(
    ("act", "text"),
    [(answer(503, "SlowDown"), "503 SlowDown"), (s3_servers.reset, "onnection"), (hang, "imeout")],
    ids=["busy", "reset", "silent"],
)
@pytest.mark.usefixtures("impatient")
def test_a_server_that_fails_is_tried_once(scripted: Scripted, tmp_path: Path, act: Act, text: str) -> None:
    server = scripted(act)
    found = ask(tmp_path, server.settings)
    assert "try again later" in found.amiss("r2", "fail", text)["mend"]
    assert len(server.requests) == 1


@pytest.mark.usefixtures("impatient")
def test_a_server_that_takes_connections_and_says_nothing_is_not_waited_for(scripted: Scripted, tmp_path: Path) -> None:
    server = scripted(answer(200), deaf="before TLS")
    found = ask(tmp_path, server.settings)
    found.amiss("r2", "fail")


def test_nothing_is_sent_without_network(scripted: Scripted, tmp_path: Path) -> None:
    server = scripted(answer(200))
    with receiver() as (port, posts, _):
        (tmp_path / "c.toml").write_text(f'webhook_url = "http://127.0.0.1:{port}/x"\n')
        flags = ["webhook", f"--config={tmp_path / 'c.toml'}", "--no-network", "--probe-webhook"]
        found = ask(tmp_path, server.settings, *flags)
    assert found.verdict("r2") == found.verdict("webhook") == "skipped"
    assert not server.requests and not posts


def test_the_keys_may_be_credentials_of_systemd(scripted: Scripted, tmp_path: Path, s3: ModuleType) -> None:
    server = scripted(s3.answer(403, "AccessDenied"))
    r2, folder = server.settings, tmp_path / "credentials"
    folder.mkdir()
    values = {"endpoint": r2.endpoint, "access-key-id": ACCESS_KEY, "secret-access-key": SECRET_KEY, "bucket": BUCKET}
    for name, value in values.items():
        (folder / f"r2-{name}").write_text(value + "\n")
        (folder / f"r2-{name}").chmod(0o600)
    environment = {"CREDENTIALS_DIRECTORY": str(folder), "AWS_CA_BUNDLE": r2.ca_bundle or ""}
    found = examine(tmp_path, "r2", "secrets", environment=environment)
    assert "Object Read & Write" in found.amiss("r2", "fail", "AccessDenied")["mend"]
    assert found.verdict("secrets") == "ok" and SECRET_KEY not in str(found)


# -- no network -------------------------------------------------------------------------------------------------------


def test_the_patience_ends_before_the_check_does() -> None:
    """Five requests, the worst of which are a put and a delete that both get no answer."""
    assert 2 * (network.CONNECT_S + network.READ_S) < checkup.NETWORK_LIMIT_S


@needs("ip")
@pytest.mark.slow
def test_a_black_hole_ends_in_time(certificate: Certificate, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('webhook_url = "https://hook.example/hushhush"\n')
    r2 = replace(s3_servers.settings_for(443, certificate), endpoint=f"https://{BLACK_HOLE}")
    found = ask(tmp_path, r2, "webhook", "python", f"--config={tmp_path / 'c.toml'}", wrapper=in_black_hole())
    assert found.code == 1
    found.amiss("r2", "fail")
    assert found.of("webhook")[0]["verdict"] in ("fail", "unknown")
    assert "hushhush" not in str(found)
    assert found.verdict("python") == "ok"


def test_a_port_where_nobody_listens_is_told(certificate: Certificate, tmp_path: Path) -> None:
    r2 = s3_servers.settings_for(s3_servers.free_ports(1)[0], certificate)
    ask(tmp_path, r2).amiss("r2", "fail", "Connection refused")


# -- the webhook ------------------------------------------------------------------------------------------------------


def test_a_webhook_is_only_looked_up_unless_a_probe_is_asked_for(tmp_path: Path) -> None:
    with receiver() as (port, posts, _):
        (tmp_path / "c.toml").write_text(f'webhook_url = "http://user:secretword@127.0.0.1:{port}/x?token=hushhush"\n')
        flag = f"--config={tmp_path / 'c.toml'}"
        found = examine(tmp_path, "webhook", flag)
        assert found.verdict("webhook") == "ok" and not posts
        probed = examine(tmp_path, "webhook", flag, "--probe-webhook")
        assert probed.verdict("webhook") == "ok"
        (post,) = posts
    assert b'"state":"probe"' in post.body and post.headers["Idempotency-Key"]
    assert not {"secretword", "hushhush"} & set(f"{found}{probed}".replace("?", " ").split())
    assert "hushhush" not in f"{found}{probed}"


def test_a_webhook_that_refuses_fails(tmp_path: Path) -> None:
    with receiver() as (port, posts, statuses):
        statuses.append(404)
        (tmp_path / "c.toml").write_text(f'webhook_url = "http://127.0.0.1:{port}/x"\n')
        found = examine(tmp_path, "webhook", f"--config={tmp_path / 'c.toml'}", "--probe-webhook")
        assert len(posts) == 1
    assert found.amiss("webhook", "fail", "status 404")["mend"] == "check webhook_url"


def test_a_webhook_whose_host_is_unknown_fails(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('webhook_url = "https://no-such-host.invalid/hushhush"\n')
    found = examine(tmp_path, "webhook", f"--config={tmp_path / 'c.toml'}")
    assert "getent hosts no-such-host.invalid" in found.amiss("webhook", "fail", "no-such-host.invalid")["mend"]
    assert "hushhush" not in str(found)
