"""Run videos through a frozen encoder once and store the features.

    python scripts/extract_features.py runs/pretrain DATA features
    accelerate launch scripts/extract_features.py runs/pretrain DATA token_features --tokens --batch_size 4 --num_workers 8

A clip's feature is the mean of its tokens after the final norm. It is one Parquet row with the video's path, times and labels, which
`datasets.load_dataset("features")` reads. With --tokens, all tokens are stored, in float16 and safetensors (19 MB for a clip of ViT-B at
128 frames). Every video is one clip, sampled evenly. With --clip_seconds it is many clips, --stride_seconds apart, each with its start
and end.

A video that cannot be read is left out: its number is missing in the column `row`, and broken_videos.json in the output folder names it.
Finished shards are not computed again: start a killed run again with the same arguments, and it continues. Shards of other weights, rows or
settings are refused, and damaged shards are made again. Several processes divide the shards among them.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import AutoModel

from transformers_lvmae import LVMAEModel
from transformers_lvmae.command_line import CommandLine, run
from transformers_lvmae.data import FrameSampling, VideoClips, VideoReading, load_video_dataset, select_split
from transformers_lvmae.data.broken_videos import BrokenVideos
from transformers_lvmae.data.datasets import rows_fingerprint
from transformers_lvmae.evaluation.features import ShardedSplit, encode_clips, save_shard, sliding_rows
from transformers_lvmae.models.credentials import mask_credentials
from transformers_lvmae.sharing.loading import check_model_type, load_processor
from transformers_lvmae.targets.cache import fingerprint


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandLine(description=__doc__)
    parser.add_argument("model", help="folder or Hub id of a pre-trained or fine-tuned LVMAE")
    parser.add_argument("dataset_name", help="a folder of videos, a dataset saved to disk, or a dataset id on the Hub")
    parser.add_argument("output_dir", type=Path, help="folder of the features")
    parser.add_argument("--splits", nargs="+", help="splits to read (default: all)")
    parser.add_argument("--tokens", action="store_true", help="store all tokens of a clip instead of their mean")
    parser.add_argument(
        "--clip_seconds",
        type=float,
        within="[0.001, inf)",
        help="length of a clip in seconds (default: one clip per video)",
    )
    parser.add_argument(
        "--stride_seconds",
        type=float,
        within="[0.001, inf)",
        help="seconds from one clip's start to the next (default: --clip_seconds)",
    )
    parser.add_argument(
        "--frame_stride",
        type=int,
        within="[1, inf)",
        help="source frames from one sampled frame to the next, centered in the video (default: evenly over it)",
    )
    parser.add_argument(
        "--batch_size", type=int, within="[1, inf)", default=1, help="clips per forward pass (default: %(default)s)"
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        within="[0, inf)",
        default=0,
        help="processes that decode videos (default: %(default)s)",
    )
    parser.add_argument(
        "--shard_size", type=int, within="[1, inf)", default=64, help="videos per shard (default: %(default)s)"
    )
    parser.add_argument("--video_column", default="video", help="column with the videos (default: %(default)s)")
    parser.add_argument(
        "--on_error",
        choices=("skip", "raise"),
        default="skip",
        help="if a video cannot be read: leave it out and report it, or stop (default: %(default)s)",
    )
    parser.add_argument(
        "--max_broken_share",
        type=float,
        within="[0, 1]",
        default=0.1,
        help="largest share of videos that may be broken (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.stride_seconds is not None and args.clip_seconds is None:
        parser.error(
            f"Got --stride_seconds {args.stride_seconds} without --clip_seconds, expected both: add --clip_seconds."
        )
    return args


def extract_split(
    args: argparse.Namespace,
    accelerator: Accelerator,
    model: Any,
    processor: Any,
    rows: Any,
    split: str,
    broken: BrokenVideos,
) -> None:
    """Compute this process's share of a split's shards."""
    files = ShardedSplit(args.output_dir, split, len(rows), args.shard_size)
    kept = ("model", "dataset_name", "tokens", "clip_seconds", "stride_seconds", "frame_stride", "video_column")
    settings = {name: getattr(args, name) for name in kept}
    settings |= {
        "precision": accelerator.mixed_precision,
        **fingerprint(model),
        **rows_fingerprint(rows, args.video_column),
    }
    settings["dataset_name"] = mask_credentials(args.dataset_name)
    files.check_settings(settings, write=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    rows = rows.add_column("row", list(range(len(rows))))
    shards = range(accelerator.process_index, files.num_shards, accelerator.num_processes)
    todo = [shard for shard in shards if not files.is_whole(shard)]
    sampling = FrameSampling(args.frame_stride)
    # The workers of each shard record the faults. This process counts them, because it sees all shards.
    reading = VideoReading(1, args.on_error, 1.0, broken.folder, args.video_column)
    config = model.config
    number = config.seq_length if model.token_selector is None else sum(config.kept_token_counts(config.seq_length))
    size = (number, config.hidden_size) if args.tokens else (config.hidden_size,)
    total = sum(len(files.rows(shard)) for shard in todo)
    progress = tqdm(total=total, unit="clip", desc=split, disable=not accelerator.is_main_process)
    progress.set_postfix(shards_done=len(shards) - len(todo))
    for shard in todo:
        clips = clips_of(args, rows.select(files.rows(shard)), broken)
        progress.total = total = total + len(clips) - len(files.rows(shard))
        features = [torch.empty(0, *size, dtype=torch.half if args.tokens else torch.float)]
        found, positions = [torch.empty(0).bool()], [torch.empty(0, number, dtype=torch.long)]
        source = VideoClips(clips, processor, model.config.num_frames, sampling=sampling, reading=reading)
        workers = args.batch_size, args.num_workers
        for batch, readable, chosen in encode_clips(model, source, not args.tokens, *workers, accelerator.autocast):
            features.append(batch)
            found.append(readable)
            positions += [] if chosen is None else [chosen]
            progress.update(len(readable))
        read = [clip for clip, is_readable in zip(clips, torch.cat(found).tolist()) if is_readable]
        where = None if model.token_selector is None else torch.cat(positions)
        save_shard(files, shard, read, torch.cat(features), rows.features, args.video_column, where)
        broken.tried += len(clips)
        broken.failed += len(clips) - len(read)
        broken.check()
    progress.close()


def clips_of(args: argparse.Namespace, rows: Any, broken: BrokenVideos) -> Any:
    """Return a dict for each clip: the rows themselves, or the sliding clips of each."""
    if args.clip_seconds is None:
        return list(rows)
    record = broken if args.on_error == "skip" else None
    return sliding_rows(rows, args.clip_seconds, args.stride_seconds or args.clip_seconds, args.video_column, record)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    accelerator = Accelerator()
    check_model_type(args.model, LVMAEModel)
    model = AutoModel.from_pretrained(args.model).to(accelerator.device)
    processor = load_processor(args.model, model.config)
    splits = load_video_dataset(args.dataset_name, video_column=args.video_column)
    broken = BrokenVideos(args.output_dir / "broken_videos", args.max_broken_share)
    with broken.reported():
        for split in args.splits or splits:
            extract_split(args, accelerator, model, processor, select_split(splits, split), split, broken)
        accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
