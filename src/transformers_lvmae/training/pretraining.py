"""The masked autoencoder's Trainer."""

import functools
import math
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import default_data_collator

from ..models.fsq import indices_to_codes
from ..models.masking import adaptive_decoder_mask, topk_mask, uniform_decoder_mask
from ..targets.pixels import PixelScale, compact_scores, tokenizer_view
from ..targets.scores import FlowEstimator, everest, flow_estimator, frame_difference, optical_flow
from .arguments import LVMAEPreTrainingArguments
from .base import VideoTrainer


def collate_masked_clips(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch with the number of its visible tokens, counted in the worker, so that no accelerator has to be asked for it."""
    batch = default_data_collator(items)
    if "bool_masked_pos" in batch:
        batch["num_visible"] = int((~batch["bool_masked_pos"][0]).sum())
    return batch


class LVMAEPreTrainer(VideoTrainer):
    """Pre-trains [`LVMAEForPreTraining`] with a masked decoder (`LVMAEPreTrainingArguments`).

    What the decoder predicts and where is the config's: `target_type`, `decoder_mask` and its two ratios. The frozen tokenizer
    belongs to the trainer, not to the model: it is in no checkpoint, no optimizer and no DDP wrapper, and it runs only where a batch
    does not bring what is needed of it (a cache), which needs no more of its clips than `visible_tubelets`. Logs have the loss of
    each channel besides (`loss_channel_0`, ...).

    Pixels may come as uint8: they are normalised on the device, so that a worker sends a quarter of the bytes.

    Args:
        video_tokenizer ([`FSQMagViTModel`], *optional*): makes targets and importance scores from each batch. Without it batches
            must hold them, or the config must ask for none: `target_type="pixels"` with a `decoder_mask` that is not adaptive.
        kwargs: as `Trainer`. `processing_class` must be the processor that made the clips: the tokenizer, motion and flow see them
            un-normalised.

    Raises:
        ValueError: tokenizer and model differ in token grid or levels, `raft_weights` for another mask than flow, or (with the
            first batch) no source of targets or scores.
    """

    args: LVMAEPreTrainingArguments
    processing_class: Any

    def __init__(self, *args, video_tokenizer: Any = None, **kwargs):
        super().__init__(*args, **kwargs)
        if self.data_collator is default_data_collator:
            self.data_collator = collate_masked_clips
        self.can_return_loss = True  # whatever a batch holds, the loss needs no labels
        self.video_tokenizer = video_tokenizer
        if video_tokenizer is not None:
            self._check_tokenizer(self.model_config, video_tokenizer.config)
            video_tokenizer.requires_grad_(False).eval().to(self.args.device)
        if self.args.raft_weights is not None and self.model_config.decoder_mask != "flow":
            raise ValueError(
                f"Got raft_weights with config.decoder_mask={self.model_config.decoder_mask!r}, expected them for 'flow' alone: "
                "leave them out or change the mask."
            )

    @property
    def model_config(self) -> Any:
        """The config of the model, however it is wrapped."""
        return self.accelerator.unwrap_model(self.model).config

    def _check_tokenizer(self, config: Any, tokenizer_config: Any) -> None:
        slots = -(-config.num_frames // tokenizer_config.tubelet_size)
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
        if self.processing_class is None:
            raise ValueError(
                "Got a video_tokenizer without processing_class, expected the processor that made the clips (its mean and "
                "deviation turn them back into pixels): pass LVMAEVideoProcessor."
            )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        loss, outputs = super().compute_loss(model, self.add_targets(inputs), True, num_items_in_batch)
        if model.training:
            # DataParallel puts those of its replicas in a row.
            losses = outputs["channel_losses"].view(max(1, self.args.n_gpu), -1).mean(dim=0)
            self._parts.add({f"loss_channel_{number}": value for number, value in enumerate(losses.unbind())})
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def add_targets(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch with what `LVMAEForPreTraining.forward` needs: targets and the decoder mask.

        What a batch brings is taken as it is: `importance_scores` (B, N), of whatever kind, for the masks that go by scores;
        `target_codes` (B, N, channels), or integer `code_indices` (B, N), for codes and levels; `target_latents` (B, N, channels),
        bounded. What this run does not need of them is left out. `noise` (B, N) settles the random part of the decoder mask, so that a
        clip's mask depends on the clip alone. Scores of either source choose tokens in float16 (`tokens.compact_scores`), as a
        cache keeps them.
        """
        config, inputs = self.model_config, self.unpack(inputs)
        noise, scores = inputs.pop("noise", None), inputs.pop("importance_scores", None)
        cached = {name: inputs.pop(name, None) for name in ("target_codes", "target_latents")}
        targets = cached["target_latents" if config.target_type == "latents" else "target_codes"]
        masked = config.decoder_mask != "none" and "bool_decoded_pos" not in inputs
        needs_scores = masked and scores is None and config.decoder_mask in ("adaptive", "adaptive_random")
        needs_targets = targets is None and config.target_type != "pixels"
        if needs_scores or needs_targets:
            if self.video_tokenizer is None:
                raise ValueError(_missing(config, needs_targets, has_codes=cached["target_codes"] is not None))
            tokens = self.video_tokenizer.encode(self.tokenizer_view(_whole_clips(inputs)))
            scores = tokens.importance_scores if needs_scores else scores
            if needs_targets and config.target_type == "latents":
                targets = self.video_tokenizer.quantizer.bounded_latents(tokens.latents).flatten(1, 3)
            elif needs_targets:
                targets = tokens.codes
        if config.target_type != "pixels" and targets is not None:
            inputs["target_codes"] = targets
        if masked:
            mask = self._decoder_mask(inputs, scores, noise)
            inputs["bool_decoded_pos"], inputs["num_decoded"] = mask, sum(config.decoder_token_counts(mask.shape[1]))
        return inputs

    def _decoder_mask(
        self, inputs: dict[str, torch.Tensor], scores: torch.Tensor | None, noise: torch.Tensor | None
    ) -> torch.Tensor:
        config, clips = self.model_config, inputs.get("pixel_values_videos")
        grid_size = config.grid_size if clips is None else self._patch_embeddings.grid_size(clips)
        if noise is None:
            pixels = inputs["visible_tubelets"] if clips is None else clips
            noise = torch.rand(pixels.shape[0], math.prod(grid_size), device=pixels.device)
        important, drawn = config.decoder_token_counts(noise.shape[1])
        if config.decoder_mask == "random":
            return topk_mask(noise, drawn)
        if config.decoder_mask == "uniform":
            return uniform_decoder_mask(noise, grid_size, important)
        if scores is None:
            scores = self.motion_scores(_whole_clips(inputs))
        return adaptive_decoder_mask(compact_scores(scores), important, drawn, noise)

    @torch.no_grad()
    def motion_scores(self, clips: torch.Tensor) -> torch.Tensor:
        """Scores (B, N) of the masks that go by motion without the tokenizer's help: `"motion"`, `"flow"`, `"everest"`.

        EVEREST compares the patch embeddings of the model as it is now.
        """
        kind, patches = self.model_config.decoder_mask, self._patch_embeddings
        grid_size = patches.grid_size(clips)
        if kind == "everest":
            weights = {name: unsharded(weight) for name, weight in patches.named_parameters()}
            return everest(clips, grid_size, lambda clips: torch.func.functional_call(patches, weights, (clips,)))
        pixels = self.raw_pixels(clips)
        return frame_difference(pixels, grid_size) if kind == "motion" else optical_flow(pixels, grid_size, self.flow)

    @property
    def _patch_embeddings(self) -> Any:
        return self.accelerator.unwrap_model(self.model).lvmae.embeddings.patch_embeddings

    @functools.cached_property
    def flow(self) -> FlowEstimator:
        """What estimates optical flow for `decoder_mask="flow"`; the log says which it is."""
        return flow_estimator(self.args.raft_weights)

    @functools.cached_property
    def pixel_scale(self) -> PixelScale:
        """Between bytes, normalised pixels and [0, 1], on this process's device."""
        return PixelScale(self.processing_class, self.args.device)

    def unpack(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What workers send in few bytes as the model takes it: bytes as normalised pixels, indices as codes."""
        inputs = dict(inputs)
        for name in inputs.keys() & {"pixel_values_videos", "visible_tubelets"}:
            if not inputs[name].is_floating_point():
                inputs[name] = self.pixel_scale.normalize(inputs[name])
        if "code_indices" in inputs:
            inputs["target_codes"] = indices_to_codes(inputs.pop("code_indices"), self.model_config.levels)
        return inputs

    def raw_pixels(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips in [0, 1], as they were before `processing_class` normalised them; raises ValueError without it."""
        if self.processing_class is None:
            raise ValueError(
                f"Got no processing_class for decoder_mask={self.model_config.decoder_mask!r}, expected the processor that made "
                "the clips (its mean and deviation turn them back into pixels): pass LVMAEVideoProcessor."
            )
        return self.pixel_scale.restore(clips)

    def tokenizer_view(self, clips: torch.Tensor) -> torch.Tensor:
        """The same clip as the tokenizer knows it: in [0, 1], with its own pixels per token."""
        scale = self.video_tokenizer.config.patch_size / self.model_config.patch_size
        return tokenizer_view(self.raw_pixels(clips), scale)


def unsharded(parameter: torch.Tensor) -> torch.Tensor:
    """The whole of a parameter that FSDP2 shares out, for a use outside of the layer that puts it together; any other as it is."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _whole_clips(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The clips of a batch; raises ValueError where only their visible tubelets came."""
    if "pixel_values_videos" not in inputs:
        raise ValueError(
            "Got a batch with visible_tubelets alone and without all targets and scores, expected pixel_values_videos to make them "
            "from: send whole clips (CachedVideoClips(whole_clips=True)) or cache what is missing."
        )
    return inputs["pixel_values_videos"]


def _missing(config: Any, needs_targets: bool, has_codes: bool) -> str:
    """Why a batch without a tokenizer cannot be trained on."""
    remedy = "pass video_tokenizer=FSQMagViTModel.from_pretrained(...)"
    if needs_targets and config.target_type == "latents":
        got = "target_codes alone" if has_codes else "no target_latents"
        return (
            f"Got a batch with {got} and no video_tokenizer, expected one of target_latents and video_tokenizer for "
            f"target_type='latents', because codes are rounded: {remedy} or train on codes."
        )
    if needs_targets:
        return (
            "Got a batch without target_codes and no video_tokenizer, expected one of them for "
            f"target_type={config.target_type!r}: {remedy} or train on cached targets."
        )
    return (
        "Got a batch without importance_scores and no video_tokenizer, expected one of them for "
        f"decoder_mask={config.decoder_mask!r}: {remedy}, train on cached scores, or choose a mask that needs neither ('none' "
        "decodes every hidden token)."
    )


__all__ = ["LVMAEPreTrainer"]
