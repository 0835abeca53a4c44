"""LVMAE's image processor with PIL, and the part that all three LVMAE processors share.

The shared part is here because this is the only one of the three files that works without torchvision.
"""

import os
from collections.abc import Sequence
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    is_pil_image,
)


def list_clips(videos: Any) -> list[Any]:
    """Split one video, or a batch nested to any depth, into a flat list of clips.

    Args:
        videos: a frame, a list of frames (PIL images, (H, W), (C, H, W) or (H, W, C)), an array (T, ...) or (B, T, ...), a
            path, URL, bytes or other source of a video file, or a list of any of these except single frames.

    Returns:
        For each clip an array of rank 4, a list of frames, or a source as it was given.

    Raises:
        ValueError: an array of another rank, an empty list or clip, or frames mixed with whole clips.
    """
    if is_pil_image(videos):
        return [[videos]]
    if isinstance(videos, (np.ndarray, torch.Tensor)):
        return _split_array(videos)
    if not isinstance(videos, (list, tuple)):
        return [videos]
    if not videos:
        raise ValueError("Got an empty list, expected at least one frame or one clip: leave empty videos out.")
    frames = sum(_is_frame(item) for item in videos)
    if frames == len(videos):
        return [list(videos)]
    if frames:
        raise ValueError(
            f"Got {frames} single frames among {len(videos)} items, expected one kind: put each clip's frames in a list."
        )
    return [clip for item in videos for clip in list_clips(item)]


def is_video_source(clip: Any) -> bool:
    """Return whether `clip` is a path, URL, bytes, open file, `datasets` row or torchcodec decoder, rather than frames."""
    if isinstance(clip, dict):
        return "path" in clip or "bytes" in clip
    return isinstance(clip, (str, os.PathLike, bytes)) or hasattr(clip, "read") or hasattr(clip, "get_frames_at")


def _is_frame(item: Any) -> bool:
    return is_pil_image(item) or (isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim in (2, 3))


def _split_array(videos: np.ndarray | torch.Tensor) -> list[Any]:
    shape = tuple(videos.shape)
    if len(shape) not in (3, 4, 5) or 0 in shape:
        raise ValueError(
            f"Got an array of shape {shape}, expected a frame (C, H, W), a clip (T, C, H, W) or a batch (B, T, C, H, W), or "
            "one of these with channels last, and no axis of length 0: reshape it."
        )
    if len(shape) == 3:
        return [[videos]]
    return [videos] if len(shape) == 4 else list(videos)


