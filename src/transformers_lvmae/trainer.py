"""Subclasses of transformers' Trainer: the masked autoencoder's, the classifier's, and what they share with the tokenizer's.

Each adds only what its stage needs; loops, devices, checkpoints, resuming and logging are Trainer's own.
"""

import functools
import gc
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.nn.functional  # before the process group is made, which it would hold on to: see _VideoTrainer.end
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import EvalPrediction, Trainer, TrainerCallback, default_data_collator, logging
from transformers.modelcard import extract_hyperparameters_from_trainer
from transformers.trainer import TRAINER_STATE_NAME

from .accuracy import topk_accuracies
from .augmentation import ClipMixing
from .importance import FlowEstimator, everest, flow_estimator, frame_difference, optical_flow
from .masking import adaptive_decoder_mask, topk_mask, uniform_decoder_mask
from .modelcard import ModelCardFacts, command_line, may_write_card, write_model_card
from .tokens import PixelScale, compact_scores, indices_to_codes, tokenizer_view
from .training_args import LVMAEClassificationArguments, LVMAEPreTrainingArguments


logger = logging.get_logger(__name__)


class RunningMeans:
    """Means of scalars since the last log, kept on their device: adding one waits for nothing."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float().mean()
            self.counts[name] = self.counts.get(name, 0) + 1

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes, which must all call it; everything starts anew."""
        if not self.sums:
            return {}
        means = torch.stack([total / self.counts[name] for name, total in self.sums.items()])
        values = dict(zip(self.sums, accelerator.reduce(means, "mean").tolist()))
        self.sums, self.counts = {}, {}
        return values


class _TellEpoch(TrainerCallback):
    """Tells the training set its epoch. accelerate does so only on one process and at an epoch's start, not after a resume."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        if hasattr(train_dataloader.dataset, "set_epoch"):
            train_dataloader.dataset.set_epoch(int(state.epoch + 1e-6))


class _VideoTrainer(Trainer):
    """What the three share: the training set knows its epoch, parameters may learn at different rates, logs have the parts of the
    loss, and whatever is saved has a model card."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._parts = RunningMeans()
        self.add_callback(_TellEpoch())
        self._card_facts: dict[str, Any] = {}

    def create_model_card(self, **facts: Any) -> None:  # type: ignore[override]
        """Write README.md to the output folder, unless a person wrote the one that is there.

        Args:
            facts: fields of `ModelCardFacts` (`dataset`, `license`, `tags`, ...); kept for the cards of later saves.
        """
        self._card_facts.update({name: value for name, value in facts.items() if value is not None})
        if self.is_world_process_zero():
            self._write_card(self._run_folder)

    @property
    def _run_folder(self) -> str:
        return self.args.output_dir or "."

    def _write_card(self, folder: str) -> None:
        model: Any = self.accelerator.unwrap_model(self.model)
        is_adapter = hasattr(model, "get_base_model")
        model = model.get_base_model() if is_adapter else model
        facts = {
            "model_name": Path(self._run_folder).absolute().name,
            "finetuned_from": model.config._name_or_path or None,
            "command": command_line(num_processes=self.args.world_size),
            "hyperparameters": extract_hyperparameters_from_trainer(self),
            "results": run_results(self._run_folder, self.state.log_history),
            "library_name": "peft" if is_adapter else "transformers",
            **self._card_facts,
        }
        write_model_card(folder, model.config, type(model).__name__, ModelCardFacts(**facts))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = output_dir or self._run_folder
        may_write = may_write_card(folder)
        super()._save(output_dir, state_dict)
        if may_write:  # and if peft has written one by now, it is a form to fill in
            Path(folder, "README.md").unlink(missing_ok=True)
            self._write_card(folder)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._parts.pop(self.accelerator))
        super().log(logs, start_time)

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


class _OnOptimizerStep(TrainerCallback):
    """Calls something right after each step of the model's optimizer."""

    def __init__(self, action: Callable[[], None]):
        self.action = action

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.action()


