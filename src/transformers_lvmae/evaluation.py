"""Evaluation of a classifier: the mean over several views of each video, every video once, whatever the number of processes."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from huggingface_hub import EvalResult, ModelCardData
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import default_data_collator
from transformers.video_utils import VideoMetadata

from .accuracy import topk_accuracies
from .configuration_lvmae import LVMAEConfig
from .data import VideoClips, _seconds
from .video_io import decode_clips


LENGTH_BINS = (4, 8, 16, 32)  # seconds: the paper's, where it compares with Avion
TICK_LIMIT = 60  # classes that still have room for their names beside a confusion matrix
CELL_LIMIT = 12  # classes that leave room for numbers in its cells


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


def by_label_set(predictions: Predictions, config: LVMAEConfig) -> dict[str, tuple[np.ndarray, np.ndarray, list[str]]]:
    """{name of the label set, "label" if there is one label: (probabilities (rows, C), labels (rows,), class names)}."""
    id2label: Any = config.id2label
    names = [id2label[number] for number in range(predictions.probabilities.shape[1])]
    if not config.label_slices:
        return {"label": (predictions.probabilities, predictions.labels, names)}
    return {
        label_set: (
            predictions.probabilities[:, part],
            predictions.labels[:, number],
            [name.removeprefix(f"{label_set}: ") for name in names[part]],
        )
        for number, (label_set, part) in enumerate(config.label_slices.items())
    }


def accuracies(predictions: Predictions, config: LVMAEConfig) -> dict[str, float]:
    """Top-1 and top-5 accuracy (`topk_accuracies`) and, of each label set, `mean_class_accuracy` over the classes that occur.

    A combination of classes has the product of their probabilities, each averaged over views first.
    """
    logarithms = np.log(np.maximum(predictions.probabilities, np.finfo(np.float64).tiny))
    metrics = topk_accuracies(logarithms, predictions.labels, config.label_sets)
    for label_set, (probabilities, labels, _) in by_label_set(predictions, config).items():
        prefix = "" if config.label_sets is None else f"{label_set}_"
        counts = confusion_counts(probabilities, labels)
        present = counts.sum(axis=1) > 0
        metrics[f"{prefix}mean_class_accuracy"] = float(
            (counts.diagonal()[present] / counts.sum(axis=1)[present]).mean()
        )
    return metrics


def accuracies_by_length(
    predictions: Predictions, config: LVMAEConfig, bins: Sequence[float] = LENGTH_BINS
) -> list[dict[str, Any]]:
    """`accuracies` of the clips in each bin of seconds, [low, high), with `seconds` and `clips`; empty bins have nothing else."""
    edges = [0, *bins]
    names = [f"{low}-{high}" for low, high in zip(edges, bins)] + [f">{bins[-1]}"]
    inside = np.digitize(predictions.durations, bins)
    known = np.isfinite(predictions.durations)
    masks = {name: known & (inside == number) for number, name in enumerate(names)}
    if not known.all():
        masks["unknown"] = ~known
    table = []
    for name, mask in masks.items():
        part = Predictions(predictions.probabilities[mask], predictions.labels[mask], predictions.durations[mask])
        metrics = accuracies(part, config) if mask.any() else {}
        table.append({"seconds": name, "clips": int(mask.sum()), **metrics})
    return table


def confusion_counts(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How often class i was taken for class j: probabilities (rows, C), labels (rows,) -> int64 (C, C), rows the true classes."""
    counts = np.zeros((probabilities.shape[1],) * 2, dtype=np.int64)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    return counts


def class_table(counts: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """For each class of a confusion matrix (C, C): its clips, accuracy, precision, and the class it is most often taken for.

    Accuracy is None for a class without clips, precision for one that is never predicted.
    """
    table = []
    for number, name in enumerate(names):
        clips, predicted, right = counts[number].sum(), counts[:, number].sum(), counts[number, number]
        wrong = counts[number].copy()
        wrong[number] = 0
        table.append(
            {
                "class": name,
                "clips": int(clips),
                "accuracy": float(right / clips) if clips else None,
                "precision": float(right / predicted) if predicted else None,
                "taken_for": names[wrong.argmax()] if wrong.any() else None,
                "times": int(wrong.max()),
            }
        )
    return table


def draw_confusion_matrix(path: str | os.PathLike, counts: np.ndarray, names: Sequence[str], title: str = "") -> None:
    """Write a PNG of a confusion matrix (C, C): a row for each true class, as shares of its clips."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(names)
    side = 2.5 + (0.22 * size if size <= TICK_LIMIT else 7.0)
    figure = Figure(figsize=(side + 1.2, side), dpi=110, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    figure.colorbar(picture, ax=axes, label="share of the true class's clips", fraction=0.046, pad=0.02)
    if size <= TICK_LIMIT:
        axes.set_xticks(range(size), names, rotation=90, fontsize=7)
        axes.set_yticks(range(size), names, fontsize=7)
    if size <= CELL_LIMIT:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=7)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=9)
    figure.savefig(path)


def eval_results(
    metrics: Mapping[str, float], dataset_name: str, split: str, config_name: str | None = None
) -> list[EvalResult]:
    """Metrics as a model card states them."""
    name = Path(dataset_name).name
    return [
        EvalResult(
            task_type="video-classification",
            dataset_type=dataset_name if "/" in dataset_name and not os.path.exists(dataset_name) else name,
            dataset_name=name,
            dataset_config=config_name,
            dataset_split=split,
            metric_type=metric,
            metric_name=metric.replace("_", " "),
            metric_value=round(value, 6),
        )
        for metric, value in metrics.items()
    ]


def write_evaluation(
    folder: str | os.PathLike, predictions: Predictions, config: LVMAEConfig, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write all that is known of `predictions` to `folder`, and return what is in results.json.

    - results.json: `about`, `clips`, `metrics`, `by_length`;
    - model_card.yaml: the metrics as a model card's metadata (`model-index`);
    - classes.csv and confusion_matrix.png; of a model with label sets, one of each for each set: classes_verb.csv.

    Args:
        about: of the run, for results.json; `model`, `dataset` and `split` are needed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metrics = accuracies(predictions, config)
    results = {
        **about,
        "clips": len(predictions.labels),
        "metrics": metrics,
        "by_length": accuracies_by_length(predictions, config),
    }
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    card = ModelCardData(
        model_name=Path(about["model"]).name, eval_results=eval_results(metrics, about["dataset"], about["split"])
    )
    (folder / "model_card.yaml").write_text(card.to_yaml() + "\n")
    for label_set, (probabilities, labels, names) in by_label_set(predictions, config).items():
        suffix = "" if config.label_sets is None else f"_{label_set}"
        counts = confusion_counts(probabilities, labels)
        title = f"{Path(about['dataset']).name}, {about['split']}: {label_set}, {len(labels):,} clips"
        draw_confusion_matrix(folder / f"confusion_matrix{suffix}.png", counts, names, title)
        table = class_table(counts, names)
        with (folder / f"classes{suffix}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(table)
    return results
