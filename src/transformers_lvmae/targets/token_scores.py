"""Scores of tokens: the tokenizer's learned importance, and simpler scores to compare it with.

A score ranks the tokens of a clip, the highest first. `DECODER_MASKS` in the config names the score of each decoder mask.

The functions take clips (B, T, C, H, W) in [0, 1] and a token grid (t, h, w) and return float32 (B, t * h * w). H and W are multiples of
h and w, and T frames fill t slots of equal length (the last frame is repeated to complete the last slot). So a grid scores the same tokens at
any picture size. Motion is the difference from the previous frame or slot, as in the token scorer. The first frame or slot has no
previous one and takes the score of the second.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from transformers import default_data_collator

from .flow import FlowEstimator, flow_estimator


GridSize = tuple[int, int, int]


def split_tubes(pixels: torch.Tensor, grid_size: GridSize) -> torch.Tensor:
    """Return the pixels of each token, (B, T, C, H, W) -> (B, t, h, w, pixels); raise ValueError if the grid does not divide the clip."""
    (frames, height, width), (slots, rows, columns) = (pixels.shape[1], *pixels.shape[3:]), grid_size
    tubelet_size = -(-frames // slots)
    if -(-frames // tubelet_size) != slots or height % rows or width % columns:
        raise ValueError(
            f"Got a grid of {tuple(grid_size)} tokens for {frames} frames of {height} x {width} pixels, expected slots of equal "
            "length and whole pixels a token: pass the grid of these clips."
        )
    last = pixels[:, -1:].expand(-1, slots * tubelet_size - frames, -1, -1, -1)
    tubes = torch.cat([pixels, last], dim=1).unflatten(1, (slots, -1))
    tubes = tubes.unflatten(-2, (rows, -1)).unflatten(-1, (columns, -1))  # (B, t, frame, C, h, row, w, column)
    return tubes.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4)


def frame_difference(clips: torch.Tensor, grid_size: GridSize) -> torch.Tensor:
    """Return the mean absolute difference of a token's pixels from the previous frame, in [0, 1]."""
    difference = clips.float().diff(dim=1).abs()
    return split_tubes(_repeat_first(difference, clips), grid_size).mean(dim=-1).flatten(1)


