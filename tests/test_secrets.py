"""No secret leaves the uploader but for the network: every byte that Stillwatch writes is searched for them.

The whole service runs with R2's keys and a webhook with a password and tokens, at the most talkative log level, through
refusals that repeat what they were sent, a crash and a restart.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.store import R2Settings
from tests.evidence_rig import EvidenceRig, QuickRig, ended, opened
from tests.live import running_pid
from tests.s3_servers import ACCESS_KEY, SECRET_KEY, Certificate, ScriptedServer, free_ports, settings_for
from tests.support import ROOT, make_frame, plain_frame, publish, wait_until
from tests.test_faults_network import wrong_key
from tests.uploads import r2_environment

pytest_plugins = ("tests.s3_fixtures",)
Scripted = Callable[..., ScriptedServer]

HOOK_SECRETS = ("hookpassword", "pathtoken", "querytoken")
SECRETS = (ACCESS_KEY, SECRET_KEY, *HOOK_SECRETS, base64.b64encode(b"hookuser:hookpassword").decode())
REPLAY = (sys.executable, "-P", "-m", "pipeline", "replay")


def found_in(data: bytes) -> list[str]:
    """The secrets in these bytes, in either case; no NUL hides them, as in UTF-16."""
    plain = data.replace(b"\0", b"").lower()
    return [secret for secret in SECRETS if secret.lower().encode() in plain]


def written(service: EvidenceRig) -> dict[str, bytes]:
    """All files that the service has made; its settings and the servers' own files are not among them."""
    found = {}
    for root in (service.base / "run", service.state, *service.dirs.values()):
        for path in root.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    found[str(path)] = path.read_bytes()
    return {**found, "log": service.log.encode()}


def shown(service: EvidenceRig) -> dict[str, bytes]:
    """What other processes may see of its processes: command lines, titles, and what the untrusted were given."""
    found = {}
    for process in service.tree():
        for name in ("cmdline", "comm", "status"):
            found[f"{name} of {process.pid}"] = Path(f"/proc/{process.pid}/{name}").read_bytes()
    for role in ("watcher", "worker"):
        for process in service.children(role):
            found[f"environ of {role}"] = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert len(found) >= 3 * 4 + 2
    return found


def ring(service: EvidenceRig) -> dict[str, bytes]:
    """The memory that all children share."""
    folder = f"/proc/{service.child('watcher').pid}/fd"
    links = {f"{folder}/{fd}": os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)}
    return {path: Path(path).read_bytes() for path, name in links.items() if "memfd:" in name}


def search(service: EvidenceRig, *more: dict[str, bytes]) -> int:
    """Fails where a secret is found; how many places were searched."""
    places = {key: data for found in (written(service), *more) for key, data in found.items()}
    leaks = {key: found for key, data in places.items() if (found := found_in(data))}
    assert not leaks, leaks
    return len(places)


def asked(service: EvidenceRig, *words: str) -> bytes:
    """What a command prints, on both streams, in the service's environment."""
    command = [sys.executable, "-P", "-m", "pipeline", *words]
    done = subprocess.run(command, env=service.environment, capture_output=True, cwd=service.base, timeout=50)
    return done.stdout + done.stderr


