"""Pixels as the two models take them: normalized for the autoencoder, in [0, 1] and in its own size for the tokenizer.

Training on the fly and a target cache use the same functions, so both get the same bits.
"""

from typing import Any

import torch


class PixelScale:
    """Convert between bytes, normalized pixels and pixels in [0, 1]. Python numbers move to the device once, not in every step.

    Args:
        processor: the [`LVMAEVideoProcessor`] that made the clips, with mean and deviation. None raises ValueError.
        device: where the clips are.
    """

    def __init__(self, processor: Any, device: torch.device | str | None = None):
        if processor is None:
            raise ValueError(
                "Got no processing_class, expected the processor that made the clips (its mean and deviation normalize bytes and "
                "turn clips back into pixels): pass LVMAEVideoProcessor."
            )
        mean, deviation = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0], [1.0])
        self.mean, self.deviation = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, deviation))
        scale = 1 / processor.rescale_factor if processor.do_rescale else 1.0
        self.byte_mean, self.byte_deviation = self.mean * scale, self.deviation * scale
        channels = len(mean)
        every_byte = torch.arange(256, dtype=torch.uint8, device=device).expand(channels, 1, 256)
        self.unit_values = self.restore(self.normalize(every_byte)).flatten()  # (channels * 256,)
        self.unit_offsets = torch.arange(channels, dtype=torch.int32, device=device).view(-1, 1, 1) * 256

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return pixels (..., C, H, W) as the autoencoder takes them, bit for bit as the processor returns them.

        Floating point pixels are normalized already, and returned unchanged. With `do_normalize=False` the last bit may differ.
        """
        if pixels.is_floating_point():
            return pixels
        return pixels.float().sub_(self.byte_mean).div_(self.byte_deviation)

    def restore(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return uint8 or normalized pixels (..., C, H, W) in [0, 1].

        A byte has only 256 values in a channel, so bytes are looked up in a table. Bytes and their normalized pixels give the same
        bits, so a cache made from either holds the same targets.
        """
        if pixels.is_floating_point():
            return (pixels * self.deviation.to(pixels.dtype) + self.mean.to(pixels.dtype)).clamp(0, 1)
        values = self.unit_values.index_select(0, (pixels.int() + self.unit_offsets).flatten())
        return values.view(pixels.shape)
