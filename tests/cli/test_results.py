"""Reports, their comparison, bundles, the list of settings, and what is suggested for a misspelt word."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from ptychodus.api.io import load_product

from ptychopinn_torch_plugin.cli.parser import EXAMPLES, build_parser
from ptychopinn_torch_plugin.config import Config
from tests.helpers.schemas import validate

from .conftest import REFINE, Command, JsonCommand


def test_results_are_reported_compared_and_bundled(training_file: Path, tmp_path: Path, run_json: JsonCommand) -> None:
    results = [tmp_path / 'one', tmp_path / 'two']
    for number, output in enumerate(results):
        document = run_json(['refine', training_file, '-o', output, *REFINE, '--set', f'refinement.smoothing={number}'])
        assert document['report'] == str(output / 'report.html')
        assert document['report'] in document['written']
        status = json.loads((output / 'status.json').read_text())
        validate('status', status)
        assert status['state'] == 'done'
        assert status['files'] == document['written']
    compared = run_json(['compare', *results, '-o', tmp_path / 'c.html'])
    assert [item['report'] for item in compared['results']] == [str(path / 'report.html') for path in results]
    assert [item['changed_settings'][1]['value'] for item in compared['results']] == [0.0, 1.0]
    assert (tmp_path / 'c.html').is_file()
    packed = run_json(['bundle', results[0], '-o', tmp_path / 'support.zip'])
    assert 'report.html' in packed['files']
    assert not any(name.endswith(('.npz', '.h5')) for name in packed['files'])
    with zipfile.ZipFile(tmp_path / 'support.zip') as archive:
        assert {'report.html', 'status.json', 'environment.json'} <= set(archive.namelist())
        assert json.loads(archive.read('environment.json'))['versions']['torch']
    assert 'reconstruction.npz' in run_json(['bundle', results[0], '-o', tmp_path / 'b.zip', '--with-data'])['files']


def test_settings_are_listed(run_json: JsonCommand, run: Command, capsys: pytest.CaptureFixture[str]) -> None:
    found = {item['name']: item for item in run_json(['settings'])['settings']}
    assert found['training.epochs']['default'] == Config().training.epochs
    assert set(found) >= {f'refinement.{name}' for name in type(Config().refinement).model_fields}
    assert [item['name'] for item in run_json(['settings', 'training.epochs'])['settings']] == ['training.epochs']
    assert 'Did you mean "training.epochs"?' in run_json(['settings', 'training.epoch'])['error']['message']
    capsys.readouterr()
    assert run(['settings', 'data']) == 0
    assert 'data.group_size = 64 positions\n    ' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['refin', 'scan', '-o', 'x'], 'there is no "refin". Did you mean "refine"?'),
        (
            ['refine', 'scan', '--outptu', 'x', '-o', 'y'],
            'unrecognized arguments: --outptu x. Did you mean "--output"?',
        ),
        (['completion', 'bahs'], 'Did you mean "bash"?'),
    ],
)
def test_a_misspelt_word_has_a_suggestion(
    words: list[str], message: str, run: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_every_command_has_examples_that_parse(run: Command, capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser()
    for name, examples in EXAMPLES.items():
        for example in examples:
            assert parser.parse_args(example.partition(' >> ')[0].split()).command == name
        with pytest.raises(SystemExit):
            run([name, '--help'])
        assert f'ptychopinn-torch {examples[0]}' in capsys.readouterr().out


def test_completion(run_json: JsonCommand) -> None:
    for shell in ('bash', 'zsh', 'fish'):
        assert 'ptychopinn-torch' in run_json(['completion', shell])['code']


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['compare', 'one'], 'needs at least two results'),
        (['compare', 'one', 'two'], 'one holds no report.html'),
        (['bundle', 'one'], 'one is not a folder'),
        (['bundle', '.'], 'nothing to pack'),
    ],
)
def test_results_that_are_none_are_refused(
    words: list[str], message: str, tmp_path: Path, run_json: JsonCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in run_json(words)['error']['message']
    assert not list(tmp_path.iterdir())


def test_pictures_of_a_result(folder: Path, training_file: Path, tmp_path: Path, run_json: JsonCommand) -> None:
    """TIFF files hold the values and the pixel size, PNG files what is known in grey and the rest hatched."""
    product = run_json(['refine', folder, '-o', tmp_path / 'a', *REFINE, '--set', 'refinement.probe_modes=2'])['output']
    arrays = run_json(['refine', training_file, '-o', tmp_path / 'b', *REFINE])['output']
    document = run_json(['export', tmp_path / 'a', '-o', tmp_path / 'star.tiff'])
    assert document['written'] == document['files']
    loaded = load_product(Path(product))
    values = loaded.object_.get_layer(0)
    for file, expected in zip(document['files'], (np.abs(values), np.angle(values)), strict=False):
        with cast('TiffImageFile', Image.open(file)) as picture:
            np.testing.assert_array_equal(np.asarray(picture), expected.astype(np.float32))
            micrometres = 1 / float(picture.tag_v2[282])
            assert micrometres == pytest.approx(1e6 * loaded.object_.get_pixel_geometry().width_m, rel=1e-4)
            assert 'unit=micron' in picture.tag_v2[270]
    with cast('TiffImageFile', Image.open(document['files'][2])) as picture:
        assert picture.n_frames == document['probe_modes'] == 2
    drawn = run_json(['export', arrays, '-o', tmp_path / 'star.png'])
    assert drawn['object_pixel_m'] is None
    with Image.open(drawn['files'][0]) as png, np.load(arrays) as result:
        colours = np.asarray(png.convert('RGB'))
        assert colours.shape[:2] == result['object'].shape
        assert set(map(tuple, colours[~result['coverage']].tolist())) <= {(232, 232, 232), (214, 214, 214)}
    for source, words in ((training_file, 'is no result'), (tmp_path, 'holds neither product.h5 nor')):
        refused = run_json(['export', source, '-o', tmp_path / 'no.png'])
        assert words in refused['error']['message']
