"""The command line: the same engine, settings from a file or the line, messages and exit codes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ptychopinn_torch_plugin.cli import main
from ptychopinn_torch_plugin.data.npz import write_training_npz
from ptychopinn_torch_plugin.demo.simulate import ScanPlan, simulate_scan
from ptychopinn_torch_plugin.persistence import load_model, read_model_header

from .scans import make_scan

QUICK = [
    *('--set', 'training.epochs=2', '--set', 'training.threads=1', '--set', 'model.steps=3', '--set', 'model.width=4'),
    *('--set', 'data.group_size=12', '--set', 'data.neighbor_count=14'),
]


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    yield
    logging.getLogger('ptychopinn_torch_plugin').setLevel(logging.NOTSET)
    logging.getLogger('lightning.pytorch').setLevel(logging.NOTSET)


@pytest.fixture
def training_file(tmp_path: Path) -> Path:
    path = tmp_path / 'scan.npz'
    write_training_npz(path, make_scan(rows=5)[0])
    return path


def test_npz_in_npz_out(training_file: Path, tmp_path: Path) -> None:
    assert main(['train', str(training_file), '-o', str(tmp_path / 'out'), *QUICK]) == 0
    model = tmp_path / 'out' / 'model.safetensors'
    assert [record.epoch for record in load_model(model).losses] == [1, 2]
    output = tmp_path / 'result.npz'
    assert main(['reconstruct', str(training_file), '-m', str(model), '-o', str(output)]) == 0
    with np.load(output) as result:
        assert result['object'].shape == result['coverage'].shape == make_scan(rows=5)[1].shape
        assert result['object'].dtype == np.complex64
        assert result['losses'].shape == (2,)


def test_folder_in_product_out(tmp_path: Path) -> None:
    from ptychodus.api.io import load_product

    folder = tmp_path / 'scan'
    simulate_scan(folder, ScanPlan(rows=5, columns=5, pattern_shape=(32, 32)))
    (folder / 'settings.ini').write_text('[PtychoPINNPyTorchTraining]\nEpochs = 3\n[Other]\nx = 1\n')
    common = ['-s', str(folder / 'settings.ini')]
    assert main(['train', str(folder), '-o', str(folder), *QUICK[2:], *common]) == 0
    assert len(read_model_header(folder / 'model.safetensors').losses) == 3
    assert main(['reconstruct', str(folder), '-o', str(tmp_path / 'product.h5'), *common]) == 0
    product = load_product(tmp_path / 'product.h5')
    assert len(product.losses) == 3
    assert product.object_.get_geometry() == load_product(folder / 'product.h5').object_.get_geometry()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['train', 'nowhere', '-o', 'out'], 'nowhere is neither'),
        (['train', 'scan.npz', '-o', 'out', '--set', 'training.epochs'], 'SECTION.NAME=VALUE'),
        (['train', 'scan.npz', '-o', 'out', '--set', 'training.epochs=x'], "training.epochs = 'x'"),
        (['train', 'scan.npz', '-o', 'out', '-s', 'absent.ini'], 'no settings file absent.ini'),
        (['train', 'scan.npz', '-o', 'out', '--supervised', *QUICK], 'reference object'),
        (['reconstruct', 'scan.npz', '-m', 'absent.safetensors', '-o', 'x.npz'], 'no model file'),
    ],
)
def test_faults_are_one_sentence_and_exit_code_one(
    arguments: list[str],
    message: str,
    training_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from dataclasses import replace

    scan, _ = make_scan(rows=5)
    write_training_npz(training_file, replace(scan, object_guess=np.ones_like(scan.object_guess)))
    monkeypatch.chdir(training_file.parent)
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('ptychopinn-torch: ')
    assert message in error


def test_wrong_usage_is_exit_code_two() -> None:
    with pytest.raises(SystemExit) as caught:
        main(['dance'])
    assert caught.value.code == 2


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT], ids=lambda number: signal.Signals(number).name)
def test_a_signal_ends_training_with_a_model(training_file: Path, tmp_path: Path, number: int) -> None:
    """SLURM's SIGTERM, or Ctrl-C: the batch ends, the model is there, the exit is in order."""
    command = [sys.executable, '-m', 'ptychopinn_torch_plugin.cli', 'train', str(training_file), '-o', str(tmp_path)]
    environment = dict(os.environ, PYTHONUNBUFFERED='1')
    with subprocess.Popen(
        [*command, *QUICK, '--set', 'training.epochs=100000'], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if 'Epoch 2 of' in line:
                break
        start = time.monotonic()
        process.send_signal(number)
        process.stderr.read()
        assert process.wait() == 0
    assert time.monotonic() - start < 10
    assert len(load_model(tmp_path / 'model.safetensors').losses) >= 2
