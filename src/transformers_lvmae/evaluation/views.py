"""Predictions over several views of each video, on any number of processes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm
from transformers import default_data_collator

from ..data.broken_videos import BrokenVideos
from ..data.clips import to_pixels
from ..data.datasets import segment_of
from ..data.frame_sampling import FrameSampling
from ..models.configuration_lvmae import LVMAEConfig
from ..models.video_io import decode_clips
from ..models.video_processing_lvmae import LVMAEVideoProcessor
from ..models.video_seeking import VideoReadError
from ..models.video_sources import VideoAccess, video_name


class VideoViews(Dataset):
    """A dataset of several clips of each video: item `i` is temporal view `i % temporal_views` of row `i // temporal_views`.

    An item has `pixel_values_videos` (spatial views, T, C, H, W), from one decoding; `row`, the number of its row; `duration`,
    seconds of the row's whole video or segment, NaN if unknown; and `is_readable`. If a video cannot be read, the view is black, and
    the row's later views are not tried.

    With `frame_stride`, the starts of the temporal views are spread evenly from the beginning of the video to its end; a single view
    lies in the middle. A video too short for the stride gives the same frames to all views, as in [`VideoClips`]. Without a stride,
    the video is cut into `temporal_views` equal parts, and each view takes its frames from one part: with a model of 32 frames, this
    is the kind of the paper's multi-crop baseline, whose number of parts is not known.

    A spatial view is the processor's crop, moved along the longer side of the frame; the places are spread evenly. A single view is
    the processor's own crop, in the middle.

    Args:
        rows: a split of [`load_video_dataset`], not a stream.
        processor: [`LVMAEVideoProcessor`]; resizes, rescales and normalizes.
        num_frames: frames of a clip.
        sampling: which frames a view has; by default, frames evenly over its part of the video.
        temporal_views, spatial_views: number of each; every temporal view is cropped at every place.
        video_column: column of videos.
        label_column: column of class ids, or several columns; [`predict`] reads it. None if the rows have no labels.
        broken: counts and records the videos that cannot be read. Without it, such a video raises an error.
        access: what a row's video may open, and limits of bytes and seconds.

    Raises:
        ValueError: less than one view.
        VideoReadError: (on access, without `broken`) the video cannot be read; the message names it.
        TooManyBrokenVideos: (on access) more videos than `broken` allows cannot be read.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        processor: LVMAEVideoProcessor,
        num_frames: int,
        sampling: FrameSampling | None = None,
        temporal_views: int = 1,
        spatial_views: int = 1,
        video_column: str = "video",
        label_column: str | Sequence[str] | None = None,
        broken: BrokenVideos | None = None,
        access: VideoAccess | None = None,
    ):
        if temporal_views < 1 or spatial_views < 1:
            raise ValueError(
                f"Got temporal_views={temporal_views} and spatial_views={spatial_views}, expected at least 1 of each: raise them."
            )
        self.rows = rows
        self.processor = processor
        self.num_frames = num_frames
        self.sampling = sampling or FrameSampling()
        self.temporal_views = temporal_views
        self.spatial_views = spatial_views
        self.video_column = video_column
        self.label_column = label_column
        self.broken = broken
        self.access = access
        self._unreadable: set[int] = set()  # rows

    def __len__(self) -> int:
        return len(self.rows) * self.temporal_views

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, temporal = divmod(index, self.temporal_views)
        if self.broken is None:
            return self.read_view(number, temporal)
        self.broken.tried += temporal == 0
        if number not in self._unreadable:
            try:
                return self.read_view(number, temporal)
            except VideoReadError as error:
                self._unreadable.add(number)
                self.broken.add(video_name(self.rows[number][self.video_column]), error)
        size = self.processor.crop_size["height"], self.processor.crop_size["width"]
        black = torch.zeros(self.spatial_views, self.num_frames, 3, *size)
        return {"pixel_values_videos": black, "row": number, "duration": float("nan"), "is_readable": False}

    def read_view(self, number: int, temporal: int) -> dict[str, Any]:
        """Decode temporal view `temporal` of row `number`, with all its spatial views."""
        row = self.rows[number]
        start, end = segment_of(row)
        clips = decode_clips(
            row[self.video_column],
            [lambda metadata: self.sample_view(metadata.total_num_frames, temporal)] * self.spatial_views,
            [partial(self.crop_view, spatial=spatial) for spatial in range(self.spatial_views)],
            start=start,
            end=end,
            access=self.access,
        )
        if self.broken is not None:
            self.broken.note(video_name(row[self.video_column]), clips[0][1].fault)
        duration = clips[0][1].duration
        return {
            "pixel_values_videos": torch.stack([to_pixels(clip, self.processor) for clip, _ in clips]),
            "row": number,
            "duration": float("nan") if duration is None else duration,
            "is_readable": True,
        }

    def sample_view(self, total: int, temporal: int) -> np.ndarray:
        """Choose the frames (num_frames,) of temporal view `temporal` of a video with `total` frames."""
        views, stride = self.temporal_views, self.sampling.frame_stride
        if stride is not None and views > 1:
            offsets = np.arange(self.num_frames) * stride
            spare = total - 1 - int(offsets[-1])
            if spare >= 0:
                return offsets + spare * temporal // (views - 1)
        elif views > 1:
            first, end = total * temporal // views, total * (temporal + 1) // views
            return min(first, total - 1) + self.sampling.sample(max(end - first, 1), self.num_frames)
        return self.sampling.sample(total, self.num_frames)

    def crop_view(self, frames: torch.Tensor, spatial: int) -> torch.Tensor:
        """Crop frames (N, C, H, W) at place `spatial` to the largest region of the crop's shape, and resize it to the model's size."""
        if self.spatial_views == 1:
            return self.processor.fit(frames)
        height, width = frames.shape[-2:]
        ratio = self.processor.crop_size["width"] / self.processor.crop_size["height"]
        kept = min(height, round(width / ratio)), min(width, round(height * ratio))
        top, left = ((side - part) * spatial // (self.spatial_views - 1) for side, part in zip((height, width), kept))
        return self.processor.fit(frames[..., top : top + kept[0], left : left + kept[1]])


@dataclass
class Predictions:
    """Predictions for those rows of a dataset whose videos can be read, in the dataset's order.

    Args:
        probabilities: (rows, classes), the mean over views. NaN if the model's logits are not finite.
        labels: right classes (rows,), or (rows, label sets); -1 if unknown. None if the dataset has none.
        durations: seconds (rows,), NaN if unknown.
        skipped: numbers of the dataset's other rows, whose videos cannot be read.
    """

    probabilities: np.ndarray
    labels: np.ndarray | None
    durations: np.ndarray
    skipped: Sequence[int] = ()

    @property
    def num_rows(self) -> int:
        """Number of rows of the dataset."""
        return len(self.probabilities) + len(self.skipped)

    def part(self, chosen: np.ndarray) -> "Predictions":
        """Return the predictions where `chosen` (rows,) is True. `skipped` stays."""
        labels = None if self.labels is None else self.labels[chosen]
        return Predictions(self.probabilities[chosen], labels, self.durations[chosen], self.skipped)

    def labelled(self) -> "Predictions":
        """Return the predictions of the rows whose labels are all known."""
        count = len(self.probabilities)
        known = False if self.labels is None else (self.labels.reshape(count, -1) >= 0).all(axis=1)
        return self.part(np.full(count, known))


def check_classes(config: LVMAEConfig, rows: datasets.Dataset, label_columns: Sequence[str]) -> None:
    """Raise ValueError unless model and dataset have the same class names in the same order."""
    fields = LVMAEConfig.label_fields({column: rows.features[column].names for column in label_columns})
    names: dict[int, str] = fields["id2label"]
    known: Any = config.id2label
    if names != known:
        wrong = next(i for i in range(max(len(names), len(known))) if names.get(i) != known.get(i))
        raise ValueError(
            f"Got a dataset of {len(names)} classes whose class {wrong} is {names.get(wrong)!r}, expected the model's "
            f"{len(known)} with {known.get(wrong)!r}: evaluate on the label columns and classes of its training data."
        )


def split_probabilities(logits: torch.Tensor, slices: Mapping[str, slice]) -> torch.Tensor:
    """Return the softmax of logits (B, C) in float64, over all classes or, with `slices`, within each label set."""
    parts = [logits[:, part] for part in slices.values()] or [logits]
    return torch.cat([part.double().softmax(dim=-1) for part in parts], dim=-1)


@torch.inference_mode()
def predict(
    model: Any, views: VideoViews, accelerator: Accelerator, batch_size: int = 8, num_workers: int = 0
) -> Predictions:
    """Predict every row of `views`, and average its probabilities over its views. Every process returns all rows.

    Each process takes every n-th row with all its views. Nothing is padded, so no row counts twice. A row with an unreadable view is
    skipped as a whole.

    Args:
        model: [`LVMAEForVideoClassification`]; it is moved to the accelerator's device and set to evaluation.
        batch_size: clips at a time on each process.
        num_workers: number of decoding workers of each process.

    Raises:
        VideoReadError: no row can be read.
    """
    model = model.to(accelerator.device).eval()
    own = range(accelerator.process_index, len(views.rows), accelerator.num_processes)
    items = [row * views.temporal_views + view for row in own for view in range(views.temporal_views)]
    own_views = Subset(views, items)
    loader = DataLoader(own_views, batch_size, num_workers=num_workers, collate_fn=default_data_collator)
    sums: dict[int, np.ndarray] = {}
    durations: dict[int, float] = {}
    skipped: set[int] = set()
    for batch in tqdm(loader, desc="Evaluating", disable=not accelerator.is_main_process):
        logits = []
        for clips in batch["pixel_values_videos"].flatten(0, 1).split(batch_size):
            with accelerator.autocast():
                logits.append(model(pixel_values_videos=clips.to(accelerator.device)).logits)
        probabilities = split_probabilities(torch.cat(logits), model.config.label_slices).cpu()
        means = probabilities.unflatten(0, (-1, views.spatial_views)).mean(dim=1).numpy()
        for row, values, duration in zip(batch["row"].tolist(), means, batch["duration"].tolist()):
            sums[row] = sums.get(row, 0.0) + values
            durations[row] = duration
        skipped.update(batch["row"][~batch["is_readable"].bool()].tolist())
    gathered = sorted(
        gather_object([(row, row in skipped, sums[row], durations[row]) for row in sums]), key=lambda item: item[0]
    )
    assert [row for row, *_ in gathered] == list(range(len(views.rows)))
    read = [item for item in gathered if not item[1]]
    if not read:
        raise VideoReadError(
            f"Got {len(gathered)} rows of which none can be read, expected most to play: repair or remove them "
            "(scripts/check_videos.py names all)."
        )
    rows = [row for row, *_ in read]
    return Predictions(
        np.stack([values for *_, values, _ in read]) / views.temporal_views,
        labels_of(views, rows),
        np.asarray([duration for *_, duration in read]),
        [row for row, is_skipped, *_ in gathered if is_skipped],
    )


def labels_of(views: VideoViews, rows: Sequence[int]) -> np.ndarray | None:
    """Return the labels (rows,) or (rows, label sets) of these rows, -1 if unknown; None without `label_column`."""
    if views.label_column is None:
        return None
    names = [views.label_column] if isinstance(views.label_column, str) else list(views.label_column)
    columns = views.rows.select_columns(names)
    labels = [np.asarray([-1 if label is None else label for label in columns[name]])[list(rows)] for name in names]
    return labels[0] if isinstance(views.label_column, str) else np.stack(labels, axis=1)
