"""Frames: the pattern-sized pieces of a canvas that the scan positions see.

``gather`` cuts the frames out, ``merge`` adds frames into a canvas. Each is the adjoint of the other, and each is
differentiable to any order because the backward of one is the forward of the other. Frames lie at integer pixels: the
subpixel part of a position is put on the probe (Ptychodus' own convention), so the object is never interpolated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SLICING_DEVICES = frozenset({'cpu'})
"""Devices where copying slices in a loop is several times faster than gathering single elements."""


def gather(canvas: Tensor, patch_origins: Tensor, frame_shape: tuple[int, int]) -> Tensor:
    """Cut the frames at ``patch_origins`` out of ``canvas``.

    Args:
        canvas: ``(B, h, w)``, any dtype.
        patch_origins: ``(B, C, 2)`` int64, (y, x) of each frame's first pixel; every frame lies inside the canvas.
        frame_shape: ``(H, W)`` pixels.

    Returns:
        ``(B, C, H, W)``, dtype of ``canvas``.
    """
    frames: Tensor = _Gather.apply(canvas, patch_origins, frame_shape)  # type: ignore[no-untyped-call]
    return frames


def merge(frames: Tensor, patch_origins: Tensor, canvas_shape: tuple[int, int]) -> Tensor:
    """Add frames into an empty canvas: the adjoint of :func:`gather`.

    Args:
        frames: ``(B, C, H, W)``, any dtype.
        patch_origins: ``(B, C, 2)`` int64, (y, x) of each frame's first pixel.
        canvas_shape: ``(h, w)`` pixels.

    Returns:
        ``(B, h, w)``, dtype of ``frames``; overlapping frames add up.
    """
    canvas: Tensor = _Merge.apply(frames, patch_origins, canvas_shape)  # type: ignore[no-untyped-call]
    return canvas


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, canvas: Tensor, patch_origins: Tensor, frame_shape: tuple[int, int]) -> Tensor:  # noqa: ANN401
        ctx.patch_origins, ctx.canvas_shape = patch_origins, (canvas.shape[-2], canvas.shape[-1])
        return _gather(canvas, patch_origins, frame_shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        return merge(gradients[0], ctx.patch_origins, ctx.canvas_shape), None, None


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, frames: Tensor, patch_origins: Tensor, canvas_shape: tuple[int, int]) -> Tensor:  # noqa: ANN401
        ctx.patch_origins, ctx.frame_shape = patch_origins, (frames.shape[-2], frames.shape[-1])
        return _merge(frames, patch_origins, canvas_shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        return gather(gradients[0], ctx.patch_origins, ctx.frame_shape), None, None


def _gather(canvas: Tensor, patch_origins: Tensor, frame_shape: tuple[int, int]) -> Tensor:
    height, width = frame_shape
    batch, count = patch_origins.shape[:2]
    if canvas.device.type in SLICING_DEVICES:
        windows = np.lib.stride_tricks.sliding_window_view(_array(canvas), frame_shape, axis=(1, 2))
        groups = np.arange(batch)[:, None]
        return torch.from_numpy(windows[groups, patch_origins[..., 0].numpy(), patch_origins[..., 1].numpy()])
    flat = canvas.reshape(batch, -1)
    index = _flat_index(patch_origins, frame_shape, canvas.shape[-1]).reshape(batch, -1)
    return flat.gather(1, index).reshape(batch, count, height, width)


def _merge(frames: Tensor, patch_origins: Tensor, canvas_shape: tuple[int, int]) -> Tensor:
    batch, _, height, width = frames.shape
    canvas = frames.new_zeros((batch, *canvas_shape))
    if frames.device.type in SLICING_DEVICES:
        # The loop runs over numpy views, whose slices cost a tenth of a tensor's.
        target, source = canvas.numpy(), _array(frames)
        for b, group in enumerate(patch_origins.tolist()):
            for c, (y, x) in enumerate(group):
                target[b, y : y + height, x : x + width] += source[b, c]
        return canvas
    index = _flat_index(patch_origins, (height, width), canvas_shape[1]).reshape(batch, -1)
    canvas.reshape(batch, -1).scatter_add_(1, index, frames.reshape(batch, -1))
    return canvas


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    """The values of a tensor on the CPU; a lazy conjugate is carried out."""
    array: npt.NDArray[Any] = tensor.detach().resolve_conj().resolve_neg().numpy()
    return array


def _flat_index(patch_origins: Tensor, frame_shape: tuple[int, int], canvas_width: int) -> Tensor:
    """Flat canvas index of every pixel of every frame, ``(B, C, H, W)`` int64."""
    rows = torch.arange(frame_shape[0], device=patch_origins.device).reshape(-1, 1)
    columns = torch.arange(frame_shape[1], device=patch_origins.device)
    first = patch_origins[..., 0] * canvas_width + patch_origins[..., 1]
    return first[..., None, None] + rows * canvas_width + columns
