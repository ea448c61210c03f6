"""ffmpeg/capture.sh, run as people and the pipeline run it, with this machine's FFmpeg and with older and newer ones.

There is no USB grabber here: for the v4l2 profiles a stand-in FFmpeg notes what it was asked for. Copying itself is
tried on MJPEG recordings, which take the same path.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.parse
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import psutil
import pytest
from inotify_simple import INotify, flags

from pipeline import detectors
from pipeline.audio import SILENCE_DB, measure
from pipeline.black import judge_black
from pipeline.frames import check_jpeg
from pipeline.model import BlackThresholds
from tests import ffmpegs
from tests.machine import UNPRIVILEGED, needs
from tests.streams import PASSWORD, TONE, Camera, packets, record, web_server
from tests.support import ROOT, frame_name, wait_until

pytestmark = pytest.mark.any_python

SCRIPT = ROOT / "ffmpeg" / "capture.sh"
SMALL = "testsrc2=size=320x180"
NETWORK = ["here", "9.0"]
"""The static builds of 4.2 and 7.0 cannot open a connection: their C library crashes when it looks up a host."""

STAND_IN = """\
#!/bin/bash
if [[ $1 == -h ]]; then
    echo 'libavformat    59. 27.100 / 59. 27.100'
    [[ $LACKS ]] || echo '  -atomic_writing    <boolean>'
else
    printf '%s\\n' "$@" >"$TOLD"
fi
"""

Pixels = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.int16]


class Capture:
    """A running capture. Leaving it kills FFmpeg, if that has not ended."""

    _count = itertools.count()

    def __init__(self, directory: Path, *words: str, **environment: str) -> None:
        self.directory = directory
        self.log_path = directory.parent / f"capture-{next(self._count)}.log"
        with self.log_path.open("wb") as log:
            command = [str(SCRIPT), f"--dir={directory}", *words]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8")

    def ended_well(self) -> None:
        """Wait for the end that `--duration` gives it."""
        assert self.process.wait(30) == 0, self.log

    def wait_for(self, count: int, pattern: str = "*.jpg") -> None:
        """Wait until so many files are there."""

        def enough() -> bool:
            assert self.process.poll() is None, self.log
            return len(names(self.directory, pattern)) >= count

        wait_until(enough, 30, f"{count} {pattern}")

    def wait_for_more(self, pattern: str) -> None:
        """Wait until there is a file that is not there now."""
        already = {*names(self.directory, pattern)}
        wait_until(lambda: {*names(self.directory, pattern)} - already, 30, f"another {pattern}")


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    full = {**os.environ, **environment}
    return subprocess.run([str(SCRIPT), *words], capture_output=True, text=True, timeout=30, env=full)


def command_line(directory: Path, *words: str, **environment: str) -> list[str]:
    """The words of the command that FFmpeg would get."""
    done = run("--dry-run", f"--dir={directory}", *words, **environment)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def refuse(code: int, text: str, *words: str, **environment: str) -> None:
    """It must end with this exit code, and one line that has this text."""
    done = run(*words, **environment)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("capture.sh: ") and done.stderr.count("\n") == 1, done.stderr
    assert text in done.stderr


def after(words: list[str], option: str) -> str:
    """The word behind an option."""
    return words[words.index(option) + 1]


def names(directory: Path, pattern: str = "*.jpg") -> list[str]:
    return sorted(path.name for path in directory.glob(pattern))


def pixels(path: Path) -> Pixels:
    """A JPEG's pixels; it must be whole."""
    data = path.read_bytes()
    check_jpeg(data)
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None, path
    return picture.astype(np.uint8)


def samples(path: Path) -> Samples:
    """The samples of a finished chunk, (n, channels)."""
    with wave.open(str(path), "rb") as chunk:
        assert (chunk.getsampwidth(), chunk.getframerate()) == (2, 16_000)
        assert path.stat().st_size == 44 + 2 * chunk.getnchannels() * chunk.getnframes()
        return np.frombuffer(chunk.readframes(chunk.getnframes()), np.int16).reshape(-1, chunk.getnchannels())


@pytest.fixture(params=ffmpegs.VERSIONS)
def ffmpeg(request: pytest.FixtureRequest) -> str:
    return ffmpegs.find(request.param)


@pytest.fixture(params=NETWORK)
def network_ffmpeg(request: pytest.FixtureRequest) -> str:
    return ffmpegs.find(request.param)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of MJPEG at 10 frames/s, with a tone on the left and nothing at all on the right."""
    path = tmp_path_factory.mktemp("recording") / "10fps.mkv"
    return record(path, f"{SMALL}:rate=10", f"{TONE},pan=stereo|c0=c0|c1=0*c0")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory to publish in."""
    (tmp_path / "frames").mkdir()
    return tmp_path / "frames"


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """An environment in which FFmpeg is a program that notes its arguments in the file `$TOLD`."""
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}", "TOLD": str(tmp_path / "told"), "LACKS": ""}


