"""Files that version 0.1 wrote still load: checkpoints, an adapter, a target cache, and unfinished runs.

tests/fixtures/README.md says how the files were made. They never change.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import FIXTURES, SCRIPTS
from huggingface_hub.errors import StrictDataclassClassValidationError
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
)

import transformers_lvmae  # noqa: F401  registers the Auto classes
from transformers_lvmae.models.fsq import indices_to_codes
from transformers_lvmae.targets.cache import TargetCache


WRITTEN = FIXTURES / "version_0_1"
DATA = ["--dataset_name", str(FIXTURES / "clips"), "--eval_split", "test"]
DATA += ["--max_train_samples", "8", "--max_eval_samples", "2"]
TRAINING = ["--per_device_train_batch_size", "4", "--max_steps", "4", "--save_steps", "1", "--save_total_limit", "1"]
TRAINING += ["--logging_steps", "1", "--report_to", "none", "--use_cpu"]
NETWORK = {"image_size": 32, "patch_size": 8, "num_frames": 8, "hidden_size": 16, "num_hidden_layers": 2}
NETWORK |= {"num_attention_heads": 2, "intermediate_size": 32, "decoder_hidden_size": 16}
NETWORK |= {"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32}
NETWORK |= {"mask_ratio": 0.75, "decoder_mask_ratio": 0.7, "decoder_random_ratio": 0.2}
TOKENIZER = {"image_size": 16, "num_frames": 8, "window_size": 8, "base_channels": 4, "channel_multipliers": [1, 1]}
TOKENIZER |= {"temporal_downsample": [True], "num_res_blocks": 1, "norm_num_groups": 4, "stem_patch_size": [1, 2, 2]}
TOKENIZER |= {"scorer_hidden_size": 4, "levels": [8, 5, 5], "topk_num_samples": 8}


@pytest.fixture(scope="module")
def outputs():
    return load_file(WRITTEN / "outputs.safetensors")


def read_clip(checkpoint: str) -> torch.Tensor:
    processor = AutoVideoProcessor.from_pretrained(WRITTEN / checkpoint)
    path = str(FIXTURES / "clips" / "test" / "clip_00000.mp4")
    return processor(path, num_frames=8, do_sample_frames=True, return_tensors="pt")["pixel_values_videos"]


@torch.no_grad()
def test_the_tokenizer_gives_the_same_codes_scores_and_pictures(outputs):
    tokenizer, clip = AutoModel.from_pretrained(WRITTEN / "tokenizer/checkpoint-2"), read_clip("tokenizer/checkpoint-2")
    tokens = tokenizer.encode(clip)
    assert torch.equal(tokens.code_indices, outputs["code_indices"])
    torch.testing.assert_close(tokens.importance_scores, outputs["importance_scores"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokenizer(clip).reconstruction, outputs["reconstruction"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_autoencoder_gives_the_same_predictions_and_loss(outputs):
    model, clip = (
        AutoModelForPreTraining.from_pretrained(WRITTEN / "pretrain/checkpoint-2"),
        read_clip("pretrain/checkpoint-2"),
    )
    tokenizer = AutoModel.from_pretrained(WRITTEN / "tokenizer/checkpoint-2")
    codes = indices_to_codes(outputs["code_indices"], tokenizer.config.levels)
    masked, decoded = (torch.arange(64) % 16 > 3)[None], (torch.arange(64) % 4 == 1)[None]
    made = model(clip, bool_masked_pos=masked, bool_decoded_pos=decoded, target_codes=codes)
    torch.testing.assert_close(made.logits, outputs["pretraining_logits"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.loss[None], outputs["pretraining_loss"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_classifier_and_the_adapter_give_the_same_logits(outputs):
    clip = read_clip("finetune/checkpoint-2")
    classifier = AutoModelForVideoClassification.from_pretrained(WRITTEN / "finetune/checkpoint-2")
    torch.testing.assert_close(classifier(clip).logits, outputs["classification_logits"], rtol=1e-4, atol=1e-5)
    config = AutoConfig.from_pretrained(WRITTEN / "adapter")
    base = AutoModelForVideoClassification.from_pretrained(WRITTEN / "pretrain/checkpoint-2", config=config)
    adapted = PeftModel.from_pretrained(base, WRITTEN / "adapter").eval()
    torch.testing.assert_close(adapted(clip).logits, outputs["adapter_logits"], rtol=1e-4, atol=1e-5)


def test_the_tokenizer_s_fingerprint_is_the_one_in_its_cache_after_saving_it_again_too(tmp_path):
    tokenizer = AutoModel.from_pretrained(WRITTEN / "tokenizer/checkpoint-2")
    cache = TargetCache(WRITTEN / "targets" / "train")
    cache.check_tokenizer(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    cache.check_tokenizer(AutoModel.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"), [("topk_kind", "sparse"), ("first_slot_score", "copy_next"), ("topk_straight_through", False)]
)
def test_a_tokenizer_that_needs_what_was_deleted_is_refused(field, value, tmp_path):
    fields = json.loads((WRITTEN / "tokenizer/checkpoint-2/config.json").read_text())
    assert {"topk_kind", "first_slot_score", "topk_straight_through", "topk_regularization"} <= set(fields)
    (tmp_path / "config.json").write_text(json.dumps({**fields, field: value}))
    with pytest.raises(StrictDataclassClassValidationError, match=f"Got {field}={value!r}, expected .*: train a new"):
        AutoConfig.from_pretrained(tmp_path)


def resume(stage: str, script: str, folder: Path, *options: str) -> list[float]:
    """Go on from the checkpoint of step 2 to step 4; returns the losses of all steps."""
    shutil.copytree(WRITTEN / stage, folder / stage)
    command = [sys.executable, str(SCRIPTS / script), *DATA, *TRAINING, "--output_dir", str(folder / stage), *options]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    history = json.loads((folder / stage / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_a_pretraining_run_goes_on_with_its_cache(tmp_path):
    options = ["--target_cache", str(WRITTEN / "targets"), "--tokenizer", str(WRITTEN / "tokenizer/checkpoint-2")]
    losses = resume("pretrain", "pretrain.py", tmp_path, *options, "--config_overrides", json.dumps(NETWORK))
    assert losses == pytest.approx(json.loads((WRITTEN / "losses.json").read_text())["pretrain"], rel=1e-5)


def test_a_finetuning_run_goes_on(tmp_path):
    options = ["--model_name_or_path", str(WRITTEN / "pretrain/checkpoint-2"), "--ema_decay", "0.9"]
    losses = resume("finetune", "finetune.py", tmp_path, *options)
    expected = json.loads((WRITTEN / "losses.json").read_text())["finetune"]
    assert losses[:2] == pytest.approx(expected[:2], rel=1e-5)
    assert losses[2:] == pytest.approx(expected[2:], rel=1e-2)  # the tubes that are dropped come from (seed, step) now


def test_a_tokenizer_s_run_goes_on_with_its_discriminator_and_averages(tmp_path):
    options = ["--perceptual_weight", "0", "--config_overrides", json.dumps(TOKENIZER), "--ema_decay", "0.9"]
    options += ["--adversarial_weight", "0.1", "--discriminator_channels", "2", "--discriminator_multipliers", "2", "4"]
    losses = resume("tokenizer", "train_tokenizer.py", tmp_path, *options)
    # Version 0.1 trained its discriminator with LeCAM too, whose two averages its file holds and whose term moves the fourth loss.
    expected = json.loads((WRITTEN / "losses.json").read_text())["tokenizer"]
    assert losses[:3] == pytest.approx(expected[:3], rel=1e-5)
    assert losses[3] == pytest.approx(expected[3], rel=1e-2)
