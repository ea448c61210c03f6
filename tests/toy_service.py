"""The real service, whose workers do what a frame tells them in the bytes behind its end-of-image marker.

Run as `python -m tests.toy_service run ...`. The worker is the real one in everything else: what is written, committed
and counted around a crash, a hang or a slow frame is what the service would do.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from unittest import mock

import msgspec

from pipeline import __main__ as program
from pipeline import detectors, workers
from pipeline.child import Child, Spec
from pipeline.commands import run as run_command
from pipeline.service import Service

GATE = "gate"
STOP_S = "TOY_STOP_S"
"""A variable: the workers are the real ones, and each child may take so long to stop, whatever the service's limits."""
_MARK = b"TOY "
_POLL_S = 0.01


def order(words: str) -> bytes:
    """What to append to a frame: `segv`, `gate` (wait while the file of that name is there) or `sleep SECONDS`."""
    return _MARK + words.encode()


def run(child: Child) -> int:
    """A worker's life, with a decoder that obeys the orders in frames."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    decode = detectors.decode

    def obey(data: bytes) -> detectors.Picture:
        match data.rpartition(_MARK)[2].decode(errors="replace").split() if _MARK in data else []:
            case ["segv"]:
                os.kill(os.getpid(), signal.SIGSEGV)
            case ["gate"]:
                while os.path.exists(GATE):
                    time.sleep(_POLL_S)
            case ["sleep", seconds]:
                time.sleep(float(seconds))
        return decode(data)

    with mock.patch.object(detectors, "decode", obey):
        return workers.run(child)


class ToyService(Service):
    """The service, its workers replaced by obedient ones."""

    def _specs(self, workers: int) -> list[Spec]:
        replace = msgspec.structs.replace
        specs = super()._specs(workers)
        if patience := os.environ.get(STOP_S):
            return [replace(s, stop_s=float(patience)) for s in specs]
        return [replace(s, entry="tests.toy_service:run") if s.name.startswith("worker/") else s for s in specs]


if __name__ == "__main__":
    with mock.patch.object(run_command, "Service", ToyService):
        sys.exit(program.main(sys.argv[1:]))
