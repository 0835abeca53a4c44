"""Outputs of cheap functions that backward makes again rather than keeps.

A norm or an activation in front of a Linear is kept twice: its input for its own gradient, its output for the Linear's. The output
costs next to nothing to make again, and is a third of what a transformer layer keeps. So `rebuilt` keeps the input alone, and
`project` calls the Linears so that each keeps a recipe in place of the output. Notable choices:
- the Linears are called, whatever they are: LoRA, quantised and sharded layers work, and each keeps what else it needs;
- everything else is kept by autograd's own means: activation checkpointing and offloading around it work as without it;
- under torch.compile both are plain calls, since its partitioner makes cheap outputs again by itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge


# What stands between a tensor and the reshaped or cast copy of it that a Linear keeps.
_SAME_VALUES = ("ViewBackward0", "UnsafeViewBackward0", "ToCopyBackward0")


class _Recomputed(torch.autograd.Function):
    """function(tensor), of which only `tensor` is kept. `parameters` are the function's own, passed for their gradients."""

    @staticmethod
    def forward(ctx: Any, function: nn.Module, tensor: torch.Tensor, *parameters: nn.Parameter) -> torch.Tensor:
        # The meta device, on which costs are counted, has no autocast.
        device_type = tensor.device.type if torch.amp.is_autocast_available(tensor.device.type) else "cpu"
        ctx.function, ctx.recomputed = function, None
        ctx.autocast = device_type, torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type)
        ctx.save_for_backward(tensor)
        return function(tensor)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensor, output = _recompute(ctx)
        edge, ctx.recomputed = get_gradient_edge(output), None
        del output  # the Linears are done with it
        needed = ctx.needs_input_grad[1:]
        wanted = [item for item, need in zip([tensor, *ctx.function.parameters()], needed) if need]
        # Gradients are enabled where second derivatives are wanted.
        gradients = iter(torch.autograd.grad(edge, wanted, grad_outputs, create_graph=torch.is_grad_enabled()))
        return None, *(next(gradients) if need else None for need in needed)


def _recompute(node: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output of a `_Recomputed`, made once in a backward pass, at the first call, and dropped by its own backward."""
    if node.recomputed is None:
        (tensor,) = node.saved_tensors
        if not torch.is_grad_enabled():  # no second derivatives: cut off what made the tensor
            tensor = tensor.detach().requires_grad_()
        with torch.enable_grad(), torch.autocast(*node.autocast):
            tensor = tensor.view_as(tensor)  # no leaf: module hooks like FlopCounterMode's cannot follow one in here
            node.recomputed = tensor, node.function(tensor)
    return node.recomputed


def recompute_in_backward(function: nn.Module, tensor: torch.Tensor, enabled: bool = True) -> torch.Tensor:
    """`function(tensor)`, for [`project`] to forget until backward; a plain call where `enabled` is False.

    A function that is called through hooks is called plainly too: a unit of FSDP2 has its real parameters only inside its call.

    Args:
        function: cheap, and the same for the same input: a norm, an activation without randomness. It runs twice a step.

    Gradients are bit-equal to the plain call's.
    """
    if not enabled or torch.compiler.is_compiling() or function._forward_pre_hooks:
        return function(tensor)
    return _Recomputed.apply(function, tensor, *function.parameters())


def apply_linears(tensor: torch.Tensor, *linears: nn.Module) -> tuple[torch.Tensor, ...]:
    """Each of `linears` applied to `tensor`; where [`rebuilt`] made it, they keep a recipe instead of it."""
    if torch.compiler.is_compiling() or not isinstance(tensor.grad_fn, _Recomputed._backward_cls):
        return tuple(linear(tensor) for linear in linears)
    with _recipes(tensor):
        return tuple(linear(tensor) for linear in linears)


class _Recipe(NamedTuple):
    """In which form a Linear kept a rebuilt tensor."""

    dtype: torch.dtype
    shape: torch.Size


@contextmanager
def _recipes(tensor: torch.Tensor) -> Iterator[None]:
    """Inside, `tensor` and its reshaped or cast copies are kept as a recipe, and all else as outside."""
    node, numel = tensor.grad_fn, tensor.numel()
    # Hooks hide those around them, such as checkpointing's and offloading's: what is not ours must go on to them.
    outer = torch._C._autograd._top_saved_tensors_default_hooks(False) or (torch.Tensor.detach, lambda kept: kept)

    def pack(kept: torch.Tensor) -> Any:
        source = kept.grad_fn
        while source is not None and source is not node and source.name() in _SAME_VALUES:
            source = source.next_functions[0][0]
        if source is node and kept.numel() == numel and kept.is_contiguous():
            return _Recipe(kept.dtype, kept.shape)
        return outer[0](kept)

    def unpack(kept: Any) -> torch.Tensor:
        if isinstance(kept, _Recipe):
            return _recompute(node)[1].detach().to(kept.dtype).view(kept.shape)
        return outer[1](kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
