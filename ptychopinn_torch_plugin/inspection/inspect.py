"""Inspection of one measurement: detector, sampling, regime, orientation, defocus, affine errors, modes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree

from ..data.scan import make_raw_scan
from ..engines.aperture import LARGEST_PROBE, Aperture, aperture_of
from ..engines.given_probe import Value, curvature_of
from ..engines.verification import reversed_defocus
from ..errors import InputError
from ..metrics.held_out import lead_of
from .detector import DetectorReport, inspect_detector
from .diagnosis import diagnose, diameter_of
from .measurement import Measurement, Orientation
from .parallax import Parallax, find_parallax
from .report import Finding, Proposal, Report, metres, with_error
from .search import CERTAIN, SUBSET_PIXELS, Found, Search, on_grid, subset_of

logger = logging.getLogger(__name__)

APERTURE_MARGIN = 1.05
"""Half the side of the patterns of the search over the radius of the edge of the aperture."""
SIDE_STEP = 16
LEAST_SIDE = 32
LEAST_POSITIONS = 8
"""Fewer cannot be divided into positions that predict and positions that are predicted."""
LITTLE_OVERLAP = 0.4
"""Linear overlap of neighbouring positions below which a reconstruction has more unknowns than counts determine."""
CERTAIN_CONTRAST = 3.0
"""Standard errors by which the correlation of amplitude and phase must differ from zero."""
NEAR_FIELD_RATIO = 2.0
"""Width of the beam over that of the far-field array from which the patterns are near field: the shift of the shadow of
a coarse structure can be wrong by a factor of 1.5. Between 1 and this, the search decides."""
ROTATION_NOTICE = math.radians(0.5)
SCALE_NOTICE = 0.03
SIGNIFICANT = 4.0
"""Standard errors from which on a rotation or scale is reported as a fault."""
FAR_FROM_GIVEN = 0.05
"""Relative difference between the given and the found curvature that is reported."""


@dataclass(frozen=True, eq=False)
class Inspection:
    """Results of an inspection, for the report and for :mod:`.apply`."""

    measurement: Measurement
    detector: DetectorReport
    report: Report
    found: Found | None
    """None where the regime is near field, or positions are too few."""
    orientation: Orientation
    """The orientation to use: ``found`` or its partner."""
    curvature: Value | None
    """On the grid of the useful side, with the sign that belongs to ``orientation``."""
    centre: tuple[int, int]
    """Pixel (y, x) of the patterns as given that becomes the zero frequency."""
    side: int
    """Useful side, pixels."""


def inspect(
    measurement: Measurement,
    device: torch.device,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    faults: bool = False,
) -> Inspection:
    """Inspect ``measurement`` on a subset of its patterns, and propose.

    Args:
        measurement: raw data; it is not changed.
        device: where to compute.
        should_stop: called after every epoch of every refinement.
        faults: also search for causes of a bad reconstruction with the probe of ``measurement`` as it is given
            (:func:`~.diagnosis.diagnose`); without a probe, there is nothing to search.

    Raises:
        InputError: no pattern holds a photon.
    """
    start = time.perf_counter()
    detector = inspect_detector(measurement.counts, measurement.bad_pixels)
    if detector.photons <= 0:
        raise InputError(f'{measurement.name}: the patterns hold no photons in the measured pixels.')
    masked = replace(measurement, bad_pixels=detector.bad_pixels)
    centre = (round(detector.centre[0]), round(detector.centre[1]))
    whole = aperture_of(detector.mean, detector.bad_pixels)
    side = min(_rounded_side(2 * APERTURE_MARGIN * whole.edge_px), min(measurement.shape) // SIDE_STEP * SIDE_STEP)
    searched = masked.cropped(max(side, LEAST_SIDE), centre)
    small = subset_of(searched)
    parallax = find_parallax(
        small.counts, small.positions, searched.counts.mean(axis=0, dtype=np.float64), small.bad_pixels
    )
    logger.info('%s: %d patterns of %d pixels are used for the search.', measurement.name, small.size, small.shape[0])
    aperture = aperture_of(searched.counts.mean(axis=0, dtype=np.float64), searched.bad_pixels)
    findings = _detector_findings(measurement, detector)
    near_field = _near_field_finding(searched, aperture, parallax)
    proposals = _detector_proposals(measurement, detector, centre)
    nothing = (None, Orientation(), None)
    if near_field is not None or measurement.size < LEAST_POSITIONS:
        findings.append(near_field or _too_few(measurement))
        found, orientation, curvature = nothing
    else:
        findings.append(_far_field_finding(searched, aperture, parallax))
        search = Search(searched, device, should_stop)
        extra = () if parallax is None or not parallax.is_significant else (searched.shape[0] / parallax.factor,)
        found = search.run(extra)
        orientation, sign, how = _choose_partner(searched, found)
        curvature = Value(sign * found.curvature.value, found.curvature.error)
        findings += _geometry_findings(searched, found, parallax, orientation, curvature, how)
        if searched.probe is not None:
            findings.append(_given_probe_finding(searched, search, found, curvature))
        proposals += _geometry_proposals(searched, found, orientation, curvature)
        # A coarser pixel has a smaller curvature: the defocus is what stays.
        factor = (detector.useful_side / searched.shape[0]) ** 2
        curvature = Value(curvature.value * factor, curvature.error * factor)
    if faults and near_field is None:
        findings += _fault_findings(measurement, device, should_stop)
    report = Report(measurement.name, tuple(findings), tuple(proposals), time.perf_counter() - start)
    return Inspection(measurement, detector, report, found, orientation, curvature, centre, detector.useful_side)


def _rounded_side(side: float) -> int:
    return SIDE_STEP * math.ceil(side / SIDE_STEP)


def _detector_findings(measurement: Measurement, detector: DetectorReport) -> list[Finding]:
    number = measurement.size
    bad = detector.dead + detector.hot + detector.saturated
    limit = '' if detector.limit is None else f', which reach the limit of {detector.limit:.0f} counts'
    unusual = {
        'empty': detector.empty_patterns,
        'faint': detector.faint_patterns,
        'too bright': detector.bright_patterns,
    }
    count = sum(numbers.size for numbers in unusual.values())
    listed = ', '.join(f'{numbers.size} {word}' for word, numbers in unusual.items() if numbers.size)
    middle = measurement.shape[0] // 2, measurement.shape[1] // 2
    offset = math.hypot(detector.centre[0] - middle[0], detector.centre[1] - middle[1])
    return [
        Finding(
            'patterns',
            f'{number} patterns of {measurement.shape[0]} x {measurement.shape[1]} pixels with '
            f'{detector.photons:.3g} photons each'
            + (f'; {listed}.' if count else ', none unusual.'),
            'Sums of the measured pixels against their median: empty 0, faint below .1, too bright above 3 times; they '
            f'vary by {100 * detector.flicker:.1f} % beyond photon noise.',
            'notice' if count else 'good',
            {
                'patterns': number,
                'photons_per_pattern': detector.photons,
                'flicker': detector.flicker,
                **{f'{word.replace(" ", "_")}_patterns': numbers.tolist() for word, numbers in unusual.items()},
            },
        ),
        Finding(
            'pixels',
            f'{detector.dead} dead, {detector.hot} hot and {detector.saturated} saturated pixels are not masked'
            + (limit if detector.saturated else '')
            + ('.' if bad else ': nothing to mask.'),
            'Dead: nothing counted where 25 counts are usual; hot: 4 times the brightest neighbour; the file masks '
            f'{int(measurement.bad_pixels.sum())}.',
            'notice' if bad else 'good',
            {'dead': detector.dead, 'hot': detector.hot, 'saturated': detector.saturated, 'limit': detector.limit},
        ),
        Finding(
            'centre',
            f'Centre of the patterns at row {with_error(detector.centre[0], detector.centre_error)}, column '
            f'{with_error(detector.centre[1], detector.centre_error)}; the array has its zero frequency at '
            f'{middle[0]}, {middle[1]}.',
            'Symmetry of the mean pattern under a rotation by 180 degrees. An offset tilts the probe and changes '
            'nothing else.',
            'good' if offset < 0.05 * min(measurement.shape) else 'notice',
            {'row': detector.centre[0], 'column': detector.centre[1], 'error': detector.centre_error},
        ),
        Finding(
            'useful_side',
            f'Patterns differ by more than photon noise within {detector.useful_side} x {detector.useful_side} pixels.',
            'Variance between patterns above 1.25 times that of photon noise, ring by ring.',
            'good',
            {'side': detector.useful_side},
        ),
    ]  # fmt: skip


def _detector_proposals(measurement: Measurement, detector: DetectorReport, centre: tuple[int, int]) -> list[Proposal]:
    proposals = []
    if detector.dead + detector.hot + detector.saturated:
        proposals.append(
            Proposal('mask', f'mask {int((detector.bad_pixels & ~measurement.bad_pixels).sum())} more pixels')
        )
    middle = measurement.shape[0] // 2, measurement.shape[1] // 2
    if (detector.useful_side, detector.useful_side) != measurement.shape or centre != middle:
        proposals.append(
            Proposal(
                'crop',
                f'cut the patterns to {detector.useful_side} x {detector.useful_side} pixels about row {centre[0]}, '
                f'column {centre[1]}',
            )
        )
    return proposals


def _beam_px(parallax: Parallax, aperture: Aperture) -> float:
    """Return the diameter of the beam on the sample, far-field object pixels, from the shift of its shadow."""
    return 2.0 * aperture.edge_px / abs(parallax.factor)


def _near_field_finding(measurement: Measurement, aperture: Aperture, parallax: Parallax | None) -> Finding | None:
    """Return why the patterns are near field; None where they are not."""
    if parallax is None or not parallax.is_significant:
        if not measurement.says_near_field:
            return None
        return Finding(
            'regime', 'The file says that its patterns are near field, which this package does not reconstruct.',
            'far_field of the product is False.', 'problem', {'near_field': True},
        )  # fmt: skip
    beam, side = _beam_px(parallax, aperture), measurement.shape[0]
    if beam <= NEAR_FIELD_RATIO * side and not measurement.says_near_field:
        return None
    pixel = measurement.geometry.object_pixel_m
    lengths = '' if pixel is None else (
        f': {metres(beam * pixel[0])} of beam and {metres(side * pixel[0])} of array, object pixel of the far field '
        f'{metres(pixel[0])}'
    )  # fmt: skip
    magnified, values = '', {'near_field': True, 'beam_over_array': beam / side}
    detector_pixel = measurement.geometry.detector_pixel_m
    if pixel is not None and detector_pixel is not None:
        magnification = abs(parallax.factor) * detector_pixel[0] / pixel[0]
        error = magnification * parallax.factor_error / abs(parallax.factor)
        magnified = (
            f' The shadow is magnified {with_error(magnification, error)} times: effective pixel '
            f'{metres(detector_pixel[0] / magnification)}.'
        )
        values |= {'magnification': magnification, 'magnification_error': error}
        distance = measurement.geometry.detector_distance_m
        if distance:
            values['focus_to_sample_m'] = distance / magnification
            magnified += f' The sample lies {metres(distance / magnification)} behind the focus.'
    return Finding(
        'regime',
        'Near field: the beam on the sample is '
        f'{beam / side:.1f} times as wide as the far-field array{lengths}.{magnified} This package reconstructs far '
        'field only; use a near-field model.',
        f'A step of the sample shifts the shadow by {abs(parallax.factor):.3g} detector pixels per far-field object '
        f'pixel (correlation of neighbouring patterns {parallax.correlation:.2f}, {parallax.significance:.0f} standard '
        f'errors); the aperture is {2 * aperture.edge_px:.0f} detector pixels wide.',
        'problem',
        values,
    )


def _far_field_finding(measurement: Measurement, aperture: Aperture, parallax: Parallax | None) -> Finding:
    if parallax is None or not parallax.is_significant:
        return Finding(
            'regime',
            'Nothing speaks against the far field.',
            'Neighbouring patterns show no shadow that moves with the sample.',
            'good',
            {'near_field': False},
        )
    beam = _beam_px(parallax, aperture)
    return Finding(
        'regime',
        f'Far field: the beam is {100 * beam / measurement.shape[0]:.0f} % as wide as the array.',
        f'The shadow moves by {abs(parallax.factor):.3g} detector pixels per object pixel.',
        'good',
        {'near_field': False, 'beam_over_array': beam / measurement.shape[0]},
    )


def _too_few(measurement: Measurement) -> Finding:
    return Finding(
        'geometry',
        f'{measurement.size} patterns are too few to find orientation and defocus.',
        f'At least {LEAST_POSITIONS} are needed: some predict the others.',
        'problem',
    )


def _fault_findings(measurement: Measurement, device: torch.device, should_stop: Callable[[], bool]) -> list[Finding]:
    """Return one finding for every likely cause, or one that says that there is none."""
    if measurement.probe is None:
        return [Finding('faults', 'No fault is searched: the scan has no probe.', 'A probe is needed.', 'notice')]
    positions, grid = on_grid(measurement)
    scan = make_raw_scan(
        measurement.counts,
        positions,
        measurement.probe,
        bad_pixels=measurement.bad_pixels,
        object_shape=grid,
        name=measurement.name,
    )
    found = diagnose(scan, device, should_stop)
    if not found.causes:
        return [
            Finding(
                'faults', 'No cause of a bad reconstruction was found.', 'Every check passed.', 'good', found.numbers
            )
        ]
    return [
        Finding(
            f'fault_{number}_{cause.key}',
            cause.sentence,
            f'{cause.strength:.1f} times the threshold; number {number} of {len(found.causes)}, most likely first.',
            'problem' if number == 1 else 'notice',
            {'cause': cause.key, 'strength': cause.strength, 'map': cause.advice.map, 'setting': cause.advice.setting},
        )
        for number, cause in enumerate(found.causes, 1)
    ]


def _choose_partner(measurement: Measurement, found: Found) -> tuple[Orientation, float, str]:
    """Return which of the two equivalent solutions to use, the sign for its curvature, and the reason."""
    given, partner = found.best.orientation, found.best.orientation.partner
    if measurement.probe is not None and Orientation() in (given, partner):
        is_found = given == Orientation()
        return Orientation(), 1.0 if is_found else -1.0, 'the orientation as given is kept'
    ratio = found.contrast.value / max(found.contrast.error, 1e-9)
    strength = f'correlation of amplitude and phase {with_error(found.contrast.value, found.contrast.error)}'
    if ratio < -CERTAIN_CONTRAST:
        return partner, -1.0, f'chosen because matter absorbs and retards the phase together ({strength})'
    if ratio > CERTAIN_CONTRAST:
        return given, 1.0, f'chosen because matter absorbs and retards the phase together ({strength})'
    if found.curvature.value < 0:
        return partner, -1.0, f'positive defocus is taken by convention; nothing decides ({strength})'
    return given, 1.0, f'positive defocus is taken by convention; nothing decides ({strength})'


def _defocus(measurement: Measurement, curvature: Value) -> tuple[str, dict[str, Any]]:
    """Return the defocus in words and numbers: metres where pixel and wavelength are known."""
    pixel, wavelength = measurement.geometry.object_pixel_m, measurement.wavelength_m
    if pixel is None or wavelength is None:
        text = f'{with_error(curvature.value, curvature.error)} square object pixels over the wavelength'
        return text, {'curvature_px2': curvature.value, 'curvature_error_px2': curvature.error}
    factor = pixel[0] * pixel[1] / wavelength
    value, error = curvature.value * factor, curvature.error * factor
    text = f'{with_error(value * 1e6, error * 1e6)} um'
    return text, {'defocus_m': value, 'defocus_error_m': error}


def _geometry_findings(
    measurement: Measurement,
    found: Found,
    parallax: Parallax | None,
    orientation: Orientation,
    curvature: Value,
    how: str,
) -> list[Finding]:
    best, rival = found.best, found.rival
    defocus, values = _defocus(measurement, curvature)
    evidence = (
        f'Held-out patterns correlate with their prediction by {best.score:.2f}; the best other orientation or sign '
        f'({rival.orientation.name}) by {rival.score:.2f}, {found.lead:.0f} standard errors less.'
    )
    if parallax is not None and parallax.is_significant:
        agrees = parallax.orientation == best.orientation and parallax.factor * best.curvature < 0
        evidence += f' The shift of the shadow {"agrees" if agrees else "does not agree"}.'
    certain = found.is_certain
    is_changed = orientation != Orientation()
    return [
        Finding(
            'orientation',
            f'Orientation of the patterns: {orientation.name}' + ('.' if certain else '; this is not certain.'),
            evidence + f' {orientation.partner.name.capitalize()} with the defocus reversed explains the same patterns '
            f'by the conjugated object: {how}.',
            'notice' if is_changed and certain else 'good' if certain else 'notice',
            {
                'transposed': orientation.transposed,
                'rows_flipped': orientation.rows_flipped,
                'columns_flipped': orientation.columns_flipped,
                'score': best.score,
                'rival_score': rival.score,
                'lead_standard_errors': found.lead,
                'contrast': found.contrast.value,
                'contrast_error': found.contrast.error,
            },
        ),
        Finding(
            'defocus',
            f'Defocus {defocus}' + ('.' if certain else '; its sign is not certain.'),
            'Vertex of a parabola through the scores about the best one; the error is a jackknife over held-out '
            'patterns. A scale of the positions and the curvature can replace each other.',
            'good' if certain else 'notice',
            values,
        ),
        Finding(
            'aperture',
            f'The aperture is {"an annulus" if found.aperture.stop_px else "a disc"} with its edge at '
            f'{found.aperture.edge_px:.1f} detector pixels'
            + (f' and a central stop of {found.aperture.stop_px:.1f}.' if found.aperture.stop_px else '.'),
            'Rings of the mean pattern: 95 % of the counts lie inside the edge.',
            'good',
            {'edge_px': found.aperture.edge_px, 'stop_px': found.aperture.stop_px},
        ),
        _overlap_finding(measurement, found),
        _affine_finding(found),
        Finding(
            'modes',
            f'{found.modes} incoherent probe mode{"s are" if found.modes > 1 else " is"} useful.',
            'Explained share of the signal of held-out patterns, probe refined: '
            + ', '.join(f'{number}: {share:.3f}' for number, share in found.shares.items())
            + '.',
            'good',
            {'modes': found.modes, 'shares': {str(number): share for number, share in found.shares.items()}},
        ),
    ]


def _overlap_finding(measurement: Measurement, found: Found) -> Finding:
    """Compare the distance of neighbouring positions with the size of the probe."""
    diameter = diameter_of(found.aperture.probe(found.best.curvature)[:1])
    distances, _ = cKDTree(measurement.positions).query(measurement.positions, k=2)
    step = float(np.median(distances[:, 1]))
    overlap = 1.0 - step / diameter
    side = measurement.shape[0]
    too_wide = diameter > LARGEST_PROBE * side
    text = f'Neighbouring positions overlap by {100 * overlap:.0f} % (linear).'
    if too_wide:
        text += f' The probe is {100 * diameter / side:.0f} % as wide as the array: the far field is undersampled.'
    elif overlap < LITTLE_OVERLAP:
        text += ' That is little: positions and probe can hardly be refined together.'
    return Finding(
        'overlap',
        text,
        f'Median distance to the nearest neighbour {step:.3g} pixels, diameter of the probe (90 % of its power) '
        f'{diameter:.3g} pixels of {side}.',
        'problem' if too_wide else 'notice' if overlap < LITTLE_OVERLAP else 'good',
        {'overlap': overlap, 'probe_over_array': diameter / side},
    )


def _affine_finding(found: Found) -> Finding:
    rotation, scale = found.rotation, found.scale
    is_rotated = abs(rotation.value) > max(SIGNIFICANT * rotation.error, ROTATION_NOTICE)
    is_scaled = abs(scale.value - 1) > max(SIGNIFICANT * scale.error, SCALE_NOTICE)
    degrees = with_error(math.degrees(rotation.value), math.degrees(rotation.error))
    return Finding(
        'positions',
        f'The positions fit best when they are rotated by {degrees} degrees (y towards x) and scaled by '
        f'{with_error(scale.value, scale.error)}.',
        'Each alone, at the defocus found, scored by held-out patterns. The scale cannot be told from an error of the '
        'defocus: together they only change the size of the image.',
        'notice' if is_rotated or is_scaled else 'good',
        {
            'rotation_degrees': math.degrees(rotation.value),
            'rotation_error_degrees': math.degrees(rotation.error),
            'scale': scale.value,
            'scale_error': scale.error,
        },
    )


def _given_probe_finding(measurement: Measurement, search: Search, found: Found, curvature: Value) -> Finding:
    """Compare the probe of the file with itself reversed and with the one that was found."""
    probe = measurement.probe
    if probe is None:
        raise ValueError('The measurement has no probe.')
    own, reverse = search.score_probe(probe), search.score_probe(reversed_defocus(probe))
    given = curvature_of(probe, found.aperture.largest_curvature)
    text, values = _defocus(measurement, given)
    evidence = (
        f'Held-out patterns correlate by {own.correlation:.2f} with the given probe, by {reverse.correlation:.2f} with '
        f'its defocus reversed, and by {found.best.score:.2f} with the probe that was found.'
    )
    values = {f'given_{name}': value for name, value in values.items()} | {
        'score': own.correlation,
        'reversed_score': reverse.correlation,
    }
    if lead_of(reverse, own) > CERTAIN:
        return Finding(
            'given_probe',
            f'The defocus of the given probe ({text}) has the wrong sign.',
            evidence,
            'problem',
            values,
        )
    if lead_of(found.best.agreement, own) > CERTAIN and found.best.orientation not in (
        Orientation(), Orientation().partner,
    ):  # fmt: skip
        return Finding(
            'given_probe', f'The axes of the patterns are wrong: {found.best.orientation.name}.', evidence, 'problem',
            values,
        )  # fmt: skip
    differs = abs(given.value - curvature.value) > max(
        FAR_FROM_GIVEN * abs(curvature.value), SIGNIFICANT * curvature.error
    )
    if differs and lead_of(found.best.agreement, own) > CERTAIN:
        scale = given.value / curvature.value
        return Finding(
            'given_probe',
            f'The given probe has another defocus ({text}) than the patterns ask for; positions scaled by about '
            f'{scale:.2f} would suit the given probe as well.',
            evidence + ' Which of the two is wrong, only the stage or the optics can tell.',
            'notice',
            values | {'scale_for_given_probe': scale},
        )
    return Finding(
        'given_probe', f'The given probe (defocus {text}) agrees with the patterns.', evidence, 'good', values
    )


def _geometry_proposals(
    measurement: Measurement, found: Found, orientation: Orientation, curvature: Value
) -> list[Proposal]:
    proposals = []
    usual = found.is_certain
    if orientation != Orientation():
        proposals.append(Proposal('orientation', f'change the axes of the patterns: {orientation.name}', usual))
    defocus, _ = _defocus(measurement, curvature)
    proposals.append(
        Proposal(
            'probe',
            f'start from the aperture with a defocus of {defocus} and {found.modes} mode'
            + ('s' if found.modes > 1 else ''),
            usual and measurement.probe is None,
        )
    )
    if _affine_finding(found).status != 'good':
        proposals.append(
            Proposal('rotation', f'rotate the positions by {math.degrees(found.rotation.value):.2f} degrees', False)
        )
        proposals.append(Proposal('scale', f'scale the positions by {found.scale.value:.3f}', False))
    return proposals


__all__ = ['SUBSET_PIXELS', 'Inspection', 'inspect']
