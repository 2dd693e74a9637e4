"""The photon scale of a probe, fitted to the data.

The scale of a probe that comes in says nothing (three conventions meet in the products around Ptychodus), so it is
fitted before anything else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from .forward import Frames, simulate


def fit_probe_scale(batches: Iterable[Frames]) -> float:
    """Factor for the probe that makes the power simulated with a transparent object equal the measured power.

    Args:
        batches: frames of the scan, with probes of any one scale; only measured pixels count.

    Returns:
        A number ``s``: with ``s * probe``, ``sum |P|^2`` is the mean number of photons per frame. NaN if no simulated
        power falls on the measured pixels.
    """
    measured = simulated = 0.0
    with torch.no_grad():
        for frames in batches:
            shape = frames.amplitudes.shape
            flat = torch.ones((shape[0] * shape[1], *shape[2:]), dtype=frames.probes.dtype, device=frames.probes.device)
            model = simulate(
                flat,
                frames.probes.flatten(0, 1)[:, None],
                torch.zeros_like(frames.patch_origins).flatten(0, 1)[:, None],
            )
            measured += float((frames.amplitudes.square() * frames.good_pixels).sum(dtype=torch.float64))
            simulated += float((model * frames.good_pixels).sum(dtype=torch.float64))
    return math.sqrt(measured / simulated) if simulated > 0 else math.nan
