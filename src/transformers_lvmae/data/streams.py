"""Clips of a streamed dataset."""

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

    In training, the stream has no end, so the Trainer needs `max_steps`. Epochs follow each other, and each is shuffled anew within
    a buffer; processes with unequal shares of the rows stay in step. Otherwise the stream is one pass in the dataset's order.

    A clip depends only on (seed, epoch, the row's video and segment), not on the process or worker that makes it. The order of clips
    depends on the number of processes and workers. Workers share the dataset's shards; if there are more workers than shards, some
    have nothing to do. Processes share the shards too if the Trainer's `accelerator_config` has `dispatch_batches=False`; otherwise
    the first process decodes for all. With `on_error="skip"`, a video that cannot be read is left out in training. With `num_clips`, the clips
    of a video follow each other, even across batches. The Trainer resumes by reading everything again that the run had seen. A
    dataloader with states (accelerate's `use_stateful_dataloader`) resumes by `state_dict`, which loses the shuffle buffer.

    Args:
        clips: makes the clips; its rows are a split of `load_video_dataset(streaming=True)`.
        buffer_size: number of rows in the shuffle buffer.
    """

    def __init__(self, clips: VideoClips, buffer_size: int = 1000):
        super().__init__(clips.rows._ex_iterable, info=clips.rows.info)
        self.clips = clips
        self.buffer_size = buffer_size
        self._current: tuple[int, Any] = (0, None)
        self._resumed: dict[str, Any] | None = None

    @property
    def num_shards(self) -> int:
        """Number of shards that accelerate sees. If there are enough for all processes, it calls `shard`. Otherwise it reads the whole
        stream on every process and cuts the batches."""
        return 2**31 if self.clips.training else 1

    @property
    def num_clips(self) -> int:
        """Number of clips of each video, one after the other."""
        return self.clips.num_clips

    def shard(self, num_shards: int, index: int, contiguous: bool = True) -> "VideoStream":
        """Return the part of process `index` of `num_shards`: whole shards if their number divides, else every n-th row."""
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
            if not seen and epoch > first:  # this worker has no shard, and would loop forever
                return

    def _items(self, epoch: int, row: dict[str, Any]) -> list[dict[str, Any]]:
        video = row[self.clips.video_column]
        data = video.get("bytes") if isinstance(video, dict) else None
        segment = f"{video_name(video)} {row.get('start')} {row.get('end')}".encode()
        with seeded(self.clips.seed, epoch, zlib.crc32(segment, zlib.crc32(data or b""))):
            return self.clips.try_row(row) or []

    def state_dict(self) -> dict[str, Any]:
        """Return the stream's position: its epoch, and the row that was read last."""
        epoch, rows = self._current
        return {"epoch": epoch, "rows": None if rows is None else rows.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from this position at the next iteration."""
        self._resumed = state_dict if state_dict["rows"] is not None else None


def trainer_dataset(clips: VideoClips, buffer_size: int = 1000) -> Any:
    """Return the dataset for a Trainer: the clips themselves, or a [`VideoStream`] of them if their rows are a stream."""
    return VideoStream(clips, buffer_size) if isinstance(clips.rows, datasets.IterableDataset) else clips
