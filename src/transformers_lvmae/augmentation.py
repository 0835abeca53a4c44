"""Augmentations of VideoMAE's fine-tuning recipe, out of torchvision's transforms: one draw for all frames of a clip.

RandAugment works on a clip's uint8 frames, random erasing on its normalised ones, MixUp and CutMix on a batch. Every draw is torch's
own random number: who calls them settles what they are reproducible from.
"""

from collections.abc import Sequence

import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2


MAX_MAGNITUDE = 10


def rand_augment(num_ops: int, magnitude: int, fill: Sequence[float]) -> v2.Transform:
    """RandAugment of uint8 clips (T, C, H, W), as the recipes of timm and VideoMAE write it ("rand-m7-n4").

    `num_ops` times one of torchvision's 14 operations (identity, shear, translation, rotation, brightness, colour, contrast,
    sharpness, posterize, solarize, auto-contrast, equalize) is drawn and, with probability 0.5 as in timm, applied.

    Args:
        magnitude: strength in [0, 10]; timm's ranges are torchvision's at 10.
        fill: colour in [0, 255], one a channel, of the pixels that move in from outside.
    """
    bins = {"num_magnitude_bins": MAX_MAGNITUDE + 1, "interpolation": InterpolationMode.BILINEAR, "fill": list(fill)}
    operation = v2.RandAugment(num_ops=1, magnitude=magnitude, **bins)
    return v2.Compose([v2.RandomApply([operation], p=0.5) for _ in range(num_ops)])


def random_erasing(probability: float) -> v2.Transform:
    """Random erasing of normalised clips (T, C, H, W): with `probability`, one box of 2 to 33 % of the area holds the same normal
    noise in all frames."""
    return v2.RandomErasing(probability, value="random")


class ClipMixing:
    """MixUp or CutMix of a batch of clips, each batch one of the two, drawn evenly where both are on (as VideoMAE).

    Each clip is mixed with the one before, the first with the last; a lone clip with itself. CutMix's box is the same in all frames.

    Args:
        mixup_alpha, cutmix_alpha: both parameters of the Beta distribution of the shares (VideoMAE: 0.8, 1.0); 0 switches it off.
        repeats: clips of each video, side by side in a batch, which is mixed in such an order that they do not meet each other.

    Raises:
        ValueError: neither is on.
    """

    def __init__(self, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0, repeats: int = 1):
        kinds = {v2.MixUp: mixup_alpha, v2.CutMix: cutmix_alpha}
        mixers = [kind(alpha=alpha) for kind, alpha in kinds.items() if alpha > 0]
        if not mixers:
            raise ValueError(
                f"Got mixup_alpha={mixup_alpha} and cutmix_alpha={cutmix_alpha}, expected a positive number for one of them."
            )
        self.mix = v2.RandomChoice(mixers)
        self.repeats = repeats

    def __call__(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips (B, T, C, H, W) -> mixed ones, and the share (B, B) of each clip (column) in each mixed one (row).

        `shares @ targets` are the mixed clips' targets, whatever the targets are.
        """
        shares = torch.eye(len(clips), device=clips.device)
        if self.repeats > 1:
            firsts = range(min(self.repeats, len(clips)))
            order = torch.cat([torch.arange(first, len(clips), self.repeats, device=clips.device) for first in firsts])
            clips, shares = clips[order], shares[order]
        # As plain tensors CutMix refuses five axes; as a Video it cuts height and width, the last two.
        mixed, shares = self.mix(tv_tensors.Video(clips), shares)
        return mixed.as_subclass(torch.Tensor), shares


__all__ = ["ClipMixing", "rand_augment", "random_erasing"]
