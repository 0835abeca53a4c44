"""The three trainers on real clips at tiny size: learning, accumulation, evaluation, resuming, targets."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import (
    CLIPS,
    MODEL,
    TESTS,
    TOKENIZER,
    assert_same,
    load_script,
    losses,
    make_trainer,
    pretraining_batch,
    save_tokenizer,
    weights,
)
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import (
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    TrainerCallback,
)

from transformers_lvmae import (
    FSQMagViTConfig,
    FSQMagViTModel,
    FSQMagViTTrainingArguments,
    LVMAEClassificationArguments,
    LVMAEConfig,
    LVMAEForPreTraining,
    LVMAEForVideoClassification,
    LVMAEPreTrainer,
    LVMAEPreTrainingArguments,
)
from transformers_lvmae.data import ClipAugmentation, VideoClips, load_video_dataset, processor_for
from transformers_lvmae.models.masking import adaptive_decoder_mask
from transformers_lvmae.targets.builder import ClipViews, check_tokenizer
from transformers_lvmae.training.base import train_and_save
from transformers_lvmae.training.classification import soft_labels
from transformers_lvmae.training.perceptual_loss import PerceptualLoss
from transformers_lvmae.training.tokenizer import peak_signal_to_noise_ratio, structural_similarity
from transformers_lvmae.training.tokenizer_adversary import AdversarialLoss, VideoDiscriminator


STAGES = ("tokenizer", "pretraining", "classification")
ADVERSARIAL = {
    "adversarial_weight": 0.1,
    "discriminator_channels": 4,
    "discriminator_multipliers": [2, 4],
    "ema_decay": 0.9,
    "perceptual_weight": 0.0,
}


@pytest.fixture(scope="module")
def splits():
    return load_video_dataset(CLIPS, label_column="label")


@pytest.mark.parametrize(
    ("stage", "steps", "arguments"),
    [
        ("tokenizer", 60, {"learning_rate": 5e-3, "adam_beta1": 0.9}),
        ("pretraining", 150, {"base_learning_rate": None, "learning_rate": 5e-3, "weight_decay": 0.0}),
        ("classification", 60, {"learning_rate": 5e-3, "layer_decay": 1.0}),
    ],
)
def test_the_loss_falls_below_a_fifth_on_one_repeated_batch(stage, steps, arguments, splits, tmp_path):
    trainer = make_trainer(stage, splits, tmp_path, training=False, num_clips=4, max_steps=steps, **arguments)
    trainer.train()
    assert min(losses(trainer)[-5:]) < 0.2 * losses(trainer)[0]


@pytest.mark.parametrize("stage", STAGES)
def test_accumulated_small_batches_equal_one_large_batch(stage, splits, tmp_path):
    """Plain gradient descent, so that a step four times too long cannot hide behind Adam."""
    options = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "weight_decay": 0.0}
    if stage == "pretraining":
        options["base_learning_rate"] = None
    model = None
    if stage == "tokenizer":  # no draws in the model: they would differ between one batch and two
        model = FSQMagViTModel.from_pretrained(save_tokenizer(tmp_path, unmasked_clip_ratio=1.0))
    one = make_trainer(stage, splits, tmp_path, model=model, **{**options, "per_device_train_batch_size": 4})
    one.train()
    if stage == "tokenizer":
        model = FSQMagViTModel.from_pretrained(save_tokenizer(tmp_path, unmasked_clip_ratio=1.0))
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    two = make_trainer(stage, splits, tmp_path, model=model, **options)
    before = weights(two)
    two.train()
    moved = 0.0
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=1e-4, atol=1e-6)
        moved = max(moved, (value - before[name]).abs().max().item())
    assert moved > 1e-4


@pytest.mark.parametrize("stage", STAGES)
def test_evaluation_has_a_loss_and_the_stage_s_metrics(stage, splits, tmp_path):
    metrics = make_trainer(stage, splits, tmp_path).evaluate()
    assert math.isfinite(metrics["eval_loss"])
    assert metrics["eval_loss"] > 0
    expected = {
        "tokenizer": {"eval_psnr", "eval_psnr_kept", "eval_psnr_first_frame"},
        "pretraining": set(),
        "classification": {"eval_accuracy", "eval_top5_accuracy"},
    }[stage]
    assert expected <= set(metrics)
    assert metrics == {**metrics, **{key: make_trainer(stage, splits, tmp_path).evaluate()[key] for key in expected}}


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_equals_the_uninterrupted_one(stage, splits, tmp_path):
    """Interrupted in the middle of an epoch, with random crops, masks and starts."""
    options = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 2}
    whole = make_trainer(stage, splits, tmp_path / "whole", **options)
    train_and_save(whole)
    assert whole.state.global_step == 12
    shutil.copytree(tmp_path / "whole" / "checkpoint-6", tmp_path / "resumed" / "checkpoint-6")
    resumed = make_trainer(stage, splits, tmp_path / "resumed", **options)
    train_and_save(resumed)
    assert losses(resumed)[-6:] == losses(whole)[-6:]
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value)
    assert (tmp_path / "resumed" / "video_preprocessor_config.json").exists()


@pytest.mark.parametrize("length", [{"max_steps": 2}, {"max_steps": 3}, {"num_train_epochs": 1.5}])
def test_a_finished_run_started_again_keeps_its_results(length, splits, tmp_path):
    """Also where it ends within an epoch of two steps."""
    options = {"save_strategy": "steps", "save_steps": 1, **length}
    train_and_save(make_trainer("classification", splits, tmp_path, **options))
    before = json.loads((tmp_path / "train_results.json").read_text())
    assert before["train_loss"] > 0
    trained = load_file(tmp_path / "model.safetensors")
    again = make_trainer("classification", splits, tmp_path, **options)
    train_and_save(again)
    assert json.loads((tmp_path / "train_results.json").read_text()) == before
    assert_same(load_file(tmp_path / "model.safetensors"), trained)
    assert again.state.global_step == max(2, math.ceil(length.get("max_steps", 3)))


def test_epochs_draw_new_clips(splits, tmp_path):
    """Trainer tells the dataset which epoch it is."""
    trainer = make_trainer("pretraining", splits, tmp_path, num_train_epochs=2, max_steps=-1)
    trainer.train()
    assert trainer.train_dataset.epoch == 1


def test_the_tokenizer_is_frozen_and_in_no_checkpoint(splits, tmp_path):
    trainer = make_trainer("pretraining", splits, tmp_path, max_steps=2)
    before = {name: value.clone() for name, value in trainer.target_builder.tokenizer.state_dict().items()}
    trainer.train()
    trainer.save_model()
    assert not trainer.target_builder.tokenizer.training
    assert not any(parameter.requires_grad for parameter in trainer.target_builder.tokenizer.parameters())
    assert all(
        torch.equal(before[name], value) for name, value in trainer.target_builder.tokenizer.state_dict().items()
    )
    optimized = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert not optimized & {id(parameter) for parameter in trainer.target_builder.tokenizer.parameters()}
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(trainer.model.state_dict())
    assert all(name.startswith(("lvmae.", "decoder.")) for name in saved)


def test_targets_are_the_tokenizer_s_codes_of_the_same_clip(splits, tmp_path):
    trainer = make_trainer("pretraining", splits, tmp_path, training=False)
    batch = pretraining_batch(trainer)
    made = trainer.target_builder(batch)
    frames = VideoClips(splits["train"], processor_for(MODEL, do_normalize=False), 8)
    raw = torch.stack([frames[number]["pixel_values_videos"] for number in range(3)])
    small = torch.nn.functional.interpolate(raw.flatten(0, 1), size=16, mode="bilinear", antialias=True)
    with torch.no_grad():
        tokens = trainer.target_builder.tokenizer.encode(small.unflatten(0, (3, 8)).clamp(0, 1))
    assert (made["target_codes"] != tokens.codes).float().mean() < 0.01  # a rounding step at a boundary
    expected = adaptive_decoder_mask(tokens.importance_scores, *MODEL.decoder_token_counts(64), batch["noise"])
    assert (made["bool_decoded_pos"] != expected).float().mean() < 0.05
    assert made["bool_decoded_pos"].sum(dim=1).tolist() == [MODEL.token_budget] * 3
    assert made["num_decoded"] == MODEL.token_budget
    assert (~made["bool_masked_pos"]).sum(dim=1).tolist() == [made["num_visible"]] * 3
    masks = {"bool_masked_pos", "bool_decoded_pos", "num_visible", "num_decoded"}
    assert set(made) == {"pixel_values_videos", "target_codes"} | masks


def test_a_batch_with_its_own_targets_skips_the_tokenizer(splits, tmp_path):
    trainer = make_trainer("pretraining", splits, tmp_path)
    batch = pretraining_batch(trainer)
    made = trainer.target_builder(batch)
    with torch.no_grad():
        tokens = ClipViews(trainer.target_builder, batch["pixel_values_videos"]).tokens("codes")
    trainer.target_builder.tokenizer = None
    cached = {"target_codes": tokens.codes, "importance_scores": tokens.importance_scores, **batch}
    for key, value in trainer.target_builder(cached).items():
        assert value == made[key] if isinstance(value, int) else torch.equal(value, made[key])


def test_pixels_need_no_tokenizer_and_codes_do(splits, tmp_path):
    trainer = make_trainer("pretraining", splits, tmp_path)
    batch = pretraining_batch(trainer)
    trainer.target_builder.tokenizer = None
    with pytest.raises(ValueError, match=r"Got a batch without target_codes .* expected .*: pass video_tokenizer="):
        trainer.target_builder(batch)
    model = LVMAEForPreTraining(LVMAEConfig(**{**MODEL.to_dict(), "target_type": "pixels", "decoder_mask": "none"}))
    trainer = make_trainer("pretraining", splits, tmp_path, model=model)
    assert "target_codes" not in trainer.target_builder(batch)
    trainer.target_builder.tokenizer = None
    assert set(trainer.target_builder(batch)) == {"pixel_values_videos", "bool_masked_pos", "num_visible"}
    assert math.isfinite(trainer.evaluate()["eval_loss"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 32}, r"grid of \(4, 8, 8\) tokens and a model with \(4, 4, 4\) .*expected the same: load"),
        ({"temporal_downsample": (False,)}, r"grid of \(8, 4, 4\) tokens and a model with \(4, 4, 4\)"),
        ({"levels": (8, 5)}, r"levels \(8, 5\) and a model with .*expected the same: build"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(change, message, splits, tmp_path):
    other = FSQMagViTModel(FSQMagViTConfig(**{**TOKENIZER.to_dict(), **change}))
    with pytest.raises(ValueError, match=message):
        LVMAEPreTrainer(
            LVMAEForPreTraining(MODEL),
            LVMAEPreTrainingArguments(output_dir=str(tmp_path), report_to="none"),
            processing_class=processor_for(MODEL),
            video_tokenizer=other,
        )


def test_a_tokenizer_whose_slots_are_longer_is_refused():
    """Six frames are two slots of three frames, and one and a half of four, rounded up."""
    tokenizer = FSQMagViTConfig(**{**TOKENIZER.to_dict(), "stem_patch_size": (2, 2, 2)})
    model = LVMAEConfig(**{**MODEL.to_dict(), "num_frames": 6, "tubelet_size": 3})
    with pytest.raises(ValueError, match=r"grid of \(2, 4, 4\) tokens and a model with \(2, 4, 4\) for clips of 6"):
        check_tokenizer(model, tokenizer)


def test_a_tokenizer_needs_the_processor(tmp_path):
    with pytest.raises(ValueError, match="Got no processing_class, expected the processor"):
        LVMAEPreTrainer(
            LVMAEForPreTraining(MODEL),
            LVMAEPreTrainingArguments(output_dir=str(tmp_path), report_to="none"),
            video_tokenizer=FSQMagViTModel(TOKENIZER),
        )


def test_the_tokenizer_s_trainer_refuses_normalized_pixels(splits, tmp_path):
    trainer = make_trainer("tokenizer", splits, tmp_path)
    trainer.train_dataset = VideoClips(splits["train"], processor_for(TOKENIZER), 8)
    with pytest.raises(ValueError, match=r"Got pixels from -.* expected \[0, 1\]: use do_normalize=False"):
        trainer.train()


def test_figures_of_the_tokenizer_are_what_they_say(splits, tmp_path):
    """Against one clip at a time; 64 tokens, 16 a slot, the first slot kept besides a budget's share of 64."""
    trainer = make_trainer("tokenizer", splits, tmp_path)
    metrics = trainer.evaluate()
    budgets = {"": 0.375, "_5": 0.05, "_10": 0.1, "_15": 0.15, "_25": 0.25, "_50": 0.5}
    naive = {key: [] for key in ("psnr", "psnr_first_frame", *(f"psnr_kept{name}" for name in budgets))}
    used = [set() for _ in TOKENIZER.levels]
    for number in range(6):
        clip = trainer.eval_dataset[number]["pixel_values_videos"]
        with torch.no_grad():
            tokens = trainer.model.encode(clip[None])
            frames = {"psnr": trainer.model.decode(tokens.codes)[0], "psnr_first_frame": clip[:1]}
            ranked = sorted(range(16, 64), key=lambda token: -tokens.importance_scores[0, token].item())
            for name, share in budgets.items():
                kept = torch.zeros(1, 64, 1)
                kept[:, [*range(16), *ranked[: round(64 * share)]]] = 1
                frames[f"psnr_kept{name}"] = trainer.model.decode(tokens.codes * kept)[0]
        for key, prediction in frames.items():
            error = ((prediction.clamp(0, 1) - clip) ** 2).mean().item()
            naive[key].append(-10 * math.log10(error))
        for channel, values in enumerate(tokens.codes[0].T.tolist()):
            used[channel] |= set(values)
    for key, values in naive.items():
        assert metrics[f"eval_{key}"] == pytest.approx(np.mean(values), abs=1e-3), key
    for channel, (values, level) in enumerate(zip(used, TOKENIZER.levels)):
        assert metrics[f"eval_level_usage_{channel}"] == pytest.approx(len(values) / level)
    assert peak_signal_to_noise_ratio(torch.ones(1, 4), torch.zeros(1, 4)).item() == 0.0


