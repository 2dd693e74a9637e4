"""Check every array before it becomes part of a scan.

Each function takes an array as the caller has it, returns it in its final form (never a copy of the patterns), and
raises :class:`~ptychopinn_torch_plugin.errors.InputError` with one sentence that states field, value and remedy.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..limits import MAX_PATTERN_PX, MIN_PATTERN_PX, physical_memory
from .chunks import PatternFile

logger = logging.getLogger(__name__)

MAX_COUNT = 1e12
"""Largest number of photons in a pixel: no detector counts more, and the squares stay in the range of float32."""
MIN_BRIGHTEST = 1e-10
"""Least number of photons in the brightest pixel of a scan: the forward model takes 1e-12 as zero."""
OBJECT_BYTES_PER_PX = 100
"""Working memory per object pixel, in bytes: about twelve complex64 arrays of the object."""
PATTERN_BYTES_PER_PX = 64
"""Working memory per pixel and probe mode of one pattern, in bytes: the smallest batch is one pattern."""
_GAP_MARKS = (2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)
"""Values that detectors write into gaps and dead pixels. They stay when the patterns are converted to another type."""
BLOCK_ELEMENTS = 2**24
"""Elements of a pattern stack that are read at a time, so that a memory map is not loaded whole."""


def frame_blocks(counts: npt.NDArray[Any]) -> Iterator[slice]:
    """Yield slices that divide ``counts`` ``(n, H, W)`` into blocks of about ``BLOCK_ELEMENTS`` elements at most."""
    step = max(1, BLOCK_ELEMENTS // max(1, counts.shape[1] * counts.shape[2]))
    for start in range(0, counts.shape[0], step):
        yield slice(start, start + step)


def check_pattern_stack(counts: npt.ArrayLike | PatternFile) -> npt.NDArray[np.number]:
    """Check type and shape of the patterns without reading a value.

    Args:
        counts: photon counts ``(n, H, W)``; integers or floats of up to 64 bits.

    Returns:
        The same array, a memory map included, with the same dtype.

    Raises:
        InputError: another dtype, not three axes, no pattern, or sides outside ``MIN_PATTERN_PX``..``MAX_PATTERN_PX``.
    """
    # It has all of an array that is used of patterns: shape, dtype, indexing by slices and numbers.
    is_file = isinstance(counts, PatternFile)
    stack = cast('npt.NDArray[Any]', counts) if is_file else np.asanyarray(counts)
    if stack.dtype.kind not in 'uif' or stack.dtype.itemsize > 8:
        raise InputError(
            f'counts has dtype {stack.dtype}: give photon counts as integers or floats of at most 64 bits.'
        )
    if stack.ndim != 3:
        raise InputError(f'counts has shape {stack.shape}: give three axes, (patterns, height, width).')
    if stack.shape[0] < 1:
        raise InputError('counts holds 0 patterns: give at least one.')
    height, width = stack.shape[1:]
    if not all(MIN_PATTERN_PX <= side <= MAX_PATTERN_PX for side in (height, width)):
        raise InputError(
            f'counts has patterns of {height} x {width} pixels: both sides must lie between {MIN_PATTERN_PX} and '
            f'{MAX_PATTERN_PX}; crop, bin or pad the patterns.'
        )
    return stack


def check_bad_pixels(bad_pixels: npt.ArrayLike | None, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Check the bad-pixel mask, ``(H, W)``, True (or 1) where the detector did not measure; None is all False.

    Raises:
        InputError: not a mask of 0 and 1, another shape than the patterns, or not one good pixel.
    """
    if bad_pixels is None:
        return np.zeros(shape, dtype=np.bool_)
    mask: npt.NDArray[Any] = np.asarray(bad_pixels)
    if mask.shape != shape:
        raise InputError(f'bad_pixels has shape {mask.shape} but the patterns have {shape}: give one value per pixel.')
    if mask.dtype.kind not in 'bui' or (mask.dtype.kind != 'b' and not np.isin(mask, (0, 1)).all()):
        raise InputError(f'bad_pixels (dtype {mask.dtype}) is not a mask: give booleans, True where a pixel is bad.')
    mask = mask.astype(np.bool_)
    if mask.all():
        raise InputError('bad_pixels marks every pixel as bad: is the mask inverted? True means bad.')
    return mask


