"""Numbers that are not finite: none of them reaches a product."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ptychodus.api.reconstruct import ReconstructInput, ReconstructOutput
from ptychodus.api.settings import SettingsRegistry

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.engines import pipeline as reconstruction
from ptychopinn_torch_plugin.engines.network import Predictor
from ptychopinn_torch_plugin.engines.pipeline import reconstruct, refine
from ptychopinn_torch_plugin.engines.solver import EpochListener, Solver
from ptychopinn_torch_plugin.errors import ReconstructionError
from ptychopinn_torch_plugin.host import runs
from ptychopinn_torch_plugin.host.contract import HostRun
from ptychopinn_torch_plugin.host.library import PtychoPINNPyTorchLibrary
from ptychopinn_torch_plugin.types import LossRecord, ReconstructionState
from ptychopinn_torch_plugin.worker.job import Job, read_result, write_result
from ptychopinn_torch_plugin.worker.messages import Message, Preview
from tests.helpers.fault_report import FaultReport
from tests.helpers.models import untrained_model
from tests.helpers.scans import make_scan
from tests.host.conftest import make_reconstruct_input
from tests.host.fake_worker import FakeWorker, finish

CONFIG = parse_config(
    {
        'model': {'steps': 2, 'width': 4, 'levels': 1},
        'inference': {'accelerator': 'cpu', 'threads': 1, 'steps': 2},
        'refinement': {'refine_epochs': 3},
    }
)
NETWORK_ALONE = CONFIG.model_copy(update={'refinement': CONFIG.refinement.model_copy(update={'refine_epochs': 0})})


def break_object(solver: Solver) -> None:
    solver._state.object_array[20, 20] = float('nan')


def break_probe(solver: Solver) -> None:
    solver._state.probe[0, 16, 16] = float('inf')


def break_intensities(solver: Solver) -> None:
    solver._state.intensities[3] = float('nan')


def spoil_solver(monkeypatch: pytest.MonkeyPatch, harm: Callable[[Solver], None]) -> None:
    """Apply ``harm`` to the state of every refinement after its first epoch."""

    class Spoiled(Solver):
        def run(self, listen: EpochListener) -> ReconstructionState:
            def listen_and_spoil(epoch: int, deviance: float) -> bool:
                if epoch == 1:
                    harm(self)
                return listen(epoch, deviance)

            return super().run(listen_and_spoil)

    monkeypatch.setattr(reconstruction, 'Solver', Spoiled)


@pytest.mark.parametrize('harm', [break_object, break_probe, break_intensities])
def test_a_refinement_that_diverges_alone_is_refused(
    harm: Callable[[Solver], None], monkeypatch: pytest.MonkeyPatch, fault_report: FaultReport
) -> None:
    spoil_solver(monkeypatch, harm)
    scan, _ = make_scan()
    with pytest.raises(ReconstructionError) as caught:
        refine(scan, CONFIG)
    assert 'diverged in epoch 2' in str(caught.value)
    assert '"Refine the probe"' in str(caught.value)
    what = harm.__name__.removeprefix('break_')
    fault_report.record(f'refinement makes the {what} infinite', str(caught.value), 'the product as it was')


def test_the_object_of_the_network_survives_a_refinement_that_diverges(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault_report: FaultReport
) -> None:
    scan, _ = make_scan()
    model = untrained_model(CONFIG)
    network = reconstruct(scan, model, NETWORK_ALONE)
    spoil_solver(monkeypatch, break_object)
    with caplog.at_level(logging.WARNING, logger='ptychopinn_torch_plugin'):
        found = reconstruct(scan, model, CONFIG)
    np.testing.assert_array_equal(found.object_array, network.object_array)
    (warning,) = [record.getMessage() for record in caplog.records if 'diverged' in record.getMessage()]
    assert warning.endswith('The result is the object of the network, not refined.')
    fault_report.record('refinement after the network diverges', warning, 'the object of the network')


def test_a_network_that_diverges_is_refused(monkeypatch: pytest.MonkeyPatch, fault_report: FaultReport) -> None:
    predict = Predictor.predict

    def spoiled(self: Predictor) -> ReconstructionState:
        state = predict(self)
        state.object_array[18:20, 18] = float('nan')
        return state

    monkeypatch.setattr(Predictor, 'predict', spoiled)
    scan, _ = make_scan()
    with pytest.raises(ReconstructionError) as caught:
        reconstruct(scan, untrained_model(CONFIG), NETWORK_ALONE)
    assert '2 of ' in str(caught.value)
    assert 'its object are not finite' in str(caught.value)
    fault_report.record('the network makes the object infinite', str(caught.value), 'the product as it was')


# The host's side: results of a worker


def spoil_result(field: str) -> Callable[[Job], Generator[Message, None, None]]:
    """Return a worker whose result has one number in ``field`` that is not finite."""

    def script(job: Job) -> Generator[Message, None, None]:
        *before, finished = finish(job)
        yield from before
        result = read_result(job.folder)
        if field == 'losses':
            spoiled = replace(result, losses=(LossRecord(1, float('nan'), None),))
        else:
            array = getattr(result, field).copy()
            array.reshape(-1)[3] = np.nan
            spoiled = replace(result, **{field: array})
        shutil.rmtree(job.folder / 'result')  # a complete result is not written again
        write_result(job.folder, spoiled)
        yield finished

    return script


def products(
    script: Callable[[Job], Generator[Message, None, None]], given: ReconstructInput, monkeypatch: pytest.MonkeyPatch
) -> list[ReconstructOutput]:
    """Return the products that the host receives from "Refine" with a worker that runs ``script``."""
    monkeypatch.setattr(runs, 'run_job', FakeWorker(script))
    monkeypatch.setattr(runs, '_YIELD_INTERVAL_S', 0.0)
    *_, refiner = PtychoPINNPyTorchLibrary(SettingsRegistry())
    with refiner.begin_host_run(HostRun(training_input=None, writes_intermediate_products=False)):  # type: ignore[attr-defined]
        return list(refiner.reconstruct(given))


@pytest.mark.parametrize('field', ['object_array', 'probe', 'positions', 'losses'])
def test_the_host_makes_no_product_of_it(
    field: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault_report: FaultReport
) -> None:
    with pytest.raises(ReconstructionError) as caught:
        products(spoil_result(field), make_reconstruct_input(), monkeypatch)
    name = field.removesuffix('_array')
    assert f'of its {name} are not finite, and no result is written' in str(caught.value)
    fault_report.record(f'the worker hands over a {name} with NaN', str(caught.value), 'the product as it was')


def test_a_preview_with_nan_is_not_shown(monkeypatch: pytest.MonkeyPatch, fault_report: FaultReport) -> None:
    given = make_reconstruct_input()

    def script(job: Job) -> Generator[Message, None, None]:
        preview = np.full(given.product.object_.get_array().shape[1:], np.nan, dtype=np.complex64)
        np.save(job.folder / 'preview-000001.npy', preview)
        yield Preview(job.folder / 'preview-000001.npy')
        yield from finish(job)

    outputs = products(script, given, monkeypatch)
    assert all(np.isfinite(output.product.object_.get_array()).all() for output in outputs)
    assert outputs[0].product is given.product
    fault_report.record('a preview holds NaN', 'nothing: the preview is left out', 'the product so far')
