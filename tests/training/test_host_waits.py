"""No small batch makes the host wait for an accelerator.

The steps run on PyTorch's meta device, whose tensors have no values: whoever reads one gets an error. What is allowed to wait is
the first step, the log, an evaluation and a save.
"""

import pytest
import torch
from builders import CLIPS, MODEL, TOKENIZER, make_trainer
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification, TrainingArguments

from transformers_lvmae import (
    FSQMagViTConfig,
    FSQMagViTModel,
    LVMAEConfig,
    LVMAEForPreTraining,
    LVMAEForVideoClassification,
)
from transformers_lvmae.data import load_video_dataset
from transformers_lvmae.training.perceptual_loss import PerceptualLoss


META = torch.device("meta")


@pytest.fixture(scope="module")
def splits():
    return load_video_dataset(CLIPS, label_column="label")


@pytest.fixture(autouse=True)
def trainers_on_meta(monkeypatch):
    monkeypatch.setattr(TrainingArguments, "device", property(lambda self: self._setup_devices and META))


def small_batches(trainer, **more):
    """Run two small batches and return one."""
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(4)])
    batch = {name: value.to(META) if torch.is_tensor(value) else value for name, value in {**batch, **more}.items()}
    trainer._clips_of_step = len(batch["pixel_values_videos"])
    for _ in range(2):
        loss = trainer.training_step(trainer.model, dict(batch))
        assert loss.is_meta
    assert all(parameter.grad.is_meta for parameter in trainer.model.parameters() if parameter.requires_grad)
    return batch


def test_a_value_that_is_read_is_an_error():
    loss = torch.ones(2, device=META).sum()
    for read in (float, bool, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.nonzero, torch.Tensor.cpu):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read(loss)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(2, device=META)[torch.ones(2, dtype=torch.bool, device=META)]


STEPS = [
    ("codes", "adaptive_random"),
    ("levels", "everest"),
    ("latents", "motion"),
    ("pixels", "uniform"),
    ("codes", "none"),
]


@pytest.mark.parametrize(("target", "mask"), STEPS)
def test_pretraining(target, mask, splits, tmp_path):
    config = LVMAEConfig(**{**MODEL.to_dict(), "target_type": target, "decoder_mask": mask, "drop_path_rate": 0.1})
    trainer = make_trainer("pretraining", splits, tmp_path, model=LVMAEForPreTraining(config))
    small_batches(trainer)


def test_pretraining_on_a_cache(splits, tmp_path):
    trainer = make_trainer("pretraining", splits, tmp_path, model=LVMAEForPreTraining(MODEL))
    tokens, visible = MODEL.seq_length, 16
    tubelets = torch.zeros(4, visible, 2, 3, 8, 8, dtype=torch.uint8)
    batch = {"visible_tubelets": tubelets, "bool_masked_pos": torch.ones(4, tokens, dtype=torch.bool)}
    batch |= {"code_indices": torch.zeros(4, tokens, dtype=torch.long), "importance_scores": torch.rand(4, tokens)}
    batch["noise"] = torch.rand(4, tokens)
    trainer._clips_of_step = 4
    inputs = {name: value.to(META) for name, value in batch.items()}
    assert trainer.training_step(trainer.model, inputs).is_meta


FIELDS = {
    "plain": {},
    "class attention": {"pooling": "class_attention"},
    "mixed": {"drop_path_rate": 0.1},
    "label sets": {"label_sets": {"one": [0, 3], "two": [3, 8]}},
    "bytes": {"tube_drop_ratio": 0.0},
    "chosen by learned scores": {
        "token_keep_ratio": 0.5,
        "token_random_ratio": 0.1,
        "scorer_patch_size": 4,
        "scorer_is_trained": True,
    },
    "chosen by motion": {"token_keep_ratio": 0.5, "token_selection": "motion"},
}


@pytest.mark.parametrize("kind", FIELDS)
def test_classification(kind, splits, tmp_path):
    config = LVMAEConfig(**{**MODEL.to_dict(), "tube_drop_ratio": 0.25, **FIELDS[kind]})
    mixing = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing_factor": 0.1} if kind == "mixed" else {}
    model = LVMAEForVideoClassification(config)
    trainer = make_trainer("classification", splits, tmp_path, model=model, **{"ema_decay": 0.9, **mixing})
    more = {"labels": torch.zeros(4, 2, dtype=torch.long)} if kind == "label sets" else {}
    if kind == "bytes":
        more["pixel_values_videos"] = torch.zeros(4, 8, 3, 32, 32, dtype=torch.uint8)
        more["erasing_noise"] = torch.zeros(4, 3, 32, 32)
    small_batches(trainer, **more)


@pytest.mark.parametrize("kind", ["plain", "adversarial", "perceptual"])
def test_the_tokenizer(kind, splits, tmp_path):
    if kind == "perceptual":
        layers = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
        ResNetForImageClassification(ResNetConfig(**layers)).save_pretrained(tmp_path / "resnet")
        ConvNextImageProcessor(size={"shortest_edge": 24}, crop_pct=1.0).save_pretrained(tmp_path / "resnet")
    arguments = {
        "plain": {"perceptual_weight": 0.0, "topk_sigma_end": 0.01},
        "adversarial": {
            "perceptual_weight": 0.0,
            "adversarial_weight": 0.1,
            "discriminator_channels": 4,
            "discriminator_multipliers": [2, 4],
            "ema_decay": 0.9,
        },
        "perceptual": {"perceptual_model": str(tmp_path / "resnet")},
    }[kind]
    model = FSQMagViTModel(FSQMagViTConfig(**{**TOKENIZER.to_dict(), "min_keep_ratio": 0.1}))
    trainer = make_trainer("tokenizer", splits, tmp_path, model=model, **arguments)
    assert isinstance(trainer.perceptual_loss, PerceptualLoss) == (kind == "perceptual")
    trainer.state.max_steps = 10
    trainer._checked_range = True  # the first step waits
    small_batches(trainer)
