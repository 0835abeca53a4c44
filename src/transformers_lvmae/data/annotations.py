"""Annotations of the paper's benchmarks, as their authors publish them, to a `datasets.DatasetDict`.

Each `read_*` function takes the files of one benchmark and returns [`Annotations`]: names of videos, times and class numbers. Files
are recognised by their official names; what a split should hold is in `KNOWN_SIZES`. [`build_dataset`] then looks for the videos.
Nothing here opens a video.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets


FINEGYM_MARGIN = 1.0  # seconds on either side of an element: the paper's, so that an element of 47 frames becomes 107
VIDEO_SUFFIXES = frozenset({".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm"})
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "validate": "validation",
    "validation": "validation",
    "test": "test",
}

# Clips of each split: EPIC-Kitchens-100 as Scenic counts them, Diving48 in V2 and in V1, FineGym in v1.1 (its validation list holds
# about 10 thousand, says the paper), Kinetics in the editions that most report on. Other editions are complete too, hence no error.
KNOWN_SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "diving48": {"train": (15_027, 15_943), "test": (1_970, 2_096)},
    "epic_kitchens_100": {"train": (67_217,), "validation": (9_668,)},
    "something_something_v2": {"train": (168_913,), "validation": (24_777,)},
    "kinetics400": {"train": (246_534,), "validation": (19_906,)},
    "kinetics600": {"train": (392_622,), "validation": (30_001,)},
    "kinetics710": {"train": (658_340,), "validation": (66_803,)},
    "finegym288": {"train": (28_739,), "validation": (9_646,)},
}
KNOWN_CLASSES: dict[str, dict[str, int]] = {
    "diving48": {"label": 48},
    "epic_kitchens_100": {"verb": 97, "noun": 300},
    "something_something_v2": {"label": 174},
    "kinetics400": {"label": 400},
    "kinetics600": {"label": 600},
    "kinetics710": {"label": 710},
    "finegym288": {"label": 288},
}


class AnnotationError(ValueError):
    """An annotation file that is missing, or not of the benchmark's format; the message names it."""


@dataclass
class ClipAnnotation:
    """A labelled clip: a video's file name (its ending may be left out) or path within the videos' folder, a class number of
    each label column, and the clip's seconds within the video, None for its whole."""

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
    """A dataset, and what was left out of it: names of missing videos, clips without video in each split, names that several
    files of the videos' folder have (the first in alphabetical order was taken)."""

    splits: datasets.DatasetDict
    missing_videos: list[str] = field(default_factory=list)
    missing_clips: dict[str, int] = field(default_factory=dict)
    ambiguous_videos: list[str] = field(default_factory=list)


Files = Mapping[str, list[Path]]


def find_annotations(paths: Iterable[str | os.PathLike], patterns: Mapping[str, str]) -> dict[str, list[Path]]:
    """Files among `paths`, and in the folders among them, by what they are for.

    Args:
        patterns: regular expression that a file's name must match whole, for each purpose; the first that matches counts.

    Raises:
        AnnotationError: a path that does not exist, or a file given by name that matches nothing.
    """
    found: dict[str, list[Path]] = {purpose: [] for purpose in patterns}
    for path in map(Path, paths):
        if not path.exists():
            raise AnnotationError(f"Got annotations {path}, expected a file or folder that exists: correct the path.")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            purpose = next((key for key, pattern in patterns.items() if re.fullmatch(pattern, file.name)), None)
            if purpose is not None:
                found[purpose].append(file)
            elif not path.is_dir():
                raise AnnotationError(
                    f"Got annotations {path}, expected a name that matches one of {list(patterns.values())}: give the file its "
                    "official name."
                )
    return found


def the_file(files: Files, purpose: str) -> Path:
    """The one file for a purpose; raises AnnotationError if there is none, or more than one."""
    if len(files[purpose]) != 1:
        raise AnnotationError(
            f"Got {[str(path) for path in files[purpose]]} for {purpose!r}, expected one file: name the annotation files one by "
            "one."
        )
    return files[purpose][0]


