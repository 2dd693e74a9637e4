"""What an epoch takes and what it sums: the arguments and results that all kernels share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..forward import PatternBatch
from ..patches import position_dtype
from ..photon_noise import PhotonNoise


@dataclass(frozen=True)
class RefinedQuantities:
    """Quantities, besides the object, whose derivatives are computed."""

    probe: bool
    positions: bool
    intensities: bool


class Epoch(NamedTuple):
    """What all patterns of an epoch share."""

    object_array: Tensor
    """``(h, w)`` complex."""
    probe: Tensor
    """Modes at no shift, ``(M, H, W)`` complex."""
    phase: Tensor
    """Quadratic phase on the exit waves, ``(H, W)`` complex."""
    good_pixels: Tensor
    """1 where the detector measured, else 0: ``(H, W)`` real, zero frequency at the corner."""
    likelihood: str
    """'amplitude' or 'poisson'."""
    refined: RefinedQuantities
    needs_illumination: bool
    """Whether the illumination is summed; it does not change while probe, positions and intensities do not."""


class Patterns(NamedTuple):
    """Consecutive patterns of a scan."""

    first: int
    """Number of the first pattern in the scan."""
    amplitudes: Tensor
    """Square root of the counts, ``(C, H, W)`` real, zero frequency at the corner, zero where not measured."""
    patch_origins: Tensor
    """First pixel (y, x) of each patch in the object array, ``(C, 2)`` int64."""
    shifts: Tensor
    """Subpixel shifts of the probe, ``(C, 2)`` real, (y, x)."""
    intensities: Tensor
    """Photons relative to the mean, ``(C,)`` real."""
    probes: Tensor | None
    """Probes at the positions, ``(C, M, H, W)`` complex, where they are kept; None where they are to be computed."""

    @property
    def numbers(self) -> slice:
        """Numbers of the patterns in the scan."""
        return slice(self.first, self.first + len(self.amplitudes))


@dataclass(eq=False)
class Gradients:
    """Sums over all patterns of one epoch."""

    object_update: Tensor
    """``U = -1/4 dD/dO*``, ``(h, w)`` complex."""
    illumination: Tensor
    """Photons on each pixel of the object array for a transparent object, ``(h, w)`` real."""
    probe_spectrum: Tensor
    """Spectrum of the probe update, ``sum_j S_jm``, ``(M, H, W)`` complex."""
    transmittance: Tensor
    """``sum_j s_j |O_j|^2``, ``(H, W)`` real."""
    position_steps: Tensor
    """Gauss-Newton steps, ``(n, 2)`` real, pixels."""
    intensity_ratios: Tensor
    """Measured over expected photons of each pattern, ``(n,)`` real."""
    deviance: Tensor
    """Deviance of all measured pixels, scalar."""

    @classmethod
    def zeros(cls, epoch: Epoch, positions: int) -> Gradients:
        """Return sums over none of the ``positions`` patterns of a scan."""
        real, device = epoch.object_array.real.dtype, epoch.object_array.device
        return cls(
            object_update=torch.zeros_like(epoch.object_array),
            illumination=torch.zeros(epoch.object_array.shape, dtype=real, device=device),
            probe_spectrum=torch.zeros_like(epoch.probe),
            transmittance=torch.zeros(epoch.probe.shape[1:], dtype=real, device=device),
            position_steps=torch.zeros((positions, 2), dtype=real, device=device),
            intensity_ratios=torch.ones(positions, dtype=real, device=device),
            deviance=torch.zeros((), dtype=position_dtype(device), device=device),
        )

    def add(self, other: Gradients) -> None:
        """Add the sums over other patterns; each pattern is in one of the two."""
        self.object_update += other.object_update
        self.illumination += other.illumination
        self.probe_spectrum += other.probe_spectrum
        self.transmittance += other.transmittance
        self.position_steps += other.position_steps
        self.intensity_ratios *= other.intensity_ratios
        self.deviance += other.deviance


class Fit(NamedTuple):
    """The comparison of simulated with measured patterns, for one object each of ``B`` groups."""

    update: Tensor | None
    """The object update for the amplitude likelihood, ``(B, h, w)`` complex; None if it was not requested."""
    deviance: Tensor
    """Mean deviance of the measured pixels, scalar."""
    waves: tuple[Tensor, ...]
    """Far-field waves in parts, as the derivative needs them."""


@dataclass(eq=False)
class ResidualSums:
    """Sums over patterns of what the metrics are computed from."""

    maps: Tensor
    """On the object array, ``(7, h, w)`` real: photons, squared photons of a position, differences and measured
    amplitudes weighted by the photons, squared object gradients, those of photon noise, and the information."""
    detector: Tensor
    """Differences of the amplitudes, and measured amplitudes, ``(2, H, W)`` real, zero frequency at the corner."""
    totals: Tensor
    """Differences expected of photon noise, squared residuals and expected ones, ``(3,)`` real."""

    @classmethod
    def zeros(cls, object_shape: tuple[int, int], pattern_shape: tuple[int, int], device: torch.device) -> ResidualSums:
        """Return sums over no pattern."""
        return cls(
            maps=torch.zeros((7, *object_shape), device=device),
            detector=torch.zeros((2, *pattern_shape), device=device),
            totals=torch.zeros(3, dtype=position_dtype(device), device=device),
        )


class AmplitudeScales(NamedTuple):
    """How expected amplitudes are compared with measured ones."""

    best: float
    """Factor of the smallest R-factor."""
    photons: float
    """Factor at which as many photons are expected as were measured."""
    noise: PhotonNoise
    """Moments of the measured amplitudes."""


class Kernels(NamedTuple):
    """One implementation."""

    description: str
    """What computes, for the log."""
    add_gradients: Callable[[Epoch, Iterable[Patterns], Gradients], None]
    """Add the gradients of all given patterns to the sums; reads and writes its own arguments only."""
    shift_probes: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """Compute the probes at the positions, ``(C, M, H, W)``, of a probe, a quadratic phase, shifts and intensities."""
    add_object_update: Callable[[Tensor, PatternBatch, Tensor], None]
    """Add the object update of a batch for the amplitude likelihood to a total, both ``(B, h, w)`` complex."""
    add_illumination: Callable[[Tensor, Tensor, Tensor], None]
    """Add the photons of probes ``(B, C, M, H, W)`` at patch origins ``(B, C, 2)`` to a total, ``(B, h, w)`` real."""
    precondition: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """Compute ``L(U w)`` of an update, a weight, the object (all ``(B, h, w)``) and the gain of the filter ``L``."""
    proximal_point: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
    """Compute the proximal point of total variation: :func:`~..total_variation.proximal_point`."""
    fit: Callable[[Tensor, PatternBatch, str, bool], Fit]
    """Compare objects ``(B, h, w)`` with a batch by a likelihood of :data:`~..noise_models.DEVIANCES`; the last
    argument requests the object update."""
    fit_gradient: Callable[
        [tuple[Tensor, ...], PatternBatch, str, Tensor | None, Tensor | None, tuple[int, int]], Tensor
    ]
    """Compute the derivative of ``fit`` with respect to the objects ``(B, h, w)`` from its waves, the batch, the
    likelihood, and the derivatives with respect to the update ``(B, h, w)`` and to the deviance (scalar), either of
    them None for zero; the last argument is ``(h, w)``."""
    precondition_gradient: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """Compute the derivatives of ``precondition`` with respect to the update and the object from that with respect to
    its result, which comes before the arguments of ``precondition``."""
    network_input: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
    """Compute the input of the unrolled network: :func:`~..local_phase.network_input`."""
    network_correction: Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
    """Compute the correction of the object and the memory: :func:`~..local_phase.network_correction`."""
    add_residuals: Callable[[Tensor, PatternBatch, AmplitudeScales, ResidualSums], None]
    """Add the residuals of a batch with the object ``(h, w)`` to the sums; see :mod:`...metrics.residuals`."""
    batch_bytes: int
    """Bytes of complex exit waves in one batch on a CPU: more would not stay in its cache."""
