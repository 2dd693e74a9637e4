"""Every row of the tables in ``docs/coming-from-ptychopinn.md`` says what is so."""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ptychopinn_torch_plugin import PtychoDataContainerTorch, RawDataTorch, configuration_from, workflows
from ptychopinn_torch_plugin.config import Config
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.models.base import Generator
from ptychopinn_torch_plugin.storage.model_file import TrainedModel
from ptychopinn_torch_plugin.types import Reconstruction

PAGE = (Path(__file__).parents[2] / 'docs' / 'coming-from-ptychopinn.md').read_text(encoding='utf-8')
TABLES = {
    title: re.findall(r'^\| (?!yours|---)(.*?) \|', body, re.MULTILINE)
    for title, body in re.findall(r'^### (.+?)\n(.*?)(?=^##)', PAGE, re.MULTILINE | re.DOTALL)
}

Results = dict[str, Any]


class Data(SimpleNamespace):
    """A scan in counts with an object and nominal coordinates; raw data, groups and a container of it."""

    arrays: dict[str, Any]
    raw: RawDataTorch
    container: PtychoDataContainerTorch


@pytest.fixture(scope='module')
def data(small_scan: tuple[RawScan, npt.NDArray[np.complex128]]) -> Data:
    scan = small_scan[0]
    y, x = scan.positions.T
    arrays = {
        'xcoords': x, 'ycoords': y, 'xcoords_start': x + 1, 'ycoords_start': y + 1, 'diff3d': scan.counts,
        'probeGuess': scan.probe, 'objectGuess': scan.object_guess, 'scan_index': np.arange(49) // 25,
    }  # fmt: skip
    raw = RawDataTorch(**arrays)
    grouped = raw.generate_grouped_data(32, 6, 20, 2, 0)
    return Data(arrays=arrays, raw=raw, grouped=grouped, container=PtychoDataContainerTorch(grouped, raw.probeGuess))


def test_functions(stitched: tuple[object, object, Results], small_scan: tuple[RawScan, object], quick: Config) -> None:
    def takes(name: str, *arguments: str) -> bool:
        return set(arguments) <= set(inspect.signature(getattr(workflows, name)).parameters)

    reassembly = 'test_data', 'config', 'flip_x', 'flip_y', 'transpose', 'M', 'train_results', 'models'
    checks: dict[str, bool] = {
        '`run_cdi_example_torch`': takes(
            'run_cdi_example_torch', 'train_data', 'test_data', 'config', 'flip_x', 'flip_y', 'transpose', 'M'
        ),
        '`train_cdi_model_torch`': {'model_file', 'config'} <= set(stitched[2]),
        '`_ensure_container`': workflows._ensure_container(small_scan[0], quick).scan is small_scan[0],
        '`_train_with_lightning`': takes('_train_with_lightning', 'train_container', 'test_container', 'config'),
        '`_reassemble_cdi_image_torch`': takes('reassemble_cdi_image_torch', *reassembly),
        '`load_inference_bundle_torch`': takes('load_inference_bundle_torch', 'model_dir', 'model_name'),
        '`save_torch_bundle`': takes('save_torch_bundle', 'models_dict', 'base_path', 'config', 'intensity_scale'),
        '`execution_config=`': all(
            takes(name, 'execution_config')
            for name in (
                'run_cdi_example_torch', 'train_cdi_model_torch', '_train_with_lightning', 'reassemble_cdi_image_torch',
            )
        ),
        '`TrainingConfig`, `ModelConfig`, `InferenceConfig`, `PyTorchExecutionConfig`': (
            configuration_from(SimpleNamespace(nepochs=3), SimpleNamespace(seed=4)).config.training.epochs == 3
        ),
    }  # fmt: skip
    assert list(checks) == TABLES['Functions']
    assert all(checks.values()), checks
    assert workflows.components is workflows


