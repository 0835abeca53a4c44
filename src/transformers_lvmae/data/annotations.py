"""Annotated clips, and the `datasets.DatasetDict` that they become together with their videos.

[`read_annotations`] (`annotation_formats`) makes [`Annotations`] from a benchmark's official files. [`build_dataset`] then looks for
the videos. Nothing here opens a video.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets


VIDEO_SUFFIXES = frozenset({".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm"})


class AnnotationError(ValueError):
    """An annotation file or a folder of videos is missing or has the wrong format; the message names it."""


@dataclass
class ClipAnnotation:
    """A labeled clip.

    Args:
        video: file name of the video, with or without its ending, or its path within the folder of videos.
        labels: a class number for each label column.
        start, end: seconds within the video; None = the video's own start or end.
    """

    video: str
    labels: tuple[int, ...]
    start: float | None = None
    end: float | None = None


@dataclass
class Annotations:
    """Clips of each split, and the class names of each label column."""

    splits: dict[str, list[ClipAnnotation]]
    classes: dict[str, list[str]]


@dataclass
class BuiltDataset:
    """A dataset, and what is missing from it.

    Args:
        splits: the dataset.
        missing_videos: names of videos that were not found.
        missing_clips: for each split, number of clips whose video was not found.
        ambiguous_videos: names that several files of the videos' folder have. The first file in alphabetical order was taken.
    """

    splits: datasets.DatasetDict
    missing_videos: list[str] = field(default_factory=list)
    missing_clips: dict[str, int] = field(default_factory=dict)
    ambiguous_videos: list[str] = field(default_factory=list)


def index_videos(folder: str | os.PathLike) -> dict[str, list[Path]]:
    """Find all videos in a folder and its sub-folders: file name without ending -> paths; raise AnnotationError if there are none."""
    index: dict[str, list[Path]] = {}
    for parent, folders, names in os.walk(os.fspath(folder), followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() in VIDEO_SUFFIXES:
                index.setdefault(path.stem, []).append(path)
    if not index:
        raise AnnotationError(f"Got {folder}, expected videos ({sorted(VIDEO_SUFFIXES)}): correct the path.")
    return index


def _find_video(video: str, folder: Path, index: Mapping[str, list[Path]]) -> Path | None:
    path = Path(video)
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return index[path.name][0] if path.name in index else None
    if (folder / path).is_file():
        return folder / path
    return index[path.stem][0] if path.stem in index else None


def build_dataset(annotations: Annotations, videos: str | os.PathLike) -> BuiltDataset:
    """Make a dataset of the clips whose videos are in the folder `videos`.

    Its columns are `video` (absolute path), `start` and `end` (seconds; only if some clip has them) and a `ClassLabel` for each
    label column. A video is first looked for at its path within the folder, then by its name without ending in all sub-folders. A split
    without any video raises AnnotationError.
    """
    folder, index = Path(videos).resolve(), index_videos(Path(videos).resolve())
    built = BuiltDataset(datasets.DatasetDict())
    timed = any(clip.start is not None or clip.end is not None for part in annotations.splits.values() for clip in part)
    missing, ambiguous = set(), set()
    for split, clips in annotations.splits.items():
        paths = {video: _find_video(video, folder, index) for video in dict.fromkeys(clip.video for clip in clips)}
        missing |= {video for video, path in paths.items() if path is None}
        ambiguous |= {path.stem for path in paths.values() if path is not None and len(index.get(path.stem, ())) > 1}
        present = [clip for clip in clips if paths[clip.video] is not None]
        if not present:
            raise AnnotationError(
                f"Got none of the {len(paths):,} videos of split {split!r} in {folder}, expected names such as "
                f"{next(iter(paths))!r}: correct --videos, or leave the split's annotations out."
            )
        built.missing_clips[split] = len(clips) - len(present)
        rows: dict[str, list[Any]] = {"video": [str(paths[clip.video]) for clip in present]}
        if timed:
            rows |= {"start": [clip.start for clip in present], "end": [clip.end for clip in present]}
        rows |= {column: [clip.labels[i] for clip in present] for i, column in enumerate(annotations.classes)}
        built.splits[split] = datasets.Dataset.from_dict(rows, features=_features(annotations.classes, timed))
    built.missing_videos, built.ambiguous_videos = sorted(missing), sorted(ambiguous)
    return built


def _features(classes: Mapping[str, list[str]], timed: bool) -> datasets.Features:
    times = {"start": datasets.Value("float64"), "end": datasets.Value("float64")} if timed else {}
    labels = {column: datasets.ClassLabel(names=names) for column, names in classes.items()}
    return datasets.Features({"video": datasets.Value("string"), **times, **labels})
