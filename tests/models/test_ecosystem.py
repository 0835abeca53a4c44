"""The models under other libraries' tools: peft's task types, quantization, a plain Trainer, Auto classes."""

import copy
import logging
import subprocess
import sys

import pytest
import torch
from builders import assert_same, tiny_config, tiny_tokenizer_config
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel, Trainer, TrainingArguments

from transformers_lvmae import FSQMagViTModel, LVMAEForPreTraining, LVMAEForVideoClassification, LVMAEModel
from transformers_lvmae.models.masking import topk_mask


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
@pytest.mark.parametrize("fields", [{}, {"token_keep_ratio": 0.25, "scorer_patch_size": 4}])
@every_class
def test_quantized_weights_give_nearly_the_same(model_class, fields, quantized):
    model = model_class(tiny_config(tube_drop_ratio=0, **fields)).eval()
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


# transformers' own Trainer


def pretraining_items(config, count: int) -> list[dict[str, torch.Tensor]]:
    masked, decoded = (topk_mask(torch.rand(count, config.seq_length), kept) for kept in (32, 24))
    return [
        {"pixel_values_videos": torch.randn(8, 3, 32, 32), "bool_masked_pos": masked[n], "bool_decoded_pos": decoded[n],
         "target_codes": torch.rand(config.seq_length, len(config.levels))}
        for n in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("stage", ["codes", "pixels", "tokenizer"])
def test_a_plain_trainer_has_a_loss_and_predicts_every_clip(stage, tmp_path):
    if stage == "tokenizer":
        model = FSQMagViTModel(tiny_tokenizer_config())
        items, names = [{"pixel_values_videos": torch.rand(8, 3, 16, 16)} for _ in range(5)], 4
    else:
        model = LVMAEForPreTraining(tiny_config(target_type=stage))
        items, names = pretraining_items(model.config, 5), 3
        items = [
            {name: value for name, value in item.items() if stage == "codes" or name != "target_codes"}
            for item in items
        ]
    options = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "report_to": "none", "use_cpu": True}
    arguments = TrainingArguments(str(tmp_path), max_steps=2, save_strategy="no", disable_tqdm=True, **options)
    trainer = Trainer(model, arguments, train_dataset=items, eval_dataset=items)
    trainer.train()
    model.eval()
    with torch.no_grad():
        losses = [model(**{name: value[None] for name, value in item.items()}).loss.item() for item in items]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(losses) / 5, rel=1e-4)
    predictions = trainer.predict(items).predictions
    assert [len(values) for values in predictions] == [5] * names
    item = {name: value[None] for name, value in items[4].items()}
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(predictions[0][4]), model(**item, return_loss=False)[0][0])


# Auto classes and outputs


def unexpected(model_class, folder, **fields) -> set[str]:
    return set(model_class.from_pretrained(folder, output_loading_info=True, **fields)[1]["unexpected_keys"])


@pytest.mark.parametrize("kind", ["pretraining", "mean", "class_attention"])
def test_the_encoder_loads_from_every_folder_without_a_warning(kind, tmp_path, caplog, monkeypatch):
    saved = LVMAEForPreTraining if kind == "pretraining" else LVMAEForVideoClassification
    model = saved(tiny_config(pooling="class_attention" if kind == "class_attention" else "mean"))
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert not [record.getMessage() for record in caplog.records]
    assert_same(dict(encoder.state_dict()), dict(model.lvmae.state_dict()))


def test_weights_of_a_head_that_are_not_loaded_are_still_named(tmp_path):
    LVMAEForPreTraining(tiny_config(decoder_num_hidden_layers=3)).save_pretrained(tmp_path / "pretrained")
    names = unexpected(LVMAEForPreTraining, tmp_path / "pretrained", decoder_num_hidden_layers=2)
    assert names
    assert all(name.startswith("decoder.layers.2.") for name in names)
    assert unexpected(LVMAEForVideoClassification, tmp_path / "pretrained") == set()
    LVMAEForVideoClassification(tiny_config(pooling="class_attention")).save_pretrained(tmp_path / "classifier")
    names = unexpected(LVMAEForVideoClassification, tmp_path / "classifier", pooling="mean")
    assert names
    assert all(name.startswith("pooler.") for name in names)


def test_the_pooled_output_is_the_mean_and_the_last_hidden_state_is_normed():
    model = LVMAEModel(tiny_config()).eval()
    nn.init.normal_(model.layernorm.weight)
    outputs = model(clips(), output_hidden_states=True)
    torch.testing.assert_close(outputs.pooler_output, outputs.last_hidden_state.mean(dim=1))
    torch.testing.assert_close(model.layernorm(outputs.hidden_states[-1]), outputs.last_hidden_state)
    masked = topk_mask(torch.rand(2, 64), 32)
    visible = model(clips(), masked)
    torch.testing.assert_close(visible.pooler_output, visible.last_hidden_state.mean(dim=1))


def test_input_embeddings_can_be_read_and_replaced():
    for model, first in [(FSQMagViTModel(tiny_tokenizer_config()), nn.Conv3d), (LVMAEModel(tiny_config()), nn.Module)]:
        embeddings = model.get_input_embeddings()
        assert isinstance(embeddings, first)
        replaced = copy.deepcopy(embeddings)
        model.set_input_embeddings(replaced)
        assert model.get_input_embeddings() is replaced


WITHOUT_TORCHVISION = """
from importlib.machinery import PathFinder

found = PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda cls, name, *args: None if name.split(".")[0] == "torchvision" else found(name, *args))
import numpy as np
import pytest
import torch
import transformers_lvmae as lvmae

clip = np.random.default_rng(0).integers(0, 256, (4, 48, 40, 3), dtype=np.uint8)
small = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
inputs = lvmae.LVMAEImageProcessorPil(**small)(clip, return_tensors="pt")
config = lvmae.LVMAEConfig(image_size=16, num_frames=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_labels=2)
assert lvmae.LVMAEForVideoClassification(config)(**inputs).logits.shape == (1, 2)
for processor in (lvmae.LVMAEVideoProcessor, lvmae.LVMAEImageProcessor):
    with pytest.raises(ImportError, match="[Tt]orchvision"):
        processor()
"""


def test_models_and_the_pil_processor_need_no_torchvision():
    run = subprocess.run([sys.executable, "-c", WITHOUT_TORCHVISION], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
