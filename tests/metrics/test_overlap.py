"""A scan with too little overlap for its unknowns causes one warning, its half scans none."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from ptychopinn_torch_plugin.engines.pipeline import refine
from ptychopinn_torch_plugin.metrics.overlap import overlap_warning
from tests.engines.test_solver import settings
from tests.helpers.scans import make_scan


def test_the_probe_needs_more_overlap() -> None:
    assert overlap_warning(4.1, refines_probe=True) is None
    assert overlap_warning(3.5, refines_probe=False) is None
    assert '"Refine the probe"' in str(overlap_warning(3.5, refines_probe=True))
    assert 'smaller steps' in str(overlap_warning(1.5, refines_probe=False))


@pytest.mark.parametrize('refine_probe', [True, False])
def test_a_sparse_scan_causes_one_warning(refine_probe: bool, caplog: pytest.LogCaptureFixture) -> None:
    scan, _ = make_scan(rows=9)
    rows = np.arange(81).reshape(9, 9)
    config = settings(refine_epochs=2, refine_probe=refine_probe)
    config = config.model_copy(update={'inference': config.inference.model_copy(update={'half_scans': True})})
    with caplog.at_level(logging.WARNING):
        refine(scan.select(rows[::4, ::4].ravel()), config)
        [record] = [record for record in caplog.records if 'illuminate a pixel' in record.message]
        assert record.message.startswith(f'{scan.name}: 1.')
        caplog.clear()
        refine(scan, config)
    assert not caplog.records
