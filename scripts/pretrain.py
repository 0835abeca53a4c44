"""Pre-train LVMAE on videos: a masked decoder predicts the codes of a frozen tokenizer.

    python scripts/pretrain.py --dataset_name FOLDER_OR_HUB_ID --tokenizer runs/tokenizer --output_dir runs/pretrain \\
        --model_size base --num_train_epochs 1600 --crop_scales 1 0.875 0.75 0.66

The tokenizer runs on the fly, on the same clip as the model. With `--target_cache` (written by scripts/cache_targets.py with the same
options for clips) its codes are read instead, and the data loader sends only a clip's visible tubelets. `--encoder_mask` chooses the
tokens that the encoder does not see, `--decoder_mask` those that are decoded, and `--target_type` what is predicted there.
`--target_type pixels --decoder_mask none` is VideoMAE's pre-training and needs no tokenizer. With `--report_to tensorboard` or `trackio`,
each evaluation (`--eval_strategy`) shows a clip, its masks and the predictions. An interrupted run continues from its newest checkpoint.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig, set_seed

from transformers_lvmae import (
    FSQMagViTModel,
    LVMAEConfig,
    LVMAEForPreTraining,
    LVMAEPreTrainer,
    LVMAEPreTrainingArguments,
)
from transformers_lvmae.command_line import run
from transformers_lvmae.data import VideoDataArguments, load_video_dataset, processor_for, select_split
from transformers_lvmae.data.streams import trainer_dataset
from transformers_lvmae.models.configuration_lvmae import DECODER_MASKS
from transformers_lvmae.sharing.loading import load_model
from transformers_lvmae.targets.cache import TargetCache, clips_to_train_on
from transformers_lvmae.training.arguments import ModelArguments, parse_arguments
from transformers_lvmae.training.base import train_and_save
from transformers_lvmae.visualization.predictions import PredictionPictures


@dataclass
class PreTrainingModelArguments(ModelArguments):
    config_options: ClassVar[tuple[str, ...]] = ("encoder_mask", "decoder_mask", "target_type")

    model_size: str = field(
        default="base", metadata={"help": "Size of a new model.", "choices": ["small", "base", "large", "huge"]}
    )
    tokenizer: str | None = field(default=None, metadata={"help": "Folder or Hub id of the trained tokenizer."})
    target_cache: str | None = field(
        default=None,
        metadata={
            "help": "Output folder of scripts/cache_targets.py. A --tokenizer is then only checked against the cache."
        },
    )
    encoder_mask: str | None = field(default=None, metadata={"help": "tube or random."})
    decoder_mask: str | None = field(
        default=None,
        metadata={"help": f"What chooses the tokens that are decoded: {', '.join(DECODER_MASKS)}."},
    )
    target_type: str | None = field(default=None, metadata={"help": "codes, latents, levels or pixels."})

    def overrides(self, config_class: type[PreTrainedConfig]) -> dict[str, Any]:
        """Return the overrides of `ModelArguments`. Raises ValueError on ratios for a mask without ratios."""
        overrides = super().overrides(config_class)
        idle = sorted({"decoder_mask_ratio", "decoder_random_ratio"} & set(overrides))
        if overrides.get("decoder_mask") == "none" and idle:
            raise ValueError(
                f"Got {' and '.join(idle)} with decoder_mask='none', expected no ratio, because every hidden token is decoded: "
                "leave it out or choose another mask."
            )
        return overrides


def open_caches(folder: str, tokenizer: FSQMagViTModel | None, *splits: str) -> dict[str, TargetCache]:
    """Open the cache of each split. Raises ValueError if `tokenizer` is given and did not make it."""
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
    if data_args.streaming:
        training_args.accelerator_config.dispatch_batches = False  # each process decodes its own clips

    overrides = model_args.overrides(LVMAEConfig)
    tokenizer = load_model(FSQMagViTModel, model_args.tokenizer) if model_args.tokenizer else None
    caches: dict[str, TargetCache] = {}
    if model_args.target_cache:
        caches = open_caches(model_args.target_cache, tokenizer, data_args.train_split, data_args.eval_split)
    sources: list[Any] = [*caches.values(), *([] if tokenizer is None else [tokenizer.config])]
    for source in sources:
        if source.levels is not None:
            overrides.setdefault("levels", tuple(source.levels))
    if model_args.model_name_or_path:
        model = load_model(LVMAEForPreTraining, model_args.model_name_or_path, **overrides)
    else:
        model = LVMAEForPreTraining(LVMAEConfig.from_size(model_args.model_size, **overrides))
    processor = processor_for(model.config)

    splits = load_video_dataset(
        data_args.dataset_name, data_args.dataset_config_name, data_args.video_column, streaming=data_args.streaming
    )
    common = {"sampling": data_args.sampling(), "seed": training_args.seed}
    evaluation = {**common, "reading": data_args.reading(training_args.output_dir)}
    train_clips = clips_to_train_on(
        select_split(splits, data_args.train_split, data_args.max_train_samples),
        processor,
        model.config,
        caches.get(data_args.train_split),
        training=True,
        augmentation=data_args.augmentation(),
        reading=data_args.reading(training_args.output_dir),
        **common,
    )
    eval_rows = select_split(splits, data_args.eval_split, data_args.max_eval_samples)
    evaluated = (eval_rows, processor, model.config, caches.get(data_args.eval_split))
    trainer = LVMAEPreTrainer(
        model,
        training_args,
        train_dataset=trainer_dataset(train_clips, data_args.shuffle_buffer),
        eval_dataset=trainer_dataset(clips_to_train_on(*evaluated, **evaluation)),
        processing_class=processor,
        video_tokenizer=None if any(cache.levels for cache in caches.values()) else tokenizer,
    )
    # At each evaluation the pictures need a readable clip, so that a broken one would be counted again and again.
    evaluation["reading"] = replace(data_args.reading(training_args.output_dir), max_broken_share=1.0)
    shown = trainer_dataset(clips_to_train_on(*evaluated, whole_clips=True, **evaluation))
    trainer.add_callback(PredictionPictures(trainer, shown))
    with train_clips.broken.reported():
        train_and_save(trainer, model_args, data_args, train_clips.fingerprint(), dataset=data_args.dataset_name)
    trainer.end()


if __name__ == "__main__":
    run(main)
