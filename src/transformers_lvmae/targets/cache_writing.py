"""Write a target cache, for `scripts/cache_targets.py`. `cache.py` says what a cache is."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.arrow_writer import ArrowWriter
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from ..data.clips import VideoClips
from ..files import write_aside
from ..models.token_scores import compact_scores
from .builder import ClipViews, TargetBuilder
from .cache import (
    MANIFEST_NAME,
    Targets,
    check_targets,
    checksum,
    describe_clips,
    fingerprint,
    list_shards,
    row_keys,
    shown_keys,
    stored_codes,
)
from .token_scores import SCORES


def make_manifest(
    clips: VideoClips, maker: "TargetMaker", num_epochs: int = 1, clips_per_shard: int = 256, **made_by: Any
) -> dict[str, Any]:
    """Describe what a cache is made from, as JSON.

    Args:
        num_epochs: epochs of random draws to cache.
        clips_per_shard: rows of a file. A kill loses at most this many clips of each process.
        made_by: other facts (names, versions). They are compared when writing a cache continues, not when it is read.

    Raises:
        ValueError: several epochs of clips that are the same in every epoch, or several clips of each video.
    """
    if num_epochs > 1 and not clips.draws_clips:
        raise ValueError(
            f"Got num_epochs={num_epochs} and clips without random draws, expected 1: all epochs are equal."
        )
    if clips.num_clips > 1:
        raise ValueError(f"Got num_clips={clips.num_clips}, expected 1: cache more epochs instead.")
    keys = "\n".join(row_keys(clips.rows, clips.video_column)).encode()
    return {
        "clips": describe_clips(clips),
        "grid_size": list(maker.builder.config.grid_size),
        "levels": None if maker.tokenizer is None else list(maker.tokenizer.config.levels),
        "scores": maker.scores,
        "flow_estimator": maker.builder.flow[0] if maker.scores == "flow" else None,
        "tokenizer": None if maker.tokenizer is None else fingerprint(maker.tokenizer),
        "dtype": str(torch.float32 if maker.tokenizer is None else maker.tokenizer.dtype),
        "rows": len(clips.rows),
        "keys": hashlib.sha256(keys).hexdigest(),
        "num_epochs": num_epochs,
        "clips_per_shard": clips_per_shard,
        "made_by": made_by,
    }


class ByteClips(VideoClips):
    """The clips (T, C, H, W), uint8, of [`MaskedVideoClips`] without masks, with [`shown_keys`], empty if a video cannot be read."""

    as_bytes = True

    def try_row(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        item = (super().try_row(row) or [self.unreadable_item(row)])[0]
        readable = item.pop("is_readable", True)
        return [{**item, **(shown_keys(row, self.video_column) if readable else {"video": "", "content": ""})}]


class TargetMaker:
    """Make code indices and scores of clips for a cache, as pre-training on the fly makes them.

    Args:
        builder: a [`TargetBuilder`] of the clips' processor. Without a tokenizer the cache holds scores alone.
        scores: name of the scores (`SCORES`). `"everest"` compares the tokens' own pixels, which no training changes.

    Raises:
        ValueError: scores that need no clip (`"random"`, `"uniform"`), unknown scores, or learned scores without a tokenizer.
    """

    def __init__(self, builder: TargetBuilder, scores: str = "learned"):
        cacheable = [name for name, score in SCORES.items() if score.needs != "noise"]
        if scores not in cacheable or (scores == "learned" and builder.tokenizer is None):
            raise ValueError(
                f"Got scores={scores!r} and tokenizer={getattr(builder.tokenizer, 'name_or_path', None)!r}, expected one of "
                f"{cacheable}, and a tokenizer for learned ones: correct the spelling or pass the tokenizer."
            )
        self.builder, self.tokenizer, self.scores = builder, builder.tokenizer, scores

    @property
    def features(self) -> datasets.Features:
        """Columns of a cache: codes in the smallest integers that hold them, scores in float16."""
        tokens = self.builder.config.seq_length
        columns = {name: datasets.Value("string") for name in ("key", "video", "content")}
        columns["checksum"] = datasets.Value("uint32")
        columns["importance_scores"] = datasets.List(datasets.Value("float16"), length=tokens)
        if self.tokenizer is not None:
            kind = stored_codes(self.tokenizer.config.levels)
            columns["code_indices"] = datasets.List(datasets.Value(kind.name), length=tokens)
        return datasets.Features(columns)

    @torch.no_grad()
    def __call__(self, clips: torch.Tensor) -> Targets:
        """Make `importance_scores` (B, N), float16, and with a tokenizer `code_indices` (B, N), of uint8 clips (B, T, C, H, W)."""
        views, targets = ClipViews(self.builder, clips.to(self.builder.device)), {}
        with self.builder.full_precision():
            if self.tokenizer is not None:
                targets["code_indices"] = views.tokens("code_indices").code_indices
            targets["importance_scores"] = compact_scores(views.scores(self.scores))
        return targets

    def rows(self, items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Make the rows of a cache, without `key`, of a batch of [`ByteClips`]: zeros for a video that cannot be read.

        Scores that are not finite raise ValueError.
        """
        targets = self(torch.stack([item["pixel_values_videos"] for item in items]))
        values = {name: column.cpu().numpy() for name, column in targets.items()}
        levels = None if self.tokenizer is None else self.tokenizer.config.levels
        for place, item in enumerate(items):
            row = {
                name: column[place] if item["video"] else np.zeros_like(column[place])
                for name, column in values.items()
            }
            check_targets(row, levels, f"targets of {item['video']}", "check the tokenizer's weights")
            if levels is not None:
                row["code_indices"] = row["code_indices"].astype(stored_codes(levels))
            keys = {name: item[name] for name in ("video", "content")}
            yield {**keys, "checksum": checksum(**keys, targets=row), **row}


