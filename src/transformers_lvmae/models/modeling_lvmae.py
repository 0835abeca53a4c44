"""LVMAE: a VideoMAE-style masked autoencoder whose decoder reconstructs only the tokens that matter.

"Extending Video Masked Autoencoders to 128 frames" (NeurIPS 2024). Notable choices:
- visible tubelets are gathered before they are projected by a Linear, so hidden ones cost nothing; with cached targets, the model
  does not even need the hidden tubelets;
- sine and cosine positions are computed for the tokens of each batch and never stored. They are places in the clip, in units of the
  grid that the weights were trained on: any clip length and frame size works;
- outputs of norms and activations are recomputed in backward (recomputation.py): a third less memory, the same gradients;
- the model takes masks and target codes as plain tensors, and never holds the tokenizer that they come from.
"""

import copy
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
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_lvmae import LVMAEConfig
from .fsq import level_losses, likeliest_codes
from .masking import (
    ENCODER_MASKS,
    check_mask,
    gather_tokens,
    gather_tubelets,
    mask_to_indices,
    mask_to_padded_indices,
    random_tube_mask,
    split_tubelets,
    tube_visible_count,
)
from .positions import position_embeddings
from .recomputation import apply_linears, recompute_in_backward
from .token_scores import TokenScorer
from .token_selection import LVMAETokenSelector


@dataclass
class LVMAEModelOutput(BaseModelOutputWithPooling):
    """
    Args:
        visible_positions (`torch.LongTensor` of shape `(batch_size, visible tokens)`, *optional*): the positions of the tokens in
            `last_hidden_state`, ascending; None = all tokens.
        token_mask (`torch.BoolTensor` of the same shape, *optional*): False where a token is padding, because the clip has fewer than
            another (`config.token_score_threshold`); None = no padding.
    """

    visible_positions: torch.Tensor | None = None
    token_mask: torch.Tensor | None = None


@dataclass
class LVMAEClassifierOutput(ImageClassifierOutput):
    """
    Args:
        visible_positions, token_mask: as in [`LVMAEModelOutput`].
    """

    visible_positions: torch.Tensor | None = None
    token_mask: torch.Tensor | None = None


