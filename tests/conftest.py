"""Tiny models and what every test runs under: one thread, a fixed seed, and no luck with uninitialised memory."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import PreTrainedModel

from transformers_lvmae import FSQMagViTConfig, LVMAEConfig


SCRIPTS = Path(__file__).parent.parent / "scripts"

torch.set_num_threads(1)  # tiny tensors: threads cost more than they bring


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def nan_in_uninitialized_memory():
    """`torch.empty` returns NaN, so that a weight that nothing sets shows. torch does so in deterministic mode only."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def tiny_config(**overrides) -> LVMAEConfig:
    """4 x 4 x 4 = 64 tokens of 2 x 8 x 8 pixels."""
    fields = {
        "image_size": 32,
        "patch_size": 8,
        "num_frames": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
        "levels": (8, 5, 5),
        "mask_ratio": 0.5,
        "decoder_mask_ratio": 0.75,
        "decoder_random_ratio": 0.125,
        "num_labels": 3,
    }
    return LVMAEConfig(**{**fields, **overrides})


def tiny_tokenizer_config(**overrides) -> FSQMagViTConfig:
    """The grid of `tiny_config`, 4 x 4 x 4 tokens of 2 x 4 x 4 pixels, in two windows."""
    fields = {
        "image_size": 16,
        "num_frames": 8,
        "window_size": 4,
        "base_channels": 8,
        "channel_multipliers": (1, 1, 2),
        "temporal_downsample": (True, False),
        "stem_patch_size": (1, 1, 1),
        "num_res_blocks": 1,
        "norm_num_groups": 4,
        "levels": (8, 5, 5),
        "scorer_hidden_size": 8,
    }
    return FSQMagViTConfig(**{**fields, **overrides})


def initialise_again(model: PreTrainedModel) -> None:
    """Run the model's own initialisation over whatever its weights are, from one seed."""
    for module in model.modules():
        module._is_hf_initialized = False
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor._is_hf_initialized = False
    torch.manual_seed(0)
    model.init_weights()


def load_script(name: str) -> ModuleType:
    """`scripts/<name>.py` as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
