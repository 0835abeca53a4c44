"""The tokenizer's adversarial and perceptual losses, as in MAGVIT (appendix B.2 and its released code).

The discriminator and the perceptual network belong to training: they are not in the saved model.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.image_utils import PILImageResampling


def halve(hidden_states: torch.Tensor) -> torch.Tensor:
    """Average over cells of 2 x 2 x 2: (B, C, T, H, W) -> (B, C, T / 2, H / 2, W / 2), rounded up."""
    cell = [min(2, length) for length in hidden_states.shape[2:]]
    # torch does not pool half precision on a CPU.
    full = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
    return nn.functional.avg_pool3d(full, cell, ceil_mode=True, count_include_pad=False).to(hidden_states.dtype)


class DiscriminatorBlock(nn.Module):
    """A residual block that halves its input: two 3x3x3 convolutions, a 1x1x1 shortcut, and their sum over sqrt(2)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, in_channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1)
        self.shortcut = nn.Conv3d(in_channels, out_channels, kernel_size=1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = halve(nn.functional.leaky_relu(self.conv1(hidden_states), 0.2))
        residual = nn.functional.leaky_relu(self.conv2(residual), 0.2)
        return (self.shortcut(halve(hidden_states)) + residual) / math.sqrt(2)


class VideoDiscriminator(nn.Module):
    """MAGVIT's 3D StyleGAN discriminator: one logit for each clip, higher = more likely real.

    Args:
        size: frames, height and width of the clips.
        num_channels: channels of a frame.
        base_channels: channels before the first halving (MAGVIT-B 64, L 128).
        channel_multipliers: channels after each halving of time, height and width, as multiples of `base_channels`.
    """

    def __init__(
        self,
        size: tuple[int, int, int],
        num_channels: int = 3,
        base_channels: int = 64,
        channel_multipliers: tuple[int, ...] = (2, 4, 4, 4, 4),
    ):
        super().__init__()
        self.size = tuple(size)
        widths = [base_channels, *(base_channels * multiplier for multiplier in channel_multipliers)]
        cells = math.prod(math.ceil(length / 2 ** len(channel_multipliers)) for length in size)
        self.stem = nn.Conv3d(num_channels, base_channels, kernel_size=3, padding=1)
        self.blocks = nn.ModuleList([DiscriminatorBlock(*pair) for pair in pairwise(widths)])
        self.conv = nn.Conv3d(widths[-1], widths[-1], kernel_size=3, padding=1)
        self.dense = nn.Linear(widths[-1] * cells, widths[-1])
        self.head = nn.Linear(widths[-1], 1)
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Conv3d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Return logits (B,) for clips (B, T, C, H, W) in about [0, 1]; raise ValueError on clips of another size than `size`."""
        size = (clips.shape[1], *clips.shape[3:])
        if size != self.size:
            raise ValueError(
                f"Got clips of {size} (frames, height, width), expected {self.size}: the discriminator is built for "
                "config.window_size and config.image_size, so train on such clips or change the config."
            )
        hidden_states = nn.functional.leaky_relu(self.stem(clips.transpose(1, 2)), 0.2)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        hidden_states = nn.functional.leaky_relu(self.conv(hidden_states), 0.2)
        return self.head(nn.functional.leaky_relu(self.dense(hidden_states.flatten(1)), 0.2)).squeeze(1)


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Return the non-saturating loss, the mean of -log sigmoid(D(fake)), of logits (B,)."""
    return nn.functional.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Return the mean of -log sigmoid(D(real)) plus the mean of -log(1 - sigmoid(D(fake))), of logits (B,) each."""
    return nn.functional.softplus(-real_logits).mean() + nn.functional.softplus(fake_logits).mean()


def r1_penalty(real_logits: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return E |dD(x)/dx|^2 over real clips, with the sum over all pixels of a clip: a scalar that can be differentiated.

    As in MAGVIT, there is no factor 1/2 as in StyleGAN: a weight of 10 is StyleGAN's gamma = 20.

    Args:
        real_logits: (B,), made from `real`; each logit must depend on its own clip only.
        real: (B, ...), with `requires_grad`.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()


class AdversarialLoss(nn.Module):
    """A discriminator with the losses of both sides; its forward is the discriminator's whole loss, because DDP needs one call.

    Args:
        discriminator: maps clips (B, T, C, H, W) to logits (B,); it has no norms that mix clips.
        r1_weight: weight of [`r1_penalty`], which is computed in every step as in MAGVIT.
    """

    def __init__(self, discriminator: nn.Module, r1_weight: float = 10.0):
        super().__init__()
        self.discriminator = discriminator
        self.r1_weight = r1_weight

    @torch.compiler.disable  # R1 differentiates twice, which compiled graphs cannot
    def forward(self, real: torch.Tensor, fake: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the discriminator's `loss` on clips (B, T, C, H, W), its terms without weights, and the mean logits."""
        real = real.detach().requires_grad_(self.r1_weight > 0)
        real_logits, fake_logits = self.discriminator(real).float(), self.discriminator(fake.detach()).float()
        parts = {"discriminator_loss": discriminator_loss(real_logits, fake_logits)}
        loss = parts["discriminator_loss"]
        if self.r1_weight > 0:
            parts["r1_penalty"] = r1_penalty(real_logits, real)
            loss = loss + self.r1_weight * parts["r1_penalty"]
        logits = {"real_logits": real_logits.detach().mean(), "fake_logits": fake_logits.detach().mean()}
        return {"loss": loss, **{name: value.detach() for name, value in parts.items()}, **logits}

    @torch.compiler.disable
    def generator_loss(self, fake: torch.Tensor) -> torch.Tensor:
        """Return the generator's loss on clips (B, T, C, H, W); the discriminator's weights get no gradient from it."""
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        return generator_loss(functional_call(self.discriminator, frozen, (fake,)).float())


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
