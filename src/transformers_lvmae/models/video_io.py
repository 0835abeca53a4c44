"""Decode chosen frames of a video, and write a clip to a file.

Files are decoded by PyAV, which bundles FFmpeg, in a process of their own (`decoder_process`). The number of frames comes from
demuxing, or from an index that was checked (`video_seeking`), never from the header: Matroska and WebM headers say 0, and the header
of a truncated file counts the lost frames too. torchcodec decodes if it is asked for by name, or if a row holds its decoder.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import av
import numpy as np
import torch
from transformers.utils import is_torchcodec_available
from transformers.video_utils import VideoMetadata

from .decoder_process import Block, Facts, FramesOf, LocalFile, Opening, fault_of, opened_video
from .video_seeking import VideoReadError
from .video_sources import VideoAccess, video_name


SampleIndices = Callable[[VideoMetadata], Sequence[int] | np.ndarray | torch.Tensor]
View = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class DecodedMetadata(VideoMetadata):
    """The metadata of a decoded video; width and height as it is shown, after its display rotation.

    Args:
        fault: why the video seems to be truncated or damaged although its frames play, or None.
    """

    fault: str | None = None


def decode_video(
    source: Any,
    sample_indices: SampleIndices,
    backend: str | None = None,
    start: float | None = None,
    end: float | None = None,
    view: View | None = None,
    access: VideoAccess | None = None,
) -> tuple[torch.Tensor, DecodedMetadata]:
    """Decode the frames that `sample_indices` chooses, and keep only these in memory.

    Frames are rotated and mirrored as the file says, as players do, so that a phone's upright video is upright.

    Args:
        source: a path, a URL, the bytes of a file, a file object, a `datasets` row of `Video(decode=False)` (a dict with
            `path` and `bytes`), or a torchcodec `VideoDecoder` (a row of `Video()`).
        sample_indices: called with the video's `VideoMetadata`; returns frame numbers in [0, total_num_frames), in any
            order, also repeated.
        backend: "pyav", "torchcodec" (0.11 or later, which rotates; it has no limit of time and no segments), or None for PyAV.
        start, end: a segment in seconds from the video's first frame. It has the frames whose time stamps lie in [start, end);
            metadata and frame numbers refer to it. In MP4, MOV, Matroska and WebM, its cost does not depend on its place in the
            video; other containers are decoded from their start (`video_seeking`).
        view: a resize or a crop, which saves memory because full frames are not kept. It is called with decoded frames, uint8
            (N, 3, H, W), at most 4 MiB at a time (or one frame), in ascending order, and returns frames of one shape.
        access: what may be opened, and limits of bytes and seconds.

    Returns:
        The frames, uint8 (T, 3, H, W) or of the view's shape, in the order of `sample_indices`, and the metadata with
        `frames_indices`.

    Raises:
        VideoReadError: the video may not be opened; is missing, empty or damaged; has no video stream, or fewer frames than it
            claims; or decoding takes longer than `access.max_seconds`. Whatever the decoder raises becomes this error.
    """
    return decode_clips(source, [sample_indices], [view], backend, start, end, access)[0]


def decode_clips(
    source: Any,
    samplers: Sequence[SampleIndices],
    views: Sequence[View | None],
    backend: str | None = None,
    start: float | None = None,
    end: float | None = None,
    access: VideoAccess | None = None,
) -> list[tuple[torch.Tensor, DecodedMetadata]]:
    """Decode a video once for several clips, each with its own sampler and view; otherwise as [`decode_video`]."""
    if backend not in ("pyav", "torchcodec", None):
        raise ValueError(f"Got backend={backend!r}, expected 'torchcodec', 'pyav' or None: choose one of them.")
    try:
        with _opened(source, backend, start, end, access or VideoAccess()) as (facts, frames):
            metadata = DecodedMetadata(
                total_num_frames=facts.total,
                fps=facts.fps,
                duration=facts.total / facts.fps if facts.fps else None,
                width=facts.width,
                height=facts.height,
                video_backend=backend or "pyav",
            )
            indices = [_frame_numbers(sample, metadata) for sample in samplers]
            blocks = _measured(frames(np.unique(np.concatenate(indices)).tolist()), metadata)
            clips = _collect(blocks, indices, views)
            metadata.fault = facts.fault
    except VideoReadError as error:
        raise VideoReadError(f"Cannot read video {video_name(source)}: {error}") from error.__cause__
    return [(clip, replace(metadata, frames_indices=numbers.tolist())) for clip, numbers in zip(clips, indices)]


def _measured(blocks: Iterable[Block], metadata: DecodedMetadata) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield blocks as frames (N, C, H, W) of torch; note the size of a frame as it is shown."""
    for numbers, frames in blocks:
        metadata.height, metadata.width = frames.shape[1:3]
        yield np.array(numbers), torch.from_numpy(frames).permute(0, 3, 1, 2)


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
            if held is not None and held.shape[1:] != pictures.shape[1:]:
                sizes = f"{tuple(held.shape[1:3])} and {tuple(pictures.shape[1:3])}"
                raise VideoReadError(
                    f"got frames of two sizes, {sizes}, expected one: resize them while decoding, or re-encode it."
                )
            if held is None:
                held = clips[clip] = pictures.new_empty((len(wanted), *pictures.shape[1:]))
            held[torch.from_numpy(places)] = pictures[torch.from_numpy(np.searchsorted(numbers[used], wanted[places]))]
    return [clip.permute(0, 3, 1, 2) for clip in clips if clip is not None]


