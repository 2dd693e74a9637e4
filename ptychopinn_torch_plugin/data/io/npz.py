"""Read and write training files (NPZ) of PtychoPINN and Ptychodus.

``diff3d`` holds photon counts (Ptychodus) or amplitudes, the square roots of counts (PtychoPINN), under the same keys.
The caller states the quantity, or a rule that is logged determines it (see
:mod:`~ptychopinn_torch_plugin.data.diffraction_quantity`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ..diffraction_quantity import DiffractionQuantity, counts_from
from ..scan import RawScan, make_raw_scan
from ..validation import check_bad_pixels, check_pattern_stack, frame_blocks
from .archive import ArrayHeader, read_arrays, read_headers
from .output import write_arrays

logger = logging.getLogger(__name__)

Array = TypeVar('Array')

REQUIRED_KEYS = ('diff3d', 'xcoords', 'ycoords', 'probeGuess')
OPTIONAL_KEYS = ('objectGuess', 'bad_pixels', 'scan_index', 'fresnel_numbers', 'diff3d_quantity', 'object_pixel_m')

OTHER_NAME = 'diffraction'
"""What some files call ``diff3d``."""

LARGEST_COUNT_OF_FLOAT32 = 2**20
"""Square roots of whole counts below this, in float32, still round to them when squared: ``4 eps n < 1/2``."""


def read_training_npz(
    path: Path, *, counts_are: DiffractionQuantity = 'auto', nphotons: float | None = None
) -> RawScan:
    """Read a training file as a validated scan.

    Positions are ``ycoords``, ``xcoords`` (object pixels); ``objectGuess`` may be absent (see
    :func:`~ptychopinn_torch_plugin.data.scan.make_raw_scan` for the grid made then), as may ``bad_pixels``,
    ``scan_index``, and the keys ``fresnel_numbers``, ``diff3d_quantity`` and ``object_pixel_m`` of files that this
    package has written.

    Args:
        path: the file.
        counts_are: what ``diff3d`` holds. ``'auto'`` takes integers and whole numbers as counts, and numbers whose
            squares are whole as amplitudes: Poisson counts are whole numbers. The log states the result and the rule.
            A statement that the photon statistics contradict is refused.
        nphotons: mean photons per pattern, where ``diff3d`` holds amplitudes that were normalised; see
            :func:`~ptychopinn_torch_plugin.data.diffraction_quantity.counts_from`.

    Returns:
        The scan. Counts keep their dtype; amplitudes are squared, to float64 from float64, else to float32.

    Raises:
        InputError: the file is missing, damaged, pickled or too large, lacks a key, or holds unusable arrays; or counts
            and amplitudes cannot be distinguished, or are not as stated.
    """
    path = Path(path)
    stored = read_headers(path)
    headers = _with_diff3d(stored, f'{path}: ')
    missing = [key for key in REQUIRED_KEYS if key not in headers]
    if missing:
        raise InputError(
            f'{path} lacks {", ".join(missing)}: a training file holds {", ".join(REQUIRED_KEYS)}; export it again.'
        )
    _check_lengths(headers, path)
    arrays = read_arrays(path, [key for key in (*REQUIRED_KEYS, OTHER_NAME, *OPTIONAL_KEYS) if key in stored])
    try:
        return scan_from_arrays(arrays, counts_are=counts_are, nphotons=nphotons, name=path.name)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error


def scan_from_arrays(
    arrays: Mapping[str, npt.NDArray[Any]],
    *,
    counts_are: DiffractionQuantity = 'auto',
    nphotons: float | None = None,
    name: str,
) -> RawScan:
    """Make a validated scan of arrays under the keys of a training file.

    Args:
        arrays: ``diff3d`` (n, H, W), ``xcoords`` and ``ycoords`` (n,), ``probeGuess``, and the optional keys of a file.
            The patterns may be called ``diffraction``, and have the shape (n, H, W, 1), or (H, W, n) where the number
            of positions distinguishes it; the log states the shape that was read.
        counts_are: as in :func:`read_training_npz`.
        nphotons: as in :func:`read_training_npz`.
        name: name of the scan in messages.

    Raises:
        InputError: as :func:`read_training_npz`, for the arrays.
    """
    arrays = _with_diff3d(arrays)
    missing = [key for key in REQUIRED_KEYS if key not in arrays]
    if missing:
        raise InputError(f'{", ".join(missing)} are missing: training data hold {", ".join(REQUIRED_KEYS)}.')
    _warn_of_several_scans(arrays.get('scan_index'), name)
    stack = check_pattern_stack(_patterns_first(arrays['diff3d'], np.size(arrays['xcoords']), name))
    bad_pixels = check_bad_pixels(arrays.get('bad_pixels'), (stack.shape[1], stack.shape[2]))
    quantity, is_from_file = _stated_quantity(arrays, counts_are, name)
    counts = counts_from(stack, ~bad_pixels, quantity, name, nphotons=nphotons, trusted=is_from_file)
    coordinates = [np.asarray(arrays[key]) for key in ('ycoords', 'xcoords')]
    if coordinates[0].shape != coordinates[1].shape or coordinates[0].ndim != 1:
        raise InputError(
            f'xcoords has shape {coordinates[1].shape} and ycoords {coordinates[0].shape}: give (n,) and (n,).'
        )
    return make_raw_scan(
        counts,
        np.stack(coordinates, axis=-1),
        arrays['probeGuess'],
        bad_pixels=bad_pixels,
        object_guess=arrays.get('objectGuess'),
        fresnel_numbers=tuple(np.ravel(arrays.get('fresnel_numbers', (0.0, 0.0))).tolist()),
        name=name,
    ).with_pixel(arrays.get('object_pixel_m'))


def write_training_npz(
    path: Path,
    scan: RawScan,
    *,
    quantity: Literal['counts', 'amplitude'] = 'counts',
    extra: Mapping[str, npt.ArrayLike | None] | None = None,
) -> None:
    """Write ``scan`` to a training file, with the keys of Ptychodus' own export.

    ``diff3d`` keeps the dtype of the counts and ``bad_pixels`` the mask; masked pixels are written as they are.
    Amplitudes are precise enough to give exactly the same counts, and zero under the mask. Further keys, which
    other readers ignore, hold the ``fresnel_numbers`` (y, x), the ``diff3d_quantity`` and, where it is known, the
    ``object_pixel_m`` (y, x). The file appears under its name when it is complete; a file of that name is replaced.

    Args:
        path: the file to write.
        scan: the scan to write.
        quantity: what ``diff3d`` holds: photon counts, or their square roots as in PtychoPINN's own files.
        extra: further arrays by their keys; they replace those above, and None leaves a key out.

    Raises:
        OutputError: the file cannot be written; the old one is still there.
    """
    y, x = scan.positions.T
    arrays: dict[str, npt.ArrayLike | None] = {
        'xcoords': x,
        'ycoords': y,
        'xcoords_start': x,
        'ycoords_start': y,
        'diff3d': scan.counts if quantity == 'counts' else _square_roots(scan),
        'bad_pixels': scan.bad_pixels,
        'probeGuess': scan.probe,
        'objectGuess': scan.object_guess,
        'scan_index': np.zeros(scan.size, dtype=np.int64),
        'fresnel_numbers': np.asarray(scan.fresnel_numbers),
        'diff3d_quantity': np.array(quantity),
        'object_pixel_m': None if scan.pixel_m is None else np.asarray(scan.pixel_m),
    }
    arrays |= dict(extra or {})
    write_arrays(Path(path), {key: array for key, array in arrays.items() if array is not None})


def _with_diff3d(arrays: Mapping[str, Array], where: str = '') -> Mapping[str, Array]:
    """Return ``arrays`` with the patterns under ``diff3d`` where they are called ``diffraction``."""
    if OTHER_NAME not in arrays:
        return arrays
    if 'diff3d' in arrays:
        raise InputError(f'{where}diff3d and {OTHER_NAME} are two names of the patterns: give one of them.')
    return {'diff3d' if key == OTHER_NAME else key: array for key, array in arrays.items()}


def _other_layout(shape: tuple[int, ...], number: int) -> str:
    """Return which other layout than (n, H, W) patterns of ``number`` positions have, or an empty string."""
    if len(shape) == 4 and shape[0] == number and shape[3] == 1:
        return '(n, H, W, 1)'
    if len(shape) == 3 and shape[0] != number and shape[2] == number:
        return '(H, W, n)'
    return ''


def _patterns_first(patterns: npt.NDArray[Any], number: int, name: str) -> npt.NDArray[Any]:
    """Return a view of ``patterns`` with the axes (n, H, W)."""
    layout = _other_layout(patterns.shape, number)
    if layout:
        logger.info('%s: diff3d has shape %s and is read as %s.', name, patterns.shape, layout)
    return np.moveaxis(patterns, -1, 0) if layout == '(H, W, n)' else patterns[..., 0] if layout else patterns


def _stated_quantity(
    arrays: Mapping[str, npt.NDArray[Any]], counts_are: DiffractionQuantity, name: str
) -> tuple[DiffractionQuantity, bool]:
    """Return what the file states, else what the caller states, else 'auto'; and whether the file states it.

    Raises:
        InputError: the file states neither counts nor amplitudes, or contradicts the caller.
    """
    stated = str(arrays['diff3d_quantity']) if 'diff3d_quantity' in arrays else 'auto'
    if stated not in ('auto', 'counts', 'amplitude'):
        raise InputError(f"diff3d_quantity is '{stated}': it must be 'counts' or 'amplitude'.")
    if stated == 'auto':
        return counts_are, False
    if counts_are not in ('auto', stated):
        raise InputError(f"diff3d holds {stated}, as diff3d_quantity says, and not '{counts_are}': say '{stated}'.")
    logger.debug('%s: the file says that diff3d holds %s.', name, stated)
    return cast(DiffractionQuantity, stated), True


def _check_lengths(headers: Mapping[str, ArrayHeader], path: Path) -> None:
    """Raise if the declared shapes of patterns and positions do not match, before anything is unpacked."""
    patterns, xs, ys = (headers[key].shape for key in ('diff3d', 'xcoords', 'ycoords'))
    number = xs[0] if len(xs) == 1 else -1
    is_stack = len(patterns) == 3 and patterns[0] == number
    if xs != ys or not (is_stack or _other_layout(patterns, number)):
        raise InputError(
            f'{path} holds diff3d of shape {patterns} with xcoords {xs} and ycoords {ys}: they must be (n, H, W), (n,) '
            'and (n,); export it again.'
        )


def _warn_of_several_scans(scan_index: npt.NDArray[Any] | None, name: str) -> None:
    if scan_index is not None and np.unique(scan_index).size > 1:
        logger.warning(
            '%s: scan_index has %d different values; all patterns are taken as one scan of one object.',
            name, np.unique(scan_index).size,
        )  # fmt: skip


def _square_roots(scan: RawScan) -> npt.NDArray[np.floating]:
    """Return amplitudes ``(n, H, W)``: float32 if their squares round to the same counts, else float64; 0 where bad."""
    largest = int(scan.counts.max()) if scan.counts.dtype.kind in 'ui' else None
    dtype = np.float32 if largest is not None and largest < LARGEST_COUNT_OF_FLOAT32 else np.float64
    roots = np.zeros(scan.counts.shape, dtype=dtype)
    for block in frame_blocks(scan.counts):
        frames = np.asarray(scan.counts[block])
        np.sqrt(frames, out=roots[block], where=~scan.bad_pixels, dtype=np.float64, casting='same_kind')
    return roots
