"""The Lightning module: it orchestrates, the mathematics is in ``objective.py`` and below."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from ..config import Config
from ..errors import TrainingError
from ..models.registry import build_generator
from .batches import TrainingBatch
from .losses import pinn_training_loss, pinn_validation_loss, supervised_loss
from .precision import lower_convolutions
from .schedules import Schedule, lightning_form, make_optimizer, make_schedule

TRAINING_LOSS = 'loss'
VALIDATION_LOSS = 'validation_loss'


class PtychoPINNModule(pl.LightningModule):
    """Trains the generator of ``config.model`` by the objective of its ``model_type``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.generator = build_generator(config.model)
        lower_convolutions(self.generator, config)
        self.schedule: Schedule | None = None

    def training_step(self, batch: TrainingBatch, batch_index: int) -> Tensor:
        """Loss of one batch.

        Raises:
            TrainingError: the loss is not finite.
        """
        if self.config.model.model_type == 'supervised':
            loss = supervised_loss(self.generator, batch)
        else:
            loss = pinn_training_loss(self.generator, batch, self.config.training.likelihood)
        self._refuse_nonfinite(
            loss, f'training loss is not finite in epoch {self.current_epoch + 1}, batch {batch_index + 1}'
        )
        self.log(TRAINING_LOSS, loss, on_step=False, on_epoch=True, batch_size=len(batch.reference))
        return loss

    def validation_step(self, batch: TrainingBatch, batch_index: int) -> None:
        """Log the loss on held-out positions.

        Raises:
            TrainingError: the loss is not finite.
        """
        if self.config.model.model_type == 'supervised':
            loss = supervised_loss(self.generator, batch)
        else:
            loss = pinn_validation_loss(self.generator, batch, self.config.training.likelihood)
        self._refuse_nonfinite(loss, f'loss on held-out positions is not finite after epoch {self.current_epoch + 1}')
        self.log(VALIDATION_LOSS, loss, on_step=False, on_epoch=True, batch_size=batch.scored.amplitudes.shape[1])

    def _refuse_nonfinite(self, loss: Tensor, what: str) -> None:
        if not torch.isfinite(loss):
            raise TrainingError(
                f'The {what}: the best model so far is kept; lower the learning rate, and look for impossible counts '
                'among the patterns.'
            )

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - one of Lightning's many forms
        """Optimiser and schedule of the configuration; see :mod:`.schedules`."""
        optimizer = make_optimizer(self.parameters(), self.config)
        self.schedule = make_schedule(optimizer, self.config, int(self.trainer.estimated_stepping_batches))
        return lightning_form(optimizer, self.schedule)
