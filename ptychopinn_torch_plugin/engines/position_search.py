"""A search for positions that are several pixels wrong, before the refinement proper.

Positions are refined on the central half of the detector first, where an error is half as many pixels, then for a few
epochs on all of it. Patterns that then fit worse than their neighbours, or much better (alone at an edge they make an
object of their own), are left out of another solution, tried on it at every pixel around their given position, and put
where they fit best. All that but the first step is done twice.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ..config import RefinementConfig
from ..data.scan import RawScan
from ..data.tensors import ScanTensors
from ..physics.residual import Batch, Experiment, residual_of
from .downsampling import coarse_scan
from .solver import Solver

logger = logging.getLogger(__name__)

COARSE_EPOCHS = 120
FINE_EPOCHS = 30
ROUNDS = 2
NEIGHBOURS = 25
SUSPICIOUS = 1.2
"""A pattern that fits so many times worse than its neighbours (their median) is tried elsewhere."""
SHARE_TRIED = 0.07
"""The worst patterns are tried elsewhere in any case: trying costs little, and moving needs a better fit."""
EXTRA_REACH_PX = 2
CANDIDATES_AT_A_TIME = 64

Positions = npt.NDArray[np.float64]


def search_positions(
    scan: RawScan, config: RefinementConfig, device: torch.device, should_stop: Callable[[], bool]
) -> Positions:
    """Better positions, ``(n, 2)`` as (y, x) in object pixels, for a scan whose own are wrong by some pixels.

    Args:
        scan: the validated scan.
        config: ``search_positions`` says by how many pixels; switches and likelihood are used as well.
        device: where to compute.
        should_stop: asked in every epoch; what was found until then is returned.
    """
    reach = math.ceil(config.search_positions) + EXTRA_REACH_PX
    short = config.model_copy(
        update={'refine_positions': True, 'smoothing': 0.0, 'refine_geometry': False, 'refine_intensity': False}
    )
    coarse, factors = coarse_scan(scan)
    first = short.model_copy(update={'refine_epochs': COARSE_EPOCHS, 'positions_start': 3})
    logger.info('Searching positions up to %d pixels away on the central half of the detector.', reach)
    positions = scan.positions + _moved(_solved(coarse, first, device, should_stop)) * factors
    fine = short.model_copy(update={'refine_epochs': FINE_EPOCHS, 'positions_start': 5})
    tried = moved = 0
    for number in range(ROUNDS):
        if should_stop():
            return positions
        logger.info('Searching positions on the whole detector, round %d of %d.', number + 1, ROUNDS)
        now = replace(scan, positions=positions)
        solver = _solved(now, fine, device, should_stop)
        positions = positions + _moved(solver)
        suspects = _suspects(_misfits(solver, now, solver.unknowns.positions), positions)
        others = np.setdiff1d(np.arange(scan.size), suspects)
        solver = _solved(replace(scan, positions=positions).select(others), fine, device, should_stop)
        tried, moved = suspects.size, 0
        for index in suspects:
            better = _best_place(solver, scan.select(np.array([index])), positions[index], reach)
            moved += int(not np.array_equal(better, positions[index]))
            positions[index] = better
    logger.info(
        'Searched positions up to %d pixels away: they moved by %.2f pixels (median); in the last round %d patterns '
        'were tried elsewhere and %d moved.',
        reach,
        float(np.median(np.linalg.norm(positions - scan.positions, axis=1))),
        tried,
        moved,
    )
    return positions


def _solved(scan: RawScan, config: RefinementConfig, device: torch.device, should_stop: Callable[[], bool]) -> Solver:
    solver = Solver(ScanTensors(scan, device), config, CANDIDATES_AT_A_TIME)
    with torch.inference_mode():
        solver.run(lambda _epoch, _deviance: should_stop())
    return solver


def _moved(solver: Solver) -> Positions:
    return solver.displacements.cpu().numpy().astype(np.float64)


def _best_place(solver: Solver, single: RawScan, present: Positions, reach: int) -> Positions:
    """Where the one pattern of ``single`` fits the solver's object best: at present, or around where it was given."""
    offsets = np.arange(-reach, reach + 1.0)
    around = np.stack(np.meshgrid(offsets, offsets, indexing='ij'), axis=-1).reshape(-1, 2)
    candidates = np.concatenate([present[None], single.positions + around])
    half = (np.array(single.pattern_shape) - 1) / 2
    limit = np.array(solver.shape) - np.array(single.pattern_shape) - 1e-3
    on_canvas = np.clip(candidates - half - solver.origin, 0.0, limit)
    values = _misfits(solver, single, torch.from_numpy(on_canvas).float())
    best: Positions = on_canvas[int(values.argmin())] + half + solver.origin
    return present if values.argmin() == 0 else best


def _suspects(misfits: npt.NDArray[np.floating], positions: Positions) -> npt.NDArray[np.intp]:
    """Patterns that fit worse than their neighbours do, and the worst ones in any case."""
    _, neighbours = cKDTree(positions).query(positions, k=min(NEIGHBOURS, len(positions)))
    relative = misfits / np.median(misfits[neighbours.reshape(len(positions), -1)], axis=1).clip(1e-12)
    suspects: npt.NDArray[np.intp] = np.flatnonzero(
        (relative > SUSPICIOUS) | (relative < 1 / SUSPICIOUS) | (relative >= np.quantile(relative, 1 - SHARE_TRIED))
    )
    return suspects


def _misfits(solver: Solver, scan: RawScan, positions: Tensor) -> npt.NDArray[np.float32]:
    """Mean amplitude deviance of the patterns of ``scan`` put at canvas ``positions`` ``(K, 2)``, ``(K,)``.

    A scan of one pattern is put at all of them.
    """
    device = solver.unknowns.canvas.device
    tensors = ScanTensors(scan, device, probe=solver.unknowns.probe.cpu().numpy(), scale=1.0)
    experiment = Experiment(tensors.good_pixels, tensors.phase, 'amplitude')
    good = float(tensors.good_pixels.sum())
    found = []
    with torch.inference_mode():
        for part in np.array_split(np.arange(len(positions)), math.ceil(len(positions) / CANDIDATES_AT_A_TIME)):
            there = positions[torch.from_numpy(part)].to(device)
            first = there.floor()
            amplitudes = tensors.amplitudes(part if scan.size > 1 else np.zeros(part.size, dtype=np.int64))
            batch = Batch(amplitudes, first.long(), there - first)
            residual = residual_of(solver.unknowns.canvas, solver.unknowns.probe, batch, experiment)
            squares = (residual.amplitudes - batch.amplitudes).square() * tensors.good_pixels
            found.append(4 * squares.sum(dim=(-2, -1)) / good)
    misfits: npt.NDArray[np.float32] = torch.cat(found).cpu().numpy()
    return misfits