@pytest.fixture
def events(here: Path) -> Iterator[Callable[[], dict[str, set[str]]]]:
    """What has happened to each name: its kinds of events."""
    for name in ("audio", "hls"):
        (here / name).mkdir()
    watch = INotify(nonblocking=True)
    kinds = {flags.CREATE, flags.MODIFY, flags.MOVED_TO, flags.CLOSE_WRITE}
    mask = flags.CREATE | flags.MODIFY | flags.MOVED_TO | flags.CLOSE_WRITE
    places = {watch.add_watch(str(here / name), mask): name for name in ("", "audio/", "hls/")}
    seen: dict[str, set[str]] = {}

    def read() -> dict[str, set[str]]:
        for event in watch.read(timeout=0):
            assert not event.mask & flags.Q_OVERFLOW
            kinds_of = seen.setdefault(places[event.wd] + event.name, set())
            kinds_of.update(str(kind.name) for kind in kinds if event.mask & kind)
        return seen

    yield read
    watch.close()


# What it publishes


def test_everything_at_once_and_how_each_file_becomes_complete(
    ffmpeg: str, here: Path, recording: Path, events: Callable[[], dict[str, set[str]]]
) -> None:
    words = [f"--ffmpeg={ffmpeg}", "--profile=file", f"--input={recording}", "--duration=4"]
    with Capture(here, *words, "--thumbnails", "--audio", "--hls") as capture:
        capture.ended_well()
    seen = events()
    assert names(here, "*[0-9].jpg") == [frame_name(number) for number in range(1, 21)]
    assert names(here, "*_*_*.jpg") == [f"capture_{number:09d}_thumbnail.jpg" for number in range(1, 21)]
    for name in names(here):
        assert (seen[name], seen[f"{name}.tmp"]) == ({"MOVED_TO"}, {"CREATE", "MODIFY", "CLOSE_WRITE"})
    for frame in here.glob("*[0-9].jpg"):
        whole, small = pixels(frame), pixels(frame.with_name(f"{frame.stem}_thumbnail.jpg"))
        assert whole.shape == small.shape == (180, 320, 3)
        assert np.abs(whole.astype(int) - small).mean() < 4, f"{frame}: its thumbnail is another picture's"

    assert names(here / "audio", "*") == [f"audio_{number:09d}.wav" for number in range(1, 5)]
    for path in (here / "audio").iterdir():
        assert seen[f"audio/{path.name}"] == {"CREATE", "MODIFY", "CLOSE_WRITE"}
        assert samples(path).shape == (16_000, 2)
        left, right = measure(path.read_bytes()).channel_mean_db
        assert left == pytest.approx(-9, abs=0.2) and right == SILENCE_DB, "a dead channel stays one"

    playlist = (here / "hls" / "live.m3u8").read_text(encoding="utf-8")
    segments = [line for line in playlist.splitlines() if line.endswith(".ts")]
    assert segments and {*segments} <= {*names(here / "hls", "*.ts")}
    assert {*seen["hls/live.m3u8"], *seen[f"hls/{segments[0]}"]} == {"MOVED_TO"}
    probe = ["ffprobe", "-v", "error", "-show_entries", "stream=codec_name,width", "-of", "csv=p=0"]
    streams = subprocess.run([*probe, str(here / "hls" / segments[0])], capture_output=True, text=True).stdout
    assert {line.strip(",") for line in streams.split()} == {"h264,640", "aac"}
    assert not list(here.rglob("*.tmp"))


def test_a_copied_frame_is_the_one_that_was_delivered(ffmpeg: str, here: Path, recording: Path, tmp_path: Path) -> None:
    words = [f"--ffmpeg={ffmpeg}", "--profile=file", f"--input={recording}", "--copy", "--fps=0"]
    with Capture(here, *words) as capture:
        capture.wait_for(25)
    published = [(here / name).read_bytes() for name in names(here)]
    delivered = packets(recording, tmp_path / "packets")
    assert len({*delivered}) == 20
    assert published[:25] == [*delivered, *delivered[:5]], "every byte, in order, and looped"


def test_frames_are_left_out_evenly(network_ffmpeg: str, here: Path, recording: Path, tmp_path: Path) -> None:
    words = [f"--ffmpeg={network_ffmpeg}", "--profile=file", f"--input={recording}", "--copy", "--duration=2"]
    with Capture(here, *words) as capture:
        capture.ended_well()
    assert [(here / name).read_bytes() for name in names(here)] == packets(recording, tmp_path / "packets")[::2]


@pytest.mark.parametrize("name", ["plain", "it's | a \\\\ %d [x]:y"])
def test_a_short_recording_is_thinned_in_every_loop(network_ffmpeg: str, here: Path, tmp_path: Path, name: str) -> None:
    film = record(tmp_path / "film.mkv", f"{SMALL}:rate=10", seconds=1)
    (here / name).mkdir()
    with Capture(here / name, f"--ffmpeg={network_ffmpeg}", "--profile=file", f"--input={film}", "--copy") as capture:
        capture.wait_for(12)
    delivered = packets(film, tmp_path / "packets")
    published = [delivered.index((here / name / frame).read_bytes()) for frame in names(here / name)[:12]]
    assert len({*published}) < 10 and 1 not in (b - a for a, b in itertools.pairwise(published)), published


