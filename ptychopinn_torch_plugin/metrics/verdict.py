"""The metrics of a reconstruction in a few sentences: the verdict by held-out patterns first."""

from __future__ import annotations

from ..types import ReconstructionMetrics


def verdict(metrics: ReconstructionMetrics) -> str:
    """Return the verdict and the main metrics; lengths in pixels of the object.

    The R-factor is given as a number and does not decide: at low dose, a wrong model reaches that of photon noise.
    """
    parts = [
        f'R-factor {metrics.r_factor:.3f} (photon noise alone: {metrics.noise_r_factor:.3f})',
        f'uncertainty of a pixel {metrics.uncertainty:.2g}',
    ]
    if metrics.frc is not None:
        parts.append(_resolution(metrics.frc.resolution_px))
    parts.append(
        f'{100 * metrics.covered_share:.0f} % of the object grid covered, {metrics.overlap:.1f} positions per pixel'
    )
    return f'{_colour(metrics)} ' + '; '.join(parts) + '.'


def _colour(metrics: ReconstructionMetrics) -> str:
    found = metrics.credibility
    if found is None:
        return 'Not verified.'
    text = f'{found.colour.capitalize()}. {found.sentence}'
    return text if found.setting is None else f'{text} See {found.map}; {found.setting}.'


def _resolution(resolution_px: float | None) -> str:
    if resolution_px is None:
        return 'no resolution: the half scans do not correlate'
    if resolution_px <= 2:
        return 'resolution limited by the pixel size (half scans, half-bit threshold)'
    return f'resolution {resolution_px:.1f} pixels (half scans, half-bit threshold)'
