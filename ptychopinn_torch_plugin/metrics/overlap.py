"""Whether neighbouring positions overlap enough to determine the unknowns.

A position gives one measured amplitude for each pixel that it illuminates, and a pixel of the object has two unknowns,
amplitude and phase. With fewer than two positions on a pixel there are fewer equations than unknowns, and a probe that
is refined adds its own unknowns.
"""

from __future__ import annotations

LEAST_OVERLAP = 3.0
"""Positions on a pixel, on average, below which a known probe does not make the object well determined."""
LEAST_OVERLAP_WITH_PROBE = 4.0
"""The same where the probe is refined as well."""


def overlap_warning(overlap: float, *, refines_probe: bool) -> str | None:
    """Return what is wrong with an overlap, as a sentence after the name of the scan; None where it is large enough.

    Args:
        overlap: mean number of positions that illuminate a pixel (``ReconstructionMetrics.overlap``).
        refines_probe: the probe was refined.
    """
    if refines_probe and overlap < LEAST_OVERLAP_WITH_PROBE:
        return (
            f'{overlap:.1f} positions illuminate a pixel of the object on average, and '
            f'{LEAST_OVERLAP_WITH_PROBE:g} are needed to determine object and probe. Measure with smaller steps, or '
            'give a known probe and switch off "Refine the probe".'
        )
    if overlap < LEAST_OVERLAP:
        return (
            f'{overlap:.1f} positions illuminate a pixel of the object on average, and {LEAST_OVERLAP:g} are needed to '
            'determine its amplitude and phase. Measure with smaller steps.'
        )
    return None
