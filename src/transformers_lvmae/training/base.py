"""The base of all Trainers: epochs and draws, learning rates by parameter, parts of the loss in the log, whole checkpoints and runs."""

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.nn.functional  # a later import would hold a reference to the process group (VideoTrainer.end)
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from accelerate.utils.operations import recursively_apply
from torch import nn
from transformers import EvalPrediction, TrainerCallback, logging
from transformers.modelcard import extract_hyperparameters_from_trainer
from transformers.trainer_utils import EvalLoopOutput

from ..models.video_seeking import VideoReadError
from ..sharing.model_card import ModelCardFacts, command_line, may_write_card, write_model_card
from .checkpoints import fault_of, newest_checkpoint
from .guarding import GuardedTrainer, read_results
from .run_folder import check_settings, keep_global_batch, read_settings, run_settings, sole_run, write_settings


logger = logging.get_logger(__name__)


class RunningMeans:
    """Means of scalars since the last log. They stay on their device, so that adding one does not wait for it."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float().mean()
            self.counts[name] = self.counts.get(name, 0) + 1

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all processes and start anew. Every process must call this method."""
        if not self.sums:
            return {}
        means = torch.stack([total / self.counts[name] for name, total in self.sums.items()])
        values = dict(zip(self.sums, accelerator.reduce(means, "mean").tolist()))
        self.sums, self.counts = {}, {}
        return values


class _TellEpoch(TrainerCallback):
    """Set the epoch of the training set. accelerate does this on one process only, and not after a resume."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        if hasattr(train_dataloader.dataset, "set_epoch"):
            train_dataloader.dataset.set_epoch(int(state.epoch + 1e-6))


class _SayWhatIsTrained(TrainerCallback):
    """Print a line about the run before its first step."""

    def __init__(self, trainer: "VideoTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            print(self.trainer.summary())


def seed_draws(*numbers: int) -> None:
    """Seed torch's draws on all devices with these numbers."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) % 2**63)


def count_clips(batch: dict[str, Any]) -> int:
    """Return the number of clips of a batch."""
    return next(len(values) for values in batch.values() if torch.is_tensor(values) and values.ndim)


