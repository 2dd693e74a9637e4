"""Groups of patterns under the names PtychoPINN users know, computed from the scan when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..data.scan import RawScan, patch_bounds
from ..errors import InputError
from .grouped_arrays import scan_of_arrays

Array = npt.NDArray[Any]


def object_patches(
    object_array: npt.NDArray[np.complexfloating],
    positions: npt.NDArray[np.float64],
    pattern_shape: tuple[int, int],
    groups: npt.NDArray[np.integer],
) -> npt.NDArray[np.complex64]:
    """Cut the patches that grouped positions see out of an object, at whole pixels.

    Args:
        object_array: transmission ``(h, w)``.
        positions: patch centres ``(n, 2)`` as (y, x), pixels of the object.
        pattern_shape: ``(H, W)`` of a patch.
        groups: ``(S, C)`` indices into ``positions``.

    Returns:
        complex64 ``(S, H, W, C)``; 1 outside of the object grid.
    """
    patch_origins, _ = patch_bounds(positions, pattern_shape)
    below = np.maximum(-patch_origins.min(axis=0), 0)
    above = np.maximum(patch_origins.max(axis=0) + np.asarray(pattern_shape) - np.asarray(object_array.shape), 0)
    padding = tuple(zip(below.tolist(), above.tolist(), strict=True))
    padded = np.pad(object_array, padding, constant_values=1).astype(np.complex64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, pattern_shape)
    rows, columns = (patch_origins + below)[groups].transpose(2, 0, 1)
    patches: npt.NDArray[np.complex64] = np.moveaxis(windows[rows, columns], 1, -1)
    return patches


class GroupedScan(Mapping[str, Array]):
    """A grouped data mapping that holds a scan and group indices only; every value is made when it is looked up.

    Axes: S groups, patterns of H x W pixels, C members of a group (channels last). The axis of size 2 of all
    coordinates is **(x, y)**, in pixels, as in PtychoPINN's own files, where ``flip_x`` negates the first component;
    everything else in this package is (y, x).

    ==================  ===================  ==================================================================
    key                 shape, dtype         meaning
    ==================  ===================  ==================================================================
    diffraction         (S,H,W,C) float32    amplitudes, square roots of the counts; 0 in bad pixels
    X_full              (S,H,W,C) float32    ``diffraction / amplitude_scale``
    Y                   (S,H,W,C) complex64  object patches at whole pixels, 1 outside the object grid; only where
                                             the object is not flat
    coords_offsets      (S,1,2,1) float64    centroid of each group on the object grid
    coords_relative     (S,1,2,C) float64    positions minus the centroid
    coords_nn           (S,1,2,C) float64    positions on the object grid
    nn_indices          (S,C) int32          positions of the scan in each group
    objectGuess         (h,w) complex        the object of the scan
    ==================  ===================  ==================================================================

    ``coords_start_offsets``, ``coords_start_relative`` and ``coords_start_nn`` equal their namesakes: a scan has one
    set of positions.
    """

    def __init__(self, scan: RawScan, nn_indices: npt.NDArray[np.integer]) -> None:
        """Group ``scan`` by ``nn_indices`` ``(S, C)``.

        Raises:
            InputError: the indices are not a table of whole numbers, or one lies outside the scan.
        """
        indices: npt.NDArray[np.integer] = np.asarray(nn_indices)
        if indices.ndim != 2 or indices.dtype.kind not in 'ui' or 0 in indices.shape:
            raise InputError(
                f'nn_indices has shape {indices.shape} and dtype {indices.dtype}: give whole numbers (groups, members).'
            )
        if indices.min() < 0 or indices.max() >= scan.size:
            raise InputError(
                f'nn_indices reaches from {indices.min()} to {indices.max()} but the scan has positions 0 to '
                f'{scan.size - 1}.'
            )
        self.scan = scan
        self.nn_indices = indices.astype(np.int32)

    def __getitem__(self, key: str) -> Array:
        """Compute one value of the table above; a new array with every call."""
        if key not in self._keys:
            raise KeyError(key)
        return self._makers[key](self)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys."""
        return iter(self._keys)

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._keys)

    @cached_property
    def amplitude_scale(self) -> float:
        """``sqrt(mean photons per pattern / (H W / 4))`` over the whole scan: measured = scale x normalised amplitude.

        PtychoPINN's input normalisation; for square patterns ``2 sqrt(N_photons) / N``.
        """
        height, width = self.scan.pattern_shape
        good = ~self.scan.bad_pixels
        photons = sum(float(self.scan.counts[i][good].sum(dtype=np.float64)) for i in range(self.scan.size))
        return float(np.sqrt(photons / self.scan.size / (height * width / 4)))

    @cached_property
    def _keys(self) -> tuple[str, ...]:
        return tuple(key for key in self._makers if not (self.scan.is_flat and key == 'Y'))

    def _amplitudes(self) -> Array:
        height, width = self.scan.pattern_shape
        groups, members = self.nn_indices.shape
        amplitudes = np.empty((groups, height, width, members), dtype=np.float32)
        for group, indices in enumerate(self.nn_indices):
            frames = np.where(self.scan.bad_pixels, 0, self.scan.counts[indices])
            amplitudes[group] = np.moveaxis(np.sqrt(frames), 0, -1)
        return amplitudes

    def _normalised(self) -> Array:
        amplitudes = self._amplitudes()
        amplitudes /= np.float32(self.amplitude_scale)
        return amplitudes

    def _patches(self) -> Array:
        scan = self.scan
        return object_patches(scan.object_guess, scan.positions, scan.pattern_shape, self.nn_indices)

    def _absolute(self) -> Array:
        return self.scan.positions[:, ::-1][self.nn_indices].transpose(0, 2, 1)[:, np.newaxis]

    def _offsets(self) -> Array:
        offsets: Array = self._absolute().mean(axis=-1, keepdims=True)
        return offsets

    def _relative(self) -> Array:
        return self._absolute() - self._offsets()

    _makers: ClassVar[dict[str, Callable[[GroupedScan], Array]]] = {
        'diffraction': _amplitudes,
        'X_full': _normalised,
        'Y': _patches,
        'coords_offsets': _offsets,
        'coords_relative': _relative,
        'coords_nn': _absolute,
        'coords_start_offsets': _offsets,
        'coords_start_relative': _relative,
        'coords_start_nn': _absolute,
        'nn_indices': lambda self: self.nn_indices.copy(),
        'objectGuess': lambda self: self.scan.object_guess,
    }


