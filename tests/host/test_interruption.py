"""Signals during a run that the main thread waits for: which are handled, when, and what is restored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ptychodus.api.exit_codes import ExitCode
from ptychodus.api.io import StandardFileLayout
from ptychodus.api.reconstruct import NullReconstructor, Reconstructor, TrainOutput
from ptychodus.model import ModelCore

from ptychopinn_torch_plugin.host.interruption import RunInterruptedError, stop_on_signals
from ptychopinn_torch_plugin.host.reconstructors import PtychoPINNReconstructor

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='signals of POSIX')

OURS = 'ptychopinn (pytorch)_pinn'
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1, signal.SIGUSR2)


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in HANDLED]


class Trainer:
    """Replaces the ``train`` of a reconstructor: notes the handlers, sends signals, and waits for the stop."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self.numbers = numbers
        self.handlers: list[Any] = []
        self.should_stop: Callable[[], bool] = lambda: True

    def train(self, reconstructor: Reconstructor) -> Iterator[TrainOutput]:
        """Do what ``PtychoPINNReconstructor.train`` does, without a worker."""
        self.handlers = handlers()
        if isinstance(reconstructor, PtychoPINNReconstructor):
            assert reconstructor._host_run is not None
            self.should_stop = reconstructor._host_run.should_stop
        for number in self.numbers:
            os.kill(os.getpid(), number)
        for _ in range(1000):
            yield TrainOutput()
            if self.should_stop():
                return
            threading.Event().wait(0.01)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Trainer()

    def train(self: Reconstructor, input_path: Path, output_path: Path) -> Iterator[TrainOutput]:
        return trainer.train(self)

    for cls in (PtychoPINNReconstructor, NullReconstructor):
        monkeypatch.setattr(cls, 'train', train)
    return trainer


@pytest.mark.parametrize('number', HANDLED, ids=lambda number: number.name)
def test_batch_mode_reports_an_interrupted_run(
    number: signal.Signals, trainer: Trainer, host_model: ModelCore, workflow_folder: Path
) -> None:
    (workflow_folder / StandardFileLayout.SETTINGS).write_text(f'[Processing]\nAlgorithm = {OURS}\n')
    before = handlers()
    trainer.numbers = (number,)
    assert host_model.batch_mode_execute('train', workflow_folder, workflow_folder) == ExitCode.CANCELLED
    assert trainer.should_stop()
    assert all(during != earlier for during, earlier in zip(trainer.handlers, before, strict=True))
    assert handlers() == before


def test_a_script_that_waits_for_a_run_gets_a_keyboard_interrupt(
    trainer: Trainer, host_model: ModelCore, workflow_folder: Path
) -> None:
    data = host_model.workflow_api.load_assembled_diffraction_data(workflow_folder / 'diffraction.h5')
    product = host_model.workflow_api.load_product(workflow_folder / 'product.h5', diffraction=data)
    host_model.processing_core.algorithm_parameter.set_value(OURS)
    trainer.numbers = (signal.SIGINT,)
    with pytest.raises(KeyboardInterrupt, match='SIGINT has stopped the run'):
        product.train_reconstructor_local(workflow_folder, workflow_folder, block=True)


def test_signals_of_other_reconstructors_and_of_the_window_are_left_alone(
    trainer: Trainer, host_model: ModelCore, workflow_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = handlers()
    algorithm = host_model.processing_core.algorithm_parameter
    data = host_model.workflow_api.load_assembled_diffraction_data(workflow_folder / 'diffraction.h5')
    product = host_model.workflow_api.load_product(workflow_folder / 'product.h5', diffraction=data)
    foreign = NullReconstructor('Other')
    with monkeypatch.context() as patched:
        patched.setattr(algorithm, '_current_reconstructor', foreign)
        product.train_reconstructor_local(workflow_folder, workflow_folder, block=True)
    assert trainer.handlers == before
    trainer.handlers = []
    algorithm.set_value(OURS)
    monitor = host_model.processing_core.processing_api.task_monitor
    runs = monitor.get_completed_runs()
    product.train_reconstructor_local(workflow_folder, workflow_folder, block=False)
    monitor.stop_processing()
    while not monitor.wait_for_completion_after(runs, timeout=0.1):
        monitor.stop_processing()
    assert trainer.handlers == before


def test_what_somebody_else_handles_is_left_alone() -> None:
    def handler(*_: object) -> None:
        pass

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, handler), signal.SIGHUP: signal.SIG_DFL}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with stop_on_signals():
            assert signal.getsignal(signal.SIGTERM) is handler
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def test_another_thread_changes_no_handler() -> None:
    found: list[list[Any]] = []

    def work() -> None:
        with stop_on_signals():
            found.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [handlers()]


def test_a_stopped_run_that_fails_is_interrupted_all_the_same() -> None:
    with pytest.raises(RunInterruptedError) as caught, stop_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError('stopped before its work began')
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_without_a_traceback(number: signal.Signals) -> None:
    program = (
        'import os\n'
        'from ptychopinn_torch_plugin.host.interruption import stop_on_signals\n'
        'with stop_on_signals() as request:\n'
        f'    os.kill(os.getpid(), {int(number)})\n'
        '    assert request.is_made()\n'
        '    print("first", flush=True)\n'
        f'    os.kill(os.getpid(), {int(number)})\n'
        '    print("second", flush=True)\n'
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, cwd=root, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-number, 'first\n', '')