class _AveragingTrainer(_VideoTrainer):
    """What two of the three share: with `ema_decay` above 0 the averaged weights are the ones that are evaluated and saved, in
    checkpoints too; `model` holds those of the last step.

    A checkpoint's file `training_file` has what Trainer does not save: the state of `stateful_parts()` and, where its own
    weights are the averaged ones, the plain ones.
    """

    args: Any  # with `ema_decay`
    model: Any
    training_file: str

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._check_parallelism()
        self.averaged_model = self._make_averaged_model() if self.args.ema_decay > 0 else None
        self.add_callback(_OnOptimizerStep(self._step_along))

    def _check_parallelism(self) -> None:
        if self.args.ema_decay > 0:
            self._need_whole_weights(f"ema_decay={self.args.ema_decay}")

    def _need_whole_weights(self, wanted: str) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(
                f"Got {wanted} under DeepSpeed or FSDP, expected whole weights on every process: train with plain DDP "
                "(accelerate launch --multi_gpu)."
            )

    def _make_averaged_model(self) -> AveragedModel:
        averaged = AveragedModel(
            self.accelerator.unwrap_model(self.model), multi_avg_fn=get_ema_multi_avg_fn(self.args.ema_decay)
        )
        averaged.update_parameters(self.model)  # the first update copies: the average starts from the weights at hand
        return averaged.requires_grad_(False)

    def _step_along(self) -> None:
        """Called after each step of the model's optimizer."""
        if self.averaged_model is not None:
            self.averaged_model.update_parameters(self.model)

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

    def stateful_parts(self) -> dict[str, Any]:
        """What is saved and resumed besides model, optimizer and schedule; None where it is not in use."""
        return {"averaged_model": self.averaged_model}

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = {name: part.state_dict() for name, part in self.stateful_parts().items() if part is not None}
        if self.averaged_model is not None:
            state["model"] = self.model.state_dict()
        if state and self.args.should_save:
            torch.save(state, os.path.join(output_dir, self.training_file))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = os.path.join(checkpoint, self.training_file)
        state = torch.load(path, map_location="cpu", weights_only=True) if os.path.isfile(path) else {}
        parts = self.stateful_parts()
        got, expected = sorted(state.keys() & parts.keys()), sorted(name for name in parts if parts[name] is not None)
        if got != expected:
            raise ValueError(
                f"Got {checkpoint} with the state of {got}, expected {expected}: resume with the arguments of that run "
                "(ema_decay, adversarial_weight), or start anew from its weights with model_name_or_path and another "
                "output_dir."
            )
        for name in expected:
            parts[name].load_state_dict(state[name])
        if self.averaged_model is not None:  # the checkpoint's own weights are the averaged ones
            self.model.load_state_dict(state["model"])

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.averaged_model is not None:
            self.averaged_model.module.load_state_dict(self.model.state_dict())