class LVMAEProcessingMixin:
    """Defaults and checks of the LVMAE processors; size, mean and standard deviation are defined only here."""

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size: ClassVar[dict[str, int]] = {"shortest_edge": 224}
    default_to_square = False
    crop_size: ClassVar[dict[str, int]] = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True
    model_input_names: ClassVar[list[str]] = ["pixel_values_videos"]

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ) -> np.ndarray | torch.Tensor:
        """Turn one frame, a PIL image or an array (H, W), (C, H, W) or (H, W, C), into the back end's (C, H, W)."""
        if not is_pil_image(image):
            if isinstance(image, np.ndarray):
                image = np.ascontiguousarray(image)  # torch cannot use a flipped array's negative strides
            if image.ndim == 2:
                image, input_data_format = image[None], ChannelDimension.FIRST
            input_data_format = input_data_format or self._channel_format(image.shape)
        kwargs |= {"do_convert_rgb": do_convert_rgb, "input_data_format": input_data_format}
        return super().process_image(image, **kwargs)

    def resize(self, image: Any, size: SizeDict, *args: Any, **kwargs: Any) -> Any:
        """Resize frames (..., C, H, W). If `size` is one of [`size_to_crop`], keep their shape and cover the crop."""
        if size.shortest_edge and size.height and size.width:
            sides, crop = image.shape[-2:], (size.height, size.width)
            size = SizeDict(shortest_edge=size.shortest_edge)
            if any(side * size.shortest_edge // min(sides) < part for side, part in zip(sides, crop)):
                scale = max(part / side for side, part in zip(sides, crop))
                height, width = (max(round(side * scale), part) for side, part in zip(sides, crop))
                size = SizeDict(height=height, width=width)
        return super().resize(image, size, *args, **kwargs)

    @staticmethod
    def size_to_crop(size: SizeDict, crop_size: SizeDict) -> SizeDict:
        """Return the size for [`resize`] before a center crop: the shortest edge of `size`, or as much more as the crop needs.

        So a crop that is not square is covered, and no more: a frame of 640 x 360 pixels becomes 208 x 117 for a crop of 208 x 112.
        """
        if not (size and size.shortest_edge) or size.longest_edge:
            return size
        return SizeDict(shortest_edge=size.shortest_edge, height=crop_size.height, width=crop_size.width)

    def _channel_format(self, shape: Sequence[int]) -> ChannelDimension:
        """Distinguish (..., C, H, W) from (..., H, W, C): C is 1, 3, 4 or the length of `image_mean`."""
        known = {1, 3, 4} | ({len(self.image_mean)} if isinstance(self.image_mean, (list, tuple)) else set())
        if shape[-3] in known:
            return ChannelDimension.FIRST
        if shape[-1] in known:
            return ChannelDimension.LAST
        raise ValueError(
            f"Got frames of shape {tuple(shape)}, expected {sorted(known)} channels in the first or last place of a frame: "
            "pass input_data_format='channels_first' or 'channels_last'."
        )

    @staticmethod
    def _check_channels(num_channels: int, settings: dict[str, Any]) -> None:
        for name in ("image_mean", "image_std"):
            values = settings[name]
            if settings["do_normalize"] and isinstance(values, (list, tuple)) and len(values) != num_channels:
                raise ValueError(
                    f"Got frames of {num_channels} channels and {name} of length {len(values)}, expected one value for each "
                    "channel: set image_mean and image_std to that length, and do_convert_rgb=False unless it is three."
                )

    @staticmethod
    def _to_batch(clips: list[Any], return_tensors: str | None) -> BatchFeature:
        shapes = sorted({tuple(clip.shape) for clip in clips})
        if return_tensors is not None and len(shapes) > 1:
            raise ValueError(
                f"Got clips of shapes {shapes}, expected one shape (T, C, H, W) to stack: sample the same number of frames, "
                "crop to one size, or pass return_tensors=None."
            )
        return BatchFeature({"pixel_values_videos": clips}, tensor_type=return_tensors)


class LVMAEImageProcessingMixin(LVMAEProcessingMixin):
    """Turns transformers' image processors into processors of clips that are given as frames."""

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[list[Any]]:
        clips = list_clips(images)
        for clip in clips:
            if not isinstance(clip, (list, np.ndarray, torch.Tensor)):
                raise TypeError(
                    f"Got a {type(clip).__name__}, expected frames as PIL images or arrays: LVMAEVideoProcessor reads files."
                )
        return [list(clip) for clip in clips]

    def _preprocess(self, images: list[list[Any]], return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        frames = [frame for clip in images for frame in clip]
        for frame in frames:
            self._check_channels(frame.shape[0], kwargs)
        if kwargs["do_center_crop"]:
            kwargs["size"] = self.size_to_crop(kwargs["size"], kwargs["crop_size"])
        done = iter(super()._preprocess(frames, return_tensors=None, **kwargs)["pixel_values"])
        stack = torch.stack if isinstance(frames[0], torch.Tensor) else np.stack
        clips = [stack(list(islice(done, len(clip)))) for clip in images]
        return self._to_batch(clips, return_tensors)


class LVMAEImageProcessorPil(LVMAEImageProcessingMixin, PilBackend):
    """Frames to `pixel_values_videos` (B, T, C, H, W) with PIL and NumPy, without torchvision.

    A clip is a list of frames (PIL images, or arrays with values in [0, 255], or in [0, 1] with `do_rescale=False`) or an
    array (T, C, H, W) or (T, H, W, C); batches of these work too. Every frame is kept. `LVMAEVideoProcessor` reads files and
    samples frames.

    Raises:
        ValueError: wrong rank, unknown channel axis, or `image_mean` of another length than the channels.
        TypeError: the input has no frames; it is a path, for example.
    """

    def resize(self, image: np.ndarray, size: SizeDict, *args: Any, **kwargs: Any) -> np.ndarray:
        """Resize a frame (C, H, W), channel by channel unless it is gray or RGB."""
        # PIL treats four channels as RGBA, and weights the first three by the fourth when it resizes.
        resize = super().resize
        if image.shape[0] in (1, 3):
            return resize(image, size, *args, **kwargs)
        return np.concatenate([resize(channel[None], size, *args, **kwargs) for channel in image])


__all__ = ["LVMAEImageProcessorPil"]
