"""Codes as classes: each channel of an FSQ code is one of its levels. Pure functions of tensors and sizes.

A channel of L levels takes the codes (level - L // 2) / (L // 2) for level 0 .. L - 1, as the tokenizer's quantiser makes them. Every
channel is a softmax of its own, of L logits: sum(levels) in all, never one softmax over the prod(levels) codes.
"""

import torch
from torch import nn


def level_losses(logits: torch.Tensor, codes: torch.Tensor, levels: list[int] | tuple[int, ...]) -> torch.Tensor:
    """Cross-entropy of each channel in nats: (..., sum(levels)) and codes (..., len(levels)) -> float32 (..., len(levels))."""
    losses = []
    for channel, scores in enumerate(logits.float().split(list(levels), dim=-1)):
        half = levels[channel] // 2
        level = (codes[..., channel].float() * half).round().long() + half
        losses.append(nn.functional.cross_entropy(scores.movedim(-1, 1), level, reduction="none"))
    return torch.stack(losses, dim=-1)


def likeliest_codes(logits: torch.Tensor, levels: list[int] | tuple[int, ...]) -> torch.Tensor:
    """The codes with the highest logits: (..., sum(levels)) -> float32 (..., len(levels)) in [-1, 1]."""
    channels = []
    for scores, level in zip(logits.split(list(levels), dim=-1), levels):
        channels.append((scores.argmax(dim=-1) - level // 2).float() / (level // 2))
    return torch.stack(channels, dim=-1)
