"""MixUp and CutMix of a batch of clips, with torchvision's transforms."""

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2


class ClipMixing:
    """MixUp or CutMix of a batch of clips. If both are on, each batch draws one of them with equal chances, as in VideoMAE.

    Each clip is mixed with the one before it, and the first with the last. A lone clip is mixed with itself. CutMix's box is the same in
    all frames.

    Args:
        mixup_alpha, cutmix_alpha: the shares are drawn from Beta(alpha, alpha) (VideoMAE: 0.8, 1.0). 0 switches it off, but not both.
        repeats: number of clips of each video, next to each other in a batch. The batch is reordered before mixing, so that clips
            of one video are not mixed with each other.
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
        """Mix clips (B, T, C, H, W). Return them with the share (B, B) of each clip (column) in each mixed clip (row).

        `shares @ targets` are the targets of the mixed clips.
        """
        shares = torch.eye(len(clips), device=clips.device)
        if self.repeats > 1:
            firsts = range(min(self.repeats, len(clips)))
            order = torch.cat([torch.arange(first, len(clips), self.repeats, device=clips.device) for first in firsts])
            clips, shares = clips[order], shares[order]
        # CutMix refuses plain tensors of five axes. In a Video it cuts height and width, the last two.
        mixed, shares = self.mix(tv_tensors.Video(clips), shares)
        return mixed.as_subclass(torch.Tensor), shares