class VideoTrainer(GuardedTrainer):
    """A Trainer whose training set knows its epoch, whose parameters may learn at different rates, whose logs have the parts of the
    loss, whose evaluations leave out what cannot be read, and whose saved folders have a model card.

    All draws of a step (masks of tubes, mixing, drop path, noise) come from (seed, step, number of the small batch in the step, over
    all processes). So processes draw differently, and a step draws the same if it is resumed, or divided among more processes.
    Accumulated small batches count by their clips.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._parts = RunningMeans()
        self._small_batch = (-1, 0)  # the step, and the small batch of this process in it
        self._clips_of_step = 0
        self.add_callback(_SayWhatIsTrained(self))
        self.add_callback(_TellEpoch())
        self._card_facts: dict[str, Any] = {}
        self._evaluated: list[tuple[torch.Tensor, torch.Tensor]] = []

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate without the clips whose items have `is_readable=False`: they are in no loss, metric, prediction or label.

        If items have `is_readable`, the metrics also have the numbers of clips: `samples`, `samples_skipped` and `samples_total`.

        Raises:
            VideoReadError: no clip can be read.
        """
        seed_draws(self.args.seed, self.args.process_index)  # each evaluation draws the same
        self._evaluated = []
        compute_metrics = self.compute_metrics
        if compute_metrics is not None:
            self.compute_metrics = lambda prediction: compute_metrics(self._readable_part(prediction))
        try:
            output = super().evaluation_loop(*args, **kwargs)
        finally:
            self.compute_metrics = compute_metrics
        if not self._evaluated:
            return output
        losses, readable = self._losses_and_readable()
        prefix, count = kwargs.get("metric_key_prefix", "eval"), int(readable.sum())
        metrics = output.metrics or {}
        metrics |= {f"{prefix}_samples": count, f"{prefix}_samples_skipped": len(readable) - count}
        metrics[f"{prefix}_samples_total"] = len(readable)
        if count < len(readable):
            logger.warning(f"Evaluated {count:,} of {len(readable):,} clips ({prefix}): the others could not be read.")
            metrics[f"{prefix}_loss"] = float(losses[readable].mean())
        predictions, labels = (_rows(part, readable) for part in (output.predictions, output.label_ids))
        return EvalLoopOutput(predictions, labels, metrics, count)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Evaluate a batch ([`evaluate_batch`]) without its unreadable clips. Their places in predictions and labels hold zeros, so that
        all processes gather equally many; if no clip is readable, the results of black clips are gathered and dropped."""
        if "is_readable" not in inputs:
            return self.evaluate_batch(model, inputs, prediction_loss_only, ignore_keys)
        readable = inputs["is_readable"].bool().to(self.args.device)
        used = readable if readable.any() else torch.ones_like(readable)
        inputs = {name: value for name, value in inputs.items() if name != "is_readable"}
        chosen = inputs if used.all() else {name: _rows(value, used) for name, value in inputs.items()}
        loss, *results = self.evaluate_batch(model, chosen, prediction_loss_only, ignore_keys)
        losses = torch.zeros(len(readable), device=self.args.device) if loss is None else loss.repeat(len(readable))
        self._evaluated.append(self.accelerator.gather_for_metrics((losses, readable)))
        predictions, labels = (None if value is None else recursively_apply(_spread, value, used) for value in results)
        return loss, predictions, labels

    def evaluate_batch(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Return loss, predictions and labels of a batch, as `Trainer.prediction_step`, which subclasses override here."""
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # In evaluation, a loss is the mean over the process's own clips, of which unreadable ones may leave unequal numbers.
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch if model.training else None)

    def _losses_and_readable(self) -> tuple[np.ndarray, np.ndarray]:
        """Return for every clip so far the loss of its batch, and whether it was readable."""
        losses, readable = (torch.cat(parts).cpu().numpy() for parts in zip(*self._evaluated))
        if not readable.any():
            raise VideoReadError(
                f"Got {len(readable)} clips to evaluate of which none can be read, expected most to play: repair or remove them "
                "(scripts/check_videos.py names all)."
            )
        return losses, readable

    def _readable_part(self, prediction: EvalPrediction) -> EvalPrediction:
        """Return the predictions and labels of the clips that could be read."""
        if not self._evaluated:
            return prediction
        _, readable = self._losses_and_readable()
        return EvalPrediction(_rows(prediction.predictions, readable), _rows(prediction.label_ids, readable))

    def create_model_card(self, **facts: Any) -> None:  # type: ignore[override]
        """Write README.md to the output folder, unless a person wrote the one that is there already.

        Args:
            facts: fields of `ModelCardFacts` (`dataset`, `license`, `tags`, ...), also for the cards of later saves.
        """
        self._card_facts.update({name: value for name, value in facts.items() if value is not None})
        if self.is_world_process_zero():
            self._write_card(self._run_folder)

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
        may_write = self.args.should_save and may_write_card(folder)  # all processes come here, and one writes
        super()._save(output_dir, state_dict)
        if may_write:  # replace the empty template that peft may have written
            Path(folder, "README.md").unlink(missing_ok=True)
            self._write_card(folder)

    def summary(self) -> str:
        """Return a line on data, model and steps, for the start of a run."""
        model: Any = self.accelerator.unwrap_model(self.model)
        args, config = self.args, model.config
        datasets: list[Any] = [self.train_dataset, self.eval_dataset or []]
        train, evaluation = (f"{len(data):,}" if hasattr(data, "__len__") else "a stream of" for data in datasets)
        classes = f" of {config.num_labels} classes" if "labels" in (args.label_names or []) else ""
        height, width = config.frame_size
        every = sum(parameter.numel() for parameter in model.parameters())
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        batch, small, processes = args.train_batch_size, args.gradient_accumulation_steps, args.world_size
        return (
            f"Training on {train} videos{classes}, evaluating on {evaluation}: {getattr(config, 'window_size', config.num_frames)} frames "
            f"of {height} x {width} pixels, {trained / 1e6:.2f} M of {every / 1e6:.2f} M parameters, {self.state.max_steps:,} steps of "
            f"{batch * small * processes} videos ({batch} x {small} accumulated x {processes} processes), peak learning rate "
            f"{args.learning_rate:.3g}."
        )

    def _run_epoch(self, *args, **kwargs) -> None:
        # Trainer takes a step more when a run that ended within an epoch is started again.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, *args, **kwargs) -> Any:
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self._clips_of_step = sum(map(count_clips, batches))
        return batches, num_items

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args, **kwargs) -> torch.Tensor:
        step, number = self.state.global_step, self._small_batch[1] + 1
        self._small_batch = (step, number if step == self._small_batch[0] else 0)
        seed_draws(self.args.seed, step, self._small_batch[1] * self.args.world_size + self.args.process_index)
        # Trainer divides the loss by this number, which is a count of batches if all have the same size.
        if self._clips_of_step:
            self.current_gradient_accumulation_steps = self._clips_of_step / count_clips(inputs)  # type: ignore[assignment]
        return super().training_step(model, inputs, *args, **kwargs)

    def _get_learning_rate(self) -> float:
        """Return the largest rate of all groups of parameters, which is the one that the user set."""
        scheduler: Any = self.lr_scheduler
        if self.is_deepspeed_enabled or not hasattr(scheduler, "get_last_lr"):
            return super()._get_learning_rate()
        return float(max(scheduler.get_last_lr()))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        is_training = "loss" in logs
        if is_training:
            logs.update(self._parts.pop(self.accelerator))
        super().log(logs, start_time)
        if is_training:
            self.stop_if_not_finite(logged=logs)

    def end(self) -> None:
        """Finish the trackers and leave the process group. A script calls this once, as its last step.

        gloo joins its threads when the last reference to the process group is dropped. A thread that still works when the interpreter
        shuts down aborts the process. So all processes wait for each other, and DDP's references are dropped before the group.
        """
        self.accelerator.wait_for_everyone()
        self.model_wrapped = self.accelerator.unwrap_model(self.model)
        self.accelerator.free_memory()
        self.accelerator.end_training()
        gc.collect()

    def learning_rate_of(self, name: str) -> float:
        """Return the peak learning rate of the parameter called `name`."""
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


