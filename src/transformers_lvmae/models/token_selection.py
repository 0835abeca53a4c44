"""Choose the tokens of a clip that the encoder looks at: the most important ones, and a share at random.

The paper uses importance for the decoder alone. Here it also makes fine-tuning and inference cheaper: a classifier that looks at a quarter of
the tokens computes a quarter of the layers and a sixteenth of the attention. The scores cost little: two convolutions, or a difference of
pixels.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers.utils.generic import maybe_autocast

from .configuration_lvmae import LVMAEConfig
from .masking import adaptive_decoder_mask, topk_mask, tube_visible_count
from .token_scores import (
    NOISE_SCORES,
    PIXEL_SCORES,
    GridSize,
    TokenScorer,
    compact_scores,
    tokenizer_view,
)


WINDOW_SLOTS = 16  # scored at a time, so that memory does not grow with the clip


def fixed_noise(count: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Return numbers in [0, 1) that look random and are always the same: float32 (count,).

    In evaluation they take the place of random numbers, so that the draw is the same for every clip, machine and exported graph.
    """
    numbers = torch.arange(1, count + 1, device=device)
    return (numbers * numbers * 7919 + numbers * 104729) % 1_000_003 / 1_000_003


def keep_above(scores: torch.Tensor, threshold: float, count: int, shared: bool) -> torch.Tensor:
    """Keep the tokens whose score reaches the threshold, and each clip's best: bool (B, N), of scores (B, N).

    Args:
        count: a clip keeps at most this number, at least 1; the best ones.
        shared: the clips of the batch keep B times this number together, and a clip may keep more.
    """
    values = scores.masked_fill(scores < threshold, float("-inf"))
    values = values.scatter(1, scores.argmax(dim=1, keepdim=True), float("inf"))
    best = topk_mask(values.flatten(), len(values) * count).view_as(values) if shared else topk_mask(values, count)
    return best & (values > float("-inf"))


def check_scorer(config: LVMAEConfig) -> None:
    """Raise ValueError if a model chooses tokens by a scorer that has random weights."""
    if config.token_keep_ratio < 1 and config.token_selection == "learned" and not config.scorer_is_trained:
        raise ValueError(
            f"Got token_keep_ratio={config.token_keep_ratio} and token_selection='learned', expected a trained scorer: give a tokenizer "
            "(--tokenizer of finetune.py, or model.set_token_scorer), or choose another token_selection."
        )


def check_processor(config: LVMAEConfig, processor: Any) -> None:
    """Raise ValueError if a model that chooses tokens by pixels does not know how a processor normalizes them. No processor is no error."""
    if processor is None or config.token_keep_ratio == 1 or config.token_selection in NOISE_SCORES:
        return
    names = ("image_mean", "image_std")
    got, expected = ([list(getattr(owner, name) or []) for name in names] for owner in (processor, config))
    scaled = processor.do_normalize and processor.do_rescale and math.isclose(processor.rescale_factor, 1 / 255)
    if got != expected or not scaled:
        raise ValueError(
            f"Got a processor with image_mean and image_std {got}, do_rescale={processor.do_rescale} by {processor.rescale_factor} and "
            f"do_normalize={processor.do_normalize}, expected clips divided by 255 and normalized by the model's {expected}, from which "
            "it restores pixels to choose tokens: make the processor with processor_for(model.config), or load the model with image_mean=... "
            "and image_std=..."
        )