def test_figures_are_of_clamped_pixels():
    clips = torch.rand(2, 3, 3, 16, 16).round()
    beyond = clips + (clips - 0.5)  # -0.5 and 1.5
    assert peak_signal_to_noise_ratio(beyond, clips).tolist() == [100.0, 100.0]
    torch.testing.assert_close(structural_similarity(beyond, clips), torch.ones(2))


def test_the_noise_of_the_top_k_falls_to_its_end(splits, tmp_path):
    trainer = make_trainer("tokenizer", splits, tmp_path, max_steps=4, topk_sigma_end=0.005)
    forward, seen = trainer.model.forward, []

    def watched(*args, topk_sigma, **kwargs):
        seen.append(topk_sigma.item())
        return forward(*args, topk_sigma=topk_sigma, **kwargs)

    trainer.model.forward = watched
    trainer.train()
    assert seen == pytest.approx([0.05 * 0.1 ** (step / 4) for step in range(4)])


RECIPE = {
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "label_smoothing_factor": 0.1,
    "ema_decay": 0.9,
    "base_learning_rate": 0.1,
}


def make_recipe_trainer(splits, output_dir, **arguments):
    """VideoMAE's whole fine-tuning recipe: everything that draws random numbers."""
    torch.manual_seed(0)
    config = {**MODEL.to_dict(), "drop_path_rate": 0.3, "tube_drop_ratio": 0.25}
    model = LVMAEForVideoClassification(LVMAEConfig(**config))
    trainer = make_trainer("classification", splits, output_dir, model=model, **{**RECIPE, **arguments})
    trainer.train_dataset = VideoClips(
        splits["train"].select(range(8)),
        trainer.processing_class,
        8,
        training=True,
        augmentation=ClipAugmentation(min_crop_scale=0.5, rand_augment_num_ops=4, random_erasing_prob=0.25),
        label_column="label",
    )
    return trainer


