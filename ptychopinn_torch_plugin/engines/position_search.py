"""Search for positions that are wrong by several pixels, before the refinement proper.

1. Refine object and positions on the central half of the detector, where an error is half as many pixels.
2. Refine for a few epochs on the whole detector.
3. Select suspects: patterns whose deviance is larger or smaller than that of their neighbours by a factor (a group of
   patterns at an edge can fit an object of its own too well), and a fixed share of the largest.
4. Refine an object without the suspects, evaluate the deviance of each suspect on it at every pixel around its given
   position, and move it to the smallest.

Steps 2 to 4 are done twice. The method has no derivation; its numbers were chosen by the share of positions that is
found on simulated scans with errors of 3 pixels per axis (:doc:`/benchmarks`).
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

from ..config import KernelChoice, RefinementConfig
from ..data.scan import RawScan
from ..data.tensors import ScanTensors, initial_state
from ..physics.forward import simulate
from ..types import ReconstructionState
from .downsampling import coarse_scan
from .solver import Solver

logger = logging.getLogger(__name__)

COARSE_EPOCHS = 120
FINE_EPOCHS = 30
ROUNDS = 2
NEIGHBOURS = 25
SUSPICIOUS = 1.2
"""A pattern is a suspect if its deviance differs from the median of its neighbours by this factor."""
SHARE_TRIED = 0.07
"""Share of the patterns, those of the largest deviance, that are suspects in any case: a test is cheap."""
EXTRA_REACH_PX = 2
CANDIDATES_AT_A_TIME = 64

Positions = npt.NDArray[np.float64]


def search_positions(
    scan: RawScan,
    config: RefinementConfig,
    device: torch.device,
    should_stop: Callable[[], bool],
    kernels: KernelChoice = 'auto',
) -> Positions:
    """Return better positions, ``(n, 2)`` as (y, x) in object pixels, for a scan whose own are wrong by some pixels.

    Args:
        scan: the validated scan.
        config: ``search_positions`` is the largest error in pixels; switches and likelihood are used as well.
        device: where to compute.
        should_stop: called after every epoch; the positions found until then are returned.
        kernels: what computes on a CPU.
    """
    reach = math.ceil(config.search_positions) + EXTRA_REACH_PX
    short = config.model_copy(
        update={'refine_positions': True, 'smoothing': 0.0, 'refine_geometry': False, 'refine_intensity': False}
    )
    coarse, factors = coarse_scan(scan)
    first = short.model_copy(update={'refine_epochs': COARSE_EPOCHS, 'positions_start': 3})
    logger.info('Searching positions up to %d pixels away on the central half of the detector.', reach)
    refined = _as_array(_refined(coarse, first, device, should_stop, kernels).positions)
    positions = scan.positions + (refined - coarse.positions) * factors
    fine = short.model_copy(update={'refine_epochs': FINE_EPOCHS, 'positions_start': 5})
    tried = moved = 0
    for number in range(ROUNDS):
        if should_stop():
            return positions
        logger.info('Searching positions on the whole detector, round %d of %d.', number + 1, ROUNDS)
        state = _refined(replace(scan, positions=positions), fine, device, should_stop, kernels)
        positions = _as_array(state.positions)
        suspects = _suspects(_deviances(state, scan, state.positions), positions)
        others = np.setdiff1d(np.arange(scan.size), suspects)
        state = _refined(replace(scan, positions=positions).select(others), fine, device, should_stop, kernels)
        tried, moved = suspects.size, 0
        for index in suspects:
            best = _best_position(state, scan.select(np.array([index])), positions[index], reach)
            moved += int(not np.array_equal(best, positions[index]))
            positions[index] = best
    logger.info(
        'Searched positions up to %d pixels away: they moved by %.2f pixels (median); in the last round %d patterns '
        'were tested at other positions and %d moved.',
        reach,
        float(np.median(np.linalg.norm(positions - scan.positions, axis=1))),
        tried,
        moved,
    )
    return positions


def _refined(
    scan: RawScan,
    config: RefinementConfig,
    device: torch.device,
    should_stop: Callable[[], bool],
    kernels: KernelChoice,
) -> ReconstructionState:
    tensors = ScanTensors(scan, device, kernels)
    with torch.inference_mode():
        solver = Solver(tensors, initial_state(tensors), config, CANDIDATES_AT_A_TIME)
        return solver.run(lambda _epoch, _deviance: should_stop())


def _as_array(positions: Tensor) -> Positions:
    return positions.cpu().numpy().astype(np.float64)


def _best_position(state: ReconstructionState, single: RawScan, present: Positions, reach: int) -> Positions:
    """Return the position of smallest deviance for the one pattern of ``single``: the present one, or near the given.

    All candidates are limited to the object array of ``state``.
    """
    offsets = np.arange(-reach, reach + 1.0)
    around = np.stack(np.meshgrid(offsets, offsets, indexing='ij'), axis=-1).reshape(-1, 2)
    sides = np.array(single.pattern_shape)
    first = np.array(state.origin) + (sides - 1) / 2
    last = first + np.array(state.object_shape) - sides - 1e-3
    candidates = np.clip(np.concatenate([present[None], single.positions + around]), first, last)
    deviances = _deviances(state, single, torch.from_numpy(candidates).to(state.positions))
    best: Positions = candidates[int(deviances.argmin())]
    return present if deviances.argmin() == 0 else best


def _suspects(deviances: npt.NDArray[np.floating], positions: Positions) -> npt.NDArray[np.intp]:
    _, neighbours = cKDTree(positions).query(positions, k=min(NEIGHBOURS, len(positions)))
    relative = deviances / np.median(deviances[neighbours.reshape(len(positions), -1)], axis=1).clip(1e-12)
    suspects: npt.NDArray[np.intp] = np.flatnonzero(
        (relative > SUSPICIOUS) | (relative < 1 / SUSPICIOUS) | (relative >= np.quantile(relative, 1 - SHARE_TRIED))
    )
    return suspects


def _deviances(state: ReconstructionState, scan: RawScan, positions: Tensor) -> npt.NDArray[np.float32]:
    """Return the mean amplitude deviance of the patterns of ``scan`` at ``positions`` ``(K, 2)``, ``(K,)``.

    The one pattern of a scan of size one is evaluated at all of them.
    """
    tensors = ScanTensors(scan, state.object_array.device)
    there = replace(state, positions=positions, intensities=torch.ones(len(positions), device=tensors.device))
    good = float(tensors.good_pixels.sum())
    origin = torch.tensor(state.origin, device=tensors.device)
    found = []
    with torch.inference_mode():
        for part in np.array_split(np.arange(len(positions)), math.ceil(len(positions) / CANDIDATES_AT_A_TIME)):
            measured = tensors.amplitudes(part if scan.size > 1 else np.zeros(part.size, dtype=np.int64))
            shifted = tensors.probes(there, part)
            origins = (shifted.patch_origins - origin)[None]
            model = simulate(state.object_array[None], shifted.probes[None], origins).amplitudes[0]
            squares = (model - measured).square() * tensors.good_pixels
            found.append(4 * squares.sum(dim=(-2, -1)) / good)
    deviances: npt.NDArray[np.float32] = torch.cat(found).cpu().numpy()
    return deviances
