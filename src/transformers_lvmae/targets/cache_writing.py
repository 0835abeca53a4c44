"""Making a target cache: `scripts/cache_targets.py`."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.arrow_writer import ArrowWriter
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from ..data.clips import VideoClips
from .cache import MANIFEST_NAME, SCORED_MASKS, Targets, describe_clips, fingerprint, list_shards, row_keys, shown_key
from .pixels import PixelScale, compact_scores, tokenizer_view
from .scores import CHOICES, flow_estimator


def make_manifest(
    clips: VideoClips, maker: "TargetMaker", num_epochs: int = 1, clips_per_shard: int = 256, **made_by: Any
) -> dict[str, Any]:
    """What a cache's folder says of it, as JSON.

    Args:
        num_epochs: how many epochs of draws it holds.
        clips_per_shard: rows of a file: what is lost at most, for each process, to a kill.
        made_by: what else is worth knowing (names, versions); compared when a cache is gone on with, not when it is read.

    Raises:
        ValueError: several epochs of clips that are the same in each, or several clips of each video.
    """
    if num_epochs > 1 and not clips.draws_clips:
        raise ValueError(
            f"Got num_epochs={num_epochs} and clips without random starts, crops or flips, expected 1: every epoch is the same."
        )
    if clips.num_clips > 1:
        raise ValueError(
            f"Got num_clips={clips.num_clips}, expected 1: a cache holds one clip of a video in each epoch; cache more epochs."
        )
    keys = "\n".join(row_keys(clips.rows, clips.video_column)).encode()
    return {
        "clips": describe_clips(clips),
        "grid_size": list(maker.grid_size),
        "levels": None if maker.tokenizer is None else list(maker.tokenizer.config.levels),
        "scores": maker.scores,
        "flow_estimator": flow_estimator()[0] if maker.scores == "flow" else None,
        "tokenizer": None if maker.tokenizer is None else fingerprint(maker.tokenizer),
        "rows": len(clips.rows),
        "keys": hashlib.sha256(keys).hexdigest(),
        "num_epochs": num_epochs,
        "clips_per_shard": clips_per_shard,
        "made_by": made_by,
    }


class ByteClips(VideoClips):
    """The clips (T, C, H, W), uint8, of [`MaskedVideoClips`] without masks, with `video`, the [`video_key`] of the video shown."""

    as_bytes = True

    def make_item(self, row: dict[str, Any], clip: torch.Tensor) -> dict[str, Any]:
        return {**super().make_item(row, clip), "video": shown_key(row, self.video_column)}


class TargetMaker:
    """Code indices and scores of clips, as pre-training on the fly makes them.

    Args:
        processor: the one that made the clips.
        grid_size: tokens (t, h, w) of a clip.
        tokenizer ([`FSQMagViTModel`], *optional*): makes codes; without it the cache holds scores alone.
        scores: `"learned"` are the tokenizer's; `"motion"`, `"everest"` (distances between the tubelets' own pixels, which no
            training changes) and `"flow"` are `importance`'s, of the model's pixels.

    Raises:
        ValueError: another kind of scores, learned ones without a tokenizer, or one with another token grid.
    """

    def __init__(
        self,
        processor: Any,
        grid_size: tuple[int, int, int],
        tokenizer: Any = None,
        scores: str = "learned",
        device: torch.device | str = "cpu",
    ):
        if scores not in SCORED_MASKS or (scores == "learned" and tokenizer is None):
            raise ValueError(
                f"Got scores={scores!r} and tokenizer={getattr(tokenizer, 'name_or_path', None)!r}, expected one of "
                f"{list(SCORED_MASKS)}, and a tokenizer for learned ones: correct the spelling or pass the tokenizer."
            )
        if tokenizer is not None and tokenizer.config.grid_size[1:] != grid_size[1:]:
            raise ValueError(
                f"Got a tokenizer with {tokenizer.config.grid_size[1:]} tokens a slot and clips with {grid_size[1:]}, expected the "
                "same: load the tokenizer with another image_size or change the clips' image_size or patch_size."
            )
        self.scale = PixelScale(processor, device)
        self.grid_size, self.scores, self.device = grid_size, scores, device
        self.patch_size = processor.crop_size["height"] // grid_size[1]
        self.tokenizer = None if tokenizer is None else tokenizer.requires_grad_(False).eval().to(device)

    @property
    def features(self) -> datasets.Features:
        """Columns of a cache: codes in the smallest integers that hold them, scores in float16."""
        tokens = math.prod(self.grid_size)
        columns = {"key": datasets.Value("string"), "video": datasets.Value("string")}
        columns["importance_scores"] = datasets.List(datasets.Value("float16"), length=tokens)
        if self.tokenizer is not None:
            kind = np.min_scalar_type(self.tokenizer.config.codebook_size - 1).name
            columns["code_indices"] = datasets.List(datasets.Value(kind), length=tokens)
        return datasets.Features(columns)

    @torch.no_grad()
    def __call__(self, clips: torch.Tensor) -> Targets:
        """Clips (B, T, C, H, W), uint8 -> `importance_scores` (B, N), float16, and `code_indices` (B, N)."""
        pixels, targets = self.scale.restore(clips.to(self.device)), {}
        if self.tokenizer is not None:
            scale = self.tokenizer.config.patch_size / self.patch_size
            tokens = self.tokenizer.encode(tokenizer_view(pixels, scale))
            targets["code_indices"], scores = tokens.code_indices, tokens.importance_scores
        if self.scores != "learned":
            scores = CHOICES[self.scores](pixels, self.grid_size)
        targets["importance_scores"] = compact_scores(scores)
        for name, values in targets.items():
            if values.shape[1] != math.prod(self.grid_size):
                raise ValueError(
                    f"Got {name} of {values.shape[1]} tokens for clips of {self.grid_size}, expected as many: use a tokenizer "
                    "with the model's tubelet_size."
                )
        return targets


def begin_cache(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, or check that what lies there was begun with the same one; raises ValueError otherwise."""
    path = folder / MANIFEST_NAME
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(manifest, indent=2) + "\n")
        os.replace(part, path)
    begun = json.loads(path.read_text())
    differing = sorted(name for name in manifest if json.loads(json.dumps(manifest[name])) != begun.get(name))
    if differing:
        name = differing[0]
        raise ValueError(
            f"Got a cache in {folder} begun with {name}={begun.get(name)}, expected {manifest[name]}: go on with the options that "
            "began it, or write to another folder."
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
    """Write this process's share of the files that are not there yet; returns how many clips it read.

    Every file's clips go through the tokenizer in the same batches, whichever process writes it.
    """
    todo = [
        shard for shard in list_shards(manifest)[process_index::num_processes] if not (folder / shard.name).exists()
    ]
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
                    targets = maker(torch.stack([item["pixel_values_videos"] for item in items]))
                    values = {name: column.cpu().numpy() for name, column in targets.items()}
                    for place, item in enumerate(items):
                        row = {name: column[place] for name, column in values.items()}
                        writer.write({"key": keys[next(numbers)], "video": item["video"], **row})
                    progress.update(len(items))
                writer.finalize()
            os.replace(part, folder / shard.name)
    return total


__all__ = ["ByteClips", "TargetMaker", "begin_cache", "make_manifest", "write_targets"]
