"""The masks and targets of pre-training, and the combinations that are refused."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from builders import CLIPS, MODEL, TOKENIZER, load_script, losses, make_trainer, pretraining_batch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.overrides import TorchFunctionMode

from transformers_lvmae import (
    FSQMagViTModel,
    FSQMagViTTrainingArguments,
    LVMAEClassificationArguments,
    LVMAEConfig,
    LVMAEForPreTraining,
    LVMAEPreTrainingArguments,
)
from transformers_lvmae.data import MaskedVideoClips, VideoClips, load_video_dataset, processor_for
from transformers_lvmae.models.masking import (
    adaptive_decoder_mask,
    random_token_mask,
    split_tubelets,
    topk_mask,
)
from transformers_lvmae.models.token_scores import compact_scores, everest, frame_difference, uniform_frames
from transformers_lvmae.targets.builder import ClipViews
from transformers_lvmae.targets.flow import flow_estimator
from transformers_lvmae.targets.token_scores import optical_flow
from transformers_lvmae.visualization.predictions import PredictionPictures


@pytest.fixture(scope="module")
def splits():
    return load_video_dataset(CLIPS, label_column="label")


def model_with(**fields):
    torch.manual_seed(0)
    return LVMAEForPreTraining(LVMAEConfig(**{**MODEL.to_dict(), **fields}))


def trainer_with(splits, path, arguments=(), **fields):
    return make_trainer("pretraining", splits, path, training=False, model=model_with(**fields), **dict(arguments))


def test_the_rate_is_videomaes_and_a_plain_cosine_is_to_be_had(splits, tmp_path):
    """Linear from 0 in 5 % of the steps, then a cosine from the peak to 1/15 of it; no clipping."""

    def rates(**options):
        trainer = trainer_with(splits, tmp_path, {"learning_rate": 1.0, "base_learning_rate": None, **options})
        optimizer = trainer.create_optimizer()
        scheduler = trainer.create_scheduler(100, optimizer)
        values = []
        for _ in range(101):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return values, trainer.args.max_grad_norm

    fall = [(1 + math.cos(math.pi * step / 95)) / 2 for step in range(96)]
    videomae = [step / 5 for step in range(5)] + [1 / 15 + (1 - 1 / 15) * share for share in fall]
    assert rates() == (pytest.approx(videomae), 0)
    plain = [(1 + math.cos(math.pi * step / 100)) / 2 for step in range(101)]
    options = {"lr_scheduler_type": "cosine", "warmup_steps": 0, "max_grad_norm": 1.0}
    assert rates(**options) == (pytest.approx(plain), 1)
    assert rates(lr_scheduler_kwargs={"min_lr_rate": 0.5})[0][-1] == pytest.approx(0.5)


def test_the_defaults_are_those_of_the_recipes(tmp_path):
    kinds = (FSQMagViTTrainingArguments, LVMAEPreTrainingArguments, LVMAEClassificationArguments)
    for kind, betas, decay in zip(kinds, [(0.0, 0.99), (0.9, 0.95), (0.9, 0.999)], [0.0, 0.05, 0.05]):
        arguments = kind(output_dir=str(tmp_path), seed=7)
        assert (arguments.adam_beta1, arguments.adam_beta2) == betas
        assert arguments.weight_decay == decay
        assert arguments.data_seed == 7  # unless it is given
        assert kind(output_dir=str(tmp_path), seed=7, data_seed=3).data_seed == 3


def raw_clips(splits, rows=3):
    frames = VideoClips(splits["train"], processor_for(MODEL, do_normalize=False), 8)
    return torch.stack([frames[number]["pixel_values_videos"] for number in range(rows)])


def scores_of(kind, trainer, batch, raw):
    """The scores of a mask, made outside of the trainer."""
    if kind in ("adaptive", "adaptive_random"):
        with torch.no_grad():
            return ClipViews(trainer.target_builder, batch["pixel_values_videos"]).scores("learned")
    if kind == "everest":
        # The difference of projections, tubelet by tubelet; the bias cancels.
        tubelets = split_tubelets(batch["pixel_values_videos"], 2, 8).transpose(4, 5).flatten(4)
        weight = trainer.model.lvmae.embeddings.patch_embeddings.projection.weight
        distance = (tubelets.diff(dim=1) @ weight.T).norm(dim=-1)
        return torch.cat([distance[:, :1], distance], dim=1).flatten(1).detach()
    return {"motion": frame_difference, "flow": optical_flow}[kind](raw, (4, 4, 4))


@pytest.mark.parametrize("kind", ["motion", "flow", "everest", "adaptive", "adaptive_random"])
def test_masks_by_scores_decode_the_highest_of_the_whole_clip_and_some_at_random(kind, splits, tmp_path):
    trainer = trainer_with(splits, tmp_path, decoder_mask=kind)
    batch = pretraining_batch(trainer)
    made = trainer.target_builder(batch)
    scores = scores_of(kind, trainer, batch, raw_clips(splits))
    important, drawn = (31, 0) if kind == "adaptive" else (19, 12)  # of 64 tokens 30 and 20 %, rounded down
    expected = adaptive_decoder_mask(scores, important, drawn, batch["noise"])
    # The trainer's pixels come back from normalized ones: near-ties may fall the other way.
    assert (made["bool_decoded_pos"] != expected).float().mean() < 0.04
    assert made["bool_decoded_pos"].sum(dim=1).tolist() == [31] * 3
    assert made["num_decoded"] == trainer.model.config.token_budget == 31


def test_masks_without_scores_and_none(splits, tmp_path):
    for kind in ("random", "uniform", "none"):
        trainer = trainer_with(splits, tmp_path, decoder_mask=kind, target_type="pixels")
        batch = pretraining_batch(trainer)
        made = trainer.target_builder({**batch, "importance_scores": torch.rand(3, 64)})
        if kind == "none":
            assert set(made) == {"pixel_values_videos", "bool_masked_pos", "num_visible"}
            with torch.no_grad():
                assert torch.equal(trainer.model(**made).bool_decoded_pos, made["bool_masked_pos"])
            assert trainer.model.config.token_budget == 48 == made["bool_masked_pos"].sum().item() / 3
            continue
        draw = {
            "random": topk_mask(batch["noise"], 31),
            "uniform": topk_mask(uniform_frames(batch["noise"], (4, 4, 4)), 31),
        }
        assert torch.equal(made["bool_decoded_pos"], draw[kind])
        assert made["num_decoded"] == trainer.model.config.token_budget == 31


def test_cached_scores_decide_and_the_tokenizer_runs_only_where_it_is_needed(splits, tmp_path):
    scores = torch.rand(3, 64)
    for kind in ("motion", "flow", "everest", "adaptive"):
        trainer = trainer_with(splits, tmp_path, decoder_mask=kind, target_type="pixels")
        trainer.target_builder.tokenizer.encode = None
        trainer.target_builder.flow = None
        batch = pretraining_batch(trainer)
        important, drawn = trainer.model.config.decoder_token_counts(64)
        made = trainer.target_builder({**batch, "importance_scores": scores})
        expected = adaptive_decoder_mask(compact_scores(scores), important, drawn, batch["noise"])
        assert torch.equal(made["bool_decoded_pos"], expected)
    trainer = trainer_with(splits, tmp_path, decoder_mask="motion", target_type="pixels")
    trainer.target_builder.tokenizer.encode = None
    assert "bool_decoded_pos" in trainer.target_builder(pretraining_batch(trainer))


def test_scores_that_a_cache_cannot_tell_apart_are_ties_on_the_fly_too(splits, tmp_path):
    """Between scores closer than 1/2048 of a clip's range, noise decides."""
    trainer = trainer_with(splits, tmp_path, decoder_mask="adaptive", target_type="pixels")
    batch = pretraining_batch(trainer)
    scores = (1 + 1e-4 * torch.rand(3, 64)).index_fill(1, torch.tensor([0]), 0.0)
    made = trainer.target_builder({**batch, "importance_scores": scores})
    expected = topk_mask(batch["noise"].index_fill(1, torch.tensor([0]), -1.0), 31)
    assert torch.equal(made["bool_decoded_pos"], expected)


