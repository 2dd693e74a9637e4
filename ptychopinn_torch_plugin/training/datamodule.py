"""The Lightning data module: scans become containers of groups, containers become batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import DataLoader

from ..config import Config
from ..data.grouping import split_positions
from ..tensors import ScanTensors
from .batches import Batch, TrainingBatches, ValidationBatches

PATTERNS_PER_STEP = 64
"""Patterns in one optimiser step where the batch size is left to the package."""


class PtychoPINNDataModule(pl.LightningDataModule):
    """Splits the positions of every scan and serves both parts.

    Args:
        scans: the scans on the device that trains.
        config: the configuration tree.
        should_stop: asked between validation batches, so that a run that shall stop does not finish them first.
    """

    def __init__(self, scans: Sequence[ScanTensors], config: Config, should_stop: Callable[[], bool]) -> None:
        super().__init__()
        rng = np.random.default_rng(config.training.seed)
        parts = [split_positions(tensors.scan.size, config.data.validation_fraction, rng) for tensors in scans]
        batch_size = config.training.batch_size or max(1, PATTERNS_PER_STEP // config.data.group_size)
        self.training = TrainingBatches(
            scans, [training for training, _ in parts], config.data, batch_size, config.training.seed
        )
        self.validation = ValidationBatches(
            scans, [held_out for _, held_out in parts], config.data.group_size, should_stop
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the epoch; gathered in this process, because workers would hold the patterns a second time."""
        return DataLoader(self.training, batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation windows, the same in every epoch."""
        return DataLoader(self.validation, batch_size=None)
