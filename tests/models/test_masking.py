"""Properties of the masks and of the differentiable top-k."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_lvmae.models.masking import (
    ENCODER_MASKS,
    adaptive_decoder_mask,
    first_slot_and_topk_mask,
    gather_tokens,
    mask_to_indices,
    perturbed_topk_mask,
    random_token_mask,
    random_tube_mask,
    straight_through,
    topk_mask,
    tube_visible_count,
)


quick = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def scores_and_k(draw):
    """Scores (B, N), coarse ones so that ties are common, and k."""
    rows, tokens, steps = draw(st.integers(1, 4)), draw(st.integers(2, 40)), draw(st.sampled_from([1, 3, 10**6]))
    scores = torch.randint(0, steps, (rows, tokens), generator=generator(draw(seeds))) / steps
    return scores, draw(st.integers(0, tokens))


@quick
@given(scores_and_k())
def test_topk_keeps_exactly_k_and_none_below_a_dropped_one(scores_k):
    scores, k = scores_k
    kept = topk_mask(scores, k)
    assert kept.sum(dim=1).tolist() == [k] * len(scores)
    lowest_kept = scores.masked_fill(~kept, float("inf")).amin(dim=1)
    assert (lowest_kept >= scores.masked_fill(kept, float("-inf")).amax(dim=1)).all()


@quick
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.floats(0, 0.99), seeds)
def test_tube_mask_is_one_mask_in_every_slot(rows, slots, height, width, ratio, seed):
    mask = random_tube_mask(rows, (slots, height, width), ratio, generator(seed))
    per_slot = mask.view(rows, slots, height * width)
    assert (per_slot == per_slot[:, :1]).all()
    assert (per_slot.sum(dim=2) == int(ratio * height * width)).all()
    assert torch.equal(mask, random_tube_mask(rows, (slots, height, width), ratio, generator(seed)))


def test_tube_masks_differ_between_rows_and_hide_every_cell_equally_often():
    mask = random_tube_mask(2000, (1, 2, 5), 0.5, generator(0))
    assert len(mask.unique(dim=0)) == 252  # 10 choose 5
    standard_error = (0.25 / 2000) ** 0.5
    assert ((mask.float().mean(dim=0) - 0.5).abs() < 5 * standard_error).all()


@pytest.mark.parametrize("kind", ENCODER_MASKS)
@quick
@given(
    rows=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 14), st.integers(1, 14)),
    ratio=st.floats(0, 0.99),
    seed=seeds,
)
def test_every_encoder_mask_hides_as_many_tokens_as_the_tubes(kind, rows, grid, ratio, seed):
    mask = ENCODER_MASKS[kind](rows, grid, ratio, generator(seed))
    assert mask.dtype == torch.bool
    assert (~mask).sum(dim=1).tolist() == [tube_visible_count(grid, ratio)] * rows
    assert torch.equal(mask, ENCODER_MASKS[kind](rows, grid, ratio, generator(seed)))


def test_random_masks_hide_every_token_equally_often_and_are_no_tubes():
    mask = random_token_mask(4000, (3, 2, 2), 0.5, generator(0))
    assert (mask.sum(dim=0) - 2000).abs().max() < 4 * (4000 * 0.25) ** 0.5
    slots = mask.view(-1, 3, 4)
    assert (slots == slots[:, :1]).all(dim=2).all(dim=1).float().mean() < 0.1


@quick
@given(scores_and_k(), st.data())
def test_decoder_mask_is_the_top_k_and_random_others(scores_k, data):
    scores, important = scores_k
    num_random = data.draw(st.integers(0, scores.shape[1] - important))
    noise = torch.rand(scores.shape, generator=generator(data.draw(seeds)))
    mask = adaptive_decoder_mask(scores, important, num_random, noise)
    assert mask.sum(dim=1).tolist() == [important + num_random] * len(scores)
    for row in range(len(scores)):
        by_score = sorted(range(scores.shape[1]), key=lambda token: (-scores[row, token], -noise[row, token]))
        rest = sorted(by_score[important:], key=lambda token: -noise[row, token])
        assert set(mask[row].nonzero().flatten().tolist()) == {*by_score[:important], *rest[:num_random]}
    assert torch.equal(mask, adaptive_decoder_mask(scores, important, num_random, noise))
    order = torch.randperm(len(scores), generator=generator(0))
    assert torch.equal(mask[order], adaptive_decoder_mask(scores[order], important, num_random, noise[order]))


def test_decoder_mask_without_noise_is_random_but_seeded():
    scores = torch.rand(2, 1000)

    def draw(seed):
        torch.manual_seed(seed)
        return adaptive_decoder_mask(scores, 100, 50)

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert (draw(0) & draw(1)).sum(dim=1).ge(100).all()


def test_tied_scores_are_decoded_everywhere_alike():
    """A clip that stands still: no place of it is decoded more often than another."""
    mask = adaptive_decoder_mask(torch.ones(4000, 20), 4, 0, torch.rand(4000, 20, generator=generator(0)))
    standard_error = (0.2 * 0.8 / 4000) ** 0.5
    assert ((mask.float().mean(dim=0) - 0.2).abs() < 5 * standard_error).all()


def test_one_hot_scores_decode_exactly_these_tokens():
    scores = torch.zeros(2, 30)
    scores[0, [3, 7]] = scores[1, [29, 0]] = 1.0
    assert adaptive_decoder_mask(scores, 2, 0).nonzero().tolist() == [[0, 3], [0, 7], [1, 0], [1, 29]]


@quick
@given(st.integers(1, 4), st.integers(1, 40), st.data())
def test_indices_are_the_true_positions_ascending(rows, tokens, data):
    mask = topk_mask(torch.rand(rows, tokens, generator=generator(data.draw(seeds))), data.draw(st.integers(1, tokens)))
    indices = mask_to_indices(mask, "mask")
    assert indices.tolist() == [row.nonzero().flatten().tolist() for row in mask]
    values = torch.arange(rows * tokens * 2).view(rows, tokens, 2)
    assert torch.equal(gather_tokens(values, indices), values[mask].view(rows, -1, 2))


@pytest.mark.parametrize(("mask", "counts"), [([[1, 1], [1, 0]], "1 to 2"), ([[0, 0], [0, 0]], "0 to 0")])
def test_rows_with_different_or_no_positions_are_refused(mask, counts):
    with pytest.raises(ValueError, match=rf"Got seen with {counts} tokens per row, expected the same .*: draw"):
        mask_to_indices(torch.tensor(mask, dtype=torch.bool), "seen")


def test_a_count_given_with_the_mask_is_checked():
    mask = topk_mask(torch.rand(2, 12), 5)
    assert torch.equal(mask_to_indices(mask, "seen", 5), mask_to_indices(mask, "seen"))
    with pytest.raises(ValueError, match=r"Got seen with 5 tokens per row, expected 4: correct the mask"):
        mask_to_indices(mask, "seen", 4)


@pytest.mark.parametrize("ratio", [0, 0.5, 0.9])
def test_visible_tokens_of_a_tube_mask_are_known_beforehand(ratio):
    mask = random_tube_mask(3, (4, 5, 7), ratio)
    assert (~mask).sum(dim=1).tolist() == [tube_visible_count((4, 5, 7), ratio)] * 3


@quick
@given(scores_and_k(), st.floats(0.01, 1), seeds)
def test_perturbed_rows_sum_to_k(scores_k, sigma, seed):
    scores, k = scores_k
    mask = perturbed_topk_mask(scores, k, sigma, 8, generator(seed))
    assert mask.min() >= 0
    assert mask.max() <= 1
    torch.testing.assert_close(mask.sum(dim=1), torch.full((len(scores),), float(k)), atol=1e-5, rtol=0)


def test_perturbed_gradient_is_that_of_the_expectation():
    """Against central differences of the expectation, within four standard errors of both estimates."""
    sigma, step, k, tokens = 0.3, 0.03, 3, 6
    scores = torch.tensor([0.9, 0.1, 0.5, 0.45, 0.7, 0.2], dtype=torch.float64)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 0.3], dtype=torch.float64)

    # Repeats of the estimator as it is used, with 64 samples: their mean must be the gradient, so they must be unbiased.
    repeats = scores.repeat(4000, 1).requires_grad_()
    (perturbed_topk_mask(repeats, k, sigma, 64, generator(0)) * weights).sum().backward()
    gradient = repeats.grad.mean(dim=0)
    gradient_error = repeats.grad.std(dim=0) / len(repeats) ** 0.5

    noise = torch.randn(400_000, tokens, dtype=torch.float64, generator=generator(1))
    for token in range(tokens):
        moved = step * torch.eye(tokens, dtype=torch.float64)[token]
        up, down = ((topk_mask(s + sigma * noise, k) * weights).sum(dim=1) for s in (scores + moved, scores - moved))
        difference = (up - down) / (2 * step)
        error = (difference.var() / len(noise) + gradient_error[token] ** 2).sqrt()
        assert abs(difference.mean() - gradient[token]) < 4 * error
        assert error < 0.1 * gradient.abs().max()  # else the comparison would say nothing


def test_perturbed_mask_and_gradient_match_the_closed_form_of_two_tokens():
    """Of two tokens the first is kept with probability Phi((s1 - s2) / (sigma sqrt 2))."""
    sigma, repeats = 0.5, 4000
    scores = torch.tensor([0.3, 0.1], dtype=torch.float64).repeat(repeats, 1).requires_grad_()
    mask = perturbed_topk_mask(scores, 1, sigma, 16, generator(0))
    mask[:, 0].sum().backward()
    normal, gap = torch.distributions.Normal(0.0, sigma * 2**0.5), torch.tensor(0.2, dtype=torch.float64)
    density = normal.log_prob(gap).exp()
    for estimate, exact in [(mask[:, 0], normal.cdf(gap)), (scores.grad[:, 0], density), (scores.grad[:, 1], -density)]:
        assert abs(estimate.mean() - exact) < 4 * estimate.std() / repeats**0.5


def test_two_samples_already_give_an_unbiased_gradient():
    """Each sample's baseline is the mean of the others, which with two samples halves the gradient if it includes the sample."""
    repeats = 40_000
    scores = torch.tensor([0.3, 0.1], dtype=torch.float64).repeat(repeats, 1).requires_grad_()
    perturbed_topk_mask(scores, 1, 0.5, 2, generator(0))[:, 0].sum().backward()
    density = torch.distributions.Normal(0.0, 0.5 * 2**0.5).log_prob(torch.tensor(0.2)).exp()
    error = scores.grad[:, 0].std() / repeats**0.5
    assert error < 0.05 * density
    assert abs(scores.grad[:, 0].mean() - density) < 4 * error


