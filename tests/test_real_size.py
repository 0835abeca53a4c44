"""Models at their real sizes: each in a process of its own, with its memory and time measured. `pytest -m slow tests/test_real_size.py -s`"""

import json
import os
import subprocess
import sys

import pytest
from builders import ROOT


pytestmark = pytest.mark.slow

MEASURED = """
import json, os, time, torch
from transformers_lvmae import FSQMagViTConfig, FSQMagViTModel, LVMAEConfig, LVMAEForPreTraining, LVMAEForVideoClassification
from transformers_lvmae.models.masking import adaptive_decoder_mask, random_tube_mask
from measuring import measure

torch.manual_seed(0)
started = time.process_time()
{build}
build_seconds = time.process_time() - started
seen = {{}}
def work():
    {work}
usage = measure(work)
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({{**seen, "build_cpu": build_seconds, "wall": usage.wall, "cpu": usage.cpu, "above_start": usage.peak_bytes, "peak": peak}}))
"""


def run(build: str, work: str) -> dict[str, float]:
    """Build and work in a fresh process on one thread; `peak` is all of its resident memory, weights and torch included."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
    program = MEASURED.format(build=build, work=work.replace("\n", "\n    "))
    output = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT / "benchmarks",  # where measuring.py is
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result = json.loads(output.stdout.splitlines()[-1])
    print(
        {
            name: f"{value / 2**20:,.0f} MiB" if name in ("above_start", "peak") else value
            for name, value in result.items()
        }
    )
    return result


def test_pretraining_step_of_128_frames():
    """Forward and backward, 1,881 of 12,544 tokens decoded."""
    result = run(
        "model = LVMAEForPreTraining(LVMAEConfig()).train()",
        """config = model.config
masked = random_tube_mask(1, config.grid_size, config.mask_ratio)
decoded = adaptive_decoder_mask(torch.rand(1, config.seq_length), *config.decoder_token_counts(config.seq_length))
codes = torch.rand(1, config.seq_length, 6) * 2 - 1
output = model(torch.randn(1, 128, 3, 224, 224), masked, decoded, codes)
output.loss.backward()
seen["decoded"], seen["loss"] = output.logits.shape[1], output.loss.item()
seen["gradients"] = all(p.grad.isfinite().all().item() and p.grad.any().item() for p in model.parameters())""",
    )
    assert result["decoded"] == 1881
    assert result["gradients"]
    assert 0 < result["loss"] < 10
    assert result["peak"] < 1.15 * 1_896 * 2**20  # model_cards/cost.md
    assert result["build_cpu"] < 3


def test_default_tokenizer_encodes_128_frames():
    result = run(
        "model = FSQMagViTModel(FSQMagViTConfig()).eval()",
        """with torch.no_grad():
    tokens = model.encode(torch.rand(1, 128, 3, 112, 112))
seen["grid"], seen["tokens"] = list(tokens.latents.shape[1:4]), tokens.codes.shape[1]
seen["finite"] = tokens.importance_scores.isfinite().all().item()""",
    )
    assert result["grid"] == [64, 14, 14]
    assert result["tokens"] == 12_544
    assert result["finite"]
    assert result["peak"] < 1.15 * 967 * 2**20


def test_classifier_sees_128_frames():
    result = run(
        "model = LVMAEForVideoClassification(LVMAEConfig(num_labels=48)).eval()",
        """with torch.no_grad():
    logits = model(torch.randn(1, 128, 3, 224, 224)).logits
seen["labels"], seen["finite"] = logits.shape[1], logits.isfinite().all().item()""",
    )
    assert result["labels"] == 48
    assert result["finite"]
    assert result["peak"] < 1.15 * 1_745 * 2**20
    assert result["build_cpu"] < 3


TOPK_CALLS = 10


@pytest.mark.parametrize("tokens", [1_372, 12_544], ids=["a window", "a clip"])
@pytest.mark.parametrize("samples", [16, 64, 256])
def test_the_perturbed_topk_keeps_5_bytes_a_sample_and_token(samples, tokens):
    """Forward and backward of one row, the budget a tensor as in training; besides what is kept, sorting needs room for a while."""
    result = run(
        f"""from transformers_lvmae.models.masking import perturbed_topk_mask
from transformers_lvmae.cost import count_saved_bytes
scores, weights = torch.rand(1, {tokens}, requires_grad=True), torch.randn(1, {tokens})
def soft(sigma=0.05):
    return perturbed_topk_mask(scores, torch.tensor([[{tokens} // 4]]), sigma, {samples})
(soft() * weights).sum().backward()  # libraries load and allocate with the first call
seen_saved = count_saved_bytes(torch.nn.Module(), soft)[1]""",
        f"""for _ in range({TOPK_CALLS}):
    (soft() * weights).sum().backward()
seen["saved"] = seen_saved""",
    )
    elements = samples * tokens
    print(
        f"{samples} samples x {tokens:,} tokens: {1000 * result['cpu'] / TOPK_CALLS:.1f} CPU ms, peak "
        f"{result['above_start'] / 2**20:.1f} MiB, kept {result['saved'] / 2**20:.1f} MiB"
    )
    assert result["saved"] == 5 * elements
    assert result["above_start"] < 32 * elements + 2**21
