"""LVMAE's image processor with torchvision."""

from transformers.image_processing_backends import TorchvisionBackend
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import requires_backends

from .image_processing_pil_lvmae import LVMAEImageProcessingMixin


class LVMAEImageProcessor(LVMAEImageProcessingMixin, TorchvisionBackend):
    """Frames to `pixel_values_videos` (B, T, C, H, W) with torchvision, on any device.

    Input, settings and errors are those of `LVMAEImageProcessorPil`; pixels of the two differ by at most 1/255. Without torchvision,
    it raises ImportError.
    """

    def __init__(self, **kwargs: Unpack[ImagesKwargs]) -> None:
        requires_backends(self, ["vision", "torchvision"])
        super().__init__(**kwargs)


__all__ = ["LVMAEImageProcessor"]
