"""Positions of tokens as sines and cosines. They are computed for the tokens of each batch and never stored."""

import math

import torch

from .configuration_lvmae import LVMAEConfig


def sinusoidal_positions(positions: torch.Tensor, size: int) -> torch.Tensor:
    """Return sines and cosines of positions, interleaved as in VideoMAE's table: (...) -> float32 (..., size).

    They are computed in float64, because at position 12,543 a float32 angle is off by a thousandth.
    """
    device = torch.device("cpu") if positions.device.type == "mps" else positions.device  # mps has no float64
    exponents = torch.arange(0, size, 2, device=device, dtype=torch.float64) / size
    angles = positions.to(device, torch.float64).unsqueeze(-1) / 10000**exponents
    return sines_and_cosines(angles).to(positions.device)


def sines_and_cosines(angles: torch.Tensor) -> torch.Tensor:
    """Return sine and cosine of each angle, one after the other: (..., angles) -> float32 (..., 2 * angles)."""
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2).float()


def position_embeddings(
    config: LVMAEConfig, positions: torch.Tensor, grid_size: tuple[int, int, int] | None, size: int
) -> torch.Tensor:
    """Return the vectors of tokens at these positions, as `config.position_embedding` says: int64 (...) -> float32 (..., size).

    A token keeps its place in the clip at another picture size or length: its time, row and column are scaled to
    `config.position_grid`, the grid that the weights were trained on. In this grid itself, the scale is exactly 1.

    Args:
        positions: numbers of tokens in the order of `grid_size`.
        grid_size: tokens (t, h, w) of the clip; None is `config.grid_size`.
        size: width of the encoder or of the decoder.
    """
    grid_size, trained = grid_size or config.grid_size, config.position_grid
    if config.position_embedding == "flattened" and grid_size == trained:
        return sinusoidal_positions(positions, size)
    device = torch.device("cpu") if positions.device.type == "mps" else positions.device  # mps has no float64
    cells = grid_size[1] * grid_size[2]
    places = positions // cells, positions // grid_size[2] % grid_size[1], positions % grid_size[2]
    axes = [
        (place.to(device, torch.float64) + 0.5) * (length / tokens) - 0.5
        for place, tokens, length in zip(places, grid_size, trained)
    ]
    embed = factorized_positions if config.position_embedding == "factorized" else interpolated_positions
    return embed(axes, trained, size).to(positions.device)


def factorized_positions(axes: list[torch.Tensor], trained: tuple[int, int, int], size: int) -> torch.Tensor:
    """Return sines and cosines of time, row and column, one part of the vector after the other: float32 (..., size).

    Each axis has a third of the vector; what does not divide is time's, the longest axis. The frequencies of an axis fall in equal
    ratios from 1 radian a token, as in VideoMAE, to a quarter of a turn over the trained length: then the slowest sine grows with the
    coordinate, and no frequency is so slow that it tells nothing. So 20 numbers resolve 8 rows, and 24 numbers 512 slots.

    Args:
        axes: time, row and column of each token in tokens of the trained grid, float64 (...), which may be fractions.
        trained: the trained grid (t, h, w).
    """
    third = size // 6 * 2
    parts = []
    for axis, length, width in zip(axes, trained, (size - 2 * third, third, third)):
        steps = torch.linspace(0, 1, width // 2, device=axis.device, dtype=torch.float64)
        slowest = math.pi / (2 * max(length, 2))
        parts.append(sines_and_cosines(axis.unsqueeze(-1) * slowest**steps))
    return torch.cat(parts, dim=-1)


def interpolated_positions(axes: list[torch.Tensor], trained: tuple[int, int, int], size: int) -> torch.Tensor:
    """Interpolate VideoMAE's table between the trained tokens around each place, linearly in each axis; arguments as above.

    A fraction of a row in the flattened index itself would be another column.
    """
    corners = [(torch.zeros_like(axes[0]), torch.ones_like(axes[0]))]  # flattened index, weight
    for axis, length in zip(axes, trained):
        low = axis.floor().clamp(0, max(length - 2, 0))
        ends = (low, low + 1 - axis), (low + 1, axis - low)
        corners = [(index * length + end, weight * share) for index, weight in corners for end, share in ends]
    vectors = torch.zeros((), device=axes[0].device)
    for index, weight in corners:
        vectors = vectors + weight.float().unsqueeze(-1) * sinusoidal_positions(index, size)
    return vectors
