"""Small functions of the physics against their formulas, number by number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ptychopinn_torch_plugin.data.scan import patch_bounds
from ptychopinn_torch_plugin.physics.derivatives import gauss_newton_step, intensity_ratio
from ptychopinn_torch_plugin.physics.forward import PatternBatch, power, simulate
from ptychopinn_torch_plugin.physics.noise_models import (
    DEVIANCES,
    deviance_slope,
    poisson_cost,
    total_deviance,
    update_factor,
)
from ptychopinn_torch_plugin.physics.patches import position_dtype, split_positions
from ptychopinn_torch_plugin.physics.preconditioner import low_frequency_filter, precondition_low_frequencies
from ptychopinn_torch_plugin.physics.probe import fit_probe_scale, is_illuminated
from ptychopinn_torch_plugin.physics.probe_modes import add_modes, orthogonalise
from ptychopinn_torch_plugin.physics.propagation import quadratic_phase
from ptychopinn_torch_plugin.physics.total_variation import dual_step_sizes, proximal_point

from .conftest import make_setup

EXPECTED = torch.tensor([[4.0, 9.0, 0.25], [100.0, 2.0, 1e-4]], dtype=torch.float64)
AMPLITUDES = torch.tensor([[1.0, 3.5, 0.0], [10.5, 2.0, 1.0]], dtype=torch.float64)
GOOD = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]], dtype=torch.float64)


def deviances(likelihood: str) -> torch.Tensor:
    """Return the deviance of every pixel, written as in the documentation of the module."""
    n, i, f = AMPLITUDES.square(), EXPECTED, 0.05
    if likelihood == 'amplitude':
        return 4 * (i.sqrt() - n.sqrt()) ** 2
    if likelihood == 'mae':
        return math.sqrt(2 * math.pi) * (i.sqrt() - n.sqrt()).abs()
    return 2 * ((i + f) - (n + f) * (i + f).log()) - 2 * ((n + f) - (n + f) * (n + f).log())


@pytest.mark.parametrize('likelihood', sorted(DEVIANCES))
def test_the_mean_deviance_of_the_measured_pixels(likelihood: str) -> None:
    mean = (deviances(likelihood) * GOOD).sum() / 5
    torch.testing.assert_close(DEVIANCES[likelihood](EXPECTED.sqrt(), AMPLITUDES, GOOD), mean)
    model, measured = (array.expand(2, 3, 2, 3) for array in (EXPECTED.sqrt(), AMPLITUDES))
    torch.testing.assert_close(DEVIANCES[likelihood](model, measured, GOOD), mean)
    if likelihood != 'mae':
        total = total_deviance(EXPECTED, AMPLITUDES, GOOD, likelihood)
        torch.testing.assert_close(total, 5 * mean)
        assert total_deviance(EXPECTED.float(), AMPLITUDES.float(), GOOD.float(), likelihood).dtype == torch.float64


@pytest.mark.parametrize('likelihood', sorted(DEVIANCES))
def test_the_slope_of_the_deviance(likelihood: str) -> None:
    expected = EXPECTED.clone().requires_grad_()
    terms = {
        'amplitude': 4 * (expected.sqrt() - AMPLITUDES).square(),
        'mae': math.sqrt(2 * math.pi) * (expected.sqrt() - AMPLITUDES).abs(),
        'poisson': poisson_cost(expected, AMPLITUDES.square()),
    }[likelihood]
    (slope,) = torch.autograd.grad(terms.sum(), expected)
    torch.testing.assert_close(deviance_slope(EXPECTED, AMPLITUDES, likelihood), slope)
    if likelihood != 'mae':
        torch.testing.assert_close(update_factor(EXPECTED, AMPLITUDES, likelihood), -slope / 4)


@pytest.mark.parametrize('shape', [(16, 16), (15, 18)], ids=str)
def test_positions_are_split_as_those_of_the_scan(shape: tuple[int, int]) -> None:
    given = np.array([[7.5, 8.0], [-3.25, 1e4 + 0.125], [7.0, 8.5], [20.999999999, -0.0000001]])
    origins, shifts = split_positions(torch.from_numpy(given), shape)
    expected_origins, expected_shifts = patch_bounds(given, shape)
    assert (origins.dtype, shifts.dtype) == (torch.int64, torch.float32)
    assert origins.tolist() == expected_origins.tolist()
    np.testing.assert_allclose(shifts, expected_shifts, atol=1e-6)
    assert bool((shifts < 1).all())
    below = torch.tensor([[np.nextafter(7.5, 0), np.nextafter(8.5, 0)]], dtype=torch.float64)
    assert float(split_positions(below, (16, 18))[1].min()) == 1 - 2.0**-24
    assert position_dtype(torch.device('cpu')) == position_dtype(torch.device('cuda')) == torch.float64
    assert position_dtype(torch.device('mps')) == torch.float32


def test_the_scale_of_the_probe_is_that_of_the_measured_power() -> None:
    setup = make_setup((16, 18))
    good = torch.ones((16, 18), dtype=torch.float64)
    good[:, :9] = 0
    probes, origins = setup.probes, setup.patch_origins
    flat = torch.ones((1, 64, 64), dtype=torch.complex128)
    amplitudes = simulate(flat, 3.7 * probes, origins).amplitudes

    def batch(part: slice, mask: torch.Tensor) -> PatternBatch:
        return PatternBatch(amplitudes[:, part], probes[:, part], origins[:, part], mask)

    assert fit_probe_scale([batch(slice(0, 5), good)]) == pytest.approx(3.7)
    assert fit_probe_scale([batch(slice(0, 2), good), batch(slice(2, 5), good)]) == pytest.approx(3.7)
    ones = torch.ones_like(good)
    measured = float(amplitudes.square().sum())
    assert fit_probe_scale([batch(slice(0, 5), ones)]) ** 2 == pytest.approx(measured / float(power(probes).sum()))
    assert math.isnan(fit_probe_scale([batch(slice(0, 5), torch.zeros_like(good))]))


def test_illuminated_is_a_thousandth_of_the_brightest_pixel() -> None:
    photons = torch.tensor([[1000.0, 1.0, 1.001], [0.999, 0.0, 500.0]])
    assert is_illuminated(photons).tolist() == [[True, False, True], [False, False, True]]
    assert is_illuminated(photons, 0.5).tolist() == [[True, False, False], [False, False, False]]


def test_the_quadratic_phase_is_centred() -> None:
    phase = torch.angle(quadratic_phase((1e-3, 2e-3), (7, 8)))
    assert phase[3, 4] == 0
    assert float(phase[0, 4]) == pytest.approx(math.pi * 1e-3 * 9)
    assert float(phase[6, 4]) == pytest.approx(math.pi * 1e-3 * 9)
    assert float(phase[3, 0]) == pytest.approx(math.pi * 2e-3 * 16)
    assert float(phase[5, 7]) == pytest.approx(math.pi * (1e-3 * 4 + 2e-3 * 9))
    assert torch.equal(quadratic_phase((0.0, 0.0), (3, 4)), torch.ones((3, 4), dtype=torch.complex128))


def test_a_step_for_every_matrix() -> None:
    gradients = torch.tensor([[1.0, 2.0], [3.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    matrices = torch.tensor([[4.0, 9.0, 0.0], [4.0, 9.0, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    first = [9.0 / (36 * 1.001), 8.0 / (36 * 1.001)]
    second = [(27 + 2) / (32 + 0.036), (-4 - 6) / (32 + 0.036)]
    torch.testing.assert_close(
        gauss_newton_step(gradients, matrices), torch.tensor([first, second, [0.0, 0.0]], dtype=torch.float64)
    )


def test_the_ratio_of_an_empty_pattern_is_zero() -> None:
    amplitudes, expected = torch.zeros(2, 2, 3), torch.zeros(2, 2, 3)
    amplitudes[0, 0, 0] = 2
    expected[0, 0] = 1
    assert intensity_ratio(amplitudes, expected, torch.ones(2, 3)).tolist() == pytest.approx([4 / 3, 0.0])


def test_the_low_frequency_filter_is_zero_above_its_frequency() -> None:
    gain = low_frequency_filter((200, 101), torch.device('cpu'))
    squared = np.fft.fftfreq(200)[:, None] ** 2 + np.fft.rfftfreq(101) ** 2
    squared[0, 0] = 1
    expected = np.clip(0.03**2 / squared - 1, 0, 10)
    np.testing.assert_allclose(gain, expected, rtol=1e-4, atol=1e-4)
    assert gain.max() == 10
    assert low_frequency_filter((200, 101), torch.device('cpu'), 3.0).max() == 3


def test_the_phase_direction_is_divided_by_the_squared_modulus() -> None:
    generator = torch.Generator().manual_seed(0)
    direction, image = torch.randn((2, 1, 12, 14), dtype=torch.complex128, generator=generator)
    image[0, 3, 4] = 0.02
    gain = torch.rand((12, 8), dtype=torch.float64, generator=generator)
    phase = (image.conj() * direction).imag / image.abs().square().clamp(min=1e-2)
    low = torch.fft.irfft2(torch.fft.rfft2(phase) * gain, s=(12, 14))
    torch.testing.assert_close(
        precondition_low_frequencies(direction, image, gain), direction + 1j * image * low, rtol=1e-10, atol=1e-12
    )


def test_the_steps_of_the_dual_problem() -> None:
    ratio = torch.tensor([[1.0, 2.0, 3.0], [8.0, 5.0, 0.5], [0.25, 4.0, 6.0]], dtype=torch.float64)
    largest = [[8, 5, 3], [8, 5, 8], [4, 6, 6]]
    torch.testing.assert_close(dual_step_sizes(ratio), 1 / (8 * torch.tensor(largest, dtype=torch.float64)))


def test_one_step_of_total_variation() -> None:
    """From duals of zero: ``p = t grad Z / max(1, |.|)``, then ``Z + r div p``."""
    generator = torch.Generator().manual_seed(0)
    image = 9 * torch.randn((5, 6), dtype=torch.complex128, generator=generator)
    ratio = torch.rand((5, 6), dtype=torch.float64, generator=generator)
    size = dual_step_sizes(ratio)
    y, x = size * (image.roll(-1, 0) - image), size * (image.roll(-1, 1) - image)
    length = (y.abs().square() + x.abs().square()).sqrt().clamp(min=1)
    assert 0 < int((length > 1).sum()) < 30
    y, x = y / length, x / length
    expected = image + ratio * (y - y.roll(1, 0) + x - x.roll(1, 1))
    duals = [torch.zeros_like(image) for _ in range(2)]
    torch.testing.assert_close(proximal_point(image, ratio, duals[0], duals[1], 1), expected)
    torch.testing.assert_close(duals[0], y)
    torch.testing.assert_close(duals[1], x)
    assert torch.equal(proximal_point(image, ratio, 0 * y, 0 * x, 0), image)


def test_new_modes_are_the_derivatives_of_the_first() -> None:
    y, x = torch.meshgrid(torch.arange(32.0) - 15, torch.arange(36.0) - 18, indexing='ij')
    beam = torch.exp(-(y.square() + x.square()) / 40).to(torch.complex128)[None] * 7
    total = float(beam.abs().square().sum())
    grown = add_modes(beam, 3)
    powers = grown.abs().square().sum(dim=(1, 2))
    assert powers.tolist() == pytest.approx([0.9 * total, 0.05 * total, 0.05 * total])
    torch.testing.assert_close(grown[0], beam[0] * math.sqrt(0.9))
    for mode in grown[1:]:
        overlaps = [(mode.conj() * beam[0] * axis).sum().abs() for axis in (y, x)]
        lengths = [(beam[0] * axis).abs().square().sum().sqrt() for axis in (y, x)]
        shares = [float(a / b) ** 2 / float(0.05 * total) for a, b in zip(overlaps, lengths, strict=True)]
        assert sum(shares) > 0.97
    two = add_modes(beam, 2)
    assert two.shape == (2, 32, 36)
    assert float(two[1].abs().square().sum()) == pytest.approx(0.05 * total)
    # Of two modes that are there, both are kept, and the third begins as a derivative of the first.
    pair = torch.cat([beam, beam * y / 5])
    third = add_modes(pair, 3)
    torch.testing.assert_close(third[:2], pair * math.sqrt(0.95))
    assert torch.equal(add_modes(pair, 2), pair)
    assert torch.equal(add_modes(pair, 0), pair)
    assert add_modes(beam, 6).shape == (6, 32, 36)


def test_one_mode_is_orthogonal_already() -> None:
    probe = torch.ones((1, 3, 4), dtype=torch.complex64)
    assert orthogonalise(probe) is probe
    pair = torch.stack([torch.ones(3, 4), 2 * torch.ones(3, 4)]).to(torch.complex128)
    mixed = orthogonalise(pair)
    assert mixed.abs().square().sum(dim=(1, 2)).tolist() == pytest.approx([60.0, 0.0], abs=1e-12)
