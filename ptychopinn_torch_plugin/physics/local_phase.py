"""The object as the unrolled network receives it: images relative to the local phase, on a coarser grid.

With the local phase ``u = O / |O|``, the input is ``|O| - 1``, the real and imaginary part of ``u* G``, the slopes of
``u`` along y and x, and the illumination; what the network returns is multiplied by ``u``. A constant phase of the
object therefore changes nothing. On the coarser grid (pixel unshuffle), every block of ``s x s`` pixels is one pixel
with ``s**2`` channels for each image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

OPAQUE = 1e-3
"""Added to ``|O|^2`` where the local phase is taken: it stays defined where the object is opaque."""
IMAGES = 6
"""Images of an object in the input of the network."""


def local_phase(image: Tensor) -> Tensor:
    """Return the local phase as a number of modulus 1 (less where the object is opaque), same shape and dtype."""
    return image / torch.sqrt(image.real.square() + image.imag.square() + OPAQUE)


def phase_slope(unit: Tensor, axis: int) -> Tensor:
    """Return the sine of the phase step from each pixel to the next along ``axis`` (cyclic), ``(..., h, w)`` real."""
    return (unit.conj() * unit.roll(-1, dims=axis)).imag


def network_input(object_array: Tensor, direction: Tensor, weight: Tensor, memory: Tensor, block: int) -> Tensor:
    """Return the input of the network on the coarser grid.

    Args:
        object_array: ``(B, h, w)`` complex.
        direction: preconditioned update ``G``, ``(B, h, w)`` complex.
        weight: relative illumination, ``(B, h, w)`` real.
        memory: ``(B, K, h', w')`` real on the coarser grid, which covers the object array.
        block: side of a block, pixels.

    Returns:
        ``(B, IMAGES * block**2 + K, h', w')`` real, 0 outside the object array.
    """
    unit = local_phase(object_array)
    relative = direction * unit.conj()
    slope_y, slope_x = (phase_slope(unit, axis) for axis in (-2, -1))
    images = torch.stack([object_array.abs() - 1.0, relative.real, relative.imag, slope_y, slope_x, weight], dim=1)
    return torch.cat([functional.pixel_unshuffle(_padded(images, memory.shape[-2:], block), block), memory], dim=1)


def network_correction(
    object_array: Tensor, weight: Tensor, answer: Tensor, memory: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """Return the correction of the object, ``u W tanh(C)``, and the memory for the next step.

    Args:
        object_array: ``(B, h, w)`` complex.
        weight: relative illumination ``W``, ``(B, h, w)`` real.
        answer: what the network returned, ``(B, 2 * block**2 + K, h', w')`` real: ``C``, real part first, then the
            change of the memory. It may be overwritten.
        memory: ``(B, K, h', w')`` real.
        block: side of a block, pixels.

    Returns:
        Correction ``(B, h, w)`` complex, and memory ``(B, K, h', w')``, 0 outside the object array.
    """
    height, width = object_array.shape[-2:]
    channels = 2 * block**2
    # Channels-last convolutions leave an order that is slow for what follows.
    parts = functional.pixel_shuffle(answer[:, :channels], block)[..., :height, :width].contiguous()
    bounded = torch.tanh(parts) * weight[:, None]
    correction = local_phase(object_array) * torch.complex(bounded[:, 0], bounded[:, 1])
    kept = torch.tanh(memory + answer[:, channels:])
    grid = kept.shape[-2:]
    if (height, width) != (grid[0] * block, grid[1] * block):
        inside = _padded(torch.ones_like(weight[:1, None]), grid, block)
        kept = kept * functional.pixel_unshuffle(inside, block).repeat(1, kept.shape[1] // block**2, 1, 1)
    return correction, kept


def _padded(images: Tensor, grid: torch.Size, block: int) -> Tensor:
    """Extend ``images`` ``(B, C, h, w)`` by zeros to the size of ``grid``, in blocks."""
    height, width = images.shape[-2:]
    return functional.pad(images, (0, block * grid[1] - width, 0, block * grid[0] - height))
