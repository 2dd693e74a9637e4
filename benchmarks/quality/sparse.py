"""Scans with little overlap: four objects at three overlaps and two doses, refined with known probe and positions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ptychopinn_torch_plugin.data.io.product import product_from_reconstruction, scan_from_reconstruct_input
from ptychopinn_torch_plugin.demo.simulate import ScanPlan
from ptychopinn_torch_plugin.engines.pipeline import refine
from ptychopinn_torch_plugin.metrics import compare_with_truth

from ..faint.objects import clean_scan
from .networks import SPARSELY_LIT
from .table import Line, configure, pair_text

STEPS = {40: 16.0, 25: 20.0, 20: 21.3}
"""Steps of the scan in pixels by linear overlap in percent, with the probe of :class:`ScanPlan`."""
DOSES = {'1e6': 1e6, '1e5': 1e5}
KINDS = ('photograph', 'text', 'grass', 'star')
SEED = 7
"""Of positions, parts of the images and counts."""
SETTINGS: dict[str, object] = {'refine_probe': False, 'refine_positions': False, 'refine_epochs': 60}


@dataclass(frozen=True)
class SparseRow:
    """Overlap in percent and photons per pattern."""

    overlap: int
    photons: float


SPARSE_ROWS = {
    f'sparse-{overlap}-{name}': SparseRow(overlap, photons) for overlap in STEPS for name, photons in DOSES.items()
}
"""The rows by their keys."""


def sparse_lines(row: SparseRow, *, all_epochs: bool, seed: int = SEED) -> Iterator[Line]:
    """Refine the four objects of ``row``: one line for each, then their mean."""
    title = f'121 positions, linear overlap {row.overlap} %, {row.photons:.0e} photons'
    config = configure({'refinement': SETTINGS | {'stop_when_done': not all_epochs}})
    scores, total = [], 0.0
    for kind in KINDS:
        scan = clean_scan(kind, seed, ScanPlan(rows=11, columns=11, step_px=STEPS[row.overlap]))
        parameters = scan.at(row.photons, 1000 + seed)
        raw = scan_from_reconstruct_input(parameters)
        begin = time.perf_counter()
        result = refine(raw, config)
        seconds = time.perf_counter() - begin
        found = compare_with_truth(scan.truth, product_from_reconstruction(parameters, result), SPARSELY_LIT).scores
        scores.append((found.amplitude_ssim, found.phase_ssim))
        total += seconds
        yield Line(title, f'{kind}, {len(result.losses)} epochs', pair_text(scores[-1]), seconds)
    amplitude, phase = np.mean(scores, axis=0)
    yield Line(title, 'mean', pair_text((float(amplitude), float(phase))), total)
