"""A run whose loss, gradient or weights are not finite stops before it saves anything."""

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor


MOST_PENDING = 1000  # steps that are remembered at most before the device is asked
MOST_NAMES = 8


class NonFiniteError(ArithmeticError):
    """The loss, the gradient or a weight is infinite or NaN."""


def all_finite(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return a bool on the tensors' device: True if all numbers of this process's shards are finite."""
    return torch.stack([_is_finite(tensor) for tensor in tensors if tensor.is_floating_point()]).all()


def _is_finite(tensor: torch.Tensor) -> torch.Tensor:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach().isfinite().all()


class FiniteSteps:
    """Remembers on the device which steps had a loss and a gradient that are finite, so that a step does not wait for it."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, bool]] = []  # each with whether the flag is about this process's own loss
        self.flags: list[torch.Tensor] = []

    def add(self, step: int, value: torch.Tensor | float, is_loss: bool = False) -> None:
        """Remember a number of a step, counted from 0."""
        self.steps.append((step, is_loss))
        self.flags.append(_is_finite(value if torch.is_tensor(value) else torch.full((), value)))

    @property
    def should_check(self) -> bool:
        """Whether to check now: on a CPU, where nothing waits, or when much is remembered."""
        return bool(self.flags) and (self.flags[-1].device.type == "cpu" or len(self.flags) >= MOST_PENDING)

    def first_bad_step(self, accelerator: Accelerator) -> tuple[int | None, bool]:
        """Return the first bad step, and whether this process's loss was bad in it, and start anew. Every process must call it."""
        if not self.flags:
            return None, False
        bad = [step for step, good in zip(self.steps, torch.stack(self.flags).tolist()) if not good]
        self.steps, self.flags = [], []
        own = torch.tensor(float(min((step for step, _ in bad), default=math.inf)), device=accelerator.device)
        first = accelerator.gather(own).min().item()
        return (None, False) if math.isinf(first) else (int(first), (first, True) in bad)


def rows_of_step(loader: Any, step: int, accumulation_steps: int) -> list[int]:
    """Return the rows of this process in a step of training, counted from 0, or none if the data is a stream."""
    sampler = getattr(loader, "batch_sampler", None)
    if sampler is None or not hasattr(loader, "set_epoch") or not hasattr(loader.dataset, "__getitem__"):
        return []
    epoch, update = divmod(step, math.ceil(len(loader) / accumulation_steps))
    loader.set_epoch(epoch)
    batches = islice(sampler, update * accumulation_steps, (update + 1) * accumulation_steps)
    return [row for batch in batches for row in batch]


def named_rows(dataset: Any, rows: list[int]) -> list[str]:
    """Return the names of rows' videos if the dataset knows them, else "row 7"."""
    names = getattr(dataset, "video_names", None)
    return names(rows) if names else [f"row {row}" for row in rows]


def list_of_all(names: list[str], own: bool) -> str:
    """Join names of all processes in a text: of those that say `own`, or else of all. Every process must call this."""
    everyone = list(dict.fromkeys(gather_object(names if own else []) or gather_object(names)))
    more = f" and {len(everyone) - MOST_NAMES} more" if len(everyone) > MOST_NAMES else ""
    return ", ".join(everyone[:MOST_NAMES]) + more
