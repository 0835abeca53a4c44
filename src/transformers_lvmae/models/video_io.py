"""Decode chosen frames of a video file, and write a clip to a file.

The decoder is torchcodec if it loads (it needs an FFmpeg on the system), and otherwise PyAV, which bundles FFmpeg. The number of
frames comes from demuxing, or from an index that was checked (`video_seeking`), never from the header: Matroska and WebM headers
say 0, and the header of a truncated file counts the lost frames too.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from huggingface_hub.utils import httpx
from transformers.utils import is_torchcodec_available
from transformers.utils.import_utils import is_torchcodec_usable
from transformers.video_utils import VideoMetadata

from .video_seeking import VideoReader, VideoReadError


SampleIndices = Callable[[VideoMetadata], Sequence[int] | np.ndarray | torch.Tensor]
View = Callable[[torch.Tensor], torch.Tensor]
# Frames are resized or cropped in blocks of this size, because for small frames the calls cost most.
BLOCK_BYTES = 4 * 2**20
FramesOf = Callable[[list[int]], Iterator[tuple[int, torch.Tensor]]]


def video_name(source: Any) -> str:
    """Return the name of `source` for error messages: its path, or its type if it has none."""
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
    view: View | None = None,
) -> tuple[torch.Tensor, VideoMetadata]:
    """Decode the frames that `sample_indices` chooses, and keep only these in memory.

    Args:
        source: a path, a URL, the bytes of a file, a file object, a `datasets` row of `Video(decode=False)` (a dict with
            `path` and `bytes`), or a torchcodec `VideoDecoder` (a row of `Video()`).
        sample_indices: called with the video's `VideoMetadata`; returns frame numbers in [0, total_num_frames), in any
            order, also repeated.
        backend: "torchcodec", "pyav", or None: torchcodec for whole videos if it loads, otherwise PyAV.
        start, end: a segment in seconds from the video's first frame. It has the frames whose time stamps lie in [start, end);
            metadata and frame numbers refer to it. In MP4, MOV, Matroska and WebM, its cost does not depend on its place in the
            video; other containers are decoded from their start (`video_seeking`).
        view: a resize or a crop, which saves memory because full frames are not kept. It is called with decoded frames, uint8
            (N, 3, H, W), at most 4 MiB at a time (or one frame), in ascending order, and returns frames of one shape.

    Returns:
        The frames, uint8 (T, 3, H, W) or of the view's shape, in the order of `sample_indices`, and the metadata with
        `frames_indices`.

    Raises:
        VideoReadError: the file is missing, empty or damaged, has no video stream, or fewer frames than it claims.
    """
    return decode_clips(source, [sample_indices], [view], backend, start, end)[0]


def decode_clips(
    source: Any,
    samplers: Sequence[SampleIndices],
    views: Sequence[View | None],
    backend: str | None = None,
    start: float | None = None,
    end: float | None = None,
) -> list[tuple[torch.Tensor, VideoMetadata]]:
    """Decode a video once for several clips, each with its own sampler and view; otherwise as [`decode_video`]."""
    if backend is None:
        whole = start is None and end is None
        backend = "torchcodec" if whole and is_torchcodec_usable(decode="video") else "pyav"
    read = {"torchcodec": _read_torchcodec, "pyav": _read_pyav}.get(backend)
    if read is None:
        raise ValueError(f"Got backend={backend!r}, expected 'torchcodec', 'pyav' or None: choose one of them.")
    name = video_name(source)
    try:
        metadata, frames = read(_openable(source), start, end)
        indices = [_frame_numbers(sample, metadata) for sample in samplers]
        clips = _collect(_blocks(frames(np.unique(np.concatenate(indices)).tolist())), indices, views)
    except VideoReadError as error:
        raise VideoReadError(f"Cannot read video {name}: {error}") from None
    except (av.FFmpegError, OSError, RuntimeError) as error:
        fault = getattr(error, "strerror", None) or (str(error).strip() or type(error).__name__).splitlines()[0]
        raise VideoReadError(
            f"Cannot read video {name}: got {fault}, expected a playable video file: re-encode or remove it."
        ) from error
    return [(clip, replace(metadata, frames_indices=numbers.tolist())) for clip, numbers in zip(clips, indices)]


def _blocks(frames: Iterable[tuple[int, torch.Tensor]]) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Collect numbered frames into blocks of at most `BLOCK_BYTES`, with at least one frame each."""
    waiting: list[tuple[int, torch.Tensor]] = []

    def block() -> tuple[np.ndarray, torch.Tensor]:
        numbers, pictures = zip(*waiting)
        waiting.clear()
        if len(pictures) == 1:  # do not copy a large frame
            return np.array(numbers), pictures[0][None]
        # Decoders write channels last; copying is cheap in this layout.
        return np.array(numbers), torch.stack([picture.permute(1, 2, 0) for picture in pictures]).permute(0, 3, 1, 2)

    for number, frame in frames:
        waiting.append((number, frame))
        if (len(waiting) + 1) * frame.nbytes > BLOCK_BYTES:
            yield block()
    if waiting:
        yield block()


