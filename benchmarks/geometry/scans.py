"""Scans of unknown geometry, from seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ptychopinn_torch_plugin.data.io.conversion import BeamGeometry
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.demo.simulate import ScanPlan
from ptychopinn_torch_plugin.inspection.measurement import Measurement, Orientation

from ..faint.objects import CleanScan, clean_scan

KINDS = ('photograph', 'text', 'grass', 'star', 'discs')
DOSES = (1e3, 1e4, 1e5, 1e6)
DEFOCUS_M = 1.3e-3
"""Smallest distance; every other scan is further out of focus."""


@dataclass(frozen=True)
class Unknown:
    """A measurement and what is to be found."""

    measurement: Measurement
    kind: str
    photons: float
    orientation: Orientation
    """The operation that rights the patterns."""
    curvature: float
    """That of the right patterns, square object pixels."""
    rotation: float
    """Radians by which the recorded positions must be rotated to be right."""

    def is_found(self, orientation: Orientation, curvature: float) -> bool:
        """Whether orientation and sign are right, or both those of the conjugated object."""
        if orientation == self.orientation:
            return curvature * self.curvature > 0
        return orientation == self.orientation.partner and curvature * self.curvature < 0


def scan_plan(number: int, rows: int = 12) -> ScanPlan:
    """Return the geometry of scan ``number``: a defocus of random size and sign."""
    rng = np.random.default_rng(7000 + number)
    sign, further = rng.choice([-1.0, 1.0]), rng.uniform(1.0, 1.8)
    return ScanPlan(rows=rows, columns=rows, defocus_m=float(sign * further * DEFOCUS_M))


def known_scan(number: int, photons: float, kind: str) -> tuple[CleanScan, RawScan]:
    """Simulate scan ``number`` of ``kind`` with its probe known."""
    scan = clean_scan(kind, 50 + number, scan_plan(number))
    return scan, scan.raw(photons, 900 + number)


def unknown_scan(number: int, photons: float, kind: str, *, rotated: bool = False) -> Unknown:
    """Simulate scan ``number`` of ``kind`` with a random orientation and, where ``rotated``, up to 5 degrees."""
    plan = scan_plan(number)
    scan, raw = known_scan(number, photons, kind)
    rng = np.random.default_rng(8000 + number)
    right = Orientation(*(bool(bit) for bit in rng.integers(0, 2, 3)))
    inverse = next(item for item in _all() if np.allclose(item.matrix() @ right.matrix(), np.eye(2)))
    angle = math.radians(float(rng.uniform(-5, 5))) if rotated else 0.0
    back = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    middle = raw.positions.mean(axis=0)
    metadata = scan.truth.metadata
    pixel = scan.truth.probes.get_pixel_geometry()
    measurement = Measurement(
        counts=np.asarray(inverse.apply(raw.counts)),
        positions=(raw.positions - middle) @ back.T + middle,
        bad_pixels=np.asarray(inverse.apply(raw.bad_pixels)),
        name=f'{kind}-{number}',
        geometry=BeamGeometry(
            photon_energy_ev=metadata.photon_energy_eV,
            detector_distance_m=metadata.detector_distance_m,
            object_pixel_m=(pixel.height_m, pixel.width_m),
        ),
    )
    wavelength = measurement.wavelength_m
    if wavelength is None:
        raise ValueError('The simulated scan has no energy.')
    curvature = wavelength * plan.defocus_m / (pixel.height_m * pixel.width_m)
    return Unknown(measurement, kind, photons, right, curvature, angle)


def _all() -> list[Orientation]:
    return [Orientation(t, r, c) for t in (False, True) for r in (False, True) for c in (False, True)]
