"""The masked autoencoder's Trainer."""

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import default_data_collator
from transformers.trainer_utils import EvalLoopOutput

from ..models.masking import gather_tokens, mask_to_indices
from ..targets.builder import TargetBuilder
from ..targets.explained_variance import ExplainedVariance, nearest_visible, squared_errors
from .arguments import LVMAEPreTrainingArguments
from .base import VideoTrainer, count_clips


def collate_masked_clips(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate clips and count their visible tokens, here in the worker, because an accelerator would have to wait for the count."""
    batch = default_data_collator(items)
    if "bool_masked_pos" in batch:
        batch["num_visible"] = int((~batch["bool_masked_pos"][0]).sum())
    return batch


class LVMAEPreTrainer(VideoTrainer):
    """Pre-trains [`LVMAEForPreTraining`] with a masked decoder (`LVMAEPreTrainingArguments`).

    The config says what the decoder predicts and where: `target_type`, `decoder_mask` and its two ratios. A [`TargetBuilder`] adds
    targets and decoder masks to each batch. The frozen tokenizer belongs to the builder and not to the model: it is in no
    checkpoint, no optimizer and no DDP wrapper. Logs also have the loss of each channel (`loss_channel_0`, ...), and
    the share of the targets' variance that is explained, in evaluation beyond three simple predictors (`targets/explained_variance.py`).
    Steps log two of these shares, and for codes and latents only, whose loss is the error.

    Pixels may be uint8 and are then normalized on the device, so that a worker sends a quarter of the bytes.

    Args:
        video_tokenizer ([`FSQMagViTModel`], *optional*): makes targets and importance scores for each batch. Without it, the
            batches must hold both (a target cache), or the config must need neither: `target_type="pixels"` with a `decoder_mask`
            that needs no learned scores.
        kwargs: as `Trainer`. `processing_class` must be the processor that made the clips, because tokenizer, motion and flow
            take pixels in [0, 1].

    Raises:
        ValueError: tokenizer and model differ in token grid or levels; `raft_weights` with another mask than flow; (at the first
            batch) targets or scores are missing and cannot be made.
    """

    args: LVMAEPreTrainingArguments
    processing_class: Any

    def __init__(self, *args, video_tokenizer: Any = None, **kwargs):
        super().__init__(*args, **kwargs)
        if self.data_collator is default_data_collator:
            self.data_collator = collate_masked_clips
        self._explained = {"train": ExplainedVariance(), "evaluation": ExplainedVariance()}
        self._counted: torch.Tensor | None = None  # bool, a value for each clip of the evaluated batch
        self.can_return_loss = True  # evaluation gives a loss although batches have no labels
        config, raft_weights = self.accelerator.unwrap_model(self.model).config, self.args.raft_weights
        if raft_weights is not None and config.decoder_mask != "flow":
            raise ValueError(f"Got raft_weights with decoder_mask={config.decoder_mask!r}, expected 'flow': drop them.")
        self.target_builder = TargetBuilder(
            config, self.processing_class, video_tokenizer, self.embed_patches, raft_weights, self.args.device
        )

    def embed_patches(self, clips: torch.Tensor) -> torch.Tensor:
        """Embed normalized clips with the model's current patch embedding: (B, T, C, H, W) -> (B, N, hidden_size)."""
        patches = self.accelerator.unwrap_model(self.model).lvmae.embeddings.patch_embeddings
        weights = {name: unsharded(weight) for name, weight in patches.named_parameters()}
        return torch.func.functional_call(patches, weights, (clips,))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        batch = self.target_builder(inputs)
        loss, outputs = super().compute_loss(model, batch, True, num_items_in_batch)
        if model.training:
            # DataParallel puts the losses of its replicas in a row.
            losses = outputs["channel_losses"].view(max(1, self.args.n_gpu), -1).mean(dim=0)
            self._parts.add({f"loss_channel_{number}": value for number, value in enumerate(losses.unbind())})
            counted, targets = outputs["bool_masked_pos"] & outputs["bool_decoded_pos"], targets_of(batch)
            if targets is not None and self.target_builder.config.target_type != "levels":
                self._explained["train"].add(losses.mean().expand(len(counted)), targets, counted)
        else:
            self._add_evaluated(batch, outputs)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _add_evaluated(self, batch: dict[str, Any], outputs: Any) -> None:
        """Compare the predictions of a batch with those of simple predictors."""
        model, explained = self.accelerator.unwrap_model(self.model), self._explained["evaluation"]
        masked, logits, clips = outputs["bool_masked_pos"], outputs["logits"], batch.get("pixel_values_videos")
        patches = model.lvmae.embeddings.patch_embeddings
        grid_size = model.config.grid_size if clips is None else patches.grid_size(clips)
        decoded = mask_to_indices(outputs["bool_decoded_pos"], "bool_decoded_pos", logits.shape[1])
        visible = mask_to_indices(~masked, "visible positions (~bool_masked_pos)")
        kept = torch.ones_like(masked[:, 0]) if self._counted is None else self._counted
        counted = masked.gather(1, decoded) & kept.unsqueeze(1)
        targets = targets_of(batch)
        wanted, seen = (model.gather_targets(clips, targets, tokens) for tokens in (decoded, visible))
        predicted = model.predicted_codes(logits) if model.config.target_type == "levels" else logits
        explained.add(squared_errors(predicted, wanted, counted), wanted, counted)
        copied = gather_tokens(seen, nearest_visible(decoded, visible, grid_size))
        explained.add_nearest(squared_errors(copied, wanted, counted))
        if targets is not None:
            chosen = masked & outputs["bool_decoded_pos"] & kept.unsqueeze(1)
            for clip_targets, clip_chosen in zip(targets, chosen):
                explained.add_neighbors(clip_targets, clip_chosen, grid_size)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch as [`VideoTrainer`] does; clips that fill up a process's last batch or cannot be read explain nothing."""
        count = count_clips(inputs)
        numbers = torch.arange(count, device=self.args.device) + count * self.args.process_index
        kept = torch.isin(numbers, self.accelerator.gather_for_metrics(numbers))
        readable = inputs.get("is_readable", torch.ones(count)).bool().to(self.args.device)
        self._counted = kept[readable] if readable.any() else readable
        try:
            return super().prediction_step(model, inputs, *args, **kwargs)
        finally:
            self._counted = None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        self._explained["evaluation"] = ExplainedVariance()
        output, prefix = super().evaluation_loop(*args, **kwargs), kwargs.get("metric_key_prefix", "eval")
        shares = self._explained["evaluation"].pop(self.accelerator)
        metrics = {**(output.metrics or {}), **{f"{prefix}_{name}": share for name, share in shares.items()}}
        return output._replace(metrics=metrics)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._explained["train"].pop(self.accelerator))
        super().log(logs, start_time)


def targets_of(batch: dict[str, Any]) -> torch.Tensor | None:
    """Return the codes or latents (B, N, channels) of a batch; None if the targets are pixels."""
    return batch.get("target_latents", batch.get("target_codes"))


def unsharded(parameter: torch.Tensor) -> torch.Tensor:
    """Return a parameter as a whole tensor, also if FSDP2 shards it."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
