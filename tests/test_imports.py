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
    "audio": (1, set()),
    "backoff": (1, set()),
    "board": (1, set()),
    "clock": (1, set()),
    "console": (1, {"rich"}),
    "detectors": (1, {"cv2", "msgspec", "numpy"}),
    "frames": (1, set()),
    "hold": (1, set()),
    "incidents": (1, {"msgspec"}),
    "mounts": (1, set()),
    "ring": (1, {"msgspec"}),
    "settings": (1, {"msgspec"}),
    "spool": (1, {"msgspec"}),
    "store": (1, {"msgspec"}),
    "bounds": (2, set()),
    "child": (2, {"msgspec", "setproctitle"}),
    "config": (2, {"msgspec"}),
    "judge": (2, {"msgspec"}),
    "listing": (3, set()),
    "r2": (2, {"boto3", "botocore", "urllib3"}),
    "sidecar": (2, {"msgspec"}),
    "webhook": (2, set()),
    "capture": (4, set()),
    "clockgate": (3, set()),
    "incidentlog": (3, {"msgspec"}),
    "intake": (4, set()),
    "evidence": (3, {"msgspec"}),
    "keeper": (4, {"msgspec"}),
    "report": (4, {"psutil"}),
    "sender": (4, set()),
    "supervisor": (4, {"msgspec"}),
    "uploader": (5, set()),  # wires keeper and sender together
    "watcher": (5, {"inotify_simple"}),
    "workers": (4, set()),
    "commands.incidents": (6, {"msgspec"}),
    "commands.replay": (7, {"msgspec"}),
    "commands.run": (6, {"setproctitle"}),
    "commands.demo": (7, {"msgspec"}),  # plays its scenes through `run`'s Service
    "__main__": (8, set()),
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


@pytest.mark.parametrize("module", ["watcher", "supervisor", "child", "report", "commands.run", "__main__"])
def test_a_process_that_sees_no_pixels_loads_neither_opencv_nor_boto(module: str) -> None:
    """Memory of a process that lives for months: OpenCV with numpy costs 41 MB, boto3 49 MB."""
    program = f"import sys, pipeline.{module}; print(*({{'cv2', 'numpy', 'boto3', 'botocore'}} & {{*sys.modules}}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
