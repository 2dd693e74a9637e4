"""The gauge: what probe and object may trade without any pattern noticing, put back to where it was.

Three things: a common scale; a common translation (both move together); a linear phase ramp (one takes what the other
gives, each pattern only changes by a constant phase). While both are refined they wander along these. Afterwards the
probe's power, its centre of light and the centre of its spectrum are what they were, and the object bears the rest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..physics.probe import power
from ..physics.propagation import shift_ramp


def restore_gauge(canvas: Tensor, probe: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Give ``probe`` power, centre and mean direction of ``reference``, and ``canvas`` what belongs to it.

    Args:
        canvas: object, ``(h, w)`` complex.
        probe: modes, ``(M, H, W)`` complex.
        reference: the probe before, ``(K, H, W)`` complex.

    Returns:
        Canvas and probe that make the same patterns as before.
    """
    shift = _difference(power(reference), power(probe))
    probe, canvas = _shifted(probe, shift), _shifted(canvas, shift)
    tilt = _difference(power(torch.fft.fft2(reference)), power(torch.fft.fft2(probe)))
    turns = tilt / torch.tensor(probe.shape[-2:], device=tilt.device)
    probe, canvas = probe * _phase_ramp(turns, probe), canvas * _phase_ramp(-turns, canvas)
    factor = math.sqrt(float(power(reference).sum() / power(probe).sum()))
    return canvas / factor, probe * factor


def centre_of(light: Tensor) -> Tensor:
    """Circular centre of a non-negative image ``(H, W)``: ``(2,)`` real, (y, x) in pixels, modulo the image size.

    The circular mean is the phase of the first Fourier coefficient: it has no seam at the border of the image.
    """
    centres = []
    for axis, size in enumerate(light.shape):
        profile = light.sum(dim=1 - axis)
        angle = 2 * math.pi * torch.arange(size, device=light.device, dtype=light.dtype) / size
        centres.append(torch.atan2((profile * angle.sin()).sum(), (profile * angle.cos()).sum()) * size / (2 * math.pi))
    return torch.stack(centres)


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """From the centre of ``b`` to that of ``a`` the short way round, ``(2,)`` real, (y, x) in pixels."""
    size = torch.tensor(a.shape, device=a.device)
    difference = centre_of(a) - centre_of(b)
    return difference - size * torch.round(difference / size)


def _shifted(image: Tensor, shift: Tensor) -> Tensor:
    shifted: Tensor = torch.fft.ifft2(
        torch.fft.fft2(image) * shift_ramp(shift, (image.shape[-2], image.shape[-1])).to(image.dtype)
    )
    return shifted


def _phase_ramp(turns: Tensor, image: Tensor) -> Tensor:
    """``exp(2 pi i turns . r)`` over the last two axes of ``image``, ``turns`` (y, x) in turns per pixel."""
    y, x = (torch.arange(side, device=turns.device, dtype=turns.dtype) for side in image.shape[-2:])
    phase = 2 * math.pi * (turns[0] * y[:, None] + turns[1] * x)
    return torch.polar(torch.ones_like(phase), phase).to(image.dtype)
