"""The Lightning data module: splits the positions of every scan and serves training and validation batches."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from ..config import Config
from ..data.grouping import hold_out_positions
from ..data.sharding import processes
from ..errors import ConfigurationError
from ..signals import ignore_stop_signals
from .batches import GroupDataset, GroupSampler, TrainingBatch, TrainingBatches, TrainingScan, ValidationBatches

logger = logging.getLogger(__name__)

PATTERNS_PER_STEP = 64
"""Patterns in one optimiser step where the settings leave the batch size open."""
SCORED_SHARE = 0.1
"""Share of the positions of a held-out scan that are predicted from the rest of it, unless the settings give one."""

Indices = npt.NDArray[np.int32]
_Scan = TypeVar('_Scan')


class PtychoPINNDataModule(pl.LightningDataModule):
    """Serves the batches of a run.

    Args:
        scans: the scans, on the device that trains, or on the CPU where loader processes make the batches.
        config: the configuration tree.
        should_stop: called between validation batches, so that a stop need not wait for the whole validation.
    """

    def __init__(self, scans: Sequence[TrainingScan], config: Config, should_stop: Callable[[], bool]) -> None:
        super().__init__()
        self._execution = config.execution
        training, held_out = _split(scans, config)
        self._training = GroupDataset(scans)
        self._groups = GroupSampler(
            trained_scans(scans, config),
            training,
            config.data,
            groups_per_step(config),
            config.training.seed,
        )
        self._validation = ValidationBatches(scans, held_out, config.data.group_size, should_stop)

    def resume(self, epoch: int) -> None:
        """Continue after so many finished epochs."""
        self._groups.resume(epoch)

    @property
    def batches_per_epoch(self) -> int:
        """Number of training batches in an epoch."""
        return len(self._groups)

    @property
    def has_validation(self) -> bool:
        """Whether any position is held out."""
        return len(self._validation) > 0

    def train_dataloader(self) -> Iterable[TrainingBatch]:
        """Return the batches of an epoch, the same ones in the same order for any number of loader processes."""
        execution = self._execution
        if execution.workers == 0:
            return TrainingBatches(self._training, self._groups)
        return DataLoader(
            self._training,
            batch_size=None,
            sampler=self._groups,
            num_workers=execution.workers,
            persistent_workers=execution.persistent_workers,
            prefetch_factor=execution.prefetch_factor,
            # Only a CUDA device gains by pinned memory.
            pin_memory=execution.pin_memory and torch.cuda.is_available(),
            worker_init_fn=_ignore_stop_signals,
            # A forked process shares the patterns' memory, a spawned one would be sent a copy.
            multiprocessing_context='fork' if sys.platform == 'linux' else None,
            # Its own: a new iterator draws a number, from the global generator otherwise.
            generator=torch.Generator(),
        )

    def val_dataloader(self) -> Iterable[TrainingBatch]:
        """Return the validation windows, the same in every epoch; made in this process, which sees a stop."""
        return self._validation


def _ignore_stop_signals(_number: int) -> None:
    """Leave the end of a loader process to the training process, which may send SIGTERM for it."""
    ignore_stop_signals(signal.SIGTERM)


def with_group_for_each(config: Config) -> Config:
    """Return ``config`` with an automatic batch size replaced, where it leaves some processes without a group.

    Raises:
        ConfigurationError: a given batch size leaves some processes without a group.
    """
    size, given = processes().size, config.training.batch_size
    if groups_per_step(config) >= size:
        return config
    if given:
        raise ConfigurationError(
            f'training.batch_size = {given}: {size} processes divide the groups of a step, and each needs one at '
            f'least; choose {size} or more, 0 for the automatic number, or fewer devices.'
        )
    logger.info('A step has %d groups, one for each process.', size)
    return config.model_copy(update={'training': config.training.model_copy(update={'batch_size': size})})


def groups_per_step(config: Config) -> int:
    """Return the number of groups in one optimiser step, in all processes together."""
    return config.training.batch_size or max(1, PATTERNS_PER_STEP // config.data.group_size)


def trained_scans(scans: Sequence[_Scan], config: Config) -> Sequence[_Scan]:
    """Return the scans to train on: all, or all but the last one where ``data.hold_out_scan`` is True.

    Raises:
        ConfigurationError: the only scan would be held out.
    """
    if not config.data.hold_out_scan:
        return scans
    if len(scans) < 2:
        raise ConfigurationError(
            'data.hold_out_scan = True: there is one scan only, and nothing would be left to train on; add a scan, or '
            'switch it off and hold out positions (data.validation_fraction).'
        )
    return scans[:-1]


def _split(scans: Sequence[TrainingScan], config: Config) -> tuple[list[Indices], list[Indices]]:
    """Return the training positions of every trained scan, and the held-out positions of every scan.

    Where a scan is held out, all positions of the others are trained on, and some of its own are predicted from the
    rest of it.
    """
    rng = np.random.default_rng(config.training.seed)
    fraction = config.data.validation_fraction
    sizes = [scan.tensors.size for scan in scans]
    trained = trained_scans(scans, config)
    if len(trained) == len(scans):
        parts = [hold_out_positions(size, fraction, rng) for size in sizes]
        return [training for training, _ in parts], [held_out for _, held_out in parts]
    _, scored = hold_out_positions(sizes[-1], fraction or SCORED_SHARE, rng)
    nothing = np.empty(0, dtype=np.int32)
    return [np.arange(size, dtype=np.int32) for size in sizes[:-1]], [*(nothing for _ in trained), scored]
