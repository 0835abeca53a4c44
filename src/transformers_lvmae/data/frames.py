"""Which frames of a video a clip has.

Random numbers are torch's own: the caller seeds them.
"""

import numpy as np
import torch


SHORT_VIDEOS = ("stretch", "loop", "pad")


def sample_frames(
    total: int,
    num_frames: int,
    training: bool = False,
    frame_stride: int | None = None,
    frame_jitter: bool = False,
    short_videos: str = "stretch",
) -> np.ndarray:
    """Frame numbers (num_frames,) in [0, total).

    Args:
        total: frames of the video.
        training: draw at random; otherwise the middle.
        frame_stride: frames this far apart, from a random (training) or the middle start. Without it, frames evenly over the
            whole video, `i * total // num_frames`.
        frame_jitter: of `num_frames` equal parts of the video one frame each, a random (training) or the middle one, as TSN.
        short_videos: what becomes of a video with fewer frames than that takes: "stretch" takes them evenly, each as often as need
            be; "loop" starts over; "pad" repeats the last one.
    """
    offsets = np.arange(num_frames) * (frame_stride or 1)
    spare = total - 1 - int(offsets[-1])
    if spare < 0 and short_videos != "stretch":
        return offsets % total if short_videos == "loop" else np.minimum(offsets, total - 1)
    if spare < 0 or (frame_stride is None and not frame_jitter):
        return np.arange(num_frames) * total // num_frames
    if frame_jitter:
        return _one_of_each_part(np.arange(num_frames + 1) * total // num_frames, training)
    return offsets + (int(torch.randint(spare + 1, ())) if training else spare // 2)


def _one_of_each_part(edges: np.ndarray, training: bool) -> np.ndarray:
    sizes = np.diff(edges)
    inside = (torch.rand(len(sizes), dtype=torch.float64).numpy() * sizes).astype(np.int64) if training else sizes // 2
    return edges[:-1] + inside


def check_sampling(frame_stride: int | None, frame_jitter: bool, short_videos: str) -> None:
    """Raises ValueError for a combination that [`sample_frames`] cannot honour."""
    if frame_stride is not None and frame_stride < 1:
        raise ValueError(f"Got frame_stride={frame_stride}, expected at least 1: leave it out for even sampling.")
    if frame_stride is not None and frame_jitter:
        raise ValueError(
            f"Got frame_stride={frame_stride} with frame_jitter, expected one of them: a jittered frame has no fixed distance."
        )
    if short_videos not in SHORT_VIDEOS:
        raise ValueError(f"Got short_videos={short_videos!r}, expected one of {SHORT_VIDEOS}: correct the spelling.")
