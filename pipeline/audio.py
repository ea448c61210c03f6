"""Judges sound: from the bytes of an audio chunk to its loudness, and from that to whether the sound is lost.

Owns every rule that looks at samples. Pure but for `read_chunk`; which chunk is the newest is for the caller to know.

A *chunk* is a WAV file of 16 bit PCM, about a second long, as FFmpeg's segment muxer writes it. Levels are dBFS as
FFmpeg's volumedetect and astats have them: 20 log10 of the root mean square, or of the peak, over 32768 (a sine at
full scale is -3.0). Only a constant offset, which some grabbers add and nobody hears, is taken out of the mean. They
come from sums of integers and are rounded to 0.1 dB, so that every machine writes the same digits.

What cannot be measured (missing, short, damaged) raises: it is unknown, never silence.
"""

from __future__ import annotations

import math
import os
import stat
import struct

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.model import Verdict

SILENCE_DB = -91.0
"""Level of digital silence, and the lowest there is. The last bit going up and down all the time is -90.3; volumedetect
says -91.0 for nothing at all, and consumers of the sidecars take -90 and less for constant silence."""

LOSS_DB = -50.0
"""Default threshold: virtualpytest's. Hiss of a line without a signal was -55; systems differ from -60 to -22.5."""

MIN_SECONDS = 0.1
"""A shorter chunk says nothing: five periods of mains hum. FFmpeg's last chunk of a run may be of any length."""

MAX_CHUNK_BYTES = 16 * 1024 * 1024
"""A minute of 48 kHz with 2 channels: far more than a chunk."""

MAX_CHANNELS = 16

_FULL_SCALE = 32768
_RATES = range(1_000, 384_001)  # Hz
_PCM, _EXTENSIBLE = 0x0001, 0xFFFE
_PCM_SUBFORMAT = bytes.fromhex("0100000000001000800000aa00389b71")
_UNKNOWN_SIZES = {0, 0xFFFFFFFF}  # FFmpeg writes the size when it closes the file: never to a pipe, nor if it is killed
_MAX_CHUNKS = 100

Samples = npt.NDArray[np.int16]


class BadAudio(ValueError):
    """The bytes are not a chunk that can be measured; the text is one line and says why."""


class Loudness(msgspec.Struct, frozen=True):
    """How loud a chunk is, in dBFS, SILENCE_DB to 0.0."""

    mean_db: float  # over all channels, any offset taken out
    peak_db: float  # of the loudest channel
    channel_mean_db: tuple[float, ...]
    channel_peak_db: tuple[float, ...]
    seconds: float

    @property
    def channels(self) -> int:
        """How many channels the chunk has."""
        return len(self.channel_mean_db)


class _Format(msgspec.Struct, frozen=True):
    channels: int
    rate: int


def measure(data: bytes) -> Loudness:
    """The loudness of a whole WAV file. Raises BadAudio.

    A file whose header gives no size, because FFmpeg wrote to a pipe, still writes, or was killed, is measured as far
    as it goes; one that is shorter than its header says is damaged.
    """
    samples, rate = _parse(data)
    count = len(samples)
    if count < MIN_SECONDS * rate:
        raise BadAudio(f"too short: {count} samples at {rate} Hz, at least {MIN_SECONDS} s is needed")
    powers, peaks = zip(*(_power_and_peak(samples[:, channel]) for channel in range(samples.shape[1])), strict=True)
    channel_peak_db = tuple(_decibels(peak * peak) for peak in peaks)
    return Loudness(
        mean_db=_decibels(sum(powers) / len(powers)),
        peak_db=max(channel_peak_db),
        channel_mean_db=tuple(map(_decibels, powers)),
        channel_peak_db=channel_peak_db,
        seconds=round(count / rate, 3),
    )


