"""Videos of a `datasets` dataset to the models' inputs.

Every draw (where a clip starts, its crop, its masks) comes from a seed of its own made of (seed, epoch, row). A row's clip is the
same whatever the number of workers and processes, and a resumed run sees what the interrupted one would have seen.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2
from transformers.video_utils import VideoMetadata

from ..models.masking import ENCODER_MASKS
from ..models.video_io import decode_clips, video_name
from ..models.video_processing_lvmae import LVMAEVideoProcessor
from ..models.video_seeking import VideoReadError
from .broken_videos import BrokenVideos
from .frames import check_sampling, sample_frames
from .transforms import draw_view, rand_augment, random_crop, random_erasing


MOST_REPLACEMENTS = 10
DECODED = "decoded clip"  # a row's column of frames that were read already


def processor_for(config: Any, **kwargs: Any) -> LVMAEVideoProcessor:
    """The processor whose clips fit a model: resize until `config.frame_size` is covered, then crop the centre.

    Args:
        config: `LVMAEConfig` or `FSQMagViTConfig`.
        kwargs: other settings of the processor; the tokenizer wants `do_normalize=False`, pixels in [0, 1].
    """
    height, width = config.frame_size
    crop_size = {"height": height, "width": width}
    return LVMAEVideoProcessor(size={"shortest_edge": max(height, width)}, crop_size=crop_size, **kwargs)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """torch's CPU random numbers start from `numbers` inside, and go on outside as if nothing had been drawn."""
    state = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(state % 2**63)
        yield


def _seconds(value: float | None) -> float | None:
    """A cell of a table: an empty one is None or NaN."""
    return None if value is None or math.isnan(value) else float(value)


