"""Measure one piece of work in a process of its own: CPU seconds, peak memory, FLOPs.

Memory and time come from separate runs. Only an allocator that gives large blocks back at once shows what is in use; it gets every
large tensor from empty pages, which costs CPU time. So MALLOC_MMAP_THRESHOLD_ is set for the run that measures memory, and only there.
"""

import gc
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cases import Case

from transformers_lvmae.cost import count_flops, count_saved_bytes


@dataclass
class Usage:
    """What a piece of work used: seconds of wall clock, seconds of CPU (user and system), and bytes above the start at the peak; of this
    process and its children, such as the one that decodes videos. A child that starts meanwhile counts whole."""

    wall: float
    cpu: float
    peak_bytes: int


def measure(work: Callable[[], Any]) -> Usage:
    """Run `work` once in this process (Linux). Only one figure per process is comparable: a second one finds a warm allocator."""
    before = _family()
    for process in before:
        Path(f"/proc/{process}/clear_refs").write_text("5")  # resets the high-water mark to the memory resident now
    resident = sum(_resident_bytes(process, "VmRSS") for process in before)
    wall, cpu = time.perf_counter(), _cpu_seconds(before)
    work()
    wall, after = time.perf_counter() - wall, _family()
    peak = sum(_resident_bytes(process, "VmHWM") for process in after)
    return Usage(wall=wall, cpu=_cpu_seconds(after) - cpu, peak_bytes=peak - resident)


def _family() -> list[int]:
    """The numbers of this process and its children."""
    children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    return [os.getpid(), *(int(number) for numbers in children for number in numbers)]


def _cpu_seconds(processes: list[int]) -> float:
    """Seconds of CPU of this process, of its children that ended, and of those that run."""
    stats = [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split() for process in processes[1:]]
    return sum(os.times()[:4]) + sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def _resident_bytes(process: int, field: str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def gemm_rate() -> float:
    """FLOPs per CPU second of this thread's best float32 matrix product, right now."""
    left, right = torch.randn(1280, 768), torch.randn(768, 3072)
    left @ right
    rates = []
    for _ in range(10):
        start = time.process_time()
        left @ right
        rates.append(2 * 1280 * 768 * 3072 / (time.process_time() - start))
    return max(rates)


def run_case(case: Case, memory: bool, count: bool) -> dict[str, float]:
    """Run one case in this process, on one thread.

    Args:
        memory: measure the peak memory instead of the time.
        count: also count FLOPs and saved bytes, in a second run after the one whose memory is measured.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started = time.process_time()
    model, work = case.build()
    build_seconds = time.process_time() - started
    rate = gemm_rate()
    sent: dict[str, float] = {}

    def step() -> None:
        with torch.set_grad_enabled(case.backward):
            result = work()
            if case.backward:
                result.backward()
            if isinstance(result, dict):
                sent["sent"] = sum(value.nbytes for value in result.values() if isinstance(value, torch.Tensor))

    gc.collect()
    usage = measure(step)
    if not memory:
        times = {"build_cpu": build_seconds, "wall": usage.wall / case.clips, "cpu": usage.cpu / case.clips}
        return {**times, "gemm_rate": rate}
    result = {"rss": usage.peak_bytes, **sent}
    if count and model is not None:
        model.zero_grad()
        with torch.set_grad_enabled(case.backward):
            output, flops = count_flops(work)
            flops += count_flops(output.backward)[1] if case.backward else 0
            # Not inside the FLOP counter: its hooks would make every recomputed function a plain call.
            saved = count_saved_bytes(model, work)[1]
        result |= {"flops": flops, "saved": saved}
    return result


def run_in_fresh_process(case: Case, memory: bool, count: bool) -> dict[str, float]:
    """As [`run_case`], in a new process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if memory:
        environment["MALLOC_MMAP_THRESHOLD_"] = "262144"
    output = subprocess.run(
        [sys.executable, __file__],
        input=pickle.dumps((case, memory, count)),
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    return json.loads(output.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(run_case(*pickle.load(sys.stdin.buffer))))
