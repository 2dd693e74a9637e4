"""The path of a GPU on torch's ``meta`` device, which is always there: placement, and host synchronisations.

A ``meta`` tensor has a shape, a dtype and a device, and no values. Operations on tensors of two devices raise there as
on a GPU, and what reads a value on the host can be counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ptychopinn_torch_plugin.config import InferenceConfig, ModelConfig, RefinementConfig
from ptychopinn_torch_plugin.data import tensors as tensors_module
from ptychopinn_torch_plugin.data.tensors import ScanTensors, initial_state
from ptychopinn_torch_plugin.engines import gradients as gradients_module
from ptychopinn_torch_plugin.engines.gradients import gpu_batch_size
from ptychopinn_torch_plugin.engines.network import Predictor, windows_of
from ptychopinn_torch_plugin.engines.progress import ProgressReporter, Stage
from ptychopinn_torch_plugin.engines.solver import Solver
from ptychopinn_torch_plugin.models.registry import build_generator
from ptychopinn_torch_plugin.observer import SilentObserver
from tests.helpers.scans import make_scan

META = torch.device('meta')
READS: dict[Callable[..., Any], Any] = {
    Tensor.item: 1.0,
    Tensor.__float__: 1.0,
    Tensor.__int__: 1,
    Tensor.__index__: 1,
    Tensor.__bool__: True,
}
"""Methods that wait for the device and return a number, with the number that they return here."""


class HostReads(TorchFunctionMode):
    """Counts what reads values of ``meta`` tensors on the host, and answers in their place."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run one function of torch."""
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.device == META:
            if func in READS:
                self.counts[func.__name__] += 1
                return READS[func]
            if func is Tensor.tolist:
                self.counts['tolist'] += 1
                return np.ones(first.shape).tolist()
            if func is Tensor.cpu:
                self.counts['cpu'] += 1
                return torch.ones(first.shape, dtype=first.dtype)
        return func(*args, **(kwargs or {}))


class Placement(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects operations that make a tensor of more than one element anywhere but on the ``meta`` device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elsewhere: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run one operation."""
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.device != META and tensor.numel() > 2:
                self.elsewhere[str(func)] += 1
        return result


@pytest.fixture(params=[False, True], ids=['streamed', 'resident'])
def tensors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScanTensors]:
    """A scan whose patterns are copied for every batch, and one whose patterns stay on the device."""
    free = 2**34 if request.param else None
    for module in (tensors_module, gradients_module):
        monkeypatch.setattr(module, 'free_device_bytes', lambda _device: free)
    scan, _ = make_scan(modes=2, dtype='uint16')
    yield ScanTensors(scan, META)


def test_the_solver_reads_one_number_an_epoch(tensors: ScanTensors) -> None:
    reads, placement, epochs = HostReads(), Placement(), []
    config = RefinementConfig(
        refine_epochs=6, probe_start=1, positions_start=2, refine_intensity=True, intensity_start=3, smoothing=4.0
    )

    def listen(epoch: int, _deviance: float) -> bool:
        epochs.append(sum(reads.counts.values()))
        if epoch == 5:
            checked.close()
        return False

    with torch.inference_mode(), reads, ExitStack() as checked:
        state = initial_state(tensors)
        assert sum(reads.counts.values()) <= 3
        solver = Solver(tensors, state, config, 16)
        checked.enter_context(placement)
        refined = solver.run(listen)
    assert set(np.diff(epochs)) == {1}
    for part in (refined.object_array, refined.probe, refined.positions, refined.intensities):
        assert part.device == META
    # The patterns are read on the host, and small arrays are made there: nothing else.
    copies = {'aten.lift_fresh.default', 'aten.detach.default', 'aten.slice.Tensor', 'aten.view.default'}
    assert set(placement.elsewhere) <= copies


@pytest.mark.parametrize('generator', ['unrolled', 'patch'])
def test_the_network_reads_nothing(tensors: ScanTensors, generator: str) -> None:
    reads = HostReads()
    config = ModelConfig.model_validate({'generator': generator, 'steps': 2, 'width': 4, 'levels': 1})
    with torch.inference_mode(), reads:
        state = initial_state(tensors)
        network = build_generator(config).to(META)
        windows = windows_of(state, network, 4, InferenceConfig())
        progress = ProgressReporter(SilentObserver(), [Stage('', 100, 100)], (60, 60), 0)
        predictor = Predictor(tensors, state, network, windows, 1, 16, progress)
        before = sum(reads.counts.values())
        result = predictor.predict()
    assert sum(reads.counts.values()) == before
    assert result.object_array.device == META


def test_the_batch_of_a_gpu_follows_its_free_memory_and_a_retry() -> None:
    wave = 8 * 128 * 128
    assert gpu_batch_size(128, wave, 80 * 2**30) == 32 * 128
    assert gpu_batch_size(64, wave, 80 * 2**30) == 32 * 64  # after memory ran out
    assert 128 < gpu_batch_size(128, wave, 2 * 2**30) < 512
    assert gpu_batch_size(128, wave, 2**20) == 128


def test_resident_patterns_are_the_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU on a CPU: in parts, unsigned dtypes, slices and indices."""
    for dtype in ('uint8', 'uint16', 'uint32', 'int64', 'float32'):
        scan, _ = make_scan(rows=3, photons=3e3, dtype=dtype)
        plain = ScanTensors(scan, torch.device('cpu'))
        with monkeypatch.context() as patch:
            patch.setattr(tensors_module, 'free_device_bytes', lambda _device: 2**30)
            patch.setattr(tensors_module, 'COPY_BYTES', 2 * scan.counts[0].nbytes)
            resident = ScanTensors(scan, torch.device('cpu'))
            assert resident._resident_counts is not None
        for chosen in (slice(2, 7), np.array([5, 0, 5])):
            torch.testing.assert_close(resident.amplitudes(chosen), plain.amplitudes(chosen))
