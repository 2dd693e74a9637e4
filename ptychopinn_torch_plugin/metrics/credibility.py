"""Credibility of a reconstruction: one number, a colour and the most likely cause, from held-out patterns.

The R-factor cannot tell a right geometry from a wrong one at low dose: both fit the noise. Held-out patterns can
(:mod:`ptychopinn_torch_plugin.metrics.held_out`). Photons limit how well even the right model predicts them, so the
correlation is divided by the one that the same procedure reaches on counts drawn from its own result (a parametric
bootstrap)::

    credibility = correlation with the held-out patterns / correlation with held-out patterns of the model itself

Near 1, the model predicts as well as the photons allow. Alternatives (the defocus reversed, axes exchanged) are scored
on the same patterns; a significantly better one is the most likely cause of a bad result.

The thresholds were set on the scans of ``benchmarks/geometry`` from seed 100 and left unchanged for those from seed 200
(``docs/inspect.md``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .held_out import Agreement, jackknife, lead_of

Colour = Literal['green', 'yellow', 'red']

CREDIBLE = 0.8
"""Credibility from which a reconstruction is green, give or take ``ALLOWANCE`` standard errors."""
DOUBTFUL = 0.5
"""Credibility below which it is red, give or take ``ALLOWANCE`` standard errors."""
ALLOWANCE = 2.0
CERTAIN = 4.0
"""Standard errors by which an alternative must predict better to be named as the cause, and by which prediction and
counts must be correlated at all."""

CAUSES = {
    'reversed': 'the defocus of the probe has the wrong sign',
    'flipped': 'one axis of the patterns or of the positions is flipped',
    'transposed': 'the two axes of the patterns or of the positions are exchanged',
    'rotated': 'the patterns or the positions are rotated by 90 degrees',
}
"""Alternatives and what it means if they predict better; each also exists with the defocus reversed."""
AND_REVERSED = ' and reversed'
"""Ends the name of an alternative whose defocus is reversed as well."""


@dataclass(frozen=True)
class Credibility:
    """The verdict."""

    value: float
    """0 to about 1; NaN where the patterns differ by photon noise alone."""
    error: float
    """Standard error of ``value``."""
    correlation: float
    """With the held-out patterns."""
    allowed: float
    """What the photons allow."""
    colour: Colour
    cause: str | None
    """Key of the alternative that predicts better, as in the mapping that was given; None where none does."""
    lead: float
    """Standard errors by which the best alternative predicts better; negative where it predicts worse, NaN without."""

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        share = f'held-out patterns are predicted {100 * self.value:.0f} % as well as the photons allow'
        if self.cause is not None:
            return f'Wrong: {cause_text(self.cause)} ({self.lead:.0f} standard errors); {share}.'
        if math.isnan(self.value):
            return 'Unknown: the patterns differ by photon noise alone, so nothing can be predicted.'
        if self.colour == 'green':
            return f'Credible: {share}.'
        if self.colour == 'yellow' and self.lead >= -CERTAIN:
            return (
                f'Not decided: with these photons another geometry predicts about as well ({share}); inspect the scan '
                '(ptychopinn-torch inspect).'
            )
        if self.colour == 'yellow':
            return f'Doubtful: {share}; inspect the scan (ptychopinn-torch inspect).'
        return (
            f'Not credible: {share}, and no other orientation or sign of the defocus predicts better; check distance, '
            'positions and probe (ptychopinn-torch inspect).'
        )


def cause_text(name: str) -> str:
    """Return what it means that the alternative ``name`` predicts better."""
    plain = name.removesuffix(AND_REVERSED)
    text = CAUSES[plain]
    return f'{text}, and {CAUSES["reversed"]}' if plain != name else text


def credibility(own: Agreement, ideal: Agreement, alternatives: Mapping[str, Agreement]) -> Credibility:
    """Judge a reconstruction.

    Args:
        own: agreement of its geometry with the held-out patterns.
        ideal: the same for counts drawn from the model.
        alternatives: agreement of other geometries with the held-out patterns, by keys of ``CAUSES``.
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
    colour: Colour = 'red'
    if not is_wrong and not value + ALLOWANCE * error < DOUBTFUL:
        is_distinct = best is None or lead < -CERTAIN
        colour = 'green' if is_distinct and value + ALLOWANCE * error >= CREDIBLE else 'yellow'
    return Credibility(value, error, own.correlation, allowed, colour, best if is_wrong else None, lead)
