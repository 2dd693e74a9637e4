"""Simulated scans refined from a flat object: the solver's rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ptychopinn_torch_plugin.data.io.product import scan_from_reconstruct_input
from ptychopinn_torch_plugin.engines.pipeline import refine
from ptychopinn_torch_plugin.types import Reconstruction

from .ptychi import UNCHECKED, run_ptychi, time_to_match
from .scans import Row, make_scan
from .table import Gallery, Line, Simulated, configure, is_reached, mode_overlaps, pair_text, timed

LOST_PX = 1.0


def refined(row: Row, output: Path, ptychi: Path | None, *, all_epochs: bool) -> Iterator[Line]:
    """Refine the scan of ``row``; with the Python of a pty-chi environment, run LSQ-ML on it as well.

    ``all_epochs`` switches off that the refinement stops when it is done.
    """
    simulated = Simulated.read(make_scan(row, output / 'scans'))
    gallery = Gallery(simulated, row.title)
    config = configure({'refinement': row.refinement | {'stop_when_done': not all_epochs}})
    result, seconds = timed(lambda: refine(simulated.scan, config))
    found = gallery.add('refinement', simulated.product(result))
    settings = ', '.join(f'{name} = {value}' for name, value in row.refinement.items())
    text, reached = f'{pair_text(found)}, {len(result.losses)} epochs', is_reached(found, row.reach)
    if 'probe_modes' in row.refinement:
        overlaps = mode_overlaps(simulated.truth.probes.get_probe_no_opr().get_array(), result.probe)
        text += f', overlap of the modes {overlaps.min():.3f}'
        reached = reached and bool(overlaps.min() > 0.98)
    if 'search_positions' in row.refinement:
        lost = lost_positions(simulated, result)
        text += f', {lost} positions lost'
        reached = reached and lost == 0
    yield Line(row.title, f'refinement ({settings})', text, seconds, pair_text(row.reach), reached)
    if ptychi is not None:
        product, theirs = run_ptychi(ptychi, simulated.folder, output / 'pty-chi' / row.key)
        scores = gallery.add('LSQ-ML', product)

        def reaches(epochs: int) -> tuple[bool, float]:
            settings = row.refinement | {'refine_epochs': epochs}
            short = configure({'refinement': settings, 'inference': UNCHECKED})
            own, needed = timed(lambda: refine(simulated.scan, short))
            return is_reached(gallery.score(simulated.product(own)), scores), needed

        text = f'{pair_text(scores)}; {time_to_match(reaches)}'
        yield Line(row.title, f'pty-chi, LSQ-ML, 100 epochs, {theirs / seconds:.0f} times as long', text, theirs)
    gallery.draw(output / f'{simulated.folder.name}.png')


def lost_positions(simulated: Simulated, result: Reconstruction) -> int:
    """Positions that are more than a pixel from the truth, after a common affine error is removed."""
    true = scan_from_reconstruct_input(replace(simulated.parameters, product=simulated.truth)).positions
    error = result.positions - true
    common = np.c_[np.ones(len(true)), true - true.mean(axis=0)]
    error = error - common @ np.linalg.lstsq(common, error, rcond=None)[0]
    return int((np.linalg.norm(error, axis=1) > LOST_PX).sum())
