"""What the processes of :mod:`.test_distributed` train together; they import this module."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.data.sharding import processes
from ptychopinn_torch_plugin.errors import InputError
from ptychopinn_torch_plugin.observer import Observer
from ptychopinn_torch_plugin.training.losses import pinn_training_loss
from ptychopinn_torch_plugin.training.run import train

from .runs import Recorder, small

LEARNED = {'probe_trainable': True, 'positions_trainable': True, 'intensity_scale_trainable': True}
WAYS: dict[str, Mapping[str, Mapping[str, object]]] = {
    # Four groups an epoch: the second step has one group, and one window of the validation is left over.
    'everything learned': {'training': LEARNED | {'batch_size': 3}},
    'patches': {'model': {'generator': 'patch'}, 'training': {'batch_size': 4, 'scheduler': 'plateau'}},
    'supervised': {
        'model': {'model_type': 'supervised'},
        'training': {'batch_size': 3, 'accumulate': 2, 'precision': '16'},
        'execution': {'workers': 1},
    },
}
"""Settings that divide the work differently."""
EPOCHS = 2


class StopInLast(Recorder):
    """Asks the last process alone to stop."""

    def should_stop(self) -> bool:
        return processes().rank == processes().size - 1 and super().should_stop()


def losses_of(scan: RawScan, folder: Path, way: Mapping[str, Mapping[str, object]]) -> list[Any]:
    """Return the losses and the progress of a training, as every process of it receives them."""
    recorder = Recorder()
    parts = {**way, 'training': {'epochs': EPOCHS, **way['training']}}
    train([scan], small(**parts), folder, recorder)
    return [recorder.losses, recorder.progress]


def trainings_and_faults(found: list[Any], folder: Path, scans: Sequence[RawScan], observer: Observer) -> None:
    """Train in every way, stop and resume, then fail in the backward pass of the last process, or kill it there.

    ``found`` receives what the test compares; it is the list of the test in the first process only.
    """
    (scan,) = scans
    last = processes().rank == processes().size - 1
    ways = list(WAYS.items()) if processes().size == 2 else list(WAYS.items())[:1]
    found.append({name: losses_of(scan, folder / name, way) for name, way in ways})
    way = WAYS['everything learned']
    config = small(**{**way, 'training': {'epochs': EPOCHS, **way['training']}})
    stopped = StopInLast(stop_after=3)
    train([scan], config, folder / 'stopped', stopped)
    found.append(len(stopped.progress))
    train([scan], config, folder / 'stopped', Recorder())

    def fail(*args: Any) -> Tensor:  # noqa: ANN401 - those of the loss
        loss = pinn_training_loss(*args)
        if last:
            loss.register_hook(_raise if processes().size == 2 else _kill)  # type: ignore[no-untyped-call] # torch's own
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('ptychopinn_torch_plugin.training.module.pinn_training_loss', fail)
        train([scan], config, folder / 'failed', Recorder())


def _raise(_gradient: Tensor) -> Tensor:
    raise InputError('The disk of this node is gone.')


def _kill(_gradient: Tensor) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