def test_what_all_tokens_gain_alike_adds_no_noise_to_the_gradient():
    """k tokens are always kept, so a constant gain has no gradient, in no sample."""
    gradients, weights = [], torch.rand(3, 20, dtype=torch.float64)
    for gain in (0, 1000):
        scores = torch.linspace(0, 1, 20, dtype=torch.float64).repeat(3, 1).requires_grad_()
        (perturbed_topk_mask(scores, 5, 0.1, 8, generator(0)) * (weights + gain)).sum().backward()
        gradients.append(scores.grad)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


def test_more_noise_makes_a_softer_mask_and_none_the_hard_one():
    scores = torch.rand(4, 50, dtype=torch.float64)
    masks = [perturbed_topk_mask(scores, 7, sigma, 64) for sigma in (1e-9, 0.01, 0.05, torch.tensor(0.5))]
    torch.testing.assert_close(masks[0], topk_mask(scores, 7).double(), atol=1e-9, rtol=0)
    softness = [(mask * (1 - mask)).sum().item() for mask in masks]
    assert softness == sorted(set(softness))


@pytest.mark.parametrize("k", [20, torch.tensor([[20], [20], [20]])])
def test_a_budget_of_all_tokens_has_exactly_no_gradient(k):
    """The tokenizer scales scores to [0, 1]; for tied scores this multiplies the gradient by a million, and its rounding too."""
    scores = torch.zeros(3, 20, requires_grad=True)
    (perturbed_topk_mask(scores, k, 0.05, 7) * torch.rand(3, 20)).sum().backward()
    assert torch.equal(scores.grad, torch.zeros(3, 20))


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    hard, soft = torch.tensor([1.0, 0.0, 1.0]), torch.rand(3, requires_grad=True)
    weights = torch.tensor([2.0, -3.0, 0.5])
    value = straight_through(hard, soft**2)
    assert torch.equal(value, hard)
    (value * weights).sum().backward()
    torch.testing.assert_close(soft.grad, weights * 2 * soft.detach())


def test_rows_may_have_budgets_of_their_own():
    scores, budgets = (
        torch.rand(5, 20, generator=generator(0)).round(decimals=1),
        torch.tensor([[1], [3], [20], [7], [19]]),
    )
    kept = topk_mask(scores, budgets)
    for row, budget, mask in zip(scores, budgets.flatten().tolist(), kept):
        assert mask.sum() == budget
        assert budget == 20 or row[mask].min() >= row[~mask].max()
    soft = perturbed_topk_mask(scores.double(), budgets, 0.3, 16, generator(0))
    torch.testing.assert_close(soft.sum(dim=1), budgets.flatten().double())


def test_the_first_slot_is_kept_besides_a_share_of_all_tokens():
    scores = torch.rand(3, 24, generator=generator(0))
    kept = first_slot_and_topk_mask(scores, 6, 0.25)
    assert kept[:, :6].all()
    assert torch.equal(kept[:, 6:], topk_mask(scores[:, 6:], 6))
    assert first_slot_and_topk_mask(scores, 6, 1.0).all()
