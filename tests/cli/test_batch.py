"""Batches: every scan in a folder of its own, failures listed, and a batch that was ended continues."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from ptychopinn_torch_plugin.cli.batch import list_scans, read_shard
from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.data.io.npz import write_training_npz
from ptychopinn_torch_plugin.errors import ConfigurationError
from ptychopinn_torch_plugin.storage.model_file import save_model
from tests.helpers.models import untrained_model
from tests.helpers.processes import running
from tests.helpers.scans import make_scan

from .conftest import REFINE, Command, JsonCommand


@pytest.fixture
def day(tmp_path: Path) -> Path:
    """A folder with three training files of 25 positions."""
    folder = tmp_path / 'day'
    folder.mkdir()
    for number in range(3):
        write_training_npz(folder / f'scan{number}.npz', make_scan(rows=5, seed=number)[0])
    return folder


def test_a_killed_batch_continues_with_what_is_not_done(day: Path, tmp_path: Path, run_json: JsonCommand) -> None:
    """After SIGKILL in the second scan, the first is not touched, and the scan that was begun comes last."""
    output = tmp_path / 'out'
    words = ['batch', day, '-o', output, '--set', 'refinement.refine_epochs=20', '--set', 'inference.threads=1']
    command = [sys.executable, '-m', 'ptychopinn_torch_plugin.cli', *map(str, words)]
    with running(command, stdout=None) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if '1/3' in line:
                break
        second = output / 'day' / 'scan1' / 'record.json'
        while not second.is_file():
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.stderr.read()
    assert json.loads(second.read_text())['state'] == 'started'
    first = output / 'day' / 'scan0' / 'reconstruction.npz'
    before = first.stat().st_mtime_ns
    document = run_json(words)
    assert (document['done_before'], document['reconstructed'], document['failed'], document['left']) == (1, 2, 0, 0)
    assert [Path(record['scan']).name for record in document['scans']] == ['scan0.npz', 'scan2.npz', 'scan1.npz']
    assert first.stat().st_mtime_ns == before


def test_a_failure_is_listed_and_the_others_are_reconstructed(
    day: Path, folder: Path, tmp_path: Path, run: Command, run_json: JsonCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    (day / 'scan1.npz').write_bytes(b'cut short')
    (day / 'scan0.npz').unlink()
    model = tmp_path / 'model.safetensors'
    save_model(model, untrained_model(parse_config({'model': {'steps': 2, 'width': 4, 'levels': 1}})))
    output = tmp_path / 'out'
    words = ['batch', day, folder, tmp_path / 'absent', '-m', model, '-o', output, *REFINE]
    document = run_json(words)
    assert document['exit_code'] == 1
    assert (document['reconstructed'], document['failed']) == (2, 2)
    assert {record['error']['type'] for record in document['scans'] if record['state'] == 'failed'} == {'InputError'}
    assert (output / 'scan' / 'product.h5').is_file()
    with np.load(output / 'day' / 'scan2' / 'reconstruction.npz') as result:
        assert result['object'].dtype == np.complex64
    record = json.loads((output / 'day' / 'scan2' / 'record.json').read_text())
    assert record['judgement'] == json.loads((output / 'day' / 'scan2' / 'judgement' / 'judgement.json').read_text())
    assert any('Refined 2 epochs' in line for line in record['log'])
    shutil.copy(day / 'scan2.npz', day / 'scan1.npz')
    capsys.readouterr()
    assert run([*words[:2], *words[4:]]) == 0
    captured = capsys.readouterr()
    assert captured.out == 'Scans: 1 reconstructed, 1 done before, 0 failed, 0 left.\n'
    assert 'Refined' not in captured.err
    assert f'1/1 {day / "scan1.npz"}: misfit' in captured.err


def test_a_done_scan_is_reconstructed_again_where_it_must(day: Path, tmp_path: Path, run_json: JsonCommand) -> None:
    output = tmp_path / 'out'
    words = ['batch', day / 'scan0.npz', '-o', output, *REFINE]
    assert run_json(words)['reconstructed'] == 1
    assert run_json([*words, '--set', 'inference.batch_size=16'])['done_before'] == 1
    other = [*words, '--set', 'refinement.smoothing=1']
    message = run_json(other)['error']['message']
    assert 'other values of refinement.smoothing: give another output folder, or --again' in message
    assert run_json([*other, '--again'])['reconstructed'] == 1
    shutil.copy(day / 'scan1.npz', day / 'scan0.npz')
    assert run_json(other)['reconstructed'] == 1
    (output / 'scan0' / 'record.json').write_text('{"state": "well"}')
    assert 'is not a record of a batch' in run_json(other)['error']['message']


def test_a_signal_leaves_the_scan_for_the_next_time(
    day: Path, tmp_path: Path, run_json: JsonCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptychopinn_torch_plugin.engines import pipeline

    refine = pipeline.refine

    def interrupted(*arguments: object) -> object:
        signal.raise_signal(signal.SIGTERM)
        return refine(*arguments)  # type: ignore[arg-type] # passed through

    words = ['batch', day / 'scan0.npz', day / 'scan1.npz', '-o', tmp_path / 'out', '--shard', '1/2', *REFINE]
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, 'refine', interrupted)
        document = run_json(words)
    assert document['exit_code'] == 143
    assert (document['interrupted_by'], document['reconstructed'], document['left']) == ('SIGTERM', 0, 1)
    document = run_json(words)
    assert (document['reconstructed'], document['left'], document['shard']) == (1, 0, [1, 2])


def test_a_defect_in_one_scan_does_not_end_the_batch(
    day: Path, tmp_path: Path, run_json: JsonCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptychopinn_torch_plugin.engines import pipeline

    refine = pipeline.refine
    calls: list[object] = []

    def fail_once(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 1:
            raise ZeroDivisionError('a defect')
        return refine(*arguments)  # type: ignore[arg-type] # passed through

    monkeypatch.setattr(pipeline, 'refine', fail_once)
    document = run_json(['batch', day / 'scan0.npz', day / 'scan1.npz', '-o', tmp_path / 'out', *REFINE])
    assert (document['failed'], document['reconstructed']) == (1, 1)
    record = json.loads((tmp_path / 'out' / 'scan0' / 'record.json').read_text())
    assert record['error'] == {'type': 'ZeroDivisionError', 'message': 'a defect'}
    assert 'fail_once' in ''.join(record['log'])


def test_shards_share_the_scans(day: Path, tmp_path: Path) -> None:
    scans = list_scans([day], tmp_path)
    parts = [read_shard(f'{number}/2').select(scans) for number in (1, 2)]
    assert [scan.path.name for scan in parts[0]] == ['scan0.npz', 'scan2.npz']
    assert [scan.path.name for scan in parts[1]] == ['scan1.npz']


@pytest.mark.parametrize('text', ['0/2', '3/2', '1', '1/0', 'a/b', '-1/2'])
def test_a_shard_that_is_none_is_refused(text: str, run: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(['batch', 'day', '-o', 'out', f'--shard={text}'])
    assert caught.value.code == 2
    assert 'is no part of a batch: write I/N' in capsys.readouterr().err


def test_two_scans_of_one_name_are_refused(day: Path, tmp_path: Path) -> None:
    other = tmp_path / 'night'
    shutil.copytree(day, other)
    with pytest.raises(ConfigurationError, match='would both be written to .*scan0: name the folders that hold them'):
        list_scans([day / 'scan0.npz', other / 'scan0.npz'], tmp_path / 'out')
    assert len({scan.folder for scan in list_scans([day, other], tmp_path / 'out')}) == 6


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['-o', 'x.npz'], 'a batch writes into a folder'),
        (['-o', 'out', '--set', 'refinement.refine_epochs=0'], 'needs at least one epoch'),
        (['-o', 'out', '--set', 'inference.accelerator=mps'], 'accelerator'),
    ],
)
def test_what_concerns_every_scan_ends_the_batch(
    words: list[str], message: str, day: Path, tmp_path: Path, run_json: JsonCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    document = run_json(['batch', day, *words])
    assert document['exit_code'] == 2
    assert message in document['error']['message']
