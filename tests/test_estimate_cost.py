"""scripts/estimate_cost.py: its tables. tests/test_cost.py checks the counts."""

import sys

import pytest
from builders import ROOT, load_script

from transformers_lvmae import LVMAEConfig
from transformers_lvmae.cost import classification_cost, pretraining_cost


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


def table_rows(path: str) -> dict[str, list[str]]:
    """The cells of all tables of a Markdown file, by the first cell of the row."""
    rows = [line.strip("| ").split(" | ") for line in (ROOT / path).read_text().splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in rows}


def fast_or_slow(names, fast):
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]


CARD_ROWS = [row[0] for row in load_script("estimate_cost").TABLE]


@pytest.mark.parametrize(
    "name", fast_or_slow(CARD_ROWS, ["pre-training, ViT-B", "fine-tuning, ViT-B, layers checkpointed"])
)
def test_the_cost_cards_table_is_what_the_command_prints(name, estimate, monkeypatch):
    monkeypatch.setattr(estimate, "TABLE", [row for row in estimate.TABLE if row[0] == name])
    *_, printed = estimate.machine_table(estimate.parser().parse_args(["table"])).splitlines()
    assert table_rows("model_cards/cost.md")[name] == printed.strip("| ").split(" | ")[1:]
    assert [name for name in CARD_ROWS if name not in table_rows("model_cards/cost.md")] == []


@pytest.mark.parametrize("size", fast_or_slow(["small", "base", "large", "huge"], ["small", "base"]))
def test_the_table_of_sizes_is_what_is_counted(size):
    config = LVMAEConfig.from_size(size)
    pretraining = pretraining_cost(config)
    labelled = LVMAEConfig.from_size(size, num_labels=48)
    plain, checkpointed = (classification_cost(labelled, checkpointing=kind) for kind in ("none", "mlp"))
    expected = [f"{pretraining.parameters / 1e6:.1f} M", f"{pretraining.flops / 1e12:.2f}"]
    expected += [f"{pretraining.saved_bytes / 2**30:.2f} GiB", f"{plain.flops / 1e12:.1f}"]
    expected += [f"{checkpointed.saved_bytes / 2**30:.2f} GiB"]
    assert table_rows("docs/cost.md")[f"ViT-{size[0].upper()}"] == expected
