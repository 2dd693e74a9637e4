"""The workflow functions: their results, and the effect of data, settings and replaced functions."""

from __future__ import annotations

import importlib
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


def test_the_engine_alone_gives_the_same_object(stitched: Stitched, quick: Config, small_scan: Known) -> None:
    results = stitched[2]
    again = reconstruct(small_scan[0], results['models']['diffraction_to_obj'], quick)
    assert np.array_equal(again.object_array, results['reconstruction'].object_array)


def test_without_test_data_nothing_is_stitched(
    quick: Config, small_scan: Known, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflows, '_train_with_lightning', lambda *_: {'models': {}})
    amplitude, phase, results = workflows.run_cdi_example_torch(small_scan[0], None, quick, do_stitching=True)
    assert (amplitude, phase) == (None, None)
    assert 'do_stitching = True, but there are no test data: nothing is stitched' in caplog.text
    assert results['test_container'] is None
    assert results['train_container'].scan is small_scan[0]


def test_no_data_are_refused(quick: Config, small_scan: Known) -> None:
    with pytest.raises(InputError, match='There are no data to train on'):
        workflows.train_cdi_model_torch(None, small_scan[0], quick)
    with pytest.raises(InputError, match='There are no data to stitch'):
        workflows.reassemble_cdi_image_torch(None, quick, models={})


# The object of the network and the refined one


def test_the_images_can_be_those_of_the_network(stitched: Stitched, quick: Config) -> None:
    plain = stitched[2]
    assert plain['refined_object'] is None
    assert np.array_equal(plain['network_object'], plain['reconstruction'].network_object)
    assert np.array_equal(plain['network_amp'], plain['recon_amp'])
    amplitude, _, both = workflows.reassemble_cdi_image_torch(
        plain['test_container'], quick, M=16, train_results=plain, execution_config={'refine_epochs': 3}
    )
    assert np.array_equal(both['network_object'], plain['network_object'])
    assert np.array_equal(both['network_amp'], plain['network_amp'])
    assert np.array_equal(both['network_phase'], plain['network_phase'])
    assert np.array_equal(both['refined_object'], both['reconstruction'].object_array)
    assert np.abs(both['refined_object'] - both['network_object']).max() > 1e-3
    assert np.abs(amplitude - plain['recon_amp']).max() > 1e-3


def test_the_solver_of_the_probe_is_named_and_can_be_switched_off(
    small_scan: Known, stitched: Stitched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        'ptychopinn_torch_plugin.training.run.train',
        lambda _, __, folder: workflows.save_torch_bundle(stitched[2], folder),
    )
    with caplog.at_level(logging.INFO):
        workflows.train_cdi_model_torch(small_scan[0], None, {'probe_trainable': False})
        assert 'solver' not in caplog.text
        workflows.train_cdi_model_torch(small_scan[0], None, {})
    assert 'the solver runs 40 epochs before the first training epoch and 10 before every other one' in caplog.text
    assert 'probe_trainable=False switches them off' in caplog.text


# Functions that are replaced


