"""FFmpegs of several ages, so that the capture tests run with each; without them those tests are skipped.

.venv/bin/python -m tests.ffmpegs installs them (350 MB): static builds, found in wheels of imageio-ffmpeg.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

INSTALL = ".venv/bin/python -m tests.ffmpegs"
WHEELS = {"4.2": "0.4.9", "7.0": "0.6.0", "9.0": "0.8.1"}  # FFmpeg's version: the wheel's
VERSIONS = ["here", *WHEELS]
_PLACE = Path(sys.prefix) / "ffmpegs"


def find(version: str) -> str:
    """The path of this FFmpeg, `here` being the one on PATH; skips the test where it is not installed."""
    if version == "here":
        found = shutil.which("ffmpeg")
        assert found, "ffmpeg is needed: apt-get install ffmpeg"
        return found
    paths = sorted((_PLACE / version).glob("imageio_ffmpeg/binaries/ffmpeg-*"))
    if not paths:
        pytest.skip(f"needs FFmpeg {version}: {INSTALL}")
    return str(paths[0])


def install() -> None:
    """Install what is missing."""
    for version, wheel in WHEELS.items():
        target = _PLACE / version
        if not target.exists():
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
            subprocess.run([*pip, f"imageio-ffmpeg=={wheel}"], check=True)


if __name__ == "__main__":
    install()