@pytest.mark.parametrize("how", ["--copy", "--quality=2"])
def test_jitter_costs_no_frame_and_a_gap_is_not_filled(how: str, here: Path, tmp_path: Path) -> None:
    """10 frames/s, each up to 40 ms late; the 21st and all after it 1.5 s later."""
    times = "setpts='(N+0.4*random(1)+15*gte(N,20))/10/TB'"
    source = record(tmp_path / "uneven.mkv", f"{SMALL}:rate=10,settb=1/1000,{times}", seconds=5.5)
    delivered = packets(source, tmp_path / "packets")
    assert len(delivered) == 40
    with Capture(here, "--profile=file", f"--input={source}", how, "--duration=5.4", "--thumbnails") as capture:
        capture.ended_well()
    expected = [*range(0, 40, 2)]
    if how == "--copy":
        assert [delivered.index((here / name).read_bytes()) for name in names(here, "*[0-9].jpg")] == expected
    assert len(names(here, "*[0-9].jpg")) == len(names(here, "*_*_*.jpg")) == len(expected)


def test_an_older_ffmpeg_works_with_a_warning_but_cannot_leave_out_copied_frames(here: Path, recording: Path) -> None:
    words = [f"--ffmpeg={ffmpegs.find('4.2')}", f"--dir={here}", "--profile=file", f"--input={recording}"]
    done = run("--dry-run", *words)
    assert done.returncode == 0
    assert re.fullmatch("capture.sh: warning: .* is older than 5.1 and may publish truncated .*\n", done.stderr)
    done = run("--dry-run", *words, "--copy")
    assert done.returncode == 78
    assert done.stderr.splitlines()[1].endswith("it cannot leave out copied frames; upgrade it, or use --fps 0")


def test_a_capture_killed_in_mid_chunk_shows_it(here: Path) -> None:
    """The chunk that FFmpeg was killed in can be told from a finished one, and the next run takes another number."""
    words = ["--profile=lavfi", "--input=scene:live", "--size=320x180", "--audio"]
    with Capture(here, *words) as capture:
        capture.wait_for(2, "audio/*.wav")
        capture.process.send_signal(signal.SIGSTOP)
    first, second = sorted((here / "audio").iterdir())
    assert len(samples(first)) == 16_000
    data = second.read_bytes()
    assert not data or data[4:8] == data[40:44] == b"\xff\xff\xff\xff"
    assert after(command_line(here, *words), "-segment_start_number") == "3"


@pytest.mark.slow
def test_hls_goes_on_after_every_kill_and_leaves_nothing_behind(ffmpeg: str, here: Path) -> None:
    numbers: list[int] = []
    words = [f"--ffmpeg={ffmpeg}", "--profile=lavfi", "--input=scene:live", "--size=320x180", "--hls"]
    for _ in range(3):
        with Capture(here, *words) as capture:
            capture.wait_for(1, "hls/live.m3u8")
            capture.wait_for_more("hls/*.ts")
        playlist = (here / "hls" / "live.m3u8").read_text(encoding="utf-8")
        listed = [int(number) for number in re.findall(r"live_(\d+)\.ts", playlist)]
        assert listed == sorted(listed) and [*numbers, -1][0] <= listed[-1]
        numbers = listed
    (here / "hls" / "live_000000999.ts").touch()
    (here / "hls" / "live_000000007.ts.tmp").touch()
    with Capture(here, *words) as capture:
        wait_until(lambda: "exec" in capture.log, 30, "FFmpeg")
        assert {*names(here / "hls", "*.ts*")} <= {f"live_{number:09d}.ts" for number in numbers}


