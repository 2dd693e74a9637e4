"""Train, reconstruct and refine: with files of every kind, with settings from a file or the command line."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ptychodus.api.io import load_product

from ptychopinn_torch_plugin.cli import commands
from ptychopinn_torch_plugin.data.io.npz import write_training_npz
from ptychopinn_torch_plugin.storage.model_file import load_model, read_model_header
from tests.helpers.processes import running
from tests.helpers.scans import make_scan

from .conftest import QUICK, REFINE, Command, JsonCommand


def test_npz_in_npz_out(training_file: Path, tmp_path: Path, run: Command, run_json: JsonCommand) -> None:
    trained = run_json(['train', training_file, '-o', tmp_path / 'out', *QUICK])
    model = tmp_path / 'out' / 'model.safetensors'
    losses = load_model(model).losses
    assert [record.epoch for record in losses] == [1, 2]
    assert trained['model'] == str(model)
    assert trained['report'] == str(model.with_name('training.html'))
    assert set(trained['written']) == {trained['model'], trained['report']}
    assert json.loads(model.with_name('status.json').read_text())['files'] == trained['written']
    assert trained['epochs'] == 2
    assert trained['training_loss'] == pytest.approx(losses[-1].training)
    assert trained['interrupted_by'] is None
    output = tmp_path / 'result.npz'
    assert run(['reconstruct', training_file, '-m', model, '-o', output, *REFINE]) == 0
    with np.load(output) as result:
        assert result['object'].shape == result['coverage'].shape == make_scan(rows=5)[1].shape
        assert result['object'].dtype == np.complex64
        assert result['positions'].shape == (25, 2)
        assert result['losses'].shape == (2,)


def test_folder_in_product_out(folder: Path, tmp_path: Path, run: Command) -> None:
    (folder / 'settings.ini').write_text('[PtychoPINNPyTorchTraining]\nEpochs = 3\n[Other]\nx = 1\n')
    common = ['-s', folder / 'settings.ini']
    assert run(['train', folder, '-o', folder, *QUICK[2:], *common]) == 0
    header = read_model_header(folder / 'model.safetensors')
    assert len(header.losses) == 3
    pixel = load_product(folder / 'product.h5').object_.get_pixel_geometry()
    assert header.object_pixel_m == (pixel.height_m, pixel.width_m)
    assert run(['reconstruct', folder, '-o', tmp_path / 'product.h5', *common, *REFINE]) == 0
    product = load_product(tmp_path / 'product.h5')
    assert len(product.losses) == 3
    assert product.object_.get_geometry() == load_product(folder / 'product.h5').object_.get_geometry()


def test_refine_needs_no_model_and_writes_into_a_folder(folder: Path, tmp_path: Path, run_json: JsonCommand) -> None:
    document = run_json(['refine', folder, '-o', tmp_path / 'refined', *REFINE])
    assert document['output'] == str(tmp_path / 'refined' / 'product.h5')
    assert len(document['losses']) == 2
    assert document['losses'][1] < document['losses'][0]
    assert 0.5 < document['coverage'] <= 1
    assert [loss.epoch for loss in load_product(tmp_path / 'refined' / 'product.h5').losses] == [1, 2]
    assert document['judgement']['verdict']
    assert json.loads((Path(document['judgement_folder']) / 'judgement.json').read_text()) == document['judgement']


def test_another_product_of_the_same_patterns(folder: Path, tmp_path: Path, run: Command) -> None:
    shutil.copy(folder / 'truth.h5', folder / 'better.h5')
    (folder / 'product.h5').unlink()
    assert run(['refine', folder / 'better.h5', '-o', tmp_path / 'again.h5', *REFINE]) == 0
    assert (tmp_path / 'again.h5').is_file()
    assert run(['refine', folder, '-o', tmp_path / 'again.h5', *REFINE]) == 3


def test_several_scans_one_model(folder: Path, training_file: Path, tmp_path: Path, run_json: JsonCommand) -> None:
    several = tmp_path / 'day'
    shutil.copytree(folder, several / 'b')
    (several / 'notes').mkdir()
    shutil.copy(training_file, several / 'a.npz')
    document = run_json(['train', several, training_file, '-o', tmp_path / 'out', *QUICK])
    assert document['scans'] == ['a.npz', 'simulated', 'scan.npz']
    (several / 'a.npz').unlink()
    shutil.rmtree(several / 'b')
    assert 'holds no scan' in run_json(['train', several, '-o', tmp_path / 'out', *QUICK])['error']['message']


def test_the_user_states_what_a_file_holds(training_file: Path, tmp_path: Path, run_json: JsonCommand) -> None:
    scan = make_scan(rows=5)[0]
    arrays = dict(np.load(training_file))
    del arrays['diff3d_quantity']
    roots = np.sqrt(scan.counts)
    np.savez(tmp_path / 'normalised.npz', **(arrays | {'diff3d': (roots / 37).astype(np.float32)}))
    words = ['refine', tmp_path / 'normalised.npz', '-o', tmp_path / 'r.npz', *REFINE]
    assert 'does not tell' in run_json(words)['error']['message']
    assert run_json([*words, '--read-as', 'amplitude', '--nphotons', 1e5])['ok']
    with np.load(tmp_path / 'r.npz') as result:
        assert np.sum(np.abs(result['probe']) ** 2) == pytest.approx(1e5, rel=0.2)


@pytest.mark.parametrize(
    ('words', 'code', 'message'),
    [
        (['train', 'nowhere', '-o', 'out'], 3, 'nowhere is not a scan: give a workflow folder'),
        (['train', 'gone.npz', '-o', 'out'], 3, 'gone.npz does not exist'),
        (['train', 'scan.npz', '-o', 'out', '--set', 'training.epochs'], 2, 'SECTION.NAME=VALUE'),
        (['train', 'scan.npz', '-o', 'out', '--set', 'training.epochs=x'], 2, "training.epochs = 'x'"),
        (['train', 'scan.npz', '-o', 'out', '--set', 'training.speed=9'], 2, 'training.speed'),
        (['train', 'scan.npz', '-o', 'out', '--set', 'model.model_type=pinn'], 2, 'train --supervised'),
        (['train', 'scan.npz', '-o', 'out', '-s', 'absent.ini'], 2, 'no settings file absent.ini'),
        (['train', 'scan.npz', '-o', 'out', '-s', 'scan.npz'], 2, 'scan.npz is not text in UTF-8'),
        (['train', 'scan.npz', '-o', 'out', '--supervised', *QUICK], 3, 'reference object'),
        (['train', 'scan.npz', '-o', 'scan.npz/out', *QUICK], 1, 'scan.npz'),
        (['reconstruct', 'scan.npz', '-m', 'absent.safetensors', '-o', 'x.npz'], 3, 'no model file'),
        (['reconstruct', 'scan.npz', '-m', 'scan.npz', '-o', 'x.npz'], 3, 'zip archive'),
        (['refine', 'scan.npz', '-o', 'x.h5'], 2, 'has no product'),
        (['refine', 'absent.npz', '-o', 'scan.npz/x.npz'], 1, 'is not a folder that you may write into'),
        (['refine', 'scan.npz', '-o', 'x.tif'], 2, 'write a product (.h5), arrays (.npz)'),
        (
            ['refine', 'scan.npz', '-o', 'x.npz', '--set', 'refinement.refine_epochs=0'],
            2,
            'at least one epoch',
        ),
    ],
)
def test_faults_are_one_sentence_and_a_code(
    words: list[str],
    code: int,
    message: str,
    training_file: Path,
    run: Command,
    run_json: JsonCommand,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scan, _ = make_scan(rows=5)
    write_training_npz(training_file, replace(scan, object_guess=np.ones_like(scan.object_guess)))
    monkeypatch.chdir(training_file.parent)
    assert run(words) == code
    captured = capsys.readouterr()
    assert captured.out == ''
    error = captured.err.strip().splitlines()[-1]
    assert error.startswith('ptychopinn-torch: ')
    assert message in error
    assert message in run_json(words)['error']['message']


def test_a_full_disk_is_a_message(training_file: Path, run_json: JsonCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(commands, 'write_npz', fail)
    document = run_json(['export', training_file, '-o', training_file.with_name('copy.npz')])
    assert document['exit_code'] == 1
    assert 'No space left' in document['error']['message']


def test_wrong_usage_is_exit_code_two(run: Command) -> None:
    with pytest.raises(SystemExit) as caught:
        run(['dance'])
    assert caught.value.code == 2


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=['SIGTERM', 'SIGINT'])
def test_a_signal_ends_training_with_a_model(training_file: Path, tmp_path: Path, number: int, code: int) -> None:
    """A scheduler's SIGTERM, or Ctrl-C: the batch ends, the best model is there, and the result says where."""
    command = [sys.executable, '-m', 'ptychopinn_torch_plugin.cli', 'train', str(training_file), '-o', str(tmp_path)]
    command += [*QUICK, '--set', 'training.epochs=3000', '--json']
    with running(command) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            if 'Epoch 2 of' in line:
                break
        process.send_signal(number)
        log = process.stderr.read()
        result = process.stdout.read()
        assert process.wait() == code, log
    document = json.loads(result)
    assert document['exit_code'] == code
    assert document['interrupted_by'] == signal.Signals(number).name
    assert Path(document['model']) == tmp_path / 'model.safetensors'
    assert document['epochs'] == len(load_model(tmp_path / 'model.safetensors').losses) >= 2
    assert '\r' not in log, 'a progress bar was drawn though stderr is no terminal'