def _rows(value: Any, chosen: Any) -> Any:
    """Return the chosen rows of an array or tensor with one row for each clip, also inside a tuple; anything else as it is."""
    if isinstance(value, (tuple, list)):
        return type(value)(_rows(item, chosen) for item in value)
    has_rows = isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim > 0 and len(value) == len(chosen)
    return value[chosen.to(value.device) if isinstance(value, torch.Tensor) else chosen] if has_rows else value


def _spread(value: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """Put the rows of a tensor into the places where `used` (B,) is True, and zeros into the others."""
    if value.ndim == 0 or len(value) != int(used.sum()):
        return value
    spread = value.new_zeros((len(used), *value.shape[1:]))
    spread[used] = value
    return spread


def run_results(folder: str | os.PathLike, log_history: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the metrics of a run by split, from its `*_results.json` files, or else from the last evaluation in the log."""
    results = {}
    for split in ("train", "eval", "test"):
        logged = [logs for logs in log_history if any(name.startswith(f"{split}_") for name in logs)]
        if found := read_results(Path(folder, f"{split}_results.json")):
            results[split] = found
        elif logged and split == "eval":
            results[split] = logged[-1]
    return results


def checkpoint_to_resume(trainer: VideoTrainer) -> str | None:
    """Return the checkpoint that a run goes on from, the same on all processes: the given one, or the newest whole one.

    Raises:
        ValueError: the given checkpoint is not whole.
    """
    args: Any = trainer.args
    found: list[Any] = [None, None]
    given = args.resume_from_checkpoint
    if trainer.accelerator.is_main_process:
        found = [given or newest_checkpoint(args.output_dir), fault_of(given) if given else None]
    checkpoint, fault = broadcast_object_list(found)
    if fault:
        raise ValueError(
            f"Got {given}, from which no run can go on ({fault}), expected a whole checkpoint: leave out --resume_from_checkpoint to "
            f"take the newest of {args.output_dir}."
        )
    return checkpoint


def keep_positions(trainer: VideoTrainer, checkpoint: str) -> None:
    """Go on with the positions that a checkpoint's weights were trained with: those of version 0.1 are not a new model's."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if model.config.model_type == "lvmae" and Path(checkpoint, "config.json").exists():
        saved: Any = type(model.config).from_pretrained(checkpoint)
        model.config.position_embedding = saved.position_embedding
        model.config.position_grid_size = list(saved.position_grid)


def compare_settings(trainer: VideoTrainer, checkpoint: str | None, *others: Any) -> None:
    """Refuse to go on from a checkpoint of a run with other settings or data, and write down those of this run.

    Raises:
        ValueError: settings differ, and `allow_changes` is off; see also [`keep_global_batch`].
    """
    args: Any = trainer.args
    (former,) = broadcast_object_list([read_settings(Path(checkpoint).parent) if checkpoint else None])
    if former is not None and not args.allow_changes:
        keep_global_batch(args, former)
        check_settings(args.output_dir, former, run_settings(args, *others))
    if trainer.is_world_process_zero():
        write_settings(args.output_dir, run_settings(args, *others), args.world_size)


def train_and_save(trainer: VideoTrainer, *settings: Any, **facts: Any) -> None:
    """Train, and save model, processor, metrics and model card. An interrupted run continues from its newest whole checkpoint.

    `train_results.json`, `eval_results.json` and `all_results.json` are written beside the model. With `push_to_hub` the whole
    folder, without its checkpoints, is uploaded at the end.

    Args:
        settings: dataclasses and dicts of what changes the result beside the trainer's arguments, with which alone a run may continue.
        facts: for the card, as in `create_model_card`: `dataset`.

    Raises:
        ValueError: another run holds the folder; the interrupted run had other settings; no run can go on from the given checkpoint.
        NonFiniteError: the loss, the gradient or a weight is not finite.
    """
    with sole_run(trainer._run_folder, trainer.accelerator):
        checkpoint = checkpoint_to_resume(trainer)
        compare_settings(trainer, checkpoint, *settings)
        trainer._card_facts.update(facts)  # for the cards of checkpoints
        if checkpoint:
            keep_positions(trainer, checkpoint)
            logger.warning(f"Going on from {checkpoint}. To start anew, give another --output_dir.")
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.save_state()
        if trainer.state.global_step > trainer._initial_global_step:  # a complete run has its metrics already
            trainer.log_metrics("train", result.metrics)
            trainer.save_metrics("train", result.metrics)
        if trainer.eval_dataset is not None:
            metrics = trainer.evaluate()
            trainer.log_metrics("eval", metrics)
            trainer.save_metrics("eval", metrics)
        trainer.create_model_card(**facts)
        if trainer.args.push_to_hub:
            trainer.push_to_hub()
