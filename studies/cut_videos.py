"""Cut videos into short square clips, for example to train a tokenizer on them. `datasets` reads the folder as videofolder.

    python studies/cut_videos.py DATA film_1.mp4 film_2.mp4 --size 96 --num_frames 32 --test_every 4

Each video is cut into segments of `num_frames` frames, and each segment into squares side by side along the longer side of the picture. All
squares of one segment in `test_every` go to the split test, so that no test clip shows the same moment as a training clip.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.v2.functional import resize
from transformers.video_utils import VideoMetadata

from transformers_lvmae.command_line import CommandLine, run
from transformers_lvmae.models.video_io import decode_video, write_video


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandLine(description=__doc__)
    parser.add_argument("output_dir", type=Path, help="folder to write")
    parser.add_argument("videos", type=Path, nargs="+", help="video files")
    parser.add_argument("--size", type=int, default=96, help="height and width in pixels, even (default: %(default)s)")
    parser.add_argument("--num_frames", type=int, default=32, help="frames of a clip (default: %(default)s)")
    parser.add_argument(
        "--test_every", type=int, default=4, help="one segment in so many goes to the test split (default: %(default)s)"
    )
    return parser.parse_args(argv)


def whole_video(metadata: VideoMetadata) -> range:
    return range(metadata.total_num_frames)


def squares(frames: torch.Tensor, size: int) -> list[np.ndarray]:
    """Cut uint8 frames (T, 3, H, W) into as many clips (T, size, size, 3) as fit along the longer side."""
    frames = resize(frames, [size], antialias=True)
    axis = 2 if frames.shape[2] > frames.shape[3] else 3
    count = frames.shape[axis] // size
    margin = (frames.shape[axis] - count * size) // 2
    parts = frames.narrow(axis, margin, count * size).split(size, dim=axis)
    return [part.permute(0, 2, 3, 1).contiguous().numpy() for part in parts]


def cut(video: Path, args: argparse.Namespace) -> dict[str, int]:
    """Write one video's clips; returns how many went to each split."""
    frames, _ = decode_video(video, whole_video)
    written = {"train": 0, "test": 0}
    for number in range(len(frames) // args.num_frames):
        split = "test" if number % args.test_every == args.test_every - 1 else "train"
        segment = frames[number * args.num_frames : (number + 1) * args.num_frames]
        for place, clip in enumerate(squares(segment, args.size)):
            folder = args.output_dir / split
            folder.mkdir(parents=True, exist_ok=True)
            write_video(folder / f"{video.stem}_{number:03d}_{place}.mp4", clip)
            written[split] += 1
    return written


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    for video in args.videos:
        print(video, cut(video, args))


if __name__ == "__main__":
    run(main)
