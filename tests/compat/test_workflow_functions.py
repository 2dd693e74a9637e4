"""The workflow functions: what they return, and that what they are told has its effect."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ptychopinn_torch_plugin import workflows
from ptychopinn_torch_plugin.compat import WorkflowConfig, configuration_from
from ptychopinn_torch_plugin.compat.container import GroupedScan, PtychoDataContainerTorch
from ptychopinn_torch_plugin.compat.raw import RawDataTorch
from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.data.io.npz import write_training_npz
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.engines.pipeline import reconstruct
from ptychopinn_torch_plugin.errors import ConfigurationError, InputError, ModelFileError, ModelNotLoadedError
from ptychopinn_torch_plugin.storage.model_file import TrainedModel, load_model
from tests.helpers.scans import phase_and_scale_free_error

from .conftest import QUICK

Known = tuple[RawScan, npt.NDArray[np.complex128]]
Stitched = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], dict[str, Any]]


def changed(**sections: dict[str, Any]) -> Config:
    return parse_config({name: QUICK.get(name, {}) | sections.get(name, {}) for name in QUICK | sections})


def test_without_stitching_there_are_no_images(quick: Config, small_scan: Known) -> None:
    scan, _ = small_scan
    train_container = workflows.ensure_container(scan, quick)
    test_container = workflows.ensure_container(scan, quick)
    amplitude, phase, results = workflows.run_cdi_example_torch(train_container, test_container, quick)
    assert amplitude is None
    assert phase is None
    assert results['train_container'] is train_container
    assert results['test_container'] is test_container
    assert results['backend'] == 'pytorch'
    assert results['model_file'] is None
    assert results['config'] == quick
    assert isinstance(results['models']['diffraction_to_obj'], TrainedModel)
    assert 'obj_tensor_full' not in results


def test_the_history_is_that_of_the_run(stitched: Stitched) -> None:
    results = stitched[2]
    losses = results['models']['diffraction_to_obj'].losses
    assert len(losses) == 2
    assert results['history'] == {
        'train_loss': [record.training for record in losses],
        'val_loss': [record.validation for record in losses],
    }
    assert all(np.isfinite(results['history']['train_loss'] + results['history']['val_loss']))


def test_the_results_of_stitching_have_their_shapes(stitched: Stitched, small_scan: Known) -> None:
    amplitude, phase, results = stitched
    scan, _ = small_scan
    assert results['obj_tensor_full'].shape == (4, 32, 32, 16)
    assert results['obj_tensor_full'].dtype == np.complex64
    assert results['global_offsets'].shape == (4, 1, 2, 1)
    assert np.allclose(results['global_offsets'], results['test_container'].global_offsets)
    assert results['recon_amp'] is amplitude
    assert results['recon_phase'] is phase
    assert amplitude.dtype == phase.dtype == np.float32
    assert amplitude.shape == phase.shape == results['recon_coverage'].shape
    span = np.ceil(np.ptp(scan.positions, axis=0)) + 16
    assert (np.abs(np.subtract(amplitude.shape, span)) <= 1).all()


def test_the_images_show_the_object_of_the_engine(stitched: Stitched, small_scan: Known) -> None:
    amplitude, phase, results = stitched
    engine, (y, x), there = results['reconstruction'], results['recon_origin'], results['recon_coverage']
    region = (slice(y, y + amplitude.shape[0]), slice(x, x + amplitude.shape[1]))
    image = amplitude * np.exp(1j * phase)
    assert np.abs(image - engine.object_array[region])[there].max() < 1e-5
    assert (image[~there] == 1).all()
    assert there.mean() > 0.9
    assert phase_and_scale_free_error(image, small_scan[1][region], there) < 0.25


def test_the_engine_is_the_same_through_its_own_door(stitched: Stitched, quick: Config, small_scan: Known) -> None:
    results = stitched[2]
    again = reconstruct(small_scan[0], results['models']['diffraction_to_obj'], quick)
    assert np.array_equal(again.object_array, results['reconstruction'].object_array)


def test_stitching_without_test_data_is_refused_before_training(
    quick: Config, small_scan: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('ptychopinn_torch_plugin.training.run.train', lambda *_: pytest.fail('trained'))
    with pytest.raises(InputError, match='do_stitching needs data to stitch'):
        workflows.run_cdi_example_torch(small_scan[0], None, quick, do_stitching=True)
    with pytest.raises(InputError, match='There are no data to train on'):
        workflows.train_cdi_model_torch(None, small_scan[0], quick)
    with pytest.raises(InputError, match='There are no data to stitch'):
        workflows.reassemble_cdi_image_torch(None, quick, models={})


# Flips, transposition and the central region


def stitch_again(stitched: Stitched, quick: Config, **how: Any) -> Stitched:  # noqa: ANN401
    results = stitched[2]
    return workflows.reassemble_cdi_image_torch(
        results['test_container'], quick, **({'M': 16} | how), models=results['models']
    )


def test_flips_negate_the_offsets_and_move_whole_patches(stitched: Stitched, quick: Config) -> None:
    plain = stitched[2]
    for name, component in (('flip_x', 0), ('flip_y', 1)):
        amplitude, _, flipped = stitch_again(stitched, quick, **{name: True})
        signs = np.ones((2, 1))
        signs[component] = -1
        assert np.allclose(flipped['global_offsets'], plain['global_offsets'] * signs)
        assert np.array_equal(flipped['obj_tensor_full'], plain['obj_tensor_full'])
        assert amplitude.shape == plain['recon_amp'].shape
        assert not np.allclose(amplitude, plain['recon_amp'], atol=1e-3)
        # The place of the regions is mirrored, as the positions are.
        assert np.array_equal(flipped['recon_coverage'], np.flip(plain['recon_coverage'], axis=1 - component))


def test_transposition_swaps_the_axes_of_the_patches_in_place(stitched: Stitched, quick: Config) -> None:
    plain = stitched[2]
    amplitude, _, swapped = stitch_again(stitched, quick, transpose=True)
    assert np.array_equal(swapped['obj_tensor_full'], np.swapaxes(plain['obj_tensor_full'], 1, 2))
    assert np.array_equal(swapped['global_offsets'], plain['global_offsets'])
    assert np.array_equal(swapped['recon_coverage'], plain['recon_coverage'])
    assert not np.allclose(amplitude, plain['recon_amp'], atol=1e-3)


def test_the_central_region_sets_how_much_is_seen(stitched: Stitched, quick: Config) -> None:
    whole, _, everything = stitch_again(stitched, quick, M=32)
    assert whole.shape == tuple(np.add(stitched[0].shape, 16))
    assert everything['recon_origin'] == tuple(np.subtract(stitched[2]['recon_origin'], 8))
    small = stitch_again(stitched, quick, M=1)[2]['recon_coverage']
    assert small.sum() <= 49


@pytest.mark.parametrize('middle', [0, 33, 2.5, True])
def test_an_impossible_central_region_is_refused(stitched: Stitched, quick: Config, middle: object) -> None:
    with pytest.raises(InputError, match='whole number from 1 to 32'):
        stitch_again(stitched, quick, M=middle)


# What is trained on


def test_the_groups_of_a_container_say_what_is_trained_on(
    quick: Config, small_scan: Known, caplog: pytest.LogCaptureFixture
) -> None:
    raw = RawDataTorch(small_scan[0])
    groups = np.array([[0, 1, 7, 8], [2, 3, 9, 10], [4, 5, 11, 12]])
    container = raw.container(groups)
    with caplog.at_level(logging.INFO):
        results = workflows._train_with_lightning(container, None, quick)
    assert results['config'].data.group_size == 4
    assert 'The groups of the container have 4 positions' in caplog.text
    assert '(12 positions)' in caplog.text


def test_plain_arrays_train_the_same_model_as_the_scan_they_came_from(quick: Config, small_scan: Known) -> None:
    scan, _ = small_scan
    lazy = workflows.ensure_container(scan, quick)
    # Counts of another dtype, but the same numbers.
    plain = PtychoDataContainerTorch(dict(GroupedScan(scan, lazy.nn_indices)), scan.probe)
    models = [
        workflows.train_cdi_model_torch(container, None, quick)['models']['diffraction_to_obj']
        for container in (lazy, plain)
    ]
    for name, weight in models[0].weights.items():
        assert np.array_equal(weight, models[1].weights[name]), name


def test_test_data_judge_the_model_where_the_configuration_says_so(
    quick: Config, small_scan: Known, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stitched: Stitched
) -> None:
    calls: list[tuple[int, bool]] = []

    def train(scans: list[RawScan], config: Config, folder: Path) -> Path:
        calls.append((len(scans), config.data.hold_out_scan))
        return workflows.save_inference_bundle_torch(stitched[2], folder)

    monkeypatch.setattr('ptychopinn_torch_plugin.training.run.train', train)
    scan, _ = small_scan
    for config in (
        quick,
        quick.model_copy(update={'data': quick.data.model_copy(update={'hold_out_scan': True})}),
        configuration_from({}, base=quick),
    ):
        workflows.train_cdi_model_torch(scan, scan, config)
    workflows.train_cdi_model_torch(scan, None, configuration_from({}, base=quick))
    assert calls == [(1, False), (2, True), (2, True), (1, False)]


def test_held_out_test_data_really_judge(small_scan: Known) -> None:
    scan, _ = small_scan
    names = {'gridsize': 4, 'neighbor_count': 20, 'nepochs': 1, 'logger_backend': 'none', 'n_filters_scale': 0.5}
    results = workflows.train_cdi_model_torch(scan, scan, configuration_from(names, base=changed()))
    assert np.isfinite(results['history']['val_loss']).all()
    assert results['config'].data.hold_out_scan


# Files and folders


def test_files_models_and_folders_of_the_configuration_are_used(
    small_scan: Known, quick: Config, tmp_path: Path
) -> None:
    write_training_npz(tmp_path / 'scan.npz', small_scan[0])
    names = {'train_data_file': str(tmp_path / 'scan.npz'), 'N': 32, 'output_dir': str(tmp_path / 'out')}
    trained = workflows.train_cdi_model_torch(None, None, configuration_from(names, base=quick))
    assert trained['model_file'] == tmp_path / 'out' / 'model.safetensors'
    assert load_model(trained['model_file']).header.scans == ('scan.npz',)
    names = {
        'test_data_file': tmp_path / 'scan.npz',
        'model_path': tmp_path / 'out',
        'output_dir': tmp_path / 'stitched',
    }
    amplitude, phase, results = workflows.reassemble_cdi_image_torch(None, configuration_from(names, base=quick), M=16)
    assert (tmp_path / 'stitched' / 'judgement' / 'judgement.json').is_file()
    with np.load(tmp_path / 'stitched' / 'reconstruction.npz') as written:
        assert np.array_equal(written['recon_amp'], amplitude)
        assert np.array_equal(written['recon_phase'], phase)
        assert np.array_equal(written['object'], results['reconstruction'].object_array)


def test_a_bundle_comes_back_as_it_went(stitched: Stitched, quick: Config, tmp_path: Path) -> None:
    path = workflows.save_inference_bundle_torch(stitched[2], tmp_path / 'new')
    assert path == tmp_path / 'new' / 'model.safetensors'
    for place in (tmp_path / 'new', path, str(path)):
        models, config = workflows.load_inference_bundle_torch(place)
        assert config == quick
    workflows.save_inference_bundle_torch(models, tmp_path)
    assert (tmp_path / 'model.safetensors').read_bytes() == path.read_bytes()
    amplitude, _, _ = workflows.reassemble_cdi_image_torch(
        stitched[2]['test_container'], config, M=16, models=models['diffraction_to_obj']
    )
    assert np.array_equal(amplitude, stitched[0])


def test_bundles_of_others_are_refused_by_both_names(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match='There is no model file'):
        workflows.load_inference_bundle_torch(tmp_path)
    (tmp_path / 'wts.h5.zip').write_bytes(b'PK\x03\x04' + bytes(100))
    with pytest.raises(ModelFileError, match=r'wts.h5.zip.*TensorFlow.*"PtychoPINN \(PyTorch\)"'):
        workflows.load_inference_bundle_torch(tmp_path)


def test_no_model_is_refused(quick: Config, small_scan: Known, tmp_path: Path) -> None:
    nothings: list[Any] = [{}, {'models': {}}, {'diffraction_to_obj': 3}, 5]
    for nothing in nothings:
        with pytest.raises(ModelNotLoadedError, match='There is no trained model'):
            workflows.save_inference_bundle_torch(nothing, tmp_path)
    with pytest.raises(ConfigurationError, match='There is no model to stitch with'):
        workflows.reassemble_cdi_image_torch(small_scan[0], quick)


# Containers


def test_every_kind_of_data_becomes_a_container_and_a_container_stays(
    small_scan: Known, quick: Config, tmp_path: Path
) -> None:
    scan, _ = small_scan
    write_training_npz(tmp_path / 'scan.npz', scan)
    grouped = RawDataTorch(scan).generate_grouped_data(32, K=8, gridsize=2, seed=0)
    arrays = {
        'xcoords': scan.positions[:, 1],
        'ycoords': scan.positions[:, 0],
        'diff3d': np.sqrt(scan.counts),
        'probeGuess': scan.probe,
        'objectGuess': scan.object_guess,
    }
    for data in (scan, RawDataTorch(scan), tmp_path / 'scan.npz', str(tmp_path / 'scan.npz'), arrays):
        container = workflows.ensure_container(data, quick)
        assert container.nn_indices.shape == (4, 16)
        assert np.unique(container.nn_indices).size == 49
        assert np.array_equal(container.scan.counts, scan.counts)
        assert workflows._ensure_container(container, quick) is container
    assert workflows.ensure_container(grouped, quick).nn_indices.shape == (49, 4)
    with pytest.raises(InputError, match='Data of type int cannot be used'):
        workflows.ensure_container(3, quick)  # type: ignore[arg-type]


def test_a_workflow_folder_of_the_host_is_read(tmp_path: Path) -> None:
    from ptychopinn_torch_plugin.data.io.workflow_folder import read_workflow_folder
    from ptychopinn_torch_plugin.demo.simulate import ScanPlan, simulate_scan

    simulate_scan(tmp_path, ScanPlan(rows=3, columns=4, pattern_shape=(32, 32)))
    container = workflows.ensure_container(tmp_path)
    assert np.array_equal(container.scan.counts, read_workflow_folder(tmp_path).counts)
    assert container.nn_indices.shape == (1, 12)


def test_names_say_how_raw_data_are_grouped(small_scan: Known) -> None:
    scan, _ = small_scan
    names = {'gridsize': 2, 'neighbor_count': 5, 'n_groups': 10, 'n_subsample': 20, 'subsample_seed': 3}
    container = workflows.ensure_container(scan, names | {'sequential_sampling': True})
    assert container.nn_indices.shape == (10, 4)
    assert container.nn_indices[:, 0].tolist() == list(range(10))
    assert container.scan.size == 20
    assert workflows.ensure_container(scan, {'gridsize': 1}).nn_indices.shape == (49, 1)
    seeds = [workflows.ensure_container(scan, names | {'seed': seed}).nn_indices for seed in (1, 1, 2)]
    assert np.array_equal(seeds[0], seeds[1])
    assert not np.array_equal(seeds[0], seeds[2])


def test_the_pattern_size_is_checked(small_scan: Known) -> None:
    scan, _ = small_scan
    container = workflows.ensure_container(scan, {'N': 32})
    for data in (scan, container, PtychoDataContainerTorch(dict(GroupedScan(scan, np.array([[0]]))), scan.probe)):
        with pytest.raises(InputError, match='N is 64 but the patterns have 32 x 32 pixels'):
            workflows.ensure_container(data, {'N': 64})


def test_the_photons_of_normalised_amplitudes_come_from_the_names(small_scan: Known) -> None:
    scan, _ = small_scan
    arrays = {
        'xcoords': scan.positions[:, 1],
        'ycoords': scan.positions[:, 0],
        'diff3d': 0.037 * np.sqrt(scan.counts + 0.1),
        'probeGuess': scan.probe,
        'objectGuess': scan.object_guess,
    }
    container = workflows.ensure_container(arrays, {'nphotons': 1e6, 'dialect': 'amplitude'})
    assert np.isclose(container.scan.counts.sum() / scan.size, 1e6)
    with pytest.raises(InputError, match='does not tell'):
        workflows.ensure_container(arrays, WorkflowConfig(nphotons=1e6))


# The probe


@pytest.mark.parametrize('section', [{'mask_radius': 9.0}, {'smoothing_sigma': 1.0}])
def test_the_probe_is_made_ready_in_training_and_reconstruction(
    section: dict[str, Any], small_scan: Known, stitched: Stitched
) -> None:
    from ptychopinn_torch_plugin.data.probe_preparation import prepared

    scan, _ = small_scan
    config = changed(probe=section, training=QUICK['training'] | {'epochs': 1})
    expected = prepared(scan, config.probe).probe
    model = workflows.train_cdi_model_torch(scan, None, config)['models']['diffraction_to_obj']
    answer = reconstruct(scan, stitched[2]['models']['diffraction_to_obj'], config)
    for probe in (model.probe, answer.probe):
        assert np.allclose(probe / np.linalg.norm(probe), expected / np.linalg.norm(expected), atol=1e-6)


def test_the_scale_of_the_probe_is_fitted_or_taken_as_given(small_scan: Known) -> None:
    import torch

    from ptychopinn_torch_plugin.data.tensors import ScanTensors

    scan, _ = small_scan
    cpu = torch.device('cpu')
    fitted = ScanTensors(scan, cpu).probe
    photons = scan.counts.sum() / scan.size
    assert np.isclose(float(fitted.abs().square().sum()), photons, rtol=0.05)
    # PtychoPINN's probe_scale divides the probe by a number: a fitted probe does not know it.
    assert torch.allclose(ScanTensors(replace(scan, probe=scan.probe / 4.0), cpu).probe, fitted, rtol=1e-4)
    given = ScanTensors(scan, cpu, scale=2.0).probe.numpy()
    assert np.allclose(given, 2.0 * scan.probe, rtol=1e-4, atol=1e-5)


def test_a_given_scale_reaches_training_and_reconstruction(small_scan: Known, stitched: Stitched) -> None:
    scan, _ = small_scan
    config = changed(probe={'scale': 20.0}, training=QUICK['training'] | {'epochs': 1})
    model = workflows.train_cdi_model_torch(scan, None, config)['models']['diffraction_to_obj']
    answer = reconstruct(scan, stitched[2]['models']['diffraction_to_obj'], config)
    for probe in (model.probe, answer.probe):
        assert np.allclose(probe, 20.0 * scan.probe, rtol=1e-3, atol=1e-3)


# Subsamples


def test_a_subsample_is_trained_on(small_scan: Known, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        workflows.train_cdi_model_torch(small_scan[0], None, changed(data={'subsample': 20}))
    assert '(20 positions)' in caplog.text
