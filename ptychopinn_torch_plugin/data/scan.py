"""Hold one validated scan: every input of the package becomes one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..limits import physical_memory
from .chunks import PatternFile, subset
from .validation import (
    check_bad_pixels,
    check_count_values,
    check_memory,
    check_object,
    check_pattern_stack,
    check_positions,
    check_probe,
)

__all__ = ['MAX_OBJECT_PX', 'RawScan', 'make_raw_scan', 'patch_bounds']

logger = logging.getLogger(__name__)

MAX_OBJECT_PX = 32768
"""Longest side of an object grid that is made here, because none was given."""
GRID_BYTES_PER_PX = 32
"""Memory for each pixel of an object grid: guess, result, preview and product, complex64."""
SAMPLED_PATTERNS = 256
"""Patterns from which a mean number of photons is computed."""


@dataclass(frozen=True, eq=False)
class RawScan:
    """A far-field ptychography scan, as measured, with what is known about probe and object.

    Build it with :func:`make_raw_scan`, which validates. Axis order is (y, x) throughout; see
    ``docs/conventions.md``.
    """

    counts: npt.NDArray[np.number]
    """Photon counts, ``(n, H, W)``, any real dtype, zero frequency at ``(H // 2, W // 2)``; in memory, or a
    :class:`~ptychopinn_torch_plugin.data.chunks.PatternFile`, which is indexed like an array."""

    positions: npt.NDArray[np.float64]
    """Patch centres in pixels of the object grid, ``(n, 2)`` as (y, x); a pixel's centre is at its integer index."""

    probe: npt.NDArray[np.complexfloating]
    """Incoherent probe modes, ``(modes, H, W)``; the scale is arbitrary (it is fitted to the counts)."""

    bad_pixels: npt.NDArray[np.bool_]
    """Detector pixels that were not measured, ``(H, W)``."""

    object_guess: npt.NDArray[np.complexfloating]
    """Transmission on the object grid, ``(h, w)``; all ones where nothing is known."""

    fresnel_numbers: tuple[float, float] = (0.0, 0.0)
    """Pixel Fresnel numbers ``pixel**2 / (wavelength * distance)`` along (y, x): they set the quadratic phase that the
    far-field transform keeps (see ``physics/propagation.py``). Zero where the geometry is not known."""

    name: str = field(default='scan')
    """Name of the scan in messages."""

    empty: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Indices of the patterns without a photon in a good pixel, ``(k,)``, ascending; these are skipped."""

    pixel_m: tuple[float, float] | None = None
    """Height and width of an object pixel in metres; None where they are not known. Nothing is computed with them."""

    @property
    def size(self) -> int:
        """Return the number of scan positions."""
        return int(self.counts.shape[0])

    @property
    def lit(self) -> npt.NDArray[np.int64]:
        """Return the indices of the patterns with photons, ``(n - k,)``, ascending; at least one."""
        return np.setdiff1d(np.arange(self.size), self.empty)

    @property
    def pattern_shape(self) -> tuple[int, int]:
        """Return height and width of a pattern in pixels."""
        return int(self.counts.shape[1]), int(self.counts.shape[2])

    @property
    def is_flat(self) -> bool:
        """Return whether the object guess is constant, to a relative 1e-6: it then holds no information."""
        first = self.object_guess.flat[0]
        return bool(np.abs(self.object_guess - first).max() <= 1e-6 * max(float(np.abs(first)), 1.0))

    @property
    def object_shape(self) -> tuple[int, int]:
        """Return height and width of the object grid in pixels."""
        return int(self.object_guess.shape[0]), int(self.object_guess.shape[1])

    def mean_photons(self) -> float:
        """Return the mean number of photons of a pattern in good pixels, from at most some 256 patterns."""
        sample = np.asarray(self.counts[:: max(1, self.size // SAMPLED_PATTERNS)], dtype=np.float64)
        return float(np.where(self.bad_pixels, 0.0, sample).sum() / len(sample))

    def select(self, indices: npt.NDArray[np.integer]) -> RawScan:
        """Return a scan of some of the positions, on the same object grid.

        Args:
            indices: ``(m,)`` whole numbers below ``size``, ascending, each once; at least one.

        Consecutive patterns are a view of these patterns; others are copied.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        first, last = int(chosen[0]), int(chosen[-1])
        is_slice = last - first + 1 == chosen.size
        return replace(
            self,
            counts=self.counts[first : last + 1] if is_slice else subset(self.counts, chosen),
            positions=self.positions[chosen],
            empty=np.flatnonzero(np.isin(chosen, self.empty)),
        )

    def with_pixel(self, pixel_m: npt.ArrayLike | None) -> RawScan:
        """Return the scan with the height and width of an object pixel in metres; unknown unless both are positive."""
        sides = np.ravel(np.asarray(() if pixel_m is None else pixel_m))
        is_known = sides.shape == (2,) and sides.dtype.kind in 'uif' and bool((np.isfinite(sides) & (sides > 0)).all())
        return replace(self, pixel_m=(float(sides[0]), float(sides[1])) if is_known else None)

    def without_empty(self) -> RawScan:
        """Return the scan without its empty patterns; the scan itself where there is none."""
        return self.select(self.lit) if self.empty.size else self


def make_raw_scan(
    counts: npt.ArrayLike | PatternFile,
    positions: npt.ArrayLike,
    probe: npt.ArrayLike,
    *,
    bad_pixels: npt.ArrayLike | None = None,
    object_guess: npt.ArrayLike | None = None,
    object_shape: tuple[int, int] | None = None,
    fresnel_numbers: tuple[float, float] = (0.0, 0.0),
    name: str = 'scan',
) -> RawScan:
    """Make a scan of its validated parts. The patterns are read once, and not copied or converted.

    Args:
        counts: photon counts ``(n, H, W)``, integers or floats of at most 64 bits, zero frequency at
            ``(H // 2, W // 2)``; a memory map is read block by block, and a
            :class:`~ptychopinn_torch_plugin.data.chunks.PatternFile` stays in its file.
        positions: patch centres ``(n, 2)`` as (y, x), pixels of the object grid.
        probe: complex wave, ``(H, W)``, ``(modes, H, W)`` or ``(coherent modes, modes, H, W)`` (the first coherent
            mode is taken); any scale.
        bad_pixels: ``(H, W)``, True where a pixel was not measured; None means that all were.
        object_guess: complex transmission ``(h, w)`` or ``(1, h, w)``; None means all ones.
        object_shape: grid ``(h, w)`` of an object that is not given. Without it the smallest grid that holds all
            patches is made, and all positions are shifted by whole pixels so that the first patches begin at its edge.
        fresnel_numbers: pixel Fresnel numbers along (y, x), dimensionless (see :class:`RawScan`).
        name: name of the scan in messages; bytes of a file name that are not UTF-8 are written as escapes.

    Raises:
        InputError: a part cannot be used; the message states the field, its value and the remedy.
    """
    # Model files and logs are UTF-8, in which such a name cannot be written.
    name = name.encode('utf-8', 'backslashreplace').decode('utf-8')
    stack = check_pattern_stack(counts)
    shape = (int(stack.shape[1]), int(stack.shape[2]))
    mask = check_bad_pixels(bad_pixels, shape)
    centres = check_positions(positions, stack.shape[0], name)
    modes = check_probe(probe, shape, name)
    fresnel = _check_fresnel_numbers(fresnel_numbers)
    if object_guess is None and object_shape is None:
        centres, object_shape = _fit_grid(centres, shape, name)
    given = None if object_guess is None else check_object(object_guess)
    grid = _grid_of(given, object_shape)
    _refuse_positions_off_grid(centres, shape, grid)
    check_memory(centres, shape, len(modes))
    guess = np.ones(grid, dtype=np.complex64) if given is None else given
    empty = check_count_values(stack, mask, name)
    return RawScan(stack, centres, modes, mask, guess, fresnel, name, empty)


def patch_bounds(
    positions: npt.NDArray[np.float64], pattern_shape: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Split every position into the origin of its object patch and the subpixel shift of the probe.

    The split is that of Ptychodus' ``ProbeGeometry.resolve_patch_bounds``, per axis and in float64: with the half side
    ``r = (N - 1) / 2``, ``patch_origin = floor(c - r)`` and ``subpixel_shift = c - (patch_origin + r)``. (Ptychodus
    truncates towards zero, which differs for patches that begin outside the grid; here floor applies to these as well.)

    Args:
        positions: patch centres ``(n, 2)`` as (y, x), object pixels.
        pattern_shape: height and width of a pattern in pixels, odd or even.

    Returns:
        ``patch_origins`` int64 ``(n, 2)``: first row and column of each patch, negative where it begins outside the
        grid;
        ``subpixel_shifts`` float64 ``(n, 2)``, in [0, 1): shift of the probe towards larger (y, x), in pixels.
    """
    centres = np.asarray(positions, dtype=np.float64)
    half = (np.asarray(pattern_shape, dtype=np.float64) - 1) / 2
    patch_origins = np.floor(centres - half)
    # Rounding in c - r can give a shift of exactly 1; the clip keeps it in [0, 1).
    subpixel_shifts = np.clip(centres - (patch_origins + half), 0.0, np.nextafter(1.0, 0.0))
    return patch_origins.astype(np.int64), subpixel_shifts


def _check_fresnel_numbers(fresnel_numbers: tuple[float, float]) -> tuple[float, float]:
    """Return the pair (y, x) as plain floats, or raise :class:`InputError` if it is not two finite numbers."""
    pair = np.asarray(fresnel_numbers)
    if pair.shape != (2,) or pair.dtype.kind not in 'uif' or not np.isfinite(pair).all():
        given = repr(fresnel_numbers) if pair.size <= 4 else f'an array of shape {pair.shape}'
        raise InputError(f'fresnel_numbers is {given}: give two finite numbers (y, x), 0 where unknown.')
    return float(pair[0]), float(pair[1])


def _fit_grid(
    positions: npt.NDArray[np.float64], pattern_shape: tuple[int, int], name: str
) -> tuple[npt.NDArray[np.float64], tuple[int, int]]:
    """Shift positions by whole pixels to the smallest grid that holds all patches; return (positions, (h, w))."""
    lowest = np.floor(positions.min(axis=0) - (np.asarray(pattern_shape) - 1) / 2)
    extent = positions.max(axis=0) - positions.min(axis=0) + np.asarray(pattern_shape) + 1
    if (extent > MAX_OBJECT_PX).any():
        raise InputError(
            f'positions span {extent[0]:.6g} x {extent[1]:.6g} pixels, more than {MAX_OBJECT_PX}: give them in pixels '
            'of the object grid, or give object_shape.'
        )
    shifted = positions - lowest
    patch_origins, _ = patch_bounds(shifted, pattern_shape)
    height, width = (int(side) for side in patch_origins.max(axis=0) + np.asarray(pattern_shape))
    logger.info(
        '%s: no object grid is given; made one of %d x %d pixels and shifted all positions by (%d, %d) pixels.',
        name, height, width, -lowest[0], -lowest[1],
    )  # fmt: skip
    return shifted, (height, width)


def _grid_of(given: npt.NDArray[np.complexfloating] | None, object_shape: tuple[int, int] | None) -> tuple[int, int]:
    """Return the object grid ``(h, w)``: that of the ``given`` object, else the checked ``object_shape``."""
    if given is not None:
        if object_shape is not None and given.shape != tuple(object_shape):
            raise InputError(
                f'object_guess has shape {given.shape} but object_shape is {object_shape}: give one of them.'
            )
        return int(given.shape[0]), int(given.shape[1])
    if (
        object_shape is None
        or len(object_shape) != 2
        or not all(isinstance(side, int | np.integer) and 1 <= side <= MAX_OBJECT_PX for side in object_shape)
    ):
        raise InputError(
            f'object_shape is {object_shape!r}: give (height, width), whole numbers up to {MAX_OBJECT_PX}.'
        )
    height, width = (int(side) for side in object_shape)
    if GRID_BYTES_PER_PX * height * width > physical_memory():
        raise InputError(
            f'object_shape is {object_shape!r}, which is more than the memory of this machine holds: give the smallest '
            'grid that holds the patches.'
        )
    return height, width


def _refuse_positions_off_grid(
    positions: npt.NDArray[np.float64], pattern_shape: tuple[int, int], object_shape: tuple[int, ...]
) -> None:
    """Raise if the patch of any position has no pixel on the object grid."""
    patch_origins = np.floor(positions - (np.asarray(pattern_shape) - 1) / 2)
    off = ((patch_origins + np.asarray(pattern_shape) <= 0) | (patch_origins >= np.asarray(object_shape))).any(axis=1)
    if off.any():
        first = int(np.argmax(off))
        y, x = positions[first]
        raise InputError(
            f'positions has {int(off.sum())} entries whose patch lies wholly outside the object grid of '
            f'{object_shape[0]} x {object_shape[1]} pixels, first number {first} at (y, x) = ({y:.6g}, {x:.6g}): give '
            'them in pixels of that grid as (y, x), or give a larger grid.'
        )
