"""Several processes reconstruct one scan: the result does not depend on their number, and they end together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.data.sharding import processes
from ptychopinn_torch_plugin.engines.distributed import run_together
from ptychopinn_torch_plugin.errors import WorkerError
from ptychopinn_torch_plugin.types import Reconstruction
from tests.helpers.scans import make_scan

from .distributed_runs import configured, reconstructions, reconstructions_and_faults


@pytest.fixture(scope='module')
def scan() -> RawScan:
    return make_scan(rows=5)[0]


@pytest.fixture(scope='module')
def alone(scan: RawScan) -> dict[str, Reconstruction]:
    """The reconstructions of one process."""
    return reconstructions(scan)


@pytest.mark.parametrize('size', [2, 3])
def test_the_number_of_processes_does_not_change_the_result(
    size: int, scan: RawScan, alone: dict[str, Reconstruction], tmp_path: Path
) -> None:
    """The same run tests what ends the processes: each start costs seconds.

    Two processes get the patterns in shared memory. Three get a file that is mapped, and the last is killed in the end.
    """
    found: list[object] = []
    run = partial(reconstructions_and_faults, found)
    if size == 3:
        np.save(tmp_path / 'counts.npy', scan.counts)
        scan = dataclasses.replace(scan, counts=np.load(tmp_path / 'counts.npy', mmap_mode='r'))
        with pytest.raises(WorkerError, match='One of the 3 processes that work together has ended'):
            run_together(run, scan, configured(devices=3), None)
    else:
        assert len(run_together(run, scan, configured(devices=2), None).losses) == 2
    assert processes().size == 1
    together, stopped_after, message, batch_sizes = found
    assert isinstance(together, dict)
    for name, expected in alone.items():
        for part, value in _numbers(expected):
            np.testing.assert_allclose(
                dict(_numbers(together[name]))[part],
                value,
                rtol=0,
                atol=1e-5 * np.abs(value).max(),
                err_msg=f'{name}, {part}',
            )
    assert stopped_after == 2
    assert message == 'The disk of this node is gone.'
    assert batch_sizes == [16, 8]


def _numbers(result: Reconstruction) -> Iterator[tuple[str, np.ndarray]]:
    for name in ('object_array', 'probe', 'positions', 'intensities', 'coverage'):
        yield name, np.asarray(getattr(result, name), dtype=complex)
    yield 'losses', np.array([record.training for record in result.losses])
    assert result.metrics is not None
    for field in dataclasses.fields(result.metrics):
        value = getattr(result.metrics, field.name)
        if field.name == 'frc':
            value = np.zeros(1) if value is None else value.correlation
        if field.name == 'credibility':
            value = np.zeros(2) if value is None else (value.correlation, value.allowed)
        yield field.name, np.nan_to_num(np.asarray(value, dtype=float))
