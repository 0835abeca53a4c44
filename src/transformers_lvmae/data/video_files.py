"""Find files of videos in folders, and what their folders say: splits and classes. Nothing here opens a file."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from transformers import logging

from .tables import AnnotationError


logger = logging.get_logger(__name__)

# The only list of endings of videos. Capitals count as small letters.
VIDEO_ENDINGS = frozenset(
    [
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".divx",
        ".dv",
        ".f4v",
        ".flv",
        ".gif",
        ".m2t",
        ".m2ts",
        ".m2v",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpe",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogm",
        ".ogv",
        ".qt",
        ".rm",
        ".rmvb",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
    ]
)
# Names of splits, in folders, files and columns.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "validate", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SHOWN_FILES = 3
FolderSplits: TypeAlias = dict[str, dict[str, tuple[str, ...]]]  # split -> file -> its folders below the split's folder


@dataclass
class Found:
    """Files below a folder, as paths from `root` in alphabetical order, and hidden ones; or only the files that match a pattern."""

    root: Path
    files: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    is_pattern: bool = False


def is_video(path: str | os.PathLike) -> bool:
    """Whether a name ends as videos do."""
    return os.path.splitext(path)[1].lower() in VIDEO_ENDINGS


def find_files(folder: str | os.PathLike) -> Found:
    """Find all files below a folder. Links are followed, except to a folder that the link is in.

    A name that starts with a dot, or a folder's name that starts with two underscores, is hidden.
    """
    found = Found(Path(os.path.abspath(folder)))
    above: dict[str, frozenset[str]] = {}  # for each folder, the true paths of it and of the folders that it is in
    for parent, folders, names in os.walk(found.root, followlinks=True):
        real, outer = os.path.realpath(parent), above.get(os.path.dirname(parent), frozenset())
        if real in outer:
            folders.clear()
            continue
        above[parent] = outer | {real}
        for name in names:
            path = os.path.relpath(os.path.join(parent, name), found.root)
            (found.hidden if _is_hidden(path) else found.files).append(path)
    found.files.sort()
    return found


def _is_hidden(path: str) -> bool:
    *folders, name = Path(path).parts
    return name.startswith(".") or any(folder.startswith((".", "__")) for folder in folders)


def match_files(pattern: str) -> Found:
    """Find the files that a pattern such as `data/**/*.mp4` matches. The root is its part before the first wildcard.

    Raises:
        AnnotationError: no file matches.
    """
    parts = Path(os.path.abspath(pattern)).parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    names = sorted(set(glob.glob(str(Path(*parts[fixed:])), root_dir=root, recursive=True)))
    files = [name for name in names if (root / name).is_file()]
    if not files:
        raise AnnotationError(
            f"Got pattern {pattern}, expected one that matches a file: correct it, and quote it in a shell."
        )
    folders = {os.path.dirname(name) for name in files if is_video(name)}
    described = {os.path.join(folder, name) for folder in folders for name in METADATA_FILES}
    return Found(root, sorted({*files, *(name for name in described if (root / name).is_file())}), is_pattern=True)


def report_ignored(root: Path, ignored: Sequence[str], reason: str) -> None:
    """Log the number of ignored files, their endings and some of their names."""
    if ignored:
        endings = Counter(os.path.splitext(name)[1] or "no ending" for name in ignored)
        kinds = ", ".join(f"{number:,} {ending}" for ending, number in endings.most_common())
        logger.warning(f"{root}: files ignored because {reason}: {kinds}, such as {', '.join(ignored[:SHOWN_FILES])}")


def find_splits(found: Found, names: Sequence[str]) -> FolderSplits:
    """Sort files into splits: split -> file -> its folders below the split's folder.

    A split is a folder named as in `SPLIT_NAMES`, at the top or below a single folder ("videos/train"). Without such a folder, the
    names of files may say it, if all of them do ("train-00000-of-00002.parquet"); otherwise the split is train. Files outside of
    the folders of the splits are left out and reported.

    Raises:
        AnnotationError: folders of splits lie at several depths or below classes, or only some names of files have a split.
    """
    folders = {name: Path(name).parts[:-1] for name in names}
    depth = _split_depth(set(folders.values()))
    if depth is None:
        return _splits_of_names(found, folders)
    tops = {parts[depth] for parts in folders.values() if len(parts) > depth}
    exact = {top: SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES}
    split_names: dict[str, str | None] = {**exact} or {top: split_of(top) for top in tops}
    splits: FolderSplits = {}
    outside = []
    for name, parts in folders.items():
        split = split_names.get(parts[depth]) if len(parts) > depth else None
        if split is None:
            outside.append(name)
        else:
            splits.setdefault(split, {})[name] = parts[depth + 1 :]
    report_ignored(found.root, outside, "they lie outside of the folders of the splits")
    return _in_order(splits)


def _split_depth(folders: set[tuple[str, ...]]) -> int | None:
    """Return the depth of the folders that name splits: all of them ("k400_train", "k400_val"), or some exactly ("train")."""
    depth = 0
    while True:
        names = {parts[depth] for parts in folders if len(parts) > depth}
        is_deep = all(len(parts) > depth for parts in folders)
        if any(name.lower() in SPLIT_NAMES for name in names) or (names and is_deep and all(map(split_of, names))):
            return depth
        if len(names) != 1 or not is_deep:
            return None
        depth += 1


def split_of(name: str) -> str | None:
    """Return the split that a folder or file is named after, as a word of its own: train, k400_val_256, test-00000-of-00001."""
    shard = re.match(r"(\w+)-\d{5}-of-\d{5}", name)
    if shard:
        return SPLIT_NAMES.get(shard[1].lower(), shard[1])
    return next((SPLIT_NAMES[word] for word in re.split(r"[-._ \d]+", name.lower()) if word in SPLIT_NAMES), None)


def _splits_of_names(found: Found, folders: dict[str, tuple[str, ...]]) -> FolderSplits:
    deep = next(
        (name for name, parts in folders.items() if {part.lower() for part in parts} & SPLIT_NAMES.keys()), None
    )
    if deep is not None:
        raise AnnotationError(
            f"Got {deep} in {found.root}, a split below a class or another folder, expected the folders of the splits at the top: give "
            "the files of each split as patterns, for example train=DIR/*/train/*.mp4."
        )
    stems = {name: split_of(os.path.splitext(os.path.basename(name))[0]) for name in folders}
    said = {split for split in stems.values() if split is not None}
    if said and None not in stems.values():
        splits: FolderSplits = {}
        for name, split in stems.items():
            splits.setdefault(str(split), {})[name] = folders[name]
        return _in_order(splits)
    if len(said) > 1 or (said and not all(map(is_video, folders))):
        other = next(name for name, split in stems.items() if split is None)
        raise AnnotationError(
            f"Got {other} in {found.root}, whose name has no split, beside files of {sorted(said)}, expected a split in all names or in "
            "none: give the files of each split as patterns, for example train=DIR/train*,test=DIR/test*."
        )
    return {"train": folders}


def _in_order(splits: FolderSplits) -> FolderSplits:
    known = [split for split in dict.fromkeys(SPLIT_NAMES.values()) if split in splits]
    return {split: splits[split] for split in [*known, *sorted(splits.keys() - set(known))]}


def check_classes(splits: FolderSplits, fewest: int) -> str | None:
    """Say why the folders do not name classes; None if they do.

    The first folder below the split, or below the root without splits, is the class. That needs at least `fewest` classes. A split
    has a folder for each of its files, or for none: it is without labels then.
    """
    labelled = [files for files in splits.values() if any(files.values())]
    loose = next((name for files in labelled for name, folders in files.items() if not folders), None)
    classes = {folders[0] for files in labelled for folders in files.values() if folders}
    if not classes:
        return "the videos are not in folders of classes"
    if loose is not None:
        return f"{loose} lies beside folders of classes ({', '.join(sorted(classes)[:SHOWN_FILES])})"
    if len(classes) < fewest:
        return f"there is only one folder of a class, {classes.pop()!r}; classes are the first folders"
    return None


def index_videos(folder: str | os.PathLike) -> dict[str, list[Path]]:
    """Find all videos in a folder and its sub-folders: file name without ending -> paths; raises AnnotationError if there are none."""
    found = find_files(folder)
    index: dict[str, list[Path]] = {}
    for name in filter(is_video, found.files):
        index.setdefault(Path(name).stem, []).append(found.root / name)
    if not index:
        raise AnnotationError(f"Got {folder}, expected videos ({sorted(VIDEO_ENDINGS)}): correct the path.")
    return index


def different_files(paths: Iterable[Path]) -> list[Path]:
    """Leave out paths that lead to the same file as an earlier path."""
    different: dict[str, Path] = {}
    for path in paths:
        different.setdefault(os.path.realpath(path), path)
    return list(different.values())
