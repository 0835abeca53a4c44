"""FSQ against vector-quantize-pytorch, and its indices, levels and histograms against plain counting."""

import math
from collections import Counter

import pytest
import torch
from vector_quantize_pytorch import FSQ

from transformers_lvmae.models.fsq import (
    FiniteScalarQuantizer,
    codes_to_indices,
    indices_to_codes,
    level_histograms,
    level_statistics,
)


EVEN, ODD, MIXED = (8, 8, 8, 8, 8, 8), (5, 7, 3), (8, 6, 5, 4, 7)
every_levels = pytest.mark.parametrize("levels", [EVEN, ODD, MIXED], ids=["even", "odd", "mixed"])


@every_levels
def test_codes_indices_and_gradients_are_vector_quantize_pytorchs(levels):
    latents = (3 * torch.randn(4, 500, len(levels))).requires_grad_()
    ours, theirs = FiniteScalarQuantizer(levels), FSQ(list(levels))
    codes = ours(latents)
    expected, indices = theirs(latents)
    assert torch.equal(codes_to_indices(codes, levels), indices.long())
    # Theirs rounds as z + (round(z) - z), one unit in the last place from the code itself; both code books are the same.
    torch.testing.assert_close(codes, expected, atol=1e-6, rtol=0)
    everything = torch.arange(math.prod(levels))
    torch.testing.assert_close(
        indices_to_codes(everything, levels), theirs.indices_to_codes(everything), atol=1e-6, rtol=0
    )
    weights = torch.randn_like(codes)
    (gradient,) = torch.autograd.grad(codes, latents, weights)
    (expected_gradient,) = torch.autograd.grad(expected, latents, weights)
    torch.testing.assert_close(gradient, expected_gradient)


@every_levels
def test_bounded_latents_are_what_is_rounded_to_codes(levels):
    quantizer, latents = FiniteScalarQuantizer(levels), 3 * torch.randn(500, len(levels))
    bounded, half = quantizer.bounded_latents(latents), torch.tensor(levels) // 2
    assert torch.equal((bounded * half).round() / half, quantizer(latents))
    assert bounded.abs().max() <= 1 + 1e-3
    assert not torch.equal(bounded, quantizer(latents))
    assert quantizer.bounded_latents(latents.bfloat16()).dtype == torch.float32


@every_levels
def test_the_quantizer_s_constants_are_in_no_checkpoint_and_survive_half_precision(levels):
    quantizer, latents = FiniteScalarQuantizer(levels), 3 * torch.randn(500, len(levels))
    codes = quantizer(latents)
    assert quantizer.state_dict() == {}
    assert torch.equal(quantizer.bfloat16()(latents), codes)


@every_levels
def test_zero_is_the_code_zero(levels):
    quantizer = FiniteScalarQuantizer(levels)
    codes = quantizer(torch.zeros(1, len(levels)))
    assert torch.equal(codes, torch.zeros(1, len(levels)))
    middle = sum(level // 2 * math.prod(levels[:number]) for number, level in enumerate(levels))
    assert codes_to_indices(codes, levels).item() == middle


@every_levels
def test_every_index_is_one_code_and_back(levels):
    quantizer = FiniteScalarQuantizer(levels)
    indices = torch.arange(math.prod(levels))
    codes = indices_to_codes(indices, levels)
    assert torch.equal(codes_to_indices(codes, levels), indices)
    quantized = quantizer(3 * torch.randn(1000, len(levels)))
    assert torch.equal(indices_to_codes(codes_to_indices(quantized, levels), levels), quantized)


@every_levels
def test_the_largest_latents_take_the_outermost_codes(levels):
    codes = FiniteScalarQuantizer(levels)(torch.tensor([[-1e6], [1e6]]).expand(2, len(levels)))
    assert codes[0].tolist() == [-1.0] * len(levels)
    torch.testing.assert_close(codes[1], torch.tensor([(level - 1) // 2 / (level // 2) for level in levels]))


def test_the_gradient_is_that_of_the_bound_values():
    quantizer = FiniteScalarQuantizer(MIXED)
    latents = torch.randn(10, len(MIXED), requires_grad=True)
    (gradient,) = torch.autograd.grad(quantizer(latents).sum(), latents)
    (expected,) = torch.autograd.grad(quantizer.bounded_latents(latents).sum(), latents)
    torch.testing.assert_close(gradient, expected)
    assert gradient.gt(0).all()


def test_quantizing_stays_in_float32():
    quantizer, latents = FiniteScalarQuantizer(EVEN), torch.randn(10_000, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(latents), quantizer(latents.clone()))
        inside = quantizer(latents)
    assert torch.equal(inside, quantizer(latents))
    assert torch.equal(quantizer(latents.bfloat16()), quantizer(latents.bfloat16().float()))


@every_levels
def test_integers_of_any_kind_give_the_quantizer_s_codes_bit_for_bit(levels):
    codes = FiniteScalarQuantizer(levels)(torch.randn(4, 500, len(levels)) * 3)
    for kind in (torch.int64, torch.int32):
        assert torch.equal(indices_to_codes(codes_to_indices(codes, levels).to(kind), levels), codes)


@every_levels
def test_histograms_count_the_codes_and_statistics_are_their_usage_and_entropy(levels):
    codes = FiniteScalarQuantizer(levels)(torch.randn(3, 50, len(levels)))
    histograms = level_histograms(codes_to_indices(codes, levels), levels)
    statistics = level_statistics(histograms.sum(dim=0), levels)
    assert histograms.shape == (3, len(levels), max(levels))
    for channel, level in enumerate(levels):
        for clip in range(3):
            counted = Counter((codes[clip, :, channel] * (level // 2)).round().int().add(level // 2).tolist())
            assert histograms[clip, channel].tolist() == [counted[number] for number in range(max(levels))]
        values = Counter(codes[..., channel].flatten().tolist()).values()
        entropy = -sum(value / 150 * math.log2(value / 150) for value in values)
        assert statistics[f"level_usage_{channel}"] == len(values) / level
        assert statistics[f"level_entropy_{channel}"] == pytest.approx(entropy)
