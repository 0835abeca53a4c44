"""Clock and memory against work of known size, and a case that is run."""

import subprocess
import sys
from functools import partial

import measuring
import model_work
import pytest
import torch
from cases import Case

from transformers_lvmae import LVMAEConfig
from transformers_lvmae.cost import classification_cost, pretraining_cost


def test_peak_memory_and_seconds_are_those_of_the_work():
    def work():
        torch.ones(64 * 2**20)  # 256 MiB, gone at once
        sum(range(1_000_000))

    usage = measuring.measure(work)
    assert 250 * 2**20 < usage.peak_bytes < 280 * 2**20
    assert 0 < usage.cpu < 10
    assert usage.wall > 0


@pytest.mark.slow
def test_a_case_is_run_and_counted():
    fields = {"size": "small", "frames": 16, "attention": "sdpa"}
    case = Case("", "", partial(model_work.lvmae_step, **fields), backward=True)
    result = measuring.run_case(case, memory=True, count=True) | measuring.run_case(case, memory=False, count=False)
    cost = pretraining_cost(LVMAEConfig.from_size("small", num_frames=16), decoded_tokens=int(0.15 * 1568))
    assert result["flops"] == cost.flops
    assert result["saved"] == pytest.approx(cost.saved_bytes, rel=0.001)
    assert result["cpu"] > 0.01
    assert measuring.run_in_fresh_process(case, memory=True, count=False)["rss"] > 2**20
    assert result["flops"] / result["cpu"] < result["gemm_rate"] * 1.5


@pytest.mark.slow
def test_the_classifiers_forward_holds_what_is_counted_and_less_than_videomaes():
    """Peak memory of processes of their own: each layer frees its temporaries before its MLP."""
    fields = {"frames": 32, "layers": 1, "training": False}
    ours, videomae = (
        measuring.run_in_fresh_process(Case("", "", partial(build, **fields)), memory=True, count=False)["rss"]
        for build in (model_work.lvmae_classifier, model_work.videomae_classifier)
    )
    assert ours < 0.95 * videomae
    config = LVMAEConfig(num_frames=32, num_hidden_layers=1)
    assert classification_cost(config, training=False).step_bytes == pytest.approx(ours, rel=0.1)


@pytest.mark.slow
def test_a_step_holds_what_is_counted():
    """The peak of a fine-tuning step in a process of its own: 2 layers of ViT-B, 16 frames."""
    build = partial(model_work.lvmae_classifier, frames=16, layers=2, training=True)
    case = Case("", "", build, backward=True)
    measured = measuring.run_in_fresh_process(case, memory=True, count=False)["rss"]
    counted = classification_cost(LVMAEConfig(num_frames=16, num_hidden_layers=2, num_labels=48)).step_bytes
    assert counted == pytest.approx(measured, rel=0.15)


def test_a_child_that_starts_meanwhile_counts():
    """As the process that decodes the first video does: its CPU and its memory."""
    children = []

    def work():
        code = "held = bytearray(100_000_000); sum(range(20_000_000)); print(flush=True); input()"
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.readline()
        children.append(child)

    usage = measuring.measure(work)
    children[0].kill()
    children[0].communicate()
    assert usage.peak_bytes > 90e6
    assert usage.cpu > 0.1
