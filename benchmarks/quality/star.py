"""The measured Siemens star: refinement, geometry search, half scans, and the network with the defaults."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from ptychodus.api.io import load_product
from ptychodus.api.product import Product

from ptychopinn_torch_plugin.data.io.product import product_from_reconstruction, scan_from_reconstruct_input
from ptychopinn_torch_plugin.data.io.workflow_folder import load_workflow_folder
from ptychopinn_torch_plugin.demo.plots import draw_objects
from ptychopinn_torch_plugin.engines.pipeline import reconstruct, refine
from ptychopinn_torch_plugin.metrics import compare_with_truth, r_factor
from ptychopinn_torch_plugin.storage.model_file import load_model
from ptychopinn_torch_plugin.training.run import train

from .ptychi import UNCHECKED, run_ptychi, time_to_match
from .table import Line, configure, timed

TITLE = 'measured Siemens star, probe from a formula'


class Star:
    """The scan, its reference, and what is said of products."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parameters = load_workflow_folder(folder)
        self.scan = scan_from_reconstruct_input(self.parameters)
        self.reference = load_product(folder / 'reference.h5')

    def judge(self, product: Product) -> tuple[float, float]:
        """R-factor, and correlation of the phase with the reference."""
        pair = compare_with_truth(self.reference, product)
        phase = np.angle(pair.truth)
        found = phase + np.angle(pair.product * pair.truth.conj())
        correlation = float(np.corrcoef(phase.ravel(), found.ravel())[0, 1])
        return r_factor(replace(self.parameters, product=product)), correlation

    def line(self, method: str, product: Product, seconds: float | None, reach: tuple[float, float] | None) -> Line:
        """A line of the table; ``reach`` is the largest R-factor and the smallest correlation."""
        factor, correlation = self.judge(product)
        text = f'R {factor:.4f}, phase correlation {correlation:.4f}'
        if reach is None:
            return Line(TITLE, method, text, seconds)
        reached = factor < reach[0] and correlation > reach[1]
        return Line(TITLE, method, text, seconds, f'R {reach[0]}, correlation {reach[1]}', reached)


def star_lines(folder: Path, output: Path, ptychi: Path | None, *, all_epochs: bool) -> Iterator[Line]:
    """The measured star by refinement alone."""
    star = Star(folder)
    result, seconds = timed(lambda: refine(star.scan, configure({'refinement': {'stop_when_done': not all_epochs}})))
    product = product_from_reconstruction(star.parameters, result)
    yield star.line(f'refinement (defaults), {len(result.losses)} epochs', product, seconds, (0.155, 0.97))
    _draw(star, product, output / 'star.png')

    wide = configure({'refinement': {'refine_geometry': True, 'probe_modes': 2}})
    result, seconds = timed(lambda: refine(star.scan, wide))
    product = product_from_reconstruction(star.parameters, result)
    yield star.line('refinement, geometry searched, 2 modes', product, seconds, (0.138, 0.0))

    halves = configure({'inference': {'half_scans': True}})
    result, seconds = timed(lambda: refine(star.scan, halves))
    rings = None if result.metrics is None else result.metrics.frc
    pixel_nm = 1e9 * star.reference.object_.get_pixel_geometry().width_m
    period = float('nan') if rings is None or rings.resolution_px is None else rings.resolution_px * pixel_nm
    yield Line(
        TITLE, 'refinement of half scans', f'half-bit at {period:.0f} nm (period)', seconds, '150 nm', period < 150
    )

    if ptychi is not None:
        product, seconds = run_ptychi(ptychi, folder, output / 'pty-chi' / 'star', epochs=50)
        factor, _ = star.judge(product)

        def reaches(epochs: int) -> tuple[bool, float]:
            short = configure({'refinement': {'refine_epochs': epochs}, 'inference': UNCHECKED})
            own, needed = timed(lambda: refine(star.scan, short))
            return star.judge(product_from_reconstruction(star.parameters, own))[0] <= factor, needed

        method = f'pty-chi, LSQ-ML, 50 epochs; its R-factor {time_to_match(reaches)}'
        yield star.line(method, product, seconds, None)


def network_lines(folder: Path, output: Path) -> Iterator[Line]:
    """PINN with the defaults, which learn the probe: the network alone, and what follows it by default."""
    star = Star(folder)
    config = configure({})
    tic = time.perf_counter()
    model = load_model(train([star.scan], config, output / 'models' / 'star'))
    training = time.perf_counter() - tic
    for name, tree in (('network alone', {'refinement': {'refine_epochs': 0}}), ('then refinement', {})):
        result, seconds = timed(partial(reconstruct, star.scan, model, configure(tree)))
        product = product_from_reconstruction(star.parameters, result)
        method = f'PINN (defaults), trained in {training:.0f} s, {name}'
        yield star.line(method, product, seconds, (0.155, 0.97))


def _draw(star: Star, product: Product, file: Path) -> None:
    pair = compare_with_truth(star.reference, product)
    pixel = product.object_.get_pixel_geometry()
    pictures = [('LSQ-ML, 50 epochs', pair.truth), ('Refine', pair.product)]
    factor, _ = star.judge(product)
    draw_objects(pictures, (pixel.height_m, pixel.width_m), f'Siemens star, R-factor {factor:.4f}', file)
