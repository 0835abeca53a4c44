"""Costs counted on the meta device against a naive formula and against real steps on the CPU, autocast and fused attention included.

A step that becomes more expensive fails here. No test reads a clock; tests/benchmarks compares the peak with measured memory.
"""

from types import SimpleNamespace

import pytest
import torch
from builders import tiny_config, tiny_tokenizer_config
from peft import LoraConfig, get_peft_model
from torch import nn

from transformers_lvmae import (
    FSQMagViTConfig,
    FSQMagViTModel,
    LVMAEConfig,
    LVMAEForPreTraining,
    LVMAEForVideoClassification,
)
from transformers_lvmae.cost import (
    classification_cost,
    count_flops,
    count_saved_bytes,
    pretraining_cost,
    tokenizer_cost,
)
from transformers_lvmae.cost import count_step as cost_of_step
from transformers_lvmae.models.masking import random_tube_mask, topk_mask


SIZES = {
    "tiny": {},
    # ViT-S with 3 layers and 144 tokens: norms and loss are a small share.
    "medium": {
        "image_size": 96,
        "patch_size": 16,
        "num_frames": 8,
        "hidden_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "decoder_hidden_size": 192,
        "decoder_intermediate_size": 768,
    },
}
CASES = {
    "default": {},
    "bfloat16": {"precision": "bfloat16"},
    "mlp": {"checkpointing": "mlp"},
    "mlp, bfloat16": {"checkpointing": "mlp", "precision": "bfloat16"},
    "layer": {"checkpointing": "layer"},
    "layer, bfloat16": {"checkpointing": "layer", "precision": "bfloat16"},
    "eager": {"attention": "eager"},
    "eager, bfloat16": {"attention": "eager", "precision": "bfloat16"},
    "eager, layer": {"attention": "eager", "checkpointing": "layer"},
}
every_case = pytest.mark.parametrize("case", CASES)


def test_fused_attention_counts_as_its_eager_form():
    def attention(fused):
        query, key, value = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (10, 7, 7))
        if fused:
            return nn.functional.scaled_dot_product_attention(query, key, value).sum()
        return ((query @ key.mT / 8**0.5).softmax(dim=-1) @ value).sum()

    for fused in (True, False):
        output, forward = count_flops(lambda fused=fused: attention(fused))
        _, backward = count_flops(output.backward)
        assert forward == 2 * (2 * 3 * 10 * 7 * 8) * 2
        assert backward == 2 * forward


def test_convolutions_and_linears_count_two_per_multiply_and_add():
    conv, linear = nn.Conv3d(3, 5, 3, padding=1), nn.Linear(6, 4)
    assert count_flops(lambda: conv(torch.randn(1, 3, 4, 6, 6)))[1] == 2 * 3 * 5 * 27 * 4 * 6 * 6
    assert count_flops(lambda: linear(torch.randn(7, 6)))[1] == 2 * 7 * 6 * 4


def test_a_storage_is_counted_once_and_weights_not_at_all():
    linears = nn.ModuleList([nn.Linear(16, 16) for _ in range(2)])
    tensor = torch.randn(8, 16, requires_grad=True)
    _, both = count_saved_bytes(linears, lambda: [linear(tensor) for linear in linears])
    assert both == 8 * 16 * 4
    with torch.no_grad():
        assert count_saved_bytes(linears, lambda: linears[0](tensor))[1] == 0


def checkpoint_as(case: dict[str, str], model) -> None:
    if "checkpointing" in case:
        model.activation_checkpointing_enable({"mlp_only": case["checkpointing"] == "mlp"})


def count_step(model, precision: str = "float32", **inputs) -> dict[str, int]:
    """Count a real training step on the CPU."""

    def forward():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return model(**inputs)

    outputs, forward_flops = count_flops(forward)
    _, backward_flops = count_flops(lambda: outputs.loss.backward())
    _, saved = count_saved_bytes(
        model, forward
    )  # not inside the FLOP counter, whose hooks make recomputed functions plain calls
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "flops": forward_flops + backward_flops,
        "saved_bytes": saved,
    }


def assert_costs(cost, counted: dict[str, int], saved_tolerance: float = 0.02) -> None:
    assert cost.parameters == counted["parameters"]
    assert cost.trainable_parameters == counted["trainable_parameters"]
    assert cost.flops == pytest.approx(counted["flops"], rel=0.005)
    assert cost.saved_bytes == pytest.approx(counted["saved_bytes"], rel=saved_tolerance)


def pretraining_inputs(config: LVMAEConfig, batch_size: int = 2) -> dict[str, torch.Tensor]:
    return {
        "pixel_values_videos": torch.randn(batch_size, config.num_frames, 3, *config.frame_size),
        "bool_masked_pos": random_tube_mask(batch_size, config.grid_size, config.mask_ratio),
        "bool_decoded_pos": topk_mask(torch.rand(batch_size, config.seq_length), config.token_budget),
        "target_codes": torch.zeros(batch_size, config.seq_length, config.target_size),
    }


