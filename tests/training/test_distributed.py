"""Several processes train one model: the same losses for any number of them, and they end together."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.data.sharding import processes
from ptychopinn_torch_plugin.engines.distributed import train_together
from ptychopinn_torch_plugin.errors import ConfigurationError, InputError, PtychoPINNError, WorkerError
from ptychopinn_torch_plugin.observer import SilentObserver
from ptychopinn_torch_plugin.storage.model_file import load_model
from ptychopinn_torch_plugin.storage.training_output import RESUME_FILE
from ptychopinn_torch_plugin.training.run import train
from tests.helpers.scans import make_scan

from .distributed_runs import EPOCHS, WAYS, losses_of, trainings_and_faults
from .runs import Recorder, small

TOLERANCE = 1e-4
"""Of the losses, relative: sums in another order, and float16."""


@pytest.fixture(scope='module')
def scan() -> RawScan:
    return make_scan(known_object=True)[0]


@pytest.fixture(scope='module')
def alone(scan: RawScan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The trainings of one process."""
    folder = tmp_path_factory.mktemp('alone')
    return {name: losses_of(scan, folder / name, way) for name, way in WAYS.items()}


@pytest.mark.parametrize(
    ('size', 'error', 'message'),
    [
        (2, InputError, 'The disk of this node is gone.'),
        (3, WorkerError, 'One of the 3 processes that work together has ended'),
    ],
)
def test_the_number_of_processes_does_not_change_the_losses(
    size: int,
    error: type[PtychoPINNError],
    message: str,
    scan: RawScan,
    alone: dict[str, list[Any]],
    tmp_path: Path,
) -> None:
    """The same run tests what ends the processes: each start costs seconds.

    The last process of two fails in its backward pass, that of three is killed there.
    """
    found: list[Any] = []
    first, along = (partial(trainings_and_faults, numbers, tmp_path) for numbers in (found, []))
    with pytest.raises(error, match=message):
        train_together(first, along, [scan], size, SilentObserver())
    assert processes().size == 1
    together, stopped_after = found
    assert len(together) == (3 if size == 2 else 1)
    for name, (losses, progress) in together.items():
        np.testing.assert_allclose(losses, alone[name][0], rtol=TOLERANCE, err_msg=name)
        assert progress == alone[name][1]
    assert stopped_after == 3
    model, whole = (tmp_path / name / 'model.safetensors' for name in ('stopped', 'everything learned'))
    if size == 2:
        assert model.read_bytes() == whole.read_bytes()
    else:  # torch adds three gradients in another order in the first step than later
        resumed, expected = load_model(model).weights, load_model(whole).weights
        for name, weights in expected.items():
            np.testing.assert_allclose(resumed[name], weights, atol=1e-4, err_msg=name)
    assert not (tmp_path / 'stopped' / RESUME_FILE).exists()
    rows = (tmp_path / 'everything learned' / 'training_log' / 'metrics.csv').read_text().splitlines()
    assert len(rows) == 1 + EPOCHS


def test_devices_trains_in_so_many_processes_and_one_continues(tmp_path: Path) -> None:
    """The automatic batch of one group becomes one group for each process, which the resume state remembers."""
    scan, _ = make_scan()
    sizes: list[int] = []

    class Stopping(Recorder):
        def on_progress(self, done: int, goal: int) -> None:
            super().on_progress(done, goal)
            sizes.append(processes().size)

    def config(devices: int, batch_size: int) -> Any:  # noqa: ANN401 - the configuration
        data = {'group_size': 40, 'neighbor_count': 42}
        training = {'devices': devices, 'batch_size': batch_size, 'resume': 'auto' if devices == 2 else 'must'}
        return small(data=data, training=training)

    stopped = Stopping(stop_after=2)
    train([scan], config(2, 0), tmp_path, stopped)
    assert set(sizes) == {2}
    assert len(stopped.losses) == 1
    with pytest.raises(ConfigurationError, match='training.batch_size was 2 and is 0'):
        train([scan], config(1, 0), tmp_path)
    recorder = Recorder()
    train([scan], config(1, 2), tmp_path, recorder)
    assert recorder.losses[:1] == stopped.losses
    assert len(recorder.losses) == 3
