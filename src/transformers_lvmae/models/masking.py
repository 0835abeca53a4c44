"""Choose the tokens that are hidden, decoded or kept, and cut clips into tubelets: pure functions of sizes and tensors.

In a mask, True means what its name says: in `bool_masked_pos`, hidden from the encoder; in `bool_decoded_pos`, decoded (the decoder
gets a mask token there); in a top-k mask, kept. B is the number of clips, N = t * h * w the number of tokens of a clip, in this order.
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
        mask_ratio: share in [0, 1); `int(mask_ratio * h * w)` cells are hidden, as in VideoMAE.

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
    """Hide random tokens of the whole clip, as many as [`random_tube_mask`] does; arguments and result are the same."""
    tokens = grid_size[0] * grid_size[1] * grid_size[2]
    noise = torch.rand(batch_size, tokens, generator=generator, device=device)
    return topk_mask(noise, tokens - tube_visible_count(grid_size, mask_ratio))


def tube_visible_count(grid_size: tuple[int, int, int], mask_ratio: float) -> int:
    """Return how many tokens of a clip every encoder mask leaves visible."""
    slots, cells = grid_size[0], grid_size[1] * grid_size[2]
    return slots * (cells - int(mask_ratio * cells))


# The encoder masks by their names in `LVMAEConfig.encoder_mask`.
ENCODER_MASKS = {"tube": random_tube_mask, "random": random_token_mask}


def adaptive_decoder_mask(
    importance_scores: torch.Tensor, num_important: int, num_random: int, noise: torch.Tensor | None = None
) -> torch.Tensor:
    """Decode the most important tokens of the whole clip, and random ones of the rest (paper section 3.2).

    Random tokens are drawn only from those that importance did not choose, so every row decodes exactly
    `num_important + num_random` tokens. Tokens that the encoder sees may be decoded too; the loss ignores them.

    Args:
        importance_scores: (B, N), higher = decode first.
        noise: (B, N) uniform numbers that decide the random draw and ties; drawn here by default.

    Returns:
        bool (B, N), True = decoded.
    """
    if noise is None:
        noise = torch.rand(importance_scores.shape, device=importance_scores.device)
    important = _best_tokens(importance_scores.float(), noise, num_important)
    return important | topk_mask(noise.masked_fill(important, float("-inf")), num_random)


def _best_tokens(scores: torch.Tensor, noise: torch.Tensor, count: int) -> torch.Tensor:
    """Keep the `count` highest scores of each row; of equal ones, those with the highest noise. All tensors are (B, N).

    Still regions have equal scores, and a plain top-k would take them all from one place. ONNX has no stable sort.
    """
    if count == 0:
        return torch.zeros_like(noise, dtype=torch.bool)
    last = scores.topk(count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    above = scores > last
    rest = count - above.sum(dim=1, keepdim=True)
    return above | topk_mask(noise.masked_fill(scores != last, float("-inf")), rest)


def check_mask(mask: torch.Tensor, name: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `mask` is bool and has this shape (B, N)."""
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise ValueError(
            f"Got {name} of shape {tuple(mask.shape)} and {mask.dtype}, expected {shape} (clips, tokens of a clip) and "
            "torch.bool: draw the mask for the clip's own grid."
        )


def mask_to_indices(mask: torch.Tensor, name: str, count: int | None = None) -> torch.Tensor:
    """Return the positions of True in each row, ascending: bool (B, N) -> int64 (B, K).

    Args:
        name: the mask's name in error messages.
        count: K, if the caller knows it. Without it, K is read from the mask: an accelerator has to wait for that, and
            torch.compile breaks its graph. With it, the mask is checked on its own device.

    Raises:
        ValueError: the rows have different numbers of True, no True at all, or not `count`. If `count` is given, accelerators and
            compiled graphs raise a RuntimeError with a shorter message instead, possibly some steps later.
    """
    if count is None or (mask.device.type == "cpu" and not torch.compiler.is_compiling()):
        count = _equal_count(mask, name, count)
    else:
        message = f"Expected {name} with {count} tokens in every row: correct the mask or the count given with it."
        torch._assert_async((mask.sum(dim=1) == count).all(), message)
    return _first_positions(mask, count)


def _first_positions(mask: torch.Tensor, count: int) -> torch.Tensor:
    """Return the positions of True in each row, then those of False, each ascending; of these, the first `count`: int64 (B, count)."""
    tokens = mask.shape[1]
    return (
        (mask.int() * tokens - torch.arange(tokens, device=mask.device, dtype=torch.int32)).topk(count, dim=1).indices
    )


