"""Invented input at every place where somebody else's bytes come in: frames, names, settings, and files of our own that
were damaged. Whatever it is, the answer is the one that the place has for it, never another exception."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import config, lastwords, learned, mutes, sidecar, signature
from pipeline.frames import MAX_FRAME_PIXELS, FrameNames, read_frame
from pipeline.hold import TRANSITION_FILE
from pipeline.judge import Judge, Order
from pipeline.listing import Directory, Listing
from pipeline.model import PICTURE_BYTES, PICTURE_CELLS, ConfigError, FrameId, InputError, InvalidFrame
from pipeline.settings import Source
from pipeline.spool import MANIFEST_FILE, DamagedJob
from tests.support import make_frame
from tests.uploads import Desk, incident, make_hold, make_settings, publish, rows

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # here no fsync waits for a disk

# -- damage -----------------------------------------------------------------------------------------------------------

DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "drop", "double", "put"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
        st.binary(max_size=12),
    ),
    min_size=1,
    max_size=6,
)


def damaged(data: bytes, damage: list[tuple[str, float, int, bytes]]) -> bytes:
    """Some bytes changed, lost, doubled or put in."""
    for kind, share, number, more in damage:
        at = int(share * len(data))
        if kind == "flip":
            data = data[:at] + bytes([number]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "drop":
            data = data[:at] + data[at + 1 + number :]
        elif kind == "double":
            data = data[: at + number] + data[at:]
        else:
            data = data[:at] + more + data[at:]
    return data


# -- frames -----------------------------------------------------------------------------------------------------------


def encoded(mode: str, **options: object) -> bytes:
    """A JPEG of Pillow's: other codings than OpenCV writes."""
    stream = io.BytesIO()
    with Image.open(io.BytesIO(make_frame(3))) as picture:
        picture.convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


FRAMES = [
    make_frame(1),
    make_frame(2, 64, 64),
    encoded("RGB", progressive=True),
    encoded("RGB", subsampling=0, optimize=True),
    encoded("L"),
    encoded("CMYK"),
]
CELLS = [memoryview(bytearray(PICTURE_BYTES)) for _ in range(PICTURE_CELLS)]
MAX_GROWTH_KIB = 160 * 1024
"""The largest frame that is let through, 4096 x 4096 progressive in full colour: libjpeg holds 6 bytes for each of its
pixels (16 bits, three components), and there is nothing else of that size."""


def memory_kib(field: str) -> int:
    """VmRSS, or the most since it was reset: VmHWM."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def judge(data: bytes) -> bool:
    """Read and judge a file of these bytes as a worker does; whether it is a frame."""
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        file.write(data)
        file.flush()
        try:
            found, identity = read_frame(file.name)
            judge = Judge(Source(name="a", dir="/"), CELLS)
            judge.observe(1, identity)
            judge.judge(found, "capture_1", Order.NEXT, identity.mtime_ns)
        except InvalidFrame as error:
            assert "\n" not in str(error)
            return False
    return True


def judged_within_bounds(data: bytes) -> bool:
    """The same, and the memory that it takes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        pytest.skip(f"this kernel does not count from now on: {error}")
    before = memory_kib("VmRSS")
    is_frame = judge(data)
    assert memory_kib("VmHWM") - before < MAX_GROWTH_KIB
    return is_frame


@settings(max_examples=300)
@given(st.sampled_from(FRAMES), DAMAGE)
def test_a_damaged_frame_is_judged_or_invalid(data: bytes, damage: list[tuple[str, float, int, bytes]]) -> None:
    judged_within_bounds(damaged(data, damage))


@settings(max_examples=30)
@given(st.sampled_from(FRAMES), st.integers(0, 65535), st.integers(0, 65535))
@example(FRAMES[2], 4096, 4096)
@example(FRAMES[3], 4096, 4096)
@example(FRAMES[2], 65500, 256)
@example(FRAMES[2], 32767, 32767)
def test_a_size_that_is_a_lie_costs_bounded_memory(data: bytes, width: int, height: int) -> None:
    at = next(at for at in range(2, len(data)) if data[at] == 0xFF and data[at + 1] in (0xC0, 0xC1, 0xC2))
    lie = data[: at + 5] + height.to_bytes(2) + width.to_bytes(2) + data[at + 9 :]
    is_frame = judged_within_bounds(lie)
    assert not is_frame or 0 < width * height <= MAX_FRAME_PIXELS