def begin_cache(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest. If the folder has one already, raise ValueError unless it is the same."""
    path = folder / MANIFEST_NAME
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(path, json.dumps(manifest, indent=2) + "\n")
    begun = json.loads(path.read_text())
    differing = sorted(name for name in manifest if json.loads(json.dumps(manifest[name])) != begun.get(name))
    if differing:
        name = differing[0]
        raise ValueError(
            f"Got a cache in {folder} begun with {name}={begun.get(name)}, expected {manifest[name]}: use the options that began it, "
            "or write to another folder."
        )


def write_targets(
    folder: Path,
    clips: VideoClips,
    maker: TargetMaker,
    manifest: dict[str, Any],
    process_index: int = 0,
    num_processes: int = 1,
    batch_size: int = 1,
    num_workers: int = 0,
) -> int:
    """Write this process's share of the missing files. Return the number of clips that were read.

    The content of a file does not depend on the process that writes it, because its batches are always the same.

    Raises:
        TooManyBrokenVideos, VideoReadError: as for [`VideoClips`].
    """
    own = list_shards(manifest)[process_index::num_processes]
    todo = [shard for shard in own if not (folder / shard.name).exists()]
    total = sum(len(shard.rows) for shard in todo)
    keys = row_keys(clips.rows, clips.video_column)
    with tqdm(total=total, unit="clip", desc=folder.name, disable=process_index > 0) as progress:
        for shard in todo:
            clips.set_epoch(shard.epoch)
            subset = Subset(clips, shard.rows)
            loader = DataLoader(subset, batch_size=batch_size, num_workers=num_workers, collate_fn=list)
            part, numbers = folder / f"{shard.name}.part", iter(shard.rows)
            with ArrowWriter(features=maker.features, path=str(part)) as writer:
                for items in loader:
                    for row in maker.rows(items):
                        writer.write({"key": keys[next(numbers)], **row})
                    if num_workers:  # they are new for each file, and count its videos alone
                        clips.broken.tried += len(items)
                        clips.broken.failed += sum(not item["video"] for item in items)
                        clips.broken.check()
                    progress.update(len(items))
                writer.finalize()
            os.replace(part, folder / shard.name)
    return total