class VideoClips(Dataset):
    """A map-style dataset of clips: decode, sample, crop, normalise.

    An item is a dict with `pixel_values_videos` (T, C, H, W) and, with `label_column`, `labels` (a class id, or with several
    columns a list of them). Where the rows have
    `start` or `end`, in seconds (None = the video's own), a clip is taken from that segment.

    Frames are brought to the model's size right after they are decoded, by the processor's resize and centre crop or by a random
    crop out of the frames as they are stored, the same for the whole clip: no more than 4 MiB of full size, or one frame, is ever in
    memory.

    Args:
        rows: a split of [`load_video_dataset`].
        processor: [`LVMAEVideoProcessor`]; resizes, rescales and normalises.
        num_frames: frames of a clip.
        training: draw frames and crops at random, anew every epoch; otherwise the middle.
        frame_stride, frame_jitter, short_videos: which frames, as in [`sample_frames`]: consecutive ones so far apart, evenly over
            the whole video (default), or one of each of `num_frames` equal parts; and what becomes of short videos.
        min_crop_scale: in training, crop down to this share of the area at random; 1 = no random crop.
        crop_scales: in training, VideoMAE's [`MultiScaleCrop`] with these shares of the shorter side, instead.
        horizontal_flip: in training, mirror half of the clips.
        rand_augment_num_ops: in training, operations of [`rand_augment`] on the cropped frames (VideoMAE: 4); 0 = none.
        rand_augment_magnitude: their strength in [0, 10] (VideoMAE: 7).
        random_erasing_prob: in training, share of the clips with a box of noise (VideoMAE: 0.25).
        num_clips: in training, clips of each video from one decoding (repeated augmentation), each with its own frames, crop and
            masks. A data loader's batch of B videos then holds B x num_clips clips, those of a video side by side; the
            length stays the number of videos, and indexing returns a video's first clip.
        on_error: "raise" names a video that cannot be read; "skip" takes another row's in its place, drawn from (seed, epoch,
            row), and counts it. A video of one frame can be read: it is that frame, repeated.
        max_broken_share: with "skip", of the videos that a process tried, the share that may be broken.
        broken_folder: with "skip", where every process names the videos that it could not read ([`report_broken_videos`]).
        seed: of all random draws.

    Raises:
        VideoReadError: (on access) the video cannot be read; the message names it.
        TooManyBrokenVideos: (on access) more than `max_broken_share` cannot be read.
        ValueError: settings that exclude each other.
    """

    processing: ClassVar[dict[str, Any]] = {}  # of the processor's settings, those that differ here

    def __init__(
        self,
        rows: datasets.Dataset,
        processor: LVMAEVideoProcessor,
        num_frames: int,
        training: bool = False,
        frame_stride: int | None = None,
        frame_jitter: bool = False,
        short_videos: str = "stretch",
        min_crop_scale: float = 1.0,
        crop_scales: Sequence[float] | None = None,
        horizontal_flip: bool = False,
        rand_augment_num_ops: int = 0,
        rand_augment_magnitude: int = 7,
        random_erasing_prob: float = 0.0,
        num_clips: int = 1,
        on_error: str = "raise",
        max_broken_share: float = 0.1,
        broken_folder: str | os.PathLike | None = None,
        video_column: str = "video",
        label_column: str | Sequence[str] | None = None,
        seed: int = 0,
    ):
        check_sampling(frame_stride, frame_jitter, short_videos)
        if on_error not in ("raise", "skip"):
            raise ValueError(f"Got on_error={on_error!r}, expected 'raise' or 'skip': choose one of them.")
        if num_clips < 1:
            raise ValueError(
                f"Got num_clips={num_clips}, expected at least 1: leave it out for one clip of each video."
            )
        self.rows = rows
        self.processor = processor
        self.num_frames = num_frames
        self.training = training
        self.frame_stride = frame_stride
        self.frame_jitter = frame_jitter
        self.short_videos = short_videos
        self.horizontal_flip = horizontal_flip and training
        self.num_clips = num_clips if training else 1
        self.on_error = on_error
        self.broken = BrokenVideos(broken_folder, max_broken_share)
        self.video_column = video_column
        self.label_column = label_column
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change
        size = (processor.crop_size["height"], processor.crop_size["width"])
        crop = random_crop(size, min_crop_scale, crop_scales)
        self.crop = crop if training else None
        self.recolor = self.erase = None
        if training and rand_augment_num_ops > 0:
            fill = [255 * mean for mean in processor.image_mean]
            self.recolor = rand_augment(rand_augment_num_ops, rand_augment_magnitude, fill)
        if training and random_erasing_prob > 0:
            if not self.processing.get("do_normalize", True):
                raise ValueError(
                    f"Got random_erasing_prob={random_erasing_prob} for uint8 clips, expected 0: the boxes are noise in normalised pixels."
                )
            self.erase = random_erasing(random_erasing_prob)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    @property
    def draws_clips(self) -> bool:
        """Whether a row's clip differs from epoch to epoch."""
        frames = self.frame_stride is not None or self.frame_jitter
        drawn = (self.crop, self.recolor, self.erase)
        return self.training and (frames or self.horizontal_flip or any(draw is not None for draw in drawn))

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls this at the start of every epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items(index)[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """The items of a batch; a data loader asks for them here."""
        if self.num_clips == 1:
            return [self[index] for index in indices]
        return [item for index in indices for item in self.items(index)]

    def items(self, index: int) -> list[dict[str, Any]]:
        """All clips of a row's video, or of the one that takes its place."""
        numbers = (self.seed, self.epoch if self.training else 0, index)
        with seeded(*numbers):
            items = self.try_row(self.rows[index])
        for attempt in range(1, MOST_REPLACEMENTS + 1):
            if items is not None:
                return items
            with seeded(*numbers, attempt):
                items = self.try_row(self.rows[int(torch.randint(len(self.rows), ()))])
        raise VideoReadError(
            f"Got {MOST_REPLACEMENTS + 1} unreadable videos in a row, expected most of {len(self.rows)} to play: repair or "
            "remove them (scripts/check_videos.py names all)."
        )

    def try_row(self, row: dict[str, Any]) -> list[dict[str, Any]] | None:
        """All clips of a row's video; with `on_error="skip"`, None where it cannot be read, which is counted."""
        self.broken.tried += 1
        try:
            return self.make_items(row)
        except VideoReadError as error:
            if self.on_error == "raise":
                raise
            self.broken.add(video_name(row[self.video_column]), error)
            return None

    def make_items(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """All clips of a row's video to the model's inputs, with torch's current random numbers."""
        return [self.make_item({**row, DECODED: clip}) for clip in self.read_clips(row, self.num_clips)]

    def make_item(self, row: dict[str, Any]) -> dict[str, Any]:
        """One clip to the model's inputs; a row may bring the clip's frames, out of [`read_clips`], under `DECODED`."""
        item: dict[str, Any] = {"pixel_values_videos": self.make_pixels(self.read_clip(row))}
        if isinstance(self.label_column, str):
            item["labels"] = row[self.label_column]
        elif self.label_column is not None:
            item["labels"] = [row[column] for column in self.label_column]
        return item

    def make_pixels(self, clip: torch.Tensor) -> torch.Tensor:
        """Frames (T, C, H, W), uint8, of the model's size to its pixels; in training, RandAugment before and random erasing after."""
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        settings = {name: getattr(self.processor, name) for name in names}
        if self.recolor is not None:
            clip = self.recolor(clip)
        pixels = self.processor.rescale_and_normalize(clip, **{**settings, **self.processing})
        return pixels if self.erase is None else self.erase(pixels)

    def read_clip(self, row: dict[str, Any]) -> torch.Tensor:
        """Frames (T, C, H, W) of a row's video, uint8, of the model's size."""
        return row[DECODED] if DECODED in row else self.read_clips(row, 1)[0]

    def read_clips(self, row: dict[str, Any], count: int) -> list[torch.Tensor]:
        """Several clips (T, C, H, W) from one decoding, uint8, of the model's size; each draws its own frames and view."""
        views = [draw_view(self.processor.fit, self.crop, self.horizontal_flip) for _ in range(count)]
        start, end = _seconds(row.get("start")), _seconds(row.get("end"))
        clips = decode_clips(row[self.video_column], [self.sample_frames] * count, views, start=start, end=end)
        return [clip for clip, _ in clips]

    def sample_frames(self, metadata: VideoMetadata) -> np.ndarray:
        """Frame numbers of a clip."""
        return sample_frames(
            metadata.total_num_frames,
            self.num_frames,
            self.training,
            self.frame_stride,
            self.frame_jitter,
            self.short_videos,
        )


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

    def read_clips(self, row: dict[str, Any], count: int) -> list[torch.Tensor]:
        picture = v2.functional.pil_to_tensor(row[self.video_column].convert("RGB"))
        return [
            draw_view(self.processor.fit, self.crop, self.horizontal_flip)(picture).unsqueeze(0) for _ in range(count)
        ]


class MaskedVideoClips(VideoClips):
    """Clips for pre-training: uint8 pixels, which [`LVMAEPreTrainer`] normalises on the device; `bool_masked_pos` (N,), the
    encoder's mask; and `noise` (N,), which settles the decoder's random tokens.

    Args:
        grid_size: tokens (t, h, w) of a clip, `config.grid_size`.
        mask_ratio: share of the tokens hidden from the encoder.
        encoder_mask: what hides them, `config.encoder_mask`.
        kwargs: as [`VideoClips`].
    """

    processing = {"do_rescale": False, "do_normalize": False}

    def __init__(self, *args, grid_size: tuple[int, int, int], mask_ratio: float, encoder_mask: str = "tube", **kwargs):
        super().__init__(*args, **kwargs)
        self.grid_size = grid_size
        self.mask_ratio = mask_ratio
        self.draw_mask = ENCODER_MASKS[encoder_mask]

    def make_item(self, row: dict[str, Any]) -> dict[str, Any]:
        return {**super().make_item(row), **self.draw_masks()}

    def draw_masks(self) -> dict[str, torch.Tensor]:
        """What an epoch draws anew for a clip, with torch's current random numbers."""
        masked = self.draw_mask(1, self.grid_size, self.mask_ratio)[0]
        return {"bool_masked_pos": masked, "noise": torch.rand(masked.shape)}


__all__ = ["ImageClips", "MaskedVideoClips", "VideoClips", "processor_for", "seeded"]
