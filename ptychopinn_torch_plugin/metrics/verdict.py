"""The metrics of a reconstruction in a few sentences: the verdict by held-out patterns first, then the misfit.

There is one scale of the misfit: the squared difference to the patterns over that of photon noise alone, 1 at the noise
(``ReconstructionMetrics.reduced_chi_square``). It does not decide: at low dose, a wrong model reaches photon noise too.
"""

from __future__ import annotations

import math
from typing import Literal

from ..types import ReconstructionMetrics

AT_NOISE = 1.25
"""Misfit up to which photon noise explains the difference to the patterns."""
NEAR_NOISE = 4.0
"""Misfit up to which other errors are of the size of photon noise; above it they dominate."""

Light = Literal['green', 'yellow', 'red']


def light_of(misfit: float | None) -> Light | None:
    """Return the colour of a misfit: green at photon noise, yellow near it, red above; None where it is not known."""
    if misfit is None or math.isnan(misfit):
        return None
    if misfit <= AT_NOISE:
        return 'green'
    return 'yellow' if misfit <= NEAR_NOISE else 'red'


def fit_in_words(misfit: float | None) -> str:
    """Return what a misfit means, as the end of a sentence."""
    light = light_of(misfit)
    if light is None:
        return 'the misfit is not known'
    return {
        'green': 'photon noise explains the difference to the patterns',
        'yellow': 'errors other than photon noise are of about its size',
        'red': 'errors other than photon noise dominate',
    }[light]


def verdict(metrics: ReconstructionMetrics) -> str:
    """Return the verdict and the main metrics; lengths in pixels of the object."""
    misfit = metrics.reduced_chi_square
    parts = [
        f'Misfit {misfit:.3g} (1 is photon noise): {fit_in_words(misfit)}',
        f'uncertainty of a pixel {metrics.uncertainty:.2g} of the incident amplitude',
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
