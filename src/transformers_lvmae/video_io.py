"""Video files: decode chosen frames, write a clip.

Two decoders behind one function. torchcodec is used where it loads (it needs an FFmpeg on the system); PyAV, which carries
its own FFmpeg, everywhere else. Frames are counted by demuxing, never read from the header: Matroska and WebM headers say 0,
and a truncated file's header still promises the frames that were lost.
"""

import io
import os
from collections.abc import Callable, Sequence
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from huggingface_hub.utils import httpx
from transformers.utils import is_torchcodec_available
from transformers.utils.import_utils import is_torchcodec_usable
from transformers.video_utils import VideoMetadata


SampleIndices = Callable[[VideoMetadata], Sequence[int] | np.ndarray | torch.Tensor]


class VideoReadError(ValueError):
    """A video that cannot be read; the message names the file and its fault."""


def video_name(source: Any) -> str:
    """What error messages call `source`: its path where it has one, else what kind of thing it is."""
    if isinstance(source, dict):
        return video_name(source.get("path") or source.get("bytes"))
    if isinstance(source, (str, os.PathLike)):
        return str(source)
    return f"<{type(source).__name__}>"


def decode_video(
    source: Any,
    sample_indices: SampleIndices,
    backend: str | None = None,
    start: float | None = None,
    end: float | None = None,
) -> tuple[torch.Tensor, VideoMetadata]:
    """Decode the frames that `sample_indices` asks for, and no others are kept in memory.

    Args:
        source: a path, a URL, the bytes of a file, a file object, a `datasets` row of `Video(decode=False)` (a dict with
            `path` and `bytes`), or a torchcodec `VideoDecoder` (a row of `Video()`).
        sample_indices: called with the video's `VideoMetadata`; returns frame numbers in [0, total_num_frames), in any
            order, repeats allowed.
        backend: "torchcodec", "pyav" or None for torchcodec where it loads and PyAV otherwise, as for segments.
        start, end: seconds; only the frames whose time stamp lies in [start, end), counted from the video's first frame, are
            there to sample: metadata and frame numbers are those of this segment.

    Returns:
        uint8 frames (T, 3, H, W) in the order asked for, and the metadata with `frames_indices` set.

    Raises:
        VideoReadError: the file is missing, empty, damaged, has no video stream or fewer frames than it claims.
    """
    if backend is None:
        whole = start is None and end is None
        backend = "torchcodec" if whole and is_torchcodec_usable(decode="video") else "pyav"
    read = {"torchcodec": _decode_torchcodec, "pyav": _decode_pyav}.get(backend)
    if read is None:
        raise ValueError(f"Got backend={backend!r}, expected 'torchcodec', 'pyav' or None: choose one of them.")
    name = video_name(source)
    try:
        return read(_openable(source), sample_indices, start, end)
    except VideoReadError as error:
        raise VideoReadError(f"Cannot read video {name}: {error}") from None
    except (av.FFmpegError, OSError, RuntimeError) as error:
        fault = getattr(error, "strerror", None) or (str(error).strip() or type(error).__name__).splitlines()[0]
        raise VideoReadError(
            f"Cannot read video {name}: got {fault}, expected a playable video file: re-encode or remove it."
        ) from error


