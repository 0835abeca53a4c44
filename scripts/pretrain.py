"""Pre-train LVMAE with a masked decoder on videos, against the codes of a frozen tokenizer.

    python scripts/pretrain.py --dataset_name FOLDER_OR_HUB_ID --tokenizer runs/tokenizer --output_dir runs/pretrain \\
        --model_size base --num_train_epochs 1600 --warmup_steps 0.025

The tokenizer runs on the fly, on the very clip that the model sees. With `--config_overrides '{"target_type": "pixels"}'` the model
predicts pixels, and does not need a tokenizer (it then decodes every hidden token). Interrupted runs go on where they were.
"""

from dataclasses import dataclass, field

from transformers import set_seed

from transformers_lvmae import (
    FSQMagViTModel,
    LVMAEConfig,
    LVMAEForPreTraining,
    LVMAEPreTrainer,
    LVMAEPreTrainingArguments,
)
from transformers_lvmae.data import MaskedVideoClips, load_video_dataset, processor_for, select_split
from transformers_lvmae.trainer import train_and_save
from transformers_lvmae.training_args import ModelArguments, VideoDataArguments, parse_arguments


@dataclass
class PreTrainingModelArguments(ModelArguments):
    model_size: str = field(default="base", metadata={"help": "small, base, large or huge, for a new model."})
    tokenizer: str | None = field(default=None, metadata={"help": "Folder or Hub id of the trained tokenizer."})


def main() -> None:
    model_args, data_args, training_args = parse_arguments(
        PreTrainingModelArguments, VideoDataArguments, LVMAEPreTrainingArguments
    )
    set_seed(training_args.seed)

    overrides = model_args.overrides(LVMAEConfig)
    tokenizer = FSQMagViTModel.from_pretrained(model_args.tokenizer) if model_args.tokenizer else None
    if tokenizer is not None:
        overrides.setdefault("levels", tuple(tokenizer.config.levels))
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
    train_clips = MaskedVideoClips(
        select_split(splits, data_args.train_split, data_args.max_train_samples),
        processor,
        model.config.num_frames,
        training=True,
        min_crop_scale=data_args.min_crop_scale,
        horizontal_flip=data_args.horizontal_flip,
        **sampling,
    )
    eval_rows = select_split(splits, data_args.eval_split, data_args.max_eval_samples)
    trainer = LVMAEPreTrainer(
        model,
        training_args,
        train_dataset=train_clips,
        eval_dataset=MaskedVideoClips(eval_rows, processor, model.config.num_frames, **sampling),
        processing_class=processor,
        video_tokenizer=tokenizer,
    )
    train_and_save(trainer)
    trainer.end()


if __name__ == "__main__":
    main()
