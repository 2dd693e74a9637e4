"""A long run: calls leave nothing behind in the host's process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.soak import LARGEST_GROWTH, soak
from tests.helpers.fault_report import FaultReport


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc').is_dir(), reason='the figures are those of Linux')
def test_nothing_but_memory_is_ever_held(fault_report: FaultReport) -> None:
    """Four reconstructions and a training; memory needs the long run of ``make soak`` to be told from noise."""
    before, after = soak(4, 1, warm_up=1)
    growth = replace(before, memory_bytes=1.0).growth_to(replace(after, memory_bytes=1.0))
    assert max(growth.values()) <= LARGEST_GROWTH, (before, after)
    assert after.zombies == 0
    assert after.temporary_files == 0
    fault_report.record(
        'four reconstructions and a training in one host process',
        'nothing',
        'no process, no open file and no temporary file more than before',
    )