def judge_audio(loudness: Loudness | None, threshold_db: float = LOSS_DB) -> Verdict:
    """Whether the sound is lost: every channel is at or below the threshold. Unknown where nothing was measured.

    A sound in one of many channels is no loss, though the mean over all may be low. Readings: audio_mean_db,
    audio_peak_db, audio_channel_1_db and so on (means), and audio_dead_channels: how many are at or below the threshold
    while another is above it.
    """
    if loudness is None:
        return Verdict(None, {})
    quiet = [level <= threshold_db for level in loudness.channel_mean_db]
    channels = {f"audio_channel_{n}_db": level for n, level in enumerate(loudness.channel_mean_db, 1)}
    readings = {
        "audio_mean_db": loudness.mean_db,
        "audio_peak_db": loudness.peak_db,
        **channels,
        "audio_dead_channels": 0.0 if all(quiet) else float(sum(quiet)),
    }
    return Verdict(all(quiet), readings)


def volume_percentage(mean_db: float) -> int:
    """A level for people, 0-100: -60 dB and less is 0, full scale 100, linear in dB and cut to whole numbers.

    The scale of virtualpytest, whose consumers read it from the sidecars.
    """
    return int(max(0.0, min(100.0, (mean_db + 60) * 100 / 60)))


def read_chunk(path: str) -> bytes:
    """All bytes of a chunk. Never blocks, and never reads a file that cannot be one.

    Raises BadAudio for what is no regular file, empty or too large; OSError when it has gone or the system refused.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise BadAudio("not a regular file")
        if status.st_size > MAX_CHUNK_BYTES:
            raise BadAudio(f"too large: {status.st_size} bytes, at most {MAX_CHUNK_BYTES}")
        if status.st_size == 0:
            raise BadAudio("empty file")
        return os.read(fd, status.st_size)
    finally:
        os.close(fd)


def _power_and_peak(channel: Samples) -> tuple[float, float]:
    """Mean square, the offset taken out, and largest amplitude. Exact: the sum over MAX_CHUNK_BYTES fits 53 bits."""
    values = channel.astype(np.float64)  # and einsum, because dot may start the threads of BLAS: 50 times the CPU
    count, total, square = len(values), int(values.sum()), int(np.einsum("i,i", values, values))
    return (count * square - total * total) / count**2, max(float(values.max()), -float(values.min()))


def _decibels(power: float) -> float:
    """A mean square in dBFS, never -0.0."""
    level = 10 * math.log10(power / _FULL_SCALE**2) if power else SILENCE_DB
    return round(max(level, SILENCE_DB), 1) + 0.0


def _parse(data: bytes) -> tuple[Samples, int]:
    """The samples, (n, channels), and their rate in Hz, from a RIFF file's chunks in whatever order and number."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        cut = len(data) < 12 and b"RIFF".startswith(data[:4])
        raise BadAudio("truncated: no WAV header" if cut else "not a WAV file")
    found: _Format | None = None
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            raise BadAudio("truncated: no samples")
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if name == b"data":
            if found is None:
                raise BadAudio("damaged: samples before their format")
            return _samples(data, at, size, found.channels), found.rate
        if name == b"fmt ":
            found = _format(data[at : at + size])
        at += size + size % 2
    raise BadAudio("damaged: too many chunks in the file")


def _format(body: bytes) -> _Format:
    if len(body) < 16:
        raise BadAudio("truncated: format")
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", body)
    if tag == _EXTENSIBLE and body[24:40] == _PCM_SUBFORMAT:
        tag = _PCM
    if (tag, bits) != (_PCM, 16):
        raise BadAudio(f"not 16 bit PCM: format {tag:#06x}, {bits} bit")
    if not 1 <= channels <= MAX_CHANNELS or rate not in _RATES or block != 2 * channels:
        raise BadAudio(f"damaged: {channels} channels at {rate} Hz in blocks of {block} bytes")
    return _Format(channels, rate)


def _samples(data: bytes, at: int, size: int, channels: int) -> Samples:
    there = len(data) - at
    if size in _UNKNOWN_SIZES:
        size = there
    if size > there:
        raise BadAudio(f"truncated: {there} of {size} bytes of samples")
    count = size // (2 * channels)
    return np.frombuffer(data, "<i2", count * channels, at).reshape(count, channels)
