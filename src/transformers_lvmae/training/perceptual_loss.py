"""The tokenizer's perceptual loss. Its network belongs to training and is not in the saved model."""

from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.image_utils import PILImageResampling


class PerceptualLoss(nn.Module):
    """Mean squared error between a frozen image model's logits for the frames of two clips (MAGVIT: a ResNet-50).

    Frames are resized to the model's input size without a crop, and normalized with the numbers of its image processor. Gradients
    pass through both.

    Args:
        model: a transformers model for image classification.
        processor: its image processor; `size` (or `crop_size` if it crops), `resample`, `image_mean`, `image_std` and
            `rescale_factor` are read.
        num_frames: how many frames of a clip are compared, drawn in every call; all of them by default.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: nn.Module, processor: Any, num_frames: int | None = None):
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.num_frames = num_frames
        self.input_size = input_size(processor)
        self.resample = "bicubic" if processor.resample == PILImageResampling.BICUBIC else "bilinear"
        rescale = 255 * processor.rescale_factor if processor.do_rescale else 255
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0], [1.0])
        self.register_buffer("scale", rescale / torch.tensor(std).view(-1, 1, 1))
        self.register_buffer("shift", -torch.tensor(mean).view(-1, 1, 1) / torch.tensor(std).view(-1, 1, 1))

    @classmethod
    def from_pretrained(cls, name_or_path: str, num_frames: int | None = None) -> "PerceptualLoss":
        """Load model and processor from a local folder or from the Hub."""
        model = AutoModelForImageClassification.from_pretrained(name_or_path, dtype=torch.float32)
        return cls(model, AutoImageProcessor.from_pretrained(name_or_path), num_frames)

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Stay in evaluation mode: batch norms must keep the statistics of their training."""
        return super().train(False)

    def forward(self, reconstruction: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
        """Return the loss of two batches of clips (B, T, C, H, W) in about [0, 1]; only the reconstruction gets gradients."""
        frames = self.draw_frames(clips.shape[0], clips.shape[1]).to(clips.device)
        rows = torch.arange(clips.shape[0], device=clips.device).unsqueeze(1)
        with torch.no_grad():
            target = self.logits(clips[rows, frames].flatten(0, 1))
        return nn.functional.mse_loss(self.logits(reconstruction[rows, frames].flatten(0, 1)).float(), target.float())

    def draw_frames(self, batch_size: int, num_frames: int) -> torch.Tensor:
        """Draw the frames of each clip that are compared, without repeats, from torch's CPU generator: int64 (B, frames)."""
        if self.num_frames is None or self.num_frames >= num_frames:
            return torch.arange(num_frames).expand(batch_size, -1)
        return torch.rand(batch_size, num_frames).topk(self.num_frames, dim=1).indices

    def logits(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the model's logits (N, classes) for frames (N, C, H, W) in [0, 1]."""
        resized = nn.functional.interpolate(frames, self.input_size, mode=self.resample, antialias=True)
        return self.model(resized * self.scale + self.shift).logits


def input_size(processor: Any) -> list[int]:
    """Return the height and width of an image processor's output; raise ValueError if they are not fixed."""
    crops = getattr(processor, "do_center_crop", False) and getattr(processor, "crop_size", None)
    size = dict(processor.crop_size if crops else processor.size)
    if size.get("height") and size.get("width"):
        return [size["height"], size["width"]]
    if size.get("shortest_edge"):
        return [size["shortest_edge"]] * 2
    raise ValueError(
        f"Got an image processor of size {size}, expected height and width or shortest_edge: choose a perceptual model with "
        "a fixed input size."
    )
