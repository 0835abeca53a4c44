"""Fine-tune LVMAE on labelled videos, or train a classifier from scratch, and report its test accuracy.

    python scripts/finetune.py --model_name_or_path runs/pretrain --dataset_name FOLDER_OR_HUB_ID --output_dir runs/finetune \\
        --num_train_epochs 50 --learning_rate 1e-3

The output folder holds the model with its class names and the processor, ready for `pipeline("video-classification")`. Interrupted
runs go on where they were.
"""

from dataclasses import dataclass, field

from transformers import set_seed

from transformers_lvmae import (
    LVMAEClassificationArguments,
    LVMAEClassificationTrainer,
    LVMAEConfig,
    LVMAEForVideoClassification,
)
from transformers_lvmae.data import VideoClips, load_video_dataset, processor_for, select_split
from transformers_lvmae.trainer import train_and_save
from transformers_lvmae.training_args import ModelArguments, VideoDataArguments, parse_arguments


@dataclass
class FineTuningModelArguments(ModelArguments):
    model_size: str = field(default="base", metadata={"help": "small, base, large or huge, for a new model."})


@dataclass
class LabelledVideoDataArguments(VideoDataArguments):
    test_split: str | None = field(default=None, metadata={"help": "Split to measure the final accuracy on."})


def main() -> None:
    model_args, data_args, training_args = parse_arguments(
        FineTuningModelArguments, LabelledVideoDataArguments, LVMAEClassificationArguments
    )
    set_seed(training_args.seed)

    splits = load_video_dataset(
        data_args.dataset_name, data_args.dataset_config_name, data_args.video_column, data_args.label_column
    )
    train_rows = select_split(splits, data_args.train_split, data_args.max_train_samples)
    eval_rows = select_split(splits, data_args.eval_split, data_args.max_eval_samples)
    test_rows = select_split(splits, data_args.test_split) if data_args.test_split else None
    names = train_rows.features[data_args.label_column].names
    overrides = {
        **model_args.overrides(LVMAEConfig),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }
    if model_args.model_name_or_path:
        model = LVMAEForVideoClassification.from_pretrained(model_args.model_name_or_path, **overrides)
    else:
        model = LVMAEForVideoClassification(LVMAEConfig.from_size(model_args.model_size, **overrides))
    processor = processor_for(model.config)

    sampling = {
        "frame_stride": data_args.frame_stride,
        "video_column": data_args.video_column,
        "label_column": data_args.label_column,
        "seed": training_args.seed,
    }
    train_clips = VideoClips(
        train_rows,
        processor,
        model.config.num_frames,
        training=True,
        min_crop_scale=data_args.min_crop_scale,
        horizontal_flip=data_args.horizontal_flip,
        **sampling,
    )
    trainer = LVMAEClassificationTrainer(
        model,
        training_args,
        train_dataset=train_clips,
        eval_dataset=VideoClips(eval_rows, processor, model.config.num_frames, **sampling),
        processing_class=processor,
    )
    train_and_save(trainer)
    if test_rows is not None:
        test_clips = VideoClips(test_rows, processor, model.config.num_frames, **sampling)
        metrics = {
            **(trainer.predict(test_clips).metrics or {}),
            "test_samples": len(test_clips),
            "test_classes": len(names),
        }
        trainer.log_metrics("test", metrics)
        trainer.save_metrics("test", metrics)
    trainer.end()


if __name__ == "__main__":
    main()
