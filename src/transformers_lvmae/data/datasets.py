"""Load rows of videos from folders, lists, tables, shards, datasets on disk and datasets on the Hub, whole or as streams.

A row has a video (a path or bytes; nothing is decoded here) and optionally a label and `start` and `end` in seconds. `video_files`
finds files and what their folders say, `tables` reads text, and `sources` makes rows of both.
"""

import glob
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from ..models.video_seeking import VideoReadError
from .sources import TABLES, Rows, check_segments, load_files, load_tables, replace_column
from .tables import AnnotationError, label_name, segment, sorted_names
from .video_files import find_files, match_files


STREAM_SHARDS = 64


def load_video_dataset(
    name: str | os.PathLike | Mapping[str, Any],
    config_name: str | None = None,
    video_column: str = "video",
    label_column: str | Sequence[str] | None = None,
    streaming: bool = False,
) -> Any:
    """Load the splits of a dataset of videos.

    `name` may be:

    - a folder of videos. Splits come from folders such as train and val, and labels from metadata.csv (.jsonl, .parquet) with a
      column `file_name`, or from the first folder below the split;
    - a folder of shards: WebDataset's .tar, .parquet, .arrow, .jsonl, .csv or .tsv. Their folders or names say the split;
    - a pattern such as "data/*.mp4" or "shards/train-*.tar": the folder with the matching files alone;
    - a list: a .txt file with one path a line; or a table: .csv, .tsv, .parquet, .arrow or .jsonl, with a column `video` and optionally
      `start`, `end` and `label`. Its split is called train. Paths are relative to the file's folder. A list may also have a path
      and a label on every line, as VideoMAE's lists have;
    - several of these: "train=a.csv,train=b.csv,validation=c.txt", or a mapping from splits to files, patterns and folders;
    - a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote;
    - the id of a dataset on the Hub, with its `config_name`.

    A row with `start` or `end`, in seconds, is a segment of a longer video ([`VideoClips`]). An empty cell is the video's own
    start or end. Files that are ignored are counted and named in a warning.

    Args:
        label_column: column of labels, or several columns for several label sets. Each becomes a `ClassLabel` with one list of
            names for all splits, in alphabetical order, or by value if all are whole numbers; in a stream without `ClassLabel`, the
            column is read once to collect the names. A split without any label, as the test splits of benchmarks, has no such
            column; train must have it. None leaves labels as they are.
        streaming: return an `IterableDatasetDict`: nothing is downloaded before it is read, and shards stay on disk.

    Returns:
        `datasets.DatasetDict` or `datasets.IterableDatasetDict`.

    Raises:
        AnnotationError: (a ValueError) a column or a label is missing, a file has an unknown ending, or a row is wrong; the message
            names the file and the row.
    """
    labels = [label_column] if isinstance(label_column, str) else list(label_column or [])
    splits = _load_splits(name, config_name, video_column, labels, streaming)
    for split in splits:
        _check_column(splits, split, video_column, name)
    splits = {split: rows.cast_column(video_column, datasets.Video(decode=False)) for split, rows in splits.items()}
    for column in labels:
        splits = _encode_labels(splits, column, name)
    if streaming:
        return datasets.IterableDatasetDict({split: _as_stream(rows) for split, rows in splits.items()})
    return datasets.DatasetDict(splits)


def load_image_dataset(
    name: str | os.PathLike, config_name: str | None = None, image_column: str = "image"
) -> datasets.DatasetDict:
    """Load a folder of pictures (`imagefolder`) or a dataset on the Hub; raises ValueError if the column is missing."""
    if os.path.isfile(os.path.join(name, "dataset_dict.json")):
        splits = datasets.DatasetDict.load_from_disk(os.fspath(name))
    elif os.path.isdir(name):
        splits = datasets.load_dataset("imagefolder", data_dir=os.fspath(name))
    else:
        splits = datasets.load_dataset(os.fspath(name), config_name)
    for split in splits:
        _check_column(splits, split, image_column, name)
    return splits.cast_column(image_column, datasets.Image())


def _check_column(splits: Mapping[str, Rows], split: str, column: str, name: Any) -> None:
    columns = splits[split].column_names
    if columns is not None and column not in columns:
        raise AnnotationError(
            f"Got columns {columns} in split {split!r} of {name}, expected {column!r}: name the right column (--video_column, "
            "--image_column, --label_column), add it to metadata.csv, or put each class in a folder of its own."
        )


