"""Judging sound: against FFmpeg's own meters on chunks that FFmpeg made, and against every way a file can be wrong."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio import (
    LOSS_DB,
    MAX_CHUNK_BYTES,
    SILENCE_DB,
    BadAudio,
    Loudness,
    judge_audio,
    measure,
    read_chunk,
    volume_percentage,
)
from pipeline.model import Verdict
from tests.support import wait_until

RATE = 16_000
HISS = "anoisesrc=sample_rate=16000:amplitude=0.00308:color=white:seed=1"  # even noise: an RMS of -55 dB
TONE = "sine=frequency=440,volume=1.131"  # FFmpeg's sine has an amplitude of 1/8: this one an RMS of -20 dB


def chunk(graph: str, *words: str, rate: int = RATE, seconds: float = 1.0) -> bytes:
    """A WAV file of a graph of FFmpeg's test sources; through a pipe, so its header gives no sizes."""
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", graph, "-t", str(seconds), "-ar", str(rate), *words]
    done = subprocess.run([*command, "-c:a", "pcm_s16le", "-f", "wav", "-"], capture_output=True, check=True)
    return done.stdout


def wav(samples: object, channels: int = 1, rate: int = RATE) -> bytes:
    """A WAV file of the plainest kind: 44 bytes of header."""
    data = np.asarray(samples, "<i2").tobytes()
    form = struct.pack("<HHIIHH", 1, channels, rate, 2 * channels * rate, 2 * channels, 16)
    return b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVE" + piece(b"fmt ", form) + piece(b"data", data)


def piece(name: bytes, body: bytes, size: int | None = None) -> bytes:
    """A chunk of a RIFF file, padded; `size` is what it says instead of its length."""
    return name + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (len(body) % 2)


def ffmpeg_says(data: bytes, measurer: str) -> str:
    command = ["ffmpeg", "-hide_banner", "-i", "-", "-af", measurer, "-f", "null", "-"]
    return subprocess.run(command, input=data, capture_output=True, check=True).stderr.decode()


def numbers(text: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf"{name}: (-?[\d.]+|-inf)", text)]


LOUD = wav(np.random.default_rng(1).integers(-9000, 9000, RATE))


# Against FFmpeg's meters


@pytest.mark.parametrize(
    ("graph", "words", "rate"),
    [
        pytest.param(TONE, [], RATE, id="tone"),
        pytest.param(HISS, [], RATE, id="hiss"),
        pytest.param("anoisesrc=color=pink:seed=2,tremolo=f=3:d=0.9", [], RATE, id="music-like"),
        pytest.param(TONE, [], 8_000, id="8 kHz"),
        pytest.param(TONE, [], 48_000, id="48 kHz"),
        pytest.param("sine=frequency=440,volume=20", [], RATE, id="clipped"),
        pytest.param(f"{TONE},pan=stereo|c0=c0|c1=0.1*c0", [], RATE, id="stereo"),
        pytest.param(f"{TONE},pan=5.1|FL=c0|FR=0.5*c0|FC=0.3*c0|LFE=0.1*c0|BL=0.7*c0|BR=0.01*c0", [], 48_000, id="5.1"),
        pytest.param(f"{TONE},pan=mono|c0=0.001*c0", [], RATE, id="a few bits"),
    ],
)
def test_levels_are_those_of_volumedetect_and_astats(graph: str, words: list[str], rate: int) -> None:
    data = chunk(graph, *words, rate=rate)
    found = measure(data)
    detected = ffmpeg_says(data, "volumedetect")
    assert found.mean_db == pytest.approx(numbers(detected, "mean_volume")[0], abs=0.2)
    assert found.peak_db == pytest.approx(numbers(detected, "max_volume")[0], abs=0.2)
    stated = ffmpeg_says(data, "astats=measure_overall=none")
    assert list(found.channel_mean_db) == pytest.approx(numbers(stated, "RMS level dB"), abs=0.2)
    assert list(found.channel_peak_db) == pytest.approx(numbers(stated, "Peak level dB"), abs=0.2)
    assert found.seconds == 1.0


