"""scripts/estimate_cost.py: its tables. tests/test_cost.py checks the counts."""

import sys

import pytest
from builders import load_script

from transformers_lvmae import LVMAEConfig
from transformers_lvmae.cost import pretraining_cost


@pytest.fixture(scope="module")
def estimate():
    return load_script("estimate_cost")


@pytest.mark.parametrize("task", ["tokenizer", "pretraining", "finetuning", "classifying"])
def test_estimates_are_printed_and_the_largest_batch_fits(task, estimate, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["estimate_cost.py", task, "--batch_size", "2", "--precision", "bfloat16"])
    estimate.main()
    printed = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    largest = int(printed["largest batch"])
    room = 24 * 2**30 - estimate.OVERHEAD
    args = estimate.parser().parse_args(sys.argv[1:])
    fits, too_large = (estimate.step_cost(args, largest + more).peak_bytes for more in (0, 1))
    assert largest > 1
    assert fits <= room < too_large


def test_options_change_what_is_counted(estimate):
    def cost(*options):
        return estimate.step_cost(estimate.parser().parse_args(options), 1)

    small = ["--size", "small", "--frames", "16", "--image_size", "112"]
    assert cost("pretraining", *small).parameters < cost("pretraining", "--frames", "16").parameters
    assert cost("pretraining", *small, "--budget", "0.5").flops > cost("pretraining", *small).flops
    eager = cost("finetuning", *small, "--attention", "eager")
    plain = cost("finetuning", *small, "--labels", "10")
    assert eager.saved_bytes > plain.saved_bytes
    assert eager.parameters - plain.parameters == 38 * (384 + 1)
    lora = cost("finetuning", *small, "--labels", "10", "--lora_rank", "2")
    assert lora.trainable_parameters == 12 * 2 * 2 * 384 * 2 + 10 * (384 + 1)
    recomputed = cost("finetuning", *small, "--labels", "10", "--checkpointing", "mlp")
    assert recomputed.saved_bytes < plain.saved_bytes
    assert recomputed.flops > plain.flops
    mixed = cost("finetuning", *small, "--labels", "10", "--mixing")
    assert mixed.input_bytes == 2 * plain.input_bytes
    assert cost("tokenizer", "--training").trainable_parameters > cost("tokenizer").trainable_parameters == 0


def test_time_and_memory_are_those_of_the_device(estimate, monkeypatch, capsys):
    options = ["pretraining", "--size", "small", "--frames", "16", "--memory", "80", "--peak", "312", "--clips", "3600"]
    monkeypatch.setattr(sys, "argv", ["estimate_cost.py", *options])
    estimate.main()
    printed = {line[:40].strip(): line[41:] for line in capsys.readouterr().out.splitlines()}
    seconds = pretraining_cost(LVMAEConfig.from_size("small", num_frames=16)).flops / (312e12 * 0.35)
    assert printed["seconds a step at 35% of 312 TFLOP/s"] == f"{seconds:.3g}"
    assert printed["hours for 3,600 clips"] == f"{seconds:.1f}"
    assert printed["peak"].endswith("of 80 GiB")


def test_the_table_says_what_does_not_fit(estimate, monkeypatch, capsys):
    monkeypatch.setattr(
        estimate, "MACHINES", (estimate.Machine("a watch", 1, 1, 1), estimate.Machine("64", 64, 80, 312))
    )
    rows = [row for row in estimate.TABLE if row[0] in ("pre-training, ViT-B", "pre-training, ViT-H")]
    monkeypatch.setattr(estimate, "TABLE", rows)
    monkeypatch.setattr(sys, "argv", ["estimate_cost.py", "table"])
    estimate.main()
    rows = {line.split(" | ")[0].strip("| "): line for line in capsys.readouterr().out.splitlines()}
    assert "does not fit" in rows["pre-training, ViT-H"]
    config = LVMAEConfig()
    hourly = 3600 * 64 * 312e12 * 0.35 / pretraining_cost(config, precision="bfloat16").flops
    assert f"{hourly:,.0f} /h" in rows["pre-training, ViT-B"]