def test_the_whole_recipe_resumed_equals_uninterrupted(splits, tmp_path):
    """In the middle of an epoch: augmentations, mixing, drop path, tube drop and averaged weights go on as they were."""
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 2}
    whole = make_recipe_trainer(splits, tmp_path / "whole", **options)
    train_and_save(whole)
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "resumed" / "checkpoint-3")
    resumed = make_recipe_trainer(splits, tmp_path / "resumed", **options)
    train_and_save(resumed)
    assert losses(resumed)[-5:] == losses(whole)[-5:]
    plain, averaged = weights(whole), load_file(tmp_path / "whole" / "model.safetensors")
    for name, value in plain.items():
        assert torch.equal(weights(resumed)[name], value)
        assert torch.equal(load_file(tmp_path / "resumed" / "model.safetensors")[name], averaged[name])
    assert not torch.equal(plain["classifier.weight"], averaged["classifier.weight"])
    assert whole.args.learning_rate == pytest.approx(0.1 * 2 / 256)


def test_the_classifier_s_averaged_weights_follow_the_steps(splits, tmp_path):
    trainer = make_trainer("classification", splits, tmp_path, ema_decay=0.75, max_steps=3, learning_rate=0.01)
    averages = weights(trainer)

    def average():
        for name, value in trainer.model.state_dict().items():
            averages[name] = 0.75 * averages[name] + 0.25 * value

    trainer.add_callback(OnStep(average))
    train_and_save(trainer)
    saved = load_file(tmp_path / "model.safetensors")
    for name, value in averages.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-6)


