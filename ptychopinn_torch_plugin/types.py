"""Records that cross the borders between the parts of the package (numpy only, no torch)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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
    """How two objects agree, ring by ring in Fourier space; all arrays ``(rings,)``."""

    frequencies: npt.NDArray[np.float64]
    """Inner edges of the rings, cycles per pixel."""

    correlation: npt.NDArray[np.float64]
    """From -1 to 1; NaN in an empty ring."""

    threshold: npt.NDArray[np.float64]
    """Half-bit threshold; NaN in an empty ring."""

    resolution_px: float | None
    """Full period, in pixels, where the correlation first falls below the threshold: 2 if it never does, None if the
    lowest rings already do."""


@dataclass(frozen=True, eq=False)
class ReconstructionMetrics:
    """What the patterns say of a reconstruction, without a truth. Maps are float32, NaN where nothing can be said."""

    r_factor: float
    """Amplitude R-factor ``sum |sqrt(n) - c sqrt(I)| / sum sqrt(n)`` at the best global scale ``c``."""

    noise_r_factor: float
    """What photon noise alone would give, were the reconstruction the truth."""

    reduced_chi_square: float
    """Squared residual over what photon noise alone would give: 1 at the noise, in the whole scan."""

    scale: float
    """The scale ``c`` of the R-factor, about 1."""

    covered_share: float
    """Illuminated share of the object grid, 0 to 1."""

    overlap: float
    """Positions that share a pixel, weighted by their photons; mean over the photons."""

    uncertainty: float
    """Median of the uncertainty map where the object is well lit."""

    object_r_map: npt.NDArray[np.float32]
    """R-factor per object pixel, ``(h, w)``: that of the frames that lit it, weighted by their photons there."""

    detector_r_map: npt.NDArray[np.float32]
    """R-factor per detector pixel, ``(H, W)``, zero frequency at ``(H // 2, W // 2)``."""

    uncertainty_map: npt.NDArray[np.float32]
    """Standard deviation of the complex object, ``(h, w)``, dimensionless: half of its square lies in the phase."""

    photons_map: npt.NDArray[np.float32]
    """Photons that lit each object pixel, ``(h, w)``; 0 outside of the coverage."""

    rings: FourierRingCorrelation | None
    """Correlation of the half scans, where they were asked for."""


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What inference makes of one scan, on the object grid of its product."""

    object_array: npt.NDArray[np.complex64]
    """Transmission, ``(h, w)`` as (y, x), about 1 in vacuum, ``1 + 0j`` where no probe came."""

    coverage: npt.NDArray[np.bool_]
    """True where the object was illuminated, ``(h, w)``."""

    probe: npt.NDArray[np.complex64]
    """Incoherent probe modes, ``(modes, H, W)``; sum of ``abs(probe)**2`` = photons per frame, unitary transform."""

    positions: npt.NDArray[np.float64]
    """Positions the object belongs to, ``(n, 2)`` as (y, x), object pixels: as given, or refined."""

    losses: tuple[LossRecord, ...]
    """Training history of the model that was used, or the deviances of the refinement where there is no model."""

    judgement: ReconstructionMetrics | None = None
    """What the patterns say of it; None where nobody has looked."""
