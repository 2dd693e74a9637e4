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
