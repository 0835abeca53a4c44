"""What a step costs before it is paid for: closed forms of a config, checked against measurement in tests/test_cost.py.

Counted are matrix products and convolutions (a multiply-add is 2 FLOPs, attention as its eager form) and the activations that autograd
keeps. Not counted: norms, activations, softmax, copies; what the allocator and the kernels add.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Literal

from .models.configuration_fsq_magvit import FSQMagViTConfig
from .models.configuration_lvmae import LVMAEConfig


Precision = Literal["float32", "bfloat16"]
Attention = Literal["sdpa", "eager"]
Checkpointing = Literal["none", "mlp", "layer"]


@dataclass(frozen=True)
class StepCost:
    """One optimizer step, or one forward pass, of one device.

    Args:
        parameters, trainable_parameters: numbers of weights, float32 each (with bfloat16, too: autocast keeps them so).
        flops: of the whole batch, forward and backward, what checkpointing computes again included.
        saved_bytes: activations kept from forward to backward; with bfloat16, the rounded copies of the weights besides.
        working_bytes: temporaries at the peak, on top of what is kept; good to a factor of two.
        input_bytes: the batch.
    """

    parameters: int
    trainable_parameters: int
    flops: int
    saved_bytes: int
    working_bytes: int
    input_bytes: int

    def state_bytes(self, shards: int = 1) -> int:
        """Weights, gradients and AdamW's two moments, float32, spread over `shards` devices (FSDP, ZeRO-3); DDP is 1."""
        return -(-(4 * self.parameters + 12 * self.trainable_parameters) // shards)

    @property
    def step_bytes(self) -> int:
        """What a step takes above weights, moments and batch: backward frees activations layer by layer and makes gradients in
        their place, so that at the peak the larger of both is whole (model_cards/cost.md compares it with measured peaks)."""
        return max(self.saved_bytes, 4 * self.trainable_parameters) + self.working_bytes

    def peak_bytes(self, shards: int = 1) -> int:
        """Everything at once: an upper bound where gradients are made as activations are freed."""
        return self.state_bytes(shards) + self.saved_bytes + self.working_bytes + self.input_bytes


@dataclass(frozen=True)
class TransformerLayers:
    """`depth` transformer layers on `tokens` tokens, of which `outputs` come out."""

    depth: int
    tokens: int
    width: int
    inner: int
    heads: int
    outputs: int

    @property
    def parameters(self) -> int:
        """Norms, four projections with three biases, MLP; `_qv_biases` are taken off by the caller."""
        norms, attention = 4 * self.width, 4 * self.width**2 + 3 * self.width
        return self.depth * (norms + attention + 2 * self.width * self.inner + self.inner + self.width)

    @property
    def projection_flops(self) -> int:
        return self.depth * (6 * self.tokens + 2 * self.outputs) * self.width**2

    @property
    def mlp_flops(self) -> int:
        return self.depth * 4 * self.outputs * self.width * self.inner

    @property
    def attention_flops(self) -> int:
        return self.depth * 4 * self.outputs * self.tokens * self.width

    def flops(self, checkpointing: Checkpointing, frozen: bool = False) -> int:
        """Forward and backward; backward needs no gradients of frozen weights. The last product of a branch is not repeated."""
        linear = self.projection_flops + self.mlp_flops
        flops = (2 if frozen else 3) * linear + 3 * self.attention_flops
        if checkpointing == "mlp":
            return flops + self.mlp_flops // 2
        if checkpointing == "layer":
            return flops + self.projection_flops + self.attention_flops + self.mlp_flops // 2
        return flops

    def saved_bytes(
        self, itemsize: int, attention: Attention, checkpointing: Checkpointing, rebuild: bool, frozen: bool = False
    ) -> int:
        if checkpointing == "layer":
            return self.depth * self.tokens * self.width * itemsize
        matrix = self.outputs * self.heads * 4
        if attention == "eager":
            matrix *= self.tokens
            matrix += matrix // 2 if itemsize == 2 else 0  # float32 from the softmax, and rounded for the product
        # The norms' inputs, query, key, value and what attention returns, which eager attention itself does not need.
        before = 3 * self.width + (self.width if attention == "sdpa" else 0)
        after = self.width + (0 if frozen and attention == "eager" else self.width)
        after += 0 if attention == "sdpa" else self.width
        if checkpointing == "none":
            after += self.inner
        if not rebuild:
            before += self.width  # CUDA's autocast: three times, rounded anew for query, key and value
            after += self.width + self.inner if checkpointing == "none" and not frozen else 0
        return self.depth * ((self.tokens * before + self.outputs * after) * itemsize + matrix)

    def rounded_bytes(self, checkpointing: Checkpointing) -> int:
        """Autocast's bfloat16 copies of the weight matrices, kept with the activations."""
        attention, mlp = 4 * self.width**2, 2 * self.width * self.inner
        return 2 * self.depth * {"none": attention + mlp, "mlp": attention, "layer": 0}[checkpointing]

    def working_bytes(self, itemsize: int, attention: Attention, checkpointing: Checkpointing) -> int:
        """Backward through one layer's MLP or attention, whichever holds more, and what checkpointing makes again."""
        mlp = self.outputs * (3 * self.inner + 2 * self.width) * itemsize
        matrices = 2 * self.heads * self.outputs * self.tokens * 4 if attention == "eager" else 0
        again = 0
        if checkpointing == "mlp":
            again = self.outputs * (self.inner + self.width) * itemsize
        if checkpointing == "layer":
            layer = replace(self, depth=1)
            again = layer.saved_bytes(itemsize, attention, "none", rebuild=False)
        return max(mlp, self.tokens * 8 * self.width * itemsize + matrices) + again


def _encoder(config: LVMAEConfig, tokens: int) -> TransformerLayers:
    sizes = config.hidden_size, config.intermediate_size, config.num_attention_heads
    return TransformerLayers(config.num_hidden_layers, tokens, *sizes, outputs=tokens)


def _decoder(config: LVMAEConfig, visible: int, decoded: int) -> tuple[TransformerLayers, TransformerLayers]:
    """All layers but the last, and the last, out of which only the decoded tokens come."""
    tokens = visible + decoded
    sizes = config.decoder_hidden_size, config.decoder_intermediate_size, config.decoder_num_attention_heads
    body = TransformerLayers(config.decoder_num_hidden_layers - 1, tokens, *sizes, outputs=tokens)
    return body, replace(body, depth=1, outputs=decoded)


def _tubelet(config: LVMAEConfig) -> int:
    return config.num_channels * config.tubelet_size * config.patch_size**2


def _encoder_parameters(config: LVMAEConfig) -> int:
    layers = _encoder(config, 0).parameters - (
        0 if config.qv_bias else 2 * config.hidden_size * config.num_hidden_layers
    )
    norm = 2 * config.hidden_size if config.final_layer_norm else 0
    return layers + (_tubelet(config) + 1) * config.hidden_size + norm


def _clip_bytes(config: LVMAEConfig, batch_size: int) -> int:
    return batch_size * config.num_frames * config.num_channels * prod(config.frame_size) * 4


def visible_tokens(config: LVMAEConfig, hidden_ratio: float) -> int:
    """Tokens of a clip that a tube mask of this ratio leaves visible."""
    slots, height, width = config.grid_size
    return slots * (height * width - int(hidden_ratio * height * width))


def pretraining_cost(
    config: LVMAEConfig,
    batch_size: int = 1,
    precision: Precision = "float32",
    attention: Attention = "sdpa",
    checkpointing: Checkpointing = "none",
    decoded_tokens: int | None = None,
) -> StepCost:
    """A pre-training step of `LVMAEForPreTraining` on `batch_size` clips, targets given.

    Args:
        decoded_tokens: tokens decoded per clip; by default `config.token_budget`.
    """
    itemsize = 4 if precision == "float32" else 2
    visible = visible_tokens(config, config.mask_ratio)
    decoded = config.token_budget if decoded_tokens is None else decoded_tokens
    width, narrow, outputs = config.hidden_size, config.decoder_hidden_size, config.target_size
    encoder, decoder = _encoder(config, visible), _decoder(config, visible, decoded)
    stacks = (encoder, *decoder)
    decoder_biases = 0 if config.qv_bias else 2 * narrow * config.decoder_num_hidden_layers
    ends = width * narrow + narrow + 2 * narrow + (narrow + 1) * outputs  # embed, mask token, norm, head
    parameters = _encoder_parameters(config) + sum(layers.parameters for layers in decoder) - decoder_biases + ends

    flops = sum(layers.flops(checkpointing) for layers in stacks)
    flops += 2 * 2 * visible * _tubelet(config) * width  # pixels need no gradient
    flops += 3 * 2 * (visible * width * narrow + decoded * narrow * outputs)

    keeps = (itemsize, attention, checkpointing, config.recompute_activations)
    saved = sum(layers.saved_bytes(*keeps) for layers in stacks)
    saved += itemsize * (visible * (_tubelet(config) + width) + decoded * narrow)
    saved += 0 if config.recompute_activations else itemsize * (visible * width + decoded * narrow)
    saved += 4 * decoded * outputs  # differences, in float32
    rounded = sum(layers.rounded_bytes(checkpointing) for layers in stacks)
    rounded += 2 * (width * narrow + narrow * outputs)
    working = max(layers.working_bytes(itemsize, attention, checkpointing) for layers in stacks)
    return StepCost(
        parameters=parameters,
        trainable_parameters=parameters,
        flops=batch_size * flops,
        saved_bytes=batch_size * saved + (rounded if itemsize == 2 else 0),
        working_bytes=batch_size * working,
        input_bytes=_clip_bytes(config, batch_size),
    )


def classification_cost(
    config: LVMAEConfig,
    batch_size: int = 1,
    precision: Precision = "float32",
    attention: Attention = "sdpa",
    checkpointing: Checkpointing = "none",
    training: bool = True,
    lora_rank: int = 0,
    mixing: bool = False,
) -> StepCost:
    """A fine-tuning step of `LVMAEForVideoClassification` (mean pooling), or a forward pass with `training=False`.

    Args:
        mixing: MixUp or CutMix makes a second batch of the first.
        lora_rank: not 0 = LoRA on `q_proj` and `v_proj`, everything else but the classifier frozen.
    """
    itemsize = 4 if precision == "float32" else 2
    tokens = visible_tokens(config, config.tube_drop_ratio if training else 0)
    width, depth, labels = config.hidden_size, config.num_hidden_layers, config.num_labels or 0
    encoder = _encoder(config, tokens)
    classifier = (width + 1) * labels
    adapters = depth * 2 * 2 * width * lora_rank
    parameters = _encoder_parameters(config) + 2 * width + classifier
    trainable = parameters
    if lora_rank:  # peft keeps the classifier it started from
        parameters, trainable = parameters + adapters + classifier, adapters + classifier
    embedding, head = 2 * tokens * _tubelet(config) * width, 2 * width * labels
    if not training:
        flops = encoder.projection_flops + encoder.mlp_flops + encoder.attention_flops + embedding + head
        flops += 2 * tokens * adapters
        saved = 0
    else:
        flops = encoder.flops(checkpointing, frozen=bool(lora_rank)) + 3 * head
        if lora_rank:
            # Nothing before the first adapters needs a gradient, their own inputs neither.
            flops += embedding + 3 * 2 * tokens * adapters - tokens * (6 * width**2 + 2 * 2 * width * lora_rank)
            flops -= (
                2 * tokens**2 * width if attention == "eager" else 0
            )  # nor does the first key, which sdpa gives one
        else:
            flops += 2 * embedding
        saved = encoder.saved_bytes(itemsize, attention, checkpointing, config.recompute_activations, bool(lora_rank))
        saved += itemsize * tokens * (width + (0 if lora_rank else _tubelet(config)))
        saved += itemsize * tokens * 2 * depth * lora_rank if checkpointing != "layer" else 0
    rounded = encoder.rounded_bytes(checkpointing) + 2 * width * labels if training else 0
    rounded -= 6 * width**2 if lora_rank and checkpointing != "layer" else 0  # projections before the first adapters
    working = encoder.working_bytes(itemsize, attention, checkpointing)
    if not training:
        working = tokens * (2 * config.intermediate_size + 2 * width) * itemsize
        working = max(
            working, tokens * (6 * width * itemsize + (2 * encoder.heads * tokens * 4 if attention == "eager" else 0))
        )
    return StepCost(
        parameters=parameters,
        trainable_parameters=trainable if training else 0,
        flops=batch_size * flops,
        saved_bytes=batch_size * saved + (rounded if itemsize == 2 else 0),
        working_bytes=batch_size * working,
        input_bytes=_clip_bytes(config, batch_size) * (2 if mixing else 1),
    )


@dataclass(frozen=True)
class _Conv:
    """A 3D convolution: channels in and out, kernel volume, output voxels, and how many tensors as large as its input and
    output the step around it keeps."""

    inputs: int
    outputs: int
    kernel: int
    voxels: int
    kept: int
    bias: bool = True

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs * self.kernel + (self.outputs if self.bias else 0)

    @property
    def flops(self) -> int:
        return 2 * self.inputs * self.outputs * self.kernel * self.voxels


def _res_blocks(config: FSQMagViTConfig, inputs: int, outputs: int, voxels: int) -> list[_Conv]:
    """Each block keeps, around each of its convolutions, the inputs of norm, activation and convolution."""
    convs = []
    for first, second in pairwise([inputs] + [outputs] * config.num_res_blocks):
        convs += [
            _Conv(first, second, 27, voxels, 3 * first * voxels, bias=False),
            _Conv(second, second, 27, voxels, 3 * second * voxels, bias=False),
        ]
        if first != second:
            convs.append(_Conv(first, second, 1, voxels, 0, bias=False))
    return convs


def _norm_parameters(convs: list[_Conv]) -> int:
    """Weights and biases of the group norms: one before each convolution of a residual block."""
    return sum(2 * conv.inputs for conv in convs if conv.kernel == 27 and not conv.bias)


def _tokenizer_convs(config: FSQMagViTConfig, frames: int) -> tuple[list[_Conv], list[_Conv], list[_Conv]]:
    """Encoder, decoder and scorer on `frames` frames."""
    height, width = config.frame_size
    stem = prod(config.stem_patch_size)
    pixels, levels = config.num_channels * stem, len(config.levels)
    widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
    sizes = [frames * height * width // stem]
    for halves_time in config.temporal_downsample:
        sizes.append(sizes[-1] // (8 if halves_time else 4))
    encoder = [_Conv(pixels, widths[0], 27, sizes[0], pixels * sizes[0], bias=False)]
    for level, size in enumerate(sizes):
        encoder += _res_blocks(config, widths[max(level - 1, 0)], widths[level], size)
    # A pooling layer keeps its input, which is what the block before returns.
    pooled = sum(channels * size for channels, size in zip(widths[:-1], sizes[:-1]))
    encoder += _res_blocks(config, widths[-1], widths[-1], sizes[-1])
    encoder.append(_Conv(widths[-1], levels, 1, sizes[-1], 3 * widths[-1] * sizes[-1] + pooled))

    decoder = [_Conv(levels, widths[-1], 27, sizes[-1], levels * sizes[-1])]
    decoder += _res_blocks(config, widths[-1], widths[-1], sizes[-1])
    for level in reversed(range(len(widths))):
        decoder += _res_blocks(config, widths[min(level + 1, len(widths) - 1)], widths[level], sizes[level])
        if level:
            decoder.append(_Conv(widths[level], widths[level], 27, sizes[level - 1], widths[level] * sizes[level - 1]))
    decoder.append(_Conv(widths[0], pixels, 27, sizes[0], 3 * widths[0] * sizes[0]))

    stride, hidden = config.patch_size // 2, config.scorer_hidden_size
    tokens = sizes[-1]
    kernel = config.tubelet_size * (2 * stride - 1) ** 2
    scorer = [
        _Conv(config.num_channels, hidden, kernel, 4 * tokens, 0),
        _Conv(hidden, hidden, 9, tokens, 2 * hidden * 4 * tokens),
    ]
    return encoder, decoder, scorer


def tokenizer_cost(config: FSQMagViTConfig, batch_size: int = 1, training: bool = False) -> StepCost:
    """`FSQMagViTModel.encode` of clips of `config.num_frames` frames, or a training step on clips of one window, in float32."""
    frames = config.window_size
    encoder, decoder, scorer = _tokenizer_convs(config, frames)
    blocks = encoder + decoder
    ends = 2 * config.base_channels * (config.channel_multipliers[-1] + config.channel_multipliers[0])
    parameters = sum(conv.parameters for conv in blocks + scorer) + _norm_parameters(encoder[1:] + decoder) + ends
    largest = max(max(conv.inputs, conv.outputs) * conv.voxels for conv in encoder)
    if training:
        flops = 3 * sum(conv.flops for conv in blocks + scorer) - encoder[0].flops - scorer[0].flops
        pixels = frames * config.num_channels * prod(config.frame_size)
        saved = 4 * (sum(conv.kept for conv in blocks + scorer) + 2 * pixels)
        saved += 5 * config.topk_num_samples * encoder[-1].voxels
        working, clip_frames = 4 * 4 * largest, frames
    else:
        windows = -(-config.num_frames // frames)
        flops, saved = windows * sum(conv.flops for conv in encoder + scorer), 0
        working, clip_frames = 4 * 4 * largest, config.num_frames
    return StepCost(
        parameters=parameters,
        trainable_parameters=parameters if training else 0,
        flops=batch_size * flops,
        saved_bytes=batch_size * saved,
        working_bytes=batch_size * working,
        input_bytes=batch_size * clip_frames * config.num_channels * prod(config.frame_size) * 4,
    )
