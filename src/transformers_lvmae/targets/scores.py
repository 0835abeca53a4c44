"""What else could decide which tokens matter: the choices that learned importance is compared with.

Pure functions of pixels and a token grid: clips (B, T, C, H, W) in [0, 1] and (t, h, w) -> float32 (B, t * h * w), higher =
keep first, tokens flattened (t, h, w) as everywhere. The grid is the contract: H and W are multiples of h and w, and T fills t
slots of equal length (the last one is completed with the clip's last frame). So any size of picture scores the same tokens.

Everything is compared with the moment before, as the token scorer does; a clip's first frame or slot, which has none, takes the
score of the second.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import default_data_collator, logging


logger = logging.get_logger(__name__)

GridSize = tuple[int, int, int]
ScoreFunction = Callable[[torch.Tensor, GridSize], torch.Tensor]
# A name ("RAFT" or "DIS"), and frames (P, C, H, W) with the frames to compare them with -> flow (P, 2, H, W) in pixels.
FlowEstimator = tuple[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]

# RAFT's correlation pyramid takes no smaller frames; DIS finds little in them.
MIN_FLOW_SIZE = 128


def split_tubes(pixels: torch.Tensor, grid_size: GridSize) -> torch.Tensor:
    """(B, T, C, H, W) -> (B, t, h, w, values of a tube).

    Raises:
        ValueError: the grid does not divide the clip.
    """
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
    """Motion: the mean absolute difference of a tube's pixels from the frame before, in [0, 1]."""
    difference = clips.float().diff(dim=1).abs()
    return split_tubes(_repeat_first(difference, clips), grid_size).mean(dim=-1).flatten(1)


