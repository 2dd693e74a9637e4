"""Advice in words: what the numbers of a run mean for the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..config import Config
from ..metrics.overlap import overlap_warning
from ..metrics.verdict import NEAR_NOISE

MOVED_PX: Final = 0.3
"""Mean movement of the positions, in pixels, from which on it is mentioned as more than a correction."""
NOISY: Final = 0.2
"""Uncertainty of a pixel above which the object is called noisy."""
STILL_FALLING: Final = 0.01
"""Relative change of the loss over the last tenth of the epochs above which more epochs help."""
LEAST_EPOCHS: Final = 10
UNSTEADY: Final = 0.05
"""Relative spread of the intensities above which the beam is called unsteady."""


def advice(facts: Mapping[str, Any], config: Config) -> list[str]:
    """Return sentences on the run that ``facts`` describes, the most important one first."""
    return [
        *_of_fit(facts),
        *_of_positions(facts, config),
        *_of_object(facts, config),
        *_of_epochs(facts),
        *_of_intensities(facts, config),
    ]


def is_still_falling(losses: Sequence[float]) -> bool:
    """Return whether the losses of the epochs have decreased notably over the last tenth of them."""
    if len(losses) < LEAST_EPOCHS:
        return False
    before, last = losses[-1 - max(1, len(losses) // 10)], losses[-1]
    return before > 0 and (before - last) / before >= STILL_FALLING


def _of_fit(facts: Mapping[str, Any]) -> list[str]:
    metrics = facts['metrics']
    if metrics is None:
        return ['The quality was not computed; the log says why.']
    if metrics['misfit'] is None or metrics['misfit'] <= NEAR_NOISE:
        return []
    return [
        'The patterns are not explained: errors other than photon noise dominate. Run "ptychopinn-torch inspect" on '
        'the scan, check the mask of bad pixels, and try more probe modes (refinement.probe_modes = 3).'
    ]


def _of_positions(facts: Mapping[str, Any], config: Config) -> list[str]:
    moved, pixel_m = facts['positions'], facts['object_pixel_m']
    if not moved['are_moved']:
        if facts['patterns'] > 1 and not config.refinement.refine_positions:
            return ['The positions were used as given: "Refine the positions" is off.']
        return []
    nanometres = '' if pixel_m is None else f' ({moved["mean_shift_px"] * max(pixel_m) * 1e9:.3g} nm)'
    sentence = (
        f'The positions moved by {moved["mean_shift_px"]:.2g} px{nanometres} on average and by '
        f'{moved["largest_shift_px"]:.2g} px at most'
    )
    if moved['mean_shift_px'] < MOVED_PX:
        return [f'{sentence}: a small correction.']
    return [
        f'{sentence}: the given positions are inaccurate. Keep "Refine the positions" on; if the object is still '
        'blurred, set "Search lost positions" to twice the largest movement.'
    ]


def _of_object(facts: Mapping[str, Any], config: Config) -> list[str]:
    metrics, found = facts['metrics'], []
    if metrics is None:
        return []
    refines_probe = config.refinement.refine_epochs > 0 and config.refinement.refine_probe
    if metrics['overlap'] is not None and (
        sentence := overlap_warning(metrics['overlap'], refines_probe=refines_probe)
    ):
        found.append(sentence)
    if metrics['uncertainty'] is not None and metrics['uncertainty'] > NOISY:
        found.append(
            f'The object is noisy: a pixel is uncertain by {metrics["uncertainty"]:.2g} of the incident amplitude. '
            'More photons help; a larger "Smoothing" of the refinement hides noise and fine details.'
        )
    if 'resolution_px' not in metrics and not config.inference.half_scans:
        found.append('The resolution was not measured: "Compare half scans" does that, in twice the time.')
    return found


def _of_epochs(facts: Mapping[str, Any]) -> list[str]:
    losses = [training for _, training, _ in facts['losses']]
    if facts['kind'] != 'refine' or not is_still_falling(losses):
        return []
    return [f'The loss was still falling after {len(losses)} epochs: more epochs (refinement.refine_epochs) help.']


def _of_intensities(facts: Mapping[str, Any], config: Config) -> list[str]:
    if not config.refinement.refine_intensity or facts['intensity_spread'] < UNSTEADY:
        return []
    return [
        f'The intensity of the beam changed by {100 * facts["intensity_spread"]:.0f} % between the patterns (standard '
        'deviation): keep "Refine the intensities" on.'
    ]
