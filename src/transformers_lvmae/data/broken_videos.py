"""A record of the videos that could not be read, or seem truncated, by all processes of a run.

Each process and each data loader worker appends to its own file: one JSON line for each video, with its fault. They share nothing but
the folder, so the record also works on clusters and survives a crash.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from transformers import logging

from ..files import write_aside


logger = logging.get_logger(__name__)

USED = " is used,"
FEWEST_TRIED = 100  # count at least this many videos as tried, so that a few early failures do not stop a run


class TooManyBrokenVideos(RuntimeError):
    """Too large a share of the videos cannot be read."""


class BrokenVideos:
    """Count the videos that one process tried to read, and record those that it could not read.

    Args:
        folder: the process writes its file here. With None, faults are only logged.
        max_share: the largest share of the tried videos that may be broken. At least 100 videos are assumed tried, so with a
            share of 0.1 the first ten failures never stop a run.
    """

    def __init__(self, folder: str | os.PathLike | None = None, max_share: float = 0.1):
        self.folder = None if folder is None else Path(folder)
        self.max_share = max_share
        self.tried = 0
        self.failed = 0
        self._named: set[str] = set()  # that cannot be read
        self._noted: set[str] = set()  # that are used

    def add(self, video: str, fault: Exception) -> None:
        """Count a video that could not be read; raises TooManyBrokenVideos if `max_share` is exceeded."""
        self.failed += 1
        if video not in self._named:
            self._named.add(video)
            self._write({"video": video, "fault": str(fault)})
        self.check(fault)

    def check(self, fault: Exception | None = None) -> None:
        """Raise TooManyBrokenVideos if `failed` is more than `max_share` of `tried`. The message ends with the last fault."""
        if self.failed > self.max_share * max(self.tried, FEWEST_TRIED):
            last = "" if fault is None else f" The last one: {fault}"
            account = "" if self.folder is None else f" All are named in {self.folder}."
            raise TooManyBrokenVideos(
                f"Got {self.failed} unreadable videos of the {self.tried} that this process tried, expected at most a share of "
                f"{self.max_share}: repair or remove them, or raise max_broken_share.{last}{account}"
            ) from fault

    def note(self, video: str, fault: str | None) -> None:
        """Record, once, a video that is used although it seems to be truncated or damaged; None is no fault."""
        if fault is not None and video not in self._noted:
            self._noted.add(video)
            self._write({"video": video, "fault": f"{video}{USED} but seems to be truncated or damaged: {fault}."})

    @contextmanager
    def reported(self) -> Iterator[None]:
        """On the main process, report the broken videos of all processes when the block ends, also after an error."""
        try:
            yield
        finally:
            if self.folder is not None and PartialState().is_main_process:
                report_broken_videos(self.folder)

    def _write(self, line: dict[str, str]) -> None:
        if self.folder is None:
            logger.warning(line["fault"])
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{socket.gethostname()}_{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_broken_videos(folder: str | os.PathLike) -> dict[str, str]:
    """Read the files of all processes in `folder`: video -> fault, in alphabetical order. That it cannot be read outweighs that it is used
    in spite of a fault."""
    lines = [line for path in Path(folder).glob("*.jsonl") for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # a killed process may leave half a line
    rows.sort(key=lambda row: (row["video"], USED not in row["fault"], row["fault"]))
    return {row["video"]: row["fault"] for row in rows}


def report_broken_videos(folder: str | os.PathLike) -> dict[str, str]:
    """Log every video that a run could not read, with its fault, and write them to `<folder>.json`."""
    broken = read_broken_videos(folder)
    if broken:
        path = Path(folder).with_suffix(".json")
        write_aside(path, json.dumps(broken, indent=2) + "\n")
        faults = "\n".join(broken.values())
        logger.warning(
            f"{len(broken)} videos cannot be read, or seem to be truncated or damaged. In place of one that cannot be read, training took another; "
            f"evaluation left it out ({path}):\n{faults}"
        )
    return broken
