"""Crops, mirroring, RandAugment and random erasing of clips. All frames of a clip share one draw.

Random numbers are torch's own; the caller seeds them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2.functional import horizontal_flip, resized_crop

from ..models.video_io import View


class MultiScaleCrop(v2.Transform):
    """VideoMAE's random crop, GroupMultiScaleCrop (from TSN): crop with one of a few sizes at one of 13 places, then resize.

    The height and the width of the crop are shares of those of the largest region with the shape of `size`, for a square `size` of the
    frame's shorter side. They are drawn together, at most one step of `scales` apart. The places are the four corners, the middles of the four sides, the center, and the points halfway from the center to each
    corner.

    Args:
        size: (height, width) to resize to.
        scales: shares of the largest region's sides, descending.
    """

    PLACES = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)] + [(y, x) for y in (1, 3) for x in (1, 3)]

    def __init__(self, size: tuple[int, int], scales: Sequence[float] = (1.0, 0.875, 0.75, 0.66)):
        super().__init__()
        self.size = size
        self.scales = tuple(scales)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = flat_inputs[0].shape[-2:]
        ratio = self.size[1] / self.size[0]
        largest = min(height, width / ratio), min(width, height * ratio)
        heights, widths = ([int(side * scale) for scale in self.scales] for side in largest)
        pairs = [(h, w) for i, h in enumerate(heights) for j, w in enumerate(widths) if abs(i - j) <= 1]
        crop_height, crop_width = pairs[int(torch.randint(len(pairs), ()))]
        y, x = self.PLACES[int(torch.randint(len(self.PLACES), ()))]
        top, left = (height - crop_height) * y // 4, (width - crop_width) * x // 4
        return {"top": top, "left": left, "height": crop_height, "width": crop_width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return resized_crop(inpt, **params, size=list(self.size), antialias=True)


def draw_view(fit: View, crop: v2.Transform | None = None, flip: bool = False) -> View:
    """Draw the view of a clip: a function that crops and mirrors frames (N, 3, H, W), the same way at every call.

    Args:
        fit: resizes and crops frames to the model's size; used without `crop`.
        crop: random crop of the stored frames. Its numbers are drawn at the first call, which knows the frames' size.
        flip: mirror with probability 1/2.
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


MAX_MAGNITUDE = 10


def rand_augment(num_ops: int, magnitude: int, fill: Sequence[float]) -> v2.Transform:
    """Return RandAugment of uint8 clips (T, C, H, W), as in the recipes of timm and VideoMAE ("rand-m7-n4").

    One of torchvision's 14 operations (identity, shear, translation, rotation, brightness, color, contrast, sharpness, posterize,
    solarize, auto-contrast, equalize) is drawn `num_ops` times. Each draw is applied with probability 0.5, as in timm.

    Args:
        magnitude: strength in [0, 10]. At 10, the ranges of torchvision and timm are the same.
        fill: color of the pixels that move in from outside, in [0, 255], one number for each channel.
    """
    bins = {"num_magnitude_bins": MAX_MAGNITUDE + 1, "interpolation": InterpolationMode.BILINEAR, "fill": list(fill)}
    operation = v2.RandAugment(num_ops=1, magnitude=magnitude, **bins)
    return v2.Compose([v2.RandomApply([operation], p=0.5) for _ in range(num_ops)])


def random_erasing(probability: float) -> v2.Transform:
    """Return random erasing of normalized clips (T, C, H, W): noise in a box of 2 to 33 % of the area, the same in all frames."""
    return v2.RandomErasing(probability, value="random")


@dataclass(frozen=True)
class ClipAugmentation:
    """The random changes of a training clip. By default there are none.

    Args:
        min_crop_scale: in (0, 1]; crop down to this share of the area with torchvision's `RandomResizedCrop`; 1 = no crop.
        crop_scales: in (0, 1]; crop with VideoMAE's [`MultiScaleCrop`] instead, with these shares of the shorter side.
        horizontal_flip: mirror half of the clips.
        rand_augment_num_ops: number of operations of [`rand_augment`] on the cropped frames (VideoMAE: 4); 0 = none.
        rand_augment_magnitude: their strength in [0, 10] (VideoMAE: 7).
        random_erasing_prob: share of the clips with a box of noise (VideoMAE: 0.25).

    Raises:
        ValueError: a share outside its range, or both kinds of crop.
    """

    min_crop_scale: float = 1.0
    crop_scales: Sequence[float] = ()
    horizontal_flip: bool = False
    rand_augment_num_ops: int = 0
    rand_augment_magnitude: int = 7
    random_erasing_prob: float = 0.0

    def __post_init__(self) -> None:
        area, sides = self.min_crop_scale, list(self.crop_scales)
        if not 0 < area <= 1:
            raise ValueError(f"Got min_crop_scale={area}, expected a share of the area in (0, 1]: give a fraction.")
        if not all(0 < scale <= 1 for scale in sides):
            raise ValueError(f"Got crop_scales={sides}, expected shares of the shorter side in (0, 1]: give fractions.")
        if sides and area < 1:
            raise ValueError(
                f"Got min_crop_scale={area} with crop_scales={sides}, expected one of them: leave one out."
            )

    @property
    def is_random(self) -> bool:
        """Whether any augmentation is on."""
        crop = self.min_crop_scale < 1 or bool(self.crop_scales)
        return crop or self.horizontal_flip or self.rand_augment_num_ops > 0 or self.random_erasing_prob > 0

    def crop(self, size: tuple[int, int]) -> v2.Transform | None:
        """Return the random crop to `size` (height, width), or None."""
        if self.crop_scales:
            return MultiScaleCrop(size, self.crop_scales)
        if self.min_crop_scale == 1:
            return None
        ratio = size[1] / size[0]
        scale, shapes = (self.min_crop_scale, 1.0), (3 / 4 * ratio, 4 / 3 * ratio)
        return v2.RandomResizedCrop(size, scale=scale, ratio=shapes, antialias=True)

    def recolor(self, image_mean: Sequence[float]) -> v2.Transform | None:
        """Return RandAugment of uint8 frames, or None. Pixels that move in from outside get the color `image_mean`, in [0, 1]."""
        if self.rand_augment_num_ops <= 0:
            return None
        fill = [255 * mean for mean in image_mean]
        return rand_augment(self.rand_augment_num_ops, self.rand_augment_magnitude, fill)

    def erase(self) -> v2.Transform | None:
        """Return random erasing of normalized frames, or None."""
        return random_erasing(self.random_erasing_prob) if self.random_erasing_prob > 0 else None
