"""Containers and clusters: a user without an entry in the user database, without a home, with any umask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.fault_report import FaultReport

SITE_CUSTOMIZE = """
import pwd

def getpwuid(uid):
    raise KeyError(f'getpwuid(): uid not found: {uid}')

pwd.getpwuid = getpwuid
"""


@pytest.mark.skipif(os.name != 'posix', reason='users of POSIX')
@pytest.mark.parametrize(('home', 'mask'), [(None, '000'), ('/proc/no-such-home', '077')])
def test_a_user_without_a_home_reconstructs(
    home: str | None, mask: str, tmp_path: Path, fault_report: FaultReport
) -> None:
    (tmp_path / 'sitecustomize.py').write_text(SITE_CUSTOMIZE)  # read by the worker as well
    root = Path(__file__).parents[2]
    environment = {
        'PATH': os.environ['PATH'],
        'PYTHONPATH': f'{tmp_path}{os.pathsep}{root}',
        'OMP_NUM_THREADS': '1',
    } | ({} if home is None else {'HOME': home})
    done = subprocess.run(
        [sys.executable, '-m', 'tests.reliability.container', str(tmp_path / 'out')],
        cwd=root,
        env=environment,
        umask=int(mask, 8),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {
        'files': ['judgement.json', 'judgement.png', 'maps.npz', 'report.html', 'status.json'],
        'permissions': '0o700',
        'is_finite': True,
    }
    fault = 'no home and no entry in the user database' if home is None else 'a home that does not exist'
    fault_report.record(f'{fault}, umask {mask}', '(nothing)', 'everything: the run is as ever')
