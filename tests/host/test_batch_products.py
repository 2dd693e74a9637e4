"""Batch mode: one product by default, intermediate ones on request, and the metrics beside them."""

from __future__ import annotations

import configparser
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ptychodus.api.assemble import AssembledDiffractionData
from ptychodus.api.exit_codes import ExitCode
from ptychodus.api.io import load_diffraction_data, load_product, save_diffraction_data
from ptychodus.model import ModelCore

from ptychopinn_torch_plugin.data.io.workflow_folder import load_workflow_folder
from ptychopinn_torch_plugin.demo.simulate import ScanPlan, simulate_scan
from ptychopinn_torch_plugin.metrics import r_factor


@pytest.fixture(scope='module')
def scan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('scan')
    simulate_scan(folder, ScanPlan(rows=5, columns=5, pattern_shape=(32, 32), step_px=3.5, photons=1e5))
    return folder


def refine(folder: Path, target: Path, refinement: dict[str, str] | None = None, **inference: str) -> None:
    """What ``ptychodus -b reconstruct`` does, with six epochs."""
    parser = configparser.ConfigParser(interpolation=None)
    parser['Processing'] = {'Algorithm': 'PtychoPINN (PyTorch)_Refine'}
    parser['PtychoPINNPyTorchRefinement'] = {'refine_epochs': '6', 'refine_positions': 'false'} | (refinement or {})
    parser['PtychoPINNPyTorchInference'] = {'threads': '1'} | inference
    with (folder / 'settings.ini').open('w') as file:
        parser.write(file)
    with ModelCore() as model:
        assert model.batch_mode_execute('reconstruct', folder, target) == ExitCode.SUCCESS


def products(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*.h5'))


def test_one_product_and_its_metrics(scan_folder: Path, tmp_path: Path) -> None:
    refine(scan_folder, tmp_path / 'out')
    (name,) = products(tmp_path / 'out')
    assert re.fullmatch(r'product\.\d{6}\.h5', name)
    figures = json.loads((tmp_path / 'out' / 'judgement' / 'judgement.json').read_text())
    given = load_workflow_folder(scan_folder)
    product = load_product(tmp_path / 'out' / name)
    assert figures['r_factor'] == pytest.approx(r_factor(replace(given, product=product)), abs=1e-3)
    assert {path.name for path in (tmp_path / 'out' / 'judgement').iterdir()} == {
        'judgement.json',
        'maps.npz',
        'judgement.png',
    }


def test_every_second_step_becomes_a_product_and_half_scans_a_resolution(
    scan_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level('INFO'):
        refine(scan_folder, tmp_path, batch_interval='2', half_scans='true')
    assert products(tmp_path)[:2] == ['product.000002.h5', 'product.000004.h5']
    assert len(products(tmp_path)) == 3, 'the result is the last one: its number counts metrics and half scans, too'
    first, second, last = (load_product(tmp_path / name).object_.get_array() for name in products(tmp_path))
    assert np.abs(second - last).mean() < np.abs(first - last).mean()
    figures = json.loads((tmp_path / 'judgement' / 'judgement.json').read_text())
    assert figures['resolution_px'] is not None
    pixel = load_product(tmp_path / products(tmp_path)[-1]).object_.get_pixel_geometry()
    assert figures['resolution_m'] == pytest.approx(figures['resolution_px'] * pixel.width_m)
    assert 'Resolution of the half scans' in caplog.text
    assert 'Misfit' in caplog.text


def test_the_scan_is_inspected_first_and_righted_where_asked(
    scan_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flipped = tmp_path / 'flipped'
    shutil.copytree(scan_folder, flipped)
    data = load_diffraction_data(flipped / 'diffraction.h5')
    patterns = np.ascontiguousarray(np.roll(data.get_patterns()[..., ::-1], 1, axis=-1))
    pixel = data.get_pixel_geometry()
    save_diffraction_data(
        flipped / 'diffraction.h5',
        AssembledDiffractionData(np.arange(len(patterns)), patterns, pixel, data.get_bad_pixels()),
    )
    given = (flipped / 'diffraction.h5').read_bytes()
    with caplog.at_level('INFO'):
        refine(flipped, tmp_path / 'out', {'inspect_first': 'true', 'inspect_apply': 'true'})
    document = json.loads((tmp_path / 'out' / 'inspection.json').read_text())
    found = document['findings']['orientation']
    assert found['columns_flipped'] != found['rows_flipped'] and not found['transposed']
    assert 'orientation' in document['applied']
    assert 'Held-out patterns correlate' in caplog.text
    assert (flipped / 'diffraction.h5').read_bytes() == given
    righted = load_workflow_folder(tmp_path / 'out' / 'inspected')
    product = load_product(max((tmp_path / 'out').glob('product.*.h5')))
    figures = json.loads((tmp_path / 'out' / 'judgement' / 'judgement.json').read_text())
    assert figures['r_factor'] == pytest.approx(r_factor(replace(righted, product=product)), abs=1e-3)
    assert figures['colour'] != 'red'


def test_applying_needs_an_inspection(scan_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(AssertionError):
        refine(scan_folder, tmp_path / 'out', {'inspect_apply': 'true'})
    assert 'inspect_apply = True needs inspect_first = True' in caplog.text
    assert not products(tmp_path / 'out')
