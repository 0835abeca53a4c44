"""Datasets of clips: a row of a `datasets` dataset becomes the input of a model.

All random draws of a row (start of the clip, crop, masks) are seeded with (seed, epoch, row). So a row's clip does not depend on the
number of workers and processes, and a resumed run sees the same clips as an uninterrupted one.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2
from transformers.video_utils import VideoMetadata

from ..models.masking import ENCODER_MASKS
from ..models.video_io import View, decode_clips
from ..models.video_processing_lvmae import LVMAEVideoProcessor
from ..models.video_seeking import VideoReadError
from ..models.video_sources import VideoAccess, video_name
from .broken_videos import BrokenVideos
from .datasets import rows_fingerprint, segment_of
from .frame_sampling import FrameSampling
from .transforms import ClipAugmentation, draw_view


MOST_REPLACEMENTS = 10  # videos tried in place of one that cannot be read


def processor_for(config: Any, **kwargs: Any) -> LVMAEVideoProcessor:
    """Make the processor whose clips fit a model: it resizes until `config.frame_size` is covered and no more, then crops the center.

    Of a file, it takes `config.num_frames` frames unless the call says otherwise.

    Args:
        config: `LVMAEConfig` or `FSQMagViTConfig`.
        kwargs: other settings of the processor. The tokenizer needs `do_normalize=False`: pixels in [0, 1].
    """
    height, width = config.frame_size
    crop_size = {"height": height, "width": width}
    settings = {"size": {"shortest_edge": min(height, width)}, "crop_size": crop_size, "num_frames": config.num_frames}
    statistics = {name: list(getattr(config, name)) for name in ("image_mean", "image_std") if hasattr(config, name)}
    return LVMAEVideoProcessor(**settings | statistics | kwargs)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed torch's CPU random numbers with `numbers` inside the block; afterwards, restore their state from before."""
    state = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(state % 2**63)
        yield


@dataclass(frozen=True)
class VideoReading:
    """How videos are read, and what happens to those that cannot be read.

    Args:
        num_clips: in training, number of clips of each video, from one decoding (repeated augmentation). Each has its own
            frames, crop and masks.
        on_error: what to do with a video that cannot be read: "raise" an error that names it, or "skip" it and count it. In
            training, another row's video takes its place, drawn from (seed, epoch, row). In evaluation nothing does, because a
            video would count twice: see [`VideoClips.unreadable_item`]. A video of one frame can be read: the frame repeats.
        max_broken_share: with "skip", the largest share of the videos tried by a process that may be broken.
        broken_folder: with "skip", the folder where every process records the videos that it could not read
            ([`report_broken_videos`]).
        video_column: column of videos.
        access: what a row's video may open, and limits of bytes and seconds.

    Raises:
        ValueError: an unknown `on_error`, or less than one clip.
    """

    num_clips: int = 1
    on_error: str = "raise"
    max_broken_share: float = 0.1
    broken_folder: str | os.PathLike | None = None
    video_column: str = "video"
    access: VideoAccess = field(default_factory=VideoAccess)

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"Got on_error={self.on_error!r}, expected 'raise' or 'skip': choose one of them.")
        if self.num_clips < 1:
            raise ValueError(f"Got num_clips={self.num_clips}, expected at least 1: leave it out for one clip a video.")


def to_pixels(clip: torch.Tensor, processor: LVMAEVideoProcessor) -> torch.Tensor:
    """Rescale and normalize frames (T, C, H, W), uint8, as the processor's settings say."""
    names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    return processor.rescale_and_normalize(clip, **{name: getattr(processor, name) for name in names})


