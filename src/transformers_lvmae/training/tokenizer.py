"""The tokenizer's Trainer and its metrics."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure
from transformers import EvalPrediction, logging

from ..models.fsq import level_histograms, level_statistics
from ..models.masking import first_slot_and_topk_mask
from .arguments import FSQMagViTTrainingArguments
from .averaging import AveragingTrainer
from .perceptual_loss import PerceptualLoss
from .tokenizer_adversary import AdversarialLoss, Adversary, VideoDiscriminator


logger = logging.get_logger(__name__)


def peak_signal_to_noise_ratio(prediction: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
    """Return the PSNR of each clip in dB: two tensors (B, ...) in [0, 1] -> (B,). The prediction is clamped."""
    error = (prediction.clamp(0, 1).float() - clips.float()).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=1e-10).log10()


def structural_similarity(prediction: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
    """Return the SSIM of each clip, a mean over frames: two tensors (B, T, C, H, W) in [0, 1] -> (B,); clamps the prediction."""
    frames = (prediction.clamp(0, 1).float().flatten(0, 1), clips.float().flatten(0, 1))
    similarity: Any = structural_similarity_index_measure(*frames, data_range=1.0, reduction="none")
    return similarity.view(clips.shape[:2]).mean(dim=1)


KEPT_SHARES = (0.05, 0.1, 0.15, 0.25, 0.5)


class FSQMagViTTrainer(AveragingTrainer):
    """Train [`FSQMagViTModel`] on clips of one window (`FSQMagViTTrainingArguments`).

    The loss is the squared error and, if the arguments ask for them, a perceptual and an adversarial term (MAGVIT's recipe). Logs
    have every term without its weight. If a batch has `importance_scores` (B, N), they choose the tokens instead of the scorer's.

    Metrics of `evaluate()`, in addition to the loss at `config.keep_ratio`; PSNR (dB) and SSIM are means over clips:
    - `psnr`, `ssim`: reconstruction from all tokens;
    - `psnr_first_frame`, `ssim_first_frame`: a copy of each window's first frame, which a tokenizer must beat;
    - `psnr_kept`: reconstruction from the tokens that are kept in training, i.e. the first slot and the most important other
      tokens, a share `config.keep_ratio` of all; `psnr_kept_5`, ...: the same for shares of 5, 10, 15, 25 and 50 %;
    - `level_usage_0`, ...: for each FSQ channel, the share of its levels that occur among all tokens of all clips;
    - `level_entropy_0`, ...: the entropy of these levels in bits, at most log2 of their number.
    Of each clip, only these numbers and a histogram of its codes are kept.

    With `ema_decay` above 0, the averaged weights are evaluated and saved, also in checkpoints; `model` has the weights of the last
    step. A checkpoint's `tokenizer_training.pt` holds the discriminator, its optimizer and schedule, and the averaged and plain
    weights, so that a run is resumed exactly.

    Raises:
        ValueError: an adversarial term or averaged weights under DeepSpeed or FSDP, or resuming a checkpoint without their state.
    """

    args: FSQMagViTTrainingArguments
    model: Any
    training_file = "tokenizer_training.pt"

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("compute_metrics", self._mean_metrics)
        super().__init__(*args, **kwargs)
        self._checked_range = False
        self._pair: tuple[torch.Tensor, torch.Tensor] | None = None
        self.adversary = self._make_adversary() if self.args.adversarial_weight > 0 else None
        self.perceptual_loss = self._make_perceptual_loss() if self.args.perceptual_weight > 0 else None

    def _check_parallelism(self) -> None:
        super()._check_parallelism()
        if self.args.adversarial_weight > 0:
            self._need_whole_weights(f"adversarial_weight={self.args.adversarial_weight}")

    def _make_adversary(self) -> Adversary:
        args, config = self.args, self.accelerator.unwrap_model(self.model).config
        discriminator = VideoDiscriminator(
            (config.window_size, *config.frame_size),
            config.num_channels,
            args.discriminator_channels,
            tuple(args.discriminator_multipliers),
        )
        losses = AdversarialLoss(discriminator, args.r1_weight)
        return Adversary(losses, args, self.accelerator)

    def _make_perceptual_loss(self) -> PerceptualLoss | None:
        if self.args.perceptual_model is None:
            logger.warning(
                "The perceptual term is off: no perceptual_model was given. MAGVIT uses a ResNet-50 trained on ImageNet. Give the "
                "folder or Hub id of an image classifier, or perceptual_weight=0 to silence this message."
            )
            return None
        loss = PerceptualLoss.from_pretrained(self.args.perceptual_model, self.args.perceptual_frames)
        return loss.to(self.args.device)

    def learning_rate_of(self, name: str) -> float:
        lr = self.args.scorer_learning_rate
        return lr if lr is not None and re.search(r"(^|\.)scorer\.", name) else self.args.learning_rate

    def end(self) -> None:
        if self.adversary is not None:
            self.adversary.wrapped = self.adversary.losses
        super().end()

    @property
    def is_adversarial(self) -> bool:
        """Whether the adversarial term has started."""
        return self.adversary is not None and self.state.global_step >= self.args.adversarial_start_step

    def training_step(self, model: nn.Module, inputs: dict[str, torch.Tensor], *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.adversary is not None and self._pair is not None:
            real, fake = self._pair
            self._parts.add(self.adversary.backward(real, fake, self.current_gradient_accumulation_steps))
            self._pair = None
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        clips = inputs["pixel_values_videos"]
        if not self._checked_range:
            self._check_range(clips)
        if self.args.topk_sigma_end is not None:
            inputs = {**inputs, "topk_sigma": self.topk_sigma()}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            loss = self._add_terms(loss, outputs["reconstruction"], clips)
        return (loss, outputs) if return_outputs else loss

    def _add_terms(self, loss: torch.Tensor, reconstruction: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
        """Return the tokenizer's whole loss. Keep the clips and their reconstruction for the discriminator's step after backward."""
        parts, weights = {"reconstruction_loss": loss}, {"reconstruction_loss": 1.0}
        with self.accelerator.autocast():
            if self.perceptual_loss is not None:
                parts["perceptual_loss"] = self.perceptual_loss(reconstruction, clips)
                weights["perceptual_loss"] = self.args.perceptual_weight
            if self.adversary is not None and self.is_adversarial:
                parts["adversarial_loss"] = self.adversary.losses.generator_loss(reconstruction)
                weights["adversarial_loss"] = self.args.adversarial_weight
                self._pair = clips, reconstruction.detach()
        self._parts.add(parts)
        return torch.stack([weights[name] * part.mean() for name, part in parts.items()]).sum()

    def _step_along(self) -> None:
        if self.adversary is not None and self.is_adversarial:
            self._parts.add(self.adversary.step())
        super()._step_along()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.adversary is not None:
            logs["discriminator_learning_rate"] = self.adversary.scheduler.get_last_lr()[0]
        super().log(logs, start_time)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.adversary is not None:
            self.adversary.prepare(num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def trained_tensors(self) -> Iterator[torch.Tensor]:
        yield from super().trained_tensors()
        if self.adversary is not None:
            yield from self.adversary.losses.parameters()

    def stateful_parts(self) -> dict[str, Any]:
        return {"adversary": self.adversary, **super().stateful_parts()}

    def topk_sigma(self) -> torch.Tensor:
        """Return the noise of the top-k at this step, which falls geometrically from `config.topk_sigma` to `topk_sigma_end`."""
        start = self.accelerator.unwrap_model(self.model).config.topk_sigma
        done = self.state.global_step / max(1, self.state.max_steps)
        # It is a tensor because torch.compile would build another graph for each float.
        return torch.tensor(start * (self.args.topk_sigma_end / start) ** done)

    def _check_range(self, clips: torch.Tensor) -> None:
        low, high = clips.min().item(), clips.max().item()
        if low < -1e-3 or high > 1 + 1e-3:
            raise ValueError(f"Got pixels from {low:.3g} to {high:.3g}, expected [0, 1]: use do_normalize=False.")
        self._checked_range = True

    def evaluate_batch(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor | None, Any, torch.Tensor | None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            kept = model(**inputs)
            if prediction_loss_only:
                return kept.loss.detach(), None, None
            metrics, histograms = self._measure(model, inputs["pixel_values_videos"], kept.importance_scores)
        return kept.loss.detach(), (*metrics.values(), histograms), histograms

    def _measure(
        self, model: nn.Module, clips: torch.Tensor, scores: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the metrics of each clip (B,), and the histograms of its codes (B, channels, levels)."""
        config = self.accelerator.unwrap_model(model).config
        first_slot = scores.shape[1] * config.tubelet_size // clips.shape[1]
        copied = clips[:, :: config.window_size].repeat_interleave(config.window_size, dim=1)[:, : clips.shape[1]]
        everything = model(pixel_values_videos=clips, keep_ratio=1.0)
        metrics = {}
        for name, frames in {"": everything.reconstruction, "_first_frame": copied}.items():
            metrics[f"psnr{name}"] = peak_signal_to_noise_ratio(frames, clips)
            metrics[f"ssim{name}"] = structural_similarity(frames, clips)
        for name, share in {"": config.keep_ratio, **{f"_{share:.0%}"[:-1]: share for share in KEPT_SHARES}}.items():
            mask = first_slot_and_topk_mask(scores, first_slot, share)
            frames = model(pixel_values_videos=clips, bool_kept_pos=mask).reconstruction
            metrics[f"psnr_kept{name}"] = peak_signal_to_noise_ratio(frames, clips)
        self._metric_names = tuple(metrics)
        return metrics, level_histograms(everything.code_indices, config.levels)

    def _mean_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        *metrics, histograms = prediction.predictions
        levels = self.accelerator.unwrap_model(self.model).config.levels
        return {
            **{name: float(values.mean()) for name, values in zip(self._metric_names, metrics)},
            **level_statistics(torch.from_numpy(histograms.sum(axis=0)), levels),
        }
