"""Counts or amplitudes: what a stack of patterns holds, as told or by a rule, and counts made of it.

The keys of a training file do not tell photon counts (Ptychodus) from amplitudes, their square roots (PtychoPINN). The
photon statistics do: counts are whole numbers, and so are the squares of amplitudes; what is not whole still varies
from pattern to pattern at least as much as photons do. Whoever states a dialect that these contradict is told.
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
"""Pattern values, or pixels, that must bear witness before anything is concluded from them."""

LARGEST_ERROR = 0.02
"""A square bears witness while its rounding error is below this: by chance it would be whole once in 25 times."""

LEAST_DISPERSION = 0.5
"""Variance over mean between patterns below which numbers cannot be photon counts: Poisson's is 1, a signal adds."""

MIN_PATTERNS = 8
"""Patterns from which a variance is estimated."""

NPHOTONS_TOLERANCE = 0.1
"""Relative difference between a stated and the measured number of photons that is worth a word."""


def counts_from(
    patterns: Patterns,
    good: Mask,
    dialect: DiffractionQuantity,
    name: str,
    *,
    nphotons: float | None = None,
    trusted: bool = False,
) -> Patterns:
    """Photon counts of ``diff3d``, whichever dialect it is in. The log says which it was and by which rule.

    Args:
        patterns: ``diff3d``, ``(n, H, W)``, integers or floats.
        good: ``(H, W)``, True for pixels that were measured; only these bear witness.
        dialect: what the caller says. ``'auto'``, first match: an integer dtype is counts, whole numbers are counts,
            numbers whose squares are whole are amplitudes; anything else is refused.
        name: what the log calls the data.
        nphotons: mean photons per pattern of amplitudes that were normalised, so that their squares are no counts:
            they are scaled to it. Of amplitudes whose squares are whole, and of counts, the photons are known; another
            number is then reported and not used.
        trusted: the patterns' own file states the dialect: the statistics are not asked.

    Returns:
        The patterns themselves where they are counts; squares of amplitudes else, float64 from 64-bit values, float32
        from all others.

    Raises:
        InputError: the dialect cannot be told, is contradicted by the statistics, an amplitude is negative, or
            ``nphotons`` is not a positive number.
    """
    if nphotons is not None and not 0 < nphotons < math.inf:
        raise InputError(f'nphotons is {nphotons!r}: give the mean photons of a pattern, more than 0.')
    if dialect not in ('auto', 'counts', 'amplitude'):
        raise InputError(f"dialect is {dialect!r}: give 'auto', 'counts' or 'amplitude'.")
    found = _find(patterns, good, name) if dialect == 'auto' else dialect
    if dialect != 'auto':
        logger.info('%s: diff3d is read as %s, as asked for.', name, _WORDS[dialect])
        if not trusted:
            _refuse_contradiction(patterns, good, dialect)
    if found == 'counts':
        _report_photons(patterns, good, nphotons, name)
        return patterns
    whole = dialect == 'auto' or _are_roots_of_whole(patterns, good)
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
    """Median over the good pixels with a mean of at least 1 of the variance between patterns over the mean.

    Of independent Poisson counts it is 1, and more where the expected pattern differs between positions (for the
    mixture of Poisson laws, variance = mean + variance of the means). NaN where fewer than ``MIN_PATTERNS`` patterns
    or ``MIN_EVIDENCE`` such pixels exist.
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
        f'; their variance over their mean is {spread:.2g} where counts have at least 1, which speaks for amplitudes'
        if spread < LEAST_DISPERSION
        else ''
    )
    raise InputError(
        'diff3d does not tell whether it holds photon counts or amplitudes (neither its values nor their squares are '
        f"whole numbers{hint}): say which, 'counts' or 'amplitude', the latter with nphotons if they are normalised."
    )


def _refuse_contradiction(patterns: Patterns, good: Mask, dialect: Literal['counts', 'amplitude']) -> None:
    """Raise where the photon statistics say the opposite of ``dialect``."""
    whole = patterns.dtype.kind in 'ui' or _are_whole(patterns, good)
    if dialect == 'amplitude':
        # Zeros and ones are their own roots, and tell nothing.
        if whole and any(bool(((np.asarray(patterns[b]) > 1) & good).any()) for b in frame_blocks(patterns)):
            raise InputError(
                "diff3d holds whole numbers, which are photon counts and no amplitudes: say dialect='counts' or 'auto'."
            )
        return
    if whole:
        return
    if _are_roots_of_whole(patterns, good):
        raise InputError(
            'diff3d holds numbers whose squares are whole, which are amplitudes and no photon counts: say '
            "dialect='amplitude' or 'auto'."
        )
    spread = dispersion(patterns, good)
    if spread < LEAST_DISPERSION:
        raise InputError(
            f'diff3d varies between patterns by {spread:.2g} times its mean, but photon counts vary by their mean at '
            "least: these are amplitudes (say dialect='amplitude'), or patterns without photon noise (make a scan of "
            'them with make_raw_scan, which asks for none).'
        )


def _are_whole(patterns: Patterns, good: Mask) -> bool:
    return all(
        bool(((frames == np.rint(frames)) | ~good).all())
        for frames in (np.asarray(patterns[block]) for block in frame_blocks(patterns))
    )


def _are_roots_of_whole(patterns: Patterns, good: Mask) -> bool:
    """True if every square that is precise enough to judge is whole, and there are enough of them.

    A square's rounding error is up to ``4 eps a**2`` (root and square in the file's own precision).
    """
    if patterns.dtype.kind in 'ui':
        return False
    eps = float(np.finfo(str(patterns.dtype)).eps)
    evidence = 0
    for block in frame_blocks(patterns):
        squares = np.square(np.asarray(patterns[block])[:, good].astype(np.float64))
        error = 4 * eps * squares
        judged = (squares > 0) & (error < LARGEST_ERROR)
        if (np.abs(squares - np.rint(squares)) > error)[judged].any():
            return False
        evidence += int(np.count_nonzero(judged))
    return evidence >= MIN_EVIDENCE


def _square(amplitudes: Patterns, good: Mask, *, to_whole: bool) -> npt.NDArray[np.floating]:
    """Square ``(n, H, W)`` block by block, to float64 from 64-bit values, else to float32.

    Raises:
        InputError: a good pixel is negative, which no amplitude is (its square would hide it).
    """
    counts = np.empty(amplitudes.shape, dtype=np.float64 if amplitudes.dtype.itemsize == 8 else np.float32)
    for block in frame_blocks(amplitudes):
        frames = np.asarray(amplitudes[block])
        if ((frames < 0) & good).any():
            raise InputError(
                'diff3d has negative values, so it does not hold amplitudes: check what the file contains.'
            )
        squares = np.square(frames.astype(np.float64))
        counts[block] = np.rint(squares) if to_whole else squares
    return counts


def _mean_total(counts: Patterns, good: Mask) -> float:
    """Photons of a pattern on the good pixels, mean over all patterns."""
    total = sum(float(np.asarray(counts[block])[:, good].sum(dtype=np.float64)) for block in frame_blocks(counts))
    return float(total / counts.shape[0])


def _report_photons(counts: Patterns, good: Mask, nphotons: float | None, name: str) -> None:
    if nphotons is None:
        return
    measured = _mean_total(counts, good)
    if abs(measured - nphotons) > NPHOTONS_TOLERANCE * nphotons:
        logger.warning(
            '%s: nphotons = %g is not used: the patterns hold %.4g photons on average, and they are what was measured.',
            name, nphotons, measured,
        )  # fmt: skip
