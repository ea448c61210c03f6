"""The module map: imports lead to a lower level only, and each third-party package has its few importers."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

MAP: dict[str, tuple[int, set[str]]] = {  # module: its level, the third-party packages it may import
    "model": (0, {"msgspec"}),
    "arrivals": (3, {"inotify_simple"}),
    "audio": (1, {"msgspec", "numpy"}),
    "backoff": (1, set()),
    "board": (1, set()),
    "clock": (1, set()),
    "console": (1, {"rich"}),
    "diskwrites": (1, set()),
    "durable": (0, set()),
    "detectors": (1, {"cv2", "numpy"}),
    "history": (1, {"msgspec", "numpy"}),
    "tiles": (1, {"cv2", "numpy"}),
    "motion": (2, {"cv2", "numpy"}),
    "black": (2, {"cv2", "msgspec", "numpy"}),
    "freeze": (3, {"numpy"}),
    "masks": (2, {"numpy"}),
    "overlay": (2, {"numpy"}),
    "tilemap": (2, {"numpy"}),
    "zap": (2, {"msgspec", "numpy"}),
    "standing": (1, {"msgspec"}),
    "frames": (1, set()),
    "grab": (3, set()),
    "hold": (1, set()),
    "incidents": (1, {"msgspec"}),
    "logsink": (1, set()),
    "lastwords": (1, set()),
    "ownership": (2, set()),
    "mounts": (1, set()),
    "mutes": (1, {"msgspec"}),
    "notify": (1, set()),
    "news": (1, set()),
    "pihealth": (1, set()),
    "retention": (4, set()),
    "ring": (1, {"msgspec"}),
    "shelf": (3, {"inotify_simple"}),
    "space": (1, set()),
    "stock": (1, set()),
    "settings": (1, {"msgspec"}),
    "signature": (1, {"cv2", "msgspec", "numpy"}),
    "spool": (1, {"msgspec"}),
    "store": (1, {"msgspec"}),
    "truth": (1, {"msgspec"}),
    "accuracy": (2, set()),
    "baselines": (2, {"cv2", "numpy"}),  # the rules we are measured against: nothing that watches loads them
    "checks.account": (2, set()),
    "checks.capture": (5, set()),
    "checks.checkup": (1, set()),
    "checks.frames": (5, {"inotify_simple"}),
    "checks.inotify": (4, {"inotify_simple"}),
    "checks.machine": (2, set()),
    "checks.network": (4, {"msgspec"}),
    "checks.places": (4, set()),
    "checks.programs": (1, set()),
    "checks.service": (6, set()),
    "checks.subject": (3, set()),
    "checks.systemdunit": (2, set()),
    "checks.unit": (4, set()),
    "child": (2, {"msgspec", "setproctitle"}),
    "config": (2, {"msgspec"}),
    "instance": (2, set()),
    "installed": (3, set()),
    "nosignal": (2, {"cv2", "numpy"}),
    "macroblocks": (2, {"cv2", "numpy"}),
    "legacy": (1, {"dotenv", "msgspec"}),
    "judge": (4, {"msgspec"}),
    "learned": (3, {"msgspec"}),
    "listening": (2, {"inotify_simple"}),
    "listing": (3, set()),
    "r2": (2, {"boto3", "botocore", "urllib3"}),
    "shedding": (2, set()),
    "sidecar": (2, {"msgspec"}),
    "webhook": (2, set()),
    "capture": (5, set()),
    "capturecheck": (4, {"msgspec"}),
    "clockgate": (3, set()),
    "incidentlog": (3, {"msgspec"}),
    "intake": (4, set()),
    "evidence": (5, {"msgspec"}),
    "keeper": (4, {"msgspec"}),
    "bounds": (3, {"msgspec"}),
    "timeline": (3, set()),
    "tuning": (3, {"msgspec"}),
    "process": (3, {"msgspec"}),
    "report": (4, {"psutil"}),
    "sender": (4, set()),
    "supervisor": (4, {"msgspec"}),
    "telling": (5, set()),
    "trial": (5, set()),
    "uploader": (5, set()),  # wires keeper and sender together
    "silence": (5, set()),
    "watched": (6, set()),
    "watcher": (7, {"inotify_simple"}),
    "workers": (6, set()),
    "snapshot": (5, {"msgspec", "psutil"}),
    "commands.status": (6, {"msgspec"}),
    "metrics": (6, {"prometheus_client"}),
    "service": (6, {"msgspec"}),
    "commands.incidents": (6, {"msgspec"}),
    "speed.stage": (2, {"psutil"}),
    "speed.load": (3, {"inotify_simple"}),
    "speed.crowds": (3, set()),
    "speed.queues": (3, {"msgspec"}),
    "speed.rivals": (4, {"cv2"}),
    "speed.session": (5, {"psutil"}),
    "speed.telling": (4, set()),
    "speed.plot": (5, {"matplotlib"}),  # loaded by name, where a picture is asked for
    "commands.bench": (6, {"msgspec"}),
    "commands.import_env": (2, set()),
    "commands.mute": (6, set()),
    "commands.unmute": (7, set()),
    "commands.learn_no_signal": (8, {"msgspec"}),
    "recording": (6, {"msgspec"}),
    "rejudge": (4, {"msgspec"}),
    "commands.replay": (7, {"msgspec"}),
    "commands.doctor": (8, {"msgspec"}),
    "commands.run": (7, {"setproctitle"}),
    "commands.demo": (7, {"msgspec"}),  # plays its scenes through `run`'s Service
    "__main__": (9, set()),
}
PACKAGE = ROOT / "pipeline"
FILES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {name: path for name, path in FILES.items() if not name.endswith("__init__")}


def imported(path: Path) -> tuple[set[str], set[str]]:
    """What a file imports anywhere: modules of ours, and third-party packages."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports name the whole path"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    inside = {name.removeprefix("pipeline.") for name in names if name.startswith("pipeline.")}
    ours = {module for module in MODULES if any(n == module or n.startswith(f"{module}.") for n in inside)}
    packages = {name.split(".")[0] for name in names}
    return ours, packages - set(sys.stdlib_module_names) - {"pipeline"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_lower_levels_and_its_own_packages_only(module: str) -> None:
    assert module in MAP, f"{module} is new: give it its level and its packages here"
    level, allowed = MAP[module]
    ours, packages = imported(MODULES[module])
    assert {name: MAP[name][0] for name in ours if MAP[name][0] >= level} == {}, f"{module} is on level {level}"
    assert packages <= allowed


@pytest.mark.parametrize("module", MODULES)
def test_imports_stand_at_the_top(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    below = {id(node) for node in ast.walk(tree)} - {id(node) for node in tree.body}
    late = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) and id(n) in below]
    assert late == []


@pytest.mark.parametrize("package", [name for name in FILES if name.endswith("__init__")])
def test_packages_import_nothing(package: str) -> None:
    assert imported(FILES[package]) == (set(), set())


@pytest.mark.parametrize("module", ["watcher", "supervisor", "child", "capture", "report", "commands.run", "__main__"])
def test_a_process_that_sees_no_pixels_loads_neither_opencv_nor_boto(module: str) -> None:
    """Memory of a process that lives for months: OpenCV with numpy costs 41 MB, boto3 49 MB."""
    program = f"import sys, pipeline.{module}; print(*({{'cv2', 'numpy', 'boto3', 'botocore'}} & {{*sys.modules}}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