def _load_splits(
    name: Any, config_name: str | None, video_column: str, labels: list[str], streaming: bool
) -> dict[str, Rows]:
    parts = _named_splits(name)
    if parts:
        return _load_parts(parts, video_column, labels, streaming)
    name = os.fspath(name)
    if os.path.isfile(name):
        return {"train": load_tables([name], video_column, labels, streaming)}
    if os.path.isfile(os.path.join(name, "dataset_dict.json")):
        splits = dict(datasets.DatasetDict.load_from_disk(name))
    elif all(os.path.isfile(os.path.join(name, file)) for file in ("state.json", "dataset_info.json")):
        splits = {"train": datasets.Dataset.load_from_disk(name)}
    elif os.path.isdir(name) or glob.has_magic(name):
        return _load_folder(name, None, video_column, labels, streaming)
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or os.path.splitext(name)[1].lower() in TABLES:
        raise AnnotationError(
            f"Got {name!r}, expected a folder, list, table or pattern that exists, or an id on the Hub: correct the path."
        )
    else:
        return dict(datasets.load_dataset(name, config_name, streaming=streaming))
    for split, rows in splits.items():
        check_segments(rows, f"split {split!r} of {name}")
    return splits


def _named_splits(name: Any) -> dict[str, list[str]]:
    """Map each named split to its files, patterns and folders; empty if `name` names no splits."""
    if isinstance(name, Mapping):
        lists = {split: [part] if isinstance(part, (str, os.PathLike)) else part for split, part in name.items()}
        return {split: [os.fspath(file) for file in files] for split, files in lists.items()}
    parts: dict[str, list[str]] = {}
    name = os.fspath(name)
    if "=" in name and not os.path.exists(name):
        for pair in name.split(","):
            split, _, file = pair.strip().partition("=")
            parts.setdefault(split, []).append(file)
    return parts


def data_folders(name: str | os.PathLike | Mapping[str, Any]) -> tuple[str, ...]:
    """Return the folders of a dataset: those that [`load_video_dataset`] gets, and those of its lists, tables and shards. A dataset on
    the Hub has none."""
    names = [file for files in _named_splits(name).values() for file in files] or [os.fspath(name)]  # type: ignore[arg-type]
    folders = []
    for file in names:
        if os.path.isdir(file):
            folders.append(os.path.abspath(file))
        elif os.path.isfile(file):
            folders.append(os.path.dirname(os.path.abspath(file)))
        elif glob.has_magic(file):
            folders.append(str(match_files(file).root))
    return tuple(dict.fromkeys(folders))


def _load_parts(parts: dict[str, list[str]], video_column: str, labels: list[str], streaming: bool) -> dict[str, Rows]:
    splits = {}
    for split, names in parts.items():
        loaded = [
            _load_folder(name, split, video_column, labels, streaming)[split]
            if os.path.isdir(name) or (glob.has_magic(name) and not os.path.exists(name))
            else load_tables([name], video_column, labels, streaming)
            for name in names
        ]
        if len({isinstance(rows, datasets.Dataset) for rows in loaded}) > 1:
            loaded = [_as_stream(rows) for rows in loaded]
        splits[split] = loaded[0] if len(loaded) == 1 else datasets.concatenate_datasets(loaded)
    return splits


def _load_folder(
    name: str, split: str | None, video_column: str, labels: list[str], streaming: bool
) -> dict[str, Rows]:
    found = find_files(name) if os.path.isdir(name) else match_files(name)
    splits, by_folder = load_files(found, split, video_column, labels, streaming)
    return _encode_labels(splits, "label", found.root) if by_folder else splits


def _as_stream(rows: Rows) -> datasets.IterableDataset:
    if isinstance(rows, datasets.IterableDataset):
        return rows
    return rows.to_iterable_dataset(num_shards=max(1, min(STREAM_SHARDS, len(rows))))


def _encode_labels(splits: dict[str, Rows], column: str, name: Any) -> dict[str, Rows]:
    """Turn a column of labels into a `ClassLabel` with the same names in all splits. A split without any label loses the column: all its
    cells are empty, or all are -1."""
    labels = {split: _labels(rows, column, f"split {split!r} of {name}") for split, rows in splits.items()}
    unlabelled = [split for split, values in labels.items() if set(values) <= {None} or set(values) == {"-1"}]
    needed = "train" if "train" in splits else next(iter(splits))
    if needed in unlabelled and (needed == "train" or len(unlabelled) == len(splits)):
        _check_column(splits, needed, column, name)
        raise AnnotationError(
            f"Got only empty labels {column!r} in split {needed!r} of {name}, expected classes: fill the column."
        )
    for split, values in labels.items():
        if None in values and split not in unlabelled:
            raise AnnotationError(
                f"Got no {column} in row {values.index(None) + 1} of split {split!r} of {name}, expected a label in every row: fill it or "
                "remove the row."
            )
    features = [splits[split].features for split in labels if split not in unlabelled]
    known = [(part or {}).get(column) for part in features]
    are_equal = isinstance(known[0], datasets.ClassLabel) and all(feature == known[0] for feature in known)
    labelled = (values for split, values in labels.items() if split not in unlabelled)
    names = sorted_names(value for values in labelled for value in values if value is not None)
    encoded = {}
    for split, rows in splits.items():
        if split in unlabelled:
            encoded[split] = rows.remove_columns(column) if column in (rows.column_names or ()) else rows
        else:
            encoded[split] = rows if are_equal else _numbered(rows, column, labels[split], names)
    return encoded


