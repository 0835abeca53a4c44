"""Builders of tiny models, clips and trainers for several tests."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from transformers import PreTrainedModel

from transformers_lvmae import (
    FSQMagViTConfig,
    FSQMagViTModel,
    FSQMagViTTrainer,
    FSQMagViTTrainingArguments,
    LVMAEClassificationArguments,
    LVMAEClassificationTrainer,
    LVMAEConfig,
    LVMAEForPreTraining,
    LVMAEForVideoClassification,
    LVMAEPreTrainer,
    LVMAEPreTrainingArguments,
)
from transformers_lvmae.data import ClipAugmentation, FrameSampling, MaskedVideoClips, VideoClips, processor_for
from transformers_lvmae.models.video_io import write_video


TESTS = Path(__file__).parent
FIXTURES = TESTS / "fixtures"
CLIPS = FIXTURES / "clips"
ROOT = TESTS.parent
SCRIPTS = ROOT / "scripts"
PROGRAM_FOLDERS = [ROOT / name for name in ("scripts", "studies", "examples", "benchmarks")]
TOKENIZER = FSQMagViTConfig(
    image_size=16,
    num_frames=8,
    window_size=8,
    base_channels=16,
    channel_multipliers=(1, 2),
    temporal_downsample=(True,),
    num_res_blocks=1,
    stem_patch_size=(1, 2, 2),
    topk_num_samples=8,
)
MODEL = LVMAEConfig(
    image_size=32,
    patch_size=8,
    num_frames=8,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    decoder_hidden_size=48,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=4,
    decoder_intermediate_size=96,
    mask_ratio=0.75,
    decoder_mask_ratio=0.7,
    decoder_random_ratio=0.2,
    tube_drop_ratio=0.0,
    num_labels=8,
)


def tiny_config(**overrides) -> LVMAEConfig:
    """Return a config of 4 x 4 x 4 = 64 tokens of 2 x 8 x 8 pixels."""
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
    """Return a config with the grid of `tiny_config`, 4 x 4 x 4 tokens of 2 x 4 x 4 pixels, in two windows."""
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


def initialize_again(model: PreTrainedModel) -> None:
    """Initialize all weights again with the model's own function, from one seed."""
    for module in model.modules():
        module._is_hf_initialized = False
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor._is_hf_initialized = False
    torch.manual_seed(0)
    model.init_weights()


def load_script(name: str) -> ModuleType:
    """Return `<name>.py` of scripts, studies, examples or benchmarks as a module."""
    path = next(folder / f"{name}.py" for folder in PROGRAM_FOLDERS if (folder / f"{name}.py").exists())
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # a program may import the files beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def make_trainer(stage, splits, output_dir, training=True, num_clips=8, model=None, **arguments):
    """Return a trainer of one stage on the fixture's clips, always with the same seeds."""
    torch.manual_seed(0)
    arguments = {
        "output_dir": str(output_dir),
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        **arguments,
    }
    train_rows, eval_rows = splits["train"].select(range(num_clips)), splits["test"].select(range(6))
    if stage == "tokenizer":
        processor, frames = processor_for(TOKENIZER, do_normalize=False), TOKENIZER.window_size
        sampling = FrameSampling(frame_stride=1)
        return FSQMagViTTrainer(
            model or FSQMagViTModel(TOKENIZER),
            FSQMagViTTrainingArguments(**arguments),
            train_dataset=VideoClips(train_rows, processor, frames, training=training, sampling=sampling),
            eval_dataset=VideoClips(eval_rows, processor, frames, sampling=sampling),
            processing_class=processor,
        )
    processor = processor_for(MODEL)
    if stage == "pretraining":
        masks = {"grid_size": MODEL.grid_size, "mask_ratio": MODEL.mask_ratio}
        return LVMAEPreTrainer(
            model or LVMAEForPreTraining(MODEL),
            LVMAEPreTrainingArguments(**arguments),
            train_dataset=MaskedVideoClips(train_rows, processor, 8, training=training, **masks),
            eval_dataset=MaskedVideoClips(eval_rows, processor, 8, **masks),
            processing_class=processor,
            video_tokenizer=FSQMagViTModel(TOKENIZER),
        )
    cropping = ClipAugmentation(min_crop_scale=0.5)
    return LVMAEClassificationTrainer(
        model or LVMAEForVideoClassification(MODEL),
        LVMAEClassificationArguments(**arguments),
        train_dataset=VideoClips(
            train_rows, processor, 8, training=training, augmentation=cropping, label_column="label"
        ),
        eval_dataset=VideoClips(eval_rows, processor, 8, label_column="label"),
        processing_class=processor,
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def save_tokenizer(folder, **overrides):
    torch.manual_seed(0)
    path = folder / "start"
    FSQMagViTModel(FSQMagViTConfig(**{**TOKENIZER.to_dict(), **overrides})).save_pretrained(path)
    return path


def pretraining_batch(trainer, rows=3):
    """Return the first clips of the training set, normalized, with their masks."""
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(rows)])
    return {**batch, "pixel_values_videos": trainer.target_builder.scale.normalize(batch["pixel_values_videos"])}


def assert_same(one, two):
    """Assert that two nested structures are equal, bit for bit."""
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for first, second in zip(one, two):
            assert_same(first, second)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    else:
        assert one == two


def write_gray_video(path: Path, brightness: int, num_frames: int = 2) -> None:
    """Write a video of 16 x 16 gray pixels whose first frame has this brightness."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.full((num_frames, 16, 16, 3), brightness, np.uint8)
    write_video(path, frames, fps=10)
