"""Fine-tune LVMAE on labelled videos, or train a classifier from scratch, and measure its test accuracy.

    python scripts/finetune.py --model_name_or_path runs/pretrain --dataset_name FOLDER_OR_HUB_ID --output_dir runs/finetune \\
        --num_train_epochs 50 --learning_rate 1e-3

The output folder holds the model with its class names, the processor and a model card, ready for `pipeline("video-classification")`;
--push_to_hub uploads it. An interrupted run continues from its newest checkpoint. `--label_column verb,noun` learns two labels at once,
such as EPIC-Kitchens'.

VideoMAE's full recipe adds `--base_learning_rate 5e-4 --min_crop_scale 0.08 --num_clips 2 --rand_augment_num_ops 4
--random_erasing_prob 0.25 --mixup_alpha 0.8 --cutmix_alpha 1.0 --label_smoothing_factor 0.1 --config_overrides '{"drop_path_rate":
0.1}'` (scripts/runs/ has it for each of the paper's benchmarks).

With `--lora`, or any adapter of peft as `--peft_config`, the output folder holds only the adapter, the processor, and the config with the
class names. The model card in it shows how to load them with the base model.
"""

import resource
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import set_seed

from transformers_lvmae import (
    FSQMagViTModel,
    LVMAEClassificationArguments,
    LVMAEClassificationTrainer,
    LVMAEConfig,
    LVMAEForVideoClassification,
)
from transformers_lvmae.command_line import check_ranges, json_object, run
from transformers_lvmae.data import (
    ByteVideoClips,
    ChosenVideoClips,
    ClipAugmentation,
    VideoDataArguments,
    load_video_dataset,
    processor_for,
    select_split,
)
from transformers_lvmae.data.streams import trainer_dataset
from transformers_lvmae.models.token_selection import check_scorer
from transformers_lvmae.sharing.loading import load_model
from transformers_lvmae.training.arguments import ModelArguments, parse_arguments
from transformers_lvmae.training.base import train_and_save


@dataclass
class FineTuningModelArguments(ModelArguments):
    config_options: ClassVar[tuple[str, ...]] = ("token_keep_ratio", "token_selection")

    model_size: str = field(
        default="base", metadata={"help": "Size of a new model.", "choices": ["small", "base", "large", "huge"]}
    )
    token_keep_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Share of a clip's tokens that the classifier looks at, above 0 and at most 1. Default: the model's own, or 1.",
            "within": "(0, 1]",
        },
    )
    token_selection: str | None = field(
        default=None,
        metadata={
            "help": "Which tokens: learned (needs --tokenizer, unless the model has a scorer), motion, everest, random or uniform. "
            "Default: the model's own, or learned.",
            "choices": ["learned", "motion", "everest", "random", "uniform"],
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of a trained tokenizer. Its scorer becomes part of the model and chooses tokens."
        },
    )

    def load(self, **overrides: Any) -> LVMAEForVideoClassification:
        """Return the model to train, with other fields of the config.

        Raises:
            ValueError: tokens are chosen by learned scores, and there is no trained scorer; a tokenizer or a selection that is not used.
        """
        if self.model_name_or_path:
            model = load_model(LVMAEForVideoClassification, self.model_name_or_path, **overrides)
        else:
            model = LVMAEForVideoClassification(LVMAEConfig.from_size(cast(Any, self.model_size), **overrides))
        unused = {"token_selection", "token_random_ratio", "token_score_threshold"} & overrides.keys()
        if unused and model.config.token_keep_ratio == 1:
            raise ValueError(
                f"Got {', '.join(sorted(unused))} and token_keep_ratio=1, expected a ratio below 1: add --token_keep_ratio."
            )
        if self.tokenizer is not None:
            model.set_token_scorer(load_model(FSQMagViTModel, self.tokenizer))
        check_scorer(model.config)
        return model


