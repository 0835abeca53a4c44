"""Find annotation files, and read their JSON and their classes; an error names the file and its fault. `tables` reads text."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .tables import AnnotationError, read_text
from .video_files import SPLIT_NAMES


Files = Mapping[str, list[Path]]


def find_annotations(paths: Iterable[str | os.PathLike], patterns: Mapping[str, str]) -> dict[str, list[Path]]:
    """Sort files by their purpose. A folder among `paths` stands for all files in it and its sub-folders.

    Args:
        patterns: for each purpose, the regular expression that a file's whole name must match, in capitals or not. The first match counts.

    Raises:
        AnnotationError: a path does not exist, or a file among `paths` matches no pattern.
    """
    found: dict[str, list[Path]] = {purpose: [] for purpose in patterns}
    for path in map(Path, paths):
        if not path.exists():
            raise AnnotationError(f"Got annotations {path}, expected a file or folder that exists: correct the path.")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            purpose = next((key for key, pattern in patterns.items() if re.fullmatch(pattern, file.name, re.I)), None)
            if purpose is not None:
                found[purpose].append(file)
            elif not path.is_dir():
                raise AnnotationError(
                    f"Got annotations {path}, expected a name that matches one of {list(patterns.values())}: give its official name."
                )
    return found


def the_file(files: Files, purpose: str) -> Path:
    """Return the only file for a purpose; raises AnnotationError for no file or several."""
    if len(files[purpose]) != 1:
        raise AnnotationError(
            f"Got {[str(path) for path in files[purpose]]} for {purpose!r}, expected one file: name the files one by one."
        )
    return files[purpose][0]


def split_files(files: Files) -> dict[str, Path]:
    """Return the file of each split that has one; raises AnnotationError if no split has a file, or a split has several."""
    present = {split: the_file(files, split) for split in SPLIT_NAMES.values() if files.get(split)}
    if not present:
        expected = [purpose for purpose in files if purpose in SPLIT_NAMES.values()]
        raise AnnotationError(f"Got no annotations of a split, expected one of {expected}: give the annotation files.")
    return present


def read_json(path: Path) -> Any:
    """Read a JSON file; raises AnnotationError if it is not JSON in UTF-8."""
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise AnnotationError(f"Got {path}, expected JSON ({error}): download it again.") from error


def number_of(place: Any, value: Any, classes: Sequence[str]) -> int:
    """Read a class number; raises AnnotationError, which names the place (a file, or a file and line), if there is no such class."""
    if not re.fullmatch(r"\d+", str(value)) or int(value) >= len(classes):
        raise AnnotationError(
            f"Got class {value!r} in {place}, expected a number in 0..{len(classes) - 1}: give files of one edition."
        )
    return int(value)


def unique_names(names: Sequence[str]) -> list[str]:
    """Add its number to every name that occurs more than once, because `ClassLabel` needs different names."""
    counts = Counter(names)
    return [f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(names)]


def names_by_number(path: Path, numbered: Iterable[tuple[int, str]]) -> list[str]:
    """Sort class names by their numbers; raises AnnotationError unless the numbers are 0, 1, 2, ..."""
    classes = sorted(numbered)
    if [number for number, _ in classes] != list(range(len(classes))):
        raise AnnotationError(f"Got {path} with gaps in numbers, expected 0..{len(classes) - 1}: download it again.")
    return unique_names([name for _, name in classes])
