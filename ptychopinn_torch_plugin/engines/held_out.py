"""Prediction of held-out patterns: the score of a probe and a geometry that no misfit can imitate.

The positions are divided into folds. For each fold, a short refinement of all other positions gives an object, and the
patterns of the fold are predicted from it (:mod:`ptychopinn_torch_plugin.metrics.held_out`). Positions of one fold lie
between those of the others, so a right geometry predicts them from their neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import RefinementConfig
from ..data.scan import RawScan
from ..data.tensors import ScanTensors, initial_state
from ..metrics.held_out import Agreement, agreement, join
from ..physics.forward import simulate
from ..physics.patches import extract_window
from ..physics.probe import illumination
from ..types import ReconstructionState
from .solver import FAINT_COUNTS, Solver

BATCH = 64
"""Patterns in memory at a time; no effect on the result."""

Positions = npt.NDArray[np.float64]
Modes = npt.NDArray[np.complexfloating]


@dataclass(frozen=True)
class HoldOutPlan:
    """How patterns are held out and predicted."""

    epochs: int = 12
    """Epochs of each refinement: enough for the object, too few to explain a wrong geometry."""
    folds: int = 4
    """Every fold-th position is held out at a time."""
    used_folds: int = 4
    """Folds that are predicted; fewer take less time and predict fewer patterns."""
    smoothing: float = 1.0
    """Strength of the total variation of a faint scan, photons; a bright one is not smoothed, which saves time."""
    probe_modes: int = 0
    """Modes of a probe that is refined with the object; 0 keeps the probe as given."""


class HoldOut:
    """Scores probes and positions of one scan.

    Args:
        scan: the validated scan.
        device: where to compute.
        plan: folds and refinement.
        should_stop: called after every epoch.
    """

    def __init__(
        self,
        scan: RawScan,
        device: torch.device,
        plan: HoldOutPlan,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._scan = scan = scan.without_empty()
        self._device = device
        self._plan = plan
        self._should_stop = should_stop
        good = ~scan.bad_pixels
        faint = scan.counts[:, good].mean(dtype=np.float64) < FAINT_COUNTS
        self._config = RefinementConfig(
            refine_epochs=plan.epochs,
            refine_probe=plan.probe_modes > 0,
            probe_modes=plan.probe_modes,
            refine_positions=False,
            smoothing=plan.smoothing if faint else 0.0,
        )
        numbers = np.arange(scan.size)
        folds = max(2, min(plan.folds, scan.size // 2))
        self._parts = [
            (scan.select(numbers[numbers % folds != fold]), numbers[numbers % folds == fold])
            for fold in range(min(plan.used_folds, folds))
        ]
        self._good = np.fft.ifftshift(good)
        self._mean = np.fft.ifftshift(scan.counts.mean(axis=0, dtype=np.float64))[self._good]

    @property
    def held_out(self) -> npt.NDArray[np.int64]:
        """Positions in the order of the sums that :meth:`agreement` returns, ``(k,)``, without the empty ones."""
        return np.concatenate([numbers for _, numbers in self._parts])

    def agreement(self, probe: Modes | None = None, positions: Positions | None = None) -> Agreement:
        """Predict the held-out patterns with ``probe`` ``(M, H, W)`` at ``positions`` ``(n, 2)`` (None: the scan's).

        A combination that cannot be refined (its values are not finite) predicts nothing.
        """
        scan = self._scan if positions is None else replace(self._scan, positions=positions)
        whole = ScanTensors(scan, self._device)
        with torch.inference_mode():
            start = initial_state(whole, probe)
            parts = [self._predict(whole, start, train, numbers) for train, numbers in self._parts]
        return join(parts)

    def refined(self, probe: Modes | None = None) -> ReconstructionState:
        """Return the state after a refinement of all patterns with ``probe``, none held out."""
        tensors = ScanTensors(self._scan, self._device)
        with torch.inference_mode():
            return self._refine(tensors, initial_state(tensors, probe))

    def photons(self, state: ReconstructionState) -> npt.NDArray[np.float32]:
        """Return the photons on each pixel of the object array of ``state``, ``(h, w)``."""
        tensors = ScanTensors(self._scan, self._device)
        with torch.inference_mode():
            batch = tensors.batch(state, np.arange(self._scan.size))
            lit: npt.NDArray[np.float32] = (
                illumination(batch.probes, batch.patch_origins, state.object_shape)[0].cpu().numpy()
            )
        return lit

    def simulate(self, probe: Modes | None, rng: np.random.Generator) -> RawScan:
        """Refine all patterns with ``probe`` and return a scan with counts drawn from the result."""
        tensors, state = ScanTensors(self._scan, self._device), self.refined(probe)
        with torch.inference_mode():
            expected = self._expected(tensors, state, np.arange(self._scan.size))
        measured = self._scan.counts[:, ~self._scan.bad_pixels].sum(axis=1, dtype=np.float64)
        expected *= (measured / expected[:, self._good].sum(axis=1, dtype=np.float64))[:, None, None]
        drawn = np.fft.fftshift(rng.poisson(expected), axes=(-2, -1)).astype(np.uint32)
        return replace(self._scan, counts=drawn)

    def _predict(
        self, whole: ScanTensors, start: ReconstructionState, train: RawScan, numbers: npt.NDArray[np.integer]
    ) -> Agreement:
        kept = np.setdiff1d(np.arange(whole.size), numbers)
        tensors = ScanTensors(replace(train, positions=whole.scan.positions[kept]), self._device)
        known = replace(start, positions=start.positions[kept], intensities=start.intensities[kept])
        state = self._refine(tensors, known)
        offset = start.origin[0] - state.origin[0], start.origin[1] - state.origin[1]
        window = extract_window(state.object_array, offset, start.object_shape)
        predicted = replace(start, object_array=window, probe=state.probe)
        expected = self._expected(whole, predicted, numbers)[:, self._good]
        counts = whole.amplitudes(numbers).square().cpu().numpy()[:, self._good]
        return agreement(counts, np.nan_to_num(expected, posinf=0.0), self._mean)

    def _refine(self, tensors: ScanTensors, start: ReconstructionState) -> ReconstructionState:
        solver = Solver(tensors, start, self._config, BATCH)
        return solver.run(lambda _epoch, deviance: self._should_stop() or not math.isfinite(deviance))

    def _expected(
        self, tensors: ScanTensors, state: ReconstructionState, numbers: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.float32]:
        parts: list[Tensor] = []
        for indices in np.array_split(numbers, max(1, math.ceil(numbers.size / BATCH))):
            batch = tensors.batch(state, indices)
            parts.append(simulate(state.object_array[None], batch.probes, batch.patch_origins).expected[0])
        array: npt.NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return array
