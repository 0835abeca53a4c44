"""The benchmark's cases and tables: what they add to the counters and measures that are tested elsewhere."""

import json
import pickle
from argparse import Namespace
from functools import partial

import cases
import measuring
import model_work
import pytest
import run
import tables
import torch

from transformers_lvmae import LVMAEConfig
from transformers_lvmae.cost import count_flops, pretraining_cost


def test_every_group_has_cases_that_another_process_can_take():
    args = run.parser().parse_args(["--sizes", "base", "--attention", "eager", "--frames", "128", "--layers", "2"])
    for group in cases.GROUPS.values():
        rows = list(group(args))
        assert rows
        assert len({(row.group, row.name) for row in rows}) == len(rows)
        for row in rows:
            assert json.loads(json.dumps(row.record()))["name"] == row.name
            copy = pickle.loads(pickle.dumps(row))
            assert (copy.build.func, copy.build.keywords) == (row.build.func, row.build.keywords)


def test_videomaes_eager_step_is_counted_and_not_run():
    args = Namespace(sizes=["base"], attention=["eager"], frames=[128])
    videomae = next(cases.step_cases(args))
    assert not videomae.runs
    figures = videomae.figures()
    assert figures["saved"] == pytest.approx(17300 * 2**20, rel=0.01)  # extended from its runs at 16 to 64 frames
    assert figures["flops"] == 4_367_830_745_088  # counted while it ran with sdpa


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_figures_of_videomae_are_those_of_its_step(attention):
    fields = {"size": "small", "frames": 16, "attention": attention}
    case = cases.Case("", "", partial(model_work.videomae_step, **fields), backward=True)
    counted = measuring.run_case(case, memory=True, count=True)
    figures = cases.videomae_figures(**fields)
    assert figures["flops"] == counted["flops"]
    assert figures["saved"] == pytest.approx(counted["saved"], rel=0.001)


def test_the_peer_with_a_masked_decoder_has_that_decoders_cost():
    """VideoMAE's layers on the visible tokens and half of all, and every tubelet embedded."""
    _, work = model_work.videomae_v2_step(size="small", frames=16, attention="sdpa")
    loss, flops = count_flops(work)
    flops += count_flops(loss.backward)[1]
    config = LVMAEConfig.from_size("small", num_frames=16, target_type="pixels")
    cost = pretraining_cost(config, decoded_tokens=784)
    # Its last layer also computes what comes out at visible positions; ours computes the decoded ones.
    width, inner, visible = config.decoder_hidden_size, config.decoder_intermediate_size, 160
    last_layer = 3 * visible * (4 * (visible + 784) * width + 2 * width**2 + 4 * width * inner)
    embedding = 4 * (1568 - visible) * config.target_size * config.hidden_size  # of hidden tubelets
    assert flops == pytest.approx(cost.flops + last_layer + embedding, rel=0.001)


def test_results_have_one_line_per_run(tmp_path, monkeypatch):
    """Memory first, then the repeats; a case that is not run has its figures alone."""
    seen = []

    def fake(case, memory, count):
        seen.append((case.name, memory, count))
        return {"rss": 2**20} if memory else {"cpu": 1.0, "gemm_rate": 1e9}

    monkeypatch.setattr(run, "run_in_fresh_process", fake)
    build, figures = partial(torch.zeros, size=[1]), partial(dict, flops=7)
    rows = [cases.Case("g", "counted", build), cases.Case("g", "known", build, figures=figures)]
    rows.append(cases.Case("g", "too large", build, figures=figures, runs=False))
    run.run_all(rows, repeats=1, count=True, path=tmp_path / "results.jsonl")
    expected = [("counted", True, True), ("known", True, False), ("counted", False, True), ("known", False, False)]
    assert seen == expected
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["too large", "counted", "known", "counted", "known"]
    assert lines[0]["flops"] == lines[2]["flops"] == 7


def test_tables_hold_medians_and_ratios_to_the_first_row(tmp_path):
    def line(name, cpu, **more):
        return json.dumps({"group": "Decoder budget", "name": name, "cpu": cpu, "rss": 2**20, "flops": 4e9, **more})

    path = tmp_path / "results.jsonl"
    runs = [line("all", cpu, gemm_rate=2e9) for cpu in (4, 2, 9)] + [line("15 % of the tokens", 1, gemm_rate=4e9)]
    path.write_text("\n".join(runs))
    text = tables.write_tables(path, tmp_path)
    assert text == (tmp_path / "tables.md").read_text()
    assert "| all | 4.00 |" in text
    assert "| 50% | 3 |" in text  # 4 GFLOP in 4 s at 2 GFLOP/s
    assert "| 15 % of the tokens | 1.00 (0.25) |" in text
    assert (tmp_path / "decoder_budgets.png").stat().st_size > 1000