@pytest.fixture
def hook() -> Iterator[tuple[str, list[int], list[str]]]:
    """A webhook's URL, the statuses that it answers with (200 when there are none), and the paths that came."""
    statuses, paths = [500, 401, 302], list[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            paths.append(self.path)
            self.send_response(statuses.pop(0) if statuses else 200)
            self.send_header("Location", self.path)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://hookuser:hookpassword@127.0.0.1:{server.server_port}/pathtoken?t=querytoken", statuses, paths
        server.shutdown()
        thread.join(5)


@contextlib.contextmanager
def repeating(scripted: Scripted, s3: Any) -> Iterator[tuple[R2Settings, Callable[[], None]]]:
    """A server that refuses and repeats all that it was sent, and more; what makes it accept."""
    said = f"{ACCESS_KEY} {SECRET_KEY} Credential={ACCESS_KEY}/20261122, Signature={'0123456789abcdef' * 4}"
    server = scripted(s3.answer(403, "SignatureDoesNotMatch", said, x_amz_key=ACCESS_KEY))
    yield server.settings, lambda: server.script.__setitem__(slice(None), [s3.stored])


@contextlib.contextmanager
def refusing(base: Path, certificate: Certificate) -> Iterator[tuple[R2Settings, Callable[[], object]]]:
    """rclone with another secret; what gives it ours."""
    (base / "served").mkdir(parents=True)
    port = free_ports(1)[0]
    with wrong_key(base, port, certificate) as mend:
        yield settings_for(port, certificate), mend


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scripted", "rclone"])
def test_no_secret_is_written_or_shown(
    tmp_path: Path, kind: str, certificate: Certificate, scripted: Scripted, s3: Any, hook: Any, rclone: R2Settings
) -> None:
    url, statuses, paths = hook
    server = repeating(scripted, s3) if kind == "scripted" else refusing(tmp_path / "server", certificate)
    with server as (settings, mend):
        more = f'log_level = "DEBUG"\nreport_every_s = 0.2\nwebhook_url = "{url}"'
        service = QuickRig(tmp_path / "service", more=more, r2=settings)
        with service:
            first = service.begin()
            service.end()
            wait_until(lambda: service.lines("uploads paused"), 20, service.log)
            wait_until(lambda: not statuses, 30, service.log)
            assert service.lines("notices failed") and service.lines("notices paused")
            assert search(service, shown(service), ring(service)) > 40
            mend()
            service.wait_evidence(ended(first), 40)
            assert paths[0] == "/pathtoken?t=querytoken", "the secrets are in use"
            uploader = running_pid(service, "uploader")
            resource.prlimit(uploader, resource.RLIMIT_CORE, (0, 0))
            os.kill(uploader, signal.SIGSEGV)
            running_pid(service, "uploader", uploader)
            second = service.begin()
            service.wait_evidence({**ended(first), **opened(second)}, 40)
            assert "Segmentation fault" in service.log, "a traceback was asked for"
            search(service, shown(service), ring(service))
            state = f"--state-dir={service.state}"
            listed = {
                "incidents": asked(service, "incidents", "--json", state),
                "table": asked(service, "incidents", state),
            }
            assert all(second.encode() in said for said in listed.values())
            search(service, listed)
            (link, *_) = json.loads(asked(service, "incidents", "--json", "--url", state).splitlines()[0])["urls"]
            assert "X-Amz-Signature=" in link and SECRET_KEY not in link
            service.stop()
            service.start()
            service.wait_ready(2)
            service.end()
            service.wait_evidence(ended(first, second), 40)
            assert service.stop() == 0
        assert search(service) > 10


def test_no_command_that_fails_repeats_a_secret(tmp_path: Path, certificate: Certificate) -> None:
    """Each is told a secret in the wrong place, and ends with one line that does not show it."""
    right = r2_environment(settings_for(9, certificate))
    frames = tmp_path / "frames"
    frames.mkdir()
    config = tmp_path / "settings.toml"
    run = ["run", f"--source=a={frames}", f"--runtime-dir={tmp_path / 'run'}", f"--state-dir={tmp_path / 'state'}"]
    hooks = ["ftp://hookuser:hookpassword@x/pathtoken", "pathtoken", "https://x:querytoken/", "https://[hookpassword/"]
    wrong: list[tuple[list[str], dict[str, str]]] = [
        *((run, {f"CLOUDFLARE_R2_{name}": f"{SECRET_KEY} x"}) for name in ("ENDPOINT", "BUCKET", "PUBLIC_URL")),
        (run, {"CLOUDFLARE_R2_ENDPOINT": f"https://{SECRET_KEY}@x/{ACCESS_KEY}"}),
        (run, {"CLOUDFLARE_R2_BUCKET": ""}),
        (run, {"CLOUDFLARE_R2_SECRET_ACCESS_KEY": f"{SECRET_KEY}\nx"}),
        (run, {"AWS_CA_BUNDLE": "/nowhere"}),
        *((run, {"STILLWATCH_WEBHOOK_URL": hook}) for hook in hooks),
        ([*run, f"--config={config}"], {}),
        (["incidents", "--url", f"--state-dir={tmp_path}"], {}),
        (["replay", f"--state-dir={tmp_path / 'out'}", str(frames)], {}),
    ]
    config.write_text(f'webhook_url = ["https://x/pathtoken", "{SECRET_KEY}"]\n')
    for words, environment in wrong:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pipeline", *words],
            env={**os.environ, **right, **environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            timeout=30,
        )
        assert done.returncode not in (0, 1), (words, environment, done)
        assert not found_in(done.stdout + done.stderr), done.stderr
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.stderr.count(b"\n") == 1, done.stderr
    assert not found_in(b"".join(path.read_bytes() for path in tmp_path.glob("*/**/*") if path.is_file()))


def test_a_replay_with_the_keys_at_hand_writes_none(tmp_path: Path, rclone: R2Settings) -> None:
    frames = tmp_path / "stb1"
    frames.mkdir()
    for number in range(1, 31):
        publish(frames, number, plain_frame(0) if 5 < number < 20 else make_frame(number))
    environment = {**r2_environment(rclone), "STILLWATCH_WEBHOOK_URL": "http://127.0.0.1:9/pathtoken"}
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "pipeline",
            "replay",
            "--json",
            "--fps=1",
            f"--state-dir={tmp_path / 'out'}",
            frames,
        ],
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT), "STILLWATCH_LOG_LEVEL": "DEBUG"},
        capture_output=True,
        timeout=50,
    )
    assert done.returncode == 0 and b"incident closed" in done.stderr
    files = {str(path): path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert any(path.endswith("incidents.sqlite") for path in files)
    for data in (done.stdout, done.stderr, *files.values()):
        assert not found_in(data)


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    """What the other tests rest on."""
    service = EvidenceRig(tmp_path)
    service.state.mkdir()
    (service.state / "x").write_bytes(b"..." + SECRETS[-1].encode() + b"...")
    with pytest.raises(AssertionError, match=SECRETS[-1]):
        search(service)
    assert found_in(SECRET_KEY.upper().encode()) and found_in("querytoken".encode("utf-16-le"))
    assert not found_in(b"anything else")
