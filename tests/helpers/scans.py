"""Small simulated scans for tests of the engine, made without Ptychodus."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter

from ptychopinn_torch_plugin.data.scan import RawScan, make_raw_scan, patch_bounds
from ptychopinn_torch_plugin.physics.forward import simulate
from ptychopinn_torch_plugin.physics.probe import shift_probe
from ptychopinn_torch_plugin.physics.propagation import shift_ramp


def curved_probe(shape: tuple[int, int], modes: int = 1) -> npt.NDArray[np.complex128]:
    """A Gaussian beam out of focus, off centre, with weaker higher modes, ``(modes, H, W)``, power 1."""
    y = (np.arange(shape[0]) - 0.47 * shape[0])[:, None] / (0.2 * shape[0])
    x = (np.arange(shape[1]) - 0.52 * shape[1])[None, :] / (0.2 * shape[1])
    beam = np.exp(-(y**2) / 2 - x**2 / 2 + 1.3j * (y**2 + x**2))
    stack = np.stack([beam * (0.6 * x) ** mode for mode in range(modes)])
    return np.asarray(stack / np.linalg.norm(stack))


def smooth_object(shape: tuple[int, int], seed: int) -> npt.NDArray[np.complex128]:
    """A transmission with structure of a few pixels, ``(h, w)``."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal((2, *shape)), sigma=(0, 2, 2))
    noise /= noise.std()
    return np.asarray(np.clip(0.85 + 0.08 * noise[0], 0.2, 1.2) * np.exp(0.4j * noise[1]))


def make_scan(  # noqa: PLR0913 - one knob a kind of scan
    shape: tuple[int, int] = (32, 32),
    *,
    rows: int = 7,
    modes: int = 1,
    photons: float = 1e5,
    margin: int = 0,
    known_object: bool = False,
    dtype: str = 'uint32',
    bad_pixels: npt.NDArray[np.bool_] | None = None,
    seed: int = 0,
) -> tuple[RawScan, npt.NDArray[np.complex128]]:
    """A scan of ``rows * rows`` jittered positions and its true object.

    ``margin`` widens the object grid beyond the scan on every side; ``known_object`` hands the truth out as the guess.
    """
    rng = np.random.default_rng(seed)
    step = 0.13 * min(shape)
    raster = np.stack(np.meshgrid(np.arange(rows), np.arange(rows), indexing='ij'), axis=-1).reshape(-1, 2) * step
    positions = raster + rng.uniform(-1, 1, raster.shape) + (np.array(shape) - 1) / 2 + margin + 2
    grid = tuple(int(np.ceil((rows - 1) * step)) + side + 2 * margin + 4 for side in shape)
    truth = smooth_object((grid[0], grid[1]), seed + 1)
    probe = curved_probe(shape, modes) * np.sqrt(photons)
    patch_origins, subpixel_shifts = patch_bounds(positions, shape)
    counts = simulate(
        torch.from_numpy(truth)[None],
        shift_probe(torch.from_numpy(probe), shift_ramp(torch.from_numpy(subpixel_shifts)[None], shape)),
        torch.from_numpy(patch_origins)[None],
    ).expected[0]
    noisy = rng.poisson(np.fft.fftshift(counts.numpy(), axes=(-2, -1))).astype(dtype)
    scan = make_raw_scan(
        noisy,
        positions,
        probe * 0.037,  # any scale: it is fitted
        bad_pixels=bad_pixels,
        object_guess=truth if known_object else np.ones(grid, dtype=np.complex64),
        name='test scan',
    )
    return scan, truth


def phase_and_scale_free_error(
    answer: npt.NDArray[np.complexfloating], truth: npt.NDArray[np.complexfloating], covered: npt.NDArray[np.bool_]
) -> float:
    """Relative rms error of ``answer`` where ``covered``, after the best complex factor."""
    a, t = answer[covered], truth[covered]
    factor = np.vdot(a, t) / np.vdot(a, a)
    return float(np.linalg.norm(factor * a - t) / np.linalg.norm(t))


def without_ramp(
    answer: npt.NDArray[np.complexfloating],
    truth: npt.NDArray[np.complexfloating],
    covered: npt.NDArray[np.bool_],
) -> npt.NDArray[np.complexfloating]:
    """``answer`` less its linear phase ramp against ``truth``: probe and object refined together trade one freely."""
    size = 2048
    spectrum = np.abs(np.fft.fft2(np.where(covered, truth * answer.conj(), 0), (size, size)))
    ky, kx = (np.fft.fftfreq(size)[index] for index in np.unravel_index(spectrum.argmax(), spectrum.shape))
    y, x = np.indices(answer.shape)
    return np.asarray(answer * np.exp(2j * np.pi * (ky * y + kx * x)))
