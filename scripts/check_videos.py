"""Find the videos of a dataset that cannot be read, before a training run does.

    python scripts/check_videos.py DATA --workers 8
    python scripts/check_videos.py DATA --num_frames 16 --report broken.json

The script decodes every frame of every video or segment. With --num_frames it decodes only so many, evenly spaced: that takes a tenth of
the time and misses damage between them. It prints each broken file with its fault and then exits with status 1. DATA is anything that
the training scripts take as --dataset_name.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers.video_utils import VideoMetadata

from transformers_lvmae.command_line import CommandLine, run
from transformers_lvmae.data import FrameSampling, load_video_dataset
from transformers_lvmae.models.video_io import decode_video, video_name
from transformers_lvmae.models.video_seeking import VideoReadError


class Faults(Dataset):
    """A dataset of (name, fault or None) of each row's video."""

    def __init__(self, rows: Any, video_column: str, num_frames: int | None):
        self.rows = rows
        self.video_column = video_column
        self.num_frames = num_frames

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[str, str | None]:
        row = self.rows[index]
        video = row[self.video_column]
        try:
            decode_video(video, self.sample, start=row.get("start"), end=row.get("end"), view=corner)
        except VideoReadError as error:
            return video_name(video), str(error)
        return video_name(video), None

    def sample(self, metadata: VideoMetadata) -> Any:
        total = metadata.total_num_frames
        return range(total) if self.num_frames is None else FrameSampling().sample(total, min(total, self.num_frames))


def corner(frames: torch.Tensor) -> torch.Tensor:
    """Keep one pixel of each frame: only decoding matters."""
    return frames[:, :, :1, :1]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandLine(description=__doc__)
    parser.add_argument("dataset_name", help="--dataset_name of the training scripts")
    parser.add_argument("--dataset_config_name", help="configuration of a Hub dataset")
    parser.add_argument("--video_column", default="video", help="column with the videos (default: %(default)s)")
    parser.add_argument("--num_frames", type=int, within="[1, inf)", help="frames to decode per video (default: all)")
    parser.add_argument(
        "--workers", type=int, within="[1, inf)", default=1, help="processes that decode (default: %(default)s)"
    )
    parser.add_argument("--report", type=Path, help="write the broken videos and their faults to this JSON file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    splits = load_video_dataset(args.dataset_name, args.dataset_config_name, args.video_column)
    broken: dict[str, str] = {}
    for split, rows in splits.items():
        faults = Faults(rows, args.video_column, args.num_frames)
        loader = DataLoader(faults, batch_size=None, num_workers=args.workers)
        found = {name: fault for name, fault in tqdm(loader, desc=split, unit="video") if fault is not None}
        print(f"{split}: {len(found)} of {len(rows)} videos cannot be read", *found.values(), sep="\n")
        broken |= found
    if args.report:
        args.report.write_text(json.dumps(broken, indent=2) + "\n", encoding="utf-8")
    return 1 if broken else 0


if __name__ == "__main__":
    run(main)
