"""Print the quality table and draw its pictures.

    python -m benchmarks.quality [-o FOLDER] [--rows 484 defocus ...] [--network] [--star FOLDER]

Every simulated scan is refined from a flat object; with ``--network`` a model is trained on each, too, and network
alone and network with refinement are shown. ``--star`` adds the measured Siemens star (a folder with diffraction.h5,
product.h5 and reference.h5). Times are wall seconds of this machine, threads as printed; SSIM is of
amplitude / phase in the well illuminated rectangle.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ptychodus.api.io import load_product
from ptychodus.api.product import Product
from ptychodus.api.reconstruct import ReconstructInput

from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.data.product import product_from_reconstruction, scan_from_reconstruct_input
from ptychopinn_torch_plugin.data.workflow import load_workflow_folder
from ptychopinn_torch_plugin.demo.picture import Titled, draw_objects
from ptychopinn_torch_plugin.judgement import compare_with_truth, r_factor
from ptychopinn_torch_plugin.persistence import load_model
from ptychopinn_torch_plugin.reconstruction import reconstruct, refine
from ptychopinn_torch_plugin.training.run import train
from ptychopinn_torch_plugin.types import Reconstruction

from .scans import ROWS, Row, make_scan

STAR_REACH = (0.155, 0.97)


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    title: str
    method: str
    scores: str
    seconds: float
    reach: str
    reached: bool | None

    def __str__(self) -> str:
        """The line in Markdown."""
        verdict = '' if self.reached is None else 'reached' if self.reached else '**missed**'
        return f'| {self.title} | {self.method} | {self.scores} | {self.seconds:.1f} | {self.reach} | {verdict} |'


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.quality', description=__doc__)
    parser.add_argument('-o', '--output', type=Path, default=Path('build/quality'))
    parser.add_argument('--rows', nargs='*', choices=[row.key for row in ROWS], default=[row.key for row in ROWS])
    parser.add_argument('--network', action='store_true', help='train on every scan, too')
    parser.add_argument('--star', type=Path)
    parsed = parser.parse_args()
    parsed.output.mkdir(parents=True, exist_ok=True)
    print(f'torch {torch.__version__}, {torch.get_num_threads()} threads\n')
    print('| scan | method | amplitude / phase SSIM | seconds | reach | |\n| --- | --- | --- | --- | --- | --- |')
    for row in (row for row in ROWS if row.key in parsed.rows):
        for line in _simulated(row, parsed.output, network=parsed.network):
            print(line, flush=True)
    if parsed.star is not None:
        print(_star(parsed.star, parsed.output), flush=True)


def _timed(make: Callable[[], Reconstruction], scan_input: ReconstructInput) -> tuple[Product, float]:
    tic = time.perf_counter()
    result = make()
    seconds = time.perf_counter() - tic
    return product_from_reconstruction(scan_input, result), seconds


def _simulated(row: Row, output: Path, *, network: bool) -> list[Line]:
    folder = make_scan(row, output / 'scans')
    parameters = load_workflow_folder(folder)
    scan = scan_from_reconstruct_input(parameters)
    truth = load_product(folder / 'truth.h5')
    config = parse_config({'refinement': row.refinement})
    methods: list[tuple[str, Callable[[], Reconstruction]]] = [('refinement', lambda: refine(scan, config))]
    if network:
        model = load_model(train([scan], config, output / 'models' / row.key))
        alone = _without_refinement(config)
        methods.append(('network alone', lambda: reconstruct(scan, model, alone)))
        methods.append(('network, then refinement', lambda: reconstruct(scan, model, config)))
    settings = ', '.join(f'{name} = {value}' for name, value in row.refinement.items())
    lines: list[Line] = []
    pictures: list[Titled] = []
    for method, make in methods:
        product, seconds = _timed(make, parameters)
        pair = compare_with_truth(truth, product)
        scores = pair.scores
        reached = scores.amplitude_ssim >= row.reach[0] and scores.phase_ssim >= row.reach[1]
        text = f'{scores.amplitude_ssim:.3f} / {scores.phase_ssim:.3f}'
        lines.append(
            Line(
                row.title, f'{method} ({settings})', text, seconds, f'{row.reach[0]:.3f} / {row.reach[1]:.3f}', reached
            )
        )
        pictures = [('truth', pair.truth), *pictures[1:], (method, pair.product)]
    pixel = truth.object_.get_pixel_geometry()
    draw_objects(pictures, (pixel.height_m, pixel.width_m), row.title, output / f'{folder.name}.png')
    return lines


def _without_refinement(config: Config) -> Config:
    return config.model_copy(update={'refinement': config.refinement.model_copy(update={'refine_epochs': 0})})


def _star(folder: Path, output: Path) -> Line:
    parameters = load_workflow_folder(folder)
    scan = scan_from_reconstruct_input(parameters)
    product, seconds = _timed(lambda: refine(scan, Config()), parameters)
    pair = compare_with_truth(load_product(folder / 'reference.h5'), product)
    phase = np.angle(pair.truth)
    found = phase + np.angle(pair.product * pair.truth.conj())
    correlation = float(np.corrcoef(phase.ravel(), found.ravel())[0, 1])
    factor = r_factor(replace(parameters, product=product))
    pixel = product.object_.get_pixel_geometry()
    pictures = [('LSQ-ML, 50 epochs', pair.truth), ('Refine', pair.product)]
    title = f'Siemens star, R-factor {factor:.4f}'
    draw_objects(pictures, (pixel.height_m, pixel.width_m), title, output / 'star.png')
    return Line(
        'measured star, analytic probe',
        'refinement (defaults)',
        f'R {factor:.4f}, phase correlation {correlation:.4f}',
        seconds,
        f'R {STAR_REACH[0]}, {STAR_REACH[1]}',
        factor <= STAR_REACH[0] and correlation >= STAR_REACH[1],
    )


if __name__ == '__main__':
    main()