def test_the_levels_that_were_made_are_found() -> None:
    assert measure(chunk(TONE)).mean_db == pytest.approx(-20, abs=0.2)
    assert measure(chunk(HISS)).mean_db == pytest.approx(-55, abs=0.2)
    full = measure(wav(32767 * np.sin(np.arange(RATE) * np.pi / 8)))
    assert (full.mean_db, full.peak_db) == (-3.0, 0.0)
    assert str(full.peak_db) == "0.0", "not -0.0"


def test_digital_silence_has_a_level_and_it_is_ffmpegs() -> None:
    found = measure(wav(np.zeros(2 * RATE), channels=2))
    assert found == Loudness(SILENCE_DB, SILENCE_DB, (SILENCE_DB,) * 2, (SILENCE_DB,) * 2, 1.0)
    assert numbers(ffmpeg_says(wav(np.zeros(RATE)), "volumedetect"), "mean_volume") == [SILENCE_DB]
    one_click = np.zeros(RATE)
    one_click[5] = 1
    assert measure(wav(one_click)).mean_db == SILENCE_DB, "nothing is quieter"
    assert measure(wav(np.tile([1, -1], RATE // 2))).mean_db == -90.3, "the last bit"


def test_an_offset_is_no_sound() -> None:
    """Which volumedetect takes for one: -30 dB here."""
    quiet = wav(np.full(RATE, 1000))
    assert numbers(ffmpeg_says(quiet, "volumedetect"), "mean_volume")[0] > -31
    assert (measure(quiet).mean_db, measure(quiet).peak_db) == (SILENCE_DB, -30.3)
    tone = 3000 * np.sin(np.arange(RATE) / 5)
    assert measure(wav(tone + 1000)).mean_db == measure(wav(tone)).mean_db


def test_one_dead_channel_shows() -> None:
    found = measure(chunk(f"{TONE},pan=stereo|c0=c0|c1=0*c0"))
    assert found.channel_mean_db[0] == pytest.approx(-20, abs=0.2)
    assert (found.channel_mean_db[1], found.channel_peak_db[1]) == (SILENCE_DB, SILENCE_DB)
    assert found.mean_db == pytest.approx(-23, abs=0.2), "half the power"
    verdict = judge_audio(found)
    assert (verdict.value, verdict.readings["audio_dead_channels"]) == (False, 1.0)
    assert verdict.readings["audio_channel_2_db"] == SILENCE_DB


# The verdict


def sound(*levels: float) -> Loudness:
    return Loudness(max(levels), max(levels), levels, levels, 1.0)


@pytest.mark.parametrize(
    ("loudness", "threshold", "lost", "dead"),
    [
        (sound(-23.5), LOSS_DB, False, 0),
        (sound(-50.1), LOSS_DB, True, 0),
        (sound(-50.0), LOSS_DB, True, 0),
        (sound(-49.9), LOSS_DB, False, 0),
        (sound(-55.0), LOSS_DB, True, 0),
        (sound(-55.0), -60.0, False, 0),
        (sound(SILENCE_DB, SILENCE_DB), LOSS_DB, True, 0),
        (sound(-91.0, -20.0, -91.0, -60.0), LOSS_DB, False, 3),
    ],
)
def test_sound_is_lost_when_every_channel_is_quiet(loudness: Loudness, threshold: float, lost: bool, dead: int) -> None:
    verdict = judge_audio(loudness, threshold)
    assert (verdict.value, verdict.readings["audio_dead_channels"]) == (lost, dead)


def test_a_voice_in_one_of_eight_channels_is_no_loss_though_the_mean_is_low() -> None:
    samples = np.zeros((RATE, 8))
    samples[:, 3] = 32768 * 10 ** (-42 / 20) * np.sin(np.arange(RATE) / 5)
    found = measure(wav(samples, channels=8))
    assert found.mean_db < LOSS_DB < found.channel_mean_db[3]
    assert judge_audio(found).value is False


def test_what_was_not_measured_is_unknown() -> None:
    assert judge_audio(None) == Verdict(None, {})


def test_readings_name_every_channel() -> None:
    assert judge_audio(Loudness(-23.0, -12.5, (-20.0, -91.0), (-12.5, -91.0), 1.0)).readings == {
        "audio_mean_db": -23.0,
        "audio_peak_db": -12.5,
        "audio_channel_1_db": -20.0,
        "audio_channel_2_db": -91.0,
        "audio_dead_channels": 1.0,
    }


@pytest.mark.parametrize(
    ("level", "percentage"),
    [(0.0, 100), (6.0, 100), (-3.0, 95), (-23.5, 60), (-30.0, 50), (-59.9, 0), (-60.0, 0), (-91.0, 0)],
)
def test_volume_percentage(level: float, percentage: int) -> None:
    assert volume_percentage(level) == percentage


# Files


def test_headers_as_ffmpeg_writes_them(tmp_path: Path) -> None:
    """To a pipe without sizes and with a LIST chunk; to a file with both; six channels as WAVE_FORMAT_EXTENSIBLE."""
    piped = chunk(TONE)
    assert piped[4:8] == b"\xff\xff\xff\xff" and b"LIST" in piped
    (tmp_path / "piped.wav").write_bytes(piped)
    levels = [measure(piped)]
    for name, words in (("plain.wav", ["-fflags", "+bitexact"]), ("listed.wav", [])):
        command = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "piped.wav"), "-c:a", "copy", *words]
        subprocess.run([*command, str(tmp_path / name)], check=True)
        levels.append(measure((tmp_path / name).read_bytes()))
    assert levels[0] == levels[1] == levels[2]
    surround = chunk(f"{TONE},pan=5.1|c0=c0|c1=c0|c2=c0|c3=c0|c4=c0|c5=c0")
    assert surround[20:22] == b"\xfe\xff"
    assert measure(surround).channels == 6


def test_a_chunk_that_ffmpeg_was_killed_in_is_measured_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "killed.wav"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-re", "-i", TONE, "-ar", str(RATE), "-c:a", "pcm_s16le"]
    process = subprocess.Popen([*command, "-flush_packets", "1", str(path)], stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: path.exists() and path.stat().st_size > RATE, 20, "half a second of sound")
    finally:
        process.kill()
        process.wait()
    data = read_chunk(str(path))
    assert data[4:8] == b"\xff\xff\xff\xff", "its size was never written"
    assert measure(data).mean_db == pytest.approx(-20, abs=0.2)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_a_file_without_sizes_goes_to_its_end(size: int, cut: int) -> None:
    whole = wav(np.tile([1000, -1000, 0, 0], RATE // 4), channels=2)
    data = bytearray(whole[: len(whole) - cut])
    data[4:8] = data[40:44] = size.to_bytes(4, "little")
    found = measure(bytes(data))
    assert found.channel_mean_db == measure(whole).channel_mean_db
    assert found.seconds == pytest.approx(0.5, abs=0.001)


def test_pieces_of_odd_length_and_unknown_name_are_passed_over() -> None:
    body = LOUD[12:]
    odd = piece(b"LIST", b"abc") + piece(b"bext", b"") + piece(b"junk", b"x" * 7)
    assert measure(LOUD[:12] + odd + body + piece(b"LIST", b"behind")) == measure(LOUD)
    assert measure(LOUD[:12] + piece(b"fmt ", body[8:24] + b"\0\0") + body[24:]) == measure(LOUD), "a longer format"


@pytest.mark.parametrize("length", range(len(LOUD[:60])))
def test_a_file_cut_anywhere_in_its_header_is_unknown(length: int) -> None:
    with pytest.raises(BadAudio, match=r"^truncated: |^too short: "):
        measure(LOUD[:length])


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.99])
def test_a_file_shorter_than_it_says_is_unknown(kept: float) -> None:
    with pytest.raises(BadAudio, match=r"truncated: \d+ of 32000 bytes of samples"):
        measure(LOUD[: int(len(LOUD) * kept)])


def damaged(at: int, value: bytes) -> bytes:
    return LOUD[:at] + value + LOUD[at + len(value) :]


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "truncated: no WAV header"),
        (b"<html>404</html>", "not a WAV file"),
        (damaged(8, b"AVI "), "not a WAV file"),
        (damaged(0, b"RF64"), "not a WAV file"),
        (damaged(12, b"fmt_"), "damaged: samples before their format"),
        (damaged(16, b"\x0f\0\0\0"), "truncated: format"),
        (damaged(20, b"\x03\0"), "not 16 bit PCM: format 0x0003, 16 bit"),
        (damaged(20, b"\xfe\xff"), "not 16 bit PCM: format 0xfffe, 16 bit"),
        (damaged(34, b"\x18\0"), "not 16 bit PCM: format 0x0001, 24 bit"),
        (damaged(22, b"\0\0"), "damaged: 0 channels at 16000 Hz in blocks of 2 bytes"),
        (damaged(22, b"\x11\0"), "damaged: 17 channels"),
        (damaged(24, b"\0\0\0\0"), "damaged: 1 channels at 0 Hz"),
        (damaged(32, b"\x04\0"), "damaged: 1 channels at 16000 Hz in blocks of 4 bytes"),
        (damaged(36, b"date"), "truncated: no samples"),
        (wav(np.zeros(0)), "too short: 0 samples at 16000 Hz, at least 0.1 s is needed"),
        (wav(np.zeros(1599)), "too short: 1599 samples"),
        (LOUD[:12] + piece(b"junk", b"") * 1000 + LOUD[12:], "damaged: too many chunks in the file"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said_in_one_line(data: bytes, cause: str) -> None:
    with pytest.raises(BadAudio) as error:
        measure(data)
    assert str(error.value).startswith(cause) and "\n" not in str(error.value)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(BadAudio):
        measure(data)


@settings(max_examples=300)
@given(st.data())
def test_no_damage_raises_anything_else_or_leaves_the_scale(data: st.DataObject) -> None:
    spoilt = bytearray(LOUD[:5000])
    spoilt[40:44] = (5000 - 44).to_bytes(4, "little")
    for _ in range(data.draw(st.integers(1, 4))):
        spoilt[data.draw(st.integers(0, 60))] = data.draw(st.integers(0, 255))
    try:
        found = measure(bytes(spoilt))
    except BadAudio as error:
        assert "\n" not in str(error)
        return
    assert all(SILENCE_DB <= level <= 0.0 for level in (found.mean_db, *found.channel_mean_db, *found.channel_peak_db))
    assert 1 <= found.channels <= 16 and found.seconds >= 0.1


@given(st.integers(0, 2**32 - 1), st.integers(1, 16), st.integers(0, 32768), st.integers(-500, 500))
def test_levels_are_exact(seed: int, channels: int, amplitude: int, offset: int) -> None:
    chance = np.random.default_rng(seed)
    samples = np.clip(chance.integers(-amplitude, amplitude + 1, (1600, channels)) + offset, -32768, 32767)
    found = measure(wav(samples, channels=channels))
    power = np.maximum(samples.astype(float).var(axis=0) / 32768**2, 10 ** (SILENCE_DB / 10))
    assert list(found.channel_mean_db) == pytest.approx(list(10 * np.log10(power)), abs=0.0501)


# Reading


def test_reading_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "audio_000000001.wav"
    path.write_bytes(LOUD)
    assert read_chunk(str(path)) == LOUD
    path.write_bytes(b"")
    with pytest.raises(BadAudio, match="empty file"):
        read_chunk(str(path))
    with pytest.raises(FileNotFoundError):
        read_chunk(f"{path}.gone")


def test_reading_what_cannot_be_a_chunk_neither_blocks_nor_fills_the_memory(tmp_path: Path) -> None:
    (tmp_path / "large.wav").touch()
    os.truncate(tmp_path / "large.wav", MAX_CHUNK_BYTES + 1)
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "directory.wav").mkdir()
    for name, cause in (("large.wav", "too large"), ("fifo.wav", "not a regular"), ("directory.wav", "not a regular")):
        with pytest.raises(BadAudio, match=cause):
            read_chunk(str(tmp_path / name))
