"""What a piece of work costs, measured: FLOPs, bytes kept for backward, CPU seconds and peak memory.

Three traps are avoided here: torch's counter knows no FLOPs for scaled-dot-product attention on a CPU; a tensor kept twice is one
storage; and memory that the allocator gave back looks free only if large blocks are mapped (set MALLOC_MMAP_THRESHOLD_=262144).
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


Result = TypeVar("Result")


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    batch, heads, queries, size = query
    return 2 * batch * heads * queries * key[2] * (size + value[3])


def _attention_backward_flops(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _attention_flops(query, key, value)


def count_flops(work: Callable[[], Result]) -> tuple[Result, int]:
    """The result of `work` and its FLOPs in matrix products and convolutions (a multiply-add is 2).

    Attention counts as its eager form does, 2 products forward and 4 backward: what a fused kernel computes twice to save
    memory counts once.
    """
    aten = torch.ops.aten
    formulas = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        result = work()
    return result, counter.get_total_flops()


def count_saved_bytes(model: nn.Module, work: Callable[[], Result]) -> tuple[Result, int]:
    """The result of `work` and the bytes that it keeps for backward: each storage once, the model's own left out."""
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    return result, sum(storage.nbytes() for storage in storages.values())


@dataclass
class Usage:
    """What a piece of work used: seconds of wall clock, seconds of CPU (user and system, of child processes that ended, too), and
    bytes above the start at the peak, of this process alone."""

    wall: float
    cpu: float
    peak_bytes: int


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(work: Callable[[], Any]) -> Usage:
    """Run `work` once in this process (Linux). One figure a process is comparable: a second one finds a warm allocator."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is resident now
    resident = _resident_bytes("VmRSS")
    wall, times = time.perf_counter(), os.times()
    work()
    ended = os.times()
    return Usage(
        wall=time.perf_counter() - wall,
        cpu=sum(ended[:4]) - sum(times[:4]),
        peak_bytes=_resident_bytes("VmHWM") - resident,
    )
