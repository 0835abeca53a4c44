"""A Trainer that saves nothing that is broken: no weights that are not finite, no half checkpoint, no half file of results."""

import errno
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, logging
from transformers.trainer import TRAINER_STATE_NAME

from ..files import is_full_disk, write_aside
from .checkpoints import delete_old_checkpoints, numbered_checkpoints, seal
from .divergence import FiniteSteps, NonFiniteError, all_finite, list_of_all, named_rows, rows_of_step


logger = logging.get_logger(__name__)


class GuardedTrainer(Trainer):
    """A Trainer whose saved files are whole and finite.

    A loss, gradient or weight that is not finite stops the run on all processes before it saves anything ([`NonFiniteError`]): at once
    on a CPU, and else when the loss is logged or before a save, because a step must not wait for the device.

    A checkpoint ends with a file of checksums. Older checkpoints are deleted only after that.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._finite = FiniteSteps()

    @property
    def _run_folder(self) -> str:
        return self.args.output_dir or "."

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._finite.add(self.state.global_step, loss, is_loss=True)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if not self.args.fp16:  # its scaler skips steps whose gradient overflows
            self._finite.add(self.state.global_step, norm)
        if self._finite.should_check:
            self.stop_if_not_finite()
        return norm

    def trained_tensors(self) -> Iterator[torch.Tensor]:
        """Return all that training changes and a checkpoint holds."""
        model: Any = self.model
        yield from model.parameters()

    def stop_if_not_finite(self, logged: dict[str, float] | None = None, with_weights: bool = False) -> None:
        """Stop if something since the last call is not finite. Every process must call it.

        Args:
            logged: numbers that must be finite too, the same on all processes.
            with_weights: look at the weights too.

        Raises:
            NonFiniteError: something is not finite.
        """
        step, is_own = self._finite.first_bad_step(self.accelerator)
        last = max(0, self.state.global_step - 1)
        numbers = {
            name: value for name, value in (logged or {}).items() if not (self.args.fp16 and name == "grad_norm")
        }
        if step is None and not all(map(math.isfinite, numbers.values())):
            step = last
        if step is None and with_weights:
            finite = all_finite(self.trained_tensors()).to(self.args.device).float()
            step = None if self.accelerator.gather(finite).all() else last
        if step is not None:
            self._stop_at(step, is_own)

    def _stop_at(self, step: int, is_own: bool) -> None:
        rows = rows_of_step(self.callback_handler.train_dataloader, step, self.args.gradient_accumulation_steps)
        names = list_of_all(named_rows(self.train_dataset, rows), is_own)
        kept = numbered_checkpoints(self._run_folder)
        raise NonFiniteError(
            f"Got a loss, a gradient or weights that are not finite in step {step + 1} ({names or 'rows of a stream'}), expected finite "
            f"numbers: {kept[-1][1] if kept else 'no checkpoint'} is the last one; go on from it with --allow_changes and a lower "
            "--learning_rate, or without these videos."
        )

    def save_model(self, *args, **kwargs) -> None:
        self.stop_if_not_finite(with_weights=True)
        super().save_model(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        if self.args.should_save and folder.exists():  # a damaged one that the run did not go on from
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        try:
            with self._deleting_nothing():
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal(folder)
        except Exception as error:
            if is_full_disk(error):
                self._say_that_the_disk_is_full(folder, error)
            raise
        if self.args.should_save:
            delete_old_checkpoints(folder, self.args.save_total_limit, [self.state.best_model_checkpoint])

    def _finalize_training(self, *args, **kwargs) -> Any:
        with self._deleting_nothing():
            return super()._finalize_training(*args, **kwargs)

    @contextmanager
    def _deleting_nothing(self) -> Iterator[None]:
        """Keep Trainer from deleting checkpoints. It would do so before the new one is whole, and delete the last one when a run ends."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = limit

    def _say_that_the_disk_is_full(self, folder: Path, error: Exception) -> None:
        """Delete a checkpoint that was not finished, for the room that it takes, and raise OSError."""
        shutil.rmtree(folder, ignore_errors=True)
        kept = numbered_checkpoints(folder.parent)
        raise OSError(
            errno.ENOSPC,
            f"Got a full disk at {folder}, expected room for a checkpoint: free some space and start the same command again; it goes on "
            f"from {kept[-1][1] if kept else 'the beginning'}.",
        ) from error

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Write a split's metrics as `{split}_results.json`, and with `combined` into `all_results.json` too. The files are never half."""
        if not self.is_world_process_zero():
            return
        files = {f"{split}_results.json": metrics}
        if combined:
            files["all_results.json"] = {**read_results(Path(self._run_folder, "all_results.json")), **metrics}
        for name, values in files.items():
            write_aside(Path(self._run_folder, name), json.dumps(values, indent=4, sort_keys=True) + "\n")

    def save_state(self) -> None:
        """Write the run's state beside the model; the file is never half."""
        if self.is_world_process_zero():
            write_aside(Path(self._run_folder, TRAINER_STATE_NAME), lambda part: self.state.save_to_json(str(part)))


def read_results(path: Path) -> dict[str, float]:
    """Return the metrics in a file, or none if it is missing or damaged: results are never a reason not to go on."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        logger.warning(f"{path} cannot be read and is left out.")
        return {}
    return found
