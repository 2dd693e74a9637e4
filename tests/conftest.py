"""What all tests share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported anywhere: spinning OpenMP threads starve each other on a small machine.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
os.environ.setdefault('QT_QPA_PLATFORM', 'offscreen')
os.environ.setdefault('MPLBACKEND', 'Agg')
# Reports of runs in the window go into the user's data.
os.environ['XDG_DATA_HOME'] = str(Path(tempfile.gettempdir(), 'ptychopinn-test-data'))

pytest_plugins = ['tests.helpers.fault_report', 'tests.helpers.host_scans']


@pytest.fixture(autouse=True, scope='module')
def _no_worker_is_kept() -> Iterator[None]:
    """A worker that waits for the next call is kept among the tests of one module only."""
    from ptychopinn_torch_plugin.worker.parent import end_kept_worker

    yield
    end_kept_worker()
