"""The first epochs of the solver against its formulas, one quantity at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ptychopinn_torch_plugin.config import RefinementConfig
from ptychopinn_torch_plugin.data.scan import patch_bounds
from ptychopinn_torch_plugin.data.tensors import ScanTensors, initial_state, patch_origins_of
from ptychopinn_torch_plugin.engines.gradients import GradientAccumulation
from ptychopinn_torch_plugin.engines.optimizers import PositionOptimizer
from ptychopinn_torch_plugin.engines.regularizers import TotalVariation
from ptychopinn_torch_plugin.engines.solver import Solver, final_deviance, likelihood_for
from ptychopinn_torch_plugin.physics.forward import power, simulate
from ptychopinn_torch_plugin.physics.kernels.sums import Gradients, RefinedQuantities
from ptychopinn_torch_plugin.physics.noise_models import total_deviance
from ptychopinn_torch_plugin.physics.preconditioner import low_frequency_filter, precondition_low_frequencies
from ptychopinn_torch_plugin.types import ReconstructionState, Smoothing
from tests.helpers.scans import make_scan

CPU = torch.device('cpu')
OBJECT_ONLY: dict[str, object] = {
    'likelihood': 'amplitude',
    'smoothing': 0.0,
    'refine_probe': False,
    'refine_positions': False,
}
EVERYTHING = RefinedQuantities(probe=True, positions=True, intensities=True)


@pytest.fixture(scope='module')
def tensors() -> ScanTensors:
    mask = np.zeros((32, 33), dtype=bool)
    mask[3, 5:9] = True
    return ScanTensors(make_scan((32, 33), rows=4, modes=2, bad_pixels=mask)[0], CPU, 'torch')


def settings(**changes: object) -> RefinementConfig:
    return RefinementConfig.model_validate(OBJECT_ONLY | changes)


class Recorded:
    """The states of a solver before each epoch and after the last, its deviances, and its gradients by hand."""

    def __init__(self, tensors: ScanTensors, config: RefinementConfig) -> None:
        self.tensors = tensors
        self.start = replace(initial_state(tensors), intensities=torch.linspace(0.5, 1.5, tensors.size))
        self.solver = solver = Solver(tensors, self.start, config, 64)
        self.states = [solver._state]
        self.deviances: list[float] = []

        def listen(epoch: int, deviance: float) -> bool:
            assert epoch == len(self.states)
            self.states.append(solver._state)
            self.deviances.append(deviance)
            return False

        self.final = solver.run(listen)

    def gradients(self, epoch: int, likelihood: str = 'amplitude') -> Gradients:
        accumulation = GradientAccumulation(self.tensors, 2, likelihood, 64, is_fixed=False)
        return accumulation.compute(self.states[epoch], EVERYTHING)


def object_update(gradients: Gradients, state: ReconstructionState) -> torch.Tensor:
    """Return ``1.2 L(U / (W + 0.05 max W))``."""
    photons = gradients.illumination + 0.05 * gradients.illumination.max()
    gain = low_frequency_filter(state.object_shape, CPU)
    return (
        1.2 * precondition_low_frequencies((gradients.object_update / photons)[None], state.object_array[None], gain)[0]
    )


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_the_object_takes_preconditioned_steps_with_momentum(tensors: ScanTensors) -> None:
    run = Recorded(tensors, settings(refine_epochs=3))
    velocity = torch.zeros(())
    for epoch, momentum in enumerate((0.0, 1 / 6, 2 / 7)):
        velocity = momentum * velocity + object_update(run.gradients(epoch), run.states[epoch])
        assert_close(run.states[epoch + 1].object_array - run.states[epoch].object_array, velocity)
        assert run.deviances[epoch] == pytest.approx(float(run.gradients(epoch).deviance), rel=1e-5)
    for name in ('probe', 'positions', 'intensities'):
        assert torch.equal(getattr(run.final, name), getattr(run.start, name))
    assert bool((run.final.object_array[0] == 1).all())


def test_total_variation_follows_the_step_in_the_metric_of_the_photons(tensors: ScanTensors) -> None:
    run = Recorded(tensors, settings(refine_epochs=2, smoothing=3.0))
    assert run.solver.smoothing == Smoothing(photons=3.0)
    first, gradients = run.states[0].object_array, run.gradients(0)
    smooth = TotalVariation(3.0, first)
    photons = (gradients.illumination + 0.05 * gradients.illumination.max()) / 1.2
    after = smooth(first + object_update(gradients, run.states[0]), photons)
    assert_close(run.states[1].object_array, after)
    # The velocity is the step that was taken, not the one that was proposed.
    gradients = run.gradients(1)
    photons = (gradients.illumination + 0.05 * gradients.illumination.max()) / 1.2
    step = 1 / 6 * (after - first) + object_update(gradients, run.states[1])
    assert_close(run.states[2].object_array, smooth(after + step, photons))


def test_probe_positions_and_intensities_take_their_steps_from_their_epoch_on(tensors: ScanTensors) -> None:
    starts: dict[str, object] = {'probe_start': 1, 'positions_start': 2, 'intensity_start': 3}
    switches: dict[str, object] = {'refine_probe': True, 'refine_positions': True, 'refine_intensity': True}
    run = Recorded(tensors, settings(refine_epochs=6, **starts, **switches))
    optimizer = PositionOptimizer(run.start.positions, 4)
    velocity = torch.zeros(())
    for epoch in range(5):
        before, after, gradients = run.states[epoch], run.states[epoch + 1], run.gradients(epoch)
        if epoch >= 1:
            transmittance = gradients.transmittance + 0.05 * gradients.transmittance.max()
            step = torch.fft.ifft2(gradients.probe_spectrum) / transmittance
            velocity = (epoch - 1) / (epoch + 4) * velocity + step
            assert_close(after.probe - before.probe, velocity)
        else:
            assert torch.equal(after.probe, before.probe)
        if epoch >= 2:
            expected = optimizer.step(before.positions, gradients.position_steps)
            torch.testing.assert_close(after.positions, expected, rtol=0, atol=1e-4)
        else:
            assert torch.equal(after.positions, before.positions)
        if epoch >= 3:
            intensities = before.intensities * gradients.intensity_ratios
            assert_close(after.intensities, intensities / intensities.mean())
        else:
            assert torch.equal(after.intensities, before.intensities)
    last = run.states[-1]
    assert float(power(run.final.probe).sum()) == pytest.approx(float(power(run.start.probe).sum()), rel=1e-5)
    assert float(power(last.probe).sum()) != pytest.approx(float(power(run.start.probe).sum()), rel=1e-3)
    waves = run.final.object_array[20, 20] * run.final.probe.abs().square().sum().sqrt()
    assert_close(waves, last.object_array[20, 20] * last.probe.abs().square().sum().sqrt())
    assert abs(complex((run.final.probe[0].conj() * run.final.probe[1]).sum())) < 1e-3 * float(power(last.probe).sum())


def test_momentum_restarts_where_the_deviance_increases(tensors: ScanTensors, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deviance that the solver is given increases by 2e-4 in the third epoch, by 5e-5 in the fourth."""
    compute = GradientAccumulation.compute
    given = iter([4.0, 3.0, 3.0006, 3.00075])

    def with_given_deviance(
        self: GradientAccumulation, state: ReconstructionState, refined: RefinedQuantities
    ) -> Gradients:
        total = compute(self, state, refined)
        total.deviance = torch.tensor(next(given), dtype=torch.float64)
        return total

    with monkeypatch.context() as patch:
        patch.setattr(GradientAccumulation, 'compute', with_given_deviance)
        run = Recorded(tensors, settings(refine_epochs=4, refine_probe=True, probe_start=0))
    velocity, probe_velocity = torch.zeros(()), torch.zeros(())
    for epoch, momentum in enumerate((0.0, 1 / 6, 0.0, 1 / 6)):
        gradients = run.gradients(epoch)
        velocity = momentum * velocity + object_update(gradients, run.states[epoch])
        assert_close(run.states[epoch + 1].object_array - run.states[epoch].object_array, velocity)
        transmittance = gradients.transmittance + 0.05 * gradients.transmittance.max()
        probe_velocity = momentum * probe_velocity + torch.fft.ifft2(gradients.probe_spectrum) / transmittance
        assert_close(run.states[epoch + 1].probe - run.states[epoch].probe, probe_velocity)


