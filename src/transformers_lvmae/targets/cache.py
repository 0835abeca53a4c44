"""Read a target cache: the tokenizer's codes and scores of a dataset, computed once by `scripts/cache_targets.py`.

A cache has a folder for each split. `manifest.json` describes its data and settings. Each Arrow file holds a fixed number of rows of
one epoch of random draws. A file gets its final name when it is complete, so complete files survive a kill.

Frames, crop and flip of a clip depend on (seed, epoch, row) alone. So the clips that training will draw can be tokenized in advance.
If nothing is drawn (no random start, crop or flip), one epoch serves all epochs. Otherwise the first E epochs are cached, and longer
training shows their clips again, in turn, under new masks. Training with other draws than the cache's is refused.

A video that cannot be read has no targets. Training on the cache treats it as a broken video, even if it plays again.

Each row has a checksum of its targets and a key of its video's content. Both are checked when the row is read, so opening a cache of any
size is quick. Caches of version 0.1 have neither: they are read with a warning.
"""

import hashlib
import json
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedConfig, logging

from ..data.clips import MaskedVideoClips, VideoClips, seeded
from ..models.credentials import mask_credentials
from ..models.masking import cut_visible_tubelets
from ..models.video_io import video_name
from ..models.video_seeking import VideoReadError
from .token_scores import SCORES


logger = logging.get_logger(__name__)
MANIFEST_NAME = "manifest.json"
EDGE_BYTES = 2**14  # of a video's first and last bytes in the key of its content
PROCESSING = ["do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"]
PROCESSING += ["do_normalize", "image_mean", "image_std", "do_convert_rgb"]
Targets = dict[str, torch.Tensor]


def describe_clips(clips: VideoClips) -> dict[str, Any]:
    """Describe all settings that decide the pixels of a dataset's clips, as JSON."""
    processor = json.loads(clips.processor.to_json_string())
    settings = {
        "num_frames": clips.num_frames,
        **asdict(clips.sampling),
        "horizontal_flip": clips.augmentation.horizontal_flip,
        "crop": clips.crop,
        "recolor": clips.recolor,
        "erase": clips.erase,
        "processor": {name: processor.get(name) for name in PROCESSING},
        "draws_of_seed": clips.seed if clips.draws_clips else None,
        "num_clips": clips.num_clips if clips.draws_clips else 1,
    }
    return json.loads(json.dumps(settings, default=repr))


def fingerprint(tokenizer: Any) -> dict[str, str]:
    """Return the SHA-256 of a model's own config fields, and of its weights."""
    common = PreTrainedConfig().to_dict()
    fields = {name: value for name, value in tokenizer.config.to_dict().items() if name not in common}
    weights = hashlib.sha256()
    for name, value in sorted(tokenizer.state_dict().items()):
        weights.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        weights.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    config = json.dumps(fields, sort_keys=True).encode()
    return {"config": hashlib.sha256(config).hexdigest(), "weights": weights.hexdigest()}


def video_key(path: str | None, start: float | None = None, end: float | None = None) -> str:
    """Return a name for a row that does not depend on where the dataset lies: the end of its path, and its times in seconds."""
    times = [
        f" {name} {time}"
        for name, time in (("start", start), ("end", end))
        if time is not None and not math.isnan(time)
    ]
    return "/".join(Path(mask_credentials(path or "")).parts[-2:]) + "".join(times)


def row_keys(rows: datasets.Dataset, video_column: str = "video") -> list[str]:
    """Return the [`video_key`] of every row. No video is opened."""
    name = f"{video_column}.path"
    paths = rows.select_columns([video_column]).flatten().select_columns([name]).with_format("arrow")[:][name]
    times = [rows[name] if name in rows.column_names else [None] * len(rows) for name in ("start", "end")]
    return [video_key(*row) for row in zip(paths.to_pylist(), *times)]


def shown_keys(row: dict[str, Any], video_column: str) -> dict[str, str]:
    """Return `video`, the [`video_key`] of a row, and `content`, its [`content_key`]."""
    video = row[video_column]
    name = video_key(video_name(video), row.get("start"), row.get("end"))
    return {"video": name, "content": content_key(video)}


def content_key(video: Any) -> str:
    """Return the size and a hash of the first and last bytes of a local file or of bytes; nothing for other sources."""
    path, data = (video.get("path"), video.get("bytes")) if isinstance(video, dict) else (video, None)
    if data is None and isinstance(path, bytes):
        data = path
    if data is not None:
        size, edges = len(data), data[:EDGE_BYTES] + data[-EDGE_BYTES:]
    elif isinstance(path, (str, os.PathLike)) and os.path.isfile(path):
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            edges = file.read(EDGE_BYTES)
            file.seek(max(0, size - EDGE_BYTES))
            edges += file.read(EDGE_BYTES)
    else:
        return ""
    return f"{size} {hashlib.sha256(edges).hexdigest()[:16]}"