class PtychoDataContainerTorch:
    """Grouped training or test data under PtychoPINN's names.

    ``PtychoDataContainerTorch(grouped, probe)`` takes any mapping with the keys of :class:`GroupedScan`;
    :meth:`from_scan` makes one that holds the scan and the group indices only, so that patterns exist once. Arrays are
    numpy, channels last, made when first asked for and then kept. The axis of size 2 of coordinates is **(x, y)**, see
    :class:`GroupedScan`.
    """

    def __init__(self, grouped: Mapping[str, Array], probe: npt.NDArray[np.complexfloating]) -> None:
        """Wrap a grouped mapping.

        Args:
            grouped: a mapping with at least the keys ``diffraction``, ``coords_offsets``, ``coords_relative`` and
                ``nn_indices``.
            probe: complex, ``(H, W)`` or ``(modes, H, W)``.

        Raises:
            InputError: a key is missing.
        """
        missing = [
            key for key in ('diffraction', 'coords_offsets', 'coords_relative', 'nn_indices') if key not in grouped
        ]
        if missing:
            raise InputError(f'The grouped data lack {", ".join(missing)}: make them with generate_grouped_data.')
        self._grouped = grouped
        self.probe = probe

    @classmethod
    def from_scan(cls, scan: RawScan, nn_indices: npt.NDArray[np.integer]) -> PtychoDataContainerTorch:
        """Group ``scan`` by ``nn_indices`` ``(S, C)``, with the scan's own probe. Nothing is copied."""
        return cls(GroupedScan(scan, nn_indices), scan.probe)

    def __len__(self) -> int:
        """Number of groups S."""
        return int(self.nn_indices.shape[0])

    @property
    def pattern_shape(self) -> tuple[int, int]:
        """Height and width of a pattern in pixels."""
        if isinstance(self._grouped, GroupedScan):
            return self._grouped.scan.pattern_shape
        height, width = np.asarray(self._grouped['diffraction']).shape[1:3]
        return int(height), int(width)

    @property
    def scan(self) -> RawScan:
        """The scan behind the groups.

        Raises:
            InputError: the container was made from plain arrays, which hold amplitudes in groups and no scan.
        """
        if not isinstance(self._grouped, GroupedScan):
            raise InputError('This container was made from grouped arrays and knows no scan: make it with from_scan.')
        return self._grouped.scan

    def members(self, nphotons: float | None = None) -> tuple[RawScan, npt.NDArray[np.int32]]:
        """The positions in the groups as a scan of their own, and the groups as indices into it.

        Args:
            nphotons: mean photons per pattern, for plain arrays whose amplitudes are normalised (see
                :func:`~ptychopinn_torch_plugin.data.diffraction_quantity.counts_from`).

        Returns:
            The scan, positions in ascending order of ``nn_indices``, and int32 ``(S, C)``. It is the container's own
            scan where every position is in a group, a part of it where not, and made of the arrays, each position
            once, where there is no scan.

        Raises:
            InputError: plain arrays make no scan: their shapes do not fit each other, or one position has several
                coordinates or patterns.
        """
        used, inverse = np.unique(self.nn_indices, return_inverse=True)
        groups = inverse.reshape(self.nn_indices.shape).astype(np.int32)
        if not isinstance(self._grouped, GroupedScan):
            return scan_of_arrays(self._grouped, self.probe, used, groups, nphotons), groups
        scan = self._grouped.scan
        return scan if used.size == scan.size else scan.select(used), groups

    @cached_property
    def nn_indices(self) -> npt.NDArray[np.int32]:
        """Positions of the scan in each group, int32 ``(S, C)``."""
        return np.asarray(self._grouped['nn_indices'], dtype=np.int32)

    @cached_property
    def norm_Y_I(self) -> float:  # noqa: N802 - PtychoPINN's name
        """Measured amplitude = ``norm_Y_I * X``: ``sqrt(mean photons per pattern / (H W / 4))``.

        The mean runs over the whole scan; over the given groups where there is no scan.

        Raises:
            InputError: the grouped arrays hold no photon.
        """
        if isinstance(self._grouped, GroupedScan):
            return self._grouped.amplitude_scale
        amplitudes = np.asarray(self._grouped['diffraction'])
        _, height, width, _ = amplitudes.shape
        photons = float(np.square(amplitudes, dtype=np.float64).sum(axis=(1, 2)).mean())
        if not photons > 0:
            raise InputError('diffraction is zero in every group: there is nothing to normalise.')
        return float(np.sqrt(photons / (height * width / 4)))

    @cached_property
    def X(self) -> npt.NDArray[np.float32]:  # noqa: N802 - PtychoPINN's name
        """Normalised amplitudes, float32 ``(S, H, W, C)``: a pattern's squares sum to ``H W / 4`` on average."""
        if isinstance(self._grouped, GroupedScan):
            return self._grouped['X_full']
        return np.asarray(self._grouped['diffraction'], dtype=np.float32) / np.float32(self.norm_Y_I)

    @cached_property
    def Y(self) -> npt.NDArray[np.complex64] | None:  # noqa: N802 - PtychoPINN's name
        """Object patches, complex64 ``(S, H, W, C)``; None where the object is not known or flat."""
        return np.asarray(self._grouped['Y'], dtype=np.complex64) if 'Y' in self._grouped else None

    @property
    def Y_I(self) -> npt.NDArray[np.float32] | None:  # noqa: N802 - PtychoPINN's name
        """Amplitude (modulus) of :attr:`Y`, float32, or None."""
        return None if self.Y is None else np.abs(self.Y)

    @property
    def Y_phi(self) -> npt.NDArray[np.float32] | None:  # noqa: N802 - PtychoPINN's name
        """Phase of :attr:`Y` in radians, ``(S, H, W, C)`` float32, or None."""
        return None if self.Y is None else np.angle(self.Y)

    @property
    def YY_full(self) -> npt.NDArray[np.complexfloating] | None:  # noqa: N802 - PtychoPINN's name
        """The whole object, complex ``(h, w)``; None where it is not known or flat."""
        return self._grouped['objectGuess'] if 'Y' in self._grouped and 'objectGuess' in self._grouped else None

    @cached_property
    def global_offsets(self) -> npt.NDArray[np.float64]:
        """Centroids of the groups as (x, y), pixels of the object grid, ``(S, 1, 2, 1)``."""
        return np.asarray(self._grouped['coords_offsets'], dtype=np.float64)

    @cached_property
    def local_offsets(self) -> npt.NDArray[np.float64]:
        """Positions minus the centroid of their group as (x, y), pixels, ``(S, 1, 2, C)``."""
        return np.asarray(self._grouped['coords_relative'], dtype=np.float64)

    @property
    def coords_nominal(self) -> npt.NDArray[np.float64]:
        """The same as :attr:`local_offsets`, ``(S, 1, 2, C)`` float64, object pixels."""
        return self.local_offsets

    @property
    def coords_true(self) -> npt.NDArray[np.float64]:
        """The same as :attr:`local_offsets`, ``(S, 1, 2, C)`` float64, object pixels."""
        return self.local_offsets

    @property
    def coords(self) -> npt.NDArray[np.float64]:
        """The same as :attr:`local_offsets`, ``(S, 1, 2, C)`` float64, object pixels."""
        return self.local_offsets