def test_the_object_extends_eight_pixels_beyond_every_patch(tensors: ScanTensors) -> None:
    start = initial_state(tensors)
    start = replace(start, object_array=2.0 * start.object_array)
    state = Solver(tensors, start, settings(), 64)._state
    origins = patch_origins_of(start)
    assert state.origin == tuple(origins.min(axis=0) - 8)
    ends = np.array(state.origin) + state.object_shape - origins.max(axis=0) - (32, 33)
    assert (ends >= 8).all()
    assert (ends < 8 + 20).all()
    y, x = np.subtract(start.origin, state.origin)
    h, w = start.object_shape
    assert bool((state.object_array[max(y, 0) : y + h, max(x, 0) : x + w] == 2).all())


def test_positions_stay_inside_the_object_array(tensors: ScanTensors) -> None:
    solver = Solver(tensors, initial_state(tensors), settings(), 64)
    state = solver._state
    far = torch.tensor([[-1e4, 1e4], [1e4, -1e4], [20.25, 21.5]], dtype=state.positions.dtype)
    inside = solver._inside(far)
    assert torch.equal(inside[2], far[2])
    origins, shifts = patch_bounds(inside.numpy(), (32, 33))
    first, last = np.array(state.origin), np.array(state.origin) + state.object_shape - (32, 33)
    assert origins[:2].tolist() == [[first[0], last[1] - 1], [last[0] - 1, first[1]]]
    assert shifts[0] == pytest.approx([0.0, 1 - 1e-3], abs=1e-6)


