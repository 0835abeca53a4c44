"""Measure cases on a device, one after the other in one process, and write a line for each as soon as it is known.

What does not fit into the memory gets a line that says so, and the next case follows. A step that hangs or a process that dies is the
business of gpu.py, which started it.
"""

import gc
import json
import pickle
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from cases import Case
from measuring import measure


BLOCKS = 3


def measure_all(cases: list[Case], device: str, seconds: float, path: Path) -> None:
    """Append a line for each case to `path`. The file beside it, `working`, is touched when a case begins."""
    for case in cases:
        (path.parent / "working").touch()
        result = measure_or_say_why(case, device, seconds)
        with path.open("a") as file:
            file.write(json.dumps({**case.record(), **result}) + "\n")
        is_broken = result.get("status", "").startswith("failed") and device != "cpu"
        if is_broken:  # after an error on a GPU nothing may work in this process: gpu.py starts another
            return
        gc.collect()
        torch.cuda.empty_cache()


def measure_or_say_why(case: Case, device: str, seconds: float) -> dict[str, Any]:
    try:
        return measure_case(case, device, seconds)
    except (torch.OutOfMemoryError, MemoryError):
        return {"status": "out of memory"}
    except Exception as error:
        return {"status": f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]}


def measure_case(case: Case, device: str, seconds: float) -> dict[str, Any]:
    """Return `ms` of a clip, the median of blocks of steps that take `seconds` together, and the peak memory of a step.

    `device_peak` counts the bytes of all tensors, weights and gradients included; without a GPU, the process's memory above its start.
    """
    from transformers.models.videomae import modeling_videomae

    torch.manual_seed(0)
    # Its table of positions is made in a Python loop: 20 seconds at 128 frames. The values do not change the cost.
    table = mock.patch.object(modeling_videomae, "get_sinusoid_encoding_table", lambda n, d: torch.zeros(1, n, d))
    with table, torch.device(device):
        model, work = case.build()

    def step() -> None:
        with torch.set_grad_enabled(case.backward), torch.autocast(torch.device(device).type, torch.bfloat16):
            result = work()
        if case.backward:
            result.backward()
            model.zero_grad()

    step()  # chooses kernels, and compiles
    peak, duration = peak_bytes(step, device), time_of(step, 1, device)
    steps = max(1, min(100, round(seconds / BLOCKS / max(duration, 1e-6))))
    # A step that fills the budget alone is not repeated.
    times = [time_of(step, steps, device) for _ in range(BLOCKS)] if duration < seconds else [duration]
    ms = 1000 * statistics.median(times) / case.clips
    spread = (max(times) - min(times)) / statistics.median(times)
    return {"ms": ms, "clips_per_second": 1000 / ms, "spread": spread, "device_peak": peak, "blocks": len(times)}


def time_of(step: Callable[[], None], steps: int, device: str) -> float:
    """Return the seconds of one of `steps` steps. The host waits for the device at the end alone."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    return (time.perf_counter() - started) / steps


def peak_bytes(step: Callable[[], None], device: str) -> int:
    if device == "cpu":
        return measure(step).peak_bytes
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    measure_all(*pickle.load(sys.stdin.buffer))
