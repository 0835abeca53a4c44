"""The base of all Trainers: epochs, learning rates by parameter, parts of the loss in the log, model cards, and whole runs."""

import gc
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.nn.functional  # a later import would hold a reference to the process group (VideoTrainer.end)
from accelerate import Accelerator
from accelerate.utils.operations import recursively_apply
from torch import nn
from transformers import EvalPrediction, Trainer, TrainerCallback, logging
from transformers.modelcard import extract_hyperparameters_from_trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput

from ..models.video_seeking import VideoReadError
from ..sharing.model_card import ModelCardFacts, command_line, may_write_card, write_model_card


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


class VideoTrainer(Trainer):
    """A Trainer whose training set knows its epoch, whose parameters may learn at different rates, whose logs have the parts of the
    loss, whose evaluations leave out what cannot be read, and whose saved folders have a model card."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._parts = RunningMeans()
        self.add_callback(_TellEpoch())
        self._card_facts: dict[str, Any] = {}
        self._evaluated: list[tuple[torch.Tensor, torch.Tensor]] = []

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate without the clips whose items have `is_readable=False`: they are in no loss, metric, prediction or label.

        If items have `is_readable`, the metrics also have the numbers of clips: `samples`, `samples_skipped` and `samples_total`.

        Raises:
            VideoReadError: no clip can be read.
        """
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
        chosen = {name: _rows(value, used) for name, value in inputs.items() if name != "is_readable"}
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
        if may_write:  # replace the empty template that peft may have written
            Path(folder, "README.md").unlink(missing_ok=True)
            self._write_card(folder)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._parts.pop(self.accelerator))
        super().log(logs, start_time)

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


def newest_checkpoint(output_dir: str | os.PathLike | None) -> str | None:
    """Return the newest complete checkpoint in a folder. If a run was killed while it wrote one, that one is incomplete."""
    complete = [path.parent for path in Path(output_dir or ".").glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return str(max(complete, key=lambda path: int(path.name.split("-")[-1]))) if complete else None


def run_results(folder: str | os.PathLike, log_history: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the metrics of a run by split, from its `*_results.json` files, or else from the last evaluation in the log."""
    results = {}
    for split in ("train", "eval", "test"):
        path = Path(folder, f"{split}_results.json")
        logged = [logs for logs in log_history if any(name.startswith(f"{split}_") for name in logs)]
        if path.exists():
            results[split] = json.loads(path.read_text())
        elif logged and split == "eval":
            results[split] = logged[-1]
    return results


def train_and_save(trainer: VideoTrainer, **facts: Any) -> None:
    """Train, and save model, processor, metrics and model card. An interrupted run continues from its newest checkpoint.

    `train_results.json`, `eval_results.json` and `all_results.json` are written beside the model. With `push_to_hub` the whole
    folder, without its checkpoints, is uploaded at the end.

    Args:
        facts: for the card, as in `create_model_card`: `dataset`.
    """
    checkpoint = trainer.args.resume_from_checkpoint or newest_checkpoint(trainer.args.output_dir)
    trainer._card_facts.update(facts)  # for the cards of checkpoints
    if checkpoint:
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