def test_the_frames_that_are_damaged_here_are_frames() -> None:
    assert all(judge(data) for data in FRAMES)


# -- names ------------------------------------------------------------------------------------------------------------

PREFIXES = st.sampled_from(["", "capture_", "9", "ü", "%s", "-", ".x", "capture_\n"])
DIGITS = st.text("0123456789", min_size=1, max_size=20)
ENDS = st.sampled_from([".jpg", ".json", ".jpg.tmp", "_thumbnail.jpg", ".JPG", ".jpg.json", ""])
NAMES = st.binary(min_size=1, max_size=40).filter(lambda name: b"/" not in name and b"\0" not in name)


@settings(max_examples=60)
@given(PREFIXES, st.lists(st.tuples(DIGITS, ENDS), max_size=30), st.lists(NAMES, max_size=10))
def test_a_directory_of_any_names_lists_its_frames_and_nothing_else(
    prefix: str, numbered: list[tuple[str, str]], others: list[bytes]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wanted = {prefix + digits + end for digits, end in numbered} - {"", ".", ".."}
        for name in wanted | {os.fsdecode(name) for name in others} - {".", ".."}:
            with suppress(OSError):  # a name that this file system does not take
                Path(folder, name).write_bytes(b"x")
        names = FrameNames(prefix)
        listing = Listing(Directory(folder, names))
        there = set(os.listdir(folder))
        frames = {name for name in there if names.parse(name)}
        # Then number and digits lead back to the very file
        assert {os.path.basename(listing.directory.path(frame)) for frame in listing.frames} == frames
        assert len(listing.frames) == len(frames)
        assert [frame[0] for frame in listing.frames] == sorted(frame[0] for frame in listing.frames)
        unjudged = {os.path.basename(listing.directory.path(frame)) for frame in listing.unjudged()}
        assert unjudged == {name for name in frames if name.removesuffix(".jpg") + ".json" not in there}
        for frame in listing.frames:
            assert not names.is_refused(names.stem(*frame) + ".jpg")
            listing.directory.waits(frame)
            assert len(listing.directory.next_frames(frame, 8)) <= 8


# -- settings ---------------------------------------------------------------------------------------------------------

CONFIG = """\
host = "rig"
workers = 2
cpus = "0-1"
log_level = "INFO"
report_every_s = 60.0
webhook_url = "https://example.org/hook"
spool_max_bytes = 1000000
[[source]]
name = "stb1"
dir = "frames/stb1"
prefix = "capture_"
stall_s = 5.0
rules = { black = { raise_s = 1.0, clear_s = 1.0 } }
[source.black]
black_pct_min = 98.0
[source.audio]
loss_db = -50.0
[[source]]
name = "grabber"
keep_frames = 100
[source.capture]
profile = "lavfi"
input = "scene:live"
size = "320x180"
fps = 5
"""
VALUES = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.booleans(),
    st.text(max_size=20),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.sampled_from(["raise_s", "profile", "x"]), st.integers(), max_size=2),
)


def toml(value: object) -> str:
    """A value as TOML has it; a text as JSON has it is that, or no TOML at all."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {item}" for key, item in value.items()) + " }"
    if isinstance(value, float):
        return str(value).replace("Infinity", "inf")
    return msgspec.json.encode(value).decode() if not isinstance(value, int) or abs(value) < 2**63 else str(value)


def load(content: bytes, environment: dict[str, str] | None = None) -> None:
    """Settings, or one line that says what is wrong with them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "stillwatch.toml")
        path.write_bytes(content)
        try:
            loaded = config.load(str(path), environment or {}, {})
        except ConfigError as error:
            text = str(error)
            assert text and "\n" not in text and text.isprintable(), text
        else:
            assert all(source.name for source in loaded.source)


@settings(max_examples=150)
@given(DAMAGE)
def test_a_damaged_file_of_settings_is_loaded_or_refused_in_one_line(
    damage: list[tuple[str, float, int, bytes]],
) -> None:
    load(damaged(CONFIG.encode(), damage))


