"""Frozen features on disk: one vector for each clip in Parquet, or all its tokens in safetensors.

A split is cut into shards of consecutive rows. A file gets its final name when it is complete, and a shard's Parquet file comes
last. So every shard with a Parquet file is complete, even after a crash, and several processes can share the work.

A video that cannot be read has no features; its number is missing in the column `row`.

Parquet's pages have checksums, which are checked when a shard is read. A clip's tokens have theirs in the Parquet file.
"""

import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, logging

from ..data.broken_videos import BrokenVideos
from ..data.clips import VideoClips
from ..data.datasets import segment_of
from ..files import write_aside
from ..models.modeling_lvmae import mean_of_tokens
from ..models.video_io import decode_video, video_name
from ..models.video_seeking import VideoReadError


logger = logging.get_logger(__name__)
CHECKSUM = "tokens_checksum"  # column of the CRC-32 of a clip's tokens


def sliding_segments(start: float, end: float, clip_seconds: float, stride_seconds: float) -> list[tuple[float, float]]:
    """Cut a segment into clips of `clip_seconds` that begin every `stride_seconds`: (start, end) of each clip, in seconds.

    If the last clip does not reach `end`, another clip that ends there is added. A segment shorter than a clip is one clip. Lengths and
    strides that are not positive raise ValueError.
    """
    if clip_seconds <= 0 or stride_seconds <= 0:
        raise ValueError(
            f"Got clip_seconds={clip_seconds} and stride_seconds={stride_seconds}, expected positive numbers of seconds: raise them."
        )
    if end - start <= clip_seconds:
        return [(start, end)]
    number = int((end - start - clip_seconds) / stride_seconds + 1e-6) + 1
    starts = [start + index * stride_seconds for index in range(number)]
    if starts[-1] + clip_seconds < end - 1e-6:
        starts.append(end - clip_seconds)
    return [(first, first + clip_seconds) for first in starts]


def sliding_rows(
    rows: Iterable[dict[str, Any]],
    clip_seconds: float,
    stride_seconds: float,
    video_column: str = "video",
    broken: BrokenVideos | None = None,
) -> list[dict[str, Any]]:
    """Return a row for each clip of each row, with the clip's `start` and `end` ([`sliding_segments`]). Lengths are read from the files.

    A length or stride that is not positive, and a video of unknown frame rate, raise ValueError. A video that cannot be
    read raises VideoReadError; with `broken`, it is recorded there and has no clips.
    """
    clips = []
    for row in rows:
        first, end = segment_of(row)
        start = first or 0.0
        try:
            metadata = decode_video(row[video_column], lambda metadata: [0], start=first, end=end)[1]
        except VideoReadError as error:
            if broken is None:
                raise
            broken.tried += 1
            broken.add(video_name(row[video_column]), error)
            continue
        if metadata.duration is None:
            raise ValueError(
                f"Got {video_name(row[video_column])} of unknown frame rate, expected a known one, which gives the length: re-encode it."
            )
        end = min(start + metadata.duration, end or np.inf)
        clips += [{**row, "start": a, "end": b} for a, b in sliding_segments(start, end, clip_seconds, stride_seconds)]
    return clips


