"""benchmarks/run.py and scripts/estimate_cost.py: what they add to the formulas and counters that are tested elsewhere."""

import json
import sys
from dataclasses import replace

import pytest
from builders import load_script

from transformers_lvmae import LVMAEConfig
from transformers_lvmae.cost import TransformerLayers, pretraining_cost


@pytest.fixture(scope="module")
def benchmark():
    return load_script("run")


@pytest.fixture(scope="module")
def estimate():
    return load_script("estimate_cost")


def test_a_case_is_run_and_counted(benchmark):
    case = {"build": "lvmae_step", "size": "small", "frames": 16, "attention": "sdpa", "backward": True, "count": True}
    result = benchmark.run_case({**case, "memory": True}) | benchmark.run_case({**case, "memory": False})
    cost = pretraining_cost(LVMAEConfig.from_size("small", num_frames=16))
    assert result["flops"] == pytest.approx(cost.flops, rel=0.02)
    assert result["saved"] == pytest.approx(cost.saved_bytes, rel=0.02)
    assert result["cpu"] > 0.01
    assert result["rss"] > 2**20
    assert result["flops"] / result["cpu"] < result["gemm_rate"] * 1.5


def test_the_peer_with_a_masked_decoder_has_that_decoders_cost(benchmark):
    """In closed form: VideoMAE's layers on the visible tokens and half of all, and every tubelet embedded."""
    case = {"build": "videomae_v2_step", "size": "small", "frames": 16, "attention": "sdpa", "backward": True}
    result = benchmark.run_case({**case, "memory": True, "count": True})
    config = LVMAEConfig.from_size("small", num_frames=16, target_type="pixels")
    cost = pretraining_cost(config, decoded_tokens=784)
    ours = TransformerLayers(1, 160 + 784, config.decoder_hidden_size, config.decoder_intermediate_size, 3, outputs=784)
    whole = replace(ours, outputs=160 + 784)  # what comes out at visible positions, too
    embedding = 4 * (1568 - 160) * config.target_size * config.hidden_size  # of hidden tubelets
    expected = cost.flops + whole.flops("none") - ours.flops("none") + embedding
    assert result["flops"] == pytest.approx(expected, rel=0.001)


def test_the_classifiers_forward_holds_no_more_than_videomaes(benchmark):
    """Peak memory of processes of their own: nothing that a layer is done with lives on through its MLP."""
    case = {"frames": 32, "layers": 1, "training": False, "backward": False, "memory": True, "count": False}
    peaks = [
        benchmark.run_in_fresh_process({**case, "build": build})["rss"]
        for build in ("lvmae_classifier", "videomae_classifier")
    ]
    assert peaks[0] < 0.95 * peaks[1]


def test_every_group_has_cases_that_can_be_built(benchmark):
    arguments = {"sizes": ["base"], "attention": ["eager"], "frames": [128], "finetune_frames": [64], "layers": 2}
    arguments["memory_frames"] = [32]
    args = benchmark.argparse.Namespace(**arguments)
    for group in benchmark.GROUPS:
        cases = list(getattr(benchmark, f"{group}_cases")(args))
        assert cases
        assert all(callable(getattr(benchmark, case["build"])) for case in cases if "build" in case)
        assert json.loads(json.dumps(cases))
    videomae = next(benchmark.step_cases(args))
    assert "build" not in videomae  # its eager step at 128 frames needs 24 GB
    assert videomae["saved"] == pytest.approx(17300 * 2**20, rel=0.01)  # extended from its runs at 16 to 64 frames
    assert videomae["flops"] == 4_367_830_745_088  # counted with sdpa, which counts the same


def test_tables_hold_medians_and_ratios_to_the_first_row(benchmark, tmp_path):
    def line(name, cpu, **more):
        return json.dumps({"group": "Decoder budget", "name": name, "cpu": cpu, "rss": 2**20, "flops": 4e9, **more})

    path = tmp_path / "results.jsonl"
    runs = [line("all", cpu, gemm_rate=2e9) for cpu in (4, 2, 9)] + [line("15 % of the tokens", 1, gemm_rate=4e9)]
    path.write_text("\n".join(runs))
    text = benchmark.report(path, tmp_path)
    assert text == (tmp_path / "tables.md").read_text()
    assert "| all | 4.00 |" in text
    assert "| 50% | 3 |" in text  # 4 GFLOP in 4 s at 2 GFLOP/s
    assert "| 15 % of the tokens | 1.00 (0.25) |" in text
    assert (tmp_path / "decoder_budgets.png").stat().st_size > 1000


@pytest.mark.parametrize("task", ["tokenizer", "pretraining", "finetuning", "classifying"])
def test_estimates_are_printed_and_the_largest_batch_fits(task, estimate, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["estimate_cost.py", task, "--batch_size", "2", "--precision", "bfloat16"])
    estimate.main()
    printed = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    largest = int(printed["largest batch a device"])
    room = 24 * 2**30 - estimate.OVERHEAD
    args = estimate.parser().parse_args(sys.argv[1:])
    fits, too_large = (estimate.step_cost(task, args, largest + more).peak_bytes() for more in (0, 1))
    assert largest > 1
    assert fits <= room < too_large


def test_the_table_says_what_does_not_fit(estimate, monkeypatch, capsys):
    monkeypatch.setattr(
        estimate, "MACHINES", (estimate.Machine("a watch", 1, 1, 1), estimate.Machine("64", 64, 80, 312))
    )
    monkeypatch.setattr(sys, "argv", ["estimate_cost.py", "table"])
    estimate.main()
    rows = {line.split(" | ")[0].strip("| "): line for line in capsys.readouterr().out.splitlines()}
    assert "does not fit" in rows["pre-training, ViT-H"]
    config = LVMAEConfig()
    hourly = 3600 * 64 * 312e12 * 0.35 / pretraining_cost(config, precision="bfloat16").flops
    assert f"{hourly:,.0f} /h" in rows["pre-training, ViT-B"]
