"""A simulated scan with a known object, made with Ptychodus' own simulators.

The scan resembles those of a hard x-ray microprobe: a zone plate out of focus, a sample of overlapping discs (the
dead-leaves model), a jittered raster, photon noise. Written as a Ptychodus workflow folder plus ``truth.h5``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ptychodus.api.object import Object, ObjectGeometry
    from ptychodus.api.probe import Probe, ProbeGeometry
    from ptychodus.api.probe_positions import ProbePositionSequence
    from ptychodus.api.product import Product

TRUTH_FILE = 'truth.h5'
LINE_AREA_PX = 300.0
"""Pixels of the sample 'lines' per line."""


@dataclass(frozen=True)
class ScanPlan:
    """Parameters of a simulation; lengths in metres where the name ends in ``_m``, in object pixels elsewhere."""

    seed: int = 1
    sample: str = 'discs'
    """'discs' (dead leaves), 'star' (Siemens star), 'texture' (smooth noise) or 'lines' (long thin absorbing lines)."""
    rows: int = 22
    columns: int = 22
    step_px: float = 5.0
    jitter_px: float = 1.0
    pattern_shape: tuple[int, int] = (64, 64)
    photons: float = 1e6
    """Photons per frame where the sample is transparent."""
    defocus_m: float = 1.3e-3
    modes: int = 1
    """Incoherent probe modes; the first one holds 70 % of the power where there are more."""
    assumed_defocus_factor: float = 1.0
    """Factor on the defocus of the probe in the product that is written; 1 gives the true probe."""
    noise: bool = True

    detector_pixel_m: float = 75e-6
    detector_distance_m: float = 2.0
    photon_energy_ev: float = 8800.0
    zone_plate_diameter_m: float = 100e-6
    outermost_zone_width_m: float = 140e-9
    central_beamstop_m: float = 30e-6

    @property
    def positions(self) -> int:
        """Number of scan positions."""
        return self.rows * self.columns


def simulate_scan(folder: Path, plan: ScanPlan) -> None:
    """Write ``diffraction.h5``, ``product.h5`` (flat object) and ``truth.h5`` into ``folder``.

    The host's simulator is not unitary (its counts carry the squared ratio of object and detector pixels), so the
    factor is undone before Poisson noise is added: a transparent sample gives ``plan.photons`` counts per frame.
    """
    from ptychodus.api.assemble import AssembledDiffractionData
    from ptychodus.api.io import StandardFileLayout, save_diffraction_data, save_product
    from ptychodus.api.simulate.diffraction import generate_diffraction_data

    rng = np.random.default_rng(plan.seed)
    truth, given = products_of(plan, rng)

    simulated = generate_diffraction_data(truth)
    detector = simulated.get_pixel_geometry()
    pixel = truth.probes.get_pixel_geometry()
    unitary = (detector.width_m / pixel.width_m) * (detector.height_m / pixel.height_m)
    counts = simulated.get_patterns() * unitary
    data = AssembledDiffractionData(
        simulated.get_indexes(),
        rng.poisson(counts).astype(np.uint32) if plan.noise else counts.astype(np.float32),
        detector,
        simulated.get_bad_pixels(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_diffraction_data(folder / StandardFileLayout.DIFFRACTION, data)
    save_product(folder / StandardFileLayout.PRODUCT, given)
    save_product(folder / TRUTH_FILE, truth)


def products_of(plan: ScanPlan, rng: np.random.Generator) -> tuple[Product, Product]:
    """Return the true product of a plan, and the product that is handed out, with a flat object."""
    from ptychodus.api.simulate.object import generate_uniform_object

    geometry = _probe_geometry(plan)
    positions = _positions(plan, geometry, rng)
    object_geometry = _object_geometry(positions, geometry)
    truth = _product(plan, positions, _probe(plan, geometry, 1.0), _sample(plan, object_geometry, rng))
    assumed = _probe(plan, geometry, plan.assumed_defocus_factor)
    return truth, _product(plan, positions, assumed, generate_uniform_object(object_geometry))


def _probe_geometry(plan: ScanPlan) -> ProbeGeometry:
    from ptychodus.api.constants import energy_eV_to_wavelength_m
    from ptychodus.api.geometry import ImageExtent, PixelGeometry
    from ptychodus.api.probe import ProbeGeometry

    height, width = plan.pattern_shape
    return ProbeGeometry.from_far_field(
        PixelGeometry(width_m=plan.detector_pixel_m, height_m=plan.detector_pixel_m),
        ImageExtent(width_px=width, height_px=height),
        wavelength_m=energy_eV_to_wavelength_m(plan.photon_energy_ev),
        distance_m=plan.detector_distance_m,
    )


def _positions(plan: ScanPlan, geometry: ProbeGeometry, rng: np.random.Generator) -> ProbePositionSequence:
    """Return a snake raster with uniform jitter; a perfect raster has an ambiguity with the period of the grid."""
    from ptychodus.api.probe_positions import ProbePosition, ProbePositionSequence
    from ptychodus.api.simulate.probe_positions import generate_cartesian_probe_positions

    raster = generate_cartesian_probe_positions(
        plan.columns,
        plan.rows,
        plan.step_px * geometry.pixel_width_m,
        plan.step_px * geometry.pixel_height_m,
        snake=True,
    )
    jitter = rng.uniform(-plan.jitter_px, plan.jitter_px, size=(plan.positions, 2))
    return ProbePositionSequence(
        [
            ProbePosition(
                index=point.index,
                x_m=point.x_m + jitter[i, 1] * geometry.pixel_width_m,
                y_m=point.y_m + jitter[i, 0] * geometry.pixel_height_m,
            )
            for i, point in enumerate(raster)
        ]
    )


def _object_geometry(positions: ProbePositionSequence, geometry: ProbeGeometry) -> ObjectGeometry:
    from ptychodus.api.object import compute_object_geometry

    return compute_object_geometry(positions, geometry, padding_px=2)


def _probe(plan: ScanPlan, geometry: ProbeGeometry, defocus_factor: float) -> Probe:
    from ptychodus.api.constants import energy_eV_to_wavelength_m
    from ptychodus.api.simulate.probe import (
        FresnelZonePlate,
        generate_fresnel_zone_plate_probe,
        rescale_probe_intensity,
    )

    probe = generate_fresnel_zone_plate_probe(
        geometry,
        FresnelZonePlate(
            zone_plate_diameter_m=plan.zone_plate_diameter_m,
            outermost_zone_width_m=plan.outermost_zone_width_m,
            central_beamstop_diameter_m=plan.central_beamstop_m,
        ),
        photon_wavelength_m=energy_eV_to_wavelength_m(plan.photon_energy_ev),
        defocus_distance_m=plan.defocus_m * defocus_factor,
    )
    return rescale_probe_intensity(_with_modes(probe, plan.modes), plan.photons)


def _with_modes(probe: Probe, modes: int) -> Probe:
    """Add weaker orthogonal modes, as in a vibrating or partially coherent beam."""
    from ptychodus.api.probe import Probe

    if modes == 1:
        return probe
    beam = probe.get_incoherent_mode(0)
    gradients = np.stack([beam, *np.gradient(beam), *np.gradient(np.gradient(beam)[0])][:modes])
    basis = np.linalg.qr(gradients.reshape(modes, -1).T)[0].T.reshape(gradients.shape)
    powers = np.array([0.7] + [0.3 / (modes - 1)] * (modes - 1))
    return Probe(basis * np.sqrt(powers)[:, None, None], probe.get_pixel_geometry())


def _sample(plan: ScanPlan, geometry: ObjectGeometry, rng: np.random.Generator) -> Object:
    from ptychodus.api.object import Object
    from ptychodus.api.simulate.object import generate_dead_leaves_object, generate_siemens_star_object

    if plan.sample == 'discs':
        return generate_dead_leaves_object(
            rng,
            geometry,
            leaf_radius_lower_px=3.0,
            leaf_radius_upper_px=30.0,
            leaf_radius_power_law_exponent=2.5,
            leaf_amplitude_lower=0.6,
            leaf_amplitude_upper=1.0,
            leaf_phase_lower_tr=-0.15,
            leaf_phase_upper_tr=0.0,
        )
    if plan.sample == 'star':
        return generate_siemens_star_object(
            geometry,
            num_spokes=24,
            outer_radius_fraction=0.8,
            spoke_amplitude=0.75,
            background_amplitude=1.0,
            spoke_phase_tr=-0.12,
            background_phase_tr=0.0,
        )
    if plan.sample == 'texture':
        smooth = _smooth_noise(rng, (2, geometry.height_px, geometry.width_px), correlation_px=8.0)
        transmission = np.clip(0.8 + 0.1 * smooth[0], 0.3, 1.0) * np.exp(0.4j * smooth[1])
        return Object(array=transmission, pixel_geometry=geometry.get_pixel_geometry(), center=geometry.get_center())
    if plan.sample == 'lines':
        transmission = _lines(rng, (geometry.height_px, geometry.width_px)).astype(np.complex128)
        return Object(array=transmission, pixel_geometry=geometry.get_pixel_geometry(), center=geometry.get_center())
    raise ValueError(f"sample = {plan.sample!r}: choose 'discs', 'star', 'texture' or 'lines'.")


def _lines(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return amplitudes ``(h, w)`` of random long thin lines; where lines cross, their transmissions multiply."""
    y, x = np.indices(shape, dtype=np.float32)
    amplitude = np.ones(shape, dtype=np.float32)
    for _ in range(round(shape[0] * shape[1] / LINE_AREA_PX)):
        centre_y, centre_x = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        angle = rng.uniform(0, np.pi)
        length, width = rng.uniform(20, 100), rng.uniform(1.0, 3.0)
        along = (y - centre_y) * np.sin(angle) + (x - centre_x) * np.cos(angle)
        across = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
        # Edges one pixel wide: detail below the pixel size cannot be reconstructed.
        inside = np.clip((length - 2 * np.abs(along)) / 2 + 0.5, 0, 1) * np.clip(width / 2 - np.abs(across) + 0.5, 0, 1)
        amplitude *= 1 - rng.uniform(0.1, 0.4) * inside
    return np.maximum(amplitude, 0.2)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], correlation_px: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal(shape), sigma=(0, correlation_px, correlation_px), mode='wrap')
    return np.asarray(noise / noise.std())


def _product(plan: ScanPlan, positions: ProbePositionSequence, probe: Probe, sample: Object) -> Product:
    from ptychodus.api.probe import ProbeSequence
    from ptychodus.api.product import Product, ProductMetadata

    metadata = ProductMetadata(
        name='simulated',
        comments='',
        detector_distance_m=plan.detector_distance_m,
        photon_energy_eV=plan.photon_energy_ev,
        probe_photon_count=plan.photons,
        exposure_time_s=0.0,
        mass_attenuation_m2_per_kg=0.0,
        tomography_angle_deg=0.0,
    )
    return Product(
        metadata=metadata,
        probe_positions=positions,
        probes=ProbeSequence.from_probe(probe),
        object_=sample,
        losses=[],
    )
