"""Scores of tokens by name: those of `models/token_scores.py`, the tokenizer's, and optical flow.

A score ranks the tokens of a clip, the highest first. `DECODER_MASKS` in the config names the score of each decoder mask.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from transformers import default_data_collator

from ..models.token_scores import NOISE_SCORES, PIXEL_SCORES, GridSize, repeat_first, split_tubes
from .flow import FlowEstimator, flow_estimator


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
    scores = split_tubes(repeat_first(flow, clips), grid_size).mean(dim=-1).flatten(1)
    return scores / scores.sum(dim=1, keepdim=True).clamp(min=1e-12)


class TokenScore(NamedTuple):
    """The input of a score, and its function: of (clips, grid_size) or (noise, grid_size); None for the tokenizer's scores."""

    needs: Literal["tokenizer", "pixels", "noise"]
    function: Any = None


SCORES = {
    "learned": TokenScore("tokenizer"),  # `FSQMagViTModel.encode`
    **{name: TokenScore("noise", function) for name, function in NOISE_SCORES.items()},
    **{name: TokenScore("pixels", function) for name, function in PIXEL_SCORES.items()},
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