def _collect(
    blocks: Iterable[tuple[np.ndarray, torch.Tensor]], indices: list[np.ndarray], views: Sequence[View | None]
) -> list[torch.Tensor]:
    """Make clips (T, C, H, W) from blocks of frames (N, C, H, W) and their numbers, which ascend.

    Args:
        indices: the frame numbers of each clip, in any order.
    """
    clips: list[torch.Tensor | None] = [None] * len(indices)
    for numbers, frames in blocks:
        for clip, (wanted, view) in enumerate(zip(indices, views)):
            places, used = np.flatnonzero(np.isin(wanted, numbers)), np.isin(numbers, wanted)
            if not len(places):
                continue
            seen = frames if used.all() else frames[torch.from_numpy(used)]
            pictures = (seen if view is None else view(seen)).permute(0, 2, 3, 1)
            held = clips[clip]
            if held is None:
                held = clips[clip] = pictures.new_empty((len(wanted), *pictures.shape[1:]))
            held[torch.from_numpy(places)] = pictures[torch.from_numpy(np.searchsorted(numbers[used], wanted[places]))]
    return [clip.permute(0, 3, 1, 2) for clip in clips if clip is not None]


def _openable(source: Any) -> Any:
    """Turn a source into a path, a file object or a torchcodec decoder."""
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
    if hasattr(source, "read") and not getattr(source, "seekable", lambda: hasattr(source, "seek"))():
        return io.BytesIO(source.read())  # a pipe cannot be read twice, but the file is opened more than once
    return source


def _download(url: str) -> bytes:
    try:
        return httpx.get(url, follow_redirects=True).raise_for_status().content
    except httpx.HTTPError as error:
        raise VideoReadError(f"got {error}, expected a video at this address: check the URL.") from error


def _frame_numbers(sample_indices: SampleIndices, metadata: VideoMetadata) -> np.ndarray:
    if metadata.total_num_frames < 1:
        raise VideoReadError("got a video stream without frames, expected at least one: re-encode or remove it.")
    indices = np.asarray(sample_indices(metadata), dtype=np.int64)
    if indices.size == 0 or indices.min() < 0 or indices.max() >= metadata.total_num_frames:
        asked = f"{indices.min()}..{indices.max()}" if indices.size else "no frames at all"
        raise ValueError(f"Got frame numbers {asked}, expected 0..{metadata.total_num_frames - 1}: sample within it.")
    return indices


def _read_pyav(file: Any, start: float | None, end: float | None) -> tuple[VideoMetadata, FramesOf]:
    if not isinstance(file, str) and not hasattr(file, "read"):
        raise VideoReadError(f"got a {type(file).__name__}, expected a path, bytes or a file for PyAV: pass the path.")
    reader = VideoReader(file, start, end)
    metadata = VideoMetadata(
        total_num_frames=reader.total,
        fps=reader.fps,
        duration=reader.total / reader.fps if reader.fps else None,
        width=reader.width,
        height=reader.height,
        video_backend="pyav",
    )

    def frames(numbers: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
        # Build the converter once for the clip: for a small frame, building costs more than converting.
        reformatter = VideoReformatter()
        for number, frame in reader.frames(numbers):
            pixels = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            yield number, torch.from_numpy(pixels).permute(2, 0, 1)

    return metadata, frames


def _read_torchcodec(file: Any, start: float | None, end: float | None) -> tuple[VideoMetadata, FramesOf]:
    if start is not None or end is not None:
        raise ValueError(
            f"Got a segment from {start} to {end} s for torchcodec, expected PyAV: pass a path and backend='pyav' or None."
        )
    # Without this condition, transformers would require torchcodec to load any model from the Hub whose folder holds this file.
    if is_torchcodec_available():
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

    def frames(numbers: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
        for first in range(0, len(numbers), 8):  # a call costs as much as a few frames; larger blocks need more memory
            block = numbers[first : first + 8]
            yield from zip(block, decoder.get_frames_at(indices=block).data)

    return metadata, frames


def write_video(path: str | os.PathLike, frames: np.ndarray, fps: int = 25, crf: int = 18) -> None:
    """Write uint8 RGB frames (T, H, W, 3), H and W even, as H.264; the path's ending chooses the container.

    The same frames always give the same bytes: one encoder thread and no date in the file.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or np.any(np.mod(frames.shape[1:3], 2)):
        raise ValueError(
            f"Got frames of shape {frames.shape} and dtype {frames.dtype}, expected uint8 (T, H, W, 3), H and W even: convert or crop."
        )
    with av.open(os.fspath(path), "w") as container:
        # Without mbtree=0, the same frames can give different bytes: for frames narrower than 256 pixels, the AVX-512 code of
        # x264's macroblock-tree rate control reads memory that it did not write.
        options = {"crf": str(crf), "preset": "fast", "mbtree": "0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
