"""The forward model of far-field ptychography with mixed states, its adjoint, and the amplitude descent direction.

With object frames ``O_j``, probes ``P_jm`` (mode m at position j, shifted by the subpixel remainder) and the unitary
transform ``F``, the expected counts of pattern j are (Thibault & Menzel, Nature 494, 68 (2013))::

    I_j = sum_m |F(P_jm O_j)|^2
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .patches import gather, merge
from .propagation import backpropagate, propagate

AMPLITUDE_EPS = 1e-12
"""Photons added to intensities: far below any count, it keeps the square root differentiable at zero."""


class Frames(NamedTuple):
    """Measured frames and what is needed to simulate them; ``B`` canvases with ``C`` positions each."""

    amplitudes: Tensor
    """Square root of the counts, ``(B, C, H, W)`` real, zero frequency at the corner, zero where not measured."""
    probes: Tensor
    """Probes at the positions, ``(B, C, M, H, W)`` complex; ``sum |P|^2`` is the number of photons per frame."""
    patch_origins: Tensor
    """First pixel (y, x) of each frame on its canvas, ``(B, C, 2)`` int64."""
    good_pixels: Tensor
    """1 where the detector measured, else 0: ``(H, W)`` real, zero frequency at the corner."""


def exit_waves(canvas: Tensor, probes: Tensor, patch_origins: Tensor) -> Tensor:
    """Probe times object frame: ``(B, h, w)`` complex canvas to ``(B, C, M, H, W)`` complex."""
    frames = gather(canvas, patch_origins, (probes.shape[-2], probes.shape[-1]))
    return probes * frames[:, :, None]


def intensity(waves: Tensor) -> Tensor:
    """Expected counts of far-field waves, ``(..., M, H, W)`` complex to ``(..., H, W)`` real."""
    return (waves.real.square() + waves.imag.square()).sum(dim=-3)


def simulate(canvas: Tensor, probes: Tensor, patch_origins: Tensor) -> Tensor:
    """Expected counts of every position.

    Args:
        canvas: object, ``(B, h, w)`` complex, transmission.
        probes: ``(B, C, M, H, W)`` complex, in square roots of photons.
        patch_origins: ``(B, C, 2)`` int64.

    Returns:
        ``(B, C, H, W)`` real photon counts, zero frequency at the corner.
    """
    return intensity(propagate(exit_waves(canvas, probes, patch_origins)))


def simulate_adjoint(waves: Tensor, probes: Tensor, patch_origins: Tensor, canvas_shape: tuple[int, int]) -> Tensor:
    """Adjoint of ``canvas -> F(P_jm O_j)``: ``(B, C, M, H, W)`` complex to ``(B, h, w)`` complex."""
    frames = (probes.conj() * backpropagate(waves)).sum(dim=2)
    return merge(frames, patch_origins, canvas_shape)


class Descent(NamedTuple):
    """One evaluation of the amplitude misfit at a canvas."""

    direction: Tensor
    """Half the negative gradient with respect to the conjugated canvas, ``(B, h, w)`` complex, not preconditioned."""
    amplitudes: Tensor
    """Model amplitudes, ``(B, C, H, W)`` real."""


def amplitude_descent(canvas: Tensor, frames: Frames) -> Descent:
    """Descent direction of ``sum (|psi| - sqrt(n))^2`` over the measured pixels, with the model amplitudes on the way.

    The far-field wave keeps its phase and takes the measured modulus; the difference goes back through the adjoint.
    Pixels that were not measured contribute nothing.
    """
    parts = frame_descents(canvas, frames)
    direction = merge(parts.direction, frames.patch_origins, (canvas.shape[-2], canvas.shape[-1]))
    return Descent(direction, parts.amplitudes)


def frame_descents(canvas: Tensor, frames: Frames) -> Descent:
    """What :func:`amplitude_descent` adds up: the direction of every position on its own, ``(B, C, H, W)`` complex."""
    waves = propagate(exit_waves(canvas, frames.probes, frames.patch_origins))
    amplitudes = torch.sqrt(intensity(waves) + AMPLITUDE_EPS)
    factor = (frames.amplitudes / amplitudes - 1.0) * frames.good_pixels
    change = backpropagate(waves * factor[:, :, None])
    return Descent((frames.probes.conj() * change).sum(dim=2), amplitudes)
