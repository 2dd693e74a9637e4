"""What the processes of :mod:`.test_distributed` do together; they import this module."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest
import torch

from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.data.sharding import processes
from ptychopinn_torch_plugin.engines.memory import with_smaller_batches
from ptychopinn_torch_plugin.engines.pipeline import reconstruct, refine
from ptychopinn_torch_plugin.errors import InputError
from ptychopinn_torch_plugin.observer import Observer, SilentObserver
from ptychopinn_torch_plugin.types import Reconstruction
from tests.helpers.models import untrained_model

NETWORK = {'steps': 2, 'width': 4, 'levels': 1}
ALONE: dict[str, object] = {'refine_epochs': 0}


class StopAfter(SilentObserver):
    """Asks one process alone to stop after two steps."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self.steps = 0

    def on_progress(self, done: int, goal: int) -> None:
        self.steps += 1

    def should_stop(self) -> bool:
        return processes().rank == self._rank and self.steps >= 2


def configured(
    refinement: dict[str, object] | None = None, inference: dict[str, object] | None = None, devices: int = 1
) -> Config:
    """Settings of one thread, so that every run adds up in the same order."""
    return parse_config(
        {'refinement': refinement or {}, 'inference': {'threads': 1, 'devices': devices, **(inference or {})}}
    )


def reconstructions(scan: RawScan) -> dict[str, Reconstruction]:
    """Reconstruct ``scan`` in every way that divides it differently."""
    everything: dict[str, object] = {
        'refine_epochs': 6,
        'positions_start': 2,
        'refine_intensity': True,
        'intensity_start': 3,
    }
    fixed: dict[str, object] = {'refine_epochs': 3, 'refine_probe': False, 'refine_positions': False}
    fixed['likelihood'] = 'poisson'
    unrolled = untrained_model(parse_config({'model': NETWORK}))
    patch = untrained_model(parse_config({'model': {**NETWORK, 'generator': 'patch'}, 'data': {'group_size': 4}}))
    return {
        'everything': refine(scan, configured(refinement=everything)),
        'fixed, half scans': refine(scan, configured(refinement=fixed, inference={'half_scans': True})),
        'more processes than patterns': refine(scan.select(torch.arange(2).numpy()), configured(refinement=fixed)),
        'one window': reconstruct(scan, unrolled, configured(ALONE)),
        'windows': reconstruct(scan, unrolled, configured(ALONE, {'window_size': 8})),
        'groups': reconstruct(scan, patch, configured(ALONE, {'window_size': 4, 'batch_size': 16})),
    }


def reconstructions_and_faults(
    found: list[object], scan: RawScan, config: Config, observer: Observer
) -> Reconstruction:
    """Reconstruct with all processes, then let one of them stop, fail, run out of memory, and be killed.

    ``found`` receives what the test compares; it is the list of the test in the first process only.
    """
    last = processes().size - 1
    found.append(reconstructions(scan))
    stopped = refine(scan, configured(refinement={'refine_epochs': 50}), StopAfter(last))
    found.append(len(stopped.losses))
    found.append(_error_of_one(last, scan))
    found.append(_batch_sizes(last))
    if processes().rank == last and processes().size == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return refine(scan, configured(refinement={'refine_epochs': 2}))


def _error_of_one(rank: int, scan: RawScan) -> str:
    """Return the message of an error that one process alone raises, as every process receives it."""

    class Listener(SilentObserver):
        def on_progress(self, done: int, goal: int) -> None:
            if processes().rank == rank:
                raise InputError('The disk of this node is gone.')

    together = processes()
    with pytest.raises(InputError) as caught:
        try:
            refine(scan, configured(refinement={'refine_epochs': 5}), Listener())
        except InputError as error:
            together.tell(error)
            raise
    return str(caught.value)


def _batch_sizes(rank: int) -> list[int]:
    """Return the batch sizes that every process takes where the memory of one is too small for the first."""
    sizes: list[int] = []

    def work(rank: int, batch_size: int) -> None:
        sizes.append(batch_size)
        if processes().rank == rank and batch_size > 8:
            raise MemoryError('no room')
        processes().agree()

    with_smaller_batches(partial(work, rank), 16, 'The test')
    return sizes