def split_files(files: Files) -> dict[str, Path]:
    """The file of each split that has one; raises AnnotationError if none has, or one has several."""
    present = {split: the_file(files, split) for split in SPLIT_NAMES.values() if files.get(split)}
    if not present:
        expected = [purpose for purpose in files if purpose in SPLIT_NAMES.values()]
        raise AnnotationError(f"Got no annotations of a split, expected one of {expected}: name the files.")
    return present


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AnnotationError(f"Got {path}, expected JSON ({error}): download it again.") from error


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a csv with a header; raises AnnotationError if a column is missing or the file has no rows."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        check_keys(path, reader.fieldnames or [], columns)
        rows = list(reader)
    if not rows:
        raise AnnotationError(f"Got {path} without rows, expected at least one: download it again.")
    return rows


def check_keys(path: Path, got: Iterable[str], expected: Sequence[str]) -> None:
    missing = [name for name in expected if name not in set(got)]
    if missing:
        raise AnnotationError(
            f"Got {path} with {sorted(got)}, expected {missing[0]!r} too: give the official file, or one with these columns: "
            f"{list(expected)}."
        )


def number_of(path: Path, value: Any, classes: Sequence[str]) -> int:
    """A class number as a file states it; raises AnnotationError if there is no such class."""
    if not re.fullmatch(r"\d+", str(value)) or int(value) >= len(classes):
        raise AnnotationError(
            f"Got class {value!r} in {path}, expected a number in 0..{len(classes) - 1}: give annotations and class names of the "
            "same edition."
        )
    return int(value)


def unique_names(names: Sequence[str]) -> list[str]:
    """Names for `ClassLabel`, which wants no two alike: those that occur more than once get their number."""
    counts = Counter(names)
    return [f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(names)]


def seconds(path: Path, time: str) -> float:
    """Seconds of "62.5" or "00:01:02.5" in a file; raises AnnotationError for anything else."""
    match = re.fullmatch(r"(?:(\d+):(\d+):)?(\d+(?:\.\d*)?)", time)
    if match is None:
        raise AnnotationError(f"Got time {time!r} in {path}, expected seconds or HH:MM:SS.SS: correct the row.")
    hours, minutes, rest = match.groups(default="0")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def read_diving48(files: Files) -> Annotations:
    """Diving48's `Diving48_V2_train.json` and `_test.json` (or V1's, without `V2_`) and `Diving48_vocab.json`.

    A video is a clip: `start_frame` and `end_frame` count its own frames. V2 corrects V1's labels. A class name is take-off,
    somersaults, twists and position: "Back 15som 05Twis FREE".
    """
    classes = [" ".join(words) for words in read_json(the_file(files, "vocabulary"))]
    splits = {}
    for split, path in split_files(files).items():
        clips = read_json(path)
        for clip in clips:
            check_keys(path, clip, ["vid_name", "label"])
        splits[split] = [ClipAnnotation(clip["vid_name"], (number_of(path, clip["label"], classes),)) for clip in clips]
    return Annotations(splits, {"label": classes})


def read_epic_kitchens(files: Files) -> Annotations:
    """EPIC-Kitchens-100's `EPIC_100_train.csv`, `EPIC_100_validation.csv` and the csv files of its verb and noun classes.

    Clips are segments of long videos. The test split was published without labels. Of two editions of the classes, as the authors'
    repository has them, the second (`EPIC_100_noun_classes_v2.csv`) counts.
    """
    classes = {}
    for name in ("verb", "noun"):
        newest = [path for path in files[f"{name} classes"] if path.stem.endswith("_v2")] or files[f"{name} classes"]
        classes[name] = _epic_classes(the_file({f"{name} classes": newest}, f"{name} classes"))
    columns = ["video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class"]
    splits = {
        split: [
            ClipAnnotation(
                row["video_id"],
                tuple(number_of(path, row[f"{name}_class"], names) for name, names in classes.items()),
                seconds(path, row["start_timestamp"]),
                seconds(path, row["stop_timestamp"]),
            )
            for row in read_table(path, columns)
        ]
        for split, path in split_files(files).items()
    }
    return Annotations(splits, classes)