def _labels(rows: Rows, column: str, name: str) -> list[str | None]:
    """Return the name of each row's class, in a stream each name once; nothing if there is no such column."""
    if rows.column_names is not None and column not in rows.column_names:
        return []
    feature = (rows.features or {}).get(column)
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    if isinstance(rows, datasets.IterableDataset):
        if names is not None:
            return list(names)
        return [label_name(name, label) for label in {row[column] for row in rows.select_columns(column)}]
    if names is not None:
        return [None if label is None or label < 0 else names[label] for label in rows[column][:]]
    return [label_name(f"row {number} of {name}", label) for number, label in enumerate(rows[column][:], start=1)]


def _numbered(rows: Rows, column: str, labels: list[str | None], names: list[str]) -> Rows:
    feature = datasets.ClassLabel(names=names)
    numbers = {name: number for number, name in enumerate(names)}
    if isinstance(rows, datasets.Dataset):
        return replace_column(rows, column, [numbers[str(label)] for label in labels], feature)
    old = (rows.features or {}).get(column)
    options = {"column": column, "numbers": numbers, "old": old.names if isinstance(old, datasets.ClassLabel) else None}
    features = None if rows.features is None else datasets.Features({**rows.features, column: feature})
    return rows.map(_number, fn_kwargs=options, features=features).cast_column(column, feature)


def _number(row: dict[str, Any], column: str, numbers: dict[str, int], old: list[str] | None) -> dict[str, int]:
    label = row[column] if old is None else old[row[column]]
    return {column: numbers[str(label_name("a row of the stream", label))]}


def select_split(
    splits: Any, split: str, max_samples: int | None = None, label_column: str | Sequence[str] | None = None
) -> Any:
    """Return a split, or its first `max_samples` rows; raises ValueError if the split does not exist, or lacks a column of labels."""
    if split not in splits:
        raise ValueError(f"Got split {split!r}, expected one of {sorted(splits)}: name one that the dataset has.")
    for column in [label_column] if isinstance(label_column, str) else label_column or ():
        if column not in (splits[split].column_names or (column,)):
            raise ValueError(
                f"Got split {split!r} without labels, expected the column {column!r}: name a split that has labels. Test splits of "
                "benchmarks have none."
            )
    rows = splits[split]
    if max_samples is None:
        return rows
    if isinstance(rows, datasets.IterableDataset):
        return rows.take(max_samples)
    return rows.select(range(min(max_samples, len(rows))))


def rows_fingerprint(
    rows: Rows, video_column: str = "video", label_column: str | Sequence[str] | None = None
) -> dict[str, Any]:
    """Return what tells rows from others wherever they lie: their number, and a digest of the ends of their paths, of their segments and
    of their labels. No video is opened. A stream is not read."""
    if isinstance(rows, datasets.IterableDataset):
        return {"rows": "a stream"}
    flat, path = rows.flatten(), f"{video_column}.path"
    names = [path, "start", "end", *([label_column] if isinstance(label_column, str) else label_column or ())]
    columns = [flat.with_format("arrow")[name].to_pylist() for name in names if name in flat.column_names]
    if path in flat.column_names:
        columns[0] = ["/".join(Path(name or "").parts[-2:]) for name in columns[0]]
    found = hashlib.sha256()
    for values in zip(*columns):
        found.update(repr(values).encode())
    return {"rows": len(rows), "rows_digest": found.hexdigest()[:16]}


def segment_of(row: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return `start` and `end` of a row in seconds, None for the video's own. An empty cell of a table may be None or NaN.

    Raises:
        VideoReadError: a time is negative or no time, or the end is not after the start.
    """
    try:
        return segment("a row of the dataset", row.get("start"), row.get("end"))
    except AnnotationError as error:
        raise VideoReadError(str(error)) from None
