"""The Lightning module: it orchestrates, the mathematics is in ``objective.py`` and below."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from ..config import Config
from ..errors import TrainingError
from ..model.registry import build_generator
from .batches import Batch
from .objective import pinn_training_loss, pinn_validation_loss, supervised_loss

TRAINING_LOSS = 'loss'
VALIDATION_LOSS = 'validation_loss'


class PtychoPINNModule(pl.LightningModule):
    """Trains the generator of ``config.model`` by the objective of its ``model_type``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.generator = build_generator(config.model)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
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

    def validation_step(self, batch: Batch, batch_index: int) -> None:
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
        """AdamW under a one-cycle schedule (L. N. Smith & N. Topin, arXiv:1708.07120)."""
        rate = self.config.training.learning_rate
        optimizer = torch.optim.AdamW(self.generator.parameters(), lr=rate)
        total = max(3, int(self.trainer.estimated_stepping_batches))
        # A run of a few steps still needs one of them to rise on.
        rise = max(0.2, 2 / total)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=total, pct_start=rise)
        return {'optimizer': optimizer, 'lr_scheduler': {'scheduler': schedule, 'interval': 'step'}}
