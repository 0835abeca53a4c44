"""Finite scalar quantization (FSQ, Mentzer et al. 2024): the quantizer, and pure functions of codes, levels and indices.

One token is described in three ways. Each has one entry per channel, except the index:
- code: float32 in [-1, 1], what the networks read;
- level: an integer from 0 to L - 1 for a channel of L levels; its code is (level - L // 2) / (L // 2);
- index: one integer below prod(levels); the first channel is the least significant.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers.utils.generic import maybe_autocast

from .masking import straight_through


def integer_tensor(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return int64 (len(values),), filled on the device: a copy from the CPU would make an accelerator wait."""
    return torch.stack([torch.full((), value, device=device) for value in values])


class FiniteScalarQuantizer(nn.Module):
    """Bound each channel and round it. It has no parameters and no auxiliary loss, and always computes in float32."""

    def __init__(self, levels: Sequence[int]):
        super().__init__()
        self.levels = tuple(levels)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Round latents (..., len(levels)) to codes of the same shape in [-1, 1], with a straight-through gradient."""
        with maybe_autocast(device_type=latents.device.type, enabled=False):
            bounded, half_width = self._bound(latents)
            return straight_through(bounded.detach().round(), bounded) / half_width

    def bounded_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the values that `forward` rounds, on the scale of the codes: (..., len(levels)) -> float32 of the same shape.

        Values are in [-1, 1] to within 1e-3, and at most half a level from the code. 0 goes to 0.
        """
        with maybe_autocast(device_type=latents.device.type, enabled=False):
            bounded, half_width = self._bound(latents)
            return bounded / half_width

    def _bound(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Squash latents to the range of the levels, whose step is 1. Return them and half of each range, (len(levels),)."""
        counts = integer_tensor(self.levels, latents.device)
        half_range = (counts.float() - 1) * (1 + 1e-3) / 2
        offset = torch.where(counts % 2 == 0, 0.5, 0.0)  # an even number of levels has one more below 0 than above
        return (latents.float() + (offset / half_range).atanh()).tanh() * half_range - offset, counts // 2


def codes_to_levels(codes: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
    """Convert codes (..., len(levels)) to levels, int64 of the same shape, each in [0, L)."""
    return ((codes.float() + 1) * (integer_tensor(levels, codes.device) // 2)).round().long()


def codes_to_indices(codes: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
    """Convert codes (..., len(levels)) to indices, int64 (...)."""
    basis = integer_tensor([math.prod(levels[:channel]) for channel in range(len(levels))], codes.device)
    return (codes_to_levels(codes, levels) * basis).sum(dim=-1)


def indices_to_levels(indices: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
    """Convert indices, integers (...), to levels, int64 (..., len(levels)), each in [0, L)."""
    channels, rest = [], indices.long()
    for level in levels:
        channels.append(rest % level)
        rest = rest // level
    return torch.stack(channels, dim=-1)


def levels_to_codes(channel_levels: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
    """Convert levels, int64 (..., len(levels)), to float32 codes of the same shape, equal to the quantizer's in every bit."""
    # Divide by a tensor: for a Python number, a GPU multiplies by the reciprocal, which can be off by one bit.
    half_width = integer_tensor(levels, channel_levels.device) // 2
    return (channel_levels - half_width) / half_width


def indices_to_codes(indices: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
    """Convert indices, integers (...), to float32 codes (..., len(levels)) in [-1, 1], equal to the quantizer's in every bit."""
    return levels_to_codes(indices_to_levels(indices, levels), levels)


def level_losses(logits: torch.Tensor, codes: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
    """Return the cross-entropy of each channel's level in nats, with a softmax of L logits per channel.

    Args:
        logits: (..., sum(levels)), the channels' logits one after another.
        codes: (..., len(levels)), the true codes.

    Returns:
        float32 (..., len(levels)).
    """
    targets = codes_to_levels(codes, levels)
    return torch.stack(
        [
            nn.functional.cross_entropy(channel.movedim(-1, 1), targets[..., number], reduction="none")
            for number, channel in enumerate(logits.float().split(list(levels), dim=-1))
        ],
        dim=-1,
    )


def likeliest_codes(logits: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
    """Return the codes with the highest logits: (..., sum(levels)) -> float32 (..., len(levels)) in [-1, 1]."""
    channels = [channel.argmax(dim=-1) for channel in logits.split(list(levels), dim=-1)]
    return levels_to_codes(torch.stack(channels, dim=-1), levels)


def level_histograms(indices: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
    """Count how often each channel takes each level: integers (B, N) -> int64 (B, len(levels), max(levels))."""
    channel_levels = indices_to_levels(indices, levels).unsqueeze(-1)
    return (channel_levels == torch.arange(max(levels), device=indices.device)).sum(dim=1)


def level_statistics(histogram: torch.Tensor, levels: Sequence[int]) -> dict[str, float]:
    """Return `level_usage_<channel>`, the share of levels that occur, and `level_entropy_<channel>` in bits.

    Args:
        histogram: (len(levels), max(levels)), one of [`level_histograms`] or the sum of several.
    """
    statistics = {}
    for channel, (counts, level) in enumerate(zip(histogram.double(), levels)):
        shares = counts[counts > 0] / counts.sum()
        statistics[f"level_usage_{channel}"] = len(shares) / level
        statistics[f"level_entropy_{channel}"] = -(shares * shares.log2()).sum().item()
    return statistics
