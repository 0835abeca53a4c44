"""Predictions on disk: a Parquet file with one row for each row of a split, in the split's order."""

import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as parquet

from ..files import write_aside
from ..models.configuration_lvmae import LVMAEConfig
from ..models.video_sources import video_name
from .features import is_scalar
from .views import Predictions, VideoViews, labels_of


def head_columns(config: LVMAEConfig) -> dict[str, tuple[str, slice, list[str]]]:
    """Return for each label column of the file: the column of its probabilities, its classes among all, and their names."""
    id2label: Any = config.id2label
    names = [id2label[number] for number in range(len(id2label))]
    if not config.label_slices:
        return {"label": ("probabilities", slice(0, len(names)), names)}
    return {
        name: (f"{name}_probabilities", part, [label.removeprefix(f"{name}: ") for label in names[part]])
        for name, part in config.label_slices.items()
    }


def write_predictions(
    path: str | os.PathLike,
    predictions: Predictions,
    views: VideoViews,
    config: LVMAEConfig,
) -> None:
    """Write predictions to a Parquet file.

    Columns: `video` (path), `start` and `end` (seconds, null for the video's own), `label` (null if unknown) and `probabilities`
    (null if the video cannot be read). With label sets, each has its own: `verb`, `verb_probabilities`, `noun`, ... The dataset's other
    columns of numbers, text and classes follow.

    Args:
        views: what was predicted.
    """
    rows, video_column, total = views.rows, views.video_column, len(views.rows)
    places = np.setdiff1d(np.arange(total), predictions.skipped)
    path_column = f"{video_column}.path"
    paths = rows.select_columns([video_column]).flatten().select_columns([path_column]).with_format("arrow")[:]
    schema: dict[str, Any] = {"video": datasets.Value("string")}
    columns: dict[str, list[Any]] = {
        "video": [video_name(path) if path else "<bytes>" for path in paths[path_column].to_pylist()]
    }
    for time in ("start", "end"):
        schema[time] = datasets.Value("float64")
        columns[time] = list(rows[time]) if time in rows.column_names else [None] * total
    known = labels_of(views, range(total))
    labels = np.full((total, 1), -1) if known is None else known.reshape(total, -1)
    for number, (name, (probabilities, part, names)) in enumerate(head_columns(config).items()):
        schema |= {name: datasets.ClassLabel(names=names), probabilities: datasets.List(datasets.Value("float32"))}
        columns[name] = [None if label < 0 else label for label in labels[:, min(number, labels.shape[1] - 1)].tolist()]
        columns[probabilities] = [None] * total
        for place, values in zip(places.tolist(), predictions.probabilities[:, part].astype(np.float32)):
            columns[probabilities][place] = values
    for name in rows.column_names:
        if name not in schema and name != video_column and is_scalar(rows.features[name]):
            schema[name], columns[name] = rows.features[name], list(rows[name])
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(schema))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_aside(Path(path), lambda part: table.to_parquet(part))


def read_predictions(path: str | os.PathLike, columns: list[str]) -> dict[str, list[Any]]:
    """Read columns of a predictions file; raise ValueError if one is missing."""
    table = parquet.read_table(path)
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise ValueError(
            f"Got {path} with columns {table.column_names}, expected {missing[0]!r}: evaluate the benchmark's own rows."
        )
    return {name: table.column(name).to_pylist() for name in columns}
