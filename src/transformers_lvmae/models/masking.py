"""Which tokens are hidden, decoded and kept: pure functions of sizes and tensors.

Polarity, everywhere: True means what the name says. `bool_masked_pos` True = hidden from the encoder, `bool_decoded_pos` True =
the decoder gets a mask token there, a kept token is True in a top-k mask. B clips, N tokens a clip, flattened (t, h, w).
"""

import torch
from einops import rearrange
from torch.autograd.function import FunctionCtx


def random_tube_mask(
    batch_size: int,
    grid_size: tuple[int, int, int],
    mask_ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Hide the same random cells in every time slot (VideoMAE's tube mask).

    Args:
        grid_size: tokens (t, h, w).
        mask_ratio: share of cells hidden, in [0, 1); `int(mask_ratio * h * w)` cells are, as in VideoMAE.

    Returns:
        bool (B, t * h * w), True = hidden, the same number in every row.
    """
    slots, cells = grid_size[0], grid_size[1] * grid_size[2]
    noise = torch.rand(batch_size, cells, generator=generator, device=device)
    return topk_mask(noise, int(mask_ratio * cells)).repeat(1, slots)


def random_token_mask(
    batch_size: int,
    grid_size: tuple[int, int, int],
    mask_ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Hide tokens anywhere in the clip, as many as [`random_tube_mask`] does; arguments and result are its."""
    tokens = grid_size[0] * grid_size[1] * grid_size[2]
    noise = torch.rand(batch_size, tokens, generator=generator, device=device)
    return topk_mask(noise, tokens - tube_visible_count(grid_size, mask_ratio))


def tube_visible_count(grid_size: tuple[int, int, int], mask_ratio: float) -> int:
    """How many tokens of a clip [`random_tube_mask`], and every other encoder mask, leaves visible."""
    slots, cells = grid_size[0], grid_size[1] * grid_size[2]
    return slots * (cells - int(mask_ratio * cells))


# What hides tokens from the encoder, by `LVMAEConfig.encoder_mask`.
ENCODER_MASKS = {"tube": random_tube_mask, "random": random_token_mask}


def adaptive_decoder_mask(
    importance_scores: torch.Tensor, num_important: int, num_random: int, noise: torch.Tensor | None = None
) -> torch.Tensor:
    """Decode the most important tokens of the whole clip, and some of the rest drawn at random (paper section 3.2).

    The random tokens are drawn from those that are not already chosen, so every row decodes exactly
    `num_important + num_random` tokens. Whether the encoder sees a token plays no part; the loss leaves those out.

    Args:
        importance_scores: (B, N), higher = decode first.
        noise: (B, N) uniform numbers that settle the random draw and ties; drawn here when not given.

    Returns:
        bool (B, N), True = decoded.
    """
    if noise is None:
        noise = torch.rand(importance_scores.shape, device=importance_scores.device)
    # Ties go by the noise as well: whatever stands still scores alike, and top-k would take it from one place of the clip.
    order = noise.argsort(dim=1, descending=True)
    order = order.gather(1, importance_scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
    important = torch.zeros_like(noise, dtype=torch.bool).scatter_(1, order[:, :num_important], True)
    return important | topk_mask(noise.masked_fill(important, float("-inf")), num_random)


def mask_to_indices(mask: torch.Tensor, name: str, count: int | None = None) -> torch.Tensor:
    """The positions of True in each row, ascending: bool (B, N) -> int64 (B, K).

    Args:
        name: what error messages call the mask.
        count: K, where the caller knows it. Without it K is read from the mask, for which an accelerator must stop and
            torch.compile must break its graph; with it neither does, and the mask is checked where it lies.

    Raises:
        ValueError: the rows hold different numbers of True, none, or not `count`. A RuntimeError with a shorter message where
            the mask is not read: on accelerators (some steps later) and in compiled graphs.
    """
    if count is None or (mask.device.type == "cpu" and not torch.compiler.is_compiling()):
        count = _equal_count(mask, name, count)
    else:
        message = f"Expected {name} with {count} tokens in every row: correct the mask or the count given with it."
        torch._assert_async((mask.sum(dim=1) == count).all(), message)
    return mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]


def _equal_count(mask: torch.Tensor, name: str, expected: int | None) -> int:
    counts = mask.sum(dim=1).tolist()
    if min(counts) != max(counts) or counts[0] == 0:
        raise ValueError(
            f"Got {name} with {min(counts)} to {max(counts)} tokens per row, expected the same number, at least 1, in "
            "every row: draw every row's mask with one budget."
        )
    if expected is not None and counts[0] != expected:
        raise ValueError(
            f"Got {name} with {counts[0]} tokens per row, expected {expected}: correct the mask or the count given with it."
        )
    return counts[0]


def gather_tokens(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Rows of tokens by position: (B, N, D) and int64 (B, K) -> (B, K, D)."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def split_tubelets(pixel_values_videos: torch.Tensor, tubelet_size: int, patch_size: int) -> torch.Tensor:
    """Return a view of clips by tubelets: (B, T, C, H, W) -> (B, t, h, w, tubelet_size, C, patch_size, patch_size).

    Writing to the view writes to the clips.
    """
    return rearrange(
        pixel_values_videos,
        "b (t frames) c (h rows) (w columns) -> b t h w frames c rows columns",
        frames=tubelet_size,
        rows=patch_size,
        columns=patch_size,
    )


def gather_tubelets(tubelets: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
    """The tubelets at `indices` (B, K), or all: (B, t, h, w, ...) -> (B, K, ...). Only these are copied."""
    if indices is None:
        return tubelets.flatten(1, 3)
    _, height, width = tubelets.shape[1:4]
    rows = torch.arange(tubelets.shape[0], device=indices.device).unsqueeze(1)
    return tubelets[rows, indices // (height * width), indices // width % height, indices % width]


def topk_mask(scores: torch.Tensor, k: int | torch.Tensor) -> torch.Tensor:
    """bool, True at the k highest scores along the last axis: exactly k in every row, ties included.

    A tensor `k`, int64 of the shape of `scores` with a last axis of 1, is a budget for each row.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    if isinstance(k, int):
        return kept.scatter_(-1, scores.topk(k, dim=-1, sorted=False).indices, True)
    within = torch.arange(scores.shape[-1], device=scores.device).expand_as(scores) < k
    return kept.scatter_(-1, scores.argsort(dim=-1, descending=True), within)


def first_slot_and_topk_mask(scores: torch.Tensor, first_slot: int, keep_ratio: float) -> torch.Tensor:
    """What a window keeps in the tokenizer's training: its first slot, and the best of the others.

    Args:
        scores: (B, N), higher = keep first.
        first_slot: tokens of a slot.
        keep_ratio: the share of N that is chosen besides the first slot; all others where there are no more.

    Returns:
        bool (B, N), True = kept.
    """
    keep_count = min(max(1, round(keep_ratio * scores.shape[1])), scores.shape[1] - first_slot)
    chosen = topk_mask(scores[:, first_slot:], keep_count)
    return torch.cat([chosen.new_ones(chosen.shape[0], first_slot), chosen], dim=1)


class _PerturbedTopK(torch.autograd.Function):
    """E_Z[topk(s + sigma Z)] by sampling, with the vector-Jacobian product of the same samples.

    d E[m_i] / d s_j = E[m_i Z_j] / sigma. Contracted with the incoming gradient g before the mean over samples, it needs
    samples x N numbers, never N x N. The mean over the other samples of <m, g> is subtracted: a baseline that leaves the
    expectation as it is and takes most of the variance away.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, scores: torch.Tensor, k: int | torch.Tensor, noise: torch.Tensor, sigma: float | torch.Tensor
    ) -> torch.Tensor:
        kept = topk_mask(scores.unsqueeze(1) + sigma * noise, k if isinstance(k, int) else k.unsqueeze(1))
        ctx.save_for_backward(kept, noise)
        ctx.sigma = sigma  # type: ignore[attr-defined]
        return kept.to(scores.dtype).mean(dim=1)

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept, noise = ctx.saved_tensors  # type: ignore[attr-defined]
        (grad_mask,) = grad_outputs
        value = (kept * grad_mask.unsqueeze(1)).sum(dim=-1, keepdim=True)
        samples = value.shape[1]
        centred = (value - value.mean(dim=1, keepdim=True)) * (samples / (samples - 1))
        return (noise * centred).mean(dim=1) / ctx.sigma, None, None, None  # type: ignore[attr-defined]


def perturbed_topk_mask(
    scores: torch.Tensor,
    k: int | torch.Tensor,
    sigma: float | torch.Tensor,
    num_samples: int,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Differentiable top-k by Gaussian perturbation (Cordonnier et al. 2021).

    Args:
        scores: (B, N), in [0, 1] for `sigma` to have its usual meaning.
        k: tokens kept, or int64 (B, 1), a budget for each row.
        sigma: the noise's deviation, positive.
        num_samples: at least 2. Kept for the backward pass: 5 bytes x num_samples x N a row.

    Returns:
        (B, N) in [0, 1], each row sums to k.
    """
    noise = torch.randn(
        scores.shape[0], num_samples, scores.shape[1], generator=generator, device=scores.device, dtype=scores.dtype
    )
    return _PerturbedTopK.apply(scores, k, noise, sigma)


def straight_through(hard: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """The value of `hard` with the gradient of `soft`."""
    return hard + (soft - soft.detach())