def _epic_classes(path: Path) -> list[str]:
    rows = sorted(read_table(path, ["id", "key"]), key=lambda row: int(row["id"]))
    if [int(row["id"]) for row in rows] != list(range(len(rows))):
        raise AnnotationError(f"Got {path} with gaps in its ids, expected 0..{len(rows) - 1}: download it again.")
    return unique_names([row["key"] for row in rows])


def read_something_something(files: Files) -> Annotations:
    """Something-Something v2's json files of the splits, and of its labels.

    A clip's label is its template without the brackets: "Holding [something]" is "Holding something". The test split was
    published without labels.
    """
    numbers = {name: int(number) for name, number in read_json(the_file(files, "labels")).items()}
    classes = sorted(numbers, key=numbers.__getitem__)
    if [numbers[name] for name in classes] != list(range(len(classes))):
        raise AnnotationError(
            f"Got {files['labels'][0]} with gaps in its numbers, expected 0..{len(classes) - 1}: download it again."
        )
    splits: dict[str, list[ClipAnnotation]] = {}
    for split, path in split_files(files).items():
        splits[split] = []
        for clip in read_json(path):
            check_keys(path, clip, ["id", "template"])
            name = clip["template"].replace("[", "").replace("]", "")
            if name not in numbers:
                raise AnnotationError(
                    f"Got template {clip['template']!r} in {path}, expected one of the {len(classes)} labels: give the labels of "
                    "the same edition."
                )
            splits[split].append(ClipAnnotation(str(clip["id"]), (numbers[name],)))
    return Annotations(splits, {"label": classes})


def read_kinetics(files: Files) -> Annotations:
    """Kinetics' csv files (label, youtube_id, time_start, time_end, split) for trimmed videos named
    `<youtube_id>_<time_start>_<time_end>`, both times as six digits. Classes are numbered alphabetically."""
    columns = ["label", "youtube_id", "time_start", "time_end", "split"]
    rows = [(path, row) for path in files["annotations"] for row in read_table(path, columns)]
    videos = [
        f"{row['youtube_id']}_{seconds(path, row['time_start']):06.0f}_{seconds(path, row['time_end']):06.0f}"
        for path, row in rows
    ]
    return _named_classes(rows, videos, ["label"])


def read_kinetics_list(files: Files) -> Annotations:
    """Kinetics-710's lists, a line for each clip: path and class number, with a space or a comma between them.

    The lists of Kinetics-400, 600 and 700 that make it up may be separate files. `label_map_k710.txt`, one name a line, names the
    classes; without it their names are their numbers.
    """
    names = _lines(the_file(files, "names")) if files["names"] else [str(number) for number in range(710)]
    classes = unique_names(names)
    splits: dict[str, list[ClipAnnotation]] = {}
    for split in ("train", "validation"):
        for path in files[split]:
            for line in _lines(path):
                video, number = _last_word(path, line)
                splits.setdefault(split, []).append(ClipAnnotation(video, (number_of(path, number, classes),)))
    return Annotations(splits, {"label": classes})


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _last_word(path: Path, line: str) -> tuple[str, str]:
    match = re.fullmatch(r"(.+?)[\s,]+(\d+)", line)
    if match is None:
        raise AnnotationError(f"Got line {line!r} in {path}, expected a name and a class number: correct the line.")
    return match[1], match[2]


def read_finegym(files: Files) -> Annotations:
    """FineGym's Gym288: `gym288_train_element_v1.1.txt`, `gym288_val_element.txt`, `gym288_categories.txt` and
    `finegym_annotation_info_v1.1.json`, for whole videos named by their YouTube id.

    An element's clip starts `FINEGYM_MARGIN` before its first stage and ends as long after its last. The times of elements count
    from the start of their event.
    """
    classes = _finegym_classes(the_file(files, "categories"))
    info_path = the_file(files, "times")
    info = read_json(info_path)
    splits: dict[str, list[ClipAnnotation]] = {}
    for split, path in split_files(files).items():
        splits[split] = []
        for line in _lines(path):
            name, number = _last_word(path, line)
            match = re.fullmatch(r"(.+)_(E_\d+_\d+)_(A_\d+_\d+)", name)
            try:
                video, event_name, element_name = match.groups()  # type: ignore[union-attr]
                event = info[video][event_name]
                offset, stages = event["timestamps"][0][0], event["segments"][element_name]["timestamps"]
            except (AttributeError, KeyError, TypeError) as error:
                raise AnnotationError(
                    f"Got element {name!r} in {path}, expected one whose times are in {info_path}: give both files of the same "
                    "edition."
                ) from error
            start, end = offset + stages[0][0] - FINEGYM_MARGIN, offset + stages[-1][1] + FINEGYM_MARGIN
            splits[split].append(ClipAnnotation(video, (number_of(path, number, classes),), max(start, 0.0), end))
    return Annotations(splits, {"label": classes})


