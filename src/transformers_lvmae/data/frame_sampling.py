"""The choice of the frames of a clip."""

from dataclasses import dataclass

import numpy as np
import torch


SHORT_VIDEOS = ("stretch", "loop", "pad")


@dataclass(frozen=True)
class FrameSampling:
    """The rule that chooses the frames of a clip. By default they lie evenly over the whole video, `i * total // num_frames`.

    Args:
        frame_stride: take frames this far apart. Their start is random in training; otherwise they lie in the middle.
        frame_jitter: cut the video into `num_frames` equal parts and take one frame of each, as TSN does: a random one in
            training, otherwise the middle one.
        short_videos: what to do with a video that has fewer frames than the rule needs. "stretch" takes frames evenly and
            repeats each as often as needed; "loop" starts again from the first frame; "pad" repeats the last frame.

    Raises:
        ValueError: settings that exclude each other, or a value outside its range.
    """

    frame_stride: int | None = None
    frame_jitter: bool = False
    short_videos: str = "stretch"

    def __post_init__(self) -> None:
        stride = self.frame_stride
        if stride is not None and stride < 1:
            raise ValueError(f"Got frame_stride={stride}, expected at least 1: leave it out for even sampling.")
        if stride is not None and self.frame_jitter:
            raise ValueError(f"Got frame_stride={stride} with frame_jitter, expected one of them: leave one out.")
        if self.short_videos not in SHORT_VIDEOS:
            raise ValueError(f"Got short_videos={self.short_videos!r}, expected one of {SHORT_VIDEOS}: choose one.")

    @property
    def is_random(self) -> bool:
        """Whether training clips of one video have different frames."""
        return self.frame_stride is not None or self.frame_jitter

    def sample(self, total: int, num_frames: int, training: bool = False) -> np.ndarray:
        """Choose the frames of a clip. In training, the choice is drawn with torch's current random numbers.

        Args:
            total: number of frames of the video.

        Returns:
            Frame numbers (num_frames,) in [0, total).
        """
        offsets = np.arange(num_frames) * (self.frame_stride or 1)
        spare = total - 1 - int(offsets[-1])
        if spare < 0 and self.short_videos != "stretch":
            return offsets % total if self.short_videos == "loop" else np.minimum(offsets, total - 1)
        if spare < 0 or not self.is_random:
            return np.arange(num_frames) * total // num_frames
        if self.frame_jitter:
            return _one_of_each_part(np.arange(num_frames + 1) * total // num_frames, training)
        return offsets + (int(torch.randint(spare + 1, ())) if training else spare // 2)


def _one_of_each_part(edges: np.ndarray, training: bool) -> np.ndarray:
    sizes = np.diff(edges)
    inside = (torch.rand(len(sizes), dtype=torch.float64).numpy() * sizes).astype(np.int64) if training else sizes // 2
    return edges[:-1] + inside
