"""Predictions over several views of each video, every video once, whatever the number of processes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import default_data_collator
from transformers.video_utils import VideoMetadata

from ..data.clips import VideoClips, _seconds
from ..models.configuration_lvmae import LVMAEConfig
from ..models.video_io import decode_clips


class VideoViews(VideoClips):
    """Several clips of each video: item `i` is temporal view `i % temporal_views` of row `i // temporal_views`.

    An item has `pixel_values_videos` (spatial views, T, C, H, W), from one decoding, `row` (its number) and `duration` (seconds of
    the whole row, NaN if unknown).

    With `frame_stride`, temporal views start evenly spread from the video's beginning to its end (one: in the middle). Without
    it, each view has its frames from one of `temporal_views` equal parts of the video. A video too short for the stride is the same
    for all views, as in [`VideoClips`]. With a model of 32 frames, equal parts are the paper's multi-crop baseline.

    Spatial views are the processor's crop at evenly spread places along the longer side of a frame; one is the processor's own,
    the middle.

    Args:
        temporal_views, spatial_views: how many of each; every temporal view is cropped at every place.
        args, kwargs: as [`VideoClips`].

    Raises:
        ValueError: less than one view.
        VideoReadError: (on access) the video cannot be read; the message names it.
    """

    def __init__(self, *args: Any, temporal_views: int = 1, spatial_views: int = 1, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if temporal_views < 1 or spatial_views < 1:
            raise ValueError(
                f"Got temporal_views={temporal_views} and spatial_views={spatial_views}, expected at least 1 of each: 1 is plain "
                "evaluation."
            )
        self.temporal_views = temporal_views
        self.spatial_views = spatial_views

    def __len__(self) -> int:
        return len(self.rows) * self.temporal_views

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, temporal = divmod(index, self.temporal_views)
        row = self.rows[number]
        count = self.spatial_views
        clips = decode_clips(
            row[self.video_column],
            [partial(self.sample_view, temporal=temporal)] * count,
            [partial(self.crop_view, spatial=spatial) for spatial in range(count)],
            start=_seconds(row.get("start")),
            end=_seconds(row.get("end")),
        )
        duration = clips[0][1].duration
        return {
            "pixel_values_videos": torch.stack([self.make_pixels(clip) for clip, _ in clips]),
            "row": number,
            "duration": float("nan") if duration is None else duration,
        }

    def sample_view(self, metadata: VideoMetadata, temporal: int) -> np.ndarray:
        """Frame numbers of temporal view `temporal`."""
        total, views = metadata.total_num_frames, self.temporal_views
        if views == 1:
            return self.sample_frames(metadata)
        if self.frame_stride is not None:
            offsets = np.arange(self.num_frames) * self.frame_stride
            spare = total - 1 - int(offsets[-1])
            return self.sample_frames(metadata) if spare < 0 else offsets + spare * temporal // (views - 1)
        first, end = total * temporal // views, total * (temporal + 1) // views
        part = replace(metadata, total_num_frames=max(end - first, 1))
        return min(first, total - 1) + self.sample_frames(part)

    def crop_view(self, frame: torch.Tensor, spatial: int) -> torch.Tensor:
        """What spatial view `spatial` shows of a frame (C, H, W), of the model's size: the largest region of the crop's shape."""
        if self.spatial_views == 1:
            return self.processor.fit(frame)
        height, width = frame.shape[-2:]
        ratio = self.processor.crop_size["width"] / self.processor.crop_size["height"]
        kept = min(height, round(width / ratio)), min(width, round(height * ratio))
        top, left = ((side - part) * spatial // (self.spatial_views - 1) for side, part in zip((height, width), kept))
        return self.processor.fit(frame[..., top : top + kept[0], left : left + kept[1]])


@dataclass
class Predictions:
    """Of each row of a dataset: probabilities (rows, classes), the mean over views; classes (rows,) or (rows, label sets); seconds
    (rows,), NaN where unknown."""

    probabilities: np.ndarray
    labels: np.ndarray
    durations: np.ndarray


def check_classes(config: LVMAEConfig, rows: datasets.Dataset, label_columns: Sequence[str]) -> None:
    """Raise ValueError unless the model's classes are the dataset's, by name and number."""
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
    """Softmax of logits (B, C) in float64: over all classes, or within each label set."""
    parts = [logits[:, part] for part in slices.values()] or [logits]
    return torch.cat([part.double().softmax(dim=-1) for part in parts], dim=-1)


@torch.inference_mode()
def predict(
    model: Any, views: VideoViews, accelerator: Accelerator, batch_size: int = 8, num_workers: int = 0
) -> Predictions:
    """Probabilities of every row of `views`, averaged over its views, the same on every process.

    Each process takes every n-th row with all its views; nothing is padded, no row counts twice.

    Args:
        model: [`LVMAEForVideoClassification`]; moved to the accelerator's device and set to evaluation.
        views: with `label_column` set; of a `datasets.Dataset`, not of a stream.
        batch_size: clips at a time on each process.
        num_workers: processes that decode for each process.
    """
    model = model.to(accelerator.device).eval()
    own = range(accelerator.process_index, len(views.rows), accelerator.num_processes)
    items = [row * views.temporal_views + view for row in own for view in range(views.temporal_views)]
    loader = DataLoader(
        Subset(views, items), batch_size=batch_size, num_workers=num_workers, collate_fn=default_data_collator
    )
    sums: dict[int, np.ndarray] = {}
    durations: dict[int, float] = {}
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
    gathered = sorted(gather_object([(row, sums[row], durations[row]) for row in sums]), key=lambda item: item[0])
    assert [row for row, *_ in gathered] == list(range(len(views.rows)))
    columns = [views.label_column] if isinstance(views.label_column, str) else list(views.label_column or [])
    labels = [np.asarray(list(views.rows.select_columns(column)[column])) for column in columns]
    return Predictions(
        np.stack([values for _, values, _ in gathered]) / views.temporal_views,
        labels[0] if isinstance(views.label_column, str) else np.stack(labels, axis=1),
        np.asarray([duration for *_, duration in gathered]),
    )
