"""The real service with an uploader of less patience: five minutes until a person has mended something, and the minute
between two questions about the clock, are too long for a test.

Run as `python -m tests.quick_service run ...`; nothing else differs.
"""

from __future__ import annotations

import sys
from functools import partial
from unittest import mock

import msgspec

from pipeline import __main__ as program
from pipeline import clockgate, uploader
from pipeline.child import Child, Spec
from pipeline.commands import run as run_command
from pipeline.sender import Sender
from pipeline.service import Service

PATIENCE_S = 2.0


def run(child: Child) -> int:
    """An uploader's life, in a hurry."""
    with (
        mock.patch.object(uploader, "Sender", partial(Sender, pause_s=PATIENCE_S)),
        mock.patch.object(clockgate, "PROBE_EVERY_S", PATIENCE_S),
    ):
        return uploader.run(child)


class QuickService(Service):
    """The service, its uploader replaced by the impatient one."""

    def _specs(self, workers: int) -> list[Spec]:
        replace = msgspec.structs.replace
        return [
            replace(spec, entry="tests.quick_service:run") if spec.name == "uploader" else spec
            for spec in super()._specs(workers)
        ]


if __name__ == "__main__":
    with mock.patch.object(run_command, "Service", QuickService):
        sys.exit(program.main(sys.argv[1:]))
