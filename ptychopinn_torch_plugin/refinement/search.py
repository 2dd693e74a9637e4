"""A search for positions that are several pixels wrong, before the refinement proper.

Positions are refined on the central half of the detector first, where an error is half as many pixels, then for a few
epochs on all of it. Patterns that still fit worst are tried at every pixel around their given position on the object
that the others made, and are put where they fit best; that is done twice.
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
from ..physics.residual import Batch, Experiment, residual_of
from ..tensors import ScanTensors
from .coarse import coarse_scan
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
    solver = _solved(
        coarse,
        short.model_copy(update={'refine_epochs': COARSE_EPOCHS, 'positions_start': 3}),
        device,
        should_stop,
    )
    positions = scan.positions + _moved(solver) * factors
    tried = moved = 0
    for _ in range(ROUNDS):
        if should_stop():
            return positions
        now = replace(scan, positions=positions)
        solver = _solved(
            now, short.model_copy(update={'refine_epochs': FINE_EPOCHS, 'positions_start': 5}), device, should_stop
        )
        positions, tried, moved = _find_lost(scan, now, solver, device, reach)
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


def _find_lost(
    scan: RawScan, now: RawScan, solver: Solver, device: torch.device, reach: int
) -> tuple[Positions, int, int]:
    """Positions after trying the worst patterns around where ``scan`` has them; how many were tried, and moved."""
    tensors = ScanTensors(now, device, probe=solver.unknowns.probe.cpu().numpy())
    everything = np.arange(now.size)
    at_present = solver.unknowns.positions
    misfits = _misfits(solver, tensors, everything, at_present)
    positions = now.positions + _moved(solver)
    to_canvas = at_present.cpu().numpy() - positions
    lost = _suspects(misfits, positions)
    offsets = np.arange(-reach, reach + 1.0)
    around = np.stack(np.meshgrid(offsets, offsets, indexing='ij'), axis=-1).reshape(-1, 2)
    limit = np.array(solver.shape) - np.array(now.pattern_shape) - 1e-3
    moved = 0
    for index in lost:
        candidates = np.clip(scan.positions[index] + around + to_canvas[index], 0.0, limit)
        values = _misfits(solver, tensors, np.full(len(around), index), torch.from_numpy(candidates).float().to(device))
        best = int(values.argmin())
        if values[best] < misfits[index]:
            positions[index] = candidates[best] - to_canvas[index]
            moved += 1
    return positions, len(lost), moved


def _suspects(misfits: npt.NDArray[np.floating], positions: Positions) -> npt.NDArray[np.intp]:
    """Patterns that fit worse than their neighbours do, and the worst ones in any case."""
    _, neighbours = cKDTree(positions).query(positions, k=min(NEIGHBOURS, len(positions)))
    relative = misfits / np.median(misfits[neighbours.reshape(len(positions), -1)], axis=1).clip(1e-12)
    suspects: npt.NDArray[np.intp] = np.flatnonzero(
        (relative > SUSPICIOUS) | (relative >= np.quantile(relative, 1 - SHARE_TRIED))
    )
    return suspects


def _misfits(
    solver: Solver, tensors: ScanTensors, indices: npt.NDArray[np.integer], positions: Tensor
) -> npt.NDArray[np.float32]:
    """Mean amplitude deviance of patterns ``indices`` ``(K,)`` put at canvas ``positions`` ``(K, 2)``, ``(K,)``."""
    experiment = Experiment(tensors.good_pixels, tensors.phase, 'amplitude')
    good = float(tensors.good_pixels.sum())
    found = []
    with torch.inference_mode():
        for part in np.array_split(np.arange(len(indices)), math.ceil(len(indices) / CANDIDATES_AT_A_TIME)):
            there = positions[torch.from_numpy(part).to(positions.device)]
            first = there.floor()
            batch = Batch(tensors.amplitudes(indices[part]), first.long(), there - first)
            residual = residual_of(solver.unknowns.canvas, solver.unknowns.probe, batch, experiment)
            squares = (residual.amplitudes - batch.amplitudes).square() * tensors.good_pixels
            found.append(4 * squares.sum(dim=(-2, -1)) / good)
    misfits: npt.NDArray[np.float32] = torch.cat(found).cpu().numpy()
    return misfits
