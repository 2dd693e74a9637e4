"""Ctrl-C and the signals of schedulers in Ptychodus' batch mode: the real command, the real worker, the real engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ptychodus.api.exit_codes import ExitCode
from ptychodus.api.io import load_product

from ptychopinn_torch_plugin.demo.simulate import ScanPlan, simulate_scan
from ptychopinn_torch_plugin.storage.model_file import load_model
from tests.helpers.fault_report import FaultReport

from .test_headless import write_settings

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='signals of POSIX')

LONG = {
    'PtychoPINNPyTorchData': {'group_size': '8', 'neighbor_count': '10'},
    'PtychoPINNPyTorchModel': {'width': '4', 'levels': '1', 'steps': '1'},
    'PtychoPINNPyTorchTraining': {'epochs': '3000', 'threads': '1', 'probe_trainable': 'false'},
    'PtychoPINNPyTorchRefinement': {'refine_epochs': '100000', 'stop_when_done': 'false', 'refine_positions': 'false'},
}


@pytest.fixture(scope='module')
def scan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('scan')
    simulate_scan(folder, ScanPlan(rows=4, columns=4, step_px=4.0, pattern_shape=(32, 32), photons=1e5))
    return folder


class Batch:
    """A ``ptychodus -b`` that is running."""

    def __init__(self, action: str, source: Path, target: Path) -> None:
        program = Path(sys.executable).with_name('ptychodus')
        command = [str(program), '-b', action, '-i', str(source), '-o', str(target)]
        environment = os.environ | {'PYTHONPATH': str(Path(__file__).parents[2])}
        # A session of its own: the signals go to its process group, as those of a terminal do.
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.output = ''

    def read_until(self, text: str) -> None:
        """Read the log up to the first line with ``text``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f'"{text}" did not come:\n{self.output}')

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process group, as a terminal or a scheduler does."""
        os.killpg(self.process.pid, number)

    def finish(self) -> int:
        """Wait for the end and return the exit code."""
        rest, _ = self.process.communicate(timeout=60)
        self.output += rest
        return self.process.returncode


@pytest.fixture
def started() -> Iterator[list[Batch]]:
    """The processes of the test; none is left."""
    batches: list[Batch] = []
    yield batches
    for batch in batches:
        batch.process.kill()
        batch.process.communicate()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_stops_training_with_the_best_model(
    number: signal.Signals,
    scan_folder: Path,
    tmp_path: Path,
    started: list[Batch],
    fault_report: FaultReport,
) -> None:
    """Ctrl-C, and what ``sbatch --signal=USR1`` sends before the time is over."""
    write_settings(scan_folder, 'PINN', **LONG)
    batch = Batch('train', scan_folder, tmp_path)
    started.append(batch)
    batch.read_until('Epoch 2 of')
    batch.send(number)
    assert batch.finish() == ExitCode.CANCELLED, batch.output
    epochs = len(load_model(tmp_path / 'model.safetensors').losses)
    assert epochs >= 2
    said = f'The best model of {epochs} epochs is {tmp_path / "model.safetensors"}.'
    assert f'{said} Training into the same folder resumes from there.' in batch.output
    assert f'{number.name} has stopped the run' in batch.output
    assert 'Traceback' not in batch.output
    fault_report.record(f'{number.name} in "ptychodus -b train"', said, 'the best model, and the state to resume from')


def test_sigterm_stops_a_reconstruction_with_the_result_so_far(
    scan_folder: Path, tmp_path: Path, started: list[Batch], fault_report: FaultReport
) -> None:
    write_settings(scan_folder, 'Refine', **LONG | {'PtychoPINNPyTorchInference': {'batch_interval': '50'}})
    batch = Batch('reconstruct', scan_folder, tmp_path)
    started.append(batch)
    while not (first := sorted(tmp_path.glob('product.*.h5'))):
        assert batch.process.poll() is None, batch.finish()
        time.sleep(0.05)
    batch.send(signal.SIGTERM)
    assert batch.finish() == ExitCode.CANCELLED, batch.output
    last = sorted(tmp_path.glob('product.*.h5'))[-1]
    assert last not in first
    product = load_product(last)
    assert np.isfinite(product.object_.get_array()).all()
    assert len(product.losses) > 50
    assert (tmp_path / 'judgement' / 'judgement.json').is_file()
    said = 'The run was stopped by a signal: the product holds the result so far.'
    assert said in batch.output
    assert 'Traceback' not in batch.output
    fault_report.record('SIGTERM in "ptychodus -b reconstruct"', said, 'the product with the result so far')
