"""Determine whether patterns are photon counts or amplitudes, and convert them to counts.

The keys of a training file are the same for photon counts (Ptychodus) and for amplitudes, their square roots
(PtychoPINN). The photon statistics differ: counts are whole numbers, and so are the squares of amplitudes; and the
variance of counts between patterns is at least their mean. A statement of the caller that contradicts these is refused.
"""

from __future__ import annotations

import logging
import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .validation import frame_blocks

logger = logging.getLogger(__name__)

DiffractionQuantity = Literal['auto', 'counts', 'amplitude']

Patterns = npt.NDArray[np.number]
Mask = npt.NDArray[np.bool_]

MIN_EVIDENCE = 100
"""Least number of pattern values, or pixels, from which a conclusion is drawn."""

LARGEST_ERROR = 0.02
"""Largest rounding error of a square that is tested for being whole: by chance, 1 in 25 such numbers is."""

LEAST_DISPERSION = 0.5
"""Variance over mean between patterns below which values cannot be photon counts: Poisson noise alone gives 1."""

MIN_PATTERNS = 8
"""Least number of patterns from which a variance is estimated."""

NPHOTONS_TOLERANCE = 0.1
"""Relative difference between the stated and the measured number of photons above which a warning is logged."""


def counts_from(
    patterns: Patterns,
    good: Mask,
    quantity: DiffractionQuantity,
    name: str,
    *,
    nphotons: float | None = None,
    trusted: bool = False,
) -> Patterns:
    """Return the photon counts of ``diff3d``. The log states which quantity it holds and by which rule.

    Args:
        patterns: ``diff3d``, ``(n, H, W)``, integers or floats.
        good: ``(H, W)``, True for pixels that were measured; only these are used.
        quantity: what ``diff3d`` holds. ``'auto'`` takes the first rule that applies: an integer dtype is counts, whole
            numbers are counts, numbers whose squares are whole are amplitudes; anything else is refused.
        name: name of the data in the log.
        nphotons: mean photons per pattern of amplitudes that were normalised, so that their squares are not counts;
            these are scaled to it. For counts, and amplitudes whose squares are whole, the photons are known: a
            different number is reported and not used.
        trusted: the file of the patterns itself states the quantity: the statistics are not tested.

    Returns:
        The patterns themselves where they are counts; otherwise the squares of the amplitudes, float64 from 64-bit
        values, float32 from all others.

    Raises:
        InputError: the quantity cannot be determined, the statistics contradict it, an amplitude is negative, or
            ``nphotons`` is not a positive number.
    """
    if nphotons is not None and not 0 < nphotons < math.inf:
        raise InputError(f'nphotons is {nphotons!r}: give the mean photons of a pattern, more than 0.')
    if quantity not in ('auto', 'counts', 'amplitude'):
        raise InputError(f"diffraction_quantity is {quantity!r}: give 'auto', 'counts' or 'amplitude'.")
    found = _find(patterns, good, name) if quantity == 'auto' else quantity
    if quantity != 'auto':
        logger.info(
            '%s: diff3d is read as %s, as %s.', name, _WORDS[quantity], 'the file says' if trusted else 'asked for'
        )
        if not trusted:
            _refuse_contradiction(patterns, good, quantity)
    if found == 'counts':
        _report_photons(patterns, good, nphotons, name)
        return patterns
    whole = quantity == 'auto' or _are_roots_of_whole(patterns, good)
    counts = _square(patterns, good, to_whole=whole)
    if whole or nphotons is None:
        _report_photons(counts, good, nphotons, name)
        return counts
    mean = _mean_total(counts, good)
    if not mean > 0:
        raise InputError('diff3d is zero in every measured pixel: there is nothing to scale to nphotons.')
    logger.info('%s: the amplitudes are normalised; scaled to nphotons = %g per pattern.', name, nphotons)
    counts *= nphotons / mean
    return counts


_WORDS = {'counts': 'photon counts', 'amplitude': 'amplitudes and squared'}


def dispersion(patterns: Patterns, good: Mask) -> float:
    """Return the variance between patterns over the mean: the median over good pixels with a mean of at least 1.

    For independent Poisson counts it is 1, and larger where the expected pattern differs between positions (for a
    mixture of Poisson distributions, variance = mean + variance of the means). NaN for fewer than ``MIN_PATTERNS``
    patterns or ``MIN_EVIDENCE`` such pixels.
    """
    size = patterns.shape[0]
    if size < MIN_PATTERNS:
        return math.nan
    total = np.zeros(patterns.shape[1:], dtype=np.float64)
    squares = np.zeros_like(total)
    for block in frame_blocks(patterns):
        frames = np.where(good, patterns[block], 0).astype(np.float64)
        total += frames.sum(axis=0)
        squares += np.square(frames).sum(axis=0)
    mean = total / size
    bright = mean >= 1
    if np.count_nonzero(bright) < MIN_EVIDENCE:
        return math.nan
    variance = (squares - size * np.square(mean)) / (size - 1)
    return float(np.median(variance[bright] / mean[bright]))


