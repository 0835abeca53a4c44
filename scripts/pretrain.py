"""Pre-train LVMAE with a masked decoder on videos, against the codes of a frozen tokenizer.

    python scripts/pretrain.py --dataset_name FOLDER_OR_HUB_ID --tokenizer runs/tokenizer --output_dir runs/pretrain \\
        --model_size base --num_train_epochs 1600 --warmup_steps 0.025

The tokenizer runs on the fly, on the very clip that the model sees; with `--target_cache` (scripts/cache_targets.py, with the same
options for clips) its answers are read instead, and only a clip's visible tubelets leave their worker. With `--config_overrides '{"target_type": "pixels"}'` the model
predicts pixels, and does not need a tokenizer (it then decodes every hidden token). Interrupted runs go on where they were.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import set_seed

from transformers_lvmae import (
    FSQMagViTModel,
    LVMAEConfig,
    LVMAEForPreTraining,
    LVMAEPreTrainer,
    LVMAEPreTrainingArguments,
)
from transformers_lvmae.data import MaskedVideoClips, load_video_dataset, processor_for, select_split
from transformers_lvmae.target_cache import CachedVideoClips, TargetCache
from transformers_lvmae.trainer import train_and_save
from transformers_lvmae.training_args import ModelArguments, VideoDataArguments, parse_arguments


@dataclass
class PreTrainingModelArguments(ModelArguments):
    model_size: str = field(default="base", metadata={"help": "small, base, large or huge, for a new model."})
    tokenizer: str | None = field(default=None, metadata={"help": "Folder or Hub id of the trained tokenizer."})
    target_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder of scripts/cache_targets.py; a tokenizer given besides is only compared with the cache's."
        },
    )


def open_caches(folder: str, tokenizer: FSQMagViTModel | None, *splits: str) -> dict[str, TargetCache]:
    """The cache of each split, made by `tokenizer` where one is given."""
    caches = {split: TargetCache(Path(folder) / split) for split in splits}
    for cache in caches.values():
        if tokenizer is not None and cache.levels is not None:
            cache.check_tokenizer(tokenizer)
    return caches


def main() -> None:
    model_args, data_args, training_args = parse_arguments(
        PreTrainingModelArguments, VideoDataArguments, LVMAEPreTrainingArguments
    )
    set_seed(training_args.seed)

    overrides = model_args.overrides(LVMAEConfig)
    tokenizer = FSQMagViTModel.from_pretrained(model_args.tokenizer) if model_args.tokenizer else None
    caches: dict[str, TargetCache] = {}
    if model_args.target_cache:
        caches = open_caches(model_args.target_cache, tokenizer, data_args.train_split, data_args.eval_split)
    levels = next((cache.levels for cache in caches.values()), None) or (tokenizer and tokenizer.config.levels)
    if levels is not None:
        overrides.setdefault("levels", tuple(levels))
    if model_args.model_name_or_path:
        model = LVMAEForPreTraining.from_pretrained(model_args.model_name_or_path, **overrides)
    else:
        model = LVMAEForPreTraining(LVMAEConfig.from_size(model_args.model_size, **overrides))
    processor = processor_for(model.config)

    splits = load_video_dataset(data_args.dataset_name, data_args.dataset_config_name, data_args.video_column)
    sampling = {
        "grid_size": model.config.grid_size,
        "mask_ratio": model.config.mask_ratio,
        "frame_stride": data_args.frame_stride,
        "video_column": data_args.video_column,
        "seed": training_args.seed,
    }

    def make_clips(split: str, rows: Dataset, **options: Any) -> MaskedVideoClips:
        if split not in caches:
            return MaskedVideoClips(rows, processor, model.config.num_frames, **sampling, **options)
        caches[split].check_model(model.config)
        whole_clips = model.config.target_type == "pixels" or caches[split].levels is None
        options |= {"cache": caches[split], "whole_clips": whole_clips}
        return CachedVideoClips(rows, processor, model.config.num_frames, **sampling, **options)

    train_clips = make_clips(
        data_args.train_split,
        select_split(splits, data_args.train_split, data_args.max_train_samples),
        training=True,
        min_crop_scale=data_args.min_crop_scale,
        horizontal_flip=data_args.horizontal_flip,
    )
    eval_rows = select_split(splits, data_args.eval_split, data_args.max_eval_samples)
    trainer = LVMAEPreTrainer(
        model,
        training_args,
        train_dataset=train_clips,
        eval_dataset=make_clips(data_args.eval_split, eval_rows),
        processing_class=processor,
        video_tokenizer=None if any(cache.levels for cache in caches.values()) else tokenizer,
    )
    train_and_save(trainer)


if __name__ == "__main__":
    main()
