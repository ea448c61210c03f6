"""Fixtures of the S3 servers, for `pytest_plugins`. Where a server is not installed, tests that want it are skipped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from pipeline.store import R2Settings
from tests import s3_servers
from tests.machine import skipping
from tests.s3_servers import Act, Certificate, ScriptedServer


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Made once per run."""
    with skipping():
        return s3_servers.make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def seaweedfs(certificate: Certificate) -> Iterator[R2Settings]:
    """SeaweedFS, with a key that is scoped to its one bucket."""
    with skipping(), s3_servers.seaweedfs(certificate) as settings:
        yield settings


@pytest.fixture(scope="session")
def rclone(certificate: Certificate) -> Iterator[R2Settings]:
    """`rclone serve s3`."""
    with skipping(), s3_servers.rclone(certificate) as settings:
        yield settings


@pytest.fixture
def s3() -> ModuleType:
    """The acts for `scripted`."""
    return s3_servers


@pytest.fixture
def scripted(certificate: Certificate) -> Iterator[Callable[..., ScriptedServer]]:
    """Makes servers: `scripted(answer(503), reset, answer(200))`."""
    with contextlib.ExitStack() as stack:

        def make(*script: Act, deaf: str = "", certificate: Certificate = certificate) -> ScriptedServer:
            server = ScriptedServer(certificate, list(script), deaf)
            stack.callback(server.close)
            return server

        yield make