def _finegym_classes(path: Path) -> list[str]:
    """Lines such as "Clabel: 0; set: 1; Glabel: 1; (VT) round-off, ..."."""
    names = {}
    for line in _lines(path):
        match = re.fullmatch(r"Clabel:\s*(\d+)\s*;.*?(\([A-Z]+\).*)", line)
        if match is None:
            raise AnnotationError(
                f"Got line {line!r} in {path}, expected 'Clabel: <number>; ...; (<EVENT>) <name>': download it again."
            )
        names[int(match[1])] = match[2].strip()
    if sorted(names) != list(range(len(names))):
        raise AnnotationError(f"Got {path} with gaps in its numbers, expected 0..{len(names) - 1}: download it again.")
    return unique_names([names[number] for number in range(len(names))])


def read_csv(files: Files) -> Annotations:
    """Any csv with columns `video` (a path within the videos' folder, or a name), `label`, or `verb` and `noun`, and optionally
    `start` and `end` (seconds) and `split`.

    Without a column `split` a file's name says its split: train.csv, validation.csv, test.csv. Classes are numbered
    alphabetically.
    """
    tables = {path: read_table(path, ["video"]) for path in files["annotations"]}
    rows = [(path, row) for path, table in tables.items() for row in table]
    columns = ["verb", "noun"] if rows and {"verb", "noun"} <= rows[0][1].keys() else ["label"]
    for path, table in tables.items():
        check_keys(path, table[0], columns)
    return _named_classes(rows, [row["video"] for _, row in rows], columns)


def _named_classes(rows: list[tuple[Path, dict[str, str]]], videos: list[str], columns: list[str]) -> Annotations:
    """Rows that give their classes by name; `start` and `end` are taken where they are, `split` from the file's name where not."""
    classes = {column: sorted({row[column] for _, row in rows}) for column in columns}
    numbers = {column: {name: number for number, name in enumerate(names)} for column, names in classes.items()}
    splits: dict[str, list[ClipAnnotation]] = {}
    for (path, row), video in zip(rows, videos):
        split = SPLIT_NAMES.get(row.get("split") or path.stem)
        if split is None:
            raise AnnotationError(
                f"Got split {row.get('split') or path.stem!r} in {path}, expected one of {sorted(SPLIT_NAMES)}: add a column "
                "'split' or rename the file."
            )
        labels = tuple(numbers[column][row[column]] for column in columns)
        start, end = (seconds(path, row[name]) if row.get(name) else None for name in ("start", "end"))
        splits.setdefault(split, []).append(ClipAnnotation(video, labels, start, end))
    return Annotations(splits, classes)


