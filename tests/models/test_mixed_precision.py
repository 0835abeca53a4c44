"""What autocast costs and loses on a GPU. Here a CPU follows CUDA's rule, by which autocast computes norms in float32."""

import pytest
import torch
from builders import tiny_config
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from transformers_lvmae import LVMAEForPreTraining, LVMAEForVideoClassification
from transformers_lvmae.models import modeling_lvmae
from transformers_lvmae.models.masking import topk_mask


MATRIX_PRODUCTS = ("mm", "addmm", "bmm", "convolution", "scaled_dot_product")


class NormsInFloat32(TorchFunctionMode):
    """CUDA's autocast: norms take and return float32."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not nn.functional.layer_norm or not torch.is_autocast_enabled("cpu"):
            return function(*args, **(kwargs or {}))
        args = [value.float() if torch.is_tensor(value) else value for value in args]
        with torch.autocast("cpu", enabled=False):
            return function(*args, **(kwargs or {}))


class Traffic(TorchDispatchMode):
    """Bytes that all operations but matrix products read and write, and casts of tensors of at least `numel` numbers."""

    def __init__(self, numel: int):
        super().__init__()
        self.numel, self.bytes, self.casts = numel, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        inputs, outputs = ([leaf for leaf in tree_leaves(part) if torch.is_tensor(leaf)] for part in (args, result))
        known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        if all(tensor.untyped_storage().data_ptr() in known for tensor in outputs):  # a view
            return result
        if not name.strip("_").startswith(MATRIX_PRODUCTS):
            self.bytes += sum(tensor.nbytes for tensor in (*inputs, *outputs))
        self.casts += name == "_to_copy" and inputs[0].numel() >= self.numel and inputs[0].dtype != outputs[0].dtype
        return result


def layer_traffic(monkeypatch, plain_norms: bool) -> tuple[Traffic, Traffic]:
    """Traffic of a layer of 512 tokens, forward and backward, weights cast beforehand."""
    with monkeypatch.context() as patch:
        if plain_norms:
            patch.setattr(modeling_lvmae.LVMAELayerNorm, "forward", nn.LayerNorm.forward)
        layer = modeling_lvmae.LVMAELayer(tiny_config(recompute_activations=False), 64, 4, 256).train()
        layer.attention.config._attn_implementation = "sdpa"
        states = torch.randn(1, 512, 64, dtype=torch.bfloat16, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16), NormsInFloat32():
            layer(states)  # autocast keeps its casts of the weights
            with Traffic(states.numel()) as forward:
                output = layer(states)
        with Traffic(states.numel()) as backward:
            output.sum().backward()
    return forward, backward


def test_a_layer_casts_no_activations(monkeypatch):
    """Two norms of plain LayerNorm: a cast before each, and one after it for q, k, v and the MLP."""
    before, after = (layer_traffic(monkeypatch, plain_norms) for plain_norms in (True, False))
    assert [traffic.casts for traffic in before] == [6, 6]
    assert [traffic.casts for traffic in after] == [0, 0]
    assert after[0].bytes < 0.5 * before[0].bytes
    assert after[1].bytes < 0.7 * before[1].bytes


def gradients(model: nn.Module, inputs: tuple, autocast: bool = False) -> dict[str, torch.Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), NormsInFloat32():
        loss = model(*inputs).loss
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def distance(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Mean relative error of the gradients."""
    return sum(float((found[name] - grad).norm() / grad.norm()) for name, grad in exact.items()) / len(exact)


@pytest.mark.parametrize("kind", ["pretraining", "class_attention"])
def test_gradients_are_as_near_to_float32s_as_with_norms_in_float32(kind, monkeypatch):
    """Means over draws, with norms whose weights bfloat16 cannot hold. Rounding them adds a little to all else that is rounded."""
    ours, theirs = [], []
    for draw in range(8):
        torch.manual_seed(draw)
        clips, fields = torch.randn(4, 8, 3, 32, 32), {"initializer_range": 0.2, "tube_drop_ratio": 0}
        if kind == "pretraining":
            model = LVMAEForPreTraining(tiny_config(**fields)).train()
            inputs = clips, topk_mask(torch.rand(4, 64), 32), topk_mask(torch.rand(4, 64), 24), torch.rand(4, 64, 3)
        else:
            model = LVMAEForVideoClassification(tiny_config(pooling=kind, **fields)).train()
            inputs = clips, torch.tensor([0, 1, 2, 0])
        for norm in (module for module in model.modules() if isinstance(module, nn.LayerNorm)):
            nn.init.normal_(norm.weight, 1, 0.3)
        exact = gradients(model, inputs)
        ours.append(distance(gradients(model, inputs, autocast=True), exact))
        with monkeypatch.context() as patch:
            patch.setattr(modeling_lvmae.LVMAELayerNorm, "forward", nn.LayerNorm.forward)
            theirs.append(distance(gradients(model, inputs, autocast=True), exact))
    assert 0 < sum(ours) < 1.2 * sum(theirs)
