"""Under torch.compile a step is one graph, which serves every batch of its size: whatever is masked, drawn or mixed in it."""

from typing import Any

import pytest
import torch
from builders import tiny_config, tiny_tokenizer_config
from torch._dynamo.testing import CompileCounterWithBackend

from transformers_lvmae import FSQMagViTModel, LVMAEForPreTraining, LVMAEForVideoClassification
from transformers_lvmae.models.masking import random_tube_mask, topk_mask


def pretraining() -> tuple[Any, Any]:
    config = tiny_config()
    model = LVMAEForPreTraining(config)

    def batch() -> dict[str, torch.Tensor]:
        return {
            "pixel_values_videos": torch.randn(2, 8, 3, 32, 32),
            "bool_masked_pos": random_tube_mask(2, config.grid_size, config.mask_ratio),
            "bool_decoded_pos": topk_mask(torch.rand(2, 64), config.token_budget),
            "target_codes": torch.rand(2, 64, 3),
        }

    return model, batch


def classifier(**fields) -> tuple[Any, Any]:
    mixed = {"tube_drop_ratio": 0.25, "problem_type": "single_label_classification"}
    model = LVMAEForVideoClassification(tiny_config(**{**mixed, **fields}))
    return model, lambda: {"pixel_values_videos": torch.randn(2, 8, 3, 32, 32), "labels": torch.rand(2, 3).softmax(1)}


def tokenizer() -> tuple[Any, Any]:
    model = FSQMagViTModel(tiny_tokenizer_config(min_keep_ratio=0.1, topk_num_samples=4))
    return model, lambda: {"pixel_values_videos": torch.rand(2, 4, 3, 16, 16), "topk_sigma": torch.rand(()) + 0.01}


# The backend also traces backward, which for the tokenizer goes through a function of its own.
STEPS = {
    "pretraining": (pretraining, "eager", True),
    "classifier": (classifier, "eager", False),
    "class attention": (lambda: classifier(pooling="class_attention", drop_path_rate=0.1), "eager", True),
    "chosen tokens": (lambda: classifier(token_keep_ratio=0.5, token_selection="motion"), "eager", True),
    "tokenizer": (tokenizer, "aot_eager", False),
}


@pytest.mark.parametrize(("build", "backend", "autocast"), STEPS.values(), ids=STEPS)
def test_a_step_is_one_graph_for_all_batches(build, backend, autocast):
    torch._dynamo.reset()
    model, batch = build()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model.train(), fullgraph=True, backend=counter)
    for seed in range(3):
        model.zero_grad()
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = compiled(**batch()).loss
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
        assert all(gradient is not None for gradient in gradients)
    assert counter.frame_count == 1


def test_encoding_is_one_graph():
    torch._dynamo.reset()
    model = FSQMagViTModel(tiny_tokenizer_config()).eval()
    counter = CompileCounterWithBackend("eager")
    encode = torch.compile(model.encode, fullgraph=True, backend=counter)
    for seed in range(2):
        torch.manual_seed(seed)
        clips = torch.rand(2, 8, 3, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(encode(clips).code_indices, model.encode(clips).code_indices)
    assert counter.frame_count == 1
