"""Load rows of videos from folders, lists, tables, datasets on disk and datasets on the Hub, whole or as streams.

A row has a video (a path or bytes; nothing is decoded here) and optionally a label and `start` and `end` in seconds.
"""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets.data_files import DataFilesDict, get_data_patterns, sanitize_patterns
from datasets.packaged_modules.videofolder.videofolder import VideoFolder


Rows: TypeAlias = Any  # datasets.Dataset or IterableDataset
Splits: TypeAlias = Any  # datasets.DatasetDict or IterableDatasetDict

# FFmpeg reads these files, but `videofolder` of the datasets library ignores them.
MORE_EXTENSIONS = (".webm", ".m4v", ".mpg", ".ogv", ".flv", ".wmv", ".ts", ".m2ts", ".3gp", ".gif")
# Endings of lists and tables: the builder of `datasets` that reads them, and its options.
TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".txt": ("text", {}),
}
STREAM_SHARDS = 64


class AnyVideoFolder(VideoFolder):
    """The loader `videofolder` of the datasets library, for more kinds of files."""

    EXTENSIONS = [*VideoFolder.EXTENSIONS, *MORE_EXTENSIONS]


def load_video_dataset(
    name: str | os.PathLike | Mapping[str, Any],
    config_name: str | None = None,
    video_column: str = "video",
    label_column: str | Sequence[str] | None = None,
    streaming: bool = False,
) -> Splits:
    """Load the splits of a dataset of videos.

    `name` may be:

    - a folder of videos. Splits come from sub-folders, and labels from metadata.csv or folder names, as with `videofolder`. More
      kinds of files are read than `videofolder` knows (webm, m4v, mpg, ...);
    - a list: a .txt file with one path a line; or a table: .csv, .tsv, .parquet or .jsonl, with a column `video` and optionally
      `start`, `end` and `label`. Its split is called train. Paths are relative to the file's folder;
    - several lists and tables: "train=a.csv,train=b.csv,validation=c.txt", or a mapping from splits to files;
    - a folder that `DatasetDict.save_to_disk` wrote;
    - the id of a dataset on the Hub, with its `config_name`.

    A row with `start` or `end`, in seconds, is a segment of a longer video ([`VideoClips`]). An empty cell is the video's own
    start or end.

    Args:
        label_column: column of labels, or several columns for several label sets. Each becomes a `ClassLabel` with one list of
            names for all splits; in a stream without `ClassLabel`, the column is read once to collect the names. None leaves
            labels as they are.
        streaming: return an `IterableDatasetDict`: nothing is downloaded before it is read, and tables stay on disk.

    Raises:
        ValueError: a column is missing, or a file has an unknown ending.
    """
    label_columns = [label_column] if isinstance(label_column, str) else list(label_column or [])
    splits = _load_splits(AnyVideoFolder, name, config_name, [video_column, *label_columns], streaming)
    splits = splits.cast_column(video_column, datasets.Video(decode=False))
    for column in label_columns:
        splits = _encode_labels(splits, column)
    return splits


def load_image_dataset(
    name: str | os.PathLike, config_name: str | None = None, image_column: str = "image"
) -> datasets.DatasetDict:
    """Load a folder of pictures (`imagefolder`) or a dataset on the Hub; raises ValueError if the column is missing."""
    splits = _load_splits("imagefolder", name, config_name, [image_column])
    return splits.cast_column(image_column, datasets.Image())


def _load_splits(
    folder_kind: Any, name: Any, config_name: str | None, columns: list[str], streaming: bool = False
) -> Splits:
    files = _table_files(name)
    if files:
        splits = _load_tables(files, columns[0], streaming)
    elif os.path.isfile(os.path.join(name, "dataset_dict.json")):
        splits = datasets.DatasetDict.load_from_disk(os.fspath(name))
        splits = _as_streams(splits) if streaming else splits
    elif os.path.isdir(name) and folder_kind is AnyVideoFolder:
        splits = _load_video_folder(os.fspath(name), streaming)
    elif os.path.isdir(name):
        splits = datasets.load_dataset(folder_kind, data_dir=os.fspath(name))
    else:
        splits = datasets.load_dataset(os.fspath(name), config_name, streaming=streaming)
    for split, rows in splits.items():
        missing = [column for column in columns if column not in (rows.column_names or columns)]
        if missing:
            raise ValueError(
                f"Got columns {rows.column_names} in split {split!r} of {name}, expected {missing[0]!r}: name the right column "
                "(--video_column, --image_column, --label_column) or add it to metadata.csv."
            )
    return splits


