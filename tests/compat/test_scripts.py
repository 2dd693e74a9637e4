"""The scripts of ``docs/coming-from-ptychopinn.md`` run as they stand, on a simulated scan and on a real one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptychopinn_torch_plugin.data.io.npz import write_training_npz
from ptychopinn_torch_plugin.data.io.workflow_folder import read_workflow_folder
from ptychopinn_torch_plugin.types import Reconstruction
from tests.helpers.host_scans import REAL_SCAN
from tests.helpers.scans import make_scan, phase_and_scale_free_error

PAGE = Path(__file__).parents[2] / 'docs' / 'coming-from-ptychopinn.md'
SCRIPTS = dict(
    re.findall(r'^\*\*(.+?)\.\*\*.*?```python\n(.*?)```', PAGE.read_text(encoding='utf-8'), re.MULTILINE | re.DOTALL)
)
SMALL = {
    'gridsize': 2, 'neighbor_count': 6, 'nepochs': 1, 'n_filters_scale': 0.5, 'probe_trainable': False,
    'accelerator': 'cpu', 'refine_epochs': 8, 'logger_backend': None,
}  # fmt: skip
POSITIONS = 16


@pytest.fixture(params=['simulated', 'star'])
def scan_file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``scan.npz`` and ``names.json``; the working folder."""
    monkeypatch.chdir(tmp_path)
    if request.param == 'simulated':
        scan, size = make_scan(rows=4, known_object=True)[0], 32
        write_training_npz(tmp_path / 'scan.npz', scan)
    else:
        if not REAL_SCAN.is_dir():
            pytest.skip('the Siemens star scan does not lie beside the repository')
        star, size = read_workflow_folder(REAL_SCAN), 128
        centre = np.median(star.positions, axis=0)
        nearest = np.argsort(np.square(star.positions - centre).sum(axis=1))[:POSITIONS]
        write_training_npz(tmp_path / 'scan.npz', star.select(np.sort(nearest)), extra={'objectGuess': None})
    (tmp_path / 'names.json').write_text(json.dumps(SMALL | {'N': size}))
    return tmp_path


def run(title: str) -> dict[str, Any]:
    """Run a script; returns its variables."""
    variables: dict[str, Any] = {}
    exec(compile(SCRIPTS[title], title, 'exec'), variables)  # noqa: S102 - our own document
    return variables


def refined(variables: dict[str, Any]) -> Reconstruction:
    """Check what every stitching gives, and return the engine's result."""
    results = variables['results']
    assert variables['amplitude'].shape == variables['phase'].shape == results['recon_coverage'].shape
    assert np.isfinite(variables['amplitude']).all()
    assert np.ptp(variables['amplitude']) > 0.05
    assert results['network_object'].shape == results['refined_object'].shape
    assert np.abs(results['network_object'] - results['refined_object']).max() > 1e-3
    found: Reconstruction = results['reconstruction']
    assert found.metrics is not None
    assert found.metrics.r_factor < 0.6
    return found


def test_train_and_stitch(scan_file: Path) -> None:
    variables = run('Train, and stitch one scan')
    found = refined(variables)
    assert (scan_file / 'model' / 'model.safetensors').is_file()
    with np.load(scan_file / 'scan.npz') as file:
        if 'objectGuess' in file:
            assert phase_and_scale_free_error(found.object_array, file['objectGuess'], found.coverage) < 0.3


def test_train_on_a_half_and_reconstruct_the_other(scan_file: Path) -> None:
    variables = run('Train on one half, and reconstruct the other')
    found = refined(variables)
    with np.load(scan_file / 'scan.npz') as file:
        lower = file['ycoords'][~variables['is_upper']]
    assert len(found.positions) == lower.size
    assert variables['results']['global_offsets'][:, 0, 1].min() >= lower.min() - 1e-9


def test_train_on_several_scans(scan_file: Path) -> None:
    variables = run('Train on several scans')
    model = variables['results']['models']['diffraction_to_obj']
    assert len(model.header.scans) == 2
    assert np.isfinite(variables['amplitude']).all()


def test_build_the_container_by_hand(scan_file: Path) -> None:
    variables = run('Build the container by hand')
    refined(variables)
    assert variables['container'].X.shape[3] == 4
    assert variables['container'].Y is None


def test_an_own_training_loop(scan_file: Path) -> None:
    losses = run('Your own training loop')['losses']
    assert losses[-1] < 0.95 * losses[0]


def test_there_are_five_scripts() -> None:
    assert len(SCRIPTS) == 5
