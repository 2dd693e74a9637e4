"""Random objects, probes and positions: asymmetric, complex, odd and non-square, off the pixel grid."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from ptychopinn_torch_plugin.data.scan import patch_bounds
from ptychopinn_torch_plugin.physics.probe import shift_probe
from ptychopinn_torch_plugin.physics.propagation import shift_ramp


class Setup(NamedTuple):
    """A random far-field experiment in float64."""

    object_array: Tensor
    probe: Tensor
    subpixel_shifts: Tensor
    probes: Tensor
    patch_origins: Tensor


def sides(array: Tensor) -> tuple[int, int]:
    """Height and width."""
    return array.shape[-2], array.shape[-1]


def probes_at(probe: Tensor, subpixel_shifts: Tensor, phase: Tensor | None = None) -> Tensor:
    """Return the probe at subpixel shifts."""
    return shift_probe(probe, shift_ramp(subpixel_shifts, sides(probe)), phase)


def make_setup(shape: tuple[int, int], modes: int = 2, positions: int = 5, seed: int = 0) -> Setup:
    rng = np.random.default_rng(seed)

    def complex_normal(*size: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(size) + 1j * rng.standard_normal(size))

    object_shape = (shape[0] + 9, shape[1] + 12)
    centres = np.stack(
        [
            rng.uniform((side - 1) / 2, total - 1 - (side - 1) / 2, positions)
            for side, total in zip(shape, object_shape, strict=True)
        ],
        axis=1,
    )
    patch_origins, subpixel_shifts = patch_bounds(centres, shape)
    probe = complex_normal(modes, *shape)
    return Setup(
        object_array=complex_normal(1, *object_shape),
        probe=probe,
        subpixel_shifts=torch.from_numpy(subpixel_shifts)[None],
        probes=probes_at(probe, torch.from_numpy(subpixel_shifts)[None]),
        patch_origins=torch.from_numpy(patch_origins)[None],
    )


@pytest.fixture(params=[(16, 16), (17, 19), (12, 21)], ids=['even', 'odd', 'mixed'])
def setup(request: pytest.FixtureRequest) -> Setup:
    return make_setup(request.param)
