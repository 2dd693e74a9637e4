"""Moments of the square root of a Poisson count, against drawn counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptychopinn_torch_plugin.physics.photon_noise import LARGEST_ROOT, PhotonNoise

DRAWS = 400_000


@pytest.mark.parametrize('ratio', [1.0, 0.9])
@pytest.mark.parametrize('photons', [0.0, 0.03, 0.5, 1.0, 7.3, 180.0, 390.0, 1e4])
def test_moments_are_those_of_drawn_counts(photons: float, ratio: float) -> None:
    drawn = np.sqrt(np.random.default_rng(1).poisson(photons, DRAWS))
    root = torch.tensor([photons**0.5])
    noise = PhotonNoise(ratio, torch.device('cpu'))
    assert float(noise.mean(root)) == pytest.approx(drawn.mean(), abs=5e-3)
    assert float(noise.variance(root)) == pytest.approx(drawn.var(), abs=5e-3)
    assert float(noise.deviation(root)) == pytest.approx(np.abs(drawn - ratio * photons**0.5).mean(), abs=5e-3)


@pytest.mark.parametrize('ratio', [1.0, 0.97])
def test_sums_and_gaussian_meet(ratio: float) -> None:
    noise = PhotonNoise(ratio, torch.device('cpu'))
    below, above = torch.tensor([LARGEST_ROOT - 1e-4]), torch.tensor([LARGEST_ROOT + 1e-4])
    for moment in (noise.mean, noise.variance, noise.deviation):
        assert float(moment(below)) == pytest.approx(float(moment(above)), abs=2e-3)
