"""Ptychodus products for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ptychodus.api.product import Product

DISTANCE_M = 0.9
DETECTOR_PIXEL_M = (150e-6, 130e-6)
"""(y, x): not square on purpose."""


def random_product(shape: tuple[int, int], *, modes: int, positions: int, seed: int) -> Product:
    """A far-field product with random complex probe modes and object, at positions off the pixel grid."""
    from ptychodus.api.constants import energy_eV_to_wavelength_m
    from ptychodus.api.geometry import PixelGeometry
    from ptychodus.api.object import Object, ObjectCenter
    from ptychodus.api.probe import ProbeSequence
    from ptychodus.api.probe_positions import ProbePosition, ProbePositionSequence
    from ptychodus.api.product import Product, ProductMetadata

    rng = np.random.default_rng(seed)
    energy_ev = 8800.0
    wavelength = energy_eV_to_wavelength_m(energy_ev)
    pixel = PixelGeometry(
        width_m=wavelength * DISTANCE_M / (shape[1] * DETECTOR_PIXEL_M[1]),
        height_m=wavelength * DISTANCE_M / (shape[0] * DETECTOR_PIXEL_M[0]),
    )

    def complex_normal(*size: int) -> np.ndarray:
        return rng.standard_normal(size) + 1j * rng.standard_normal(size)

    span = 7.0
    points = [
        ProbePosition(
            index=index,
            x_m=1e-6 + rng.uniform(-span, span) * pixel.width_m,
            y_m=-2e-6 + rng.uniform(-span, span) * pixel.height_m,
        )
        for index in range(positions)
    ]
    return Product(
        metadata=ProductMetadata(
            name='random',
            comments='',
            detector_distance_m=DISTANCE_M,
            photon_energy_eV=energy_ev,
            probe_photon_count=1e4,
            exposure_time_s=0.0,
            mass_attenuation_m2_per_kg=0.0,
            tomography_angle_deg=0.0,
        ),
        probe_positions=ProbePositionSequence(points),
        probes=ProbeSequence(complex_normal(1, modes, *shape), None, pixel),
        object_=Object(complex_normal(1, shape[0] + 20, shape[1] + 24), pixel, ObjectCenter(x_m=1e-6, y_m=-2e-6)),
        losses=[],
    )