class OnStep(TrainerCallback):
    def __init__(self, action):
        self.action = action

    def on_step_end(self, *args, **kwargs):
        self.action()


def classification_batch(trainer, rows=4):
    return trainer.data_collator([trainer.train_dataset[number] for number in range(rows)])


def test_smoothed_labels_cost_what_torch_s_do(splits, tmp_path):
    trainer = make_trainer("classification", splits, tmp_path, label_smoothing_factor=0.2)
    batch = classification_batch(trainer)
    trainer.model.train()
    loss, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    expected = nn.CrossEntropyLoss(label_smoothing=0.2)(outputs.logits, batch["labels"])
    torch.testing.assert_close(loss, expected)
    accumulated = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(16))
    torch.testing.assert_close(accumulated, expected / 4)


def test_mixed_clips_cost_what_a_naive_loop_says(splits, tmp_path):
    """Each clip's loss is its two labels' losses, weighted by their shares; smoothing on top."""
    smoothing = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing_factor": 0.1}
    trainer = make_trainer("classification", splits, tmp_path, **smoothing)
    batch = classification_batch(trainer)
    labels = batch["labels"].tolist()
    trainer.model.train()
    for seed in range(4):
        torch.manual_seed(seed)
        loss = trainer.compute_loss(trainer.model, dict(batch))
        torch.manual_seed(seed)
        clips, shares = trainer.mixing(batch["pixel_values_videos"])
        losses_of = nn.functional.log_softmax(trainer.model(clips).logits, dim=-1).neg().tolist()
        total = 0.0
        for row, (mine, other) in enumerate(zip(labels, [labels[-1], *labels[:-1]])):
            for label, share in ((mine, shares[row, row].item()), (other, shares[row, row - 1].item())):
                total += share * (0.9 * losses_of[row][label] + 0.1 * sum(losses_of[row]) / 8)
        assert loss.item() == pytest.approx(total / 4, rel=1e-5)


def test_label_sets_are_smoothed_each_in_itself():
    soft = soft_labels(torch.tensor([[1, 0], [0, 2]]), [2, 3], 0.3)
    third = [0.1, 0.1, 0.1]
    expected = [[0.15, 0.85, 0.7 + third[0], *third[1:]], [0.85, 0.15, *third[:2], 0.7 + third[2]]]
    torch.testing.assert_close(soft, torch.tensor(expected))


def test_evaluation_is_of_plain_labels_and_clips(splits, tmp_path):
    plain = make_trainer("classification", splits, tmp_path).evaluate()
    softened = make_trainer("classification", splits, tmp_path, **{**RECIPE, "ema_decay": 0.0}).evaluate()
    for name in ("eval_loss", "eval_accuracy", "eval_top5_accuracy"):
        assert softened[name] == plain[name]


def test_one_clip_cannot_be_mixed(splits, tmp_path):
    trainer = make_trainer("classification", splits, tmp_path, mixup_alpha=0.8, per_device_train_batch_size=1)
    with pytest.raises(ValueError, match=r"Got batches of one clip .* expected two clips a device to mix: raise"):
        trainer.train()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixup_alpha": -1.0}, "Got mixup_alpha=-1.0, expected a number of at least 0"),
        ({"ema_decay": 1.0}, r"Got ema_decay=1.0, expected a number in \[0, 1\)"),
        ({"label_smoothing_factor": 1.0}, r"Got label_smoothing_factor=1.0, expected a number in \[0, 1\)"),
        ({"layer_decay": 0.0}, r"Got layer_decay=0.0, expected a number in \(0, 1\]"),
    ],
)
def test_wrong_arguments_of_fine_tuning_are_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        LVMAEClassificationArguments(output_dir=str(tmp_path), **arguments)


def test_layers_near_the_input_learn_more_slowly(splits, tmp_path):
    trainer = make_trainer("classification", splits, tmp_path, learning_rate=1.0, layer_decay=0.5)
    rates = {
        name: group["lr"]
        for group in trainer.create_optimizer().param_groups
        for name, parameter in trainer.model.named_parameters()
        if any(parameter is member for member in group["params"])
    }
    assert rates["classifier.weight"] == 1.0
    assert rates["lvmae.layernorm.weight"] == 1.0
    assert rates["lvmae.encoder.layers.1.mlp.fc1.weight"] == 0.5
    assert rates["lvmae.encoder.layers.0.mlp.fc1.weight"] == 0.25
    assert rates["lvmae.embeddings.patch_embeddings.projection.weight"] == 0.125
    assert set(rates) == {name for name, _ in trainer.model.named_parameters()}


