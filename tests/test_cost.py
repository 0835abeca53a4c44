"""Closed forms against what is counted: FLOPs within 0.5 %, kept bytes within 2 % (LoRA 4 %), parameters exactly.

This is also the guard against a step that grows dearer without anyone noticing; nothing here looks at a clock.
"""

import pytest
import torch
from builders import tiny_config, tiny_tokenizer_config
from peft import LoraConfig, get_peft_model

from transformers_lvmae import (
    FSQMagViTConfig,
    FSQMagViTModel,
    LVMAEConfig,
    LVMAEForPreTraining,
    LVMAEForVideoClassification,
)
from transformers_lvmae.cost import classification_cost, pretraining_cost, tokenizer_cost, visible_tokens
from transformers_lvmae.measure import count_flops, count_saved_bytes
from transformers_lvmae.models.masking import random_tube_mask, topk_mask


SIZES = {
    "tiny": {},
    # ViT-S with 3 layers and 144 tokens: the small change of norms and loss no longer counts.
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


def checkpoint_as(case: dict[str, str], model) -> None:
    if "checkpointing" in case:
        model.activation_checkpointing_enable({"mlp_only": case["checkpointing"] == "mlp"})


def count_step(model, precision: str = "float32", **inputs) -> dict[str, int]:
    """What a training step really takes."""

    def forward():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return model(**inputs)

    (outputs, saved), forward_flops = count_flops(lambda: count_saved_bytes(model, forward))
    _, backward_flops = count_flops(lambda: outputs.loss.backward())
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
    # At tiny size, means and deviations of the norms and the loss's own tensors are a few percent of next to nothing.
    assert_costs(pretraining_cost(config, 2, **case), counted, saved_tolerance=0.02 if size == "medium" else 0.1)


@every_case
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_fine_tuning_step(lora_rank, case):
    case = CASES[case]
    config = tiny_config(**SIZES["medium"])
    model = LVMAEForVideoClassification(config)
    model.set_attn_implementation(case.get("attention", "sdpa"))
    inputs = {"pixel_values_videos": torch.randn(2, 8, 3, 96, 96), "labels": torch.zeros(2, dtype=torch.long)}
    wrapped = model
    if lora_rank:
        lora = LoraConfig(r=lora_rank, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
        wrapped = get_peft_model(model, lora)
    checkpoint_as(case, model)
    counted = count_step(wrapped.train(), case.get("precision", "float32"), **inputs)
    # Nothing before the first adapters needs a gradient: that layer keeps something else, and is a third of this model.
    tolerance = 0.04 if lora_rank else 0.02
    assert_costs(classification_cost(config, 2, **case, lora_rank=lora_rank), counted, tolerance)


def test_classifying():
    config = tiny_config(**SIZES["medium"])
    model = LVMAEForVideoClassification(config).eval()
    with torch.no_grad():
        _, flops = count_flops(lambda: model(torch.randn(2, 8, 3, 96, 96)))
    cost = classification_cost(config, 2, training=False)
    assert cost.flops == pytest.approx(flops, rel=0.005)
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
    assert_costs(tokenizer_cost(config, 2, training=True), counted, saved_tolerance=0.03)
    clips = torch.rand(2, config.num_frames, 3, *config.frame_size)
    with torch.no_grad():
        _, flops = count_flops(lambda: model.eval().encode(clips))
    assert tokenizer_cost(config, 2).flops == pytest.approx(flops, rel=0.005)


def meta_step(frames: int, checkpointing: str = "none", **fields) -> tuple[LVMAEConfig, dict[str, int]]:
    """The real step of a real size on the meta device: all that happens but the arithmetic."""
    config = LVMAEConfig(num_frames=frames, attn_implementation="eager", **fields)
    with torch.device("meta"):
        model = LVMAEForPreTraining(config).train()
        if checkpointing != "none":
            model.activation_checkpointing_enable({"mlp_only": checkpointing == "mlp"})
        masks = torch.zeros(2, 1, config.seq_length, dtype=torch.bool)
        counted = count_step(
            model,
            pixel_values_videos=torch.zeros(1, frames, 3, 224, 224),
            bool_masked_pos=masks[0],
            bool_decoded_pos=masks[1],
            target_codes=torch.zeros(1, config.seq_length, 6),
            num_visible=visible_tokens(config, config.mask_ratio),
            num_decoded=config.token_budget,
        )
    return config, counted


@pytest.mark.parametrize("checkpointing", ["none", "mlp"])
def test_real_size_costs_what_the_closed_form_says(checkpointing):
    """ViT-B, 128 frames of 224 pixels. Nothing can be read back from meta: with the counts given, no step ever waits."""
    config, counted = meta_step(128, checkpointing)
    assert_costs(pretraining_cost(config, attention="eager", checkpointing=checkpointing), counted)


def test_the_step_costs_what_it_did():
    """Pinned within 1 %: 1,131 billion FLOPs and 639 MiB for ViT-B at 128 frames."""
    cost = pretraining_cost(LVMAEConfig())
    assert cost.parameters == 93_621_894
    assert cost.flops == pytest.approx(1131e9, rel=0.01)
    assert cost.saved_bytes == pytest.approx(639 * 2**20, rel=0.01)
    eager = pretraining_cost(LVMAEConfig(), attention="eager")
    assert eager.saved_bytes < 17300 * 2**20 / 6  # a sixth of VideoMAE's


def test_states_are_spread_over_shards():
    cost = pretraining_cost(tiny_config())
    assert cost.state_bytes() == 16 * cost.parameters
    assert cost.state_bytes(4) == 4 * cost.parameters
    assert cost.peak_bytes(4) == cost.peak_bytes() - 12 * cost.parameters
    assert cost.step_bytes <= cost.peak_bytes() - 12 * cost.parameters
    mixed, plain = (classification_cost(tiny_config(), 2, mixing=mixing) for mixing in (True, False))
    assert mixed.peak_bytes() - plain.peak_bytes() == 2 * 8 * 3 * 32 * 32 * 4
    frozen = classification_cost(tiny_config(), lora_rank=2)
    assert frozen.state_bytes() == 4 * frozen.parameters + 12 * frozen.trainable_parameters
