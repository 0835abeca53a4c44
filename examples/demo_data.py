"""Writes folders of drawn clips that `datasets.load_dataset("videofolder", data_dir=...)` reads.

A clip is a pure function of (split number, index), so the files do not depend on the number of workers. An interrupted run
continues where it stopped: a file gets its final name only when it is complete, and `metadata.csv` is written last. The arguments
that made the set are stored in `arguments.json`.
"""

import csv
import functools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm.auto import tqdm

from transformers_lvmae.models.video_io import write_video


SPLITS = ("train", "validation", "test")


class Scene(Protocol):
    """One clip before it is drawn."""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The clip's row in `metadata.csv`: `label` and the other columns."""

    def render(self) -> np.ndarray:
        """The clip as uint8 RGB frames (T, H, W, 3)."""


DrawScene = Callable[[int, int], Scene]


def write_videofolder(
    output_dir: str | os.PathLike,
    splits: Mapping[str, int],
    draw_scene: DrawScene,
    arguments: Mapping[str, Any],
    workers: int = 1,
) -> None:
    """Write `output_dir/{split}/clip_00000.mp4 ...` and a `metadata.csv` for each split that has clips.

    Args:
        output_dir: an empty or missing folder, or one that an earlier run with the same `arguments` has started.
        splits: number of clips for each of "train", "validation" and "test".
        draw_scene: called with (split number, index); picklable and without state, because any worker may draw any clip.
        arguments: everything the clips depend on, as JSON values.
        workers: number of processes.

    Raises:
        ValueError: `output_dir` holds other files, or a set with other arguments.
    """
    output_dir = Path(output_dir)
    _claim_folder(output_dir, {"splits": dict(splits), **arguments})
    clips = [(split, index) for split in splits for index in range(splits[split])]
    write = functools.partial(_write_clip, output_dir, draw_scene)
    rows: dict[str, list[dict[str, Any]]] = {}
    for (split, _), row in zip(clips, tqdm(_map(write, clips, workers), total=len(clips), unit="clip"), strict=True):
        rows.setdefault(split, []).append(row)
    for split, split_rows in rows.items():
        _write_metadata(output_dir / split, split_rows)


def clip_generator(seed: int, split_number: int, index: int, stream: int = 0) -> np.random.Generator:
    """Return a generator of the clip's own random numbers; several of one clip have different `stream` numbers."""
    return np.random.default_rng([seed, split_number, index, stream])


def _claim_folder(output_dir: Path, arguments: Mapping[str, Any]) -> None:
    """Make `output_dir`, or check that it was started with the same arguments."""
    record = output_dir / "arguments.json"
    arguments = json.loads(json.dumps(arguments))
    if not record.is_file():
        if output_dir.exists() and any(output_dir.iterdir()):
            raise ValueError(
                f"Got {output_dir}, a folder with other files in it, expected an empty or a new folder: choose another one."
            )
        output_dir.mkdir(parents=True, exist_ok=True)
        _write_text(record, json.dumps(arguments, indent=2) + "\n")
        return
    held = json.loads(record.read_text(encoding="utf-8"))
    if held != arguments:
        keys = sorted(key for key in held.keys() | arguments.keys() if held.get(key) != arguments.get(key))
        got, made = ({key: source.get(key) for key in keys} for source in (arguments, held))
        raise ValueError(
            f"Got {got} for {output_dir}, expected {made} as in the set that it already holds: choose another folder or delete it."
        )


def _map(write: Callable[[tuple[str, int]], Any], clips: list[tuple[str, int]], workers: int) -> Iterator[Any]:
    if workers <= 1:
        yield from map(write, clips)
        return
    with multiprocessing.get_context().Pool(workers) as pool:
        yield from pool.imap(write, clips, chunksize=4)


def _write_clip(output_dir: Path, draw_scene: DrawScene, clip: tuple[str, int]) -> dict[str, Any]:
    split, index = clip
    scene = draw_scene(SPLITS.index(split), index)
    path = output_dir / split / f"clip_{index:05d}.mp4"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        # load_dataset skips hidden files; the ending .mp4 selects the container.
        unfinished = path.with_name(f".{path.name}")
        write_video(unfinished, scene.render(), crf=22)
        unfinished.replace(path)
    return {"file_name": path.name, **scene.attributes}


def _write_metadata(folder: Path, rows: list[dict[str, Any]]) -> None:
    unfinished = folder / ".metadata.csv"
    with open(unfinished, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(folder / "metadata.csv")


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