def _table_files(name: Any) -> dict[str, list[str]]:
    """Map each split to its lists and tables; empty if `name` is something else."""
    if isinstance(name, Mapping):
        return {
            split: [files] if isinstance(files, (str, os.PathLike)) else list(files)  # type: ignore[list-item]
            for split, files in name.items()
        }
    name = os.fspath(name)
    if os.path.isfile(name):
        return {"train": [name]}
    files: dict[str, list[str]] = {}
    if "=" in name and not os.path.exists(name):
        for pair in name.split(","):
            split, _, file = pair.strip().partition("=")
            files.setdefault(split, []).append(file)
    return files


def _load_tables(files: dict[str, list[str]], video_column: str, streaming: bool) -> Splits:
    splits = {
        split: datasets.concatenate_datasets([_load_table(Path(file), video_column) for file in paths])
        for split, paths in files.items()
    }
    return _as_streams(datasets.DatasetDict(splits)) if streaming else datasets.DatasetDict(splits)


def _load_table(path: Path, video_column: str) -> datasets.Dataset:
    ending = path.suffix.lower()
    if ending not in TABLES or not path.is_file():
        raise ValueError(f"Got {path}, expected an existing file that ends in one of {sorted(TABLES)}: convert it.")
    kind, options = TABLES[ending]
    rows = datasets.load_dataset(kind, data_files=str(path), split="train", **options)
    if kind == "text":
        rows = rows.rename_column("text", video_column).filter(_is_not_blank, fn_kwargs={"column": video_column})
    if getattr(rows.features.get(video_column), "dtype", None) not in ("string", "large_string"):
        return rows  # bytes have no path; if the column is missing, the caller raises
    rows = rows.cast_column(video_column, datasets.Value("string"))
    return rows.map(_resolve, fn_kwargs={"column": video_column, "folder": str(path.parent.absolute())})


def _is_not_blank(row: dict[str, Any], column: str) -> bool:
    return bool(row[column].strip())


def _resolve(row: dict[str, Any], column: str, folder: str) -> dict[str, Any]:
    video = row[column].strip()
    return {column: video if "://" in video else os.path.normpath(os.path.join(folder, video))}


def _load_video_folder(folder: str, streaming: bool) -> Splits:
    patterns = sanitize_patterns(get_data_patterns(folder))
    files = DataFilesDict.from_patterns(
        patterns, base_path=folder, allowed_extensions=[*AnyVideoFolder.EXTENSIONS, ".csv", ".jsonl", ".parquet"]
    )
    builder = AnyVideoFolder(data_files=files, dataset_name=Path(folder).absolute().name)
    builder.download_and_prepare()
    return _as_streams(builder.as_dataset()) if streaming else builder.as_dataset()


def _as_streams(splits: datasets.DatasetDict) -> datasets.IterableDatasetDict:
    return datasets.IterableDatasetDict(
        {
            split: rows.to_iterable_dataset(num_shards=max(1, min(STREAM_SHARDS, len(rows))))
            for split, rows in splits.items()
        }
    )


def _encode_labels(splits: Splits, label_column: str) -> Splits:
    first = next(iter(splits.values()))
    if isinstance((first.features or {}).get(label_column), datasets.ClassLabel):
        return splits
    names = sorted({str(label) for rows in splits.values() for label in _labels(rows, label_column)})
    splits = splits.cast_column(label_column, datasets.Value("string"))
    return splits.cast_column(label_column, datasets.ClassLabel(names=names))


def _labels(rows: Rows, label_column: str) -> Sequence[Any] | set[Any]:
    if isinstance(rows, datasets.Dataset):
        return rows.unique(label_column)
    return {row[label_column] for row in rows.select_columns(label_column)}


def select_split(splits: Splits, split: str, max_samples: int | None = None) -> Any:
    """Return a split, or its first `max_samples` rows; raises ValueError if the split does not exist."""
    if split not in splits:
        raise ValueError(f"Got split {split!r}, expected one of {sorted(splits)}: name one that the dataset has.")
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
    """Return `start` and `end` of a row in seconds, None for the video's own. An empty cell of a table may be None or NaN."""
    return _seconds(row.get("start")), _seconds(row.get("end"))


def _seconds(time: float | None) -> float | None:
    return None if time is None or math.isnan(time) else float(time)
