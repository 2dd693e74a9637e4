"""What all tests share."""

from __future__ import annotations

import os

# Before torch is imported anywhere: spinning OpenMP threads starve each other on a small machine.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
os.environ.setdefault('QT_QPA_PLATFORM', 'offscreen')
os.environ.setdefault('MPLBACKEND', 'Agg')

pytest_plugins = ['tests.helpers.fault_report', 'tests.helpers.host_scans']
