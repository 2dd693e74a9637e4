"""Scans with one known fault each, from seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.demo.simulate import ScanPlan
from ptychopinn_torch_plugin.engines.verification import reversed_defocus
from ptychopinn_torch_plugin.inspection.diagnosis import diameter_of, propagated

from ..faint.objects import CleanScan, clean_scan
from .scans import DEFOCUS_M, KINDS

PHOTONS = 1e5
ROWS = 8

FAULTS = {
    'distance 5 %': 'scale',
    'flip': 'flipped',
    'transposition': 'transposed',
    'rotation 3 degrees': 'rotation',
    'defocus sign': 'reversed',
    'defocus 30 %': 'defocus',
    'dead module': 'dead_pixels',
    'centre 2 px': 'centre',
    'drift': 'drift',
    'flicker 15 %': 'flicker',
    'missing modes': 'modes',
    'too few photons': 'few_photons',
    'too little overlap': 'overlap',
    'raster': 'raster',
}
"""Injected faults, and the cause that is right."""


def faulty_scan(fault: str | None, seed: int, photons: float = PHOTONS) -> RawScan:
    """Return a scan with ``fault`` (None: a healthy one); seed and fault decide object, defocus and noise."""
    rng = np.random.default_rng([seed, 0 if fault is None else 1 + list(FAULTS).index(fault)])
    sign = rng.choice([-1.0, 1.0])
    plan = ScanPlan(rows=ROWS, columns=ROWS, defocus_m=float(sign * rng.uniform(1.0, 1.6) * DEFOCUS_M))
    plan = replace(plan, **PLANS.get(fault or '', {}))
    if fault == 'too little overlap':
        probe = clean_scan('star', 0, replace(plan, rows=2, columns=2)).raw(PHOTONS, 0).probe
        plan = replace(plan, step_px=(1 - INJECTED_OVERLAP) * diameter_of(probe))
    clean = clean_scan(KINDS[seed % len(KINDS)], 300 + seed, plan)
    if fault == 'flicker 15 %':
        factors = np.exp(0.15 * rng.standard_normal(len(clean.patterns)))
        clean = replace(clean, patterns=clean.patterns * factors[:, None, None])
    scan = clean.raw(FEW_PHOTONS if fault == 'too few photons' else photons, 400 + seed)
    scan = _with_wrong_positions(scan, fault, rng)
    scan = _with_wrong_patterns(scan, fault, rng)
    if fault == 'missing modes':
        return replace(scan, probe=scan.probe[:1])
    if fault == 'defocus sign':
        return replace(scan, probe=reversed_defocus(scan.probe))
    if fault == 'defocus 30 %':
        curvature = float(rng.choice([-0.3, 0.3])) * curvature_px2(plan, clean)
        return replace(scan, probe=propagated(scan.probe, curvature))
    return scan


PLANS: dict[str, dict[str, Any]] = {
    'missing modes': {'modes': 3},
    'too little overlap': {'jitter_px': 2.0, 'rows': 6, 'columns': 6},
    'raster': {'jitter_px': 0.0},
}
"""Faults of the plan of the scan."""
FEW_PHOTONS = 60.0
INJECTED_OVERLAP = 0.3
"""Linear overlap of neighbouring positions, less the jitter, in "too little overlap"."""


def _with_wrong_positions(scan: RawScan, fault: str | None, rng: np.random.Generator) -> RawScan:
    middle = scan.positions.mean(axis=0)
    moved = scan.positions - middle
    if fault == 'distance 5 %':
        moved = moved * rng.choice([0.95, 1.05])
    elif fault == 'rotation 3 degrees':
        angle = np.radians(3.0) * rng.choice([-1.0, 1.0])
        moved = moved @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    elif fault == 'drift':
        time = np.linspace(0, 1, scan.size)
        drift = 2.0 * np.stack([np.sin(2 * np.pi * (time + rng.uniform())), np.sin(3 * np.pi * time)], axis=-1)
        moved = moved + drift - drift.mean(axis=0)
    return replace(scan, positions=moved + middle)


def _with_wrong_patterns(scan: RawScan, fault: str | None, rng: np.random.Generator) -> RawScan:
    counts = np.asarray(scan.counts)
    if fault == 'flip':
        # The zero frequency stays at N // 2.
        counts = np.roll(counts[..., ::-1], 1 - counts.shape[-1] % 2, axis=-1)
    elif fault == 'transposition':
        counts = counts.swapaxes(1, 2)
    elif fault == 'dead module':
        y, x = (int(value) for value in rng.integers(18, 36, 2))
        counts = counts.copy()
        counts[:, y : y + 10, x : x + 10] = 0
    elif fault == 'centre 2 px':
        shift = [(2, 0), (0, 2), (-2, 0), (0, -2)][int(rng.integers(4))]
        counts = np.roll(counts, shift, axis=(1, 2))
    return replace(scan, counts=np.ascontiguousarray(counts))


def curvature_px2(plan: ScanPlan, clean: CleanScan) -> float:
    """Return wavelength times defocus over the area of an object pixel."""
    truth = clean.truth
    pixel = truth.probes.get_pixel_geometry()
    wavelength = 1.239841984e-6 / truth.metadata.photon_energy_eV
    return float(wavelength * plan.defocus_m / (pixel.height_m * pixel.width_m))