def test_a_batch_is_tokenized_once(splits, tmp_path, monkeypatch):
    """For its codes and its scores."""
    trainer = trainer_with(splits, tmp_path)
    tokenizer, calls = trainer.target_builder.tokenizer, []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda clips: calls.append(1) or encode(clips))
    assert "target_codes" in trainer.target_builder(pretraining_batch(trainer))
    assert len(calls) == 1


def test_a_batch_s_own_decoder_mask_is_used(splits, tmp_path):
    trainer = trainer_with(splits, tmp_path, decoder_mask="motion", target_type="pixels")
    mask = topk_mask(torch.rand(3, 64), 5)
    made = trainer.target_builder({**pretraining_batch(trainer), "bool_decoded_pos": mask})
    assert torch.equal(made["bool_decoded_pos"], mask)
    assert "num_decoded" not in made


def test_clips_of_another_size_than_the_config_s_get_masks_of_their_own_grid(splits, tmp_path):
    trainer = trainer_with(splits, tmp_path, decoder_mask="random", target_type="pixels")
    clips, masked = torch.randn(2, 4, 3, 48, 16), topk_mask(torch.rand(2, 24), 12)
    made = trainer.target_builder({"pixel_values_videos": clips, "bool_masked_pos": masked})
    assert made["bool_decoded_pos"].shape == (2, 24)
    assert made["bool_decoded_pos"].sum(dim=1).tolist() == [sum(trainer.model.config.decoder_token_counts(24))] * 2


