"""Make rows of files: videos in folders, with or without metadata files, lists, tables and shards."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets.exceptions import DatasetGenerationError
from transformers import logging

from .tables import AnnotationError, Row, label_name, read_lines, read_rows, read_text, segment, typed
from .video_files import (
    METADATA_FILES,
    VIDEO_ENDINGS,
    FolderSplits,
    Found,
    check_classes,
    find_splits,
    is_video,
    report_ignored,
)


Rows: TypeAlias = Any  # datasets.Dataset or IterableDataset

logger = logging.get_logger(__name__)

# Endings of lists, tables and shards: how they are read, and options. "csv" and "text" are read by `tables`, so that an error names
# the line; the others by the builders of `datasets` with these names.
TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".txt": ("text", {}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".tar": ("webdataset", {}),
}
# What a folder may hold instead of videos. A .txt or .json must be named, because it may be a license.
SHARDS = (".tar", ".parquet", ".arrow", ".jsonl", ".csv", ".tsv")
_PATH = rf".+\.(?:{'|'.join(sorted(ending[1:] for ending in VIDEO_ENDINGS))})"
# A line of VideoMAE's lists: a path and a label. After a comma or a tab, a label is any text; after blanks, it is a number.
LABELLED_LINE = re.compile(rf"({_PATH})(?:\s*[,\t]\s*([^,\t]+)|\s+(\d+))", re.IGNORECASE)
LINE_WITH_MORE = re.compile(rf"{_PATH}[\s,]", re.IGNORECASE)


def load_files(
    found: Found, split: str | None, video_column: str, labels: Sequence[str], streaming: bool
) -> tuple[dict[str, Rows], bool]:
    """Load the videos or the shards of a folder or pattern, and say whether the column `label` has the names of folders.

    Args:
        split: the split of all files; None finds the splits.
        labels: columns of labels that the caller needs.
        streaming: leave shards on disk; they become `IterableDataset`s.

    Raises:
        AnnotationError: there are neither videos nor shards, labels are needed and neither folders nor metadata give them, or a row
            is wrong.
    """
    metadata = [name for name in found.files if os.path.basename(name) in METADATA_FILES]
    videos = [name for name in found.files if is_video(name)]
    shards = {ending: [name for name in found.files if name.lower().endswith(ending)] for ending in SHARDS}
    kind = "video" if videos or metadata else next((ending for ending, names in shards.items() if names), None)
    if kind is None:
        raise AnnotationError(
            f"Got {found.root} with {len(found.files)} files, expected videos ({' '.join(sorted(VIDEO_ENDINGS))}) or shards "
            f"({' '.join(SHARDS)}): correct the path, or name the list itself."
        )
    names = videos if kind == "video" else shards[kind]
    report_ignored(found.root, sorted(set(found.files) - {*names, *metadata}), f"they are no {kind} files")
    report_ignored(found.root, found.hidden, "they are hidden")
    if metadata:
        return _load_described(found, metadata, split, video_column, labels), False
    splits = {split: {name: Path(name).parts[:-1] for name in names}} if split else find_splits(found, names)
    if kind == "video":
        return _load_videos(found, splits, split is not None, video_column, labels)
    return {
        part: load_tables([found.root / name for name in files], video_column, labels, streaming)
        for part, files in splits.items()
    }, False


def _load_videos(
    found: Found,
    splits: FolderSplits,
    is_named_split: bool,
    video_column: str,
    labels: Sequence[str],
) -> tuple[dict[str, Rows], bool]:
    fault = check_classes(splits, fewest=1 if is_named_split else 2)
    if fault is not None and "label" in labels:
        raise AnnotationError(
            f"Got {found.root}, where {fault}, expected SPLIT/CLASS/VIDEO or CLASS/VIDEO, or labels in metadata.csv: give the folder "
            "above the classes, or move the videos."
        )
    loaded = {}
    for split, files in splits.items():
        cells: dict[str, list[str]] = {video_column: [str(found.root / name) for name in files]}
        if fault is None and all(files.values()):
            cells["label"] = [folders[0] for folders in files.values()]
        loaded[split] = datasets.Dataset.from_dict(cells)
    return loaded, fault is None


def _load_described(
    found: Found, metadata: list[str], split: str | None, video_column: str, labels: Sequence[str]
) -> dict[str, Rows]:
    """Load the videos that metadata files name in the column `file_name`, relative to the folders of these files."""
    tables: list[datasets.Dataset] = []
    files: list[str | None] = []
    matched = set(found.files)
    for name in metadata:
        rows, place = _read_table(found.root / name, video_column, labels)
        key = next((key for key in ("file_name", f"{video_column}_file_name") if key in rows.column_names), None)
        if key is None:
            raise AnnotationError(
                f"Got columns {rows.column_names} in {found.root / name}, expected 'file_name': add it."
            )
        files += [
            _described_file(found, matched, name, file, place(number)) for number, file in enumerate(rows[key][:])
        ]
        tables.append(rows.rename_column(key, video_column))
    joined = datasets.concatenate_datasets(tables)
    named = dict.fromkeys(name for name in files if name is not None)
    videos = [name for name in found.files if is_video(name)]
    report_ignored(found.root, [name for name in videos if name not in named], "no metadata file names them")
    loaded = {}
    for part, inside in ({split: named} if split else find_splits(found, list(named))).items():
        numbers = [number for number, name in enumerate(files) if name in inside]
        paths = [str(found.root / str(files[number])) for number in numbers]
        rows = joined.select(numbers)
        loaded[part] = replace_column(rows, video_column, paths, datasets.Value("string"))
    return loaded


def _described_file(found: Found, matched: set[str], metadata: str, file: Any, place: str) -> str | None:
    """Return the path of a metadata row's file from the root; None if a pattern leaves it out."""
    path = os.path.normpath(os.path.join(os.path.dirname(metadata), str(file or "").strip()))
    outside = os.path.relpath(path, os.path.dirname(metadata) or ".").startswith("..")
    if not file or "://" in str(file) or os.path.isabs(path) or outside:
        raise AnnotationError(
            f"Got file_name {file!r} in {place}, expected a path below the folder of the metadata file: correct the row."
        )
    if found.is_pattern:
        return path if path in matched else None
    if not (found.root / path).is_file():
        raise AnnotationError(
            f"Got file_name {file!r} in {place}, expected a file that exists: correct or remove the row."
        )
    return path