def everest(
    clips: torch.Tensor, grid_size: GridSize, embed: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:
    """Return the Euclidean distance of a token's patch embedding from the one in the previous slot (EVEREST, ICML 2024).

    Args:
        clips: normalized as the embedding learned them, if `embed` is given.
        embed: the ViT's patch embedding, clips -> (B, N, size). Without it, the pixels of the tokens are compared.
    """
    with torch.no_grad():
        tokens = split_tubes(clips, grid_size) if embed is None else embed(clips).unflatten(1, grid_size)
        distance = torch.linalg.vector_norm(tokens.float().diff(dim=1), dim=-1)
    return _repeat_first(distance, tokens).flatten(1)


def optical_flow(clips: torch.Tensor, grid_size: GridSize, estimator: FlowEstimator | None = None) -> torch.Tensor:
    """Return the mean absolute flow over a token's pixels and both axes, as a share of the whole clip's (paper section 4.2, "Flow").

    The flow points from each pixel of a frame to its place in the previous frame.

    Args:
        estimator: from [`flow_estimator`], by default called without arguments.
    """
    _, estimate = estimator or flow_estimator()
    pairs = [frames.flatten(0, 1).float() for frames in (clips[:, 1:], clips[:, :-1])]
    if len(pairs[0]) == 0:
        return clips.new_zeros(clips.shape[0], grid_size[1] * grid_size[2], dtype=torch.float32)
    flow = estimate(*pairs).unflatten(0, (clips.shape[0], -1)).abs()
    scores = split_tubes(_repeat_first(flow, clips), grid_size).mean(dim=-1).flatten(1)
    return scores / scores.sum(dim=1, keepdim=True).clamp(min=1e-12)


def uniform_frames(noise: torch.Tensor, grid_size: GridSize) -> torch.Tensor:
    """Score whole slots in bit-reversed order: the best are nearly evenly spaced at every budget (paper section 4.2, "Uniform").

    The last slot of a budget may be chosen in part. `noise` (B, N) in [0, 1) then chooses its cells.
    """
    slots, cells = grid_size[0], grid_size[1] * grid_size[2]
    bits = (slots - 1).bit_length()
    numbers = torch.arange(slots, device=noise.device)
    reversed_bits = torch.zeros_like(numbers)
    for bit in range(bits):
        reversed_bits += (numbers >> bit & 1) << (bits - 1 - bit)
    places = reversed_bits.argsort().argsort()  # place of each slot in the bit-reversed order
    return (slots - places).repeat_interleave(cells) + noise


def random_tokens(noise: torch.Tensor, grid_size: GridSize) -> torch.Tensor:
    """Return the noise (B, N) itself."""
    return noise


def _repeat_first(differences: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Repeat the first difference for the first frame or slot: (B, T - 1, ...) -> (B, T, ...); zeros if there is only one."""
    if values.shape[1] == 1:
        return torch.zeros_like(values[..., 0] if differences.ndim < values.ndim else values, dtype=torch.float32)
    return torch.cat([differences[:, :1], differences], dim=1)


class TokenScore(NamedTuple):
    """The input of a score, and its function: of (clips, grid_size) or (noise, grid_size); None for the tokenizer's scores."""

    needs: Literal["tokenizer", "pixels", "noise"]
    function: Any = None


SCORES = {
    "learned": TokenScore("tokenizer"),  # `FSQMagViTModel.encode`
    "random": TokenScore("noise", random_tokens),
    "uniform": TokenScore("noise", uniform_frames),
    "motion": TokenScore("pixels", frame_difference),
    "everest": TokenScore("pixels", everest),
    "flow": TokenScore("pixels", optical_flow),
}
# Scores that need no tokenizer.
UNLEARNED = tuple(name for name, score in SCORES.items() if score.function is not None)


def score_tokens(
    name: str, clips: torch.Tensor, grid_size: GridSize, noise: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    """Return the scores (B, N) of one of `UNLEARNED` for clips (B, T, C, H, W) in [0, 1]. The function gets `options`.

    Scores of noise take `noise` (B, N), uniform in [0, 1), which is drawn here by default.
    """
    score = SCORES[name]
    if score.needs == "noise":
        if noise is None:
            noise = torch.rand(clips.shape[0], math.prod(grid_size), device=clips.device)
        return score.function(noise, grid_size)
    return score.function(clips, grid_size, **options)


def compact_scores(importance_scores: torch.Tensor) -> torch.Tensor:
    """Convert scores (B, N) to the form that caches store and masks use: float16, scaled to [0, 1] within each clip.

    Only the order within a clip matters. It is kept, but scores closer than about 1/2048 of the clip's range become equal, and noise
    decides between them. Without the scaling, shares of a whole clip (optical flow) would vanish in float16. A second conversion
    changes nothing.
    """
    scores = importance_scores.float()
    low, high = scores.amin(dim=1, keepdim=True), scores.amax(dim=1, keepdim=True)
    return ((scores - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)).half()


class SelectionCollator:
    """Collate clips for the tokenizer with `importance_scores` (B, N), which choose its tokens instead of its scorer.

    All draws come from the clips' own `noise`, so they do not depend on the worker, and a resumed run draws the same. The data set must
    have this collator's `noise_size`: `clips.noise_size = collator.noise_size`.

    Args:
        selection: names of `SCORES`, at least one; others raise ValueError. Each batch draws one. "learned" adds no scores.
        grid_size: tokens (t, h, w) of a clip.
    """

    def __init__(self, selection: Sequence[str], grid_size: GridSize):
        unknown = sorted(set(selection) - set(SCORES))
        if unknown or not selection:
            raise ValueError(f"Got selection={list(selection)}, expected names of {list(SCORES)}: correct them.")
        self.selection = list(selection)
        self.grid_size = grid_size
        draws = len(selection) > 1 or SCORES[selection[0]].needs == "noise"
        self.noise_size = math.prod(grid_size) + 1 if draws else 0  # a number for each token, and one for the choice

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        batch = default_data_collator(items)
        noise = batch.pop("noise", torch.zeros(len(items), 0))
        if noise.shape[1] != self.noise_size:
            raise ValueError(
                f"Got clips with {noise.shape[1]} random numbers, expected {self.noise_size} for selection={self.selection}: set "
                "clips.noise_size to the collator's."
            )
        name = self.selection[int(noise[0, -1] * len(self.selection)) if self.noise_size else 0]
        if name != "learned":
            pixels = batch["pixel_values_videos"]
            batch["importance_scores"] = score_tokens(name, pixels, self.grid_size, noise=noise[:, :-1])
        return batch