NO_NEW_CODE = """\
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN: since Linux 6.3
    sys.exit(77)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_hls_works_where_memory_that_was_written_may_not_be_run(here: Path) -> None:
    """As under MemoryDenyWriteExecute=: on x86, FFmpeg makes code for `fast_bilinear` where nothing is made smaller."""
    words = ["--profile=lavfi", "--input=scene:live", "--size=640x480", "--hls", "--duration=1.5"]
    command = [sys.executable, "-c", NO_NEW_CODE, str(SCRIPT), f"--dir={here}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode == 77:
        pytest.skip("needs Linux 6.3")
    assert done.returncode == 0 and names(here / "hls", "*.ts"), done.stderr


SCENES = {"live": "", "freeze": "freeze", "black": "black", "no-signal": "blue", "bars": "bars", "silence": "silence"}


def test_scripted_scenes_show_their_fault_for_as_long_as_they_say(tmp_path: Path) -> None:
    words = ["--profile=lavfi", "--size=640x360", "--audio", "--duration=4"]
    with contextlib.ExitStack() as stack:
        captures = []
        for name in SCENES:
            (tmp_path / name).mkdir()
            capture = Capture(tmp_path / name, *words, f"--input=scene:{name}:1-3")
            captures.append(stack.enter_context(capture))
        for capture in captures:
            capture.ended_well()
    for name, fault in SCENES.items():
        paths = [tmp_path / name / file for file in names(tmp_path / name)]
        assert len(paths) == 20
        pictures = [pixels(path) for path in paths]
        during = range(5, 15)
        greys = [detectors.decode(path.read_bytes()) for path in paths]
        still = [n for n in range(1, 20) if np.abs(greys[n].astype(int) - greys[n - 1]).max() <= 2]
        assert still == ([*during][1:] if fault in {"freeze", "black", "blue", "bars"} else [])
        dark = [n for n in range(20) if judge_black(greys[n], BlackThresholds()).value]
        assert [n for n in dark if pictures[n].max() < 10] == ([*during] if fault == "black" else [])
        blue = [n for n in range(20) if np.abs(pictures[n].reshape(-1, 3).mean(0) - (190, 0, 0)).max() < 5]
        assert blue == ([*during] if fault == "blue" else [])
        sound = [bool(samples(path).any()) for path in sorted((tmp_path / name / "audio").iterdir())]
        assert sound == ([True, False, False, True] if fault == "silence" else [True] * 4)


# Where it takes it from


def test_a_recording_behind_a_url_is_looped(network_ffmpeg: str, here: Path, recording: Path) -> None:
    with web_server(recording.parent) as (base, asked):
        words = [
            f"--ffmpeg={network_ffmpeg}",
            "--profile=url",
            f"--input={base}/{recording.name}?token=hush",
            "--audio",
        ]
        with Capture(here, *words) as capture:
            capture.wait_for(13)
            assert "hush" not in capture.log
    assert f"/{recording.name}?token=hush" in asked


def test_a_live_url_is_taken_as_it_comes(here: Path, recording: Path) -> None:
    with web_server(recording.parent) as (base, _):
        words = ["--profile=url", f"--input={base}/{recording.name}", "--live", "--copy", "--fps=0"]
        with Capture(here, *words) as capture:
            capture.ended_well()
    assert len(names(here)) == 20, "to its end, once"


def test_an_rtsp_camera_with_a_password(network_ffmpeg: str, here: Path) -> None:
    secret = urllib.parse.quote(PASSWORD)
    with Camera() as camera:
        words = [f"--ffmpeg={network_ffmpeg}", "--profile=rtsp", "--audio"]
        with Capture(here, *words, CAPTURE_INPUT=f"rtsp://user:{secret}@{camera.address}/stream") as capture:
            capture.wait_for(5)
            capture.wait_for(2, "audio/*.wav")
    assert camera.refused == 1, "it asked for the password"
    assert pixels(here / frame_name(5)).shape == (180, 320, 3)
    assert np.abs(samples(here / "audio" / "audio_000000001.wav").astype(int)).max() > 10_000
    assert f"'rtsp://***@{camera.address}/stream'" in capture.log
    assert secret not in capture.log and "user" not in capture.log


@needs("Xvfb", root=False)
def test_an_x_display(network_ffmpeg: str, here: Path, tmp_path: Path) -> None:
    read_fd, write_fd = os.pipe()
    command = [
        "Xvfb",
        "-displayfd",
        str(write_fd),
        "-screen",
        "0",
        "320x200x24",
        "-nolisten",
        "tcp",
        "-fbdir",
        str(tmp_path),
    ]
    server = subprocess.Popen(command, pass_fds=[write_fd], stderr=subprocess.DEVNULL)
    os.close(write_fd)
    try:
        with os.fdopen(read_fd) as pipe:
            display = pipe.readline().strip()
        screen = tmp_path / "Xvfb_screen0"
        header = int.from_bytes(screen.read_bytes()[:4], "big")  # an XWD file: header, colours, then B, G, R, 0
        with screen.open("r+b") as file:
            file.seek(header + 256 * 12)
            file.write(b"\x00\x00\xff\x00" * 320 * 200)
        with Capture(here, f"--ffmpeg={network_ffmpeg}", "--profile=x11grab", DISPLAY=f":{display}") as capture:
            capture.wait_for(4)
    finally:
        server.kill()
        server.wait()
    picture = pixels(here / frame_name(2))
    assert picture.shape == (200, 320, 3)
    assert np.abs(picture[150:].reshape(-1, 3).mean(0) - (0, 0, 255)).max() < 5, "red"
    first, last = ((here / frame_name(number)).stat().st_mtime for number in (1, 4))
    assert last - first > 0.7, "two frames a second; held back, all came within 2 ms"


V4L2_COPY = ["-f", "v4l2", "-input_format", "mjpeg", "-framerate", "10"]


def test_a_usb_grabber_is_asked_for_mjpeg_and_its_frames_are_copied(here: Path, stand_in: dict[str, str]) -> None:
    words = ["--profile=v4l2-copy", "--input=/dev/null", "--input-fps=10", "--size=1280x720", "--audio"]
    done = run(f"--dir={here}", *words, "--audio-input=alsa:hw:CARD=MS2109", **stand_in)
    assert done.returncode == 0, done.stderr
    told = Path(stand_in["TOLD"]).read_text(encoding="utf-8").splitlines()
    line = done.stderr.removeprefix("capture.sh: exec ")
    assert shlex.split(line)[1:] == told, "what is logged is what is run"
    begin = told.index("-f")
    assert told[begin : begin + 10] == [*V4L2_COPY, "-video_size", "1280x720", "-i", "/dev/null"]
    assert told[begin + 10 : begin + 16] == ["-thread_queue_size", "64", "-f", "alsa", "-i", "hw:CARD=MS2109"]
    assert after(told, "-c:v") == "copy"
    assert re.fullmatch(r"noise=drop='if\(.*pts\*tb.*1/5.*\)'", after(told, "-bsf:v"))
    assert told[told.index("image2") :][:6] == [
        "image2", "-atomic_writing", "1", "-start_number", "1", f"{here}/capture_%09d.jpg"
    ]  # fmt: skip
    assert "-vf" not in told and told.count("-c:v") == 1, "nothing is decoded"
    assert (told.count("-map"), told[-1]) == (2, f"{here}/audio/audio_%09d.wav")


def test_a_grabber_without_mjpeg_is_encoded(here: Path) -> None:
    told = command_line(here, "--profile=v4l2-encode", "--input=/dev/video9", "--quality=7", "--fps=12.5")
    assert "-input_format" not in told and "-bsf:v" not in told
    assert told[told.index("-i") :][:2] == ["-i", "/dev/video9"]
    assert (after(told, "-c:v"), after(told, "-q:v")) == ("mjpeg", "7")
    assert after(told, "-vf").startswith("select='if(") and "1/12.5" in after(told, "-vf")
    assert "-framerate" not in command_line(here, "--profile=v4l2-copy", "--input=/dev/video9")
    assert "-bsf:v" not in command_line(here, "--profile=v4l2-copy", "--input=/dev/video9", "--fps=0")


# Numbers


@pytest.mark.parametrize(
    ("there", "number"),
    [
        ([], 1),
        (["capture_000000001.jpg", "capture_000000007.jpg"], 8),
        (["capture_999999999.jpg", "capture_1000000000.jpg"], 1_000_000_001),  # text would sort them the other way
        (["capture_000000007.json"], 8),  # retention took the frame first
        (["capture_000000007_thumbnail.jpg"], 8),
        (["capture_000000007.jpg.tmp"], 1),  # a killed FFmpeg's: overwritten, so it does not stay
        (["other_000000007.jpg", "7.jpg", "capture_7.png", "capture_-7.jpg", "capture_.jpg", "xcapture_8.jpg"], 1),
        (["capture_5.jpg", "capture_00012.jpg", "capture_9.jpg"], 13),
        (["capture_1234567890123456789.jpg"], 1),  # 19 digits: not a frame
        (["a\ncapture_000000007.jpg"], 8),  # too careful, never too low
    ],
)
def test_numbers_go_on_after_the_highest(here: Path, there: list[str], number: int) -> None:
    for name in there:
        (here / name).touch()
    words = command_line(here, "--profile=lavfi", "--input=scene:live", "--thumbnails")
    numbers = [words[at + 1] for at, word in enumerate(words) if word == "-start_number"]
    assert numbers == [str(number)] * 2


def test_numbers_begin_no_lower_than_asked(here: Path) -> None:
    words = ["--profile=lavfi", "--input=scene:live", "--first=000000500"]
    assert after(command_line(here, *words), "-start_number") == "500"
    (here / frame_name(900)).touch()
    assert after(command_line(here, *words), "-start_number") == "901"


def test_numbers_that_ffmpeg_would_soon_run_out_of_are_refused(here: Path) -> None:
    (here / "capture_2147483646.jpg").touch()
    words = [f"--dir={here}", "--profile=lavfi", "--input=scene:live"]
    refuse(78, "the next number, 2147483647, is near FFmpeg's last, 2147483647; move the highest", *words)
    (here / "audio").mkdir()
    (here / "capture_2147483646.jpg").rename(here / "audio" / "audio_2147483646.wav")
    refuse(78, "/frames/audio': the next number", *words, "--audio")


@needs("strace", root=False)
def test_a_full_directory_is_read_by_names_only(here: Path, tmp_path: Path) -> None:
    for number in range(5000):
        (here / frame_name(number)).touch()
    trace = tmp_path / "trace"
    strace = ["strace", "-qq", "-f", "-o", str(trace), "-e", "trace=%file,getdents64", str(SCRIPT), f"--dir={here}"]
    done = subprocess.run(
        [*strace, "--dry-run", "--profile=lavfi", "--input=scene:live"], capture_output=True, text=True
    )
    assert "-start_number 5000 " in done.stdout, done.stderr
    calls = trace.read_text(encoding="utf-8", errors="replace")
    assert "capture_0" not in calls, "no call names a frame"
    assert calls.count(f'"{here}", O_RDONLY|O_NONBLOCK') + calls.count("getdents64") > 1


def test_two_captures_never_publish_in_one_directory(here: Path) -> None:
    words = ["--profile=lavfi", "--input=scene:live", "--size=320x180"]
    with Capture(here, *words) as first:
        first.wait_for(1)
        refuse(75, "another capture publishes here; stop it, or use another directory", f"--dir={here}", *words)
    with Capture(here, *words) as second:
        had = len(names(here))
        second.wait_for(had + 1)
    assert not [name for name in names(here, "*") if not name.startswith("capture_")], "no lock file"


# The process


def test_its_pid_is_ffmpegs_and_a_signal_ends_it(here: Path) -> None:
    with Capture(here, "--profile=lavfi", "--input=scene:live", "--size=320x180") as capture:
        capture.wait_for(1)
        process = psutil.Process(capture.process.pid)
        assert process.exe() == os.path.realpath(ffmpegs.find("here"))
        assert process.children() == []
        assert os.readlink(f"/proc/{process.pid}/fd/0") == "/dev/null"
        process.terminate()
        assert capture.process.wait(10) == 255
    assert not list(here.glob("*.tmp"))
    assert capture.log.count("capture.sh: exec ") == 1


@pytest.mark.parametrize("option", ["--live", "--dry-run"])
def test_no_message_shows_a_secret(option: str, here: Path) -> None:
    """FFmpeg names the URL in its errors; nobody listens on port 1."""
    url = f"http://user:{PASSWORD}@127.0.0.1:1/stream?token=hu.*sh&x=1"
    done = run(f"--dir={here}", "--profile=url", option, CAPTURE_INPUT=url)
    assert done.returncode == (0 if option == "--dry-run" else 1)
    told = done.stderr + done.stdout
    assert told.count("http://***@127.0.0.1:1/stream?***") == (1 if option == "--dry-run" else 2), told
    for wrong in ("--profile=rtsp", "--profile=file", "--profile=v4l2-copy", "--profile=lavfi", "--profile=x"):
        for words in ([wrong, f"--input={url}"], [wrong, f"--imput={url}"], [wrong, url]):
            done = run(f"--dir={here}", *words)
            told += done.stderr + done.stdout
            assert done.returncode in {64, 66}
    assert "user" not in told and PASSWORD not in told and "hu.*sh" not in told, told


@pytest.mark.parametrize("secret", ["SECR/ET1", "SECR#ET1", "SECR?ET1", "123/SECRET1", "SECR@ET1"])
def test_a_password_that_should_have_been_encoded_is_not_shown(secret: str, here: Path) -> None:
    url = f"rtsp://user:{secret}@127.0.0.1:1/stream"
    told = ""
    for words in (["--profile=rtsp"], ["--profile=rtsp", "--dry-run"], ["--profile=file"], ["--profile=v4l2-copy"],
                  [f"--profile={url}"], [f"--audio-input=x{url}"], [f"--size={url}"]):  # fmt: skip
        done = run(f"--dir={here}", *words, CAPTURE_INPUT=url)
        told += done.stderr + done.stdout
    sound = f"--audio-input=pulse:{url}"
    told += run(f"--dir={here}", "--profile=lavfi", "--input=scene:live", "--audio", "--dry-run", sound).stdout
    assert "//***@127.0.0.1:1/stream" in told
    assert not [part for part in ("SECR", "ET1", ":123") if part in told], told


def test_a_url_is_no_path_and_a_file_called_like_a_segment_is_kept(here: Path) -> None:
    refuse(64, "--input: is a URL", f"--dir={here}", "--profile=file", "--input=rtsp://user:pw@camera/x")
    (here / "hls").mkdir()
    for name in ("live_holiday.ts", "live_1.ts", "live_000000001.ts"):
        (here / "hls" / name).touch()
    words = ["--profile=lavfi", "--input=scene:live", "--size=64x64", "--hls", "--duration=0.4", "--fps=5"]
    (here / "hls" / "live_000000777.ts").touch()
    assert run(f"--dir={here}", *words).returncode == 0
    assert not (here / "hls" / "live_000000777.ts").exists()
    assert (here / "hls" / "live_holiday.ts").exists() and (here / "hls" / "live_1.ts").exists()


# Names that mean something to somebody


HOSTILE = [
    "with space", "'single'", '"double"', "-y", "--help", "100%", "%09d", "%%d%s", "a:b", "http:", "$(touch gone)",
    "`touch gone`", "*", "back\\slash", "\\n", "ünï", "[0-9]", "{a,b}", "semi;colon", "#x", "~", "a=b,c|d",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_directories_and_prefixes_mean_only_themselves(name: str, here: Path) -> None:
    directory = here / name
    directory.mkdir()
    command = [str(SCRIPT), "--dir", name, "--prefix", name, "--profile=lavfi", "--input=scene:live", "--size=64x64"]
    done = subprocess.run(
        [*command, "--duration=0.4", "--thumbnails", "--audio"], cwd=here, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    frames = [f"{name}00000000{number}{kind}.jpg" for number in (1, 2) for kind in ("", "_thumbnail")]
    assert names(directory, "*") == sorted([*frames, "audio"])
    assert names(directory / "audio", "*") == ["audio_000000001.wav"]
    assert names(here, "*") == [name]
    assert (
        after(command_line(directory, "--prefix", name, "--profile=lavfi", "--input=scene:live"), "-start_number")
        == "3"
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_recordings_mean_only_themselves(name: str, here: Path, recording: Path, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(recording)
    command = [str(SCRIPT), "--input", name, "--dir", str(here), "--profile=file", "--duration=0.2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert len(names(here)) == 1


@pytest.mark.parametrize("option", ["--dir", "--input", "--prefix", "--audio-input", "--ffmpeg", "--first", "--fps"])
@pytest.mark.parametrize("value", ["a\nb", "\x1b[31m", "a\rb"])
def test_control_characters_are_refused(option: str, value: str, here: Path) -> None:
    base = {"--dir": str(here), "--input": "scene:live", "--profile": "lavfi"}
    words = [word for pair in {**base, option: value}.items() for word in pair]
    refuse(64, f"{option}: has a control character", *words)


def test_hls_refuses_a_directory_that_it_could_not_write(here: Path) -> None:
    (here / "100%").mkdir()
    words = ["--profile=lavfi", "--input=scene:live", "--hls"]
    refuse(
        78, "HLS cannot be written below a name with %; use another, or leave out --hls", f"--dir={here}/100%", *words
    )


def test_what_capture_sh_starts_is_given_no_secret_and_no_setting(stand_in: dict[str, str], here: Path) -> None:
    """Every program that it looks up notes its environment first, FFmpeg itself included."""
    programs, noted = Path(stand_in["PATH"].partition(":")[0]), here.parent / "noted"
    noted.mkdir()
    (programs / "ffmpeg").rename(programs / "the_stand_in")
    for name in ("ffmpeg", "timeout", "find", "awk", "sed", "flock", "grep", "mkdir"):
        program = programs / "the_stand_in" if name == "ffmpeg" else shutil.which(name)
        (programs / name).write_text(f'#!/bin/bash\ncat /proc/$$/environ >{noted}/{name}.$$\nexec {program} "$@"\n')
        (programs / name).chmod(0o755)
    (here / "hls").mkdir()
    (here / "hls" / "live_000000001.ts").touch()
    url = f"rtsp://user:{PASSWORD}@127.0.0.1:1/stream"
    theirs = {"STILLWATCH_WEBHOOK_URL": f"https://{PASSWORD}", "CLOUDFLARE_R2_SECRET_ACCESS_KEY": PASSWORD,
              "CLOUDFLARE_API_TOKEN": PASSWORD, "CREDENTIALS_DIRECTORY": f"/run/{PASSWORD}"}  # fmt: skip
    settings = {"CAPTURE_PROFILE": "rtsp", "CAPTURE_INPUT": url, "CAPTURE_DIR": str(here), "CAPTURE_HLS": "1",
                "CAPTURE_AUDIO": "1"}  # fmt: skip
    done = run(**stand_in, **theirs, **settings)
    assert done.returncode == 0, done.stderr
    found = {path.name.partition(".")[0] for path in noted.iterdir()}
    assert found == {"ffmpeg", "timeout", "find", "awk", "sed", "flock", "grep", "mkdir"}
    for path in noted.iterdir():
        names = {variable.partition(b"=")[0].decode() for variable in path.read_bytes().split(b"\0")}
        assert not [name for name in names if name.startswith(("CAPTURE_", *theirs))], path.name
        assert PASSWORD.encode() not in path.read_bytes(), path.name
    assert url in Path(stand_in["TOLD"]).read_text(), "FFmpeg knows it all the same"


# Mistakes, and the environment


BASE = {"profile": "lavfi", "input": "scene:live", "dir": "."}


@pytest.mark.parametrize(
    ("code", "text", "changed"),
    [
        (64, "--profile is missing; see", {"profile": ""}),
        (64, "--profile 'v4l2': must be one of v4l2-copy v4l2-encode", {"profile": "v4l2"}),
        (64, "--profile 'rtsp file': must be one of", {"profile": "rtsp file"}),
        (64, "--input is missing", {"input": ""}),
        (64, "--dir is missing", {"dir": ""}),
        (64, "--fps '5a': must be a number of frames per second, or 0", {"fps": "5a"}),
        (64, "--fps '-1': must be", {"fps": "-1"}),
        (64, "--fps '1/ld(0)'", {"fps": "1/ld(0)"}),
        (64, "--fps 2.5: a scene needs a whole number", {"fps": "2.5"}),
        (64, "--fps 0: a scene needs a whole number", {"fps": "0.0"}),
        (64, "--fps 0: a display has no rate of its own", {"profile": "x11grab", "input": ":9", "fps": "0"}),
        (64, "--size '720p': must be WIDTHxHEIGHT", {"size": "720p"}),
        (64, "--size has no meaning for rtsp; it is for v4l2-copy", {"profile": "rtsp", "input": "r", "size": "1x1"}),
        (64, "--size has no meaning for a graph; say it there", {"input": "testsrc2", "size": "64x64"}),
        (64, "--copy has no meaning for lavfi; it is for rtsp file url", {"copy": None}),
        (64, "--live has no meaning for file", {"profile": "file", "live": None}),
        (64, "--input-fps has no meaning for lavfi", {"input-fps": "5"}),
        (64, "--rtsp-transport 'smoke': must be tcp or udp", {"rtsp-transport": "smoke"}),
        (64, "--quality '1': must be from 2 (best) to 31", {"quality": "1"}),
        (64, "--quality has no meaning where frames are copied", {"profile": "v4l2-copy", "quality": "5"}),
        (64, "--first '2000000001': must be", {"first": "2000000001"}),
        (64, "--prefix 'a/b': must be part of a file name", {"prefix": "a/b"}),
        (64, "--audio: v4l2-copy has no sound of its own", {"profile": "v4l2-copy", "audio": None}),
        (64, "--audio-input 'oss:x': must be alsa:DEVICE", {"audio-input": "oss:x", "audio": None}),
        (64, "nothing is made of the sound; add --audio or --hls", {"audio-input": "alsa:x"}),
        (64, "--input scene:x: must be live, freeze", {"input": "scene:x"}),
        (64, "a fault's seconds are FROM-TO", {"input": "scene:black:1"}),
        (64, "must be an rtsp:// URL", {"profile": "rtsp", "input": "/dev/video0"}),
        (64, "must be a URL", {"profile": "url", "input": "recording.mp4"}),
        (64, "'colour': no such option; see", {"colour": "red"}),
        (64, "'$(touch x)': no such option", {"$(touch x)": "1"}),
        (64, "'x[$(touch x)]': no such option", {"x[$(touch x)]": None}),
        (64, "--audio takes no value", {"audio": "1"}),
        (66, "no such video device; plug it in, or find its name: ls", {"profile": "v4l2-copy", "input": "nope"}),
        (66, "no such recording", {"profile": "file", "input": "nope"}),
        (66, "no such recording", {"profile": "file", "input": "."}),
        (69, "'nope': no such program; type: sudo apt-get install -y ffmpeg", {"ffmpeg": "nope"}),
        (78, "no such directory; make it, in memory if possible: mkdir -p", {"dir": "nope"}),
        (78, "'/bin/false': cannot be run (); install it again", {"ffmpeg": "/bin/false"}),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_own_exit_code(
    code: int, text: str, changed: dict[str, str | None], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    monkeypatch.delenv("DISPLAY", raising=False)
    words = [f"--{key}" if value is None else f"--{key}={value}" for key, value in {**BASE, **changed}.items()]
    refuse(code, text, *[word for word in words if not word.endswith("=")])
    assert not any(here.iterdir())


def test_an_option_without_its_value_and_a_word_that_is_no_option(here: Path) -> None:
    refuse(64, "--dir needs a value", "--dir")
    refuse(64, "'stb1': no such option", f"--dir={here}", "stb1")


def test_an_ffmpeg_without_atomic_writing_is_refused(here: Path, stand_in: dict[str, str]) -> None:
    stand_in["LACKS"] = "atomic_writing"
    words = [f"--dir={here}", "--profile=lavfi", "--input=scene:live"]
    refuse(
        78, "has no atomic_writing, frames would be seen half written; install FFmpeg 5.1 or newer", *words, **stand_in
    )
    assert not Path(stand_in["TOLD"]).exists()


def test_an_ffmpeg_that_gives_no_answer_is_no_mistake_in_the_settings(here: Path) -> None:
    """78 would keep systemd from trying again, and a disk that was busy at boot is none soon after."""
    slow = here.parent / "slow"
    slow.write_text("#!/bin/sh\nexit 124\n")  # as `timeout` ends when the time is over
    slow.chmod(0o755)
    words = [f"--dir={here}", "--profile=lavfi", "--input=scene:live", f"--ffmpeg={slow}"]
    refuse(69, "gives no answer within 25 s; try it by hand", *words)


@needs("setpriv")
def test_a_read_only_directory_is_refused(here: Path) -> None:
    here.chmod(0o555)
    command = [*UNPRIVILEGED, str(SCRIPT), f"--dir={here}", "--profile=lavfi", "--input=scene:live"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 78
    assert done.stderr == f"capture.sh: '{here}': cannot be written by user 0; change its owner or its mode\n"


def test_the_environment_says_the_same_as_flags_and_flags_go_first(here: Path) -> None:
    settings = {"CAPTURE_PROFILE": "v4l2-copy", "CAPTURE_INPUT": "/dev/video9", "CAPTURE_FPS": "7", "CAPTURE_HLS": "1",
                "CAPTURE_AUDIO": "0", "CAPTURE_PREFIX": "x_", "CAPTURE_DIR": "/nowhere"}  # fmt: skip
    flags_only = ["--profile=v4l2-copy", "--input=/dev/video9", "--fps=7", "--hls", "--prefix=x_"]
    assert command_line(here, **settings) == command_line(here, *flags_only)
    assert "1/3" in after(command_line(here, "--fps=3", **settings), "-bsf:v")
    refuse(64, "--hls: its variable must be 1 or 0", **{**settings, "CAPTURE_HLS": "yes"})


def test_help_names_every_option_its_variable_and_every_exit_code() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    script = SCRIPT.read_text(encoding="utf-8")
    accepted = dict(re.findall(r"\[([a-z-]+)\]=\$\{(CAPTURE_[A-Z_]+)-", script))
    assert len(accepted) == 20
    assert dict(re.findall(r"^  --([a-z-]+) .*?(CAPTURE_[A-Z_]+)", done.stdout, re.MULTILINE)) == accepted
    profiles = re.findall(r"^  ([a-z0-9-]+) +an? |^  (url) +the ", done.stdout, re.MULTILINE)
    for code in re.findall(r"die (\d+) ", script):
        assert re.search(rf"^  .*\b{code}  ", done.stdout, re.MULTILINE), code
    assert profiles and max(map(len, done.stdout.splitlines())) <= 120


def test_it_is_clean_shell() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([str(shellcheck), str(SCRIPT)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert not re.search(r"\beval\b|\bsudo [^a]|pkill|killall", SCRIPT.read_text(encoding="utf-8"))
