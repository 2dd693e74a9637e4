"""A scan on a device, its first reconstruction state, and the batches that the forward model takes.

Patterns are stored once, as measured; the square root, the shift of the zero frequency to the corner and the probes at
the positions are computed when a batch is made.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import KernelChoice
from ..errors import InputError
from ..limits import memory_limit
from ..physics.forward import PatternBatch
from ..physics.kernels.selection import choose_kernels
from ..physics.kernels.sums import Kernels
from ..physics.patches import extract_patches, extract_window, position_dtype, split_positions
from ..physics.probe import fit_probe_scale, shift_probe
from ..physics.propagation import quadratic_phase, shift_ramp
from ..types import ReconstructionState
from .scan import RawScan

CACHE_BYTES = min(2 * 2**30, memory_limit() // 8)
"""Arrays that every epoch needs of all patterns are kept in memory up to this size; larger ones are computed again."""

RESIDENT_SHARE = 0.5
"""Share of the free memory of a GPU that the patterns of a scan may take to stay there."""
COPY_BYTES = 2**28
"""Patterns are copied to a GPU in parts of this size, because a copy passes through page-locked memory."""
_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}

SCALE_POSITIONS = 256
"""Positions that the photon scale is fitted to, evenly spread: more would not change the third digit."""
SCALE_BATCH = 16
"""Positions in one batch of that fit."""


class Extent(NamedTuple):
    """A rectangle of the object grid."""

    origin: tuple[int, int]
    """First pixel (y, x)."""
    shape: tuple[int, int]
    """Height and width, pixels."""


class ShiftedProbes(NamedTuple):
    """The probe at the positions of a batch."""

    probes: Tensor
    """Shifted probes with frame intensity and quadratic phase, ``(C, M, H, W)`` complex64."""
    ramps: Tensor
    """Fourier multipliers ``g_j`` that shift and scale the probe, ``(C, H, W)`` complex64."""
    patch_origins: Tensor
    """First pixel (y, x) of each patch on the object grid, ``(C, 2)`` int64."""


class ScanTensors:
    """The measured data of one scan on ``device``.

    Args:
        scan: the validated scan; its empty patterns are left out, so ``self.scan`` may have fewer positions.
        device: device of every tensor.
        kernels: what computes the patterns on a CPU, as in the setting ``execution.kernels``.
    """

    def __init__(self, scan: RawScan, device: torch.device, kernels: KernelChoice = 'auto') -> None:
        self._kernel_choice = kernels
        self.scan = scan = scan.without_empty()
        self.device = device
        self.good_pixels = torch.from_numpy(np.fft.ifftshift(~scan.bad_pixels).astype(np.float32)).to(device)
        """1 where the detector measured, ``(H, W)`` float32, zero frequency at the corner."""
        self.phase = quadratic_phase(scan.fresnel_numbers, scan.pattern_shape).to(torch.complex64).to(device)
        """Quadratic phase on the exit waves, ``(H, W)`` complex64."""
        self._has_bad_pixels = bool(scan.bad_pixels.any())

    @functools.cached_property
    def kernels(self) -> Kernels:
        """What computes the patterns of this scan; chosen, and compiled where need be, at the first use."""
        return choose_kernels(self._kernel_choice, self.device)

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.scan.size

    @property
    def pattern_shape(self) -> tuple[int, int]:
        """Height and width of a pattern in pixels."""
        return self.scan.pattern_shape

    def amplitudes(self, indices: npt.NDArray[np.integer] | slice) -> Tensor:
        """Return measured amplitudes, ``(C, H, W)`` float32, zero frequency at the corner, 0 in bad pixels."""
        shifted = torch.fft.ifftshift(self._counts(indices).to(torch.float32), dim=(-2, -1))
        if self._has_bad_pixels:  # replaced, not multiplied: bad pixels may hold anything, NaN included
            shifted = torch.where(self.good_pixels > 0, shifted, 0.0)
        amplitudes: Tensor = shifted.sqrt_()
        return amplitudes

    def _counts(self, indices: npt.NDArray[np.integer] | slice) -> Tensor:
        """Return patterns as measured, on the device; on a GPU all of them stay there, in their own dtype."""
        resident = self._resident_counts
        if resident is None:
            return to_device(np.asarray(self.scan.counts[indices], dtype=np.float32), self.device)
        if isinstance(indices, slice):
            return resident[indices]
        chosen = to_device(np.asarray(indices, dtype=np.int64), self.device)
        signed = _SIGNED.get(resident.dtype, resident.dtype)  # unsigned numbers cannot be indexed on every device
        return resident.view(signed)[chosen].view(resident.dtype)

    @functools.cached_property
    def _resident_counts(self) -> Tensor | None:
        free, counts = free_device_bytes(self.device), self.scan.counts
        if free is None or counts.nbytes > RESIDENT_SHARE * free or not counts.dtype.isnative:
            return None
        step = max(1, COPY_BYTES // counts[0].nbytes)
        dtype = torch.from_numpy(np.empty(0, dtype=counts.dtype)).dtype
        resident = torch.empty(counts.shape, dtype=dtype, device=self.device)
        for first in range(0, len(counts), step):
            part = np.array(counts[first : first + step])
            resident[first : first + step] = to_device(part, self.device)
        return resident

    def probes(self, state: ReconstructionState, indices: npt.NDArray[np.integer]) -> ShiftedProbes:
        """Shift the probe of ``state`` to the positions ``indices`` ``(C,)`` and scale it by their intensities."""
        chosen = to_device(np.asarray(indices, dtype=np.int64), self.device)
        origins, shifts = split_positions(state.positions[chosen], self.pattern_shape)
        ramps = shift_ramp(shifts, self.pattern_shape, state.intensities[chosen].sqrt()).to(state.probe.dtype)
        return ShiftedProbes(shift_probe(state.probe, ramps, self.phase), ramps, origins)

    def batch(
        self, state: ReconstructionState, indices: npt.NDArray[np.integer], origin: tuple[int, int] | None = None
    ) -> PatternBatch:
        """Return the patterns ``indices`` ``(C,)`` and their probes as a batch with ``B = 1``.

        Args:
            state: probe, positions and intensities.
            indices: positions of the scan.
            origin: object pixel (y, x) at which the object array begins; that of ``state`` if None.
        """
        shifted = self.probes(state, indices)
        first = torch.tensor(state.origin if origin is None else origin, device=self.device)
        return PatternBatch(
            amplitudes=self.amplitudes(indices)[None],
            probes=shifted.probes[None],
            patch_origins=(shifted.patch_origins - first)[None],
            good_pixels=self.good_pixels,
        )


def free_device_bytes(device: torch.device) -> int | None:
    """Return the free memory of a GPU; None for the CPU, and for devices that do not say."""
    if device.type != 'cuda':
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on ``device``; the copy to a GPU does not wait for the work that is queued there."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else tensor.to(device)


def patch_origins_of(state: ReconstructionState) -> npt.NDArray[np.int64]:
    """Return the first object pixel (y, x) of every patch, ``(n, 2)``, on the CPU."""
    origins, _ = split_positions(state.positions, (state.probe.shape[-2], state.probe.shape[-1]))
    array: npt.NDArray[np.int64] = origins.cpu().numpy()
    return array


def extent_of(patch_origins: npt.NDArray[np.integer], patch_shape: tuple[int, int]) -> Extent:
    """Return the smallest rectangle of the object grid that holds the patches at ``patch_origins`` ``(C, 2)``."""
    first, last = patch_origins.min(axis=0), patch_origins.max(axis=0)
    height, width = last - first + np.array(patch_shape)
    return Extent((int(first[0]), int(first[1])), (int(height), int(width)))


def initial_state(
    tensors: ScanTensors, probe: npt.NDArray[np.complexfloating] | None = None, scale: float = 0.0
) -> ReconstructionState:
    """Return the state before any reconstruction: a transparent object, the given probe and positions.

    Args:
        tensors: the scan on its device.
        probe: probe modes to use instead of the scan's, ``(M, H, W)`` complex, any scale.
        scale: factor for the probe as it is given; 0 fits the factor to the counts.

    Raises:
        InputError: no photon scale can be fitted.
    """
    scan, device = tensors.scan, tensors.device
    modes = scan.probe if probe is None else probe
    unit = torch.from_numpy(_normalised(modes)).to(device)
    positions = torch.from_numpy(scan.positions.astype(np.float64)).to(position_dtype(device)).to(device)
    intensities = torch.ones(scan.size, device=device)
    state = ReconstructionState(
        torch.ones((1, 1), dtype=torch.complex64, device=device), (0, 0), unit, positions, intensities
    )
    origin, shape = extent_of(patch_origins_of(state), tensors.pattern_shape)
    factor = scale * norm_of(modes) if scale else _fit_scale(tensors, state)
    object_array = torch.ones(shape, dtype=torch.complex64, device=device)
    return replace(state, object_array=object_array, origin=origin, probe=unit * factor)


def with_given_object(tensors: ScanTensors, state: ReconstructionState) -> ReconstructionState:
    """Return ``state`` with the object of the scan in place of its own.

    The object is divided by a constant, so that its mean transmittance is 1 where the probe illuminates it: the photon
    scale of the probe was fitted for such an object.
    """
    guess = torch.from_numpy(np.ascontiguousarray(tensors.scan.object_guess, dtype=np.complex64)).to(tensors.device)
    object_array = extract_window(guess, state.origin, state.object_shape)
    weights = state.probe.abs().square().sum(dim=0)
    origins = torch.from_numpy(patch_origins_of(state) - np.array(state.origin)).to(tensors.device)
    total = 0.0
    for chunk in torch.split(origins, SCALE_BATCH):
        patches = extract_patches(object_array[None], chunk[None], tensors.pattern_shape)
        total += float((weights * patches.abs().square()).sum())
    mean = total / (float(weights.sum()) * len(origins))
    if not 0 < mean < math.inf:
        raise InputError(
            f'{tensors.scan.name}: the object of the product is zero where the probe is: set refinement.start = flat.'
        )
    return replace(state, object_array=object_array / math.sqrt(mean))


def norm_of(modes: npt.NDArray[np.complexfloating]) -> float:
    """Return the square root of the power of ``modes`` ``(M, H, W)``, in double precision."""
    return float(np.linalg.norm(modes.astype(np.complex128)))


def _fit_scale(tensors: ScanTensors, state: ReconstructionState) -> float:
    size = tensors.size
    chosen = np.unique(np.linspace(0, size - 1, min(size, SCALE_POSITIONS)).astype(np.int64))
    chunks = np.array_split(chosen, math.ceil(chosen.size / SCALE_BATCH))
    scale = fit_probe_scale(tensors.batch(state, chunk) for chunk in chunks)
    if not 0 < scale < math.inf:
        raise InputError(
            f'{tensors.scan.name}: the measured pixels hold no counts, or the probe sends no photons to them: check '
            'the bad-pixel mask, and that the patterns have their zero frequency at the centre.'
        )
    return scale


def _normalised(modes: npt.NDArray[np.complexfloating]) -> npt.NDArray[np.complex64]:
    """Return ``modes`` ``(M, H, W)`` of any scale with power one, so that float32 is enough for every convention."""
    # Divided by the largest part first: neither the squares nor complex64 can hold every scale.
    largest = max(float(np.abs(modes.real).max()), float(np.abs(modes.imag).max()))
    near_one = np.ascontiguousarray(modes / largest, dtype=np.complex64)
    return np.asarray(near_one / np.linalg.norm(near_one))
