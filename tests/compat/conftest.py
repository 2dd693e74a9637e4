"""One small training for all tests of the workflow functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.workflows import run_cdi_example_torch
from tests.helpers.scans import make_scan

QUICK: dict[str, dict[str, Any]] = {
    'data': {'group_size': 16, 'neighbor_count': 20},
    'model': {'width': 4, 'levels': 2, 'steps': 3},
    'training': {'epochs': 2, 'threads': 1, 'accelerator': 'cpu', 'probe_trainable': False},
    'refinement': {'refine_epochs': 0},
    'inference': {'threads': 1, 'accelerator': 'cpu'},
    'execution': {'logger': 'none'},
}


@pytest.fixture(scope='session')
def quick() -> Config:
    return parse_config(QUICK)


@pytest.fixture(scope='session')
def small_scan() -> tuple[RawScan, npt.NDArray[np.complex128]]:
    """A scan of 49 positions, with its true object as the guess, and the object."""
    return make_scan(known_object=True)


@pytest.fixture(scope='session')
def stitched(
    quick: Config, small_scan: tuple[RawScan, npt.NDArray[np.complex128]]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], dict[str, Any]]:
    """What ``run_cdi_example_torch`` returns with stitching."""
    scan, _ = small_scan
    amplitude, phase, results = run_cdi_example_torch(scan, scan, quick, M=16, do_stitching=True)
    assert amplitude is not None
    assert phase is not None
    return amplitude, phase, results