def load_tables(names: Sequence[str | os.PathLike], video_column: str, labels: Sequence[str], streaming: bool) -> Rows:
    """Load the lists, tables and shards of one split. Paths of videos become absolute; they are relative to their file's folder.

    Raises:
        AnnotationError: a file does not exist or has an unknown ending, or a row is wrong.
    """
    groups: dict[tuple[Path, str], list[Path]] = {}
    for path in map(Path, names):
        ending = path.suffix.lower()
        if ending not in TABLES or not path.is_file():
            raise AnnotationError(
                f"Got {path}, expected an existing file that ends in one of {sorted(TABLES)}: convert it."
            )
        groups.setdefault((path.parent, TABLES[ending][0]), []).append(path)
    loaded = []
    for (folder, kind), paths in groups.items():
        if kind in ("csv", "text"):
            rows = datasets.concatenate_datasets([_read_table(path, video_column, labels)[0] for path in paths])
        else:
            rows = _load_shards(kind, paths, video_column, labels, streaming and kind != "json")
        loaded.append(_resolved(rows, video_column, folder))
    return loaded[0] if len(loaded) == 1 else datasets.concatenate_datasets(loaded)


def _read_table(path: Path, video_column: str, labels: Sequence[str]) -> tuple[datasets.Dataset, Callable[[int], str]]:
    """Read a list or table whole, and return a function that says where a row is."""
    kind = TABLES[path.suffix.lower()][0]
    if kind not in ("csv", "text"):
        return _load_shards(kind, [path], video_column, labels), lambda number: f"row {number + 1} of {path}"
    rows = read_table_or_list(path, video_column)
    cells = {column: typed([row[column] for row in rows]) for column in rows[0]}
    if video_column in cells:
        cells[video_column] = [row[video_column] for row in rows]
    _check_filled(rows, [row.get(video_column, "x") for row in rows], video_column)
    times = [segment(row.place, row.get("start"), row.get("end")) for row in rows]
    for number, name in enumerate(("start", "end")):
        if name in cells:
            cells[name] = [time[number] for time in times]
    for column in labels:
        names = [label_name(row.place, label) for row, label in zip(rows, cells.get(column, ()))]
        if any(names):
            _check_filled(rows, names, column)
    repeated = len(rows) - len({tuple(row.values()) for row in rows})
    if repeated:
        logger.warning(f"{repeated:,} rows of {path} repeat an earlier row. They are kept.")
    table = datasets.Dataset.from_dict(cells)
    for name in {"start", "end"} & cells.keys():
        table = table.cast_column(name, datasets.Value("float64"))
    return table, lambda number: rows[number].place


