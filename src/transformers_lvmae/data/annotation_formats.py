"""Official annotation files of video benchmarks, read into [`Annotations`].

Each benchmark has an entry in `BENCHMARKS`: how its files are named, which `read_*` function reads them, and how many clips and
classes are published. To add a benchmark, write its `read_*` function and its entry.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from .annotation_files import (
    Files,
    find_annotations,
    names_by_number,
    number_of,
    read_json,
    split_files,
    the_file,
    unique_names,
)
from .annotations import Annotations, ClipAnnotation
from .sources import read_table_or_list
from .tables import AnnotationError, Row, check_keys, read_lines, read_rows, seconds, segment, sorted_names
from .video_files import SPLIT_NAMES, split_of


# The paper adds a second on either side of an element, so that an element of 47 frames becomes 107.
FINEGYM_MARGIN = 1.0
# Not the lists of archives, such as k600_train_path.txt.
KINETICS_LISTS = r".+\.csv|(.+[-_])?(train|val|validate|test)\.txt"


def read_diving48(files: Files) -> Annotations:
    """Read Diving48: `Diving48_V2_train.json` and `_test.json` (or V1's, without `V2_`), and `Diving48_vocab.json`.

    A clip is a whole video: `start_frame` and `end_frame` count the video's own frames. V2 corrects V1's labels. A class name has
    take-off, somersaults, twists and position: "Back 15som 05Twis FREE".
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
    """Read EPIC-Kitchens-100: `EPIC_100_train.csv`, `EPIC_100_validation.csv` and the csv files of the 97 verb and 300 noun classes.

    Clips are segments of long videos. The test split, `EPIC_100_test_timestamps.csv`, was published without labels. Rows keep
    `narration_id` and `participant_id`. The authors' folder also has `EPIC_100_noun_classes_v2.csv`: its 305 nouns belong to VISOR,
    another benchmark, and are not read.
    """
    classes = {}
    for name in ("verb", "noun"):
        path = the_file(files, f"{name} classes")
        classes[name] = names_by_number(path, ((int(row["id"]), row["key"]) for row in read_rows(path, ["id", "key"])))
    ids = ["narration_id", "participant_id"]
    columns = [*ids, "video_id", "start_timestamp", "stop_timestamp"]
    splits: dict[str, list[ClipAnnotation]] = {}
    for split, path in split_files(files).items():
        labels = [] if split == "test" else [f"{name}_class" for name in classes]
        splits[split] = [
            ClipAnnotation(
                row["video_id"],
                tuple(number_of(row.place, row[f"{name}_class"], names) for name, names in classes.items())
                if labels
                else None,
                *segment(row.place, row["start_timestamp"], row["stop_timestamp"]),
                {name: row[name] for name in ids},
            )
            for row in read_rows(path, [*columns, *labels])
        ]
    return Annotations(splits, classes)


def read_something_something(files: Files) -> Annotations:
    """Read Something-Something v2: a json file for each split, and one of the labels.

    A clip's label is its template without the brackets: "Holding [something]" becomes "Holding something". The test split was
    published without labels. Rows keep the video's `id`.
    """
    labels = the_file(files, "labels")
    numbers = {name: int(number) for name, number in read_json(labels).items()}
    classes = names_by_number(labels, ((number, name) for name, number in numbers.items()))
    splits: dict[str, list[ClipAnnotation]] = {}
    for split, path in split_files(files).items():
        splits[split] = []
        for clip in read_json(path):
            check_keys(path, clip, ["id"] if split == "test" else ["id", "template"])
            name = clip.get("template", "").replace("[", "").replace("]", "")
            if name not in numbers and split != "test":
                raise AnnotationError(
                    f"Got template {clip['template']!r} in {path}, expected one of the {len(classes)} labels: give the labels of "
                    "the same edition."
                )
            number = None if split == "test" else (numbers[name],)
            splits[split].append(ClipAnnotation(str(clip["id"]), number, ids={"id": str(clip["id"])}))
    return Annotations(splits, {"label": classes})


def read_kinetics(files: Files) -> Annotations:
    """Read Kinetics' lists, for trimmed videos named `<youtube_id>_<time_start>_<time_end>`, both times as six digits.

    They have columns youtube_id, time_start, time_end, split and, except for a test split, label. Lists of paths are read, too: a path
    and a label a line, as VideoMAE's `train.csv` has, or paths in folders of classes. Kinetics-600 has complete lists (`train.txt`)
    and incomplete ones (`train.csv`). Classes are numbered alphabetically.
    """
    paths = files["annotations"]
    twice = [path for path in paths if path.with_suffix(".csv") in paths and path.suffix != ".csv"]
    if twice:
        raise AnnotationError(
            f"Got {twice[0]} and {twice[0].with_suffix('.csv')}, expected one list a split: name the files one by one. The csv files of "
            "Kinetics-600 are incomplete."
        )
    rows = [row for path in paths for row in read_table_or_list(path, "video", text_as_table="youtube_id")]
    for row in rows:
        if "video" in row:
            row.setdefault("label", Path(row["video"]).parent.name)
        else:
            check_keys(row.path, row, ["youtube_id", "time_start", "time_end", "split"])
            times = (f"{seconds(row.place, row[name]):06.0f}" for name in ("time_start", "time_end"))
            row["video"] = "_".join([row["youtube_id"], *times])
    return _named_classes(rows, ["label"])


def read_kinetics_list(files: Files) -> Annotations:
    """Read Kinetics-710's lists. Each line is a clip: path and class number, separated by a space or a comma.

    Kinetics-710 joins Kinetics-400, 600 and 700, whose lists may be separate files. `label_map_k710.txt` names the classes, one a
    line; without it, the names are the numbers.
    """
    named = [name for _, name in read_lines(the_file(files, "names"))] if files["names"] else []
    classes = unique_names(named or [str(number) for number in range(710)])
    splits: dict[str, list[ClipAnnotation]] = {}
    for split in ("train", "validation"):
        for path in files[split]:
            for place, line in read_lines(path):
                video, number = _last_word(place, line)
                splits.setdefault(split, []).append(ClipAnnotation(video, (number_of(place, number, classes),)))
    return Annotations(splits, {"label": classes})


def _last_word(place: str, line: str) -> tuple[str, str]:
    """Split a line into a name and a class number."""
    match = re.fullmatch(r"(.+?)[\s,]+(\d+)", line)
    if match is None:
        raise AnnotationError(f"Got line {line!r} in {place}, expected a name and a class number: correct the line.")
    return match[1], match[2]


def read_finegym(files: Files) -> Annotations:
    """Read FineGym's Gym288, for whole videos named by their YouTube id.

    The files are `gym288_train_element_v1.1.txt`, `gym288_val_element.txt`, `gym288_categories.txt` and
    `finegym_annotation_info_v1.1.json`. A clip is an element: it starts `FINEGYM_MARGIN` before the element's first stage and ends
    as long after its last stage. The times of an element count from the start of its event.
    """
    classes = _finegym_classes(the_file(files, "categories"))
    info_path = the_file(files, "times")
    info = read_json(info_path)
    splits: dict[str, list[ClipAnnotation]] = {}
    for split, path in split_files(files).items():
        splits[split] = []
        for place, line in read_lines(path):
            name, number = _last_word(place, line)
            match = re.fullmatch(r"(.+)_(E_\d+_\d+)_(A_\d+_\d+)", name)
            try:
                video, event_name, element_name = match.groups()  # type: ignore[union-attr]
                event = info[video][event_name]
                offset, stages = event["timestamps"][0][0], event["segments"][element_name]["timestamps"]
            except (AttributeError, KeyError, TypeError) as error:
                raise AnnotationError(
                    f"Got element {name!r} in {place}, expected one whose times are in {info_path}: give files of one edition."
                ) from error
            start, end = offset + stages[0][0] - FINEGYM_MARGIN, offset + stages[-1][1] + FINEGYM_MARGIN
            splits[split].append(ClipAnnotation(video, (number_of(place, number, classes),), max(start, 0.0), end))
    return Annotations(splits, {"label": classes})


def _finegym_classes(path: Path) -> list[str]:
    """Read class names from lines such as "Clabel: 0; set: 1; Glabel: 1; (VT) round-off, ..."."""
    names = {}
    for place, line in read_lines(path):
        match = re.fullmatch(r"Clabel:\s*(\d+)\s*;.*?(\([A-Z]+\).*)", line)
        if match is None:
            raise AnnotationError(
                f"Got line {line!r} in {place}, expected 'Clabel: <number>; ...; (<EVENT>) <name>': download it again."
            )
        names[int(match[1])] = match[2].strip()
    return names_by_number(path, names.items())


def read_csv(files: Files) -> Annotations:
    """Read csv and tsv files of any dataset.

    Their columns are `video` (a path within the videos' folder, or a bare name), `label`, or `verb` and `noun`, and optionally
    `start` and `end` (seconds) and `split`. Without a column `split`, the file's name is its split: train.csv, validation.csv,
    test.csv. A file without a header has a path and a label a line. Labels of a test split may be missing or empty. Classes are
    numbered alphabetically, or by value if all are whole numbers.
    """
    rows = [row for path in files["annotations"] for row in read_table_or_list(path, "video")]
    for row in rows:
        check_keys(row.path, row, ["video"])
    return _named_classes(rows, ["verb", "noun"] if rows and {"verb", "noun"} <= rows[0].keys() else ["label"])


def _named_classes(rows: list[Row], columns: list[str]) -> Annotations:
    """Make annotations of rows with a video that give their classes by name.

    `start` and `end` are read where a row has them. Without `split`, the file's name is the split.
    """
    splits: dict[str, list[Row]] = {}
    for row in rows:
        splits.setdefault(_split_of_row(row), []).append(row)
    for part, column in product(splits.values(), columns):
        if {row.get(column) for row in part} == {"-1"}:  # as lists of a test split without labels have it
            for row in part:
                row[column] = ""
    without = {
        split for split, part in splits.items() if not any(row.get(column) for row in part for column in columns)
    }
    for row in (row for split, part in splits.items() if split not in without & {"test"} for row in part):
        check_keys(row.path, row, columns)
        if not all(row[column] for column in columns):
            raise AnnotationError(
                f"Got no {columns} in {row.place}, expected a label in every row: fill it or remove the row."
            )
    classes = {column: sorted_names(row[column] for row in rows if row.get(column)) for column in columns}
    numbers = {column: {name: number for number, name in enumerate(names)} for column, names in classes.items()}
    clips = {
        split: [
            ClipAnnotation(
                row["video"],
                None if split in without else tuple(numbers[column][row[column]] for column in columns),
                *segment(row.place, row.get("start"), row.get("end")),
            )
            for row in part
        ]
        for split, part in splits.items()
    }
    return Annotations(clips, classes)


def _split_of_row(row: Row) -> str:
    said = row.get("split")
    split = SPLIT_NAMES.get(said.lower()) if said else split_of(row.path.stem)
    if split is None:
        raise AnnotationError(
            f"Got split {said or row.path.stem!r} in {row.place}, expected one of {sorted(SPLIT_NAMES)}: add a column 'split' or "
            "rename the file."
        )
    return split


@dataclass(frozen=True)
class Benchmark:
    """The format of a benchmark's annotations, and its published sizes.

    Args:
        patterns: for each kind of file, the regular expression that its whole name must match.
        read: makes [`Annotations`] from these files.
        sizes: number of clips of each split, one for each edition. Other editions may be complete too, so a different number is
            reported and is no error.
        classes: number of classes of each label column.
    """

    patterns: dict[str, str]
    read: Callable[[Files], Annotations]
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)


