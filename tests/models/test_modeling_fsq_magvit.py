"""The adaptive tokenizer: quantizer, windows, scores, masks."""

import math
import os
import subprocess
import sys

import pytest
import torch
from builders import initialize_again, tiny_tokenizer_config
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from transformers_lvmae import FSQMagViTConfig, FSQMagViTModel
from transformers_lvmae.models.fsq import codes_to_indices
from transformers_lvmae.models.masking import adaptive_decoder_mask, topk_mask
from transformers_lvmae.models.modeling_fsq_magvit import (
    FSQMagViTDownsample,
    FSQMagViTUpsample,
    depth_to_space,
    pad_last,
    space_to_depth,
)
from transformers_lvmae.models.token_scores import TokenScorer


# A floor under the root keeps its gradient finite: nothing that stands still scores lower.
STILL = math.sqrt(1e-6)
# Both layouts at tiny width: MAGVIT's, which halves time inside, and the default, whose stem folds it.
LAYOUTS = {
    "magvit": {},
    "default": {"stem_patch_size": (2, 4, 4), "channel_multipliers": (1, 2), "temporal_downsample": (False,)},
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def build(**overrides) -> FSQMagViTModel:
    """A tokenizer in eval mode whose biases and norms are not at their trivial start."""
    model = FSQMagViTModel(tiny_tokenizer_config(**overrides))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.encoder.blocks[-1].weight.mul_(5)  # codes of all levels, not of the middle ones only
    return model.eval()


def random_clip(num_frames: int = 8, rows: int = 2, size: int = 16) -> torch.Tensor:
    return torch.rand(rows, num_frames, 3, size, size)


@torch.no_grad()
def encode(model, clip):
    return model.encode(clip)


@torch.no_grad()
def forward(model, clip, **kwargs):
    return model(clip, **kwargs)


# Windows


def test_default_grid_is_that_of_the_vit():
    config = FSQMagViTConfig()
    assert (config.tubelet_size, config.patch_size) == (2, 8)
    assert config.grid_size == (64, 14, 14)
    assert config.codebook_size == 2**18
    stem = FSQMagViTConfig(stem_patch_size=(2, 2, 2))
    assert (stem.tubelet_size, stem.patch_size, stem.grid_size) == (2, 4, (64, 28, 28))


def test_128_frames_are_tokenized_as_each_window_alone():
    model = build(window_size=16, num_frames=128)
    clip = random_clip(128)
    whole = encode(model, clip)
    assert whole.latents.shape[1:4] == model.config.grid_size == (64, 4, 4)
    windows = [encode(model, window) for window in clip.split(16, dim=1)]
    for name in ("codes", "code_indices"):
        assert torch.equal(whole[name], torch.cat([window[name] for window in windows], dim=1)), name
    for number, window in enumerate(windows):  # a window's first slot is scored against the window before it
        scores = whole.importance_scores.view(2, 64, 16)[:, 8 * number + 1 : 8 * number + 8]
        torch.testing.assert_close(scores, window.importance_scores.view(2, 8, 16)[:, 1:])
    assert torch.equal(whole.latents, torch.cat([window.latents for window in windows], dim=1))
    assert torch.equal(whole.codes, model.quantizer(whole.latents).flatten(1, 3))


def test_in_windows_of_one_slot_the_first_slot_takes_the_score_of_the_second():
    longer, model = build(window_size=8), build(window_size=2)
    model.load_state_dict(longer.state_dict())
    clip = random_clip(8)
    scores = encode(model, clip).importance_scores
    torch.testing.assert_close(scores, encode(longer, clip).importance_scores)
    assert torch.equal(scores.unflatten(1, (4, -1))[:, 0], scores.unflatten(1, (4, -1))[:, 1])


def test_scores_of_windows_are_those_of_the_whole_clip_at_once():
    model = build(window_size=16, num_frames=128)
    clip = random_clip(128)
    with torch.no_grad():
        features = model.scorer(clip.transpose(1, 2))
    expected = torch.stack([(features[:, :, t] - features[:, :, t - 1]).square().sum(dim=1) for t in range(1, 64)], 1)
    expected = (expected + 1e-6).sqrt()
    expected = torch.cat([expected[:, :1], expected], dim=1).flatten(1)
    torch.testing.assert_close(encode(model, clip).importance_scores, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 33])
def test_any_length_is_the_clip_held_at_its_last_frame(length):
    model = build(window_size=16)
    clip = random_clip(length)
    held = torch.cat([clip, clip[:, -1:].expand(-1, -length % 16, -1, -1, -1)], dim=1)
    outputs, expected = encode(model, clip), encode(model, held)
    tokens = math.ceil(length / 2) * 16
    assert outputs.codes.shape[1] == tokens
    for name in ("codes", "code_indices", "importance_scores"):
        assert torch.equal(outputs[name], expected[name][:, :tokens]), name
    reconstructed, expected = forward(model, clip), forward(model, held)
    assert torch.equal(reconstructed.reconstruction, expected.reconstruction[:, :length])
    assert torch.equal(reconstructed.bool_kept_pos, expected.bool_kept_pos[:, :tokens])
    with torch.no_grad():
        decoded = model.decode(outputs.codes)
    assert decoded.shape == (2, 2 * math.ceil(length / 2), 3, 16, 16)
    if length % 16 == 0:
        torch.testing.assert_close(decoded, forward(model, clip, keep_ratio=1.0).reconstruction)


