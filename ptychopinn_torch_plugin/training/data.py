"""The Lightning data module: scans become containers of groups, containers become batches."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from ..config import Config
from ..data.grouping import hold_out_positions
from ..errors import ConfigurationError
from .batches import TrainingBatch, TrainingBatches, TrainingScan, ValidationBatches

PATTERNS_PER_STEP = 64
"""Patterns in one optimiser step where the batch size is left to the package."""
JUDGED_SHARE = 0.1
"""Share of the positions of a held-out scan that are predicted from the rest of it, unless the settings name one."""

_Scan = TypeVar('_Scan')


class PtychoPINNDataModule(pl.LightningDataModule):
    """Splits the positions of every scan and serves both parts.

    Args:
        scans: the scans, on the device that trains, or on the CPU where loader processes cut the batches.
        config: the configuration tree.
        should_stop: asked between validation batches, so that a run that shall stop does not finish them first.
    """

    def __init__(self, scans: Sequence[TrainingScan], config: Config, should_stop: Callable[[], bool]) -> None:
        super().__init__()
        self._execution = config.execution
        rng = np.random.default_rng(config.training.seed)
        trained, parts = trained_scans(scans, config), _split(scans, config, rng)
        batch_size = config.training.batch_size or max(1, PATTERNS_PER_STEP // config.data.group_size)
        self.training = TrainingBatches(
            trained, [training for training, _ in parts[: len(trained)]], config.data, batch_size, config.training.seed
        )
        self.validation = ValidationBatches(
            scans, [held_out for _, held_out in parts], config.data.group_size, should_stop
        )

    def train_dataloader(self) -> DataLoader[TrainingBatch | None]:
        """Batches of the epoch, the same ones in the same order for any number of loader processes."""
        options: dict[str, Any] = {}
        if self._execution.workers:
            self.training.share_epoch()
            options = {
                'num_workers': self._execution.workers,
                'persistent_workers': self._execution.persistent_workers,
                'prefetch_factor': self._execution.prefetch_factor,
                'worker_init_fn': _ignore_interrupts,
                # A forked process shares the patterns' memory, a spawned one would be sent a copy.
                'multiprocessing_context': 'fork' if sys.platform == 'linux' else None,
            }
        return DataLoader(
            self.training, batch_size=None, pin_memory=self._pins(), generator=torch.Generator(), **options
        )

    def val_dataloader(self) -> DataLoader[TrainingBatch]:
        """The validation windows, the same in every epoch; cut in this process, where the wish to stop is heard."""
        # A generator of their own: making an iterator draws a number, from the global one otherwise.
        return DataLoader(self.validation, batch_size=None, pin_memory=self._pins(), generator=torch.Generator())

    def _pins(self) -> bool:
        # Only memory of the CPU can be pinned, and only a CUDA device gains by it.
        return self._execution.pin_memory and self._execution.workers > 0 and torch.cuda.is_available()


def _ignore_interrupts(_number: int) -> None:
    """A loader process leaves an interrupt from the terminal to the training process, which ends it in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def trained_scans(scans: Sequence[_Scan], config: Config) -> Sequence[_Scan]:
    """The scans that the network is trained on: all, or all but the last one where ``data.hold_out_scan`` says so.

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


def _split(
    scans: Sequence[TrainingScan], config: Config, rng: np.random.Generator
) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
    """Training and held-out positions of every scan.

    Where a scan is held out, all positions of the others are trained on, and some of its own are predicted from the
    rest of it.
    """
    fraction = config.data.validation_fraction
    if not config.data.hold_out_scan:
        return [hold_out_positions(scan.tensors.size, fraction, rng) for scan in scans]
    nothing = np.empty(0, dtype=np.int32)
    everything = [np.arange(scan.tensors.size, dtype=np.int32) for scan in scans[:-1]]
    judged = hold_out_positions(scans[-1].tensors.size, fraction or JUDGED_SHARE, rng)
    return [*((all_of_it, nothing) for all_of_it in everything), judged]
