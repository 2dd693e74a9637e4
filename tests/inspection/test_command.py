"""``ptychopinn-torch inspect`` on raw patterns whose columns are flipped, on a near-field scan, and on bad options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptychopinn_torch_plugin.cli import main
from ptychopinn_torch_plugin.data.io.workflow_folder import load_workflow_folder
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.inspection import apply, search
from ptychopinn_torch_plugin.inspection.measurement import Orientation
from tests.helpers.scans import make_scan
from tests.inspection.test_parallax import shadows
from tests.inspection.test_reading import BEAM

NEAR_FIELD = Path(__file__).resolve().parents[3] / 'shared/data/petra3-p25/PETRAIII_P25_Near_Field_Ptycho.cxi'
LENGTHS = ['--photon-energy-ev', '1e4', '--detector-distance-m', '1', '--detector-pixel-m', '55e-6']


@pytest.fixture(scope='module')
def scan() -> RawScan:
    return make_scan(rows=7, photons=1e5)[0]


@pytest.fixture
def raw_file(tmp_path: Path, scan: RawScan) -> Path:
    """Patterns with flipped columns, and positions in pixels."""
    path = tmp_path / 'raw.npz'
    np.savez(path, patterns=scan.counts[..., ::-1], positions=scan.positions)
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer trials, modes and held-out patterns."""
    monkeypatch.setattr(search, 'HELD_OUT', 12)
    monkeypatch.setattr(search, 'MODES', (1, 2))
    monkeypatch.setattr(search, 'ROTATION_STEPS_DEGREES', (3.0,))
    monkeypatch.setattr(apply, 'PROBE_EPOCHS', 10)


def run_json(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    main([*words, '--json'])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.usefixtures('quick')
def test_flipped_columns_are_found_and_righted_in_a_new_folder(
    raw_file: Path, scan: RawScan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = raw_file.read_bytes()
    output = tmp_path / 'righted'
    words = ['inspect', str(raw_file), *LENGTHS, '--threads', '1', '--apply', '-o', str(output)]
    document = run_json(words, capsys)
    assert document['ok'], document
    found = document['findings']['orientation']
    assert found['lead_standard_errors'] > 4
    # Flipped rows with the conjugated object explain the same patterns.
    assert not found['transposed'] and found['columns_flipped'] != found['rows_flipped']
    sign = 1 if found['columns_flipped'] else -1
    assert sign * document['findings']['defocus']['defocus_m'] > 0
    assert document['findings']['modes']['modes'] >= 1
    assert {'orientation', 'probe'} <= set(document['applied'])

    parameters = load_workflow_folder(output)
    side = parameters.diffraction_patterns.shape[-1]
    assert raw_file.read_bytes() == before
    flipped = scan.counts if found['columns_flipped'] else scan.counts[:, ::-1, ::-1]
    # The array has no pixel in its middle: after a flip, the centre lies one pixel further.
    pattern, right = parameters.diffraction_patterns.astype(float).mean(axis=0), flipped.astype(float).mean(axis=0)
    inner = np.s_[side // 2 - 6 : side // 2 + 6]
    assert np.corrcoef(pattern[inner, inner].ravel(), right[10:22, 10:22].ravel())[0, 1] > 0.8
    product = parameters.product
    assert product.probes.num_incoherent_modes == document['findings']['modes']['modes']
    notes = json.loads(product.metadata.comments)['inspection']
    assert set(notes['applied']) == set(document['applied'])
    assert 'Defocus' in notes['findings']['defocus']


def test_near_field_is_told_from_the_shift_of_the_shadow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts, positions = shadows(Orientation(), 0.25, step=12.0)
    pixel = 1.239841984e-10 / (48 * BEAM.detector_pixel_m[0]) if BEAM.detector_pixel_m else 1.0
    np.savez(tmp_path / 'near.npz', a=counts, b=positions * pixel)
    document = run_json(['inspect', str(tmp_path / 'near.npz'), *LENGTHS], capsys)
    assert document['colour'] == 'red'
    assert document['sentence'].startswith('Near field: the beam on the sample is')
    regime = document['findings']['regime']
    assert regime['near_field'] is True
    assert regime['magnification'] == pytest.approx(0.25 * 55e-6 / pixel, rel=0.1)


def test_the_real_near_field_scan_gives_its_published_magnification(capsys: pytest.CaptureFixture[str]) -> None:
    if not NEAR_FIELD.is_file():
        pytest.skip('the near-field scan does not lie beside the repository')
    regime = run_json(['inspect', str(NEAR_FIELD)], capsys)['findings']['regime']
    assert regime['near_field'] is True
    assert abs(regime['magnification'] - 307.8) < 2 * regime['magnification_error']
    assert regime['focus_to_sample_m'] == pytest.approx(3.65e-3, rel=0.05)


def test_options_that_do_not_go_together_are_refused(raw_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['inspect', str(raw_file), '--apply']) == 2
    assert 'name it with -o' in capsys.readouterr().err
    assert main(['inspect', str(raw_file), '-o', str(raw_file.parent / 'x')]) == 2
    assert 'belong to --apply' in capsys.readouterr().err
    assert not (raw_file.parent / 'x').exists()


def test_too_few_patterns_are_reported_and_an_unknown_proposal_is_refused(
    tmp_path: Path, scan: RawScan, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / 'few.npz', patterns=scan.counts[:5], positions=scan.positions[:5])
    document = run_json(['inspect', str(tmp_path / 'few.npz')], capsys)
    assert document['findings']['geometry']['status'] == 'problem'
    words = ['inspect', str(tmp_path / 'few.npz'), '--apply', '-o', str(tmp_path / 'out'), '--accept', 'modes']
    assert main(words) == 2
    assert 'this inspection proposes' in capsys.readouterr().err
