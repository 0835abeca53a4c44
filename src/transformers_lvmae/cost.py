"""FLOPs and memory of a training step or a forward pass, counted without computing anything.

The real model runs on PyTorch's meta device, where tensors have shapes but no values. Counting a ViT-B on 128 frames takes a second.
FLOPs are those of matrix products and convolutions (a multiply-add is 2 FLOPs, attention as in its eager form). Bytes are those of
all tensors, without the scratch memory of kernels and of the allocator.
"""

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from .models.configuration_fsq_magvit import FSQMagViTConfig
from .models.configuration_lvmae import LVMAEConfig
from .models.masking import tube_visible_count
from .models.modeling_fsq_magvit import FSQMagViTModel
from .models.modeling_lvmae import LVMAEForPreTraining, LVMAEForVideoClassification


Precision = Literal["float32", "bfloat16"]
Attention = Literal["sdpa", "eager"]
Checkpointing = Literal["none", "mlp", "layer"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class StepCost:
    """The cost of one training step, or of one forward pass, on one device.

    Args:
        parameters, trainable_parameters: numbers of weights. Each takes 4 bytes, also with bfloat16: autocast keeps float32 weights.
        flops: of the whole batch, forward and backward, with the layers that checkpointing recomputes.
        saved_bytes: activations kept from forward to backward; with bfloat16, also the rounded copies of the weights.
        working_bytes: temporaries at the peak, beyond the larger of kept activations and gradients.
        input_bytes: the clips of the batch in float32.
    """

    parameters: int
    trainable_parameters: int
    flops: int
    saved_bytes: int
    working_bytes: int
    input_bytes: int

    @property
    def state_bytes(self) -> int:
        """Weights, gradients and AdamW's two moments, all float32."""
        return 4 * self.parameters + 12 * self.trainable_parameters

    @property
    def step_bytes(self) -> int:
        """The peak of a step beyond weights, moments and batch. Backward frees activations while it makes gradients."""
        return max(self.saved_bytes, 4 * self.trainable_parameters) + self.working_bytes

    @property
    def peak_bytes(self) -> int:
        """An upper bound of the memory in use: all activations and all gradients at once."""
        return self.state_bytes + self.saved_bytes + self.working_bytes + self.input_bytes


def pretraining_cost(
    config: LVMAEConfig,
    batch_size: int = 1,
    precision: Precision = "float32",
    attention: Attention = "sdpa",
    checkpointing: Checkpointing = "none",
    decoded_tokens: int | None = None,
) -> StepCost:
    """Count a pre-training step of `LVMAEForPreTraining`, without the making of targets.

    Args:
        decoded_tokens: tokens decoded per clip; by default `config.token_budget`.
    """
    with torch.device("meta"):
        model = _prepare(LVMAEForPreTraining(copy.deepcopy(config)), attention, checkpointing)
        clips = _clips(config, batch_size, config.num_frames)
        mask = torch.zeros(batch_size, config.seq_length, dtype=torch.bool)
        codes = torch.zeros(*mask.shape, len(config.levels))
    inputs: dict[str, Any] = {
        "bool_masked_pos": mask,
        "bool_decoded_pos": mask.clone(),  # a clone, because the same tensor means "decode every hidden token"
        "num_visible": tube_visible_count(config.grid_size, config.mask_ratio),
        "num_decoded": config.token_budget if decoded_tokens is None else decoded_tokens,
    }
    if config.target_type != "pixels":
        inputs["target_latents" if config.target_type == "latents" else "target_codes"] = codes
    return count_step(model, clips, precision, **inputs)


def classification_cost(
    config: LVMAEConfig,
    batch_size: int = 1,
    precision: Precision = "float32",
    attention: Attention = "sdpa",
    checkpointing: Checkpointing = "none",
    training: bool = True,
    mixing: bool = False,
    adapt: Callable[[nn.Module], nn.Module] | None = None,
) -> StepCost:
    """Count a fine-tuning step of `LVMAEForVideoClassification`, or a forward pass with `training=False`.

    Args:
        mixing: count the second batch that MixUp or CutMix makes.
        adapt: changes the model before it is counted, for example wraps it with LoRA adapters.
    """
    with torch.device("meta"):
        base = LVMAEForVideoClassification(copy.deepcopy(config))
        model = base if adapt is None else adapt(base)
        _prepare(base, attention, checkpointing)
        clips = _clips(config, batch_size, config.num_frames)
        labels = torch.zeros(batch_size, dtype=torch.long) if training else None
    cost = count_step(model.train(training), clips, precision, labels=labels)
    return cost if not mixing else StepCost(**{**vars(cost), "input_bytes": 2 * cost.input_bytes})


def tokenizer_cost(config: FSQMagViTConfig, batch_size: int = 1, training: bool = False) -> StepCost:
    """Count `FSQMagViTModel.encode` of clips of `config.num_frames` frames, or a training step on clips of one window; float32."""
    with torch.device("meta"):
        model = FSQMagViTModel(copy.deepcopy(config)).train(training)
        clips = _clips(config, batch_size, config.window_size if training else config.num_frames)
    return count_step(model, clips, forward=None if training else model.encode)


def _prepare(model: PreTrainedModel, attention: Attention, checkpointing: Checkpointing) -> PreTrainedModel:
    model.set_attn_implementation("fused_on_meta" if attention == "sdpa" else attention)
    if checkpointing != "none":
        model.activation_checkpointing_enable({"mlp_only": checkpointing == "mlp"})
    return model.train()


def _clips(config: LVMAEConfig | FSQMagViTConfig, batch_size: int, frames: int) -> torch.Tensor:
    return torch.zeros(batch_size, frames, config.num_channels, *config.frame_size)


def count_step(
    model: nn.Module,
    clips: torch.Tensor,
    precision: Precision = "float32",
    forward: Callable[..., Any] | None = None,
    **inputs: Any,
) -> StepCost:
    """Count a step of a model on the meta device: forward and backward in training mode, else forward alone.

    The meta device has no autocast. With bfloat16, the model's weights are cast instead. This gives autocast's activations, and each
    matrix that backward needs counts as one rounded copy.

    Args:
        clips: the model's first argument, on the meta device.
        forward: called with the clips instead of the model.
        inputs: the model's other arguments.
    """
    model = model.to(torch.bfloat16) if precision == "bfloat16" else model
    own = [*model.parameters(), *model.buffers()]
    matrices = [weight for weight in own if weight.ndim > 1 and precision == "bfloat16"]

    def run() -> dict[int, int]:
        outputs, kept = _kept_bytes(lambda: (forward or model)(clips, **inputs))
        if model.training:
            outputs.loss.backward()
        return kept

    # Run twice, because the FLOP counter keeps tensors alive longer than a step does.
    with torch.device("meta"), torch.set_grad_enabled(model.training):
        _, flops = count_flops(run)
        model.zero_grad()
        with _LiveBytes([*own, clips]) as live:
            kept = run()
    saved = sum(kept.values()) - sum(kept.get(tensor.untyped_storage()._cdata, 0) for tensor in own)
    rounded = sum(kept.get(tensor.untyped_storage()._cdata, 0) for tensor in matrices)
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad) if model.training else 0
    gradient_bytes = trainable * (2 if precision == "bfloat16" else 4)
    return StepCost(
        parameters=sum(weight.numel() for weight in model.parameters()),
        trainable_parameters=trainable,
        flops=flops,
        saved_bytes=saved + rounded,
        working_bytes=live.peak - max(saved, gradient_bytes),
        input_bytes=clips.nbytes,
    )


