"""The forward model: adjoint, gradients, power, and agreement with the host's own simulator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptychopinn_torch_plugin.data.io.product import fresnel_numbers_of
from ptychopinn_torch_plugin.data.scan import patch_bounds
from ptychopinn_torch_plugin.physics.forward import PatternBatch, amplitude_update, forward_adjoint, simulate
from ptychopinn_torch_plugin.physics.noise_models import DEVIANCES
from ptychopinn_torch_plugin.physics.propagation import quadratic_phase

from .conftest import Setup, make_setup, probes_at, sides


def complex_like(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.randn(tensor.shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def test_adjoint_of_the_linear_part(setup: Setup) -> None:
    waves = simulate(setup.object_array, setup.probes, setup.patch_origins).waves
    other = complex_like(waves, 3)
    back = forward_adjoint(other, setup.probes, setup.patch_origins, sides(setup.object_array))
    left = torch.vdot(other.flatten(), waves.flatten())
    right = torch.vdot(back.flatten(), setup.object_array.flatten())
    torch.testing.assert_close(left, right, rtol=1e-12, atol=0)


def test_power_is_conserved(setup: Setup) -> None:
    flat = torch.ones_like(setup.object_array)
    counts = simulate(flat, setup.probes, setup.patch_origins).expected
    power = setup.probes.abs().square().sum(dim=(2, 3, 4))
    torch.testing.assert_close(counts.sum(dim=(-2, -1)), power, rtol=1e-11, atol=0)


def test_object_update_is_minus_a_quarter_of_the_wirtinger_derivative(setup: Setup) -> None:
    measured = simulate(complex_like(setup.object_array, 4), setup.probes, setup.patch_origins).amplitudes
    good = (torch.rand(measured.shape[-2:], generator=torch.Generator().manual_seed(5)) > 0.2).double()
    batch = PatternBatch(measured, setup.probes, setup.patch_origins, good)
    object_array = setup.object_array.clone().requires_grad_()
    model = simulate(object_array, setup.probes, setup.patch_origins).amplitudes
    deviance = (4 * (model - measured).square() * good).sum()
    (gradient,) = torch.autograd.grad(deviance, object_array)  # twice the Wirtinger derivative
    update, _ = amplitude_update(setup.object_array, batch)
    torch.testing.assert_close(update, -gradient / 8, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('likelihood', sorted(DEVIANCES))
def test_gradcheck_of_object_probe_and_positions(likelihood: str) -> None:
    setup = make_setup((5, 6), modes=2, positions=2)
    measured = simulate(complex_like(setup.object_array, 6), setup.probes, setup.patch_origins).amplitudes
    measured[..., 1, 2:4] = 0.0  # pixels that caught no photon
    good = torch.ones(measured.shape[-2:], dtype=torch.float64)

    def deviance(object_array: torch.Tensor, probe: torch.Tensor, subpixel_shifts: torch.Tensor) -> torch.Tensor:
        model = simulate(object_array, probes_at(probe, subpixel_shifts), setup.patch_origins).amplitudes
        return DEVIANCES[likelihood](model, measured, good)

    inputs = (setup.object_array[..., :, :], setup.probe, setup.subpixel_shifts)
    assert torch.autograd.gradcheck(deviance, tuple(x.detach().clone().requires_grad_() for x in inputs), eps=1e-6)


def test_bad_pixels_contribute_nothing() -> None:
    setup = make_setup((16, 16))
    measured = simulate(setup.object_array, setup.probes, setup.patch_origins).amplitudes
    good = torch.ones(16, 16, dtype=torch.float64)
    good[3, 5:9] = 0
    spoiled = measured.clone()
    spoiled[..., 3, 5:9] = 1e6
    for amplitudes in (measured, spoiled):
        batch = PatternBatch(amplitudes, setup.probes, setup.patch_origins, good)
        assert float(amplitude_update(setup.object_array, batch)[0].abs().max()) < 1e-9
        for deviance in DEVIANCES.values():
            assert float(deviance(measured, amplitudes, good)) < 1e-3


@pytest.mark.parametrize('likelihood', sorted(DEVIANCES))
def test_a_true_model_has_deviance_one(likelihood: str) -> None:
    rng = np.random.default_rng(7)
    expected = rng.uniform(50, 500, size=(4, 64, 64))
    counts = torch.from_numpy(rng.poisson(expected).astype(np.float64))
    deviance = DEVIANCES[likelihood](torch.from_numpy(expected).sqrt(), counts.sqrt(), torch.ones(64, 64))
    assert float(deviance) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize('shape', [(32, 32), (33, 35), (24, 31)], ids=str)
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
def test_agreement_with_the_host(shape: tuple[int, int], dtype: torch.dtype, tolerance: float) -> None:
    """Ptychodus' simulator, its scale factor undone: mixed states, subpixel positions, any size."""
    from ptychodus.api.simulate.diffraction import generate_diffraction_data

    from tests.helpers.products import random_product

    product = random_product(shape, modes=3, positions=6, seed=1)
    data = generate_diffraction_data(product)
    detector, pixel = data.get_pixel_geometry(), product.probes.get_pixel_geometry()
    reference = data.get_patterns() * (detector.width_m / pixel.width_m) * (detector.height_m / pixel.height_m)

    geometry = product.object_.get_geometry()
    positions = np.stack(
        [
            geometry.map_probe_positions_to_object_y_px(product.probe_positions),
            geometry.map_probe_positions_to_object_x_px(product.probe_positions),
        ],
        axis=1,
    ).astype(np.float64)
    patch_origins, subpixel_shifts = patch_bounds(positions, shape)
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    probe = torch.from_numpy(product.probes.get_probe_no_opr().get_array()).to(complex_dtype)
    phase = quadratic_phase(fresnel_numbers_of(product), shape).to(complex_dtype)
    probes = probes_at(probe, torch.from_numpy(subpixel_shifts).to(dtype)[None], phase)
    object_array = torch.from_numpy(product.object_.get_layer(0))[None].to(complex_dtype)
    expected = simulate(object_array, probes, torch.from_numpy(patch_origins)[None]).expected[0]
    counts = torch.fft.fftshift(expected, dim=(-2, -1))

    error = np.abs(counts.double().numpy() - reference).max() / reference.max()
    assert error < tolerance


def test_the_quadratic_phase_is_not_nothing() -> None:
    """Guards the agreement test: without the phase the host's patterns are missed by far more than the tolerance."""
    from tests.helpers.products import random_product

    numbers = fresnel_numbers_of(random_product((32, 32), modes=1, positions=2, seed=1))
    assert float(torch.angle(quadratic_phase(numbers, (32, 32))).abs().max()) > 1e-2
