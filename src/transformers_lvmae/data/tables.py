"""Read lists, tables and annotation files as text. Every error names the file and the line.

All text files of data go through here: lists and tables of videos, metadata files of folders, and the benchmarks' annotations.
"""

import csv
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class AnnotationError(ValueError):
    """A list, a table, an annotation file or a folder of videos is missing or has the wrong format; the message names it."""


class Row(dict[str, str]):
    """The cells of a row by column, and where the row is. An empty cell is an empty text."""

    def __init__(self, path: Path, line: int, cells: Iterable[tuple[str, str]]):
        super().__init__(cells)
        self.path = path
        self.line = line

    @property
    def place(self) -> str:
        """The row's file and line, for error messages."""
        return f"{self.path}, line {self.line}"


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark; raises AnnotationError with the first line that is not UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise AnnotationError(
            f"Got {path}, line {line}, whose byte {data[error.start]:#04x} is not UTF-8, expected UTF-8: convert it, for example with "
            "iconv -f latin1 -t utf-8."
        ) from None


def read_lines(path: Path) -> list[tuple[str, str]]:
    """Return (place, line) for each line of a text file that is not blank, without surrounding blanks."""
    lines = re.split(r"\r\n|\r|\n", read_text(path))
    return [(f"{path}, line {number}", line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def read_rows(path: Path, columns: Sequence[str] = (), separator: str = ",") -> list[Row]:
    """Read a table with a header. Blank lines are left out, and blanks around cells and names of columns.

    Raises:
        AnnotationError: there is no header or no row, a column is missing or occurs twice, a row has too few or too many cells,
            a quote does not end, or the file is not UTF-8.
    """
    lines = re.split(r"(?<=\n)", read_text(path).replace("\r\n", "\n").replace("\r", "\n"))
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header: list[str] = []
    rows: list[Row] = []
    line = 1
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not header and any(cells):
                header = cells
                check_keys(path, header, columns)
            elif any(cells):
                if len(cells) != len(header):
                    raise AnnotationError(
                        f"Got {len(cells)} cells in {path}, line {line}, expected {len(header)} ({header}): correct the line; quote "
                        "cells that hold a separator."
                    )
                rows.append(Row(path, line, zip(header, cells)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise AnnotationError(
            f"Got {path}, line {line}: {error}, expected a table: correct the quotes of this line."
        ) from error
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated or not rows:
        fault = f"the column {repeated[0]!r} twice" if repeated else "no rows"
        raise AnnotationError(
            f"Got {path} with {fault}, expected a header with different names and at least one row: correct it."
        )
    return rows


def check_keys(path: Path, got: Iterable[str], expected: Sequence[str]) -> None:
    """Raise AnnotationError if a column or field is missing."""
    missing = [name for name in expected if name not in set(got)]
    if missing:
        raise AnnotationError(
            f"Got {path} with {sorted(got)}, expected {missing[0]!r} too: give a file with {list(expected)}."
        )


def seconds(place: Any, time: Any) -> float:
    """Read a time such as 62.5, "62.5" or "00:01:02.5" in seconds; raises AnnotationError for another format."""
    match = re.fullmatch(r"(?:(\d+):(\d+):)?(\d+(?:\.\d*)?|\.\d+)(?:[eE]([-+]?\d+))?", str(time).strip())
    if match is None:
        raise AnnotationError(
            f"Got time {time!r} in {place}, expected seconds or HH:MM:SS.SS, not negative: correct the row."
        )
    hours, minutes, rest, exponent = match.groups(default="0")
    return int(hours) * 3600 + int(minutes) * 60 + float(f"{rest}e{exponent}")


def segment(place: Any, start: Any, end: Any) -> tuple[float | None, float | None]:
    """Read `start` and `end` of a row in seconds; an empty cell, None or NaN becomes None.

    Raises:
        AnnotationError: a time is negative or no time, or the end is not after the start.
    """
    first, last = (None if _is_empty(time) else seconds(place, time) for time in (start, end))
    if last is not None and last <= (first or 0.0):
        raise AnnotationError(
            f"Got start {start!r} and end {end!r} in {place}, expected an end after the start: correct the row."
        )
    return first, last


def _is_empty(cell: Any) -> bool:
    if isinstance(cell, str):
        return not cell.strip() or cell.strip().lower() == "nan"
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def label_name(place: Any, label: Any) -> str | None:
    """Return a label as the name of its class; None for an empty cell, None or NaN.

    Blanks around a name are left out. The number 2.0 is the class "2", because a table with empty cells turns 2 into 2.0.

    Raises:
        AnnotationError: the label is a number with a fraction, or several things.
    """
    if isinstance(label, (list, tuple, dict)):
        raise AnnotationError(
            f"Got label {label!r} in {place}, expected one class: give each label a column of its own."
        )
    if isinstance(label, float) and not math.isnan(label):
        if not label.is_integer():
            raise AnnotationError(f"Got label {label} in {place}, expected a class: give names or whole numbers.")
        return str(int(label))
    return None if label is None or isinstance(label, float) or not str(label).strip() else str(label).strip()


def sorted_names(names: Iterable[str]) -> list[str]:
    """Sort names of classes: by value if all are whole numbers (0, 2, 10), else alphabetically."""
    unique = sorted(set(names))
    if all(re.fullmatch(r"-?\d+", name) for name in unique):
        unique.sort(key=int)
    return unique


def typed(cells: Sequence[str]) -> list[Any]:
    """Turn the cells of a column into whole numbers if all are, else into numbers if all are; an empty cell becomes None.

    A column with a leading zero (007) stays text, because 007 and 7 may be two names.
    """
    filled = [cell for cell in cells if cell]
    for pattern, kind in (
        (r"[-+]?(0|[1-9]\d{0,17})", int),
        (r"[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?", float),
    ):
        if filled and all(re.fullmatch(pattern, cell) for cell in filled):
            return [kind(cell) if cell else None for cell in cells]
    return [cell or None for cell in cells]
