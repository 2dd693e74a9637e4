"""Memory: where it runs out, smaller batches, and a sentence when those are too large as well."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from ptychodus.api.settings import SettingsRegistry
from torch import Tensor

from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.data.tensors import ScanTensors
from ptychopinn_torch_plugin.engines.memory import is_out_of_memory, with_smaller_batches
from ptychopinn_torch_plugin.engines.pipeline import reconstruct, refine
from ptychopinn_torch_plugin.engines.solver import Solver
from ptychopinn_torch_plugin.errors import MemoryLimitError
from ptychopinn_torch_plugin.host.library import PtychoPINNPyTorchLibrary
from ptychopinn_torch_plugin.host.reconstructors import PtychoPINNReconstructor
from ptychopinn_torch_plugin.observer import SilentObserver
from ptychopinn_torch_plugin.types import ReconstructionMetrics, ReconstructionState
from ptychopinn_torch_plugin.worker.job import open_job
from ptychopinn_torch_plugin.worker.parent import run_job
from tests.helpers.fault_report import FaultReport
from tests.helpers.models import untrained_model
from tests.helpers.scans import make_scan

CONFIG = parse_config(
    {
        'model': {'steps': 3, 'width': 4, 'levels': 1},
        'inference': {'accelerator': 'cpu', 'threads': 1, 'steps': 3},
        'refinement': {'refine_epochs': 3, 'positions_start': 1, 'probe_start': 1},
    }
)
SIZE = 49
"""Positions of the scan: the first batch; then 25, then 13."""


def cuda_is_full() -> None:
    raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB.')


def main_memory_is_full() -> None:
    """The real thing: an allocation that no machine grants."""
    torch.empty(2**60, dtype=torch.uint8)


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], list[int]]:
    """Let patterns be gathered in batches of so many and no more; returns the sizes that were asked for."""

    def install(limit: int, fail: Callable[[], None]) -> list[int]:
        sizes: list[int] = []
        gather = ScanTensors.amplitudes

        def amplitudes(self: ScanTensors, indices: npt.NDArray[np.integer] | slice) -> Tensor:
            sizes.append(indices.stop - indices.start if isinstance(indices, slice) else int(np.size(indices)))
            if sizes[-1] > limit:
                fail()
            return gather(self, indices)

        monkeypatch.setattr(ScanTensors, 'amplitudes', amplitudes)
        return sizes

    return install


class _Progress(SilentObserver):
    def __init__(self) -> None:
        self.all: list[tuple[int, int]] = []

    def on_progress(self, done: int, goal: int) -> None:
        self.all.append((done, goal))


@pytest.mark.parametrize('fail', [cuda_is_full, main_memory_is_full])
def test_batches_are_halved_and_the_result_is_the_same(
    fail: Callable[[], None],
    allow: Callable[[int, Callable[[], None]], list[int]],
    caplog: pytest.LogCaptureFixture,
    fault_report: FaultReport,
) -> None:
    scan, _ = make_scan()
    model = untrained_model(CONFIG)
    expected = reconstruct(scan, model, CONFIG)
    sizes = allow(13, fail)
    progress = _Progress()
    with caplog.at_level(logging.WARNING, logger='ptychopinn_torch_plugin'):
        found = reconstruct(scan, model, CONFIG, progress)
    assert max(sizes) == SIZE
    np.testing.assert_allclose(found.object_array, expected.object_array, atol=2e-4)
    np.testing.assert_allclose(found.positions, expected.positions, atol=1e-2)
    warnings = [record.getMessage() for record in caplog.records if 'out of memory' in record.getMessage()]
    for stage in ('The network', 'The refinement'):
        said = [line for line in warnings if line.startswith(stage)]
        assert [line.rsplit('batches of ', 1)[1] for line in said] == ['25 patterns.', '13 patterns.']
    done = [done for done, _ in progress.all]
    assert done == sorted(done), 'what is done anew is counted once'
    assert {goal for _, goal in progress.all} == {done[-1]}
    fault = 'CUDA runs out of memory in inference' if fail is cuda_is_full else 'main memory runs out in inference'
    fault_report.record(fault, warnings[0], 'everything: the same object comes of smaller batches')


def test_a_quarter_of_the_batch_is_the_end(
    allow: Callable[[int, Callable[[], None]], list[int]], fault_report: FaultReport
) -> None:
    scan, _ = make_scan(rows=9)
    sizes = allow(20, cuda_is_full)
    with pytest.raises(MemoryLimitError) as caught:
        refine(scan, CONFIG)
    assert sorted(set(sizes), reverse=True)[:3] == [81, 40, 21]
    labels = ('"Batch size (reconstruction)" or "Window size"', '"Accelerator (reconstruction)"')
    for word in ('batches of 21 patterns', *labels):
        assert word in str(caught.value)
    fault_report.record('CUDA runs out of memory even with small batches', str(caught.value), 'the product as it was')


def test_the_result_is_kept_when_its_metrics_need_too_much_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault_report: FaultReport
) -> None:
    scan, _ = make_scan(rows=5)
    expected = refine(scan, CONFIG)

    def measure(
        tensors: ScanTensors, state: ReconstructionState, batch_size: int, smoothing: float
    ) -> ReconstructionMetrics:
        raise RuntimeError('std::bad_alloc')

    monkeypatch.setattr('ptychopinn_torch_plugin.engines.pipeline.measure', measure)
    found = refine(scan, CONFIG)
    np.testing.assert_array_equal(found.object_array, expected.object_array)
    np.testing.assert_array_equal(found.coverage, expected.coverage)
    assert expected.metrics is not None
    assert found.metrics is None
    (said,) = [record.getMessage() for record in caplog.records if 'is complete' in record.getMessage()]
    assert 'bad_alloc' in said
    fault_report.record('memory runs out in the metrics', said, 'the product')


def test_the_result_is_kept_when_a_half_scan_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scan, _ = make_scan(rows=5)
    expected = refine(scan, CONFIG)
    run = Solver.run

    def run_whole_scans(self: Solver, listener: Callable[[int, float], bool]) -> ReconstructionState:
        if self._tensors.size < scan.size:
            raise RuntimeError('std::bad_alloc')
        return run(self, listener)

    monkeypatch.setattr(Solver, 'run', run_whole_scans)
    inference = CONFIG.inference.model_copy(update={'half_scans': True})
    found = refine(scan, CONFIG.model_copy(update={'inference': inference}))
    np.testing.assert_array_equal(found.object_array, expected.object_array)
    assert found.metrics is not None
    assert found.metrics.frc is None
    assert 'The half scans are not compared' in caplog.text


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='needs /proc to set a limit')
def test_patterns_beyond_the_limit_of_memory_are_one_sentence(fault_report: FaultReport) -> None:
    """As patterns of 2.9 GiB under "ulimit -v" of 4 GiB: the worker cannot map them."""
    scan = dataclasses.replace(make_scan(rows=2)[0], counts=np.zeros((300, 512, 512), dtype=np.uint16))
    with (
        open_job('refine', [scan], CONFIG) as job,
        pytest.raises(MemoryLimitError, match='too small for the scan: crop or bin the patterns') as caught,
    ):
        list(run_job(job, entry='tests.reliability.faults:read_beyond_the_limit'))
    assert '\n' not in str(caught.value)
    fault_report.record('the patterns are larger than the limit of memory', str(caught.value), 'the product as it was')


def test_memory_that_runs_out_in_the_host_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> RawScan:
        np.zeros(2**62, dtype=np.uint8)
        raise AssertionError('no machine has so much memory')

    (tmp_path / 'diffraction.h5').touch()
    (tmp_path / 'product.h5').touch()
    monkeypatch.setattr('ptychopinn_torch_plugin.host.reconstructors.read_workflow_folder', read)
    pinn, *_ = PtychoPINNPyTorchLibrary(SettingsRegistry())
    assert isinstance(pinn, PtychoPINNReconstructor)
    with pytest.raises(MemoryLimitError, match=r'main memory is too small.*Unable to allocate.*crop or bin'):
        list(pinn.train(tmp_path, tmp_path))


def test_other_errors_are_not_taken_for_it() -> None:
    calls = []

    def work(batch_size: int) -> None:
        calls.append(batch_size)
        raise RuntimeError('mat1 and mat2 shapes cannot be multiplied')

    with pytest.raises(RuntimeError, match='mat1'):
        with_smaller_batches(work, 8, 'The network')
    assert calls == [8]


def test_a_batch_of_one_is_not_halved() -> None:
    calls = []

    def work(batch_size: int) -> None:
        calls.append(batch_size)
        raise MemoryError

    with pytest.raises(MemoryLimitError, match='batches of 1 patterns'):
        with_smaller_batches(work, 2, 'The network')
    assert calls == [2, 1]


def test_what_failed_is_let_go_before_the_next_attempt() -> None:
    """The frames of an exception hold the tensors that filled the memory."""
    import weakref

    alive: list[weakref.ref[Tensor]] = []

    def work(batch_size: int) -> int:
        if alive:
            assert alive[0]() is None
            return batch_size
        tensor = torch.zeros(10)
        alive.append(weakref.ref(tensor))
        raise torch.cuda.OutOfMemoryError('CUDA out of memory.')

    assert with_smaller_batches(work, 5, 'The network') == 3


def test_the_signs_of_full_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        main_memory_is_full()
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError('out of memory'))
    for text in ('std::bad_alloc', 'cuDNN error: CUDNN_STATUS_ALLOC_FAILED', 'HIP out of memory. Tried to allocate'):
        assert is_out_of_memory(RuntimeError(text))
    assert Config().inference.batch_size > 1
