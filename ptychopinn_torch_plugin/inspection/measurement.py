"""Raw data of a scan before anything is known about probe and orientation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.io.conversion import BeamGeometry


@dataclass(frozen=True)
class Orientation:
    """Operation on the axes of every pattern: first the transposition, then the flips; one of 8."""

    transposed: bool = False
    rows_flipped: bool = False
    columns_flipped: bool = False

    def apply(self, patterns: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return ``patterns`` ``(..., H, W)`` with the axes changed; contiguous where they are."""
        if self.transposed:
            patterns = patterns.swapaxes(-1, -2)
        if self.rows_flipped:
            patterns = patterns[..., ::-1, :]
        if self.columns_flipped:
            patterns = patterns[..., ::-1]
        return np.ascontiguousarray(patterns)

    @property
    def name(self) -> str:
        """The operation in words."""
        parts = [
            word
            for word, is_done in (
                ('transposed', self.transposed),
                ('rows flipped', self.rows_flipped),
                ('columns flipped', self.columns_flipped),
            )
            if is_done
        ]
        return ', '.join(parts) or 'as given'

    @property
    def partner(self) -> Orientation:
        """The orientation rotated by 180 degrees: with conjugated probe and object it explains the same patterns."""
        return replace(self, rows_flipped=not self.rows_flipped, columns_flipped=not self.columns_flipped)

    def matrix(self) -> npt.NDArray[np.float64]:
        """Return the linear map of detector coordinates (y, x) about the centre, ``(2, 2)``."""
        swap = np.array([[0.0, 1.0], [1.0, 0.0]]) if self.transposed else np.eye(2)
        flips = np.diag([-1.0 if self.rows_flipped else 1.0, -1.0 if self.columns_flipped else 1.0])
        return np.asarray(flips @ swap)


DISTINCT = (
    Orientation(),
    Orientation(columns_flipped=True),
    Orientation(transposed=True),
    Orientation(transposed=True, columns_flipped=True),
)
"""One of each pair of partners: with defocus of either sign they cover all 16 cases that the patterns can tell."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """Patterns and positions as they were recorded, and what the file says about them."""

    counts: npt.NDArray[np.number]
    """Photon counts, ``(n, H, W)``, zero frequency near ``(H // 2, W // 2)``."""

    positions: npt.NDArray[np.float64]
    """Positions ``(n, 2)`` as (y, x), in pixels of the object that belong to patterns of this size."""

    bad_pixels: npt.NDArray[np.bool_]
    """Pixels that the file masks, ``(H, W)``."""

    name: str
    """Name in messages."""

    geometry: BeamGeometry = field(default_factory=BeamGeometry)
    """Energy, distance and pixel sizes as far as they are known."""

    probe: npt.NDArray[np.complexfloating] | None = None
    """Probe modes of the file, ``(M, H, W)``; None where there is none."""

    says_near_field: bool = False
    """Whether the file itself says that its patterns are near field."""

    @property
    def size(self) -> int:
        """Number of patterns."""
        return int(self.counts.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a pattern in pixels."""
        return int(self.counts.shape[1]), int(self.counts.shape[2])

    @property
    def wavelength_m(self) -> float | None:
        """Wavelength in metres, where the energy is known."""
        energy = self.geometry.photon_energy_ev
        return None if energy is None else HC_EV_M / energy

    def cropped(self, side: int, centre: tuple[int, int]) -> Measurement:
        """Return the patterns cut to ``side`` pixels about the pixel ``centre`` (y, x), which becomes ``side // 2``.

        The object pixels become coarser by the same factor, and the positions follow. Where ``side`` reaches beyond the
        array, pixels are added and masked.
        """
        counts = np.zeros((self.size, side, side), dtype=self.counts.dtype)
        bad = np.ones((side, side), dtype=np.bool_)
        first = [middle - side // 2 for middle in centre]
        source = tuple(
            slice(max(start, 0), min(start + side, there)) for start, there in zip(first, self.shape, strict=True)
        )
        target = tuple(slice(part.start - start, part.stop - start) for part, start in zip(source, first, strict=True))
        counts[(slice(None), *target)] = self.counts[(slice(None), *source)]
        bad[target] = self.bad_pixels[source]
        factors = np.array(self.shape) / side
        pixel = self.geometry.object_pixel_m
        geometry = self.geometry
        if pixel is not None:
            geometry = replace(geometry, object_pixel_m=(float(pixel[0] * factors[0]), float(pixel[1] * factors[1])))
        return replace(
            self,
            counts=counts,
            positions=self.positions / factors,
            bad_pixels=bad,
            geometry=geometry,
            probe=None if self.probe is None else _band_limited(self.probe, side, (first[0], first[1])),
        )

    def oriented(self, orientation: Orientation) -> Measurement:
        """Return the measurement with the axes of its patterns changed; square patterns only."""
        return replace(
            self,
            counts=orientation.apply(self.counts),
            bad_pixels=orientation.apply(self.bad_pixels),
            probe=None,
        )


HC_EV_M = 1.239841984e-6
"""Planck's constant times the speed of light, electronvolt metres."""


def _band_limited(
    probe: npt.NDArray[np.complexfloating], side: int, first: tuple[int, int]
) -> npt.NDArray[np.complexfloating]:
    """Return ``probe`` ``(M, H, W)`` on the grid of the part of its spectrum that begins at pixel ``first``."""
    spectrum = np.fft.fftshift(np.fft.fft2(probe), axes=(-2, -1))
    part = np.zeros((len(probe), side, side), dtype=np.complex128)
    shape = probe.shape[-2:]
    source = tuple(slice(max(a, 0), min(a + side, there)) for a, there in zip(first, shape, strict=True))
    target = tuple(slice(s.start - a, s.stop - a) for s, a in zip(source, first, strict=True))
    part[(slice(None), *target)] = spectrum[(slice(None), *source)]
    # The middle of the probe's array stays the middle: the phase of the transform refers to pixel 0, so the probe is
    # shifted by the change of half the side.
    wave = np.fft.ifft2(np.fft.ifftshift(part, axes=(-2, -1)))
    return np.asarray(_recentred(wave, shape, side))


def _recentred(
    wave: npt.NDArray[np.complexfloating], shape: tuple[int, ...], side: int
) -> npt.NDArray[np.complexfloating]:
    """Shift ``wave`` so that the array's middle ``(N - 1) / 2`` of the old grid is that of the new one."""
    for axis, old in zip((-2, -1), shape, strict=True):
        shift = (side - 1) / 2 - (old - 1) / 2 * side / old
        ramp = np.exp(-2j * np.pi * np.fft.fftfreq(side) * shift)
        wave = np.fft.ifft(np.fft.fft(wave, axis=axis) * (ramp[:, None] if axis == -2 else ramp), axis=axis)
    return wave
