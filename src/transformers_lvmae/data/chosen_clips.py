"""Clips of which only the tokens that a classifier looks at leave the worker."""

import copy
from typing import Any

import torch

from ..models.masking import cut_visible_tubelets, random_tube_mask
from ..models.token_selection import LVMAETokenSelector
from .clips import ByteVideoClips, to_pixels


class ChosenVideoClips(ByteVideoClips):
    """Clips for a classifier with `config.token_keep_ratio` below 1, whose tokens are chosen in the worker, after augmentation.

    An item has `visible_tubelets` (V, tubelet_size, C, patch_size, patch_size), uint8, and `bool_masked_pos` (N,), True = hidden, in place
    of the clip. The tokens are those that the model would choose. In training, the dropped tubes and the selector's noise are drawn from
    (seed, epoch, row), as all draws of a row. [`LVMAEClassificationTrainer`] normalizes the tubelets and puts random erasing into them.

    MixUp and CutMix mix whole clips, and need [`ByteVideoClips`].

    Args:
        selector: the model's `lvmae.token_selector`. A copy on the CPU chooses the tokens.
        args, kwargs: arguments of [`VideoClips`].
    """

    def __init__(self, *args: Any, selector: LVMAETokenSelector, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.selector = copy.deepcopy(selector).cpu().float().train(self.training)

    def make_item(self, row: dict[str, Any], clip: torch.Tensor) -> dict[str, Any]:
        item = super().make_item(row, clip)
        clip = item.pop("pixel_values_videos")
        kept, grid_size = self.choose(clip, item.get("erasing_noise")), self.selector.grid_size(clip.unsqueeze(0))
        return {
            **item,
            "visible_tubelets": cut_visible_tubelets(clip, grid_size, ~kept),
            "bool_masked_pos": ~kept,
        }

    def choose(self, clip: torch.Tensor, erasing_noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return the tokens of a clip (T, C, H, W), uint8, that are kept: bool (N,)."""
        dropped, ratio = None, self.selector.config.tube_drop_ratio
        if erasing_noise is not None and not erasing_noise.isnan().all():
            clip = torch.where(erasing_noise.isnan(), to_pixels(clip, self.processor), erasing_noise)
        clips = clip.unsqueeze(0)
        if self.training and ratio > 0:
            dropped = random_tube_mask(1, self.selector.grid_size(clips), ratio)
        return self.selector(clips, dropped=dropped)[0]