def test_weight_decay_spares_biases_and_norms(splits, tmp_path):
    trainer = make_trainer("classification", splits, tmp_path, weight_decay=0.3)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert (group["weight_decay"] == 0.0) == (name.endswith("bias") or "norm" in name), name


def test_the_scorer_has_its_own_learning_rate(splits, tmp_path):
    trainer = make_trainer("tokenizer", splits, tmp_path, learning_rate=1.0, scorer_learning_rate=0.25)
    scorer = {id(parameter) for parameter in trainer.model.scorer.parameters()}
    for group in trainer.create_optimizer().param_groups:
        assert {id(parameter) in scorer for parameter in group["params"]} == {group["lr"] == 0.25}


@pytest.mark.parametrize("processes", [1, 2])
def test_the_learning_rate_follows_the_real_batch(processes, tmp_path, monkeypatch):
    monkeypatch.setattr(LVMAEPreTrainingArguments, "world_size", processes)
    arguments = LVMAEPreTrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=32, gradient_accumulation_steps=4, base_learning_rate=1e-3
    )
    assert arguments.learning_rate == pytest.approx(5e-4 * processes)


def test_two_processes_learn_as_one(splits, tmp_path):
    """The same global batch of four clips, on one process and split over two (gloo)."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = {[str(TESTS), str(Path(__file__).parent)]!r}\n"
        "from builders import CLIPS, make_trainer\n"
        "from transformers_lvmae.data import load_video_dataset\n"
        "trainer = make_trainer('pretraining', load_video_dataset(CLIPS, label_column='label'), sys.argv[1],\n"
        "    per_device_train_batch_size=int(sys.argv[2]), max_steps=4, optim='sgd', base_learning_rate=None,\n"
        "    learning_rate=0.1)\n"
        "trainer.train()\n"
        "trainer.save_model()\n"
        "trainer.save_state()\n"
        "trainer.end()\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    one = [sys.executable, str(script), str(tmp_path / "one"), "4"]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two += [str(script), str(tmp_path / "two"), "2"]
    for command in (one, two):
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr[-2000:]
    history = [
        [entry["loss"] for entry in json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"][:4]]
        for name in ("one", "two")
    ]
    assert history[1] == pytest.approx(history[0], rel=1e-4)
    single, double = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in single.items():
        torch.testing.assert_close(double[name], value, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    """A small ResNet with random weights, for the perceptual term."""
    path = str(tmp_path_factory.mktemp("resnet"))
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10)
    ResNetForImageClassification(config).save_pretrained(path)
    ConvNextImageProcessor(size={"shortest_edge": 24}, crop_pct=1.0).save_pretrained(path)
    return path


def make_adversarial_trainer(splits, output_dir, **arguments):
    """Plain gradient descent and no draws in the model, unless `arguments` say otherwise."""
    torch.manual_seed(0)
    model = FSQMagViTModel(FSQMagViTConfig(**{**TOKENIZER.to_dict(), "unmasked_clip_ratio": 1.0}))
    options = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    return make_trainer("tokenizer", splits, output_dir, model=model, **{**options, **ADVERSARIAL, **arguments})


def adversary_weights(trainer):
    return {name: value.clone() for name, value in trainer.adversary.losses.state_dict().items()}


def test_adversarial_steps_are_those_of_a_loop_written_out(splits, image_model, tmp_path):
    """Three steps against plain torch: both sides' gradients at the same weights, two optimizers, R1, averaged weights, the
    perceptual term, the logs."""
    arguments = {"max_steps": 3, "num_clips": 4, "training": False, "max_grad_norm": 0.5, "logging_steps": 3}
    arguments |= {"perceptual_model": image_model, "perceptual_weight": 0.3, "discriminator_learning_rate": 0.02}
    trainer = make_adversarial_trainer(splits, tmp_path, **arguments)
    batch = torch.stack([trainer.train_dataset[number]["pixel_values_videos"] for number in range(4)])
    model = FSQMagViTModel(trainer.model.config).train()
    model.load_state_dict(trainer.model.state_dict())
    discriminator = VideoDiscriminator((8, 16, 16), 3, 4, (2, 4))
    discriminator.load_state_dict(trainer.adversary.losses.discriminator.state_dict())
    perceptual = PerceptualLoss.from_pretrained(image_model)
    trainer.train()

    softplus = nn.functional.softplus
    average = {name: value.clone() for name, value in model.state_dict().items()}
    logs = []
    for _ in range(3):
        output = model(batch)
        for parameter in discriminator.parameters():
            parameter.requires_grad_(False)
        adversarial, feature = (
            softplus(-discriminator(output.reconstruction)).mean(),
            perceptual(output.reconstruction, batch),
        )
        (output.loss + 0.1 * adversarial + 0.3 * feature).backward()
        for parameter in discriminator.parameters():
            parameter.requires_grad_(True)
        real = batch.clone().requires_grad_(True)
        real_logits, fake_logits = discriminator(real), discriminator(output.reconstruction.detach())
        slopes = torch.autograd.grad(real_logits.sum(), real, create_graph=True)[0]
        penalty = slopes.pow(2).sum(dim=(1, 2, 3, 4)).mean()
        side = softplus(-real_logits).mean() + softplus(fake_logits).mean()
        (side + 10 * penalty).backward()
        for module, rate in ((model, 0.05), (discriminator, 0.02)):
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            with torch.no_grad():
                for parameter in module.parameters():
                    if parameter.grad is not None:
                        parameter -= rate * parameter.grad
                    parameter.grad = None
        average = {name: 0.9 * average[name] + 0.1 * value for name, value in model.state_dict().items()}
        logs.append([output.loss.item(), adversarial.item(), feature.item(), side.item(), penalty.item()])

    for name, value in model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            trainer.averaged_model.module.state_dict()[name], average[name], rtol=1e-4, atol=1e-6
        )
    for name, value in discriminator.state_dict().items():
        torch.testing.assert_close(
            trainer.adversary.losses.discriminator.state_dict()[name], value, rtol=1e-4, atol=1e-6
        )
    names = ["reconstruction_loss", "adversarial_loss", "perceptual_loss"]
    names += ["discriminator_loss", "r1_penalty"]
    entry = trainer.state.log_history[0]
    assert [entry[name] for name in names] == pytest.approx(np.mean(logs, axis=0).tolist(), rel=1e-4)
    total = entry["reconstruction_loss"] + 0.1 * entry["adversarial_loss"] + 0.3 * entry["perceptual_loss"]
    assert entry["loss"] == pytest.approx(total, rel=1e-5)
    assert entry["discriminator_learning_rate"] == 0.02
    assert math.isfinite(entry["discriminator_grad_norm"])


def test_neither_side_s_gradients_leak_into_the_other(splits, tmp_path):
    trainer = make_adversarial_trainer(splits, tmp_path, max_steps=2)
    backward, seen = trainer.adversary.backward, []

    def watched(*args):
        mine = [parameter.grad for parameter in trainer.adversary.losses.parameters()]
        before = [parameter.grad.clone() for parameter in trainer.model.parameters() if parameter.grad is not None]
        parts = backward(*args)
        after = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
        seen.append((mine, before, after))
        return parts

    trainer.adversary.backward = watched
    trainer.train()
    assert len(seen) == 2
    for mine, before, after in seen:
        assert all(gradient is None or not gradient.any() for gradient in mine)
        assert before
        assert all(torch.equal(first, second) for first, second in zip(before, after))


def test_accumulation_serves_both_sides(splits, tmp_path):
    """One batch of four equals two of two, for generator, discriminator and the averaged weights."""
    results = []
    for size, accumulation in ((4, 1), (2, 2)):
        arguments = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 2}
        trainer = make_adversarial_trainer(splits, tmp_path, **arguments)
        start = adversary_weights(trainer)
        trainer.train()
        averaged = trainer.averaged_model.state_dict()
        results.append((weights(trainer), adversary_weights(trainer), averaged, trainer.state.log_history[0]))
    for one, two in zip(results[0][:3], results[1][:3]):
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    moved = max((value - start[name]).abs().max().item() for name, value in results[0][1].items())
    assert moved > 1e-4
    for name in ("loss", "adversarial_loss", "discriminator_loss", "r1_penalty", "discriminator_grad_norm"):
        assert results[1][3][name] == pytest.approx(results[0][3][name], rel=1e-3)


def test_without_an_adversarial_weight_nothing_adversarial_is_built(splits, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a discriminator was built")

    monkeypatch.setattr(AdversarialLoss, "__init__", refuse)
    monkeypatch.setattr(VideoDiscriminator, "__init__", refuse)
    trainer = make_trainer("tokenizer", splits, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    assert trainer.adversary is None
    assert trainer.averaged_model is None
    assert not (tmp_path / "checkpoint-1" / "tokenizer_training.pt").exists()
    assert not {"adversarial_loss", "discriminator_loss", "perceptual_loss"} & set(trainer.state.log_history[0])


def test_the_adversarial_term_sets_in_at_its_step(splits, tmp_path):
    arguments = {"lr_scheduler_type": "cosine", "warmup_steps": 2, "max_steps": 6, "adversarial_start_step": 3}
    trainer = make_adversarial_trainer(splits, tmp_path, **arguments)
    trainer.train()
    entries = trainer.state.log_history[:6]
    assert ["adversarial_loss" in entry for entry in entries] == [False] * 3 + [True] * 3
    # Three steps of its own: the two of warm-up, from 0, and the top of the cosine.
    assert [entry["discriminator_learning_rate"] for entry in entries] == pytest.approx([0, 0, 0, 0.025, 0.05, 0])
    assert trainer.adversary.optimizer.state_dict()["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-9)


def test_the_adversary_s_schedule_goes_on(splits, tmp_path):
    trainers = [make_adversarial_trainer(splits, tmp_path, lr_scheduler_type="linear", max_steps=4) for _ in range(2)]
    for trainer in trainers:
        trainer.adversary.prepare(4)
    trainers[0].adversary.step()
    trainers[1].adversary.load_state_dict(trainers[0].adversary.state_dict())
    for trainer in trainers:
        assert trainer.adversary.scheduler.get_last_lr() == pytest.approx([0.05 * 3 / 4])
        trainer.adversary.step()
        assert trainer.adversary.scheduler.get_last_lr() == pytest.approx([0.05 * 2 / 4])


def test_averaged_weights_are_evaluated_and_saved_and_the_plain_ones_go_on(splits, tmp_path):
    trainer = make_adversarial_trainer(splits, tmp_path, max_steps=3, save_strategy="steps", save_steps=2)
    trainer.train()
    plain, averaged = weights(trainer), {n: v.clone() for n, v in trainer.averaged_model.module.state_dict().items()}
    metrics = trainer.evaluate()
    trainer.save_model()
    assert all(torch.equal(value, plain[name]) for name, value in trainer.model.state_dict().items())
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(plain)  # and nothing of the discriminator
    assert all(torch.equal(saved[name], value) for name, value in averaged.items())
    assert any(not torch.equal(saved[name], value) for name, value in plain.items())
    fresh = make_trainer("tokenizer", splits, tmp_path, model=FSQMagViTModel.from_pretrained(tmp_path))
    assert metrics["eval_psnr"] == pytest.approx(fresh.evaluate()["eval_psnr"], rel=1e-5)
    assert set(load_file(tmp_path / "checkpoint-2" / "model.safetensors")) == set(plain)


def test_the_best_checkpoint_s_averaged_weights_are_the_ones_loaded_at_the_end(splits, tmp_path):
    options = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "psnr", "greater_is_better": False}
    trainer = make_adversarial_trainer(splits, tmp_path, max_steps=3, **options)
    trainer.train()
    trainer.save_model()
    best = load_file(Path(trainer.state.best_model_checkpoint) / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in best.items())


def test_a_checkpoint_of_another_recipe_is_refused(splits, tmp_path):
    """Either way: with averaged weights, a checkpoint's own are not those that its optimizer was at."""
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    plain, whole = str(tmp_path / "plain"), str(tmp_path / "whole")
    make_trainer("tokenizer", splits, plain, **options).train()
    make_adversarial_trainer(splits, whole, optim="adamw_torch", **options).train()
    with pytest.raises(ValueError, match=r"the state of \[\], expected \['adversary', 'averaged_model'\]: resume"):
        make_adversarial_trainer(splits, whole, **options).train(resume_from_checkpoint=f"{plain}/checkpoint-1")
    with pytest.raises(ValueError, match=r"the state of \['adversary', 'averaged_model'\], expected \[\]: resume"):
        make_trainer("tokenizer", splits, plain, **options).train(resume_from_checkpoint=f"{whole}/checkpoint-1")


