"""Tokens chosen for the encoder: which, how many, and the same in every way that a model is used."""

import math

import pytest
import torch
from builders import tiny_config, tiny_tokenizer_config
from transformers import AutoModel, AutoModelForVideoClassification

from transformers_lvmae import (
    FSQMagViTModel,
    LVMAEClassificationArguments,
    LVMAEClassificationTrainer,
    LVMAEForPreTraining,
    LVMAEForVideoClassification,
    LVMAEModel,
)
from transformers_lvmae.data import processor_for
from transformers_lvmae.models.masking import gather_tubelets, mask_to_indices, random_tube_mask, split_tubelets
from transformers_lvmae.models.token_scores import compact_scores, everest, frame_difference, tokenizer_view
from transformers_lvmae.models.token_selection import WINDOW_SLOTS, LVMAETokenSelector, fixed_noise
from transformers_lvmae.sharing.loading import load_processor


GRID = (4, 4, 4)  # of tiny_config: tokens of 2 x 8 x 8 pixels
TOKENS = math.prod(GRID)
SELECTIONS = ["learned", "motion", "everest", "random", "uniform"]


def config(selection: str = "learned", **fields):
    return tiny_config(token_selection=selection, **{"token_keep_ratio": 0.25, "scorer_patch_size": 4, **fields})


def build(model_class=LVMAEForVideoClassification, **fields):
    torch.manual_seed(0)
    return model_class(config(**{"num_labels": 5, "tube_drop_ratio": 0.0, **fields})).eval()


def clips(count: int = 2, frames: int = 8) -> torch.Tensor:
    return torch.randn(count, frames, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def unit_pixels(values: torch.Tensor, fields) -> torch.Tensor:
    mean, deviation = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (fields.image_mean, fields.image_std))
    return (values * deviation + mean).clamp(0, 1)


