"""Groups of patterns under the names PtychoPINN users know, computed from the scan when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from ..data.scan import RawScan
from ..data.validation import check_probe
from ..dependencies import missing
from ..errors import InputError
from ..limits import physical_memory
from .grouped_arrays import record_of_groups
from .patches import object_patches
from .records import ScanRecord

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]


class GroupedScan(Mapping[str, Array | None]):
    """A grouped data mapping that holds a scan and group indices only; every value is made when it is looked up.

    Axes: S groups, patterns of H x W pixels, C members of a group (channels last). The axis of size 2 of all
    coordinates is **(x, y)**, in pixels, as in PtychoPINN's own files, where ``flip_x`` negates the first component;
    everything else in this package is (y, x). Coordinates are those of the data, whether or not they hold an object.

    ======================  ===================  ==============================================================
    key                     shape, dtype         meaning
    ======================  ===================  ==============================================================
    diffraction             (S,H,W,C) float32    amplitudes, square roots of the counts; 0 in bad pixels
    X_full                  (S,H,W,C) float32    ``diffraction / amplitude_scale``
    Y                       (S,H,W,C) complex64  object patches: those of the data, else cut from the object at whole
                                                 pixels, 1 outside of its grid; None where no object is known
    coords_offsets          (S,1,2,1) float64    centroid of each group
    coords_relative         (S,1,2,C) float64    coordinates minus the centroid
    coords_nn               (S,1,2,C) float64    coordinates
    coords_start_offsets    (S,1,2,1) float64    centroid of each group in nominal coordinates (``xcoords_start``,
                                                 ``ycoords_start``; the coordinates where the data have none)
    coords_start_relative   (S,1,2,C) float64    nominal coordinates minus their centroid
    coords_start_nn         (S,1,2,C) float64    nominal coordinates
    nn_indices              (S,C) int32          positions of the scan in each group
    objectGuess             (h,w) complex        the object; None where none is known
    bad_pixels              (H,W) bool           True where a pixel was not measured
    ======================  ===================  ==============================================================
    """

    def __init__(self, scan: RawScan | ScanRecord, nn_indices: npt.NDArray[np.integer]) -> None:
        """Group ``scan`` by ``nn_indices`` ``(S, C)``.

        Raises:
            InputError: the indices are not a table of whole numbers, or one lies outside the scan.
        """
        self.record = scan if isinstance(scan, ScanRecord) else ScanRecord.of(scan)
        indices: npt.NDArray[np.integer] = np.asarray(nn_indices)
        if indices.ndim != 2 or 0 in indices.shape or indices.dtype.kind not in 'ui':
            raise InputError(
                f'nn_indices has shape {indices.shape} and dtype {indices.dtype}: give whole numbers (groups, members).'
            )
        if indices.min() < 0 or indices.max() >= self.scan.size:
            raise InputError(
                f'nn_indices reaches from {indices.min()} to {indices.max()} but the scan has positions 0 to '
                f'{self.scan.size - 1}.'
            )
        self.nn_indices = indices.astype(np.int32)

    @property
    def scan(self) -> RawScan:
        """The scan that is grouped."""
        return self.record.scan

    def __getitem__(self, key: str) -> Array | None:
        """Compute one value of the table above; a new array with every call."""
        return self._makers[key](self)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys."""
        return iter(self._makers)

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._makers)

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
    def _has_object(self) -> bool:
        return not self.scan.is_flat

    def _amplitudes(self) -> npt.NDArray[np.float32]:
        height, width = self.scan.pattern_shape
        groups, members = self.nn_indices.shape
        size = 4 * groups * height * width * members
        if size > physical_memory():
            raise InputError(
                f'{groups} groups of {members} patterns need {size / 2**30:.1f} GiB, more than the memory of this '
                'machine: ask for fewer groups.'
            )
        amplitudes = np.empty((groups, height, width, members), dtype=np.float32)
        for group, indices in enumerate(self.nn_indices):
            frames = np.where(self.scan.bad_pixels, 0, self.scan.counts[indices])
            amplitudes[group] = np.moveaxis(np.sqrt(frames), 0, -1)
        return amplitudes

    def _normalised(self) -> Array:
        amplitudes = self._amplitudes()
        amplitudes /= np.float32(self.amplitude_scale)
        return amplitudes

    def _patches(self) -> Array | None:
        if not self._has_object:
            return None
        if self.record.patches is not None:
            return np.moveaxis(self.record.patches[self.nn_indices], 1, -1).astype(np.complex64)
        scan = self.scan
        return object_patches(scan.object_guess, scan.positions, scan.pattern_shape, self.nn_indices)

    def _absolute(self, coordinates: npt.NDArray[np.float64]) -> Array:
        return coordinates[:, ::-1][self.nn_indices].transpose(0, 2, 1)[:, np.newaxis]

    _makers: ClassVar[dict[str, Callable[[GroupedScan], Array | None]]] = {
        'diffraction': _amplitudes,
        'X_full': _normalised,
        'Y': _patches,
        'coords_offsets': lambda self: _centroid(self._absolute(self.record.coordinates)),
        'coords_relative': lambda self: _relative(self._absolute(self.record.coordinates)),
        'coords_nn': lambda self: self._absolute(self.record.coordinates),
        'coords_start_offsets': lambda self: _centroid(self._absolute(self.record.start_coordinates)),
        'coords_start_relative': lambda self: _relative(self._absolute(self.record.start_coordinates)),
        'coords_start_nn': lambda self: self._absolute(self.record.start_coordinates),
        'nn_indices': lambda self: self.nn_indices.copy(),
        'objectGuess': lambda self: self.scan.object_guess if self._has_object else None,
        'bad_pixels': lambda self: self.scan.bad_pixels,
    }