BENCHMARKS = {
    "diving48": Benchmark(
        {
            "train": r"Diving48_(V2_)?train\.json",
            "test": r"Diving48_(V2_)?test\.json",
            "vocabulary": r"Diving48_vocab\.json",
        },
        read_diving48,
        {"train": (15_027, 15_943), "test": (1_970, 2_096)},  # V2 and V1
        {"label": 48},
    ),
    "epic_kitchens_100": Benchmark(
        {
            "train": r"EPIC_100_train\.csv",
            "validation": r"EPIC_100_validation\.csv",
            "test": r"EPIC_100_test_timestamps\.csv",
            "verb classes": r"EPIC_100_verb_classes\.csv",
            "noun classes": r"EPIC_100_noun_classes\.csv",
        },
        read_epic_kitchens,
        {"train": (67_217,), "validation": (9_668,), "test": (13_092,)},
        {"verb": 97, "noun": 300},
    ),
    "something_something_v2": Benchmark(
        {
            "train": r"(something-something-v2-)?train\.json",
            "validation": r"(something-something-v2-)?validation\.json",
            "test": r"(something-something-v2-)?test\.json",
            "labels": r"(something-something-v2-)?labels\.json",
        },
        read_something_something,
        {"train": (168_913,), "validation": (24_777,), "test": (27_157,)},
        {"label": 174},
    ),
    # The editions of Kinetics that most authors report on.
    "kinetics400": Benchmark(
        {"annotations": KINETICS_LISTS}, read_kinetics, {"train": (246_534,), "validation": (19_906,)}, {"label": 400}
    ),
    "kinetics600": Benchmark(
        {"annotations": KINETICS_LISTS}, read_kinetics, {"train": (392_622,), "validation": (30_001,)}, {"label": 600}
    ),
    "kinetics700": Benchmark({"annotations": KINETICS_LISTS}, read_kinetics, {}, {"label": 700}),
    "kinetics710": Benchmark(
        {"names": r"label_map.*\.txt", "train": r".*train.*\.(txt|csv)", "validation": r".*val.*\.(txt|csv)"},
        read_kinetics_list,
        {"train": (658_340,), "validation": (66_803,)},
        {"label": 710},
    ),
    "finegym288": Benchmark(
        {
            "train": r"gym288_train_element_v1\.1\.txt",
            "validation": r"gym288_val_element\.txt",
            "categories": r"gym288_categories\.txt",
            "times": r"finegym_annotation_info_v1\.1\.json",
        },
        read_finegym,
        {"train": (28_739,), "validation": (9_646,)},  # v1.1; the paper says that validation has about 10 thousand
        {"label": 288},
    ),
    "csv": Benchmark({"annotations": r".+\.(csv|tsv)"}, read_csv),
}


