"""Reports of predictions: accuracies, tables by class and by length, confusion matrices, files of results."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCardData
from matplotlib.figure import Figure

from ..files import write_aside
from ..models.configuration_lvmae import LVMAEConfig
from ..models.credentials import mask_credentials
from .accuracy import predicts, ranks, topk_accuracies
from .views import Predictions


LENGTH_BINS = (4, 8, 16, 32)  # seconds, as in the paper's comparison with Avion
TICK_LIMIT = 60  # with more classes, a confusion matrix has no room for class names
CELL_LIMIT = 12  # with more classes, its cells have no room for numbers


def by_label_set(predictions: Predictions, config: LVMAEConfig) -> dict[str, tuple[np.ndarray, np.ndarray, list[str]]]:
    """Split predictions by label set: {name: (probabilities (rows, C), labels (rows,), class names)}. A single label is "label".

    Without labels, ValueError is raised.
    """
    if predictions.labels is None:
        raise ValueError(
            f"Got {len(predictions.probabilities)} predictions without labels, expected labels: name their column."
        )
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


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Return logarithms in float64; the smallest normal number takes the place of 0."""
    return np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float64).tiny))


def accuracies(predictions: Predictions, config: LVMAEConfig) -> dict[str, float]:
    """Return top-1 and top-5 accuracy (`topk_accuracies`), and `mean_class_accuracy` of each label set over the classes that occur.

    The probability of a combination of classes is the product of their probabilities after averaging over views.
    """
    logarithms = log_probabilities(predictions.probabilities)
    parts = by_label_set(predictions, config)
    metrics = topk_accuracies(logarithms, np.asarray(predictions.labels), config.label_sets)
    for label_set, (probabilities, labels, _) in parts.items():
        prefix = "" if config.label_sets is None else f"{label_set}_"
        clips = np.bincount(labels)
        right = np.bincount(labels, weights=ranks(probabilities, labels) == 0)
        metrics[f"{prefix}mean_class_accuracy"] = float((right[clips > 0] / clips[clips > 0]).mean())
    return metrics


def accuracies_by_length(
    predictions: Predictions, config: LVMAEConfig, bins: Sequence[float] = LENGTH_BINS
) -> list[dict[str, Any]]:
    """Return `accuracies` for each bin of seconds [low, high), with `seconds` and `clips`; an empty bin has only these two."""
    edges = [0, *bins]
    names = [f"{low}-{high}" for low, high in zip(edges, bins)] + [f">{bins[-1]}"]
    inside = np.digitize(predictions.durations, bins)
    known = np.isfinite(predictions.durations)
    masks = {name: known & (inside == number) for number, name in enumerate(names)}
    if not known.all():
        masks["unknown"] = ~known
    table = []
    for name, mask in masks.items():
        metrics = accuracies(predictions.part(mask), config) if mask.any() else {}
        table.append({"seconds": name, "clips": int(mask.sum()), **metrics})
    return table


def confusion_counts(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the confusion matrix, int64 (C, C): how often class i (row, true) was predicted as class j (column).

    Rows whose probabilities are not finite predict nothing and are in no cell.

    Args:
        probabilities: (rows, C).
        labels: (rows,).
    """
    counts = np.zeros((probabilities.shape[1],) * 2, dtype=np.int64)
    known = predicts(probabilities)
    np.add.at(counts, (labels[known], probabilities[known].argmax(axis=1)), 1)
    return counts


def class_table(counts: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """List the clips, accuracy and precision of each class of a confusion matrix (C, C), and the class it is most often taken for.

    Accuracy is None for a class without clips, and precision for a class that is never predicted.
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
    """Draw a confusion matrix (C, C) as a PNG. Each row is a true class; its cells are shares of the class's clips."""
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
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=7)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for text in (axes.set_title(title, fontsize=9), *axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)  # a "$" in a name is a dollar
    figure.savefig(path)


def eval_results(
    metrics: Mapping[str, float], dataset_name: str, split: str, config_name: str | None = None
) -> list[EvalResult]:
    """Convert metrics to entries of a model card."""
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
    """Write an evaluation of the rows with labels to `folder`, and return the content of results.json.

    - results.json: `about`; the numbers of `clips` that were evaluated, `clips_skipped` (videos that cannot be read),
      `clips_unlabelled` and `clips_total`; `metrics`; `by_length`;
    - model_card.yaml: the metrics as metadata of a model card (`model-index`);
    - classes.csv and confusion_matrix.png; with label sets, both for each set: classes_verb.csv.

    Args:
        about: facts about the run for results.json; `model`, `dataset` and `split` are required.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = {name: mask_credentials(value) if isinstance(value, str) else value for name, value in about.items()}
    total, predicted = predictions.num_rows, len(predictions.probabilities)
    predictions = predictions.labelled()
    metrics = accuracies(predictions, config)
    results = {
        **about,
        "clips": len(predictions.probabilities),
        "clips_skipped": len(predictions.skipped),
        "clips_unlabelled": predicted - len(predictions.probabilities),
        "clips_total": total,
        "metrics": metrics,
        "by_length": accuracies_by_length(predictions, config),
    }
    write_aside(folder / "results.json", json.dumps(results, indent=2) + "\n")
    entries = eval_results(metrics, about["dataset"], about["split"])
    card = ModelCardData(model_name=Path(about["model"]).name, eval_results=entries)
    write_aside(folder / "model_card.yaml", card.to_yaml() + "\n")
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
