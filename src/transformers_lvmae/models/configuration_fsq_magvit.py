"""The adaptive tokenizer's configuration: MAGVIT's 3D CNN, FSQ, the token scorer and its top-k."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils.type_validators import interval, probability


# Ranges of the config's numbers, checked whenever one is set. The upper ends stop a damaged config from building for hours.
SIZE = interval(min=1, max=2**16)
POSITIVE = interval(min=0, exclude_min=True, max=1000)
MOST_PARAMETERS = 10**11  # of the 3x3x3 convolutions


@strict
class FSQMagViTConfig(PreTrainedConfig):
    r"""
    Configuration of [`FSQMagViTModel`]. By default a token covers 2 x 8 x 8 pixels: 128 frames of 112 x 112 pixels give
    64 x 14 x 14 tokens, the grid of the ViT at 224 pixels. The paper does not give these sizes; they give its numbers of tokens.
    The layout is MAGVIT's with its two finest levels folded into channels. Encoding a clip then costs a third of the
    pre-training step that uses the codes. With MAGVIT's own layout it costs twice that step (model_cards/cost.md).
    [`FSQMagViTConfig.from_size`] has other sizes, MAGVIT's included.

    Args:
        image_size (`int` or pair (height, width), defaults to 112): size in pixels of the frames that the tokenizer is made
            for; any other multiple of `patch_size` works too.
        num_frames (`int`, defaults to 128): frames of the clips that it is made for; any other number works too.
        window_size (`int`, defaults to 16): frames that are encoded at once; longer clips are encoded window by window.
        num_channels (`int`, defaults to 3): channels of a frame.
        pixel_mean, pixel_std (`float`, defaults to 0.45 and 0.225): mean and standard deviation of pixels in [0, 1]; the
            defaults are those of natural pictures. Clips are standardized with them before the first convolution, and
            transformed back after the last. If they are far from the videos' own, training starts slowly.
        base_channels (`int`, defaults to 64): feature channels at the finest level (MAGVIT-B 64, L 128).
        channel_multipliers (`tuple[int]`, defaults to (2, 4)): channels of each level as multiples of `base_channels`, the
            finest level first; MAGVIT has (1, 2, 2, 4). Height and width halve between levels.
        temporal_downsample (`tuple[bool]`, defaults to (False,)): for each step between two levels, whether time halves too.
        num_res_blocks (`int`, defaults to 2): residual blocks of each level, and of the bottom.
        norm_num_groups (`int`, defaults to 32): groups of the GroupNorms (fewer if the channels are no multiple).
        stem_patch_size (`tuple[int, int, int]`, defaults to (2, 4, 4)): frames, rows and columns that are folded into channels
            before the first convolution (space to depth), and unfolded after the last. MAGVIT folds nothing: (1, 1, 1).
        levels (`tuple[int]`, defaults to six times 8): FSQ levels; 8 ** 6 = 2 ** 18 codes are the paper's best codebook size.
        scorer_hidden_size (`int`, defaults to 64): channels of the token scorer's features.
        keep_ratio (`float`, defaults to 0.375): share of a window's tokens that the top-k keeps (the paper keeps 768, most
            likely of 2,048). In training, the first slot is kept in addition.
        min_keep_ratio (`float`, *optional*): in training, each window's share is drawn uniformly from this value to
            `keep_ratio`, so that one tokenizer works with a range of budgets. By default it is always `keep_ratio`.
        unmasked_clip_ratio (`float`, defaults to 0): share of the training windows that keep all tokens. The autoencoder is
            trained on codes of unmasked clips, and a tokenizer that never saw an unmasked clip codes them less well.
        topk_sigma (`float`, defaults to 0.05): noise of the perturbed top-k, on scores scaled to [0, 1].
        topk_num_samples (`int`, defaults to 64): samples of the perturbed top-k.
    """

    model_type = "fsq_magvit"

    image_size: int | list[int] | tuple[int, int] = 112
    num_frames: int = SIZE(default=128)
    window_size: int = SIZE(default=16)
    num_channels: int = SIZE(default=3)
    pixel_mean: float | int = 0.45
    pixel_std: float | int = POSITIVE(default=0.225)
    base_channels: int = SIZE(default=64)
    channel_multipliers: list[int] | tuple[int, ...] = (2, 4)
    temporal_downsample: list[bool] | tuple[bool, ...] = (False,)
    num_res_blocks: int = interval(min=1, max=1000)(default=2)
    norm_num_groups: int = SIZE(default=32)
    stem_patch_size: list[int] | tuple[int, int, int] = (2, 4, 4)
    levels: list[int] | tuple[int, ...] = (8, 8, 8, 8, 8, 8)
    scorer_hidden_size: int = SIZE(default=64)
    keep_ratio: float | int = interval(min=0, max=1, exclude_min=True)(default=0.375)
    min_keep_ratio: float | int | None = None
    unmasked_clip_ratio: float | int = probability(default=0.0)
    topk_sigma: float | int = POSITIVE(default=0.05)
    topk_num_samples: int = interval(min=2, max=2**16)(default=64)

    @classmethod
    def from_size(
        cls, size: Literal["tiny", "base", "large", "magvit_base", "magvit_large"], **overrides
    ) -> "FSQMagViTConfig":
        """Return the config of one size; a token has 2 x 8 x 8 pixels in all sizes. `overrides` are fields of the config.

        "base" is the default, "large" is twice as wide, and "tiny" is for a CPU. "magvit_base" and "magvit_large" are MAGVIT's B
        and L, which fold nothing into channels; their encoders cost five times as much.
        """
        if size not in FSQ_MAGVIT_SIZES:
            raise ValueError(f"Got size={size!r}, expected one of {sorted(FSQ_MAGVIT_SIZES)}: choose one of them.")
        return cls(**{**FSQ_MAGVIT_SIZES[size], **overrides})

    def for_images(self) -> "FSQMagViTConfig":
        """Return the config of the same tokenizer for pictures, which are clips of one frame; it keeps every token.

        A video tokenizer can start from the weights of one trained on pictures: [`FSQMagViTModel.from_image_tokenizer`].
        """
        one_frame = {
            "num_frames": 1,
            "window_size": 1,
            "temporal_downsample": (False,) * len(self.temporal_downsample),
            "stem_patch_size": (1, *self.stem_patch_size[1:]),
            "keep_ratio": 1.0,
        }
        return type(self)(**{**self.to_dict(), **one_frame})

    @property
    def tubelet_size(self) -> int:
        """Frames of a token."""
        return self.stem_patch_size[0] * 2 ** sum(self.temporal_downsample)

    @property
    def patch_size(self) -> int:
        """Height and width of a token in pixels."""
        return self.stem_patch_size[1] * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def grid_size(self) -> tuple[int, int, int]:
        """Tokens (t, h, w) of a clip of `num_frames` frames of `image_size` pixels; t is rounded up."""
        height, width = self.frame_size
        return math.ceil(self.num_frames / self.tubelet_size), height // self.patch_size, width // self.patch_size

    @property
    def window_grid_size(self) -> tuple[int, int, int]:
        """Tokens (t, h, w) of one window."""
        return (self.window_size // self.tubelet_size, *self.grid_size[1:])

    @property
    def codebook_size(self) -> int:
        """Number of different codes: the product of the levels."""
        return math.prod(self.levels)

    def validate_architecture(self) -> None:
        """Check fields against each other; raise ValueError if they do not fit. Building a model calls this again."""
        self._check_lists()
        if len(self.temporal_downsample) != len(self.channel_multipliers) - 1:
            raise ValueError(
                f"Got {len(self.temporal_downsample)} temporal_downsample for {len(self.channel_multipliers)} "
                "channel_multipliers, expected one fewer: give one entry for each step between two levels."
            )
        if self.stem_patch_size[1] != self.stem_patch_size[2] or self.patch_size % 2:
            raise ValueError(
                f"Got stem_patch_size={tuple(self.stem_patch_size)}, tokens of {self.patch_size} pixels, expected square "
                "tokens of an even size: change stem_patch_size or add a level."
            )
        if self.window_size % self.tubelet_size:
            raise ValueError(
                f"Got window_size={self.window_size} and tokens of {self.tubelet_size} frames, expected a multiple: change one."
            )
        height, width = self.frame_size
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"Got image_size={self.image_size} and tokens of {self.patch_size} pixels, expected a multiple: change image_size."
            )
        if self.min_keep_ratio is not None and not 0 < self.min_keep_ratio <= self.keep_ratio:
            raise ValueError(
                f"Got min_keep_ratio={self.min_keep_ratio} and keep_ratio={self.keep_ratio}, expected a share in (0, "
                "keep_ratio]: lower min_keep_ratio or leave it out."
            )
        for name, expected in DELETED_FIELDS.items():
            if getattr(self, name, expected) != expected:
                raise ValueError(
                    f"Got {name}={getattr(self, name)!r}, expected {expected!r}, the only value still supported: train a new "
                    "tokenizer, or use this one with version 0.1."
                )

    def _check_lists(self) -> None:
        sides = [self.image_size] * 2 if isinstance(self.image_size, int) else list(self.image_size)
        sizes = [*self.channel_multipliers, *self.stem_patch_size, *sides]
        if len(self.stem_patch_size) != 3 or len(sides) != 2 or not 1 <= min(sizes) <= max(sizes) <= 2**16:
            raise ValueError(
                f"Got channel_multipliers={tuple(self.channel_multipliers)}, stem_patch_size={tuple(self.stem_patch_size)} and "
                f"image_size={self.image_size}, expected numbers from 1 to {2**16}, three for the stem and one or two for the "
                "image: correct them."
            )
        if not 3 <= min(self.levels, default=0) <= max(self.levels) <= 2**16 or self.codebook_size >= 2**63:
            raise ValueError(
                f"Got levels={tuple(self.levels)}, expected 3 (better 5) to {2**16} levels in each channel and fewer than 2^63 codes: "
                "choose others."
            )
        width = self.base_channels * max(self.channel_multipliers)
        weights = 27 * width**2 * self.num_res_blocks * len(self.channel_multipliers)
        if len(self.channel_multipliers) > 16 or weights > MOST_PARAMETERS:
            raise ValueError(
                f"Got {len(self.channel_multipliers)} levels of up to {width} channels, expected at most 16 levels and "
                f"{MOST_PARAMETERS:.0e} weights in all: check the config's sizes."
            )


# Fields of version 0.1 and the one value of each that is still supported. A config that is read from a file of version 0.1 keeps
# them as attributes, so that the tokenizer's fingerprint in a target cache stays the same.
DELETED_FIELDS: dict[str, Any] = {
    "first_slot_score": "previous_window",
    "topk_kind": "perturbed",
    "topk_straight_through": True,
}
MAGVIT_LAYOUT: dict[str, Any] = {
    "channel_multipliers": (1, 2, 2, 4),
    "temporal_downsample": (True, False, False),
    "stem_patch_size": (1, 1, 1),
}
FSQ_MAGVIT_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"base_channels": 32, "channel_multipliers": (1, 2), "num_res_blocks": 1},
    "base": {},
    "large": {"base_channels": 128},
    "magvit_base": MAGVIT_LAYOUT,
    "magvit_large": {**MAGVIT_LAYOUT, "base_channels": 128},
}

__all__ = ["FSQMagViTConfig"]
