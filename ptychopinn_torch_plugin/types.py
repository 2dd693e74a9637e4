"""Records that the parts of the package exchange. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class ReconstructionState:
    """Everything that a reconstruction of one scan has estimated, as tensors on one device.

    Network, solver, searches and metrics take a state and return a state; measured data are in
    :class:`~ptychopinn_torch_plugin.data.tensors.ScanTensors` and nowhere else.
    """

    object_array: Tensor
    """Transmission function, ``(h, w)`` complex64."""

    origin: tuple[int, int]
    """Pixel (y, x) of the scan's object grid at which ``object_array`` begins."""

    probe: Tensor
    """Incoherent modes, ``(M, H, W)`` complex64; ``sum |P|^2`` is the mean number of photons per pattern."""

    positions: Tensor
    """Patch centres, ``(n, 2)`` real as (y, x), pixels of the scan's object grid; float64 where the device has it."""

    intensities: Tensor
    """Photons of each pattern relative to the mean, ``(n,)`` float32."""

    @property
    def object_shape(self) -> tuple[int, int]:
        """Height and width of ``object_array`` in pixels."""
        return self.object_array.shape[-2], self.object_array.shape[-1]


@dataclass(frozen=True)
class Smoothing:
    """How the object was smoothed while it was refined: by total variation, partly by cosine blocks, or not at all."""

    photons: float = 0.0
    """Strength of the total variation, photons; 0 without it."""

    threshold: float = 0.0
    """Threshold of the cosine blocks, standard deviations of photon noise; 0 without them."""

    cosine_share: float = 0.0
    """Weight of the cosine blocks in the mean of both, 0 to 1."""

    def __str__(self) -> str:
        """Return the values as they stand in the log."""
        text = f'{self.photons:.3g} photons'
        if self.cosine_share:
            percent = 100 * self.cosine_share
            text += f', {percent:.0f} % by cosine blocks at {self.threshold:.3g} standard deviations'
        return text


@dataclass(frozen=True)
class LossRecord:
    """Mean losses of one epoch."""

    epoch: int
    """Number of the epoch, from 1."""

    training: float
    """Mean loss over the training positions, dimensionless."""

    validation: float | None
    """Mean loss over the held-out positions, dimensionless; None without such positions."""


@dataclass(frozen=True, eq=False)
class FourierRingCorrelation:
    """Correlation of two objects on rings in Fourier space; all arrays ``(rings,)``."""

    frequencies: npt.NDArray[np.float64]
    """Inner edges of the rings, cycles per pixel."""

    correlation: npt.NDArray[np.float64]
    """From -1 to 1; NaN in an empty ring."""

    threshold: npt.NDArray[np.float64]
    """Half-bit threshold; NaN in an empty ring."""

    resolution_px: float | None
    """Full period, in pixels, where the correlation first falls below the threshold: 2 if it never does, None if the
    lowest rings already do."""


Colour = Literal['green', 'yellow', 'red']


@dataclass(frozen=True)
class Credibility:
    """Verdict on a reconstruction, from patterns that took no part in it (:mod:`.metrics.credibility`)."""

    value: float
    """0 to about 1: agreement with held-out patterns over what the photons allow; NaN where nothing is allowed."""

    error: float
    """Standard error of ``value``."""

    correlation: float
    """Correlation of predicted and held-out patterns."""

    allowed: float
    """Correlation that the photons allow."""

    colour: Colour
    """The verdict."""

    cause: str | None
    """Key of the alternative that predicts better; None where none does."""

    lead: float
    """Standard errors by which the best alternative predicts better; negative where it predicts worse, NaN without."""

    sentence: str
    """The verdict in one sentence, with the most likely cause."""

    map: str | None = None
    """Array of ``maps.npz`` that shows the cause; None for a green verdict."""

    setting: str | None = None
    """What to change first; None for a green verdict."""


@dataclass(frozen=True, eq=False)
class ReconstructionMetrics:
    """Quality of a reconstruction, computed from the patterns alone. Maps are float32, NaN where undefined."""

    r_factor: float
    """Amplitude R-factor ``sum |sqrt(n) - c sqrt(I)| / sum sqrt(n)`` at the best global scale ``c``."""

    noise_r_factor: float
    """Expected R-factor if the reconstruction were exact and photon noise the only error."""

    reduced_chi_square: float
    """Squared residual of the whole scan over its expectation for photon noise alone; 1 at the noise."""

    scale: float
    """The scale ``c`` of the R-factor, about 1."""

    covered_share: float
    """Illuminated share of the object grid, 0 to 1."""

    overlap: float
    """Number of positions that illuminate a pixel, weighted by their photons; mean over the photons."""

    uncertainty: float
    """Median of the uncertainty map over the well illuminated pixels."""

    object_r_map: npt.NDArray[np.float32]
    """R-factor per object pixel, ``(h, w)``: mean over the patterns that illuminated it, weighted by their photons."""

    detector_r_map: npt.NDArray[np.float32]
    """R-factor per detector pixel, ``(H, W)``, zero frequency at ``(H // 2, W // 2)``."""

    uncertainty_map: npt.NDArray[np.float32]
    """Standard deviation of the complex object, ``(h, w)``, dimensionless: half of its square lies in the phase."""

    photons_map: npt.NDArray[np.float32]
    """Photons on each object pixel, ``(h, w)``; 0 outside the coverage."""

    frc: FourierRingCorrelation | None
    """Fourier ring correlation of the half scans; None where it was not requested."""

    credibility: Credibility | None = None
    """The verdict by held-out patterns; None where it was switched off, or the run was stopped before."""


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The result of inference or refinement of one scan, on the object grid of its product."""

    object_array: npt.NDArray[np.complex64]
    """Transmission function, ``(h, w)`` as (y, x), about 1 in vacuum, ``1 + 0j`` outside the coverage."""

    coverage: npt.NDArray[np.bool_]
    """True where the object was illuminated, ``(h, w)``."""

    probe: npt.NDArray[np.complex64]
    """Incoherent probe modes, ``(modes, H, W)``; sum of ``abs(probe)**2`` = photons per pattern, unitary transform."""

    positions: npt.NDArray[np.float64]
    """Patch centres, ``(n, 2)`` as (y, x), object pixels: as given, or refined."""

    intensities: npt.NDArray[np.float32]
    """Photons of each pattern relative to the mean, ``(n,)``: 1, or refined; 0 for an empty pattern."""

    losses: tuple[LossRecord, ...]
    """Training history of the model, or the deviances of the refinement where there is no model."""

    metrics: ReconstructionMetrics | None = None
    """Quality computed from the patterns; None where it was not computed."""

    network_object: npt.NDArray[np.complex64] | None = None
    """The object of the network before refinement, on the same grid, ``(h, w)``; None without a network."""

    def _repr_html_(self) -> str:
        """Return what a notebook shows: amplitude, phase and the verdict."""
        from importlib import import_module

        # By name: this module is below all others, and a notebook has imported the package as a whole.
        html: str = import_module(f'{__package__}.report.notebook').to_html(self)
        return html
