"""LVMAE: a VideoMAE-style masked autoencoder whose decoder reconstructs only the tokens that matter.

"Extending Video Masked Autoencoders to 128 frames" (NeurIPS 2024). Notable choices:
- tubelets are gathered first and projected after, so hidden ones cost nothing; the projection is a Linear; where the targets are
  cached, the visible tubelets are all that a model needs of a clip;
- positions are sines and cosines computed for the tokens at hand, never stored: any clip length and picture size works;
- outputs of norms and activations are made again in backward (recompute.py): a third less memory, the same gradients;
- the model takes plain tensors (masks, target codes) and never holds the tokenizer that makes them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_lvmae import LVMAEConfig
from .fsq import level_losses, likeliest_codes
from .masking import (
    ENCODER_MASKS,
    gather_tokens,
    gather_tubelets,
    mask_to_indices,
    random_tube_mask,
    split_tubelets,
    tube_visible_count,
)
from .recomputation import project, rebuilt


@dataclass
class LVMAEForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor` of shape `(1,)`, *optional*): mean squared error, or cross-entropy with `target_type="levels"`,
            over the tokens that are hidden from the encoder and decoded; None without targets.
        logits (`torch.Tensor` of shape `(batch_size, token_budget, target_size)`): one row per decoded position, in
            ascending order of position.
        channel_losses (`torch.Tensor` of shape `(channels,)`, *optional*): the parts whose mean is the loss, without a
            gradient: of each FSQ channel, of each colour for pixels.
        bool_masked_pos, bool_decoded_pos (`torch.BoolTensor` of shape `(batch_size, seq_length)`): the masks used.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    channel_losses: torch.Tensor | None = None
    bool_masked_pos: torch.Tensor | None = None
    bool_decoded_pos: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def sinusoidal_positions(positions: torch.Tensor, size: int) -> torch.Tensor:
    """Sine and cosine of each position, interleaved, as VideoMAE's table: (...) -> float32 (..., size).

    Computed in float64: at position 12,543 a float32 angle is off by a thousandth.
    """
    device = torch.device("cpu") if positions.device.type == "mps" else positions.device  # no float64 on mps
    exponents = torch.arange(0, size, 2, device=device, dtype=torch.float64) / size
    angles = positions.to(device, torch.float64).unsqueeze(-1) / 10000**exponents
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2).float().to(positions.device)


class LVMAEPatchEmbeddings(nn.Module):
    """Tubelets to vectors: one Linear over (channel, frame, row, column), the layout of VideoMAE's 3D convolution."""

    def __init__(self, config: LVMAEConfig):
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_size = config.patch_size
        self.tubelet_size = config.tubelet_size
        self.projection = nn.Linear(
            config.num_channels * config.tubelet_size * config.patch_size**2, config.hidden_size
        )

    def grid_size(self, pixel_values_videos: torch.Tensor) -> tuple[int, int, int]:
        """Tokens (t, h, w) of a clip; raises ValueError on clips that the model cannot take."""
        shape = tuple(pixel_values_videos.shape)
        if len(shape) != 5:
            raise ValueError(
                f"Got pixel_values_videos of shape {shape}, expected 5 axes (batch, frames, channels, height, width): add or "
                "remove an axis."
            )
        if not pixel_values_videos.is_floating_point():
            raise ValueError(
                f"Got pixels of {pixel_values_videos.dtype}, expected floating point as LVMAEVideoProcessor gives it: normalise "
                "them (transformers_lvmae.targets.pixels.PixelScale; LVMAEPreTrainer does)."
            )
        _, frames, channels, height, width = shape
        if channels != self.num_channels:
            raise ValueError(
                f"Got {channels} channels, expected config.num_channels={self.num_channels}: put the channels on axis 2 or "
                "build the model with another num_channels."
            )
        if frames == 0 or frames % self.tubelet_size:
            raise ValueError(
                f"Got {frames} frames, expected a multiple of config.tubelet_size={self.tubelet_size}: sample another "
                "number of frames."
            )
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"Got frames of {height} x {width} pixels, expected multiples of config.patch_size={self.patch_size}: "
                "resize or crop them."
            )
        return frames // self.tubelet_size, height // self.patch_size, width // self.patch_size

    def tubelet_grid(
        self, visible_tubelets: torch.Tensor, bool_masked_pos: torch.Tensor | None
    ) -> tuple[int, int, int]:
        """Tokens (N, 1, 1) of a clip of which only visible tubelets came, by its mask; raises ValueError where they do not fit."""
        shape = (self.tubelet_size, self.num_channels, self.patch_size, self.patch_size)
        if visible_tubelets.ndim != 6 or tuple(visible_tubelets.shape[2:]) != shape:
            raise ValueError(
                f"Got visible_tubelets of shape {tuple(visible_tubelets.shape)}, expected (batch, visible tokens, {shape[0]} "
                f"frames, {shape[1]} channels, {shape[2]}, {shape[3]}): cut clips with split_tubelets and gather_tubelets."
            )
        if not visible_tubelets.is_floating_point() or bool_masked_pos is None:
            mask = "no bool_masked_pos" if bool_masked_pos is None else "a mask"
            raise ValueError(
                f"Got visible_tubelets of {visible_tubelets.dtype} and {mask}, expected floating point as LVMAEVideoProcessor "
                "gives it and the mask that says where they lie: normalise them (tokens.PixelScale) and pass the mask."
            )
        return bool_masked_pos.shape[-1], 1, 1

    def forward(
        self,
        pixel_values_videos: torch.Tensor | None,
        indices: torch.Tensor | None = None,
        visible_tubelets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Tubelets (B, K, ...), or a clip (B, T, C, H, W) and positions (B, K) -> (B, K, hidden_size); every tubelet of a clip
        without positions."""
        if visible_tubelets is None:
            assert pixel_values_videos is not None
            tubelets = split_tubelets(pixel_values_videos, self.tubelet_size, self.patch_size)
            visible_tubelets = gather_tubelets(tubelets, indices)
        tubelets = visible_tubelets.transpose(2, 3).flatten(2)
        return self.projection(tubelets.to(self.projection.weight.dtype))


class LVMAEEmbeddings(nn.Module):
    """Visible tubelets, projected, plus their positions."""

    def __init__(self, config: LVMAEConfig):
        super().__init__()
        self.patch_embeddings = LVMAEPatchEmbeddings(config)

    def pixels_and_grid(
        self,
        pixel_values_videos: torch.Tensor | None,
        bool_masked_pos: torch.Tensor | None,
        visible_tubelets: torch.Tensor | None,
    ) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """The one of both that is given, and the tokens (t, h, w) of a clip: (N, 1, 1) where only visible tubelets came."""
        if pixel_values_videos is not None and visible_tubelets is None:
            return pixel_values_videos, self.patch_embeddings.grid_size(pixel_values_videos)
        if pixel_values_videos is None and visible_tubelets is not None:
            return visible_tubelets, self.patch_embeddings.tubelet_grid(visible_tubelets, bool_masked_pos)
        both = "neither of" if visible_tubelets is None else "both"
        raise ValueError(
            f"Got {both} pixel_values_videos and visible_tubelets, expected one of them: pass whole clips, or the tubelets "
            "that bool_masked_pos leaves visible."
        )

    def forward(
        self,
        pixel_values_videos: torch.Tensor | None,
        bool_masked_pos: torch.Tensor | None = None,
        num_visible: int | None = None,
        visible_tubelets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        pixels, grid_size = self.pixels_and_grid(pixel_values_videos, bool_masked_pos, visible_tubelets)
        indices = None
        positions = torch.arange(math.prod(grid_size), device=pixels.device)
        if bool_masked_pos is not None:
            check_mask(bool_masked_pos, "bool_masked_pos", pixels.shape[0], grid_size)
            num_visible = num_visible if visible_tubelets is None else visible_tubelets.shape[1]
            indices = positions = visible_positions(bool_masked_pos, num_visible)
        embeddings = self.patch_embeddings(pixel_values_videos, indices, visible_tubelets)
        return embeddings + sinusoidal_positions(positions, embeddings.shape[-1]).to(embeddings.dtype)


def visible_positions(bool_masked_pos: torch.Tensor, num_visible: int | None) -> torch.Tensor:
    """Positions that the encoder sees, ascending: bool (B, N) -> int64 (B, V)."""
    return mask_to_indices(~bool_masked_pos, "visible positions (~bool_masked_pos)", num_visible)


def check_mask(mask: torch.Tensor, name: str, batch_size: int, grid_size: tuple[int, int, int]) -> None:
    """Raise ValueError unless `mask` is bool (B, N) for this grid."""
    expected = (batch_size, math.prod(grid_size))
    if mask.dtype != torch.bool or tuple(mask.shape) != expected:
        raise ValueError(
            f"Got {name} of shape {tuple(mask.shape)} and {mask.dtype}, expected {expected} and torch.bool for a clip of "
            f"{' x '.join(map(str, grid_size))} tokens: draw the mask for the clip's own grid."
        )


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention with its weights: (B, heads, N, d) -> (B, N, heads, d) and (B, heads, N, N)."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class LVMAEAttention(nn.Module):
    """Full multi-head attention, without a key bias as in VideoMAE. Sizes are arguments: the decoder's differ."""

    def __init__(self, config: LVMAEConfig, hidden_size: int, num_attention_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = hidden_size // num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=config.qv_bias)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=config.qv_bias)
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        hidden_states: torch.Tensor,
        query_states: torch.Tensor | None = None,
        first_query: int = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens (B, N, D), from `first_query` on, or `query_states` (B, M, D) attend to all tokens. Returns output and weights."""
        if query_states is None:
            states = project(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        else:
            states = self.q_proj(query_states), *project(hidden_states, self.k_proj, self.v_proj)
        query, key, value = map(self._split_heads, states)
        query = query[:, :, first_query:]
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            query,
            key,
            value,
            None,
            is_causal=self.is_causal,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
            **kwargs,
        )
        return self.out_proj(output.flatten(2)), weights


class LVMAEMLP(nn.Module):
    def __init__(self, config: LVMAEConfig, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor, rebuild: bool = False) -> torch.Tensor:
        (hidden_states,) = project(hidden_states, self.fc1)
        hidden_states = rebuilt(self.activation, hidden_states, rebuild)
        (hidden_states,) = project(hidden_states, self.fc2)
        return hidden_states


class LVMAEDropPath(nn.Module):
    """Stochastic depth: in training, a sample's branch is left out with probability `rate`, and scaled up otherwise."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.rate
        return branch * kept.to(branch.dtype) / (1 - self.rate)


class LVMAELayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer of the encoder and, with other sizes, of the decoder."""

    mlp_checkpointing = False  # LVMAEPreTrainedModel.activation_checkpointing_enable sets both
    _gradient_checkpointing_func: Callable

    def __init__(
        self,
        config: LVMAEConfig,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = LVMAEAttention(config, hidden_size, num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = LVMAEMLP(config, hidden_size, intermediate_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = LVMAEDropPath(drop_path_rate)
        self.rebuild = config.rebuild_activations

    def forward(
        self, hidden_states: torch.Tensor, first_query: int = 0, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """(B, N, D) -> the tokens from `first_query` on; those before are only attended to."""
        # What is checkpointed is made again at once in backward; an output made again on its own as well would be computed three times.
        rebuild = self.rebuild and not (self.gradient_checkpointing and self.training)
        attended = self._attention_branch(hidden_states, first_query, rebuild, **kwargs)
        hidden_states = hidden_states[:, first_query:] + self.drop_path(self.dropout(attended))
        del attended  # as large as the tokens: without gradients the MLP has its place
        if self.mlp_checkpointing and self.training:
            transformed = self._gradient_checkpointing_func(self._mlp_branch, hidden_states, False)
        else:
            transformed = self._mlp_branch(hidden_states, rebuild)
        return hidden_states + self.drop_path(self.dropout(transformed))

    def _attention_branch(
        self, hidden_states: torch.Tensor, first_query: int, rebuild: bool, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        normed = rebuilt(self.layer_norm1, hidden_states, rebuild)
        return self.attention(normed, first_query=first_query, **kwargs)[0]

    def _mlp_branch(self, hidden_states: torch.Tensor, rebuild: bool) -> torch.Tensor:
        return self.mlp(rebuilt(self.layer_norm2, hidden_states, rebuild), rebuild)


class LVMAEEncoder(nn.Module):
    def __init__(self, config: LVMAEConfig):
        super().__init__()
        depth = config.num_hidden_layers
        self.layers = nn.ModuleList(
            LVMAELayer(
                config,
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                drop_path_rate=config.drop_path_rate * number / max(depth - 1, 1),
            )
            for number in range(depth)
        )
        self.gradient_checkpointing = False

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return hidden_states


class LVMAEDecoder(nn.Module):
    """Encoded visible tokens and mask tokens at the decoded positions -> predictions at the decoded positions."""

    def __init__(self, config: LVMAEConfig):
        super().__init__()
        size = config.decoder_hidden_size
        self.embed = nn.Linear(config.hidden_size, size, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size))
        self.layers = nn.ModuleList(
            LVMAELayer(config, size, config.decoder_num_attention_heads, config.decoder_intermediate_size)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.head = nn.Linear(size, config.target_size)
        self.rebuild = config.rebuild_activations
        self.gradient_checkpointing = False

    def forward(
        self, encoded: torch.Tensor, visible: torch.Tensor, decoded: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """Encoded tokens (B, V, D), their positions (B, V), the decoded positions (B, K) -> (B, K, target_size)."""
        (hidden_states,) = project(encoded, self.embed)
        positions = sinusoidal_positions(torch.cat([visible, decoded], dim=1), hidden_states.shape[-1])
        mask_tokens = self.mask_token.to(hidden_states.dtype).expand(*decoded.shape, -1)
        hidden_states = torch.cat([hidden_states, mask_tokens], dim=1) + positions.to(hidden_states.dtype)
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, **kwargs)
        # Nothing is predicted at visible positions: after the last attention they have done their part.
        hidden_states = self.layers[-1](hidden_states, first_query=visible.shape[1], **kwargs)
        (logits,) = project(rebuilt(self.layernorm, hidden_states, self.rebuild), self.head)
        return logits


class LVMAEPreTrainedModel(PreTrainedModel):
    config: LVMAEConfig
    base_model_prefix = "lvmae"
    main_input_name = "pixel_values_videos"
    input_modalities = ["video"]
    supports_gradient_checkpointing = True
    # The patch embeddings inside the embeddings: FSDP2 gives input embeddings a unit of their own, which none around them may forestall.
    _no_split_modules = ["LVMAEEmbeddings", "LVMAEPatchEmbeddings", "LVMAELayer"]
    _input_embed_layer = "patch_embeddings"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _supports_context_parallel = False  # accelerate's context parallelism can only express causal attention
    _can_record_outputs = {"hidden_states": LVMAELayer, "attentions": LVMAEAttention}

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """As in transformers, with one key more among the kwargs: `mlp_only=True` checkpoints each layer's MLP branch alone.

        Attention, the dear part of long clips, is then not computed twice: a third less memory for 4 % more time, where whole
        layers cost 37 % (benchmarks/run.py --cases step; ViT-B, 128 frames). From the command line:
        `--activation_checkpointing --activation_checkpointing_kwargs '{"mlp_only": true}'`.
        """
        checkpoint_kwargs = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        mlp_only = checkpoint_kwargs.pop("mlp_only", False)
        super().activation_checkpointing_enable(checkpoint_kwargs, every_n_layers, offload)
        for layer in self.modules():
            if isinstance(layer, LVMAELayer):
                layer.mlp_checkpointing = mlp_only and layer.gradient_checkpointing
                layer.gradient_checkpointing = not mlp_only and layer.gradient_checkpointing

    def activation_checkpointing_disable(self) -> None:
        super().activation_checkpointing_disable()
        for layer in self.modules():
            if isinstance(layer, LVMAELayer):
                layer.mlp_checkpointing = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LVMAEDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)
        if isinstance(module, LVMAEClassAttention):
            init.normal_(module.class_token, std=self.config.initializer_range)


class LVMAEModel(LVMAEPreTrainedModel):
    """The encoder: a ViT with full space-time attention over a clip's visible tubelets."""

    def __init__(self, config: LVMAEConfig):
        super().__init__(config)
        self.embeddings = LVMAEEmbeddings(config)
        self.encoder = LVMAEEncoder(config)
        self.layernorm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.final_layer_norm else nn.Identity()
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        num_visible: int | None = None,
        visible_tubelets: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        r"""
        Args:
            pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, num_channels, height, width)`): clips as
                [`LVMAEVideoProcessor`] gives them, standardised by ImageNet's mean and deviation.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, seq_length)`, *optional*): True = hidden; the same
                number in every row. Without it every token is seen.
            num_visible (`int`, *optional*): how many tokens `bool_masked_pos` leaves visible in a row. Given, the mask is not
                read, so that an accelerator never waits for it. torch.compile needs it: there it is `config.mask_ratio`'s by
                default.
            visible_tubelets (`torch.Tensor` of shape `(batch_size, visible tokens, tubelet_size, num_channels, patch_size, patch_size)`, *optional*):
                in place of the clips, the tubelets that `bool_masked_pos` leaves visible, in ascending order of position
                (`masking.gather_tubelets`), normalised alike: all that the encoder reads of a clip.

        Returns:
            `last_hidden_state` of shape `(batch_size, visible tokens, hidden_size)`, in ascending order of position.

        Raises:
            ValueError: a clip with another rank or channel count, a length or size that is no multiple of the tubelet, integer
                pixels, a mask of another shape or with different counts per row, tubelets without a mask or of another number
                than it leaves visible, or both clips and tubelets.
        """
        if num_visible is None and visible_tubelets is None and torch.compiler.is_compiling():
            _, grid_size = self.embeddings.pixels_and_grid(pixel_values_videos, bool_masked_pos, visible_tubelets)
            num_visible = tube_visible_count(grid_size, self.config.mask_ratio)
        hidden_states = self.embeddings(pixel_values_videos, bool_masked_pos, num_visible, visible_tubelets)
        hidden_states = self.encoder(hidden_states, **kwargs)
        rebuild = self.config.rebuild_activations and self.config.final_layer_norm
        return BaseModelOutput(last_hidden_state=rebuilt(self.layernorm, hidden_states, rebuild))


class LVMAEForPreTraining(LVMAEPreTrainedModel):
    """Masked autoencoder with a masked decoder (paper section 3, Figure 2)."""

    # The loss is a mean over tokens: Trainer must go on dividing it by the accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: LVMAEConfig):
        super().__init__(config)
        self.lvmae = LVMAEModel(config)
        self.decoder = LVMAEDecoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        bool_decoded_pos: torch.Tensor | None = None,
        target_codes: torch.Tensor | None = None,
        num_visible: int | None = None,
        num_decoded: int | None = None,
        visible_tubelets: torch.Tensor | None = None,
        target_latents: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LVMAEForPreTrainingOutput:
        r"""
        Args:
            pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, num_channels, height, width)`): clips.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, seq_length)`, *optional*): True = hidden from the
                encoder, the same number in every row. Without it `config.encoder_mask` is drawn.
            bool_decoded_pos (`torch.BoolTensor` of shape `(batch_size, seq_length)`, *optional*): True = decoded, the same
                number in every row. Without it every hidden token is decoded.
            target_codes (`torch.Tensor` of shape `(batch_size, seq_length, len(config.levels))`, *optional*): the tokenizer's codes of
                the clip, in [-1, 1], for `target_type="codes"` and `"levels"`. Without targets there is no loss. Pixel targets are in
                the clip itself.
            target_latents (`torch.Tensor` of the same shape, *optional*): the tokenizer's latents before rounding, bounded and on the
                codes' scale (`FiniteScalarQuantizer.bounded_latents`), for `target_type="latents"`.
            num_visible, num_decoded (`int`, *optional*): how many tokens of a row `bool_masked_pos` leaves visible and
                `bool_decoded_pos` decodes. Given, the masks are not read, so that an accelerator never waits for them.
                torch.compile needs them: there they are the config's shares by default.
            visible_tubelets (*optional*): as [`LVMAEModel`], in place of the clips; `bool_masked_pos` must come with them. The
                loss is the clips', without the pixels that nobody reads: targets must be codes.

        Raises:
            ValueError: as [`LVMAEModel`], and on masks or targets of another shape, codes given to a model of pixels, or
                tubelets given to one, whose targets are the pixels that were left out.
        """
        pixels, grid_size = self.lvmae.embeddings.pixels_and_grid(
            pixel_values_videos, bool_masked_pos, visible_tubelets
        )
        batch_size, device = pixels.shape[0], pixels.device
        if bool_masked_pos is None:
            draw_mask = ENCODER_MASKS[self.config.encoder_mask]
            bool_masked_pos = draw_mask(batch_size, grid_size, self.config.mask_ratio, device=device)
            num_visible = tube_visible_count(grid_size, self.config.mask_ratio)
        if bool_decoded_pos is None:
            bool_decoded_pos = bool_masked_pos
        check_mask(bool_masked_pos, "bool_masked_pos", batch_size, grid_size)
        check_mask(bool_decoded_pos, "bool_decoded_pos", batch_size, grid_size)
        targets = self._targets(target_codes, target_latents, bool_decoded_pos)
        num_visible = num_visible if visible_tubelets is None else visible_tubelets.shape[1]
        if torch.compiler.is_compiling():
            num_visible = num_visible or tube_visible_count(grid_size, self.config.mask_ratio)
            num_decoded = num_decoded or sum(self.config.decoder_token_counts(bool_decoded_pos.shape[1]))

        visible = visible_positions(bool_masked_pos, num_visible)
        if bool_decoded_pos is bool_masked_pos:
            num_decoded = bool_masked_pos.shape[1] - visible.shape[1]
        decoded = mask_to_indices(bool_decoded_pos, "bool_decoded_pos", num_decoded)
        encoder_outputs = self.lvmae(pixel_values_videos, bool_masked_pos, visible.shape[1], visible_tubelets, **kwargs)
        logits = self.decoder(encoder_outputs.last_hidden_state, visible, decoded, **kwargs)
        targets = self.gather_targets(pixel_values_videos, targets, decoded)
        losses = None if targets is None else self.forward_losses(logits, targets, bool_masked_pos.gather(1, decoded))
        return LVMAEForPreTrainingOutput(
            loss=None if losses is None else losses.mean(),
            logits=logits,
            channel_losses=None if losses is None else losses.detach(),
            bool_masked_pos=bool_masked_pos,
            bool_decoded_pos=bool_decoded_pos,
            hidden_states=encoder_outputs.hidden_states,
            attentions=encoder_outputs.attentions,
        )

    def _targets(
        self, target_codes: torch.Tensor | None, target_latents: torch.Tensor | None, bool_decoded_pos: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the targets that `config.target_type` asks for. Raises ValueError on others and on another shape."""
        given = {"target_codes": target_codes, "target_latents": target_latents}
        wanted = {"pixels": None, "latents": "target_latents"}.get(self.config.target_type, "target_codes")
        for name, targets in given.items():
            if targets is not None and name != wanted:
                raise ValueError(
                    f"Got {name} and config.target_type={self.config.target_type!r}, expected {wanted or 'none, because the clip itself is the target'}"
                    ": leave them out or change the config."
                )
        targets = given.get(wanted)
        expected = (*bool_decoded_pos.shape, len(self.config.levels))
        if targets is not None and tuple(targets.shape) != expected:
            raise ValueError(
                f"Got {wanted} of shape {tuple(targets.shape)}, expected {expected} (clips, tokens, FSQ channels): use a tokenizer "
                "with the same token grid and levels."
            )
        return targets

    def gather_targets(
        self, pixel_values_videos: torch.Tensor | None, targets: torch.Tensor | None, decoded: torch.Tensor
    ) -> torch.Tensor | None:
        """What is to be predicted at the decoded positions (B, K): pixels (B, K, target_size), codes or latents
        (B, K, len(levels)), or None without them."""
        if self.config.target_type != "pixels":
            return None if targets is None else gather_tokens(targets, decoded)
        if pixel_values_videos is None:
            raise ValueError(
                "Got visible_tubelets and config.target_type='pixels', expected whole clips, whose hidden pixels are the targets: "
                "pass pixel_values_videos or predict codes."
            )
        tubelets = split_tubelets(pixel_values_videos, self.config.tubelet_size, self.config.patch_size)
        # (B, K, pixels, C): VideoMAE predicts a tubelet's pixels with the channel last.
        pixels = gather_tubelets(tubelets, decoded).movedim(3, -1).flatten(2, 4).float()
        if self.config.norm_pix_loss:
            deviation = pixels.var(dim=2, keepdim=True).sqrt()
            pixels = (pixels - pixels.mean(dim=2, keepdim=True)) / (deviation + 1e-6)
        return pixels.flatten(2)

    def forward_losses(self, logits: torch.Tensor, targets: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Loss of each channel (channels,), whose mean is squared error (paper eq. 1 and 2) or cross-entropy: a mean over a clip's
        decoded tokens that are `masked` (B, K), then over clips.

        Every clip counts alike, however many of its decoded tokens are hidden: accumulated small batches and several processes
        then give the gradient of one large batch.
        """
        if self.config.target_type == "levels":
            losses = level_losses(logits, targets, self.config.levels)
        else:
            losses = (logits.float() - targets.float()).square()
        if self.config.target_type == "pixels":
            losses = losses.unflatten(-1, (-1, self.config.num_channels)).mean(dim=-2)
        shares = masked / masked.sum(dim=1, keepdim=True).clamp(min=1)
        return (losses * shares.unsqueeze(-1)).sum(dim=1).mean(dim=0)

    def predicted_codes(self, logits: torch.Tensor) -> torch.Tensor:
        """What the tokenizer can decode, of logits (B, K, target_size): (B, K, len(config.levels)), about [-1, 1].

        Raises:
            ValueError: the model predicts pixels.
        """
        if self.config.target_type == "pixels":
            raise ValueError(
                "Got config.target_type='pixels', expected a model that predicts codes: its logits are pixels already."
            )
        return likeliest_codes(logits, self.config.levels) if self.config.target_type == "levels" else logits.float()


class LVMAEClassAttention(nn.Module):
    """One class-attention layer (CaiT): a learnt query gathers what the classifier needs from unchanged tokens."""

    def __init__(self, config: LVMAEConfig):
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = LVMAEAttention(config, config.hidden_size, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = LVMAEMLP(config, config.hidden_size, config.intermediate_size)

    def forward(self, tokens: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """(B, N, D) -> (B, D)."""
        class_token = self.class_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        states = self.layer_norm1(torch.cat([class_token, tokens], dim=1))
        attended, _ = self.attention(states, query_states=states[:, :1], **kwargs)
        class_token = class_token + attended
        class_token = class_token + self.mlp(self.layer_norm2(class_token))
        return class_token.squeeze(1)


class LVMAEMeanPooling(nn.Module):
    def forward(self, tokens: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """(B, N, D) -> (B, D)."""
        return tokens.mean(dim=1)


class LVMAEForVideoClassification(LVMAEPreTrainedModel):
    """The encoder, pooled, normalised and classified."""

    def __init__(self, config: LVMAEConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.lvmae = LVMAEModel(config)
        self.pooler = LVMAEClassAttention(config) if config.pooling == "class_attention" else LVMAEMeanPooling()
        self.fc_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels) if self.num_labels else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        While training, the encoder sees only 1 - `config.tube_drop_ratio` of the tubes, drawn anew for every clip.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, num_channels, height, width)`): clips.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): class ids in [0, config.num_labels). With
                `config.label_sets`, of shape `(batch_size, label sets)`: one class id of each set, counted from 0 in each.
                With either, and `config.problem_type="single_label_classification"`, also probabilities of shape
                `(batch_size, num_labels)` (each set's add up to 1): mixed clips have several classes. Without that
                `problem_type`, floats are transformers' multi-label classification.

        Returns:
            `loss` (with labels) and `logits` of shape `(batch_size, num_labels)`. With `config.label_sets` the loss is the mean
            of the sets' cross-entropies, and the logits are the logarithms of the probabilities within each set: a softmax over
            all of them, as the pipeline takes it, gives every class its probability within its set, divided by the number of
            sets.

        Raises:
            ValueError: as [`LVMAEModel`], and on labels of another shape than `config.label_sets` asks for.
        """
        dropped = num_visible = None
        if self.training and self.config.tube_drop_ratio > 0:
            grid_size = self.lvmae.embeddings.patch_embeddings.grid_size(pixel_values_videos)
            dropped = random_tube_mask(
                pixel_values_videos.shape[0], grid_size, self.config.tube_drop_ratio, device=pixel_values_videos.device
            )
            num_visible = tube_visible_count(grid_size, self.config.tube_drop_ratio)
        outputs = self.lvmae(pixel_values_videos, dropped, num_visible, **kwargs)
        pooled = self.pooler(outputs.last_hidden_state, **kwargs)
        logits = self.classifier(self.fc_norm(pooled))
        if self.config.label_sets is not None:
            parts = [logits[:, part].float().log_softmax(dim=-1) for part in self.config.label_slices.values()]
            logits = torch.cat(parts, dim=-1)
        loss = None if labels is None else self.forward_loss(logits, labels, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def forward_loss(self, logits: torch.Tensor, labels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Cross-entropy of logits (B, num_labels) and labels: class ids (B,), or (B, sets) with label sets, its mean over the sets;
        or probabilities (B, num_labels)."""
        is_soft = labels.is_floating_point() and self.config.problem_type == "single_label_classification"
        slices = self.config.label_slices
        if not slices:
            if is_soft:
                return fixed_cross_entropy(logits.float(), labels, **kwargs)
            return self.loss_function(labels, logits, self.config, **kwargs)
        expected = tuple(logits.shape) if is_soft else (logits.shape[0], len(slices))
        if tuple(labels.shape) != expected:
            raise ValueError(
                f"Got labels of shape {tuple(labels.shape)}, expected {expected} for the label sets {list(slices)}: give one "
                "class id of each set."
            )
        if is_soft:
            chosen = labels * logits
        else:
            chosen = torch.stack([logits[:, part].gather(1, labels[:, [i]]) for i, part in enumerate(slices.values())])
        # Trainer counts the labels of all accumulated batches, and every set's is one.
        count = kwargs.get("num_items_in_batch")
        return -chosen.sum() / (len(labels) * len(slices) if count is None else count)


__all__ = ["LVMAEForPreTraining", "LVMAEForVideoClassification", "LVMAEModel", "LVMAEPreTrainedModel"]