def collate_masked_clips(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch with the number of its visible tokens, counted in the worker, so that no accelerator has to be asked for it."""
    batch = default_data_collator(items)
    if "bool_masked_pos" in batch:
        batch["num_visible"] = int((~batch["bool_masked_pos"][0]).sum())
    return batch


class LVMAEPreTrainer(_VideoTrainer):
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


class LVMAEClassificationTrainer(_AveragingTrainer):
    """Fine-tunes [`LVMAEForVideoClassification`] with layer-wise learning rates (`LVMAEClassificationArguments`).

    In training, labels become probabilities: MixUp or CutMix mixes the clips of a batch on the device and their labels with
    them, with torch's own random numbers (Trainer's checkpoints keep their state), and `label_smoothing_factor` of each label is
    spread over all classes. In evaluation, loss and metrics are of plain labels.

    `evaluate()` reports top-1 and top-5 accuracy unless `compute_metrics` says otherwise; of a model with label sets, for each
    set and for all of them at once (`topk_accuracies`). With `ema_decay` above 0 the averaged weights
    are evaluated and saved.

    Raises:
        ValueError: a batch of one clip to mix; averaged weights under DeepSpeed or FSDP.
    """

    args: LVMAEClassificationArguments
    training_file = "averaged_weights.pt"

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("compute_metrics", self._accuracies)
        super().__init__(*args, **kwargs)
        self.label_smoother = None  # transformers' own smooths evaluation's loss, too, and takes no mixed labels
        alphas = self.args.mixup_alpha, self.args.cutmix_alpha
        repeats = getattr(self.train_dataset, "num_clips", 1)
        self.mixing = ClipMixing(*alphas, repeats) if any(alphas) else None

    def compute_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor], *args, **kwargs) -> Any:
        if model.training and (self.mixing is not None or self.args.label_smoothing_factor > 0):
            inputs = self.soften(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def soften(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch with its clips mixed and its `labels`, class ids (B,) or (B, sets), made probabilities (B, num_labels)."""
        config = self.accelerator.unwrap_model(self.model).config
        config.problem_type = config.problem_type or "single_label_classification"
        clips = inputs["pixel_values_videos"]
        sizes = [part.stop - part.start for part in config.label_slices.values()] or [config.num_labels]
        labels = soft_labels(inputs["labels"], sizes, self.args.label_smoothing_factor)
        if self.mixing is not None:
            if len(clips) == 1 == self.args.train_batch_size:  # not an epoch's last batch
                raise ValueError(
                    "Got batches of one clip with mixup_alpha or cutmix_alpha, expected two clips a device to mix: raise "
                    "per_device_train_batch_size or set both to 0."
                )
            clips, shares = self.mixing(clips)
            labels = shares @ labels
        return {**inputs, "pixel_values_videos": clips, "labels": labels}

    def _accuracies(self, prediction: EvalPrediction) -> dict[str, float]:
        label_sets = self.accelerator.unwrap_model(self.model).config.label_sets
        return topk_accuracies(logits_of(prediction), np.asarray(prediction.label_ids), label_sets)

    def learning_rate_of(self, name: str) -> float:
        depth = self.accelerator.unwrap_model(self.model).config.num_hidden_layers
        match = re.search(r"encoder\.layers\.(\d+)\.", name)
        layer = int(match.group(1)) + 1 if match else 0 if ".embeddings." in name else depth + 1
        return self.args.learning_rate * self.args.layer_decay ** (depth + 1 - layer)


def soft_labels(labels: torch.Tensor, sizes: list[int], smoothing: float) -> torch.Tensor:
    """Class ids (B,), or (B, sets) of sets of `sizes` classes, -> probabilities (B, sum of sizes).

    In each set `smoothing` of a row is spread evenly over all classes.
    """
    columns = labels.view(len(labels), -1).unbind(dim=1)
    parts = [
        nn.functional.one_hot(column, size) * (1 - smoothing) + smoothing / size for column, size in zip(columns, sizes)
    ]
    return torch.cat(parts, dim=1)


def logits_of(prediction: EvalPrediction) -> np.ndarray:
    """Logits (clips, classes) of what the trainer collected, which may hold hidden states besides."""
    return prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions


def newest_checkpoint(output_dir: str | os.PathLike | None) -> str | None:
    """The newest complete checkpoint in a folder: a run may have been killed while it wrote the last one."""
    complete = [path.parent for path in Path(output_dir or ".").glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return str(max(complete, key=lambda path: int(path.name.split("-")[-1]))) if complete else None


def run_results(folder: str | os.PathLike, log_history: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """The numbers of a run by split: of its `*_results.json`, and of the last evaluation where that has none."""
    results = {}
    for split in ("train", "eval", "test"):
        path = Path(folder, f"{split}_results.json")
        logged = [logs for logs in log_history if any(name.startswith(f"{split}_") for name in logs)]
        if path.exists():
            results[split] = json.loads(path.read_text())
        elif logged and split == "eval":
            results[split] = logged[-1]
    return results


def train_and_save(trainer: _VideoTrainer, **facts: Any) -> None:
    """Train, going on from the newest checkpoint in the output folder if there is one; save model, processor and metrics.

    Writes `train_results.json`, `eval_results.json` and `all_results.json` beside the model, and a model card; with
    `push_to_hub` the whole folder, without its checkpoints, is uploaded in the end.

    Args:
        facts: for the card, as `create_model_card` takes them: `dataset`.
    """
    checkpoint = trainer.args.resume_from_checkpoint or newest_checkpoint(trainer.args.output_dir)
    trainer._card_facts.update(facts)  # for the cards of checkpoints
    if checkpoint:
        logger.warning(f"Going on from {checkpoint}. To start anew, give another --output_dir.")
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    if trainer.state.global_step > trainer._initial_global_step:  # a run that was at its end has its metrics already
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.create_model_card(**facts)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


__all__ = ["LVMAEClassificationTrainer", "LVMAEPreTrainer"]