@dataclass
class LVMAEForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor` of shape `(1,)`, *optional*): mean squared error, or cross-entropy with `target_type="levels"`,
            over the tokens that are both hidden from the encoder and decoded; None without targets.
        logits (`torch.Tensor` of shape `(batch_size, token_budget, target_size)`): one row per decoded position, in
            ascending order of position.
        channel_losses (`torch.Tensor` of shape `(channels,)`, *optional*): the loss of each FSQ channel, or of each color for
            pixels, without a gradient. Their mean is `loss`.
        bool_masked_pos, bool_decoded_pos (`torch.BoolTensor` of shape `(batch_size, seq_length)`): the masks that were used,
            given or drawn.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    channel_losses: torch.Tensor | None = None
    bool_masked_pos: torch.Tensor | None = None
    bool_decoded_pos: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class LVMAEPatchEmbeddings(nn.Module):
    """Project tubelets to vectors: one Linear over (channel, frame, row, column), the order of VideoMAE's 3D convolution."""

    def __init__(self, config: LVMAEConfig):
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_size = config.patch_size
        self.tubelet_size = config.tubelet_size
        pixels = config.num_channels * config.tubelet_size * config.patch_size**2
        self.projection = nn.Linear(pixels, config.hidden_size)

    def grid_size(self, pixel_values_videos: torch.Tensor) -> tuple[int, int, int]:
        """Return the tokens (t, h, w) of a clip; raise ValueError on clips that do not fit the model."""
        shape = tuple(pixel_values_videos.shape)
        if len(shape) != 5:
            raise ValueError(
                f"Got pixel_values_videos of shape {shape}, expected 5 axes (batch, frames, channels, height, width): reshape it."
            )
        _, frames, channels, height, width = shape
        if channels != self.num_channels:
            raise ValueError(
                f"Got {channels} channels, expected config.num_channels={self.num_channels}: put the channels on axis 2 or "
                "build the model with another num_channels."
            )
        if frames == 0 or frames % self.tubelet_size:
            raise ValueError(
                f"Got {frames} frames, expected a multiple of config.tubelet_size={self.tubelet_size}: sample another number."
            )
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"Got frames of {height} x {width} pixels, expected multiples of patch_size={self.patch_size}: resize or crop them."
            )
        return frames // self.tubelet_size, height // self.patch_size, width // self.patch_size

    def check_tubelets(self, visible_tubelets: torch.Tensor) -> None:
        """Raise ValueError unless tubelets (B, V, tubelet_size, C, patch_size, patch_size) fit the model."""
        shape = (self.tubelet_size, self.num_channels, self.patch_size, self.patch_size)
        if visible_tubelets.ndim != 6 or tuple(visible_tubelets.shape[2:]) != shape:
            raise ValueError(
                f"Got visible_tubelets of shape {tuple(visible_tubelets.shape)}, expected (batch, visible tokens, {shape[0]} "
                f"frames, {shape[1]} channels, {shape[2]}, {shape[3]}): cut clips with split_tubelets and gather_tubelets."
            )

    def forward(self, pixels: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Embed tubelets (B, K, tubelet_size, C, patch_size, patch_size) to (B, K, hidden_size).

        Of clips (B, T, C, H, W), embed the tubelets at `positions`, int64 (B, K), or all tubelets by default.
        """
        if not pixels.is_floating_point():
            raise ValueError(
                f"Got pixels of {pixels.dtype}, expected floating point as LVMAEVideoProcessor returns it: normalize them with "
                "the processor (LVMAEPreTrainer does it for bytes)."
            )
        if pixels.ndim == 5:
            pixels = gather_tubelets(split_tubelets(pixels, self.tubelet_size, self.patch_size), positions)
        # Quantized weights are integers, or no parameters at all. What is not quantized then says the dtype.
        dtypes = (weight.dtype for weight in self.projection.parameters() if weight.is_floating_point())
        return self.projection(pixels.transpose(2, 3).flatten(2).to(next(dtypes, pixels.dtype)))


class LVMAEEmbeddings(nn.Module):
    """Project tubelets and add their positions."""

    def __init__(self, config: LVMAEConfig):
        super().__init__()
        self.config = config
        self.patch_embeddings = LVMAEPatchEmbeddings(config)

    def forward(self, pixels: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Embed as [`LVMAEPatchEmbeddings.forward`] does, and add the positions. Tubelets need `positions`, in `config.grid_size`."""
        embeddings = self.patch_embeddings(pixels, positions)
        if positions is None:
            positions = torch.arange(embeddings.shape[1], device=embeddings.device)
        grid_size = self.patch_embeddings.grid_size(pixels) if pixels.ndim == 5 else None
        vectors = position_embeddings(self.config, positions, grid_size, embeddings.shape[-1])
        return embeddings + vectors.to(embeddings.dtype)


def clips_without_mask(pixel_values_videos: torch.Tensor | None, visible_tubelets: torch.Tensor | None) -> torch.Tensor:
    """Return the clips of a batch without `bool_masked_pos`; raise ValueError unless it has clips and no tubelets."""
    if pixel_values_videos is None or visible_tubelets is not None:
        raise ValueError(
            f"Got {'no pixel_values_videos' if visible_tubelets is None else 'visible_tubelets'} and no bool_masked_pos, "
            "expected whole clips, or tubelets and the mask that says where they lie: pass one of the two."
        )
    return pixel_values_videos


def padding_mask(
    config: LVMAEConfig, token_mask: torch.Tensor | None, queries: torch.Tensor, tokens: torch.Tensor | None = None
) -> Any:
    """Return the attention implementation's mask that hides padding from queries (B, M, D): None if there is none.

    Args:
        token_mask: bool (B, N), False = padding.
        tokens: (B, N, D), if they are not the queries.
    """
    if token_mask is None:
        return None
    return create_bidirectional_mask(config, queries, token_mask, encoder_hidden_states=tokens)


def mean_of_tokens(tokens: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
    """Return the mean over tokens that are no padding: (B, N, D) and bool (B, N) -> (B, D)."""
    if token_mask is None:
        return tokens.mean(dim=1)
    shares = token_mask / token_mask.sum(dim=1, keepdim=True)
    return (tokens * shares.to(tokens.dtype).unsqueeze(-1)).sum(dim=1)


def check_one_choice(bool_masked_pos: torch.Tensor | None, importance_scores: torch.Tensor | None) -> None:
    """Raise ValueError if a mask and scores both say which tokens the encoder sees."""
    if bool_masked_pos is not None and importance_scores is not None:
        raise ValueError(
            "Got bool_masked_pos and importance_scores, expected one of them: the mask says which tokens are seen."
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
    """Attend with queries (B, heads, M, d) to N keys and values; return outputs (B, M, heads, d) and weights (B, heads, M, N)."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class LVMAELayerNorm(nn.LayerNorm):
    """A LayerNorm in front of Linears. Under autocast, it returns the dtype that they compute in.

    On a GPU, autocast would make norms float32: one cast before the norm, and one after it for each Linear, of q, k and v. The kernel
    takes its sums in float32 in any case.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        device = hidden_states.device.type
        if device == "meta" or not torch.is_autocast_enabled(device):  # the meta device has no autocast
            return super().forward(hidden_states)
        with torch.autocast(device, enabled=False):
            weights = self.weight.to(hidden_states.dtype), self.bias.to(hidden_states.dtype)
            normed = nn.functional.layer_norm(hidden_states, self.normalized_shape, *weights, self.eps)
        return normed.to(torch.get_autocast_dtype(device))


class LVMAEAttention(nn.Module):
    """Multi-head attention over all tokens; as in VideoMAE, the key has no bias. Encoder and decoder pass their own sizes."""

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
        attention_mask: Any = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Let the tokens (B, N, D) from `first_query` on, or `query_states` (B, M, D), attend to all tokens.

        Returns the output (B, M, D), and the weights (B, heads, M, N) if the attention implementation has them. `attention_mask` is None, or
        hides padding ([`padding_mask`]).
        """
        if query_states is None:
            states = apply_linears(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        else:
            states = self.q_proj(query_states), *apply_linears(hidden_states, self.k_proj, self.v_proj)
        query, key, value = map(self._split_heads, states)
        query = query[:, :, first_query:]
        name, dropout = self.config._attn_implementation, self.dropout if self.training else 0.0
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            is_causal=self.is_causal,
            scaling=self.scaling,
            dropout=dropout,
            **kwargs,
        )
        return self.out_proj(output.flatten(2)), weights


class LVMAEMLP(nn.Module):
    def __init__(self, config: LVMAEConfig, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor, recompute: bool = False) -> torch.Tensor:
        (hidden_states,) = apply_linears(hidden_states, self.fc1)
        hidden_states = recompute_in_backward(self.activation, hidden_states, enabled=recompute)
        (hidden_states,) = apply_linears(hidden_states, self.fc2)
        return hidden_states


class LVMAEDropPath(nn.Module):
    """Stochastic depth: in training, drop a sample's branch with probability `rate`, and otherwise divide it by 1 - `rate`."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.rate
        return branch * kept.to(branch.dtype) / (1 - self.rate)


class LVMAELayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer, of the encoder and of the decoder."""

    # LVMAEPreTrainedModel.activation_checkpointing_enable sets both.
    mlp_checkpointing = False
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
        self.layer_norm1 = LVMAELayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = LVMAEAttention(config, hidden_size, num_attention_heads)
        self.layer_norm2 = LVMAELayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = LVMAEMLP(config, hidden_size, intermediate_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = LVMAEDropPath(drop_path_rate)
        self.recompute = config.recompute_activations

    def forward(
        self, hidden_states: torch.Tensor, first_query: int = 0, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """Compute the tokens from `first_query` on, which attend to all N tokens: (B, N, D) -> (B, N - first_query, D)."""
        # Checkpointing already recomputes this layer; do not recompute its outputs a second time.
        recompute = self.recompute and not (self.gradient_checkpointing and self.training)
        attended = self._attention_branch(hidden_states, first_query, recompute, **kwargs)
        hidden_states = hidden_states[:, first_query:] + self.drop_path(self.dropout(attended))
        del attended  # it is as large as the tokens; without gradients, the MLP can use its memory
        if self.mlp_checkpointing and self.training:
            transformed = self._gradient_checkpointing_func(self._mlp_branch, hidden_states, False)
        else:
            transformed = self._mlp_branch(hidden_states, recompute)
        return hidden_states + self.drop_path(self.dropout(transformed))

    def _attention_branch(
        self, hidden_states: torch.Tensor, first_query: int, recompute: bool, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        normed = recompute_in_backward(self.layer_norm1, hidden_states, enabled=recompute)
        return self.attention(normed, first_query=first_query, **kwargs)[0]

    def _mlp_branch(self, hidden_states: torch.Tensor, recompute: bool) -> torch.Tensor:
        normed = recompute_in_backward(self.layer_norm2, hidden_states, enabled=recompute)
        return self.mlp(normed, recompute)


class LVMAEEncoder(nn.Module):
    def __init__(self, config: LVMAEConfig):
        super().__init__()
        depth = config.num_hidden_layers
        sizes = config.hidden_size, config.num_attention_heads, config.intermediate_size
        self.layers = nn.ModuleList(
            LVMAELayer(config, *sizes, drop_path_rate=config.drop_path_rate * number / max(depth - 1, 1))
            for number in range(depth)
        )
        self.gradient_checkpointing = False

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return hidden_states


class LVMAEDecoder(nn.Module):
    """Append a mask token for each decoded position to the encoded tokens, run the layers, predict at the mask tokens."""

    def __init__(self, config: LVMAEConfig):
        super().__init__()
        self.config = config
        size = config.decoder_hidden_size
        self.embed = nn.Linear(config.hidden_size, size, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size))
        self.layers = nn.ModuleList(
            LVMAELayer(config, size, config.decoder_num_attention_heads, config.decoder_intermediate_size)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.layernorm = LVMAELayerNorm(size, eps=config.layer_norm_eps)
        self.head = nn.Linear(size, config.target_size)
        self.recompute = config.recompute_activations
        self.gradient_checkpointing = False

    def forward(
        self,
        encoded: torch.Tensor,
        visible: torch.Tensor,
        decoded: torch.Tensor,
        grid_size: tuple[int, int, int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Predict logits (B, K, target_size) from encoded tokens (B, V, D), their positions (B, V) and the decoded positions (B, K).

        Positions count in `grid_size` (t, h, w), by default `config.grid_size`.
        """
        (hidden_states,) = apply_linears(encoded, self.embed)
        positions = position_embeddings(
            self.config, torch.cat([visible, decoded], dim=1), grid_size, hidden_states.shape[-1]
        )
        mask_tokens = self.mask_token.to(hidden_states.dtype).expand(*decoded.shape, -1)
        hidden_states = torch.cat([hidden_states, mask_tokens], dim=1) + positions.to(hidden_states.dtype)
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, **kwargs)
        # Nothing is predicted at visible positions, so the last layer only attends to them.
        hidden_states = self.layers[-1](hidden_states, first_query=visible.shape[1], **kwargs)
        normed = recompute_in_backward(self.layernorm, hidden_states, enabled=self.recompute)
        (logits,) = apply_linears(normed, self.head)
        return logits


class LVMAEPreTrainedModel(PreTrainedModel):
    config: LVMAEConfig
    base_model_prefix = "lvmae"
    main_input_name = "pixel_values_videos"
    input_modalities = ["video"]
    supports_gradient_checkpointing = True
    # LVMAEPatchEmbeddings is listed beside LVMAEEmbeddings, because FSDP2 gives the input embeddings a unit of their own.
    _no_split_modules = ["LVMAEEmbeddings", "LVMAEPatchEmbeddings", "LVMAELayer"]
    _input_embed_layer = "patch_embeddings"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _supports_context_parallel = False  # accelerate's context parallelism can only express causal attention
    _can_record_outputs = {"hidden_states": LVMAELayer, "attentions": LVMAEAttention}

    def __init__(self, config: LVMAEConfig):
        config.validate_architecture()  # fields may have been set one by one since the config was made
        super().__init__(config)

    def post_init(self) -> None:
        super().post_init()
        # transformers adds those of the parts. But a head that misses weights of its own must say so, although the encoder drops them.
        self._keys_to_ignore_on_load_unexpected = set(type(self)._keys_to_ignore_on_load_unexpected or ())

    @property
    def token_scorer(self) -> TokenScorer | None:
        """The scorer of `token_selection="learned"`; None if the model looks at all tokens, or chooses them otherwise."""
        encoder: Any = getattr(self, self.base_model_prefix, self)
        return None if encoder.token_selector is None else encoder.token_selector.scorer

    @torch.no_grad()
    def set_token_scorer(self, tokenizer: Any) -> None:
        """Take the scorer of a trained tokenizer ([`FSQMagViTModel`]) for `token_selection="learned"`: its sizes and its weights.

        Raises:
            ValueError: a model that does not choose tokens by learned scores; a tokenizer with tokens of another length.
        """
        if self.token_scorer is None:
            raise ValueError(
                f"Got a tokenizer for token_keep_ratio={self.config.token_keep_ratio} and "
                f"token_selection={self.config.token_selection!r}, expected a ratio below 1 and 'learned': set them or leave it out."
            )
        tokens = tokenizer.config.tubelet_size, tokenizer.config.num_channels
        expected = self.config.tubelet_size, self.config.num_channels
        if tokens != expected:
            raise ValueError(
                f"Got a tokenizer with {tokens[0]} frames a token and {tokens[1]} channels, expected {expected}: take another "
                "tokenizer, or build the model with another tubelet_size."
            )
        self.config.scorer_is_trained = True
        self.config.scorer_patch_size = tokenizer.config.patch_size
        self.config.scorer_hidden_size = tokenizer.config.scorer_hidden_size
        weight = self.token_scorer.conv1.weight
        encoder: Any = getattr(self, self.base_model_prefix, self)
        encoder.token_selector.scorer = (
            copy.deepcopy(tokenizer.scorer).requires_grad_(False).to(weight.device, weight.dtype)
        )

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Switch checkpointing on as in transformers; the additional key `mlp_only=True` checkpoints only each layer's MLP.

        Attention costs most on long clips, and is then not recomputed. This needs a third less memory and 4 % more time; with whole
        layers it is 37 % more time (`python benchmarks/run.py --cases step`; ViT-B, 128 frames). From the command line:
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
        if isinstance(module, LVMAETokenSelector):
            for name, values in module.pixel_statistics().items():
                init.copy_(getattr(module, name), values)
        if isinstance(module, LVMAEClassAttention):
            init.normal_(module.class_token, std=self.config.initializer_range)


class LVMAEModel(LVMAEPreTrainedModel):
    """The encoder: a ViT with full space-time attention over the visible tubelets of a clip."""

    # Parts of the other two classes: their folders load here without a warning for each weight. The scorer, if all tokens are wanted.
    _keys_to_ignore_on_load_unexpected = [
        r"^decoder\.",
        r"^pooler\.",
        r"^fc_norm\.",
        r"^classifier\.",
        r"token_selector\.",
    ]

    def __init__(self, config: LVMAEConfig):
        super().__init__(config)
        self.embeddings = LVMAEEmbeddings(config)
        self.encoder = LVMAEEncoder(config)
        # Without it the encoder sees all tokens that no mask hides.
        self.token_selector = LVMAETokenSelector(config) if config.token_keep_ratio < 1 else None
        self.layernorm: nn.Module = nn.Identity()
        if config.final_layer_norm:
            self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    def choose_visible(
        self,
        pixel_values_videos: torch.Tensor,
        importance_scores: torch.Tensor | None = None,
        dropped: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Choose the tokens that the encoder sees by `config.token_selection`: int64 (B, K), ascending, and the `token_mask` if rows differ.

        Args:
            dropped: bool (B, N), True = in a tube that training drops ([`LVMAETokenSelector`]).
        """
        if self.token_selector is None:
            raise ValueError(
                f"Got importance_scores and config.token_keep_ratio={self.config.token_keep_ratio}, expected a ratio below 1: leave "
                "them out, or load the model with a token_keep_ratio."
            )
        grid_size = self.embeddings.patch_embeddings.grid_size(pixel_values_videos)
        kept = self.token_selector(pixel_values_videos, importance_scores, dropped)
        if self.config.token_score_threshold is not None:
            return mask_to_padded_indices(kept)
        ratio = self.config.tube_drop_ratio if dropped is not None else 0
        count = sum(self.config.kept_token_counts(tube_visible_count(grid_size, ratio)))
        return mask_to_indices(kept, "chosen tokens", count), None

    def index_visible(
        self,
        pixel_values_videos: torch.Tensor | None,
        bool_masked_pos: torch.Tensor,
        num_visible: int | None = None,
        visible_tubelets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Check the arguments of `forward`, and return the positions that the encoder sees, ascending: int64 (B, V)."""
        patches = self.embeddings.patch_embeddings
        if pixel_values_videos is not None and visible_tubelets is None:
            grid_size = patches.grid_size(pixel_values_videos)
            shape = pixel_values_videos.shape[0], math.prod(grid_size)
            if num_visible is None and torch.compiler.is_compiling():
                num_visible = tube_visible_count(grid_size, self.config.mask_ratio)
        elif pixel_values_videos is None and visible_tubelets is not None:
            patches.check_tubelets(visible_tubelets)
            if bool_masked_pos.shape[-1] != self.config.seq_length:
                raise ValueError(
                    f"Got visible_tubelets and a mask of {bool_masked_pos.shape[-1]} tokens, expected {self.config.seq_length}, those of "
                    f"{self.config.num_frames} frames of {self.config.image_size} pixels, where their places are known: pass whole clips, "
                    "or load the model with the num_frames and image_size of the clips."
                )
            shape, num_visible = (visible_tubelets.shape[0], bool_masked_pos.shape[-1]), visible_tubelets.shape[1]
        else:
            raise ValueError(
                f"Got {'neither of' if visible_tubelets is None else 'both'} pixel_values_videos and visible_tubelets, expected "
                "one of them: pass whole clips, or the tubelets that bool_masked_pos leaves visible."
            )
        check_mask(bool_masked_pos, "bool_masked_pos", shape)
        return mask_to_indices(~bool_masked_pos, "visible positions (~bool_masked_pos)", num_visible)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        num_visible: int | None = None,
        visible_tubelets: torch.Tensor | None = None,
        visible_positions: torch.Tensor | None = None,
        importance_scores: torch.Tensor | None = None,
        token_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LVMAEModelOutput:
        r"""
        Args:
            pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, num_channels, height, width)`): clips as
                [`LVMAEVideoProcessor`] returns them, standardized by ImageNet's mean and deviation.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, seq_length)`, *optional*): True = hidden; the same
                number in every row. Without it, the encoder sees every token, or the share `config.token_keep_ratio` that
                `config.token_selection` chooses.
            num_visible (`int`, *optional*): how many tokens `bool_masked_pos` leaves visible in a row. With this
                number, an accelerator need not wait for a count of the mask. Under torch.compile, the default follows from
                `config.mask_ratio`.
            visible_tubelets (`torch.Tensor` of shape `(batch_size, visible tokens, tubelet_size, num_channels, patch_size, patch_size)`, *optional*):
                only those tubelets of the clips that `bool_masked_pos` leaves visible, in ascending order of position
                (`masking.gather_tubelets`), normalized in the same way. They take the place of `pixel_values_videos`.
            visible_positions (`torch.LongTensor` of shape `(batch_size, visible tokens)`, *optional*): what `index_visible`
                returned for the other arguments, which are then not checked again.
            importance_scores (`torch.Tensor` of shape `(batch_size, seq_length)`, *optional*): scores that choose the tokens, in place of
                those of `config.token_selection`; higher = keep first. Only with `config.token_keep_ratio` below 1 and without a mask.
            token_mask (`torch.BoolTensor` of shape `(batch_size, visible tokens)`, *optional*): False where one of `visible_positions` is
                padding, to which no token attends.

        Returns:
            `last_hidden_state` of shape `(batch_size, visible tokens, hidden_size)`, in ascending order of position, and
            `pooler_output` of shape `(batch_size, hidden_size)`, its mean over the tokens: one vector for each clip. The last of
            `hidden_states`, as in transformers' vision models, is what the final LayerNorm reads, and `last_hidden_state` what it
            returns. `visible_positions`, int64 of shape `(batch_size, visible tokens)`, says which tokens these are; None = all.
            With `config.token_score_threshold`, clips differ in their number of tokens; `token_mask` says which are no padding.

        Raises:
            ValueError: a clip with another rank or channel count; a length or size that is no multiple of the tubelet; integer
                pixels; a mask of another shape or with different counts per row; tubelets without a mask, or another
                number of tubelets than it leaves visible; both clips and tubelets; scores of another shape, or for a model that
                sees all tokens; an `attention_mask`.
        """
        if kwargs.pop("attention_mask", None) is not None:  # peft passes None
            raise ValueError(
                "Got an attention_mask, expected none, because all tokens attend to each other: hide tokens with bool_masked_pos."
            )
        check_one_choice(bool_masked_pos, importance_scores)
        if bool_masked_pos is None and visible_positions is None:
            clips = clips_without_mask(pixel_values_videos, visible_tubelets)
            self.embeddings.patch_embeddings.grid_size(clips)
            if self.token_selector is not None or importance_scores is not None:
                visible_positions, token_mask = self.choose_visible(clips, importance_scores)
        if bool_masked_pos is not None and visible_positions is None:
            visible_positions = self.index_visible(pixel_values_videos, bool_masked_pos, num_visible, visible_tubelets)
        pixels = pixel_values_videos if visible_tubelets is None else visible_tubelets
        hidden_states = self.embeddings(pixels, visible_positions)
        attention_mask = padding_mask(self.config, token_mask, hidden_states)
        hidden_states = self.encoder(hidden_states, attention_mask=attention_mask, **kwargs)
        recompute = self.config.recompute_activations and self.config.final_layer_norm
        hidden_states = recompute_in_backward(self.layernorm, hidden_states, enabled=recompute)
        return LVMAEModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=mean_of_tokens(hidden_states, token_mask),
            visible_positions=visible_positions,
            token_mask=token_mask,
        )


class LVMAEForPreTraining(LVMAEPreTrainedModel):
    """Masked autoencoder with a masked decoder (paper section 3, Figure 2)."""

    # The loss is a mean over tokens, so Trainer must divide it by the accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: LVMAEConfig):
        super().__init__(config)
        self.lvmae = LVMAEModel(config)
        self.lvmae.token_selector = None  # it has masks of its own, and must not save a scorer that nobody trained
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
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LVMAEForPreTrainingOutput:
        r"""
        Arguments that are not listed, and errors, are those of [`LVMAEModel`].

        Args:
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, seq_length)`, *optional*): True = hidden from the
                encoder. By default `config.encoder_mask` is drawn.
            bool_decoded_pos (`torch.BoolTensor` of shape `(batch_size, seq_length)`, *optional*): True = decoded, the same
                number in every row. By default every hidden token is decoded.
            target_codes (`torch.Tensor` of shape `(batch_size, seq_length, len(config.levels))`, *optional*): the tokenizer's
                codes in [-1, 1], for `target_type="codes"` and `"levels"`. Without targets there is no loss. Pixel targets are
                taken from whole clips, not from `visible_tubelets`.
            target_latents (`torch.Tensor` of the same shape, *optional*): the tokenizer's `FiniteScalarQuantizer.bounded_latents`,
                for `target_type="latents"`.
            num_decoded (`int`, *optional*): how many tokens of a row are decoded; see `num_visible`.
            return_loss (`bool`, defaults to `True`): compute the loss. By this argument, Trainer knows that batches without labels
                have one.
        """
        if bool_masked_pos is None:
            bool_masked_pos, num_visible = self.draw_mask(clips_without_mask(pixel_values_videos, visible_tubelets))
        visible = self.lvmae.index_visible(pixel_values_videos, bool_masked_pos, num_visible, visible_tubelets)
        bool_decoded_pos = bool_masked_pos if bool_decoded_pos is None else bool_decoded_pos
        check_mask(bool_decoded_pos, "bool_decoded_pos", tuple(bool_masked_pos.shape))
        if bool_decoded_pos is bool_masked_pos:
            num_decoded = bool_masked_pos.shape[1] - visible.shape[1]
        elif num_decoded is None and torch.compiler.is_compiling():
            num_decoded = sum(self.config.decoder_token_counts(bool_masked_pos.shape[1]))
        decoded = mask_to_indices(bool_decoded_pos, "bool_decoded_pos", num_decoded)
        targets = self._wanted_targets(target_codes, target_latents, bool_decoded_pos)
        inputs = {"pixel_values_videos": pixel_values_videos, "visible_tubelets": visible_tubelets}
        encoded = self.forward_encoder(visible, **inputs, **kwargs)
        patches = self.lvmae.embeddings.patch_embeddings
        grid_size = None if pixel_values_videos is None else patches.grid_size(pixel_values_videos)
        logits = self.forward_decoder(encoded, visible, decoded, grid_size=grid_size, **kwargs)
        targets = self.gather_targets(pixel_values_videos, targets, decoded)
        losses = (
            None
            if targets is None or not return_loss
            else self.forward_loss(logits, targets, bool_masked_pos.gather(1, decoded))
        )
        return LVMAEForPreTrainingOutput(
            loss=None if losses is None else losses.mean(),
            logits=logits,
            channel_losses=None if losses is None else losses.detach(),
            bool_masked_pos=bool_masked_pos,
            bool_decoded_pos=bool_decoded_pos,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def draw_mask(self, clips: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Draw `config.encoder_mask` for clips (B, T, C, H, W): bool (B, N), True = hidden, and the number of visible tokens."""
        grid_size, ratio = self.lvmae.embeddings.patch_embeddings.grid_size(clips), self.config.mask_ratio
        mask = ENCODER_MASKS[self.config.encoder_mask](clips.shape[0], grid_size, ratio, device=clips.device)
        return mask, tube_visible_count(grid_size, ratio)

    def forward_encoder(self, visible: torch.Tensor, **inputs: Any) -> BaseModelOutputWithPooling:
        """Encode the tubelets at the visible positions (B, V) to `last_hidden_state` (B, V, hidden_size)."""
        return self.lvmae(visible_positions=visible, **inputs)

    def forward_decoder(
        self, encoded: BaseModelOutputWithPooling, visible: torch.Tensor, decoded: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Predict at the decoded positions (B, K) from the encoder's output: logits (B, K, target_size); `grid_size` as in the decoder."""
        return self.decoder(encoded.last_hidden_state, visible, decoded, **kwargs)

    def _wanted_targets(
        self, target_codes: torch.Tensor | None, target_latents: torch.Tensor | None, bool_decoded_pos: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the targets that `config.target_type` asks for. Raise ValueError on others, and on a wrong shape."""
        kind = self.config.target_type
        wanted = {"latents": "target_latents", "pixels": "the clip itself"}.get(kind, "target_codes")
        given = {"target_codes": target_codes, "target_latents": target_latents}
        for name, values in given.items():
            if values is not None and name != wanted:
                raise ValueError(
                    f"Got {name} and config.target_type={kind!r}, expected {wanted} as target: leave {name} out or change the config."
                )
        targets, expected = given.get(wanted), (*bool_decoded_pos.shape, len(self.config.levels))
        if targets is not None and tuple(targets.shape) != expected:
            raise ValueError(
                f"Got {wanted} of shape {tuple(targets.shape)}, expected {expected} (clips, tokens, FSQ channels): use a tokenizer "
                "with the same token grid and levels."
            )
        return targets

    def gather_targets(
        self, pixel_values_videos: torch.Tensor | None, targets: torch.Tensor | None, decoded: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the targets at the decoded positions (B, K), or None without targets.

        Codes and latents are (B, K, len(levels)); pixels are (B, K, target_size).
        """
        if self.config.target_type != "pixels":
            return None if targets is None else gather_tokens(targets, decoded)
        if pixel_values_videos is None:
            raise ValueError(
                "Got visible_tubelets and config.target_type='pixels', expected whole clips, whose hidden pixels are the targets: "
                "pass pixel_values_videos or predict codes."
            )
        tubelets = split_tubelets(pixel_values_videos, self.config.tubelet_size, self.config.patch_size)
        # VideoMAE predicts a tubelet's pixels with the channel last: (B, K, pixels, C).
        pixels = gather_tubelets(tubelets, decoded).movedim(3, -1).flatten(2, 4).float()
        if self.config.norm_pix_loss:
            deviation = pixels.var(dim=2, keepdim=True).sqrt()
            pixels = (pixels - pixels.mean(dim=2, keepdim=True)) / (deviation + 1e-6)
        return pixels.flatten(2)

    def forward_loss(self, logits: torch.Tensor, targets: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Return the loss of each channel: squared error (paper eq. 1 and 2) or cross-entropy; their mean is the model's loss.

        It is a mean over the tokens of a clip that are both decoded and hidden from the encoder, and then a mean over clips. Each
        clip has the same weight, so accumulated small batches and several processes give the gradient of one large batch.

        Args:
            logits: (B, K, target_size).
            targets: as `gather_targets` returns them.
            masked: bool (B, K), True = hidden from the encoder.

        Returns:
            (channels,): FSQ channels, or colors for pixels.
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
        """Return logits (B, K, target_size) as codes for the tokenizer: (B, K, len(levels)), about [-1, 1]; ValueError for pixels."""
        if self.config.target_type == "pixels":
            raise ValueError("Got config.target_type='pixels', expected a model that predicts codes: use its logits.")
        return likeliest_codes(logits, self.config.levels) if self.config.target_type == "levels" else logits.float()


class LVMAEClassAttention(nn.Module):
    """One class-attention layer (CaiT): a learned class token attends to the tokens, which stay as they are."""

    def __init__(self, config: LVMAEConfig):
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.layer_norm1 = LVMAELayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = LVMAEAttention(config, config.hidden_size, config.num_attention_heads)
        self.layer_norm2 = LVMAELayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = LVMAEMLP(config, config.hidden_size, config.intermediate_size)

    def forward(
        self, tokens: torch.Tensor, token_mask: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """Pool tokens: (B, N, D) -> (B, D); `token_mask` (B, N) is False where one is padding."""
        class_token = self.class_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        states = self.layer_norm1(torch.cat([class_token, tokens], dim=1))
        queries = states[:, :1]
        if token_mask is not None:
            token_mask = torch.cat([torch.ones_like(token_mask[:, :1]), token_mask], dim=1)
        masked = {**kwargs, "attention_mask": padding_mask(self.attention.config, token_mask, queries, states)}
        attended, _ = self.attention(states, query_states=queries, **masked)
        class_token = class_token + attended
        class_token = class_token + self.mlp(self.layer_norm2(class_token))
        return class_token.squeeze(1)


class LVMAEMeanPooling(nn.Module):
    def forward(
        self, tokens: torch.Tensor, token_mask: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """Pool tokens: (B, N, D) -> (B, D); `token_mask` (B, N) is False where one is padding."""
        return mean_of_tokens(tokens, token_mask)


class LVMAEForVideoClassification(LVMAEPreTrainedModel):
    """The encoder, a pooling of its tokens, a LayerNorm and a linear classifier."""

    # Fine-tuning starts from a pre-trained encoder and has no decoder. A classifier of all tokens needs no scorer.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"token_selector\."]

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
        pixel_values_videos: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        num_visible: int | None = None,
        visible_tubelets: torch.Tensor | None = None,
        importance_scores: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LVMAEClassifierOutput:
        r"""
        In training, the encoder sees only a share 1 - `config.tube_drop_ratio` of the tubes, drawn for each clip. With
        `config.token_keep_ratio` below 1, it sees this share of their tokens, in evaluation of all tokens. A given `bool_masked_pos`
        takes the place of both. Arguments that are not listed are those of [`LVMAEModel`].

        Args:
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): class ids in [0, config.num_labels). With
                `config.label_sets`, the shape is `(batch_size, label sets)`: one class id for each set, counted from 0 in each.
                With `config.problem_type="single_label_classification"`, labels may also be probabilities of shape
                `(batch_size, num_labels)`, for mixed clips; they add up to 1 within each set. Without this `problem_type`, floats
                mean transformers' multi-label classification.

        Returns:
            `loss` (with labels) and `logits` of shape `(batch_size, num_labels)`. With `config.label_sets`, the loss is the mean
            of the sets' cross-entropies, and the logits are log-probabilities within each set. The pipeline's softmax over all
            logits then gives every class its probability within its set, divided by the number of sets. `visible_positions` and
            `token_mask` say which tokens were looked at.

        Raises:
            ValueError: as [`LVMAEModel`]; labels whose shape does not fit `config.label_sets`.
        """
        check_one_choice(bool_masked_pos, importance_scores)
        inputs = {"pixel_values_videos": pixel_values_videos, "visible_tubelets": visible_tubelets}
        if bool_masked_pos is None:
            clips = clips_without_mask(pixel_values_videos, visible_tubelets)
            inputs["visible_positions"], inputs["token_mask"] = self.choose_visible(clips, importance_scores)
        outputs = self.lvmae(bool_masked_pos=bool_masked_pos, num_visible=num_visible, **inputs, **kwargs)
        pooled = self.pooler(outputs.last_hidden_state, outputs.token_mask, **kwargs)
        logits = self.classifier(self.fc_norm(pooled))
        if self.config.label_sets is not None:
            parts = [logits[:, part].float().log_softmax(dim=-1) for part in self.config.label_slices.values()]
            logits = torch.cat(parts, dim=-1)
        loss = None if labels is None else self.forward_loss(logits, labels, **kwargs)
        return LVMAEClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            visible_positions=outputs.visible_positions,
            token_mask=outputs.token_mask,
        )

    def choose_visible(
        self, clips: torch.Tensor, importance_scores: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the positions of the tokens that the encoder sees, int64 (B, K), ascending, None for all tokens; and the `token_mask`."""
        grid_size = self.lvmae.embeddings.patch_embeddings.grid_size(clips)
        dropped, ratio = None, self.config.tube_drop_ratio
        if self.training and ratio > 0:
            dropped = random_tube_mask(clips.shape[0], grid_size, ratio, device=clips.device)
        if self.lvmae.token_selector is not None or importance_scores is not None:
            return self.lvmae.choose_visible(clips, importance_scores, dropped)
        if dropped is None:
            return None, None
        return self.lvmae.index_visible(clips, dropped, tube_visible_count(grid_size, ratio)), None

    def forward_loss(self, logits: torch.Tensor, labels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return the cross-entropy of logits (B, num_labels); with label sets, its mean over the sets.

        Args:
            labels: class ids (B,), or (B, sets) with label sets; or probabilities (B, num_labels).
        """
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
                "class id for each set."
            )
        if is_soft:
            chosen = labels * logits
        else:
            chosen = torch.stack([logits[:, part].gather(1, labels[:, [i]]) for i, part in enumerate(slices.values())])
        # Trainer passes the number of labels of all accumulated batches, where each set's label counts.
        count = kwargs.get("num_items_in_batch")
        return -chosen.sum() / (len(labels) * len(slices) if count is None else count)


__all__ = ["LVMAEForPreTraining", "LVMAEForVideoClassification", "LVMAEModel", "LVMAEPreTrainedModel"]
