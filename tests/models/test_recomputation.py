"""Recomputed outputs: bit-equal gradients and less memory, under checkpointing, autocast, LoRA and hooks."""

import pytest
import torch
from builders import tiny_config
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.modules.module import register_module_forward_hook
from transformers.activations import GELUActivation

from transformers_lvmae import LVMAEForPreTraining, LVMAEForVideoClassification
from transformers_lvmae.cost import count_saved_bytes
from transformers_lvmae.models import recomputation
from transformers_lvmae.models.masking import topk_mask
from transformers_lvmae.models.recomputation import apply_linears, recompute_in_backward


CHECKPOINTING = {
    "none": None,
    "mlp": {"mlp_only": True},
    "mlp, reentrant": {"mlp_only": True, "use_reentrant": True},
    "layer": {"use_reentrant": False},
    "layer, reentrant": {"use_reentrant": True},
}


def step(checkpointing=None, autocast=False, **fields) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients and kept bytes of a pre-training step: the same weights and inputs in every call."""
    torch.manual_seed(0)
    model = LVMAEForPreTraining(tiny_config(**fields)).train()
    if checkpointing is not None:
        model.activation_checkpointing_enable(checkpointing)
        if checkpointing.get("use_reentrant"):
            model.enable_input_require_grads()
    masked, decoded = topk_mask(torch.rand(2, 64), 32), topk_mask(torch.rand(2, 64), 24)
    inputs = torch.randn(2, 8, 3, 32, 32), masked, decoded, torch.rand(2, 64, 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output, kept = count_saved_bytes(model, lambda: model(*inputs))
    output.loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, kept


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradients_are_bit_equal_to_the_plain_step(checkpointing, autocast, attention):
    plain, _ = step(autocast=autocast, recompute_activations=False, attn_implementation=attention)
    recomputed, _ = step(CHECKPOINTING[checkpointing], autocast, attn_implementation=attention)
    for name, gradient in plain.items():
        assert torch.equal(gradient, recomputed[name]), name


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_each_lever_keeps_less_than_the_one_before(autocast):
    kept = [step(autocast=autocast, recompute_activations=False)[1]]
    kept += [step(CHECKPOINTING[name], autocast)[1] for name in ("none", "mlp", "layer")]
    assert kept == sorted(kept, reverse=True)
    # With MLPs of 2 x hidden_size; 4 x, as in every real size, gains more (test_cost.py counts to the byte).
    assert kept[1] < 0.8 * kept[0]
    assert kept[2] < 0.9 * kept[1]
    assert kept[3] < 0.6 * kept[2]


@pytest.mark.parametrize("checkpointing", [name for name in CHECKPOINTING if "reentrant" not in name])
@pytest.mark.parametrize("recompute", [True, False])
def test_activations_are_computed_twice_at_most(checkpointing, recompute, monkeypatch):
    calls = []
    monkeypatch.setattr(GELUActivation, "forward", lambda self, x: calls.append(x) or nn.functional.gelu(x))
    step(CHECKPOINTING[checkpointing], recompute_activations=recompute)
    layers = tiny_config().num_hidden_layers + tiny_config().decoder_num_hidden_layers
    assert len(calls) == layers * (2 if recompute or checkpointing != "none" else 1)


def test_only_what_the_function_reads_is_kept():
    norm, linears = nn.LayerNorm(16), [nn.Linear(16, 8) for _ in range(3)]
    tensor = torch.randn(4, 5, 16, requires_grad=True)
    modules = nn.ModuleList([norm, *linears])
    _, plain = count_saved_bytes(modules, lambda: [linear(norm(tensor)) for linear in linears])
    _, kept = count_saved_bytes(modules, lambda: apply_linears(recompute_in_backward(norm, tensor), *linears))
    assert kept == tensor.numel() * 4 < plain


def test_a_second_backward_recomputes_it_too():
    norm, linear = nn.LayerNorm(16), nn.Linear(16, 8)
    tensor = torch.randn(4, 16, requires_grad=True)
    (output,) = apply_linears(recompute_in_backward(norm, tensor), linear)
    first = torch.autograd.grad(output.square().sum(), [tensor, norm.weight, linear.weight], retain_graph=True)
    second = torch.autograd.grad(output.square().sum(), [tensor, norm.weight, linear.weight])
    assert all(torch.equal(*pair) for pair in zip(first, second))


@pytest.mark.parametrize("function", [nn.GELU(), nn.LayerNorm(6).double()], ids=["gelu", "norm"])
def test_first_and_second_derivatives_match_finite_differences(function):
    linear = nn.Linear(6, 2).double()
    tensor = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    weights = (*function.parameters(), *linear.parameters())

    def forward(tensor, *_):
        return apply_linears(recompute_in_backward(function, tensor), linear)[0]

    assert gradcheck(forward, (tensor, *weights))
    assert gradgradcheck(forward, (tensor, *weights))
    # gradgradcheck passes over gradients that have no graph.
    seconds = []
    for output in (forward(tensor), linear(function(tensor))):
        (first,) = torch.autograd.grad(output.sum(), tensor, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), tensor)[0])
    torch.testing.assert_close(*seconds)


def test_outputs_are_recomputed_under_the_autocast_of_the_forward_pass():
    """Backward runs outside of autocast, where this function would compute in float32."""
    function, linear = nn.Linear(16, 16), nn.Linear(16, 8)
    tensor, results = torch.randn(4, 16, requires_grad=True), []
    for plain in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            (output,) = apply_linears(recompute_in_backward(function, tensor, enabled=not plain), linear)
        results.append(torch.autograd.grad(output.float().square().sum(), [tensor, function.weight, linear.weight]))
    assert all(torch.equal(*pair) for pair in zip(*results))


def test_under_no_grad_nothing_is_kept():
    with torch.no_grad():
        assert recompute_in_backward(nn.LayerNorm(16), torch.randn(4, 16)).grad_fn is None


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["fc1", "fc2"], "all-linear"])
def test_lora_layers_are_called_and_get_the_same_gradients(targets):
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = LVMAEForVideoClassification(tiny_config(tube_drop_ratio=0, recompute_activations=recompute))
        lora = LoraConfig(r=2, lora_dropout=0.5, init_lora_weights=False, target_modules=targets)
        model = get_peft_model(model, lora).train()
        torch.manual_seed(1)
        model(torch.randn(2, 8, 3, 32, 32), labels=torch.tensor([0, 1])).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert gradient.any(), name
        assert torch.equal(gradient, gradients[1][name]), name


def test_hooks_around_see_all_else_that_is_kept():
    """Checkpointing and offloading work by such hooks: what they do not see stays in memory."""
    norm, linear = nn.LayerNorm(16), nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 8))
    tensor, seen = torch.randn(4, 16, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda kept: seen.append(kept) or kept, lambda kept: kept):
        apply_linears(norm(tensor), linear)
        plain_count = len(seen)
        (output,) = apply_linears(recompute_in_backward(norm, tensor), linear)
    # The norm keeps 5 tensors and its recomputed twin its input and 2 weights; dropout's mask and the Linear's input and weight are in
    # both.
    assert [kept.shape for kept in seen[plain_count + 3 :]] == [kept.shape for kept in seen[5:plain_count]]
    assert plain_count == 8
    output.sum().backward()
    assert tensor.grad.any()


def test_mlp_checkpointing_is_every_n_layers_and_can_be_taken_back():
    model = LVMAEForPreTraining(tiny_config())
    layers = [*model.lvmae.encoder.layers, *model.decoder.layers]
    model.activation_checkpointing_enable({"mlp_only": True}, every_n_layers=2)
    assert model.is_activation_checkpointing
    assert [layer.mlp_checkpointing for layer in layers] == [True, False, True, False]
    assert not any(layer.gradient_checkpointing for layer in layers)
    model.activation_checkpointing_enable()
    assert all(layer.gradient_checkpointing and not layer.mlp_checkpointing for layer in layers)
    model.activation_checkpointing_enable({"mlp_only": True})
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing
    assert not any(layer.gradient_checkpointing or layer.mlp_checkpointing for layer in layers)


def is_recomputed(function: nn.Module, tensor: torch.Tensor) -> bool:
    return isinstance(recompute_in_backward(function, tensor).grad_fn, recomputation._Recomputed._backward_cls)


HOOKS = {
    "forward pre": lambda norm, seen: norm.register_forward_pre_hook(lambda module, args: seen.append(True)),
    "forward": lambda norm, seen: norm.register_forward_hook(lambda module, args, out: seen.append(out.requires_grad)),
    "backward pre": lambda norm, seen: norm.register_full_backward_pre_hook(lambda module, grads: seen.append(True)),
    "backward": lambda norm, seen: norm.register_full_backward_hook(lambda module, *grads: seen.append(True)),
    "global": lambda norm, seen: register_module_forward_hook(lambda module, args, out: seen.append(out.requires_grad)),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_a_function_with_hooks_is_called_plainly(kind):
    """A hook fires once, with gradients. FSDP2 gathers a unit's parameters in a hook: outside of its call they are shards."""
    norm, seen = nn.LayerNorm(4), []
    tensor = torch.randn(2, 4, requires_grad=True)
    assert is_recomputed(norm, tensor)
    hook = HOOKS[kind](norm, seen)
    try:
        recompute_in_backward(norm, tensor).sum().backward()
    finally:
        hook.remove()
    assert seen == [True]
    assert is_recomputed(norm, tensor)


@pytest.mark.parametrize("changed", ["weight", "bias", "input"])
def test_what_changes_in_place_before_backward_is_an_error_as_in_a_plain_step(changed):
    norm, leaf = nn.LayerNorm(4), torch.randn(2, 4, requires_grad=True)
    tensor = leaf * 1
    output = recompute_in_backward(norm, tensor)
    with torch.no_grad():
        {"weight": norm.weight, "bias": norm.bias, "input": tensor}[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_small_outputs_are_kept(monkeypatch):
    monkeypatch.undo()  # of conftest.py
    smallest, norm = recomputation.SMALLEST_NUMEL, nn.LayerNorm(16)
    assert not is_recomputed(norm, torch.randn(smallest // 16 - 1, 16, requires_grad=True))
    assert is_recomputed(norm, torch.randn(smallest // 16, 16, requires_grad=True))
    assert smallest < 1280 * 768 / 8  # a 128-frame clip of ViT-B is far above, and one of 16 frames too
    assert 4 * 1280 * 768 < recomputation.SMALLEST_NUMEL_ON_ACCELERATORS < 5 * 1280 * 768
    assert [recomputation._is_small(torch.empty(2**20, device=device)) for device in ("cpu", "meta")] == [False, False]