def test_the_refinement_ends_where_its_listener_says_so(tensors: ScanTensors) -> None:
    calls: list[int] = []

    def listen(epoch: int, _deviance: float) -> bool:
        calls.append(epoch)
        return epoch == 2

    Solver(tensors, initial_state(tensors), settings(refine_epochs=9), 64).run(listen)
    assert calls == [1, 2]
    stops = iter([False, False, True])
    solver = Solver(tensors, initial_state(tensors), settings(refine_epochs=9), 64)
    third = final_deviance(solver, lambda: next(stops))
    run = Recorded(tensors, settings(refine_epochs=3, refine_intensity=True))
    assert third < run.deviances[0]
    assert next(stops, None) is None


@pytest.mark.parametrize(('photons', 'likelihood'), [(19.9, 'poisson'), (20.1, 'amplitude')])
def test_the_likelihood_follows_the_counts_per_measured_pixel(
    tensors: ScanTensors, photons: float, likelihood: str
) -> None:
    probe = torch.ones((2, 32, 33), dtype=torch.complex64)
    probe *= (photons * (32 * 33 - 4) / probe.abs().square().sum()).sqrt()
    assert likelihood_for(tensors, probe) == likelihood
    state = replace(initial_state(tensors), probe=probe)
    assert Solver(tensors, state, settings(likelihood='auto'), 64)._gradients._likelihood == likelihood


@pytest.mark.parametrize('likelihood', ['amplitude', 'poisson'])
def test_the_deviance_is_the_mean_over_the_measured_pixels(tensors: ScanTensors, likelihood: str) -> None:
    run = Recorded(tensors, settings(refine_epochs=1))
    state = run.states[1]
    batch = tensors.batch(state, np.arange(tensors.size))
    expected = simulate(state.object_array[None], batch.probes, batch.patch_origins).expected
    total = total_deviance(expected, batch.amplitudes, batch.good_pixels, likelihood)
    mean = float(total) / (tensors.size * (32 * 33 - 4))
    assert float(run.gradients(1, likelihood).deviance) == pytest.approx(mean, rel=1e-5)