def _check_filled(rows: Sequence[Row], cells: Sequence[str | None], column: str) -> None:
    empty = next((row for row, cell in zip(rows, cells) if not cell), None)
    if empty is not None:
        raise AnnotationError(
            f"Got no {column} in {empty.place}, expected one in every row: fill the cell or remove the row."
        )


def read_table_or_list(path: Path, video_column: str, text_as_table: str | None = None) -> list[Row]:
    """Read a table with a header, or a list without one: one path a line, or a path and a label on every line.

    Args:
        text_as_table: a .txt file whose first line has this column is a table, too.

    Raises:
        AnnotationError: the file is neither, or a line is wrong.
    """
    lines = read_lines(path)
    first = lines[0][1] if lines else ""
    is_list = path.suffix.lower() == ".txt" and not (text_as_table and text_as_table in first)
    if is_list or LABELLED_LINE.fullmatch(first):
        return _read_list(path, lines, video_column)
    if LINE_WITH_MORE.match(first):  # no header
        raise AnnotationError(_no_list(*lines[0]))
    return read_rows(path, separator=TABLES[path.suffix.lower()][1].get("sep", ","))


def _read_list(path: Path, lines: list[tuple[str, str]], video_column: str) -> list[Row]:
    """Read a list: one path a line, or a path and a label on every line."""
    if not lines:
        raise AnnotationError(f"Got {path} without lines, expected one path a line: fill it.")
    matches = [LABELLED_LINE.fullmatch(line) for _, line in lines]
    rows = []
    for (place, line), match in zip(lines, matches):
        if match is None and (any(matches) or (LINE_WITH_MORE.match(line) and not is_video(line))):
            raise AnnotationError(_no_list(place, line))
        cells = {video_column: line} if match is None else {video_column: match[1], "label": match[2] or match[3]}
        rows.append(Row(path, int(place.rpartition(" ")[2]), cells.items()))
    return rows


def _no_list(place: str, line: str) -> str:
    return (
        f"Got {line!r} in {place}, expected one path a line, or a path and a label on every line ('a.mp4 3'): make it a table with "
        "the header video,label or video,start,end,label; times are in seconds."
    )