def test_raw_data(data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data.raw.to_file(tmp_path / 'scan.npz')
    with caplog.at_level(logging.INFO):
        again = RawDataTorch.from_file(tmp_path / 'scan.npz')
    a = data.arrays

    def same(*names: str) -> bool:
        return all(np.array_equal(getattr(again, name), a[name]) for name in names)

    theirs = SimpleNamespace(**a)
    checks: dict[str, bool] = {
        '`RawDataTorch`': list(inspect.signature(RawDataTorch).parameters)[:7]
        == ['xcoords', 'ycoords', 'diff3d', 'probeGuess', 'scan_index', 'objectGuess', 'config'],
        '`RawData`': np.array_equal(workflows.ensure_container(theirs).scan.counts, a['diff3d']),
        '`from_file`': 'diff3d is read as amplitudes and squared, as the file says' in caplog.text,
        '`from_coords_without_pc`': np.array_equal(
            RawDataTorch.from_coords_without_pc(
                a['xcoords'], a['ycoords'], a['diff3d'], a['probeGuess'], a['scan_index'], a['objectGuess']
            ).xcoords_start,
            a['xcoords'],
        ),
        '`to_file`': np.array_equal(again.scan.counts, a['diff3d']),
        '`generate_grouped_data`': data.grouped.nn_indices.shape == (20, 4)
        and data.raw.generate_grouped_data(32).nn_indices.shape == (49, 1),
        '`xcoords`, `ycoords`': same('xcoords', 'ycoords'),
        '`xcoords_start`, `ycoords_start`': same('xcoords_start', 'ycoords_start'),
        '`diff3d`': np.allclose(again.diff3d**2, a['diff3d'], rtol=1e-5),
        '`probeGuess`': again.probeGuess.shape == (1, 32, 32),
        '`objectGuess`': same('objectGuess'),
        '`Y`': again.Y is None,
        '`scan_index`': same('scan_index') and 'scan_index has 2 different values' in caplog.text,
    }
    assert list(checks) == TABLES['Raw data']
    assert all(checks.values()), checks


def test_grouped_data(data: Data) -> None:
    g, c, a = data.grouped, data.container, data.arrays
    members = g.nn_indices

    def adds_up(prefix: str, suffix: str) -> bool:
        whole = g[f'{prefix}_offsets'] + g[f'{prefix}_relative']
        return np.allclose(whole, g[f'{prefix}_nn']) and np.array_equal(
            g[f'{prefix}_nn'][:, 0], np.stack([a[f'xcoords{suffix}'][members], a[f'ycoords{suffix}'][members]], axis=1)
        )

    checks: dict[str, bool] = {
        '`diffraction`, `X_full`': np.allclose(g['X_full'] * c.norm_Y_I, g['diffraction'], rtol=1e-5),
        '`coords_offsets`, `coords_relative`, `coords_nn`': adds_up('coords', ''),
        '`coords_start_offsets`, `coords_start_relative`, `coords_start_nn`': adds_up('coords_start', '_start'),
        '`nn_indices`': np.array_equal(g['nn_indices'], members),
        '`objectGuess`, `Y`': g['objectGuess'] is data.raw.objectGuess and g['Y'].shape == (20, 32, 32, 4),
        '`PtychoDataContainer`': c.as_tensors().X.shape == (20, 4, 32, 32),
        '`X`, `norm_Y_I`': np.allclose(c.norm_Y_I * c.X, g['diffraction'], rtol=1e-5),
        '`Y`, `Y_I`, `Y_phi`, `YY_full`': np.allclose(c.Y_I * np.exp(1j * c.Y_phi), c.Y, atol=1e-5)
        and c.YY_full is data.raw.objectGuess,
        '`coords_nominal`, `coords_true`, `coords`, `local_offsets`': c.coords_nominal is c.coords_true
        and c.coords is c.local_offsets
        and np.array_equal(c.coords, g['coords_relative']),
        '`global_offsets`': np.array_equal(c.global_offsets, g['coords_offsets']),
        '`probe`': c.probe is data.raw.probeGuess,
    }
    assert list(checks) == TABLES['Grouped data']
    assert all(checks.values()), checks


def test_results(stitched: tuple[object, object, Results]) -> None:
    r = stitched[2]
    model = r['models']['diffraction_to_obj']
    checks: dict[str, bool] = {
        '`history`': set(r['history']) == {'train_loss', 'val_loss'},
        '`train_container`, `test_container`': isinstance(r['train_container'], PtychoDataContainerTorch),
        '`models`': isinstance(model, TrainedModel) and isinstance(model.build(), Generator),
        '`backend`': r['backend'] == 'pytorch',
        '`obj_tensor_full`, `global_offsets`': len(r['obj_tensor_full']) == len(r['global_offsets']),
        '`recon_amp`, `recon_phase`': r['recon_amp'] is stitched[0] and r['recon_phase'] is stitched[1],
        'the object': r['network_amp'].shape == r['recon_amp'].shape and r['object_origin'] == (0.0, 0.0),
        'nothing': isinstance(r['reconstruction'], Reconstruction),
    }
    assert list(checks) == TABLES['Results']
    assert all(checks.values()), checks
