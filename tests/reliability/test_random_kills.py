"""Trainings killed at random moments: every model can be loaded, and every resumed training has the same result.

``KILLS=50`` in the environment is the full test; the suite does a few.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.fault_report import FaultReport

KILLS = int(os.environ.get('KILLS', '3'))


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the program forks its trainings')
@pytest.mark.timeout(120 + 30 * KILLS)
def test_a_training_killed_at_any_moment_resumes_to_the_same_model(tmp_path: Path, fault_report: FaultReport) -> None:
    seed = int.from_bytes(os.urandom(4), 'big')
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, '-m', 'tests.reliability.killed_training', str(tmp_path), str(KILLS), str(seed)],
        cwd=root,
        env=os.environ | {'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f'seed {seed}: {done.stderr}'
    found = json.loads(done.stdout.splitlines()[-1])
    assert found['kills'] == KILLS
    assert found['wrong'] == [], f'seed {seed}'
    fault_report.record(
        'SIGKILL at a random moment of a training', '(nothing)', 'a model that loads, and the state to resume from'
    )
