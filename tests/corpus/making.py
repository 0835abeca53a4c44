"""Videos of many codecs and containers, small and different in every frame; and ways to damage a file."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


FRAMES, RATE, HEIGHT, WIDTH = 60, 25, 48, 64
X264 = {"x264-params": "keyint=12:min-keyint=12:bframes=3:scenecut=0"}
# name: codec, pixel format, options of the codec, options of the container, codec of sound
BASES: dict[str, tuple[str, str, dict[str, str], dict[str, str], str | None]] = {
    "h264.mp4": ("libx264", "yuv420p", X264, {}, None),
    "h264_sound.mp4": ("libx264", "yuv420p", X264, {}, "aac"),
    "h264_fast_start.mp4": ("libx264", "yuv420p", X264, {"movflags": "faststart"}, None),
    "h264_fragmented.mp4": ("libx264", "yuv420p", X264, {"movflags": "frag_keyframe+empty_moov"}, None),
    "h264.mov": ("libx264", "yuv420p", X264, {}, None),
    "h264.mkv": ("libx264", "yuv420p", X264, {}, None),
    "h264_sound.mkv": ("libx264", "yuv420p", X264, {}, "aac"),
    "h264.ts": ("libx264", "yuv420p", X264, {}, None),
    "h264.m2ts": ("libx264", "yuv420p", X264, {}, None),
    "h264.flv": ("libx264", "yuv420p", X264, {}, "aac"),
    "h264.avi": ("libx264", "yuv420p", {"x264-params": "keyint=12:bframes=0"}, {}, None),
    "hevc.mp4": (
        "libx265",
        "yuv420p",
        {"x265-params": "keyint=12:bframes=3:pools=1:frame-threads=1:log-level=none"},
        {},
        None,
    ),
    "hevc.mkv": (
        "libx265",
        "yuv420p",
        {"x265-params": "keyint=12:bframes=3:pools=1:frame-threads=1:log-level=none"},
        {},
        None,
    ),
    "mpeg4.mp4": ("mpeg4", "yuv420p", {"g": "12", "bf": "2"}, {}, None),
    "mpeg4.avi": ("mpeg4", "yuv420p", {"g": "12", "bf": "2"}, {}, "mp2"),
    "mpeg4.3gp": ("mpeg4", "yuv420p", {"g": "12"}, {}, None),
    "mpeg2.mpg": ("mpeg2video", "yuv420p", {"g": "12", "bf": "2"}, {}, "mp2"),
    "mpeg2.mxf": ("mpeg2video", "yuv420p", {"g": "12"}, {}, None),
    "mpeg1.mpg": ("mpeg1video", "yuv420p", {"g": "12"}, {}, None),
    "wmv2.wmv": ("wmv2", "yuv420p", {"g": "12"}, {}, None),
    "vp8.webm": ("libvpx", "yuv420p", {"g": "12", "lag-in-frames": "8", "auto-alt-ref": "1"}, {}, None),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"g": "12", "cpu-used": "8"}, {}, "libopus"),
    "av1.webm": ("libsvtav1", "yuv420p", {"g": "12", "preset": "12", "svtav1-params": "lp=1"}, {}, None),
    "av1.mp4": ("libsvtav1", "yuv420p", {"g": "12", "preset": "12", "svtav1-params": "lp=1"}, {}, None),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {}, {}, None),
    "mjpeg.mkv": ("mjpeg", "yuvj420p", {}, {}, None),
    "prores.mov": ("prores", "yuv422p10le", {}, {}, None),
    "ffv1.mkv": ("ffv1", "yuv444p", {}, {}, None),
}


def pictures(count: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> Iterator[np.ndarray]:
    """A texture that moves and brightens: no two frames (H, W, 3) are alike."""
    texture = np.random.default_rng(0).integers(0, 128, (height, width, 3))
    for number in range(count):
        yield (np.roll(texture, number, axis=1) + number % 120).astype(np.uint8)


def write(
    path: Path,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    sound: str | None = None,
    frames: Any = None,
    stamps: Any = None,
    rate: Any = RATE,
    prepare: Callable[[Any, Any], None] = lambda container, stream: None,
) -> Path:
    """Write a video.

    Args:
        frames: pictures (H, W, 3); default: [`pictures`].
        stamps: time stamps in milliseconds.
        prepare: called with the container and the stream before the first frame.
    """
    frames = list(pictures() if frames is None else frames)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(
            codec, rate=rate, options=X264 if options is None and codec == "libx264" else options or {}
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1
        audio: Any = container.add_stream(sound, rate=48000) if sound else None
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        prepare(container, stream)
        resampler = audio and av.AudioResampler(audio.format.name, audio.layout.name, 48000)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = int(stamps[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
            if audio:
                silence = av.AudioFrame.from_ndarray(
                    np.zeros((1, 48000 // RATE), np.float32), format="flt", layout="mono"
                )
                silence.sample_rate, silence.pts = 48000, number * (48000 // RATE)
                for part in resampler.resample(silence):
                    container.mux(audio.encode(part))
        container.mux(stream.encode())
        if audio:
            container.mux(audio.encode())
    return path


def mutants(data: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield (kind, bytes) of a file that was cut, overwritten, shortened in the middle, or put together wrongly."""
    rng, size = np.random.default_rng(seed), len(data)
    for share in (0.3, 0.6, 0.9):
        yield f"cut at {share}", data[: int(size * share)]
    yield "last byte missing", data[:-1]
    for number, block in enumerate((64, 512, 4096)):
        place = int(rng.integers(size // 4, max(size - block, size // 4 + 1)))
        yield f"zeros {number}", data[:place] + bytes(min(block, size - place)) + data[place + block :]
    for number, count in enumerate((1, 20, max(20, size // 1000))):
        yield f"flipped bytes {number}", _flipped(data, rng.integers(0, size, count), rng)
    for number in range(2):
        yield f"flipped head {number}", _flipped(data, rng.integers(0, min(512, size), 4), rng)
    third = size // 3
    yield "middle missing", data[:third] + data[third + size // 10 :]
    yield "middle twice", data[: 2 * third] + data[third:]
    yield "rubbish behind", data + rng.integers(0, 256, size // 5, np.uint8).tobytes()
    yield "rubbish before", rng.integers(0, 256, 1000, np.uint8).tobytes() + data


def _flipped(data: bytes, places: np.ndarray, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for place in places:
        changed[place] ^= int(rng.integers(1, 256))
    return bytes(changed)
