"""What stands between few bytes and the two models: pixels as each of them knows them, codes and scores as they are kept.

Pure functions of tensors. Training on the fly and a target cache both go through them, so that both see the same bits. None of them
moves numbers to the device on its own, so that no step waits for that.
"""

from typing import Any

import torch
from torch import nn


class PixelScale:
    """What a processor does to pixels, done where they lie, and undone. Its numbers go to the device once, not in every step.

    Args:
        processor: [`LVMAEVideoProcessor`], the home of mean and deviation.

    Raises:
        ValueError: no processor.
    """

    def __init__(self, processor: Any, device: torch.device | str | None = None):
        if processor is None:
            raise ValueError(
                "Got no processing_class, expected the processor that made the clips (its mean and deviation normalise bytes and "
                "turn clips back into pixels): pass LVMAEVideoProcessor."
            )
        mean, deviation = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0], [1.0])
        self.mean, self.deviation = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, deviation))
        scale = 1 / processor.rescale_factor if processor.do_rescale else 1.0
        self.byte_mean, self.byte_deviation = self.mean * scale, self.deviation * scale

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 pixels (..., C, H, W) as the model takes them, bit for bit the processor's (which multiplies by 1/255 rather than
        divide by 255 where it does not normalise). Floating point is returned as it is, for it has been normalised before."""
        if pixels.is_floating_point():
            return pixels
        return pixels.float().sub_(self.byte_mean).div_(self.byte_deviation)

    def restore(self, clips: torch.Tensor) -> torch.Tensor:
        """Normalised or uint8 pixels (..., C, H, W) in [0, 1]."""
        clips = self.normalize(clips)
        return (clips * self.deviation.to(clips.dtype) + self.mean.to(clips.dtype)).clamp(0, 1)


def tokenizer_view(clips: torch.Tensor, scale: float) -> torch.Tensor:
    """Clips (B, T, C, H, W) in [0, 1] as the tokenizer knows them, with its own pixels per token.

    Args:
        scale: the tokenizer's pixels a side of a token, divided by the model's.
    """
    if scale == 1:
        return clips
    size = [round(side * scale) for side in clips.shape[-2:]]
    frames = nn.functional.interpolate(clips.flatten(0, 1), size=size, mode="bilinear", antialias=True)
    return frames.unflatten(0, clips.shape[:2]).clamp(0, 1)


def compact_scores(importance_scores: torch.Tensor) -> torch.Tensor:
    """Scores as a cache keeps them, and as tokens are always chosen by them: float16, each clip's from 0 to 1.

    Only the order within a clip decides, and that survives but for neighbours closer than about 1/2048 of the clip's range, which
    tie (and ties go by noise). Scaling first keeps shares of a whole clip (optical flow) from vanishing in float16. Compacting
    twice changes nothing.

    Args:
        importance_scores: (B, N), any finite numbers.
    """
    scores = importance_scores.float()
    low, high = scores.amin(dim=1, keepdim=True), scores.amax(dim=1, keepdim=True)
    return ((scores - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)).half()