def test_bfloat16_trains_both_sides(splits, tmp_path):
    trainer = make_adversarial_trainer(splits, tmp_path, max_steps=2, bf16=True)
    before = adversary_weights(trainer)
    # Without oneDNN: in torch 2.14 its bfloat16 Conv3d reads memory that nothing set, for the weights' gradient on a CPU.
    with torch.backends.mkldnn.flags(enabled=False):
        trainer.train()
    assert all(math.isfinite(value) for entry in trainer.state.log_history[:2] for value in entry.values())
    assert any(not torch.equal(before[name], value) for name, value in adversary_weights(trainer).items())
    assert all(parameter.dtype == torch.float32 for parameter in trainer.adversary.losses.parameters())


def test_a_missing_perceptual_model_is_said(splits, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("transformers_lvmae.training.tokenizer.logger.warning", said.append)
    assert make_trainer("tokenizer", splits, tmp_path).perceptual_loss is None
    assert len(said) == 1
    assert said[0].startswith("The perceptual term is off: no perceptual_model was given.")
    make_trainer("tokenizer", splits, tmp_path, perceptual_weight=0.0)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adversarial_weight": 0.1, "fp16": True}, "Got fp16 with adversarial_weight=0.1, expected bf16"),
        ({"adversarial_weight": -1.0}, "Got adversarial_weight=-1.0, expected a number of at least 0"),
        ({"ema_decay": 1.0}, r"Got ema_decay=1.0, expected a number in \[0, 1\)"),
        ({"perceptual_frames": 0}, "Got perceptual_frames=0, expected a whole number of at least 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        FSQMagViTTrainingArguments(output_dir=str(tmp_path), **arguments)


def run_script(path, script, *command):
    """A Python script in a process of its own, under what the tests themselves run under (conftest.py)."""
    lines = [
        "import os, signal, sys",
        "import torch",
        "from transformers import TrainerCallback",
        f"sys.path[:0] = {[str(TESTS), str(Path(__file__).parent)]!r}",
        "from test_trainers import CLIPS, killable_trainer, load_video_dataset, make_adversarial_trainer, train_and_save",
        "torch.set_num_threads(1)",
        "torch.use_deterministic_algorithms(True, warn_only=True)",
        'splits = load_video_dataset(CLIPS, label_column="label")',
    ]
    path.write_text("\n".join([*lines, script]))
    command = [sys.executable, *command, str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def killable_trainer(splits, output_dir, image_model):
    """Random starts, masks and perceptual frames; accumulation, warm-up, a late discriminator."""
    options = {"num_train_epochs": 3, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    options |= {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "warmup_steps": 3}
    options |= {**ADVERSARIAL, "adversarial_start_step": 1}
    options |= {"perceptual_model": image_model, "perceptual_frames": 3, "perceptual_weight": 0.1}
    return make_trainer("tokenizer", splits, output_dir, **options)


def test_an_adversarial_run_that_was_killed_ends_as_if_it_had_not_been(image_model, tmp_path):
    """SIGKILL before the third checkpoint, in the middle of an epoch; every tensor of the end is the same bit for bit."""
    script = f"""
class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6:
            os.kill(os.getpid(), signal.SIGKILL)

trainer = killable_trainer(splits, {str(tmp_path / "killed")!r}, {image_model!r})
trainer.add_callback(Kill())
train_and_save(trainer)
"""
    run = run_script(tmp_path / "run.py", script)
    assert run.returncode == -signal.SIGKILL, run.stderr[-2000:]
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-4"]
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    for folder in (
        "killed",
        "whole",
    ):  # also in processes of their own: what other tests leave behind could change a bit
        script = f"train_and_save(killable_trainer(splits, {str(tmp_path / folder)!r}, {image_model!r}))"
        run = run_script(tmp_path / "run.py", script)
        assert run.returncode == 0, run.stderr[-2000:]

    def state(folder):
        checkpoint = tmp_path / folder / "checkpoint-12"
        parts = torch.load(checkpoint / "tokenizer_training.pt", weights_only=True)
        parts["saved"] = load_file(tmp_path / folder / "model.safetensors")
        parts["optimizer"] = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        parts["scheduler"] = torch.load(checkpoint / "scheduler.pt", weights_only=True)
        return parts, json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]

    (killed, killed_log), (whole, whole_log) = state("killed"), state("whole")
    assert set(whole) == {"adversary", "averaged_model", "model", "saved", "optimizer", "scheduler"}
    assert_same(killed, whole)
    assert killed_log == whole_log
    assert whole_log[-1]["r1_penalty"] > 0
    assert whole_log[-1]["step"] == 12


def test_two_processes_train_both_sides_as_one(splits, tmp_path):
    """The same global batches of four clips, on one process and split over two (gloo), with accumulation."""
    options = {"gradient_accumulation_steps": 2, "max_steps": 3, "max_grad_norm": 0.5, "training": False}
    options |= {"save_strategy": "steps", "save_steps": 3}
    make_adversarial_trainer(splits, tmp_path / "one", per_device_train_batch_size=2, **options).train()
    script = f"""
trainer = make_adversarial_trainer(splits, {str(tmp_path / "two")!r}, per_device_train_batch_size=1, **{options})
trainer.train()
trainer.end()
threads = [open(f"/proc/self/task/{{task}}/comm").read() for task in os.listdir("/proc/self/task")]
assert not any("gloo" in name for name in threads), threads  # one left at exit may abort the process
"""
    run = run_script(
        tmp_path / "run.py", script, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"
    )
    assert run.returncode == 0, run.stderr[-2000:]
    one, two = (tmp_path / folder / "checkpoint-3" for folder in ("one", "two"))
    single, double = (torch.load(path / "tokenizer_training.pt", weights_only=True) for path in (one, two))
    for part in ("model", "averaged_model"):
        torch.testing.assert_close(double[part], single[part], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(double["adversary"]["losses"], single["adversary"]["losses"], rtol=1e-4, atol=1e-5)
    logs = [json.loads((path / "trainer_state.json").read_text())["log_history"] for path in (one, two)]
    assert len(logs[0]) == 3
    for first, second in zip(*logs):
        assert second == pytest.approx(first, rel=1e-3)


@pytest.mark.slow
def test_a_compiled_run_equals_a_plain_one(splits, tmp_path):
    """R1 differentiates twice, which compiled graphs cannot: the discriminator stays out of them."""
    trainers = [
        make_adversarial_trainer(splits, tmp_path, max_steps=2, **options)
        for options in ({}, {"torch_compile": True, "torch_compile_backend": "aot_eager"})
    ]
    for trainer in trainers:
        trainer.train()
    for results in (weights, adversary_weights):
        torch.testing.assert_close(results(trainers[1]), results(trainers[0]), rtol=1e-3, atol=1e-5)


def test_the_script_trains_on_pictures_and_then_on_videos(tmp_path, monkeypatch):
    """scripts/train_tokenizer.py, from an imagefolder to a video tokenizer that starts from it, curves included."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        (tmp_path / "pictures" / split).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / split / f"{number}.png")
    overrides = {"image_size": 16, "window_size": 8, "num_frames": 8, "base_channels": 8, "levels": [8, 5]}
    options = [
        "--config_overrides",
        json.dumps(overrides),
        "--model_size",
        "tiny",
        "--max_steps",
        "2",
        "--use_cpu",
        "true",
    ]
    options += ["--report_to", "none", "--logging_steps", "1", "--disable_tqdm", "true", "--adversarial_weight", "0.1"]
    options += ["--discriminator_channels", "4", "--discriminator_multipliers", "2", "4", "--ema_decay", "0.5"]
    images, videos = str(tmp_path / "image_tokenizer"), str(tmp_path / "tokenizer")
    on_images = ["--dataset_name", str(tmp_path / "pictures"), "--image_column", "image", "--output_dir", images]
    on_videos = [
        "--dataset_name",
        str(CLIPS),
        "--eval_split",
        "test",
        "--max_train_samples",
        "8",
        "--output_dir",
        videos,
    ]
    script = load_script("train_tokenizer")
    monkeypatch.setattr(sys, "argv", ["train_tokenizer.py", *on_images, *options, "--streaming"])
    with pytest.raises(ValueError, match="Got streaming with image_column, expected one of them"):
        script.main()
    for command in (
        [*on_images, "--num_clips", "2"],
        [*on_videos, "--image_tokenizer", images, "--learning_rate", "0"],
    ):
        monkeypatch.setattr(sys, "argv", ["train_tokenizer.py", *command, *options])
        script.main()
    first, second = FSQMagViTModel.from_pretrained(images), FSQMagViTModel.from_pretrained(videos)
    assert first.config.window_size == 1
    assert second.config.tubelet_size == 2
    compared = 0
    for name, weight in second.named_parameters():
        picture_weight = first.get_parameter(name)
        # The stem folds two frames into channels: the first and the last convolution have other shapes.
        if weight.ndim == 5 and weight.shape == picture_weight.shape and not name.startswith("scorer."):
            assert torch.equal(weight[:, :, weight.shape[2] // 2], picture_weight[:, :, weight.shape[2] // 2])
            compared += 1
    assert compared > 10
    picture = Image.open(tmp_path / "tokenizer" / "losses.png")
    assert np.asarray(picture.convert("L")).std() > 5  # curves, not an empty page
    assert math.isfinite(json.loads((tmp_path / "tokenizer" / "eval_results.json").read_text())["eval_psnr"])
