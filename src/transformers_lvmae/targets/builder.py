"""Turn a batch of clips into the inputs of `LVMAEForPreTraining.forward`: targets, and the tokens that the decoder reconstructs.

Bytes become pixels in [0, 1], once. The frozen tokenizer turns pixels into codes or latents, and into scores. Scores and noise become
the decoder mask. Targets and scores that the batch already has, from a cache, are not computed.
"""

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers.utils.generic import maybe_autocast

from ..models.fsq import indices_to_codes
from ..models.masking import adaptive_decoder_mask
from ..models.token_scores import compact_scores, tokenizer_view
from .flow import FlowEstimator, flow_estimator
from .pixels import PixelScale
from .token_scores import SCORES


Batch = dict[str, Any]


class TargetBuilder:
    """Make targets and decoder masks for batches of clips. Pre-training, the cache, pictures and reports all use it.

    Args:
        config: the autoencoder's `LVMAEConfig`. `target_type`, `decoder_mask` and the two decoder ratios are read.
        processor: the [`LVMAEVideoProcessor`] that made the clips. Not needed if nothing is made from pixels.
        tokenizer ([`FSQMagViTModel`], *optional*): makes targets and learned scores. It is frozen and moved to `device`.
        embed: the autoencoder's patch embedding, normalized clips -> (B, N, size), for `decoder_mask="everest"`. Without it,
            EVEREST compares the pixels of the tokens.
        raft_weights: as in [`flow_estimator`].
        device: where the batches are.

    Raises:
        ValueError: tokenizer and autoencoder differ in token grid or levels, or there is a tokenizer and no processor.
    """

    def __init__(
        self,
        config: Any,
        processor: Any = None,
        tokenizer: Any = None,
        embed: Callable[[torch.Tensor], torch.Tensor] | None = None,
        raft_weights: str | None = None,
        device: torch.device | str = "cpu",
    ):
        self.config, self.processor, self.tokenizer = config, processor, tokenizer
        self.embed, self.raft_weights, self.device = embed, raft_weights, device
        if tokenizer is not None:
            check_tokenizer(config, tokenizer.config)
            self.scale = PixelScale(processor, device)
            tokenizer.requires_grad_(False).eval().to(device)

    @functools.cached_property
    def scale(self) -> PixelScale:
        """The processor's mean, deviation and scale, on `device`."""
        return PixelScale(self.processor, self.device)

    @functools.cached_property
    def flow(self) -> FlowEstimator:
        """The estimator of optical flow. It writes its name to the log."""
        return flow_estimator(self.raft_weights)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        """Return a batch as `LVMAEForPreTraining.forward` takes it.

        Args:
            batch: `pixel_values_videos` (B, T, C, H, W) or `visible_tubelets`, uint8 or normalized; `bool_masked_pos` (B, N);
                and optionally
                - `code_indices` (B, N), `target_codes` or `target_latents` (B, N, channels): targets. Those that
                  `target_type` does not use are dropped.
                - `importance_scores` (B, N): scores of any kind, by which tokens are chosen.
                - `noise` (B, N) in [0, 1): decides random tokens and ties, so that a clip's mask depends on the clip alone.
                - `bool_decoded_pos` (B, N): the decoder mask itself.

        Raises:
            ValueError: targets or scores are missing, and there is no tokenizer, processor or whole clip to make them from.
        """
        with self.full_precision():
            return self._build(dict(batch))

    def full_precision(self) -> AbstractContextManager:
        """Switch autocast off: targets and scores are the same with and without mixed precision, so those of a cache are too.

        bfloat16 would give 6 % of the tokens another code (tests/targets/test_cache.py). A GPU's convolutions take TF32 in any case.
        """
        return maybe_autocast(torch.device(self.device).type, enabled=False)

    def _build(self, batch: Batch) -> Batch:
        config = self.config
        clips = ClipViews(self, batch.get("pixel_values_videos"))
        names = ("noise", "importance_scores", "code_indices", "target_codes", "target_latents")
        given = {name: batch.pop(name, None) for name in names}
        for name in batch.keys() & {"pixel_values_videos", "visible_tubelets"}:
            if not batch[name].is_floating_point():
                batch[name] = self.scale.normalize(batch[name])
        if config.target_type == "latents":
            batch["target_latents"] = self._latents(given, clips)
        elif config.target_type != "pixels":
            batch["target_codes"] = self._codes(given, clips)
        if config.decoder_mask != "none" and "bool_decoded_pos" not in batch:
            noise = given["noise"]
            if noise is None:
                like = batch["bool_masked_pos"] if clips.raw is None else clips.raw
                noise = torch.rand(len(like), math.prod(clips.grid_size), device=like.device)
            chosen, drawn = config.decoder_token_counts(noise.shape[1])
            scores = compact_scores(self._scores(given, clips, noise))
            batch["bool_decoded_pos"] = adaptive_decoder_mask(scores, chosen, drawn, noise)
            batch["num_decoded"] = chosen + drawn
        return batch

    def _codes(self, given: Batch, clips: "ClipViews") -> torch.Tensor:
        if given["code_indices"] is not None:
            return indices_to_codes(given["code_indices"], self.config.levels)
        return clips.tokens("target_codes").codes if given["target_codes"] is None else given["target_codes"]

    def _latents(self, given: Batch, clips: "ClipViews") -> torch.Tensor:
        if given["target_latents"] is not None:
            return given["target_latents"]
        latents = clips.tokens("target_latents").latents
        return self.tokenizer.quantizer.bounded_latents(latents).flatten(1, 3)

    def _scores(self, given: Batch, clips: "ClipViews", noise: torch.Tensor) -> torch.Tensor:
        """Return the scores (B, N) of `config.decoder_mask`: the batch's own, or made from its clips or its noise."""
        name = self.config.decoder_scores
        needs, function = SCORES[name]
        if needs == "noise":
            return function(noise, clips.grid_size)
        if given["importance_scores"] is not None:
            return given["importance_scores"]
        return clips.scores(name)


