"""From rows of videos to batches: where rows come from, which frames and crops a clip has, what happens to broken videos.

Nothing here knows of targets, losses or trainers. Decoding itself lives in `models/video_io.py`, because processors need it.
"""

from typing import Any

from .arguments import VideoDataArguments
from .broken_videos import TooManyBrokenVideos, read_broken_videos, report_broken_videos
from .clips import ImageClips, MaskedVideoClips, VideoClips, VideoReading, processor_for
from .datasets import load_image_dataset, load_video_dataset, select_split
from .frames import FrameSampling
from .transforms import ClipAugmentation


def __getattr__(name: str) -> Any:
    """Version 0.1 had `SelectionCollator` here; it scores tokens and lives with the scores."""
    if name != "SelectionCollator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("transformers_lvmae.targets.scores"), name)


__all__ = [
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
