"""The base of all Trainers: epochs, learning rates by parameter, parts of the loss in the log, model cards, and whole runs."""

import gc
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed.nn.functional  # a later import would hold a reference to the process group (VideoTrainer.end)
from accelerate import Accelerator
from torch import nn
from transformers import Trainer, TrainerCallback, logging
from transformers.modelcard import extract_hyperparameters_from_trainer
from transformers.trainer import TRAINER_STATE_NAME

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
    loss, and whose saved folders have a model card."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._parts = RunningMeans()
        self.add_callback(_TellEpoch())
        self._card_facts: dict[str, Any] = {}

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
