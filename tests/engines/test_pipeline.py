"""Inference: the object is right, on its own grid, whatever the batches and windows."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.data.scan import make_raw_scan
from ptychopinn_torch_plugin.engines.pipeline import reconstruct, refine
from ptychopinn_torch_plugin.errors import InputError
from ptychopinn_torch_plugin.observer import SilentObserver
from ptychopinn_torch_plugin.storage.model_file import TrainedModel
from tests.helpers.models import untrained_model
from tests.helpers.scans import make_scan, phase_and_scale_free_error


def network_alone(**settings: object) -> Config:
    """Inference settings, and no refinement after the network."""
    return parse_config({'inference': settings, 'refinement': {'refine_epochs': 0}})


@pytest.fixture(scope='module')
def model() -> TrainedModel:
    return untrained_model(parse_config({'model': {'steps': 20, 'width': 8, 'levels': 2}}))


@pytest.mark.parametrize(
    ('shape', 'modes', 'dtype'),
    [((32, 32), 1, 'uint16'), ((33, 37), 1, 'float32'), ((32, 40), 2, 'uint32'), ((31, 32), 1, 'int64')],
    ids=str,
)
def test_the_object_is_found(model: TrainedModel, shape: tuple[int, int], modes: int, dtype: str) -> None:
    scan, truth = make_scan(shape, modes=modes, dtype=dtype, margin=5)
    result = reconstruct(scan, model, network_alone())
    assert result.object_array.shape == truth.shape
    error = phase_and_scale_free_error(result.object_array, truth, inner(result.coverage))
    assert error < 0.06
    flat = np.ones_like(truth)
    assert phase_and_scale_free_error(flat, truth, inner(result.coverage)) > 0.3


def test_outside_of_the_coverage_the_object_is_one(model: TrainedModel) -> None:
    scan, _ = make_scan(margin=20)
    result = reconstruct(scan, model, network_alone())
    assert result.coverage.any()
    assert not result.coverage[:15].any()
    assert (result.object_array[~result.coverage] == 1).all()


def test_bad_pixels_may_hold_anything(model: TrainedModel) -> None:
    mask = np.zeros((32, 32), dtype=bool)
    mask[14:16, 3:20] = True
    scan, truth = make_scan(dtype='float32', bad_pixels=mask)
    scan.counts[:, mask] = np.nan
    result = reconstruct(scan, model, network_alone())
    assert np.isfinite(result.object_array).all()
    error = phase_and_scale_free_error(result.object_array, truth, inner(result.coverage))
    assert error < 0.1


def test_batches_change_nothing(model: TrainedModel) -> None:
    scan, _ = make_scan()
    whole = reconstruct(scan, model, network_alone(batch_size=1000))
    parts = reconstruct(scan, model, network_alone(batch_size=7))
    np.testing.assert_allclose(whole.object_array, parts.object_array, atol=2e-4)


def test_windows_are_stitched_with_one_phase(model: TrainedModel) -> None:
    scan, truth = make_scan(rows=9)
    result = reconstruct(scan, model, network_alone(window_size=25))
    error = phase_and_scale_free_error(result.object_array, truth, inner(result.coverage))
    assert error < 0.12


def test_positions_beyond_the_object_grid_are_cut_off(model: TrainedModel) -> None:
    scan, _ = make_scan(margin=4)
    whole = reconstruct(scan, model, network_alone())
    cut = reconstruct(
        replace(scan, object_guess=scan.object_guess[9:-6, 7:-8], positions=scan.positions - [9, 7]),
        model,
        network_alone(),
    )
    np.testing.assert_allclose(cut.object_array, whole.object_array[9:-6, 7:-8], atol=1e-5)


@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
def test_the_probe_comes_out_in_photons(model: TrainedModel, scale: float) -> None:
    scan, _ = make_scan(photons=3e4)
    result = reconstruct(replace(scan, probe=scan.probe * scale), model, network_alone())
    photons = scan.counts.sum(axis=(1, 2)).mean()
    assert np.sum(np.abs(result.probe) ** 2) == pytest.approx(photons, rel=1e-3)
    modulus = np.abs(result.object_array[inner(result.coverage)]).mean()
    assert 0.8 < modulus < 1.2


def test_more_steps_than_trained_go_on(model: TrainedModel) -> None:
    scan, truth = make_scan()
    errors = [
        phase_and_scale_free_error(r.object_array, truth, inner(r.coverage))
        for r in (reconstruct(scan, model, network_alone(steps=steps)) for steps in (3, 40))
    ]
    assert errors[1] < errors[0]


def test_previews_progress_and_stop(model: TrainedModel) -> None:
    class Listener(SilentObserver):
        def __init__(self) -> None:
            self.progress: list[tuple[int, int]] = []
            self.previews: list[tuple[int, ...]] = []

        def on_progress(self, done: int, goal: int) -> None:
            self.progress.append((done, goal))

        def on_preview(self, object_array: np.ndarray) -> None:
            self.previews.append(object_array.shape)

        def should_stop(self) -> bool:
            return len(self.progress) >= 4

    scan, truth = make_scan()
    listener = Listener()
    result = reconstruct(scan, model, network_alone(steps=20, preview_interval=2), listener)
    goal = listener.progress[0][1]
    assert listener.progress[:4] == [(step, goal) for step in range(1, 5)]
    assert listener.progress[-1][0] < goal
    assert goal > 20, 'the metrics and the verification take time, too'
    assert listener.previews == [truth.shape] * 2
    assert np.isfinite(result.object_array).all()


@pytest.mark.parametrize('wish', ['always', 'auto'])
def test_the_probe_of_the_model_can_be_used(model: TrainedModel, wish: str) -> None:
    scan, truth = make_scan()
    own = untrained_model(model.config, probe=scan.probe.astype(np.complex64))
    blurred = replace(scan, probe=np.fft.ifft2(np.fft.fft2(scan.probe) * 0 + 1))
    with_own = reconstruct(blurred, own, network_alone(use_model_probe=wish))
    error = phase_and_scale_free_error(with_own.object_array, truth, inner(with_own.coverage))
    assert error < 0.06


@pytest.mark.parametrize('wish', ['never', 'auto'])
def test_a_better_probe_of_the_product_is_kept(model: TrainedModel, wish: str) -> None:
    scan, _ = make_scan()
    blurred = np.fft.ifft2(np.fft.fft2(scan.probe) * 0 + 1).astype(np.complex64)
    worse = untrained_model(model.config, probe=blurred)
    kept = reconstruct(scan, worse, network_alone(use_model_probe=wish))
    assert np.array_equal(kept.probe, reconstruct(scan, model, network_alone(use_model_probe='never')).probe)


def test_a_model_probe_of_another_size_is_refused(model: TrainedModel) -> None:
    scan, _ = make_scan((33, 33))
    with pytest.raises(InputError, match='32 x 32 .* 33 x 33'):
        reconstruct(scan, model, network_alone(use_model_probe='always'))
    assert reconstruct(scan, model, network_alone(use_model_probe='auto')).probe.shape[-2:] == (33, 33)


def inner(coverage: np.ndarray) -> np.ndarray:
    """The well illuminated part: the coverage less a border of a third of a pattern."""
    from scipy.ndimage import binary_erosion

    return np.asarray(binary_erosion(coverage, iterations=11, border_value=0))


def test_the_configuration_default_is_whole_scan() -> None:
    assert Config().inference.window_size == 0


def test_searches_are_carried_out_when_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    scan, _ = make_scan()
    spoiled = replace(scan, positions=scan.positions + np.random.default_rng(1).uniform(-2, 2, scan.positions.shape))
    tree = {'refine_epochs': 2, 'refine_positions': False, 'refine_geometry': True, 'search_positions': 2.0}
    with caplog.at_level(logging.INFO):
        result = refine(spoiled, parse_config({'refinement': tree}))
    assert 'Geometry search: positions scaled by' in caplog.text
    assert 'Searched positions up to 4 pixels away' in caplog.text
    assert not np.allclose(result.positions, spoiled.positions, atol=0.5)


def test_searches_skip_empty_patterns() -> None:
    """The product keeps the positions of empty patterns as they were."""
    scan, _ = make_scan()
    counts = np.array(scan.counts)
    counts[[3, 17]] = 0
    spoiled = make_raw_scan(counts, scan.positions, scan.probe, object_shape=scan.object_shape)
    tree = {'refine_epochs': 2, 'refine_positions': False, 'search_positions': 1.0, 'refine_geometry': True}
    result = refine(spoiled, parse_config({'refinement': tree}))
    assert result.positions.shape == scan.positions.shape
    assert np.array_equal(result.positions[[3, 17]], scan.positions[[3, 17]])
    assert not np.array_equal(result.positions, scan.positions)


def test_a_refinement_continues_from_the_object_of_the_product() -> None:
    """It begins where the earlier one ended, whatever the scale of the object; half scans begin flat all the same."""
    flat, truth = make_scan(margin=5)
    settings = {'refinement': {'refine_epochs': 3, 'refine_probe': False, 'start': 'product'}}
    known = replace(flat, object_guess=(0.3 * truth).astype(np.complex64))
    continued, begun = refine(known, parse_config(settings)), refine(flat, parse_config(settings))
    assert continued.losses[0].training < 0.2 * begun.losses[0].training
    error = phase_and_scale_free_error(continued.object_array, truth, inner(continued.coverage))
    assert error < phase_and_scale_free_error(begun.object_array, truth, inner(begun.coverage)) / 3
    halves = [
        refine(scan, parse_config(settings | {'inference': {'half_scans': True, 'verify': False}})).metrics
        for scan in (known, flat)
    ]
    assert halves[0] is not None
    assert halves[1] is not None
    assert halves[0].frc is not None
    assert halves[1].frc is not None
    np.testing.assert_allclose(halves[0].frc.correlation, halves[1].frc.correlation, atol=1e-3)


@pytest.mark.parametrize(('count', 'is_verified'), [(7, False), (8, True)])
def test_eight_patterns_are_enough_to_verify_a_result(
    count: int, caplog: pytest.LogCaptureFixture, *, is_verified: bool
) -> None:
    scan, _ = make_scan(rows=3)
    config = parse_config({'refinement': {'refine_epochs': 2, 'refine_positions': False}})
    with caplog.at_level(logging.INFO):
        metrics = refine(scan.select(np.arange(count)), config).metrics
    assert metrics is not None
    assert (metrics.credibility is not None) == is_verified
    assert (
        f'test scan has {count} patterns, too few to verify the result: 8 are needed.' in caplog.text
    ) != is_verified
