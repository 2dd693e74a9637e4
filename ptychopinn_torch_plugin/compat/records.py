"""A scan together with what PtychoPINN's data hold beside it: the coordinates of the file, and object patches."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.diffraction_quantity import DiffractionQuantity
from ..data.io.archive import read_arrays, read_headers
from ..data.io.npz import read_training_npz, scan_from_arrays
from ..data.scan import RawScan, patch_bounds
from ..data.validation import check_probe
from ..errors import InputError
from .patches import mean_of_patches, object_patches

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

KEYS_BESIDE = ('xcoords', 'ycoords', 'xcoords_start', 'ycoords_start', 'scan_index', 'Y')
"""Keys of a training file that :class:`ScanRecord` keeps as they are."""

KNOWN_KEYS = (
    'diff3d', 'diffraction', 'probeGuess', 'objectGuess', 'bad_pixels', 'fresnel_numbers', 'diff3d_quantity',
    *KEYS_BESIDE,
)  # fmt: skip
"""Keys of training data; ``diffraction`` is another name of ``diff3d``."""

SAME_OBJECT = 0.5
"""Correlation, less their means, from which patches and an object are taken to show the same object. Patches that were
cut by interpolation agree to about 0.8 where the object varies from pixel to pixel; other objects to about 0."""


@dataclass(frozen=True, eq=False)
class ScanRecord:
    """A scan, and what its file says beside it. Axis order is (y, x).

    ``scan.positions`` are pixels of the object grid. Where the data hold no object, that grid is made here and the
    positions are the coordinates shifted by whole pixels; :attr:`object_origin` gives the shift.
    """

    scan: RawScan

    coordinates: npt.NDArray[np.float64]
    """Coordinates of the positions as the data have them, ``(n, 2)``, pixels."""

    start_coordinates: npt.NDArray[np.float64]
    """Nominal coordinates (``xcoords_start``, ``ycoords_start``), ``(n, 2)``, pixels; :attr:`coordinates` where the
    data have none."""

    scan_index: npt.NDArray[np.integer]
    """Number of the scan that each position belongs to, ``(n,)``."""

    patches: npt.NDArray[np.complexfloating] | None = None
    """Object patches ``Y`` as the data have them, ``(n, H, W)``; None where they have none."""

    @classmethod
    def of(cls, scan: RawScan) -> ScanRecord:
        """Return the record of a scan that comes without a file: its positions are the coordinates."""
        return cls(scan, scan.positions, scan.positions, np.zeros(scan.size, dtype=np.int64))

    @property
    def object_origin(self) -> tuple[float, float]:
        """Coordinates (y, x) of the first pixel of the object grid; (0, 0) where the data hold an object."""
        y, x = self.coordinates[0] - self.scan.positions[0]
        return float(np.round(y)), float(np.round(x))

    def select(self, indices: npt.NDArray[np.integer]) -> ScanRecord:
        """Return the record of some positions alone; ``indices`` ``(m,)`` ascending, each once."""
        return ScanRecord(
            self.scan.select(indices),
            self.coordinates[indices],
            self.start_coordinates[indices],
            self.scan_index[indices],
            None if self.patches is None else self.patches[indices],
        )

    def with_probe(self, probe: npt.NDArray[np.complexfloating]) -> ScanRecord:
        """Return the record with another probe, ``(H, W)`` or ``(modes, H, W)``; itself where it is the same array."""
        if probe is self.scan.probe:
            return self
        modes = check_probe(probe, self.scan.pattern_shape, self.scan.name)
        return replace(self, scan=replace(self.scan, probe=modes))


def record_of_file(path: Path, *, quantity: DiffractionQuantity = 'auto', nphotons: float | None = None) -> ScanRecord:
    """Read a training file (NPZ); keys without a meaning are listed in the log.

    Raises:
        InputError: as :func:`~ptychopinn_torch_plugin.data.io.npz.read_training_npz` and :func:`record_of`.
    """
    scan = read_training_npz(path, counts_are=quantity, nphotons=nphotons)
    stored = read_headers(path)
    unknown = sorted(set(stored) - set(KNOWN_KEYS))
    if unknown:
        logger.info('%s: %s mean nothing here and are not read.', scan.name, ', '.join(unknown))
    try:
        return record_of(scan, read_arrays(path, [key for key in KEYS_BESIDE if key in stored]))
    except InputError as error:
        raise InputError(f'{path}: {error}') from error


def record_of_arrays(
    arrays: Mapping[str, npt.ArrayLike | None],
    *,
    quantity: DiffractionQuantity = 'auto',
    nphotons: float | None = None,
    name: str = 'arrays',
) -> ScanRecord:
    """Make a record of arrays under the keys of a training file; None means that a key is absent.

    Raises:
        InputError: a key is missing or unknown, or an array cannot be used.
    """
    if 'nn_indices' in arrays:
        raise InputError('These are grouped data: give PtychoDataContainerTorch(grouped, probe) instead.')
    unknown = sorted(set(arrays) - set(KNOWN_KEYS))
    if unknown:
        raise InputError(f'{", ".join(unknown)} mean nothing here: training data hold {", ".join(KNOWN_KEYS)}.')
    given = {key: np.asanyarray(value) for key, value in arrays.items() if value is not None}
    return record_of(scan_from_arrays(given, counts_are=quantity, nphotons=nphotons, name=name), given)


def record_of(scan: RawScan, beside: Mapping[str, Array]) -> ScanRecord:
    """Put ``scan`` together with the arrays of :data:`KEYS_BESIDE` that its data hold.

    Object patches ``Y`` become the reference object where the data hold no other one. Beside an ``objectGuess`` they
    must show the same object; the reference is then that object.

    Raises:
        InputError: another number of scan indices than positions, nominal coordinates of one axis alone or of another
            length, or patches ``Y`` that are not complex
            ``(n, H, W)``, not finite, or of another object than ``objectGuess``.
    """
    coordinates = _pairs(beside, 'ycoords', 'xcoords', scan.size)
    start = _pairs(beside, 'ycoords_start', 'xcoords_start', scan.size)
    if coordinates is None:
        coordinates = scan.positions
    index = np.ravel(beside.get('scan_index', np.zeros(1, dtype=np.int64)))
    if index.size not in (1, scan.size):
        raise InputError(f'scan_index holds {index.size} numbers for {scan.size} positions: give one per position.')
    index = np.broadcast_to(index, (scan.size,))
    record = ScanRecord(scan, coordinates, coordinates if start is None else start, index)
    return with_patches(record, beside.get('Y'))


def with_patches(record: ScanRecord, patches: Array | None) -> ScanRecord:
    """Return the record with object patches ``(n, H, W)`` or ``(n, H, W, 1)``, and the object that they show.

    Raises:
        InputError: as :func:`record_of`.
    """
    if patches is None:
        return record
    scan = record.scan
    expected = (scan.size, *scan.pattern_shape)
    if patches.shape == (*expected, 1):
        patches = patches[..., 0]
    if patches.shape != expected or patches.dtype.kind != 'c' or not np.isfinite(patches).all():
        raise InputError(
            f'Y has shape {patches.shape} and dtype {patches.dtype}: give finite complex object patches of shape '
            f'{expected}, or leave Y out.'
        )
    if np.abs(patches - patches.flat[0]).max() <= 1e-6 * max(float(np.abs(patches.flat[0])), 1.0):
        logger.info('%s: Y is the same number everywhere, which is no object: it is not used.', scan.name)
        return record
    if scan.is_flat:
        logger.info('%s: the reference object is assembled from the object patches Y.', scan.name)
        return replace(record, scan=replace(scan, object_guess=_assembled(patches, scan)), patches=patches)
    all_positions = np.arange(scan.size)[:, np.newaxis]
    cut = object_patches(scan.object_guess, scan.positions, scan.pattern_shape, all_positions)[..., 0]
    agreement = _correlation(patches, cut)
    if agreement < SAME_OBJECT:
        raise InputError(
            f'Y and objectGuess show different objects (correlation {agreement:.2f}): give the one that is the '
            'reference.'
        )
    logger.info('%s: Y agrees with objectGuess (correlation %.2f), which is the reference.', scan.name, agreement)
    return replace(record, patches=patches)


def _assembled(patches: Array, scan: RawScan) -> npt.NDArray[np.complex64]:
    """Return the object ``(h, w)`` whose every pixel is the mean of the patches that cover it; 1 where none does."""
    patch_origins, _ = patch_bounds(scan.positions, scan.pattern_shape)
    mean = mean_of_patches(patches, patch_origins)
    (y, x), (rows, columns) = np.maximum(-mean.origin, 0), scan.object_shape
    below = np.maximum(mean.origin, 0)
    whole = np.ones(scan.object_shape, dtype=np.complex64)
    part = mean.image[y : y + rows - below[0], x : x + columns - below[1]]
    whole[below[0] : below[0] + part.shape[0], below[1] : below[1] + part.shape[1]] = part
    return whole


def _correlation(patches: Array, others: Array) -> float:
    """Return the modulus of the complex correlation coefficient of two stacks of the same shape."""
    left, right = (stack - stack.mean() for stack in (patches, others))
    norms = float(np.linalg.norm(left)) * float(np.linalg.norm(right))
    return float(np.abs(np.vdot(left, right))) / norms if norms > 0 else 0.0


def _pairs(beside: Mapping[str, Array], y_key: str, x_key: str, size: int) -> npt.NDArray[np.float64] | None:
    """Return two keys as ``(n, 2)`` float64, or None where both are absent."""
    given = [key for key in (y_key, x_key) if key in beside]
    if not given:
        return None
    shapes = [beside[key].shape for key in given]
    are_real = all(beside[key].dtype.kind in 'uif' for key in given)
    if len(given) == 1 or shapes != [(size,), (size,)] or not are_real:
        raise InputError(
            f'{" and ".join(given)} have shape {" and ".join(map(str, shapes))}: give both {x_key} and {y_key} with '
            f'{size} real numbers, or none of them.'
        )
    return np.stack([beside[y_key], beside[x_key]], axis=-1).astype(np.float64)