class LVMAETokenSelector(nn.Module):
    """Choose tokens by `config.token_selection`. Its only weights are the learned scorer's, which are frozen.

    In training, draws are random, and with a threshold the clips of a batch share its budget. In evaluation, draws are fixed
    ([`fixed_noise`]), and each clip has a budget of its own.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, config: LVMAEConfig):
        super().__init__()
        self.config = config
        self.scorer: TokenScorer | None = None
        if config.token_selection == "learned":
            sizes = config.scorer_patch_size, config.scorer_hidden_size
            self.scorer = TokenScorer(config.num_channels, config.tubelet_size, *sizes).requires_grad_(False)
        for name, values in self.pixel_statistics().items():
            self.register_buffer(name, values, persistent=False)

    def pixel_statistics(self) -> dict[str, torch.Tensor]:
        """Return mean and deviation by which pixels were standardized: (C, 1, 1)."""
        statistics = {"mean": self.config.image_mean, "deviation": self.config.image_std}
        return {name: torch.tensor(values).view(-1, 1, 1) for name, values in statistics.items()}

    @torch.no_grad()
    def forward(
        self,
        clips: torch.Tensor,
        importance_scores: torch.Tensor | None = None,
        dropped: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the tokens that are kept: bool (B, N). Every clip keeps the same number, unless `config.token_score_threshold` is set.

        Args:
            clips: (B, T, C, H, W), uint8, or standardized by `config.image_mean` and `config.image_std`.
            importance_scores: (B, N), used instead of the scores of `config.token_selection`; higher = keep first.
            dropped: bool (B, N), True = in a tube that is dropped, a share `config.tube_drop_ratio`. Such tokens are never kept, and the
                number of kept tokens falls by the same share.
            noise: (B, N) in [0, 1), decides random tokens and ties.
        """
        config, batch_size, grid_size = self.config, clips.shape[0], self.grid_size(clips)
        tokens = candidates = math.prod(grid_size)
        noise = self.noise(clips) if noise is None else noise
        scores = self.scores(clips, noise) if importance_scores is None else importance_scores
        if tuple(scores.shape) != (batch_size, tokens):
            raise ValueError(
                f"Got importance_scores of shape {tuple(scores.shape)}, expected {(batch_size, tokens)} (clips, tokens of a clip): "
                "score the clip's own grid."
            )
        torch._assert_async(scores.isfinite().all(), "Expected importance_scores that are finite: correct them.")
        if config.token_score_threshold is None:
            scores = compact_scores(scores)
        if dropped is not None:
            candidates = tube_visible_count(grid_size, config.tube_drop_ratio)
            scores, noise = (values.masked_fill(dropped, float("-inf")) for values in (scores, noise))
        counts = config.kept_token_counts(candidates)
        if config.token_score_threshold is None:
            return adaptive_decoder_mask(scores, *counts, noise)
        return keep_above(scores, config.token_score_threshold, sum(counts), shared=self.training)

    def grid_size(self, clips: torch.Tensor) -> GridSize:
        """Return the tokens (t, h, w) of clips (B, T, C, H, W)."""
        frames, _, height, width = clips.shape[1:]
        patch_size = self.config.patch_size
        return frames // self.config.tubelet_size, height // patch_size, width // patch_size

    @torch.no_grad()
    def scores(self, clips: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return the scores (B, N) by which tokens are chosen, float32; higher = keep first.

        Args:
            noise: (B, N) in [0, 1), for `"random"` and `"uniform"`.
        """
        name, grid_size = self.config.token_selection, self.grid_size(clips)
        if name in NOISE_SCORES:
            return NOISE_SCORES[name](self.noise(clips) if noise is None else noise, grid_size)
        # A window starts with the slot before it, from which its first slot differs.
        slots, pieces = grid_size[0], []
        for first in range(0, slots, WINDOW_SLOTS):
            before = min(first, 1)
            frames = slice(
                (first - before) * self.config.tubelet_size, (first + WINDOW_SLOTS) * self.config.tubelet_size
            )
            pieces.append(self._window_scores(self._unit_pixels(clips[:, frames]))[:, before:])
        return torch.cat(pieces, dim=1).flatten(1)

    def noise(self, clips: torch.Tensor) -> torch.Tensor:
        """Return numbers in [0, 1) for the tokens of clips: float32 (B, N)."""
        tokens = math.prod(self.grid_size(clips))
        if self.training:
            return torch.rand(clips.shape[0], tokens, device=clips.device)
        return fixed_noise(tokens, clips.device).expand(clips.shape[0], -1)

    def _unit_pixels(self, clips: torch.Tensor) -> torch.Tensor:
        """Return clips in [0, 1], float32."""
        if not clips.is_floating_point():
            return clips.float() / 255
        return (clips.float() * self.deviation.float() + self.mean.float()).clamp(0, 1)

    def _window_scores(self, clips: torch.Tensor) -> torch.Tensor:
        """Score clips in [0, 1]: (B, t, h, w). All is float32, because differences of rounded features are noise."""
        if self.scorer is None:
            grid_size = self.grid_size(clips)
            return PIXEL_SCORES[self.config.token_selection](clips, grid_size).unflatten(1, grid_size)
        clips = tokenizer_view(clips, self.config.scorer_patch_size / self.config.patch_size).transpose(1, 2)
        weights = {name: weight.float() for name, weight in self.scorer.named_parameters()}
        with maybe_autocast(clips.device.type, enabled=False):
            return self.scorer.distances(torch.func.functional_call(self.scorer, weights, (clips,)))
