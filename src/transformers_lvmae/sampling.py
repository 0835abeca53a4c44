"""Which frames of a video a clip has, and which part of them it shows.

Numbers at random are torch's own: who calls these functions settles what the draws are reproducible from.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import horizontal_flip, resized_crop

from .video_io import View


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


class MultiScaleCrop(v2.Transform):
    """VideoMAE's crop: sides out of a few shares of the shorter side, at one of 13 places, then resized.

    Height and width are drawn together, at most one step of `scales` apart. The places are the corners, the middles of the sides,
    the centre, and halfway from it to each corner (VideoMAE's GroupMultiScaleCrop, from TSN).

    Args:
        size: (height, width) to resize to.
        scales: shares of the shorter side, descending.
    """

    PLACES = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)] + [(y, x) for y in (1, 3) for x in (1, 3)]

    def __init__(self, size: tuple[int, int], scales: Sequence[float] = (1.0, 0.875, 0.75, 0.66)):
        super().__init__()
        self.size = size
        self.scales = tuple(scales)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = flat_inputs[0].shape[-2:]
        sides = [int(min(height, width) * scale) for scale in self.scales]
        pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
        crop_height, crop_width = pairs[int(torch.randint(len(pairs), ()))]
        y, x = self.PLACES[int(torch.randint(len(self.PLACES), ()))]
        top, left = (height - crop_height) * y // 4, (width - crop_width) * x // 4
        return {"top": top, "left": left, "height": crop_height, "width": crop_width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return resized_crop(inpt, **params, size=list(self.size), antialias=True)


def random_crop(
    size: tuple[int, int], min_crop_scale: float = 1.0, crop_scales: Sequence[float] | None = None
) -> v2.Transform | None:
    """The random crop to `size` (height, width) that the two settings ask for, None for none.

    Args:
        min_crop_scale: in (0, 1], the smallest share of the area of torchvision's `RandomResizedCrop`; 1 = none.
        crop_scales: in (0, 1], the shares of the shorter side of [`MultiScaleCrop`].

    Raises:
        ValueError: numbers outside of these ranges, or both crops.
    """
    if not 0 < min_crop_scale <= 1:
        raise ValueError(
            f"Got min_crop_scale={min_crop_scale}, expected a share of the area in (0, 1]: give a fraction."
        )
    if not crop_scales:
        return None if min_crop_scale == 1 else v2.RandomResizedCrop(size, scale=(min_crop_scale, 1.0), antialias=True)
    if not all(0 < scale <= 1 for scale in crop_scales):
        raise ValueError(
            f"Got crop_scales={list(crop_scales)}, expected shares of the shorter side in (0, 1]: give fractions."
        )
    if min_crop_scale < 1:
        raise ValueError(
            f"Got min_crop_scale={min_crop_scale} with crop_scales={list(crop_scales)}, expected one of them: choose one kind "
            "of crop."
        )
    return MultiScaleCrop(size, crop_scales)


def draw_view(fit: View, crop: v2.Transform | None = None, flip: bool = False) -> View:
    """What a clip shows of its frames (N, 3, H, W), drawn once for all of them.

    Args:
        fit: takes frames to the model's size where there is no `crop`.
        crop: taken out of the frames as they are stored; its numbers are drawn at the first frame.
        flip: mirror, with probability 1/2.
    """
    mirrored = flip and bool(torch.rand(()) < 0.5)
    params: dict[str, Any] = {}

    def view(frames: torch.Tensor) -> torch.Tensor:
        if crop is None:
            frames = fit(frames)
        else:
            params.update(params or crop.make_params([frames]))
            frames = crop.transform(frames, params)
        return horizontal_flip(frames) if mirrored else frames

    return view
