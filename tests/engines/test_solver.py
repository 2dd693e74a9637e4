"""The solver: it recovers what it refines, and does not change what is right."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from ptychopinn_torch_plugin.config import Config, KernelChoice, RefinementConfig, parse_config
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.data.tensors import ScanTensors, initial_state
from ptychopinn_torch_plugin.engines.gradients import GradientAccumulation
from ptychopinn_torch_plugin.engines.optimizers import PositionOptimizer
from ptychopinn_torch_plugin.engines.pipeline import reconstruct, refine
from ptychopinn_torch_plugin.engines.solver import Solver, likelihood_for
from ptychopinn_torch_plugin.observer import APPLYING_NETWORK, METRICS, REFINING, VERIFYING, SilentObserver
from ptychopinn_torch_plugin.physics.forward import power, simulate
from ptychopinn_torch_plugin.physics.kernels.sums import RefinedQuantities
from ptychopinn_torch_plugin.physics.probe_modes import add_modes, orthogonalise
from ptychopinn_torch_plugin.types import Reconstruction
from tests.engines.test_pipeline import inner
from tests.helpers.models import untrained_model
from tests.helpers.scans import curved_probe, make_scan, phase_and_scale_free_error, without_ramp


def settings(**refinement: object) -> Config:
    return parse_config({'refinement': refinement, 'inference': {'threads': 1, 'accelerator': 'cpu'}})


def error_of(scan: RawScan, truth: np.ndarray, config: Config) -> float:
    return ramp_free_error(refine(scan, config), truth)


def ramp_free_error(result: Reconstruction, truth: np.ndarray) -> float:
    covered = inner(result.coverage)
    return phase_and_scale_free_error(without_ramp(result.object_array, truth, covered), truth, covered)


@pytest.mark.parametrize(('shape', 'modes'), [((32, 32), 1), ((33, 38), 2)], ids=str)
@pytest.mark.parametrize('likelihood', ['amplitude', 'poisson'])
def test_a_scan_with_the_right_probe(shape: tuple[int, int], modes: int, likelihood: str) -> None:
    scan, truth = make_scan(shape, modes=modes)
    assert error_of(scan, truth, settings(refine_epochs=40, likelihood=likelihood, refine_positions=False)) < 0.06


def test_a_wrong_probe_is_mended() -> None:
    scan, truth = make_scan(rows=9)
    wrong = replace(scan, probe=scan.probe * np.exp(0.6j * radius_squared((32, 32))))
    left = error_of(wrong, truth, settings(refine_epochs=60, refine_probe=False, refine_positions=False))
    mended = error_of(wrong, truth, settings(refine_epochs=60, refine_positions=False))
    assert left > 0.2
    assert mended < 0.4 * left


def radius_squared(shape: tuple[int, int]) -> np.ndarray:
    """Squared distance from the middle of the beam of :func:`curved_probe`, in units of its width."""
    y, x = np.arange(shape[0]) - 0.47 * shape[0], np.arange(shape[1]) - 0.52 * shape[1]
    return np.asarray((y[:, None] ** 2 + x**2) / (0.2 * shape[0]) ** 2)


def test_wrong_positions_are_mended_and_reported() -> None:
    scan, truth = make_scan(rows=9, photons=1e6)
    errors = np.random.default_rng(5).uniform(-0.8, 0.8, scan.positions.shape)
    wrong = replace(scan, positions=scan.positions + errors)
    left = error_of(wrong, truth, settings(refine_epochs=80, refine_positions=False, refine_probe=False))
    result = refine(wrong, settings(refine_epochs=80, refine_probe=False))
    # The refined positions differ from the true ones by an affine map only, which the patterns hardly hold.
    remaining = result.positions - scan.positions
    affine = np.c_[np.ones(scan.size), scan.positions]
    remaining -= affine @ np.linalg.lstsq(affine, remaining, rcond=None)[0]
    assert np.abs(errors).mean() > 0.35
    assert np.abs(remaining).mean() < 0.1
    assert ramp_free_error(result, truth) < 0.6 * left


def test_right_positions_and_probe_are_left_where_they_are() -> None:
    scan, truth = make_scan(rows=9)
    result = refine(scan, settings(refine_epochs=50))
    assert np.abs(result.positions - scan.positions).mean() < 0.1
    probe = scan.probe[0] / np.linalg.norm(scan.probe[0])
    found = result.probe[0] / np.linalg.norm(result.probe[0])
    assert abs(np.vdot(probe, found)) > 0.99
    assert ramp_free_error(result, truth) < 0.06


def test_a_second_mode_is_found() -> None:
    scan, _ = make_scan(rows=9, modes=2, photons=1e6)
    true = scan.probe / np.linalg.norm(scan.probe)
    result = refine(
        replace(scan, probe=scan.probe[:1]), settings(refine_epochs=120, probe_modes=2, refine_positions=False)
    )
    found = result.probe / np.linalg.norm(result.probe)
    assert result.probe.shape == (2, 32, 32)
    overlap = np.linalg.norm(np.einsum('mhw,nhw->mn', true.conj(), found)) / np.linalg.norm(
        np.einsum('mhw,nhw->mn', true.conj(), true)
    )
    assert overlap > 0.95
    assert abs(np.vdot(result.probe[0], result.probe[1])) < 1e-3 * np.linalg.norm(result.probe) ** 2


def test_flickering_intensities_are_found() -> None:
    _, truth = make_scan(rows=9)
    dim, _ = flickering_scan()
    all_epochs: dict[str, object] = {'refine_epochs': 80, 'stop_when_done': False, 'refine_positions': False}
    plain = error_of(dim, truth, settings(**all_epochs))
    fitted = error_of(dim, truth, settings(**all_epochs, refine_intensity=True))
    assert fitted < 0.5 * plain


def flickering_scan(photons: float = 1e5) -> tuple[RawScan, np.ndarray]:
    """A scan whose beam intensity changes from pattern to pattern, and these intensities relative to their mean."""
    scan, _ = make_scan(rows=9, photons=photons)
    rng = np.random.default_rng(3)
    flicker = rng.uniform(0.6, 1.4, scan.size)
    counts = rng.poisson(np.asarray(scan.counts, dtype=float) * flicker[:, None, None])
    return replace(scan, counts=counts), flicker / flicker.mean()


@pytest.mark.parametrize('likelihood', ['amplitude', 'poisson'])
def test_refined_intensities_reach_the_metrics_and_the_result(likelihood: str) -> None:
    """The metrics simulate with the intensities of the solver: both see photon noise, not the flicker."""
    scan, flicker = flickering_scan()
    fixed: dict[str, object] = {'refine_probe': False, 'refine_positions': False, 'likelihood': likelihood}
    result = refine(scan, settings(refine_epochs=60, refine_intensity=True, **fixed))
    assert np.corrcoef(result.intensities, flicker)[0, 1] > 0.985
    assert result.intensities.mean() == pytest.approx(1.0, abs=1e-4)
    assert result.metrics is not None
    assert result.metrics.reduced_chi_square < 2
    plain = refine(scan, settings(refine_epochs=60, **fixed)).metrics
    assert plain is not None
    assert plain.reduced_chi_square > 5 * result.metrics.reduced_chi_square


def test_the_poisson_deviance_with_intensities_decreases_without_restarts() -> None:
    """The deviance of the epochs is that of the measured counts, so momentum restarts only where it increases."""
    scan, _ = flickering_scan(1e4)
    config = settings(refine_epochs=40, refine_intensity=True, refine_positions=False, likelihood='poisson')
    deviances = [record.training for record in refine(scan, config).losses]
    assert sum(later > earlier * (1 + 1e-4) for earlier, later in pairwise(deviances)) <= 3
    assert deviances[-1] == pytest.approx(min(deviances), rel=1e-3)
    assert deviances[-1] > 0


def test_the_photons_are_returned_to_the_probe_without_changing_the_patterns() -> None:
    """The scale between probe and object is free; what the refined probe gives back, the object takes."""
    tensors = ScanTensors(make_scan()[0], torch.device('cpu'))
    start = initial_state(tensors)
    start = replace(start, probe=start.probe * 0.8)
    everything = np.arange(tensors.size)
    config = RefinementConfig(refine_epochs=15, probe_start=0, refine_positions=False)
    refined = Solver(tensors, start, config, tensors.size).run(lambda epoch, deviance: False)
    assert float(power(refined.probe).sum()) == pytest.approx(float(power(start.probe).sum()), rel=1e-4)
    batch = tensors.batch(refined, everything)
    expected = simulate(refined.object_array[None], batch.probes, batch.patch_origins).expected.sum()
    assert float(expected) == pytest.approx(float(batch.amplitudes.square().sum()), rel=0.02)


def test_bright_patterns_count_more_than_dim_ones() -> None:
    """The gradient weights a pattern by its intensity: data divided by intensities would weight all alike."""
    scan, flicker = flickering_scan()
    tensors = ScanTensors(scan, torch.device('cpu'))
    state = replace(initial_state(tensors), intensities=torch.from_numpy(flicker).float())
    refined = RefinedQuantities(probe=True, positions=False, intensities=True)
    gradients = GradientAccumulation(tensors, 1, 'amplitude', 64, is_fixed=False).compute(state, refined)
    # A transparent object: the sum over patterns of s_j |O_j|^2 is the sum of the intensities.
    torch.testing.assert_close(gradients.transmittance.mean(), torch.tensor(float(flicker.sum())), rtol=1e-4, atol=0)
    photons = float(state.probe.abs().square().sum()) * flicker.sum()
    assert float(gradients.illumination.sum()) == pytest.approx(photons, rel=1e-4)


def test_bad_pixels_and_batches_and_photons() -> None:
    mask = np.zeros((32, 32), dtype=bool)
    mask[14:16, 3:20] = True
    scan, truth = make_scan(dtype='float32', bad_pixels=mask)
    scan.counts[:, mask] = np.nan
    config = settings(refine_epochs=40, refine_positions=False, stop_when_done=False)
    whole = refine(scan, config)
    parts = refine(scan, config.model_copy(update={'inference': config.inference.model_copy(update={'batch_size': 7})}))
    np.testing.assert_allclose(whole.object_array, parts.object_array, atol=5e-3)
    assert ramp_free_error(whole, truth) < 0.15
    assert [record.epoch for record in whole.losses] == list(range(1, 41))
    assert whole.losses[-1].training < 0.2 * whole.losses[0].training


def test_the_deviance_does_not_diverge() -> None:
    """Without the restarts, momentum and the low-frequency preconditioner are unstable over hundreds of epochs."""
    scan, _ = make_scan(rows=9)
    config = settings(refine_epochs=300, stop_when_done=False, refine_probe=False)
    losses = [record.training for record in refine(scan, config).losses]
    assert len(losses) == 300
    assert losses[-1] < 1.01 * min(losses)


def test_refinement_goes_on_from_the_network() -> None:
    scan, truth = make_scan()
    model = untrained_model(parse_config({'model': {'steps': 3, 'width': 4, 'levels': 1}}))

    class Listener(SilentObserver):
        def __init__(self) -> None:
            self.progress: list[tuple[int, int]] = []
            self.stages: list[tuple[str, int]] = []

        def on_stage(self, stage: str) -> None:
            self.stages.append((stage, len(self.progress)))

        def on_progress(self, done: int, goal: int) -> None:
            self.progress.append((done, goal))

    listener = Listener()
    alone = reconstruct(scan, model, settings(refine_epochs=0))
    both = reconstruct(scan, model, settings(refine_epochs=15), listener)
    errors = [ramp_free_error(result, truth) for result in (alone, both)]
    assert errors[1] < 0.8 * errors[0]
    assert listener.stages == [(APPLYING_NETWORK, 0), (REFINING, 6), (METRICS, 21), (VERIFYING, 22)]
    done = [done for done, _ in listener.progress]
    assert done == sorted(done)
    assert len(set(done[:22])) == 22, 'every step of network and refinement counts, and so do the metrics'
    assert {goal for _, goal in listener.progress} == {done[-1]}
    assert done[21] < 0.8 * done[-1], 'the verification has its share'
    assert both.losses == model.losses


def test_added_modes_are_weak_and_orthogonal() -> None:
    probe = torch.from_numpy(curved_probe((32, 36)))
    grown = add_modes(probe, 4)
    gram = torch.einsum('mhw,nhw->mn', grown.conj(), grown)
    power = gram.diagonal().real
    assert float(power.sum()) == pytest.approx(1.0)
    torch.testing.assert_close(power[1:], torch.full((3,), 0.05, dtype=torch.float64))
    assert add_modes(probe, 1) is probe


def test_orthogonal_modes_are_the_same_mixed_state() -> None:
    modes = torch.randn(3, 8, 9, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    mixed = orthogonalise(modes)
    torch.testing.assert_close(
        torch.einsum('mhw,mij->hwij', mixed, mixed.conj()), torch.einsum('mhw,mij->hwij', modes, modes.conj())
    )
    gram = torch.einsum('mhw,nhw->mn', mixed.conj(), mixed)
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()))
    assert gram.diagonal().real.diff().max() <= 0


def test_positions_do_not_drift_together() -> None:
    given = torch.rand(50, 2) * 100
    optimizer = PositionOptimizer(given, 20)
    positions = given
    for _ in range(20):
        positions = optimizer.step(positions, torch.tensor([1.0, 0.5]) + 0.01 * (given - 50) + 0.2 * torch.randn(50, 2))
    displacement = positions - given
    affine = torch.cat([torch.ones(50, 1), given], dim=1)
    assert float((affine.T @ displacement).abs().max()) < 1e-2
    assert 0.01 < float(displacement.abs().mean()) < 3.0


def test_smoothing_and_likelihood_follow_the_dose(caplog: pytest.LogCaptureFixture) -> None:
    scan, truth = make_scan(rows=9, photons=3e3)
    # Every refinement takes the same number of epochs, so that only the smoothing differs.
    known: dict[str, object] = {'refine_epochs': 50, 'refine_probe': False, 'refine_positions': False}
    known['stop_when_done'] = False
    bare = error_of(scan, truth, settings(smoothing=0.0, **known))
    # A texture of two pixels is the worst case for total variation.
    assert error_of(scan, truth, settings(smoothing=0.5, **known)) < 0.98 * bare
    with caplog.at_level('DEBUG'):
        tensors = ScanTensors(scan, torch.device('cpu'))
        solver = Solver(tensors, initial_state(tensors), settings(refine_epochs=1).refinement, scan.size)
        solver.run(lambda _epoch, _deviance: False)
    assert solver.smoothing.cosine_share > 0
    assert f'Smoothing: {solver.smoothing}, from' in caplog.text
    by_hand = settings(smoothing=solver.smoothing.photons, **known)
    assert error_of(scan, truth, settings(**known)) < 0.98 * error_of(scan, truth, by_hand)
    bright, truth = make_scan(rows=9, photons=1e5)
    bare = error_of(bright, truth, settings(smoothing=0.0, **known))
    assert error_of(bright, truth, settings(**known)) < 1.1 * bare
    for photons, likelihood in ((3e3, 'poisson'), (3e6, 'amplitude')):
        tensors = ScanTensors(make_scan(photons=photons)[0], torch.device('cpu'))
        assert likelihood_for(tensors, initial_state(tensors).probe) == likelihood


@pytest.mark.parametrize('kernels', ['numba', 'torch'])
@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_threads_share_the_patterns_and_change_nothing(mode: type, kernels: KernelChoice) -> None:
    """As training calls it, and as reconstruction does; small batches, so that both threads have some."""
    tensors = ScanTensors(make_scan()[0], torch.device('cpu'), kernels)
    tensors.kernels = tensors.kernels._replace(batch_bytes=2**15)
    config = RefinementConfig(refine_epochs=4, positions_start=1, refine_intensity=True, intensity_start=1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with mode():
                solver = Solver(tensors, initial_state(tensors), config, 64)
                found.append(solver.run(lambda _epoch, _deviance: False))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    for name in ('object_array', 'probe', 'positions', 'intensities'):
        one, two = (getattr(state, name).clone() for state in found)
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-3 * float(one.abs().max()))
