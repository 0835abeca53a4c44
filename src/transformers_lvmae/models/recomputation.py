"""Recompute the outputs of cheap functions in backward instead of keeping them.

For a norm or an activation in front of a Linear, autograd keeps the input for its own gradient, and the output for the Linear's.
The outputs are cheap to compute, and make up a third of what a transformer layer keeps. So `recompute_in_backward` keeps only the
input, and `apply_linears` lets each Linear keep a small note (dtype and shape) in place of the output. Notable choices:
- the Linears are called as modules, so LoRA, quantized and sharded layers work;
- autograd keeps all other tensors as usual, so activation checkpointing and offloading work;
- under torch.compile both functions are plain calls, because its partitioner recomputes cheap outputs by itself;
- small tensors are not worth it: 16 layers of 64 tokens of width 32 took 23 ms with recomputation and 13 ms without, of 512 tokens of
  width 192, 161 and 149 ms (forward and backward, one thread);
- on an accelerator, small is larger. These 10 ms are the host's, which an accelerator would wait for. Computed for ViT-B on a large GPU, a
  pre-training step takes it 4 ms a clip, so it has work for 23 ms from about 5 clips on, whose norms have 4 million numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.module import _has_any_global_hook


# Recompute outputs of at least this many numbers. The meta device, where costs are counted, follows the CPU.
SMALLEST_NUMEL = 2**16
SMALLEST_NUMEL_ON_ACCELERATORS = 2**22
# Autograd nodes between a tensor and the reshaped or cast copy that a Linear keeps of it.
_SAME_VALUES = ("ViewBackward0", "UnsafeViewBackward0", "ToCopyBackward0")


class _Recomputed(torch.autograd.Function):
    """Compute function(tensor) and keep only `tensor`.

    `parameters` are the function's own. They are passed to get gradients, and saved so that autograd raises if they change in place
    before backward, as it does after a plain call.
    """

    @staticmethod
    def forward(ctx: Any, function: nn.Module, tensor: torch.Tensor, *parameters: nn.Parameter) -> torch.Tensor:
        # The meta device, where costs are counted, has no autocast.
        device_type = tensor.device.type if torch.amp.is_autocast_available(tensor.device.type) else "cpu"
        ctx.function, ctx.recomputed = function, None
        ctx.autocast = device_type, torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type)
        ctx.save_for_backward(tensor, *parameters)
        return function(tensor)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensor, output = _recompute(ctx)
        edge, ctx.recomputed = get_gradient_edge(output), None
        del output  # the Linears do not need it any more
        needed = ctx.needs_input_grad[1:]
        wanted = [item for item, need in zip([tensor, *ctx.function.parameters()], needed) if need]
        # Gradients are enabled only when second derivatives are wanted.
        gradients = iter(torch.autograd.grad(edge, wanted, grad_outputs, create_graph=torch.is_grad_enabled()))
        return None, *(next(gradients) if need else None for need in needed)


def _recompute(node: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return input and output of a `_Recomputed` node. A backward pass computes them once and then drops them."""
    if node.recomputed is None:
        tensor = node.saved_tensors[0]
        if not torch.is_grad_enabled():  # no second derivatives: cut the tensor off from its history
            tensor = tensor.detach().requires_grad_()
        with torch.enable_grad(), torch.autocast(*node.autocast):
            tensor = tensor.view_as(tensor)  # not a leaf: module hooks such as FlopCounterMode's fail on leaves here
            node.recomputed = tensor, node.function(tensor)
    return node.recomputed


def recompute_in_backward(function: nn.Module, tensor: torch.Tensor, enabled: bool = True) -> torch.Tensor:
    """Return `function(tensor)`, whose output [`apply_linears`] does not keep; gradients are bit-equal to a plain call's.

    A function with hooks is called plainly: its hooks would fire twice, and a unit of FSDP2 has its real parameters only inside its
    own call. So is one of a small tensor, which would take more time and save little.

    Args:
        function: cheap and deterministic, such as a norm or an activation. It runs twice in a step.
        enabled: False makes this a plain call.
    """
    if not enabled or _is_small(tensor) or torch.compiler.is_compiling() or _has_hooks(function):
        return function(tensor)
    return _Recomputed.apply(function, tensor, *function.parameters())


def _is_small(tensor: torch.Tensor) -> bool:
    on_host = tensor.device.type in ("cpu", "meta")
    return tensor.numel() < (SMALLEST_NUMEL if on_host else SMALLEST_NUMEL_ON_ACCELERATORS)


def _has_hooks(function: nn.Module) -> bool:
    kinds = (
        function._forward_pre_hooks,
        function._forward_hooks,
        function._backward_pre_hooks,
        function._backward_hooks,
    )
    return any(kinds) or _has_any_global_hook()


def apply_linears(tensor: torch.Tensor, *linears: nn.Module) -> tuple[torch.Tensor, ...]:
    """Apply each of `linears` to `tensor`. They do not keep it if [`recompute_in_backward`] returned it."""
    if torch.compiler.is_compiling() or not isinstance(tensor.grad_fn, _Recomputed._backward_cls):
        return tuple(linear(tensor) for linear in linears)
    with _notes(tensor):
        return tuple(linear(tensor) for linear in linears)


class _Note(NamedTuple):
    """The dtype and shape that a Linear keeps in place of a recomputed tensor."""

    dtype: torch.dtype
    shape: torch.Size


@contextmanager
def _notes(tensor: torch.Tensor) -> Iterator[None]:
    """Inside this context, autograd keeps a `_Note` in place of `tensor` and of its reshaped or cast copies."""
    node, numel = tensor.grad_fn, tensor.numel()
    # These hooks hide the hooks of checkpointing and offloading. So pass all other tensors on to those outer hooks.
    outer = torch._C._autograd._top_saved_tensors_default_hooks(False) or (torch.Tensor.detach, lambda kept: kept)

    def pack(kept: torch.Tensor) -> Any:
        source = kept.grad_fn
        while source is not None and source is not node and source.name() in _SAME_VALUES:
            source = source.next_functions[0][0]
        if source is node and kept.numel() == numel and kept.is_contiguous():
            return _Note(kept.dtype, kept.shape)
        return outer[0](kept)

    def unpack(kept: Any) -> torch.Tensor:
        if isinstance(kept, _Note):
            return _recompute(node)[1].detach().to(kept.dtype).view(kept.shape)
        return outer[1](kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