def _find(patterns: Patterns, good: Mask, name: str) -> Literal['counts', 'amplitude']:
    if patterns.dtype.kind in 'ui':
        logger.info('%s: diff3d is read as photon counts: its dtype %s is an integer.', name, patterns.dtype)
        return 'counts'
    if _are_whole(patterns, good):
        logger.info('%s: diff3d is read as photon counts: all its values are whole numbers.', name)
        return 'counts'
    if _are_roots_of_whole(patterns, good):
        logger.info('%s: diff3d is read as amplitudes and squared: the squares of its values are whole numbers.', name)
        return 'amplitude'
    spread = dispersion(patterns, good)
    hint = (
        f'; their variance over their mean is {spread:.2g} where counts have at least 1, as amplitudes have'
        if spread < LEAST_DISPERSION
        else ''
    )
    raise InputError(
        'diff3d does not tell whether it holds photon counts or amplitudes (neither its values nor their squares are '
        f"whole numbers{hint}): say which, 'counts' or 'amplitude', the latter with nphotons if they are normalised."
    )


def _refuse_contradiction(patterns: Patterns, good: Mask, quantity: Literal['counts', 'amplitude']) -> None:
    """Raise if the photon statistics contradict ``quantity``."""
    whole = patterns.dtype.kind in 'ui' or _are_whole(patterns, good)
    if quantity == 'amplitude':
        # Zeros and ones equal their squares, so they do not distinguish the two.
        if whole and any(bool(((np.asarray(patterns[b]) > 1) & good).any()) for b in frame_blocks(patterns)):
            raise InputError(
                'diff3d holds whole numbers, which are photon counts and no amplitudes: give diffraction_quantity = '
                "'counts' or 'auto'."
            )
        return
    if whole:
        return
    if _are_roots_of_whole(patterns, good):
        raise InputError(
            'diff3d holds numbers whose squares are whole, which are amplitudes and no photon counts: give '
            "diffraction_quantity = 'amplitude' or 'auto'."
        )
    spread = dispersion(patterns, good)
    if spread < LEAST_DISPERSION:
        raise InputError(
            f'diff3d varies between patterns by {spread:.2g} times its mean, but photon counts vary by their mean at '
            "least: these are amplitudes (give diffraction_quantity = 'amplitude'), or patterns without photon noise "
            '(make a scan of them with make_raw_scan, which does not test the noise).'
        )


def _are_whole(patterns: Patterns, good: Mask) -> bool:
    return all(
        bool(((frames == np.rint(frames)) | ~good).all())
        for frames in (np.asarray(patterns[block]) for block in frame_blocks(patterns))
    )


def _are_roots_of_whole(patterns: Patterns, good: Mask) -> bool:
    """Return whether every square that is precise enough to be tested is whole, and there are enough of them.

    A square's rounding error is up to ``4 eps a**2`` (root and square in the file's own precision).
    """
    if patterns.dtype.kind in 'ui':
        return False
    eps = float(np.finfo(str(patterns.dtype)).eps)
    evidence = 0
    for block in frame_blocks(patterns):
        squares = np.square(np.asarray(patterns[block])[:, good].astype(np.float64))
        error = 4 * eps * squares
        tested = (squares > 0) & (error < LARGEST_ERROR)
        if (np.abs(squares - np.rint(squares)) > error)[tested].any():
            return False
        evidence += int(np.count_nonzero(tested))
    return evidence >= MIN_EVIDENCE


def _square(amplitudes: Patterns, good: Mask, *, to_whole: bool) -> npt.NDArray[np.floating]:
    """Square ``(n, H, W)`` block by block, to float64 from 64-bit values, else to float32.

    Raises:
        InputError: a good pixel is negative, which an amplitude cannot be (its square would hide this).
    """
    counts = np.empty(amplitudes.shape, dtype=np.float64 if amplitudes.dtype.itemsize == 8 else np.float32)
    for block in frame_blocks(amplitudes):
        frames = np.asarray(amplitudes[block])
        if ((frames < 0) & good).any():
            raise InputError(
                'diff3d has negative values, so it does not hold amplitudes: check the contents of the file.'
            )
        squares = np.square(frames.astype(np.float64))
        counts[block] = np.rint(squares) if to_whole else squares
    return counts


def _mean_total(counts: Patterns, good: Mask) -> float:
    """Return the mean number of photons per pattern on the good pixels."""
    total = sum(float(np.asarray(counts[block])[:, good].sum(dtype=np.float64)) for block in frame_blocks(counts))
    return float(total / counts.shape[0])


def _report_photons(counts: Patterns, good: Mask, nphotons: float | None, name: str) -> None:
    if nphotons is None:
        return
    measured = _mean_total(counts, good)
    if abs(measured - nphotons) > NPHOTONS_TOLERANCE * nphotons:
        logger.warning(
            '%s: nphotons = %g is not used: the patterns hold %.4g photons on average, as measured.',
            name, nphotons, measured,
        )  # fmt: skip
