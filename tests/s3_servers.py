"""S3 servers on loopback, all with TLS: two real ones and one that follows a script. The fixtures are in `s3_fixtures`.

Over plain HTTP boto3 sends other requests than over HTTPS, so nothing here speaks HTTP. The real ones come from
`requirements-s3.txt`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from pathlib import Path

from pipeline.store import R2Settings, StoreError
from tests.support import wait_until

INSTALL = ".venv/bin/pip install -r requirements-s3.txt"
ACCESS_KEY = "testkeytestkey0000000"
SECRET_KEY = "testsecrettestsecrettestsecrettestsecret"
BUCKET = "rig"
START_S = 30.0


class NotInstalled(Exception):
    """A program that a server needs is not there; the text says how to get it."""


def find_program(name: str, mend: str = INSTALL) -> str:
    """The path of a program. Raises NotInstalled."""
    beside = Path(sys.executable).with_name(name)
    path = str(beside) if beside.exists() else shutil.which(name)
    if not path:
        raise NotInstalled(f"needs {name}: {mend}")
    return path


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for 127.0.0.1."""

    cert: str
    key: str


def make_certificate(base: Path) -> Certificate:
    """One that is valid from now on. Raises NotInstalled."""
    find_program("openssl", "apt-get install openssl")
    made = Certificate(str(base / "cert.pem"), str(base / "key.pem"))
    command = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    _openssl(*command, *names, "-keyout", made.key, "-out", made.cert)
    return made


def make_expired(base: Path) -> Certificate:
    """A certificate that ended yesterday."""
    made = Certificate(str(base / "cert.pem"), str(base / "key.pem"))
    request = str(base / "request.pem")
    _openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=old", "-keyout", made.key, "-out", request)
    _openssl("x509", "-req", "-in", request, "-signkey", made.key, "-days", "-1", "-out", made.cert)
    return made


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=20)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def settings_for(port: int, certificate: Certificate) -> R2Settings:
    """The settings that are right for every server here."""
    return R2Settings(
        endpoint=f"https://127.0.0.1:{port}",
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        bucket=BUCKET,
        ca_bundle=certificate.cert,
    )


# -- real ones ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def seaweedfs(certificate: Certificate) -> Iterator[R2Settings]:
    """SeaweedFS with a key that is scoped to its one bucket. It checks signatures, clocks, scopes and checksums.

    Raises NotInstalled.
    """
    weed = find_program("weed")
    with tempfile.TemporaryDirectory(prefix="stillwatch-weed-") as name:
        parts = ("master.port", "volume.port", "filer.port", "s3.port")
        names = [*parts, *(f"{part}.grpc" for part in parts), "s3.port.https"]
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        settings = settings_for(ports["s3.port.https"], certificate)
        try:
            with _running(_weed_command(weed, Path(name), ports, certificate), Path(name)) as process:
                _make_bucket(process, settings, Path(name) / "log")
                yield settings
        finally:
            for port in ports.values():  # killed, it leaves them
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    left.unlink()


ADMIN = {"access_key_id": "adminkeyadminkey00000", "secret_access_key": "adminsecretadminsecretadminsecretadminsec"}