@every_case
@pytest.mark.parametrize("rebuild", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_pretraining_step(size, rebuild, case):
    case = CASES[case]
    config = tiny_config(**SIZES[size], recompute_activations=rebuild)
    model = LVMAEForPreTraining(config).train()
    model.set_attn_implementation(case.get("attention", "sdpa"))
    checkpoint_as(case, model)
    counted = count_step(model, case.get("precision", "float32"), **pretraining_inputs(config))
    assert_costs(pretraining_cost(config, 2, **case), counted)


def with_lora(model):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    return get_peft_model(model, lora)


@every_case
@pytest.mark.parametrize("adapt", [None, with_lora], ids=["all weights", "LoRA"])
def test_fine_tuning_step(adapt, case):
    case = CASES[case]
    config = tiny_config(**SIZES["medium"])
    model = LVMAEForVideoClassification(config)
    model.set_attn_implementation(case.get("attention", "sdpa"))
    inputs = {"pixel_values_videos": torch.randn(2, 8, 3, 96, 96), "labels": torch.zeros(2, dtype=torch.long)}
    wrapped = model if adapt is None else adapt(model)
    checkpoint_as(case, model)
    counted = count_step(wrapped.train(), case.get("precision", "float32"), **inputs)
    # Autocast rounds frozen weights, and the first layer's are a third of this model.
    assert_costs(classification_cost(config, 2, **case, adapt=adapt), counted, 0.04 if adapt else 0.02)


def test_classifying():
    config = tiny_config(**SIZES["medium"])
    model = LVMAEForVideoClassification(config).eval()
    with torch.no_grad():
        _, flops = count_flops(lambda: model(torch.randn(2, 8, 3, 96, 96)))
    cost = classification_cost(config, 2, training=False)
    assert cost.flops == flops
    assert cost.trainable_parameters == cost.saved_bytes == 0


TOKENIZERS = {
    "tiny": tiny_tokenizer_config(),
    "default": FSQMagViTConfig(image_size=32, num_frames=20, base_channels=16),
    "magvit": FSQMagViTConfig.from_size("magvit_base", image_size=16, num_frames=20, base_channels=16),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokenizer(kind):
    config = TOKENIZERS[kind]
    model = FSQMagViTModel(config).train()
    counted = count_step(model, pixel_values_videos=torch.rand(2, config.window_size, 3, *config.frame_size))
    assert_costs(tokenizer_cost(config, 2, training=True), counted)
    clips = torch.rand(2, config.num_frames, 3, *config.frame_size)
    with torch.no_grad():
        _, flops = count_flops(lambda: model.eval().encode(clips))
    assert tokenizer_cost(config, 2).flops == flops


def naive_flops(depth: int, tokens: int, width: int, inner: int, outputs: int | None = None) -> int:
    """Forward of transformer layers: query, key, value; scores and sums; output projection and MLP of the tokens that come out."""
    outputs = tokens if outputs is None else outputs
    return depth * (6 * tokens * width**2 + 4 * outputs * tokens * width + 2 * outputs * (width**2 + 2 * width * inner))


def test_a_real_size_costs_what_its_matrix_products_say():
    """ViT-B, 128 frames of 224 pixels: 64 x 19 of 64 x 196 tokens visible, 1,881 decoded."""
    visible, decoded = 64 * 20, 1881
    stacks = naive_flops(12, visible, 768, 3072) + naive_flops(3, visible + decoded, 384, 1536)
    stacks += naive_flops(1, visible + decoded, 384, 1536, outputs=decoded)
    ends = 2 * visible * 768 * 384 + 2 * decoded * 384 * 6
    embedding = 2 * visible * (3 * 2 * 16 * 16) * 768
    for attention in ("sdpa", "eager"):  # the pixels need no gradient, everything else needs two
        assert pretraining_cost(LVMAEConfig(), attention=attention).flops == 3 * (stacks + ends) + 2 * embedding
    tokens = 64 * (196 - 39)  # a fifth of the tubes is dropped
    classifier = 3 * (naive_flops(12, tokens, 768, 3072) + 2 * 768 * 48) + 2 * 2 * tokens * 1536 * 768
    assert classification_cost(LVMAEConfig(num_labels=48)).flops == classifier


def test_the_step_costs_what_it_did():
    """Pinned within 1 %: 1,131 billion FLOPs and 639 MiB for ViT-B at 128 frames."""
    cost = pretraining_cost(LVMAEConfig())
    assert cost.parameters == 93_621_894
    assert cost.flops == pytest.approx(1131e9, rel=0.01)
    assert cost.saved_bytes == pytest.approx(639 * 2**20, rel=0.01)
    eager = pretraining_cost(LVMAEConfig(), attention="eager")
    assert eager.saved_bytes < 17300 * 2**20 / 6  # a sixth of VideoMAE's


def test_the_peak_is_that_of_the_tensors_alive():
    """Three linears in a row. At the peak the second one's backward holds its input, the gradients of its output and input and of
    two weights, the loss and its gradient; the batch is not counted, though it is kept."""
    cost = count_step_of_linears(width=64, rows=512)
    weights, activations = 4 * 64 * 64, 4 * 512 * 64
    assert cost.saved_bytes == 3 * activations
    assert cost.input_bytes == activations
    assert cost.step_bytes == 3 * activations + 2 * weights + 2 * 4


def count_step_of_linears(width: int, rows: int):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linears = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(3)))

        def forward(self, clips):
            return SimpleNamespace(loss=self.linears(clips).sum())

    with torch.device("meta"):
        return cost_of_step(Model(), torch.zeros(rows, width))


def test_states_are_counted_in_float32():
    cost = pretraining_cost(tiny_config())
    assert cost.state_bytes == 16 * cost.parameters
    assert cost.step_bytes <= cost.peak_bytes - 12 * cost.parameters
    mixed, plain = (classification_cost(tiny_config(), 2, mixing=mixing) for mixing in (True, False))
    assert mixed.peak_bytes - plain.peak_bytes == 2 * 8 * 3 * 32 * 32 * 4
    frozen = classification_cost(tiny_config(), adapt=with_lora)
    assert frozen.state_bytes == 4 * frozen.parameters + 12 * frozen.trainable_parameters


def test_counting_leaves_the_callers_config_alone():
    config = tiny_config(attn_implementation="eager")
    pretraining_cost(config, precision="bfloat16", checkpointing="mlp")
    assert config._attn_implementation == "eager"
