"""Export, convert and info: nothing is lost in a conversion, and what is not known is asked for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ptychodus.api.io import load_diffraction_data, load_product, save_ptychopinn_training_data

from ptychopinn_torch_plugin.config import Config
from ptychopinn_torch_plugin.data.io.npz import read_training_npz, write_training_npz
from ptychopinn_torch_plugin.data.io.workflow_folder import load_workflow_folder, read_workflow_folder
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.storage.model_file import save_model
from tests.helpers.models import untrained_model
from tests.helpers.scans import make_scan

from .conftest import Command, JsonCommand

STAR = Path(__file__).parents[3] / 'shared' / 'data' / 'siemens-star'
POSITION_TOLERANCE_PX = 1e-9
BEAM = ['--photon-energy-ev', 8800, '--detector-distance-m', 1.92, '--detector-pixel-m', 7.5e-5]


def assert_same(one: RawScan, other: RawScan) -> None:
    """Everything identical in value, but positions to float64 rounding."""
    for name in ('counts', 'probe', 'bad_pixels', 'object_guess'):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert one.positions.shape == other.positions.shape
    assert np.abs(one.positions - other.positions).max() < POSITION_TOLERANCE_PX
    assert np.allclose(one.fresnel_numbers, other.fresnel_numbers, rtol=1e-9, atol=0)


@pytest.mark.parametrize('dialect', ['counts', 'amplitude'])
@pytest.mark.skipif(not STAR.is_dir(), reason='the real scan is not there')
def test_the_measured_scan_is_converted_there_and_back(tmp_path: Path, run: Command, dialect: str) -> None:
    assert run(['convert', STAR, '-o', tmp_path / 'star.npz', '--dialect', dialect]) == 0
    assert run(['convert', tmp_path / 'star.npz', '-o', tmp_path / 'star']) == 0
    before, after = read_workflow_folder(STAR), read_workflow_folder(tmp_path / 'star')
    assert_same(before, after)
    assert dialect == 'amplitude' or after.counts.dtype == before.counts.dtype
    pair = [load_product(folder / 'product.h5') for folder in (STAR, tmp_path / 'star')]
    assert pair[0].object_.get_geometry() == pair[1].object_.get_geometry()
    assert pair[0].metadata.photon_energy_eV == pair[1].metadata.photon_energy_eV
    detectors = [load_diffraction_data(folder / 'diffraction.h5') for folder in (STAR, tmp_path / 'star')]
    assert detectors[0].get_pixel_geometry() == detectors[1].get_pixel_geometry()


def scan_with_everything(dtype: str = 'uint16') -> RawScan:
    """Three probe modes, bad pixels with marks below them, an object, patterns that are not square."""
    mask = np.zeros((32, 24), dtype=np.bool_)
    mask[3, 4] = mask[20:22, 10] = True
    scan, _ = make_scan((32, 24), rows=4, modes=3, known_object=True, bad_pixels=mask, dtype=dtype)
    scan.counts[:, mask] = 0
    return scan


@pytest.mark.parametrize('dialect', ['counts', 'amplitude'])
@pytest.mark.parametrize('dtype', ['uint16', 'float64'])
def test_npz_to_folder_and_back(tmp_path: Path, run: Command, dialect: Any, dtype: str) -> None:  # noqa: ANN401
    scan = scan_with_everything(dtype)
    write_training_npz(tmp_path / 'a.npz', scan, quantity=dialect)
    assert run(['convert', tmp_path / 'a.npz', '-o', tmp_path / 'folder', *BEAM, 9e-5]) == 0
    detector = load_diffraction_data(tmp_path / 'folder' / 'diffraction.h5').get_pixel_geometry()
    assert (detector.height_m, detector.width_m) == (7.5e-5, 9e-5)
    pixel = load_product(tmp_path / 'folder' / 'product.h5').object_.get_pixel_geometry()
    wavelength_m = 12398.41984e-10 / 8800
    assert pixel.height_m == pytest.approx(wavelength_m * 1.92 / (32 * 7.5e-5), rel=1e-6)
    assert pixel.width_m == pytest.approx(wavelength_m * 1.92 / (24 * 9e-5), rel=1e-6)
    assert run(['convert', tmp_path / 'folder', '-o', tmp_path / 'b.npz', '--dialect', dialect]) == 0
    back = read_training_npz(tmp_path / 'b.npz')
    for name in ('counts', 'probe', 'bad_pixels', 'object_guess'):
        assert np.array_equal(getattr(back, name), getattr(scan, name)), name
    assert np.abs(back.positions - scan.positions).max() < POSITION_TOLERANCE_PX


def test_bright_counts_survive_as_amplitudes(tmp_path: Path, run: Command) -> None:
    scan = make_scan(rows=4, photons=1e10)[0]
    assert scan.counts.max() > 2**24
    write_training_npz(tmp_path / 'a.npz', scan)
    assert run(['convert', tmp_path / 'a.npz', '-o', tmp_path / 'b.npz', '--dialect', 'amplitude']) == 0
    with np.load(tmp_path / 'b.npz') as archive:
        assert np.allclose(np.square(archive['diff3d']), scan.counts, rtol=1e-12)
    assert np.array_equal(read_training_npz(tmp_path / 'b.npz').counts, scan.counts)


def test_the_export_of_the_host_becomes_a_folder(folder: Path, tmp_path: Path, run_json: JsonCommand) -> None:
    save_ptychopinn_training_data(tmp_path / 'host.npz', load_workflow_folder(folder))
    refused = run_json(['convert', tmp_path / 'host.npz', '-o', tmp_path / 'out'])
    assert refused['exit_code'] == 3
    for name in ('photon_energy_ev', 'detector_distance_m', 'detector_pixel_m (or object_pixel_m)'):
        assert name in refused['error']['message']
    assert not (tmp_path / 'out').exists()
    product = load_product(folder / 'product.h5')
    pixel = product.object_.get_pixel_geometry()
    known = ['--photon-energy-ev', product.metadata.photon_energy_eV]
    known += ['--detector-distance-m', product.metadata.detector_distance_m]
    known += ['--object-pixel-m', pixel.height_m, pixel.width_m]
    assert run_json(['convert', tmp_path / 'host.npz', '-o', tmp_path / 'out', *known])['ok']
    assert_same(read_workflow_folder(folder), read_workflow_folder(tmp_path / 'out'))


def test_nominal_values_are_placeholders_without_a_phase(
    training_file: Path, tmp_path: Path, run_json: JsonCommand
) -> None:
    document = run_json(['convert', training_file, '-o', tmp_path / 'out', '--nominal'])
    assert document['geometry']['photon_energy_ev'] == 1e4
    assert document['geometry']['detector_distance_m'] == 1.0
    scan = read_workflow_folder(tmp_path / 'out')
    assert np.array_equal(scan.counts, read_training_npz(training_file).counts)
    edge_rad = np.pi * np.array(scan.fresnel_numbers) * (np.array(scan.pattern_shape) / 2) ** 2
    assert (edge_rad < 1e-3).all()


@pytest.mark.parametrize(
    ('words', 'code', 'message'),
    [
        (['--detector-pixel-m', 1e-5], 3, 'detector_pixel_m and the Fresnel numbers of the file contradict'),
        (['--object-pixel-m', 1e-7, '--detector-pixel-m', 7.5e-5], 3, 'object_pixel_m and detector_pixel_m contradict'),
        (['--photon-energy-ev', -1], 3, 'photon_energy_ev = -1.0 is not positive'),
        (['--object-pixel-m', 1, 2, 3], 2, 'give one number, or height and width'),
    ],
)
def test_contradictions_are_refused(
    words: list[object], code: int, message: str, folder: Path, tmp_path: Path, run_json: JsonCommand
) -> None:
    scan = replace(read_workflow_folder(folder), pixel_m=None)
    write_training_npz(tmp_path / 'scan.npz', scan)
    beam = [] if '--photon-energy-ev' in words else ['--photon-energy-ev', 8800]
    document = run_json(
        ['convert', tmp_path / 'scan.npz', '-o', tmp_path / 'out', '--detector-distance-m', 2.0, *beam, *words]
    )
    assert document['exit_code'] == code
    assert message in document['error']['message']


def test_fresnel_numbers_give_the_pixel_size(folder: Path, tmp_path: Path, run: Command) -> None:
    write_training_npz(tmp_path / 'scan.npz', replace(read_workflow_folder(folder), pixel_m=None))
    words = ['--photon-energy-ev', 8800, '--detector-distance-m', 2.0]
    assert run(['convert', tmp_path / 'scan.npz', '-o', tmp_path / 'out', *words]) == 0
    assert_same(read_workflow_folder(folder), read_workflow_folder(tmp_path / 'out'))


def test_a_geometry_that_is_none_is_refused(training_file: Path, tmp_path: Path, run_json: JsonCommand) -> None:
    arrays = dict(np.load(training_file)) | {'photon_energy_ev': np.ones(3)}
    np.savez(tmp_path / 'odd.npz', **arrays)
    document = run_json(['convert', tmp_path / 'odd.npz', '-o', tmp_path / 'out', '--nominal'])
    assert 'photon_energy_ev' in document['error']['message']


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['export', 'scan.npz', '-o', 'folder'], 'ends in .npz'),
        (['export', 'scan.npz', '-o', 'scan.npz'], 'is the file to read'),
        (['convert', 'scan.npz', '-o', 'note.txt'], 'note.txt is a file'),
    ],
)
def test_outputs_that_make_no_sense(
    words: list[str], message: str, training_file: Path, run_json: JsonCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(training_file.parent)
    Path('note.txt').write_text('mine')
    document = run_json(words)
    assert document['exit_code'] == 2
    assert message in document['error']['message']


def test_export_is_the_scan(folder: Path, tmp_path: Path, run: Command) -> None:
    for dialect in ('counts', 'amplitude'):
        assert run(['export', folder, '-o', tmp_path / 'new' / 'e.npz', '--dialect', dialect]) == 0
        assert_same(read_workflow_folder(folder), read_training_npz(tmp_path / 'new' / 'e.npz'))
        with np.load(tmp_path / 'new' / 'e.npz') as archive:
            assert str(archive['diff3d_quantity']) == dialect


def test_info_of_every_kind(folder: Path, training_file: Path, tmp_path: Path, run_json: JsonCommand) -> None:
    model = tmp_path / 'model.safetensors'
    save_model(model, untrained_model(Config()))
    np.savez(tmp_path / 'r.npz', object=np.ones((4, 5), complex), coverage=np.ones((4, 5), bool))
    expected: dict[Path, dict[str, Any]] = {
        model: {'kind': 'model', 'model_type': 'pinn', 'epochs': 1, 'best_epoch': 1, 'validation_loss': 2.5},
        folder: {'kind': 'workflow folder', 'patterns': 25, 'pattern_shape': [32, 32], 'photon_energy_ev': 8800.0},
        folder / 'truth.h5': {'kind': 'product', 'positions': 25, 'probe_modes': 1, 'name': 'simulated'},
        folder / 'diffraction.h5': {'kind': 'patterns', 'counts_dtype': 'uint32', 'bad_pixels': 0},
        training_file: {'kind': 'training file', 'patterns': 25, 'diff3d_quantity': 'counts', 'bad_pixels': 0},
        tmp_path / 'r.npz': {'kind': 'reconstruction', 'arrays': {'object': [4, 5], 'coverage': [4, 5]}},
    }
    for path, values in expected.items():
        document = run_json(['info', path])
        assert values.items() <= document.items(), path
        assert document['path'] == str(path)
    assert run_json(['info', model])['config']['training']['epochs'] == Config().training.epochs
    (tmp_path / 'r.npz').unlink()
    assert [item['kind'] for item in run_json(['info', tmp_path])['scans']] == ['workflow folder', 'training file']


def test_info_shows_and_draws_the_probe(
    folder: Path, tmp_path: Path, run: Command, run_json: JsonCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    model, picture = tmp_path / 'model.safetensors', tmp_path / 'probe.png'
    trained = untrained_model(Config())
    known = replace(trained, header=trained.header.model_copy(update={'object_pixel_m': (2e-8, 3e-8)}))
    save_model(model, known)
    assert run(['info', model]) == 0
    text = capsys.readouterr().out
    assert re.search(r'^object_pixel \[m\] +2e-08 x 3e-08$', text, re.MULTILINE)
    _, _, drawn = text.partition('Probe, mode 1, amplitude:\n')
    assert '@' in drawn
    assert max(map(len, drawn.splitlines())) <= 40
    for path in (model, folder, folder / 'product.h5'):
        picture.unlink(missing_ok=True)
        document = run_json(['info', path, '--probe', picture])
        assert document['written'] == [document['probe_picture']] == [str(picture)]
        assert picture.read_bytes().startswith(b'\x89PNG')
    assert run_json(['info', model])['object_pixel_m'] == [2e-8, 3e-8]
    refused = run_json(['info', folder / 'diffraction.h5', '--probe', picture])
    assert 'holds no probe to draw' in refused['error']['message']


def test_info_of_a_folder_of_models(
    tmp_path: Path, run: Command, run_json: JsonCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        save_model(tmp_path / name / 'model.safetensors', untrained_model(Config()))
    (tmp_path / 'c.safetensors').write_bytes(b'nothing of the kind')
    document = run_json(['info', tmp_path])
    assert document['kind'] == 'models'
    assert [item.get('generator') for item in document['models']] == ['unrolled', 'unrolled', None]
    assert 'c.safetensors' in document['models'][2]['error']
    capsys.readouterr()
    assert run(['info', tmp_path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        'model',
        'a/model.safetensors',
        'b/model.safetensors',
        'c.safetensors',
    ]
    assert 'cannot be used' in lines[3]
    assert lines[0].index('generator') == lines[1].index('unrolled')


def test_info_for_people(folder: Path, run: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(['info', folder]) == 0
    text = capsys.readouterr().out
    assert re.search(r'^pattern_shape +32 x 32$', text, re.MULTILINE)
    assert re.search(r'^name +simulated$', text, re.MULTILINE)
    assert 'object_pixel [m]' in text


@pytest.mark.parametrize('name', ['absent.h5', 'text.h5', 'diffraction.h5', 'text.npz', 'text.md', 'arrays.npz'])
def test_info_refuses_what_it_does_not_know(tmp_path: Path, run_json: JsonCommand, name: str) -> None:
    if name == 'arrays.npz':
        np.savez(tmp_path / name, x=np.ones(3))
    elif name != 'absent.h5':
        (tmp_path / name).write_text('# nothing')
    document = run_json(['info', tmp_path / name])
    assert document['exit_code'] == 3
    assert name in document['error']['message']


def test_files_need_no_torch_and_its_absence_has_a_code(folder: Path, tmp_path: Path) -> None:
    program = (
        'import sys\n'
        'for name in ("torch", "lightning"): sys.modules[name] = None\n'
        'from ptychopinn_torch_plugin.cli import main\n'
        'print([main(["-q", *words.split(), "--json"]) for words in sys.argv[1:]], file=sys.stderr)\n'
    )
    words = [f'info {folder}', f'export {folder} -o {tmp_path / "e.npz"}', f'refine {folder} -o {tmp_path / "r.h5"}']
    done = subprocess.run([sys.executable, '-c', program, *words], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == '[0, 0, 4]'
    last = json.loads('{' + done.stdout.rsplit('\n{', 1)[1])
    assert last['error']['type'] == 'MissingDependencyError'
    assert '-m pip install torch lightning' in last['error']['message']
