"""A Trainer with averaged weights (EMA). They are evaluated and saved in place of the last step's weights."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

from .base import VideoTrainer


class _OnOptimizerStep(TrainerCallback):
    """Call a function right after each step of the model's optimizer."""

    def __init__(self, action: Callable[[], None]):
        self.action = action

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.action()


class AveragingTrainer(VideoTrainer):
    """A Trainer that averages weights if `ema_decay` is above 0. The averaged weights are evaluated and saved, in checkpoints too.

    `model` holds the weights of the last step. The file `training_file` of a checkpoint holds what Trainer does not save: the state of
    `stateful_parts()`, and the weights of the last step where the checkpoint's own weights are the averaged ones.
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
        model, average = self.accelerator.unwrap_model(self.model), get_ema_multi_avg_fn(self.args.ema_decay)
        averaged = AveragedModel(model, multi_avg_fn=average)
        averaged.update_parameters(self.model)  # the first update copies the model's weights
        return averaged.requires_grad_(False)

    def _step_along(self) -> None:
        """Update the average. Called after each step of the model's optimizer."""
        if self.averaged_model is not None:
            self.averaged_model.update_parameters(self.model)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside this context `model` has the averaged weights, if there are any. Outside it has its own tensors again."""
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

    def trained_tensors(self) -> Iterator[torch.Tensor]:
        yield from super().trained_tensors()
        if self.averaged_model is not None:
            yield from self.averaged_model.module.parameters()

    def stateful_parts(self) -> dict[str, Any]:
        """Return the parts that are saved and resumed in addition to model, optimizer and schedule. A part that is not in use is None."""
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