def kept_by(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` best tokens of each row; ties, which noise decides, do not occur in random clips."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.argsort(1, descending=True)[:, :count], True)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_classifier_sees_the_best_tokens_and_no_others(selection):
    model, pixels = build(selection=selection), clips()
    unit = unit_pixels(pixels, model.config)
    noise = fixed_noise(TOKENS).expand(2, -1)
    if selection == "learned":
        view = tokenizer_view(unit, 0.5).transpose(1, 2)
        scorer = model.lvmae.token_selector.scorer
        expected = kept_by(compact_scores(scorer.distances(scorer(view)).flatten(1)), 16)
    elif selection in ("motion", "everest"):
        expected = kept_by({"motion": frame_difference, "everest": everest}[selection](unit, GRID), 16)
    else:
        expected = kept_by(noise, 16) if selection == "random" else torch.arange(TOKENS).expand(2, -1) < 16
    assert expected.sum(1).tolist() == [16, 16]

    with torch.no_grad():
        logits = model(pixels).logits
        same = model(pixels, bool_masked_pos=~expected).logits
        assert not torch.equal(logits, model(pixels, bool_masked_pos=expected).logits)
        encoded = model.lvmae(pixels)
    assert torch.equal(logits, same)
    assert torch.equal(encoded.visible_positions, mask_to_indices(expected, "expected"))
    assert encoded.last_hidden_state.shape == (2, 16, 32)


def test_given_scores_take_the_place_of_the_models_own():
    model, pixels = build(), clips()
    scores = torch.rand(2, TOKENS)
    with torch.no_grad():
        logits = model(pixels, importance_scores=scores).logits
        assert torch.equal(logits, model(pixels, bool_masked_pos=~kept_by(compact_scores(scores), 16)).logits)
        outputs = model.lvmae(pixels, importance_scores=scores)
    assert torch.equal(outputs.visible_positions, mask_to_indices(kept_by(compact_scores(scores), 16), "kept"))


def test_visible_tubelets_stand_for_the_clip():
    model, pixels = build(), clips()
    with torch.no_grad():
        kept = model.lvmae.token_selector(pixels)
        tubelets = gather_tubelets(split_tubelets(pixels, 2, 8), mask_to_indices(kept, "kept"))
        torch.testing.assert_close(model(visible_tubelets=tubelets, bool_masked_pos=~kept).logits, model(pixels).logits)


@pytest.mark.parametrize("selection", ["learned", "motion", "everest"])
def test_windows_score_as_the_whole_clip(selection):
    slots = 2 * WINDOW_SLOTS + 1
    selector = LVMAETokenSelector(config(selection, num_frames=2 * slots))
    pixels = clips(1, 2 * slots)
    unit = unit_pixels(pixels, selector.config)
    if selection == "learned":
        features = selector.scorer(tokenizer_view(unit, 0.5).transpose(1, 2))
        expected = selector.scorer.distances(features).flatten(1)
    else:
        expected = {"motion": frame_difference, "everest": everest}[selection](unit, (slots, 4, 4))
    torch.testing.assert_close(selector.scores(pixels), expected)


def test_the_scores_are_those_of_the_tokenizer():
    torch.manual_seed(0)
    tokenizer = FSQMagViTModel(tiny_tokenizer_config(image_size=16, num_frames=8)).eval()
    fields = {"tubelet_size": tokenizer.config.tubelet_size, "patch_size": 32 // tokenizer.config.grid_size[1]}
    model = build(**fields)
    model.set_token_scorer(tokenizer)
    assert model.config.scorer_patch_size == tokenizer.config.patch_size
    assert model.config.scorer_hidden_size == tokenizer.config.scorer_hidden_size
    assert not any(weight.requires_grad for weight in model.lvmae.token_selector.parameters())
    pixels = clips()
    with torch.no_grad():
        expected = tokenizer.encode(tokenizer_view(unit_pixels(pixels, model.config), 0.5)).importance_scores
    torch.testing.assert_close(model.lvmae.token_selector.scores(pixels), expected)
    # Bytes, as a worker has them.
    data = torch.randint(0, 256, pixels.shape, dtype=torch.uint8)
    mean, deviation = (
        torch.tensor(values).view(-1, 1, 1) for values in (model.config.image_mean, model.config.image_std)
    )
    torch.testing.assert_close(
        model.lvmae.token_selector.scores(data), model.lvmae.token_selector.scores((data / 255 - mean) / deviation)
    )


def test_a_random_share_besides():
    selector = LVMAETokenSelector(config("motion", token_random_ratio=0.125)).eval()
    pixels, scores = clips(), torch.rand(2, TOKENS, generator=torch.Generator().manual_seed(0))
    best = kept_by(compact_scores(scores), 8)
    kept = selector(pixels, scores)
    assert kept.sum(1).tolist() == [16, 16]
    assert (kept & best).sum(1).tolist() == [8, 8]
    assert torch.equal(kept, selector(pixels, scores))  # evaluation draws the same
    torch.manual_seed(0)
    selector.train()
    draws = torch.stack([selector(pixels, scores) & ~best for _ in range(200)]).float().mean(0)
    assert (draws[~best] > 0).all()
    assert draws[~best].mean() == pytest.approx(8 / 56)


def test_dropped_tubes_are_never_kept_in_training():
    torch.manual_seed(0)
    model = build(selection="motion", tube_drop_ratio=0.5).train()
    seen = []
    model.lvmae.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["visible_positions"]), with_kwargs=True
    )
    pixels = clips(4)
    model(pixels)
    (positions,) = seen
    assert positions.shape == (4, 8)  # a quarter of the half
    tubes = [len(set((row % 16).tolist())) for row in positions]
    assert max(tubes) <= 8
    model.eval()
    model(pixels)
    assert seen[1].shape == (4, 16)
    # Of the tubes that remain, the best tokens are kept.
    dropped, scores = random_tube_mask(4, GRID, 0.5), torch.rand(4, TOKENS)
    expected = kept_by(compact_scores(scores).masked_fill(dropped, -1), 8)
    assert torch.equal(model.lvmae.token_selector(pixels, scores, dropped), expected)


def test_still_clips_are_sampled_all_over():
    """Equal scores would otherwise take the first slots of a clip."""
    kept = LVMAETokenSelector(config("motion")).eval()(torch.zeros(1, 8, 3, 32, 32)).view(GRID)
    assert (kept.flatten(1).sum(1) > 0).all()
    assert kept.sum() == 16
    noise = fixed_noise(12544)
    assert noise.min() >= 0
    assert noise.max() < 1
    assert len(noise.unique()) > 12000
    # No more in one place than in another, in time, rows and columns.
    chosen = (noise < 0.25).view(64, 14, 14).float()
    for axes in ((1, 2), (0, 2), (0, 1)):
        shares = chosen.mean(axes)
        assert (shares - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 * len(shares) / 12544)


@pytest.mark.parametrize("half", ["weights", "autocast"])
def test_half_precision_chooses_the_same_tokens(half):
    """Bright features that hardly move: in bfloat16 their differences would be rounded away."""
    model = build()
    with torch.no_grad():
        model.token_scorer.conv2.bias.fill_(20)
    pixels = clips(1)[:, :1].repeat(2, 8, 1, 1, 1)
    pixels[:, ::2, :, 8:24, 8:24] += 0.1
    expected, _ = model.lvmae.choose_visible(pixels)
    if half == "weights":
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=half == "autocast"):
        found, _ = model.lvmae.choose_visible(pixels)
    same = [len(set(one) & set(two)) for one, two in zip(found.tolist(), expected.tolist())]
    assert min(same) >= 15


LENGTHS = (5, 16, 1)


def scores_above(*lengths: int) -> torch.Tensor:
    """Scores (B, N) of which the given number in each row is above 0.5."""
    generator = torch.Generator().manual_seed(3)
    order = torch.rand(len(lengths), TOKENS, generator=generator).argsort(1).argsort(1)
    return 1 - (order + 0.5) / (2 * torch.tensor(lengths).unsqueeze(1))


@pytest.mark.parametrize("attention", ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
@pytest.mark.parametrize("pooling", ["mean", "class_attention"])
def test_a_padded_batch_equals_each_clip_alone(pooling, attention):
    model = build(token_score_threshold=0.5, pooling=pooling, attn_implementation=attention, hidden_size=64)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    pixels, scores = clips(3), scores_above(*LENGTHS)
    with torch.no_grad():
        together, encoded = (
            model(pixels, importance_scores=scores).logits,
            model.lvmae(pixels, importance_scores=scores),
        )
        assert encoded.token_mask.sum(1).tolist() == list(LENGTHS)
        for row, length in enumerate(LENGTHS):
            alone = model(pixels[[row]], bool_masked_pos=scores[[row]] < 0.5)
            torch.testing.assert_close(together[[row]], alone.logits, rtol=1e-4, atol=1e-5)
            own = model.lvmae(pixels[[row]], scores[[row]] < 0.5)
            assert torch.equal(encoded.visible_positions[row, :length], own.visible_positions[0])
            torch.testing.assert_close(
                encoded.last_hidden_state[[row], :length], own.last_hidden_state, rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(encoded.pooler_output[[row]], own.pooler_output, rtol=1e-4, atol=1e-5)


def test_a_threshold_keeps_at_least_one_token_a_clip_and_at_most_the_budget_of_a_batch():
    selector = LVMAETokenSelector(config("motion", token_score_threshold=0.5)).eval()
    pixels = clips(3)
    scores = scores_above(5, 16, 1)
    assert torch.equal(selector(pixels, scores), scores >= 0.5)
    assert selector(pixels, scores - 1).sum(1).tolist() == [1, 1, 1]
    assert torch.equal(selector(pixels, scores - 1), scores == scores.amax(1, keepdim=True))
    # 60 tokens of one clip pass. In training a batch keeps 3 x 16: one of each clip, and the best. Else each clip keeps at most 16.
    scores = scores_above(60, 1, 2)
    scores[1:] = scores[1:].clamp(max=0.4)
    assert selector(pixels, scores).sum(1).tolist() == [16, 1, 1]
    kept = selector.train()(pixels, scores)
    selector.eval()
    assert kept.sum(1).tolist() == [46, 1, 1]
    assert torch.equal(kept[:1], kept_by(scores[:1], 46))
    # As many of every clip: the same as without a threshold.
    equal = scores_above(16, 16, 16)
    assert torch.equal(selector(pixels, equal), LVMAETokenSelector(config("motion")).eval()(pixels, equal))
    dropped = random_tube_mask(3, GRID, 0.5)
    selector.config.tube_drop_ratio = 0.5
    assert not (selector(pixels, scores_above(60, 60, 60), dropped) & dropped).any()


def test_a_classifier_learns_with_a_threshold():
    model = build(token_score_threshold=0.3, selection="motion", pooling="class_attention").train()
    model.activation_checkpointing_enable()
    model(clips(), labels=torch.tensor([0, 1])).loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_saving_and_loading_need_nothing_else(tmp_path):
    model, pixels = build(), clips()
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForVideoClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(loaded.eval()(pixels).logits, model(pixels).logits)
    # An encoder alone; all tokens on demand, without a word about the scorer.
    encoder = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(encoder(pixels).last_hidden_state, model.lvmae(pixels).last_hidden_state)
    whole, info = LVMAEModel.from_pretrained(tmp_path, token_keep_ratio=1.0, output_loading_info=True)
    assert whole(pixels).last_hidden_state.shape[1] == TOKENS
    assert not info["unexpected_keys"]


def test_pre_training_has_no_scorer(tmp_path):
    """Its random weights would pass for a trained scorer's in fine-tuning."""
    model = build(LVMAEForPreTraining)
    model.save_pretrained(tmp_path)
    loaded, info = LVMAEForVideoClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert loaded.config.token_keep_ratio == 0.25
    assert {name for name in info["missing_keys"] if "token_selector" in name}
    assert model(clips(1)).logits.shape[0] == 1


def test_gradients_reach_everything_but_the_scorer():
    model = build().train()
    model(clips(), labels=torch.tensor([0, 1])).loss.backward()
    without = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert without == {name for name, _ in model.named_parameters() if "token_selector" in name}
    assert len(without) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_random_ratio": 0.5}, "token_random_ratio=0.5"),
        ({"token_keep_ratio": 0.0}, "token_keep_ratio"),
        ({"image_mean": (0.5,)}, "image_mean"),
        (
            {"token_score_threshold": 0.1, "token_keep_ratio": 1.0},
            "token_score_threshold=0.1 with token_keep_ratio=1.0",
        ),
        ({"token_score_threshold": 0.1, "token_random_ratio": 0.1}, "no random"),
    ],
)
def test_settings_that_do_not_fit(fields, message):
    with pytest.raises(Exception, match=message):
        config(**fields)


def test_wrong_scores_and_tokenizers():
    model, pixels = build(), clips()
    with pytest.raises(ValueError, match=r"importance_scores of shape \(2, 63\)"):
        model(pixels, importance_scores=torch.rand(2, 63))
    with pytest.raises(RuntimeError, match="finite"):
        model(pixels, importance_scores=torch.full((2, TOKENS), float("nan")))
    everything = build(token_keep_ratio=1.0)
    with pytest.raises(ValueError, match=r"importance_scores and config\.token_keep_ratio=1"):
        everything(pixels, importance_scores=torch.rand(2, TOKENS))
    with pytest.raises(ValueError, match="ratio below 1"):
        everything.set_token_scorer(FSQMagViTModel(tiny_tokenizer_config()))
    with pytest.raises(ValueError, match="another tubelet_size"):
        build(tubelet_size=1).set_token_scorer(FSQMagViTModel(tiny_tokenizer_config()))
    with pytest.raises(ValueError, match="bool_masked_pos and importance_scores"):
        model(pixels, bool_masked_pos=torch.rand(2, TOKENS) > 0.5, importance_scores=torch.rand(2, TOKENS))
    with pytest.raises(ValueError, match="mask of 128 tokens, expected 64"):
        model(visible_tubelets=torch.rand(1, 4, 2, 3, 8, 8), bool_masked_pos=torch.arange(128)[None] > 3)


def test_a_scorer_with_random_weights_is_refused_after_it_was_saved(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    processor_for(model.config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a trained scorer"):
        load_processor(tmp_path, LVMAEModel.from_pretrained(tmp_path).config)
    with pytest.raises(ValueError, match="expected a trained scorer"):
        LVMAEClassificationTrainer(model, LVMAEClassificationArguments(tmp_path, report_to="none", use_cpu=True))
    tokenizer = tiny_tokenizer_config(image_size=16, num_frames=8)
    model = build(tubelet_size=tokenizer.tubelet_size, num_frames=8)
    model.set_token_scorer(FSQMagViTModel(tokenizer))
    model.save_pretrained(tmp_path)
    load_processor(tmp_path, LVMAEModel.from_pretrained(tmp_path).config)


def test_one_graph_without_reading_the_mask():
    """torch.compile breaks its graph where Python reads a number of a tensor."""
    torch.compiler.reset()
    model, pixels = build(), clips()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixels).logits, model(pixels).logits)
