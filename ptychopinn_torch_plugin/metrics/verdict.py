"""The metrics of a reconstruction in one sentence."""

from __future__ import annotations

from ..types import ReconstructionMetrics

NOISE_LIMITED = 1.1
"""R-factor over that of photon noise up to which photon noise explains the difference to the patterns."""
NEARLY_NOISE_LIMITED = 1.5
"""R-factor over that of photon noise up to which it explains most of the difference."""


def verdict(metrics: ReconstructionMetrics) -> str:
    """Return the main metrics in one sentence; lengths in pixels of the object."""
    over_noise = metrics.r_factor / metrics.noise_r_factor if metrics.noise_r_factor > 0 else float('inf')
    if over_noise <= NOISE_LIMITED:
        fit = 'fits the patterns down to photon noise'
    elif over_noise <= NEARLY_NOISE_LIMITED:
        fit = 'fits the patterns nearly down to photon noise'
    else:
        fit = 'does not fit the patterns down to photon noise'
    parts = [
        f'R-factor {metrics.r_factor:.3f} (photon noise alone: {metrics.noise_r_factor:.3f}): the reconstruction {fit}',
        f'uncertainty of a pixel {metrics.uncertainty:.2g}',
    ]
    if metrics.frc is not None:
        parts.append(_resolution(metrics.frc.resolution_px))
    parts.append(
        f'{100 * metrics.covered_share:.0f} % of the object grid covered, {metrics.overlap:.1f} positions per pixel'
    )
    return '; '.join(parts) + '.'


def _resolution(resolution_px: float | None) -> str:
    if resolution_px is None:
        return 'no resolution: the half scans do not correlate'
    if resolution_px <= 2:
        return 'resolution limited by the pixel size (half scans, half-bit threshold)'
    return f'resolution {resolution_px:.1f} pixels (half scans, half-bit threshold)'
