"""A judgement in one line of words."""

from __future__ import annotations

from ..types import ReconstructionMetrics

AT_THE_NOISE = 1.1
NEAR_THE_NOISE = 1.5
"""R-factor over that of photon noise up to which a reconstruction counts as near to it."""


def verdict(judgement: ReconstructionMetrics) -> str:
    """What the figures say, in one sentence; lengths in pixels of the object."""
    against_noise = judgement.r_factor / judgement.noise_r_factor if judgement.noise_r_factor > 0 else float('inf')
    if against_noise <= AT_THE_NOISE:
        word = 'down to photon noise'
    elif against_noise <= NEAR_THE_NOISE:
        word = 'nearly down to photon noise'
    else:
        word = 'not down to photon noise'
    parts = [
        f'R-factor {judgement.r_factor:.3f} (noise alone would give {judgement.noise_r_factor:.3f}): '
        f'the patterns are explained {word}',
        f'uncertainty of a pixel {judgement.uncertainty:.2g}',
    ]
    if judgement.frc is not None:
        parts.append(_resolution(judgement.frc.resolution_px))
    parts.append(
        f'{100 * judgement.covered_share:.0f} % of the object grid covered, {judgement.overlap:.1f} positions a pixel'
    )
    return '; '.join(parts) + '.'


def _resolution(resolution_px: float | None) -> str:
    if resolution_px is None:
        return 'the half scans agree on nothing (no resolution)'
    if resolution_px <= 2:
        return 'resolution of the half scans: the pixel grid'
    return f'resolution {resolution_px:.1f} pixels (half scans, half-bit)'
