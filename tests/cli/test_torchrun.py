"""The command as several processes that torchrun starts: one result, written and reported once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .conftest import REFINE, JsonCommand


def test_torchrun_gives_the_result_of_one_process(training_file: Path, tmp_path: Path, run_json: JsonCommand) -> None:
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    words = ['refine', str(training_file), '-o', str(tmp_path / 'two.npz'), *REFINE, '--json']
    done = subprocess.run(
        [*launcher, '-m', 'ptychopinn_torch_plugin.cli', *words],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    document = json.loads(done.stdout)
    assert done.stderr.count('Refined 2 epochs') == 1
    alone = run_json(['refine', training_file, '-o', tmp_path / 'one.npz', *REFINE])
    np.testing.assert_allclose(document['losses'], alone['losses'], rtol=1e-5)
    with np.load(tmp_path / 'two.npz') as found, np.load(tmp_path / 'one.npz') as expected:
        np.testing.assert_allclose(found['object'], expected['object'], atol=1e-5)


def test_a_batch_is_not_started_by_torchrun(
    training_file: Path, tmp_path: Path, run_json: JsonCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {'RANK': '0', 'WORLD_SIZE': '2', 'MASTER_ADDR': 'localhost', 'MASTER_PORT': '1'}.items():
        monkeypatch.setenv(name, value)
    document = run_json(['batch', training_file, '-o', tmp_path / 'out'])
    assert document['exit_code'] == 2
    assert 'start it without torchrun' in document['error']['message']
