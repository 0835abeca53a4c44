"""Command-line arguments of the data."""

import os
from dataclasses import dataclass, field

from ..command_line import check_ranges
from ..models.video_sources import VideoAccess
from .clips import VideoReading
from .datasets import data_folders
from .frame_sampling import FrameSampling
from .transforms import ClipAugmentation


@dataclass(kw_only=True)
class VideoAccessArguments:
    """What the rows of a dataset may open."""

    confine: bool = field(
        default=False,
        metadata={
            "help": "Open only files in the dataset's own folders, also after links are followed, and no addresses."
        },
    )
    more_protocols: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Protocols that addresses of videos may have besides http(s), hf, s3, gs, zip, tar: ftp, sftp, file, ..."
        },
    )
    max_video_bytes: int = field(
        default=VideoAccess.max_bytes,
        metadata={"help": "Size of the largest download of a video.", "within": "[1, inf)"},
    )
    max_video_seconds: float = field(
        default=VideoAccess.max_seconds,
        metadata={
            "help": "Longest time to download, and to decode, one video. Then it cannot be read.",
            "within": "(0, 1e9)",
        },
    )

    def access_to(self, dataset_name: str) -> VideoAccess:
        """Return what the rows of a dataset may open."""
        return VideoAccess(
            folders=data_folders(dataset_name) if self.confine else None,
            protocols=(*VideoAccess.protocols, *self.more_protocols),
            max_bytes=self.max_video_bytes,
            max_seconds=self.max_video_seconds,
        )


@dataclass
class VideoDataArguments(VideoAccessArguments):
    """Which videos to read, and how to take clips from them."""

    dataset_name: str = field(
        metadata={
            "help": "A folder of videos or of shards (.tar, .parquet, ...), a pattern such as 'data/*.mp4', a list (.txt) or table "
            "(.csv, .tsv, .parquet, .jsonl, ...) of videos, several of these as train=A,validation=B, a folder that save_to_disk wrote, "
            "or a dataset id on the Hub."
        }
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    streaming: bool = field(
        default=False, metadata={"help": "Train on a stream of the dataset, shuffled in a buffer; needs --max_steps."}
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Number of rows in a stream's shuffle buffer.", "within": "[1, inf)"}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(default="validation", metadata={"help": "Split to evaluate on while training."})
    video_column: str = field(default="video", metadata={"help": "Column of videos."})
    label_column: str = field(
        default="label", metadata={"help": "Column of classes (names or ids); 'verb,noun' for two labels at once."}
    )
    frame_stride: int | None = field(
        default=None,
        metadata={"help": "Take frames this far apart; by default, evenly over the whole video.", "within": "[1, inf)"},
    )
    frame_jitter: bool = field(
        default=False, metadata={"help": "One frame of each equal part: at random in training, else the middle one."}
    )
    short_videos: str = field(
        default="stretch", metadata={"help": "Too few frames: stretch (repeat evenly), loop, or pad (repeat the last)."}
    )
    min_crop_scale: float = field(
        default=1.0,
        metadata={
            "help": "In training, crop at random down to this share of the area; 1 = center crop.",
            "within": "(0, 1]",
        },
    )
    crop_scales: list[float] = field(
        default_factory=list,
        metadata={
            "help": "In training, VideoMAE's crop with these shares of the shorter side: 1 0.875 0.75 0.66.",
            "within": "(0, 1]",
        },
    )
    horizontal_flip: bool = field(default=False, metadata={"help": "In training, mirror half of the clips."})
    num_clips: int = field(
        default=1,
        metadata={
            "help": "In training, clips of each video; a batch has this many times more clips.",
            "within": "[1, inf)",
        },
    )
    on_error: str = field(
        default="skip",
        metadata={"help": "If a video cannot be read: skip (report it; training takes another instead) or raise."},
    )
    max_broken_share: float = field(
        default=0.1, metadata={"help": "Largest share of videos that may be broken.", "within": "[0, 1]"}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on the first N videos.", "within": "[1, inf)"}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on the first N videos.", "within": "[1, inf)"}
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        self.sampling(), self.augmentation(), self.reading(None)  # they refuse what cannot be

    @property
    def label_columns(self) -> str | list[str]:
        """`label_column`, or a list if it names several columns."""
        return self.label_column.split(",") if "," in self.label_column else self.label_column

    def sampling(self) -> FrameSampling:
        """Return the rule for the frames of a clip, in every split."""
        return FrameSampling(self.frame_stride, self.frame_jitter, self.short_videos)

    def augmentation(self) -> ClipAugmentation:
        """Return the random changes of training clips."""
        return ClipAugmentation(self.min_crop_scale, self.crop_scales, self.horizontal_flip)

    def reading(self, output_dir: str | None) -> VideoReading:
        """Return how training videos are read. Processes record broken videos in the folder `broken_videos` of `output_dir`."""
        folder = os.path.join(output_dir or ".", "broken_videos")
        access = self.access_to(self.dataset_name)
        return VideoReading(self.num_clips, self.on_error, self.max_broken_share, folder, self.video_column, access)
