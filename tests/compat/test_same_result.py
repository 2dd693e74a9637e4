"""Batch mode of Ptychodus and the workflow functions give the same object."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ptychodus.api.io import load_product, save_ptychopinn_training_data

from ptychopinn_torch_plugin import workflows
from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.data.io.workflow_folder import load_workflow_folder
from ptychopinn_torch_plugin.demo.simulate import ScanPlan, simulate_scan
from ptychopinn_torch_plugin.storage.model_file import load_model

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, dict[str, Any]] = {
    'data': {'group_size': 9, 'neighbor_count': 12, 'groups_per_epoch': 8},
    'probe': {'mask_radius': 15.0},
    'model': {'width': 4, 'levels': 2, 'steps': 3},
    'training': {'epochs': 2, 'threads': 1, 'accelerator': 'cpu', 'seed': 5},
    'refinement': {'refine_epochs': 4, 'positions_start': 1, 'probe_start': 1},
    'inference': {'threads': 1, 'accelerator': 'cpu'},
}


def run(*command: str) -> None:
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def batch(action: str, source: Path, target: Path) -> None:
    run(str(Path(sys.executable).with_name('ptychodus')), '-b', action, '-i', str(source), '-o', str(target))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    simulate_scan(tmp_path / 'scan', ScanPlan(rows=6, columns=6, pattern_shape=(32, 32), step_px=3.5, photons=1e5))
    return tmp_path / 'scan'


@pytest.mark.slow
def test_batch_mode_and_the_workflow_functions_give_the_same_object(folder: Path, tmp_path: Path) -> None:
    from ptychopinn_torch_plugin.host.settings import group_name

    lines = ['[Processing]', 'Algorithm = PtychoPINN (PyTorch)_PINN']
    for section, values in SETTINGS.items():
        lines += [f'[{group_name(section)}]', *(f'{name} = {value}' for name, value in values.items())]
    (folder / 'settings.ini').write_text('\n'.join(lines))
    batch('train', folder, tmp_path / 'trained')
    shutil.copy(tmp_path / 'trained' / 'model.safetensors', folder)
    batch('reconstruct', folder, tmp_path / 'result')
    (file,) = (tmp_path / 'result').glob('*.h5')
    product = load_product(file)

    config = parse_config(SETTINGS)
    amplitude, phase, results = workflows.run_cdi_example_torch(folder, folder, config, M=32, do_stitching=True)
    assert amplitude is not None
    assert phase is not None
    by_host, by_functions = load_model(folder / 'model.safetensors'), results['models']['diffraction_to_obj']
    assert by_host.config == by_functions.config
    for name, weight in by_host.weights.items():
        assert np.allclose(weight, by_functions.weights[name], rtol=1e-5, atol=1e-6), name
    expected = product.object_.get_layer(0)
    assert np.allclose(results['reconstruction'].object_array, expected, rtol=0, atol=1e-5)
    assert np.ptp(np.abs(expected)) > 0.1
    # The stitched images are the same numbers again, where the patches lie on the product's grid.
    there = results['recon_coverage']
    y, x = (place + results['recon_origin'][axis] for axis, place in enumerate(np.nonzero(there)))
    inside = (y >= 0) & (x >= 0) & (y < expected.shape[0]) & (x < expected.shape[1])
    image = (amplitude * np.exp(1j * phase))[there]
    assert inside.mean() > 0.9
    assert np.allclose(image[inside], expected[y[inside], x[inside]], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_example_trains_on_an_export_of_the_host_and_stitches_the_same_again(folder: Path, tmp_path: Path) -> None:
    save_ptychopinn_training_data(tmp_path / 'train.npz', load_workflow_folder(folder))
    script = ROOT / 'docs' / 'example.py'
    code = [line for line in script.read_text().splitlines() if line and not line.startswith('"""')]
    assert len(code) <= 15
    run(sys.executable, str(script), str(tmp_path / 'train.npz'), str(tmp_path / 'model'))
    with np.load(tmp_path / 'model' / 'first.npz') as first, np.load(tmp_path / 'model' / 'again.npz') as again:
        for name in ('amplitude', 'phase'):
            assert np.array_equal(first[name], again[name])
            assert np.ptp(first[name]) > 0.1
