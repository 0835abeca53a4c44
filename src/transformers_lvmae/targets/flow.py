"""Optical flow between frames: RAFT if its weights are found, otherwise OpenCV's DIS."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import logging


logger = logging.get_logger(__name__)

# A name ("RAFT" or "DIS") and a function: frames (P, C, H, W) in [0, 1], and the frames to compare them with -> flow (P, 2, H, W) in pixels.
FlowEstimator = tuple[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]

# Smaller frames do not fit RAFT's correlation pyramid, and DIS finds little motion in them.
MIN_FLOW_SIZE = 128


def flow_estimator(raft_weights: Path | str | None = None) -> FlowEstimator:
    """Return RAFT-small if its weights are found, otherwise OpenCV's DIS. Its name is logged. Nothing is downloaded.

    Args:
        raft_weights: file of torchvision's `Raft_Small_Weights.C_T_V2`. By default the torch hub cache is searched for it.

    Raises:
        ImportError: neither RAFT's weights nor OpenCV are installed.
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
        gray = [
            (_at_least(images, MIN_FLOW_SIZE).mean(dim=1).clamp(0, 1) * 255).round().byte().cpu().numpy()
            for images in (frames, others)
        ]
        flow = torch.stack([torch.as_tensor(dis.calc(frame, other, None)) for frame, other in zip(*gray)])
        return _flow_at(flow.permute(0, 3, 1, 2).to(frames.device), frames)

    return "DIS", estimate


def _at_least(images: torch.Tensor, size: int, multiple: int = 1) -> torch.Tensor:
    """Enlarge images (P, C, H, W) until both sides have at least `size` pixels and are a `multiple`."""
    scale = max(1.0, size / min(images.shape[-2:]))
    sides = [-(-round(side * scale) // multiple) * multiple for side in images.shape[-2:]]
    is_same = sides == list(images.shape[-2:])
    return images if is_same else nn.functional.interpolate(images, size=sides, mode="bilinear")


def _flow_at(flow: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Scale the flow (P, 2, H', W') of enlarged frames to the size of `frames`, the vectors too."""
    if flow.shape[-2:] == frames.shape[-2:]:
        return flow
    height, width = (small / large for small, large in zip(frames.shape[-2:], flow.shape[-2:]))
    smaller = nn.functional.interpolate(flow, size=frames.shape[-2:], mode="area")
    return smaller * torch.tensor([width, height], device=flow.device).view(1, 2, 1, 1)