def stored_codes(levels: Sequence[int]) -> np.dtype:
    """Return the smallest unsigned integers that hold the codes of these levels."""
    return np.min_scalar_type(math.prod(levels) - 1)


def checksum(video: str, content: str, targets: dict[str, np.ndarray]) -> int:
    """Return the CRC-32 of a row: the keys of its video, and its targets as they are stored."""
    found = zlib.crc32(f"{video}\n{content}".encode())
    for _, values in sorted(targets.items()):
        found = zlib.crc32(values.tobytes(), found)
    return found


def check_targets(targets: dict[str, np.ndarray], levels: Sequence[int] | None, origin: str, remedy: str) -> None:
    """Raise ValueError unless scores are finite and codes are in the codebook.

    Args:
        targets: `importance_scores`, and `code_indices` if there are codes.
        levels: FSQ levels of the codes.
        origin, remedy: parts of the message: where the targets come from, and what to do.
    """
    if not np.isfinite(targets["importance_scores"]).all():
        raise ValueError(f"Got {origin} with scores that are not finite, expected finite ones: {remedy}.")
    codes = targets.get("code_indices")
    if codes is not None and not 0 <= codes.min() <= codes.max() < math.prod(levels or ()):
        raise ValueError(
            f"Got {origin} with codes from {codes.min()} to {codes.max()}, expected 0 to {math.prod(levels or ()) - 1}: {remedy}."
        )


@dataclass(frozen=True)
class Shard:
    """A file of a cache: the targets of some rows in one epoch."""

    epoch: int
    rows: range

    @property
    def name(self) -> str:
        return f"epoch_{self.epoch:05d}_row_{self.rows.start:09d}.arrow"


