"""The scans of the table, from seeds, through Ptychodus' simulators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ptychopinn_torch_plugin.demo.simulate import TRUTH_FILE, ScanPlan, simulate_scan


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    key: str
    title: str
    plan: ScanPlan
    refinement: dict[str, object]
    """Settings of the refinement that differ from the defaults."""
    reach: tuple[float, float]
    """Amplitude and phase SSIM to reach."""
    spoil: Callable[[Path], None] | None = None
    """Changes the product that is handed out."""


def move_positions(amount_px: float, seed: int) -> Callable[[Path], None]:
    """Hand out positions that are wrong by up to ``amount_px`` pixels per axis, uniformly."""

    def spoil(folder: Path) -> None:
        from ptychodus.api.io import load_product, save_product
        from ptychodus.api.probe_positions import ProbePositionSequence

        product = load_product(folder / 'product.h5')
        pixel = product.probes.get_pixel_geometry()
        rng = np.random.default_rng(seed)
        errors = rng.uniform(-amount_px, amount_px, (len(product.probe_positions), 2))
        points = [
            replace(point, x_m=point.x_m + dx * pixel.width_m, y_m=point.y_m + dy * pixel.height_m)
            for point, (dy, dx) in zip(product.probe_positions, errors, strict=True)
        ]
        save_product(folder / 'product.h5', replace(product, probe_positions=ProbePositionSequence(points)))

    return spoil


def keep_one_mode(folder: Path) -> None:
    """Hand out the strongest probe mode only."""
    from ptychodus.api.io import load_product, save_product
    from ptychodus.api.probe import ProbeSequence

    product = load_product(folder / 'product.h5')
    probes = product.probes
    single = ProbeSequence(probes.get_array()[:, :1], None, probes.get_pixel_geometry())
    save_product(folder / 'product.h5', replace(product, probes=single))


KNOWN: dict[str, object] = {'refine_probe': False, 'refine_positions': False, 'likelihood': 'poisson'}

ROWS = (
    Row('484', '484 x 64x64, 1e6 photons, known probe', ScanPlan(), KNOWN | {'refine_epochs': 25}, (0.970, 0.995)),
    Row(
        '4096', '4,096 x 64x64, the same', ScanPlan(rows=64, columns=64), KNOWN | {'refine_epochs': 22}, (0.965, 0.990)
    ),
    Row(
        'defocus',
        '676 x 64x64, 8e4 photons, probe 20 % out of focus, 4 px steps',
        ScanPlan(seed=5, rows=26, columns=26, step_px=4.0, photons=8e4, assumed_defocus_factor=1.2),
        {'refine_positions': False, 'refine_epochs': 38, 'smoothing': 6.0},
        (0.88, 0.98),
    ),
    Row(
        'positions',
        '1 px position error per axis, probe 30 % out of focus',
        ScanPlan(seed=7, assumed_defocus_factor=1.3),
        {'refine_epochs': 120, 'positions_start': 25, 'likelihood': 'poisson'},
        (0.970, 0.995),
        move_positions(1.0, 11),
    ),
    Row(
        'lost',
        '3 px position error per axis',
        ScanPlan(seed=10),
        {'refine_epochs': 160, 'search_positions': 3.0, 'likelihood': 'poisson'},
        (0.95, 0.98),
        move_positions(3.0, 12),
    ),
    Row(
        'modes',
        'two probe modes (70/30 power), started from one',
        ScanPlan(seed=6, modes=2),
        {'refine_epochs': 120, 'probe_modes': 2, 'refine_positions': False, 'likelihood': 'poisson'},
        (0.95, 0.98),
        keep_one_mode,
    ),
    Row('dose-discs', '1e4 photons, discs', ScanPlan(seed=8, photons=1e4), KNOWN, (0.90, 0.94)),
    Row(
        'dose-texture',
        '1e4 photons, smooth texture',
        ScanPlan(seed=9, photons=1e4, sample='texture'),
        KNOWN,
        (0.89, 0.92),
    ),
)
"""The solver's rows."""


def make_plan(plan: ScanPlan, folder: Path) -> Path:
    """Simulate ``plan`` into ``folder`` unless it is there, and return the folder."""
    if not (folder / TRUTH_FILE).is_file():
        simulate_scan(folder, plan)
    return folder


def make_scan(row: Row, folder: Path) -> Path:
    """Simulate the scan of ``row`` into ``folder`` unless it is there, and return its workflow folder."""
    target = folder / row.key
    if not (target / TRUTH_FILE).is_file():
        simulate_scan(target, row.plan)
        if row.spoil is not None:
            row.spoil(target)
    return target
