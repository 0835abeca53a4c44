"""Find the videos of a dataset that cannot be read, before a training run does.

    python scripts/check_videos.py DATA --workers 8
    python scripts/check_videos.py DATA --num_frames 16 --report broken.json

The script decodes every frame of every video or segment. With --num_frames it decodes only so many, evenly spaced: that takes a tenth of
the time and misses damage between them. It prints each broken file with its fault, and each file that plays but seems truncated or damaged,
and then exits with status 1. DATA is anything that the training scripts take as --dataset_name.
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
from transformers_lvmae.data.arguments import VideoAccessArguments
from transformers_lvmae.data.datasets import segment_of
from transformers_lvmae.files import write_aside
from transformers_lvmae.models.video_io import decode_video
from transformers_lvmae.models.video_seeking import VideoReadError
from transformers_lvmae.models.video_sources import VideoAccess, video_name


FILM_SECONDS = 7200.0  # every frame of a long film is decoded


class Faults(Dataset):
    """A dataset of (name, fault or None, whether the video plays) of each row's video."""

    def __init__(self, rows: Any, video_column: str, num_frames: int | None, access: VideoAccess):
        self.rows = rows
        self.video_column = video_column
        self.num_frames = num_frames
        self.access = access

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[str, str | None, bool]:
        row = self.rows[index]
        video, (start, end) = row[self.video_column], segment_of(row)
        name = video_name(video)
        try:
            _, metadata = decode_video(video, self.sample, start=start, end=end, view=corner, access=self.access)
        except VideoReadError as error:
            return name, str(error), False
        return name, metadata.fault and f"{name}: {metadata.fault}", True

    def sample(self, metadata: VideoMetadata) -> Any:
        total = metadata.total_num_frames
        return range(total) if self.num_frames is None else FrameSampling().sample(total, min(total, self.num_frames))


def corner(frames: torch.Tensor) -> torch.Tensor:
    """Keep one pixel of each frame: only decoding matters."""
    return frames[:, :, :1, :1]


def parse_args(argv: list[str] | None = None) -> tuple[VideoAccessArguments, argparse.Namespace]:
    parser = CommandLine(
        VideoAccessArguments, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset_name", help="--dataset_name of the training scripts")
    parser.add_argument("--dataset_config_name", help="configuration of a Hub dataset")
    parser.add_argument("--video_column", default="video", help="column with the videos (default: %(default)s)")
    parser.add_argument("--num_frames", type=int, within="[1, inf)", help="frames to decode per video (default: all)")
    parser.add_argument(
        "--workers", type=int, within="[0, inf)", default=1, help="processes that decode (default: %(default)s)"
    )
    parser.add_argument("--report", type=Path, help="write these videos and their faults to this JSON file")
    parser.set_defaults(max_video_seconds=FILM_SECONDS)
    access_args, args = parser.parse_dataclasses(argv)
    return access_args, args


def main(argv: list[str] | None = None) -> int:
    access_args, args = parse_args(argv)
    if args.report:
        args.report.parent.mkdir(parents=True, exist_ok=True)
    access = access_args.access_to(args.dataset_name)
    splits = load_video_dataset(args.dataset_name, args.dataset_config_name, args.video_column)
    faults: dict[str, str] = {}
    for split, rows in splits.items():
        loader = DataLoader(
            Faults(rows, args.video_column, args.num_frames, access), batch_size=None, num_workers=args.workers
        )
        found = [row for row in tqdm(loader, desc=split, unit="video") if row[1] is not None]
        for plays, what in ((False, "cannot be read"), (True, "play, but seem to be truncated or damaged")):
            named = {name: fault for name, fault, is_playable in found if is_playable == plays}
            if named or not plays:
                print(f"{split}: {len(named)} of {len(rows)} videos {what}", *named.values(), sep="\n")
            faults |= named
    if args.report:
        write_aside(args.report, json.dumps(faults, indent=2) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    run(main)
