"""Files that are whole or absent: written aside and renamed, checked by their digests; and what a full disk looks like."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_aside(path: str | os.PathLike, content: str | Callable[[Path], Any]) -> None:
    """Write a file under another name and rename it, so that a killed process leaves the former file or the new one.

    Args:
        content: the text, or a function that writes the file under the name that it gets.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    if isinstance(content, str):
        part.write_text(content, encoding="utf-8")
    else:
        content(part)
    os.replace(part, path)


def digest(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


# What C++ and Rust say in place of an error number; the last two are torch's after a short write.
FULL_IN_WORDS = ("No space left on device", "PytorchStreamWriter failed writing", "[enforce fail at inline_container")


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that the disk is full."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or any(words in str(error) for words in FULL_IN_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False
