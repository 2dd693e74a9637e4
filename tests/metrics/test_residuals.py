"""What the engine says without a truth: agrees with the host's simulator, and with the errors it predicts."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ptychodus.api.metrics import compute_reconstruction_residuals
from ptychodus.api.probe import ProbeSequence
from ptychodus.api.reconstruct import ReconstructInput
from ptychodus.api.simulate.diffraction import generate_diffraction_data

from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.data.io.product import product_from_reconstruction, scan_from_reconstruct_input
from ptychopinn_torch_plugin.data.io.workflow_folder import load_workflow_folder
from ptychopinn_torch_plugin.data.tensors import ScanTensors, initial_state
from ptychopinn_torch_plugin.demo.simulate import ScanPlan, simulate_scan
from ptychopinn_torch_plugin.engines.pipeline import reconstruct, refine
from ptychopinn_torch_plugin.engines.uncertainty_calibration import calibration_factor
from ptychopinn_torch_plugin.metrics import aligned, r_factor, window_of
from ptychopinn_torch_plugin.types import Reconstruction
from tests.helpers.models import untrained_model
from tests.helpers.scans import make_scan


def settings(epochs: int, **refinement: object) -> Config:
    return parse_config({'refinement': {'refine_epochs': epochs} | refinement, 'inference': {'threads': 1}})


@pytest.fixture(scope='module', params=[1, 2], ids=['one mode', 'two modes'])
def parameters(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ReconstructInput:
    """A scan with bad pixels, not square."""
    folder = tmp_path_factory.mktemp('scan')
    plan = ScanPlan(rows=6, columns=7, step_px=4.0, pattern_shape=(33, 40), photons=2e5, modes=request.param)
    simulate_scan(folder, plan)
    given = load_workflow_folder(folder)
    bad = np.zeros(plan.pattern_shape, dtype=bool)
    bad[5:8, 20:24] = True
    bad[16, :] = True
    return replace(given, bad_pixels=bad)


@pytest.fixture(scope='module')
def refined(parameters: ReconstructInput) -> Reconstruction:
    """Stopped early: the residual is more than noise."""
    return refine(scan_from_reconstruct_input(parameters), settings(4))


def test_r_factor_is_that_of_the_host_simulator(parameters: ReconstructInput, refined: Reconstruction) -> None:
    product = product_from_reconstruction(parameters, refined)
    assert refined.metrics is not None
    assert refined.metrics.r_factor == pytest.approx(r_factor(replace(parameters, product=product)), abs=1e-3)
    assert refined.metrics.noise_r_factor < 0.9 * refined.metrics.r_factor


def test_maps_are_those_of_the_host(parameters: ReconstructInput, refined: Reconstruction) -> None:
    judgement = refined.metrics
    assert judgement is not None
    product = product_from_reconstruction(parameters, refined)
    detector = generate_diffraction_data(product).get_pixel_geometry()
    pixel = product.object_.get_pixel_geometry()
    unitary = detector.width_m / pixel.width_m * detector.height_m / pixel.height_m
    probes = product.probes
    scaled = probes.get_array() * np.sqrt(unitary) * judgement.scale
    product = replace(product, probes=ProbeSequence(scaled, None, probes.get_pixel_geometry()))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        bad = np.asarray(parameters.bad_pixels, dtype=bool)
        host = compute_reconstruction_residuals(product, parameters.diffraction_patterns, bad)
    assert (np.isnan(judgement.detector_r_map) == np.isnan(host.reciprocal_space_error_map)).all()
    np.testing.assert_allclose(judgement.detector_r_map, host.reciprocal_space_error_map, rtol=2e-3)
    lit = np.isfinite(judgement.object_r_map)
    assert (lit == refined.coverage).all()
    np.testing.assert_allclose(judgement.object_r_map[lit], host.real_space_error_map[lit], rtol=2e-3)


@pytest.mark.parametrize('photons', [1e4, 1e6])
def test_noise_alone_gives_the_r_factor_it_is_said_to(photons: float) -> None:
    scan, _ = make_scan(photons=photons, known_object=True)
    judgement = refine(scan, settings(60, refine_probe=False, refine_positions=False)).metrics
    assert judgement is not None
    assert judgement.r_factor == pytest.approx(judgement.noise_r_factor, rel=0.08)
    assert judgement.reduced_chi_square == pytest.approx(1.0, abs=0.15)
    wrong = refine(replace(scan, positions=scan.positions[::-1].copy()), settings(15, refine_positions=False)).metrics
    assert wrong is not None
    assert wrong.r_factor > 1.2 * wrong.noise_r_factor
    assert wrong.reduced_chi_square > 1.5


@pytest.mark.parametrize(
    ('photons', 'smoothing', 'epochs'),
    [(3e4, 0.0, 80), (1e6, 0.0, 80), (5e3, -1.0, 40), (1e6, -1.0, 25)],
    ids=['noise', 'little noise', 'smoothed', 'few epochs'],
)
def test_uncertainty_is_calibrated(photons: float, smoothing: float, epochs: int, tmp_path: Path) -> None:
    """Actual over predicted error, where noise, total variation or too few epochs cause it."""
    simulate_scan(tmp_path, ScanPlan(rows=9, columns=9, step_px=4.0, pattern_shape=(48, 48), photons=photons, seed=3))
    from ptychodus.api.io import load_product

    truth = load_product(tmp_path / 'truth.h5').object_.get_layers_flattened()
    scan = scan_from_reconstruct_input(load_workflow_folder(tmp_path))
    known = {'refine_probe': False, 'refine_positions': False, 'smoothing': smoothing, 'likelihood': 'poisson'}
    result = refine(scan, settings(epochs, **known))
    judgement = result.metrics
    assert judgement is not None
    window = window_of(judgement.photons_map)
    inside = window > 0.5
    error = (aligned(result.object_array.astype(np.complex128), truth, window) - truth)[inside]
    sigma = judgement.uncertainty_map[inside]
    ratio = float(np.sqrt((np.abs(error) ** 2 / sigma**2).mean()))
    assert 0.8 < ratio < 1.15  # without the calibration .69 for 'smoothed' and 1.24 for 'few epochs'
    scores = np.concatenate([error.real, error.imag]) / np.tile(sigma / np.sqrt(2), 2)
    assert 0.6 < (np.abs(scores) < 1).mean() < 0.82
    assert 0.87 < (np.abs(scores) < 1.96).mean() < 0.99


def test_the_calibration_scales_map_and_number_and_can_be_switched_off() -> None:
    scan, _ = make_scan(photons=3e3)
    config = settings(12)
    inference = config.inference.model_copy(update={'calibrate': False})
    scaled, plain = (
        refine(scan, item).metrics for item in (config, config.model_copy(update={'inference': inference}))
    )
    assert scaled is not None
    assert plain is not None
    factor = scaled.uncertainty / plain.uncertainty
    assert abs(factor - 1) > 0.05
    np.testing.assert_allclose(scaled.uncertainty_map, factor * plain.uncertainty_map, rtol=1e-4)


def test_a_calibration_that_is_stopped_gives_no_factor() -> None:
    scan, _ = make_scan()
    tensors = ScanTensors(scan, torch.device('cpu'))
    config = settings(5).refinement
    state = initial_state(tensors)
    assert calibration_factor(scan, state, config, tensors.device) > 0
    assert np.isnan(calibration_factor(scan, state, config, tensors.device, lambda: True))


def test_a_model_error_widens_the_uncertainty() -> None:
    scan, _ = make_scan(photons=1e6)
    known = settings(40, refine_probe=False, refine_positions=False)
    right = refine(scan, known).metrics
    spoiled = scan.positions + np.random.default_rng(2).uniform(-1, 1, scan.positions.shape)
    wrong = refine(replace(scan, positions=spoiled), known).metrics
    assert right is not None
    assert wrong is not None
    assert wrong.uncertainty > 3 * right.uncertainty


def test_every_map_lies_on_the_grid_and_is_nan_where_no_light_fell() -> None:
    scan, truth = make_scan(margin=12)
    result = refine(scan, settings(5))
    judgement = result.metrics
    assert judgement is not None
    for image in (judgement.object_r_map, judgement.uncertainty_map, judgement.photons_map):
        assert image.shape == truth.shape
        assert image.dtype == np.float32
    assert (np.isnan(judgement.uncertainty_map) == ~result.coverage).all()
    assert (judgement.photons_map[~result.coverage] == 0).all()
    assert judgement.covered_share == pytest.approx(result.coverage.mean())
    assert 1.0 <= judgement.overlap <= scan.size
    assert judgement.photons_map.sum() == pytest.approx(scan.counts.sum(), rel=0.4)


def test_batches_change_nothing() -> None:
    scan, _ = make_scan()
    config = settings(6)
    small = config.model_copy(update={'inference': config.inference.model_copy(update={'batch_size': 7})})
    one, other = refine(scan, config).metrics, refine(scan, small).metrics
    assert one is not None
    assert other is not None
    assert one.r_factor == pytest.approx(other.r_factor, rel=1e-4)
    np.testing.assert_allclose(one.uncertainty_map, other.uncertainty_map, rtol=2e-2)


def test_a_single_pattern_has_an_overlap_of_one() -> None:
    scan, _ = make_scan(rows=1)
    judgement = refine(scan, settings(3)).metrics
    assert judgement is not None
    assert judgement.overlap == pytest.approx(1.0, rel=1e-3)


def test_the_network_is_judged_too() -> None:
    model = untrained_model(parse_config({'model': {'steps': 20, 'width': 8, 'levels': 2}}))
    scan, _ = make_scan()
    config = parse_config({'inference': {'threads': 1}, 'refinement': {'refine_epochs': 0}})
    judgement = reconstruct(scan, model, config).metrics
    assert judgement is not None
    assert 0 < judgement.r_factor < 0.3