def check_count_values(
    counts: npt.NDArray[np.number], bad_pixels: npt.NDArray[np.bool_], name: str
) -> npt.NDArray[np.int64]:
    """Read all patterns once, block by block, and check the values of the good pixels.

    Args:
        counts: patterns ``(n, H, W)`` that passed :func:`check_pattern_stack`.
        bad_pixels: mask ``(H, W)``; values under it (NaN, gap marks) are ignored.
        name: name of the scan in the log.

    Returns:
        Indices of the patterns without a photon, ``(k,)``, ascending; a warning reports them.

    Raises:
        InputError: a value is not finite, negative, larger than ``MAX_COUNT``, or the mark of gaps and dead pixels (the
            largest value of an unsigned type, or of 32 or 64 bits); or there is (nearly) no photon.
    """
    good = ~bad_pixels
    lowest = np.full(good.shape, np.inf)
    highest = np.full(good.shape, -np.inf)
    marked = np.zeros(good.shape, dtype=np.bool_)
    marks = _gap_marks(counts.dtype)
    lit: list[npt.NDArray[np.bool_]] = []
    with np.errstate(invalid='ignore'):  # NaN is found afterwards
        for block in frame_blocks(counts):
            frames = np.asarray(counts[block])
            block_highest = frames.max(axis=0)
            np.minimum(lowest, frames.min(axis=0), out=lowest)
            np.maximum(highest, block_highest, out=highest)
            for mark in marks:
                marked |= block_highest == mark
            lit.append(_any_photon(frames, good))
    _refuse_pixels(~(np.isfinite(lowest) & np.isfinite(highest)) & good, 'values that are not finite (NaN or infinity)')
    _refuse_pixels((lowest < 0) & good, 'negative values')
    if (marked & good).any():
        seen = float(highest[marked & good].flat[0])
        value = next(mark for mark in marks if float(mark) == seen)
        _refuse_pixels(
            marked & good, f'the value {int(value)}, the mark of a gap or a saturated pixel in {counts.dtype},'
        )
    _refuse_pixels((highest > MAX_COUNT) & good, f'values above {MAX_COUNT:g}, more photons than any detector counts,')
    _check_brightest(float(highest[good].max()), name)
    empty = np.flatnonzero(~np.concatenate(lit))
    if empty.size:
        logger.warning(
            '%s: %d of %d patterns are empty (no photon in a good pixel), first number %d: they are skipped, and their '
            'positions stay as they are.', name, empty.size, len(counts), empty[0],
        )  # fmt: skip
    return empty


def _gap_marks(dtype: np.dtype[Any]) -> tuple[float, ...]:
    """Return the values that mark a gap in patterns of ``dtype``.

    The largest value of a signed type of 8 or 16 bits is a count, and half precision cannot hold a mark.
    """
    if dtype.kind == 'f':
        return tuple(float(dtype.type(mark)) for mark in _GAP_MARKS) if dtype.itemsize > 2 else ()
    largest = int(np.iinfo(str(dtype)).max)
    wide = tuple(mark for mark in _GAP_MARKS if mark <= largest)
    return tuple({*wide, largest}) if dtype.kind == 'u' else wide


def _check_brightest(value: float, name: str) -> None:
    """Raise for a scan without light, and warn if the brightest pixel holds less than one photon."""
    if value == 0:
        raise InputError('counts is zero in every pixel of every pattern: there is nothing to reconstruct from.')
    if value < MIN_BRIGHTEST:
        raise InputError(
            f'counts is nowhere larger than {value:.3g}, far below one photon: multiply the patterns so that they are '
            'photon counts.'
        )
    if value < 1:
        logger.warning(
            '%s: counts is nowhere larger than %.3g; if these are not photon counts, multiply them: the noise model '
            'needs photons.', name, value,
        )  # fmt: skip


