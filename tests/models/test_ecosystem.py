"""The models under other libraries' tools: peft's task types, quantization, a plain Trainer, Auto classes."""

import copy

import pytest
import torch
from builders import tiny_config
from peft import LoraConfig, get_peft_model
from torch import nn

from transformers_lvmae import LVMAEForPreTraining, LVMAEForVideoClassification, LVMAEModel


CLASSES = {model.__name__: model for model in (LVMAEModel, LVMAEForPreTraining, LVMAEForVideoClassification)}
every_class = pytest.mark.parametrize("model_class", CLASSES.values(), ids=CLASSES)


def clips(rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def first_output(model: nn.Module, **inputs) -> torch.Tensor:
    """Hidden states or logits; masks are drawn from one seed."""
    torch.manual_seed(2)
    outputs = model(pixel_values_videos=clips(), **inputs)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


# Adapters


@pytest.mark.parametrize("task_type", [None, "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"])
@every_class
def test_peft_takes_every_task_type_that_does_not_generate(model_class, task_type):
    """A task type makes peft pass `input_ids`, `attention_mask` and more, all None. A new adapter changes nothing."""
    model = model_class(tiny_config(tube_drop_ratio=0)).eval()
    expected = first_output(model)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type=task_type)
    adapted = get_peft_model(copy.deepcopy(model), lora)
    torch.testing.assert_close(first_output(adapted.eval()), expected)
    first_output(adapted.train()).sum().backward()
    assert any(
        weight.grad is not None and weight.grad.any() for name, weight in adapted.named_parameters() if "lora_B" in name
    )


def test_the_loss_under_a_task_type_is_the_models():
    model, labels = LVMAEForVideoClassification(tiny_config(tube_drop_ratio=0)).eval(), torch.tensor([0, 2])
    expected = model(clips(), labels=labels).loss
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"))
    torch.testing.assert_close(adapted.eval()(pixel_values_videos=clips(), labels=labels).loss, expected)


@every_class
def test_an_attention_mask_is_refused_rather_than_ignored(model_class):
    with pytest.raises(ValueError, match=r"Got an attention_mask, expected none, .*: hide tokens with bool_masked_pos"):
        model_class(tiny_config())(clips(), attention_mask=torch.ones(2, 64))


# Quantized weights


class IntegerLinear(nn.Module):
    """A Linear whose weight is int8 and whose bias is not, as bitsandbytes has it."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.scale = linear.weight.abs().max().item() / 127
        self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        assert tensor.is_floating_point()
        return nn.functional.linear(tensor, self.weight.to(tensor.dtype) * self.scale, self.bias)


def with_integer_weights(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, IntegerLinear(child))
    return model


def dynamically_quantized(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*:DeprecationWarning")
@pytest.mark.parametrize("quantized", [with_integer_weights, dynamically_quantized])
@every_class
def test_quantized_weights_give_nearly_the_same(model_class, quantized):
    model = model_class(tiny_config(tube_drop_ratio=0)).eval()
    expected = first_output(model)
    with torch.no_grad():
        output = first_output(quantized(model))
    assert output.dtype == expected.dtype
    assert (output - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "decoder_hidden_size": 64, "decoder_intermediate_size": 64}
    model = LVMAEForVideoClassification(tiny_config(tube_drop_ratio=0, **sizes)).eval()
    expected = first_output(model)
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, llm_int8_skip_modules=["classifier"])
    loaded = LVMAEForVideoClassification.from_pretrained(tmp_path, quantization_config=config, device_map="cpu")
    with torch.no_grad():
        output = first_output(loaded)
    assert not loaded.lvmae.embeddings.patch_embeddings.projection.weight.is_floating_point()
    assert (output.float() - expected).norm() < 0.3 * expected.norm()