def _weed_command(weed: str, base: Path, ports: Mapping[str, int], certificate: Certificate) -> list[str]:
    def identity(name: str, key: str, secret: str, *actions: str) -> dict[str, object]:
        return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}

    scoped = [f"{action}:{BUCKET}" for action in ("Read", "Write", "List")]
    identities = [identity("admin", *ADMIN.values(), "Admin"), identity("rig", ACCESS_KEY, SECRET_KEY, *scoped)]
    (base / "s3.json").write_text(json.dumps({"identities": identities}))
    (base / "data").mkdir()
    numbers = [f"-{name}={port}" for name, port in ports.items()]
    flags = ["-filer", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-volume.max=20"]
    places = [f"-dir={base}/data", f"-filer.localSocket={base}/filer.sock", f"-s3.localSocket={base}/s3.sock"]
    tls = [f"-s3.cert.file={certificate.cert}", f"-s3.key.file={certificate.key}", f"-s3.config={base}/s3.json"]
    address = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=64"]
    return [weed, "server", *address, *flags, *numbers, *places, *tls]


def _make_bucket(process: subprocess.Popen[bytes], settings: R2Settings, log: Path) -> None:
    """Wait until the bucket can be made and the scoped key can write into it: the first write makes a volume."""
    r2 = importlib.import_module("pipeline.r2")  # 30 MB, for these tests alone
    admin, rig = r2.R2Store(replace(settings, **ADMIN)), r2.R2Store(settings)

    def ready() -> bool:
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        with contextlib.suppress(StoreError):
            admin._call("create", "bucket", lambda: admin._client.create_bucket(Bucket=settings.bucket))
            rig.put("probe", b"x", "text/plain")
            rig.delete("probe")
            return True
        return False

    try:
        wait_until(ready, START_S, f"SeaweedFS: {log}")
    finally:
        admin.close()
        rig.close()


@contextlib.contextmanager
def rclone(certificate: Certificate) -> Iterator[R2Settings]:
    """`rclone serve s3`: like R2, it refuses what boto3 sends by default over HTTPS. Raises NotInstalled."""
    with tempfile.TemporaryDirectory(prefix="stillwatch-rclone-") as name:
        (Path(name) / "served" / BUCKET).mkdir(parents=True)
        with rclone_over(Path(name), free_ports(1)[0], certificate) as settings:
            yield settings


@contextlib.contextmanager
def rclone_over(base: Path, port: int, certificate: Certificate, secret: str = SECRET_KEY) -> Iterator[R2Settings]:
    """The same over `base/served`, whose folders are buckets; it takes the key with this secret."""
    program, log = find_program("rclone"), base / "log"
    tls = ["--cert", certificate.cert, "--key", certificate.key]
    address = ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{secret}"]
    with _running([program, "serve", "s3", *address, *tls, str(base / "served")], base) as process:

        def ready() -> bool:
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return True
            return False

        wait_until(ready, START_S, "rclone")
        yield settings_for(port, certificate)


@contextlib.contextmanager
def _running(command: list[str], base: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server, killed at the end: SeaweedFS takes 27 s to stop when asked."""
    environment = {**os.environ, "TMPDIR": str(base), "HOME": str(base), "RCLONE_CONFIG": os.devnull}
    with (base / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=base, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


# -- the one that follows a script ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What came in."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes
    at: float = field(default_factory=time.monotonic)


Act = Callable[["ScriptedServer", ssl.SSLSocket], None]
"""What to do once a request has been read."""


def answer(
    status: int,
    code: str = "",
    message: str = "",
    *,
    body: bytes | None = None,
    date_s: float | None = None,
    **more: str,
) -> Act:
    """Answer. With a code, the body is S3's error. `date_s` (wall clock) sets `Date`; `more` are further headers."""
    if body is None:
        error = f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>1</RequestId></Error>"
        body = f'<?xml version="1.0" encoding="UTF-8"?>{error}'.encode() if code else b""
    headers = {"Date": formatdate(date_s, usegmt=True), "Content-Length": str(len(body))}
    headers.update({name.replace("_", "-"): value for name, value in more.items()})
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    data = f"HTTP/1.1 {status} Said\r\n{head}\r\n".encode("latin-1") + body

    def act(server: ScriptedServer, connection: ssl.SSLSocket) -> None:
        connection.sendall(data)

    return act


def stored(server: ScriptedServer, connection: ssl.SSLSocket) -> None:
    """Say that the object was stored."""
    digest = hashlib.md5(server.requests[-1].body).hexdigest()
    answer(200, ETag=f'"{digest}"')(server, connection)


def partial(data: bytes) -> Act:
    """Send these bytes and close the connection."""

    def act(server: ScriptedServer, connection: ssl.SSLSocket) -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_RDWR)

    return act


def reset(server: ScriptedServer, connection: ssl.SSLSocket) -> None:
    """Close the connection with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def hang(server: ScriptedServer, connection: ssl.SSLSocket) -> None:
    """Say nothing until the server is closed."""
    server.closing.wait()


@dataclass
class ScriptedServer:
    """Answers each request by the next act of its script, the last one for ever.

    `deaf` is a way not even to read the request: before the TLS handshake or after it.
    """

    certificate: Certificate
    script: list[Act]
    deaf: str = ""
    requests: list[Request] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.certificate.cert, self.certificate.key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def settings(self) -> R2Settings:
        """How to reach it."""
        return settings_for(self._listener.getsockname()[1], self.certificate)

    def close(self) -> None:
        """End all connections and threads."""
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                raw, _ = self._listener.accept()
                raw.settimeout(10)
                self._threads.append(threading.Thread(target=self._serve, args=(raw,)))
                self._threads[-1].start()

    def _serve(self, raw: socket.socket) -> None:
        with raw, contextlib.suppress(OSError, EOFError):
            if self.deaf == "before TLS":
                self.closing.wait()
                return
            with self._context.wrap_socket(raw, server_side=True) as connection:
                if self.deaf:
                    self.closing.wait()
                    return
                connection.settimeout(0.1)
                while True:
                    self.requests.append(self._read(connection))
                    self.script[min(len(self.requests), len(self.script)) - 1](self, connection)

    def _read(self, connection: ssl.SSLSocket) -> Request:
        data = self._read_until(connection, b"", lambda data: b"\r\n\r\n" in data)
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", 0))
        body = self._read_until(connection, body, lambda data: len(data) >= size)
        method, path, _ = first.split(" ")
        return Request(method, path, headers, body)

    def _read_until(self, connection: ssl.SSLSocket, data: bytes, enough: Callable[[bytes], bool]) -> bytes:
        while not enough(data):
            try:
                more = connection.recv(65536)
            except TimeoutError:
                if self.closing.is_set():
                    raise
                continue
            if not more:
                raise EOFError
            data += more
        return data
