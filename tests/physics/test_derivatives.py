"""The hand-written derivatives: against autograd, and against differences of the host's simulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ptychopinn_torch_plugin.data.io.product import fresnel_numbers_of, scan_from_reconstruct_input
from ptychopinn_torch_plugin.data.scan import patch_bounds
from ptychopinn_torch_plugin.physics.derivatives import (
    intensity_ratio,
    position_gradient,
    position_step,
    probe_spectra,
)
from ptychopinn_torch_plugin.physics.forward import (
    PatternBatch,
    Simulation,
    exit_wave_update,
    object_update,
    simulate,
)
from ptychopinn_torch_plugin.physics.noise_models import poisson_cost
from ptychopinn_torch_plugin.physics.probe import illumination, shift_probe
from ptychopinn_torch_plugin.physics.propagation import quadratic_phase, shift_ramp

from .conftest import Setup, make_setup, probes_at, sides

SHAPES = [(12, 12), (11, 13)]


def complex_like(tensor: Tensor, seed: int) -> Tensor:
    return torch.randn(tensor.shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


class Experiment:
    """Patterns of another object, a mask, a quadratic phase, frame intensities."""

    def __init__(self, setup: Setup, likelihood: str) -> None:
        shape = sides(setup.probe)
        self.setup = setup
        self.likelihood = likelihood
        self.phase = quadratic_phase((2e-3, 3e-3), shape)
        self.shifts = setup.subpixel_shifts[0]
        self.intensities = torch.linspace(0.6, 1.5, len(self.shifts), dtype=torch.float64)
        self.good = (torch.rand(shape, generator=torch.Generator().manual_seed(5)) > 0.2).double()
        other = complex_like(setup.object_array, 4)
        self.amplitudes = simulate(other, self.probes(setup.probe, self.shifts), setup.patch_origins).amplitudes

    def probes(self, probe: Tensor, shifts: Tensor) -> Tensor:
        ramps = shift_ramp(shifts, sides(probe), self.intensities.sqrt())
        return shift_probe(probe, ramps, self.phase)[None]

    def evaluate(self, shifts: Tensor | None = None) -> tuple[Simulation, Tensor, Tensor, PatternBatch]:
        """Return the simulation, the exit-wave updates, the probe spectra and the batch."""
        setup = self.setup
        shifts = self.shifts if shifts is None else shifts
        ramps = shift_ramp(shifts, sides(setup.probe), self.intensities.sqrt())
        batch = PatternBatch(self.amplitudes, self.probes(setup.probe, shifts), setup.patch_origins, self.good)
        simulation = simulate(setup.object_array, batch.probes, batch.patch_origins)
        chi = exit_wave_update(simulation, batch, self.likelihood)
        return simulation, chi, probe_spectra(chi[0], simulation.object_patches[0], ramps, self.phase), batch

    def deviance(self, object_array: Tensor, probe: Tensor, shifts: Tensor) -> Tensor:
        """Return the deviance ``D`` of all patterns."""
        expected = simulate(object_array, self.probes(probe, shifts), self.setup.patch_origins).expected
        counts = self.amplitudes.square()
        if self.likelihood == 'poisson':
            terms = poisson_cost(expected, counts) - poisson_cost(counts, counts)
        else:
            terms = 4 * (expected.sqrt() - self.amplitudes).square()
        return (terms * self.good).sum()


@pytest.mark.parametrize('likelihood', ['amplitude', 'poisson'])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_object_and_probe_updates_are_minus_a_quarter_of_the_wirtinger_derivatives(
    shape: tuple[int, int], likelihood: str
) -> None:
    setup = make_setup(shape)
    experiment = Experiment(setup, likelihood)
    object_array, probe = setup.object_array.clone().requires_grad_(), setup.probe.clone().requires_grad_()
    deviance = experiment.deviance(object_array, probe, experiment.shifts)
    # The gradient of torch is twice the Wirtinger derivative.
    of_object, of_probe = torch.autograd.grad(deviance, (object_array, probe))
    _, chi, spectra, batch = experiment.evaluate()
    update = object_update(chi, batch, sides(setup.object_array))
    light = illumination(batch.probes, batch.patch_origins, sides(setup.object_array))
    torch.testing.assert_close(update, -of_object / 8, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(torch.fft.ifft2(spectra.sum(dim=0)), -of_probe / 8, rtol=1e-8, atol=1e-8)
    power = setup.probe.abs().square().sum() * experiment.intensities.sum()
    assert float(light.sum()) == pytest.approx(float(power), rel=1e-9)


@pytest.mark.parametrize('likelihood', ['amplitude', 'poisson'])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_position_gradients_are_minus_an_eighth_of_the_derivatives(shape: tuple[int, int], likelihood: str) -> None:
    setup = make_setup(shape, positions=3)
    experiment = Experiment(setup, likelihood)
    shifts = experiment.shifts.clone().requires_grad_()
    (expected,) = torch.autograd.grad(experiment.deviance(setup.object_array, setup.probe, shifts), shifts)
    _, _, spectra, _ = experiment.evaluate()
    torch.testing.assert_close(position_gradient(spectra, setup.probe), -expected / 8, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_position_steps_solve_the_normal_equations(shape: tuple[int, int]) -> None:
    """At half a pixel, gradient and Gauss-Newton matrix by autograd give the same step."""
    setup = make_setup(shape, positions=3)
    experiment = Experiment(setup, 'amplitude')
    shifts = torch.full_like(experiment.shifts, 0.5)
    simulation, chi, spectra, _ = experiment.evaluate(shifts)
    patches = simulation.object_patches[0]
    steps = position_step(spectra, patches.abs().square(), experiment.intensities, setup.probe)

    def exit_waves(shifts: Tensor) -> Tensor:
        return torch.view_as_real(experiment.probes(setup.probe, shifts)[0] * patches[:, None])

    slopes: Tensor = torch.autograd.functional.jacobian(exit_waves, shifts)  # type: ignore[no-untyped-call]
    change = torch.view_as_real(chi[0])
    for index, step in enumerate(steps):
        slope = slopes[index, ..., index, :].flatten(0, -2)  # (values, 2)
        normal = slope.T @ slope
        normal_with_floor = torch.linalg.det(normal) + 1e-3 * normal[0, 0] * normal[1, 1]
        expected = torch.linalg.solve(normal, slope.T @ change[index].flatten()) * torch.linalg.det(normal)
        torch.testing.assert_close(step, expected / normal_with_floor, rtol=1e-8, atol=1e-10)


def test_gradcheck_of_every_refined_quantity() -> None:
    """Object, each probe mode, positions and frame intensities through the forward model, in float64."""
    setup = make_setup((6, 7), modes=2, positions=2)

    def counts(object_array: Tensor, probe: Tensor, shifts: Tensor, intensities: Tensor) -> Tensor:
        probes = shift_probe(probe, shift_ramp(shifts, sides(probe), intensities.sqrt()))[None]
        return simulate(object_array, probes, setup.patch_origins).expected

    intensities = torch.tensor([0.8, 1.3], dtype=torch.float64)
    quantities = (setup.object_array, setup.probe, setup.subpixel_shifts[0], intensities)
    assert torch.autograd.gradcheck(counts, [tensor.clone().requires_grad_() for tensor in quantities])


def test_the_intensity_ratio_maximises_the_poisson_likelihood() -> None:
    """At the ratio of measured to expected photons, the derivative with respect to the intensity vanishes."""
    setup = make_setup((8, 9), positions=3)
    experiment = Experiment(setup, 'poisson')
    simulation, _, _, batch = experiment.evaluate()
    ratio = intensity_ratio(batch.amplitudes[0], simulation.expected[0], experiment.good).requires_grad_()
    counts = batch.amplitudes[0].square()
    expected = simulation.expected[0] * ratio[:, None, None]
    cost = ((expected - counts * expected.log()) * experiment.good).sum()
    (gradient,) = torch.autograd.grad(cost, ratio)
    scale = (counts * experiment.good).sum(dim=(-2, -1))
    torch.testing.assert_close(gradient / scale, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_position_steps_find_a_small_displacement() -> None:
    setup = make_setup((32, 32), modes=1, positions=4)
    moved = setup.subpixel_shifts + 0.01 * torch.tensor([[[1.0, -2.0], [0.5, 1.0], [-1.0, 0.0], [0.0, 2.0]]])
    measured = simulate(setup.object_array, probes_at(setup.probe, moved), setup.patch_origins).amplitudes
    good, phase = torch.ones(32, 32, dtype=torch.float64), torch.ones(32, 32, dtype=torch.complex128)
    ones = torch.ones(4, dtype=torch.float64)
    shifts = setup.subpixel_shifts[0].clone()
    for _ in range(12):
        ramps = shift_ramp(shifts, (32, 32))
        batch = PatternBatch(measured, shift_probe(setup.probe, ramps)[None], setup.patch_origins, good)
        simulation = simulate(setup.object_array, batch.probes, batch.patch_origins)
        patches = simulation.object_patches[0]
        spectra = probe_spectra(exit_wave_update(simulation, batch)[0], patches, ramps, phase)
        shifts += position_step(spectra, patches.abs().square(), ones, setup.probe)
    torch.testing.assert_close(shifts, moved[0], atol=2e-4, rtol=0)


def test_every_gradient_agrees_with_differences_of_the_host() -> None:
    """Object, each probe mode and positions: slopes of the amplitude deviance, from Ptychodus' own simulator."""
    from ptychodus.api.object import Object
    from ptychodus.api.probe import ProbeSequence
    from ptychodus.api.probe_positions import ProbePositionSequence
    from ptychodus.api.product import Product
    from ptychodus.api.reconstruct import ReconstructInput
    from ptychodus.api.simulate.diffraction import generate_diffraction_data

    from tests.helpers.products import random_product

    shape = (16, 18)
    product = random_product(shape, modes=2, positions=4, seed=2)
    measured = generate_diffraction_data(random_product(shape, modes=2, positions=4, seed=3)).get_patterns()
    data = generate_diffraction_data(product)
    detector, pixel = data.get_pixel_geometry(), product.probes.get_pixel_geometry()
    unitary = (detector.width_m / pixel.width_m) * (detector.height_m / pixel.height_m)
    amplitudes = np.sqrt(measured * unitary)

    def host_deviance(changed: Product) -> float:
        model = np.sqrt(generate_diffraction_data(changed).get_patterns() * unitary)
        return float((4 * (model - amplitudes) ** 2).sum())

    scan = scan_from_reconstruct_input(ReconstructInput(measured, data.get_bad_pixels(), product))
    patch_origins, subpixel_shifts = patch_bounds(scan.positions, shape)
    phase = quadratic_phase(fresnel_numbers_of(product), shape)
    measured_amplitudes = torch.from_numpy(np.fft.ifftshift(amplitudes, axes=(1, 2)))[None]
    shifts = torch.from_numpy(subpixel_shifts).requires_grad_()
    object_array = torch.from_numpy(product.object_.get_layer(0)).requires_grad_()
    probe = torch.from_numpy(product.probes.get_probe_no_opr().get_array()).requires_grad_()
    probes = probes_at(probe, shifts[None], phase)
    model = simulate(object_array[None], probes, torch.from_numpy(patch_origins)[None]).amplitudes
    deviance = 4 * (model - measured_amplitudes).square().sum()
    assert float(deviance.detach()) == pytest.approx(host_deviance(product), rel=1e-9)
    gradients = torch.autograd.grad(deviance, (object_array, probe, shifts))

    rng = np.random.default_rng(8)
    step = 1e-6
    dobject = rng.standard_normal(object_array.shape) + 1j * rng.standard_normal(object_array.shape)
    dprobe = rng.standard_normal(probe.shape) + 1j * rng.standard_normal(probe.shape)
    dposition = rng.standard_normal(shifts.shape)

    def with_object(sign: float) -> Product:
        old = product.object_
        array = old.get_array() + sign * step * dobject
        return replace(product, object_=Object(array, old.get_pixel_geometry(), old.get_center()))

    def with_probe(sign: float) -> Product:
        array = product.probes.get_array() + sign * step * dprobe
        return replace(product, probes=ProbeSequence(array, None, pixel))

    def with_positions(sign: float) -> Product:
        points = [
            replace(
                point,
                x_m=point.x_m + sign * step * dx * pixel.width_m,
                y_m=point.y_m + sign * step * dy * pixel.height_m,
            )
            for point, (dy, dx) in zip(product.probe_positions, dposition, strict=True)
        ]
        return replace(product, probe_positions=ProbePositionSequence(points))

    for make, gradient, change in (
        (with_object, gradients[0], dobject),
        (with_probe, gradients[1], dprobe),
        (with_positions, gradients[2], dposition),
    ):
        slope = (host_deviance(make(1.0)) - host_deviance(make(-1.0))) / (2 * step)
        ours = float((gradient.numpy().conj() * change).real.sum())
        assert ours == pytest.approx(slope, rel=1e-5)
