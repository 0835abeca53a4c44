"""Pre-train LVMAE with a masked decoder on videos, against the codes of a frozen tokenizer.

    python scripts/pretrain.py --dataset_name FOLDER_OR_HUB_ID --tokenizer runs/tokenizer --output_dir runs/pretrain \\
        --model_size base --num_train_epochs 1600 --warmup_steps 0.025

The tokenizer runs on the fly, on the very clip that the model sees. One option each chooses what the encoder does not see
(`--encoder_mask`), which tokens are decoded (`--decoder_mask`) and what of them is predicted (`--target_type`); `--target_type pixels
--decoder_mask none` is VideoMAE's pre-training and needs no tokenizer. With `--report_to tensorboard` or `trackio`, each evaluation
(`--eval_strategy`) shows a clip, its masks and what is predicted. Interrupted runs go on where they were.
"""

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig, set_seed

from transformers_lvmae import (
    FSQMagViTModel,
    LVMAEConfig,
    LVMAEForPreTraining,
    LVMAEPreTrainer,
    LVMAEPreTrainingArguments,
)
from transformers_lvmae.data import MaskedVideoClips, load_video_dataset, processor_for, select_split
from transformers_lvmae.pictures import PredictionPictures
from transformers_lvmae.trainer import train_and_save
from transformers_lvmae.training_args import ModelArguments, VideoDataArguments, parse_arguments


@dataclass
class PreTrainingModelArguments(ModelArguments):
    model_size: str = field(default="base", metadata={"help": "small, base, large or huge, for a new model."})
    tokenizer: str | None = field(default=None, metadata={"help": "Folder or Hub id of the trained tokenizer."})
    encoder_mask: str | None = field(default=None, metadata={"help": "tube, random or running_cell."})
    decoder_mask: str | None = field(
        default=None,
        metadata={"help": "none, random, uniform, motion, flow, everest, adaptive or adaptive_random."},
    )
    target_type: str | None = field(default=None, metadata={"help": "codes, latents, levels or pixels."})

    def overrides(self, config_class: type[PreTrainedConfig]) -> dict[str, Any]:
        """As `ModelArguments`, with the three options; raises ValueError on ratios of a mask that has none."""
        overrides = super().overrides(config_class)
        options = {name: getattr(self, name) for name in ("encoder_mask", "decoder_mask", "target_type")}
        overrides.update({name: value for name, value in options.items() if value is not None})
        idle = sorted({"decoder_mask_ratio", "decoder_random_ratio"} & set(overrides))
        if overrides.get("decoder_mask") == "none" and idle:
            raise ValueError(
                f"Got {' and '.join(idle)} with decoder_mask='none', expected no ratio, because every hidden token is decoded: "
                "leave it out or choose another mask."
            )
        return overrides


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
        "encoder_mask": model.config.encoder_mask,
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
    eval_clips = MaskedVideoClips(eval_rows, processor, model.config.num_frames, **sampling)
    trainer = LVMAEPreTrainer(
        model,
        training_args,
        train_dataset=train_clips,
        eval_dataset=eval_clips,
        processing_class=processor,
        video_tokenizer=tokenizer,
    )
    trainer.add_callback(PredictionPictures(trainer, eval_clips))
    train_and_save(trainer)


if __name__ == "__main__":
    main()
