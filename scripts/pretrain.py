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
from transformers_lvmae.video_streams import trainer_dataset


@dataclass
class PreTrainingModelArguments(ModelArguments):
    model_size: str = field(default="base", metadata={"help": "small, base, large or huge, for a new model."})
    tokenizer: str | None = field(default=None, metadata={"help": "Folder or Hub id of the trained tokenizer."})


def main() -> None:
    model_args, data_args, training_args = parse_arguments(
        PreTrainingModelArguments, VideoDataArguments, LVMAEPreTrainingArguments
    )
    set_seed(training_args.seed)
    if data_args.streaming:
        training_args.accelerator_config.dispatch_batches = False  # each process decodes its own clips

    overrides = model_args.overrides(LVMAEConfig)
    tokenizer = FSQMagViTModel.from_pretrained(model_args.tokenizer) if model_args.tokenizer else None
    if tokenizer is not None:
        overrides.setdefault("levels", tuple(tokenizer.config.levels))
    if model_args.model_name_or_path:
        model = LVMAEForPreTraining.from_pretrained(model_args.model_name_or_path, **overrides)
    else:
        model = LVMAEForPreTraining(LVMAEConfig.from_size(model_args.model_size, **overrides))
    processor = processor_for(model.config)

    splits = load_video_dataset(
        data_args.dataset_name, data_args.dataset_config_name, data_args.video_column, streaming=data_args.streaming
    )
    sampling = {
        "grid_size": model.config.grid_size,
        "mask_ratio": model.config.mask_ratio,
        "seed": training_args.seed,
        **data_args.sampling(),
    }
    train_clips = MaskedVideoClips(
        select_split(splits, data_args.train_split, data_args.max_train_samples),
        processor,
        model.config.num_frames,
        training=True,
        **data_args.augmentation(),
        **data_args.reading(training_args.output_dir),
        **sampling,
    )
    eval_rows = select_split(splits, data_args.eval_split, data_args.max_eval_samples)
    eval_clips = MaskedVideoClips(eval_rows, processor, model.config.num_frames, **sampling)
    trainer = LVMAEPreTrainer(
        model,
        training_args,
        train_dataset=trainer_dataset(train_clips, data_args.shuffle_buffer),
        eval_dataset=trainer_dataset(eval_clips),
        processing_class=processor,
        video_tokenizer=tokenizer,
    )
    with train_clips.broken.reported():
        train_and_save(trainer)


if __name__ == "__main__":
    main()