def test_everest_follows_the_model_as_it_learns(splits, tmp_path):
    trainer = trainer_with(splits, tmp_path, decoder_mask="everest", target_type="pixels")
    batch = pretraining_batch(trainer)
    before = ClipViews(trainer.target_builder, batch["pixel_values_videos"]).scores("everest")
    with torch.no_grad():
        trainer.model.lvmae.embeddings.patch_embeddings.projection.weight.mul_(2)
    torch.testing.assert_close(
        ClipViews(trainer.target_builder, batch["pixel_values_videos"]).scores("everest"), 2 * before
    )
    reference = everest(batch["pixel_values_videos"], (4, 4, 4), trainer.model.lvmae.embeddings.patch_embeddings)
    torch.testing.assert_close(2 * before, reference)


def test_everest_sees_whole_weights_where_fsdp_shares_them_out(splits, tmp_path):
    trainer = trainer_with(splits, tmp_path, decoder_mask="everest", target_type="pixels")
    clips = pretraining_batch(trainer)["pixel_values_videos"]
    expected = ClipViews(trainer.target_builder, clips).scores("everest")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(trainer.model.lvmae.embeddings, mesh=init_device_mesh("cpu", (1,)))
        weight = trainer.model.lvmae.embeddings.patch_embeddings.projection.weight
        assert isinstance(weight, torch.distributed.tensor.DTensor)
        torch.testing.assert_close(ClipViews(trainer.target_builder, clips).scores("everest"), expected)
    finally:
        torch.distributed.destroy_process_group()


def test_targets_are_the_codes_or_what_is_rounded_to_them(splits, tmp_path):
    made = {}
    for kind in ("codes", "levels", "latents"):
        trainer = trainer_with(splits, tmp_path, target_type=kind)
        name = "target_latents" if kind == "latents" else "target_codes"
        made[kind] = trainer.target_builder(pretraining_batch(trainer))[name]
    assert torch.equal(made["codes"], made["levels"])
    assert not torch.equal(made["codes"], made["latents"])
    half = torch.tensor(TOKENIZER.levels) // 2
    assert torch.equal((made["latents"] * half).round() / half, made["codes"])


