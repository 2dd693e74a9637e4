"""Training files (NPZ), as PtychoPINN and Ptychodus write them.

Two dialects exist and the keys do not tell them apart: ``diff3d`` holds photon counts (Ptychodus) or amplitudes, the
square roots of counts (PtychoPINN). The reader is told, or finds out by a rule that it logs; it never guesses.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .archive import ArrayHeader, read_arrays, read_headers
from .checks import check_bad_pixels, check_pattern_stack, frame_blocks
from .scan import RawScan, make_raw_scan

logger = logging.getLogger(__name__)

CountsAre = Literal['auto', 'counts', 'amplitude']

REQUIRED_KEYS = ('diff3d', 'xcoords', 'ycoords', 'probeGuess')
OPTIONAL_KEYS = ('objectGuess', 'bad_pixels', 'scan_index', 'fresnel_numbers', 'diff3d_quantity')

MIN_EVIDENCE = 100
"""Pattern values that must bear witness before a file is taken as amplitudes."""

LARGEST_ERROR = 0.02
"""A square bears witness while its rounding error is below this: by chance it would be whole once in 25 times."""


def read_training_npz(path: Path, *, counts_are: CountsAre = 'auto') -> RawScan:
    """Read a training file as a validated scan.

    Positions are ``ycoords``, ``xcoords`` (object pixels); ``objectGuess`` may be absent (see
    :func:`~ptychopinn_torch_plugin.data.scan.make_raw_scan` for the grid made then), as may ``bad_pixels``,
    ``scan_index``, and the keys ``fresnel_numbers`` and ``diff3d_quantity`` that :func:`write_training_npz` adds.

    Args:
        path: the file.
        counts_are: what ``diff3d`` holds. ``'auto'`` takes integers and whole numbers as counts, and numbers whose
            squares are whole as amplitudes: Poisson counts are whole numbers. The log says what was found and by which
            rule.

    Returns:
        The scan. Counts keep their dtype; amplitudes are squared, to float64 from float64, else to float32.

    Raises:
        InputError: the file is missing, damaged, pickled, too large, lacks a key, holds unusable arrays, or does not
            tell counts from amplitudes.
    """
    path = Path(path)
    headers = read_headers(path)
    missing = [key for key in REQUIRED_KEYS if key not in headers]
    if missing:
        raise InputError(
            f'{path} lacks {", ".join(missing)}: a training file holds {", ".join(REQUIRED_KEYS)}; export it again.'
        )
    _check_lengths(headers, path)
    arrays = read_arrays(path, [key for key in (*REQUIRED_KEYS, *OPTIONAL_KEYS) if key in headers])
    _warn_of_several_scans(arrays.get('scan_index'), path)
    try:
        stack = check_pattern_stack(arrays['diff3d'])
        bad_pixels = check_bad_pixels(arrays.get('bad_pixels'), (stack.shape[1], stack.shape[2]))
        return make_raw_scan(
            _to_counts(stack, ~bad_pixels, _stated_quantity(arrays, counts_are, path), path),
            np.stack([arrays['ycoords'], arrays['xcoords']], axis=-1),
            arrays['probeGuess'],
            bad_pixels=bad_pixels,
            object_guess=arrays.get('objectGuess'),
            fresnel_numbers=tuple(np.ravel(arrays.get('fresnel_numbers', (0.0, 0.0))).tolist()),
            name=path.name,
        )
    except InputError as error:
        raise InputError(f'{path}: {error}') from error


def write_training_npz(path: Path, scan: RawScan) -> None:
    """Write ``scan`` to a training file of the counts dialect, with the keys of Ptychodus' own export.

    ``diff3d`` keeps the dtype of the counts and ``bad_pixels`` the mask; the pixels below it are written as they are.
    Two more keys, that other readers may ignore, keep what those lose: ``fresnel_numbers`` (y, x), and
    ``diff3d_quantity`` = 'counts', which settles the dialect. The file appears under its name when it is complete; a
    file of that name is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    y, x = scan.positions.T
    partial = path.with_name(path.name + '.part')
    try:
        with partial.open('wb') as stream:
            np.savez(
                stream,
                xcoords=x,
                ycoords=y,
                xcoords_start=x,
                ycoords_start=y,
                diff3d=scan.counts,
                bad_pixels=scan.bad_pixels,
                probeGuess=scan.probe,
                objectGuess=scan.object_guess,
                scan_index=np.zeros(scan.size, dtype=np.int64),
                fresnel_numbers=np.asarray(scan.fresnel_numbers),
                diff3d_quantity=np.array('counts'),
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _stated_quantity(arrays: dict[str, npt.NDArray[Any]], counts_are: CountsAre, path: Path) -> CountsAre:
    """What the caller says, else what the file says of itself, else 'auto'."""
    stated = str(arrays['diff3d_quantity']) if 'diff3d_quantity' in arrays else 'auto'
    if stated not in ('auto', 'counts', 'amplitude'):
        raise InputError(f"diff3d_quantity is '{stated}': it must be 'counts' or 'amplitude'.")
    if counts_are != 'auto':
        return counts_are
    if stated != 'auto':
        logger.info('%s: the file says that diff3d holds %s.', path, stated)
    return cast(CountsAre, stated)


def _check_lengths(headers: dict[str, ArrayHeader], path: Path) -> None:
    """Raise if the declared shapes show, before anything is unpacked, that patterns and positions do not match."""
    patterns, xs, ys = (headers[key].shape for key in ('diff3d', 'xcoords', 'ycoords'))
    if len(patterns) != 3 or xs != patterns[:1] or ys != patterns[:1]:
        raise InputError(
            f'{path} holds diff3d of shape {patterns} with xcoords {xs} and ycoords {ys}: they must be (n, H, W), (n,) '
            'and (n,); export it again.'
        )


def _warn_of_several_scans(scan_index: npt.NDArray[Any] | None, path: Path) -> None:
    if scan_index is not None and np.unique(scan_index).size > 1:
        logger.warning(
            '%s: scan_index has %d different values; all patterns are taken as one scan of one object.',
            path, np.unique(scan_index).size,
        )  # fmt: skip


def _to_counts(
    patterns: npt.NDArray[np.number], good: npt.NDArray[np.bool_], counts_are: CountsAre, path: Path
) -> npt.NDArray[np.number]:
    """Return photon counts from ``diff3d`` ``(n, H, W)``, whichever dialect it is in."""
    if counts_are == 'counts':
        logger.info('%s: diff3d is read as photon counts, as asked for.', path)
        return patterns
    if counts_are == 'amplitude':
        logger.info('%s: diff3d is read as amplitudes, as asked for, and squared.', path)
        return _square(patterns, good, to_whole=False)
    if patterns.dtype.kind in 'ui':
        logger.info('%s: diff3d is read as photon counts: its dtype %s is an integer.', path, patterns.dtype)
        return patterns
    if _are_whole(patterns, good):
        logger.info('%s: diff3d is read as photon counts: all its values are whole numbers.', path)
        return patterns
    if _are_roots_of_whole(patterns, good):
        logger.info('%s: diff3d is read as amplitudes and squared: the squares of its values are whole numbers.', path)
        return _square(patterns, good, to_whole=True)
    raise InputError(
        'diff3d does not tell whether it holds photon counts or amplitudes (neither its values nor their squares are '
        "whole numbers): say which with counts_are='counts' or counts_are='amplitude'."
    )


def _are_whole(patterns: npt.NDArray[np.number], good: npt.NDArray[np.bool_]) -> bool:
    return all(
        bool(((frames == np.rint(frames)) | ~good).all())
        for frames in (np.asarray(patterns[block]) for block in frame_blocks(patterns))
    )


def _are_roots_of_whole(patterns: npt.NDArray[np.number], good: npt.NDArray[np.bool_]) -> bool:
    """True if every square that is precise enough to judge is whole, and there are enough of them.

    A square's rounding error is up to ``4 eps a**2`` (root and square in the file's own precision).
    """
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


def _square(
    amplitudes: npt.NDArray[np.number], good: npt.NDArray[np.bool_], *, to_whole: bool
) -> npt.NDArray[np.number]:
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
