"""Train the adaptive tokenizer on videos.

    python scripts/train_tokenizer.py --dataset_name FOLDER_OR_HUB_ID --output_dir runs/tokenizer --num_train_epochs 45

One clip of config.window_size frames is taken from every video in every epoch. The output folder holds the model and its processor;
a run that was interrupted goes on from its newest checkpoint when started again with the same arguments.
"""

from transformers import set_seed

from transformers_lvmae import (
    FSQMagViTConfig,
    FSQMagViTModel,
    FSQMagViTTrainer,
    FSQMagViTTrainingArguments,
)
from transformers_lvmae.data import SelectionCollator, VideoClips, load_video_dataset, processor_for, select_split
from transformers_lvmae.trainer import train_and_save
from transformers_lvmae.training_args import ModelArguments, SelectionArguments, VideoDataArguments, parse_arguments


def main() -> None:
    model_args, data_args, selection_args, training_args = parse_arguments(
        ModelArguments, VideoDataArguments, SelectionArguments, FSQMagViTTrainingArguments
    )
    set_seed(training_args.seed)

    overrides = model_args.overrides(FSQMagViTConfig)
    if model_args.model_name_or_path:
        model = FSQMagViTModel.from_pretrained(model_args.model_name_or_path, **overrides)
    else:
        model = FSQMagViTModel(FSQMagViTConfig(**overrides))
    processor = processor_for(model.config, do_normalize=False)

    splits = load_video_dataset(data_args.dataset_name, data_args.dataset_config_name, data_args.video_column)
    sampling = {
        "frame_stride": data_args.frame_stride or 1,
        "video_column": data_args.video_column,
        "seed": training_args.seed,
    }
    train_clips = VideoClips(
        select_split(splits, data_args.train_split, data_args.max_train_samples),
        processor,
        model.config.window_size,
        training=True,
        min_crop_scale=data_args.min_crop_scale,
        horizontal_flip=data_args.horizontal_flip,
        **sampling,
    )
    eval_rows = select_split(splits, data_args.eval_split, data_args.max_eval_samples)
    trainer = FSQMagViTTrainer(
        model,
        training_args,
        train_dataset=train_clips,
        eval_dataset=VideoClips(eval_rows, processor, model.config.window_size, **sampling),
        processing_class=processor,
        data_collator=SelectionCollator(selection_args.selection, model.config.window_grid_size),
    )
    train_and_save(trainer)


if __name__ == "__main__":
    main()
