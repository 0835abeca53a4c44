"""The adaptive tokenizer: MAGVIT's 3D CNN around finite scalar quantization, and a scorer that learns which tokens matter.

It is the left half of Figure 2 of "Extending Video Masked Autoencoders to 128 frames". Notable choices:
- a clip is encoded window by window (16 frames, stride 16), so memory does not grow with its length;
- the scorer's kernels stay within one time slot, so its features, and the distances between them, do not depend on where a clip is
  cut into windows;
- unimportant latents are set to zero before quantization. Zero is also a code of FSQ: the decoder can tell masked tokens only by
  their context.
"""

import math
import os
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_fsq_magvit import FSQMagViTConfig
from .fsq import FiniteScalarQuantizer, codes_to_indices
from .masking import perturbed_topk_mask, straight_through, topk_mask
from .token_scores import TokenScorer


@dataclass
class FSQMagViTEncoderOutput(ModelOutput):
    """
    Args:
        latents (`torch.Tensor` of shape `(batch_size, t, h, w, len(levels))`): the encoder's output before FSQ.
        codes (`torch.Tensor` of shape `(batch_size, seq_length, len(levels))`): the quantized latents, in [-1, 1].
        code_indices (`torch.LongTensor` of shape `(batch_size, seq_length)`): the codes as integers in
            [0, config.codebook_size).
        importance_scores (`torch.Tensor` of shape `(batch_size, seq_length)`): float32, at least 0; higher = more important.
    """

    latents: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    code_indices: torch.Tensor | None = None
    importance_scores: torch.Tensor | None = None


