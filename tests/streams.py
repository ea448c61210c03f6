"""What captures are made from: recordings made by FFmpeg, a web server that can seek, an RTSP camera with a password.

The camera speaks just enough RTSP (RFC 2326) for one viewer over TCP; what it shows, and the RTP packets, are FFmpeg's.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import itertools
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

TONE = "sine=frequency=440:sample_rate=48000,volume=4"  # of amplitude 1/2: -9 dBFS
PASSWORD = "p.*'[$&s"  # characters that a pattern, a shell and sed would each take for something else


def record(path: Path, picture: str, sound: str = "", seconds: float = 2, codec: str = "mjpeg") -> Path:
    """A recording of FFmpeg's test sources."""
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", picture]
    command += ["-f", "lavfi", "-i", sound] if sound else []
    command += ["-t", str(seconds), "-c:v", codec, "-fps_mode", "passthrough"]
    command += ["-q:v", "5", "-pix_fmt", "yuvj422p"] if codec == "mjpeg" else ["-pix_fmt", "yuv420p"]
    subprocess.run([*command, "-c:a", "pcm_s16le", str(path)], check=True, stdin=subprocess.DEVNULL)
    return path


def packets(path: Path, target: Path) -> list[bytes]:
    """Every JPEG that an MJPEG recording holds, as it stands there."""
    target.mkdir()
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-map", "0:v", "-c:v", "copy"]
    subprocess.run([*command, "-f", "image2", str(target / "%04d.jpg")], check=True, stdin=subprocess.DEVNULL)
    return [file.read_bytes() for file in sorted(target.iterdir())]


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers `Range`, which FFmpeg needs to begin a recording anew."""

    protocol_version = "HTTP/1.1"
    root: Path
    asked: list[str]

    def do_GET(self) -> None:
        """The file of this name, or a part of it."""
        self.asked.append(self.path)
        data = (self.root / self.path.lstrip("/").partition("?")[0]).read_bytes()
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(match[1]), int(match[2] or len(data) - 1)) if match else (0, len(data) - 1)
        self.send_response(206 if match else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data[first : last + 1])

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def web_server(root: Path) -> Iterator[tuple[str, list[str]]]:
    """A web server on loopback; its base URL, and the paths that were asked for."""
    asked: list[str] = []
    handler = type("Handler", (_Handler,), {"root": root, "asked": asked})
    with serving(handler) as url:
        yield url, asked


@contextlib.contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """A web server on loopback; its base URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _EndlessHandler(http.server.BaseHTTPRequestHandler):
    """Shows JPEGs over and over, as cameras do over HTTP, at a rate of its own."""

    protocol_version = "HTTP/1.1"
    pictures: list[bytes]
    fps: float

    def do_GET(self) -> None:
        """Pictures until the viewer goes."""
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace;boundary=next")
        self.end_headers()
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for number in itertools.count():
                picture = self.pictures[number % len(self.pictures)]
                head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                self.wfile.write(head.encode() + picture + b"\r\n")
                time.sleep(max(0.0, begun + number / self.fps - time.monotonic()))

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def endless_camera(pictures: list[bytes], fps: float) -> Iterator[str]:
    """A camera on loopback that shows `fps` JPEGs a second to every viewer, however fast that is; its URL."""
    handler = type("Handler", (_EndlessHandler,), {"pictures": pictures, "fps": fps})
    with serving(handler) as url:
        yield url


class Camera:
    """An RTSP camera that shows a test picture with a tone to whoever knows the password."""

    _SDP = (
        "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track1\r\n"  # 33: MPEG-TS
    )
    _RIGHT = "Basic " + base64.b64encode(f"user:{PASSWORD}".encode()).decode()

    def __init__(self) -> None:
        self.refused = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._packets = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._packets.bind(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._serve), threading.Thread(target=self._relay)]
        self._viewer: socket.socket | None = None
        self._pusher: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Camera:
        for thread in self._threads:
            thread.start()
        port = self._packets.getsockname()[1]
        picture = ["-re", "-f", "lavfi", "-i", "testsrc2=size=320x180:rate=25", "-re", "-f", "lavfi", "-i", TONE]
        codecs = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "5", "-pix_fmt", "yuv420p", "-c:a", "aac"]
        target = ["-f", "rtp_mpegts", f"rtp://127.0.0.1:{port}?pkt_size=1316"]
        command = ["ffmpeg", "-nostdin", "-v", "error", *picture, *codecs, *target]
        self._pusher = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._pusher
        self._pusher.kill()
        self._pusher.wait()
        self._packets.sendto(b"", self._packets.getsockname())
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        if self._viewer:
            with contextlib.suppress(OSError):
                self._viewer.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()
        self._packets.close()

    def _serve(self) -> None:
        """One viewer after the other."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(ConnectionError):
                    self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            while line := lines.readline():
                if line[:1] == b"$":  # the viewer's reports of what it received
                    continue
                method = line.split()[0].decode("latin-1") if line.split() else ""
                headers = dict(iter(lambda: self._header(lines.readline()), ("", "")))
                if method in {"OPTIONS", "DESCRIBE", "SETUP", "PLAY", "TEARDOWN", "GET_PARAMETER"}:
                    connection.sendall(self._answer(method, headers).encode())
                if method == "PLAY" and headers.get("authorization") == self._RIGHT:
                    self._viewer = connection

    @staticmethod
    def _header(line: bytes) -> tuple[str, str]:
        key, _, value = line.decode("latin-1").strip().partition(":")
        return key.lower(), value.strip()

    def _answer(self, method: str, headers: dict[str, str]) -> str:
        sequence = f"CSeq: {headers.get('cseq', '0')}\r\n"
        if method != "OPTIONS" and headers.get("authorization") != self._RIGHT:
            self.refused += 1
            return f'RTSP/1.0 401 Unauthorized\r\n{sequence}WWW-Authenticate: Basic realm="camera"\r\n\r\n'
        body = self._SDP if method == "DESCRIBE" else ""
        more = {
            "OPTIONS": "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER\r\n",
            "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n",
            "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n",
        }
        return f"RTSP/1.0 200 OK\r\n{sequence}Session: 1\r\n{more.get(method, '')}\r\n{body}"

    def _relay(self) -> None:
        """FFmpeg's packets to the viewer, within the RTSP connection; an empty one is the end."""
        while packet := self._packets.recv(65536):
            if self._viewer:
                with contextlib.suppress(OSError):
                    self._viewer.sendall(b"$\x00" + len(packet).to_bytes(2) + packet)
