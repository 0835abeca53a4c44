"""Turn video files into clips: rows, frames, crops, augmentation, broken videos, and the annotations of benchmarks.

Nothing here knows targets, losses or trainers. Decoding lives in `models/video_io.py`, because processors need it too.
"""

from typing import Any

from .arguments import VideoDataArguments
from .broken_videos import TooManyBrokenVideos, read_broken_videos, report_broken_videos
from .chosen_clips import ChosenVideoClips
from .clips import ByteVideoClips, ImageClips, MaskedVideoClips, VideoClips, VideoReading, processor_for
from .datasets import load_image_dataset, load_video_dataset, select_split
from .frame_sampling import FrameSampling
from .transforms import ClipAugmentation


def __getattr__(name: str) -> Any:
    """Import `SelectionCollator` from `targets.token_scores`, where it lives. It is a public name of this folder."""
    if name != "SelectionCollator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("transformers_lvmae.targets.token_scores"), name)


__all__ = [
    "ByteVideoClips",
    "ChosenVideoClips",
    "ClipAugmentation",
    "FrameSampling",
    "ImageClips",
    "MaskedVideoClips",
    "SelectionCollator",
    "TooManyBrokenVideos",
    "VideoClips",
    "VideoDataArguments",
    "VideoReading",
    "load_image_dataset",
    "load_video_dataset",
    "processor_for",
    "read_broken_videos",
    "report_broken_videos",
    "select_split",
]
