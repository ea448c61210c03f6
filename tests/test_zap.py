"""Channel changes: a short black between two scenes. Each row shows one picture per letter, five a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pipeline.model import Verdict, Zap
from pipeline.zap import ZapMemory, Zaps
from tests.pictures import grey, jpeg, rounded, texture
from tests.support import ROOT, Rig, frame_name

SECOND = 10**9
SCENES = {"a": 60, "A": 62, "b": 180, "#": 0, "=": 0}


def zaps(shown: str, memory: ZapMemory | None = None) -> list[tuple[int, Zap]]:
    """At which picture which zap was known. `#` is black, `=` black with a banner, the others are scenes."""
    memory = memory or ZapMemory()
    found = []
    for at, letter in enumerate(shown):
        black = Verdict(letter in "#=", {"black_lit_pct": 30.0 if letter == "=" else 2.0})
        picture = np.full((90, 160), SCENES[letter], np.uint8)
        zap = Zaps(memory).judge(picture, black, at * SECOND // 5, at * SECOND // 5 + 1000 * SECOND)
        if zap:
            found.append((at, zap))
    return found


def test_a_zap_is_known_a_second_after_its_end() -> None:
    ((at, zap),) = zaps("aaaa" + "#" * 10 + "bbbbbbbb")
    assert at == 19 and zap == Zap(1_000_800_000_000, 1_002_800_000_000, 2.0, banner=False)


@pytest.mark.parametrize(
    ("shown", "durations"),
    [
        pytest.param("aa" + "#" * 49 + "b" * 9, [9.8], id="just short enough"),
        pytest.param("aa" + "#" * 50 + "b" * 9, [], id="10 s are an outage"),
        pytest.param("aa####AAAAAAA", [], id="the same scene again"),
        pytest.param("####bbbbbbbb", [], id="nothing was seen before"),
        pytest.param("aa##bb##bbbbbbb", [1.2], id="black again at once is the same zap"),
        pytest.param("aa##bbbbbbbb##aaaaaaa", [0.4, 0.4], id="two"),
        pytest.param("aa##bb", [], id="not known yet"),
    ],
)
def test_what_is_a_zap(shown: str, durations: list[float]) -> None:
    assert [zap.duration_s for _, zap in zaps(shown)] == durations


def test_a_banner_is_noted() -> None:
    assert [zap.banner for _, zap in zaps("aa##==##bbbbbbb##aaaaaaa")] == [True, False]


def test_a_successor_goes_on() -> None:
    memory = ZapMemory()
    assert zaps("aa###", memory) == []
    memory = msgspec.msgpack.decode(msgspec.msgpack.encode(memory), type=ZapMemory)
    assert len(zaps("##bbbbbbb", memory)) == 1


def test_a_live_source_counts_its_zaps(rig: Callable[..., Rig]) -> None:
    """Two seconds of black between two programmes, five frames a second by the files' times."""
    programme, other, black = jpeg(rounded(texture(90))), jpeg(rounded(255 - texture(90))), jpeg(grey(0))
    shown = [programme] * 5 + [black] * 10 + [other] * 10
    with rig() as service:
        begun_ns = time.time_ns() - len(shown) * SECOND // 5
        for number, data in enumerate(shown):
            _publish_at(service.dir, number, data, begun_ns + number * SECOND // 5)
        found = service.wait_sidecars(len(shown))
        (zap,) = [content["zap"] for content in found.values() if content["zap"]]
        assert zap["duration_s"] == pytest.approx(2.0, abs=0.01)
        places = [f"--runtime-dir={service.base / 'run'}", f"--state-dir={service.base / 'state'}"]
        command = [sys.executable, "-m", "pipeline", "status", "--json", *places]
        told = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=30).stdout)
        assert told["sources"][0]["zaps"] == 1


def _publish_at(directory: Path, number: int, data: bytes, time_ns: int) -> None:
    temporary = directory / f"{frame_name(number)}.tmp"
    temporary.write_bytes(data)
    os.utime(temporary, ns=(time_ns, time_ns))
    temporary.rename(directory / frame_name(number))