_KINETICS_FILES = {"annotations": r".+\.csv"}
BENCHMARKS: dict[str, tuple[dict[str, str], Callable[[Files], Annotations]]] = {
    "diving48": (
        {
            "train": r"Diving48_(V2_)?train\.json",
            "test": r"Diving48_(V2_)?test\.json",
            "vocabulary": r"Diving48_vocab\.json",
        },
        read_diving48,
    ),
    "epic_kitchens_100": (
        {
            "train": r"EPIC_100_train\.csv",
            "validation": r"EPIC_100_validation\.csv",
            "verb classes": r"EPIC_100_verb_classes(_v2)?\.csv",
            "noun classes": r"EPIC_100_noun_classes(_v2)?\.csv",
        },
        read_epic_kitchens,
    ),
    "something_something_v2": (
        {
            "train": r"(something-something-v2-)?train\.json",
            "validation": r"(something-something-v2-)?validation\.json",
            "labels": r"(something-something-v2-)?labels\.json",
        },
        read_something_something,
    ),
    "kinetics400": (_KINETICS_FILES, read_kinetics),
    "kinetics600": (_KINETICS_FILES, read_kinetics),
    "kinetics710": (
        {"names": r"label_map.*\.txt", "train": r".*train.*\.(txt|csv)", "validation": r".*val.*\.(txt|csv)"},
        read_kinetics_list,
    ),
    "finegym288": (
        {
            "train": r"gym288_train_element_v1\.1\.txt",
            "validation": r"gym288_val_element\.txt",
            "categories": r"gym288_categories\.txt",
            "times": r"finegym_annotation_info_v1\.1\.json",
        },
        read_finegym,
    ),
    "csv": ({"annotations": r".+\.csv"}, read_csv),
}


def read_annotations(name: str, paths: Iterable[str | os.PathLike]) -> Annotations:
    """Annotations of the benchmark `name`, a key of `BENCHMARKS`, from its official files or the folders that hold them.

    Raises:
        AnnotationError: an unknown benchmark, or a file that is missing or not of its format.
    """
    if name not in BENCHMARKS:
        raise AnnotationError(f"Got benchmark {name!r}, expected one of {sorted(BENCHMARKS)}: choose one of them.")
    patterns, read = BENCHMARKS[name]
    annotations = read(find_annotations(paths, patterns))
    if not any(annotations.splits.values()):
        raise AnnotationError(f"Got no clips of {name}, expected files named {list(patterns.values())}: name them.")
    return annotations


def compare_with_known(name: str, annotations: Annotations) -> list[str]:
    """A sentence on each split and label column: whether it is as large as is known of the benchmark."""
    sentences = []
    for split, clips in annotations.splits.items():
        sizes = KNOWN_SIZES.get(name, {}).get(split, ())
        sentences.append(f"{split}: {_compare(len(clips), sizes, 'annotated clips')}")
    for column, classes in annotations.classes.items():
        known = KNOWN_CLASSES.get(name, {}).get(column)
        sentences.append(f"{column}: {_compare(len(classes), () if known is None else (known,), 'classes')}")
    return sentences


def _compare(got: int, known: tuple[int, ...], what: str) -> str:
    if not known:
        return f"{got:,} {what}"
    if got in known:
        return f"{got:,} {what}, as published"
    return f"{got:,} {what}, NOT the published {' or '.join(f'{size:,}' for size in known)}"


def index_videos(folder: str | os.PathLike) -> dict[str, list[Path]]:
    """Paths of all videos below a folder, by file name without ending, in alphabetical order.

    Raises:
        AnnotationError: no such folder, or no videos in it.
    """
    index: dict[str, list[Path]] = {}
    for parent, folders, names in os.walk(os.fspath(folder), followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() in VIDEO_SUFFIXES:
                index.setdefault(path.stem, []).append(path)
    if not index:
        raise AnnotationError(
            f"Got {folder}, expected a folder with videos ({', '.join(sorted(VIDEO_SUFFIXES))}): correct the path."
        )
    return index


def _find_video(video: str, folder: Path, index: Mapping[str, list[Path]]) -> Path | None:
    path = Path(video)
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return index[path.name][0] if path.name in index else None
    if (folder / path).is_file():
        return folder / path
    return index[path.stem][0] if path.stem in index else None


def build_dataset(annotations: Annotations, videos: str | os.PathLike) -> BuiltDataset:
    """Rows of the clips whose videos are there, with columns `video` (absolute path), `start` and `end` (seconds, only if some
    clip has them) and a `ClassLabel` for each label column.

    A video is looked for at its path within `videos`, and then by its name without ending in all sub-folders.

    Raises:
        AnnotationError: a split is left without clips.
    """
    folder, index = Path(videos).resolve(), index_videos(Path(videos).resolve())
    built = BuiltDataset(datasets.DatasetDict())
    timed = any(
        clip.start is not None or clip.end is not None for clips in annotations.splits.values() for clip in clips
    )
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
