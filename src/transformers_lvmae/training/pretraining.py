"""The masked autoencoder's Trainer."""

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import default_data_collator

from ..targets.builder import TargetBuilder
from .arguments import LVMAEPreTrainingArguments
from .base import VideoTrainer


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
    checkpoint, no optimizer and no DDP wrapper. Logs also have the loss of each channel (`loss_channel_0`, ...).

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
        loss, outputs = super().compute_loss(model, self.target_builder(inputs), True, num_items_in_batch)
        if model.training:
            # DataParallel puts the losses of its replicas in a row.
            losses = outputs["channel_losses"].view(max(1, self.args.n_gpu), -1).mean(dim=0)
            self._parts.add({f"loss_channel_{number}": value for number, value in enumerate(losses.unbind())})
        return (loss, outputs) if return_outputs else loss


def unsharded(parameter: torch.Tensor) -> torch.Tensor:
    """Return a parameter as a whole tensor, also if FSDP2 shards it."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
