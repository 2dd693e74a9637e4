"""Credibility of a reconstruction: one number, a colour and the most likely cause, from held-out patterns.

The R-factor cannot tell a right geometry from a wrong one at low dose: both fit the noise. Held-out patterns can
(:mod:`ptychopinn_torch_plugin.metrics.held_out`). Photons limit how well even the right model predicts them. The
correlation is therefore divided by the one that the same steps reach on counts drawn from their own result (a
parametric bootstrap)::

    credibility = correlation with the held-out patterns / correlation with held-out patterns of the model itself

Near 1, the model predicts as well as the photons allow. Alternatives (the defocus reversed, axes exchanged) are scored
on the same patterns; a significantly better one is the most likely cause of a bad result.

The thresholds were set on the scans of ``benchmarks/geometry`` below seed 1000 and left unchanged for those above
(``docs/inspect.md``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from ..types import Colour, Credibility
from .held_out import Agreement, jackknife, lead_of

CREDIBLE = 0.8
"""Credibility from which a reconstruction is green, give or take ``ALLOWANCE`` standard errors."""
DOUBTFUL = 0.5
"""Credibility below which it is red, give or take ``ALLOWANCE`` standard errors."""
ALLOWANCE = 2.0
CERTAIN = 4.0
"""Standard errors by which an alternative must predict better to be named as the cause, and by which prediction and
counts must be correlated at all."""


class Advice(NamedTuple):
    """What a cause is called, where it shows and what to change."""

    text: str
    """The cause, a main clause without its full stop."""
    map: str
    """Array of ``maps.npz`` that shows it."""
    setting: str
    """The one change to make first."""


ADVICE = {
    'few_photons': Advice(
        'there are too few photons', 'uncertainty_map', 'count longer, or increase "Smoothing"'
    ),
    'dead_pixels': Advice(
        'detector pixels are dead and not masked', 'detector_r_map', 'mask them (inspect --apply --accept mask)'
    ),
    'centre': Advice(
        'the patterns are not centred', 'detector_r_map', 'crop about the centre (inspect --apply --accept crop)'
    ),
    'flicker': Advice('the intensity of the beam changes', 'object_r_map', 'switch on "Refine the intensities"'),
    'overlap': Advice(
        'neighbouring positions overlap too little', 'photons_map', 'reduce the step of the scan, or widen the beam'
    ),
    'raster': Advice(
        'the positions form a periodic grid, which can leave its period in the object', 'object_r_map',
        'scan a spiral or shift the positions at random'
    ),
    'reversed': Advice(
        'the defocus of the probe has the wrong sign', 'object_r_map', 'give the probe with the defocus reversed'
    ),
    'flipped': Advice(
        'one axis of the patterns or positions is flipped', 'object_r_map',
        'flip it (inspect --apply --accept orientation)'
    ),
    'transposed': Advice(
        'the axes of the patterns or positions are exchanged', 'object_r_map',
        'exchange them (inspect --apply --accept orientation)'
    ),
    'rotated': Advice(
        'the patterns or positions are rotated by 90 degrees', 'object_r_map',
        'rotate them (inspect --apply --accept orientation)'
    ),
    'defocus': Advice(
        'the probe has a wrong defocus', 'object_r_map', 'start from the probe that inspect finds (--accept probe)'
    ),
    'rotation': Advice(
        'the positions are rotated by a small angle', 'object_r_map',
        'rotate the positions (inspect --apply --accept rotation)'
    ),
    'scale': Advice(
        'the positions have a wrong scale: the distance, the energy or the stage is wrong', 'object_r_map',
        'correct "detector_distance_m", or scale the positions (inspect --apply --accept scale)'
    ),
    'drift': Advice('the sample drifted during the scan', 'object_r_map', 'switch on "Refine the positions"'),
    'modes': Advice('the probe has too few incoherent modes', 'detector_r_map', 'increase "Probe modes" by one'),
}  # fmt: skip
"""Every cause, with the map of ``maps.npz`` that shows it and the one setting to change."""

AND_REVERSED = ' and reversed'
"""Ends the name of an alternative whose defocus is reversed as well."""


DOUBT = Advice(
    'the cause does not show in the patterns', 'object_r_map', 'find the cause with "ptychopinn-torch inspect --faults"'
)
"""Where a verdict is not green and no alternative predicts better."""


class UnrefinedProbes(NamedTuple):
    """Agreement of two probes that no pattern has refined: the aperture out of focus, with either sign."""

    same: Agreement
    """The sign of the result."""
    other: Agreement

    @property
    def lead(self) -> float:
        """Standard errors by which the other sign predicts better."""
        return lead_of(self.other, self.same)


def cause_text(name: str) -> str:
    """Return what it means that the alternative ``name`` predicts better."""
    plain = name.removesuffix(AND_REVERSED)
    text = ADVICE[plain].text
    return f'{text}, and {ADVICE["reversed"].text}' if plain != name else text


def credibility(
    own: Agreement, ideal: Agreement, alternatives: Mapping[str, Agreement], unrefined: UnrefinedProbes | None = None
) -> Credibility:
    """Compute the verdict on a reconstruction.

    Args:
        own: agreement of its geometry with the held-out patterns.
        ideal: the same for counts drawn from the model.
        alternatives: agreement of other geometries with the held-out patterns, by keys of ``ADVICE``.
        unrefined: agreement of unrefined probes of either sign, where the result predicts little. If the other sign is
            certainly better, the sign is wrong unless the refined probe certainly predicts better than both.
    """
    allowed = ideal.correlation
    value, error = own.correlation / allowed if allowed > 0 else math.nan, math.nan
    if allowed > 0:
        errors = [jackknife(lambda part: part.correlation, item)[1] for item in (own, ideal)]
        error = math.hypot(errors[0] / allowed, errors[1] * own.correlation / allowed**2)
    leads = {name: lead_of(item, own) for name, item in alternatives.items()}
    best = max(leads, key=lambda name: alternatives[name].correlation, default=None)
    lead = math.nan if best is None else leads[best]
    is_wrong = best is not None and lead > CERTAIN
    contradicts = unrefined is not None and unrefined.lead > CERTAIN
    if unrefined is not None and contradicts and not is_wrong and best == 'reversed' and lead > -CERTAIN:
        is_wrong, lead = True, unrefined.lead
    is_distinct = best is None or (lead < -CERTAIN and not contradicts)
    colour: Colour = 'red'
    if not is_wrong and not value + ALLOWANCE * error < DOUBTFUL:
        colour = 'green' if is_distinct and value + ALLOWANCE * error >= CREDIBLE else 'yellow'
    cause = best if is_wrong else None
    advice = None if colour == 'green' else DOUBT if cause is None else ADVICE[cause.removesuffix(AND_REVERSED)]
    return Credibility(
        value=value,
        error=error,
        correlation=own.correlation,
        allowed=allowed,
        colour=colour,
        cause=cause,
        lead=lead,
        sentence=_sentence(value, colour, cause, lead, is_distinct=is_distinct),
        map=None if advice is None else advice.map,
        setting=None if advice is None else advice.setting,
    )


def _sentence(value: float, colour: Colour, cause: str | None, lead: float, *, is_distinct: bool) -> str:
    share = f'held-out patterns are predicted {100 * min(value, 1.0):.0f} % as well as the photons allow'
    if cause is not None:
        return f'Wrong: {cause_text(cause)} ({lead:.0f} standard errors); {share}.'
    if math.isnan(value):
        return 'Unknown: the patterns differ by photon noise alone, so nothing can be predicted.'
    if colour == 'green':
        return f'Credible: {share}.'
    if colour == 'yellow' and not is_distinct:
        return f'Not decided: with these photons another geometry predicts about as well ({share}).'
    if colour == 'yellow':
        return f'Doubtful: {share}.'
    return f'Not credible: {share}, and no other orientation or sign of the defocus predicts better.'