def test_padding_repeats_the_last_entry():
    assert pad_last(torch.tensor([[1, 2, 3]]), 4, dim=1).tolist() == [[1, 2, 3, 3]]
    assert pad_last(torch.tensor([[1], [2], [5]]), 5, dim=0).tolist() == [[1], [2], [5], [5], [5]]
    whole = torch.arange(4)
    assert pad_last(whole, 2, dim=0) is whole


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"stem_patch_size": (1, 2, 2), "temporal_downsample": (True,), "channel_multipliers": (1, 2)},
        {"stem_patch_size": (2, 1, 1), "temporal_downsample": (False, False)},
        {"temporal_downsample": (True, True)},
        {"window_size": 8},
    ],
)
def test_encode_then_decode_is_forward_without_a_mask(overrides):
    model = build(**overrides)
    clip = random_clip(16)
    outputs = forward(model, clip, keep_ratio=1.0)
    encoded = encode(model, clip)
    assert torch.equal(outputs.code_indices, encoded.code_indices)
    with torch.no_grad():
        torch.testing.assert_close(model.decode(encoded.codes), outputs.reconstruction)
    torch.testing.assert_close(outputs.loss, (outputs.reconstruction - clip).square().mean())
    assert outputs.bool_kept_pos.all()


def test_other_sizes_decode_with_their_own_grid():
    model = build()
    clip = torch.rand(2, 8, 3, 8, 24)
    with torch.no_grad():
        decoded = model.decode(encode(model, clip).codes, grid_size=(4, 2, 6))
    torch.testing.assert_close(decoded, forward(model, clip, keep_ratio=1.0).reconstruction)


def test_space_to_depth_moves_each_patch_into_channels_and_back():
    clip, patch = torch.randn(2, 3, 4, 6, 8), (2, 3, 4)
    folded = space_to_depth(clip, patch)
    cell = clip[1, :, 2:4, 3:6, 4:8]
    assert torch.equal(folded[1, :, 1, 1, 1], cell.flatten())
    assert torch.equal(depth_to_space(folded, patch), clip)


# Importance


def test_a_still_clip_scores_the_same_everywhere():
    model = build()
    clip = random_clip(1).expand(-1, 16, -1, -1, -1)
    scores = encode(model, clip).importance_scores
    torch.testing.assert_close(scores, torch.full_like(scores, STILL), atol=1e-5, rtol=0)