@pytest.mark.parametrize("kind", ["codes", "latents", "levels", "pixels"])
def test_logs_have_the_parts_of_the_loss(kind, splits, tmp_path):
    trainer = trainer_with(splits, tmp_path, {"max_steps": 2, "logging_steps": 2}, target_type=kind)
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    parts = [entry[f"loss_channel_{number}"] for number in range(3 if kind == "pixels" else 6)]
    assert sum(parts) / len(parts) == pytest.approx(losses(trainer)[0], rel=1e-3)
    assert len(set(parts)) == len(parts)
    assert f"loss_channel_{len(parts)}" not in entry


def test_steps_after_the_first_put_no_python_numbers_on_the_device(splits, tmp_path):
    """Each would have an accelerator wait."""

    class Refuse(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            assert function not in (torch.tensor, torch.as_tensor, torch.from_numpy), function
            return function(*args, **(kwargs or {}))

    for kind in ("none", "random", "uniform", "motion", "everest", "adaptive_random"):
        trainer = trainer_with(splits, tmp_path, decoder_mask=kind, target_type="latents")
        batch = pretraining_batch(trainer)
        trainer.target_builder(batch)
        with Refuse():
            trainer.target_builder(batch)
    with pytest.raises(AssertionError), Refuse():
        torch.tensor([1.0])


def test_raft_weights_reach_the_estimator(splits, tmp_path):
    raft = pytest.importorskip("torchvision.models.optical_flow").raft_small()
    torch.save(raft.state_dict(), tmp_path / "raft.pth")
    trainer = trainer_with(splits, tmp_path, {"raft_weights": str(tmp_path / "raft.pth")}, decoder_mask="flow")
    assert trainer.target_builder.flow[0] == "RAFT"
    assert trainer.target_builder.flow == flow_estimator(tmp_path / "raft.pth")


def test_the_encoder_s_mask_is_the_config_s(splits):
    processor = processor_for(MODEL)
    for kind in ("tube", "random"):
        clips = MaskedVideoClips(
            splits["train"], processor, 8, grid_size=MODEL.grid_size, mask_ratio=0.75, encoder_mask=kind
        )
        masks = torch.stack([clips[number]["bool_masked_pos"] for number in range(3)]).view(3, 4, 16)
        assert masks.sum(dim=(1, 2)).tolist() == [48] * 3
        assert bool((masks == masks[:, :1]).all()) == (kind == "tube")
        model = model_with(encoder_mask=kind, target_type="pixels").eval()
        with torch.no_grad():
            drawn = model(torch.zeros(3, 8, 3, 32, 32)).bool_masked_pos.view(3, 4, 16)
        assert bool((drawn == drawn[:, :1]).all()) == (kind == "tube")
        assert bool((drawn.sum(dim=2) == 12).all()) == (kind != "random")


# studies/compare_masks.py, scripts/pretrain.py


@pytest.fixture(scope="module")
def compare_masks():
    return load_script("compare_masks")


SUBSET = ["--decoder_mask", "adaptive_random", "uniform", "--encoder_mask", "random", "--steps", "1"]
SUBSET += ["--target_type", "latents", "levels", "pixels"]


def test_combinations_pass_their_checks_and_senseless_ones_are_refused(compare_masks, tmp_path, capsys):
    compare_masks.main([str(CLIPS), "--output", str(tmp_path / "masks.md"), *SUBSET])
    text = (tmp_path / "masks.md").read_text()
    assert "| adaptive_random | random | 16 | 18 |" in text
    assert text.count("expected") == 7
    assert "6 combinations, 0 faults" in capsys.readouterr().out


def test_a_loss_at_visible_tokens_fails_the_checks(compare_masks, monkeypatch, capsys):
    honest = LVMAEForPreTraining.forward_loss
    monkeypatch.setattr(
        LVMAEForPreTraining,
        "forward_loss",
        lambda self, logits, targets, masked: honest(self, logits, targets, torch.ones_like(masked)),
    )
    with pytest.raises(SystemExit):
        compare_masks.main([str(CLIPS), *SUBSET])
    assert capsys.readouterr().out.count("at visible tokens") == 6


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"losses": [float("nan"), 1.0, 0.5]}, "not finite"),
        ({"losses": [1.0, 1.1]}, "do not fall"),
        ({"visible": [16, 17]}, "visible tokens, not 16"),
        ({"decoded": [18, 17]}, "decoded tokens, not 18"),
        ({"visible_gradient": 1e-9}, "at visible tokens"),
        ({"hidden_gradient": 0.0}, "at hidden tokens"),
    ],
)
def test_each_check_can_fail(change, fault, compare_masks):
    config = LVMAEConfig(**compare_masks.MODEL)
    good = compare_masks.Result(config, [1.0, 0.5], [16, 16], [18, 18], [3, 5], 0.0, 0.1)
    assert good.faults() == []
    faults = replace(good, **change).faults()
    assert fault in faults[0]
    assert len(faults) == 1 or "losses" in change


