"""Train and reconstruct through Ptychodus' batch mode, with the real worker and the real engine."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ptychodus.api.assemble import AssembledDiffractionData
from ptychodus.api.exit_codes import ExitCode
from ptychodus.api.io import load_diffraction_data, load_product, save_diffraction_data, save_product
from ptychodus.api.object import Object
from ptychodus.api.product import Product
from ptychodus.model import ModelCore

from ptychopinn_torch_plugin.data.io.workflow_folder import load_workflow_folder
from ptychopinn_torch_plugin.demo.simulate import TRUTH_FILE, ScanPlan, simulate_scan
from ptychopinn_torch_plugin.metrics import compare_with_truth, r_factor
from ptychopinn_torch_plugin.storage.model_file import read_model_header

QUICK = {
    'PtychoPINNPyTorchData': {'group_size': '16', 'neighbor_count': '20'},
    'PtychoPINNPyTorchModel': {'width': '4', 'levels': '2', 'steps': '8'},
    'PtychoPINNPyTorchTraining': {'epochs': '2', 'threads': '1'},
    'PtychoPINNPyTorchRefinement': {'refine_epochs': '0'},
    'PtychoPINNPyTorchInference': {'steps': '16', 'threads': '1'},
}


def write_settings(folder: Path, reconstructor: str = 'PINN', **changes: dict[str, str]) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser['Processing'] = {'Algorithm': f'PtychoPINN (PyTorch)_{reconstructor}'}
    for group, values in QUICK.items():
        parser[group] = values | changes.get(group, {})
    with (folder / 'settings.ini').open('w') as file:
        parser.write(file)


def batch(action: str, source: Path, target: Path) -> ExitCode:
    """What ``ptychodus -b`` does, without the start of another interpreter."""
    with ModelCore() as model:
        return model.batch_mode_execute(action, source, target)


def train_and_reconstruct(folder: Path) -> Product:
    """Train on a workflow folder, reconstruct it with the model, and return the one product written."""
    trained, result = folder.parent / 'trained', folder.parent / 'result'
    assert batch('train', folder, trained) == ExitCode.SUCCESS
    (folder / 'model.safetensors').write_bytes((trained / 'model.safetensors').read_bytes())
    assert batch('reconstruct', folder, result) == ExitCode.SUCCESS
    (file,) = result.glob('*.h5')
    return load_product(file)


def test_the_command_trains_and_reconstructs(tmp_path: Path) -> None:
    """The real command, twice, as a pipeline runs it; the names have spaces and letters that are not ASCII."""
    day = tmp_path / 'Größe 2, 試料'
    folder = day / 'scan'
    simulate_scan(folder, ScanPlan(rows=8, columns=8, pattern_shape=(48, 48), step_px=4.0, photons=1e5))
    write_settings(folder)
    program = Path(sys.executable).with_name('ptychodus')
    for action, target in (('train', 'trained'), ('reconstruct', 'result')):
        command = [str(program), '-b', action, '-i', str(folder), '-o', str(day / target)]
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
        assert done.returncode == 0, done.stdout
        if action == 'train':
            assert 'Epoch 2 of 2' in done.stdout
            (folder / 'model.safetensors').write_bytes((day / 'trained' / 'model.safetensors').read_bytes())
    (file,) = (day / 'result').glob('*.h5')
    product, truth = load_product(file), load_product(folder / TRUTH_FILE)
    scores = compare_with_truth(truth, product).scores
    assert scores.amplitude_ssim > 0.85
    assert scores.phase_ssim > 0.92
    assert [loss.epoch for loss in product.losses] == [1, 2]
    assert (day / 'trained' / 'training_log' / 'metrics.csv').is_file()


def spoil(folder: Path, *, dtype: str, mask: bool) -> None:
    """Store the patterns as ``dtype``, with a bad column that holds nonsense if ``mask``."""
    data = load_diffraction_data(folder / 'diffraction.h5')
    patterns = data.get_patterns().astype(dtype)
    bad = np.zeros(patterns.shape[1:], dtype=bool)
    if mask:
        bad[:, 7] = True
        bad[20:23, 10:14] = True
        patterns[:, bad] = np.iinfo(dtype).max if np.issubdtype(patterns.dtype, np.integer) else np.nan
    save_diffraction_data(
        folder / 'diffraction.h5',
        AssembledDiffractionData(data.get_indexes(), patterns, data.get_pixel_geometry(), bad),
    )


def widen_object(folder: Path, border: int) -> None:
    """Give the product an object grid larger than the scan, off centre by half a pixel."""
    product = load_product(folder / 'product.h5')
    old = product.object_
    geometry, pixel = old.get_geometry(), old.get_pixel_geometry()
    center = replace(geometry.get_center(), y_m=geometry.center_y_m + pixel.height_m / 2)
    array = np.ones((geometry.height_px + 2 * border + 1, geometry.width_px + 2 * border), dtype=np.complex64)
    save_product(folder / 'product.h5', replace(product, object_=Object(array, pixel, center)))


@pytest.mark.parametrize(
    ('plan', 'dtype', 'mask', 'border'),
    [
        (ScanPlan(rows=7, columns=7, pattern_shape=(33, 41), step_px=3.5, modes=2), 'float32', False, 0),
        (ScanPlan(rows=7, columns=7, pattern_shape=(40, 40), step_px=3.5, photons=1e5), 'uint16', True, 30),
        (ScanPlan(rows=7, columns=7, pattern_shape=(36, 32), step_px=3.5, modes=2), 'float64', True, 5),
    ],
    ids=['odd sizes and two modes', 'mask and a large object grid', 'all together'],
)
def test_scans_of_every_kind(plan: ScanPlan, dtype: str, mask: bool, border: int, tmp_path: Path) -> None:
    folder = tmp_path / 'scan'
    simulate_scan(folder, plan)
    spoil(folder, dtype=dtype, mask=mask)
    if border:
        widen_object(folder, border)
    write_settings(folder)
    given = load_workflow_folder(folder)
    product = train_and_reconstruct(folder)
    assert product.object_.get_geometry() == given.product.object_.get_geometry()
    assert product.probes.get_array().shape == given.product.probes.get_array().shape
    assert np.isfinite(product.object_.get_array()).all()
    # As close to the patterns as the truth itself is: what is left is photon noise.
    noise = r_factor(replace(given, product=load_product(folder / TRUTH_FILE)))
    assert r_factor(replace(given, product=product)) < 1.1 * noise
    if border > 10:
        assert (product.object_.get_array()[0, :20] == 1).all()


def test_supervised_learns_from_the_object_of_the_product(tmp_path: Path) -> None:
    folder = tmp_path / 'scan'
    simulate_scan(folder, ScanPlan(rows=7, columns=7, pattern_shape=(32, 32), step_px=3.5))
    truth = load_product(folder / TRUTH_FILE)
    save_product(folder / 'product.h5', truth)
    write_settings(folder, 'Supervised')
    product = train_and_reconstruct(folder)
    assert read_model_header(folder / 'model.safetensors').config.model.model_type == 'supervised'
    assert compare_with_truth(truth, product).scores.phase_ssim > 0.9


def test_supervised_refuses_the_flat_object(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / 'scan'
    simulate_scan(folder, ScanPlan(rows=5, columns=5, pattern_shape=(32, 32)))
    write_settings(folder, 'Supervised')
    assert batch('train', folder, tmp_path / 'out') == ExitCode.FAILURE
    assert 'flat' in caplog.text
    assert not (tmp_path / 'out' / 'model.safetensors').exists()


def test_reconstruct_without_a_model_says_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / 'scan'
    simulate_scan(folder, ScanPlan(rows=5, columns=5, pattern_shape=(32, 32)))
    write_settings(folder)
    assert batch('reconstruct', folder, tmp_path / 'out') == ExitCode.FAILURE
    assert 'no PINN model' in caplog.text
    assert 'model.safetensors' in caplog.text


SIEMENS_STAR = Path(__file__).parents[3] / 'shared' / 'data' / 'siemens-star'


def phase_correlation(product: Product) -> float:
    """With the picture of LSQ-ML after 50 epochs, in the well illuminated rectangle."""
    pair = compare_with_truth(load_product(SIEMENS_STAR / 'reference.h5'), product)
    reference, found = np.angle(pair.truth), np.angle(pair.truth) + np.angle(pair.product * pair.truth.conj())
    return float(np.corrcoef(reference.ravel(), found.ravel())[0, 1])


@pytest.mark.skipif(not SIEMENS_STAR.is_dir(), reason='the Siemens star scan is not here')
def test_refine_mends_the_analytic_probe_of_the_real_siemens_star(tmp_path: Path) -> None:
    """No model, no training: the first scan of the day, with a probe from a formula."""
    folder = tmp_path / 'scan'
    folder.mkdir()
    for name in ('diffraction.h5', 'product.h5'):
        (folder / name).write_bytes((SIEMENS_STAR / name).read_bytes())
    write_settings(folder, 'Refine', PtychoPINNPyTorchRefinement={'refine_epochs': '40'})
    assert batch('reconstruct', folder, tmp_path / 'result') == ExitCode.SUCCESS
    (file,) = (tmp_path / 'result').glob('*.h5')
    product = load_product(file)
    given = load_workflow_folder(folder)
    assert r_factor(replace(given, product=product)) < 0.165 < 0.4 * r_factor(given) + 0.02
    moved = (
        np.array(product.probe_positions.get_coordinates_x_m()) - given.product.probe_positions.get_coordinates_x_m()
    )
    assert 0.05 < np.abs(moved).mean() / product.object_.get_pixel_geometry().width_m < 1.0
    assert [loss.epoch for loss in product.losses] == list(range(1, 41))


@pytest.mark.skipif(not SIEMENS_STAR.is_dir(), reason='the Siemens star scan is not here')
def test_the_real_siemens_star(tmp_path: Path) -> None:
    """A measured scan: a short training and the picture of LSQ-ML after 50 epochs agree."""
    folder = tmp_path / 'scan'
    folder.mkdir()
    (folder / 'diffraction.h5').write_bytes((SIEMENS_STAR / 'diffraction.h5').read_bytes())
    (folder / 'product.h5').write_bytes((SIEMENS_STAR / 'product_refined_probe.h5').read_bytes())
    write_settings(
        folder,
        PtychoPINNPyTorchTraining={'epochs': '1'},
        PtychoPINNPyTorchData={'groups_per_epoch': '2', 'validation_fraction': '0'},
    )
    product = train_and_reconstruct(folder)
    assert phase_correlation(product) > 0.9
    assert r_factor(replace(load_workflow_folder(folder), product=product)) < 0.165
