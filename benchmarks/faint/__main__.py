"""``python -m benchmarks.faint -o FOLDER``: strength of total variation against dose."""

from __future__ import annotations

import argparse
import csv
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ptychopinn_torch_plugin.config import AUTOMATIC_SMOOTHING
from ptychopinn_torch_plugin.data.io.product import product_from_reconstruction, scan_from_reconstruct_input
from ptychopinn_torch_plugin.engines.pipeline import refine
from ptychopinn_torch_plugin.metrics import compare_with_truth

from ..quality.table import configure
from .objects import OBJECTS, CleanScan, clean_scan

DOSES = (3e2, 1e3, 3e3, 1e4, 1e5, 1e6)
FACTORS = (0.0, 0.04, 0.08, 0.16, 0.25, 0.32, 0.64)
"""Strength over the square root of the photons per lit pixel."""
FIXED = 4.0
"""The default strength before it followed the dose, for comparison."""
SETTINGS = {'refine_probe': False, 'refine_positions': False, 'refine_epochs': 40, 'stop_when_done': False}


def measure(scan: CleanScan, kind: str, seed: int, photons: float) -> Iterator[dict[str, object]]:
    """Yield one row for each strength."""
    parameters = scan.at(photons, 1000 + seed)
    raw = scan_from_reconstruct_input(parameters)
    lit = math.nan
    for factor in (*FACTORS, 'fixed', 'default'):
        if isinstance(factor, str):
            strength = FIXED if factor == 'fixed' else AUTOMATIC_SMOOTHING
        else:
            strength = factor * math.sqrt(lit) if factor else 0.0
        result = refine(raw, configure({'refinement': {**SETTINGS, 'smoothing': strength}}))
        if result.metrics is None:
            raise RuntimeError('The refinement was stopped.')
        photons_map = result.metrics.photons_map
        bright = photons_map > 0.5 * photons_map[photons_map > 0].mean()
        lit = float(np.median(photons_map[bright]))
        scores = compare_with_truth(scan.truth, product_from_reconstruction(parameters, result)).scores
        yield {
            'object': kind, 'seed': seed, 'photons': photons, 'lit': round(lit, 2),
            'factor': factor, 'strength': round(strength, 3),
            'amplitude': round(scores.amplitude_ssim, 4), 'phase': round(scores.phase_ssim, 4),
            'phase_error': round(scores.phase_error_rad, 4), 'ring_area': round(scores.ring_area, 4),
        }  # fmt: skip


def main() -> None:
    """Measure, and write a CSV file with one row for each run."""
    parser = argparse.ArgumentParser(description='Strength of total variation against dose.')
    parser.add_argument('-o', '--output', type=Path, required=True, help='CSV file')
    parser.add_argument('--seeds', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--objects', nargs='+', default=list(OBJECTS))
    parser.add_argument('--doses', type=float, nargs='+', default=list(DOSES))
    parsed = parser.parse_args()
    parsed.output.parent.mkdir(parents=True, exist_ok=True)
    with parsed.output.open('w', newline='') as stream:
        writer: csv.DictWriter[str] | None = None
        for kind, seed in itertools.product(parsed.objects, parsed.seeds):
            scan = clean_scan(kind, seed)
            for photons in parsed.doses:
                for row in measure(scan, kind, seed, photons):
                    writer = writer or _start(stream, row)
                    writer.writerow(row)
                    stream.flush()


def _start(stream: object, row: dict[str, object]) -> csv.DictWriter[str]:
    writer: csv.DictWriter[str] = csv.DictWriter(stream, list(row))  # type: ignore[arg-type]
    writer.writeheader()
    return writer


if __name__ == '__main__':
    main()