def mask_to_padded_indices(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions of True in each row, ascending, and padding up to the longest row's number K: bool (B, N) -> int64, bool (B, K).

    The second tensor is False where a position is padding. An accelerator waits for K.
    """
    longest = int(mask.sum(dim=1).max())
    positions = _first_positions(mask, longest)
    return positions, mask.gather(1, positions)


def _equal_count(mask: torch.Tensor, name: str, expected: int | None) -> int:
    counts = mask.sum(dim=1).tolist()
    if min(counts) != max(counts) or counts[0] == 0:
        raise ValueError(
            f"Got {name} with {min(counts)} to {max(counts)} tokens per row, expected the same number, at least 1, in "
            "every row: draw every row's mask with one budget."
        )
    if expected is not None and counts[0] != expected:
        raise ValueError(f"Got {name} with {counts[0]} tokens per row, expected {expected}: correct the mask or count.")
    return counts[0]


def gather_tokens(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Take tokens at positions: (B, N, D) and int64 (B, K) -> (B, K, D)."""
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
    """Copy the tubelets at `indices` (B, K), or all of them by default: (B, t, h, w, ...) -> (B, K, ...)."""
    if indices is None:
        return tubelets.flatten(1, 3)
    _, height, width = tubelets.shape[1:4]
    rows = torch.arange(tubelets.shape[0], device=indices.device).unsqueeze(1)
    return tubelets[rows, indices // (height * width), indices // width % height, indices % width]


def cut_visible_tubelets(
    clip: torch.Tensor, grid_size: tuple[int, int, int], bool_masked_pos: torch.Tensor
) -> torch.Tensor:
    """Cut the visible tubelets out of a clip (T, C, H, W): (V, tubelet_size, C, patch_size, patch_size), by ascending position.

    Args:
        grid_size: tokens (t, h, w) of the clip.
        bool_masked_pos: (N,), True = hidden.
    """
    slots, rows, _ = grid_size
    tubelets = split_tubelets(clip.unsqueeze(0), clip.shape[0] // slots, clip.shape[2] // rows)
    visible = mask_to_indices(~bool_masked_pos.unsqueeze(0), "visible positions (~bool_masked_pos)")
    return gather_tubelets(tubelets, visible)[0]


def topk_mask(scores: torch.Tensor, k: int | torch.Tensor) -> torch.Tensor:
    """Keep the k highest scores along the last axis: bool of the same shape, True for exactly k in every row, despite ties.

    Args:
        k: one number, or int64 of the shape of `scores` with a last axis of length 1: a budget for each row.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    if isinstance(k, int):
        return kept.scatter_(-1, scores.topk(k, dim=-1, sorted=False).indices, True)
    within = torch.arange(scores.shape[-1], device=scores.device).expand_as(scores) < k
    return kept.scatter_(-1, scores.argsort(dim=-1, descending=True), within)


def first_slot_and_topk_mask(scores: torch.Tensor, first_slot: int, keep_ratio: float) -> torch.Tensor:
    """Keep the first slot of a window and the best of its other tokens, as the tokenizer does in training.

    Args:
        scores: (B, N), higher = keep first.
        first_slot: the number of tokens of a slot.
        keep_ratio: share of N that is kept in addition to the first slot, at most all other tokens.

    Returns:
        bool (B, N), True = kept.
    """
    keep_count = min(max(1, round(keep_ratio * scores.shape[1])), scores.shape[1] - first_slot)
    chosen = topk_mask(scores[:, first_slot:], keep_count)
    return torch.cat([chosen.new_ones(chosen.shape[0], first_slot), chosen], dim=1)


class _PerturbedTopK(torch.autograd.Function):
    """Estimate E_Z[topk(s + sigma Z)] from samples, and its vector-Jacobian product from the same samples.

    d E[m_i] / d s_j = E[m_i Z_j] / sigma. The product with the incoming gradient g is taken before the mean over samples. This
    needs samples x N numbers, never N x N. The mean of <m, g> over the other samples is subtracted from each <m, g>. This baseline
    keeps the expectation and removes most of the variance.
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
        centered = (value - value.mean(dim=1, keepdim=True)) * (samples / (samples - 1))
        # Where all samples keep the same tokens, as with k = N, the mean differs by rounding. Tied scores, which the tokenizer
        # divides by their range, would make a large gradient of it.
        centered = centered.masked_fill((kept == kept[:, :1]).all(dim=(1, 2)).view(-1, 1, 1), 0.0)
        return (noise * centered).mean(dim=1) / ctx.sigma, None, None, None  # type: ignore[attr-defined]


def perturbed_topk_mask(
    scores: torch.Tensor,
    k: int | torch.Tensor,
    sigma: float | torch.Tensor,
    num_samples: int,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Return a differentiable top-k mask, by Gaussian perturbation (Cordonnier et al. 2021).

    Args:
        scores: (B, N), in [0, 1] for `sigma` to have its usual meaning.
        k: tokens kept, or int64 (B, 1), a budget for each row.
        sigma: the noise's standard deviation, positive.
        num_samples: at least 2. For backward, 5 bytes x num_samples x N are kept for each row.

    Returns:
        (B, N) in [0, 1]; each row sums to k.
    """
    shape = scores.shape[0], num_samples, scores.shape[1]
    noise = torch.randn(shape, generator=generator, device=scores.device, dtype=scores.dtype)
    return _PerturbedTopK.apply(scores, k, noise, sigma)


def straight_through(hard: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """Return the value of `hard` with the gradient of `soft`."""
    return hard + (soft - soft.detach())
