"""Object patches: the pattern-sized parts of the object array that the scan positions illuminate.

With the operator ``R_j`` that cuts the patch of position ``j`` out of the object array ``O``::

    O_j = R_j O                  extract_patches
    O   = sum_j R_j^T O_j        accumulate_patches, the adjoint

Both are differentiable to any order, because the backward pass of one is the other. Patches lie at whole pixels: the
subpixel part of a position shifts the probe (as in Ptychodus), so that the object is never interpolated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SLICING_DEVICES = frozenset({'cpu'})
"""Devices on which copying slices in a loop is several times faster than gathering single elements."""


def extract_patches(object_array: Tensor, patch_origins: Tensor, patch_shape: tuple[int, int]) -> Tensor:
    """Extract the patches at ``patch_origins`` from ``object_array``.

    Args:
        object_array: ``(B, h, w)``, any dtype.
        patch_origins: ``(B, C, 2)`` int64, first pixel (y, x) of each patch; every patch lies inside the array.
        patch_shape: ``(H, W)`` pixels.

    Returns:
        ``(B, C, H, W)``, dtype of ``object_array``.
    """
    patches: Tensor = _ExtractPatches.apply(object_array, patch_origins, patch_shape)  # type: ignore[no-untyped-call]
    return patches


def accumulate_patches(patches: Tensor, patch_origins: Tensor, object_shape: tuple[int, int]) -> Tensor:
    """Add patches into an array of zeros: the adjoint of :func:`extract_patches`.

    Args:
        patches: ``(B, C, H, W)``, any dtype.
        patch_origins: ``(B, C, 2)`` int64, first pixel (y, x) of each patch.
        object_shape: ``(h, w)`` pixels.

    Returns:
        ``(B, h, w)``, dtype of ``patches``; overlapping patches add up.
    """
    total: Tensor = _AccumulatePatches.apply(patches, patch_origins, object_shape)  # type: ignore[no-untyped-call]
    return total


def extract_window(image: Tensor, origin: tuple[int, int], shape: tuple[int, int], fill: float = 1.0) -> Tensor:
    """Extract a window that may extend beyond the image.

    Args:
        image: ``(h, w)``, any dtype.
        origin: pixel (y, x) of ``image`` at which the window begins; may be negative.
        shape: height and width of the window, pixels.
        fill: value of the pixels outside the image.

    Returns:
        ``shape``, dtype of ``image``; a new tensor.
    """
    window = image.new_full(shape, fill)
    first = [max(start, 0) for start in origin]
    last = [min(start + side, limit) for start, side, limit in zip(origin, shape, image.shape, strict=True)]
    if all(a < b for a, b in zip(first, last, strict=True)):
        source = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        target = tuple(slice(a - start, b - start) for a, b, start in zip(first, last, origin, strict=True))
        window[target] = image[source]
    return window


def split_positions(positions: Tensor, patch_shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Split positions into patch origins and subpixel shifts of the probe.

    The same rule as :func:`ptychopinn_torch_plugin.data.scan.patch_bounds`, on the device of the positions.

    Args:
        positions: patch centres, ``(..., 2)`` real, (y, x) in pixels.
        patch_shape: ``(H, W)`` pixels.

    Returns:
        Patch origins ``(..., 2)`` int64, and subpixel shifts ``(..., 2)`` float32 in [0, 1).
    """
    half = positions.new_tensor([(side - 1) / 2 for side in patch_shape])
    corners = positions - half
    first = corners.floor()
    shifts = (corners - first).to(torch.float32).clamp_max(1.0 - 2.0**-24)
    return first.to(torch.int64), shifts


def position_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of positions: float64, or float32 on a device that has no other (MPS)."""
    return torch.float32 if device.type == 'mps' else torch.float64


class _ExtractPatches(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own type
        object_array: Tensor,
        patch_origins: Tensor,
        patch_shape: tuple[int, int],
    ) -> Tensor:
        ctx.patch_origins, ctx.object_shape = patch_origins, (object_array.shape[-2], object_array.shape[-1])
        return _extract(object_array, patch_origins, patch_shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        return accumulate_patches(gradients[0], ctx.patch_origins, ctx.object_shape), None, None


class _AccumulatePatches(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own type
        patches: Tensor,
        patch_origins: Tensor,
        object_shape: tuple[int, int],
    ) -> Tensor:
        ctx.patch_origins, ctx.patch_shape = patch_origins, (patches.shape[-2], patches.shape[-1])
        return _accumulate(patches, patch_origins, object_shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        return extract_patches(gradients[0], ctx.patch_origins, ctx.patch_shape), None, None


def _extract(object_array: Tensor, patch_origins: Tensor, patch_shape: tuple[int, int]) -> Tensor:
    height, width = patch_shape
    batch, count = patch_origins.shape[:2]
    if object_array.device.type in SLICING_DEVICES:
        windows = np.lib.stride_tricks.sliding_window_view(_as_numpy(object_array), patch_shape, axis=(1, 2))
        groups = np.arange(batch)[:, None]
        return torch.from_numpy(windows[groups, patch_origins[..., 0].numpy(), patch_origins[..., 1].numpy()])
    flat = object_array.reshape(batch, -1)
    index = _flat_index(patch_origins, patch_shape, object_array.shape[-1]).reshape(batch, -1)
    return flat.gather(1, index).reshape(batch, count, height, width)


def _accumulate(patches: Tensor, patch_origins: Tensor, object_shape: tuple[int, int]) -> Tensor:
    batch, _, height, width = patches.shape
    total = patches.new_zeros((batch, *object_shape))
    if patches.device.type in SLICING_DEVICES:
        # The loop uses numpy views, whose slices cost a tenth of those of a tensor.
        target, source = total.numpy(), _as_numpy(patches)
        for b, group in enumerate(patch_origins.tolist()):
            for c, (y, x) in enumerate(group):
                target[b, y : y + height, x : x + width] += source[b, c]
        return total
    index = _flat_index(patch_origins, (height, width), object_shape[1]).reshape(batch, -1)
    total.reshape(batch, -1).scatter_add_(1, index, patches.reshape(batch, -1))
    return total


def _as_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    """Return the values of a tensor on the CPU; a lazy conjugate is carried out."""
    array: npt.NDArray[Any] = tensor.detach().resolve_conj().resolve_neg().numpy()
    return array


def _flat_index(patch_origins: Tensor, patch_shape: tuple[int, int], object_width: int) -> Tensor:
    """Return the flat array index of every pixel of every patch, ``(B, C, H, W)`` int64."""
    rows = torch.arange(patch_shape[0], device=patch_origins.device).reshape(-1, 1)
    columns = torch.arange(patch_shape[1], device=patch_origins.device)
    first = patch_origins[..., 0] * object_width + patch_origins[..., 1]
    return first[..., None, None] + rows * object_width + columns
