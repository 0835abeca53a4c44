"""Run the tokenizer over a data set once and store the targets of pre-training.

    accelerate launch scripts/cache_targets.py --dataset_name FOLDER_OR_HUB_ID --tokenizer runs/tokenizer --output_dir runs/targets
    python scripts/pretrain.py --dataset_name FOLDER_OR_HUB_ID --target_cache runs/targets --output_dir runs/pretrain

Both commands must describe the same clips: the same data options and `--config_overrides`, and the same seed if clips are drawn at random.
Random starts, crops and flips can be cached because every draw comes from (seed, epoch, row). `--num_epochs 20` stores those of the first
20 epochs; longer training repeats them in the same order, with new masks. Without random draws one epoch is enough.

Without `--tokenizer`, `--scores motion`, `everest` or `flow` stores scores alone. Cached EVEREST scores compare the pixels of tubelets; on
the fly, EVEREST compares their embeddings in the model that is being trained. Flow is estimated by RAFT or DIS; the log says which. Start a
killed run again, with any number of processes: it continues with the first missing file.
"""

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator

from transformers_lvmae import FSQMagViTModel, LVMAEConfig, LVMAEForPreTraining
from transformers_lvmae.command_line import check_ranges, run
from transformers_lvmae.data import (
    VideoDataArguments,
    load_video_dataset,
    processor_for,
    select_split,
)
from transformers_lvmae.sharing.loading import check_model_type, load_model
from transformers_lvmae.targets.builder import TargetBuilder
from transformers_lvmae.targets.cache import TargetCache
from transformers_lvmae.targets.cache_writing import ByteClips, TargetMaker, begin_cache, make_manifest, write_targets
from transformers_lvmae.training.arguments import ModelArguments, parse_arguments


@dataclass
class CacheArguments:
    output_dir: str = field(metadata={"help": "Folder of the cache, with one folder per split."})
    tokenizer: str | None = field(default=None, metadata={"help": "Folder or Hub id of the trained tokenizer."})
    scores: str = field(default="learned", metadata={"help": "learned (the tokenizer's), motion, everest or flow."})
    num_epochs: int = field(
        default=1, metadata={"help": "Epochs of random starts, crops and flips to store.", "within": "[1, inf)"}
    )
    seed: int = field(
        default=42,
        metadata={
            "help": "The --seed of pre-training; it matters if clips are drawn at random.",
            "within": "[0, 4294967296)",
        },
    )
    batch_size: int = field(
        default=1, metadata={"help": "Clips per forward pass on each process.", "within": "[1, inf)"}
    )
    num_workers: int = field(
        default=0, metadata={"help": "Processes that decode videos, per process that tokenizes.", "within": "[0, inf)"}
    )
    clips_per_shard: int = field(
        default=256, metadata={"help": "Clips per file. A killed process loses at most one file.", "within": "[1, inf)"}
    )

    def __post_init__(self) -> None:
        check_ranges(self)


def cache_split(
    accelerator: Accelerator, clips: ByteClips, maker: TargetMaker, folder: Path, num_epochs: int, args: CacheArguments
) -> None:
    """Write one split's cache and print its size and time."""
    manifest = make_manifest(
        clips,
        maker,
        num_epochs,
        args.clips_per_shard,
        tokenizer=args.tokenizer,
        revision=getattr(getattr(maker.tokenizer, "config", None), "_commit_hash", None),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )
    with accelerator.main_process_first():
        begin_cache(folder, manifest)
    start = time.perf_counter()
    share = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    done = write_targets(
        folder, clips, maker, manifest, **share, batch_size=args.batch_size, num_workers=args.num_workers
    )
    total = int(accelerator.reduce(torch.tensor(done, device=accelerator.device)))
    seconds = time.perf_counter() - start
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        report(folder, total, seconds)


def report(folder: Path, clips: int, seconds: float) -> None:
    cache = TargetCache(folder)
    size = sum(path.stat().st_size for path in folder.glob("*.arrow"))
    figures = {
        "folder": str(folder),
        "clips": clips,
        "seconds": round(seconds, 1),
        "clips_per_second": round(clips / seconds, 2),
        "bytes_per_clip": round(size / (cache.num_epochs * cache.manifest["rows"])),
    }
    print(json.dumps(figures))


def main() -> None:
    model_args, data_args, args = parse_arguments(ModelArguments, VideoDataArguments, CacheArguments)
    overrides = model_args.overrides(LVMAEConfig)
    tokenizer = load_model(FSQMagViTModel, args.tokenizer) if args.tokenizer else None
    if tokenizer is not None:
        overrides.setdefault("levels", tuple(tokenizer.config.levels))
    if model_args.model_name_or_path:
        check_model_type(model_args.model_name_or_path, LVMAEForPreTraining)
        config = LVMAEConfig.from_pretrained(model_args.model_name_or_path, **overrides)
    else:
        config = LVMAEConfig(**overrides)
    accelerator = Accelerator()
    processor = processor_for(config)
    maker = TargetMaker(TargetBuilder(config, processor, tokenizer, device=accelerator.device), args.scores)
    splits = load_video_dataset(data_args.dataset_name, data_args.dataset_config_name, data_args.video_column)
    common = {"sampling": data_args.sampling(), "seed": args.seed}
    train_clips = ByteClips(
        select_split(splits, data_args.train_split, data_args.max_train_samples),
        processor,
        config.num_frames,
        training=True,
        augmentation=data_args.augmentation(),
        reading=replace(data_args.reading(args.output_dir), num_clips=1),
        **common,
    )
    if data_args.num_clips > 1 and train_clips.draws_clips:
        raise ValueError(
            f"Got num_clips={data_args.num_clips} with random starts, crops or flips, expected 1, because a cache holds one clip "
            "per video and epoch: leave out num_clips and cache more epochs (--num_epochs)."
        )
    eval_rows = select_split(splits, data_args.eval_split, data_args.max_eval_samples)
    eval_clips = ByteClips(
        eval_rows, processor, config.num_frames, reading=data_args.reading(args.output_dir), **common
    )
    output = Path(args.output_dir)
    with train_clips.broken.reported():
        cache_split(accelerator, train_clips, maker, output / data_args.train_split, args.num_epochs, args)
        cache_split(accelerator, eval_clips, maker, output / data_args.eval_split, 1, args)
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