def read_annotations(name: str, paths: Iterable[str | os.PathLike]) -> Annotations:
    """Read the annotations of the benchmark `name`, a key of `BENCHMARKS`, from its official files or folders that hold them.

    Unknown benchmarks, missing files and other formats raise AnnotationError.
    """
    if name not in BENCHMARKS:
        raise AnnotationError(f"Got benchmark {name!r}, expected one of {sorted(BENCHMARKS)}: choose one of them.")
    benchmark = BENCHMARKS[name]
    annotations = benchmark.read(find_annotations(paths, benchmark.patterns))
    if not any(annotations.splits.values()):
        patterns = list(benchmark.patterns.values())
        raise AnnotationError(f"Got no clips of {name}, expected files named {patterns}: give the annotation files.")
    return annotations


def compare_with_known(name: str, annotations: Annotations) -> list[str]:
    """Return a sentence for each split and label column that compares its size with the published one."""
    known = BENCHMARKS[name]
    sizes = [
        (split, len(clips), "annotated clips", known.sizes.get(split, ()))
        for split, clips in annotations.splits.items()
    ]
    for column, names in annotations.classes.items():
        sizes.append((column, len(names), "classes", (known.classes[column],) if column in known.classes else ()))
    return [f"{part}: {got:,} {unit}{_compare(got, published)}" for part, got, unit, published in sizes]


def _compare(got: int, published: tuple[int, ...]) -> str:
    if not published:
        return ""
    if got in published:
        return ", as published"
    return f", NOT the published {' or '.join(f'{size:,}' for size in published)}"