def _openable(source: Any) -> Any:
    """Reduce the accepted sources to a path, a file object or a torchcodec decoder."""
    if isinstance(source, dict):
        data = source.get("bytes")
        source = data if data is not None else source.get("path")
    if isinstance(source, bytes):
        if not source:
            raise VideoReadError("got 0 bytes, expected a video file: download it again or remove it.")
        return io.BytesIO(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return io.BytesIO(_download(source))
    if isinstance(source, (str, os.PathLike)):
        if os.path.isfile(source) and os.path.getsize(source) == 0:
            raise VideoReadError("got 0 bytes, expected a video file: download it again or remove it.")
        return os.fspath(source)
    if source is None:
        raise VideoReadError("got neither a path nor bytes, expected one of them: check the dataset's video column.")
    return source


def _download(url: str) -> bytes:
    try:
        return httpx.get(url, follow_redirects=True).raise_for_status().content
    except httpx.HTTPError as error:
        raise VideoReadError(f"got {error}, expected a video at this address: check it.") from error


def _frame_numbers(sample_indices: SampleIndices, metadata: VideoMetadata) -> np.ndarray:
    if metadata.total_num_frames < 1:
        raise VideoReadError("got a video stream without frames, expected at least one: re-encode or remove it.")
    indices = np.asarray(sample_indices(metadata), dtype=np.int64)
    if indices.size == 0 or indices.min() < 0 or indices.max() >= metadata.total_num_frames:
        asked = f"{indices.min()}..{indices.max()}" if indices.size else "no frames at all"
        raise ValueError(
            f"Got frame numbers {asked}, expected numbers in 0..{metadata.total_num_frames - 1}: sample within the video."
        )
    metadata.frames_indices = indices.tolist()
    return indices


def _segment(times: np.ndarray, start: float | None, end: float | None) -> tuple[int, int]:
    """First frame of a segment and the one after its last, of frames with ascending time stamps in seconds."""
    first = 0 if start is None else int(np.searchsorted(times, start - 1e-6))
    last = len(times) if end is None else int(np.searchsorted(times, end - 1e-6))
    if first >= last:
        raise VideoReadError(
            f"got a segment from {start} to {end} s, expected frames in it (the video lasts {times[-1]:.3f} s): correct the times."
        )
    return first, last


def _decode_pyav(
    file: Any, sample_indices: SampleIndices, start: float | None, end: float | None
) -> tuple[torch.Tensor, VideoMetadata]:
    if not isinstance(file, str) and not hasattr(file, "read"):
        raise VideoReadError(
            f"got a {type(file).__name__}, expected a path, bytes or a file object for PyAV: pass the path."
        )
    with av.open(file) as container:
        if not container.streams.video:
            raise VideoReadError("got a file without a video stream, expected one: re-encode or remove it.")
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        shown = [packet for packet in packets if not packet.is_discard]
        # A file cut between two frames plays without a complaint. Only MP4 and MOV have an index that promises exactly.
        if "mp4" in container.format.name and len(packets) < stream.frames:
            raise VideoReadError(
                f"got {len(packets)} frames, expected {stream.frames} by its index: it is truncated, download it again or remove it."
            )
        rate = stream.average_rate
        first, last = 0, len(shown)
        if start is not None or end is not None:
            stamps = np.sort([float((packet.pts or 0) * packet.time_base) for packet in shown])
            first, last = _segment(stamps - stamps[0], start, end)
        metadata = VideoMetadata(
            total_num_frames=last - first,
            fps=float(rate) if rate else None,
            duration=(last - first) / float(rate) if rate else None,
            width=stream.width,
            height=stream.height,
            video_backend="pyav",
        )
        indices = _frame_numbers(sample_indices, metadata)
    # A second opening, not a seek: some containers cannot seek back to their first packet.
    if hasattr(file, "seek"):
        file.seek(0)
    wanted = set(indices.tolist())
    frames: dict[int, np.ndarray] = {}
    with av.open(file) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # parallelism comes from the data loader's workers
        reformatter = (
            VideoReformatter()
        )  # one for the clip: building the converter costs more than using it on a small frame
        number = 0
        for number, frame in enumerate(container.decode(stream), start=-first):
            if number in wanted:
                frames[number] = reformatter.reformat(frame, format="rgb24").to_ndarray()
                if len(frames) == len(wanted):
                    break
    if len(frames) < len(wanted):
        raise VideoReadError(
            f"got {first + number + 1} readable frames, expected {len(shown)} by its packets: it is damaged, re-encode or remove it."
        )
    clip = np.stack([frames[number] for number in indices.tolist()])
    return torch.from_numpy(clip).permute(0, 3, 1, 2), metadata


def _decode_torchcodec(
    file: Any, sample_indices: SampleIndices, start: float | None, end: float | None
) -> tuple[torch.Tensor, VideoMetadata]:
    if start is not None or end is not None:
        raise ValueError(
            f"Got a segment from {start} to {end} s for torchcodec, expected PyAV: pass a path and backend='pyav' or None."
        )
    if is_torchcodec_available():  # asked for by name where it is missing, it fails on the next line
        from torchcodec.decoders import VideoDecoder

    decoder = file if isinstance(file, VideoDecoder) else VideoDecoder(file, num_ffmpeg_threads=1, seek_mode="exact")
    metadata = VideoMetadata(
        total_num_frames=decoder.metadata.num_frames,
        fps=decoder.metadata.average_fps,
        duration=decoder.metadata.duration_seconds,
        width=decoder.metadata.width,
        height=decoder.metadata.height,
        video_backend="torchcodec",
    )
    indices = _frame_numbers(sample_indices, metadata)
    return decoder.get_frames_at(indices=indices.tolist()).data, metadata


def write_video(path: str | os.PathLike, frames: np.ndarray, fps: int = 25, crf: int = 18) -> None:
    """Write uint8 RGB frames (T, H, W, 3), H and W even, as H.264 in the container that the path's ending names.

    The same frames give the same bytes: one encoder thread, no time stamps of the day.
    """
    frames = np.asarray(frames)
    if (
        frames.ndim != 4
        or frames.shape[-1] != 3
        or frames.dtype != np.uint8
        or frames.shape[1] % 2
        or frames.shape[2] % 2
    ):
        raise ValueError(
            f"Got frames of shape {frames.shape} and dtype {frames.dtype}, expected uint8 (T, H, W, 3) with even H and W: "
            "convert or crop them."
        )
    with av.open(os.fspath(path), "w") as container:
        # Macroblock-tree rate control reads memory it never wrote in x264's AVX-512 code, for pictures narrower than 256: with
        # it, the same frames give other bytes from call to call.
        options = {"crf": str(crf), "preset": "fast", "mbtree": "0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