@dataclass
class LabelledVideoDataArguments(VideoDataArguments):
    test_split: str | None = field(default=None, metadata={"help": "Split for the final accuracy. Default: no test."})
    rand_augment_num_ops: int = field(
        default=0,
        metadata={"help": "RandAugment operations per training clip (VideoMAE: 4). 0 is none.", "within": "[0, inf)"},
    )
    rand_augment_magnitude: int = field(
        default=7,
        metadata={"help": "Strength of RandAugment's operations, 0 to 10 (VideoMAE: 7).", "within": "[0, 10]"},
    )
    random_erasing_prob: float = field(
        default=0.0,
        metadata={
            "help": "Share of the training clips with a box of noise, 0 to 1 (VideoMAE: 0.25).",
            "within": "[0, 1]",
        },
    )

    def augmentation(self) -> ClipAugmentation:
        names = ("rand_augment_num_ops", "rand_augment_magnitude", "random_erasing_prob")
        return replace(super().augmentation(), **{name: getattr(self, name) for name in names})


@dataclass
class AdapterArguments:
    """Options of an adapter that is trained instead of all weights. New layers (classifier, class attention) are trained in full."""

    lora: bool = field(default=False, metadata={"help": "Train LoRA: low-rank updates of frozen weights."})
    lora_rank: int = field(default=8, metadata={"help": "Rank of LoRA's updates.", "within": "[1, inf)"})
    lora_alpha: int = field(
        default=16,
        metadata={
            "help": "Scale of LoRA's updates: they are multiplied by lora_alpha / lora_rank.",
            "within": "[1, inf)",
        },
    )
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "v_proj"],
        metadata={"help": "Layers with an update, of q_proj k_proj v_proj out_proj fc1 fc2 projection."},
    )
    peft_config: str | None = field(
        default=None,
        metadata={
            "help": "Any config of peft instead of --lora: JSON with peft_type, or a folder with adapter_config.json."
        },
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.lora and self.peft_config is not None:
            raise ValueError("Got lora and peft_config, expected one of them: put LoRA's settings into peft_config.")

    def config(self) -> Any:
        """Return peft's config for these options; None trains all weights."""
        from peft import LoraConfig, PeftConfig

        if self.peft_config is None:
            sizes: dict[str, Any] = {"r": self.lora_rank, "lora_alpha": self.lora_alpha}
            return LoraConfig(**sizes, target_modules=self.lora_target_modules) if self.lora else None
        if Path(self.peft_config).is_dir():
            return PeftConfig.from_pretrained(self.peft_config)
        return PeftConfig.from_peft_type(**json_object("peft_config", self.peft_config))


def add_adapter(model: LVMAEForVideoClassification, config: Any) -> nn.Module:
    """Wrap the model so that an adapter and the new layers are trained and everything else is frozen."""
    from peft import get_peft_model

    config.inference_mode = False
    if config.modules_to_save is None:
        config.modules_to_save = ["classifier"]
        if model.config.pooling == "class_attention":
            config.modules_to_save.append("pooler")
            config.exclude_modules = r"pooler\..*"  # it is trained in full and needs no adapter
    if model.token_scorer is not None:  # the base model may have none, so the adapter brings its own
        config.modules_to_save = [*config.modules_to_save, "scorer"]
    return get_peft_model(model, config)


def clips_maker(model: LVMAEForVideoClassification, mixes: bool) -> Callable[..., ByteVideoClips]:
    """Return what makes the clips for a model. If it chooses tokens, workers choose and send no others, if they can."""
    selector = model.lvmae.token_selector
    if selector is None:
        return ByteVideoClips
    reasons = {
        "MixUp and CutMix mix them": mixes,
        "a threshold compares them": model.config.token_score_threshold is not None,
    }
    if any(reasons.values()):
        print(
            f"Workers send whole clips, because {next(filter(reasons.get, reasons))}; the model chooses its tokens afterwards."
        )
        return ByteVideoClips
    print("Workers choose the tokens, and send no others.")
    return partial(ChosenVideoClips, selector=selector)


def report_size(model: nn.Module) -> dict[str, float]:
    """Print the number of trained weights and their memory with AdamW in float32, without activations. Returns the numbers as metrics."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(
        f"Training {trained / 1e6:.2f} M of {total / 1e6:.2f} M parameters ({trained / total:.2%}): weights {4 * total / 2**20:.0f} MiB, "
        f"gradients and AdamW's moments {12 * trained / 2**20:.0f} MiB."
    )
    return {"parameters": total, "trainable_parameters": trained, "trainable_share": trained / total}


def peak_memory() -> float:
    """Return the peak memory of this process in MiB: allocated on its GPU, without a GPU resident (Linux)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    model_args, data_args, adapter_args, training_args = parse_arguments(
        FineTuningModelArguments, LabelledVideoDataArguments, AdapterArguments, LVMAEClassificationArguments
    )
    set_seed(training_args.seed)
    overrides, adapter_config = model_args.overrides(LVMAEConfig), adapter_args.config()
    if data_args.streaming:
        training_args.accelerator_config.dispatch_batches = False  # each process decodes its own clips

    splits = load_video_dataset(
        data_args.dataset_name,
        data_args.dataset_config_name,
        data_args.video_column,
        data_args.label_columns,
        data_args.streaming,
    )
    columns = data_args.label_columns
    train_rows = select_split(splits, data_args.train_split, data_args.max_train_samples, columns)
    eval_rows = select_split(splits, data_args.eval_split, data_args.max_eval_samples, columns)
    test_rows = select_split(splits, data_args.test_split, None, columns) if data_args.test_split else None
    names = {column: train_rows.features[column].names for column in data_args.label_column.split(",")}
    # An encoder that was fine-tuned before may have other label sets.
    overrides = {**overrides, "label_sets": None, **LVMAEConfig.label_fields(names)}
    model = model_args.load(**overrides)
    processor = processor_for(model.config)
    make_clips = clips_maker(model, bool(training_args.mixup_alpha or training_args.cutmix_alpha))
    trained_model = model if adapter_config is None else add_adapter(model, adapter_config)

    common = {"sampling": data_args.sampling(), "label_column": data_args.label_columns, "seed": training_args.seed}
    evaluation = {**common, "reading": data_args.reading(training_args.output_dir)}
    train_clips = make_clips(
        train_rows,
        processor,
        model.config.num_frames,
        training=True,
        augmentation=data_args.augmentation(),
        reading=data_args.reading(training_args.output_dir),
        **common,
    )
    trainer = LVMAEClassificationTrainer(
        trained_model,
        training_args,
        train_dataset=trainer_dataset(train_clips, data_args.shuffle_buffer),
        eval_dataset=trainer_dataset(make_clips(eval_rows, processor, model.config.num_frames, **evaluation)),
        processing_class=processor,
    )
    size = report_size(trained_model)
    with train_clips.broken.reported():
        settings = (model_args, data_args, adapter_args, train_clips.fingerprint())
        train_and_save(trainer, *settings, dataset=data_args.dataset_name)
        test_result = None
        if test_rows is not None:
            test_clips = make_clips(test_rows, processor, model.config.num_frames, **evaluation)
            test_result = trainer.predict(trainer_dataset(test_clips))
    size["peak_memory_mib"] = peak_memory()
    trainer.log_metrics("memory", size)
    trainer.save_metrics("memory", size)
    if adapter_config is not None and training_args.should_save:
        model.config.save_pretrained(training_args.output_dir)
    if test_result is not None:
        metrics: dict[str, Any] = {
            **(test_result.metrics or {}),
            "test_samples": len(test_result.predictions),
            "test_classes": model.config.num_labels,
        }
        trainer.log_metrics("test", metrics)
        trainer.save_metrics("test", metrics)
        trainer.create_model_card()
        if training_args.push_to_hub:
            trainer.push_to_hub()
    trainer.end()


if __name__ == "__main__":
    run(main)