@dataclass
class FSQMagViTOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor` of shape `(1,)`): mean squared error between clip and reconstruction.
        reconstruction (`torch.Tensor` of shape `(batch_size, num_frames, num_channels, height, width)`): about [0, 1], not
            clamped.
        importance_scores (`torch.Tensor` of shape `(batch_size, seq_length)`): the scores that chose the tokens, the scorer's
            or the given ones; higher = more important.
        bool_kept_pos (`torch.BoolTensor` of shape `(batch_size, seq_length)`): True = the token reached the decoder.
        code_indices (`torch.LongTensor` of shape `(batch_size, seq_length)`): codes after masking.
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    importance_scores: torch.Tensor | None = None
    bool_kept_pos: torch.Tensor | None = None
    code_indices: torch.Tensor | None = None


def conv3x3x3(in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)


class FSQMagViTResBlock(nn.Module):
    """GroupNorm, swish and a 3x3x3 convolution, twice; the shortcut has a 1x1x1 convolution if the width changes."""

    def __init__(self, config: FSQMagViTConfig, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(math.gcd(config.norm_num_groups, in_channels), in_channels)
        self.conv1 = conv3x3x3(in_channels, out_channels, bias=False)
        self.norm2 = nn.GroupNorm(math.gcd(config.norm_num_groups, out_channels), out_channels)
        self.conv2 = conv3x3x3(out_channels, out_channels, bias=False)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv3d(in_channels, out_channels, kernel_size=1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = self.conv1(nn.functional.silu(self.norm1(hidden_states)))
        residual = self.conv2(nn.functional.silu(self.norm2(residual)))
        return self.shortcut(hidden_states) + residual


class FSQMagViTDownsample(nn.AvgPool3d):
    """Halve height and width, and time if asked for, by averaging."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        dtype = hidden_states.dtype
        if hidden_states.device.type == "cpu":  # torch does not pool half precision on a CPU
            hidden_states = hidden_states.to(torch.promote_types(dtype, torch.float32))
        return super().forward(hidden_states).to(dtype)


class FSQMagViTUpsample(nn.Module):
    """Upsample with nearest neighbors, then apply a 3x3x3 convolution."""

    def __init__(self, channels: int, scale: tuple[int, int, int]):
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=scale, mode="nearest")
        self.conv = conv3x3x3(channels, channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv(self.upsample(hidden_states))


def res_blocks(config: FSQMagViTConfig, in_channels: int, out_channels: int) -> list[nn.Module]:
    """Return the residual blocks of one level; the first one changes the width."""
    widths = [in_channels] + [out_channels] * config.num_res_blocks
    return [FSQMagViTResBlock(config, *pair) for pair in pairwise(widths)]


def output_block(config: FSQMagViTConfig, in_channels: int, conv: nn.Conv3d) -> list[nn.Module]:
    return [nn.GroupNorm(math.gcd(config.norm_num_groups, in_channels), in_channels), nn.SiLU(), conv]


class FSQMagViTEncoder(nn.Module):
    """MAGVIT's encoder: (B, C, T, H, W) -> (B, len(levels), t, h, w)."""

    def __init__(self, config: FSQMagViTConfig):
        super().__init__()
        self.stem = tuple(config.stem_patch_size)
        self.pixel_mean, self.pixel_std = config.pixel_mean, config.pixel_std
        widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
        blocks: list[nn.Module] = [conv3x3x3(config.num_channels * math.prod(self.stem), widths[0], bias=False)]
        for level, width in enumerate(widths):
            blocks += res_blocks(config, widths[max(level - 1, 0)], width)
            if level < len(widths) - 1:
                blocks.append(FSQMagViTDownsample((1 + config.temporal_downsample[level], 2, 2)))
        blocks += res_blocks(config, widths[-1], widths[-1])
        blocks += output_block(config, widths[-1], nn.Conv3d(widths[-1], len(config.levels), kernel_size=1))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.blocks(space_to_depth((pixel_values - self.pixel_mean) / self.pixel_std, self.stem))


class FSQMagViTDecoder(nn.Module):
    """MAGVIT's decoder, the encoder's mirror image: (B, len(levels), t, h, w) -> (B, C, T, H, W)."""

    def __init__(self, config: FSQMagViTConfig):
        super().__init__()
        self.stem = tuple(config.stem_patch_size)
        self.pixel_mean, self.pixel_std = config.pixel_mean, config.pixel_std
        widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers][::-1]
        blocks: list[nn.Module] = [conv3x3x3(len(config.levels), widths[0])]
        blocks += res_blocks(config, widths[0], widths[0])
        for level, width in enumerate(widths):
            blocks += res_blocks(config, widths[max(level - 1, 0)], width)
            if level < len(widths) - 1:
                blocks.append(FSQMagViTUpsample(width, (1 + config.temporal_downsample[::-1][level], 2, 2)))
        blocks += output_block(config, widths[-1], conv3x3x3(widths[-1], config.num_channels * math.prod(self.stem)))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return depth_to_space(self.blocks(codes), self.stem) * self.pixel_std + self.pixel_mean


def space_to_depth(pixel_values: torch.Tensor, patch: tuple[int, ...]) -> torch.Tensor:
    """Fold patches into channels: (B, C, T, H, W) -> (B, C * prod(patch), T / patch[0], H / patch[1], W / patch[2])."""
    pattern = "b c (t frames) (h rows) (w columns) -> b (c frames rows columns) t h w"
    return rearrange(pixel_values, pattern, frames=patch[0], rows=patch[1], columns=patch[2])


def depth_to_space(features: torch.Tensor, patch: tuple[int, ...]) -> torch.Tensor:
    """Undo `space_to_depth`."""
    pattern = "b (c frames rows columns) t h w -> b c (t frames) (h rows) (w columns)"
    return rearrange(features, pattern, frames=patch[0], rows=patch[1], columns=patch[2])


class FSQMagViTPreTrainedModel(PreTrainedModel):
    config: FSQMagViTConfig
    base_model_prefix = "fsq_magvit"
    main_input_name = "pixel_values_videos"
    input_modalities = ["video"]
    supports_gradient_checkpointing = False
    _no_split_modules = ["FSQMagViTResBlock"]
    # The model has no attention, so every implementation that a parent asks for works.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: FSQMagViTConfig):
        config.validate_architecture()  # fields may have been set one by one since the config was made
        super().__init__(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv3d):
            # LeCun's scale, as in MAGVIT: with a fixed deviation, activations would fade in a deep stack of convolutions.
            init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)


class FSQMagViTModel(FSQMagViTPreTrainedModel):
    """The adaptive tokenizer (paper sections 3.3 and 3.4, which do not give all sizes)."""

    # The loss is a mean over pixels, so Trainer must divide it by the accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: FSQMagViTConfig):
        super().__init__(config)
        self.encoder = FSQMagViTEncoder(config)
        self.decoder = FSQMagViTDecoder(config)
        self.scorer = TokenScorer(
            config.num_channels, config.tubelet_size, config.patch_size, config.scorer_hidden_size
        )
        self.quantizer = FiniteScalarQuantizer(tuple(config.levels))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.blocks[0]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.blocks[0] = value

    @classmethod
    def from_image_tokenizer(cls, name_or_path: str | os.PathLike, config: FSQMagViTConfig) -> "FSQMagViTModel":
        r"""
        Start a video tokenizer from one that was trained on pictures, by MAGVIT's central inflation.

        A clip of one frame trains only the center slice (in time) of each kernel. Every convolution takes this slice and has
        zeros around it, so the frames of a still clip are coded and reconstructed as the image tokenizer does it. Videos then
        train the other slices. The scorer starts with random weights: it compares slots, and a picture has only one.

        Args:
            name_or_path: folder or Hub id of a tokenizer with `config.for_images()`; its `image_size` may differ.
            config: the video tokenizer's config.

        Raises:
            ValueError: the image tokenizer has another architecture.
        """
        image_model = cls.from_pretrained(name_or_path)
        expected = config.for_images()
        for name in IMAGE_TOKENIZER_FIELDS:
            got, wanted = getattr(image_model.config, name), getattr(expected, name)
            if got != wanted and (isinstance(wanted, int) or list(got) != list(wanted)):
                raise ValueError(
                    f"Got an image tokenizer with {name}={got}, expected {wanted}: train one with config.for_images() "
                    "(scripts/train_tokenizer.py --image_column) or change the video tokenizer's config."
                )
        model = cls(config)
        model._inflate(image_model)
        return model

    @torch.no_grad()
    def _inflate(self, image_model: "FSQMagViTModel") -> None:
        frames, pixels = self.config.stem_patch_size[0], math.prod(self.config.stem_patch_size[1:])
        first, last = "encoder.blocks.0.", f"decoder.blocks.{len(self.decoder.blocks) - 1}."
        for name, weight in self.named_parameters():
            if name.startswith("scorer."):
                continue
            source: torch.Tensor = image_model.get_parameter(name)
            if source.ndim == 5:
                source = center_slice(source, 2, source.shape[2])
            if name.startswith(first):  # the stem folds frames into channels: only the middle one counts
                source = center_slice(source.unflatten(1, (-1, 1, pixels)), 2, frames).flatten(1, 3)
            if name.startswith(last):  # every frame of a token gets the same weights
                source = source.unflatten(0, (-1, 1, pixels)).repeat_interleave(frames, dim=1).flatten(0, 2)
            weight.copy_(source)

    def encode(self, pixel_values_videos: torch.Tensor) -> FSQMagViTEncoderOutput:
        r"""
        Tokenize clips of any length, window by window. Under `torch.no_grad()`, memory is that of one window.

        The last window is filled by repeating the last frame. Slots of padding alone are dropped afterwards, so T frames give
        ceil(T / tubelet_size) slots.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, num_channels, height, width)`): in [0, 1].

        Raises:
            ValueError: another rank or channel count, integer pixels, or a frame size that is no multiple of
                `config.patch_size`.
        """
        slots = self._grid_size(pixel_values_videos)[0]
        latents, scores, previous = [], [], None
        for window in self._windows(pixel_values_videos).unbind(dim=1):
            latents.append(self.encoder(window))
            features = self.scorer(window)
            scores.append(self.scorer.distances(features, previous))
            previous = features[:, :, -1:]
        all_latents = torch.cat(latents, dim=2)[:, :, :slots].movedim(1, -1)
        codes = self.quantizer(all_latents).flatten(1, 3)
        all_scores = torch.cat(scores, dim=1)
        if all_scores.shape[1] > 1:  # with windows of one slot, the first window does not see the second slot
            all_scores = torch.cat([all_scores[:, 1:2], all_scores[:, 1:]], dim=1)
        return FSQMagViTEncoderOutput(
            latents=all_latents,
            codes=codes,
            code_indices=codes_to_indices(codes, self.config.levels),
            importance_scores=all_scores[:, :slots].flatten(1),
        )

    def decode(self, codes: torch.Tensor, grid_size: tuple[int, int, int] | None = None) -> torch.Tensor:
        r"""
        Decode codes to pixels, window by window; the last window is filled by repeating its last slot.

        Args:
            codes (`torch.Tensor` of shape `(batch_size, seq_length, len(levels))`): in [-1, 1].
            grid_size: the tokens (t, h, w) of the clip; by default, h and w follow from `config.image_size`, and t from
                `seq_length`.

        Returns:
            (batch_size, t * config.tubelet_size, num_channels, height, width), about [0, 1], not clamped.
        """
        if grid_size is None:
            grid_size = (codes.shape[1] // math.prod(self.config.grid_size[1:]), *self.config.grid_size[1:])
        if codes.ndim != 3 or codes.shape[1] != math.prod(grid_size) or codes.shape[2] != len(self.config.levels):
            raise ValueError(
                f"Got codes of shape {tuple(codes.shape)} for a grid of {grid_size}, expected (batch, "
                f"{math.prod(grid_size)}, {len(self.config.levels)}): pass the grid_size that they were encoded with."
            )
        slots = self.config.window_grid_size[0]
        padded = pad_last(codes.to(self.dtype).unflatten(1, grid_size).movedim(-1, 1), slots, dim=2)
        frames = torch.cat([self.decoder(window) for window in padded.split(slots, dim=2)], dim=2)
        return frames[:, :, : grid_size[0] * self.config.tubelet_size].transpose(1, 2)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        keep_ratio: float | None = None,
        importance_scores: torch.Tensor | None = None,
        bool_kept_pos: torch.Tensor | None = None,
        topk_sigma: float | torch.Tensor | None = None,
        return_loss: bool = True,
        **kwargs,
    ) -> FSQMagViTOutput:
        r"""
        Reconstruct clips from their most important tokens. Each window is masked and coded independently.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, num_channels, height, width)`): in [0, 1].
            keep_ratio (`float`, *optional*): share of a window's tokens that are kept, in (0, 1]; by default
                `config.keep_ratio`, and in training a random share from `config.min_keep_ratio` to it. In training, the first
                slot is kept in addition.
            importance_scores (`torch.Tensor` of shape `(batch_size, seq_length)`, *optional*): scores that choose the tokens
                instead of the scorer's. The scorer then learns nothing.
            bool_kept_pos (`torch.BoolTensor` of shape `(batch_size, seq_length)`, *optional*): exactly these tokens are kept
                (True = kept), whatever the other arguments say.
            topk_sigma (`float`, *optional*): noise of the perturbed top-k, instead of `config.topk_sigma`.
            return_loss (`bool`, defaults to `True`): compute the loss. By this argument, Trainer knows that batches without labels
                have one.

        Raises:
            ValueError: as [`FSQMagViTModel.encode`]; a `keep_ratio` outside (0, 1]; scores or a mask of another shape.
        """
        slots = self._grid_size(pixel_values_videos)[0]
        batch_size, num_frames = pixel_values_videos.shape[:2]
        windows = self._windows(pixel_values_videos).flatten(0, 1)
        scores = self._per_window(importance_scores, "importance_scores", pixel_values_videos)
        if scores is None:
            scores = self.scorer.distances(self.scorer(windows))
        mask = self._per_window(bool_kept_pos, "bool_kept_pos", pixel_values_videos)
        if mask is None:
            mask = self.token_mask(scores, self._keep_ratio(keep_ratio, scores), topk_sigma)
        codes = self.quantizer(self.encoder(windows).movedim(1, -1) * mask.unsqueeze(-1))
        frames = self.decoder(codes.movedim(-1, 1).to(windows.dtype))
        frames = rearrange(frames, "(b windows) c t h w -> b (windows t) c h w", b=batch_size)[:, :num_frames]

        def per_clip(tokens: torch.Tensor) -> torch.Tensor:
            return rearrange(tokens, "(b windows) t h w -> b (windows t) h w", b=batch_size)[:, :slots].flatten(1)

        return FSQMagViTOutput(
            loss=nn.functional.mse_loss(frames.float(), pixel_values_videos.float()) if return_loss else None,
            reconstruction=frames,
            importance_scores=per_clip(scores),
            bool_kept_pos=per_clip(mask.detach() > 0),
            code_indices=per_clip(codes_to_indices(codes, self.config.levels)),
        )

    def token_mask(
        self, scores: torch.Tensor, keep_ratio: torch.Tensor, topk_sigma: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the mask that multiplies the latents, 1 = kept; it is differentiable in training.

        Args:
            scores: (windows, t, h, w).
            keep_ratio: the share of each window that is kept, (windows, 1).

        Returns:
            (windows, t, h, w), zeros and ones.
        """
        flat = scores.flatten(1)
        keep_count = (keep_ratio * flat.shape[1]).round().long().clamp(min=1)
        if not self.training:
            return topk_mask(flat, keep_count).to(scores.dtype).unflatten(1, scores.shape[1:])
        # The first slot is always kept, so the top-k chooses among the others.
        rest = scores[:, 1:].flatten(1)
        kept = self._differentiable_topk(rest, keep_count.clamp(max=rest.shape[1]), topk_sigma)
        kept = torch.cat([kept.new_ones(flat.shape[0], flat.shape[1] - rest.shape[1]), kept], dim=1)
        # torch.where rather than a branch: under DDP, the scorer needs a gradient in every step, even if it is zero.
        unmasked = torch.rand(kept.shape[0], 1, device=kept.device) < self.config.unmasked_clip_ratio
        return torch.where(unmasked, 1.0, kept).unflatten(1, scores.shape[1:])

    def _keep_ratio(self, keep_ratio: float | None, scores: torch.Tensor) -> torch.Tensor:
        """Return the share of each window's tokens that is kept: (windows, 1)."""
        low = high = self.config.keep_ratio if keep_ratio is None else keep_ratio
        if not 0 < high <= 1:
            raise ValueError(f"Got keep_ratio={high}, expected a share in (0, 1]: give a fraction, not a percentage.")
        if keep_ratio is None and self.training and self.config.min_keep_ratio is not None:
            low = self.config.min_keep_ratio
        if low == high:
            return torch.full((scores.shape[0], 1), high, device=scores.device)
        return low + (high - low) * torch.rand(scores.shape[0], 1, device=scores.device)

    def _per_window(self, tokens: torch.Tensor | None, name: str, clips: torch.Tensor) -> torch.Tensor | None:
        """Split a clip's values (B, seq_length) into windows, (windows, t, h, w); padding repeats the last slot's values."""
        if tokens is None:
            return None
        grid_size = self._grid_size(clips)
        expected = clips.shape[0], math.prod(grid_size)
        if tuple(tokens.shape) != expected:
            raise ValueError(
                f"Got {name} of shape {tuple(tokens.shape)}, expected {expected} for the grid {grid_size}: make them from these clips."
            )
        slots = self.config.window_grid_size[0]
        padded = pad_last(tokens.unflatten(1, grid_size), slots, dim=1)
        return rearrange(padded, "b (windows t) h w -> (b windows) t h w", t=slots)

    def _differentiable_topk(
        self, scores: torch.Tensor, k: torch.Tensor, sigma: float | torch.Tensor | None
    ) -> torch.Tensor:
        if scores.shape[1] == 0:  # a single slot, kept as the first
            return scores
        sigma = self.config.topk_sigma if sigma is None else sigma
        low, high = scores.amin(dim=1, keepdim=True), scores.amax(dim=1, keepdim=True)
        scores = (scores - low) / (high - low + 1e-6)
        soft = perturbed_topk_mask(scores, k, sigma, self.config.topk_num_samples)
        return straight_through(topk_mask(scores, k).to(soft.dtype), soft)

    def _windows(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """Split clips into windows, the last one filled with the last frame: (B, T, C, H, W) -> (B, windows, C, frames, H, W)."""
        frames = pad_last(pixel_values_videos, self.config.window_size, dim=1).to(self.dtype)
        return rearrange(frames, "b (windows t) c h w -> b windows c t h w", t=self.config.window_size)

    def _grid_size(self, pixel_values_videos: torch.Tensor) -> tuple[int, int, int]:
        """Return the tokens (t, h, w) of a clip, t rounded up; raise ValueError on clips that do not fit the tokenizer."""
        shape = tuple(pixel_values_videos.shape)
        if len(shape) != 5 or shape[1] == 0 or shape[2] != self.config.num_channels:
            raise ValueError(
                f"Got pixel_values_videos of shape {shape}, expected (batch, frames, {self.config.num_channels} channels, "
                "height, width) with at least one frame: reorder the axes or change config.num_channels."
            )
        if not pixel_values_videos.is_floating_point():
            raise ValueError(
                f"Got pixels of {pixel_values_videos.dtype}, expected floating point in [0, 1]: divide by 255 "
                "(LVMAEVideoProcessor with do_normalize=False does)."
            )
        patch_size = self.config.patch_size
        if shape[3] % patch_size or shape[4] % patch_size:
            raise ValueError(
                f"Got frames of {shape[3]} x {shape[4]} pixels, expected multiples of the token's {patch_size} pixels: resize or crop."
            )
        return math.ceil(shape[1] / self.config.tubelet_size), shape[3] // patch_size, shape[4] // patch_size


def pad_last(tensor: torch.Tensor, multiple: int, dim: int) -> torch.Tensor:
    """Repeat the last entry along `dim` until the length is a multiple; return the tensor itself if it already is."""
    missing = -tensor.shape[dim] % multiple
    if missing == 0:
        return tensor
    last = tensor.narrow(dim, tensor.shape[dim] - 1, 1)
    return torch.cat([tensor, last.repeat_interleave(missing, dim=dim)], dim=dim)


def center_slice(tensor: torch.Tensor, dim: int, length: int) -> torch.Tensor:
    """Put the middle entry along `dim` in the middle of `length` entries that are otherwise zero."""
    shape = list(tensor.shape)
    shape[dim] = length
    centered = tensor.new_zeros(shape)
    centered.select(dim, length // 2).copy_(tensor.select(dim, tensor.shape[dim] // 2))
    return centered


# Fields that decide the weights of an image tokenizer. They must agree with those of the video tokenizer that starts from it.
IMAGE_TOKENIZER_FIELDS = (
    "window_size", "num_channels", "base_channels", "channel_multipliers", "temporal_downsample", "num_res_blocks",
    "norm_num_groups", "stem_patch_size", "levels",
)  # fmt: skip

__all__ = ["FSQMagViTModel", "FSQMagViTPreTrainedModel"]
