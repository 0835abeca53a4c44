"""Three subclasses of transformers' Trainer: the tokenizer's, the masked autoencoder's and the classifier's.

Each adds only what its stage needs; loops, devices, checkpoints, resuming and logging are Trainer's own.
"""

import gc
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.nn.functional  # before the process group is made, which it would hold on to: see _VideoTrainer.end
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchmetrics.functional.image import structural_similarity_index_measure
from transformers import EvalPrediction, Trainer, TrainerCallback, default_data_collator, logging
from transformers.trainer import TRAINER_STATE_NAME

from .masking import adaptive_decoder_mask, first_slot_and_topk_mask
from .tokenizer_losses import AdversarialLoss, PerceptualLoss, VideoDiscriminator
from .tokenizer_training import Adversary, RunningMeans
from .training_args import FSQMagViTTrainingArguments, LVMAEClassificationArguments


logger = logging.get_logger(__name__)

TOKENIZER_TRAINING_NAME = "tokenizer_training.pt"


class _TellEpoch(TrainerCallback):
    """Tells the training set its epoch. accelerate does so only on one process and at an epoch's start, not after a resume."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        if hasattr(train_dataloader.dataset, "set_epoch"):
            train_dataloader.dataset.set_epoch(int(state.epoch + 1e-6))


class _VideoTrainer(Trainer):
    """What the three share: the training set knows its epoch, and parameters may learn at different rates."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(_TellEpoch())

    def end(self) -> None:
        """Leave the other processes, once, as the last thing that a script does; trackers finish first.

        gloo's threads are joined when the last reference to the process group goes, and one that is still at work when the
        interpreter shuts down aborts the process. So DDP's references go before the group does, and nobody leaves early.
        """
        self.accelerator.wait_for_everyone()
        self.model_wrapped = self.accelerator.unwrap_model(self.model)
        self.accelerator.free_memory()
        self.accelerator.end_training()
        gc.collect()

    def learning_rate_of(self, name: str) -> float:
        """Peak learning rate of the parameter called `name`."""
        return self.args.learning_rate

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        model = self.model if model is None else model
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            optimizer_cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer_cls_and_kwargs = optimizer_cls, {**kwargs, "params": self._parameter_groups(model)}
        return super().create_optimizer(model)

    def _parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                weight_decay = self.args.weight_decay if name in decayed else 0.0
                groups.setdefault((self.learning_rate_of(name), weight_decay), []).append(parameter)
        return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def peak_signal_to_noise_ratio(prediction: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
    """dB per clip for values in [0, 1] (the prediction is clamped): (B, ...) twice -> (B,)."""
    error = (prediction.clamp(0, 1).float() - clips.float()).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=1e-10).log10()


