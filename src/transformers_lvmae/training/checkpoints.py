"""Whole checkpoints: a file of checksums is written last, and a run goes on from the newest checkpoint that it confirms.

A process may be killed while it writes a checkpoint, and a disk may lose bits. Checkpoints of version 0.1 have no checksums; they count
as whole if all parts of a run's state are there.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from transformers import logging
from transformers.trainer import TRAINER_STATE_NAME

from ..files import digest, write_aside


logger = logging.get_logger(__name__)

CHECKSUMS = "checksums.json"
UNCHECKED = {CHECKSUMS, "README.md"}  # a person may edit the card
# What a run's state consists of, and the files or folders that may hold each part (plain, FSDP, DeepSpeed).
PARTS = {
    "weights": ("model*.safetensors", "adapter_model.*", "pytorch_model*", "global_step*"),
    "optimizer": ("optimizer*", "global_step*"),
    "schedule": ("scheduler.pt", "global_step*"),
    "random numbers": ("rng_state*.pth",),
}


def numbered_checkpoints(output_dir: str | os.PathLike) -> list[tuple[int, Path]]:
    """Return step and folder of all checkpoints, the newest last. Folders of other names (checkpoint-best) are a person's."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in Path(output_dir).glob("checkpoint-*")]
    return sorted((int(match.group(1)), path) for match, path in found if match and path.is_dir())


def seal(folder: str | os.PathLike) -> None:
    """Write the digests of a checkpoint's files. This is its last file."""
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.name not in UNCHECKED]
    digests = {path.relative_to(folder).as_posix(): digest(path) for path in files}
    write_aside(Path(folder, CHECKSUMS), json.dumps(digests, indent=1) + "\n")


def fault_of(folder: str | os.PathLike) -> str | None:
    """Return why a run cannot go on from a checkpoint; None if it can."""
    folder = Path(folder)
    sealed = folder / CHECKSUMS
    try:
        digests = json.loads(sealed.read_text()) if sealed.exists() else {}
        for name, expected in digests.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if digest(folder / name) != expected:
                return f"{name} is damaged"
        json.loads((folder / TRAINER_STATE_NAME).read_text())["global_step"]
    except FileNotFoundError:
        return f"{TRAINER_STATE_NAME} is missing, so it was not written to its end"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{CHECKSUMS} or {TRAINER_STATE_NAME} cannot be read ({error})"
    missing = [part for part, names in PARTS.items() if not any(any(folder.glob(name)) for name in names)]
    return f"it has no {' and no '.join(missing)}" if missing else None


def newest_checkpoint(output_dir: str | os.PathLike | None) -> str | None:
    """Return the newest whole checkpoint in a folder. The log names those that are skipped, and why."""
    for _, folder in reversed(numbered_checkpoints(output_dir or ".")):
        fault = fault_of(folder)
        if fault is None:
            return str(folder)
        logger.warning(f"Skipped {folder}: {fault}.")
    return None


def delete_old_checkpoints(newest: Path, limit: int | None, keep: Iterable[str | os.PathLike | None] = ()) -> None:
    """Delete the oldest checkpoints beside `newest`, which is whole, until `limit` are left. `keep` are never deleted."""
    kept = {newest.resolve(), *(Path(folder).resolve() for folder in keep if folder)}
    folders = [folder for _, folder in numbered_checkpoints(newest.parent)]
    spare = len(folders) - limit if limit else 0
    for folder in folders:
        if spare > 0 and folder.resolve() not in kept:
            shutil.rmtree(folder, ignore_errors=True)
            spare -= 1