def _centroid(absolute: Array) -> Array:
    return np.asarray(absolute.mean(axis=-1, keepdims=True))


def _relative(absolute: Array) -> Array:
    return absolute - _centroid(absolute)


class ContainerTensors(NamedTuple):
    """The arrays of a container as torch tensors, channels first, as PtychoPINN's models take them."""

    X: torch.Tensor
    """Normalised amplitudes, float32 ``(S, C, H, W)``, zero frequency at ``(H // 2, W // 2)``."""
    positions: torch.Tensor
    """Coordinates minus the centroid of the group, (x, y) in pixels, float32 ``(S, C, 1, 2)``."""
    probe: torch.Tensor
    """Incoherent modes of the container's probe, complex64 ``(modes, H, W)``."""
    scale: torch.Tensor
    """Measured amplitude = ``scale * X``, float32 ``(S, 1, 1, 1)``."""
    global_offsets: torch.Tensor
    """Centroids of the groups, (x, y) in pixels, float32 ``(S, 1, 1, 2)``."""
    nn_indices: torch.Tensor
    """Positions of the scan in each group, int64 ``(S, C)``."""
    Y: torch.Tensor | None
    """Object patches, complex64 ``(S, C, H, W)``; None where no object is known."""


class PtychoDataContainerTorch:
    """Grouped training or test data under PtychoPINN's names.

    ``PtychoDataContainerTorch(grouped, probe)`` takes any mapping with the keys of :class:`GroupedScan`;
    :meth:`from_scan` makes one that holds the scan and the group indices only, so that patterns exist once. Arrays are
    numpy, channels last, made when first asked for and then kept; :meth:`as_tensors` gives torch tensors. The axis of
    size 2 of coordinates is **(x, y)**, see :class:`GroupedScan`.

    The probe that is given, here or by assigning :attr:`probe`, is the one that is used: in training, inference and
    stitching, and in a model that is trained with it.
    """

    def __init__(self, grouped: Mapping[str, Array | None], probe: npt.NDArray[np.complexfloating]) -> None:
        """Wrap a grouped mapping.

        Args:
            grouped: a mapping with at least the keys ``diffraction``, ``coords_offsets``, ``coords_relative`` and
                ``nn_indices``. None counts as absent.
            probe: complex, ``(H, W)`` or ``(modes, H, W)``.

        Raises:
            InputError: a key is missing, or the probe does not fit the patterns.
        """
        needed = ('diffraction', 'coords_offsets', 'coords_relative', 'nn_indices')
        is_lazy = isinstance(grouped, GroupedScan)
        missing_keys = [] if is_lazy else [key for key in needed if grouped.get(key) is None]
        if missing_keys:
            raise InputError(f'The grouped data lack {", ".join(missing_keys)}: make them with generate_grouped_data.')
        self._grouped = grouped
        self.probe = probe

    @classmethod
    def from_scan(cls, scan: RawScan | ScanRecord, nn_indices: npt.NDArray[np.integer]) -> PtychoDataContainerTorch:
        """Group ``scan`` by ``nn_indices`` ``(S, C)``, with the scan's own probe. Nothing is copied."""
        grouped = GroupedScan(scan, nn_indices)
        return cls(grouped, grouped.scan.probe)

    def __len__(self) -> int:
        """Return the number of groups S."""
        return int(self.nn_indices.shape[0])

    @property
    def probe(self) -> npt.NDArray[np.complexfloating]:
        """The probe, complex ``(H, W)`` or ``(modes, H, W)``; assign another one to use it from then on."""
        return self._probe

    @probe.setter
    def probe(self, probe: npt.NDArray[np.complexfloating]) -> None:
        given = np.asarray(probe)
        check_probe(given, self.pattern_shape, 'the container')
        self._probe = given

    @property
    def has_given_probe(self) -> bool:
        """Whether the probe was given to the container, rather than taken over from its scan."""
        if not isinstance(self._grouped, GroupedScan):
            return True
        own = self._grouped.scan.probe
        return self._probe is not own and not np.array_equal(check_probe(self._probe, self.pattern_shape, ''), own)

    @property
    def pattern_shape(self) -> tuple[int, int]:
        """Height and width of a pattern in pixels."""
        if isinstance(self._grouped, GroupedScan):
            return self._grouped.scan.pattern_shape
        height, width = self._array('diffraction').shape[1:3]
        return int(height), int(width)

    @property
    def scan(self) -> RawScan:
        """The scan behind the groups, with the probe of the container.

        Raises:
            InputError: the container was made from plain arrays, which hold amplitudes in groups and no scan.
        """
        if not isinstance(self._grouped, GroupedScan):
            raise InputError('This container was made from grouped arrays and has no scan: make it with from_scan.')
        return self._record(self._grouped).scan

    def members(self, nphotons: float | None = None) -> tuple[ScanRecord, npt.NDArray[np.int32]]:
        """Return the positions in the groups as a scan of their own, and the groups as indices into it.

        Args:
            nphotons: mean photons per pattern, for plain arrays whose amplitudes are normalised (see
                :func:`~ptychopinn_torch_plugin.data.diffraction_quantity.counts_from`).

        Returns:
            The record of the scan, with the probe of the container and positions in ascending order of
            ``nn_indices``, and int32 ``(S, C)``. It holds the container's own scan where every position is in a group,
            a part of it where not, and one made of the arrays, each position once, where there is no scan.

        Raises:
            InputError: plain arrays make no scan: their shapes do not fit each other, or one position has several
                coordinates or patterns.
        """
        used, inverse = np.unique(self.nn_indices, return_inverse=True)
        groups = inverse.reshape(self.nn_indices.shape).astype(np.int32)
        if not isinstance(self._grouped, GroupedScan):
            return record_of_groups(self._grouped, self.probe, used, groups, nphotons), groups
        record = self._record(self._grouped)
        return record if used.size == record.scan.size else record.select(used), groups

    def as_tensors(self, device: str | torch.device = 'cpu') -> ContainerTensors:
        """Return the arrays as torch tensors on ``device``, for a training loop of one's own.

        Raises:
            MissingDependencyError: torch is not installed.
        """
        try:
            import torch
        except ImportError as error:
            raise missing(error) from error

        def tensor(array: Array, dtype: torch.dtype) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device, dtype)

        modes = check_probe(self.probe, self.pattern_shape, 'the container')
        return ContainerTensors(
            X=tensor(np.moveaxis(self.X, -1, 1), torch.float32),
            positions=tensor(self.local_offsets.transpose(0, 3, 1, 2), torch.float32),
            probe=tensor(modes, torch.complex64),
            scale=torch.full((len(self), 1, 1, 1), self.norm_Y_I, dtype=torch.float32, device=device),
            global_offsets=tensor(self.global_offsets.transpose(0, 3, 1, 2), torch.float32),
            nn_indices=tensor(self.nn_indices, torch.int64),
            Y=None if self.Y is None else tensor(np.moveaxis(self.Y, -1, 1), torch.complex64),
        )

    @cached_property
    def nn_indices(self) -> npt.NDArray[np.int32]:
        """Positions of the scan in each group, int32 ``(S, C)``."""
        return self._array('nn_indices').astype(np.int32)

    @cached_property
    def norm_Y_I(self) -> float:  # noqa: N802 - PtychoPINN's name
        """Measured amplitude = ``norm_Y_I * X``: ``sqrt(mean photons per pattern / (H W / 4))``.

        The mean runs over the whole scan; over the given groups where there is no scan.

        Raises:
            InputError: the grouped arrays hold no photon.
        """
        if isinstance(self._grouped, GroupedScan):
            return self._grouped.amplitude_scale
        amplitudes = self._array('diffraction')
        _, height, width, _ = amplitudes.shape
        photons = float(np.square(amplitudes, dtype=np.float64).sum(axis=(1, 2)).mean())
        if not photons > 0:
            raise InputError('diffraction is zero in every group: there is nothing to normalise.')
        return float(np.sqrt(photons / (height * width / 4)))

    @cached_property
    def X(self) -> npt.NDArray[np.float32]:  # noqa: N802 - PtychoPINN's name
        """Normalised amplitudes, float32 ``(S, H, W, C)``: a pattern's squares sum to ``H W / 4`` on average."""
        if isinstance(self._grouped, GroupedScan):
            return self._array('X_full')
        return self._array('diffraction').astype(np.float32) / np.float32(self.norm_Y_I)

    @cached_property
    def Y(self) -> npt.NDArray[np.complex64] | None:  # noqa: N802 - PtychoPINN's name
        """Object patches, complex64 ``(S, H, W, C)``; None where no object is known."""
        patches = self._grouped.get('Y')
        return None if patches is None else np.asarray(patches, dtype=np.complex64)

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
        """The whole object, complex ``(h, w)``; None where none is known, or all its pixels are the same."""
        guess = self._grouped.get('objectGuess')
        return None if guess is None or np.ptp(np.abs(guess - guess.flat[0])) == 0 else guess

    @cached_property
    def global_offsets(self) -> npt.NDArray[np.float64]:
        """Centroids of the groups as (x, y), coordinates of the data in pixels, ``(S, 1, 2, 1)``."""
        return self._array('coords_offsets').astype(np.float64)

    @cached_property
    def local_offsets(self) -> npt.NDArray[np.float64]:
        """Coordinates minus the centroid of their group as (x, y), pixels, ``(S, 1, 2, C)``."""
        return self._array('coords_relative').astype(np.float64)

    @property
    def coords_nominal(self) -> npt.NDArray[np.float64]:
        """The same as :attr:`local_offsets`, ``(S, 1, 2, C)`` float64, pixels."""
        return self.local_offsets

    @property
    def coords_true(self) -> npt.NDArray[np.float64]:
        """The same as :attr:`local_offsets`, ``(S, 1, 2, C)`` float64, pixels."""
        return self.local_offsets

    @property
    def coords(self) -> npt.NDArray[np.float64]:
        """The same as :attr:`local_offsets`, ``(S, 1, 2, C)`` float64, pixels."""
        return self.local_offsets

    def _record(self, grouped: GroupedScan) -> ScanRecord:
        """Return the record of the scan with the probe of the container."""
        return grouped.record.with_probe(self._probe) if self.has_given_probe else grouped.record

    def _array(self, key: str) -> Array:
        """Return the value of a key that every grouped mapping has."""
        return np.asarray(self._grouped[key])