@settings(max_examples=100)
@given(st.integers(0, CONFIG.count(" = ") - 1), VALUES)
def test_any_value_of_any_key_is_taken_or_refused_in_one_line(which: int, value: object) -> None:
    lines = CONFIG.splitlines()
    at = [n for n, line in enumerate(lines) if " = " in line][which % sum(" = " in line for line in lines)]
    lines[at] = f"{lines[at].split(' = ')[0]} = {toml(value)}"
    load("\n".join(lines).encode("utf-8", "surrogatepass"))


@settings(max_examples=150)
@given(
    st.sampled_from([field.name.upper() for field in config._SCALARS]) | st.text("ABC_", min_size=1, max_size=8),
    st.text(st.characters(exclude_characters="\0"), max_size=20)
    | st.sampled_from(["nan", "inf", "-1", "1e400", "0x1"]),
)
def test_any_variable_is_taken_or_refused_in_one_line(name: str, value: str) -> None:
    load(CONFIG.encode(), {f"STILLWATCH_{name}": value})


# -- files of our own, damaged ----------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.sampled_from([MANIFEST_FILE, "frame_0.jpg"]), DAMAGE)
def test_a_damaged_job_is_told_and_never_sent(file: str, damage: list[tuple[str, float, int, bytes]]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        desk = Desk(make_settings(Path(folder)))
        publish(make_hold(desk.settings), incident())
        try:
            desk.keep()
            path = Path(desk.spool.jobs()[0], file)
            before = path.read_bytes()
            after = damaged(before, damage)
            path.write_bytes(after)
            with suppress(DamagedJob):
                job = desk.spool.load(desk.spool.jobs()[0])
                for item in job.manifest.items:
                    job.read(item)
            desk.settle()
            assert desk.spool.jobs() == [], "a job that is in the way of all others"
            told = rows(desk.settings, "SELECT evidence FROM transitions")
            assert told[0][0] in ("stored", "damaged")
            assert told[0][0] == "damaged" or file == MANIFEST_FILE or after == before
        finally:
            desk.close()


@settings(max_examples=40)
@given(DAMAGE)
def test_a_damaged_transition_is_kept_or_set_aside(damage: list[tuple[str, float, int, bytes]]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        desk = Desk(make_settings(Path(folder)))
        hold = make_hold(desk.settings)
        path = Path(publish(hold, incident()), TRANSITION_FILE)
        path.write_bytes(damaged(path.read_bytes(), damage))
        publish(hold, incident(2, "stb2"))
        try:
            desk.settle()
            assert hold.waiting() == [], "a transition that is in the way of all others"
            found = {row[0] for row in rows(desk.settings, "SELECT incident FROM transitions")}
            assert incident(2, "stb2").id in found
            assert len(found) <= 2
        finally:
            desk.close()


def read_sidecar(path: str) -> None:
    identity = sidecar.read_identity(path)
    assert identity is None or isinstance(identity, FrameId)


def read_learned(path: str) -> None:
    with suppress(InputError):
        learned.read(path)


def read_mutes(path: str) -> None:
    os.rename(path, os.path.join(os.path.dirname(path), mutes.FILE_NAME))
    mutes.is_muted(os.path.dirname(path), "a", 1)


def read_last_words(path: str) -> None:
    folder = Path(path).parent
    lastwords.write(str(folder), "a", ["Input/output error"])
    os.rename(path, next(file for file in folder.glob("*/a")))
    assert all(isinstance(line, str) for line in lastwords.read(str(folder), "a"))


SIDECAR = sidecar.encode(sidecar.build("a", "capture_1", 1, FrameId(1, 2, 3, 4), error="cut"))
POINTS = signature.COLUMNS * signature.ROWS
LEARNED = signature.Signature(frames=9, stable_pct=99.0, colours=bytes(3 * POINTS), spread=bytes(POINTS))
FILES = [
    (read_sidecar, SIDECAR),
    (read_learned, msgspec.json.encode(LEARNED)),
    (read_mutes, b'{"a": 5, "b": 0}'),
    (read_last_words, b"Input/output error"),
]


@pytest.mark.parametrize(("read", "content"), FILES, ids=lambda value: getattr(value, "__name__", ""))
@settings(max_examples=60)
@given(damage=DAMAGE, other=st.none() | st.binary(max_size=60))
def test_a_damaged_file_of_ours_is_none(
    read: Callable[[str], None], content: bytes, damage: list[tuple[str, float, int, bytes]], other: bytes | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(damaged(content, damage) if other is None else other)
        read(str(path))