def count_flops(work: Callable[[], Result]) -> tuple[Result, int]:
    """Run `work`; return its result and its FLOPs in matrix products and convolutions (a multiply-add is 2).

    Attention counts as its eager form: 2 matrix products forward, 4 backward. The FLOPs that a fused kernel recomputes
    do not count. PyTorch's counter has no formula for fused attention on a CPU, so this function adds one.
    """
    aten = torch.ops.aten
    formulas = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        result = work()
    return result, counter.get_total_flops()


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    batch, heads, queries, size = query
    return 2 * batch * heads * queries * key[2] * (size + value[3])


def _attention_backward_flops(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _attention_flops(query, key, value)


def count_saved_bytes(model: nn.Module, work: Callable[[], Result]) -> tuple[Result, int]:
    """Run `work`; return its result and the bytes that it keeps for backward. Each storage counts once; the model's own do not count."""
    result, kept = _kept_bytes(work)
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    return result, sum(nbytes for key, nbytes in kept.items() if key not in own)


def _kept_bytes(work: Callable[[], Result]) -> tuple[Result, dict[int, int]]:
    """Return the result of `work` and the bytes of each storage that it keeps for backward, by the storage's address."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    kept = {key: storage.nbytes() for key, storage in storages.items()}
    storages.clear()  # the graph holds `pack`, which would keep them alive after backward freed them
    return result, kept


class _LiveBytes(TorchDispatchMode):
    """Measure the bytes of all tensors that exist at the same time, except the tensors in `excluded`."""

    def __init__(self, excluded: list[torch.Tensor]):
        super().__init__()
        self.known = weakref.WeakSet(tensor.untyped_storage() for tensor in excluded)
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        return result

    def _change(self, nbytes: int) -> None:
        self.now += nbytes
        self.peak = max(self.peak, self.now)


def _fused_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Run fused attention (B, heads, N, d) -> (B, N, heads, d). On the meta device, PyTorch itself would choose the eager form."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output = fused(query, key, value, dropout, False, attn_mask=attention_mask, scale=scaling)[0]
    return output.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register("fused_on_meta", _fused_attention)
