"""Calibration of the uncertainty map by a simulation of the result (parametric bootstrap).

The formula of :mod:`ptychopinn_torch_plugin.metrics.residuals` treats every pixel and every epoch alike. How much of
the photon noise the refinement fits, how much of it total variation removes, and how much structure is missing after
a number of epochs depends on the sample and on the dose. All three are therefore measured on a part of the scan (B.
Efron & R. Tibshirani, Stat. Sci. 1, 54 (1986))::

    n*_j ~ Poisson(I_j(O, P, r, s))                counts drawn from the result
    O*   = refinement of n*, from the start of the result, with its smoothing and its number of epochs
    k^2  = mean over the well illuminated pixels of |O* - O|^2 / variance*
    variance <- k^2 variance

``variance*`` is the formula applied to ``O*``: ``k`` is the ratio of actual to predicted error where the truth, ``O``,
is known. Probe, positions and intensities of the result are kept, so their errors are not included. ``O`` contains
noise that the true object does not have, and lacks structure that was lost; the ratio of the result itself differs from
``k`` for this reason (:doc:`/judgement` has both).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from ..config import KernelChoice, RefinementConfig
from ..data.scan import RawScan
from ..data.tensors import ScanTensors, initial_state, with_given_object
from ..metrics.frc import aligned, window_of
from ..metrics.residuals import measure
from ..physics.forward import simulate
from ..physics.patches import extract_window
from ..types import ReconstructionMetrics, ReconstructionState
from .downsampling import compact_numbers
from .solver import Solver

SHARE = 0.2
"""Part of the scan that is refined: 10 to 23 % of the time of a default refinement of 484 positions."""
LEAST, MOST = 96, 192
"""Positions of that part: with 64, the factor differed by more than a tenth from that of 100 on 8 of 24 scans."""
LEAST_CALIBRATED = 8
"""Patterns with photons that a scan must have."""
BATCH = 64
"""Patterns in memory at a time; no effect on the result."""
INSIDE = 0.5
"""Weight of the window above which a pixel is compared."""
SEED = 0
"""Of the counts that are drawn."""


def calibration_factor(
    scan: RawScan,
    state: ReconstructionState,
    config: RefinementConfig,
    device: torch.device,
    should_stop: Callable[[], bool] = lambda: False,
    kernels: KernelChoice = 'auto',
) -> float:
    """Return the ratio of actual to predicted error of patterns that are drawn from a result.

    Args:
        scan: the validated scan without empty patterns.
        state: the result of its refinement.
        config: as the result was refined, with its number of epochs.
        device: where to compute.
        should_stop: called after every epoch.
        kernels: what computes the patterns on a CPU.

    Returns:
        The factor of the uncertainty map, dimensionless, positive; NaN if the refinement was stopped, did not stay
        finite, or has no well illuminated pixel.
    """
    moved = replace(scan, positions=state.positions.cpu().numpy().astype(np.float64))
    chosen = compact_numbers(moved, int(np.clip(SHARE * scan.size, LEAST, MOST)))
    part = moved.select(chosen)
    with torch.inference_mode():
        intensities = state.intensities[torch.from_numpy(chosen).to(device)]
        drawn = _drawn(part, state, intensities, device)
        tensors = ScanTensors(drawn, device, kernels)
        start = replace(initial_state(tensors), probe=state.probe, intensities=intensities)
        if config.start == 'product':
            start = with_given_object(tensors, start)
        kept = {'refine_probe': False, 'refine_positions': False, 'refine_intensity': False, 'probe_modes': 0}
        solver = Solver(tensors, start, config.model_copy(update=kept), BATCH)
        is_stopped = False

        def listen(_epoch: int, deviance: float) -> bool:
            nonlocal is_stopped
            is_stopped = should_stop() or not math.isfinite(deviance)
            return is_stopped

        refined = solver.run(listen)
        if is_stopped:
            return math.nan
        return _ratio(refined, state, measure(tensors, refined, BATCH, solver.smoothing))


def _drawn(part: RawScan, state: ReconstructionState, intensities: torch.Tensor, device: torch.device) -> RawScan:
    """Return ``part`` with counts that are drawn from ``state``."""
    tensors = ScanTensors(part, device)
    rng = np.random.default_rng(SEED)
    own = replace(state, positions=state.positions.new_tensor(part.positions), intensities=intensities)
    counts = []
    for indices in np.array_split(np.arange(part.size), math.ceil(part.size / BATCH)):
        batch = tensors.batch(own, indices)
        expected = simulate(state.object_array[None], batch.probes, batch.patch_origins).expected[0]
        counts.append(rng.poisson(expected.cpu().numpy().astype(np.float64)).astype(np.uint32))
    return replace(part, counts=np.fft.fftshift(np.concatenate(counts), axes=(-2, -1)))


def _ratio(refined: ReconstructionState, truth: ReconstructionState, metrics: ReconstructionMetrics) -> float:
    """Return actual over predicted error of ``refined``, whose metrics are on the grid of the scan."""
    rows, columns = (np.flatnonzero(metrics.photons_map.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return math.nan
    first, shape = (int(rows[0]), int(columns[0])), (int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1)
    crop = slice(first[0], first[0] + shape[0]), slice(first[1], first[1] + shape[1])
    found, known = (
        extract_window(item.object_array, (first[0] - item.origin[0], first[1] - item.origin[1]), shape)
        .cpu()
        .numpy()
        .astype(np.complex128)
        for item in (refined, truth)
    )
    window = window_of(metrics.photons_map[crop])
    inside = window > INSIDE
    if not inside.any():
        return math.nan
    error = np.abs(aligned(found, known, window) - known)[inside]
    squared = np.square(error / metrics.uncertainty_map[crop][inside])
    return math.sqrt(float(squared.mean(dtype=np.float64)))
