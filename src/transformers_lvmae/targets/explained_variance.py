"""How much of its targets a masked autoencoder predicts, beyond predictors that know nothing of a clip's motion.

A loss alone says little: a model that has learned how each clip looks on average may have half the loss of one that has learned
nothing. So the error of the predictions is compared with that of simple predictors of the same targets, at the same tokens: those that
are decoded and hidden from the encoder. All errors are squared errors, a mean over channels, over a clip's tokens, and over clips, as
the loss is. A share is 1 - error / error of the simple predictor: 1 is perfect, 0 is no better, and below 0 is worse. They predict

- `explained_beyond_global_mean`: one constant for all clips;
- `explained_beyond_clip_mean`: the best constant for each clip, which a model cannot even know;
- `explained_beyond_nearest_visible`: the target of the nearest token that the encoder sees, with slots, rows and columns as units of
  distance, and the earliest of equally near tokens.

`neighbors_beyond_clip_mean` is a mark to reach: what a linear map of a token's 26 neighbors, hidden or not, predicts beyond the clip's
mean. What it leaves is the tokenizer's noise, or needs more than a linear map. The map is fitted to the evaluated tokens themselves. With
fewer tokens than `TOKENS_PER_FEATURE` for each of its inputs it would flatter, and is left out.
"""

import itertools
from typing import Any

import torch
from torch import nn


OFFSETS = [offset for offset in itertools.product((-1, 0, 1), repeat=3) if any(offset)]
TOKENS_PER_FEATURE = 10
QUERIES_AT_ONCE = 1024


def widened(values: torch.Tensor) -> torch.Tensor:
    """Return values in float64, or in float32 on a device without it."""
    return values.float() if values.device.type == "mps" else values.double()


def clip_means(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Return the mean over the counted tokens of each clip: (B, K, C) and bool (B, K) -> (B, C); 0 for a clip without any."""
    shares = counted / counted.sum(dim=1, keepdim=True).clamp(min=1)
    return (values * shares.unsqueeze(-1)).sum(dim=1)


def squared_errors(predicted: torch.Tensor, targets: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error over channels and the counted tokens of each clip: (B, K, C) twice, bool (B, K) -> (B,)."""
    return clip_means((widened(predicted) - widened(targets)).square(), counted).mean(dim=1)


def nearest_visible(decoded: torch.Tensor, visible: torch.Tensor, grid_size: tuple[int, int, int]) -> torch.Tensor:
    """Return which visible token lies nearest to each decoded one: positions (B, K) and (B, V) -> int64 (B, K) in [0, V)."""
    _, height, width = grid_size
    here, there = (
        torch.stack([tokens // (height * width), tokens // width % height, tokens % width], dim=-1)
        for tokens in (decoded, visible)
    )
    order = torch.arange(visible.shape[1], device=visible.device)
    nearest = []
    for part in here.split(QUERIES_AT_ONCE, dim=1):
        distance = sum((part[..., axis, None] - there[:, None, :, axis]).square() for axis in range(3))
        nearest.append((distance * len(order) + order).argmin(dim=-1))
    return torch.cat(nearest, dim=1)


def neighbor_features(targets: torch.Tensor, grid_size: tuple[int, int, int]) -> torch.Tensor:
    """Return the targets of each token's 26 neighbors, whether each exists, and a 1: (N, C) -> (N, 26 * (C + 1) + 1).

    A neighbor outside the clip has zeros.
    """
    slots, height, width = grid_size
    values = torch.cat([targets, torch.ones_like(targets[:, :1])], dim=1).unflatten(0, grid_size)
    padded = nn.functional.pad(values, (0, 0, 1, 1, 1, 1, 1, 1))
    parts = [
        padded[1 + t : 1 + t + slots, 1 + y : 1 + y + height, 1 + x : 1 + x + width].flatten(0, 2)
        for t, y, x in OFFSETS
    ]
    return torch.cat([*parts, torch.ones_like(targets[:, :1])], dim=1)


class ExplainedVariance:
    """Sums over clips, on their device and in float64 where it has it, from which the shares follow.

    Sums of several processes add up to those of one, so a share is that of all clips, and no mean of shares.
    """

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}

    def _add(self, **values: torch.Tensor) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    @torch.no_grad()
    def add(self, errors: torch.Tensor, targets: torch.Tensor, counted: torch.Tensor) -> None:
        """Add clips.

        Args:
            errors: (B,), those of the predictions, as [`squared_errors`] returns them.
            targets: (B, K, C).
            counted: bool (B, K), True for the tokens that count. A clip without any is left out.
        """
        targets = widened(targets)
        means = clip_means(targets, counted)
        self._add(
            clips=counted.any(dim=1).sum().to(targets.dtype),
            error=widened(errors).sum(),
            around_clip=squared_errors(means.unsqueeze(1), targets, counted).sum(),
            means=means.sum(dim=0),
            squared_means=means.square().sum(dim=0),
        )

    @torch.no_grad()
    def add_nearest(self, errors: torch.Tensor) -> None:
        """Add the errors (B,) of the nearest visible tokens' targets, for clips that were added."""
        self._add(nearest=errors.sum())

    @torch.no_grad()
    def add_neighbors(self, targets: torch.Tensor, chosen: torch.Tensor, grid_size: tuple[int, int, int]) -> None:
        """Add what the fit of the neighbors needs, for a clip that was added: targets (N, C) of all its tokens, and bool (N,)."""
        targets = widened(targets)
        inputs, outputs = neighbor_features(targets, grid_size)[chosen], targets[chosen]
        share = 1 / max(len(inputs), 1)
        self._add(
            tokens=chosen.sum().to(targets.dtype),
            inputs=share * inputs.T @ inputs,
            products=share * inputs.T @ outputs,
            outputs=share * outputs.square().sum(dim=0),
        )

    def pop(self, accelerator: Any) -> dict[str, float]:
        """Return the shares over all processes and start anew. Every process must call this method.

        A simple predictor without error, as of clips that are all the same, gives no share.
        """
        names = sorted(self.sums)
        sums = {name: accelerator.reduce(self.sums[name], "sum").double().cpu() for name in names}
        self.sums = {}
        clips = sums.get("clips", torch.zeros(())).item()
        if not clips:
            return {}
        between = sums["squared_means"] / clips - (sums["means"] / clips).square()
        errors = {
            "explained_beyond_global_mean": sums["around_clip"] / clips + between.mean(),
            "explained_beyond_clip_mean": sums["around_clip"] / clips,
            "explained_beyond_nearest_visible": sums.get("nearest", torch.zeros(())) / clips,
        }
        shares = {name: (error, sums["error"] / clips) for name, error in errors.items()}
        if "tokens" in sums and sums["tokens"] >= TOKENS_PER_FEATURE * len(sums["inputs"]):
            fit = torch.linalg.pinv(sums["inputs"], hermitian=True) @ sums["products"]
            left = (sums["outputs"] - (fit * sums["products"]).sum(dim=0)).clamp(min=0).mean() / clips
            shares["neighbors_beyond_clip_mean"] = errors["explained_beyond_clip_mean"], left
        return {name: 1 - (error / simple).item() for name, (simple, error) in shares.items() if simple > 1e-9}
