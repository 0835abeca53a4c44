"""Videos of a `datasets` dataset to the models' inputs.

Every draw (where a clip starts, its crop, its masks) comes from a seed of its own made of (seed, epoch, row). A row's clip is the
same whatever the number of workers and processes, and a resumed run sees what the interrupted one would have seen.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2
from transformers import default_data_collator
from transformers.video_utils import VideoMetadata

from .augmentation import rand_augment, random_erasing
from .importance import CHOICES
from .masking import random_tube_mask
from .video_io import decode_video
from .video_processing_lvmae import LVMAEVideoProcessor


def processor_for(config: Any, **kwargs: Any) -> LVMAEVideoProcessor:
    """The processor whose clips fit a model: resize until `config.frame_size` is covered, then crop the centre.

    Args:
        config: `LVMAEConfig` or `FSQMagViTConfig`.
        kwargs: other settings of the processor; the tokenizer wants `do_normalize=False`, pixels in [0, 1].
    """
    height, width = config.frame_size
    crop_size = {"height": height, "width": width}
    return LVMAEVideoProcessor(size={"shortest_edge": max(height, width)}, crop_size=crop_size, **kwargs)


def load_video_dataset(
    name: str | os.PathLike,
    config_name: str | None = None,
    video_column: str = "video",
    label_column: str | None = None,
) -> datasets.DatasetDict:
    """Load a folder of videos (`videofolder`: splits from sub-folders, labels from metadata.csv or folder names), a
    `DatasetDict` saved to disk, or a Hub id.

    Columns `start` and `end`, where a dataset has them, cut segments out of longer videos ([`VideoClips`]).

    Args:
        label_column: made a `ClassLabel`, with one list of names for all splits; None leaves labels alone.

    Raises:
        ValueError: a column is missing.
    """
    wanted = [column for column in (video_column, label_column) if column is not None]
    splits = _load_splits("videofolder", name, config_name, wanted)
    splits = splits.cast_column(video_column, datasets.Video(decode=False))
    return splits if label_column is None else _encode_labels(splits, label_column)


def load_image_dataset(
    name: str | os.PathLike, config_name: str | None = None, image_column: str = "image"
) -> datasets.DatasetDict:
    """Load a folder of pictures (`imagefolder`) or a Hub id; raises ValueError where there is no such column."""
    splits = _load_splits("imagefolder", name, config_name, [image_column])
    return splits.cast_column(image_column, datasets.Image())


def _load_splits(
    folder_kind: str, name: str | os.PathLike, config_name: str | None, columns: list[str]
) -> datasets.DatasetDict:
    if os.path.isfile(os.path.join(name, "dataset_dict.json")):
        splits = datasets.DatasetDict.load_from_disk(os.fspath(name))
    elif os.path.isdir(name):
        splits = datasets.load_dataset(folder_kind, data_dir=os.fspath(name))
    else:
        splits = datasets.load_dataset(os.fspath(name), config_name)
    for split, rows in splits.items():
        missing = [column for column in columns if column not in rows.column_names]
        if missing:
            raise ValueError(
                f"Got columns {rows.column_names} in split {split!r} of {name}, expected {missing[0]!r}: name the right column "
                "(--video_column, --image_column, --label_column) or add it to metadata.csv."
            )
    return splits


def _encode_labels(splits: datasets.DatasetDict, label_column: str) -> datasets.DatasetDict:
    if isinstance(next(iter(splits.values())).features[label_column], datasets.ClassLabel):
        return splits
    names = sorted({str(label) for rows in splits.values() for label in rows.unique(label_column)})
    return splits.cast_column(label_column, datasets.Value("string")).cast_column(
        label_column, datasets.ClassLabel(names=names)
    )


def select_split(splits: datasets.DatasetDict, split: str, max_samples: int | None = None) -> datasets.Dataset:
    """One split, or its first `max_samples` rows; raises ValueError where there is no such split."""
    if split not in splits:
        raise ValueError(f"Got split {split!r}, expected one of {sorted(splits)}: name one that the dataset has.")
    rows = splits[split]
    return rows if max_samples is None else rows.select(range(min(max_samples, len(rows))))


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """torch's CPU random numbers start from `numbers` inside, and go on outside as if nothing had been drawn."""
    state = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(state % 2**63)
        yield


