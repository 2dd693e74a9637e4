"""Make the pictures of docs/which-setting.md: ``PYTHONPATH=. python docs/make_symptoms.py [NAME ...]``.

A fault is injected into a small simulated scan, which is reconstructed as it is and with the remedy of the page.
All pictures take about a minute on two idle cores; with names, only those are made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.faint.objects import clean_scan
from benchmarks.geometry.faults import faulty_scan
from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.demo.simulate import ScanPlan
from ptychopinn_torch_plugin.engines.pipeline import refine
from ptychopinn_torch_plugin.engines.verification import reversed_defocus
from ptychopinn_torch_plugin.metrics.plots import new_figure
from ptychopinn_torch_plugin.types import Reconstruction

IMAGES = Path(__file__).parent / 'images' / 'symptoms'
DISCS = 4
"""Number of a scan of discs in the benchmarks of the geometry."""
BRIGHT = 1e6
MARGIN_PX = 8
"""Pixels of the object around the positions that are shown."""

Image = npt.NDArray[np.floating]


def amplitude(result: Reconstruction) -> Image:
    """Return the modulus of the object between its positions."""
    return np.abs(_scanned(result))


def phase(result: Reconstruction) -> Image:
    """Return the phase of the object between its positions in radians, relative to its mean."""
    array = _scanned(result)
    return np.angle(array * np.exp(-1j * np.angle(array.mean())))


def _scanned(result: Reconstruction) -> npt.NDArray[np.complexfloating]:
    low = np.maximum(result.positions.min(axis=0).astype(int) - MARGIN_PX, 0)
    high = result.positions.max(axis=0).astype(int) + MARGIN_PX
    return result.object_array[low[0] : high[0], low[1] : high[1]]


@dataclass(frozen=True)
class Case:
    """A scan with a fault, what is shown of its reconstruction, and the remedy: other settings or a repaired scan."""

    scan: RawScan
    remedy: str
    better: dict[str, Any] = field(default_factory=dict)
    repaired: RawScan | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    view: Callable[[Reconstruction], Image] = phase


def orientation() -> Case:
    """A detector that counts its columns from the other side."""
    healthy = faulty_scan(None, DISCS)
    flipped = np.roll(np.asarray(healthy.counts)[..., ::-1], 1, axis=-1)
    return Case(replace(healthy, counts=np.ascontiguousarray(flipped)), 'columns flipped back', repaired=healthy)


def defocus_sign() -> Case:
    """A probe on the other side of the focus."""
    healthy = faulty_scan(None, DISCS)
    return Case(replace(healthy, probe=reversed_defocus(healthy.probe)), 'probe of "inspect"', repaired=healthy)


def probe() -> Case:
    """A probe whose defocus is wrong by 30 %."""
    kept = {'refine_probe': False}
    return Case(faulty_scan('defocus 30 %', DISCS), 'refine_probe=yes', {'refine_probe': True}, settings=kept)


def raster() -> Case:
    """A raster without jitter, and a wrong probe."""
    right = faulty_scan('raster', DISCS)
    wrong = faulty_scan('defocus 30 %', DISCS).probe
    return Case(replace(right, probe=wrong), 'a better probe', repaired=right)


def positions_1px() -> Case:
    """Positions that are wrong by a pixel."""
    kept = {'refine_positions': False}
    return Case(_moved(1.0), 'refine_positions=yes', {'refine_positions': True}, settings=kept)


def positions_3px() -> Case:
    """Positions that are wrong by three pixels."""
    return Case(_moved(3.0), 'search_positions=8', {'search_positions': 8.0})


def rotation() -> Case:
    """Positions that are rotated by 3 degrees against the detector."""
    return Case(
        faulty_scan('rotation 3 degrees', DISCS, BRIGHT),
        'rotated back',
        repaired=faulty_scan(None, DISCS, BRIGHT),
        view=amplitude,
    )


def grain() -> Case:
    """2000 photons per pattern."""
    scan = clean_scan('discs', 304, ScanPlan(rows=8, columns=8)).raw(2e3, 1)
    return Case(scan, 'smoothing=-1', {'smoothing': -1.0}, settings={'smoothing': 0.0}, view=amplitude)


def washed_out() -> Case:
    """Detail as fine as two pixels, and a strong smoothing."""
    scan = clean_scan('fine', 7, ScanPlan(rows=8, columns=8)).raw(1e4, 1)
    return Case(scan, 'smoothing=0.5', {'smoothing': 0.5}, settings={'smoothing': 16.0})


def modes() -> Case:
    """A partially coherent beam of three modes, described by one."""
    return Case(faulty_scan('missing modes', DISCS, BRIGHT), 'probe_modes=3', {'probe_modes': 3}, view=amplitude)


def intensity() -> Case:
    """A beam whose intensity changes by 15 % from pattern to pattern."""
    scan = faulty_scan('flicker 15 %', DISCS, BRIGHT)
    return Case(scan, 'refine_intensity=yes', {'refine_intensity': True}, view=amplitude)


def dead_module() -> Case:
    """A block of the detector that counts nothing."""
    dead = faulty_scan('dead module', DISCS)
    return Case(dead, 'masked', repaired=replace(dead, bad_pixels=~np.asarray(dead.counts).any(axis=0)))


def slope() -> Case:
    """Patterns whose centre is off by two pixels."""
    return Case(faulty_scan('centre 2 px', DISCS), 'centre corrected', repaired=faulty_scan(None, DISCS))


def overlap() -> Case:
    """Steps that are as long as half of the beam."""
    return Case(faulty_scan('too little overlap', DISCS), 'steps of 5 pixels', repaired=faulty_scan(None, DISCS))


CASES = (
    *(orientation, defocus_sign, probe, raster, positions_1px, positions_3px, rotation, grain, washed_out, modes),
    *(intensity, dead_module, slope, overlap),
)


def _moved(sigma_px: float) -> RawScan:
    healthy = faulty_scan(None, DISCS)
    error = np.random.default_rng(0).normal(scale=sigma_px, size=healthy.positions.shape)
    return replace(healthy, positions=healthy.positions + error)


def _reconstruct(scan: RawScan, settings: dict[str, Any]) -> Reconstruction:
    return refine(scan, parse_config({'refinement': settings}))


def draw(case: Case, file: Path) -> None:
    """Reconstruct with the fault and with the remedy, and draw both, with the misfit of each."""
    bad = _reconstruct(case.scan, case.settings)
    good = _reconstruct(case.repaired or case.scan, case.better)
    figure = new_figure(4.6, 2.8)
    for axis, title, result in zip(figure.subplots(1, 2), ('as it is', case.remedy), (bad, good), strict=True):
        image = case.view(result)
        low, high = np.nanpercentile(image, (1, 99))
        axis.imshow(image, cmap='gray', vmin=low, vmax=high, interpolation='nearest')
        axis.set_title(f'{title}\nmisfit {result.metrics.reduced_chi_square:.2f}', fontsize=9)
        axis.axis('off')
    figure.savefig(file, dpi=100)
    print(file.name, f'{bad.metrics.reduced_chi_square:.2f} {good.metrics.reduced_chi_square:.2f}')


def main(names: list[str]) -> None:
    """Write the pictures named, or all."""
    IMAGES.mkdir(exist_ok=True)
    for make in CASES:
        if not names or make.__name__ in names:
            draw(make(), IMAGES / f'{make.__name__}.png')


if __name__ == '__main__':
    main(sys.argv[1:])
