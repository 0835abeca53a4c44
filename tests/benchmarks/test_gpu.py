"""benchmarks/gpu.py with the device replaced: the same code on a CPU, at a tiny size."""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path

import gpu
import gpu_cases
import gpu_measuring
import model_work
import pytest
import torch
from builders import ROOT
from cases import Case

from transformers_lvmae.models import configuration_lvmae


TINY = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 1}
TINY_DECODER = {"decoder_hidden_size": 32, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 64}
ABOUT = {"device": "a device", "torch": "2"}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(gpu_cases, "BATCHES", dict.fromkeys(gpu_cases.BATCHES, 1))
    monkeypatch.setitem(model_work.ENCODERS, "small", TINY)
    monkeypatch.setitem(model_work.DECODERS, "small", TINY_DECODER)
    monkeypatch.setitem(configuration_lvmae.LVMAE_SIZES, "small", {**TINY, **TINY_DECODER})


def measured_here(cases, results, device, seconds, patience, deadline):
    pending = [case for case in cases if (case.group, case.name) not in results.rows()]
    gpu_measuring.measure_all(pending, device, seconds, results.path)


def test_every_model_is_measured_and_reported(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "supervise", measured_here)
    models = ["VideoMAE", "V-JEPA 2", "LVMAE", "LVMAE, a quarter of the tokens"]
    options = ["--device", "cpu", "--frames", "4", "--sizes", "small", "--seconds", "0.01", "--no_tests"]
    assert gpu.main([*options, "--output", str(tmp_path), "--names", *models]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["machine"]["torch"] == torch.__version__
    assert len(found["rows"]) == 2 + 2 * len(models)
    assert all(row["ms"] > 0 and row["clips_per_second"] > 0 and row["device_peak"] >= 0 for row in found["rows"])
    text = (tmp_path / "gpu.md").read_text()
    assert text == capsys.readouterr().out.removesuffix("\n")
    assert "### Fine-tuning step, ViT-S, 4 frames, 1 clips" in text
    assert text.count("| V-JEPA 2 |") == 2
    assert "|  | ms a clip | clips/s | peak GiB | runs |" in text
    # Again: nothing is measured a second time.
    before = (tmp_path / "results.jsonl").read_text()
    gpu.main([*options, "--output", str(tmp_path), "--names", *models])
    assert (tmp_path / "results.jsonl").read_text() == before


def out_of_memory():
    raise torch.OutOfMemoryError("Tried to allocate 80 GiB")


def broken():
    raise RuntimeError("CUDA error: an illegal memory access")


def test_what_does_not_fit_or_fails_is_a_row(tmp_path):
    cases = [
        Case("g", "large", partial(out_of_memory)),
        Case("g", "broken", partial(broken)),
        Case("h", "late", partial(broken)),
    ]
    results = gpu.Results(tmp_path, ABOUT)
    gpu_measuring.measure_all(cases[:2], "cpu", 0.01, results.path)
    text = gpu.report(cases, results, tmp_path)
    assert "device a device, torch 2" in text
    assert "| large (out of memory) | 0 |" in text
    assert "| broken (failed: RuntimeError: CUDA error: an illegal memory access) | 0 |" in text
    assert "| late (not reached) | 0 |" in text


@pytest.mark.slow  # processes start
def test_a_process_that_hangs_or_dies_costs_one_row(tmp_path):
    cases = [Case("g", "dies", partial(os._exit, 3)), Case("g", "hangs", partial(time.sleep, 100))]
    cases.append(Case("g", "next", partial(os._exit, 4)))
    results = gpu.Results(tmp_path, ABOUT)
    gpu.supervise(cases[:2], results, "cpu", 0.01, patience=1, deadline=time.monotonic() + 600)
    assert [row["status"] for row in results.rows().values()] == ["failed: exit code 3", "over its time"]
    started = time.monotonic()
    gpu.supervise(cases, results, "cpu", 0.01, patience=1, deadline=started + 0.5)
    assert time.monotonic() - started < 20
    assert len(results.rows()) == 2  # time is up: the next run goes on here


def test_results_of_another_machine_are_put_aside(tmp_path):
    gpu.Results(tmp_path, ABOUT).add({"group": "g", "name": "n", "ms": 1})
    assert len(gpu.Results(tmp_path, ABOUT).rows()) == 1
    assert gpu.Results(tmp_path, {**ABOUT, "torch": "3"}).rows() == {}
    assert len(list(tmp_path.glob("results_*.jsonl"))) == 1


@pytest.mark.parametrize(
    ("code", "text", "status"),
    [(0, "9 passed, 3 skipped in 40s", "9 passed, 3 skipped in 40s"), (1, "1 failed, 8 passed in 2s", "1 failed, 8 passed in 2s"), (4, "no", "failed: exit code 4")],
)  # fmt: skip
def test_the_tests_are_a_row_and_run_again_until_they_pass(code, text, status, tmp_path, monkeypatch):
    runs = []

    def fake(command, stdout, **options):
        runs.append(command)
        stdout.write(f"...\n{text}\n")
        return Namespace(returncode=code)

    results = gpu.Results(tmp_path, ABOUT)
    monkeypatch.setattr(gpu.subprocess, "run", fake)
    for _ in range(2):
        gpu.run_tests(results, tmp_path, 10)
    assert results.rows()[gpu.TESTS] == {
        "group": "Tests",
        "name": "pytest -m gpu",
        "status": status,
        "passed": code == 0,
    }
    assert len(runs) == (1 if code == 0 else 2)
    assert [Path(word).name for word in runs[0][7:]] == ["test_on_device.py"]


def test_a_machine_without_a_gpu_or_packages_is_told_so(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"Got torch .* that finds no GPU, expected one"):
        gpu.check_device("cuda")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    environment = {**os.environ, "PYTHON": str(tmp_path / "bare" / "bin" / "python"), "PYTHONPATH": ""}
    run = subprocess.run(["bash", str(ROOT / "benchmarks" / "gpu.sh")], env=environment, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith("error: Got Python without torch, torchvision, transformers, ")
    # With them, the program starts.
    run = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--no_such_option"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "--no_such_option" in run.stderr


def test_the_cases_are_those_of_all_sizes():
    cases = gpu_cases.gpu_cases(Namespace(sizes=["small", "base", "large"], frames=128))
    groups = list(dict.fromkeys(case.group for case in cases))
    assert groups[0] == "Pre-training step, ViT-B, 128 frames, 8 clips"
    assert len(groups) == 3 * 3 + 2
    assert len({(case.group, case.name) for case in cases}) == len(cases) < 45
