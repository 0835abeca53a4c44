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

from .tables import AnnotationError
from .video_files import different_files, index_videos, is_video


@dataclass
class ClipAnnotation:
    """A clip of a benchmark.

    Args:
        video: the bare name (id) of the video, or its path within the folder of videos. A path has a folder or an ending.
        labels: a class number for each label column; None in a split without labels.
        start, end: seconds within the video; None = the video's own start or end.
        ids: other columns of the row, such as the id that a submission needs.
    """

    video: str
    labels: tuple[int, ...] | None
    start: float | None = None
    end: float | None = None
    ids: dict[str, str] = field(default_factory=dict)


@dataclass
class Annotations:
    """Clips of each split, and the class names of each label column. A split has labels in all clips or in none."""

    splits: dict[str, list[ClipAnnotation]]
    classes: dict[str, list[str]]


@dataclass
class BuiltDataset:
    """A dataset, and what is missing from it.

    Args:
        splits: the dataset.
        missing_videos: names of videos that were not found.
        missing_clips: for each split, number of clips whose video was not found.
    """

    splits: datasets.DatasetDict
    missing_videos: list[str] = field(default_factory=list)
    missing_clips: dict[str, int] = field(default_factory=dict)


def _find_video(video: str, folder: Path, index: Mapping[str, list[Path]]) -> Path | None:
    """Find a path exactly, or the only file with a bare name; raises AnnotationError for two files with this name."""
    if is_video(video) or os.path.basename(video) != video:
        return folder / video if (folder / video).is_file() else None
    found = different_files(index.get(video, ()))
    if len(found) > 1:
        raise AnnotationError(
            f"Got {len(found)} files for video {video!r}, {found[0]} and {found[1]}, expected one: leave one in the folder of videos, or "
            "name a folder that holds one."
        )
    return found[0] if found else None


def build_dataset(annotations: Annotations, videos: str | os.PathLike) -> BuiltDataset:
    """Make a dataset of the clips whose videos are in the folder `videos`.

    Its columns are `video` (absolute path), the columns of `ids`, `start` and `end` (seconds; only if some clip has them) and a
    `ClassLabel` for each label column. A split without labels has no label columns.

    A video with a path is at this path, and nowhere else. A bare name is looked for in all sub-folders. A split without labels and
    without any video is left out.

    Raises:
        AnnotationError: no video of a split with labels was found, or a bare name has two files.
    """
    folder, index = Path(videos).resolve(), index_videos(Path(videos).resolve())
    built = BuiltDataset(datasets.DatasetDict())
    timed = any(clip.start is not None or clip.end is not None for part in annotations.splits.values() for clip in part)
    missing = set()
    for split, clips in annotations.splits.items():
        paths = {video: _find_video(video, folder, index) for video in dict.fromkeys(clip.video for clip in clips)}
        missing |= {video for video, path in paths.items() if path is None}
        present = [clip for clip in clips if paths[clip.video] is not None]
        built.missing_clips[split] = len(clips) - len(present)
        if not present and clips[0].labels is None:
            continue  # test splits are often not downloaded
        if not present:
            raise AnnotationError(
                f"Got none of the {len(paths):,} videos of split {split!r} in {folder}, expected names such as "
                f"{next(iter(paths))!r}: correct --videos, or leave the split's annotations out."
            )
        rows: dict[str, list[Any]] = {"video": [str(paths[clip.video]) for clip in present]}
        rows |= {name: [clip.ids[name] for clip in present] for name in present[0].ids}
        if timed:
            rows |= {"start": [clip.start for clip in present], "end": [clip.end for clip in present]}
        classes = annotations.classes if present[0].labels is not None else {}
        rows |= {column: [clip.labels[i] for clip in present if clip.labels] for i, column in enumerate(classes)}
        built.splits[split] = datasets.Dataset.from_dict(rows, features=_features(present[0].ids, classes, timed))
    built.missing_videos = sorted(missing)
    return built


def _features(ids: Mapping[str, str], classes: Mapping[str, list[str]], timed: bool) -> datasets.Features:
    texts = {name: datasets.Value("string") for name in ("video", *ids)}
    times = {"start": datasets.Value("float64"), "end": datasets.Value("float64")} if timed else {}
    labels = {column: datasets.ClassLabel(names=names) for column, names in classes.items()}
    return datasets.Features({**texts, **times, **labels})
