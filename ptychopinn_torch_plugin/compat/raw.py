"""A whole scan under the names PtychoPINN users know, read from a file or made of arrays, and cut into groups."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.diffraction_quantity import DiffractionQuantity
from ..data.grouping import compact_windows, draw_groups
from ..data.io.npz import write_training_npz
from ..data.scan import RawScan
from ..errors import InputError
from .container import GroupedScan, PtychoDataContainerTorch
from .names import WorkflowConfig, map_names
from .records import ScanRecord, record_of_arrays, record_of_file

logger = logging.getLogger(__name__)

DEFAULT_NEIGHBOURS = 4
"""``K`` where neither the call nor a configuration gives it."""


class RawDataTorch:
    """Ungrouped data: patterns, coordinates, probe, and the object where it is known.

    It holds one validated :class:`~ptychopinn_torch_plugin.data.scan.RawScan` and what the data have beside it (see
    :class:`~ptychopinn_torch_plugin.compat.records.ScanRecord`); the properties are views, made when they are asked
    for. Coordinates come out as they went in.
    """

    def __init__(  # noqa: PLR0913 - PtychoPINN's arguments
        self,
        xcoords: npt.ArrayLike,
        ycoords: npt.ArrayLike,
        diff3d: npt.ArrayLike | None = None,
        probeGuess: npt.ArrayLike | None = None,  # noqa: N803 - PtychoPINN's name
        scan_index: npt.ArrayLike | None = None,
        objectGuess: npt.ArrayLike | None = None,  # noqa: N803 - PtychoPINN's name
        config: object = None,
        *,
        xcoords_start: npt.ArrayLike | None = None,
        ycoords_start: npt.ArrayLike | None = None,
        Y: npt.ArrayLike | None = None,  # noqa: N803 - PtychoPINN's name
        bad_pixels: npt.ArrayLike | None = None,
        diffraction_quantity: DiffractionQuantity | None = None,
        nphotons: float | None = None,
    ) -> None:
        """Make raw data of arrays.

        Args:
            xcoords: columns of the patch centres, ``(n,)``, pixels.
            ycoords: rows of the patch centres, ``(n,)``, pixels.
            diff3d: patterns ``(n, H, W)``, counts or amplitudes.
            probeGuess: complex, ``(H, W)`` or ``(modes, H, W)``.
            scan_index: number of the scan that each position belongs to, ``(n,)``.
            objectGuess: complex transmission ``(h, w)``; the coordinates are then pixels of this array.
            config: gives :meth:`generate_grouped_data` what its call does not give, and ``diffraction_quantity`` and
                ``nphotons``; whatever :func:`~ptychopinn_torch_plugin.compat.configuration_from` takes.
            xcoords_start: nominal columns, ``(n,)``, pixels.
            ycoords_start: nominal rows, ``(n,)``, pixels.
            Y: object patches, complex ``(n, H, W)``.
            bad_pixels: ``(H, W)``, True where a pixel was not measured.
            diffraction_quantity: as in :meth:`from_file`; by default that of ``config``, or ``'auto'``.
            nphotons: as in :meth:`from_file`; by default that of ``config``.

        Raises:
            InputError: an array is missing or cannot be used, or as :meth:`from_file`.
            ConfigurationError: ``config`` cannot be used.
        """
        settings = None if config is None else map_names(config)
        defaults = settings or WorkflowConfig()
        arrays = {
            'xcoords': xcoords, 'ycoords': ycoords, 'diff3d': diff3d, 'probeGuess': probeGuess,
            'scan_index': scan_index, 'objectGuess': objectGuess, 'xcoords_start': xcoords_start,
            'ycoords_start': ycoords_start, 'Y': Y, 'bad_pixels': bad_pixels,
        }  # fmt: skip
        self.record = record_of_arrays(
            arrays,
            quantity=diffraction_quantity or defaults.diffraction_quantity,
            nphotons=defaults.nphotons if nphotons is None else nphotons,
        )
        self._settings = settings

    @classmethod
    def from_scan(cls, scan: RawScan | ScanRecord) -> RawDataTorch:
        """Return raw data that hold ``scan``."""
        raw = cls.__new__(cls)
        raw.record = scan if isinstance(scan, ScanRecord) else ScanRecord.of(scan)
        raw._settings = None
        return raw

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        diffraction_quantity: DiffractionQuantity = 'auto',
        nphotons: float | None = None,
        dialect: DiffractionQuantity | None = None,
    ) -> RawDataTorch:
        """Read a training file (NPZ) of PtychoPINN or Ptychodus.

        Args:
            path: the file.
            diffraction_quantity: ``'counts'`` (Ptychodus), ``'amplitude'`` (PtychoPINN), or ``'auto'``: a rule decides
                and is logged. An integer dtype or whole numbers are counts; numbers whose squares are whole are
                amplitudes; anything else is refused.
            nphotons: mean photons per pattern, for amplitudes that were normalised: their squares are scaled to it.
            dialect: old name of ``diffraction_quantity``.

        Raises:
            InputError: the file cannot be used, or does not hold the quantity that was stated.
        """
        return cls.from_scan(record_of_file(Path(path), quantity=dialect or diffraction_quantity, nphotons=nphotons))

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, npt.ArrayLike | None],
        *,
        diffraction_quantity: DiffractionQuantity = 'auto',
        nphotons: float | None = None,
        dialect: DiffractionQuantity | None = None,
    ) -> RawDataTorch:
        """Make raw data of a mapping with the keys of a training file.

        Args:
            arrays: the arguments of :class:`RawDataTorch` by their names, ``diffraction`` in place of ``diff3d`` if
                you like, and ``fresnel_numbers`` (2,) as (y, x); None counts as absent.
            diffraction_quantity: as in :meth:`from_file`.
            nphotons: as in :meth:`from_file`.
            dialect: old name of ``diffraction_quantity``.

        Raises:
            InputError: a key is missing or unknown, an array cannot be used, or as :meth:`from_file`.
        """
        quantity = dialect or diffraction_quantity
        return cls.from_scan(record_of_arrays(arrays, quantity=quantity, nphotons=nphotons))

    @classmethod
    def from_coords_without_pc(
        cls,
        xcoords: npt.ArrayLike,
        ycoords: npt.ArrayLike,
        diff3d: npt.ArrayLike,
        probeGuess: npt.ArrayLike,  # noqa: N803 - PtychoPINN's name
        scan_index: npt.ArrayLike | None = None,
        objectGuess: npt.ArrayLike | None = None,  # noqa: N803 - PtychoPINN's name
    ) -> RawDataTorch:
        """Make raw data whose coordinates were not corrected: the nominal coordinates are the coordinates.

        Arguments and errors are those of :class:`RawDataTorch`.
        """
        return cls(xcoords, ycoords, diff3d, probeGuess, scan_index, objectGuess)

    def to_file(self, path: str | Path) -> None:
        """Write a training file (NPZ) that :meth:`from_file`, Ptychodus and PtychoPINN read.

        ``diff3d`` holds amplitudes, and ``diff3d_quantity`` says so.

        Raises:
            OutputError: the file cannot be written; an old one is still there.
        """
        beside: dict[str, npt.ArrayLike | None] = {
            'xcoords': self.xcoords,
            'ycoords': self.ycoords,
            'xcoords_start': self.xcoords_start,
            'ycoords_start': self.ycoords_start,
            'scan_index': self.scan_index,
        }
        if self.Y is not None:
            beside['Y'] = self.Y
        if self.record.object_origin != (0.0, 0.0):
            # The object grid was made here, and the coordinates of the data are no pixels of it.
            beside['objectGuess'] = None
        write_training_npz(Path(path), self.scan, quantity='amplitude', extra=beside)

    @property
    def scan(self) -> RawScan:
        """The validated scan; its positions are pixels of its object grid."""
        return self.record.scan

    @property
    def xcoords(self) -> npt.NDArray[np.float64]:
        """Columns of the patch centres as in the data, ``(n,)``, pixels."""
        return self.record.coordinates[:, 1]

    @property
    def ycoords(self) -> npt.NDArray[np.float64]:
        """Rows of the patch centres as in the data, ``(n,)``, pixels."""
        return self.record.coordinates[:, 0]

    @property
    def xcoords_start(self) -> npt.NDArray[np.float64]:
        """Nominal columns as in the data, ``(n,)``, pixels; :attr:`xcoords` where they have none."""
        return self.record.start_coordinates[:, 1]

    @property
    def ycoords_start(self) -> npt.NDArray[np.float64]:
        """Nominal rows as in the data, ``(n,)``, pixels; :attr:`ycoords` where they have none."""
        return self.record.start_coordinates[:, 0]

    @property
    def scan_index(self) -> npt.NDArray[np.integer]:
        """Number of the scan that each position belongs to, ``(n,)``; 0 where the data do not say."""
        return self.record.scan_index

    @property
    def diff3d(self) -> npt.NDArray[np.float32]:
        """Amplitudes (square roots of the counts, 0 in bad pixels), float32 ``(n, H, W)``; a new array each time."""
        counts = np.where(self.scan.bad_pixels, 0, self.scan.counts)
        return np.sqrt(counts).astype(np.float32)

    @property
    def probeGuess(self) -> npt.NDArray[np.complexfloating]:  # noqa: N802 - PtychoPINN's name
        """Incoherent probe modes, complex ``(modes, H, W)``."""
        return self.scan.probe

    @property
    def objectGuess(self) -> npt.NDArray[np.complexfloating] | None:  # noqa: N802 - PtychoPINN's name
        """The object, complex ``(h, w)``; None where none is known, or all its pixels are the same."""
        return None if self.scan.is_flat else self.scan.object_guess

    @property
    def Y(self) -> npt.NDArray[np.complexfloating] | None:  # noqa: N802 - PtychoPINN's name
        """Object patches as in the data, complex ``(n, H, W)``; None where they have none."""
        return self.record.patches

    def generate_grouped_data(  # noqa: PLR0913 - PtychoPINN's arguments
        self,
        N: int | None = None,  # noqa: N803 - PtychoPINN's name
        K: int | None = None,  # noqa: N803 - PtychoPINN's name
        nsamples: int | None = None,
        gridsize: int | None = None,
        seed: int | None = None,
        sequential_sampling: bool | None = None,
        *,
        n_groups: int | None = None,
        dataset_path: object = None,
        config: object = None,
    ) -> GroupedScan:
        """Draw groups: an anchor and ``gridsize**2 - 1`` of its ``K`` nearest neighbours, without replacement.

        Hoidn et al., Sci Rep 13, 22789 (2023). What is not given is taken from ``config``, or from the configuration
        of the raw data.

        Args:
            N: side of a pattern in pixels; it must be that of these patterns.
            K: neighbours that are drawn from; 4 without a configuration.
            nsamples: number of groups S in all; one for every position if neither it nor a configuration gives it.
                More groups than positions use every position as an anchor before any is used again.
            gridsize: a group has ``C = gridsize**2`` members; 1 is the overlap-free single-shot mode.
            seed: fixes the draws; None without a configuration draws anew with every call.
            sequential_sampling: take the anchors in the order of the scan instead of at random.
            n_groups: another name of ``nsamples``.
            dataset_path: not used: groups are not kept in a file; the log says so.
            config: whatever :func:`~ptychopinn_torch_plugin.compat.configuration_from` takes.

        Returns:
            A lazy mapping (see :class:`~ptychopinn_torch_plugin.compat.container.GroupedScan`) of S groups: no pattern
            is copied before it is asked for.

        Raises:
            InputError: ``N`` is not the side of the patterns, the scan has too few positions for the groups, or a
                number is out of range; the message names the argument.
            ConfigurationError: ``config`` cannot be used.
        """
        settings = self._settings if config is None else map_names(config)
        given = {'N': N, 'K': K, 'nsamples': nsamples if n_groups is None else n_groups, 'gridsize': gridsize}
        if nsamples is not None and n_groups is not None and nsamples != n_groups:
            raise InputError(f'nsamples = {nsamples} and n_groups = {n_groups} are the same number: give one of them.')
        if dataset_path is not None:
            logger.info('dataset_path is not used: groups are drawn anew and not kept in a file.')
        defaults = {'N': None, 'K': DEFAULT_NEIGHBOURS, 'nsamples': None, 'gridsize': 1}
        if settings is not None:
            tree = settings.config
            defaults = {
                'N': settings.pattern_size,
                'K': tree.data.neighbor_count,
                'nsamples': settings.n_groups,
                'gridsize': math.isqrt(tree.data.group_size),
            }
            seed = tree.training.seed if seed is None else seed
            sequential_sampling = tree.data.sequential_sampling if sequential_sampling is None else sequential_sampling
        numbers = {name: _whole(name, defaults[name] if value is None else value) for name, value in given.items()}
        height, width = self.scan.pattern_shape
        if numbers['N'] not in (None, height) or height != width:
            raise InputError(
                f'N is {numbers["N"]} but the patterns have {height} x {width} pixels: give N = {height}'
                + ('.' if height == width else '; patterns that are not square are grouped by ensure_container.')
            )
        rng = np.random.default_rng(seed)
        number = numbers['nsamples'] or self.scan.size
        anchors = _anchors(self.scan.size, number, rng, sequential=bool(sequential_sampling))
        groups = draw_groups(
            self.scan.positions, (numbers['gridsize'] or 1) ** 2, numbers['K'] or 0, anchors=anchors, rng=rng
        )
        return GroupedScan(self.record, groups)

    def select(self, indices: npt.ArrayLike) -> RawDataTorch:
        """Return the raw data of some positions alone, on the same object grid.

        Args:
            indices: ``(m,)`` whole numbers below the number of positions, or ``(n,)`` booleans; at least one position.
                The order of the scan is kept.

        Raises:
            InputError: no position is left, or an index is out of range.
        """
        size = self.scan.size
        given: npt.NDArray[Any] = np.asarray(indices)
        is_mask = given.dtype.kind == 'b' and given.shape == (size,)
        chosen = np.flatnonzero(given) if is_mask else np.unique(given)
        if chosen.dtype.kind not in 'iu' or not chosen.size or chosen[0] < 0 or chosen[-1] >= size:
            raise InputError(f'indices must choose at least one position, by whole numbers from 0 to {size - 1}.')
        part = RawDataTorch.from_scan(self.record.select(chosen))
        part._settings = self._settings
        return part

    def container(self, groups: npt.NDArray[np.integer]) -> PtychoDataContainerTorch:
        """Return a container of these data, grouped by ``groups`` ``(S, C)``."""
        return PtychoDataContainerTorch.from_scan(self.record, groups)

    def compact_groups(self, group_size: int) -> npt.NDArray[np.int32]:
        """Return compact groups that hold every position at least once, int32 ``(S, C)`` with ``S = ceil(n / C)``.

        Where ``C`` does not divide ``n``, groups are filled up with the positions nearest to them.

        Args:
            group_size: C; of a scan with fewer positions, all are one group.
        """
        size = min(group_size, self.scan.size)
        windows = compact_windows(self.scan.positions, size)
        return np.stack([_filled_up(window, size, self.scan.positions) for window in windows])


def drawn_groups(
    scan: RawScan, group_size: int, neighbor_count: int, n_groups: int, *, seed: int, sequential: bool
) -> npt.NDArray[np.int32]:
    """Draw ``n_groups`` groups for a container, int32 ``(n_groups, C)``; C is at most the number of positions."""
    rng = np.random.default_rng(seed)
    size = min(group_size, scan.size)
    return draw_groups(
        scan.positions,
        size,
        max(min(neighbor_count, scan.size - 1), size - 1),
        anchors=_anchors(scan.size, n_groups, rng, sequential=sequential),
        rng=rng,
    )


def _whole(name: str, value: object) -> int | None:
    """Return a whole number of at least 1, for K at least 0, or None; else raise an error that names the argument."""
    least = 0 if name == 'K' else 1
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(
            f'{name} = {value!r}: give a whole number, at least {least}; the order of the arguments is N, K, nsamples, '
            'gridsize, seed, sequential_sampling.'
        )
    return int(value)


def _anchors(size: int, number: int, rng: np.random.Generator, *, sequential: bool) -> npt.NDArray[np.int64]:
    """Return ``number`` anchors out of ``size`` positions: in order or at random, all of them before any again."""
    rounds = [np.arange(size) if sequential else rng.permutation(size) for _ in range(math.ceil(number / size))]
    return np.concatenate(rounds)[:number]


def _filled_up(window: npt.NDArray[np.int32], size: int, positions: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Return ``window`` with the positions nearest to its centre, so that it has ``size`` members."""
    if window.size == size:
        return window
    centre = positions[window].mean(axis=0)
    others = np.setdiff1d(np.arange(len(positions), dtype=np.int32), window)
    distance = np.square(positions[others] - centre).sum(axis=1)
    nearest = others[np.argsort(distance, kind='stable')[: size - window.size]]
    return np.sort(np.concatenate([window, nearest]))