def everest(
    clips: torch.Tensor, grid_size: GridSize, embed: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:
    """Euclidean distance of a token's patch embedding from the one in the slot before (EVEREST, ICML 2024).

    Args:
        embed: the ViT's patch embedding, clips -> (B, N, size): `LVMAEPatchEmbeddings`, given clips normalised as it learned
            them. Without it the tubes' own pixels are compared, as an embedding that keeps distances would.
    """
    with torch.no_grad():
        tokens = split_tubes(clips, grid_size) if embed is None else embed(clips).unflatten(1, grid_size)
        distance = torch.linalg.vector_norm(tokens.float().diff(dim=1), dim=-1)
    return _repeat_first(distance, tokens).flatten(1)


def optical_flow(clips: torch.Tensor, grid_size: GridSize, estimator: FlowEstimator | None = None) -> torch.Tensor:
    """Mean absolute flow over a tube's pixels and both axes, as a share of the whole clip's (paper section 4.2, "Flow").

    The flow is taken on each frame's own pixels, to where they were in the frame before.

    Args:
        estimator: what [`flow_estimator`] returns; by default its own default.
    """
    _, estimate = estimator or flow_estimator()
    pairs = [frames.flatten(0, 1).float() for frames in (clips[:, 1:], clips[:, :-1])]
    if len(pairs[0]) == 0:
        return clips.new_zeros(clips.shape[0], grid_size[1] * grid_size[2], dtype=torch.float32)
    flow = estimate(*pairs).unflatten(0, (clips.shape[0], -1)).abs()
    scores = split_tubes(_repeat_first(flow, clips), grid_size).mean(dim=-1).flatten(1)
    return scores / scores.sum(dim=1, keepdim=True).clamp(min=1e-12)


def uniform_frames(clips: torch.Tensor, grid_size: GridSize) -> torch.Tensor:
    """Whole time slots, ranked in bit-reversed order: those of every budget lie about evenly.

    The slot that a budget fills in part gives cells at random. Exactly evenly apart for one budget: `uniform_decoder_mask`.
    """
    slots, cells = grid_size[0], grid_size[1] * grid_size[2]
    bits = (slots - 1).bit_length()
    order = sorted(range(slots), key=lambda slot: int(f"{slot:0{bits}b}"[::-1], 2) if bits else 0)
    rank = torch.tensor(order, device=clips.device).argsort()
    cells_apart = torch.rand(clips.shape[0], slots, cells, device=clips.device)
    return (slots - rank.view(-1, 1) + cells_apart).flatten(1)


def random_tokens(clips: torch.Tensor, grid_size: GridSize) -> torch.Tensor:
    """Uniform numbers in [0, 1)."""
    return torch.rand(clips.shape[0], grid_size[0] * grid_size[1] * grid_size[2], device=clips.device)


CHOICES: dict[str, ScoreFunction] = {
    "random": random_tokens,
    "uniform": uniform_frames,
    "motion": frame_difference,
    "everest": everest,
    "flow": optical_flow,
}


class SelectionCollator:
    """Batches for the tokenizer whose tokens are chosen by something else than its scorer: with `importance_scores` (B, N).

    Args:
        selection: names of `CHOICES`, or "learned" for the scorer; of several, each batch draws one.
        grid_size: tokens (t, h, w) of a clip.

    Raises:
        ValueError: a name that is neither.
    """

    def __init__(self, selection: Sequence[str], grid_size: tuple[int, int, int]):
        unknown = sorted(set(selection) - {"learned", *CHOICES})
        if unknown or not selection:
            raise ValueError(
                f"Got selection={list(selection)}, expected names out of {['learned', *CHOICES]}: correct the spelling."
            )
        self.selection = list(selection)
        self.grid_size = grid_size

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        batch = default_data_collator(items)
        name = self.selection[int(torch.randint(len(self.selection), ()))]
        if name != "learned":
            batch["importance_scores"] = CHOICES[name](batch["pixel_values_videos"], self.grid_size)
        return batch


def flow_estimator(raft_weights: Path | str | None = None) -> FlowEstimator:
    """RAFT-small where its weights are at hand, OpenCV's DIS otherwise; nothing is downloaded, and the log says which it is.

    Args:
        raft_weights: the file of torchvision's `Raft_Small_Weights.C_T_V2`; by default it is looked for in the torch hub cache.

    Raises:
        ImportError: neither RAFT's weights nor OpenCV are there.
        FileNotFoundError: `raft_weights` is not a file.
    """
    from torchvision.models.optical_flow import Raft_Small_Weights

    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(Raft_Small_Weights.C_T_V2.url).name
    if raft_weights is not None or cached.is_file():
        return _raft(Path(raft_weights or cached))
    return _dis()


@functools.cache
def _raft(weights: Path) -> FlowEstimator:
    from torchvision.models.optical_flow import raft_small

    model = raft_small().eval()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    logger.warning(f"Optical flow is RAFT-small ({weights}).")

    @torch.no_grad()
    def estimate(frames: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        model.to(frames.device)
        # RAFT takes values in [-1, 1], and sizes that are multiples of 8.
        pairs = [2 * _at_least(images, MIN_FLOW_SIZE, multiple=8) - 1 for images in (frames, others)]
        return _flow_at(torch.cat([model(*pair)[-1] for pair in zip(*(images.split(16) for images in pairs))]), frames)

    return "RAFT", estimate


@functools.cache
def _dis() -> FlowEstimator:
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "Got neither RAFT's weights in the torch hub cache nor OpenCV, expected one of them for optical flow: pip install "
            "'transformers-lvmae[flow]' or pass raft_weights."
        ) from error
    dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    logger.warning("Optical flow is OpenCV's DIS (RAFT's weights are not in the torch hub cache).")

    def estimate(frames: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        grey = [
            (_at_least(images, MIN_FLOW_SIZE).mean(dim=1).clamp(0, 1) * 255).round().byte().cpu().numpy()
            for images in (frames, others)
        ]
        flow = torch.stack([torch.as_tensor(dis.calc(frame, other, None)) for frame, other in zip(*grey)])
        return _flow_at(flow.permute(0, 3, 1, 2).to(frames.device), frames)

    return "DIS", estimate


def _at_least(images: torch.Tensor, size: int, multiple: int = 1) -> torch.Tensor:
    """Enlarge (P, C, H, W) until both sides have `size` pixels."""
    scale = max(1.0, size / min(images.shape[-2:]))
    sides = [-(-round(side * scale) // multiple) * multiple for side in images.shape[-2:]]
    return (
        nn.functional.interpolate(images, size=sides, mode="bilinear") if sides != list(images.shape[-2:]) else images
    )


def _flow_at(flow: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Flow (P, 2, H', W') of enlarged frames, as that of the frames: fewer places, shorter arrows."""
    if flow.shape[-2:] == frames.shape[-2:]:
        return flow
    height, width = (small / large for small, large in zip(frames.shape[-2:], flow.shape[-2:]))
    smaller = nn.functional.interpolate(flow, size=frames.shape[-2:], mode="area")
    return smaller * torch.tensor([width, height], device=flow.device).view(1, 2, 1, 1)


def _repeat_first(differences: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Give the first moment the second's difference: (B, T - 1, ...) -> (B, T, ...); zeros where there is one moment only."""
    if values.shape[1] == 1:
        return torch.zeros_like(values[..., 0] if differences.ndim < values.ndim else values, dtype=torch.float32)
    return torch.cat([differences[:, :1], differences], dim=1)


__all__ = [
    "SelectionCollator",
    "everest",
    "flow_estimator",
    "frame_difference",
    "optical_flow",
    "random_tokens",
    "uniform_frames",
]