def _load_shards(
    kind: str, paths: Sequence[Path], video_column: str, labels: Sequence[str], streaming: bool = False
) -> Rows:
    if kind == "json":
        for path in paths:
            read_text(path)  # names a line that is not UTF-8
    try:
        rows = datasets.load_dataset(kind, data_files=list(map(str, paths)), split="train", streaming=streaming)
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise AnnotationError(
            f"Got {', '.join(map(str, paths[:3]))}, expected {kind} ({error.__cause__ or error}): write the file again."
        ) from error
    if kind == "webdataset":
        rows = _flat_samples(rows, video_column, labels, paths[0])
    if not streaming:
        check_segments(rows, str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more files")
    return rows


def _flat_samples(rows: Rows, video_column: str, labels: Sequence[str], path: Path) -> Rows:
    """Turn the fields of a WebDataset into columns: the video, each key of json, and cls or txt as label where json has none."""
    fields = [name for name in rows.features if is_video(f"video.{name}")]
    if len(fields) != 1 or (isinstance(rows, datasets.Dataset) and rows.data.column(fields[0]).null_count):
        raise AnnotationError(
            f"Got samples of {sorted(rows.features)} in {path}, expected one video in each, always with the same ending: write the "
            "shards again."
        )
    rows = rows.cast_column(fields[0], datasets.Video(decode=False))
    inside = rows.features.get("json")
    keys = inside if isinstance(inside, dict) else {}
    columns = {f"json.{key}": key for key in keys if key != video_column} | {fields[0]: video_column}
    label = next((name for name in ("cls", "txt") if name in rows.features), None)
    if label is not None:
        columns[label] = label if "label" in keys or label in labels else "label"
    if keys and isinstance(rows, datasets.Dataset):
        lifted = rows.select_columns("json").flatten(max_depth=2)
        rows = datasets.concatenate_datasets([rows.remove_columns("json"), lifted], axis=1)
    elif keys:
        others = {name: feature for name, feature in rows.features.items() if name != "json"}
        features = datasets.Features(others | {f"json.{key}": feature for key, feature in keys.items()})
        rows = rows.map(_lift_json, features=features, remove_columns=["json"])
    renamed = {old: new for old, new in columns.items() if old != new}
    return rows.select_columns(["__key__", *columns]).rename_columns(renamed)


def _lift_json(sample: dict[str, Any]) -> dict[str, Any]:
    return {f"json.{key}": value for key, value in sample["json"].items()}


def check_segments(rows: datasets.Dataset, name: str) -> None:
    """Check `start` and `end` of all rows; raises AnnotationError with the number of the wrong row."""
    times = [rows[column][:] if column in rows.column_names else [None] * len(rows) for column in ("start", "end")]
    for number, (start, end) in enumerate(zip(*times), start=1):
        segment(f"row {number} of {name}", start, end)


def _resolved(rows: Rows, column: str, folder: Path) -> Rows:
    feature = rows.features.get(column)
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        return rows  # bytes need no path; if the column is missing, the caller raises
    options = {"column": column, "folder": str(folder.absolute())}
    if isinstance(rows, datasets.Dataset):
        paths = [_absolute(video, number, **options) for number, video in enumerate(rows[column][:])]
        return replace_column(rows, column, paths, datasets.Value("string"))
    features = datasets.Features({**rows.features, column: datasets.Video(decode=False)})
    return rows.map(_resolve, fn_kwargs=options, features=features, with_indices=True)


def _absolute(video: str | None, number: int, column: str, folder: str) -> str:
    video = (video or "").strip()
    if not video:
        raise AnnotationError(
            f"Got no {column} in row {number + 1} of the tables in {folder}, expected its path: fill it or remove the row."
        )
    return video if "://" in video else os.path.normpath(os.path.join(folder, video))


def _resolve(row: dict[str, Any], number: int, column: str, folder: str) -> dict[str, dict[str, str | None]]:
    return {column: {"path": _absolute(row[column], number, column, folder), "bytes": None}}


def replace_column(rows: datasets.Dataset, column: str, values: list[Any], feature: Any) -> datasets.Dataset:
    """Put other values into a column, without copying the others."""
    replaced = datasets.Dataset.from_dict({column: values}, features=datasets.Features({column: feature}))
    others = [name for name in rows.column_names if name != column]
    if not others:
        return replaced
    joined = datasets.concatenate_datasets([rows.select_columns(others), replaced], axis=1)
    return joined.select_columns(rows.column_names)