@every_layout
def test_a_steady_pan_shows_no_seam_between_windows(layout):
    """A texture with a period of two tokens that moves by one token a slot: every slot differs alike from the one before."""
    size = 4 * tiny_tokenizer_config(image_size=32, **layout).patch_size
    model = build(image_size=size, **layout)
    texture = torch.rand(1, 3, size, size // 2).repeat(1, 1, 1, 2)
    clip = torch.stack([texture.roll(size // 8 * frame, dims=-1) for frame in range(16)], dim=1)
    scores = encode(model, clip).importance_scores.view(8, 16)
    torch.testing.assert_close(scores, scores[:1].expand(8, -1), atol=1e-6, rtol=1e-5)
    assert scores.min() > 10 * STILL


def test_what_moves_scores_highest_and_what_stands_still_lowest():
    model = build()
    clip = random_clip(1, size=32).repeat(1, 8, 1, 1, 1)
    clip[:, 4:, :, 8:12, 20:24] = 1 - clip[:, 4:, :, 8:12, 20:24]  # the token (2, 5) changes from slot 1 to slot 2
    scores = encode(model, clip).importance_scores.view(2, 4, 8, 8)
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    near = ((rows - 2).abs() <= 1) & ((columns - 5).abs() <= 1)
    for clip_scores in scores:
        torch.testing.assert_close(clip_scores[[0, 1, 3]], torch.full((3, 8, 8), STILL), atol=1e-5, rtol=0)
        torch.testing.assert_close(clip_scores[2][~near], torch.full((55,), STILL), atol=1e-5, rtol=0)
        assert near.flatten()[clip_scores[2].argmax()]
        assert clip_scores[2, 2, 5] > 10 * STILL


def test_distances_are_euclidean_and_the_first_slot_has_its_rule():
    features, previous = torch.randn(2, 5, 3, 2, 2), torch.randn(2, 5, 1, 2, 2)

    def distance(a, b):
        return (torch.linalg.vector_norm(a - b, dim=1).square() + 1e-6).sqrt()

    after = [distance(features[:, :, t], features[:, :, t - 1]) for t in (1, 2)]
    distances = TokenScorer.distances
    torch.testing.assert_close(distances(features), torch.stack([after[0], *after], dim=1))
    with_previous = torch.stack([distance(features[:, :, 0], previous[:, :, 0]), *after], dim=1)
    torch.testing.assert_close(distances(features, previous), with_previous)
    assert torch.equal(distances(features[:, :, :1]), torch.zeros(2, 1, 2, 2))
    still = torch.zeros(1, 5, 2, 1, 1, requires_grad=True)
    distances(still).sum().backward()
    assert torch.equal(still.grad, torch.zeros_like(still))


def test_distances_of_half_precision_are_computed_in_float32():
    features = (300 * torch.randn(2, 5, 3, 2, 2)).half()  # their squares are beyond float16
    distances = TokenScorer.distances(features)
    assert distances.dtype == torch.float32
    assert torch.equal(distances, TokenScorer.distances(features.float()))


def test_the_loss_of_half_precision_is_computed_in_float32():
    model, clip = build().bfloat16(), random_clip()
    outputs = forward(model, clip)
    assert outputs.loss.dtype == torch.float32
    torch.testing.assert_close(outputs.loss, (outputs.reconstruction.float() - clip).square().mean())


def test_the_decoder_doubles_what_the_encoder_halves_in_reverse_order():
    model = build(temporal_downsample=(True, False))
    halved = [block.kernel_size for block in model.encoder.blocks if isinstance(block, FSQMagViTDownsample)]
    doubled = [block.upsample.scale_factor for block in model.decoder.blocks if isinstance(block, FSQMagViTUpsample)]
    assert halved == doubled[::-1] == [(2, 2, 2), (1, 2, 2)]


# Masks


@pytest.mark.parametrize("keep_ratio", [0.1, 0.375, 0.9])
def test_dropped_tokens_are_zero_before_quantization(keep_ratio):
    model = build()
    clip = random_clip(8)
    outputs, encoded = forward(model, clip, keep_ratio=keep_ratio), encode(model, clip)
    kept = outputs.bool_kept_pos
    zero = codes_to_indices(torch.zeros(3), model.config.levels)
    assert torch.equal(outputs.code_indices, torch.where(kept, encoded.code_indices, zero))
    with torch.no_grad():
        torch.testing.assert_close(model.decode(encoded.codes * kept.unsqueeze(-1)), outputs.reconstruction)
    # The reconstruction does depend on what was dropped.
    assert (outputs.reconstruction - forward(model, clip, keep_ratio=1.0).reconstruction).abs().max() > 1e-3


@pytest.mark.parametrize("still", [False, True], ids=["scores", "ties"])
def test_each_window_keeps_its_highest_scores_and_in_training_its_first_slot(still):
    model = build(keep_ratio=0.375)  # windows of 2 x 4 x 4 tokens: 12 are kept
    clip = random_clip(1).expand(-1, 8, -1, -1, -1) if still else random_clip(8)
    outputs = forward(model, clip)
    scores = outputs.importance_scores.view(2, 2, 32)
    kept = outputs.bool_kept_pos.view(2, 2, 32)
    assert (kept.sum(dim=2) == 12).all()
    if not still:
        assert torch.equal(kept, topk_mask(scores, 12))
    nearly_all = forward(model, clip, keep_ratio=0.9).bool_kept_pos.view(2, 2, 32)  # 28.8 of 32
    assert (nearly_all.sum(dim=2) == 29).all()

    trained = forward(model.train(), clip).bool_kept_pos.view(2, 2, 32)
    assert trained[..., :16].all()
    assert (trained[..., 16:].sum(dim=2) == 12).all()
    if not still:
        assert torch.equal(trained[..., 16:], topk_mask(scores[..., 16:], 12))


def test_the_mask_of_training_is_hard_and_sums_to_the_budget():
    scores = torch.rand(3, 4, 4, 4)
    mask = build(topk_sigma=0.3).train().token_mask(scores, torch.full((len(scores), 1), 0.25))
    assert (mask[:, 0] == 1).all()
    assert ((mask == 0) | (mask == 1)).all()
    assert mask[:, 1:].flatten(1).sum(dim=1).tolist() == [16, 16, 16]


def test_every_parameter_gets_a_gradient_the_scorers_too():
    model = build().train()
    model(random_clip(8)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        # A distance between features does not depend on what is added to both.
        assert parameter.grad.any() or name == "scorer.conv2.bias", name


def test_unmasked_training_clips_keep_everything_and_still_touch_the_scorer():
    model = build(unmasked_clip_ratio=1.0).train()
    outputs = model(random_clip(8))
    assert outputs.bool_kept_pos.all()
    outputs.loss.backward()
    assert all(not parameter.grad.any() for parameter in model.scorer.parameters())
    kept = build(unmasked_clip_ratio=0.5).train()(random_clip(8, rows=100)).bool_kept_pos.view(200, 32)
    unmasked = kept.all(dim=1).float().mean()
    assert abs(unmasked - 0.5) < 4 * (0.25 / 200) ** 0.5
    assert (kept.sum(dim=1)[~kept.all(dim=1)] == 16 + 12).all()


def test_budgets_of_training_windows_are_drawn_from_the_range():
    model = build(
        keep_ratio=0.5, min_keep_ratio=0.1
    ).train()  # of 32 tokens a window; the first slot's 16 are kept besides
    counts = model(random_clip(8, rows=200)).bool_kept_pos.view(400, 32)[:, 16:].sum(dim=1)
    expected = torch.linspace(0.1, 0.5, 100_001).mul(32).round().long().bincount(minlength=17) / 100_001
    assert ((counts.bincount(minlength=17) / 400 - expected).abs() < 4 * (0.1 / 400) ** 0.5).all()
    assert counts.min() == 3
    assert counts.max() == 16
    assert (forward(model.eval(), random_clip(8)).bool_kept_pos.view(4, 32).sum(dim=1) == 16).all()
    asked = model.train()(random_clip(8), keep_ratio=0.25).bool_kept_pos.view(4, 32)[:, 16:]
    assert (asked.sum(dim=1) == 8).all()


def test_rows_with_their_own_budgets_are_those_rows_alone():
    model = build().train()
    scores, shares = torch.rand(3, 2, 4, 4), torch.tensor([[0.05], [0.3], [0.5]])
    together = model.token_mask(scores, shares)
    alone = [model.token_mask(row[None], share[None]) for row, share in zip(scores, shares)]
    assert torch.equal(together, torch.cat(alone))
    assert together[:, 1].sum(dim=(1, 2)).tolist() == [2, 10, 16]


@pytest.mark.parametrize("length", [8, 6])
def test_given_scores_choose_as_the_scorers_would(length):
    model, clip = build(keep_ratio=0.3), random_clip(length)
    own = forward(model, clip)
    given = forward(model, clip, importance_scores=own.importance_scores)
    for name in own:
        assert torch.equal(own[name], given[name]), name
    others = torch.rand_like(own.importance_scores)
    chosen = forward(model, clip, importance_scores=others)
    assert torch.equal(chosen.importance_scores, others)
    assert torch.equal(chosen.bool_kept_pos[:, :32], topk_mask(others[:, :32], 10))


def test_given_scores_train_the_autoencoder_and_leave_the_scorer_alone():
    model, scores = build().train(), torch.rand(2, 64)
    outputs = model(random_clip(8), importance_scores=scores)
    outputs.loss.backward()
    kept = outputs.bool_kept_pos.view(4, 32)
    assert torch.equal(kept[:, 16:], topk_mask(scores.view(4, 32)[:, 16:], 12))
    assert all(parameter.grad is None for parameter in model.scorer.parameters())
    assert all(parameter.grad.any() for parameter in model.encoder.parameters())


@pytest.mark.parametrize("length", [8, 6])
@pytest.mark.parametrize("training", [True, False])
def test_a_given_mask_is_the_mask(training, length):
    model, clip = build().train(training), random_clip(length)
    kept = torch.rand(2, 16 * length // 2) < 0.4
    outputs = forward(model, clip, bool_kept_pos=kept)
    assert torch.equal(outputs.bool_kept_pos, kept)
    encoded = encode(model, clip)
    with torch.no_grad():
        expected = model.decode(encoded.codes * kept.unsqueeze(-1))[:, :length]
    if length == 8:  # otherwise slots of padding follow, whose codes decode fills in
        torch.testing.assert_close(expected, outputs.reconstruction)


@pytest.mark.parametrize("name", ["importance_scores", "bool_kept_pos"])
def test_scores_and_masks_of_other_clips_are_refused(name):
    with pytest.raises(
        ValueError, match=rf"Got {name} of shape \(2, 63\), expected \(2, 64\) for the grid .*: make them"
    ):
        build()(random_clip(8), **{name: torch.ones(2, 63)})


def test_given_noise_takes_the_place_of_the_config_s():
    scores, weights, gradients = torch.rand(1, 2, 4, 4), torch.randn(1, 2, 4, 4), []
    for config_sigma, sigma in [(0.05, None), (0.5, None), (0.05, 0.5), (0.05, torch.tensor(0.5))]:
        torch.manual_seed(1)
        leaf = scores.clone().requires_grad_()
        mask = build(topk_sigma=config_sigma).train().token_mask(leaf, torch.full((1, 1), 0.25), sigma)
        gradients.append(torch.autograd.grad((mask * weights).sum(), leaf)[0])
    assert torch.equal(gradients[1], gradients[2])
    assert torch.equal(gradients[1], gradients[3])
    assert not torch.equal(gradients[0], gradients[1])


def test_the_noise_is_relative_to_the_range_of_the_scores():
    scores, weights, gradients = torch.rand(1, 2, 4, 4), torch.randn(1, 2, 4, 4), []
    for scale in (1, 100):
        torch.manual_seed(1)
        leaf = (3 + scale * scores).requires_grad_()
        mask = build().train().token_mask(leaf, torch.full((1, 1), 0.25))
        gradients.append(scale * torch.autograd.grad((mask * weights).sum(), leaf)[0])
    assert gradients[0].any()
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-2, atol=1e-3)


def test_the_gradient_of_the_mask_passes_through_the_quantizer():
    """The mask multiplies the latents, so the scorer learns with the slope of the quantizer at the masked latents."""
    model, clip = build(), random_clip()
    mask = (torch.rand(2, 64) < 0.5).float().requires_grad_()
    latents = encode(model, clip).latents
    frames = model.decode(model.quantizer(latents * mask.view(2, 4, 4, 4, 1)).flatten(1, 3))
    (expected,) = torch.autograd.grad((frames - clip).square().mean(), mask)
    (gradient,) = torch.autograd.grad(model(clip, bool_kept_pos=mask).loss, mask)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-8)


def panning_clips(rows: int, num_frames: int, size: int = 16) -> torch.Tensor:
    """Smooth random textures that pan by one pixel a frame, each in its own direction, and wrap around."""
    grain = torch.rand(rows, 3, size // 4, size // 4).repeat(1, 1, 3, 3)
    texture = torch.nn.functional.interpolate(grain, size=(3 * size, 3 * size), mode="bicubic")[
        ..., size:-size, size:-size
    ]
    steps = [((1, 0), (0, 1), (-1, 0), (0, -1))[row % 4] for row in range(rows)]
    # The clips start at all phases of the grain, 4 pixels wide: else every second slot would look alike in all of them.
    frames = [
        [picture.roll((frame * y, frame * x), dims=(-2, -1)) for frame in range(row // 4, row // 4 + num_frames)]
        for row, (picture, (y, x)) in enumerate(zip(texture, steps))
    ]
    return torch.stack([torch.stack(clip) for clip in frames]).clamp(0, 1)


def train_briefly(model: FSQMagViTModel) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    before = [parameter.detach().clone() for parameter in model.scorer.parameters()]
    model.train()
    for _ in range(25):
        optimizer.zero_grad()
        model(panning_clips(4, 16, model.config.frame_size[0])).loss.backward()
        optimizer.step()
    model.eval()
    assert any((was - now).abs().max() > 0.01 for was, now in zip(before, model.scorer.parameters()))


@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
@pytest.mark.parametrize("moving", [False, True], ids=["static", "panning"])
@every_layout
def test_every_slot_of_a_window_is_chosen_equally_often(layout, trained, moving):
    """No seam: over the whole clip, as for the decoder mask, no slot of the windows draws more of the budget than another."""
    size = 4 * tiny_tokenizer_config(image_size=32, **layout).patch_size
    model = build(image_size=size, window_size=16, keep_ratio=0.2, **layout)
    if trained:
        train_briefly(model)
    clips = panning_clips(32, 64, size) if moving else random_clip(1, rows=32, size=size).expand(-1, 64, -1, -1, -1)
    scores = encode(model, clips).importance_scores
    chosen = adaptive_decoder_mask(scores, round(0.15 * scores.shape[1]), 0).view(32, 4, 8, 16)
    share = chosen.float().sum(dim=(0, 1, 3)) / chosen.sum()
    # Tokens of one clip move alike; 32 clips x 4 windows x 16 tokens a slot are chosen with p = 0.15.
    assert (share - 1 / 8).abs().max() < 4 * (0.15 * 0.85 / (32 * 4 * 16)) ** 0.5 / (8 * 0.15)
    # Within a window alone, as in the tokenizer's training, where the first slot takes the score of the second.
    windows = encode(model, clips[:, :16]).importance_scores.view(32, 8, 16)
    if moving:
        assert (windows.mean(dim=(0, 2)) / windows.mean() - 1).abs().max() < 0.1


def test_training_the_scorer_finds_what_the_loss_depends_on():
    """The gradient of the mask, through normalization and top-k, raises the score of a token that lowers the loss."""
    model = build(topk_num_samples=4000, topk_sigma=0.2).train()
    scores = torch.rand(1, 2, 4, 4, requires_grad=True)
    mask = model.token_mask(scores, torch.full((len(scores), 1), 0.25))
    (-mask[0, 1, 2, 3]).backward()
    assert scores.grad[0, 1].argmin() == 2 * 4 + 3
    assert not scores.grad[0, 0].any()


# As a transformers model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_saved_and_loaded_gives_identical_outputs(dtype, tmp_path):
    model = build().to(dtype)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is FSQMagViTModel
    assert not any(report.values())
    assert loaded.dtype == dtype
    clip = random_clip(10)
    for before, after in [(encode(model, clip), encode(loaded, clip)), (forward(model, clip), forward(loaded, clip))]:
        assert before.keys() == after.keys()
        for name in before:
            assert torch.equal(before[name], after[name]), name
            assert before[name].isfinite().all(), name
    with torch.no_grad():
        codes = encode(model, clip).codes
        assert torch.equal(model.decode(codes), loaded.decode(codes))


def test_config_survives_json(tmp_path):
    config = tiny_tokenizer_config(image_size=(16, 24), min_keep_ratio=0.1, topk_sigma=0.2)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is FSQMagViTConfig
    before, after = config.to_diff_dict(), loaded.to_diff_dict()
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in before.items()} == {key: after[key] for key in before}
    assert loaded.grid_size == config.grid_size == (4, 4, 6)


def test_initialization_leaves_nothing_out_and_keeps_the_variance():
    direct = FSQMagViTModel(tiny_tokenizer_config())
    with torch.device("meta"):
        emptied = FSQMagViTModel(tiny_tokenizer_config())
    emptied.to_empty(device="cpu")
    for model in (direct, emptied):
        initialize_again(model)
    for name, tensor in direct.state_dict().items():
        assert torch.equal(tensor, emptied.state_dict()[name]), name
        if tensor.ndim == 5:
            expected = tensor[0].numel() ** -0.5
            assert abs(tensor.std() - expected) < 4 * expected / (2 * tensor.numel()) ** 0.5, name


def test_a_sample_alone_equals_the_sample_in_its_batch():
    model = build()
    clip = random_clip(8, rows=3)
    pairs = [(encode(model, clip), [encode(model, row[None]) for row in clip])]
    pairs.append((forward(model, clip), [forward(model, row[None]) for row in clip]))
    for together, alone in pairs:
        for name in set(together) - {"loss"}:
            torch.testing.assert_close(torch.cat([output[name] for output in alone]), together[name])


def test_nothing_leaks_between_samples_or_windows():
    model = build(keep_ratio=0.5)
    clip = random_clip(8).requires_grad_()
    model.encode(clip).latents[0, :2].sum().backward()
    assert clip.grad[0, :4].any()
    assert not clip.grad[1].any()
    assert not clip.grad[0, 4:].any()


# What is refused: got, expected, remedy


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (
            torch.zeros(8, 3, 16, 16),
            r"Got pixel_values_videos of shape \(8, 3, 16, 16\), expected .* 3 channels.*: reorder",
        ),
        (torch.zeros(1, 8, 1, 16, 16), r"Got pixel_values_videos of shape \(1, 8, 1, 16, 16\), expected .*: reorder"),
        (torch.zeros(1, 0, 3, 16, 16), r"expected .*at least one frame: reorder"),
        (
            torch.zeros(1, 8, 3, 16, 16, dtype=torch.uint8),
            r"Got pixels of torch.uint8, expected floating .*: divide by 255",
        ),
        (
            torch.zeros(1, 8, 3, 16, 18),
            r"Got frames of 16 x 18 pixels, expected multiples of the token's 4 pixels: resize",
        ),
    ],
    ids=["rank", "channels", "no frames", "integers", "size"],
)
def test_clips_that_do_not_fit_are_refused(pixels, message):
    model = build()
    for call in (model, model.encode):
        with pytest.raises(ValueError, match=message):
            call(pixels)


@pytest.mark.parametrize("keep_ratio", [0, -0.1, 1.5, 37.5])
def test_keep_ratios_that_are_no_share_are_refused(keep_ratio):
    with pytest.raises(
        ValueError, match=rf"Got keep_ratio={keep_ratio}, expected a share in \(0, 1\]: give a fraction"
    ):
        build()(random_clip(4), keep_ratio=keep_ratio)


@pytest.mark.parametrize(
    ("shape", "grid_size"), [((1, 63, 3), None), ((1, 64, 4), None), ((64, 3), None), ((1, 64, 3), (4, 4, 5))]
)
def test_codes_that_do_not_fit_the_grid_are_refused(shape, grid_size):
    with pytest.raises(
        ValueError, match=r"Got codes of shape .* for a grid of .*, expected \(batch, .*: pass the grid_size"
    ):
        build().decode(torch.zeros(shape), grid_size=grid_size)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temporal_downsample": (True,)}, r"Got 1 temporal_downsample for 3 .*expected one fewer: give one"),
        ({"stem_patch_size": (1, 2, 4)}, r"Got stem_patch_size=\(1, 2, 4\), .*expected square .*: change"),
        ({"window_size": 5}, r"Got window_size=5 and tokens of 2 frames, expected a multiple: change"),
        ({"image_size": 18}, r"Got image_size=18 and tokens of 4 pixels, expected a multiple: change"),
        ({"levels": (8, 2)}, r"Got levels=\(8, 2\), expected 3 .* levels in each channel .*: choose"),
        ({"levels": (8,) * 22}, r"Got levels=.*, expected .* fewer than 2\^63 codes: choose"),
        ({"stem_patch_size": [1, 1]}, r"Got .*stem_patch_size=\(1, 1\) .*expected .*three for the stem .*: correct"),
        (
            {"channel_multipliers": (1, 0, 2)},
            r"Got channel_multipliers=\(1, 0, 2\), .*expected numbers from 1 .*: correct",
        ),
        ({"base_channels": 2**16}, r"Got 3 levels of up to 131072 channels, expected .* 1e\+11 weights in all: check"),
        ({"min_keep_ratio": 0.5}, r"Got min_keep_ratio=0.5 and keep_ratio=0.375, expected a share .*: lower"),
        ({"topk_kind": "sparse"}, r"Got topk_kind='sparse', expected 'perturbed', the only .*: train a new"),
        ({"first_slot_score": "copy_next"}, r"Got first_slot_score='copy_next', expected 'previous_window', .*: train"),
        ({"topk_straight_through": False}, r"Got topk_straight_through=False, expected True, the only .*: train a new"),
    ],
)
def test_configs_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_tokenizer_config(**fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("keep_ratio", 0),
        ("unmasked_clip_ratio", 1.5),
        ("topk_num_samples", 1),
        ("topk_sigma", 0.0),
        ("pixel_std", -1),
        ("num_res_blocks", 0),
        ("base_channels", 10**9),
    ],
)
def test_numbers_outside_their_range_are_refused_when_set_too(field, value):
    config = tiny_tokenizer_config()
    for use in (lambda: tiny_tokenizer_config(**{field: value}), lambda: setattr(config, field, value)):
        with pytest.raises(
            StrictDataclassFieldValidationError, match=rf"'{field}':\n.*Value must be .*, got {value}\."
        ):
            use()


def test_fields_are_the_papers_and_sides_keep_their_order():
    config = FSQMagViTConfig()
    assert (config.pixel_mean, config.pixel_std) == (0.45, 0.225)
    assert (config.keep_ratio, config.topk_sigma, config.topk_num_samples) == (0.375, 0.05, 64)
    assert config.for_images().keep_ratio == 1
    # A slot that the clip fills in part counts.
    assert FSQMagViTConfig(image_size=(64, 112), num_frames=17).grid_size == (9, 8, 14)
    assert FSQMagViTConfig(keep_ratio=0.25, min_keep_ratio=0.25).min_keep_ratio == 0.25


def test_a_config_that_no_longer_fits_is_refused_when_a_model_is_built():
    config = tiny_tokenizer_config()
    config.window_size = 5
    with pytest.raises(ValueError, match=r"Got window_size=5 and tokens of 2 frames, expected a multiple"):
        FSQMagViTModel(config)


# Sizes, and starting from pictures


def test_sizes_are_64_and_128_wide_in_two_layouts():
    """As MAGVIT's B and L are; all have tokens of the same 2 x 8 x 8 pixels, and as many channels at the tokens."""
    names = ("tiny", "base", "large", "magvit_base", "magvit_large")
    sizes = {size: FSQMagViTConfig.from_size(size, image_size=64) for size in names}
    assert [config.base_channels for config in sizes.values()] == [32, 64, 128, 64, 128]
    assert sizes["base"].to_dict() == FSQMagViTConfig(image_size=64).to_dict()
    for layout in ("", "magvit_"):
        small, large = sizes[f"{layout}base"], sizes[f"{layout}large"]
        assert {**large.to_dict(), "base_channels": 64} == small.to_dict()
    assert sizes["base"].channel_multipliers == sizes["magvit_base"].channel_multipliers[2:]
    assert sizes["magvit_base"].stem_patch_size == (1, 1, 1)
    assert {(config.tubelet_size, config.patch_size) for config in sizes.values()} == {(2, 8)}
    with pytest.raises(
        ValueError, match=r"Got size='huge', expected one of \['base', 'large', 'magvit_base', .*: choose"
    ):
        FSQMagViTConfig.from_size("huge")


def test_the_default_costs_less_than_a_quarter_of_magvit_b():
    """FLOPs of one window of 112 pixels, both ways; the scorer is the same."""
    flops = {}
    for size in ("magvit_base", "base"):
        with torch.device("meta"):
            model = FSQMagViTModel(FSQMagViTConfig.from_size(size))
            clip, codes = torch.empty(1, 3, 16, 112, 112), torch.empty(1, 6, 8, 14, 14)
        for name, module, values in (("encoder", model.encoder, clip), ("decoder", model.decoder, codes)):
            with FlopCounterMode(display=False) as counter:
                assert module(values).numel() == (clip if name == "decoder" else codes).numel()
            flops[size, name] = counter.get_total_flops()
    assert flops["base", "encoder"] < flops["magvit_base", "encoder"] / 4.5
    assert flops["base", "decoder"] < flops["magvit_base", "decoder"] / 6


STEMS = {
    "magvit": {"temporal_downsample": (True, True)},
    "patches": {"stem_patch_size": (2, 2, 2), "channel_multipliers": (1, 2), "temporal_downsample": (True,)},
    "four frames": {"stem_patch_size": (4, 2, 2), "channel_multipliers": (1, 2), "temporal_downsample": (False,)},
}


@pytest.fixture(params=STEMS.values(), ids=STEMS)
def inflated(request, tmp_path):
    """An image tokenizer and the video tokenizer that starts from it."""
    config = tiny_tokenizer_config(window_size=8, **request.param)  # two slots: time has neighbours everywhere
    image_model = build(**config.for_images().to_dict())
    image_model.save_pretrained(tmp_path)
    return image_model, FSQMagViTModel.from_image_tokenizer(tmp_path, config).eval()


@torch.no_grad()
def test_a_clip_that_stands_still_is_coded_as_the_picture_is(inflated):
    """Everywhere, the clip's ends included: padding meets only weights that are zero."""
    image_model, model = inflated
    picture = torch.rand(2, 1, 3, 16, 16)
    clip = picture.expand(-1, 8, -1, -1, -1)
    single, tokens = image_model.encode(picture), model.encode(clip)
    slots = 8 // model.config.tubelet_size
    torch.testing.assert_close(tokens.latents, single.latents.expand(-1, slots, -1, -1, -1), rtol=1e-4, atol=1e-5)
    frames = model.decode(single.codes.repeat(1, slots, 1))
    torch.testing.assert_close(frames, image_model.decode(single.codes).expand(-1, 8, -1, -1, -1), rtol=1e-4, atol=1e-5)
    assert single.latents.std() > 0.1


def test_inflation_fills_only_centres_and_every_slice_then_learns(inflated):
    model = inflated[1]
    for name, weight in model.named_parameters():
        if weight.ndim == 5 and weight.shape[2] == 3 and not name.startswith("scorer."):
            assert not weight[:, :, [0, 2]].any()
            assert weight[:, :, 1].any()
    model.train()(random_clip()).loss.backward()
    for name, weight in model.named_parameters():
        if weight.ndim == 5 and weight.shape[2] == 3:
            assert weight.grad.abs().amax(dim=(0, 1, 3, 4)).min() > 0, name
    assert torch.isfinite(model.scorer.conv1.weight).all()
    assert model.scorer.conv1.weight.shape[2] == model.config.tubelet_size


def test_a_picture_trains_all_but_the_outer_slices_and_the_scorer():
    model = FSQMagViTModel(tiny_tokenizer_config().for_images()).train()
    output = model(random_clip(num_frames=1))
    assert output.bool_kept_pos.all()
    output.loss.backward()
    for name, weight in model.named_parameters():
        if name.startswith("scorer."):
            assert weight.grad is None or not weight.grad.any()
        elif weight.ndim == 5 and weight.shape[2] == 3:
            assert not weight.grad[:, :, [0, 2]].any()
            assert weight.grad[:, :, 1].any(), name


def test_an_image_tokenizer_of_another_architecture_is_refused(tmp_path):
    build(**tiny_tokenizer_config().for_images().to_dict()).save_pretrained(tmp_path / "image")
    build().save_pretrained(tmp_path / "video")
    with pytest.raises(ValueError, match=r"Got an image tokenizer with base_channels=8, expected 4: train one with"):
        FSQMagViTModel.from_image_tokenizer(tmp_path / "image", tiny_tokenizer_config(base_channels=4))
    with pytest.raises(ValueError, match=r"Got an image tokenizer with window_size=4, expected 1: train one with"):
        FSQMagViTModel.from_image_tokenizer(tmp_path / "video", tiny_tokenizer_config())
    other_size = FSQMagViTModel.from_image_tokenizer(tmp_path / "image", tiny_tokenizer_config(image_size=32))
    assert other_size.config.image_size == 32


ENCODE_COST = """
import sys, time, torch
from transformers_lvmae import FSQMagViTConfig, FSQMagViTModel
torch.set_num_threads(1)
config = FSQMagViTConfig()
model, clip = FSQMagViTModel(config).eval(), torch.rand(1, int(sys.argv[1]), 3, 112, 112)
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
with torch.no_grad():
    model.encode(clip[:, :16])  # libraries load and allocate with the first call
    open("/proc/self/clear_refs", "w").write("5")
    before, start = peak(), time.process_time()
    tokens = model.encode(clip)
print(peak() - before, time.process_time() - start, sum(value.nbytes for value in tokens.values()))
"""


@pytest.mark.slow
def test_128_frames_of_the_b_model_cost_one_windows_memory_and_eight_windows_time():
    """In fresh processes: peak resident memory above the loaded model and clip, CPU seconds, bytes of the result."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.run(
            [sys.executable, "-c", ENCODE_COST, frames], env=environment, capture_output=True, text=True, check=True
        )
        for frames in ("16", "128")
    ]
    (window_memory, window_time, _), (memory, time, output) = [map(float, run.stdout.split()) for run in runs]
    print(
        f"one window: {window_memory / 2**20:.0f} MB, {window_time:.2f} CPU s; 128 frames: {memory / 2**20:.0f} MB, "
        f"{time:.2f} CPU s, of which {output / 2**20:.1f} MB are the result"
    )
    assert memory <= 1.02 * window_memory + 3 * output  # latents and scores are joined once, and quantized in float32
    assert time <= 1.15 * 8 * window_time