def count_shards(manifest: dict[str, Any]) -> int:
    """Return the number of files of a complete cache."""
    return manifest["num_epochs"] * -(-manifest["rows"] // manifest["clips_per_shard"])


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a cache's manifest; raise ValueError if there is none, or none that describes a cache."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ValueError(
            f"Got no target cache in {folder}, expected a {MANIFEST_NAME}: make it with scripts/cache_targets.py."
        )
    try:
        manifest = json.loads(path.read_text())
        numbers = [manifest[name] for name in ("rows", "num_epochs", "clips_per_shard")] + manifest["grid_size"]
        known = {"clips", "levels", "scores", "tokenizer"} <= set(manifest) and len(numbers) == 6
        is_whole = known and all(isinstance(number, int) and number > 0 for number in numbers)
    except (ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise ValueError(
            f"Got a damaged {path}, expected the description of a target cache: restore it, or delete the folder and write the cache anew."
        )
    return manifest


def list_shards(manifest: dict[str, Any]) -> list[Shard]:
    """List all files of a complete cache, in order."""
    total, size = manifest["rows"], manifest["clips_per_shard"]
    parts = [range(start, min(start + size, total)) for start in range(0, total, size)]
    return [Shard(epoch, rows) for epoch in range(manifest["num_epochs"]) for rows in parts]


class TargetCache:
    """The complete cache of one split.

    Args:
        folder: one split's folder, with its `manifest.json`. Without a complete cache in it, ValueError is raised.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        present, expected = {path.name for path in self.folder.glob("*.arrow")}, count_shards(self.manifest)
        shards = (
            list_shards(self.manifest) if expected <= len(present) else []
        )  # a damaged manifest may name any number
        if not shards or not present.issuperset(shard.name for shard in shards):
            raise ValueError(
                f"Got {len(present)} files in the target cache {self.folder}, expected {expected}: run "
                "scripts/cache_targets.py again with the same options, and it goes on."
            )
        files: list[list[datasets.Dataset]] = [[] for _ in range(self.num_epochs)]
        for shard in shards:
            files[shard.epoch].append(self._open(shard))
        self.epochs = [datasets.concatenate_datasets(parts).with_format("arrow") for parts in files]
        if "checksum" not in self.epochs[0].column_names:
            precision = self.manifest.get("made_by", {}).get("precision")
            made = (
                f" It was made in {precision}, which training on the fly does not use."
                if precision not in (None, "no")
                else ""
            )
            logger.warning(
                f"The target cache {self.folder} was written by version 0.1: damaged targets, and other videos with the same names, are "
                f"not noticed.{made} Write it anew for both."
            )

    def _open(self, shard: Shard) -> datasets.Dataset:
        path = self.folder / shard.name
        try:
            rows = datasets.Dataset.from_file(str(path))
            rows.data.table.validate(
                full=True
            )  # Arrow trusts a file's description of its columns, and crashes on a damaged one
            lengths = {
                rows.features[name].length for name in ("importance_scores", "code_indices") if name in rows.features
            }
            has_codes = "code_indices" in rows.features
        except Exception as error:  # Arrow and datasets fail in many ways on a damaged description of the columns
            raise self._damaged(shard.name) from error
        tokens = math.prod(self.manifest["grid_size"])
        if len(rows) != len(shard.rows) or lengths != {tokens} or has_codes != (self.levels is not None):
            raise self._damaged(shard.name)
        return rows

    def _damaged(self, name: str) -> ValueError:
        return ValueError(
            f"Got a damaged file {name} in the target cache {self.folder}, expected what its manifest describes: delete the file and run "
            "scripts/cache_targets.py again, which writes it anew."
        )

    @property
    def num_epochs(self) -> int:
        """Number of cached epochs of draws; 1 if nothing is drawn."""
        return self.manifest["num_epochs"]

    @property
    def levels(self) -> tuple[int, ...] | None:
        """FSQ levels of the cached codes, or None if the cache holds scores alone."""
        return None if self.manifest["levels"] is None else tuple(self.manifest["levels"])

    def targets(self, epoch: int, row: int, video: str, content: str = "") -> Targets:
        """Return `importance_scores` (N,), float16, and `code_indices` (N,), int32 or int64, if codes are cached.

        Raises:
            ValueError: they are not the targets of `video`, a [`video_key`], with this [`content_key`], or are damaged.
            VideoReadError: there are none, because the video could not be read.
        """
        table = self.epochs[epoch][row]
        found = {
            name: table[name][0].as_py() for name in ("video", "content", "checksum") if name in table.column_names
        }
        targets = {name: table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False) for name in self._kinds}
        shard = Shard(epoch, range(row - row % self.manifest["clips_per_shard"], row + 1))
        if "checksum" in found and found["checksum"] != checksum(found["video"], found["content"], targets):
            raise self._damaged(shard.name)
        if not found["video"]:
            raise VideoReadError(
                f"Got no targets of {video} in the target cache {self.folder}, expected some, but it could not be read when the cache was "
                f"made: if it can be now, delete {shard.name} and run scripts/cache_targets.py again."
            )
        self._check(f"the video shown as number {row}", found["video"], video)
        if "content" in found:
            self._check(f"a file of {video} (bytes, hash)", found["content"], content)
        check_targets(
            targets, self.levels, f"{shard.name} in the target cache {self.folder}", "delete it and write it anew"
        )
        return {name: torch.from_numpy(values.astype(self._kinds[name])) for name, values in targets.items()}

    def no_targets(self) -> Targets:
        """Return zeros in place of the targets of a clip that cannot be read."""
        tokens = math.prod(self.manifest["grid_size"])
        return {name: torch.from_numpy(np.zeros(tokens, kind)) for name, kind in self._kinds.items()}

    @property
    def _kinds(self) -> dict[str, Any]:
        """The cached targets, and the types in which they are served."""
        kinds: dict[str, Any] = {"importance_scores": np.float16}
        if self.levels is not None:
            kinds["code_indices"] = np.int64 if math.prod(self.levels) > 2**31 else np.int32
        return kinds

    def check_clips(self, clips: MaskedVideoClips) -> None:
        """Raise ValueError unless the cache was made from these clips: same frames, size, crops, draws, tokens and videos."""
        described = {**describe_clips(clips), "grid_size": list(clips.grid_size)}
        for name, got in {**self.manifest["clips"], "grid_size": self.manifest["grid_size"]}.items():
            self._check(name, got, described.get(name))
        keys, rows = row_keys(clips.rows, clips.video_column), self.epochs[0].with_format(None)
        self._check("at least as many videos", min(len(rows), len(keys)), len(keys))
        for number, (got, expected) in enumerate(zip(rows["key"], keys)):
            self._check(f"video {number}", got, expected)

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raise ValueError unless this tokenizer made the cache."""
        for name, expected in fingerprint(tokenizer).items():
            self._check(f"the tokenizer's {name}", (self.manifest["tokenizer"] or {}).get(name), expected)

    def check_model(self, config: Any) -> None:
        """Raise ValueError unless the cache holds the targets and scores of a model's config."""
        if config.target_type == "latents":
            raise ValueError(
                f"Got target_type='latents' and the target cache {self.folder}, expected 'codes', because a cache holds rounded "
                "codes: leave it out to make latents on the fly."
            )
        if config.target_type != "pixels" and self.levels is not None:
            self._check("levels", list(self.levels), list(config.levels))
        scores = config.decoder_scores
        if scores is not None and SCORES[scores].needs != "noise":
            self._check(f"scores (of decoder_mask={config.decoder_mask!r})", self.manifest["scores"], scores)

    def _check(self, name: str, got: Any, expected: Any) -> None:
        if got != expected:
            raise ValueError(
                f"Got a target cache ({self.folder}) with {name}: {got}, expected {expected}: run scripts/cache_targets.py with the "
                "options of this run, use the cache's options here, or leave the cache out to tokenize on the fly."
            )


class CachedVideoClips(MaskedVideoClips):
    """Clips for pre-training with targets from a cache, and only those pixels that the encoder sees.

    An item has `visible_tubelets` (V, tubelet_size, C, patch_size, patch_size), uint8, in place of the clip; `code_indices` and
    `importance_scores` (N,); and the masks of [`MaskedVideoClips`]. In the epochs that the cache holds, clips and masks are those that
    [`MaskedVideoClips`] draws. Later epochs show the cached clips again, in turn, under new masks.

    Args:
        cache: made from these rows.
        whole_clips: send `pixel_values_videos`, uint8, instead of tubelets: for pixel targets, and for caches without codes.
        kwargs: arguments of [`MaskedVideoClips`], the same as the cache was made with.

    Raises:
        ValueError: the cache was made from another dataset or other clips. On access: it has the targets of another video.
        VideoReadError, TooManyBrokenVideos: (on access) as for [`VideoClips`], also if a video could not be read when the cache was made.
    """

    def __init__(self, *args: Any, cache: TargetCache, whole_clips: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        cache.check_clips(self)
        self.cache = cache
        self.whole_clips = whole_clips

    @property
    def epoch(self) -> int:
        """The epoch whose clips are shown. The masks are those of the epoch given to [`set_epoch`]."""
        return super().epoch % self.cache.num_epochs

    def read_row(self, number: int) -> list[dict[str, Any]] | None:
        items, targets = super().read_row(number), self.cache.no_targets()
        epoch = int(self._epoch) if self.training else 0
        with seeded(self.seed, epoch, number):
            if items is not None and items[0].get("is_readable", True):
                row = self.rows[number]
                try:
                    targets = self.cache.targets(
                        epoch % self.cache.num_epochs, number, **shown_keys(row, self.video_column)
                    )
                except VideoReadError as error:
                    items = self.skip(row, error)
            if items is not None and epoch >= self.cache.num_epochs:
                items = [{**item, **self.draw_masks()} for item in items]
        return None if items is None else [self._serve(item, targets) for item in items]

    def _serve(self, item: dict[str, Any], targets: Targets) -> dict[str, Any]:
        if not self.whole_clips:
            clip = item.pop("pixel_values_videos")
            item["visible_tubelets"] = cut_visible_tubelets(clip, self.grid_size, item["bool_masked_pos"])
        return {**item, **targets}


def clips_to_train_on(
    rows: datasets.Dataset,
    processor: Any,
    config: Any,
    cache: TargetCache | None = None,
    whole_clips: bool = False,
    **kwargs: Any,
) -> MaskedVideoClips:
    """Return the clips for pre-training a model, with the targets of a cache if there is one.

    Args:
        config: the model's `LVMAEConfig`.
        whole_clips: send whole clips even if the model needs only the visible tubelets.
        kwargs: arguments of [`VideoClips`].

    Raises:
        ValueError: the cache does not fit the clips or the model.
    """
    kwargs |= {"grid_size": config.grid_size, "mask_ratio": config.mask_ratio, "encoder_mask": config.encoder_mask}
    if cache is not None and not isinstance(rows, datasets.Dataset):
        raise ValueError(
            f"Got a {type(rows).__name__} with the target cache {cache.folder}, expected a dataset with random access: leave out "
            "--streaming, or the cache."
        )
    if cache is None:
        return MaskedVideoClips(rows, processor, config.num_frames, **kwargs)
    cache.check_model(config)
    whole_clips = whole_clips or config.target_type == "pixels" or cache.levels is None
    return CachedVideoClips(rows, processor, config.num_frames, cache=cache, whole_clips=whole_clips, **kwargs)
