"""Scans as files, and the command as a function."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ptychopinn_torch_plugin.cli import main
from ptychopinn_torch_plugin.data.io.npz import write_training_npz
from ptychopinn_torch_plugin.demo.simulate import ScanPlan, simulate_scan
from tests.helpers.scans import make_scan
from tests.helpers.schemas import validate

Command = Callable[[Sequence[object]], int]
JsonCommand = Callable[[Sequence[object]], dict[str, Any]]

QUICK = [
    *('--set', 'training.epochs=2', '--set', 'training.threads=1', '--set', 'model.steps=3', '--set', 'model.width=4'),
    *('--set', 'data.group_size=12', '--set', 'data.neighbor_count=14'),
]
"""Settings for a training of a second."""

REFINE = ['--set', 'refinement.refine_epochs=2', '--set', 'inference.threads=1']


@pytest.fixture
def training_file(tmp_path: Path) -> Path:
    """A training file of 25 positions."""
    path = tmp_path / 'scan.npz'
    write_training_npz(path, make_scan(rows=5)[0])
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A workflow folder of 25 positions."""
    simulate_scan(tmp_path / 'scan', ScanPlan(rows=5, columns=5, pattern_shape=(32, 32)))
    return tmp_path / 'scan'


@pytest.fixture
def run() -> Command:
    """The command, with words of any type; returns the exit code."""
    return lambda words: main([str(word) for word in words])


@pytest.fixture
def run_json(capsys: pytest.CaptureFixture[str]) -> JsonCommand:
    """The command with ``--json``: returns the one document that it printed, and checks its exit code against it."""

    def call(words: Sequence[object]) -> dict[str, Any]:
        capsys.readouterr()
        code = main([*(str(word) for word in words), '--json'])
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert document['exit_code'] == code
        assert document['ok'] is (code == 0)
        assert document['command'] == words[0]
        validate('command', document)
        return document

    return call
