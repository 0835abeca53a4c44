"""Train the adaptive tokenizer on videos or on pictures.

    python scripts/train_tokenizer.py --dataset_name FOLDER_OR_HUB_ID --output_dir runs/tokenizer --num_train_epochs 45

    python scripts/train_tokenizer.py --dataset_name PICTURES --image_column image --output_dir runs/image_tokenizer
    python scripts/train_tokenizer.py --dataset_name VIDEOS --image_tokenizer runs/image_tokenizer --output_dir runs/tokenizer

Every epoch takes one clip of config.window_size frames from every video. MAGVIT's full recipe adds --adversarial_weight 0.1,
--perceptual_model and --ema_decay 0.999 (model_cards/fsq_magvit.md). The output folder holds the model, its processor and losses.png, the
curves of all parts of the loss. Start an interrupted run again with the same arguments: it continues from its newest checkpoint.
"""

import os
from dataclasses import dataclass, field, replace

from transformers import set_seed

from transformers_lvmae import (
    FSQMagViTConfig,
    FSQMagViTModel,
    FSQMagViTTrainer,
    FSQMagViTTrainingArguments,
    LVMAEVideoProcessor,
)
from transformers_lvmae.command_line import run
from transformers_lvmae.data import (
    FrameSampling,
    ImageClips,
    SelectionCollator,
    VideoClips,
    VideoDataArguments,
    VideoReading,
    load_image_dataset,
    load_video_dataset,
    processor_for,
    select_split,
)
from transformers_lvmae.data.streams import trainer_dataset
from transformers_lvmae.sharing.loading import check_model_type, load_model
from transformers_lvmae.training.arguments import ModelArguments, SelectionArguments, parse_arguments
from transformers_lvmae.training.base import train_and_save
from transformers_lvmae.visualization.drawing import save_curves


@dataclass
class TokenizerModelArguments(ModelArguments):
    model_size: str = field(
        default="base",
        metadata={"help": "Size of a new model.", "choices": ["tiny", "base", "large", "magvit_base", "magvit_large"]},
    )
    image_tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of a tokenizer trained on pictures; the new model starts from its weights."
        },
    )


@dataclass
class TokenizerDataArguments(VideoDataArguments):
    image_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with pictures. With it, training uses pictures, as clips of one frame, instead of videos."
        },
    )

    def sampling(self) -> FrameSampling:
        """As `VideoDataArguments`, but by default consecutive frames."""
        sampling = super().sampling()
        return sampling if sampling.frame_jitter else replace(sampling, frame_stride=sampling.frame_stride or 1)


def make_model(args: TokenizerModelArguments, on_images: bool) -> FSQMagViTModel:
    overrides = args.overrides(FSQMagViTConfig)
    if args.model_name_or_path:
        return load_model(FSQMagViTModel, args.model_name_or_path, **overrides)
    config = FSQMagViTConfig.from_size(args.model_size, **overrides)  # type: ignore[arg-type]
    if args.image_tokenizer:
        check_model_type(args.image_tokenizer, FSQMagViTModel)
        return FSQMagViTModel.from_image_tokenizer(args.image_tokenizer, config)
    return FSQMagViTModel(config.for_images() if on_images else config)


def make_clips(
    args: TokenizerDataArguments, processor: LVMAEVideoProcessor, num_frames: int, seed: int, output_dir: str | None
) -> tuple[VideoClips, VideoClips]:
    """Return the clips for training and for evaluation."""
    if args.image_column:
        if args.streaming:
            raise ValueError(
                "Got streaming with image_column, expected one of them, because pictures are not streamed: leave out streaming."
            )
        pictures = load_image_dataset(args.dataset_name, args.dataset_config_name, args.image_column)
        train_rows = select_split(pictures, args.train_split, args.max_train_samples)
        eval_rows = select_split(pictures, args.eval_split, args.max_eval_samples)
        reading, augmentation = VideoReading(args.num_clips), args.augmentation()
        options = {"training": True, "augmentation": augmentation, "seed": seed}
        return (
            ImageClips(train_rows, processor, args.image_column, reading, **options),
            ImageClips(eval_rows, processor, args.image_column),
        )
    videos = load_video_dataset(
        args.dataset_name, args.dataset_config_name, args.video_column, streaming=args.streaming
    )
    train_rows = select_split(videos, args.train_split, args.max_train_samples)
    eval_rows = select_split(videos, args.eval_split, args.max_eval_samples)
    sampling, augmentation, reading = args.sampling(), args.augmentation(), args.reading(output_dir)
    return (
        VideoClips(train_rows, processor, num_frames, True, sampling, augmentation, reading, seed=seed),
        VideoClips(eval_rows, processor, num_frames, sampling=sampling, reading=reading, seed=seed),
    )


def main() -> None:
    model_args, data_args, selection_args, training_args = parse_arguments(
        TokenizerModelArguments, TokenizerDataArguments, SelectionArguments, FSQMagViTTrainingArguments
    )
    set_seed(training_args.seed)
    if data_args.streaming:
        training_args.accelerator_config.dispatch_batches = False  # each process decodes its own clips
    model = make_model(model_args, on_images=data_args.image_column is not None)
    processor = processor_for(model.config, do_normalize=False)
    train_clips, eval_clips = make_clips(
        data_args, processor, model.config.window_size, training_args.seed, training_args.output_dir
    )
    collator = SelectionCollator(selection_args.selection, model.config.window_grid_size)
    train_clips.noise_size = eval_clips.noise_size = collator.noise_size
    trainer = FSQMagViTTrainer(
        model,
        training_args,
        train_dataset=trainer_dataset(train_clips, data_args.shuffle_buffer),
        eval_dataset=trainer_dataset(eval_clips),
        processing_class=processor,
        data_collator=collator,
    )
    with train_clips.broken.reported():
        settings = (model_args, data_args, selection_args, train_clips.fingerprint())
        train_and_save(trainer, *settings, dataset=data_args.dataset_name)
    if trainer.is_world_process_zero():
        save_curves(os.path.join(training_args.output_dir, "losses.png"), trainer.state.log_history)
    trainer.end()


if __name__ == "__main__":
    run(main)