def test_options_of_the_script_are_fields_of_the_config(monkeypatch):
    pretrain = load_script("pretrain")
    monkeypatch.setitem(sys.modules, "pretrain", pretrain)
    arguments = pretrain.PreTrainingModelArguments(
        encoder_mask="random", decoder_mask="flow", target_type="levels", config_overrides='{"decoder_mask_ratio": 0.8}'
    )
    config = LVMAEConfig(**arguments.overrides(LVMAEConfig))
    assert (config.encoder_mask, config.decoder_mask, config.target_type) == ("random", "flow", "levels")
    assert config.decoder_mask_ratio == 0.8
    assert pretrain.PreTrainingModelArguments().overrides(LVMAEConfig) == {}
    arguments.decoder_mask = "none"
    with pytest.raises(
        ValueError, match=r"Got decoder_mask_ratio with decoder_mask='none', expected no ratio.*: leave it out"
    ):
        arguments.overrides(LVMAEConfig)


def test_a_trainer_s_own_tokenizer_serves_latents_where_a_cache_has_codes(splits, tmp_path):
    trainer = trainer_with(splits, tmp_path, target_type="latents")
    batch = pretraining_batch(trainer)
    made = trainer.target_builder(batch)
    cached = {**batch, "target_codes": torch.zeros(3, 64, 6), "importance_scores": torch.rand(3, 64)}
    assert torch.equal(trainer.target_builder(cached)["target_latents"], made["target_latents"])
    latents = torch.rand(3, 64, 6)
    trainer.target_builder.tokenizer = None
    assert torch.equal(trainer.target_builder({**cached, "target_latents": latents})["target_latents"], latents)


def test_the_script_hands_the_options_to_model_clips_and_trainer(tmp_path, monkeypatch):
    FSQMagViTModel(TOKENIZER).save_pretrained(tmp_path / "tokenizer")
    overrides = {name: getattr(MODEL, name) for name in ("image_size", "patch_size", "num_frames", "hidden_size")}
    options = ["--dataset_name", str(CLIPS), "--eval_split", "test", "--tokenizer", str(tmp_path / "tokenizer")]
    options += ["--output_dir", str(tmp_path), "--use_cpu", "true", "--report_to", "none", "--model_size", "small"]
    options += ["--config_overrides", json.dumps({**overrides, "num_attention_heads": 4, "num_hidden_layers": 1})]
    options += ["--encoder_mask", "random", "--decoder_mask", "everest", "--target_type", "latents"]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *options])
    script, made = load_script("pretrain"), []
    monkeypatch.setattr(script, "train_and_save", lambda trainer, *settings, **facts: made.append(trainer))
    script.main()
    (trainer,) = made
    config = trainer.model.config
    assert (config.encoder_mask, config.decoder_mask, config.target_type) == ("random", "everest", "latents")
    assert tuple(config.levels) == tuple(TOKENIZER.levels)
    for clips in (trainer.train_dataset, trainer.eval_dataset):
        assert clips.draw_mask is random_token_mask
    assert any(isinstance(callback, PredictionPictures) for callback in trainer.callback_handler.callbacks)
