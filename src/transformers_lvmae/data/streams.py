"""Clips of a streamed dataset, for a Trainer."""

import copy
import zlib
from collections.abc import Iterator
from itertools import count
from typing import Any

import datasets
from datasets.distributed import split_dataset_by_node

from ..models.video_io import video_name
from .clips import VideoClips, seeded


class VideoStream(datasets.IterableDataset):
    """Clips of an `IterableDataset`, one after the other: [`VideoClips`] without random access.

    In training the stream has no end: epochs follow each other, each shuffled anew within a buffer, so that processes with
    unequal shares stay in step; the Trainer needs `max_steps`. Otherwise it is one pass in the dataset's order.

    A clip depends on (seed, epoch, the row's video and segment) alone, whichever process or worker makes it; the order of clips
    depends on how many there are. Workers share the dataset's shards: those beyond their number have nothing to do. Processes do too,
    where the Trainer's `accelerator_config` has `dispatch_batches=False` (otherwise the first process decodes for all). A video that
    cannot be read is passed over with `on_error="skip"`, and with `num_clips` a video's clips follow each other, across
    batches where need be. The Trainer resumes by reading again what a run had already seen; a dataloader with states
    (accelerate's `use_stateful_dataloader`) by `state_dict`, which loses the shuffle buffer.

    Args:
        clips: made of a split of `load_video_dataset(streaming=True)`; says how clips are made.
        buffer_size: rows that shuffling draws from.
    """

    def __init__(self, clips: VideoClips, buffer_size: int = 1000):
        super().__init__(clips.rows._ex_iterable, info=clips.rows.info)
        self.clips = clips
        self.buffer_size = buffer_size
        self._current: tuple[int, Any] = (0, None)
        self._resumed: dict[str, Any] | None = None

    @property
    def num_shards(self) -> int:
        """accelerate has a stream of at least as many shards as processes split itself, and cuts batches of others."""
        return 2**31 if self.clips.training else 1

    @property
    def num_clips(self) -> int:
        """Clips of each video, one after the other."""
        return self.clips.num_clips

    def shard(self, num_shards: int, index: int, contiguous: bool = True) -> "VideoStream":
        """The part of process `index` out of `num_shards`: shards of the dataset, or every n-th row where they do not divide."""
        clips = copy.copy(self.clips)
        clips.rows = split_dataset_by_node(self.clips.rows, rank=index, world_size=num_shards)
        return VideoStream(clips, self.buffer_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        first = 0 if self._resumed is None else self._resumed["epoch"]
        for epoch in count(first) if self.clips.training else (0,):
            rows = self.clips.rows
            if self.clips.training:
                rows = rows.shuffle(seed=self.clips.seed + epoch, buffer_size=self.buffer_size)
            if self._resumed is not None and epoch == first:
                rows.load_state_dict(self._resumed["rows"])
            self._current = epoch, rows
            seen = False
            for row in rows:
                seen = True
                yield from self._items(epoch, row)
            if not seen and epoch > first:  # a worker without a shard
                return

    def _items(self, epoch: int, row: dict[str, Any]) -> list[dict[str, Any]]:
        video = row[self.clips.video_column]
        data = video.get("bytes") if isinstance(video, dict) else None
        segment = f"{video_name(video)} {row.get('start')} {row.get('end')}".encode()
        with seeded(self.clips.seed, epoch, zlib.crc32(segment, zlib.crc32(data or b""))):
            return self.clips.try_row(row) or []

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, at the row it last read."""
        epoch, rows = self._current
        return {"epoch": epoch, "rows": None if rows is None else rows.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there at the next iteration."""
        self._resumed = state_dict if state_dict["rows"] is not None else None


def trainer_dataset(clips: VideoClips, buffer_size: int = 1000) -> Any:
    """What a Trainer takes: the clips themselves, or where their rows are a stream, a [`VideoStream`] of them."""
    return VideoStream(clips, buffer_size) if isinstance(clips.rows, datasets.IterableDataset) else clips


__all__ = ["VideoStream", "trainer_dataset"]