@pytest.mark.parametrize('place', ['ptychopinn_torch_plugin.workflows', 'ptychopinn_torch_plugin.workflows.components'])
def test_functions_can_be_replaced(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {'nepochs': 3}  # by its identity
    calls: list[str] = []

    def container_of(data: object, given: object) -> str:
        assert given is config
        calls.append(f'container of {data}')
        return f'container of {data}'

    def train(train_container: object, test_container: object, given: object) -> dict[str, object]:
        assert given is config
        calls.append(f'train {train_container}, {test_container}')
        return {'history': 'mine'}

    monkeypatch.setattr(f'{place}._ensure_container', container_of)
    monkeypatch.setattr(f'{place}._train_with_lightning', train)
    module = importlib.import_module(place)
    _, _, results = module.run_cdi_example_torch('a', 'b', config)
    assert calls == ['container of a', 'container of b', 'train container of a, container of b']
    assert results['history'] == 'mine'
    assert results['train_container'] == 'container of a'

    def train_and_return(train_data: object, test_data: object, given: object, execution_config: object) -> object:
        assert given is config
        assert execution_config == {'learning_rate': 0.1}
        return {'models': (train_data, test_data)}

    def reassemble(data: object, given: object, *how: object, **more: object) -> tuple[str, str, dict[str, object]]:
        assert given is config
        return 'amplitude', 'phase', {'data': data, 'how': how, 'more': more}

    monkeypatch.setattr(f'{place}.train_cdi_model_torch', train_and_return)
    monkeypatch.setattr(f'{place}._reassemble_cdi_image_torch', reassemble)
    options = {'do_stitching': True, 'flip_y': True, 'M': 7, 'execution_config': {'learning_rate': 0.1}}
    amplitude, phase, results = module.run_cdi_example_torch('a', 'b', config, **options)
    assert (amplitude, phase, results['models'], results['data']) == ('amplitude', 'phase', ('a', 'b'), 'b')
    assert results['how'] == (False, True, False, 7)
    assert results['more']['train_results'] == {'models': ('a', 'b')}


def test_execution_settings_are_further_names(small_scan: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[WorkflowConfig] = []

    def train(_: object, __: object, settings: WorkflowConfig) -> dict[str, object]:
        seen.append(settings)
        return {}

    monkeypatch.setattr(workflows, 'train_containers', train)
    execution = {'learning_rate': 0.01, 'logger_backend': None}
    workflows.train_cdi_model_torch(small_scan[0], None, {'nepochs': 3}, execution)
    workflows._train_with_lightning(workflows.ensure_container(small_scan[0]), None, Config(), execution)
    for settings, epochs in zip(seen, (3, Config().training.epochs), strict=True):
        training = settings.config.training
        assert (training.epochs, training.learning_rate, settings.config.execution.logger) == (epochs, 0.01, 'none')


def test_a_default_configuration_trains_and_stitches(small_scan: Known, tmp_path: Path) -> None:
    from .test_names import DEFAULTS

    scan = small_scan[0].select(np.arange(12))
    config = DEFAULTS | {'model': DEFAULTS['model'] | {'N': 32}, 'nepochs': 1, 'output_dir': tmp_path}
    execution = {'accelerator': 'cpu', 'precision': '32-true', 'logger_backend': None, 'refine_epochs': 2}
    for model_type in ('pinn', 'supervised'):
        names = config | {'model': config['model'] | {'model_type': model_type}}
        amplitude, _, results = workflows.components.run_cdi_example_torch(
            scan, scan, names, do_stitching=True, execution_config=execution
        )
        assert np.ptp(amplitude) > 0.05
        assert (results['config'].model.model_type, results['config'].model.generator) == (model_type, 'patch')
        assert not (tmp_path / 'training_log').exists()


# The probe that is given


def test_the_given_probe_is_trained_with_saved_and_used(
    small_scan: Known, stitched: Stitched, caplog: pytest.LogCaptureFixture
) -> None:
    scan, _ = small_scan
    other = np.conj(scan.probe[0]).T.copy()
    config = changed(training=QUICK['training'] | {'epochs': 1}, refinement={'refine_epochs': 0})
    for container in (
        PtychoDataContainerTorch(RawDataTorch.from_scan(scan).generate_grouped_data(32, 8, 12, 2, 0), other),
        PtychoDataContainerTorch(dict(GroupedScan(scan, np.arange(48).reshape(12, 4))), scan.probe),
    ):
        container.probe = other
        model = workflows.train_cdi_model_torch(container, None, config)['models']['diffraction_to_obj']
        assert correlation(model.probe[0], other) > 0.999
        with caplog.at_level(logging.INFO):
            _, _, results = workflows.reassemble_cdi_image_torch(container, config, models=stitched[2], M=16)
        assert correlation(results['reconstruction'].probe[0], other) > 0.999
        assert 'The probe that was given to the container is used' in caplog.text
    assert correlation(scan.probe[0], other) < 0.9


def correlation(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    return float(np.abs(np.vdot(one, other)) / np.linalg.norm(one) / np.linalg.norm(other))


def test_a_supervised_model_learns_from_patches_alone(small_scan: Known) -> None:
    scan, _ = small_scan
    all_positions = np.arange(scan.size)[:, np.newaxis]
    patches = np.asarray(GroupedScan(scan, all_positions)['Y'])
    arrays = {'xcoords': scan.positions[:, 1], 'ycoords': scan.positions[:, 0], 'diff3d': scan.counts}
    arrays |= {'probeGuess': scan.probe, 'Y': patches}
    config = changed(model=QUICK['model'] | {'model_type': 'supervised'}, training=QUICK['training'] | {'epochs': 1})
    results = workflows.train_cdi_model_torch(arrays, None, config)
    assert np.isfinite(results['history']['train_loss']).all()
    del arrays['Y']
    with pytest.raises(InputError, match='flat'):
        workflows.train_cdi_model_torch(arrays, None, config)


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
    raw = RawDataTorch.from_scan(small_scan[0])
    groups = np.array([[0, 1, 7, 8], [2, 3, 9, 10], [4, 5, 11, 12]])
    container = raw.container(groups)
    with caplog.at_level(logging.INFO):
        results = workflows._train_with_lightning(container, None, quick)
    assert results['config'].data.group_size == 4
    assert 'The groups of the container have 4 positions' in caplog.text
    assert '(12 patterns)' in caplog.text


def test_several_scans_train_one_model(quick: Config, small_scan: Known) -> None:
    raw = RawDataTorch.from_scan(small_scan[0])
    parts = [raw.select(np.arange(49) < 25), raw.select(np.arange(25, 49))]
    assert [part.scan.size for part in parts] == [25, 24]
    results = workflows.train_cdi_model_torch(parts, None, quick)
    assert len(results['train_container']) == 2
    assert len(results['models']['diffraction_to_obj'].header.scans) == 2
    with pytest.raises(InputError, match='have 4 and 9 positions: give containers with groups of one size'):
        workflows._train_with_lightning(
            [workflows.ensure_container(part, {'gridsize': side}) for part, side in zip(parts, (2, 3), strict=True)],
            None,
            quick,
        )
    for wrong in ([], [49], [0.5], np.zeros(49, dtype=bool)):
        with pytest.raises(
            InputError, match='indices must choose at least one position, by whole numbers from 0 to 48'
        ):
            raw.select(wrong)


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


def test_test_data_validate_the_model_where_the_configuration_says_so(
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


def test_held_out_test_data_give_a_validation_loss(small_scan: Known) -> None:
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
    for given in (None, quick):
        assert workflows.save_torch_bundle(stitched[2], tmp_path, given).read_bytes() == path.read_bytes()
    with pytest.raises(ConfigurationError, match='config describes another network or group size'):
        workflows.save_torch_bundle(stitched[2], tmp_path, {'gridsize': 3})
    assert workflows.load_inference_bundle_torch(path, model_name='diffraction_to_obj')[1] == quick
    with pytest.raises(ModelNotLoadedError, match="There is no model 'autoencoder' in a bundle"):
        workflows.load_inference_bundle_torch(path, model_name='autoencoder')
    amplitude, _, _ = workflows._reassemble_cdi_image_torch(
        stitched[2]['test_container'], config, M=16, train_results={'models': models}
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
    grouped = RawDataTorch.from_scan(scan).generate_grouped_data(32, K=8, gridsize=2, seed=0)
    arrays = {
        'xcoords': scan.positions[:, 1],
        'ycoords': scan.positions[:, 0],
        'diff3d': np.sqrt(scan.counts),
        'probeGuess': scan.probe,
        'objectGuess': scan.object_guess,
    }
    for data in (scan, RawDataTorch.from_scan(scan), tmp_path / 'scan.npz', str(tmp_path / 'scan.npz'), arrays):
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
    container = workflows.ensure_container(arrays, {'nphotons': 1e6, 'diffraction_quantity': 'amplitude'})
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

    from ptychopinn_torch_plugin.data.tensors import ScanTensors, initial_state

    scan, _ = small_scan
    cpu = torch.device('cpu')
    fitted = initial_state(ScanTensors(scan, cpu)).probe
    photons = scan.counts.sum() / scan.size
    assert np.isclose(float(fitted.abs().square().sum()), photons, rtol=0.05)
    # PtychoPINN's probe_scale divides the probe by a number: a fitted probe does not depend on it.
    scaled = ScanTensors(replace(scan, probe=scan.probe / 4.0), cpu)
    assert torch.allclose(initial_state(scaled).probe, fitted, rtol=1e-4)
    given = initial_state(ScanTensors(scan, cpu), scale=2.0).probe.numpy()
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
    assert '(20 patterns)' in caplog.text