def _any_photon(frames: npt.NDArray[np.number], good: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return for each of the ``frames`` ``(b, H, W)`` whether any good pixel is not zero, ``(b,)``."""
    lit = frames.astype(np.bool_)
    if not good.all():
        lit &= good
    return np.asarray(lit.any(axis=(1, 2)))


def _refuse_pixels(where: npt.NDArray[np.bool_], what: str) -> None:
    """Raise if the mask ``where`` ``(H, W)`` has any pixel; the message states their number and the first one."""
    number = int(np.count_nonzero(where))
    if number:
        y, x = (int(index[0]) for index in np.nonzero(where))
        raise InputError(
            f'counts has {what} in {number} pixel{"s" if number > 1 else ""} outside bad_pixels, first at '
            f'(y, x) = ({y}, {x}): mark them in bad_pixels or repair the patterns.'
        )


def check_positions(positions: npt.ArrayLike, patterns: int, name: str) -> npt.NDArray[np.float64]:
    """Check the scan positions, ``(n, 2)`` as (y, x) in object pixels, one per pattern; returns float64.

    Raises:
        InputError: not real numbers, another shape, another number than patterns, or not finite.
    """
    given: npt.NDArray[Any] = np.asarray(positions)
    if given.dtype.kind not in 'uif':
        raise InputError(f'positions has dtype {given.dtype}: give real numbers, in pixels of the object grid.')
    if given.ndim != 2 or given.shape[1] != 2:
        raise InputError(f'positions has shape {given.shape}: give (n, 2), the columns as (y, x).')
    if given.shape[0] != patterns:
        raise InputError(f'positions holds {given.shape[0]} positions for {patterns} patterns: give one per pattern.')
    result = np.ascontiguousarray(given, dtype=np.float64)
    wrong = ~np.isfinite(result).all(axis=1)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise InputError(
            f'positions has {int(wrong.sum())} entries that are not finite, first number {first}: '
            'remove these positions together with their patterns.'
        )
    _report_repeats(result, name)
    return result


def _report_repeats(positions: npt.NDArray[np.float64], name: str) -> None:
    """Warn about positions ``(n, 2)`` that repeat another one: a repeated exposure, or a stage that did not move."""
    _, first = np.unique(positions, axis=0, return_index=True)
    repeats = np.setdiff1d(np.arange(len(positions)), first)
    if repeats.size:
        logger.warning(
            '%s: %d of %d positions repeat another one exactly, first number %d: all are used; if the stage did move, '
            'correct the positions.', name, repeats.size, len(positions), repeats[0],
        )  # fmt: skip


def check_memory(positions: npt.NDArray[np.float64], shape: tuple[int, int], modes: int) -> None:
    """Raise if the reconstruction of a scan cannot fit into the memory of this machine.

    Args:
        positions: ``(n, 2)`` as (y, x), pixels of the object grid, finite.
        shape: height and width of a pattern in pixels.
        modes: incoherent modes of the probe.

    Raises:
        InputError: the object under all patterns, or a single pattern with all modes, needs more than there is.
    """
    height, width = positions.max(axis=0) - positions.min(axis=0) + np.asarray(shape)
    needed = OBJECT_BYTES_PER_PX * height * width + PATTERN_BYTES_PER_PX * modes * shape[0] * shape[1]
    if needed > physical_memory():
        raise InputError(
            f'positions and patterns span an object of {height:.6g} x {width:.6g} pixels, which needs about '
            f'{needed / 2**30:.4g} GiB of memory (this machine has {physical_memory() / 2**30:.4g}): check that the '
            'positions are in pixels of the object grid, bin or crop the patterns, or reconstruct a part of the scan.'
        )


def check_probe(probe: npt.ArrayLike, shape: tuple[int, int], name: str) -> npt.NDArray[np.complexfloating]:
    """Check the probe, complex, ``(H, W)``, ``(modes, H, W)`` or ``(coherent, modes, H, W)``.

    Returns:
        Incoherent modes ``(modes, H, W)``, dtype kept; of several coherent (OPR) modes the first.

    Raises:
        InputError: not complex, another number of axes, another shape than the patterns, not finite, or all zero.
    """
    modes: npt.NDArray[Any] = np.asarray(probe)
    if modes.dtype.kind != 'c':
        raise InputError(f'probe has dtype {modes.dtype}: give a complex wave, for example probe.astype(complex).')
    if not 2 <= modes.ndim <= 4 or 0 in modes.shape:
        raise InputError(f'probe has shape {modes.shape}: give (H, W), (modes, H, W) or (coherent modes, modes, H, W).')
    if modes.shape[-2:] != shape:
        raise InputError(
            f'probe has {modes.shape[-2]} x {modes.shape[-1]} pixels but the patterns have {shape[0]} x {shape[1]}: '
            'give a probe on the grid of the patterns.'
        )
    if modes.ndim == 4:
        if modes.shape[0] > 1:
            logger.info('%s: of %d coherent probe modes the first is used.', name, modes.shape[0])
        modes = modes[0]
    modes = modes.reshape(-1, *shape)
    if not np.isfinite(modes).all():
        raise InputError('probe has values that are not finite (NaN or infinity): give another probe guess.')
    if not modes.any():
        raise InputError('probe is zero everywhere: give a probe guess.')
    return modes


def check_object(object_guess: npt.ArrayLike) -> npt.NDArray[np.complexfloating]:
    """Check the object, complex transmission ``(h, w)`` or ``(1, h, w)``; returns ``(h, w)``, dtype kept.

    Raises:
        InputError: not complex, more than one layer, empty, or not finite.
    """
    guess: npt.NDArray[Any] = np.asarray(object_guess)
    if guess.dtype.kind != 'c':
        raise InputError(f'object_guess has dtype {guess.dtype}: give a complex transmission.')
    if guess.ndim == 3:
        if guess.shape[0] != 1:
            raise InputError(
                f'object_guess has {guess.shape[0]} layers: only one is supported; give their product as one layer.'
            )
        guess = guess[0]
    if guess.ndim != 2 or 0 in guess.shape:
        raise InputError(f'object_guess has shape {guess.shape}: give (height, width), both at least 1.')
    if not np.isfinite(guess).all():
        raise InputError('object_guess has values that are not finite (NaN or infinity): repair it or leave it out.')
    return guess
