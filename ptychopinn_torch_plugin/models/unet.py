"""The U-Net of the networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with GELU; without normalisation, because statistics depend on the array size."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
            nn.GELU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels_in, h, w)`` to ``(B, channels_out, h, w)``."""
        y: Tensor = self.body(x)
        return y


class UNet(nn.Module):
    """A small U-Net on a coarser grid (pixel unshuffle) whose last layer starts at zero.

    An untrained network therefore returns zero, and what uses it as a correction works before any training.
    Architecture after O. Ronneberger et al., MICCAI 2015
    (doi:10.1007/978-3-319-24574-4_28).
    """

    def __init__(self, channels_in: int, channels_out: int, *, width: int, levels: int, unshuffle: int = 2) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        self.autocast_dtype: torch.dtype | None = None
        """Dtype of the convolutions (torch.autocast); None for that of the input. The output is float32 with it."""
        self.multiple = unshuffle * 2 ** (levels - 1)
        pixels = unshuffle**2
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(
            ConvBlock(pixels * channels_in if level == 0 else widths[level - 1], widths[level])
            for level in range(levels)
        )
        self.up = nn.ModuleList(
            ConvBlock(widths[level] + widths[level + 1], widths[level]) for level in reversed(range(levels - 1))
        )
        self.head = nn.Conv2d(width, pixels * channels_out, 1)
        nn.init.zeros_(self.head.weight)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels_in, h, w)`` to ``(B, channels_out, h, w)``; any h and w (padded inside)."""
        height, width = x.shape[-2:]
        x = functional.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        answer = self.on_blocks(functional.pixel_unshuffle(x, self.unshuffle))
        answer = functional.pixel_shuffle(answer, self.unshuffle)[..., :height, :width]
        return answer.contiguous()  # channels-last convolutions leave an order that is slow for what follows

    def grid_of(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the coarser grid of an array (h, w), which is padded for it."""
        height, width = (-(-side // self.multiple) * self.multiple // self.unshuffle for side in shape)
        return height, width

    def on_blocks(self, x: Tensor) -> Tensor:
        """Map ``(B, unshuffle**2 * channels_in, h', w')`` to ``(B, unshuffle**2 * channels_out, h', w')``.

        The coarser grid has the size of :meth:`grid_of`.
        """
        if self.autocast_dtype is None:
            return self._convolve(x)
        with torch.autocast(x.device.type, dtype=self.autocast_dtype):
            return self._convolve(x).float()

    def _convolve(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else functional.avg_pool2d(x, 2))
            skips.append(x)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = block(torch.cat([functional.interpolate(x, scale_factor=2.0, mode='nearest'), skip], dim=1))
        answer: Tensor = self.head(x)
        return answer