class VideoClips(Dataset):
    """A map-style dataset of clips: decode, sample, crop, normalise.

    A row is a dict with `pixel_values_videos` (T, C, H, W) and, with `label_column`, `labels` (a class id). Where the rows have
    `start` or `end`, in seconds (None = the video's own), a clip is taken from that segment.

    Args:
        rows: a split of [`load_video_dataset`].
        processor: [`LVMAEVideoProcessor`]; resizes, rescales and normalises.
        num_frames: frames of a clip.
        training: draw positions and crops at random, anew every epoch; otherwise the middle.
        frame_stride: take frames this far apart, from a random (training) or the middle start; a video too short for that,
            and every video without `frame_stride`, is sampled evenly over its whole length as the processor does.
        min_crop_scale: in training, crop down to this share of the area at random; 1 = no random crop.
        horizontal_flip: in training, mirror half of the clips.
        rand_augment_num_ops: in training, operations of [`rand_augment`] on the cropped frames (VideoMAE: 4); 0 = none.
        rand_augment_magnitude: their strength in [0, 10] (VideoMAE: 7).
        random_erasing_prob: in training, share of the clips with a box of noise (VideoMAE: 0.25).
        seed: of all random draws.

    Raises:
        VideoReadError: (on access) the video cannot be read; the message names it.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        processor: LVMAEVideoProcessor,
        num_frames: int,
        training: bool = False,
        frame_stride: int | None = None,
        min_crop_scale: float = 1.0,
        horizontal_flip: bool = False,
        rand_augment_num_ops: int = 0,
        rand_augment_magnitude: int = 7,
        random_erasing_prob: float = 0.0,
        video_column: str = "video",
        label_column: str | None = None,
        seed: int = 0,
    ):
        self.rows = rows
        self.processor = processor
        self.num_frames = num_frames
        self.training = training
        self.frame_stride = frame_stride
        self.video_column = video_column
        self.label_column = label_column
        self.seed = seed
        self.epoch = 0
        self.augment = self._augmentation(min_crop_scale, horizontal_flip) if training else None
        self.recolor = self.erase = None
        if training and rand_augment_num_ops > 0:
            fill = [255 * mean for mean in processor.image_mean]
            self.recolor = rand_augment(rand_augment_num_ops, rand_augment_magnitude, fill)
        if training and random_erasing_prob > 0:
            self.erase = random_erasing(random_erasing_prob)

    def _augmentation(self, min_crop_scale: float, horizontal_flip: bool) -> v2.Transform | None:
        steps: list[v2.Transform] = []
        if min_crop_scale < 1:
            size = (self.processor.crop_size["height"], self.processor.crop_size["width"])
            steps.append(v2.RandomResizedCrop(size, scale=(min_crop_scale, 1.0), antialias=True))
        if horizontal_flip:
            steps.append(v2.RandomHorizontalFlip())
        return v2.Compose(steps) if steps else None

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls this at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with seeded(self.seed, self.epoch if self.training else 0, index):
            return self.make_item(self.rows[index])

    def make_item(self, row: dict[str, Any]) -> dict[str, Any]:
        """One row of the dataset to the model's inputs, with torch's current random numbers."""
        item: dict[str, Any] = {"pixel_values_videos": self.make_pixels(self.read_clip(row))}
        if self.label_column is not None:
            item["labels"] = row[self.label_column]
        return item

    def make_pixels(self, clip: torch.Tensor) -> torch.Tensor:
        """Frames (T, C, H, W), uint8, as they are stored to the model's pixels; in training, augmented."""
        if self.augment is not None:
            clip = self.augment(clip)
        if self.recolor is not None:  # on frames of the model's size: those of the file may be large
            clip = self.recolor(self._process(clip, do_rescale=False, do_normalize=False))
        pixels = self._process(clip)
        return pixels if self.erase is None else self.erase(pixels)

    def _process(self, clip: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self.processor(clip, return_tensors="pt", **kwargs)["pixel_values_videos"][0]

    def read_clip(self, row: dict[str, Any]) -> torch.Tensor:
        """Frames (T, C, H, W) of a row, uint8, as they are stored."""
        segment = {"start": row.get("start"), "end": row.get("end")}
        return decode_video(row[self.video_column], self.sample_frames, **segment)[0]

    def sample_frames(self, metadata: VideoMetadata) -> np.ndarray:
        """Frame numbers of a clip."""
        if self.frame_stride is not None:
            offsets = np.arange(self.num_frames) * self.frame_stride
            spare = metadata.total_num_frames - 1 - int(offsets[-1])
            if spare >= 0:
                return offsets + (int(torch.randint(spare + 1, ())) if self.training else spare // 2)
        return self.processor.sample_frames(metadata, num_frames=self.num_frames)


class ImageClips(VideoClips):
    """Pictures as clips of one frame, for a tokenizer that starts on images.

    Args:
        rows: a split of [`load_image_dataset`].
        image_column: column of pictures.
        kwargs: as [`VideoClips`].
    """

    def __init__(
        self, rows: datasets.Dataset, processor: LVMAEVideoProcessor, image_column: str = "image", **kwargs: Any
    ):
        super().__init__(rows, processor, num_frames=1, video_column=image_column, **kwargs)

    def read_clip(self, row: dict[str, Any]) -> torch.Tensor:
        return v2.functional.pil_to_tensor(row[self.video_column].convert("RGB")).unsqueeze(0)


class MaskedVideoClips(VideoClips):
    """Clips for pre-training: with `bool_masked_pos` (N,), a tube mask, and `noise` (N,), which settles the decoder's random
    tokens.

    Args:
        grid_size: tokens (t, h, w) of a clip, `config.grid_size`.
        mask_ratio: share of the tubes hidden from the encoder.
        kwargs: as [`VideoClips`].
    """

    def __init__(self, *args, grid_size: tuple[int, int, int], mask_ratio: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.grid_size = grid_size
        self.mask_ratio = mask_ratio

    def make_item(self, row: dict[str, Any]) -> dict[str, Any]:
        item = super().make_item(row)
        item["bool_masked_pos"] = random_tube_mask(1, self.grid_size, self.mask_ratio)[0]
        item["noise"] = torch.rand(item["bool_masked_pos"].shape)
        return item


class SelectionCollator:
    """Batches for the tokenizer whose tokens are chosen by something else than its scorer: with `importance_scores` (B, N).

    Args:
        selection: names of `importance.CHOICES`, or "learned" for the scorer; of several, each batch draws one.
        grid_size: tokens (t, h, w) of a clip.

    Raises:
        ValueError: a name that is neither.
    """

    def __init__(self, selection: Sequence[str], grid_size: tuple[int, int, int]):
        unknown = sorted(set(selection) - {"learned", *CHOICES})
        if unknown or not selection:
            raise ValueError(
                f"Got selection={list(selection)}, expected names out of {['learned', *CHOICES]}: correct the spelling."
            )
        self.selection = list(selection)
        self.grid_size = grid_size

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        batch = default_data_collator(items)
        name = self.selection[int(torch.randint(len(self.selection), ()))]
        if name != "learned":
            batch["importance_scores"] = CHOICES[name](batch["pixel_values_videos"], self.grid_size)
        return batch


__all__ = [
    "ImageClips",
    "MaskedVideoClips",
    "SelectionCollator",
    "VideoClips",
    "load_image_dataset",
    "load_video_dataset",
    "processor_for",
    "select_split",
]
