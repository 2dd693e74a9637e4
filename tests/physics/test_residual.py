"""The refinement's hand-written derivatives: against autograd, and against differences of the host's simulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ptychopinn_torch_plugin.data.io.product import fresnel_numbers_of, scan_from_reconstruct_input
from ptychopinn_torch_plugin.data.scan import patch_bounds
from ptychopinn_torch_plugin.physics.forward import simulate
from ptychopinn_torch_plugin.physics.noise_models import poisson_cost
from ptychopinn_torch_plugin.physics.probe import probes_at
from ptychopinn_torch_plugin.physics.propagation import quadratic_phase
from ptychopinn_torch_plugin.physics.residual import (
    POISSON_FLOOR,
    Batch,
    Experiment,
    intensity_ratio,
    object_change,
    photons_of,
    position_change,
    position_gradient,
    residual_of,
    returned_spectra,
)

from .conftest import Setup, make_setup, sides

SHAPES = [(12, 12), (11, 13)]


def complex_like(tensor: Tensor, seed: int) -> Tensor:
    return torch.randn(tensor.shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def experiment_of(setup: Setup, likelihood: str) -> tuple[Batch, Experiment]:
    """Patterns of another object, a mask, a quadratic phase."""
    shape = sides(setup.probe)
    phase = quadratic_phase((2e-3, 3e-3), shape)
    probes = probes_at(setup.probe, setup.subpixel_shifts, phase)
    measured = simulate(complex_like(setup.canvas, 4), probes, setup.patch_origins).sqrt()[0]
    good = (torch.rand(shape, generator=torch.Generator().manual_seed(5)) > 0.2).double()
    return Batch(measured, setup.patch_origins[0], setup.subpixel_shifts[0]), Experiment(good, phase, likelihood)


def misfit(canvas: Tensor, probe: Tensor, subpixel_shifts: Tensor, batch: Batch, experiment: Experiment) -> Tensor:
    """What the residual is half the negative gradient of."""
    probes = probes_at(probe, subpixel_shifts[None], experiment.phase)
    expected = simulate(canvas[None], probes, batch.patch_origins[None])[0]
    counts = batch.amplitudes.square()
    if experiment.likelihood == 'poisson':
        # The weight (n - I) / (2 (I + floor)) on psi belongs to this function of I.
        shifted = expected + POISSON_FLOOR
        terms = 0.5 * (expected - (counts + POISSON_FLOOR) * shifted.log())
    else:
        terms = (expected.sqrt() - batch.amplitudes).square()
    return (terms * experiment.good_pixels).sum()


@pytest.mark.parametrize('likelihood', ['amplitude', 'poisson'])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_object_and_probe_directions_are_half_the_negative_gradients(shape: tuple[int, int], likelihood: str) -> None:
    setup = make_setup(shape)
    batch, experiment = experiment_of(setup, likelihood)
    canvas, probe = setup.canvas[0].clone().requires_grad_(), setup.probe.clone().requires_grad_()
    value = misfit(canvas, probe, batch.subpixel_shifts, batch, experiment)
    of_object, of_probe = torch.autograd.grad(value, (canvas, probe))
    residual = residual_of(setup.canvas[0], setup.probe, batch, experiment)
    direction = object_change(residual, batch.patch_origins, sides(setup.canvas))
    light = photons_of(residual.probes, batch.patch_origins, sides(setup.canvas))
    spectrum = returned_spectra(residual, experiment.phase).sum(dim=0)
    torch.testing.assert_close(direction, -of_object / 2, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(torch.fft.ifft2(spectrum), -of_probe / 2, rtol=1e-8, atol=1e-8)
    assert float(light.sum()) == pytest.approx(float(setup.probes.abs().square().sum()), rel=1e-9)


@pytest.mark.parametrize('likelihood', ['amplitude', 'poisson'])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_position_gradients_are_half_the_negative_gradients(shape: tuple[int, int], likelihood: str) -> None:
    setup = make_setup(shape, positions=3)
    batch, experiment = experiment_of(setup, likelihood)
    subpixel_shifts = batch.subpixel_shifts.clone().requires_grad_()
    value = misfit(setup.canvas[0], setup.probe, subpixel_shifts, batch, experiment)
    (expected,) = torch.autograd.grad(value, subpixel_shifts)
    residual = residual_of(setup.canvas[0], setup.probe, batch, experiment)
    found = position_gradient(returned_spectra(residual, experiment.phase), setup.probe)
    torch.testing.assert_close(found, -expected / 2, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_position_steps_solve_the_normal_equations(shape: tuple[int, int]) -> None:
    """At half a pixel, gradient and Gauss-Newton matrix by autograd give the same step."""
    setup = make_setup(shape, positions=3)
    batch, experiment = experiment_of(setup, 'amplitude')
    batch = batch._replace(subpixel_shifts=torch.full_like(batch.subpixel_shifts, 0.5))
    residual = residual_of(setup.canvas[0], setup.probe, batch, experiment)
    steps = position_change(residual, returned_spectra(residual, experiment.phase), setup.probe)

    def exits(subpixel_shifts: Tensor) -> Tensor:
        probes = probes_at(setup.probe, subpixel_shifts, experiment.phase)
        return torch.view_as_real(probes * residual.objects[:, None])

    slopes: Tensor = torch.autograd.functional.jacobian(exits, batch.subpixel_shifts)  # type: ignore[no-untyped-call]
    change = torch.view_as_real(residual.change)
    for index, step in enumerate(steps):
        slope = slopes[index, ..., index, :].flatten(0, -2)  # (values, 2)
        normal = slope.T @ slope
        normal_with_floor = torch.linalg.det(normal) + 1e-3 * normal[0, 0] * normal[1, 1]
        expected = torch.linalg.solve(normal, slope.T @ change[index].flatten()) * torch.linalg.det(normal)
        torch.testing.assert_close(step, expected / normal_with_floor, rtol=1e-8, atol=1e-10)


def test_gradcheck_of_every_refined_quantity() -> None:
    """Object, each probe mode, positions and frame scales through the forward model, in float64."""
    setup = make_setup((6, 7), modes=2, positions=2)
    batch, experiment = experiment_of(setup, 'amplitude')

    def counts(canvas: Tensor, probe: Tensor, subpixel_shifts: Tensor, scales: Tensor) -> Tensor:
        probes = probes_at(probe, subpixel_shifts[None], experiment.phase)
        return simulate(canvas[None], probes, batch.patch_origins[None])[0] * scales[:, None, None]

    scales = torch.tensor([0.8, 1.3], dtype=torch.float64)
    unknowns = [
        tensor.clone().requires_grad_() for tensor in (setup.canvas[0], setup.probe, batch.subpixel_shifts[:2], scales)
    ]
    assert torch.autograd.gradcheck(counts, unknowns)


def test_frame_scales_are_where_the_poisson_likelihood_is_best() -> None:
    """The ratio of measured to expected photons is where the gradient with respect to the scale vanishes."""
    setup = make_setup((8, 9), positions=3)
    batch, experiment = experiment_of(setup, 'poisson')
    residual = residual_of(setup.canvas[0], setup.probe, batch, experiment)
    counts, good = batch.amplitudes.square(), experiment.good_pixels
    ratio = intensity_ratio(batch.amplitudes, residual, good).requires_grad_()
    expected = residual.expected * ratio[:, None, None]
    (gradient,) = torch.autograd.grad((poisson_cost(expected, counts) * good).sum(), ratio)
    scale = (counts * good).sum(dim=(-2, -1))
    torch.testing.assert_close(gradient / scale, torch.zeros(3, dtype=torch.float64), rtol=0, atol=2e-3)


def test_position_steps_find_a_small_displacement() -> None:
    setup = make_setup((32, 32), modes=1, positions=4)
    moved = setup.subpixel_shifts + 0.01 * torch.tensor([[[1.0, -2.0], [0.5, 1.0], [-1.0, 0.0], [0.0, 2.0]]])
    measured = simulate(setup.canvas, probes_at(setup.probe, moved), setup.patch_origins).sqrt()[0]
    experiment = Experiment(
        torch.ones(32, 32, dtype=torch.float64), torch.ones(32, 32, dtype=torch.complex128), 'amplitude'
    )
    subpixel_shifts = setup.subpixel_shifts[0].clone()
    for _ in range(12):
        batch = Batch(measured, setup.patch_origins[0], subpixel_shifts)
        residual = residual_of(setup.canvas[0], setup.probe, batch, experiment)
        subpixel_shifts += position_change(residual, returned_spectra(residual, experiment.phase), setup.probe)
    torch.testing.assert_close(subpixel_shifts, moved[0], atol=2e-4, rtol=0)


def test_every_gradient_agrees_with_differences_of_the_host() -> None:
    """Object, each probe mode and positions: slopes of the amplitude misfit, from Ptychodus' own simulator."""
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

    def host_misfit(changed: Product) -> float:
        return float(((np.sqrt(generate_diffraction_data(changed).get_patterns() * unitary) - amplitudes) ** 2).sum())

    scan = scan_from_reconstruct_input(ReconstructInput(measured, data.get_bad_pixels(), product))
    patch_origins, subpixel_shifts = patch_bounds(scan.positions, shape)
    phase = quadratic_phase(fresnel_numbers_of(product), shape)
    batch = Batch(
        torch.from_numpy(np.fft.ifftshift(amplitudes, axes=(1, 2))),
        torch.from_numpy(patch_origins),
        torch.from_numpy(subpixel_shifts).requires_grad_(),
    )
    experiment = Experiment(torch.ones(shape, dtype=torch.float64), phase, 'amplitude')
    canvas = torch.from_numpy(product.object_.get_layer(0)).requires_grad_()
    probe = torch.from_numpy(product.probes.get_probe_no_opr().get_array()).requires_grad_()
    value = misfit(canvas, probe, batch.subpixel_shifts, batch, experiment)
    assert float(value.detach()) == pytest.approx(host_misfit(product), rel=1e-9)
    gradients = torch.autograd.grad(value, (canvas, probe, batch.subpixel_shifts))

    rng = np.random.default_rng(8)
    step = 1e-6
    dobject = rng.standard_normal(canvas.shape) + 1j * rng.standard_normal(canvas.shape)
    dprobe = rng.standard_normal(probe.shape) + 1j * rng.standard_normal(probe.shape)
    dposition = rng.standard_normal(batch.subpixel_shifts.shape)

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
        slope = (host_misfit(make(1.0)) - host_misfit(make(-1.0))) / (2 * step)
        ours = float((gradient.numpy().conj() * change).real.sum())
        assert ours == pytest.approx(slope, rel=1e-5)
