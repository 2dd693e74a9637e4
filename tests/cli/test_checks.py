"""Doctor, demo, help, and what is printed where."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ptychopinn_torch_plugin import doctor
from ptychopinn_torch_plugin.cli import main
from ptychopinn_torch_plugin.cli.codes import MEANINGS, ExitCode, exit_code_of
from ptychopinn_torch_plugin.cli.result import CommandResult, json_of
from ptychopinn_torch_plugin.cli.signals import StopSignals
from ptychopinn_torch_plugin.cli.terminal import progress_bar
from ptychopinn_torch_plugin.demo import demonstration as demo_run
from ptychopinn_torch_plugin.doctor import Check
from ptychopinn_torch_plugin.errors import MissingDependencyError, PtychoPINNError, TrainingError
from ptychopinn_torch_plugin.storage.json_values import plain

from .conftest import Command, JsonCommand

GOOD = Check('numpy', True, '2.0')
BAD = Check('torch', False, 'not installed', 'pip install torch')


@pytest.mark.parametrize(('found', 'code'), [([GOOD], 0), ([GOOD, BAD], 1)])
def test_doctor(
    found: list[Check], code: int, run_json: JsonCommand, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, 'collect', lambda: found)
    document = run_json(['doctor'])
    assert document['exit_code'] == code
    assert [check['name'] for check in document['checks']] == [check.name for check in found]
    assert document['checks'][-1]['remedy'] == found[-1].remedy
    assert run(['doctor']) == code


def test_doctor_for_people(run: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, 'collect', lambda: [GOOD, BAD])
    run(['doctor'])
    assert capsys.readouterr().out == doctor.report([GOOD, BAD]) + '\n'


def test_demo(
    run_json: JsonCommand, run: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = demo_run.DemoResult(Path('d/product.h5'), Path('d/picture.png'), {'r_factor': 0.1234})
    monkeypatch.setattr(demo_run, 'run_demo', lambda folder, scan: result)
    document = run_json(['demo', '-o', 'd'])
    assert document['scores'] == {'r_factor': 0.1234}
    assert document['product'] == 'd/product.h5'
    assert run(['demo', '-o', 'd']) == 0
    assert '0.1234\nThe product is d/product.h5' in capsys.readouterr().out


def test_what_others_print_does_not_reach_stdout(
    run_json: JsonCommand, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def collect() -> list[Check]:
        print('a chatty library')
        logging.getLogger('ptychopinn_torch_plugin.doctor').info('a record')
        return [GOOD]

    monkeypatch.setattr(doctor, 'collect', collect)
    assert run_json(['doctor'])['ok']
    main(['doctor'])
    captured = capsys.readouterr()
    assert 'a chatty library\na record\n' in captured.err
    assert 'chatty' not in captured.out
    main(['-q', 'doctor'])
    assert 'a record' not in capsys.readouterr().err


def test_help_lists_the_codes(run: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(['--help'])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert set(MEANINGS) == set(ExitCode)
    for code, meaning in MEANINGS.items():
        assert f'{int(code):>3}  {meaning}' in text


@pytest.mark.parametrize(
    ('error', 'code'),
    [
        (TrainingError('x'), ExitCode.FAILED),
        (PtychoPINNError('x'), ExitCode.FAILED),
        (OSError('x'), ExitCode.FAILED),
        (MissingDependencyError('x'), ExitCode.MISSING),
    ],
)
def test_codes_of_errors(error: Exception, code: ExitCode) -> None:
    assert exit_code_of(error) is code


def test_documents_hold_what_json_can() -> None:
    tree = {'a': np.float64(np.nan), 'b': (np.int64(3), Path('x')), 'c': {'d': float('inf')}, 'e': np.array([1, 2])}
    document = json_of(CommandResult(tree, 'text', ExitCode.FAILED), 'train', [Path('y')])
    assert json.loads(document) == {
        'command': 'train',
        'ok': False,
        'exit_code': 1,
        'written': ['y'],
        'a': None,
        'b': [3, 'x'],
        'c': {'d': None},
        'e': [1, 2],
    }
    assert plain('text') == 'text'


def test_a_bar_is_drawn_on_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, quiet, is_drawn in (
        (Terminal(), False, True),
        (Terminal(), True, False),
        (io.StringIO(), False, False),
    ):
        monkeypatch.setattr(sys, 'stderr', stream)
        with progress_bar('Training', StopSignals(), quiet=quiet) as observer:
            observer.on_progress(3, 10)
            observer.on_losses(1, 0.5, 0.25)
            observer.on_progress(10, 10)
        assert ('Training' in stream.getvalue()) is is_drawn
        assert ('validation_loss=0.2500' in stream.getvalue()) is is_drawn


def test_the_module_runs_and_loads_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, '-m', 'ptychopinn_torch_plugin.cli', '--version'], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith('ptychopinn_torch_plugin ')
    program = (
        'import sys; from ptychopinn_torch_plugin.cli.parser import build_parser; build_parser(); '
        'print([name for name in ("torch", "lightning", "ptychodus", "matplotlib", "PyQt5") if name in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'
