"""The metrics file: what is in it, that promtool likes it, and that a place that cannot be written stops nobody."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from pipeline import mutes, snapshot, telling
from pipeline.board import Board
from pipeline.metrics import Look, MetricsFile
from tests import readme
from tests.machine import FaultRig
from tests.support import Rig, wait_until

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def values_of(path: Path) -> Values:
    """Every sample of a metrics file."""
    families = text_string_to_metric_families(path.read_text(encoding="utf-8"))
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(found: Values, name: str, **labels: str) -> float:
    return found[f"stillwatch_{name}", frozenset(labels.items())]


def written(service: Rig, path: Path) -> Values:
    """The metrics of a running service, written from here: its board tells all."""
    board = Board.open(str(service.base / "run"))
    MetricsFile(str(path), board, str(service.base / "state")).write()
    os.close(board.fd)
    return values_of(path)


def test_frames_processes_and_evidence_are_counted(rig: Callable[..., Rig], tmp_path: Path) -> None:
    path = tmp_path / "stillwatch.prom"
    with rig("--workers=2", sources=("a", "b")) as service:
        for number in range(7):
            service.publish(number)
        service.publish(7, b"no picture")
        service.wait_sidecars(8)  # which are there before the board shows it:
        wait_until(lambda: value(written(service, path), "frames_total", source="a", outcome="invalid"), 30)
        found = written(service, path)
        assert value(found, "frames_published_total", source="a") == 8
        assert value(found, "frames_total", source="a", outcome="judged") == 7
        assert value(found, "frames_total", source="a", outcome="invalid") == 1
        assert value(found, "frames_published_total", source="b") == 0
        assert abs(value(found, "last_frame_timestamp_seconds", source="a") - time.time()) < 30
        assert ("stillwatch_last_frame_timestamp_seconds", frozenset({("source", "b")})) not in found
        for process in ("supervisor", "watcher", "uploader", "worker/0", "worker/1"):
            assert value(found, "process_running", process=process) == 1
            assert value(found, "process_resident_memory_bytes", process=process) > 2**20
        assert value(found, "condition_open", source="a", condition="black") == 0
        mutes.write(str(service.base / "state"), "a", time.time_ns() + 10**12, time.time_ns())
        muted = written(service, path)
        assert [value(muted, "source_muted", source=name) for name in "ab"] == [1, 0]
        assert any(name == "stillwatch_build_info" for name, _ in found)
        service.child("watcher").kill()
        wait_until(
            lambda: written(service, path)["stillwatch_process_restarts_total", frozenset({("process", "watcher")})], 10
        )


def test_the_service_writes_it_from_the_first_moment_to_the_last(tmp_path: Path) -> None:
    """For everybody, whatever its umask (the unit's is 0027); and takes it away when it ends."""
    folder = tmp_path / "textfile"
    folder.mkdir()
    path = folder / "stillwatch.prom"
    service = FaultRig(tmp_path, "--workers=1", "--report-every=1000", f"--metrics-file={path}")
    service.wrapper = ("sh", "-c", 'umask 0027; exec "$@"', "sh")
    with service:
        wait_until(path.exists, telling.METRICS_EVERY_S / 2, "the file at READY")
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert value(values_of(path), "process_running", process="supervisor") == 1
        assert service.stop() == 0
    assert os.listdir(folder) == []


@pytest.mark.slow
def test_the_service_goes_on_where_it_cannot_write_it(tmp_path: Path) -> None:
    folder = tmp_path / "textfile"
    folder.mkdir()
    assert telling.METRICS_EVERY_S <= 15
    with Rig(tmp_path, "--workers=1", f"--metrics-file={folder / 'stillwatch.prom'}") as service:
        wait_until((folder / "stillwatch.prom").exists, 30, "the file")
        shutil.rmtree(folder)
        line = wait_until(lambda: service.lines("metrics not written"), 30, "the complaint")[0]
        assert "No such file or directory" in line
        folder.mkdir()
        wait_until((folder / "stillwatch.prom").exists, 30, "the file")
        assert values_of(folder / "stillwatch.prom")
        assert os.listdir(folder) == ["stillwatch.prom"], "no half-written file is left beside it"
        service.publish(1)
        service.wait_sidecars(1)


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (Debian: prometheus)")
def test_promtool_finds_nothing_to_say(rig: Callable[..., Rig], tmp_path: Path) -> None:
    path = tmp_path / "stillwatch.prom"
    with rig("--workers=1") as service:
        service.publish(1)
        service.wait_sidecars(1)
        written(service, path)
    done = subprocess.run(["promtool", "check", "metrics"], input=path.read_bytes(), capture_output=True, timeout=30)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


RULE_TESTS = """
rule_files: [rules.yml]
tests:
  - interval: 15s
    input_series:
      - {series: 'up{job="node", instance="pi"}', values: "1x20"}
      - {series: 'up{job="node", instance="other"}', values: "1x20"}
      - {series: 'stillwatch_build_info{instance="pi", version="1"}', values: "1x20"}
      - {series: 'stillwatch_condition_open{instance="pi", source="a", condition="black"}', values: "1x20"}
      - {series: 'stillwatch_condition_open{instance="pi", source="b", condition="black"}', values: "1x20"}
      - {series: 'stillwatch_source_muted{instance="pi", source="a"}', values: "1x20"}
      - {series: 'stillwatch_source_muted{instance="pi", source="b"}', values: "0x20"}
      - {series: 'node_textfile_mtime_seconds{instance="pi", file="/run/textfile/stillwatch.prom"}', values: "0x20"}
    alert_rule_test:
      - alertname: StillwatchCondition
        eval_time: 4m
        exp_alerts:
          - exp_labels: {instance: pi, source: b, condition: black}
            exp_annotations: {summary: "b: black"}
      - {alertname: StillwatchEnded, eval_time: 4m, exp_alerts: [{exp_labels: {instance: other, job: node}}]}
      - alertname: StillwatchDead
        eval_time: 4m
        exp_alerts: [{exp_labels: {instance: pi, file: /run/textfile/stillwatch.prom}}]
"""
"""At 4 min: a black source that is muted and one that is not, a machine without the file, and a file of minute 0."""


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (Debian: prometheus)")
def test_the_alerts_of_the_readme_do_what_it_says(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", readme.section("The numbers it prints"), re.MULTILINE | re.DOTALL)
    (tmp_path / "rules.yml").write_text(block)
    (tmp_path / "tests.yml").write_text(RULE_TESTS)
    done = subprocess.run(
        ["promtool", "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout + done.stderr


def test_names_follow_the_conventions(rig: Callable[..., Rig], tmp_path: Path) -> None:
    with rig("--workers=1") as service:
        written(service, tmp_path / "stillwatch.prom")
    text = (tmp_path / "stillwatch.prom").read_text()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    for name, kind in kinds.items():
        assert name.startswith("stillwatch_")
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(r"_(ms|mb|pct|minutes)\b", name)


def test_every_metric_stands_in_the_readme(rig: Callable[..., Rig], tmp_path: Path) -> None:
    with rig("--workers=1") as service:
        board = Board.open(str(service.base / "run"))
        seen = snapshot.take(board, str(service.base / "state"))
        os.close(board.fd)
    host = replace(seen.host, temperature_c=51.0, throttled=0x50005, under_voltage=True)
    families = list(Look(replace(seen, host=host), time.time()).collect())
    told = {family.name + {"counter": "_total", "info": "_info"}.get(family.type, ""): family for family in families}
    rows = {readme.names_in(row[0])[0]: row for row in readme.rows("The numbers it prints")}
    assert "stillwatch_throttled" in told
    assert set(told) == {name for name in rows if name.startswith("stillwatch_")}
    for name, family in told.items():
        labels = {label for sample in family.samples for label in sample.labels}
        assert rows[name][1] == family.type
        assert not family.samples or set(readme.names_in(rows[name][2])) == labels


def test_each_bit_of_throttling_is_a_sample_of_its_own(rig: Callable[..., Rig], tmp_path: Path) -> None:
    with rig("--workers=1") as service:
        board = Board.open(str(service.base / "run"))
        seen = snapshot.take(board, str(service.base / "state"))
        os.close(board.fd)
    look = Look(replace(seen, host=replace(seen.host, throttled=0x50005)), time.time())
    (family,) = [family for family in look.collect() if family.name == "stillwatch_throttled"]
    standing = {(s.labels["reason"], s.labels["since"]) for s in family.samples if s.value}
    assert standing == {(reason, since) for reason in ("under-voltage", "throttled") for since in ("now", "boot")}
    assert len(family.samples) == 8
