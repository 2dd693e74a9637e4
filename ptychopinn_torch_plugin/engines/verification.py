"""Verification of a reconstruction by held-out patterns and by alternatives to its geometry.

The final probe and positions are kept, and the object is refined anew on a compact part of the scan without the
patterns that are then predicted. The same is done with the defocus reversed and, where the result is not green, with
the axes exchanged or flipped. Flipped patterns are equivalent to flipped positions, so only positions and probe change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from ..data.scan import RawScan
from ..metrics.credibility import AND_REVERSED, credibility
from ..metrics.held_out import Agreement
from ..types import Credibility
from .downsampling import compact_part
from .held_out import HoldOut, HoldOutPlan

PLAN = HoldOutPlan(epochs=10, used_folds=2)
IDEAL_PLAN = HoldOutPlan(epochs=10, used_folds=1)
"""One fold is enough for what the photons allow."""
SHARE = 0.15
"""Part of the scan that is used: with these plans it takes less than 15 % of a default refinement."""
LEAST_VERIFIED = 8
"""Patterns with photons that a scan must have to be verified: some predict the others."""
LEAST, MOST = 40, 144
"""Positions of that part."""
PHOTONS = 1.5e5
"""Photons that all patterns of that part hold together, as far as ``MOST`` allows: few photons need more patterns."""
SAMPLE = 64
"""Patterns whose photons are counted."""
_EPOCHS = PLAN.epochs * (2 * PLAN.used_folds + 1) + IDEAL_PLAN.epochs * IDEAL_PLAN.used_folds
"""Epochs of a verification whose result is green."""
_MORE_EPOCHS = 6 * PLAN.epochs * PLAN.used_folds
"""Epochs of the alternatives that are computed otherwise."""
_GREEN_SHARE = 0.8
"""Share of the progress that stands for the first of these."""
SEED = 0
"""Of the counts that are drawn from the model."""

Modes = npt.NDArray[np.complexfloating]
Matrix = npt.NDArray[np.float64]

AXES: dict[str, Matrix] = {
    'flipped': np.diag([1.0, -1.0]),
    'transposed': np.array([[0.0, 1.0], [1.0, 0.0]]),
    'rotated': np.array([[0.0, 1.0], [-1.0, 0.0]]),
}
"""Linear maps of the positions (y, x) that stand for other orientations of the patterns."""


@dataclass(frozen=True, eq=False)
class Verification:
    """Scores of a reconstruction and of its alternatives."""

    own: Agreement
    ideal: Agreement
    alternatives: dict[str, Agreement]

    @property
    def credibility(self) -> Credibility:
        """The verdict."""
        return credibility(self.own, self.ideal, self.alternatives)


def verify(
    scan: RawScan,
    probe: Modes,
    positions: npt.NDArray[np.float64],
    device: torch.device,
    should_stop: Callable[[], bool] = lambda: False,
    on_share: Callable[[float], None] = lambda _share: None,
) -> Verification:
    """Verify probe modes ``(M, H, W)`` and ``positions`` ``(n, 2)`` of a reconstruction of ``scan``.

    Args:
        scan: the validated scan.
        probe: the final probe.
        positions: the final positions, object pixels.
        device: where to compute.
        should_stop: called after every epoch.
        on_share: receives the share of the work that is done, at most 1, after every epoch.
    """
    epochs = 0

    def stop_after_epoch() -> bool:
        nonlocal epochs
        epochs += 1
        first, more = min(1.0, epochs / _EPOCHS), max(0.0, (epochs - _EPOCHS) / _MORE_EPOCHS)
        on_share(_GREEN_SHARE * first + (1 - _GREEN_SHARE) * min(1.0, more))
        return should_stop()

    moved = replace(scan, positions=positions).without_empty()
    part = compact_part(moved, _positions_for(moved))
    part = replace(part, counts=np.asarray(part.counts))
    held = HoldOut(part, device, PLAN, stop_after_epoch)
    own = held.agreement(probe)
    drawn = held.simulate(probe, np.random.default_rng(SEED))
    ideal = HoldOut(drawn, device, IDEAL_PLAN, stop_after_epoch).agreement(probe)
    reverse = reversed_defocus(probe)
    alternatives = {'reversed': held.agreement(reverse)}
    found = Verification(own, ideal, alternatives)
    if found.credibility.colour != 'green':
        middle = part.positions.mean(axis=0)
        for name, matrix in AXES.items():
            turned = (part.positions - middle) @ matrix.T + middle
            alternatives[name] = held.agreement(probe, turned)
            alternatives[name + AND_REVERSED] = held.agreement(reverse, turned)
    return found


def verified_epochs(scan: RawScan) -> float:
    """Return the usual work of a verification of ``scan``, in epochs over all of its patterns."""
    share = min(1.0, _positions_for(scan.without_empty()) / scan.lit.size)
    return _EPOCHS * share


def _positions_for(scan: RawScan) -> int:
    sample = np.unique(np.linspace(0, scan.size - 1, SAMPLE).round().astype(np.int64))
    patterns = np.asarray(scan.select(sample).counts)
    photons = float(patterns[:, ~scan.bad_pixels].sum(dtype=np.float64)) / sample.size
    return int(np.clip(max(SHARE * scan.size, PHOTONS / photons), LEAST, MOST))


def reversed_defocus(modes: Modes) -> Modes:
    """Return ``modes`` ``(M, H, W)`` with all phases in the aperture conjugated: the defocus changes its sign."""
    spectrum = np.fft.fft2(np.fft.ifftshift(modes, axes=(-2, -1)))
    return np.asarray(np.fft.fftshift(np.fft.ifft2(spectrum.conj()), axes=(-2, -1)))