class ClipViews:
    """The clips of one batch as tokenizer and scores see them. Each view is computed at most once.

    `raw` are clips (B, T, C, H, W), uint8 or normalized, or None for a batch of visible tubelets.
    """

    def __init__(self, builder: TargetBuilder, raw: torch.Tensor | None):
        self.builder, self.raw = builder, raw
        self._tokens: Any = None

    @property
    def whole(self) -> torch.Tensor:
        """The clips; raises ValueError for a batch of visible tubelets."""
        if self.raw is None:
            raise ValueError(
                "Got a batch with visible_tubelets alone and without all targets and scores, expected pixel_values_videos to make "
                "them from: send whole clips (CachedVideoClips(whole_clips=True)) or cache what is missing."
            )
        return self.raw

    @property
    def grid_size(self) -> tuple[int, int, int]:
        """Tokens (t, h, w) of the clips, which may have any size; for visible tubelets, those of the config."""
        config = self.builder.config
        if self.raw is None:
            return config.grid_size
        frames, _, height, width = self.raw.shape[1:]
        return frames // config.tubelet_size, height // config.patch_size, width // config.patch_size

    @functools.cached_property
    def pixels(self) -> torch.Tensor:
        """Clips (B, T, C, H, W) in [0, 1]."""
        return self.builder.scale.restore(self.whole)

    def tokens(self, wanted: str) -> Any:
        """Return the tokenizer's output for these clips. Without tokenizer, raise ValueError that names the missing part, `wanted`."""
        tokenizer, config = self.builder.tokenizer, self.builder.config
        if tokenizer is None:
            raise ValueError(
                f"Got a batch without {wanted} and no video_tokenizer, expected one of them for target_type={config.target_type!r} "
                f"with decoder_mask={config.decoder_mask!r}: pass video_tokenizer=FSQMagViTModel.from_pretrained(...), train on a "
                "target cache (it holds codes and scores, and no latents), or choose a decoder_mask that needs no scores."
            )
        if self._tokens is None:
            scale = tokenizer.config.patch_size / config.patch_size
            self._tokens = tokenizer.encode(tokenizer_view(self.pixels, scale))
        return self._tokens

    def scores(self, name: str) -> torch.Tensor:
        """Return the scores `name` (B, N), made by the tokenizer or from the pixels."""
        builder, (needs, function) = self.builder, SCORES[name]
        if needs == "tokenizer":
            return self.tokens("importance_scores").importance_scores
        if name == "everest" and builder.embed is not None:
            return function(builder.scale.normalize(self.whole), self.grid_size, builder.embed)
        options = (builder.flow,) if name == "flow" else ()
        return function(self.pixels, self.grid_size, *options)


def check_tokenizer(config: Any, tokenizer_config: Any) -> None:
    """Raise ValueError unless a tokenizer has the token grid and the levels of an autoencoder's config."""
    slots = math.ceil(config.num_frames / tokenizer_config.tubelet_size)
    tokenizer_grid = (slots, *tokenizer_config.grid_size[1:])
    if tokenizer_grid != config.grid_size or config.num_frames % tokenizer_config.tubelet_size:
        raise ValueError(
            f"Got a tokenizer with a grid of {tokenizer_grid} tokens and a model with {config.grid_size} for clips of "
            f"{config.num_frames} frames, expected the same: load the tokenizer with another image_size or build the "
            "model with another tubelet_size or patch_size."
        )
    if config.target_type != "pixels" and tuple(config.levels) != tuple(tokenizer_config.levels):
        raise ValueError(
            f"Got a tokenizer with levels {tuple(tokenizer_config.levels)} and a model with {tuple(config.levels)}, "
            "expected the same: build the model with the tokenizer's levels."
        )
