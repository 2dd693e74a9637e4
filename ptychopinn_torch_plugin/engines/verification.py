"""Verification of a reconstruction by held-out patterns and by alternatives to its geometry.

The final probe and positions are kept, and the object is refined anew on a compact part of the scan without the
patterns that are then predicted. The same is done with the defocus reversed and, where the result is not green, with
the axes exchanged or flipped. Flipped patterns are equivalent to flipped positions, so only positions and probe change.

At low dose, a refined probe has adapted to the noise of all patterns, and to a wrong sign: reversed, it predicts no
better than before. Where the result predicts little, two probes that took no part in the refinement are therefore
compared: the aperture from the mean pattern, out of focus by the curvature of the final probe, with either sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from ..data.positions import mapped
from ..data.scan import RawScan
from ..metrics.credibility import AND_REVERSED, UnrefinedProbes, credibility
from ..metrics.held_out import Agreement
from ..types import Credibility
from .aperture import LARGEST_PROBE, aperture_of
from .downsampling import compact_part
from .given_probe import curvature_of
from .held_out import HoldOut, HoldOutPlan

PLAN = HoldOutPlan(epochs=6, used_folds=1)
"""Six epochs and one fold rank geometries as ten epochs and two folds do, in less than half of the time."""
MODEL_PLAN = HoldOutPlan(epochs=10)
"""For the model from which counts are drawn: after fewer epochs the object of a faint scan is still noise."""
SHARE = 0.15
"""Part of the scan that is used: with this plan it takes about 15 % of a default refinement."""
LEAST_VERIFIED = 8
"""Patterns with photons that a scan must have to be verified: some predict the others."""
LEAST, MOST = 40, 144
"""Positions of that part."""
PHOTONS = 1.5e5
"""Photons that all patterns of that part hold together, as far as ``MOST`` allows: few photons need more patterns."""
SAMPLE = 64
"""Patterns whose photons are counted."""
UNREFINED_BELOW = 0.3
"""Correlation of the result with the held-out patterns below which unrefined probes of both signs are compared."""
_EPOCHS = PLAN.epochs * 3 * PLAN.used_folds + MODEL_PLAN.epochs
"""Epochs of a verification whose result is green."""
_MORE_EPOCHS = 8 * PLAN.epochs * PLAN.used_folds
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
    unrefined: UnrefinedProbes | None = None

    @property
    def credibility(self) -> Credibility:
        """The verdict."""
        return credibility(self.own, self.ideal, self.alternatives, self.unrefined)


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
    drawn = HoldOut(part, device, MODEL_PLAN, stop_after_epoch).simulate(probe, np.random.default_rng(SEED))
    ideal = HoldOut(drawn, device, PLAN, stop_after_epoch).agreement(probe)
    reverse = reversed_defocus(probe)
    alternatives = {'reversed': held.agreement(reverse)}
    unrefined = _unrefined_probes(held, part, probe) if own.correlation < UNREFINED_BELOW else None
    if unrefined is not None:
        alternatives['reversed'] = max(alternatives['reversed'], unrefined.other, key=lambda item: item.correlation)
    found = Verification(own, ideal, alternatives, unrefined)
    if found.credibility.colour != 'green':
        for name, matrix in AXES.items():
            turned = mapped(part.positions, matrix)
            alternatives[name] = held.agreement(probe, turned)
            alternatives[name + AND_REVERSED] = held.agreement(reverse, turned)
    return found


def _unrefined_probes(held: HoldOut, part: RawScan, probe: Modes) -> UnrefinedProbes | None:
    """Score the aperture out of focus by the curvature of ``probe``, and by the opposite one; None for other shapes."""
    if part.pattern_shape[0] != part.pattern_shape[1]:
        return None
    aperture = aperture_of(np.asarray(part.counts).mean(axis=0, dtype=np.float64), part.bad_pixels)
    curvature = curvature_of(probe, LARGEST_PROBE * aperture.largest_curvature).value
    same, other = (held.agreement(aperture.probe(sign * curvature)) for sign in (1.0, -1.0))
    return UnrefinedProbes(same, other)


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
