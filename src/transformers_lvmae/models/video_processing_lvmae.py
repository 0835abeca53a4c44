"""LVMAE's video processor: files, arrays or frames to `pixel_values_videos`.

It differs from transformers' own video processors in two ways:
- a clip with fewer frames than asked for is stretched, so that its frames repeat evenly; transformers raises an error;
- `video_io.decode_video` decodes files, with PyAV, and resizes them while it does; transformers decodes with torchcodec alone.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension
from transformers.processing_utils import ImagesKwargs, Unpack, VideosKwargs
from transformers.utils import requires_backends
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata, make_batched_metadata

from .image_processing_lvmae import LVMAEImageProcessor
from .image_processing_pil_lvmae import LVMAEProcessingMixin, is_video_source, list_clips
from .video_io import decode_video


SampleIndices = Callable[[VideoMetadata], Any]
MOST_FRAMES = 1024  # that are read of a file if nobody says which


def _every_frame(metadata: VideoMetadata) -> range:
    total = metadata.total_num_frames
    if total > MOST_FRAMES:
        raise ValueError(
            f"Got a video of {total} frames, expected num_frames or fps, or at most {MOST_FRAMES} frames: pass num_frames."
        )
    return range(total)


def _metadata_of_each(clips: list[Any], given: Any) -> list[VideoMetadata | None]:
    return [None] * len(clips) if given is None else make_batched_metadata(clips, given)


class LVMAEVideoProcessor(LVMAEProcessingMixin, BaseVideoProcessor):
    """Videos to `pixel_values_videos` (B, T, C, H, W), floating point.

    A video is a path, a URL, the bytes of a file, an open file, a `datasets` row (of `Video(decode=False)`, or the decoder
    of `Video()`), an array (T, C, H, W) or (T, H, W, C), or a list of frames. A batch is a list of videos or an array of
    rank 5. Pixels are in [0, 255], or in [0, 1] with `do_rescale=False`.

    Of a file, only the frames that are used are read: `num_frames` or `fps`, of the call or of the settings, sample them evenly. Each
    is resized and cropped as soon as it is decoded, so that full-size frames are never all in memory. Without both, or with
    `do_sample_frames=False`, every frame is kept, if there are at most 1,024. Frames that are given as such are sampled only with
    `do_sample_frames=True`.

    Raises:
        ValueError: wrong rank, unknown channel axis, `image_mean` of another length than the channels, or both
            `num_frames` and `fps`. A `VideoReadError`, also a ValueError, names the file that cannot be read.
        TypeError: the input is no video.
        ImportError: torchvision is not installed.
    """

    do_sample_frames = False

    def __init__(self, **kwargs: Unpack[VideosKwargs]) -> None:
        requires_backends(self, ["vision", "torchvision"])
        super().__init__(**kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Save as transformers does, and with it the image processor of the same settings, without which a pipeline cannot batch."""
        settings = self.to_dict()
        LVMAEImageProcessor(
            **{name: settings[name] for name in ImagesKwargs.__annotations__ if name in settings}
        ).save_pretrained(save_directory)
        return super().save_pretrained(save_directory, *args, **kwargs)

    def preprocess(self, videos: Any, **kwargs: Unpack[VideosKwargs]) -> BatchFeature:
        """Preprocess a video or a batch of videos; the keywords override the processor's settings for this call."""
        # The base class fills both from the settings, so a saved fps would collide with the pipeline's num_frames.
        if kwargs.get("num_frames") is not None:
            kwargs.setdefault("fps", None)
        elif kwargs.get("fps") is not None:
            kwargs.setdefault("num_frames", None)
        if not any(map(is_video_source, list_clips(videos))):
            return super().preprocess(videos, **kwargs)
        return self._preprocess_files(list_clips(videos), kwargs)

    def _preprocess_files(self, clips: list[Any], kwargs: dict[str, Any]) -> BatchFeature:
        """Preprocess clips of which some are files, one after the other: a file's frames get their size while they are decoded."""
        return_tensors = kwargs.pop("return_tensors", None)
        given = _metadata_of_each(clips, kwargs.pop("video_metadata", None))
        done = []
        for clip, metadata in zip(clips, given):
            settings = {**kwargs, "video_metadata": metadata and [metadata]}
            if is_video_source(clip):
                clip, metadata = decode_video(clip, self._file_sampler(kwargs), view=self._file_view(kwargs))
                settings |= {"video_metadata": [metadata], "do_sample_frames": False, "input_data_format": None}
                settings |= {"do_resize": False, "do_center_crop": False}
            done.append(super().preprocess(clip, **settings))
        batch = self._to_batch([clip for one in done for clip in one["pixel_values_videos"]], return_tensors)
        if "video_metadata" in done[0]:
            batch["video_metadata"] = [metadata for one in done for metadata in one["video_metadata"]]
        return batch

    def _file_sampler(self, kwargs: dict[str, Any]) -> SampleIndices:
        """Return the choice of a file's frames under the keywords of a call."""
        asked = {"num_frames": kwargs.get("num_frames"), "fps": kwargs.get("fps")}
        if not any(asked.values()):
            asked = {"num_frames": self.num_frames, "fps": self.fps}
        if any(asked.values()) and kwargs.get("do_sample_frames") is not False:
            return partial(self.sample_frames, **asked)
        return _every_frame

    def _file_view(self, kwargs: dict[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the resize and crop of a file's frames under the keywords of a call."""
        names = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "default_to_square")
        settings = self._standardize_kwargs(**{name: kwargs.get(name, getattr(self, name)) for name in names})
        device = kwargs.get("device")
        return lambda frames: self.fit(frames if device is None else frames.to(device), **settings)

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: float | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Choose frames evenly over the whole video: frame `i * total // num_frames` for each i in [0, num_frames).

        This is transformers' own rule. Here it also holds for clips shorter than `num_frames`, whose frames repeat evenly
        (16 of 10 frames are 0 0 1 1 2 3 3 4 5 5 6 6 7 8 8 9). With `fps`, `num_frames` is the video's duration times `fps`,
        at least 1. Without both, here and in the settings, every frame is taken.

        Returns:
            Ascending frame numbers (num_frames,) in [0, metadata.total_num_frames).

        Raises:
            ValueError: both `num_frames` and `fps`, or `fps` for a video of unknown frame rate.
        """
        if num_frames is None and fps is None:
            num_frames, fps = self.num_frames, self.fps
        if num_frames is not None and fps is not None:
            raise ValueError(f"Got num_frames={num_frames} and fps={fps}, expected one of them: leave the other out.")
        total = metadata.total_num_frames
        if fps is not None:
            if not metadata.fps:
                raise ValueError(
                    f"Got fps={fps} for a video of unknown frame rate, expected it in video_metadata: pass it, or num_frames."
                )
            num_frames = max(1, int(total / metadata.fps * fps))
        if num_frames is None:
            num_frames = total
        return np.arange(num_frames) * total // num_frames

    def fetch_videos(
        self, video_url_or_urls: Any, sample_indices_fn: SampleIndices | None = None
    ) -> tuple[torch.Tensor, VideoMetadata] | list[tuple[Any, ...]]:
        """Decode a video file, or a list of them, and keep the frames, of full size, that `sample_indices_fn` chooses; all by default.

        Returns:
            uint8 frames (T, 3, H, W) and their metadata; for a list, a tuple of each.
        """
        if isinstance(video_url_or_urls, (list, tuple)):
            return list(zip(*[self.fetch_videos(source, sample_indices_fn) for source in video_url_or_urls]))
        return decode_video(video_url_or_urls, sample_indices_fn or _every_frame)

    def _decode_and_sample_videos(
        self,
        videos: Any,
        video_metadata: Any = None,
        do_sample_frames: bool | None = None,
        sample_indices_fn: SampleIndices | None = None,
    ) -> tuple[list[Any], list[VideoMetadata]]:
        clips = list_clips(videos)
        given = _metadata_of_each(clips, video_metadata)
        sample = sample_indices_fn if do_sample_frames else None
        read = [self._sample_clip(clip, metadata, sample) for clip, metadata in zip(clips, given)]
        return [clip for clip, _ in read], [metadata for _, metadata in read]

    def _sample_clip(
        self, clip: Any, metadata: VideoMetadata | None, sample: SampleIndices | None
    ) -> tuple[Any, VideoMetadata]:
        """Return the sampled frames of a clip that is given as frames, and its metadata."""
        if not isinstance(clip, (list, np.ndarray, torch.Tensor)):
            raise TypeError(
                f"Got a {type(clip).__name__}, expected a path, URL, bytes, a row with 'path' or 'bytes', a video decoder, an "
                "array or a list of frames: convert it to one of these."
            )
        metadata = VideoMetadata(total_num_frames=len(clip)) if metadata is None else replace(metadata)
        if sample is None:
            metadata.frames_indices = metadata.frames_indices or list(range(len(clip)))
            return clip, metadata
        if metadata.total_num_frames != len(clip):
            raise ValueError(
                f"Got a clip of {len(clip)} frames with total_num_frames={metadata.total_num_frames} in its video_metadata, "
                "expected the same number: correct it, or set do_sample_frames=False if the clip was already sampled."
            )
        indices = sample(metadata)
        metadata.frames_indices = indices.tolist()
        return [clip[i] for i in indices] if isinstance(clip, list) else clip[indices], metadata

    def _prepare_input_videos(
        self,
        videos: list[Any],
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: Any = None,
    ) -> list[torch.Tensor]:
        clips = [self._channels_first(video, do_convert_rgb, input_data_format) for video in videos]
        clips = [self.convert_to_rgb(clip) for clip in clips] if do_convert_rgb else clips
        return clips if device is None else [clip.to(device) for clip in clips]

    def _channels_first(
        self, video: Any, do_convert_rgb: bool | None, input_data_format: str | ChannelDimension | None
    ) -> torch.Tensor:
        if isinstance(video, list):
            # PIL images are converted by PIL, because only PIL knows their palette.
            frames = [
                self.process_image(
                    frame,
                    do_convert_rgb=do_convert_rgb and not isinstance(frame, (np.ndarray, torch.Tensor)),
                    input_data_format=input_data_format,
                )
                for frame in video
            ]
            shapes = {tuple(frame.shape) for frame in frames}
            if len(shapes) > 1:
                raise ValueError(f"Got frames of shapes {sorted(shapes)} in a clip, expected one: resize them first.")
            return torch.stack(frames)
        if isinstance(video, np.ndarray):
            video = torch.from_numpy(np.ascontiguousarray(video))
        if (input_data_format or self._channel_format(video.shape)) == ChannelDimension.LAST:
            video = video.permute(0, 3, 1, 2)
        return video.contiguous()

    def convert_to_rgb(self, video: torch.Tensor) -> torch.Tensor:
        """Convert gray (T, 1, H, W) or RGBA (T, 4, H, W), blended onto white, to RGB (T, 3, H, W); others stay as they are."""
        if video.shape[1] not in (1, 4):
            return video
        # The base class's method for videos takes 255 as opaque, even for floats in [0, 1].
        return torch.stack([TorchvisionBackend.convert_to_rgb(self, frame, ChannelDimension.FIRST) for frame in video])

    def fit(self, frames: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Resize and center-crop frames (..., C, H, W) to the model's size; dtype and range of values stay.

        Args:
            kwargs: settings that override the processor's: `do_resize`, `size`, `resample`, `do_center_crop`, `crop_size`.
        """
        crops, crop_size = kwargs.get("do_center_crop", self.do_center_crop), kwargs.get("crop_size", self.crop_size)
        if kwargs.get("do_resize", self.do_resize):
            size, resample = kwargs.get("size", self.size), kwargs.get("resample", self.resample)
            frames = self.resize(frames, self.size_to_crop(size, crop_size) if crops else size, resample=resample)
        return self.center_crop(frames, crop_size) if crops else frames

    def _preprocess(self, videos: list[torch.Tensor], return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        for video in videos:
            self._check_channels(video.shape[1], kwargs)
        if kwargs["do_center_crop"]:
            kwargs["size"] = self.size_to_crop(kwargs["size"], kwargs["crop_size"])
        return self._to_batch(super()._preprocess(videos, **kwargs)["pixel_values_videos"], return_tensors)


__all__ = ["LVMAEVideoProcessor"]
