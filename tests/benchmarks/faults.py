"""Faults of network, server and keys under the running service, one after the other: the measurement `faults`."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from tests.benchmarks.stage import WRONG_SECRET, Stage, bucket, said, state_dir
from tests.benchmarks.tools import memory_dir, say, spread
from tests.s3_proxy import Proxy, proxy_to

PLAIN_S = 10.0
FAULTS = {"burst": 15.0, "reset": 15.0, "half": 15.0, "hang": 45.0, "skew": 66.0, "wrong-secret": 15.0, "bucket": 15.0}
"""For how long: a hang is noticed after 20 s, and the clock is asked for once in 61 s."""


def faults(_seconds: float) -> dict[str, object]:
    """Each fault against the running service: its class, the requests meanwhile, and what detection feels of it."""
    with contextlib.ExitStack() as stack:
        base, state = stack.enter_context(memory_dir()), stack.enter_context(state_dir())
        server, certificate = stack.enter_context(bucket())
        proxy = stack.enter_context(proxy_to(server, certificate))
        secret = base / "credentials" / "r2-secret-access-key"
        secret.parent.mkdir()
        secret.write_text(server.secret_access_key)
        stage = Stage(base, state, proxy.settings, CREDENTIALS_DIRECTORY=str(secret.parent))
        with stage.service:
            assert stage.play(30, lambda: stage.told(" incident closed ") >= 2) < 30, "no incidents"
            stage.latencies.take()
            for name in FAULTS:
                say(f"faults/{name}: {json.dumps(_meet(stage, proxy, name, secret))}")
            latencies = {"without": spread(stage.without_ms), "during": spread(stage.during_ms)}
            return {**stage.finish(server), **latencies}


def _meet(stage: Stage, proxy: Proxy, fault: str, secret: Path) -> dict[str, object]:
    """A while without the fault, then with it, then until nothing waits any more."""
    stage.play(PLAIN_S)
    without = stage.latencies.take()
    begun, log_before, closed_before = time.monotonic(), len(stage.service.log), stage.told(" incident closed ")
    right = secret.read_text()
    with contextlib.ExitStack() as stack:
        if fault == "wrong-secret":
            secret.write_text(WRONG_SECRET)
            stage.restart_uploader()
        else:
            stack.enter_context(proxy.doing(fault))
        seconds = stage.play(FAULTS[fault])
    during = stage.latencies.take()
    asked = [request.at for request in proxy.requests if request.at >= begun]
    assert stage.spooled(), "the fault has kept nothing waiting"
    result: dict[str, object] = {
        "seconds": round(seconds, 1),
        "requests": len(asked),
        "most_in_60_s": max((sum(at <= other < at + 60 for other in asked) for at in asked), default=0),
        "said": said(stage.service.log[log_before:]),
        "incidents_closed_meanwhile": stage.told(" incident closed ") - closed_before,
        "waiting": stage.spooled(),
    }
    if fault in ("wrong-secret", "bucket"):  # for a person: who has mended it starts the uploader anew
        secret.write_text(right)
        stage.restart_uploader()
    result["stored_after_s"] = round(stage.play(90, lambda: not stage.spooled()), 1)
    assert not stage.spooled(), "not stored after the fault"
    stage.latencies.take()
    stage.without_ms += without
    stage.during_ms += during
    return {**result, "without": spread(without), "during": spread(during)}
