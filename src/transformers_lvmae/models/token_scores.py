"""Scores of tokens: the learned scorer, and simpler scores to compare it with.

A score ranks the tokens of a clip, the highest first. The functions take clips (B, T, C, H, W) in [0, 1] and a token grid (t, h, w) and return
float32 (B, t * h * w). H and W are multiples of h and w, and T frames fill t slots of equal length (the last frame is repeated to complete the
last slot). So a grid scores the same tokens at any picture size. Motion is the difference from the previous frame or slot, as in the token
scorer. The first frame or slot has no previous one and takes the score of the second.
"""

from collections.abc import Callable

import torch
from torch import nn


GridSize = tuple[int, int, int]


class TokenScorer(nn.Module):
    """Compute features with two strided convolutions. A token's score is the distance of its feature from the previous slot's.

    The paper (section 3.3) gives the two layers and the distance, but no kernel sizes. These kernels overlap in space but not in time.

    Args:
        num_channels: of a frame.
        tubelet_size: frames of a token.
        patch_size: pixels per side of a token; even.
        hidden_size: channels of the features.
    """

    def __init__(self, num_channels: int, tubelet_size: int, patch_size: int, hidden_size: int):
        super().__init__()
        stride = patch_size // 2
        self.conv1 = nn.Conv3d(
            num_channels,
            hidden_size,
            kernel_size=(tubelet_size, 2 * stride - 1, 2 * stride - 1),
            stride=(tubelet_size, stride, stride),
            padding=(0, stride - 1, stride - 1),
        )
        self.conv2 = nn.Conv3d(hidden_size, hidden_size, kernel_size=(1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Compute features on the token grid: (B, C, T, H, W) -> (B, hidden_size, t, h, w)."""
        return self.conv2(nn.functional.gelu(self.conv1(pixel_values)))

    @staticmethod
    def distances(features: torch.Tensor, previous: torch.Tensor | None = None) -> torch.Tensor:
        """Return the Euclidean distance of features from the previous slot's: (B, size, t, h, w) -> float32 (B, t, h, w).

        Args:
            previous: features (B, size, 1, h, w) of the slot before the first. Without them, the first slot takes the second
                slot's distance, or 0 if it is the only one.
        """
        features = features.float()
        if previous is not None:
            features = torch.cat([previous.float(), features], dim=2)
        # Without 1e-6, the gradient of the root would be infinite for still regions.
        distances = (features.diff(dim=2).square().sum(dim=1) + 1e-6).sqrt()
        if previous is not None:
            return distances
        first = distances[:, :1] if features.shape[2] > 1 else features.new_zeros(features[:, 0].shape)
        return torch.cat([first, distances], dim=1)


def split_tubes(pixels: torch.Tensor, grid_size: GridSize) -> torch.Tensor:
    """Return the pixels of each token, (B, T, C, H, W) -> (B, t, h, w, pixels); raise ValueError if the grid does not divide the clip."""
    (frames, height, width), (slots, rows, columns) = (pixels.shape[1], *pixels.shape[3:]), grid_size
    tubelet_size = -(-frames // slots)
    if -(-frames // tubelet_size) != slots or height % rows or width % columns:
        raise ValueError(
            f"Got a grid of {tuple(grid_size)} tokens for {frames} frames of {height} x {width} pixels, expected slots of equal "
            "length and whole pixels a token: pass the grid of these clips."
        )
    last = pixels[:, -1:].expand(-1, slots * tubelet_size - frames, -1, -1, -1)
    tubes = torch.cat([pixels, last], dim=1).unflatten(1, (slots, -1))
    tubes = tubes.unflatten(-2, (rows, -1)).unflatten(-1, (columns, -1))  # (B, t, frame, C, h, row, w, column)
    return tubes.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4)


def frame_difference(clips: torch.Tensor, grid_size: GridSize) -> torch.Tensor:
    """Return the mean absolute difference of a token's pixels from the previous frame, in [0, 1]."""
    difference = clips.float().diff(dim=1).abs()
    return split_tubes(repeat_first(difference, clips), grid_size).mean(dim=-1).flatten(1)


def everest(
    clips: torch.Tensor, grid_size: GridSize, embed: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:
    """Return the Euclidean distance of a token's patch embedding from the one in the previous slot (EVEREST, ICML 2024).

    Args:
        clips: normalized as the embedding learned them, if `embed` is given.
        embed: the ViT's patch embedding, clips -> (B, N, size). Without it, the pixels of the tokens are compared.
    """
    with torch.no_grad():
        tokens = split_tubes(clips, grid_size) if embed is None else embed(clips).unflatten(1, grid_size)
        distance = torch.linalg.vector_norm(tokens.float().diff(dim=1), dim=-1)
    return repeat_first(distance, tokens).flatten(1)


def uniform_frames(noise: torch.Tensor, grid_size: GridSize) -> torch.Tensor:
    """Score whole slots in bit-reversed order: the best are nearly evenly spaced at every budget (paper section 4.2, "Uniform").

    The last slot of a budget may be chosen in part. `noise` (B, N) in [0, 1) then chooses its cells.
    """
    slots, cells = grid_size[0], grid_size[1] * grid_size[2]
    bits = (slots - 1).bit_length()
    numbers = torch.arange(slots, device=noise.device)
    reversed_bits = torch.zeros_like(numbers)
    for bit in range(bits):
        reversed_bits += (numbers >> bit & 1) << (bits - 1 - bit)
    places = reversed_bits.argsort().argsort()  # place of each slot in the bit-reversed order
    return (slots - places).repeat_interleave(cells) + noise


def random_tokens(noise: torch.Tensor, grid_size: GridSize) -> torch.Tensor:
    """Return the noise (B, N) itself."""
    return noise


def repeat_first(differences: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Repeat the first difference for the first frame or slot: (B, T - 1, ...) -> (B, T, ...); zeros if there is only one."""
    if values.shape[1] == 1:
        return torch.zeros_like(values[..., 0] if differences.ndim < values.ndim else values, dtype=torch.float32)
    return torch.cat([differences[:, :1], differences], dim=1)


# Scores of clips, and scores that need only noise, by their names in `LVMAEConfig.token_selection`.
PIXEL_SCORES: dict[str, Callable[[torch.Tensor, GridSize], torch.Tensor]] = {
    "motion": frame_difference,
    "everest": everest,
}
NOISE_SCORES: dict[str, Callable[[torch.Tensor, GridSize], torch.Tensor]] = {
    "random": random_tokens,
    "uniform": uniform_frames,
}


def compact_scores(importance_scores: torch.Tensor) -> torch.Tensor:
    """Convert scores (B, N) to the form that caches store and masks use: float16, scaled to [0, 1] within each clip.

    Only the order within a clip matters. It is kept, but scores closer than about 1/2048 of the clip's range become equal, and noise
    decides between them. Without the scaling, shares of a whole clip (optical flow) would vanish in float16. A second conversion
    changes nothing.
    """
    scores = importance_scores.float()
    low, high = scores.amin(dim=1, keepdim=True), scores.amax(dim=1, keepdim=True)
    return ((scores - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)).half()


def tokenizer_view(clips: torch.Tensor, scale: float) -> torch.Tensor:
    """Resize clips (B, T, C, H, W) in [0, 1] so that a token has as many pixels as the tokenizer expects.

    Args:
        scale: the tokenizer's pixels per side of a token, divided by the autoencoder's.
    """
    if scale == 1:
        return clips
    size = [round(side * scale) for side in clips.shape[-2:]]
    frames = nn.functional.interpolate(clips.flatten(0, 1), size=size, mode="bilinear", antialias=True)
    return frames.unflatten(0, clips.shape[:2]).clamp(0, 1)