@dataclass
class ShardedSplit:
    """The files of one split: `train-00003-of-00012.parquet`, and `.safetensors` beside it for tokens.

    Args:
        folder: folder of the files.
        split: name of the split.
        num_rows: number of rows of the dataset; a row may have several clips.
        shard_size: number of rows of a shard.
    """

    folder: Path
    split: str
    num_rows: int
    shard_size: int

    @property
    def num_shards(self) -> int:
        return -(-self.num_rows // self.shard_size)

    def path(self, shard: int, suffix: str = ".parquet") -> Path:
        return self.folder / f"{self.split}-{shard:05d}-of-{self.num_shards:05d}{suffix}"

    def is_done(self, shard: int) -> bool:
        return self.path(shard).exists()

    def is_whole(self, shard: int) -> bool:
        """Whether a shard is done and undamaged. If it is damaged, a warning names the file."""
        if not self.is_done(shard):
            return False
        try:
            if CHECKSUM in self.read(shard).column_names:
                self.tokens(shard)
            return True
        except ValueError as error:
            logger.warning(f"{error} It is made again now.")
            return False

    def read(self, shard: int) -> pyarrow.Table:
        """Read the Parquet file of a shard; raises ValueError if it is damaged."""
        try:
            return parquet.read_table(self.path(shard), page_checksum_verification=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise self.damaged(shard) from error

    def tokens(self, shard: int) -> Any:
        """Open the tokens (n, N, D) of a shard, from which clips can be read one by one; raises ValueError if their file is damaged."""
        try:
            return safe_open(self.path(shard, ".safetensors"), framework="pt").get_slice("tokens")
        except (SafetensorError, OSError) as error:
            raise self.damaged(shard, ".safetensors") from error

    def damaged(self, shard: int, suffix: str = ".parquet") -> ValueError:
        """Return the error of a damaged file."""
        return ValueError(
            f"Got a damaged file {self.path(shard, suffix)}, expected a whole shard: delete {self.path(shard).name} and run "
            "extract_features.py again with the same arguments."
        )

    def rows(self, shard: int) -> range:
        """Row numbers of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_rows))

    def check_settings(self, settings: dict[str, Any], write: bool) -> None:
        """Raise ValueError if existing shards were made with other settings. With `write`, save the settings if none are saved.

        Settings that version 0.1 did not save are not compared; a warning names them.
        """
        path = self.folder / f"{self.split}.json"
        settings = {**settings, "num_rows": self.num_rows, "shard_size": self.shard_size}
        if path.exists():
            got = json.loads(path.read_text())
            unknown = sorted(settings.keys() - got.keys())
            if unknown:
                logger.warning(
                    f"{path} does not say with which {', '.join(unknown)} its shards were made: this is not checked."
                )
            names = sorted(name for name in settings.keys() & got.keys() if got[name] != settings[name])
            if names:
                given, former = (", ".join(f"{name}={values[name]!r}" for name in names) for values in (settings, got))
                raise ValueError(
                    f"Got {given} and shards in {self.folder} made with {former}, expected the same: give another output folder or "
                    "delete this one."
                )
        elif write:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_aside(path, json.dumps(settings, indent=2) + "\n")


@torch.no_grad()
def encode_clips(
    model: PreTrainedModel,
    clips: VideoClips,
    pool: bool,
    batch_size: int = 1,
    num_workers: int = 0,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Compute the features of each batch of clips, in the order of the clips: after the final norm, on the CPU.

    Yields the features of the n clips of a batch that can be read; whether each clip can be read (B,); and the positions (n, N) of the
    tokens in the clips' own, if the model chooses some of them, otherwise None.

    Args:
        model: [`LVMAEModel`], on its device.
        pool: return the mean of the tokens, float32 (n, D); otherwise all tokens, float16 (n, N, D). Features that are not finite,
            for example too large for float16, and tokens whose number differs from clip to clip, raise ValueError.
        autocast: makes the context of the forward pass: `accelerator.autocast`.
    """
    if not pool and model.config.token_score_threshold is not None:
        raise ValueError(
            f"Got token_score_threshold={model.config.token_score_threshold} and tokens to write, expected as many of every clip: extract "
            "without --tokens, or set the config's threshold to null."
        )
    model.eval()
    for batch in DataLoader(clips, batch_size=batch_size, num_workers=num_workers):
        with autocast():
            outputs = model(batch["pixel_values_videos"].to(model.device))
        tokens, positions = outputs.last_hidden_state, outputs.visible_positions
        readable = batch.get("is_readable", torch.ones(len(tokens))).bool()
        pooled = mean_of_tokens(tokens.float(), outputs.token_mask) if pool else tokens.half()
        features = pooled[readable.to(tokens.device)]
        if not features.isfinite().all():
            raise ValueError(
                f"Got features up to {features.abs().max().item():.3g}, expected finite numbers below 65,504: extract clip features "
                "instead of tokens, or without mixed precision."
            )
        yield features.cpu(), readable, None if positions is None else positions.cpu()[readable]


def save_shard(
    split: ShardedSplit,
    shard: int,
    rows: list[dict[str, Any]],
    features: torch.Tensor,
    schema: datasets.Features,
    video_column: str = "video",
    positions: torch.Tensor | None = None,
) -> None:
    """Write clips and their features: clip features (n, D) to the Parquet file, tokens (n, N, D) to a safetensors file beside it.

    Args:
        rows: a dict for each clip, with its `row` number, `start` and `end`.
        schema: features of the dataset. Its columns of numbers, text and classes are written too.
        positions: (n, N), for tokens of a model that chooses them; written to the Parquet file.
    """
    table = {name: schema[name] for name in schema if is_scalar(schema[name])}
    columns = {name: [row[name] for row in rows] for name in table}
    times = {"start": datasets.Value("float64"), "end": datasets.Value("float64")}
    table = {"row": datasets.Value("int64"), video_column: datasets.Value("string"), **table, **times}
    columns |= {name: [row.get(name) for row in rows] for name in ("row", *times)}
    columns[video_column] = [video_name(row[video_column]) for row in rows]
    if features.ndim == 3:
        tensors = {"tokens": features}
        table[CHECKSUM] = datasets.Value("uint32")
        columns[CHECKSUM] = [zlib.crc32(tokens.contiguous().numpy()) for tokens in features]
        if positions is not None:
            table["positions"] = datasets.List(datasets.Value("int32"), length=features.shape[1])
            columns["positions"] = list(positions.numpy())
        write_aside(split.path(shard, ".safetensors"), lambda part: save_file(tensors, part))
    else:
        table["features"] = datasets.List(datasets.Value("float32"), length=features.shape[1])
        columns["features"] = list(features.numpy())
    clips = datasets.Dataset.from_dict(columns, features=datasets.Features(table))
    write_aside(split.path(shard), lambda part: clips.to_parquet(part, write_page_checksum=True))


def is_scalar(feature: Any) -> bool:
    """Return True for a column of numbers, text or classes."""
    return isinstance(feature, (datasets.Value, datasets.ClassLabel))


def split_settings(folder: str | os.PathLike, split: str) -> dict[str, Any]:
    """Read the settings of a split's features (`model`, `dataset_name`, ...); raises ValueError if the split does not exist."""
    path = Path(folder) / f"{split}.json"
    if not path.exists():
        known = sorted(item.stem for item in Path(folder).glob("*.json") if item.stem != "broken_videos")
        raise ValueError(f"Got split {split!r} of {folder}, expected one of {known}: extract its features first.")
    return json.loads(path.read_text())


def open_split(folder: str | os.PathLike, split: str) -> ShardedSplit:
    """Open a complete split; raises ValueError if shards are missing."""
    settings = split_settings(folder, split)
    files = ShardedSplit(Path(folder), split, settings["num_rows"], settings["shard_size"])
    done = sum(files.is_done(shard) for shard in range(files.num_shards))
    if done < files.num_shards:
        raise ValueError(
            f"Got {done} shards of split {split!r} in {folder}, expected {files.num_shards}: run extract_features.py again with the "
            "same arguments to make the rest."
        )
    return files


def load_features(folder: str | os.PathLike, split: str) -> datasets.Dataset:
    """Load a split's clips: `row`, `start`, `end`, the dataset's columns, any `features`, and the `positions` of chosen tokens.

    Raises ValueError if shards are missing or damaged.
    """
    files = open_split(folder, split)
    # `Dataset.from_parquet` refuses a shard without rows, of which no video could be read.
    tables = [files.read(shard) for shard in range(files.num_shards)]
    columns = [str(table.schema.remove_metadata()) for table in tables]
    usual = Counter(columns).most_common(1)[0][0]
    if any(names != usual for names in columns):  # a flipped bit in a shard's description of its columns
        raise files.damaged(next(shard for shard, names in enumerate(columns) if names != usual))
    return datasets.Dataset(datasets.table.InMemoryTable(pyarrow.concat_tables(tables)))


class TokenFeatures(Dataset):
    """The tokens of a split's clips, read from disk one clip at a time.

    An item is a dict with `tokens` (N, D), float32, and, if `labels` are given, the clip's class id as `labels`.

    Args:
        folder: folder of the features.
        split: name of the split.
        labels: a class id for each clip.

    Raises:
        ValueError: shards are missing or damaged, or the split has no tokens. On access: a clip's tokens are damaged.
    """

    def __init__(self, folder: str | os.PathLike, split: str, labels: Sequence[int] | np.ndarray | None = None):
        self.files = open_split(folder, split)
        self.labels = labels
        if not self.files.path(0, ".safetensors").exists():
            raise ValueError(f"Got split {split!r} of {folder} without tokens, expected .safetensors: use --tokens.")
        tables = [self.files.read(shard) for shard in range(self.files.num_shards)]
        self._ends = np.cumsum([len(table) for table in tables])
        self._checksums = [table[CHECKSUM].to_numpy() if CHECKSUM in table.column_names else None for table in tables]

    @cached_property
    def _tokens(self) -> list[Any]:
        return [self.files.tokens(shard) for shard in range(self.files.num_shards)]

    def __getstate__(self) -> dict[str, Any]:  # open files cannot be sent to workers
        return {name: value for name, value in self.__dict__.items() if name != "_tokens"}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        place = index - (int(self._ends[shard - 1]) if shard else 0)
        tokens, checksums = self._tokens[shard][place], self._checksums[shard]
        if checksums is not None and zlib.crc32(tokens.numpy()) != checksums[place]:
            raise self.files.damaged(shard, ".safetensors")
        item: dict[str, Any] = {"tokens": tokens.float()}
        if self.labels is not None:
            item["labels"] = int(self.labels[index])
        return item