class VideoClips(Dataset):
    """A map-style dataset of clips: decode, sample, crop, normalize.

    An item is a dict with `pixel_values_videos` (T, C, H, W) and, with `label_column`, `labels`: a class id, or a list of them
    for several columns. In evaluation with `on_error="skip"`, it has `is_readable` too. A row with `start` or `end`, in seconds, is a segment of its video.

    Frames get the model's size right after they are decoded: by the processor's resize and center crop, or by a random crop of the
    stored frames, the same for the whole clip. So memory holds at most 4 MiB of full-size frames at a time, or one frame.

    With `reading.num_clips`, a data loader's batch of B videos holds B x num_clips clips, and the clips of a video follow each
    other. The length stays the number of videos, and indexing returns a video's first clip.

    A subclass may override two steps: [`read_clips`] (row -> uint8 clips) and [`make_item`] (row and clip -> item).

    Args:
        rows: a split of [`load_video_dataset`].
        processor: [`LVMAEVideoProcessor`]; resizes, rescales and normalizes.
        num_frames: frames of a clip.
        training: draw frames, and apply `augmentation`, anew in every epoch. Otherwise a clip is always the same.
        sampling: which frames a clip has; by default, frames evenly over the whole video.
        augmentation: random changes in training; by default none.
        reading: number of clips, broken videos, column of videos.
        label_column: column of class ids, or several columns.
        seed: seed of all random draws.

    Raises:
        VideoReadError: (on access) the video cannot be read; the message names it.
        TooManyBrokenVideos: (on access) more than `reading.max_broken_share` cannot be read.
        ValueError: random erasing for uint8 clips.
    """

    as_bytes: ClassVar[bool] = False  # whether items have uint8 pixels, neither rescaled nor normalized
    erases_later: ClassVar[bool] = False  # whether items with uint8 pixels have the boxes of random erasing beside them
    noise_size: int = 0  # how many uniform random numbers in [0, 1) an item has as `noise`

    def __init__(
        self,
        rows: datasets.Dataset,
        processor: LVMAEVideoProcessor,
        num_frames: int,
        training: bool = False,
        sampling: FrameSampling | None = None,
        augmentation: ClipAugmentation | None = None,
        reading: VideoReading | None = None,
        label_column: str | Sequence[str] | None = None,
        seed: int = 0,
    ):
        reading = reading or VideoReading()
        self.rows = rows
        self.processor = processor
        self.num_frames = num_frames
        self.training = training
        self.sampling = sampling or FrameSampling()
        self.augmentation = (augmentation if training else None) or ClipAugmentation()
        self.num_clips = reading.num_clips if training else 1
        self.on_error = reading.on_error
        self.broken = BrokenVideos(reading.broken_folder, reading.max_broken_share)
        self.video_column = reading.video_column
        self.access = reading.access
        self.label_column = label_column
        self.seed = seed
        # In shared memory, so that persistent workers see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.crop = self.augmentation.crop((processor.crop_size["height"], processor.crop_size["width"]))
        self.recolor = self.augmentation.recolor(processor.image_mean)
        self.erase = self.augmentation.erase()
        if self.as_bytes and self.erase is not None and not self.erases_later:
            raise ValueError(
                f"Got random_erasing_prob={self.augmentation.random_erasing_prob} for uint8 clips, expected 0: the boxes are noise "
                "in normalized pixels."
            )

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    @property
    def draws_clips(self) -> bool:
        """Whether a row's clip differs from epoch to epoch."""
        return self.training and (self.sampling.is_random or self.augmentation.is_random)

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls this at the start of every epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells these rows from others, for the settings of a run."""
        return rows_fingerprint(self.rows, self.video_column, self.label_column)

    def video_names(self, indices: list[int]) -> list[str]:
        """Return the names of rows' videos, as error messages show them."""
        return [video_name(self.rows[index][self.video_column]) for index in indices]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items(index)[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Return the items of a batch, with all clips of each video. Data loaders call this."""
        return [item for index in indices for item in self.items(index)]

    def items(self, index: int) -> list[dict[str, Any]]:
        """Return all clips of a row's video, or of the row that takes its place."""
        items = self.read_row(index)
        for attempt in range(1, MOST_REPLACEMENTS + 1):
            if items is None:
                with seeded(self.seed, self.epoch, index, attempt):
                    other = int(torch.randint(len(self.rows), ()))
                items = self.read_row(other)
        if items is None:
            raise VideoReadError(
                f"Got {MOST_REPLACEMENTS + 1} unreadable videos in a row, expected most of {len(self.rows)} to play: repair or "
                "remove them (scripts/check_videos.py names all)."
            )
        return items

    def read_row(self, number: int) -> list[dict[str, Any]] | None:
        """Return all clips of a row's video, drawn from (seed, epoch, row). A video that cannot be read is treated as [`skip`] says."""
        with seeded(self.seed, self.epoch if self.training else 0, number):
            return self.try_row(self.rows[number])

    def try_row(self, row: dict[str, Any]) -> list[dict[str, Any]] | None:
        """Return all clips of a row's video. A video that cannot be read is treated as [`skip`] says."""
        self.broken.tried += 1
        try:
            items = [self.make_item(row, clip) for clip in self.read_clips(row)]
        except VideoReadError as error:
            return self.skip(row, error)
        flag = {} if self.training or self.on_error == "raise" else {"is_readable": True}
        return [{**item, **flag} for item in items]

    def skip(self, row: dict[str, Any], error: VideoReadError) -> list[dict[str, Any]] | None:
        """Count a video that cannot be read; in training, return None, and in evaluation [`unreadable_item`]. With `on_error="raise"`, raise."""
        if self.on_error == "raise":
            raise error
        self.broken.add(video_name(row[self.video_column]), error)
        return None if self.training else [self.unreadable_item(row)]

    def unreadable_item(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a black clip with `is_readable=False`, which keeps the place of a row whose video cannot be read in evaluation.

        So every process has as many clips as without broken videos. Whoever evaluates drops the clip's results
        ([`VideoTrainer.evaluation_loop`], [`encode_clips`]).
        """
        size = self.processor.crop_size["height"], self.processor.crop_size["width"]
        return {**self.make_item(row, torch.zeros(self.num_frames, 3, *size, dtype=torch.uint8)), "is_readable": False}

    def read_clips(self, row: dict[str, Any]) -> list[torch.Tensor]:
        """Decode `num_clips` clips (T, C, H, W) of a row's video, uint8, of the model's size; each draws its own frames and view."""

        def sample(metadata: VideoMetadata) -> np.ndarray:
            return self.sampling.sample(metadata.total_num_frames, self.num_frames, self.training)

        views = [self.draw_view() for _ in range(self.num_clips)]
        start, end = segment_of(row)
        video, samplers = row[self.video_column], [sample] * self.num_clips
        clips = decode_clips(video, samplers, views, start=start, end=end, access=self.access)
        self.broken.note(video_name(video), clips[0][1].fault)
        return [clip for clip, _ in clips]

    def draw_view(self) -> View:
        """Draw the crop and the mirroring of a clip."""
        return draw_view(self.processor.fit, self.crop, self.augmentation.horizontal_flip)

    def make_item(self, row: dict[str, Any], clip: torch.Tensor) -> dict[str, Any]:
        """Make an item from a row and one of its clips (T, C, H, W), uint8; draws RandAugment and random erasing."""
        if self.recolor is not None:
            clip = self.recolor(clip)
        item: dict[str, Any] = {"pixel_values_videos": clip if self.as_bytes else to_pixels(clip, self.processor)}
        if self.erase is not None and self.as_bytes:
            item["erasing_noise"] = self.erase(torch.full_like(clip[0], math.nan, dtype=torch.float32))
        elif self.erase is not None:
            item["pixel_values_videos"] = self.erase(item["pixel_values_videos"])
        if isinstance(self.label_column, str):
            item["labels"] = row[self.label_column]
        elif self.label_column is not None:
            item["labels"] = [row[column] for column in self.label_column]
        if self.noise_size:
            item["noise"] = torch.rand(self.noise_size)
        return item


class ByteVideoClips(VideoClips):
    """Clips for fine-tuning, whose items are a quarter as large: [`LVMAEClassificationTrainer`] normalizes their uint8 pixels.

    With random erasing, an item has `erasing_noise` (C, H, W), too: normalized pixels for all frames, NaN where the clip keeps its own.
    """

    as_bytes = True
    erases_later = True


class ImageClips(VideoClips):
    """A dataset of pictures as clips of one frame, for a tokenizer that starts on images.

    Args:
        rows: a split of [`load_image_dataset`].
        image_column: column of pictures.
        reading: as for [`VideoClips`], except for its `video_column`.
        kwargs: other arguments of [`VideoClips`].
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        processor: LVMAEVideoProcessor,
        image_column: str = "image",
        reading: VideoReading | None = None,
        **kwargs: Any,
    ):
        reading = replace(reading or VideoReading(), video_column=image_column)
        super().__init__(rows, processor, num_frames=1, reading=reading, **kwargs)

    def read_clips(self, row: dict[str, Any]) -> list[torch.Tensor]:
        picture = v2.functional.pil_to_tensor(row[self.video_column].convert("RGB"))
        return [self.draw_view()(picture).unsqueeze(0) for _ in range(self.num_clips)]


class MaskedVideoClips(VideoClips):
    """Clips for pre-training.

    An item has uint8 pixels, which [`LVMAEPreTrainer`] normalizes on the device; `bool_masked_pos` (N,), True = hidden from the
    encoder; and `noise` (N,), uniform random numbers that decide the decoder's random tokens.

    Args:
        grid_size: tokens (t, h, w) of a clip, `config.grid_size`.
        mask_ratio: share of the tokens hidden from the encoder.
        encoder_mask: kind of the encoder's mask, `config.encoder_mask`.
        kwargs: arguments of [`VideoClips`].
    """

    as_bytes = True

    def __init__(self, *args, grid_size: tuple[int, int, int], mask_ratio: float, encoder_mask: str = "tube", **kwargs):
        super().__init__(*args, **kwargs)
        self.grid_size = grid_size
        self.mask_ratio = mask_ratio
        self.draw_mask = ENCODER_MASKS[encoder_mask]

    def make_item(self, row: dict[str, Any], clip: torch.Tensor) -> dict[str, Any]:
        return {**super().make_item(row, clip), **self.draw_masks()}

    def draw_masks(self) -> dict[str, torch.Tensor]:
        """Draw `bool_masked_pos` and `noise` of a clip, with torch's current random numbers."""
        masked = self.draw_mask(1, self.grid_size, self.mask_ratio)[0]
        return {"bool_masked_pos": masked, "noise": torch.rand(masked.shape)}
