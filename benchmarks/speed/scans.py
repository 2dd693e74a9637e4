"""Simulated scans for timing, made without Ptychodus; their values do not matter, their sizes do."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ptychopinn_torch_plugin.data.scan import RawScan, make_raw_scan, patch_bounds
from ptychopinn_torch_plugin.physics.forward import simulate
from ptychopinn_torch_plugin.physics.probe import shift_probe
from ptychopinn_torch_plugin.physics.propagation import shift_ramp

PHOTONS = 1e6
DISTINCT = 256
"""Patterns that are simulated; a larger scan repeats them."""


def make_scan(side: int, rows: int, modes: int = 1) -> RawScan:
    """Return a scan of ``rows * rows`` positions, 8 % of the side apart, with patterns of ``side`` pixels (uint16)."""
    rng = np.random.default_rng(0)
    step = 0.08 * side
    raster = np.stack(np.meshgrid(np.arange(rows), np.arange(rows), indexing='ij'), axis=-1).reshape(-1, 2) * step
    positions = raster + rng.uniform(-1, 1, raster.shape) + (side - 1) / 2 + 2
    extent = int(np.ceil((rows - 1) * step)) + side + 6
    noise = gaussian_filter(rng.standard_normal((2, extent, extent)), sigma=(0, 2, 2))
    noise /= noise.std()
    truth = np.clip(0.85 + 0.08 * noise[0], 0.2, 1.2) * np.exp(0.4j * noise[1])
    y = (np.arange(side)[:, None] - 0.47 * side) / (0.2 * side)
    x = (np.arange(side)[None, :] - 0.52 * side) / (0.2 * side)
    beam = np.exp(-(y**2 + x**2) / 2 + 1.3j * (y**2 + x**2))
    probe = np.stack([beam * (0.6 * x) ** mode for mode in range(modes)])
    probe *= np.sqrt(PHOTONS) / np.linalg.norm(probe)
    count = min(len(positions), DISTINCT)
    origins, shifts = patch_bounds(positions[:count], (side, side))
    expected = simulate(
        torch.from_numpy(truth)[None],
        shift_probe(torch.from_numpy(probe), shift_ramp(torch.from_numpy(shifts)[None], (side, side))),
        torch.from_numpy(origins)[None],
    ).expected[0]
    drawn = rng.poisson(np.fft.fftshift(expected.numpy(), axes=(-2, -1))).clip(0, 60000).astype(np.uint16)
    counts = np.empty((len(positions), side, side), dtype=np.uint16)
    for first in range(0, len(positions), count):
        part = counts[first : first + count]
        part[:] = drawn[: len(part)]
    return make_raw_scan(
        counts, positions, probe, object_guess=np.ones((extent, extent), dtype=np.complex64), name=f'{side} px'
    )
