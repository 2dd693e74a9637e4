"""A whole scan under the names PtychoPINN users know, read from a file or made of arrays, and cut into groups."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..data.diffraction_quantity import DiffractionQuantity
from ..data.grouping import compact_windows, draw_groups
from ..data.io.npz import read_training_npz, scan_from_arrays
from ..data.scan import RawScan
from ..errors import InputError
from .container import GroupedScan, PtychoDataContainerTorch

logger = logging.getLogger(__name__)


class RawDataTorch:
    """Ungrouped data: patterns, positions, probe, and the object where it is known.

    It holds one validated :class:`~ptychopinn_torch_plugin.data.scan.RawScan` and nothing else; the properties are
    views of it, made when they are asked for.
    """

    def __init__(self, scan: RawScan) -> None:
        self.scan = scan

    @classmethod
    def from_file(
        cls, path: str | Path, *, dialect: DiffractionQuantity = 'auto', nphotons: float | None = None
    ) -> RawDataTorch:
        """Read a training file (NPZ) of PtychoPINN or Ptychodus.

        Args:
            path: the file.
            dialect: ``'counts'`` (Ptychodus), ``'amplitude'`` (PtychoPINN), or ``'auto'``: a rule decides and is
                logged. An integer dtype or whole numbers are counts; numbers whose squares are whole are amplitudes;
                anything else is refused.
            nphotons: mean photons per pattern, for amplitudes that were normalised: their squares are scaled to it.

        Raises:
            InputError: the file cannot be used, its dialect cannot be told, or is not the one that was said.
        """
        return cls(read_training_npz(Path(path), counts_are=dialect, nphotons=nphotons))

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, npt.ArrayLike],
        *,
        dialect: DiffractionQuantity = 'auto',
        nphotons: float | None = None,
    ) -> RawDataTorch:
        """Make raw data of arrays under the keys of a training file.

        Args:
            arrays: ``diff3d`` (n, H, W), ``xcoords`` and ``ycoords`` (n,) in pixels of the object grid,
                ``probeGuess`` (H, W) or (modes, H, W) complex; if known ``objectGuess`` (h, w) complex,
                ``bad_pixels`` (H, W), ``scan_index`` (n,), ``xcoords_start`` and ``ycoords_start`` (n,).
            dialect: as in :meth:`from_file`.
            nphotons: as in :meth:`from_file`.

        Raises:
            InputError: a key is missing or unknown, an array cannot be used, or as :meth:`from_file`.
        """
        unknown = sorted(set(arrays) - set(KNOWN_KEYS))
        if unknown:
            raise InputError(f'{", ".join(unknown)} mean nothing here: training data hold {", ".join(KNOWN_KEYS)}.')
        given = {key: np.asanyarray(value) for key, value in arrays.items()}
        return cls(scan_from_arrays(given, counts_are=dialect, nphotons=nphotons, name='arrays'))

    @property
    def xcoords(self) -> npt.NDArray[np.float64]:
        """Columns of the patch centres, ``(n,)``, pixels of the object grid."""
        return self.scan.positions[:, 1]

    @property
    def ycoords(self) -> npt.NDArray[np.float64]:
        """Rows of the patch centres, ``(n,)``, pixels of the object grid."""
        return self.scan.positions[:, 0]

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
        """The object, complex ``(h, w)``; None where it is flat, and so says nothing."""
        return None if self.scan.is_flat else self.scan.object_guess

    def generate_grouped_data(
        self,
        N: int,  # noqa: N803 - PtychoPINN's name
        K: int = 4,  # noqa: N803 - PtychoPINN's name
        nsamples: int = 1,
        gridsize: int = 1,
        seed: int | None = None,
        sequential_sampling: bool = False,
        *,
        n_groups: int | None = None,
    ) -> GroupedScan:
        """Draw groups: an anchor and ``gridsize**2 - 1`` of its ``K`` nearest neighbours, without replacement.

        Hoidn et al., Sci Rep 13, 22789 (2023).

        Args:
            N: side of a pattern in pixels; it must be that of these patterns.
            K: neighbours that are drawn from.
            nsamples: draws for every anchor.
            gridsize: a group has ``C = gridsize**2`` members; 1 is the overlap-free single-shot mode.
            seed: fixes the draws; None draws anew with every call.
            sequential_sampling: take the anchors in the order of the scan instead of at random.
            n_groups: take so many anchors; None takes every position once.

        Returns:
            A lazy mapping (see :class:`~ptychopinn_torch_plugin.compat.container.GroupedScan`) of ``S = anchors x
            nsamples`` groups: no pattern is copied before it is asked for.

        Raises:
            InputError: ``N`` is not the side of the patterns, the scan has too few positions for the groups, or a
                number is out of range.
        """
        if self.scan.pattern_shape != (N, N):
            height, width = self.scan.pattern_shape
            raise InputError(
                f'N is {N} but the patterns have {height} x {width} pixels: give N = {height}'
                + ('.' if height == width else '; patterns that are not square are grouped by ensure_container.')
            )
        if min(nsamples, gridsize) < 1 or (n_groups is not None and n_groups < 1):
            raise InputError(
                f'nsamples = {nsamples}, gridsize = {gridsize}, n_groups = {n_groups}: each must be at least 1.'
            )
        if nsamples >= self.scan.size > 1:
            logger.warning(
                'nsamples = %d means so many draws for each of %d anchors; for a total, give n_groups.',
                nsamples, self.scan.size,
            )  # fmt: skip
        rng = np.random.default_rng(seed)
        anchors = np.repeat(_anchors(self.scan.size, n_groups or self.scan.size, rng, sequential_sampling), nsamples)
        return GroupedScan(self.scan, draw_groups(self.scan.positions, gridsize**2, K, anchors=anchors, rng=rng))

    def container(self, groups: npt.NDArray[np.integer]) -> PtychoDataContainerTorch:
        """A container of these data, grouped by ``groups`` ``(S, C)``."""
        return PtychoDataContainerTorch.from_scan(self.scan, groups)

    def tiles(self, group_size: int) -> npt.NDArray[np.int32]:
        """Compact groups that hold every position at least once, int32 ``(S, C)`` with ``S = ceil(n / C)``.

        Where ``C`` does not divide ``n``, groups are filled up with the positions nearest to them.

        Args:
            group_size: C; of a scan with fewer positions, all are one group.
        """
        size = min(group_size, self.scan.size)
        windows = compact_windows(self.scan.positions, size)
        return np.stack([_filled_up(window, size, self.scan.positions) for window in windows])


KNOWN_KEYS = (
    'diff3d', 'xcoords', 'ycoords', 'probeGuess', 'objectGuess', 'bad_pixels', 'scan_index', 'xcoords_start',
    'ycoords_start', 'fresnel_numbers', 'diff3d_quantity',
)  # fmt: skip
"""Keys of training data. ``*_start`` are where the scan was meant to be; the positions are where it was."""


def drawn_groups(
    raw: RawDataTorch, group_size: int, neighbor_count: int, n_groups: int, *, seed: int, sequential: bool
) -> npt.NDArray[np.int32]:
    """``n_groups`` groups for a container, int32 ``(n_groups, C)``; C is at most the number of positions."""
    scan = raw.scan
    rng = np.random.default_rng(seed)
    size = min(group_size, scan.size)
    return draw_groups(
        scan.positions,
        size,
        max(min(neighbor_count, scan.size - 1), size - 1),
        anchors=_anchors(scan.size, n_groups, rng, sequential),
        rng=rng,
    )


def _anchors(size: int, number: int, rng: np.random.Generator, sequential: bool) -> npt.NDArray[np.int64]:
    """``number`` anchors out of ``size`` positions: in order or at random, all of them before any again."""
    rounds = [np.arange(size) if sequential else rng.permutation(size) for _ in range(math.ceil(number / size))]
    return np.concatenate(rounds)[:number]


def _filled_up(window: npt.NDArray[np.int32], size: int, positions: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    if window.size == size:
        return window
    centre = positions[window].mean(axis=0)
    others = np.setdiff1d(np.arange(len(positions), dtype=np.int32), window)
    distance = np.square(positions[others] - centre).sum(axis=1)
    nearest = others[np.argsort(distance, kind='stable')[: size - window.size]]
    return np.sort(np.concatenate([window, nearest]))