def _frame_numbers(sample_indices: SampleIndices, metadata: VideoMetadata) -> np.ndarray:
    indices = np.asarray(sample_indices(metadata), dtype=np.int64)
    if indices.size == 0 or indices.min() < 0 or indices.max() >= metadata.total_num_frames:
        asked = f"{indices.min()}..{indices.max()}" if indices.size else "no frames at all"
        raise ValueError(f"Got frame numbers {asked}, expected 0..{metadata.total_num_frames - 1}: sample within it.")
    return indices


@contextmanager
def _opened(
    source: Any, backend: str | None, start: float | None, end: float | None, access: VideoAccess
) -> Iterator[tuple[Facts, FramesOf]]:
    """Open a video; yield its facts, and a function from ascending frame numbers to blocks of these frames."""
    file = access.open(source)
    if backend == "torchcodec" or (backend is None and hasattr(file, "get_frames_at")):
        if start is not None or end is not None:
            raise ValueError(
                f"Got a segment from {start} to {end} s for torchcodec, expected PyAV: pass a path and backend='pyav' or None."
            )
        yield _open_torchcodec(file, access)
        return
    path, file = (file, None) if isinstance(file, str) else (None, file)
    if path is None and not hasattr(file, "read"):
        raise VideoReadError(f"got a {type(file).__name__}, expected a path, bytes or a file for PyAV: pass the path.")
    folders = None if access.folders is None else tuple(map(os.path.abspath, access.folders))
    with opened_video(Opening(path, folders, start, end), file, access.max_seconds) as video:
        yield video


def _open_torchcodec(file: Any, access: VideoAccess) -> tuple[Facts, FramesOf]:
    # Without this condition, transformers would require torchcodec to load any model from the Hub whose folder holds this file.
    if is_torchcodec_available():
        from torchcodec.decoders import VideoDecoder
    try:
        if isinstance(file, str):
            LocalFile(file, access.folders).close()
        decoder = (
            file if isinstance(file, VideoDecoder) else VideoDecoder(file, num_ffmpeg_threads=1, seek_mode="exact")
        )
        known = decoder.metadata
        facts = Facts(known.num_frames, known.average_fps, known.width, known.height, fault=None)
    except Exception as error:
        raise VideoReadError(fault_of(error)) from error

    def blocks(numbers: Sequence[int]) -> Iterator[Block]:
        for first in range(0, len(numbers), 8):  # a call costs as much as a few frames; larger blocks need more memory
            block = list(numbers[first : first + 8])
            try:
                frames = decoder.get_frames_at(indices=block).data
            except Exception as error:
                raise VideoReadError(fault_of(error)) from error
            yield block, frames.permute(0, 2, 3, 1).numpy()

    return facts, blocks


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
