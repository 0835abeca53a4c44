"""The classifier's Trainer."""

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction

from ..evaluation.accuracy import topk_accuracies
from ..models.masking import gather_tubelets, mask_to_indices, split_tubelets
from ..models.token_selection import LVMAETokenSelector, check_processor, check_scorer
from ..targets.pixels import PixelScale
from .arguments import LVMAEClassificationArguments
from .averaging import AveragingTrainer
from .learning_rates import layer_factor
from .mixing import ClipMixing


class LVMAEClassificationTrainer(AveragingTrainer):
    """Fine-tunes [`LVMAEForVideoClassification`] with layer-wise learning rates (`LVMAEClassificationArguments`).

    Pixels may be uint8 ([`ByteVideoClips`], [`ChosenVideoClips`]) and are then normalized on the device, so that a worker sends a quarter of
    the bytes. A token scorer in the model is frozen.

    In training, labels become probabilities. MixUp or CutMix mixes the clips of a batch on the device, and their labels with them.
    The draws are torch's own, whose state Trainer's checkpoints keep. A share `label_smoothing_factor` of each label is spread
    over all classes. In evaluation, loss and metrics use plain labels.

    `evaluate()` reports top-1 and top-5 accuracy unless `compute_metrics` is given. For a model with label sets it reports them for each
    set and for all sets at once (`topk_accuracies`). With `ema_decay` above 0 the averaged weights are evaluated and saved.

    Raises:
        ValueError: a processor that the model cannot choose tokens with ([`check_processor`]); a batch of one clip, or of tubelets, to
            mix; averaged weights under DeepSpeed or FSDP.
    """

    args: LVMAEClassificationArguments
    training_file = "averaged_weights.pt"

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("compute_metrics", self._accuracies)
        super().__init__(*args, **kwargs)
        self.label_smoother = None  # transformers' smoother also changes the evaluation loss, and takes no mixed labels
        alphas = self.args.mixup_alpha, self.args.cutmix_alpha
        repeats = getattr(self.train_dataset, "num_clips", 1)
        self.mixing = ClipMixing(*alphas, repeats) if any(alphas) else None
        self._scale: PixelScale | None = None
        for module in self.model.modules():
            if isinstance(module, LVMAETokenSelector):
                module.requires_grad_(False)  # an adapter of peft trains all that it saves
                check_processor(module.config, self.processing_class)
                check_scorer(module.config)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if inputs[pixels_of(inputs)].dtype == torch.uint8:
            if self._scale is None:
                self._scale = PixelScale(self.processing_class, self.args.device)
            inputs = normalize_and_erase(inputs, self._scale)
        return inputs

    def compute_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor], *args, **kwargs) -> Any:
        if model.training and (self.mixing is not None or self.args.label_smoothing_factor > 0):
            inputs = self.soften(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def soften(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Mix the clips of a batch and turn its `labels`, class ids (B,) or (B, sets), into probabilities (B, num_labels)."""
        config = self.accelerator.unwrap_model(self.model).config
        config.problem_type = config.problem_type or "single_label_classification"
        sizes = [part.stop - part.start for part in config.label_slices.values()] or [config.num_labels]
        labels = soft_labels(inputs["labels"], sizes, self.args.label_smoothing_factor)
        if self.mixing is None:
            return {**inputs, "labels": labels}
        clips = inputs.get("pixel_values_videos")
        if clips is None:
            raise ValueError(
                "Got visible_tubelets with mixup_alpha or cutmix_alpha, expected whole clips to mix: use ByteVideoClips or set both to 0."
            )
        if len(clips) == 1 == self.args.train_batch_size:  # not an epoch's last batch
            raise ValueError(
                "Got batches of one clip with mixup_alpha or cutmix_alpha, expected two clips a device to mix: raise "
                "per_device_train_batch_size or set both to 0."
            )
        clips, shares = self.mixing(clips)
        return {**inputs, "pixel_values_videos": clips, "labels": shares @ labels}

    def _accuracies(self, prediction: EvalPrediction) -> dict[str, float]:
        label_sets = self.accelerator.unwrap_model(self.model).config.label_sets
        return topk_accuracies(logits_of(prediction), np.asarray(prediction.label_ids), label_sets)

    def learning_rate_of(self, name: str) -> float:
        depth = self.accelerator.unwrap_model(self.model).config.num_hidden_layers
        return self.args.learning_rate * layer_factor(name, depth, self.args.layer_decay)


def pixels_of(inputs: dict[str, Any]) -> str:
    """Return the name of a batch's pixels."""
    return "visible_tubelets" if "visible_tubelets" in inputs else "pixel_values_videos"


def normalize_and_erase(inputs: dict[str, Any], scale: PixelScale) -> dict[str, Any]:
    """Return a batch with normalized pixels, from uint8.

    Args:
        inputs: `pixel_values_videos` (B, T, C, H, W) of [`ByteVideoClips`], or `visible_tubelets` (B, V, tubelet_size, C, patch_size,
            patch_size) and `bool_masked_pos` (B, N) of [`ChosenVideoClips`]; and optionally `erasing_noise` (B, C, H, W).
    """
    name = pixels_of(inputs)
    pixels = scale.normalize(inputs[name])
    if "erasing_noise" in inputs:
        noise = inputs["erasing_noise"].unsqueeze(1)
        if name == "visible_tubelets":  # every time slot has the same noise
            patches = split_tubelets(noise, 1, pixels.shape[-1])
            positions = mask_to_indices(~inputs["bool_masked_pos"], "visible positions", pixels.shape[1])
            noise = gather_tubelets(patches, positions % patches[0, 0, :, :, 0, 0, 0, 0].numel())
        pixels = torch.where(noise.isnan(), pixels, noise)
    kept = {key: value for key, value in inputs.items() if key != "erasing_noise"}
    return {**kept, name: pixels}


def soft_labels(labels: torch.Tensor, sizes: list[int], smoothing: float) -> torch.Tensor:
    """Turn class ids (B,), or (B, sets) of label sets of `sizes` classes, into probabilities (B, sum of sizes).

    In each set the share `smoothing` of a row is spread evenly over all classes.
    """
    columns = zip(labels.view(len(labels), -1).unbind(dim=1), sizes)
    parts = [nn.functional.one_hot(column, size) * (1 - smoothing) + smoothing / size for column, size in columns]
    return torch.cat(parts, dim=1)


def logits_of(prediction: EvalPrediction) -> np.ndarray:
    """Return the logits (clips, classes) that the trainer collected. Its predictions may also hold hidden states."""
    return prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