def structural_similarity(prediction: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
    """SSIM per clip, the mean over its frames, for values in [0, 1] (the prediction is clamped): (B, T, C, H, W) twice -> (B,)."""
    frames = (prediction.clamp(0, 1).float().flatten(0, 1), clips.float().flatten(0, 1))
    similarity: Any = structural_similarity_index_measure(*frames, data_range=1.0, reduction="none")
    return similarity.view(clips.shape[:2]).mean(dim=1)


KEPT_SHARES = (0.05, 0.1, 0.15, 0.25, 0.5)


class _OnOptimizerStep(TrainerCallback):
    """Calls something right after each step of the model's optimizer."""

    def __init__(self, action: Callable[[], None]):
        self.action = action

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.action()


class FSQMagViTTrainer(_VideoTrainer):
    """Trains [`FSQMagViTModel`] on clips of one window (`FSQMagViTTrainingArguments`): squared error, and as the arguments
    ask a perceptual and an adversarial term (MAGVIT's recipe).

    A batch may bring `importance_scores` (B, N), by which tokens are then chosen instead of by the scorer's.

    `evaluate()` reports, besides the loss at `config.keep_ratio`:
    - PSNRs in dB, means over clips: of all tokens (`psnr`); of the first slot and, among the others, the most important 5, 10,
      15, 25 and 50 % of the window's number of tokens (`psnr_kept_5`, ...) and `config.keep_ratio` (`psnr_kept`), as in training;
      of copying every window's first frame (`psnr_first_frame`), which a tokenizer must beat;
    - `ssim` of all tokens, and of copying (`ssim_first_frame`);
    - for each FSQ channel, the share of its levels that occur (`level_usage_0`, ...) and the entropy of its levels in bits
      (`level_entropy_0`, ..., at most log2 of the levels), of all tokens of all clips.
    Of a clip only these figures and a histogram of its codes are kept, never its pixels.

    With `ema_decay` above 0 the averaged weights are the ones that are evaluated and saved, in checkpoints too; `model` holds
    those of the last step. Discriminator, both optimizers and schedules, averaged and plain weights are resumed together,
    from `tokenizer_training.pt` of a checkpoint. Logs have every part of the loss before its weight.

    Raises:
        ValueError: an adversarial term or averaged weights under DeepSpeed or FSDP, or a checkpoint to resume from without
            their state.
    """

    args: FSQMagViTTrainingArguments
    model: Any

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("compute_metrics", self._mean_metrics)
        super().__init__(*args, **kwargs)
        self._checked_range = False
        self._parts = RunningMeans()
        self._pair: tuple[torch.Tensor, torch.Tensor] | None = None
        self._check_parallelism()
        self.adversary = self._make_adversary() if self.args.adversarial_weight > 0 else None
        self.perceptual_loss = self._make_perceptual_loss() if self.args.perceptual_weight > 0 else None
        self.averaged_model = self._make_averaged_model() if self.args.ema_decay > 0 else None
        self.add_callback(_OnOptimizerStep(self._step_along))

    def _check_parallelism(self) -> None:
        wanted = self.args.adversarial_weight > 0 or self.args.ema_decay > 0
        if wanted and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ValueError(
                f"Got adversarial_weight={self.args.adversarial_weight} and ema_decay={self.args.ema_decay} under DeepSpeed or "
                "FSDP, expected whole weights on every process: train with plain DDP (accelerate launch --multi_gpu)."
            )

    def _make_adversary(self) -> Adversary:
        args, config = self.args, self.accelerator.unwrap_model(self.model).config
        discriminator = VideoDiscriminator(
            (config.window_size, *config.frame_size),
            config.num_channels,
            args.discriminator_channels,
            tuple(args.discriminator_multipliers),
        )
        losses = AdversarialLoss(discriminator, args.r1_weight, args.lecam_weight)
        return Adversary(losses, args, self.accelerator)

    def _make_perceptual_loss(self) -> PerceptualLoss | None:
        if self.args.perceptual_model is None:
            logger.warning(
                "The perceptual term is off: no perceptual_model was given. MAGVIT uses a ResNet-50 of ImageNet; give the "
                "folder or Hub id of an image classifier, or perceptual_weight=0 to silence this."
            )
            return None
        loss = PerceptualLoss.from_pretrained(self.args.perceptual_model, self.args.perceptual_frames)
        return loss.to(self.args.device)

    def _make_averaged_model(self) -> AveragedModel:
        averaged = AveragedModel(
            self.accelerator.unwrap_model(self.model), multi_avg_fn=get_ema_multi_avg_fn(self.args.ema_decay)
        )
        averaged.update_parameters(self.model)  # the first update copies: the average starts from the weights at hand
        return averaged.requires_grad_(False)

    def learning_rate_of(self, name: str) -> float:
        lr = self.args.scorer_learning_rate
        return lr if lr is not None and re.search(r"(^|\.)scorer\.", name) else self.args.learning_rate

    def end(self) -> None:
        if self.adversary is not None:
            self.adversary.wrapped = self.adversary.losses
        super().end()

    @property
    def is_adversarial(self) -> bool:
        """Whether the adversarial term has set in."""
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
        """The generator's whole loss; the discriminator's turn, with the same reconstruction, comes after its backward."""
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
        if self.averaged_model is not None:
            self.averaged_model.update_parameters(self.model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._parts.pop(self.accelerator))
            if self.adversary is not None:
                logs["discriminator_learning_rate"] = self.adversary.scheduler.get_last_lr()[0]
        super().log(logs, start_time)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.adversary is not None:
            self.adversary.prepare(num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, `model` has the averaged weights, if there are any; outside, the very same tensors as before."""
        self._exchange_weights()
        try:
            yield
        finally:
            self._exchange_weights()

    def _exchange_weights(self) -> None:
        if self.averaged_model is not None:
            for plain, averaged in zip(self.model.parameters(), self.averaged_model.module.parameters()):
                plain.data, averaged.data = averaged.data, plain.data

    def evaluation_loop(self, *args, **kwargs) -> Any:
        with self.averaged_weights():
            return super().evaluation_loop(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with self.averaged_weights():
            super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state: dict[str, Any] = {}
        if self.adversary is not None:
            state["adversary"] = self.adversary.state_dict()
        if self.averaged_model is not None:
            state["averaged_model"] = self.averaged_model.state_dict()
            state["model"] = self.model.state_dict()
        if state and self.args.should_save:
            torch.save(state, os.path.join(output_dir, TOKENIZER_TRAINING_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = os.path.join(checkpoint, TOKENIZER_TRAINING_NAME)
        state = torch.load(path, map_location="cpu", weights_only=True) if os.path.isfile(path) else {}
        parts = {"adversary": self.adversary, "averaged_model": self.averaged_model}
        got, expected = sorted(state.keys() & parts.keys()), sorted(name for name in parts if parts[name] is not None)
        if got != expected:
            raise ValueError(
                f"Got {checkpoint} with the state of {got}, expected {expected}: resume with the adversarial_weight and "
                "ema_decay of that run, or start anew from its weights with model_name_or_path and another output_dir."
            )
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
        if self.averaged_model is not None:  # the checkpoint's own weights are the averaged ones
            self.averaged_model.load_state_dict(state["averaged_model"])
            self.model.load_state_dict(state["model"])

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.averaged_model is not None:
            self.averaged_model.module.load_state_dict(self.model.state_dict())

    def topk_sigma(self) -> torch.Tensor:
        """The noise of the perturbed top-k at this step: a geometric fall from `config.topk_sigma` to `topk_sigma_end`."""
        start = self.accelerator.unwrap_model(self.model).config.topk_sigma
        done = self.state.global_step / max(1, self.state.max_steps)
        # A tensor, because torch.compile would build a graph for each float.
        return torch.tensor(start * (self.args.topk_sigma_end / start) ** done)

    def _check_range(self, clips: torch.Tensor) -> None:
        low, high = clips.min().item(), clips.max().item()
        if low < -1e-3 or high > 1 + 1e-3:
            raise ValueError(
                f"Got pixels from {low:.3g} to {high:.3g}, expected [0, 1]: use LVMAEVideoProcessor(do_normalize=False)."
            )
        self._checked_range = True

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor | None, Any, torch.Tensor | None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            kept = model(**inputs)
            if prediction_loss_only:
                return kept.loss.detach(), None, None
            metrics, histograms = self._judge(model, inputs["pixel_values_videos"], kept.importance_scores)
        return kept.loss.detach(), (*metrics.values(), histograms), histograms

    def _judge(
        self, model: nn.Module, clips: torch.Tensor, scores: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Figures of each clip (B,), and how often each channel takes each level (B, channels, levels)."""
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
            **{name: float(np.mean(values)) for name, values in zip(self._metric_names, metrics)},
            **level_statistics(histograms.sum(axis=0), levels),
        }


def level_histograms(code_indices: torch.Tensor, levels: list[int] | tuple[int, ...]) -> torch.Tensor:
    """How often each FSQ channel takes each of its levels: int64 (B, N) -> int64 (B, len(levels), max(levels))."""
    histograms = []
    for level in levels:
        digits = code_indices % level
        histograms.append(torch.stack([(digits == digit).sum(dim=1) for digit in range(max(levels))], dim=1))
        code_indices = code_indices // level
    return torch.stack(histograms, dim=1)


def level_statistics(histogram: np.ndarray, levels: list[int] | tuple[int, ...]) -> dict[str, float]:
    """Share of the levels that occur, and their entropy in bits, for each channel of a histogram (channels, levels)."""
    statistics = {}
    for channel, (counts, level) in enumerate(zip(histogram, levels)):
        shares = counts[counts > 0] / counts.sum()
        statistics[f"level_usage_{channel}"] = len(shares) / level
        statistics[f"level_entropy_{channel}"] = float(-(shares * np.log2(shares)).sum())
    return statistics


def collate_masked_clips(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch with the number of its visible tokens, counted in the worker, so that no accelerator has to be asked for it."""
    batch = default_data_collator(items)
    if "bool_masked_pos" in batch:
        batch["num_visible"] = int((~batch["bool_masked_pos"][0]).sum())
    return batch


class LVMAEPreTrainer(_VideoTrainer):
    """Pre-trains [`LVMAEForPreTraining`] with a masked decoder (`LVMAEPreTrainingArguments`).

    The frozen tokenizer belongs to the trainer, not to the model: it is in no checkpoint, no optimizer and no DDP wrapper. A
    batch that brings its own `target_codes` and `importance_scores` (a cache) skips it.

    Args:
        video_tokenizer ([`FSQMagViTModel`], *optional*): makes target codes and importance scores from each batch. Without
            it, batches must hold `target_codes` (and `importance_scores`, or every hidden token is decoded), or the model
            must predict pixels.
        kwargs: as `Trainer`. `processing_class` must be the processor that made the clips: the tokenizer sees them
            un-normalised.

    Raises:
        ValueError: tokenizer and model differ in token grid or levels, or no source of targets is left.
    """

    processing_class: Any

    def __init__(self, *args, video_tokenizer: Any = None, **kwargs):
        super().__init__(*args, **kwargs)
        if self.data_collator is default_data_collator:
            self.data_collator = collate_masked_clips
        self.video_tokenizer = video_tokenizer
        if video_tokenizer is not None:
            self._check_tokenizer(self.accelerator.unwrap_model(self.model).config, video_tokenizer.config)
            video_tokenizer.requires_grad_(False).eval().to(self.args.device)

    def _check_tokenizer(self, config: Any, tokenizer_config: Any) -> None:
        slots = -(-config.num_frames // tokenizer_config.tubelet_size)
        tokenizer_grid = (slots, *tokenizer_config.grid_size[1:])
        if tokenizer_grid != config.grid_size or config.num_frames % tokenizer_config.tubelet_size:
            raise ValueError(
                f"Got a tokenizer with a grid of {tokenizer_grid} tokens and a model with {config.grid_size} for clips of "
                f"{config.num_frames} frames, expected the same: load the tokenizer with another image_size or build the "
                "model with another tubelet_size or patch_size."
            )
        if config.target_type == "codes" and tuple(config.levels) != tuple(tokenizer_config.levels):
            raise ValueError(
                f"Got a tokenizer with levels {tuple(tokenizer_config.levels)} and a model with {tuple(config.levels)}, "
                "expected the same: build the model with the tokenizer's levels."
            )
        if self.processing_class is None:
            raise ValueError(
                "Got a video_tokenizer without processing_class, expected the processor that made the clips (its mean and "
                "deviation turn them back into pixels): pass LVMAEVideoProcessor."
            )

    def compute_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor], *args, **kwargs) -> Any:
        return super().compute_loss(model, self.add_targets(inputs), *args, **kwargs)

    @torch.no_grad()
    def add_targets(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch with what `LVMAEForPreTraining.forward` needs: target codes and the decoder mask.

        `noise` (B, N) settles the random part of the decoder mask where a batch brings it, so that a clip's mask depends on
        the clip alone; `importance_scores` (B, N) and `target_codes` (B, N, channels) are taken as they are.
        """
        config = self.accelerator.unwrap_model(self.model).config
        inputs = dict(inputs)
        noise, scores = inputs.pop("noise", None), inputs.pop("importance_scores", None)
        if self.video_tokenizer is not None and (scores is None or "target_codes" not in inputs):
            tokens = self.video_tokenizer.encode(self.tokenizer_view(inputs["pixel_values_videos"]))
            scores = tokens.importance_scores if scores is None else scores
            inputs.setdefault("target_codes", tokens.codes)
        if config.target_type == "pixels":
            inputs.pop("target_codes", None)
        elif "target_codes" not in inputs:
            raise ValueError(
                "Got a batch without target_codes and no video_tokenizer, expected one of them for target_type='codes': pass "
                "video_tokenizer=FSQMagViTModel.from_pretrained(...) or train on cached targets."
            )
        if scores is not None and "bool_decoded_pos" not in inputs:
            num_important, num_random = config.decoder_token_counts(scores.shape[1])
            inputs["bool_decoded_pos"] = adaptive_decoder_mask(scores, num_important, num_random, noise)
            inputs["num_decoded"] = num_important + num_random
        return inputs

    def tokenizer_view(self, clips: torch.Tensor) -> torch.Tensor:
        """The same clip as the tokenizer knows it: in [0, 1], with its own pixels per token."""
        processor = self.processing_class
        if processor.do_normalize:
            shape = (1, 1, -1, 1, 1)
            mean = torch.tensor(processor.image_mean, device=clips.device, dtype=clips.dtype).view(shape)
            std = torch.tensor(processor.image_std, device=clips.device, dtype=clips.dtype).view(shape)
            clips = clips * std + mean
        patch_size = self.accelerator.unwrap_model(self.model).config.patch_size
        scale = self.video_tokenizer.config.patch_size / patch_size
        if scale == 1:
            return clips.clamp(0, 1)
        size = [round(side * scale) for side in clips.shape[-2:]]
        frames = nn.functional.interpolate(clips.flatten(0, 1), size=size, mode="bilinear", antialias=True)
        return frames.unflatten(0, clips.shape[:2]).clamp(0, 1)


class LVMAEClassificationTrainer(_VideoTrainer):
    """Fine-tunes [`LVMAEForVideoClassification`] with layer-wise learning rates (`LVMAEClassificationArguments`).

    `evaluate()` reports top-1 and top-5 accuracy unless `compute_metrics` says otherwise.
    """

    args: LVMAEClassificationArguments

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("compute_metrics", topk_accuracy)
        super().__init__(*args, **kwargs)

    def learning_rate_of(self, name: str) -> float:
        depth = self.accelerator.unwrap_model(self.model).config.num_hidden_layers
        match = re.search(r"encoder\.layers\.(\d+)\.", name)
        layer = int(match.group(1)) + 1 if match else 0 if ".embeddings." in name else depth + 1
        return self.args.learning_rate * self.args.layer_decay ** (depth + 1 - layer)


def topk_accuracy(prediction: EvalPrediction, ks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """Shares of clips whose class is among the k highest logits (B, classes): `accuracy`, `top5_accuracy`."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    ranked = np.argsort(-logits, axis=-1, kind="stable")
    hits = ranked == np.asarray(prediction.label_ids)[:, None]
    return {"accuracy" if k == 1 else f"top{k}_accuracy": float(hits[:, :k].any(axis=1).mean()) for k in ks}


def newest_checkpoint(output_dir: str | os.PathLike | None) -> str | None:
    """The newest complete checkpoint in a folder: a run may have been killed while it wrote the last one."""
    complete = [path.parent for path in Path(output_dir or ".").glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return str(max(complete, key=lambda path: int(path.name.split("-")[-1]))) if complete else None


def train_and_save(trainer: Trainer) -> None:
    """Train, going on from the newest checkpoint in the output folder if there is one; save model, processor and metrics.

    Writes `train_results.json`, `eval_results.json` and `all_results.json` beside the model.
    """
    checkpoint = trainer.args.resume_from_checkpoint or newest_checkpoint(trainer.args.output_dir)
    if checkpoint:
        logger.warning(f"Going on from {checkpoint}. To start anew, give another --output_dir.")
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)


__all__ = ["FSQMagViTTrainer", "LVMAEClassificationTrainer", "LVMAEPreTrainer"]
